//! A soak: real tools at work on several images, a repack and a gc beside them, and the daemon killed at
//! random times. What had been acknowledged is there after each kill, what was under way is there whole or
//! not at all.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::common::limit;
use crate::dice::Dice;
use crate::{World, length, seed};

/// An image as it should be. Versions by number: which tarball they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Image {
    versions: BTreeMap<u32, usize>,
    /// Deleted ones, that can come back.
    trashed: BTreeMap<u32, usize>,
    next: u32,
    pinned: Option<u32>,
    note: String,
}

impl Image {
    fn latest(&self) -> Option<u32> {
        self.versions.keys().next_back().copied()
    }

    /// What the mount shows of it.
    fn text(&self, sums: &[String]) -> String {
        let mut text = String::new();
        for (number, tar) in &self.versions {
            text += &format!("{number} {}\n", sums[*tar]);
        }
        let default = self.pinned.map_or("latest".to_owned(), |n| n.to_string());
        format!("{text}default {default}\nnote={}\n", self.note)
    }
}

/// A gesture on the image NAME, as a script, and what it makes of the image.
fn gesture(dice: &mut Dice, name: &str, image: &Image, tars: usize) -> (String, Image) {
    let mut after = image.clone();
    let any = |dice: &mut Dice, of: &BTreeMap<u32, usize>| of.keys().nth(dice.roll(of.len())).copied();
    // A few versions are enough to look at.
    let script = match if image.versions.len() > 4 { 0 } else { dice.roll(10) } {
        0 if image.versions.len() > 1 => {
            let number = any(dice, &image.versions).unwrap_or(0);
            if image.pinned == Some(number) {
                return (format!("! rmdir {name}/{number} 2> /dev/null"), after);
            }
            after.trashed.extend(after.versions.remove_entry(&number));
            format!("rmdir {name}/{number}")
        }
        1 if !image.trashed.is_empty() => {
            let number = any(dice, &image.trashed).unwrap_or(0);
            after.versions.extend(after.trashed.remove_entry(&number));
            format!("mv .imgfs/trash/{name}.{number} {name}/")
        }
        2 if !image.versions.is_empty() => {
            after.pinned = any(dice, &image.versions);
            format!("ln -sfn {} {name}/default", after.pinned.unwrap_or(0))
        }
        3 if !image.versions.is_empty() => {
            after.pinned = None;
            format!("ln -sfn latest {name}/default")
        }
        4 if !image.versions.is_empty() => {
            after.note = format!("note{}", dice.roll(1000));
            format!("setfattr -n user.imgfs.description -v {} {name}", after.note)
        }
        _ => {
            let tar = dice.roll(tars);
            let same = image.latest().is_some_and(|n| image.versions[&n] == tar);
            if !same {
                after.versions.insert(after.next, tar);
                after.next += 1;
            }
            match dice.roll(3) {
                0 => format!("cp $S/n{tar}.tar {name}.tar"),
                1 => format!("cat $S/n{tar}.tar > {name}.tar"),
                _ => format!("cp $S/n{tar}.tar .{name}.tar && mv .{name}.tar {name}.tar"),
            }
        }
    };
    (script, after)
}

/// What the mount shows of an image that is there.
fn shown(world: &World, name: &str) -> String {
    let script = format!(
        "cd {name} 2> /dev/null || {{ echo default latest; echo note=; exit; }}; for v in $(ls | grep -x '[0-9]*' | sort -n); do echo $v $(sha256sum < $v/rootfs.tar | cut -c-64); done; \
         echo default $(readlink default); echo note=$(getfattr --only-values -n user.imgfs.description . 2> /dev/null)"
    );
    world.sh("mnt", &script).out
}

