//! Settings as files: `.imgfs/config`.

use crate::common::{IMGFS, Mount, sh};

#[test]
fn settings_are_read_written_and_put_back() {
    let mut m = Mount::new();
    m.ok("cd .imgfs/config; test \"$(cat trash keep_upload max_depth quota admin_group)\" = \"$(printf '24h\\nnever\\n2K\\n0\\n')\"; test $(ls | wc -l) = 15");
    m.ok("cd .imgfs/config; echo 7d > trash; test $(cat trash) = 7d; test $(stat -c %s trash) = 3; printf 90 > trash; test $(cat trash) = 90s; echo 168h > trash; test $(cat trash) = 7d; echo 1 | tee trash; test $(cat trash) = 1s; echo 7d 1<> trash; test $(cat trash) = 7d; cp trash scrub; test $(cat scrub) = 7d");
    // What is refused changes nothing, not even what was truncated for it.
    for (bad, name) in [
        ("soon", "trash"),
        ("-1", "max_size"),
        ("0", "max_size"),
        ("maybe", "keep_upload"),
        ("1Q", "quota"),
        ("no-such-group", "admin_group"),
        ("4294967295", "admin_group"),
        ("7d x", "trash"),
    ] {
        let before = m.ok(&format!("cat .imgfs/config/{name}"));
        m.refused(&format!("echo '{bad}' > .imgfs/config/{name}"), "Invalid argument");
        assert_eq!(m.ok(&format!("cat .imgfs/config/{name}")), before, "{bad}");
    }
    assert!(m.errors().contains("it takes a time: 30m, 24h, 7d, or 0"), "{}", m.errors());
    m.refused("echo 5GB > .imgfs/config/quota.1002", "Invalid argument");
    m.ok("gone() { for i in $(seq 200); do test -e .imgfs/config/quota.1002 || return 0; sleep 0.01; done; return 1; }; gone; touch .imgfs/config/quota.1002; gone; test $(ls .imgfs/config | wc -l) = 15; echo 5G > .imgfs/config/quota.1002; echo 6G > .imgfs/config/quota.1002; test $(cat .imgfs/config/quota.1002) = 6G; rm .imgfs/config/quota.1002");
    m.refused("head -c 1000 /dev/zero > .imgfs/config/trash", "Invalid argument");
    m.ok("grep -q 'config.trash.7d' .imgfs/log; echo exact > .imgfs/config/keep_upload; echo 512 > .imgfs/config/max_depth");
    m.remount();
    m.ok("test $(cat .imgfs/config/trash) = 7d");
    // Each way to say: as by default.
    m.ok("cd .imgfs/config; : > trash; test $(cat trash) = 24h; truncate -s 0 keep_upload; test $(cat keep_upload) = never; echo > max_depth; test $(cat max_depth) = 2K; echo 7d > trash; python3 -c 'import os; f=os.open(\"trash\", os.O_RDWR); os.ftruncate(f, 0); os.close(f)'; test $(cat trash) = 24h");
    m.refused("truncate -s 3 .imgfs/config/trash", "Invalid argument");
    m.refused("rm .imgfs/config/trash", "Operation not permitted");
    m.refused("touch .imgfs/config/colour", "No such file");
    m.refused("mkdir .imgfs/config/x", "Operation not permitted");
    m.refused("mv .imgfs/config/trash .imgfs/config/x", "Operation not permitted");
    m.ok("echo 3d > .imgfs/config/trash");
    m.unmount();
    assert_eq!(m.sh("rm $STORE/catalog.db*").code, 0);
    m.mount();
    m.ok("test $(cat .imgfs/config/trash) = 3d");
    m.fsck();
}

#[test]
fn a_mounts_option_goes_before_what_was_chosen() {
    let mut m = Mount::with(&["trash=2h,max_entries=10"]);
    m.ok("test $(cat .imgfs/config/trash) = 2h; test $(cat .imgfs/config/max_entries) = 10; echo 5h > .imgfs/config/trash; test $(cat .imgfs/config/trash) = 5h");
    m.remount();
    m.ok("test $(cat .imgfs/config/trash) = 2h");
    m.unmount();
    let ran = sh(
        &m.path("."),
        &format!(
            "{IMGFS} mount --store store mnt && cat mnt/.imgfs/config/trash; {IMGFS} umount mnt; {IMGFS} mount --store store -o quota=lots mnt"
        ),
    );
    assert!(
        ran.out.ends_with("5h\n") && ran.code != 0 && ran.err.contains("quota \"lots\": it takes a number"),
        "{ran:?}"
    );
}

