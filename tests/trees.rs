//! Trees as mounts of their own: `-o trees=mounted`.

mod common;

use common::{IMGFS, Mount, as_root};

/// A mount with one image, fresh: nothing was looked up yet.
fn fresh() -> Mount {
    let mut m = Mount::with(&["trees=mounted"]);
    m.ok("cp $S/a.tar web.tar; cp $S/b.tar web.tar");
    m.remount();
    m
}

/// How many trees are mounted.
fn mounted(m: &Mount) -> usize {
    let mnt = m.mnt().display().to_string();
    std::fs::read_to_string("/proc/self/mounts").unwrap().matches(&format!(" {mnt}/")).count()
}

#[test]
fn the_first_look_goes_into_the_mount() {
    if !as_root() {
        return;
    }
    for look in ["tar -C $M/web/0/rootfs -cf $S/x.tar .", "cd $M/web/0/rootfs; tar -cf $S/x.tar .", "cp -a web/0/rootfs $S/x"] {
        let m = fresh();
        assert_eq!(mounted(&m), 0, "nobody looked yet");
        m.ok(&format!("M=$PWD; {look}; mountpoint -q $M/web/0/rootfs"));
        m.ok("diff -r --no-dereference web/0/rootfs $S/a; diff -r --no-dereference web/1/rootfs $S/b");
        m.ok("cmp web/0/rootfs.tar $S/a.tar; tar -C web/1/rootfs --xattrs -cf - . | tar -C web/1/rootfs --xattrs -df -");
        assert_eq!(mounted(&m), 2);
    }
}

#[test]
fn nothing_is_written_into_a_mounted_tree() {
    if !as_root() {
        return;
    }
    let m = fresh();
    m.ok("ls web/0/rootfs");
    for gesture in ["touch web/0/rootfs/x", "rm -rf web/0/rootfs/*", "chmod 700 web/0/rootfs", "mkdir web/0/rootfs/d"] {
        // The kernel itself says so.
        let ran = m.sh(gesture);
        assert!(ran.code != 0 && ran.err.contains("Read-only file system"), "{ran:?}");
    }
    assert_ne!(m.sh("rmdir web/0/rootfs").code, 0);
    m.ok("diff -r --no-dereference web/0/rootfs $S/a");
}

#[test]
fn what_is_deleted_is_no_longer_mounted_and_who_stands_in_it_goes_on() {
    if !as_root() {
        return;
    }
    for delete in [
        "rmdir web/0",
        "rm -r web/0",
        "find web/0 -delete",
        "busybox rm -r web/0",
        "python3 -c \"import shutil; shutil.rmtree('web/0')\"",
    ] {
        let m = fresh();
        m.ok(&format!("M=$PWD; cd web/0/rootfs; (cd $M; {delete}); test ! -e $M/web/0; diff -r --no-dereference . $S/a"));
        m.ok("ls web/1/rootfs; ls .imgfs/trash/web.0/rootfs | cmp - <(ls $S/a)");
        assert_eq!(mounted(&m), 1, "{delete}");
        // It comes back, is mounted again, and the image goes with all its mounts.
        m.ok("mv .imgfs/trash/web.0 web/; diff -r --no-dereference web/0/rootfs $S/a");
        // A busy machine may take its time.
        m.ok("for n in $(seq 100); do mountpoint -q web/0/rootfs && break; sleep 0.1; done; mountpoint web/0/rootfs");
        m.ok("rm -r web; test ! -e web");
        assert_eq!(mounted(&m), 0, "{delete}");
    }
}

#[test]
fn an_image_takes_its_mounts_along() {
    if !as_root() {
        return;
    }
    let m = fresh();
    m.ok("ls web/0/rootfs web/1/rootfs; mv web site; mountpoint -q site/1/rootfs; diff -r --no-dereference site/1/rootfs $S/b");
    m.ok("cp $S/c.tar web.tar; ls web/0/rootfs; rmdir site/1; test ! -e site/1; ln -sfn web default; rmdir site; test ! -e site; ls web/0/rootfs");
    assert_eq!(mounted(&m), 1);
    m.fsck();
}

#[test]
fn many_trees_take_turns() {
    if !as_root() {
        return;
    }
    let m = Mount::with(&["trees=mounted"]);
    m.ok("cd $S; mkdir t; for n in $(seq 270); do echo $n > t/n; tar -C t -cf $n.tar .; done");
    m.ok("cat $S/1.tar > web.tar; for n in $(seq 2 270); do cat $S/$n.tar > web/next.tar; done; test -e web/269");
    m.ok("exec 7< web/3/rootfs/n; for n in $(seq 270); do test $(cat web/$((n-1))/rootfs/n) = $n; done; test $(cat <&7) = 4");
    assert_eq!(mounted(&m), 256);
    m.ok("mountpoint -q web/3/rootfs && test $(cat web/0/rootfs/n) = 1");
}

#[test]
fn it_is_unmounted_by_every_way() {
    if !as_root() {
        return;
    }
    let mut m = fresh();
    let point = m.mnt().display().to_string();
    m.ok("ls web/0/rootfs");
    let ran = m.sh(&format!("cd web/0/rootfs; {IMGFS} umount {point}"));
    assert!(ran.code == 1 && ran.err.contains("is in use"), "{ran:?}");
    m.ok("test -d web/1; ls web/0/rootfs");
    m.remount();
    m.ok(&format!(
        "ls web/0/rootfs; timeout 9 {IMGFS} umount $MNT/web/0/rootfs; not mountpoint -q web/0/rootfs || exit 1; mountpoint -q $MNT"
    ));
    m.ok(&format!("ls web/0/rootfs; cd /; umount -R {point}; until {IMGFS} mount --store $STORE -o trees=mounted {point}; do sleep 0.1; done"));
    m.ok("ls web/0/rootfs; kill -9 $(head -1 $STORE/lock); sleep 0.2");
    m.mount();
    m.ok("diff -r --no-dereference web/0/rootfs $S/a; mountpoint -q web/0/rootfs");
    m.ok("kill $(head -1 $STORE/lock); while test -e $STORE/control; do sleep 0.1; done; not mountpoint -q $STORE/mounted && test ! -e $MNT/web");
    m.mount();
    m.ok("ls web/0/rootfs");
    m.fsck();
}

#[test]
fn readers_go_on_while_versions_come_and_go() {
    if !as_root() {
        return;
    }
    let m = fresh();
    m.ok("\
        read() { while test ! -e $S/end; do tar -C web/1/rootfs -cf - . | cmp - $S/1.tar || touch $S/bad; done; }; \
        tar -C web/1/rootfs -cf $S/1.tar .; read & read & \
        for n in $(seq 20); do cp $S/c.tar web/; ls web/latest/rootfs > /dev/null; rmdir web/$(readlink web/latest); done; \
        for n in $(seq 20); do mv web site; ls site/1/rootfs > /dev/null; mv site web; sleep 0.01; done; \
        touch $S/end; wait; test -e web/1/rootfs; true");
    m.fsck();
}
