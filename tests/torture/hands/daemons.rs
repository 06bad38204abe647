//! Two daemons on one store: the second is refused, whoever the first is; commands work beside it under the
//! load.
//!
//! Control: a lock file that names a process which is gone, or another one, is not believed.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::common::{IMGFS, Mount, sh};
use crate::length;

#[test]
#[ignore = "minutes: scripts/torture.sh"]
fn hands_of_two_daemons() {
    let mut mount = Mount::new();
    mount.ok("cp $S/a.tar web.tar; cp $S/b.tar db.tar; mkdir $S/second");
    let rounds = length(5, 500);
    let (mut refused, commands) = (0, AtomicU32::new(0));
    for round in 0..rounds {
        let ended = AtomicBool::new(false);
        let here = mount.path(".");
        std::thread::scope(|scope| {
            for (name, tars) in [("web", "a b"), ("db", "c d")] {
                let (mount, ended) = (&mount, &ended);
                scope.spawn(move || {
                    while !ended.load(Ordering::Acquire) {
                        mount.ok(&format!(
                            "for t in {tars}; do cp $S/$t.tar {name}/; done; n=$(readlink {name}/latest); \
                             cat {name}/$n/rootfs/etc/motd > /dev/null; rmdir {name}/$((n - 1))"
                        ));
                    }
                });
            }
            // Also if this panics.
            let _end = Ending(&ended);
            let pid = mount.daemon().to_string();
            for _ in 0..3 {
                let ran = sh(&here, &format!("{IMGFS} mount --store store src/second"));
                assert_eq!(ran.code, 1, "{ran:?}");
                assert!(ran.err.contains(&pid), "{ran:?}");
                refused += 1;
                for command in ["fsck", "gc --trash", "status", "ls"] {
                    let ran = sh(&here, &format!("timeout 60 {IMGFS} {command} --store store"));
                    assert_eq!(ran.code, 0, "{command}: {ran:?}");
                    commands.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        mount.kill();
        // Also one that names a process which lives and has nothing to do with it.
        if round % 2 == 1 {
            std::fs::write(mount.path("store/lock"), "1\n/nowhere\n").unwrap();
        }
        mount.mount();
        mount.ok("cat web/default/rootfs/etc/motd db/default/rootfs/etc/motd > /dev/null; test -z \"$(ls $STORE/staging)\"");
    }
    mount.fsck();
    println!(
        "{refused} second daemons refused by the first's number, {} commands beside the load; control: {rounds} stale locks not believed",
        commands.into_inner()
    );
}

/// Ends the load when it goes.
struct Ending<'e>(&'e AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}
