//! Who may do what, beyond owner and mode: ACLs, the groups of admins and importers, quotas. README's table
//! of roles, a test a row. As several users, through one mount.

use crate::common::{User, may, may_not, shared};

/// Owner of the images; others; one in group 2000, one in 2001.
const ANNA: User = (1001, 1001, "");
const BERT: User = (1002, 1002, "");
const ADMIN: User = (1004, 1004, "2000");
const IMPORTER: User = (1005, 1005, "2001");

#[test]
fn an_acl_decides_as_on_any_file_system() {
    let Some(mut m) = shared(&[]) else { return };
    m.ok("chmod 1777 .");
    may(
        &m,
        ANNA,
        "umask 077; cp $S/a.tar web.tar; setfacl -m u:1002:rx,g:2000:rwx web; stat -c %a web | grep -qx 770",
    );
    let id = m.ok("cat web/.id");
    let id = id.trim();
    // What is there, and for every way in.
    may(
        &m,
        BERT,
        &format!(
            "cat web/0/rootfs/etc/motd web/metadata.json > /dev/null; test -d .imgfs/by-id/{id}/0; touch web/0/used_by/b; rm web/0/used_by/b; getfacl -cn web | grep -qx user:1002:r-x"
        ),
    );
    may_not(&m, BERT, "cp $S/b.tar web/", "Permission denied");
    may_not(&m, BERT, "cp $S/b.tar web.tar", "Permission denied");
    may_not(&m, BERT, "setfacl -m u:1002:rwx web", "not permitted");
    may(
        &m,
        ADMIN,
        "cp $S/b.tar web/; cp $S/c.tar web.tar; ln -sfn 0 web/default; setfattr -n user.imgfs.description -v x web; rmdir web/1",
    );
    may_not(&m, IMPORTER, "ls web", "Permission denied");
    may_not(&m, IMPORTER, &format!("test -L .imgfs/by-id/{id}"), "");
    // The mask bounds all of them; the owner keeps everything.
    may(&m, ANNA, "setfacl -m m::r-x web; cat web/0/rootfs/etc/motd");
    may_not(&m, ADMIN, "cp $S/b.tar web/", "Permission denied");
    may(&m, ANNA, "chmod 700 web");
    may_not(&m, BERT, "ls web", "Permission denied");
    may(&m, ANNA, "chmod 770 web");
    may(&m, BERT, "ls web");
    for loss in ["", "rm $STORE/catalog.db*"] {
        m.unmount();
        assert_eq!(m.sh(&format!("true; {loss}")).code, 0);
        m.mount();
        may(
            &m,
            BERT,
            "ls web; getfacl -cn web | tr '\\n' ' ' | grep -qx 'user::rwx user:1002:r-x group::--- group:2000:rwx mask::rwx other::---  '",
        );
    }
    may(&m, ANNA, "setfacl -b web; stat -c %a web | grep -qx 700; test $(getfacl -cn web | grep -c :) = 3");
    may_not(&m, BERT, "ls web", "Permission denied");
    m.refused("setfacl -d -m u:1002:rx web", "not supported");
    // On the root: who may make images.
    m.ok("chmod 755 .; setfacl -m u:1002:rwx .");
    may(&m, BERT, "mkdir own; rmdir own");
    may_not(&m, ANNA, "mkdir own", "Permission denied");
    m.remount();
    may(&m, BERT, "mkdir own");
    m.ok("chattr +i web");
    m.refused("setfacl -m u:1002:rx web", "not permitted");
    m.ok("chattr -i web; setfacl -b .; test $(stat -c %a .) = 755");
    m.fsck();
}

