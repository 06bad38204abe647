//! mkdir .imgfs/views/dc1, ln -s ../../../web into it, imgfs mount -o view=dc1: what a view shows, what it
//! may change, and that nothing of the rest can be seen in it.

use std::path::PathBuf;

use crate::common::{IMGFS, Mount, Ran, User, as_root, may, may_not, sh, shared};

/// A view's mount beside that of its store.
struct ViewMount {
    point: PathBuf,
}

impl ViewMount {
    fn new(m: &Mount, view: &str, options: &str) -> ViewMount {
        let point = m.path(&format!("view-{view}"));
        // There may be a dead mount on it.
        let _ = std::fs::create_dir_all(&point);
        let ran = mount(m, &format!("-o view={view}{options}"), &format!("view-{view}"));
        assert_eq!(ran.code, 0, "{ran:?}");
        ViewMount { point }
    }

    fn sh(&self, m: &Mount, script: &str) -> Ran {
        let (here, there) = (self.point.display(), m.mnt());
        m.sh(&format!(
            "cd {here}; MNT={here}; ALL={}; set -eE; trap 'echo \"failed: $BASH_COMMAND\" >&2' ERR; {script}",
            there.display()
        ))
    }

    #[track_caller]
    fn ok(&self, m: &Mount, script: &str) -> String {
        let ran = self.sh(m, script);
        let errors = std::fs::read_to_string(self.point.join(".imgfs/errors")).unwrap_or_default();
        assert_eq!(ran.code, 0, "`{script}`: {}{}\nerrors: {errors}", ran.out, ran.err);
        ran.out
    }

    /// A script that must fail, and say so.
    #[track_caller]
    fn refused(&self, m: &Mount, script: &str, wanted: &str) {
        let ran = self.sh(m, script);
        assert_ne!(ran.code, 0, "`{script}` succeeded");
        assert!(ran.err.contains(wanted), "`{script}` said {:?}, not {wanted:?}", ran.err);
    }
}

impl Drop for ViewMount {
    fn drop(&mut self) {
        let mut command = std::process::Command::new(IMGFS);
        command.args(["umount", "--lazy"]).arg(&self.point);
        let _ = crate::common::limit::output(command, &self.point);
    }
}

fn mount(m: &Mount, options: &str, point: &str) -> Ran {
    sh(&m.path("."), &format!("{IMGFS} mount {options} --store store {point}"))
}

/// A store with images web and db, and a view dc1 that has web.
fn with_view() -> (Mount, ViewMount) {
    let m = Mount::new();
    m.ok("cp $S/a.tar web.tar; cp $S/b.tar db.tar; mkdir .imgfs/views/dc1; ln -s ../../../web .imgfs/views/dc1/");
    let view = ViewMount::new(&m, "dc1", "");
    (m, view)
}

#[test]
fn a_view_shows_what_is_attached_and_no_more() {
    let (m, view) = with_view();
    m.ok("mv db payroll");
    assert_eq!(
        view.ok(&m, "ls; readlink default; cat web/0/rootfs/etc/motd | sha256sum"),
        m.ok("echo default; echo web; echo web; cat web/0/rootfs/etc/motd | sha256sum")
    );
    m.ok("test $(readlink .imgfs/views/dc1/web) = ../../../web; test -d .imgfs/views/dc1/web/0; ls .imgfs/views | grep -qx dc1");
    // By no name, id, digest, list or number of bytes.
    let ids = m.ok("cat payroll/.id payroll/0/.id; sha256sum < $S/b.tar | cut -c-64");
    for id in ids.lines() {
        view.refused(&m, &format!("ls .imgfs/by-id/{id} .imgfs/by-digest/{id}"), "No such file");
    }
    view.refused(&m, "ls payroll", "No such file");
    view.refused(&m, "ls .imgfs/views", "No such file");
    view.refused(&m, "ls .imgfs/config", "No such file");
    m.ok("cp $S/not.tar jumble.tar 2> /dev/null && false; rm -r payroll; mkdir payroll2; ln -s web otherwise; touch web/0/used_by/applicant; setfattr -n user.imgfs.tags -v t payroll2");
    let seen = view.ok(
        &m,
        "ls -R --ignore=rootfs .; cat .imgfs/status.json .imgfs/log .imgfs/errors; ls .imgfs/jobs .imgfs/failed .imgfs/trash; \
         cat web/metadata.json web/0/metadata.json; getfattr -d web",
    );
    for other in ["payroll", "jumble", "otherwise", "applicant"] {
        assert!(!seen.contains(other), "{other} in {seen}");
    }
    view.refused(&m, "ln -s payroll x", "No such file");
    assert!(view.ok(&m, "cat .imgfs/status.json").contains("\"images\": 1,"));
    // Content that others have, too, is not told by what it costs here.
    let cost = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap()["unique_bytes"].clone();
    m.ok("cp web/0/rootfs.tar copy.tar");
    assert_eq!(cost(&m.ok("cat web/0/metadata.json")), 0);
    assert_ne!(cost(&view.ok(&m, "cat web/0/metadata.json")), 0);
    // Detached, it is gone at once; and comes back.
    m.ok("mkdir .imgfs/views/dc2; ln -s ../../../copy .imgfs/views/dc1/copy; ln -sfn ../../../copy .imgfs/views/dc1/copy");
    view.ok(&m, "test -d copy; test $(ls | grep -c .) = 3");
    m.refused("rm .imgfs/views/dc1/web", "busy");
    view.ok(&m, "ln -sfn copy default");
    m.ok("test $(readlink default) = web; rm .imgfs/views/dc1/web");
    view.ok(
        &m,
        "! test -e web; test $(readlink default) = copy; ls .imgfs/by/type/container | grep -qx copy",
    );
    m.refused("rmdir .imgfs/views/dc1", "busy");
    m.ok("! rmdir .imgfs/views/none 2> /dev/null");
    m.ok("rmdir .imgfs/views/dc2");
    m.fsck();
}

