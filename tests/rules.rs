//! Rules around images: immutable ones, leases, labels, retention, described aliases. README's tables, a test
//! a row.

use crate::common::{IMGFS, Mount, sh};
use serde_json::json;

const NOBODY: &str = "setpriv --reuid 1000 --regid 1000 --clear-groups";

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("skipped: not root");
    }
    root
}

/// Waits until the background has done something.
fn soon(m: &Mount, script: &str) {
    m.ok(&format!("for i in $(seq 300); do if {script}; then exit 0; fi; sleep 0.1; done; exit 1"));
}

#[test]
fn an_immutable_image_is_neither_updated_nor_edited_nor_renamed_nor_deleted() {
    let mut m = Mount::new();
    m.ok("cp $S/a.tar web.tar; cp $S/b.tar web.tar; cp $S/c.tar o.tar; ln -s 0 web/@1; mkdir web/.s; cp $S/d.tar web/.s/; setfattr -n user.imgfs.immutable -v true web");
    assert_eq!(m.json("web")["immutable"], true);
    assert_eq!(m.json("web")["immutable_by"], rustix::process::geteuid().as_raw());
    m.ok("test $(getfattr --only-values -n user.imgfs.immutable web) = true; ln -sfn o default");
    for change in [
        "cp $S/d.tar web.tar",
        "cp $S/d.tar web/",
        "cp $S/d.tar .x.tar; mv .x.tar web.tar",
        "mv web/.s web/next",
        "setfattr -n user.imgfs.description -v x web",
        "jq '.description=\"x\"' web/metadata.json > $S/m; cat $S/m > web/metadata.json",
        "mv web www",
        "rmdir web/0",
        "rm -r web/0",
        "rmdir web",
        "rm -r web",
        "chmod 700 web",
        "ln -s 1 web/@2",
        "rm web/@1",
        "mv web/@1 web/@2",
    ] {
        m.refused(change, "Operation not permitted");
        assert!(m.errors().contains("web is immutable: user"), "{}", m.errors());
    }
    // What is no change of it: which version is used, who uses it, links to it.
    m.ok("rm -f .x.tar; ln -sfn 0 web/default; touch web/0/used_by/app; ln -s web alias; cat web/default/rootfs/etc/motd; cp $S/c.tar o.tar");
    m.remount();
    m.refused("rmdir web", "Operation not permitted");
    m.ok("jq '.immutable=false' web/metadata.json > $S/m; cat $S/m > web/metadata.json; rm web/0/used_by/app; ln -sfn latest web/default; rmdir web/0; cp $S/d.tar web/; rm -r web; ls .imgfs/trash | grep -qx web");
    m.fsck();
}

#[test]
fn chattr_and_lsattr_show_and_set_it() {
    if !is_root() {
        return;
    }
    let m = Mount::with(&["allow_other"]);
    m.ok("chmod 755 $MNT/..; cp $S/a.tar web.tar; test -z \"$(lsattr -d web | cut -c1-20 | tr -d ' -')\"; chattr +i web; lsattr -d web | cut -c1-20 | grep -q i");
    m.refused("cp $S/b.tar web/", "Operation not permitted");
    m.refused("chattr +a web", "Operation not supported");
    // Who has not set it, and is not root, does not take it away: not even the image's owner.
    m.ok(&format!("chattr -i web; chown 1000:1000 web; chattr +i web; not {NOBODY} setfattr -n user.imgfs.immutable -v false $MNT/web; not {NOBODY} chattr -i $MNT/web"));
    m.ok(&format!("chattr -i web; {NOBODY} setfattr -n user.imgfs.immutable -v true $MNT/web; not {NOBODY} rmdir $MNT/web; {NOBODY} setfattr -n user.imgfs.immutable -v false $MNT/web"));
    m.ok("chattr +i web; chattr -i web; cp $S/b.tar web/; not lsattr web/0/rootfs/etc/motd 2> /dev/null");
}

