//! The daemon's clock: it jumps, or a week passes in seconds, in which clients hold what they hold.

use std::io::Read;
use std::time::{Duration, Instant};

use super::{Client, OPEN_FILES, given_back, held};
use crate::common::{IMGFS, Mount, sh};
use crate::length;

/// Seconds.
const WEEK: u64 = 7 * 24 * 3600;

/// Mounts with the clock of the day somewhere else; the one that counts from the boot goes on as it does.
fn mount_at(mount: &Mount, when: &str) {
    let ran = sh(
        &mount.path("."),
        &format!(
            "FAKETIME='{when}' FAKETIME_NO_CACHE=1 FAKETIME_DONT_FAKE_MONOTONIC=1 \
             LD_PRELOAD=$(dirname $(ldconfig -p | awk '/libc.so.6/{{print $NF; exit}}'))/faketime/libfaketime.so.1 {IMGFS} mount --store store mnt"
        ),
    );
    assert_eq!(ran.code, 0, "{when}: {ran:?}");
}

/// Times are shown, and never decide about order or numbers.
#[test]
#[ignore = "minutes: scripts/torture.sh"]
fn stalls_of_the_clock() {
    let mut mount = Mount::new();
    mount.ok("cp $S/a.tar web.tar; cp $S/b.tar web.tar; cp $S/c.tar db.tar");
    mount.unmount();
    let mut versions = 2;
    let clocks = ["@1999-01-01 00:00:00", "+30y", "-20y", "+10d"];
    for (n, clock) in clocks.iter().enumerate() {
        mount_at(&mount, clock);
        let year: i32 = mount
            .ok("touch now.x; tail -1 .imgfs/log > /dev/null; cp $S/d.tar clock.tar; tail -1 .imgfs/log | cut -c1-4")
            .trim()
            .parse()
            .unwrap();
        assert!(
            (year - 2026).abs() > 3 || clock.ends_with('d'),
            "control: the clock says {year} with {clock}"
        );
        mount.ok("ln -sfn db default; rm -r clock; cmp $S/a.tar web/0/rootfs.tar; cmp $S/b.tar web/1/rootfs.tar; cmp $S/c.tar db/0/rootfs.tar");
        for tar in ["c", "a"] {
            mount.ok(&format!(
                "cp $S/{tar}.tar web.tar; test $(readlink web/latest) = {versions}; cmp $S/{tar}.tar web/default/rootfs.tar"
            ));
            versions += 1;
        }
        assert_eq!(mount.ok("ls web | grep '^[0-9]' | sort -n | tail -1").trim(), (versions - 1).to_string());
        // A number comes once, whatever the clock says.
        mount.ok(&format!("rmdir web/{}; cp $S/b.tar web.tar; test $(readlink web/latest) = {versions}; rmdir web/{versions}; mv .imgfs/trash/web.{} web/", versions - 1, versions - 1));
        versions += 1;
        mount.ok(&format!("cp $S/d.tar web.tar; test $(readlink web/latest) = {versions}"));
        mount.ok(&format!("rmdir web/{versions}"));
        mount.ok("rm -rf .imgfs/trash/*; cat .imgfs/status.json > /dev/null; for l in .imgfs/by-id/*; do test -e $l/.id || exit 1; done");
        mount.unmount();
        mount.fsck();
        assert!(
            !std::fs::read_to_string(mount.path("store/daemon.log")).unwrap_or_default().contains("panick"),
            "{n}"
        );
        versions = versions_left(&mut mount);
    }
    println!(
        "{} clocks from 1999 to 30 years ahead: all images there, numbers in order; control: each was what the daemon saw",
        clocks.len()
    );
}

/// The next number of `web`, with the clock as it is, after all others.
fn versions_left(mount: &mut Mount) -> u32 {
    mount.mount();
    let count = mount.ok("cp $S/b.tar web.tar; readlink web/latest").trim().parse::<u32>().unwrap() + 1;
    mount.ok("cmp $S/b.tar web/latest/rootfs.tar; cmp $S/a.tar web/0/rootfs.tar");
    mount.unmount();
    count
}

