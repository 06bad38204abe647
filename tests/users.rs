//! Mounts of an ordinary user, through fusermount3. Root starts them with setpriv; an ordinary user's run of
//! these tests is one anyway.

use std::os::unix::fs::MetadataExt;

use crate::common::{User, by, may, may_not, sh, shared};

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0)
}

/// Runs a script as user 1000, or as ourselves if we are not root.
fn as_user(dir: &std::path::Path, script: &str) -> crate::common::Ran {
    let wrapped = if is_root() {
        crate::common::write_script(&dir.join("script"), &format!("{}{script}", crate::common::NOT));
        "setpriv --reuid 1000 --regid 1000 --clear-groups env HOME=$PWD bash -o pipefail -e script".to_owned()
    } else {
        // Not the store of whoever runs the tests.
        format!("export HOME=$PWD; set -e; {script}")
    };
    sh(dir, &wrapped)
}

#[test]
fn an_ordinary_user_has_everything_of_an_own_store() {
    if is_root() && sh(std::path::Path::new("/"), "getent passwd 1000").code != 0 {
        println!("skipped: user 1000 has no name, which fusermount3 asks for");
        return;
    }
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
    std::fs::copy(crate::common::IMGFS, &imgfs).unwrap();
    assert_eq!(sh(dir.path(), "chmod 755 imgfs").code, 0);
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
        let m = crate::common::Mount::with(options);
        m.ok("cp $S/a.tar web.tar; chmod 755 $MNT/..");
        let ran = m.sh("setpriv --reuid 1000 --regid 1000 --clear-groups cat $MNT/web/0/rootfs/etc/motd");
        assert_eq!(ran.code, code, "{options:?}: {ran:?}");
        if code == 0 {
            m.ok("chmod 700 web; not setpriv --reuid 1000 --regid 1000 --clear-groups ls $MNT/web; not setpriv --reuid 1000 --regid 1000 --clear-groups mkdir $MNT/x");
        }
    }
}

/// A mount that other users are let into, with a root where everybody may make images: as root sees it.
fn open_to_all() -> Option<crate::common::Mount> {
    let m = shared(&[])?;
    m.ok("chmod 1777 $MNT");
    Some(m)
}

const ANNA: User = (1001, 1001, "");
const BERT: User = (1002, 1002, "");
/// In a group of Anna's.
const CLEO: User = (1003, 1003, "1001");

#[test]
fn an_image_belongs_to_who_made_it() {
    let Some(mut m) = open_to_all() else { return };
    may(
        &m,
        ANNA,
        "umask 027; cp $S/a.tar web.tar; umask 022; mkdir pub; cp $S/a.tar pub/; test \"$(stat -c '%u %g %a' web pub)\" = \"$(printf '1001 1001 750\\n1001 1001 755')\"",
    );
    m.remount();
    // The root's mode stays; root and the owner of the mount may all.
    m.ok("test $(stat -c %a .) = 1777; cat web/0/rootfs/etc/motd");
    may(
        &m,
        BERT,
        "cat pub/0/rootfs/etc/motd; cp $S/b.tar bert.tar; mkdir own; touch pub/0/used_by/bert; rm pub/0/used_by/bert; rmdir own; rm -r bert; mv .imgfs/trash/bert .; rm -r bert; rm -r .imgfs/trash/bert",
    );
    for denied in [
        "cat web/0/rootfs/etc/motd",
        "ls web",
        "cat web/metadata.json",
        "cp $S/b.tar web/",
        "cp $S/b.tar web.tar",
        "cp $S/b.tar .b.tar; mv .b.tar web.tar",
        "cp $S/b.tar pub/",
        "cp $S/c.tar pub.tar.gz",
        "mkdir pub/.s",
        "ln -sfn 0 pub/default",
        "ln -s 0 pub/@1",
        "ln -s pub alias",
        "setfattr -n user.imgfs.description -v x pub",
    ] {
        may_not(&m, BERT, denied, "Permission denied");
    }
    for denied in [
        "rmdir pub",
        "rm -r pub",
        "mv pub other",
        "chmod 777 pub",
        "chown 1002 pub",
        "ln -sfn pub default",
        "rm default",
    ] {
        let ran = by(&m, BERT, denied);
        assert_ne!(ran.code, 0, "{denied}");
    }
    m.ok("test ! -e other -a $(readlink default) = web -a $(stat -c %u:%a pub) = 1001:755; not grep -q pub <(ls .imgfs/trash)");
    // Its group, and who it is given to.
    may(&m, CLEO, "cat web/0/rootfs/etc/motd");
    may_not(&m, CLEO, "cp $S/b.tar web.tar", "Permission denied");
    may(&m, ANNA, "chmod 770 web; ln -s web jammy");
    may(
        &m,
        CLEO,
        "cp $S/b.tar web.tar; cp $S/c.tar web/; rmdir web/0; mv .imgfs/trash/web.0 web/; test -e web/0; ln -sfn 1 web/default",
    );
    may_not(&m, BERT, "rm jammy", "not permitted");
    may(&m, ANNA, "chgrp 1001 web; rm jammy; ln -sfn latest web/default; rm -r pub; mv .imgfs/trash/pub .");
    m.ok("chown 1002:1002 web");
    may(&m, BERT, "cp $S/d.tar web/; rm -r web/0; rm -r .imgfs/trash/web.0");
    may_not(&m, ANNA, "ls web", "Permission denied");
    m.ok("ln -sfn pub default");
}

