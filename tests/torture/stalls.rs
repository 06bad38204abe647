//! Stalls: a client stops in the middle of an upload or of a read, holds a thousand files open, or writes for ever. All
//! others go on meanwhile, and when it is gone nothing of it is left.
//!
//! Control: a daemon that stands still for a moment must be found by what measures. Also: clocks that jump.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::{IMGFS, Mount, sh};
use crate::length;

/// No answer takes longer, on a machine that does other things, too.
const WORST: Duration = Duration::from_secs(1);
/// How long the daemon stands still in the control; it must be told from a busy machine by the rest of the figures.
const STILL: Duration = Duration::from_millis(1500);
/// What the daemon may keep of memory.
const KEPT_KB: u64 = 64 * 1024;

/// A client and all its processes, which may be stopped.
struct Client(Child);

impl Client {
    fn start(mount: &Mount, script: &str) -> Client {
        let script = format!("S={} MNT={}; {script}", mount.path("src").display(), mount.mnt().display());
        let mut command = Command::new("bash");
        Client(command.args(["-c", &script]).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0).spawn().unwrap())
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
        mount.ok(&format!("timeout 20 ls -l . db > /dev/null && timeout 20 cp $S/{tar}.tar db.tar && timeout 20 cat db/latest/rootfs.tar > /dev/null"));
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
    let time = Duration::from_secs(length(2, 600).into());
    others(&mount, Duration::from_secs(1));
    let stalls = [
        ("a stopped upload", "(head -c 50000000 $S/large.tar; touch $S/ready; sleep 100000) > $MNT/half.tar", true),
        ("a stopped reader", "(head -c 50000000 > /dev/null; touch $S/ready; sleep 100000) < $MNT/big/0/rootfs.tar", true),
        (
            "1,000 open files",
            "exec python3 -c 'import sys,time\nf=[open(sys.argv[2]+p,\"rb\") for p in (\"/big/0/rootfs.tar\",\"/big/0/rootfs/noise\",\"/db/0/rootfs/bin/tool\",\"/db/metadata.json\") for _ in range(250)]\n[x.read(1) for x in f]\nopen(sys.argv[1]+\"/ready\",\"w\")\ntime.sleep(100000)' $S $MNT",
            false,
        ),
        ("a slow upload", "(touch $S/ready; while head -c 700; do sleep 0.02; done < $S/large.tar) > $MNT/slow.tar", false),
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
        let deadline = Instant::now() + Duration::from_secs(20);
        let after = loop {
            let now = held(&mount);
            if (now.0 <= before.0 && now.1 <= before.1 && now.2 < before.2 + KEPT_KB) || Instant::now() > deadline {
                break now;
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        assert!(
            after.0 <= before.0 && after.1 == before.1,
            "{name}: descriptors, staged {before:?}, then {during:?}, left {after:?}"
        );
        assert!(after.2 < before.2 + KEPT_KB, "{name}: KiB {before:?}, then {during:?}, left {after:?}");
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

/// Mounts with the clock somewhere else.
fn mount_at(mount: &Mount, when: &str) {
    let ran = sh(
        &mount.path("."),
        &format!(
            "FAKETIME='{when}' FAKETIME_NO_CACHE=1 LD_PRELOAD=$(dirname $(ldconfig -p | awk '/libc.so.6/{{print $NF; exit}}'))/faketime/libfaketime.so.1 {IMGFS} mount --store store mnt"
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
        assert!((year - 2026).abs() > 3 || clock.ends_with('d'), "control: the clock says {year} with {clock}");
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
        assert!(!std::fs::read_to_string(mount.path("store/daemon.log")).unwrap_or_default().contains("panick"), "{n}");
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