#[test]
fn what_is_attached_is_not_changed_through_the_view() {
    let (m, view) = with_view();
    m.ok("cp $S/c.tar web/; ln -s 0 web/@1.0; touch $S/x");
    for (script, why) in [
        ("cp $S/d.tar web.tar", "not permitted"),
        ("cp $S/d.tar web/", "not permitted"),
        ("rmdir web", "not permitted"),
        ("rmdir web/1", "not permitted"),
        ("rm -r web", "not permitted"),
        ("mv web www", "not permitted"),
        ("ln -sfn 0 web/default", "not permitted"),
        ("rm web/@1.0", "not permitted"),
        ("ln -s 0 web/@2.0", "not permitted"),
        ("chmod 700 web", "not permitted"),
        ("chown 7 web", "not permitted"),
        ("chattr +i web", "not permitted"),
        ("setfattr -n user.imgfs.description -v x web", "not permitted"),
        (
            "sed s/\\\"description\\\":.*/\\\"description\\\":\\\"x\\\",/ web/metadata.json > $S/x; cat $S/x > web/metadata.json",
            "not permitted",
        ),
        ("mkdir web/.new", "not permitted"),
        ("rm web.tar", "not permitted"),
    ] {
        view.refused(&m, script, why);
    }
    m.ok("test $(ls web | grep -cx '[0-9]*') = 2; test $(readlink web/default) = latest; test $(stat -c %a web) = 755");
    // It may be used from there, by a name of the view's own; the other users are not told, and hold it as
    // well.
    m.ok("touch web/1/used_by/app");
    view.ok(&m, "touch web/1/used_by/app; echo mine > web/1/used_by/db; ls web/1/used_by | tr '\\n' ' ' | grep -qx 'app db '");
    m.ok("ls web/1/used_by | tr '\\n' ' ' | grep -qx 'app dc1::app dc1::db '");
    m.refused("rmdir web/1", "busy");
    m.refused("rm .imgfs/views/dc1/web", "busy");
    m.ok("rm web/1/used_by/app");
    view.ok(&m, "rm web/1/used_by/*; test -z \"$(ls web/1/used_by)\"");
    m.ok("rmdir web/1");
    // An alias of the view's own.
    view.ok(&m, "ln -s web lts; test $(readlink lts) = web; grep -q lts web/metadata.json");
    m.ok("test $(readlink dc1::lts) = web");
    view.ok(&m, "rm lts");
    m.fsck();
}

