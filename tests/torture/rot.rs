//! Bit rot: one bit of every byte of a small store, or every bit. What is read is right or refused, the other
//! images go on, and of a damaged catalog, its copy or the table nothing is lost at all.

use std::path::{Path, PathBuf};

use imgfs::error::Error;
use imgfs::images::export;
use imgfs::store::Store;
use imgfs::store::settings::Settings;

use crate::dice::Dice;
use crate::{World, seed};

/// Of each version the sha256 of its rootfs.tar, or why there is none; and what names there are.
type State = (Vec<(String, Result<String, String>)>, String);

fn state(dir: &Path) -> Result<State, Error> {
    let store = Store::open(dir, Settings::default())?;
    let mut versions: Vec<(u32, String)> = {
        let model = store.catalog.read();
        model.all_versions().map(|v| (v.serial, store.path_of(&model, v.serial))).collect()
    };
    versions.sort();
    let read = |serial: u32| match store.tree(serial).and_then(|slot| export::sha256(&store, &slot.tree, 0)) {
        Ok(sum) => Ok(sum),
        Err(e) if e.is_damage() => Err(e.to_string()),
        Err(e) => panic!("{e}"),
    };
    let sums = versions.into_iter().map(|(serial, name)| (name, read(serial))).collect();
    let model = store.catalog.read();
    let aliases: Vec<_> = model.aliases.values().map(|a| (a.name.clone(), a.image, a.number)).collect();
    let images: Vec<_> = model
        .images
        .values()
        .map(|i| (i.name.clone(), i.pinned, i.next_number, i.trash_name.clone()))
        .collect();
    Ok((sums, format!("{aliases:?} {images:?} {:?}", model.default_image)))
}

/// What the damage of one file came to.
#[derive(Default)]
struct Tally {
    right: u32,
    refused: u32,
    wrong: u32,
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        ["format", "catalog.db", "catalog.rows", "blobs"].map(|name| dir.join(name)).into();
    for sub in ["loose", "packs", "trees"] {
        found.extend(std::fs::read_dir(dir.join(sub)).unwrap().map(|entry| entry.unwrap().path()));
    }
    found
}

fn copy(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let below = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &below);
        } else {
            std::fs::copy(&path, below).unwrap();
        }
    }
}

/// Flips so many bits of every byte of a file, one at a time, and looks.
fn flip_all(memory: &Path, file: &Path, bits: u32, dice: &mut Dice, whole: &State) -> Tally {
    let (good, dir) = (memory.join("small"), memory.join("flipped"));
    let bytes = std::fs::read(file).unwrap();
    let at_all = file.strip_prefix(&good).unwrap();
    let rows = ["catalog.db", "catalog.rows", "blobs"].iter().any(|name| at_all == Path::new(name));
    let mut tally = Tally::default();
    for (at, bit) in (0..bytes.len()).flat_map(|at| (0..bits).map(move |bit| (at, bit))) {
        copy(&good, &dir);
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << if bits == 1 { dice.roll(8) as u32 } else { bit };
        std::fs::write(dir.join(at_all), &damaged).unwrap();
        let what = format!("{} byte {at}", at_all.display());
        match state(&dir) {
            Ok(now) => {
                if rows {
                    assert_eq!(now, *whole, "{what}");
                }
                assert_eq!(now.1, whole.1, "{what}");
                assert_eq!(now.0.len(), whole.0.len(), "{what}");
                let wrong = now.0.iter().zip(&whole.0).filter(|(a, b)| a.1.is_ok() && a != b).count();
                let refused = now.0.iter().filter(|(_, read)| read.is_err()).count();
                tally.wrong += u32::from(wrong > 0);
                tally.refused += u32::from(refused > 0);
                tally.right += u32::from(wrong + refused == 0);
            }
            Err(e) => {
                assert_eq!(at_all, Path::new("format"), "{what}: {e}");
                tally.refused += 1;
            }
        }
    }
    tally
}

#[test]
#[ignore = "minutes: scripts/torture.sh"]
fn one_bit_of_every_byte() {
    let world = World::new();
    world.ok("cd src; rm -rf t; mkdir t; echo hello > t/motd; echo 1 > t/v; seq 30 > t/n; tar -C t --sort=name -cf s0.tar .; seq 31 > t/n; tar -C t --sort=name -cf s1.tar .; echo other > t/motd; tar -C t --sort=name -cf s2.tar .");
    world.mount();
    let made = world.sh("mnt", "cp $S/s0.tar web.tar; cp $S/s1.tar web.tar; $IMGFS repack --store $STORE; cp $S/s2.tar db.tar; ln -s web prod; ln -sfn 0 web/default; cp $S/s0.tar gone.tar; rmdir gone");
    assert_eq!(made.code, 0, "{made:?}");
    world.unmount();
    // Everything in one file, and nothing that a look makes anew.
    world.ok("mv store small; cd small; python3 -c \"import sqlite3; sqlite3.connect('catalog.db').execute('pragma wal_checkpoint(truncate)')\"; rm -f reserve log daemon.log scrub catalog.db-*");
    // In memory, where a sync costs nothing.
    let memory = tempfile::Builder::new().prefix("imgfs-test-").tempdir_in("/dev/shm").unwrap();
    let (mut dice, good) = (Dice(seed()), memory.path().join("small"));
    copy(&world.path("small"), &good);
    copy(&good, &memory.path().join("flipped"));
    let whole = state(&memory.path().join("flipped")).unwrap();
    assert!(whole.0.len() == 4 && whole.0.iter().all(|(_, read)| read.is_ok()), "{whole:?}");
    let bits = crate::length(1, 8).min(8);
    let mut all = Tally::default();
    for file in files(&good) {
        let tally = flip_all(memory.path(), &file, bits, &mut dice, &whole);
        (all.right, all.refused, all.wrong) =
            (all.right + tally.right, all.refused + tally.refused, all.wrong + tally.wrong);
    }
    assert_eq!(all.wrong, 0);
    // The control: without the check of what is read, wrong bytes come out.
    fail::cfg("read.check", "return").unwrap();
    let segments = files(&good).into_iter().filter(|file| file.extension().is_some_and(|e| e == "seg"));
    let unchecked: u32 =
        segments.map(|file| flip_all(memory.path(), &file, 1, &mut dice, &whole).wrong).sum();
    fail::remove("read.check");
    assert!(unchecked > 0);
    println!(
        "bit rot: {} flips, {} without effect, {} refused, 0 wrong; control, unchecked: {unchecked} wrong",
        all.right + all.refused,
        all.right,
        all.refused
    );
}
