//! Killed copiers: cp, cat, dd, tar, rsync, a pipe and mv are killed in the middle. Nothing of it is
//! published unless the copier had ended well, and the name can be used again at once.
//!
//! Controls: a copy that was cut behind the archive's last byte is published; and a store which did publish a
//! killed copy would be seen.

#![allow(unsafe_code)]

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::{Mount, limit};
use crate::dice::Dice;
use crate::{length, seed};

/// How a copier is called, and the script. Each waits in the middle by itself: it reads from a pipe that is
/// filled slowly, or is slow; `$A` is the archive, `$N` the image.
const COPIERS: &[(&str, &str)] = &[
    ("cp", "exec cp $A $MNT/$N.tar"),
    ("busybox cp", "exec busybox cp $A $MNT/$N.tar"),
    ("cat", "exec cat $A > $MNT/$N.tar"),
    ("dd", "exec dd if=$A of=$MNT/$N.tar bs=4k status=none"),
    ("dd, a hole", "exec dd if=$A of=$MNT/$N.tar bs=64k status=none conv=sparse"),
    ("tar", "exec tar -C $DIR -cf $MNT/$N.tar ."),
    ("tar, a pipe", "tar -C $DIR -c . | cat > $MNT/$N.tar"),
    ("rsync", "exec rsync --bwlimit=20m $A $MNT/$N.tar"),
    ("rsync in place", "exec rsync --inplace $A $MNT/$N.tar"),
    ("zstd", "zstd -dcq $A.zst | cat > $MNT/$N.tar"),
    ("zstd, compressed", "zstd -cq $A | cat > $MNT/$N.tar.zst"),
    ("mv", "cp $A $A.$$; exec mv $A.$$ $MNT/$N.tar"),
    (
        "slow",
        "for n in $(seq 0 $((SIZE / 65536))); do dd if=$A bs=65536 skip=$n count=1 status=none; sleep 0.005; done > $MNT/$N.tar",
    ),
    ("dotted", "cp $A $MNT/.$N.tar && exec mv $MNT/.$N.tar $MNT/$N.tar"),
];

struct Copier<'m> {
    mount: &'m Mount,
    child: Child,
}

impl Copier<'_> {
    fn start<'m>(mount: &'m Mount, script: &str, image: &str) -> Copier<'m> {
        let (src, mnt) = (mount.path("src"), mount.mnt());
        let archive = src.join("large.tar");
        let size = std::fs::metadata(&archive).unwrap().len();
        let script = format!(
            "set -o pipefail; A={} DIR={} MNT={} N={image} SIZE={size}; {script}",
            archive.display(),
            src.join("large").display(),
            mnt.display()
        );
        let mut command = Command::new("bash");
        command.args(["-c", &script]).stderr(Stdio::null()).stdout(Stdio::null()).process_group(0);
        Copier { mount, child: command.spawn().unwrap() }
    }

    /// Kills all of it, or (a pipe) its head alone, and says whether it had ended well before that.
    fn kill(mut self, signal: i32, head: bool, when: &str) -> bool {
        let group = self.child.id() as i32;
        let first = if head { children(group).into_iter().min() } else { None };
        let target = first.unwrap_or(-group);
        // SAFETY: a signal to a process that this test has started, and which is not yet waited for.
        unsafe { libc::kill(target, signal) };
        let status = limit::wait(&mut self.child, self.mount.dir.path());
        assert!(status.code().is_some() || status.signal().is_some());
        // What else is left of the group is no copier any more.
        unsafe { libc::kill(-group, libc::SIGKILL) };
        let deadline = Instant::now() + Duration::from_secs(20);
        while !children(group).is_empty() || !self.quiet() {
            let left = || {
                self.mount
                    .sh("ls -lA . .imgfs/failed $STORE/staging; tail -n 7 $(ls -t .imgfs/jobs/* | head -2)")
            };
            assert!(Instant::now() < deadline, "{when}: something stays: {:?} {:?}", children(group), left());
            std::thread::sleep(Duration::from_millis(5));
        }
        status.success()
    }

    /// Whether nothing of an upload is left, but what was staged under a dotted name.
    fn quiet(&self) -> bool {
        let files =
            |path| std::fs::read_dir(path).unwrap().flatten().map(|e| e.file_name().into_string().unwrap());
        let staged: Vec<String> =
            files(self.mount.mnt()).filter(|n| n.starts_with('.') && n != ".imgfs").collect();
        for name in &staged {
            let _ = std::fs::remove_file(self.mount.mnt().join(name));
        }
        staged.is_empty() && files(self.mount.path("store/staging")).next().is_none()
    }
}