#[test]
fn a_view_has_images_of_its_own() {
    let (mut m, view) = with_view();
    // Names of others are free here, and what is made here is bound to the view.
    view.ok(&m, "cp $S/b.tar db.tar; cp $S/c.tar db/; test $(ls db | grep -cx '[0-9]*') = 2; cmp db/1/rootfs.tar $S/c.tar; mkdir empty; cat db.tar > /dev/null");
    m.ok("cmp dc1::db/1/rootfs.tar $S/c.tar; test $(ls db | grep -cx '[0-9]*') = 1; test -d dc1::empty; test $(readlink .imgfs/views/dc1/db) = ../../../dc1::db");
    view.ok(&m, "ln -sfn 0 db/default; ln -s 1 db/@22.04; ln -s db/@22.04 jammy; test $(readlink jammy) = db/@22.04; mv db www; test $(readlink jammy) = www/@22.04");
    m.ok("test $(readlink dc1::www/default) = 0; test $(readlink dc1::jammy) = dc1::www/@22.04");
    view.ok(
        &m,
        "ln -sfn www default; ln -sfn ../../www .imgfs/defaults/container; grep -q '\"is_default\": true' www/metadata.json",
    );
    m.ok("test $(readlink default) = web; grep -q '\"is_default\": false' dc1::www/metadata.json; test $(readlink .imgfs/defaults/container) = ../../web");
    view.refused(&m, "rmdir www", "busy");
    m.refused("rmdir dc1::www", "busy");
    // The trash of each.
    view.ok(&m, "rmdir www/1; ls .imgfs/trash | grep -qx www.1; mv .imgfs/trash/www.1 www/; rmdir empty; ls .imgfs/trash | grep -qx empty");
    m.ok("rm -r db; ls .imgfs/trash | tr '\\n' ' ' | grep -qx 'db dc1::empty '");
    view.refused(&m, "ls .imgfs/trash/db", "No such file");
    view.ok(
        &m,
        "mv .imgfs/trash/empty empty2; rm -r empty2; cut -f4 .imgfs/log | grep -qx empty2; ! cut -f4 .imgfs/log | grep -q dc1",
    );
    // A staging directory is the view's alone.
    view.ok(&m, "mkdir .new; cp $S/d.tar .new/");
    m.ok("! test -e .new");
    view.ok(&m, "mv .new staged; cmp staged/0/rootfs.tar $S/d.tar");
    // By its name an image is bound, to one view.
    m.ok("mkdir .imgfs/views/dc2; mv dc1::staged dc2::staged; ls .imgfs/views/dc2 | grep -qx staged");
    view.ok(&m, "! test -e staged");
    m.refused("ln -s ../../../dc2::staged .imgfs/views/dc1/staged", "busy");
    m.refused("mv web dc2::web", "busy");
    m.refused("rm .imgfs/views/dc2/staged", "not permitted");
    m.ok("! mkdir .imgfs/views/dc2 2> /dev/null");
    // One colon says nothing of views: it is in Anbox's names.
    m.ok("mkdir ubuntu:24.04 .imgfs/views/ubuntu; test -z \"$(ls .imgfs/views/ubuntu)\"; rmdir .imgfs/views/ubuntu");
    m.refused("mkdir .imgfs/views/a:b", "Invalid");
    m.refused("rmdir .imgfs/views/dc2", "busy");
    m.ok("mv dc2::staged staged; rmdir .imgfs/views/dc2");
    // Who may make images in it is its own.
    view.ok(&m, "chmod 1777 .; test $(stat -c %a .) = 1777");
    m.ok("test $(stat -c %a .) = 755");
    // All of it is there after a restart, and when catalog.db is lost.
    let before = view.ok(&m, "ls -l | tr -s ' ' | cut -d' ' -f9-; cat .imgfs/log");
    for loss in ["true", "rm $STORE/catalog.db*"] {
        drop(ViewMount { point: view.point.clone() });
        m.unmount();
        assert_eq!(m.sh(loss).code, 0);
        m.mount();
        let view = ViewMount::new(&m, "dc1", "");
        assert_eq!(view.ok(&m, "ls -l | tr -s ' ' | cut -d' ' -f9-; cat .imgfs/log"), before);
        view.ok(&m, "test $(stat -c %a .) = 1777; test $(readlink default) = www");
        std::mem::forget(view);
    }
    drop(view);
    m.fsck();
}