/// `getfattr -d` of a private image gave an error for each value, and with it every key of its properties.
#[test]
fn what_one_may_not_read_has_no_attributes() {
    let Some(m) = shared(&[]) else { return };
    m.ok("chmod 1777 .");
    may(
        &m,
        ANNA,
        "cp $S/a.tar web.tar; setfattr -n user.imgfs.properties.secret-project -v x web; setfattr -n user.imgfs.description -v y web; ln -s web ali; setfattr -n user.imgfs.aliases.ali -v z web",
    );
    // The property: for every mode, whoever may not list the image is told no name, no value and no count.
    let look = "import os, sys
for path in ['web', 'web/.id', 'web/metadata.json', 'web/0', 'web/0/rootfs.tar', 'web/0/rootfs', 'web/0/rootfs/etc/motd', 'ali']:
    try: names = [n for n in os.listxattr(path) if 'imgfs' in n]
    except PermissionError: names = []
    print(path, len(names), *names)
    for name in ['id', 'digest', 'description', 'properties.secret-project', 'no-such']:
        try: print(path, name, os.getxattr(path, 'user.imgfs.' + name))
        except OSError: pass";
    std::fs::write(m.path("src/look.py"), look).unwrap();
    // Whatever the umask is, others run it.
    m.ok("chmod 644 $S/look.py");
    let mut seen = 0;
    for mode in ["700", "711", "733", "701", "750", "755", "744", "704"] {
        may(&m, ANNA, &format!("chmod {mode} web"));
        for who in [ANNA, BERT, ADMIN] {
            let reads = crate::common::by(&m, who, "ls web").code == 0;
            let found = may(&m, who, "python3 $S/look.py");
            let told = found.contains("user.imgfs.") || found.contains(" b'");
            assert_eq!(told, reads, "{mode} {who:?}: {found}");
            seen += usize::from(!reads);
        }
    }
    assert!(seen >= 8, "{seen}");
    // An ACL decides as a mode does.
    may(&m, ANNA, "chmod 711 web; setfacl -m u:1002:rx web");
    assert!(may(&m, BERT, "getfattr -d web").contains("secret-project"));
    assert_eq!(may(&m, ADMIN, "getfattr -d web"), "");
    m.ok("getfattr -d web | grep -q secret-project");
}

#[test]
fn members_of_the_admin_group_may_everything() {
    let Some(m) = shared(&["admin_group=2000,import_group=2001"]) else { return };
    m.ok("test $(cat .imgfs/config/admin_group) = 2000; chmod 1777 .");
    may(&m, ANNA, "umask 077; cp $S/a.tar web.tar; cp $S/a.tar two.tar");
    m.ok("chmod 755 .");
    may(
        &m,
        ADMIN,
        "cat web/0/rootfs/etc/motd; cp $S/b.tar web/; rmdir web/0; mv .imgfs/trash/web.0 web/; cp $S/c.tar new.tar; ln -sfn web default; ln -s web alias; rm alias; echo 7d > .imgfs/config/trash; test -d .imgfs/by-id/$(cat web/.id)",
    );
    may(
        &m,
        ADMIN,
        "grep -q web/0 .imgfs/log; setfattr -n user.imgfs.immutable -v true web; setfattr -n user.imgfs.immutable -v false web; ln -sfn ../../new .imgfs/defaults/container",
    );
    // Deleting somebody else's in a sticky root is root's, as everywhere.
    may(&m, ADMIN, "mv two drei; rm -r drei; mv .imgfs/trash/drei .");
    may_not(&m, BERT, "ls web", "Permission denied");
    may_not(&m, BERT, "echo 1d > .imgfs/config/trash", "Permission denied");
    may_not(&m, IMPORTER, "ls web", "Permission denied");
    // chmod by the owner says the mask: the admins stay, and nobody else comes in.
    may(&m, ANNA, "chmod 700 web; chmod o+x web; chmod o-x web");
    may(&m, ADMIN, "ls web");
    may_not(&m, BERT, "ls web", "Permission denied");
    // And gives nobody back what the mask had taken.
    m.ok(": > .imgfs/config/admin_group");
    may(&m, ANNA, "setfacl -m u:1002:rwx new 2> /dev/null || true; cp $S/a.tar acl.tar 2> /dev/null || true");
    m.ok("cp $S/a.tar acl.tar; chown 1001:1001 acl; setfacl -m u:1002:rwx acl; chmod 750 acl; echo 2000 > .imgfs/config/admin_group");
    may(&m, ANNA, "chmod o+x acl; chmod u+w acl");
    may_not(&m, BERT, "cp $S/b.tar acl/", "Permission denied");
    m.ok("truncate -s 0 .imgfs/config/admin_group; test $(stat -c %a acl) = 751; setfacl -m u:1002:rwx .; chmod 755 .; echo 2001 > .imgfs/config/import_group; chmod +t .; chmod -t .");
    may_not(&m, BERT, "mkdir x", "Permission denied");
    m.ok("setfacl -b .; test $(stat -c %a web) = 700; : > .imgfs/config/admin_group");
    may_not(&m, ADMIN, "ls web", "Permission denied");
    may_not(&m, ADMIN, "echo 1d > .imgfs/config/trash", "Permission denied");
    m.ok("echo 2000 > .imgfs/config/admin_group");
    may(&m, ADMIN, "ls web");
    m.fsck();
}

