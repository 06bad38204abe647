//! Kill and failure at every call: the daemon is killed at every call that changes a file, and every such
//! call fails, in the middle of each gesture. Then the store shows what it showed before the gesture or what
//! it shows after it, after it if the gesture was acknowledged, and fsck finds nothing.

use std::time::Duration;

use crate::common::Ran;
use crate::replay::look;
use crate::{Mode, World, length, seed};

/// Gestures, each done on what the ones before have left.
pub const GESTURES: &[(&str, &str)] = &[
    ("a first version", "cp $S/a.tar web.tar"),
    ("an image beside it", "cp $S/d.tar.gz db.tar.gz"),
    ("the next version", "cp $S/b.tar web.tar"),
    ("the same again", "cp $S/b.tar web.tar"),
    ("large content", "cp $S/large.tar big.tar"),
    ("a staged one", "cp $S/c.tar .web.tar && mv .web.tar web.tar"),
    ("default", "ln -sfn db default"),
    ("a pin", "ln -sfn 0 web/default"),
    ("an alias", "ln -s web/1 old"),
    ("a rename", "mv web site"),
    ("an edit", "setfattr -n user.imgfs.storage -v small site"),
    ("many small files", "cp $S/many.tar many.tar"),
    ("an eighth of them", "cp $S/few.tar many.tar"),
    ("the first of them goes", "rmdir many/0"),
    // What the kernel knows of stays, so it is made to forget, which the daemon may hear a moment later.
    (
        "a compaction",
        "for n in {1..20}; do echo 2 > /proc/sys/vm/drop_caches; out=$($IMGFS gc --trash --store $STORE) || exit 1; [[ $out = \"removed 0 \"* ]] || break; sleep 0.1; done",
    ),
    ("a repack", "$IMGFS repack --store $STORE"),
    ("an update of what is packed", "cp $S/large2.tar big.tar"),
    ("a deletion", "rmdir site/2"),
    ("its undoing", "mv .imgfs/trash/site.2 site/"),
    ("an image's deletion", "rm -r site"),
    ("a gc", "$IMGFS gc --trash --store $STORE"),
    ("a second repack", "$IMGFS repack --store $STORE"),
    ("another default", "ln -sfn big default"),
    ("another deletion", "rmdir db"),
    ("a second gc", "$IMGFS gc --trash --store $STORE"),
];

/// Of the calls each, or with a number as length one of so many, another for another seed. `each`: in each of
/// the modes, not in one of them.
fn torture(modes: &[(Mode, i32)], each: bool) {
    let (seed, of) = (seed() as usize, length(1, 1) as usize);
    let world = World::new();
    let (mut tried, mut longest) = (0, Duration::ZERO);
    let part = part();
    for (n, (name, gesture)) in GESTURES.iter().enumerate() {
        // Once in peace, which shows what is before and after, and how many calls there are.
        world.ok("rm -rf before; cp -a store before");
        world.mount();
        let before = world.state();
        world.arm(Mode::Once, 0, 0);
        let ran = world.sh("mnt", gesture);
        assert_eq!(ran.code, 0, "{name}: {ran:?}");
        let count = world.count();
        world.arm(Mode::Off, 0, 0);
        // Of a mount that remembers nothing.
        world.unmount();
        world.mount();
        let after = world.state();
        world.unmount();
        world.ok("rm -rf after; cp -a store after");
        let inside = ["before", "after"].map(|kept| {
            world.ok(&format!("rm -rf store; cp -a {kept} store"));
            opened(&world, name)
        });
        for at in (1..=count).filter(|at| part.contains(&n) && (*at as usize + seed).is_multiple_of(of)) {
            let turn = (at as usize / of + seed) % modes.len();
            for &(mode, errno) in if each { modes } else { &modes[turn..=turn] } {
                let when = format!("{name}, call {at} of {count}, errno {errno}");
                world.ok("rm -rf store; cp -a before store");
                world.mount();
                world.arm(mode, at, errno);
                let ran = world.sh(".", &format!("cd mnt && timeout 20 bash -c '{gesture}'"));
                world.arm(Mode::Off, 0, 0);
                assert_ne!(ran.code, 124, "{when}: it hangs");
                if matches!(mode, Mode::Kill) {
                    longest = longest.max(world.unmount());
                    world.mount();
                }
                check(&when, &ran, &before, &after, &world.state());
                world.unmount();
                check(&when, &ran, &inside[0], &inside[1], &opened(&world, &when));
                tried += 1;
                if tried % 500 == 0 {
                    println!("{when}: {tried} points so far");
                }
            }
        }
        world.ok("rm -rf store; cp -a after store");
        println!("{name}: {count} calls; {tried} points so far");
    }
    println!("{tried} points; a killed daemon held its store for {longest:?} at most");
}

/// Which of the gestures: all, or what `IMGFS_GESTURES` says, as `0-4`, because all calls in all ways take
/// hours.
fn part() -> std::ops::RangeInclusive<usize> {
    let Ok(text) = std::env::var("IMGFS_GESTURES") else { return 0..=GESTURES.len() };
    let ends = text.split_once('-').and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
    let (first, last) = ends.expect("IMGFS_GESTURES is two numbers, as 0-4");
    first..=last
}

/// What the store is found to hold when it is opened, and that fsck finds nothing.
fn opened(world: &World, when: &str) -> String {
    look(&world.path("store")).unwrap_or_else(|why| panic!("{when}: {why}"))
}

/// It is as before or as after, as after if it was acknowledged.
pub fn check(when: &str, ran: &Ran, before: &str, after: &str, now: &str) {
    let from_after = differences(after, now);
    if ran.code == 0 {
        assert!(now == after, "{when}: acknowledged, and then:\n{from_after}{ran:?}");
    } else {
        let from_before = differences(before, now);
        let either = now == before || now == after;
        assert!(either, "{when}: neither before:\n{from_before}nor after:\n{from_after}{ran:?}");
    }
}

/// The lines that are only in one of the two.
fn differences(wanted: &str, found: &str) -> String {
    let only = |sign: char, one: &str, other: &str| -> String {
        one.lines()
            .filter(|line| !other.lines().any(|l| l == *line))
            .map(|line| format!("{sign} {line}\n"))
            .collect()
    };
    only('-', wanted, found) + &only('+', found, wanted)
}

#[test]
#[ignore = "minutes: scripts/torture.sh"]
fn the_daemon_is_killed_anywhere() {
    torture(&[(Mode::Kill, 0)], true);
}

#[test]
#[ignore = "minutes: scripts/torture.sh"]
fn any_call_fails() {
    let long = length(0, 1) == 1;
    let mut errnos = vec![libc::EIO, libc::ENOSPC, libc::EMFILE, libc::ENOMEM];
    errnos.extend([libc::EROFS, libc::EDQUOT, libc::ENFILE].into_iter().filter(|_| long));
    let modes: Vec<(Mode, i32)> = [Mode::Once, Mode::FromThenOn]
        .into_iter()
        .flat_map(|m| errnos.iter().map(move |e| (m, *e)))
        .collect();
    torture(&modes, long);
}