#[test]
fn changes_of_one_mount_are_seen_in_the_other_at_once() {
    let (m, view) = with_view();
    m.ok("ls -lR . > /dev/null; cat web/0/rootfs/etc/motd db/0/rootfs/etc/motd > /dev/null");
    view.ok(&m, "ls -lR . > /dev/null");
    for _ in 0..20 {
        view.ok(
            &m,
            "cp $S/b.tar own.tar; cmp $ALL/dc1::own/0/rootfs.tar $S/b.tar; cp $S/c.tar own/; test $(readlink $ALL/dc1::own/latest) = 1; \
             rmdir own/0; ! test -e $ALL/dc1::own/0; chmod 700 own; test $(stat -c %a $ALL/dc1::own) = 700; \
             mv own mine; ! test -e $ALL/dc1::own; test $(readlink $ALL/.imgfs/views/dc1/mine) = ../../../dc1::mine; \
             rm -r mine; ! test -e $ALL/dc1::mine; rm -r .imgfs/trash/mine",
        );
        m.ok("test -d web/0; cp $S/c.tar web/; mv web www; mv db web");
        view.ok(&m, "! test -e web; test $(readlink www/latest) = 1; test $(readlink default) = www; test $(stat -c %h www) = 4");
        m.ok("mv web db; mv www web; rmdir web/0; chmod 750 web");
        view.ok(&m, "test $(stat -c %a web) = 550; ! test -e web/0");
        m.ok("rm -r web/1 2> /dev/null && false; touch .imgfs/x 2> /dev/null && false; mv .imgfs/trash/web.0 web/; rmdir web/1; rm -r .imgfs/trash/*; chmod 755 web");
        view.ok(&m, "test -d web/0; ! test -e web/1");
        m.ok("rmdir .imgfs/trash/* 2> /dev/null || true; mv web t; cp $S/a.tar web.tar; ln -s ../../../web .imgfs/views/dc1/web");
        view.ok(&m, "ln -sfn web default; test -d t");
        m.ok("rm .imgfs/views/dc1/t; ln -sfn web default; rm -r t");
        view.ok(&m, "! test -e t; test $(readlink web/latest) = 0");
    }
    m.fsck();
}

#[test]
fn a_view_has_a_quota_that_df_shows() {
    let (m, view) = with_view();
    m.refused("echo 1M > .imgfs/config/view.none.quota", "No such file");
    m.ok("echo 120K > .imgfs/config/view.dc1.quota; echo 2 > .imgfs/config/view.dc1.quota_images; cat .imgfs/config/view.dc1.quota | grep -qx 120K");
    view.ok(
        &m,
        "df --output=size -k . | tail -1 | grep -qx ' *120'; test $(df --output=used -k . | tail -1) = 0",
    );
    m.ok("test $(df --output=size -k . | tail -1) -gt 120");
    // What is attached is not counted.
    view.ok(&m, "head -c 60000 /dev/urandom > $S/noise; tar -C $S -cf $S/n.tar noise; cp $S/n.tar one.tar; test $(df --output=used -k . | tail -1) -ge 58");
    view.ok(&m, "grep -q '\"quota_bytes\": 122880' .imgfs/status.json; cp $S/n.tar two.tar; test $(df --output=used -k . | tail -1) -lt 80");
    view.refused(&m, "mkdir three", "quota");
    view.ok(&m, "grep -q 'quota of view dc1: 2 images' .imgfs/errors; rmdir two");
    view.refused(&m, "mv .imgfs/trash/two two; mkdir three", "quota");
    view.ok(&m, "rmdir two; head -c 70000 /dev/urandom > $S/noise; tar -C $S -cf $S/n2.tar noise");
    view.refused(&m, "cp $S/n2.tar one/", "quota");
    // Nor by way of the whole store.
    m.refused("cp $S/n2.tar dc1::one/", "quota");
    m.ok("cp $S/n2.tar other.tar");
    m.refused("mv other dc1::other", "quota");
    m.ok("echo 1M > .imgfs/config/view.dc1.quota; mv other dc1::other; mv dc1::other dc1::another");
    m.refused("mkdir dc1::third", "quota");
    m.ok("rm .imgfs/config/view.dc1.quota_images; mkdir dc1::third");
    view.ok(&m, "rm -r one another third");
    m.ok("rm .imgfs/views/dc1/web");
    drop(ViewMount { point: view.point.clone() });
    m.ok(
        "for n in $(seq 50); do rmdir .imgfs/views/dc1 2> /dev/null && break; sleep 0.1; done; ! ls .imgfs/config | grep -q view",
    );
    m.fsck();
}

