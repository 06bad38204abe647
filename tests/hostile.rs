//! Hostile input, deterministically: every change of small inputs, and random ones, through the fuzz targets.
//! Hours of the same under libFuzzer: scripts/fuzz.sh.

#[path = "common/random.rs"]
mod random;
#[path = "fuzz/targets.rs"]
mod targets;

use std::path::Path;

use random::Random;

fn seeds(kind: &str) -> Vec<(String, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/seeds").join(kind);
    let mut all: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .map(|p| (p.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(p).unwrap()))
        .collect();
    all.sort();
    assert!(!all.is_empty());
    all
}

/// Changes some bytes, cuts, doubles or joins pieces, or writes a number that is at an edge.
fn mutate(random: &mut Random, data: &mut Vec<u8>) {
    for _ in 0..=random.below(4) {
        let len = data.len();
        let at = random.below(len);
        match random.below(7) {
            0 if len > 0 => data[at] ^= 1 << random.below(8),
            1 if len > 0 => data[at] = random.next() as u8,
            2 => data.truncate(at),
            3 => {
                let piece: Vec<u8> = data[at..len.min(at + 1 + random.below(600))].to_vec();
                let to = random.below(len);
                data.splice(to..to, piece);
            }
            4 if len > 8 => {
                let edge =
                    [0, 1, u64::MAX, i64::MAX as u64, 1 << 32, u64::from(u32::MAX), 1 << 31][random.below(7)];
                let at = at.min(len - 8);
                data[at..at + 8].copy_from_slice(&edge.to_le_bytes());
            }
            5 if len > 12 => {
                let text =
                    [&b"77777777777\0"[..], b"\x80\xff\xff\xff", b"999", b"-1", b"\0\0\0\0"][random.below(5)];
                let at = at.min(len - text.len());
                data[at..at + text.len()].copy_from_slice(text);
            }
            _ => drop(data.drain(at..len.min(at + 1 + random.below(600)))),
        }
    }
}

#[test]
fn seeds_are_read() {
    seeds("archive").iter().for_each(|(_, data)| targets::archive(data));
    seeds("layers").iter().for_each(|(_, data)| targets::layers(data));
    seeds("tree").iter().for_each(|(_, data)| targets::tree(data));
    seeds("recipe").iter().for_each(|(_, data)| targets::recipe(data));
}

#[test]
fn an_archive_cut_or_changed_at_every_byte_is_refused_or_comes_back_exactly() {
    let (_, data) = seeds("archive").into_iter().find(|(name, _)| name == "k-xattr.tar").unwrap();
    for len in 0..data.len() {
        targets::archive(&data[..len]);
    }
    for at in 0..data.len() {
        for value in [data[at] ^ 1, data[at] ^ 0x80, 0, 0xff, b'9', b' '] {
            let mut changed = data.clone();
            changed[at] = value;
            // As it is, and with a checksum that holds.
            targets::archive(&changed);
            targets::archive(&targets::repaired(&changed));
        }
    }
}

#[test]
fn a_tree_or_recipe_changed_at_every_byte_is_read_or_refused() {
    for (kind, run) in [("tree", targets::tree as fn(&[u8])), ("recipe", targets::recipe)] {
        for (_, data) in seeds(kind) {
            for at in 0..data.len() {
                for value in [data[at] ^ 1, data[at] ^ 0x80, 0xff, 0] {
                    let mut changed = data.clone();
                    changed[at] = value;
                    run(&changed);
                }
                run(&data[..at]);
            }
        }
    }
}

#[test]
fn random_changes_and_random_bytes_harm_nothing() {
    let mut random = Random::seeded(20_261_121);
    for (kind, run) in [
        ("archive", (|d| targets::archive(&targets::repaired(d))) as fn(&[u8])),
        ("layers", targets::layers),
        ("tree", targets::tree),
        ("recipe", targets::recipe),
    ] {
        let seeds = seeds(kind);
        for _ in 0..15_000 {
            let mut data = seeds[random.below(seeds.len())].1.clone();
            mutate(&mut random, &mut data);
            run(&data);
        }
        for len in 0..2_000 {
            let data: Vec<u8> = (0..len).map(|_| random.next() as u8).collect();
            run(&data);
        }
    }
}
