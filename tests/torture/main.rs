//! Nothing is ever lost: each file here does one kind of harm to a store under a real load, and looks whether
//! what was acknowledged is there, whole, and what was not is nowhere. Each has a control: a run in which a
//! loss must be seen.
//!
//! scripts/torture.sh runs it. `IMGFS_TORTURE` is how long: `short`, `long`, or how many of each.
//! `IMGFS_SEED` makes a run again.

mod calls;
#[path = "../common/mod.rs"]
mod common;
mod copiers;
mod dice;
mod disk;
mod full;
mod hands;
mod load;
mod model;
mod points;
mod power;
mod replay;
mod rot;
mod soak;
mod stalls;

use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::{IMGFS, Ran};

/// How many: what the short form and the long form do, or what `IMGFS_TORTURE` says.
pub fn length(short: u32, long: u32) -> u32 {
    match std::env::var("IMGFS_TORTURE").as_deref() {
        Err(_) | Ok("short") => short,
        Ok("long") => long,
        Ok(number) => number.parse().expect("IMGFS_TORTURE is short, long or a number"),
    }
}

/// The seed of this run, printed.
pub fn seed() -> u64 {
    let given = std::env::var("IMGFS_SEED").ok().map(|text| text.parse().expect("IMGFS_SEED is a number"));
    let seed = given.unwrap_or_else(|| {
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |d| u64::from(d.subsec_nanos()))
    });
    println!("IMGFS_SEED={seed}");
    seed
}

/// What is in a directory and not hidden, in order.
fn listed(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut shown = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes()[0] != b'.' {
            shown.push(entry.path());
        }
    }
    shown.sort();
    Ok(shown)
}

/// What the shim does at a call.
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum Mode {
    Off,
    Kill,
    Once,
    FromThenOn,
}

/// A store, mounted with the shim preloaded, and archives to copy in.
pub(crate) struct World {
    dir: tempfile::TempDir,
    shim: PathBuf,
}

impl World {
    pub(crate) fn new() -> World {
        let dir = tempfile::Builder::new().prefix("imgfs-test-").tempdir().unwrap();
        let shim = dir.path().join("shim.so");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/torture/shim.c");
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&shim).args([source, "-ldl"]);
        let built = common::limit::output(cc, dir.path()).unwrap();
        assert!(built.status.success(), "{built:?}");
        std::fs::write(dir.path().join("control"), [0; 16]).unwrap();
        let world = World { dir, shim };
        let made = world.sh(
            ".",
            "mkdir mnt src store; cd src; mkdir t; for n in $(seq 60); do seq $n 300 > t/f$n; done; for v in a b c d; do echo $v > t/v; \
             tar -C t --sort=name -cf $v.tar .; done; gzip d.tar; head -c 800000 /dev/urandom | base64 > t/large; head -c 1100000 /dev/urandom > t/noise; \
             tar -C t --sort=name -cf large.tar .; sed -i s/77/88/ t/large; tar -C t --sort=name -cf large2.tar .; mkdir u; head -c 352000 /dev/urandom | split -a 4 -b 1100 - u/f; tar -C u --sort=name -cf many.tar .; \
             ls u | awk 'NR % 8' | (cd u; xargs rm); tar -C u -cf few.tar .",
        );
        assert_eq!(made.code, 0, "{made:?}");
        world
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn sh(&self, dir: &str, script: &str) -> Ran {
        let here = self.dir.path().display();
        common::sh(
            &self.path(dir),
            &format!("export S={here}/src STORE={here}/store MNT={here}/mnt IMGFS={IMGFS}; {script}"),
        )
    }

    pub fn ok(&self, script: &str) {
        let ran = self.sh(".", &format!("set -e; {script}"));
        assert_eq!(ran.code, 0, "{script}: {ran:?}");
    }

    pub fn arm(&self, mode: Mode, at: u32, errno: i32) {
        let words = [mode as u32, at, errno.cast_unsigned(), 0];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        std::fs::File::options()
            .write(true)
            .open(self.path("control"))
            .unwrap()
            .write_all_at(&bytes, 0)
            .unwrap();
    }

    /// How many calls there were since it was armed.
    pub fn count(&self) -> u32 {
        let bytes = std::fs::read(self.path("control")).unwrap();
        u32::from_ne_bytes(bytes[12..16].try_into().unwrap())
    }

    pub fn mount(&self) {
        self.mount_armed("").unwrap();
    }

    /// Mounts with these named points armed.
    pub fn mount_armed(&self, points: &str) -> Result<(), String> {
        let mut command = Command::new(IMGFS);
        command.args(["mount", "--store"]).arg(self.path("store")).arg(self.path("mnt"));
        command.env("LD_PRELOAD", &self.shim).env("TORTURE", self.path("control")).env("FAILPOINTS", points);
        let output = common::limit::output(command, self.dir.path()).unwrap();
        if output.status.success() {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    /// Also of a dead daemon; how long that held the store afterwards. A daemon may be long in ending where
    /// the disk is.
    pub fn unmount(&self) -> Duration {
        self.ok("$IMGFS umount mnt || $IMGFS umount --lazy mnt || not mountpoint -q mnt");
        common::limit::wait_until_free(&self.path("store"))
    }

    /// All that the mount shows, as text: images, what is in them, their content, and the same of the trash.
    pub fn state(&self) -> String {
        self.shown().unwrap()
    }

    /// The same; what keeps it from being read.
    pub fn shown(&self) -> std::io::Result<String> {
        let _watch = common::limit::Watch::new(self.dir.path(), common::limit::limit());
        let (mnt, mut lines) = (self.path("mnt"), Vec::new());
        for image in listed(&mnt)?.into_iter().chain(listed(&mnt.join(".imgfs/trash"))?) {
            let inside = if image.is_symlink() { Vec::new() } else { listed(&image)? };
            for path in [&image].into_iter().chain(&inside) {
                let (mode, link) =
                    (path.symlink_metadata()?.mode(), std::fs::read_link(path).unwrap_or_default());
                lines.push(format!(
                    "{mode:o} {} {}",
                    path.strip_prefix(&mnt).unwrap().display(),
                    link.display()
                ));
            }
            for version in inside.iter().chain([&image]).filter(|path| !path.is_symlink()) {
                let mut hasher = blake3::Hasher::new();
                if let Ok(mut tar) = std::fs::File::open(version.join("rootfs.tar")) {
                    std::io::copy(&mut tar, &mut hasher)?;
                    lines.push(format!(
                        "{} {}",
                        version.strip_prefix(&mnt).unwrap().display(),
                        hasher.finalize()
                    ));
                }
            }
        }
        Ok(lines.join("\n"))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.sh(".", "umount -l mnt 2>/dev/null");
    }
}
