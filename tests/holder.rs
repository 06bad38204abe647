//! Who holds a store, as commands say it.

mod common;

use common::{IMGFS, Mount};

#[test]
fn a_refusal_names_the_process_that_has_the_lock() {
    let mut m = Mount::new();
    m.ok("cp $S/a.tar web.tar");
    let daemon = m.daemon();
    let ran = m.sh(&format!("mkdir $S/m2; {IMGFS} mount --store $STORE $S/m2"));
    let wanted = format!("is used by process {daemon} (imgfs), mounted on {}", m.mnt().display());
    assert!(ran.code == 1 && ran.err.contains(&wanted), "{ran:?}");
    m.unmount();
    // A script that makes a backup; the file still has the daemon's number.
    let ran = m.sh(&format!("flock -o $STORE/lock sleep 5 > /dev/null 2>&1 & until ! flock -n $STORE/lock true; do :; done; {IMGFS} gc --store $STORE; kill $!; echo $!"));
    let wanted = format!("is used by process {} (flock)\n", ran.out.trim());
    assert!(ran.err.contains(&wanted) && ran.err.contains("wait for that process to end"), "{ran:?}");
    // Who took the lock is gone, and a child has it still.
    let ran = m.sh(&format!("exec 9<> $STORE/lock; flock 9; {IMGFS} gc --store $STORE 9<&-; echo $$"));
    assert!(ran.err.contains(&format!("is used by process {} (bash)", ran.out.trim())), "{ran:?}");
    m.mount();
}