#[test]
fn members_of_the_import_group_make_images() {
    let Some(m) = shared(&["import_group=2001"]) else { return };
    may(&m, IMPORTER, "cp $S/a.tar mine.tar; mkdir other; cp $S/b.tar other/; ls -ld . | grep -q rwxrwxr-x");
    may_not(&m, BERT, "cp $S/a.tar no.tar", "Permission denied");
    may_not(&m, BERT, "cp $S/b.tar mine.tar", "Permission denied");
    m.ok("cp $S/a.tar root.tar");
    may_not(&m, IMPORTER, "cp $S/b.tar root.tar", "Permission denied");
    may_not(&m, IMPORTER, "echo 1d > .imgfs/config/trash", "Permission denied");
}

#[test]
fn a_quota_bounds_what_a_user_has() {
    let Some(mut m) = shared(&["quota=700K,quota_images=3"]) else { return };
    m.ok("chmod 1777 .; for n in 1 2 3; do mkdir $S/q; head -c 300000 /dev/urandom > $S/q/f; tar -C $S/q -cf $S/q$n.tar .; rm -r $S/q; done; echo s > $S/s; tar -C $S -cf $S/small.tar s; chmod 644 $S/q* $S/small.tar");
    may(&m, ANNA, "cp $S/q1.tar one.tar; cp $S/q2.tar two.tar; cp $S/q1.tar same.tar");
    may_not(&m, ANNA, "mkdir four", "Disk quota exceeded");
    may_not(&m, ANNA, "cp $S/q1.tar four.tar", "Disk quota exceeded");
    assert!(m.errors().contains("the quota of user 1001: 3 images"), "{}", m.errors());
    // What is there once counts once; something else is too much, and leaves nothing.
    may_not(&m, ANNA, "cp $S/q3.tar one.tar", "Disk quota exceeded");
    assert!(m.errors().contains("the quota of user 1001: 716800 bytes"), "{}", m.errors());
    may(
        &m,
        ANNA,
        "ls one | grep -c '^[0-9]' | grep -qx 1; cp $S/q2.tar one/; rm -r two; rm -r same; cp $S/q3.tar not.tar 2> /dev/null || rmdir one/0; cp $S/q3.tar one/",
    );
    // The trash does not count; what comes back does: images, and bytes.
    may(&m, BERT, "cp $S/q1.tar x.tar; cp $S/q2.tar y.tar; rm -r x; cp $S/q3.tar z.tar");
    may_not(&m, BERT, "mv .imgfs/trash/x .", "Disk quota exceeded");
    may(&m, BERT, "cp $S/small.tar z.tar; rmdir z/0; cp $S/q1.tar z.tar");
    may_not(&m, BERT, "mv .imgfs/trash/z.0 z/", "Disk quota exceeded");
    may(&m, BERT, "rm -r y z; rm -rf .imgfs/trash/x .imgfs/trash/y .imgfs/trash/z .imgfs/trash/z.0");
    may(&m, ANNA, "mkdir a; mkdir b");
    may_not(&m, ANNA, "mv .imgfs/trash/two .", "Disk quota exceeded");
    // A kept upload counts beside what was in it.
    m.ok("gzip -k $S/q1.tar $S/q2.tar; chmod 644 $S/*.gz");
    may(&m, IMPORTER, "mkdir k; setfattr -n user.imgfs.keep_upload -v always k; cp $S/q1.tar.gz k/");
    may_not(&m, IMPORTER, "cp $S/q2.tar.gz k/", "Disk quota exceeded");
    // Others have their own; root has none.
    may(&m, BERT, "cp $S/q1.tar bert.tar; cp $S/q2.tar bert.tar");
    may_not(&m, BERT, "cp $S/q3.tar bert.tar", "Disk quota exceeded");
    m.ok("for n in 1 2 3; do cp $S/q$n.tar root.tar; done; echo 10M > .imgfs/config/quota.1002; ls .imgfs/config | grep -qx quota.1002; test $(cat .imgfs/config/quota.1002) = 10M");
    may(&m, BERT, "cp $S/q3.tar bert.tar");
    m.remount();
    may(&m, BERT, "cp $S/b.tar bert.tar");
    m.ok("rm .imgfs/config/quota.1002; not test -e .imgfs/config/quota.1002");
    may_not(&m, BERT, "cp $S/c.tar bert.tar", "Disk quota exceeded");
    m.refused("echo 1M > .imgfs/config/quota.no-such-user", "No such file");
    m.fsck();
}
