//! Stalls: a client stops in the middle of an upload or of a read, holds a thousand files open, or writes for
//! ever. All others go on meanwhile, and when it is gone nothing of it is left.
//!
//! Control: a daemon that stands still for a moment must be found by what measures. Also: clocks that jump,
//! and a week that passes meanwhile.

#![allow(unsafe_code)]

mod clock;

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::Mount;
use crate::length;

/// No answer takes longer, on a machine that does other things, too.
const WORST: Duration = Duration::from_secs(1);
/// How long the daemon stands still in the control; it must be told from a busy machine by the rest of the
/// figures.
const STILL: Duration = Duration::from_millis(1500);
/// What the daemon may keep of memory.
const KEPT_KB: u64 = 64 * 1024;

/// Opens each of four files 250 times, and keeps them so.
const OPEN_FILES: &str = "exec python3 -c 'import sys,time\nf=[open(sys.argv[2]+p,\"rb\") for p in (\"/big/0/rootfs.tar\",\"/db/latest/rootfs.tar\",\"/db/latest/rootfs/bin/tool\",\"/db/metadata.json\") for _ in range(250)]\n[x.read(1) for x in f]\nopen(sys.argv[1]+\"/ready\",\"w\")\ntime.sleep(100000)' $S $MNT";

/// A client and all its processes, which may be stopped.
struct Client(Child);

impl Client {
    fn start(mount: &Mount, script: &str) -> Client {
        let script = format!("S={} MNT={}; {script}", mount.path("src").display(), mount.mnt().display());
        let mut command = Command::new("bash");
        Client(
            command
                .args(["-c", &script])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .process_group(0)
                .spawn()
                .unwrap(),
        )
    }

    fn signal(&self, signal: i32) {
        // SAFETY: a signal to the group of a child that is not yet waited for.
        unsafe { libc::kill(-(self.0.id() as i32), signal) };
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.signal(libc::SIGKILL);
        let _ = self.0.wait();
    }
}

/// What the daemon holds: descriptors, staged files, memory in KiB.
fn held(mount: &Mount) -> (usize, usize, u64) {
    let entries = |path: &Path| std::fs::read_dir(path).unwrap().count();
    let proc = Path::new("/proc").join(mount.daemon().to_string());
    let status = std::fs::read_to_string(proc.join("status")).unwrap();
    let rss = status.lines().find_map(|l| l.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse().ok());
    (entries(&proc.join("fd")), entries(&mount.path("store/staging")), rss.unwrap())
}

/// What the daemon holds after a while: no more than before.
fn given_back(mount: &Mount, name: &str, before: (usize, usize, u64)) -> (usize, usize, u64) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let now = held(mount);
        let back = now.0 <= before.0 && now.1 <= before.1 && now.2 < before.2 + KEPT_KB;
        assert!(
            back || Instant::now() < deadline,
            "{name}: (descriptors, staged, KiB) {before:?}, left {now:?}"
        );
        if back {
            return now;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What another client is answered meanwhile: the 99th percentile, the worst, and how often it asked.
fn others(mount: &Mount, time: Duration) -> (Duration, Duration, usize) {
    let (begun, mnt, mut took) = (Instant::now(), mount.mnt(), Vec::new());
    let mut gestures = 0;
    while begun.elapsed() < time {
        for _ in 0..20 {
            let before = Instant::now();
            std::fs::metadata(mnt.join("db/default/rootfs/etc/motd")).unwrap();
            std::fs::metadata(mnt.join(".imgfs/status.json")).unwrap();
            took.push(before.elapsed());
            std::thread::sleep(Duration::from_millis(2));
        }
        gestures += 1;
        let tar = if gestures % 2 == 0 { "a" } else { "b" };
        mount.ok(&format!(
            "timeout 20 ls -l . db > /dev/null && timeout 20 cp $S/{tar}.tar db.tar && timeout 20 cat db/latest/rootfs.tar > /dev/null; \
             for old in $(ls db | grep -x '[0-9]*' | sort -n | head -n -1); do timeout 20 rmdir db/$old; done"
        ));
        if gestures % 100 == 0 {
            mount.ok("timeout 20 rm -rf .imgfs/trash/*");
        }
    }
    took.sort_unstable();
    (took[took.len() * 99 / 100], took[took.len() - 1], took.len())
}

#[test]
#[ignore = "minutes: scripts/torture.sh"]
fn stalls_of_one_are_nobody_elses() {
    let mount = Mount::new();
    mount.ok(
        "mkdir $S/l; head -c 100000000 /dev/urandom > $S/l/noise; tar -C $S/l -cf $S/large.tar .; rm -r $S/l; \
         cp $S/large.tar big.tar; cp $S/a.tar db.tar; cp $S/b.tar db.tar; cat db/latest/rootfs.tar db/latest/rootfs/bin/tool big/0/rootfs.tar big/0/rootfs/noise > /dev/null",
    );
    // A day in all.
    let time = Duration::from_secs(length(2, 6 * 3600).into());
    others(&mount, Duration::from_secs(1));
    let stalls = [
        (
            "a stopped upload",
            "(head -c 50000000 $S/large.tar; touch $S/ready; sleep 100000) > $MNT/half.tar",
            true,
        ),
        (
            "a stopped reader",
            "(head -c 50000000 > /dev/null; touch $S/ready; sleep 100000) < $MNT/big/0/rootfs.tar",
            true,
        ),
        ("1,000 open files", OPEN_FILES, false),
        (
            "a slow upload",
            "(touch $S/ready; while head -c 70; do sleep 0.02; done < $S/large.tar) > $MNT/slow.tar",
            false,
        ),
    ];
    for (name, script, stops) in stalls {
        mount.ok("rm -f $S/ready");
        let before = held(&mount);
        let client = Client::start(&mount, script);
        mount.ok("for i in $(seq 1000); do test -e $S/ready && exit 0; sleep 0.02; done; exit 1");
        if stops {
            client.signal(libc::SIGSTOP);
        }
        let during = held(&mount);
        let (most, worst, asked) = others(&mount, time);
        assert!(worst < WORST, "{name}: an answer took {worst:?}");
        drop(client);
        let after = given_back(&mount, name, before);
        assert!(!mount.mnt().join("half").exists() && !mount.mnt().join("slow").exists(), "{name}");
        println!(
            "{name}: {asked} looks of another, 99 of 100 within {most:?}, worst {worst:?}; (descriptors, staged, KiB) {before:?} {during:?} {after:?}"
        );
    }
    control(&mount);
    mount.fsck();
}

/// The daemon stands still: what measures must see it, and it goes on.
fn control(mount: &Mount) {
    let daemon = mount.daemon() as i32;
    // SAFETY: signals to the daemon that this test has started.
    unsafe { libc::kill(daemon, libc::SIGSTOP) };
    let still = std::thread::spawn(move || {
        std::thread::sleep(STILL);
        // SAFETY: the same.
        unsafe { libc::kill(daemon, libc::SIGCONT) };
    });
    let (_, worst, _) = others(mount, Duration::from_secs(1));
    still.join().unwrap();
    assert!(worst >= WORST, "the daemon stood still for {STILL:?}, and the worst was {worst:?}");
    mount.ok("cp $S/c.tar db.tar; cmp $S/c.tar db/latest/rootfs.tar");
    println!("control: the daemon stood still for {STILL:?}: {worst:?} was seen, and it went on");
}
