//! The limits of the tests themselves: what never ends is ended, and its processes say what they waited for.

use std::panic::catch_unwind;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::common::limit::{Watch, has_ended, kill, output_within, wait_until};
use crate::common::{Mount, as_root};

/// A test waited for ever for a chroot that could not start, and no other test ran.
#[test]
fn a_script_that_never_ends_fails_and_says_where_it_waits() {
    let dir = tempfile::tempdir().unwrap();
    let begun = Instant::now();
    let failed = catch_unwind(|| {
        let mut command = Command::new("bash");
        // One in the background, one in a process group of its own.
        command
            .args(["-c", "mkfifo never; sleep 7777 & echo $! > pid; timeout 7778 cat never"])
            .current_dir(dir.path());
        output_within(Duration::from_secs(2), command, dir.path())
    });
    assert!(begun.elapsed() < Duration::from_secs(60));
    let said = *failed.unwrap_err().downcast::<String>().unwrap();
    for wanted in ["did not end within 2s", "mkfifo never", "(sleep) S", "sleep 7777", "(cat) S", "waits in"]
    {
        assert!(said.contains(wanted), "{wanted}: {said}");
    }
    assert!(!as_root() || said.contains("wait_for_partner"), "{said}");
    let pid = std::fs::read_to_string(dir.path().join("pid")).unwrap().trim().parse().unwrap();
    wait_until("the end of what was left in the background", || has_ended(pid));
}

/// A call of a test's own to a daemon that stands still.
#[test]
fn a_call_of_the_test_to_a_daemon_that_stands_still_fails() {
    let m = Mount::new();
    m.ok("cp $S/a.tar web.tar; kill -STOP $(head -1 $STORE/lock)");
    let _watch = Watch::new(m.dir.path(), Duration::from_secs(1));
    let begun = Instant::now();
    assert!(std::fs::read(m.mnt().join("web/0/rootfs.tar")).is_err());
    assert!(begun.elapsed() < Duration::from_secs(60));
    kill(m.daemon());
}

/// A test that fails while its daemon stands still leaves nothing that waits.
#[test]
fn a_test_that_fails_beside_a_stopped_daemon_ends() {
    let begun = Instant::now();
    let m = Mount::new();
    let (dir, daemon) = (m.dir.path().to_owned(), m.daemon());
    m.ok("kill -STOP $(head -1 $STORE/lock)");
    drop(m);
    assert!(!dir.exists() && has_ended(daemon), "{dir:?}, {daemon}");
    assert!(begun.elapsed() < Duration::from_secs(100));
}