/// Processes of a group, but its leader and the dead.
fn children(group: i32) -> Vec<i32> {
    let stats = std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|e| std::fs::read_to_string(e.path().join("stat")).ok());
    let of_group = stats.filter_map(|stat| {
        let pid: i32 = stat.split_once(' ')?.0.parse().ok()?;
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        (fields[2].parse() == Ok(group) && fields[0] != "Z" && pid != group).then_some(pid)
    });
    of_group.collect()
}

/// What there is of an image: no version of it, a whole one, or (the loss) something else.
fn shown(mount: &Mount, image: &str) -> Result<bool, String> {
    if !mount.mnt().join(image).exists() {
        return Ok(false);
    }
    // Of uploads at once each may be a version, if none was there when it was judged.
    let ran = mount.sh(&format!(
        "test -d {image}/0; for v in {image}/[0-9]*; do tar -d -f $S/large.tar -C $v/rootfs && cmp $S/reference $v/rootfs/noise || exit 1; done"
    ));
    if ran.code == 0 { Ok(true) } else { Err(format!("{image}: {ran:?}")) }
}

#[test]
#[ignore = "minutes: scripts/torture.sh"]
fn copiers_are_killed_anywhere() {
    let mount = Mount::new();
    mount.ok(
        "mkdir $S/large; head -c 6000000 /dev/urandom > $S/large/noise; for n in $(seq 300); do seq $n 500 > $S/large/f$n; done; \
         cp $S/large/noise $S/reference; tar -C $S/large -cf $S/large.tar .; zstd -q $S/large.tar",
    );
    let (wanted, seed) = (length(200, 10_000), seed());
    let (mut dice, mut killed, mut ended) = (Dice(seed), 0, 0);
    // How long each takes when nobody kills it, so that the middle is met.
    let usual: Vec<Duration> = COPIERS
        .iter()
        .map(|(name, script)| {
            let begin = Instant::now();
            let mut copier = Copier::start(&mount, script, "peace");
            let status = limit::wait(&mut copier.child, mount.dir.path());
            let took = begin.elapsed();
            assert!(
                status.success() && shown(&mount, "peace") == Ok(true),
                "{name}: {status} {}",
                mount.errors()
            );
            mount.ok("rm -r peace");
            took
        })
        .collect();
    for n in 0..wanted {
        let which = n as usize % COPIERS.len();
        let (name, script) = COPIERS[which];
        let image = format!("i{n}");
        let signal = *dice.pick(&[libc::SIGKILL, libc::SIGKILL, libc::SIGTERM, libc::SIGINT]);
        let head = script.contains('|') && dice.roll(2) == 0;
        let copier = Copier::start(&mount, script, &image);
        std::thread::sleep(usual[which].mul_f64(dice.roll(1000) as f64 / 900.0));
        let when = format!("{name}, number {n}, signal {signal}, head {head}, seed {seed}");
        let well = copier.kill(signal, head, &when);
        match (well, shown(&mount, &image)) {
            (true, Ok(true)) => ended += 1,
            (false, Ok(false)) => killed += 1,
            // Its close was answered, and then it was killed: whole is what counts.
            (false, Ok(true)) => ended += 1,
            (well, other) => panic!("{when}: ended well {well}, and there is {other:?}\n{}", mount.errors()),
        }
        // The same name at once, by three at once where it was killed: one version, whichever comes first.
        if n % 4 == 0 {
            mount.ok(&format!(
                "for d in a b c; do mkdir -p {image}; cp $S/large.tar {image}/$d.tar & pids=\"$pids $!\"; done; for p in $pids; do wait $p || exit 1; done"
            ));
            assert_eq!(shown(&mount, &image), Ok(true), "{when}: three uploads at once");
        } else {
            mount.ok(&format!("cp $S/large.tar {image}.tar"));
            assert_eq!(shown(&mount, &image), Ok(true), "{when}: again");
        }
        mount.ok(&format!("rm -r {image}"));
        if n % 50 == 49 {
            mount.ok(&format!("{} gc --trash --store $STORE", crate::common::IMGFS));
        }
    }
    control(&mount);
    mount.fsck();
    assert!(killed > wanted / 4, "only {killed} were killed in the middle");
    println!(
        "{killed} copiers killed in the middle, nothing published; {ended} ended before, whole; control: a copy cut at its end is published, half a version is seen"
    );
}

fn control(mount: &Mount) {
    mount.ok("head -c $(stat -c %s $S/large.tar) $S/large.tar > cut.tar");
    assert_eq!(shown(mount, "cut"), Ok(true));
    mount.ok("rm -r cut; ! head -c $(($(stat -c %s $S/large.tar) - 20000)) $S/large.tar > cut.tar");
    assert_eq!(shown(mount, "cut"), Ok(false));
    // As a store would show it that takes what came.
    mount.ok("head -c 3000000 $S/large.tar > $S/half; tar -xf $S/half -C $(mktemp -d -p $S half.XXXX) || true; tar -C $S/half.* -cf half.tar .");
    assert!(shown(mount, "half").is_err());
}
