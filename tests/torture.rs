//! Nothing is ever lost: the daemon is killed at every call that changes a file, and every such call fails, in the
//! middle of each gesture. Then the store shows what it showed before the gesture or what it shows after it, after it
//! if the gesture was acknowledged, and fsck finds nothing.
//!
//! scripts/torture.sh runs it. `IMGFS_TORTURE` is how many points of each gesture are tried, `IMGFS_SEED` which.

mod common;

use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;

use common::{IMGFS, Ran};

/// Gestures, each done on what the ones before have left.
const GESTURES: &[(&str, &str)] = &[
    ("a first version", "cp $S/a.tar web.tar"),
    ("an image beside it", "cp $S/d.tar.gz db.tar.gz"),
    ("the next version", "cp $S/b.tar web.tar"),
    ("the same again", "cp $S/b.tar web.tar"),
    ("large content", "cp $S/large.tar big.tar"),
    ("a staged one", "cp $S/c.tar .web.tar; mv .web.tar web.tar"),
    ("default", "ln -sfn db default"),
    ("a pin", "ln -sfn 0 web/default"),
    ("an alias", "ln -s web/1 old"),
    ("a rename", "mv web site"),
    ("an edit", "setfattr -n user.imgfs.storage -v small site"),
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

const STATE: &str = "shopt -s nullglob; for d in . .imgfs/trash; do for i in $d/*; do stat -c '%A %N' $i $i/*; test -L $i || { \
    for v in $i/[0-9]*; do sha256sum < $v/rootfs.tar; done; }; done; done";

#[derive(Clone, Copy)]
#[repr(u32)]
enum Mode {
    Off,
    Kill,
    Once,
    FromThenOn,
}

struct World {
    dir: tempfile::TempDir,
    shim: PathBuf,
}

impl World {
    fn new() -> World {
        let dir = tempfile::Builder::new().prefix("imgfs-test-").tempdir().unwrap();
        let shim = dir.path().join("shim.so");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/torture/shim.c");
        let built =
            Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&shim).args([source, "-ldl"]).status().unwrap();
        assert!(built.success());
        std::fs::write(dir.path().join("control"), [0; 16]).unwrap();
        let world = World { dir, shim };
        let made = world.sh(
            ".",
            "mkdir mnt src store; cd src; mkdir t; for n in $(seq 60); do seq $n 300 > t/f$n; done; for v in a b c d; do echo $v > t/v; \
             tar -C t --sort=name -cf $v.tar .; done; gzip d.tar; seq 400000 > t/large; head -c 1500000 /dev/urandom > t/noise; \
             tar -C t --sort=name -cf large.tar .; sed -i s/77/88/ t/large; tar -C t --sort=name -cf large2.tar .",
        );
        assert_eq!(made.code, 0, "{made:?}");
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn sh(&self, dir: &str, script: &str) -> Ran {
        let here = self.dir.path().display();
        common::sh(&self.path(dir), &format!("export S={here}/src STORE={here}/store MNT={here}/mnt IMGFS={IMGFS}; {script}"))
    }

    fn ok(&self, script: &str) {
        let ran = self.sh(".", script);
        assert_eq!(ran.code, 0, "{script}: {ran:?}");
    }

    fn arm(&self, mode: Mode, at: u32, errno: i32) {
        let words = [mode as u32, at, errno.cast_unsigned(), 0];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        std::fs::File::options().write(true).open(self.path("control")).unwrap().write_all_at(&bytes, 0).unwrap();
    }

    /// How many calls there were since it was armed.
    fn count(&self) -> u32 {
        let bytes = std::fs::read(self.path("control")).unwrap();
        u32::from_ne_bytes(bytes[12..16].try_into().unwrap())
    }

    fn mount(&self) {
        let output = Command::new(IMGFS)
            .args(["mount", "--store"])
            .arg(self.path("store"))
            .arg(self.path("mnt"))
            .env("LD_PRELOAD", &self.shim)
            .env("TORTURE", self.path("control"))
            .output()
            .unwrap();
        assert!(output.status.success(), "mount: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Also of a dead daemon.
    fn unmount(&self) {
        self.ok("$IMGFS umount mnt || $IMGFS umount --lazy mnt; flock -w 20 store/lock true");
    }

    fn state(&self) -> String {
        let ran = self.sh("mnt", STATE);
        assert_eq!(ran.code, 0, "{ran:?}");
        ran.out
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.sh(".", "umount -l mnt 2>/dev/null");
    }
}

/// Up to `most` points of `count`, spread, other ones for another seed.
fn points(count: u32, most: u32, seed: u32) -> Vec<u32> {
    if count <= most { (1..=count).collect() } else { (0..most).map(|n| 1 + (n * count + seed % count) / most % count).collect() }
}

fn number(variable: &str) -> Option<u32> {
    std::env::var(variable).ok()?.parse().ok()
}

fn torture(modes: &[(Mode, i32)]) {
    let (most, seed) = (number("IMGFS_TORTURE").unwrap_or(2), number("IMGFS_SEED").unwrap_or_else(std::process::id));
    println!("IMGFS_SEED={seed} IMGFS_TORTURE={most}");
    let world = World::new();
    let mut tried = 0;
    for (name, gesture) in GESTURES {
        // Once in peace, which shows what is before and after, and how many calls there are.
        world.ok("rm -rf before; cp -a store before");
        world.mount();
        let before = world.state();
        world.arm(Mode::Once, 0, 0);
        let ran = world.sh("mnt", gesture);
        assert_eq!(ran.code, 0, "{name}: {ran:?}");
        let count = world.count();
        world.arm(Mode::Off, 0, 0);
        let after = world.state();
        world.unmount();
        world.ok("rm -rf after; cp -a store after");
        for &(mode, errno) in modes {
            for at in points(count, most, seed) {
                let when = format!("{name}, call {at} of {count}, errno {errno}");
                world.ok("rm -rf store; cp -a before store");
                world.mount();
                world.arm(mode, at, errno);
                let ran = world.sh(".", &format!("cd mnt && timeout 20 bash -c '{gesture}'"));
                world.arm(Mode::Off, 0, 0);
                assert_ne!(ran.code, 124, "{when}: it hangs");
                if !matches!(mode, Mode::Kill) {
                    check(&world, &when, &ran, &before, &after);
                }
                world.unmount();
                world.mount();
                check(&world, &when, &ran, &before, &after);
                world.unmount();
                let ran = world.sh(".", "$IMGFS fsck --store store");
                assert_eq!(ran.code, 0, "{when}: {ran:?}");
                tried += 1;
            }
        }
        world.ok("rm -rf store; cp -a after store");
    }
    println!("{tried} points");
}

fn check(world: &World, when: &str, ran: &Ran, before: &str, after: &str) {
    let now = world.state();
    if ran.code == 0 {
        assert_eq!(now, after, "{when}: it was acknowledged\n{ran:?}");
    } else {
        assert!(now == before || now == after, "{when}: neither before nor after\n{ran:?}\nbefore:\n{before}\nnow:\n{now}");
    }
}

#[test]
#[ignore = "minutes: scripts/torture.sh"]
fn the_daemon_is_killed_anywhere() {
    torture(&[(Mode::Kill, 0)]);
}

#[test]
#[ignore = "minutes: scripts/torture.sh"]
fn any_call_fails() {
    torture(&[(Mode::Once, libc::EIO), (Mode::Once, libc::ENOSPC), (Mode::FromThenOn, libc::ENOSPC)]);
}