#[test]
fn what_is_leased_is_not_deleted() {
    let mut m = Mount::new();
    m.ok("cp $S/a.tar web.tar; cp $S/b.tar web.tar; cp $S/c.tar o.tar; ln -sfn o default; touch web/0/used_by/app7; echo 'the shop' > web/0/used_by/app8");
    for gesture in ["rmdir web/0", "rm -r web/0", "rmdir web", "rm -r web"] {
        m.refused(gesture, "busy");
        assert!(m.errors().contains("web/0 is used by app7, app8"), "{}", m.errors());
    }
    m.remount();
    m.ok("test \"$(ls web/0/used_by)\" = \"$(printf 'app7\\napp8')\"; grep -qx 'the shop' web/0/used_by/app8; test -z \"$(ls web/1/used_by)\"");
    let used_by = m.json("web/0")["used_by"].clone();
    assert_eq!((&used_by[0]["name"], &used_by[1]["text"]), (&json!("app7"), &json!("the shop\n")));
    m.ok("rm web/0/used_by/app7; echo other > web/0/used_by/app8; echo more >> web/0/used_by/app8; test $(wc -l < web/0/used_by/app8) = 2; not rmdir web/0; rm web/0/used_by/*; rmdir web/0; ls .imgfs/trash | grep -qx web.0");
    // A lease comes back with its version.
    m.ok("touch web/1/used_by/x; mv .imgfs/trash/web.0 web/; touch web/0/used_by/y; not rmdir web/1; rm web/1/used_by/x; rmdir web/1; mv .imgfs/trash/web.1 web/; test -e web/0/used_by/y");
    for bad in [
        "mkdir web/0/used_by/d",
        "touch web/0/used_by/.dot",
        "ln -s relative web/0/used_by/l",
        "ln -s $MNT/web web/0/used_by/l",
        "head -c 5000 /dev/zero > web/0/used_by/long",
    ] {
        let ran = m.sh(bad);
        assert_ne!(ran.code, 0, "{bad}");
    }
    m.fsck();
    // What is purged takes its leases along.
    m.ok(&format!("rm web/*/used_by/*; touch o/0/used_by/z; rm o/0/used_by/z; rm -r web; {IMGFS} gc --trash --store $STORE"));
    m.fsck();
}

#[test]
fn a_lease_that_is_a_symlink_lasts_as_long_as_its_path() {
    let m = Mount::new();
    m.ok("cp $S/a.tar web.tar; cp $S/b.tar web.tar; mkdir $S/app; ln -s $S/app web/0/used_by/app; test $(readlink web/0/used_by/app) = $S/app; test -d web/0/used_by/app");
    m.refused("rmdir web/0", "busy");
    assert_eq!(m.json("web/0")["used_by"][0]["stale"], false);
    m.ok("rmdir $S/app");
    assert_eq!(m.json("web/0")["used_by"][0]["stale"], true);
    m.ok("test -L web/0/used_by/app; rmdir web/0");
}

#[test]
fn a_lease_with_a_time_ends_by_itself() {
    let m = Mount::new();
    m.ok("cp $S/a.tar web.tar; cp $S/b.tar web.tar; touch -d '+1 hour' web/0/used_by/long; touch -d '+2 seconds' web/0/used_by/short; touch -d '-1 hour' web/0/used_by/old");
    let used_by = m.json("web/0")["used_by"].clone();
    assert!(used_by[0]["expires_at"].is_string() && used_by[1]["expires_at"].is_null(), "{used_by}");
    m.refused("rmdir web/0", "busy");
    m.ok("rm web/0/used_by/long web/0/used_by/old; sleep 2.5; rmdir web/0; mv .imgfs/trash/web.0 web/");
    soon(&m, "test ! -e web/0/used_by/short && grep -q 'its time is over' .imgfs/log");
}