#[test]
fn settings_take_effect_at_once() {
    let m = Mount::new();
    m.ok("mkdir -p $S/deep/a/b/c/d; tar -C $S/deep -cf $S/deep.tar .; echo 3 > .imgfs/config/max_depth");
    m.refused("cp $S/deep.tar deep.tar", "Argument list too long");
    m.ok(": > .imgfs/config/max_depth; cp $S/deep.tar deep.tar; echo always > .imgfs/config/keep_upload; cp $S/a.tar.gz web.tar.gz; cmp web/0/web.tar.gz $S/a.tar.gz");
    m.ok("echo 0 > .imgfs/config/trash; ln -sfn web default; rm -r deep; for i in $(seq 300); do test -z \"$(ls .imgfs/trash)\" && exit 0; sleep 0.1; done; exit 1");
}

/// The words of mount(8): what the kernel keeps of a mount, and shows.
#[test]
fn a_mount_is_read_only_and_back_as_mount_says_it() {
    const SHOWN: &str = "shown() { awk -v m=\"$(pwd -P)\" '$2 == m { print $4 }' /proc/mounts > $S/shown; for w; do grep -qw $w $S/shown; done; }";
    let mut m = Mount::new();
    m.ok("cp $S/a.tar web.tar");
    m.unmount();
    m.ok(&format!("cd /; {IMGFS} mount --store $STORE -o ro,noatime,nodiratime,trees=auto $MNT"));
    m.ok(&format!(
        "{SHOWN}; shown ro noatime; test $(cat web/0/rootfs/etc/motd) = one; cmp $S/a.tar web/0/rootfs.tar"
    ));
    let read_only = |change: &str| {
        let ran = m.sh(change);
        assert!(ran.code != 0 && ran.err.contains("Read-only file system"), "{change}: {ran:?}");
    };
    for change in [
        "cp $S/a.tar b.tar",
        "mkdir new",
        "rmdir web",
        "touch web",
        "echo 7d > .imgfs/config/trash",
        "mv web w2",
        "ln -s web w2",
    ] {
        read_only(change);
    }
    m.ok("test $(ls | wc -l) = 2");
    let refused = |option: &str, wanted: &str| {
        let ran = m.sh(&format!("{IMGFS} mount -o remount,{option} ."));
        assert!(ran.code == 1 && ran.err.contains(wanted), "{option}: {ran:?}");
    };
    if !crate::common::as_root() {
        refused("rw", "Operation not permitted");
        m.ok(&format!("cd /; {IMGFS} umount $MNT"));
        return;
    }
    m.ok(&format!(
        "{SHOWN}; {IMGFS} mount -o remount,rw .; shown rw noatime; cp $S/a.tar b.tar; test -d b/0"
    ));
    m.ok(&format!(
        "{SHOWN}; {IMGFS} mount -o remount,ro,noexec,relatime .; shown ro noexec relatime; not shown noatime"
    ));
    // In a tree that is mounted, and in one that is mounted later.
    m.ok("ls web/0/rootfs/etc b/0/rootfs/etc > $S/shown; find . > $S/shown; awk -v m=\"$(pwd -P)/\" 'index($2, m) == 1 { n++; if ($4 !~ /noexec/) bad = 1 } END { exit bad || !n }' /proc/mounts");
    read_only("cp $S/a.tar c.tar");
    m.ok("busybox mount -o remount,rw \"$PWD\"; cp $S/a.tar c.tar; test -d c/0");
    // What a remount cannot change may be repeated as it is: mount(8) repeats what fstab and the mount say.
    m.ok(&format!("{IMGFS} mount -o remount,rw,user_id=0,group_id=0,trash=24h,x-systemd.automount,nofail ."));
    refused("trash=7d", "-o remount,trash");
    refused("allow_other", "-o remount,allow_other");
    refused("bogus", "there is no such option");
    let ran = m.sh(&format!("cd $S; {IMGFS} mount -o remount,ro ."));
    assert!(ran.code == 1 && ran.err.contains("there is no imgfs mount"), "{ran:?}");
    m.ok(&format!("cd /; {IMGFS} umount $MNT"));
}