#[test]
fn what_is_private_is_so_for_every_way_in() {
    let Some(m) = open_to_all() else { return };
    may(
        &m,
        ANNA,
        "umask 077; cp $S/a.tar web.tar; umask 022; cp $S/b.tar pub.tar; not cp $S/not.tar bad.tar 2> /dev/null; not cp $S/cut.tar web.tar 2> /dev/null; cat web.tar > /dev/null",
    );
    let id = m.ok("cat web/.id");
    let digest = m.ok("sha256sum < web/0/rootfs.tar | cut -c-64");
    let (id, digest) = (id.trim(), digest.trim());
    may(
        &m,
        ANNA,
        &format!(
            "test -d .imgfs/by-id/{id}/0; test -d .imgfs/by-digest/{digest}/rootfs; grep -q {digest} <(ls .imgfs/by-digest); grep -q web.tar <(cat .imgfs/jobs/*.json); grep -q bad.tar .imgfs/errors; grep -q web/0 .imgfs/log"
        ),
    );
    may(
        &m,
        BERT,
        &format!(
            "not test -L .imgfs/by-id/{id}; not test -L .imgfs/by-digest/{}; not grep -q {digest} <(ls .imgfs/by-digest); not grep -q {id} <(ls .imgfs/by-id); not test -e web.tar",
            &digest[..12]
        ),
    );
    may(
        &m,
        BERT,
        "not grep -q 'bad.tar\\|web' .imgfs/errors .imgfs/log; for f in errors log; do test $(stat -c %s .imgfs/$f) = $(wc -c < .imgfs/$f); done; grep -q pub/0 .imgfs/log; not cat .imgfs/jobs/*.json 2> /dev/null; test $(ls .imgfs/by-id | wc -l) = 2",
    );
    // What was said of it is not said to whoever has its name later.
    may(
        &m,
        ANNA,
        "cp $S/d.tar secret.tar; chmod 700 secret; setfattr -n user.imgfs.properties.password -v hunter2 secret; not rmdir secret/0; mv secret hidden; ln -sfn pub default || true",
    );
    may(
        &m,
        BERT,
        "cp $S/a.tar secret.tar; grep -q secret/0 .imgfs/log; not grep -q hunter2 .imgfs/log; not grep -q 'only version' .imgfs/errors; rm -r secret",
    );
    may(&m, ANNA, "grep -q hunter2 .imgfs/log; rm -r hidden");
    // Also what was deleted.
    may(&m, ANNA, "cp $S/c.tar web/; rmdir web/0");
    may_not(&m, BERT, "ls .imgfs/trash/web.0", "Permission denied");
    may_not(&m, BERT, "rm -r .imgfs/trash/web.0", "");
    may_not(&m, BERT, "mv .imgfs/trash/web.0 pub/", "");
    may(&m, ANNA, "mv .imgfs/trash/web.0 web/; chmod 755 web");
    may(
        &m,
        BERT,
        &format!(
            "test -d .imgfs/by-id/{id}/0; cat web/0/rootfs/etc/motd; test -e web.tar; grep -q web/0 .imgfs/log"
        ),
    );
    // In a user namespace of its own nobody is more than outside.
    may_not(&m, BERT, "chmod 700 $MNT/pub", "");
    let inside = format!(
        "unshare -U -r bash -c 'cat {0}/pub/0/rootfs/etc/motd && ! rmdir {0}/pub'",
        m.mnt().display()
    );
    let ran = by(&m, BERT, &inside);
    assert!(ran.code == 0 || ran.err.contains("unshare"), "{ran:?}");
}

/// Root of a user namespace is the user outside, and no more.
#[test]
fn in_a_user_namespace_one_is_who_one_is_outside() {
    let Some(m) = open_to_all() else { return };
    if by(&m, ANNA, "unshare -U -r true").code != 0 {
        println!("skipped: no user namespaces here");
        return;
    }
    m.ok("cp $S/a.tar root.tar; chmod 700 root; mkdir other; chown 1002:1002 other; chmod 755 other");
    let within = |script: &str| format!("export S MNT; unshare -U -r bash -e -c '{script}'");
    // What it makes is its own, shown as root's inside.
    may(
        &m,
        ANNA,
        &within(
            "cp $S/a.tar mine.tar; test $(stat -c %u:%g mine) = 0:0; chmod 700 mine; cp $S/b.tar mine/; echo x > mine/0/used_by/a; rm mine/0/used_by/a; ln -s mine alias; cat mine/0/rootfs/etc/motd; test $(stat -c %u root) = 65534",
        ),
    );
    m.ok("test \"$(stat -c %u:%g:%a mine)\" = 1001:1001:700");
    for denied in [
        "ls root",
        "cp $S/b.tar root/",
        "cp $S/b.tar other/",
        "rmdir other",
        "chmod 777 other",
        "chown 0 other",
        "ln -sfn mine default",
        "rm -r .imgfs/trash",
        "echo 1d > .imgfs/config/trash",
        "touch other/.x",
    ] {
        let ran = by(&m, ANNA, &within(denied));
        assert_ne!(ran.code, 0, "{denied}: {ran:?}");
    }
    // Nobody else's namespace sees what is private; a group of one's own outside still counts, though it has
    // no number inside.
    assert_ne!(by(&m, BERT, &within("ls mine")).code, 0);
    m.ok("chmod 750 mine");
    may(&m, CLEO, &within("ls mine; cat mine/0/rootfs/etc/motd"));
    may(&m, ANNA, &within("rm -r mine; mv .imgfs/trash/mine .; rm alias"));
    m.fsck();
}