#[test]
fn an_image_whose_status_is_deleted_goes_with_its_last_lease() {
    let m = Mount::new();
    m.ok("cp $S/a.tar o.tar; cp $S/b.tar web.tar; touch web/0/used_by/vm1; id=$(cat web/.id); setfattr -n user.imgfs.status -v deleted web; not grep -qx web <(ls); cmp $S/b.tar .imgfs/by-id/$id/0/rootfs.tar");
    assert_eq!(m.json("web")["status"], "deleted");
    m.refused("touch web/0/used_by/vm2", "Operation not permitted");
    m.refused("ln -sfn web default", "Operation not permitted");
    m.refused("setfattr -n user.imgfs.status -v deleted o", "busy");
    m.ok("setfattr -n user.imgfs.status -v active web; ls | grep -qx web; touch web/0/used_by/vm2; setfattr -n user.imgfs.status -v deleted web; rm web/0/used_by/vm1; sleep 0.2; rm web/0/used_by/vm2");
    soon(&m, "test ! -e web && ls .imgfs/trash | grep -qx web");
    m.ok("grep -l 'its status is deleted' .imgfs/jobs/*");
}

#[test]
fn what_is_over_keep_versions_or_its_time_goes_by_itself() {
    let m = Mount::new();
    m.ok("for t in a b c d; do cp $S/$t.tar web.tar; done; cp $S/a.tar o.tar; ln -sfn o default; ln -sfn 0 web/default; touch web/1/used_by/app; setfattr -n user.imgfs.keep_versions -v 1 web");
    assert_eq!(m.json("web")["keep_versions"], 1);
    soon(&m, "test ! -e web/2");
    m.ok("test -e web/0 -a -e web/1 -a -e web/3; ls .imgfs/trash | grep -qx web.2; grep -l 'keep_versions' .imgfs/jobs/*");
    m.ok("rm web/1/used_by/app; setfattr -n user.imgfs.expires_at -v 2020-01-01 o; cp $S/c.tar p.tar; setfattr -n user.imgfs.expires_at -v 2020-01-01T12:00:00Z p");
    soon(&m, "test ! -e web/1 -a ! -e p");
    // The default image stays; what comes back stays too, once its time is taken away.
    m.ok(
        "test -e o; setfattr -x user.imgfs.expires_at o; mv .imgfs/trash/p .; setfattr -n user.imgfs.expires_at -v 2199-01-01 p",
    );
    assert_eq!(m.json("p")["expires_at"], "2199-01-01T23:59:59.999999999Z");
    for bad in [
        "keep_versions -v 0",
        "keep_versions -v x",
        "expires_at -v soon",
        "status -v gone",
        "immutable -v maybe",
    ] {
        m.refused(&format!("setfattr -n user.imgfs.{bad} web"), "Invalid argument");
    }
}

#[test]
fn labels_are_version_strings() {
    let mut m = Mount::new();
    m.ok("cp $S/a.tar web.tar; cp $S/b.tar web.tar; ln -s 0 web/@22.04.5; test $(readlink web/@22.04.5) = 0; cmp $S/a.tar web/@22.04.5/rootfs.tar; ls web | grep -qx @22.04.5");
    assert_eq!(
        (&m.json("web/0")["labels"], &m.json("web")["versions"][0]["labels"]),
        (&json!(["22.04.5"]), &json!(["22.04.5"]))
    );
    let ran = m.sh("ln -sT 1 web/@22.04.5");
    assert!(ran.code != 0 && ran.err.contains("File exists"), "{ran:?}");
    m.refused("ln -s 7 web/@7", "No such file");
    m.refused("ln -s 0 web/@", "Invalid argument");
    m.ok("ln -sfn 1 web/@22.04.5; test $(readlink web/@22.04.5) = 1; ln -s latest web/@now; test $(readlink web/@now) = 1; mv web/@now web/@then; rm web/@then; test ! -L web/@then");
    m.remount();
    // It goes and comes with its version, unless another has it by then.
    m.ok("cp $S/c.tar web.tar; rmdir web/1; test ! -L web/@22.04.5; mv .imgfs/trash/web.1 web/; test $(readlink web/@22.04.5) = 1; rmdir web/1; ln -s 2 web/@22.04.5; mv .imgfs/trash/web.1 web/; test $(readlink web/@22.04.5) = 2");
    m.ok(&format!(
        "ln -s 0 web/@zero; rmdir web/0; {IMGFS} gc --trash --store $STORE; mv web www; test $(readlink www/@22.04.5) = 2"
    ));
    m.fsck();
}