#[test]
fn a_manifests_uuid_is_unique_in_what_a_view_shows() {
    let (m, view) = with_view();
    let put = |name: &str| {
        format!(
            "mkdir .n; cp $S/a.tar .n/; jq -n --arg s $(sha1sum < $S/a.tar | cut -c-40) --argjson z $(stat -c %s $S/a.tar) '{{v:2,uuid:\"d1b5e2a0-8c56-4c5c-9b6d-0e6b1b0a7a11\",name:\"n\",version:\"1\",type:\"zone-dataset\",os:\"linux\",files:[{{sha1:$s,size:$z,compression:\"none\"}}]}}' > .n/a.imgmanifest; mv -T .n {name}"
        )
    };
    m.ok(&put("zone"));
    // That others have it is not told.
    view.ok(&m, &put("zone"));
    view.refused(&m, &put("again"), "again");
    view.ok(&m, "grep -q 'it is the uuid of zone/0' .imgfs/errors; ! grep -q dc1 .imgfs/errors");
}

#[test]
fn mounts_of_one_store_come_and_go() {
    let mut m = Mount::new();
    m.ok("cp $S/a.tar web.tar; mkdir .imgfs/views/dc1; ln -s ../../../web .imgfs/views/dc1/");
    let daemon = m.daemon();
    std::fs::create_dir_all(m.path("second")).unwrap();
    let refused = |ran: Ran, why: &str| assert!(ran.code == 1 && ran.err.contains(why), "{ran:?}");
    refused(mount(&m, "-o view=none", "second"), "no view none");
    refused(mount(&m, "-o view=", "second"), "the name of a view");
    refused(mount(&m, "-o view=dc1,trash=1h", "second"), "is its daemon's");
    refused(mount(&m, "", "second"), &daemon.to_string());
    // The whole store goes, and comes back; the view stays, and what it shows.
    let view = ViewMount::new(&m, "dc1", "");
    refused(mount(&m, "", "second"), &daemon.to_string());
    m.refused("rmdir .imgfs/views/dc1", "busy");
    m.unmount();
    view.ok(&m, "cat web/0/rootfs/etc/motd; cp $S/b.tar own.tar; echo x > web/0/used_by/x");
    m.mount();
    assert_eq!(m.daemon(), daemon);
    m.ok("cmp dc1::own/0/rootfs.tar $S/b.tar; test -e web/0/used_by/dc1::x; cp $S/c.tar web/");
    view.ok(&m, "test $(readlink web/latest) = 1");
    // With the last mount the daemon ends.
    m.unmount();
    let ended = sh(
        &m.path("."),
        &format!(
            "{IMGFS} umount view-dc1 && {IMGFS} fsck --store store && for n in $(seq 50); do test -e /proc/{daemon} || exit 0; sleep 0.1; done; exit 9"
        ),
    );
    assert_eq!(ended.code, 0, "{ended:?}");
    // A view alone, and kill -9: both can be mounted again.
    let view = ViewMount::new(&m, "dc1", "");
    m.mount();
    view.ok(&m, "cp $S/d.tar own/");
    m.kill();
    let view = ViewMount::new(&m, "dc1", "");
    m.mount();
    view.ok(&m, "cmp own/1/rootfs.tar $S/d.tar");
    m.ok("cmp dc1::own/1/rootfs.tar $S/d.tar");
    // SIGTERM ends both.
    let daemon = m.daemon();
    let ended = sh(
        &m.path("."),
        &format!(
            "kill {daemon}; for n in $(seq 100); do test -e /proc/{daemon} || break; sleep 0.1; done; ! grep -q $PWD /proc/mounts"
        ),
    );
    assert_eq!(ended.code, 0, "{ended:?}");
    m.mount();
    m.fsck();
}

