//! Trees as mounts of their own, which root has without asking: what they must not change.

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::common::{IMGFS, Mount, WITHOUT_OTHERS, as_root};

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
    for look in [
        "tar -C $M/web/0/rootfs -cf $S/x.tar .",
        "cd $M/web/0/rootfs; tar -cf $S/x.tar .",
        "cp -a web/0/rootfs $S/x",
    ] {
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
    for gesture in
        ["touch web/0/rootfs/x", "rm -rf web/0/rootfs/*", "chmod 700 web/0/rootfs", "mkdir web/0/rootfs/d"]
    {
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
        m.ok(&format!(
            "M=$PWD; cd web/0/rootfs; (cd $M; {delete}); test ! -e $M/web/0; diff -r --no-dereference . $S/a"
        ));
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
fn who_deletes_never_waits_for_the_directory_that_it_has_locked() {
    if !as_root() {
        return;
    }
    let m = fresh();
    m.ok("cp $S/c.tar site.tar; for n in $(seq 6); do cp $S/a.tar web.tar; cp $S/b.tar web.tar; done");
    // Each move makes the kernel look up the path anew, and each rmdir needs it to unmount a tree.
    let turns = [
        "mv -T web www; mv -T www web",
        "rmdir {web,www}/$((i % 8))",
        "rmdir {web,www}/$((i % 7)); cat {web,www}/[0-9]*/rootfs/etc/motd",
        "for t in .imgfs/trash/*; do mv $t web/ || mv $t www/; done",
        "cat {web,www}/[0-9]*/rootfs/etc/motd",
    ];
    let all: String =
        turns.iter().map(|turn| format!("(for i in $(seq 60); do {turn}; done) > $S/out 2>&1 & ")).collect();
    m.ok(&format!("cat > $S/turns << 'END'\n{all}wait\nEND\ntimeout -s KILL 300 bash $S/turns"));
    m.ok("mv -T www web || test -e web; diff -r --no-dereference site/0/rootfs $S/c");
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
    // umount(8) by itself, too, at once, and as often as you like; not while somebody is inside.
    for _ in 0..5 {
        m.ok(&format!("ls web/0/rootfs web/1/rootfs; cd /; umount {point}; not mountpoint -q {point}; until {IMGFS} mount --store $STORE -o trees=mounted {point}; do sleep 0.1; done"));
    }
    assert_ne!(m.sh(&format!("cd web/0/rootfs; umount {point}")).code, 0);
    m.ok("ls web/0/rootfs; kill -9 $(head -1 $STORE/lock); sleep 0.2");
    m.mount();
    m.ok("diff -r --no-dereference web/0/rootfs $S/a; mountpoint -q web/0/rootfs");
    m.ok("kill $(head -1 $STORE/lock); while test -e $STORE/control; do sleep 0.1; done; test ! -e $STORE/mounted; test ! -e $MNT/web");
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

/// find compares what stat said of a directory with where `..` leads: a tree that was mounted after the one
/// and before the other ended it. And a second look more than two seconds later mounted trees again that
/// umount had just unmounted.
#[test]
fn walkers_find_one_device_in_a_tree_and_nobody_keeps_the_mount_busy() {
    if !as_root() {
        return;
    }
    let mut m = fresh();
    for _ in 0..3 {
        m.ok("cd $MNT/..; find mnt -ls > $S/found; du -s mnt > $S/du; tar -C mnt -cf - web | tar -tf - | grep -c rootfs/etc/motd | grep -qx 2");
        m.ok("cd web/0; find rootfs -ls > $S/x; cd ../1; tar -cf - rootfs | wc -c > $S/x; diff -r --no-dereference rootfs $S/b");
        m.ok("sleep 2.5");
    }
    m.unmount();
    m.mount();
    m.ok("find . -ls > $S/x; sleep 2.5");
    m.unmount();
    m.mount();
}

#[test]
fn no_walker_of_the_store_meets_a_mount() {
    if !as_root() {
        return;
    }
    let m = fresh();
    m.ok("ls web/0/rootfs; du -s $STORE; tar -C $STORE -cf $S/backup.tar .; find $STORE -xdev > $S/x; find $STORE | cmp - $S/x");
    m.ok("not grep -q \" $STORE/\" /proc/self/mounts; test ! -e $STORE/mounted");
}

/// umount(2) alone takes no mount that has others in it: those that nobody uses go by themselves.
#[test]
fn trees_that_nobody_uses_are_unmounted() {
    if !as_root() {
        return;
    }
    let mut m = fresh();
    m.ok("ls web/0/rootfs web/1/rootfs; mountpoint -q web/0/rootfs");
    assert_eq!(mounted(&m), 2);
    m.ok("cd web/1/rootfs; for n in $(seq 300); do grep -q \" $MNT/web/0/rootfs\" /proc/self/mounts || break; sleep 0.1; done; test -e etc/motd");
    assert_eq!(mounted(&m), 1, "somebody stood in the other");
    m.ok("cd /; for n in $(seq 300); do umount -i $MNT 2> $S/x && break; sleep 0.1; done; not mountpoint -q $MNT");
    m.ok("while test -e $STORE/control; do sleep 0.1; done");
    m.mount();
    m.ok("ls web/0/rootfs; mountpoint -q web/0/rootfs");
}

#[test]
fn who_is_in_a_tree_goes_on_when_the_mount_is_detached() {
    if !as_root() {
        return;
    }
    let mut m = fresh();
    m.ok(&format!(
        "cd web/0/rootfs; exec 7< bin/tool; umount -l $MNT; sleep 0.5; diff -r --no-dereference . $S/a; cmp - $S/a/bin/tool <&7; \
        not mountpoint -q $MNT; exec 7<&-; cd /; {IMGFS} status --store $STORE > $S/x"
    ));
    m.ok("cd /; for n in $(seq 100); do test -e $STORE/control || break; sleep 0.1; done; test ! -e $STORE/control");
    m.mount();
    m.ok("ls web/0/rootfs; umount -l web/0/rootfs; ls web/0/rootfs");
    m.fsck();
}

#[test]
fn copies_are_those_of_trees_that_are_not_mounted() {
    if !as_root() {
        return;
    }
    let mut m = fresh();
    // latest, default and used_by are as old as the mount; of all but files rsync minds no less than a
    // second.
    let copy = "mkdir $S/$K; cp -a web/1/rootfs $S/$K/cp; rsync -aHAX web $S/$K/rsync; \
        pax='tar --xattrs --pax-option=delete=atime,delete=ctime'; $pax -cf $S/$K/rootfs.tar web/1/rootfs; \
        $pax --mtime=@0 -cf $S/$K/image.tar web; $pax --mtime=@0 -cf $S/$K/all.tar --exclude=.imgfs .; \
        find . -path ./.imgfs -prune -o -printf '%p %m %s %n %y %l\n' > $S/$K/find; \
        cd $S/$K; (find cp -printf '%p %m %s %n %y %T@ %l\\n'; find rsync/web/*/rootfs -type f -printf '%p %m %s %n %y %T@ %l\\n') | sort > copies; cd $MNT";
    m.ok(&format!("K=mounted; {copy}"));
    m.unmount();
    m.ok(&format!("{IMGFS} mount --store $STORE -o trees=inline $MNT"));
    m.ok(&format!("K=inline; {copy}"));
    m.ok("diff $S/mounted/copies $S/inline/copies; for f in rootfs.tar image.tar all.tar find; do cmp $S/mounted/$f $S/inline/$f; done; diff -r --no-dereference $S/mounted $S/inline");
    assert_eq!(mounted(&m), 0);
}

#[test]
fn other_mounts_and_namespaces_see_the_same() {
    if !as_root() {
        return;
    }
    let mut m = fresh();
    m.ok("ls web/0/rootfs; mkdir $S/r; mount --rbind $MNT $S/r; diff -r --no-dereference $S/r/web/0/rootfs $S/a; diff -r --no-dereference $S/r/web/1/rootfs $S/b; \
        umount -R $S/r; mount --bind web/1/rootfs $S/r; diff -r --no-dereference $S/r $S/b; umount $S/r");
    // A namespace with a copy of the mounts, held while the image goes. A chroot can have none of its own.
    m.ok(&format!("if ! mountpoint -q /; then echo 'skipped in a chroot: unshare -m' >&2; rmdir web/0; exit 0; fi; ls web/0/rootfs > $S/x; unshare -m bash -c '{WITHOUT_OTHERS} cd $0; touch $1/in; until test -e $1/gone; do sleep 0.05; done; \
        test ! -e web/0 && diff -r --no-dereference web/1/rootfs $1/b && touch $1/saw' $MNT $S & \
        until test -e $S/in; do sleep 0.05; done; rmdir web/0; test ! -e web/0; touch $S/gone; wait; test -e $S/saw"));
    m.ok(&format!(
        "mkdir .imgfs/views/v $S/v; {IMGFS} mount --store $STORE -o view=v $S/v; cp $S/c.tar $S/v/; \
        diff -r --no-dereference $S/v/c/0/rootfs $S/c; diff -r --no-dereference web/1/rootfs $S/b; {IMGFS} umount $S/v"
    ));
    m.unmount();
    m.mount();
    m.fsck();
}

/// Kernels before 6.15 clone no part of a mount that is nowhere.
#[test]
fn older_kernels_mount_trees_from_a_namespace() {
    if !as_root() {
        return;
    }
    let mut m = fresh();
    if m.sh("mountpoint -q /").code != 0 {
        println!("skipped: a chroot, where older kernels mount no trees");
        return;
    }
    m.unmount();
    m.ok(&format!("IMGFS_OLD_KERNEL=1 {IMGFS} mount --store $STORE -o trees=mounted $MNT"));
    m.ok("ls web/0/rootfs; mountpoint -q web/0/rootfs; diff -r --no-dereference web/0/rootfs $S/a; du -s $STORE");
    // Nothing else is kept mounted by that.
    m.ok("mkdir $S/t; mount -t tmpfs none $S/t; umount $S/t; test $(cat /proc/$(head -1 $STORE/lock)/task/*/mountinfo | sort -u | grep -c ' / / ') -ge 2");
    m.unmount();
    m.mount();
}

/// The kernel walks a path twice, no more: whose link led to another tree at the second time was told
/// "Stale file handle".
#[test]
fn a_link_that_is_switched_at_the_first_look_leads_somewhere() {
    if !as_root() {
        return;
    }
    let m = fresh();
    // statfs by a process of this name unmounts the trees that nobody is in.
    m.ok("cp $(command -v stat) $S/umount");
    let (web, ended) = (m.mnt().join("web"), AtomicBool::new(false));
    let switch = || {
        for to in ["0", "1"].iter().cycle() {
            symlink(to, web.join(".ln")).unwrap();
            fs::rename(web.join(".ln"), web.join("default")).unwrap();
            if ended.load(Ordering::Acquire) {
                return;
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(switch);
        for _ in 0..400 {
            m.ok("$S/umount -f $MNT > $S/x");
            let look = || fs::read_to_string(web.join("default/rootfs/etc/motd"));
            let looks: Vec<_> = (0..3).map(|_| scope.spawn(look)).collect();
            let failed: Vec<_> = looks.into_iter().filter_map(|look| look.join().unwrap().err()).collect();
            if !failed.is_empty() {
                ended.store(true, Ordering::Release);
                panic!("{failed:?}");
            }
        }
        ended.store(true, Ordering::Release);
    });
    m.fsck();
}