/// A week by the daemon's clock, in which versions come and go, the trash ends by its time and everything is
/// looked at, while clients hold an upload and files. Then all that they held is given back.
#[test]
#[ignore = "minutes: scripts/torture.sh"]
fn stalls_of_a_week() {
    let mut mount = Mount::new();
    mount.ok("cp $S/a.tar big.tar; cp $S/a.tar db.tar; cp $S/b.tar db.tar; cp $S/c.tar kept.tar");
    mount.unmount();
    let time = Duration::from_secs(length(30, 1800).into());
    mount_at(&mount, &format!("+0 x{}", WEEK / time.as_secs()));
    let begun = Instant::now();
    let clock_begun = seconds(&mount, "tail -1 .imgfs/log | cut -f1");
    mount.ok("echo 1s > .imgfs/config/trash; echo 1d > .imgfs/config/scrub");
    let (before, disk_before) = (held(&mount), disk(&mount));
    let clients = [
        Client::start(&mount, "(head -c 100000 $S/a.tar; touch $S/ready1; sleep 100000) > $MNT/half.tar"),
        Client::start(&mount, "(head -c 1000; touch $S/ready2; sleep 100000) < $MNT/big/0/rootfs.tar"),
        Client::start(&mount, &OPEN_FILES.replace("/ready", "/ready3")),
    ];
    // What is open stays, whatever becomes of its version.
    let mut open = std::fs::File::open(mount.mnt().join("db/0/rootfs/bin/tool")).unwrap();
    mount.ok("for i in $(seq 1000); do test -e $S/ready1 -a -e $S/ready2 -a -e $S/ready3 && exit 0; sleep 0.02; done; exit 1");
    let (mut gestures, mut most) = (0, 0);
    while begun.elapsed() < time {
        let tar = ["a", "b"][gestures % 2];
        mount.ok(&format!(
            "cp $S/{tar}.tar db.tar; cmp $S/{tar}.tar db/latest/rootfs.tar; \
             for old in $(ls db | grep -x '[0-9]*' | sort -n | head -n -1); do rmdir db/$old; done"
        ));
        most = most.max(mount.ok("ls .imgfs/trash | wc -l").trim().parse().unwrap());
        gestures += 1;
    }
    let passed = seconds(&mount, "tail -1 .imgfs/log | cut -f1") - clock_begun;
    assert!(passed > WEEK * 9 / 10, "control: {passed} s have passed by the clock of the daemon");
    assert!(most > 0 && most < gestures, "control: {most} of {gestures} in the trash at most");
    mount.ok("for i in $(seq 400); do test -z \"$(ls .imgfs/trash)\" && exit 0; sleep 0.1; done; exit 1");
    let looked = seconds(
        &mount,
        "python3 -c 'import json; print(json.load(open(\".imgfs/status.json\"))[\"scrub\"][\"ended_at\"])'",
    );
    assert!(
        looked > clock_begun + WEEK / 2,
        "everything was looked at last {} s after the begin",
        looked - clock_begun
    );
    let disk_after = disk(&mount);
    assert!(
        disk_after < disk_before * 2 + 1024,
        "KiB {disk_before}, {disk_after}: {}",
        mount.ok("cd $STORE; du -a . | sort -n | tail -20")
    );
    let mut content = Vec::new();
    open.read_to_end(&mut content).unwrap();
    drop(open);
    assert!(content == std::fs::read(mount.path("src/a/bin/tool")).unwrap(), "what was open all the time");
    drop(clients);
    mount.ok("for i in $(seq 400); do grep -q '\"uploads\": 0' .imgfs/status.json && exit 0; sleep 0.1; done; exit 1");
    let after = given_back(&mount, "a week", before);
    mount.ok("cmp $S/c.tar kept/0/rootfs.tar; cmp $S/a.tar big/0/rootfs.tar; not ls half");
    mount.unmount();
    mount.fsck();
    println!(
        "{gestures} versions in a week of {time:?}, at most {most} in the trash, KiB on the disk {disk_before}, {disk_after}; \
         (descriptors, staged, KiB) {before:?} {after:?}"
    );
}

/// A time that a script prints, in seconds since 1970.
fn seconds(mount: &Mount, script: &str) -> u64 {
    mount.ok(&format!("date -d $({script}) +%s")).trim().parse().unwrap()
}

/// KiB of the store.
fn disk(mount: &Mount) -> u64 {
    mount.ok("du -s $STORE | cut -f1").trim().parse().unwrap()
}
