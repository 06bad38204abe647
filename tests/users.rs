//! Mounts of an ordinary user, through fusermount3. Root starts them with setpriv; an ordinary user's run of these
//! tests is one anyway.

mod common;

use std::os::unix::fs::MetadataExt;

use common::sh;

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0)
}

/// Runs a script as user 1000, or as ourselves if we are not root.
fn as_user(dir: &std::path::Path, script: &str) -> common::Ran {
    let wrapped = if is_root() {
        std::fs::write(dir.join("script"), script).unwrap();
        "setpriv --reuid 1000 --regid 1000 --clear-groups env HOME=$PWD bash -o pipefail -e script".to_owned()
    } else {
        format!("set -e; {script}")
    };
    sh(dir, &wrapped)
}

#[test]
fn an_ordinary_user_has_everything_of_an_own_store() {
    let dir = tempfile::tempdir().unwrap();
    let prepared = sh(
        dir.path(),
        "[ $(id -u) != 0 ] || chmod 666 /dev/fuse
         mkdir -p mnt r/etc r/root; echo secret > r/etc/shadow; echo x > r/root/f
         tar -C r --owner=0 --group=0 --mode=go= -cf a.tar .; echo y > r/root/f; tar -C r --owner=0 --group=0 -cf b.tar .
         [ $(id -u) != 0 ] || chown -R 1000:1000 .; chmod 755 .",
    );
    assert_eq!(prepared.code, 0, "{prepared:?}");
    let imgfs = dir.path().join("imgfs");
    std::fs::copy(common::IMGFS, &imgfs).unwrap();
    let ran = as_user(
        dir.path(),
        "./imgfs mount mnt; test -d .local/share/imgfs/loose; test $(stat -c %a .local/share/imgfs) = 700
         cp a.tar mnt/web.tar; cp b.tar mnt/web/; cmp a.tar mnt/web/0/rootfs.tar
         test $(stat -c %u:%a mnt/web/0/rootfs/etc/shadow) = 0:600; test $(cat mnt/web/0/rootfs/etc/shadow) = secret
         ln -sfn 0 mnt/web/default; ln -s web mnt/prod; test $(stat -c %u mnt/web) = $(id -u)
         rmdir mnt/web/1; mv mnt/.imgfs/trash/web.1 mnt/web/; test -d mnt/web/1; rm -r mnt/web; test -z \"$(ls mnt)\"
         not ./imgfs mount mnt 2> err; grep -q 'is mounted there' err
         mkdir m2; not ./imgfs mount -o trees=mounted --store s2 m2 2> err; grep -q 'only root' err; not mountpoint -q m2
         findmnt -n -o FSTYPE,OPTIONS mnt | grep nosuid | grep nodev | grep -q fuse.imgfs
         ./imgfs umount mnt; not mountpoint -q mnt; ./imgfs fsck
         ./imgfs mount mnt; fusermount3 -u mnt; for i in $(seq 50); do ./imgfs status > st; grep -q mounted st || exit 0; sleep 0.1; done; exit 1",
    );
    let _ = sh(dir.path(), "umount -l mnt 2>/dev/null");
    assert_eq!(ran.code, 0, "{ran:?}");
}

#[test]
fn others_see_a_mount_only_where_they_are_let_in() {
    if !is_root() {
        eprintln!("skipped: not root");
        return;
    }
    for (options, code) in [(&[][..], 1), (&["allow_other"][..], 0)] {
        let m = common::Mount::with(options);
        m.ok("cp $S/a.tar web.tar; chmod 755 $MNT/..");
        let ran = m.sh("setpriv --reuid 1000 --regid 1000 --clear-groups cat $MNT/web/0/rootfs/etc/motd");
        assert_eq!(ran.code, code, "{options:?}: {ran:?}");
        if code == 0 {
            m.ok("chmod 700 web; not setpriv --reuid 1000 --regid 1000 --clear-groups ls $MNT/web; not setpriv --reuid 1000 --regid 1000 --clear-groups mkdir $MNT/x");
        }
    }
}