#[test]
fn a_file_name_says_image_version_and_architecture() {
    let m = Mount::new();
    m.ok("cp $S/a.tar.xz anbox-lxd-bionic_1.7_amd64.tar.xz; test $(readlink anbox-lxd-bionic/@1.7) = 0; stat anbox-lxd-bionic_1.7_amd64.tar.xz");
    assert_eq!(m.json("anbox-lxd-bionic")["architecture"], "x86_64");
    // The same again is the same; an update has another version.
    m.ok("cp $S/a.tar.xz anbox-lxd-bionic_1.7_amd64.tar.xz; cp $S/b.tar anbox-lxd-bionic_1.8_x86_64.tar; test $(readlink anbox-lxd-bionic/@1.8) = 1; test ! -e anbox-lxd-bionic/2");
    m.refused("cp $S/c.tar anbox-lxd-bionic_1.8_amd64.tar", "File exists");
    assert!(m.errors().contains("@1.8 is taken: it is the label of version 1"), "{}", m.errors());
    m.refused("cp $S/c.tar anbox-lxd-bionic_1.9_arm64.tar", "File exists");
    assert!(m.errors().contains("its architecture is x86_64, and this is for aarch64"), "{}", m.errors());
    // An image of the whole name is that image.
    m.ok("mkdir web_2_arm64; cp $S/c.tar web_2_arm64.tar; test -e web_2_arm64/0 -a ! -e web");
    m.ok("cp $S/c.tar .x; mv .x tools_3.1-2_riscv64.tar; test $(readlink tools/@3.1-2) = 0; cp $S/d.tar no_version.tar; test -e no_version/0");
}

#[test]
fn aliases_have_descriptions() {
    let mut m = Mount::new();
    m.ok("cp $S/a.tar web.tar; ln -s web jammy; ln -s web/0 old; setfattr -n user.imgfs.aliases.jammy -v 'Ubuntu 22.04' web; jq '.aliases[1].description=\"the first\"' web/metadata.json > $S/m; cat $S/m > web/metadata.json");
    m.remount();
    let wanted = json!([{"name": "jammy", "version": null, "description": "Ubuntu 22.04"}, {"name": "old", "version": 0, "description": "the first"}]);
    assert_eq!((&m.json("web")["aliases"], &m.json("web/0")["aliases"]), (&wanted, &json!([wanted[1]])));
    m.ok("test \"$(getfattr --only-values -n user.imgfs.aliases.jammy web)\" = 'Ubuntu 22.04'; ln -sfn web jammy; mv jammy lts; setfattr -x user.imgfs.aliases.old web");
    assert_eq!(
        m.json("web")["aliases"][0],
        json!({"name": "lts", "version": null, "description": "Ubuntu 22.04"})
    );
    m.refused(
        "jq '.aliases[0].name=\"x\"' web/metadata.json > $S/m; cat $S/m > web/metadata.json",
        "Invalid argument",
    );
    m.refused("jq '.aliases=[]' web/metadata.json > $S/m; cat $S/m > web/metadata.json", "Invalid argument");
}

/// The catalog's own copy knows labels and leases, too.
#[test]
fn rules_survive_a_lost_catalog() {
    let mut m = Mount::new();
    m.ok("cp $S/a.tar web.tar; cp $S/b.tar web.tar; ln -s 0 web/@1; touch web/0/used_by/app; ln -s web jammy; setfattr -n user.imgfs.aliases.jammy -v x web; setfattr -n user.imgfs.immutable -v true web");
    m.unmount();
    assert_eq!(sh(&m.path("store"), "rm catalog.db*").code, 0);
    m.mount();
    m.ok("test $(readlink web/@1) = 0; test -e web/0/used_by/app; test $(getfattr --only-values -n user.imgfs.aliases.jammy web) = x; not rmdir web/1 2> /dev/null");
    m.fsck();
}