/// Each of these lost something, or stopped the store, when a view was younger.
#[test]
fn what_is_done_in_a_view_is_seen_through_by_the_whole_store() {
    let (m, view) = with_view();
    // Aliases of the whole store go with what they lead to.
    view.ok(&m, "cp $S/c.tar x.tar; cp $S/d.tar x/");
    m.ok("ln -s dc1::x prod; ln -s dc1::x/0 old");
    view.ok(&m, "rmdir x/0");
    m.ok("! test -L old; ln -s dc1::x/1 old");
    view.ok(&m, "rmdir x; rmdir .imgfs/trash/x");
    m.ok("! test -L prod; ! test -L old; mkdir other old; rmdir other old; grep -q '\"read_only\": null' .imgfs/status.json");
    // What one mount has deleted, a walker in another does not purge.
    view.ok(
        &m,
        "cp $S/b.tar own.tar; cp $S/c.tar own/; (cd own; rmdir $ALL/dc1::own; ! rm .id 2> /dev/null); mv .imgfs/trash/own .",
    );
    m.ok(&format!(
        "(cd dc1::own/0; rmdir {}/own/0; ! rm .id 2> /dev/null); mv .imgfs/trash/dc1::own.0 dc1::own/",
        view.point.display()
    ));
    // What is default in the whole store stays, whoever asks.
    m.ok("ln -sfn dc1::own default");
    view.refused(&m, "rmdir own", "busy");
    view.refused(&m, "setfattr -n user.imgfs.status -v deleted own", "busy");
    m.ok("ln -sfn web default");
    // Content that only a mount knew which is gone is given back.
    view.ok(&m, "head -c 3000000 /dev/urandom > $S/noise; tar -C $S -cf $S/n.tar noise; cp $S/n.tar big.tar; cat big/0/rootfs/noise > /dev/null");
    let umounted = sh(&m.path("."), &format!("{IMGFS} umount view-dc1"));
    assert_eq!(umounted.code, 0, "{umounted:?}");
    m.ok("rmdir dc1::big; rm -r .imgfs/trash/*");
    let freed = sh(
        &m.path("."),
        &format!(
            "for n in $(seq 50); do {IMGFS} gc --store store > /dev/null; test $(du -s store | cut -f1) -lt 2500 && exit 0; sleep 0.1; done; du -s store; exit 1"
        ),
    );
    assert_eq!(freed.code, 0, "{freed:?}");
    m.fsck();
}

#[test]
fn one_more_mount_takes_nothing_from_those_that_are_there() {
    if !as_root() {
        return;
    }
    let mut m = Mount::new();
    m.ok("cp $S/a.tar web.tar; mkdir .imgfs/views/dc1; ln -s ../../../web .imgfs/views/dc1/; ls -lR . > /dev/null");
    // What is mounted in it.
    m.ok("mount -t tmpfs none web/0/rootfs/etc; echo precious > web/0/rootfs/etc/file; ls -l web/0 > /dev/null");
    let view = ViewMount::new(&m, "dc1", "");
    m.ok("grep -q precious web/0/rootfs/etc/file; umount web/0/rootfs/etc");
    // One that ends late does not end another that was made in its place.
    view.ok(&m, "exec 5< web/0/rootfs/etc/motd; umount -l $MNT; cd /");
    let held = std::fs::File::open(m.mnt().join("web/0/rootfs/etc/motd")).unwrap();
    drop(held);
    let again = ViewMount::new(&m, "dc1", "");
    let late = sh(&m.path("."), "ln -s mnt link");
    assert_eq!(late.code, 0);
    let refused = mount(&m, "-o view=dc1", "link");
    assert!(refused.code == 1 && refused.err.contains("is mounted there"), "{refused:?}");
    m.unmount();
    again.ok(&m, "cat web/0/rootfs/etc/motd");
    std::mem::forget(view);
    for _ in 0..10 {
        // The daemon that ends takes no more mounts.
        drop(ViewMount { point: again.point.clone() });
        let back = ViewMount::new(&m, "dc1", "");
        back.ok(&m, "ls web/0 > /dev/null");
        std::mem::forget(back);
    }
    drop(again);
    m.mount();
    m.fsck();
}

/// Trees are mounts on a connection of their own, which outlives that of the whole store for who stands in
/// one.
#[test]
fn who_stands_in_a_tree_when_the_whole_store_is_unmounted_goes_on() {
    if !as_root() {
        return;
    }
    let m = Mount::with(&["trees=mounted"]);
    m.ok("cp $S/a.tar web.tar; mkdir .imgfs/views/dc1; ln -s ../../../web .imgfs/views/dc1/");
    let view = ViewMount::new(&m, "dc1", "");
    let script = format!(
        "head -c 3000000 /dev/urandom > $S/noise; tar -C $S -cf $S/n.tar noise; cp $S/n.tar own.tar; \
         cd $ALL/dc1::own/0/rootfs; mountpoint -q .; stat noise > /dev/null; umount -l $ALL; sleep 0.5; \
         rmdir $MNT/own; rm -r $MNT/.imgfs/trash/own; {IMGFS} gc --store $STORE; cmp noise $S/noise"
    );
    view.ok(&m, &script);
    m.fsck();
}

