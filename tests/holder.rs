//! Who holds a store, as commands say it; and a daemon that was killed and cannot end, because its disk does
//! not answer.

use crate::common::limit::wait_until_free;
use crate::common::{IMGFS, Mount, WITHOUT_OTHERS, as_root, sh};

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

/// A copy of a mount in another mount namespace, which each container and many a service has, keeps its
/// daemon: umount waited for a minute, and the next mount said that the store was mounted where it was not.
#[test]
fn who_has_a_mount_in_another_namespace_is_named() {
    if !as_root() {
        return;
    }
    let mut m = Mount::new();
    m.ok("cp $S/a.tar web.tar");
    let (daemon, point) = (m.daemon(), m.mnt());
    let ran = sh(
        m.dir.path(),
        &format!(
            "how=-m alone='{WITHOUT_OTHERS}'; unshare -m true 2> /dev/null || {{ how='-m --propagation unchanged'; alone=; }}
             MNT=$PWD/mnt unshare $how bash -c \"$alone exec sleep 20\" > /dev/null 2>&1 & other=$!; until grep -q sleep /proc/$other/comm; do sleep 0.01; done
             timeout 15 {IMGFS} umount mnt; echo $? $other; {IMGFS} mount --store store mnt; kill $other; wait $other"
        ),
    );
    let other = ran.out.trim().strip_prefix("1 ").unwrap_or_else(|| panic!("{ran:?}")).to_owned();
    let wanted = format!(
        "is {{}}used by process {daemon} (imgfs), which still serves what was mounted on {}: process {other} (sleep) has that in a mount namespace",
        point.display()
    );
    assert!(
        ran.err.contains(&wanted.replace("{}", "still ")) && ran.err.contains(&wanted.replace("{}", "")),
        "{ran:?}"
    );
    wait_until_free(&m.path("store"));
    m.mount();
}

/// A store on a disk that can be made to stand still.
struct Disk(tempfile::TempDir);

impl Disk {
    /// With a mount, and a call of the daemon that the disk does not answer.
    fn new() -> Disk {
        let dir = tempfile::Builder::new().prefix("imgfs-test-").tempdir().unwrap();
        let disk = Disk(dir);
        disk.ok("mkdir disk mnt t; truncate -s 64M image; mkfs.ext4 -q -F image; mount -o loop image disk; echo 1 > t/f; \
                 tar -C t -cf a.tar .; $IMGFS mount --store disk/store mnt; cp a.tar mnt/web.tar; head -1 disk/store/lock > pid");
        disk
    }

    fn sh(&self, script: &str) -> crate::common::Ran {
        sh(self.0.path(), &format!("IMGFS={IMGFS}; {script}"))
    }

    #[track_caller]
    fn ok(&self, script: &str) -> String {
        let ran = self.sh(&format!("set -e; {script}"));
        assert_eq!(ran.code, 0, "{script}: {ran:?}");
        ran.out
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.sh("fsfreeze -u disk; umount -l mnt; for n in $(seq 50); do umount disk && break; sleep 0.1; done 2> /dev/null");
    }
}

/// Until the disk has answered, the process has the lock: nobody can help it. But whoever is refused is told
/// so, whoever had asked something of the daemon is answered, and the next mount waits. It was the torture's
/// once failed run: the lock of a killed daemon was held for over 20 s. And umount said EINVAL, because the
/// guard had been quicker.
#[test]
fn a_killed_daemon_whose_disk_does_not_answer_is_named() {
    if !as_root() {
        return;
    }
    let disk = Disk::new();
    let pid = disk.ok("cat pid").trim().to_owned();
    let client = disk.sh("fsfreeze -f disk; mkdir mnt/new & sleep 0.5; kill -9 $(cat pid); wait $!");
    assert!(client.code != 0 && client.err.contains("cannot create"), "{client:?}");
    let is_named = |text: &str| {
        text.contains(&format!("process {pid} (imgfs), which is ending: it waits in the kernel (percpu"))
    };
    let refused = disk.sh("$IMGFS status --store disk/store");
    assert!(
        refused.code == 1 && is_named(&refused.err) && refused.err.contains("when its disk answers"),
        "{refused:?}"
    );
    // Nobody finds the directory below the mount.
    assert!(disk.sh("ls mnt").err.contains("not connected"));
    let umount = disk.sh("$IMGFS umount mnt");
    assert!(umount.code == 0 && is_named(&umount.err), "{umount:?}");
    disk.ok("not mountpoint -q mnt; $IMGFS mount --store disk/store mnt & sleep 1; fsfreeze -u disk; wait $!; cmp a.tar mnt/web/0/rootfs.tar; $IMGFS umount mnt; $IMGFS fsck --store disk/store");
}

/// The guard found connections in the list of mounts: who stood in one that was detached waited for ever.
#[test]
fn who_uses_a_detached_mount_of_a_killed_daemon_is_answered() {
    if !as_root() {
        return;
    }
    let disk = Disk::new();
    let shown = disk.ok("grep -l fuse_connection /proc/$(cat pid)/fdinfo/* | wc -l");
    if shown.trim() == "0" {
        return println!(
            "skipped: before Linux 6.16 the kernel does not say which connections a process has"
        );
    }
    let client = disk.sh("W=$PWD; cd mnt; exec 5< web/0/rootfs.tar; umount -l $W/mnt; fsfreeze -f $W/disk; mkdir new & sleep 0.5; kill -9 $(cat $W/pid); wait $!");
    assert!(client.code != 0 && client.err.contains("cannot create"), "{client:?}");
    disk.ok("fsfreeze -u disk");
    wait_until_free(&disk.0.path().join("disk/store"));
    disk.ok(
        "$IMGFS mount --store disk/store mnt; cmp a.tar mnt/web/0/rootfs.tar; $IMGFS umount mnt; $IMGFS fsck --store disk/store",
    );
}