#[test]
#[ignore = "minutes: scripts/torture.sh"]
fn what_was_acknowledged_survives_kills_at_any_time() {
    const TARS: usize = 6;
    const CLIENTS: usize = 3;
    let (kills, mut dice) = (length(100, 10_000), Dice(seed()));
    let world = World::new();
    world.ok(&format!("cd src; for n in $(seq 0 {}); do echo $n > t/v; seq $n 7 90000 > t/f$n; head -c 200000 /dev/urandom > t/noise; tar -C t --sort=name -cf n$n.tar .; done", TARS - 1));
    let sums: Vec<String> = (0..TARS)
        .map(|n| world.sh("src", &format!("sha256sum < n{n}.tar | cut -c-64")).out.trim().to_owned())
        .collect();
    let mut images = vec![Image::default(); CLIENTS];
    let (mut done, mut unfinished) = (0, 0);
    for kill in 0..kills {
        world.mount();
        let stop = AtomicBool::new(false);
        // Each client has an image of its own, and says what it saw acknowledged and what was under way.
        let (world_, stop_, seeds) = (&world, &stop, (0..CLIENTS).map(|_| dice.next()).collect::<Vec<_>>());
        let after = Duration::from_millis(5 + dice.roll(250) as u64);
        let outcomes: Vec<(Image, Option<Image>, u32)> = std::thread::scope(|scope| {
            let clients: Vec<_> = images
                .iter()
                .enumerate()
                .map(|(n, image)| {
                    let (mut image, mut dice) = (image.clone(), Dice(seeds[n]));
                    scope.spawn(move || {
                        let mut count = 0;
                        while !stop_.load(Ordering::Acquire) {
                            let (script, next) = gesture(&mut dice, &format!("web{n}"), &image, TARS);
                            if world_.sh("mnt", &script).code != 0 {
                                assert!(
                                    stop_.load(Ordering::Acquire),
                                    "{script} failed, and nobody was killed"
                                );
                                return (image, Some(next), count);
                            }
                            (image, count) = (next, count + 1);
                        }
                        (image, None, count)
                    })
                })
                .collect();
            let beside = match kill % 10 {
                9 => "$IMGFS repack --store store",
                3 | 6 => "$IMGFS gc --store store",
                _ => "true",
            };
            scope.spawn(move || world_.sh(".", beside));
            std::thread::sleep(after);
            let lock = std::fs::read_to_string(world.path("store/lock")).unwrap();
            stop.store(true, Ordering::Release);
            let pid = lock.lines().next().unwrap();
            limit::kill(pid.parse().unwrap());
            clients.into_iter().map(|client| client.join().unwrap()).collect()
        });
        world.unmount();
        world.mount();
        for (n, (acknowledged, under_way, count)) in outcomes.into_iter().enumerate() {
            done += count;
            let now = shown(&world, &format!("web{n}"));
            let maybe = under_way.filter(|image| image.text(&sums) == now);
            unfinished += u32::from(maybe.is_some());
            assert!(
                maybe.is_some() || acknowledged.text(&sums) == now,
                "kill {kill}, web{n}: {acknowledged:?}\nshould be:\n{}is:\n{now}",
                acknowledged.text(&sums)
            );
            images[n] = maybe.unwrap_or(acknowledged);
        }
        if kill == 0 {
            // The control: something that is lost is seen.
            let mut wrong = images[0].clone();
            wrong.versions.insert(99, 0);
            assert_ne!(wrong.text(&sums), shown(&world, "web0"));
        }
        world.unmount();
        if kill % 10 == 9 {
            // The trash of a day's work would be all that there is to look at.
            let trash = if kill % 50 == 49 { "--trash" } else { "" };
            let ran = world.sh(
                ".",
                &format!("$IMGFS gc {trash} --store store > /dev/null && $IMGFS fsck --store store"),
            );
            assert_eq!(ran.code, 0, "kill {kill}: {ran:?}");
            if !trash.is_empty() {
                images.iter_mut().for_each(|image| image.trashed.clear());
            }
        }
        if kill % 1000 == 999 {
            println!("{} kills, {done} gestures acknowledged", kill + 1);
        }
    }
    println!(
        "soak: {kills} kills, {done} gestures acknowledged, {unfinished} done but not acknowledged, 0 losses"
    );
}