#[test]
fn names_in_a_view_are_names_and_nobody_elses() {
    let (m, view) = with_view();
    for bad in [
        "mkdir dc1::",
        "mkdir dc1::default",
        "mkdir dc1::.x",
        "ln -s web dc1::@x",
        "cp $S/a.tar dc1::.tar",
        "mkdir .imgfs/views/a,b",
        "mkdir .imgfs/views/$(printf %0101d 1)",
    ] {
        m.refused(bad, "Invalid argument");
    }
    // An image and what a view that has it attached has of its own.
    view.ok(&m, "ln -s web lts; mkdir own");
    for taken in ["mv -T web lts", "mv -T web own"] {
        m.refused(taken, "cannot");
        m.ok("test -d web/0; grep -q 'has one of its own of that name' .imgfs/errors");
    }
    for taken in ["mkdir dc1::web", "cp $S/b.tar dc1::web.tar"] {
        m.refused(taken, "exists");
    }
    // Binding what is attached is no more attaching it; freeing it takes the view's aliases along.
    m.ok("mv web dc1::web");
    m.refused("rm .imgfs/views/dc1/web", "not permitted");
    view.ok(&m, "ln -sfn own default; test $(readlink lts) = web");
    m.ok(
        "mv dc1::web web; ! test -L dc1::lts; ! test -e .imgfs/views/dc1/web; mkdir dc1::lts; rmdir dc1::lts",
    );
    // The default of a view is not freed while there are others; with the last it goes, and the next is it.
    m.ok("ln -s ../../../web .imgfs/views/dc1/web");
    m.refused("mv dc1::own own", "busy");
    view.ok(&m, "ln -sfn web default");
    m.ok("mv dc1::own own; rm .imgfs/views/dc1/web; mv own dc1::own");
    view.ok(&m, "test $(readlink default) = own");
    // Aliases of a view lead to what it shows.
    m.refused("ln -s db dc1::pay", "No such file");
    m.ok("mkdir .imgfs/views/dc2; mkdir dc2::x; ln -s dc2::x dc2::al");
    m.refused("ln -s dc2::x dc1::al", "No such file");
    // Of another view nothing is said, whatever a name here looks like.
    m.ok("echo 1 > .imgfs/config/view.dc2.quota_images");
    view.ok(&m, "mkdir z");
    for other in ["dc2::zz", "nobody::zz"] {
        view.refused(&m, &format!("mv z {other}"), "not permitted");
        view.ok(&m, "head -n 1 .imgfs/errors | grep -q 'there is no such view'");
    }
    view.ok(&m, "rmdir z");
    // The trash of a view that is gone is not that of the next of its name.
    m.ok("rmdir dc2::x; rmdir .imgfs/views/dc2; mkdir .imgfs/views/dc2");
    let second = ViewMount::new(&m, "dc2", "");
    second.ok(&m, "test -z \"$(ls .imgfs/trash)\"");
    // How others do something, and what they are refused, may have names of theirs in it.
    m.ok("cp $S/a.tar dc1::own.tar; mv dc1::own dc1::other; mv dc1::other payroll; mv payroll dc1::own");
    m.refused("ln -s missing-payroll dc1::l", "No such file");
    let told = view.ok(&m, "cat .imgfs/log .imgfs/errors");
    assert!(!told.contains("payroll") && told.contains("own/0\tby who has the store\n"), "{told}");
    // Versions in the trash move along.
    m.ok("cp $S/b.tar dc1::own/; rmdir dc1::own/0; ls .imgfs/trash | grep -qx dc1::own.0; mv dc1::own dc2::own");
    second.ok(&m, "mv .imgfs/trash/own.0 own/; cmp own/0/rootfs.tar $S/a.tar");
    // Leases of a view are made in it.
    m.refused("touch web/0/used_by/dc1::evil", "not permitted");
    m.fsck();
}

#[test]
fn mounts_of_the_same_view_agree() {
    let (m, view) = with_view();
    std::fs::create_dir(m.path("twin")).unwrap();
    let ran = mount(&m, "-o view=dc1", "twin");
    assert_eq!(ran.code, 0, "{ran:?}");
    let twin = ViewMount { point: m.path("twin") };
    view.ok(&m, "mkdir .n; cp $S/a.tar .n/");
    twin.ok(&m, "ls .n | grep -qx a.tar; mv .n pub");
    view.ok(&m, "! test -e .n; cmp pub/0/rootfs.tar $S/a.tar");
    // Receipts: rsync sends what another mount has replaced.
    view.ok(&m, "touch -d @1 $S/a.tar; touch -d @2 $S/b.tar; rsync -a $S/a.tar w.tar");
    twin.ok(&m, "rsync -a $S/b.tar w.tar");
    view.ok(&m, "cmp w.tar $S/b.tar; rsync -a $S/a.tar w.tar; cmp w/latest/rootfs.tar $S/a.tar");
    // A lease leads out of all mounts of the store.
    view.refused(&m, "ln -s $ALL/web/0/rootfs.tar web/0/used_by/x", "Invalid");
    // In the foreground beside a daemon: as long as the mount is there.
    std::fs::create_dir(m.path("third")).unwrap();
    let script = format!(
        "{IMGFS} mount -f -o view=dc1 --store store third & for n in $(seq 100); do mountpoint -q third && break; sleep 0.1; done; kill %1 && wait %1 && ! mountpoint -q third"
    );
    let ran = sh(&m.path("."), &script);
    assert_eq!(ran.code, 0, "{ran:?}");
}

/// Owner of an image; somebody else; an admin.
const ANNA: User = (1001, 1001, "");
const BERT: User = (1002, 1002, "");
const ADMIN: User = (1004, 1004, "2000");

#[test]
fn a_view_is_no_way_around_permissions() {
    let Some(m) = shared(&["admin_group=2000"]) else { return };
    m.ok("chmod 1777 .");
    may(&m, ANNA, "umask 077; cp $S/a.tar secret.tar; umask 022; cp $S/b.tar open.tar");
    // Which images a view has, admins say.
    may_not(&m, ANNA, "mkdir .imgfs/views/dc1", "Permission denied");
    may(&m, ADMIN, "mkdir .imgfs/views/dc1; ln -s ../../../secret ../../../open .imgfs/views/dc1/");
    may_not(&m, ANNA, "rm .imgfs/views/dc1/open", "Permission denied");
    for bound in [
        "mkdir dc1::x",
        "cp $S/a.tar dc1::x.tar",
        "mv open dc1::open",
        "ln -s open dc1::x",
        "mkdir .n; cp $S/a.tar .n/; mv .n dc1::x",
    ] {
        may_not(&m, ANNA, bound, "ermission denied");
    }
    may(&m, ANNA, "rm -r .n");
    may_not(&m, BERT, "ls .imgfs/views/dc1 | grep -q secret", "");
    let view = ViewMount::new(&m, "dc1", ",allow_other");
    let there = view.point.display().to_string();
    may(
        &m,
        BERT,
        &format!("cd {there}; cat open/0/rootfs/etc/motd; touch open/0/used_by/b; rm open/0/used_by/b"),
    );
    may_not(&m, BERT, &format!("cd {there}; ls secret"), "Permission denied");
    let id = m.ok("cat secret/0/.id");
    may_not(&m, BERT, &format!("cd {there}; ls .imgfs/by-id/{id}"), "No such file");
    may(&m, ANNA, &format!("cd {there}; cat secret/0/rootfs/etc/motd"));
    // Who owns it changes it where it is at home.
    may_not(&m, ANNA, &format!("cd {there}; cp $S/c.tar open/"), "Permission denied");
    may_not(&m, ANNA, &format!("cd {there}; chmod 755 secret"), "not permitted");
    may_not(&m, ANNA, &format!("cd {there}; mkdir own"), "Permission denied");
    view.ok(&m, "chmod 1777 .");
    may(&m, ANNA, &format!("cd {there}; cp $S/c.tar own.tar; cp $S/d.tar own/"));
    may_not(&m, BERT, &format!("cd {there}; rm -r own"), "Permission denied");
    may_not(&m, BERT, &format!("cd {there}; cp $S/a.tar own.tar"), "Permission denied");
    may(&m, ANNA, "cp $S/a.tar dc1::own/; cp $S/b.tar dc1::own.tar");
    may_not(&m, ANNA, "mv dc1::own own", "Permission denied");
    view.ok(&m, "ln -s own al");
    may(&m, ANNA, "ln -s secret mine");
    may_not(
        &m,
        ANNA,
        "python3 -c 'import ctypes; l=ctypes.CDLL(None,use_errno=True); e=l.renameat2(-100,b\"mine\",-100,b\"dc1::al\",2); exit(\"denied\" if e else 0)'",
        "denied",
    );
    may_not(&m, ANNA, "mv dc1::al x", "Permission denied");
    m.ok("test $(stat -c %u dc1::own) = 1001");
}
