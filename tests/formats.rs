//! Stores that older versions of imgfs wrote are read as they are.

use crate::common::{IMGFS, Mount};

/// A mount of a store that an older version wrote.
fn written_by(store: &str) -> Mount {
    let mut m = Mount::new();
    m.unmount();
    let data = format!("{}/tests/data/{store}.tar.xz", env!("CARGO_MANIFEST_DIR"));
    let ran =
        crate::common::sh(m.dir.path(), &format!("rm -rf store; tar -xJf '{data}' && mv {store} store"));
    assert_eq!(ran.code, 0, "{ran:?}");
    m.mount();
    m
}

/// What is there is the same when the catalog is lost, and when the table of blobs is.
#[track_caller]
fn outlives_losses(m: &mut Mount, same: &str) {
    for loss in ["catalog.db*", "blobs"] {
        m.unmount();
        assert_eq!(m.sh(&format!("rm $STORE/{loss}")).code, 0);
        m.mount();
        m.ok(same);
    }
}

#[test]
fn a_store_of_format_1_is_read_and_goes_on() {
    let m = written_by("store-1");
    m.ok("test $(sha256sum < web/0/rootfs.tar | cut -c-10) = d8c7caf01d; test $(sha256sum < old/rootfs.tar | cut -c-10) = d8c7caf01d; test $(sha256sum < web/1/rootfs.tar | cut -c-10) = d1ca8b5b66");
    m.ok("test $(cat web/0/rootfs/etc/hard) = one; ls web/1; cp $S/a.tar web/; cmp $S/a.tar web/2/rootfs.tar; grep -q 'imgfs 7' $STORE/format");
    m.fsck();
}

#[test]
fn a_store_of_format_3_with_packs_is_read_and_goes_on() {
    let mut m = written_by("store-3");
    let same = "sha256sum web/[0-9]/rootfs.tar kin/0/rootfs.tar | cut -c-10 | tr '\\n' ' ' | grep -qx '870710db3f e40c6554be 49aa3a54f6 e40c6554be '";
    m.ok(same);
    m.ok(&format!(
        "{IMGFS} repack --store $STORE; grep -q 'imgfs 7' $STORE/format; {same}; head -c 13 -q $STORE/trees/* | grep -q 'ztree 2'"
    ));
    m.remount();
    m.ok(same);
    m.fsck();
}

#[test]
fn a_store_of_format_4_has_its_links_its_trash_and_its_copies() {
    let mut m = written_by("store-4");
    let same = "sha256sum web/[0-9]/rootfs.tar db/0/rootfs.tar db/0/*.gz .imgfs/trash/*/rootfs.tar .imgfs/trash/*/0/rootfs.tar | cut -c-10 | tr '\\n' ' ' | \
                grep -qx 'b601b9fd82 e87fc00d1c 18d1ce47b4 e8997aa160 18d1ce47b4 b601b9fd82 '; test \"$(readlink prod old web/default default)\" = \"$(printf 'web\\nweb/0\\n1\\ndb')\"";
    m.ok(same);
    m.fsck();
    outlives_losses(&mut m, same);
    m.ok("mv .imgfs/trash/web.2 web/; mv .imgfs/trash/gone .; cp $S/a.tar web.tar; cmp $S/a.tar web/3/rootfs.tar");
    m.fsck();
}

#[test]
fn a_store_of_format_5_has_its_rules_its_labels_and_its_leases() {
    let mut m = written_by("store-5");
    let same = "sha256sum web/[0-9]/rootfs.tar web/@22.04/rootfs.tar .imgfs/trash/*/rootfs.tar | cut -c-10 | tr '\\n' ' ' | \
                grep -qx 'b324dd316c 11e6b87f06 11e6b87f06 473ac1c651 '; test \"$(readlink jammy old web/default default web/1/used_by/stale)\" = \"$(printf 'web\\nweb/0\\n0\\ndb\\n/nowhere')\"; \
                test \"$(cat web/0/used_by/app)\" = 'why not'; test $(getfattr --only-values -n user.imgfs.keep_versions web) = 7; \
                test \"$(getfattr --only-values -n user.imgfs.aliases.jammy web)\" = 'long term'; test \"$(stat -c '%a %u %g' db)\" = '750 1000 100'; test $(stat -c %a .) = 1777";
    m.ok(same);
    m.refused("rmdir web/0", "busy");
    m.refused("rm -r fixed", "Operation not permitted");
    m.fsck();
    outlives_losses(&mut m, same);
    m.ok("mv .imgfs/trash/web.2 web/; mv .imgfs/trash/gone .; cp $S/a.tar web.tar; cmp $S/a.tar web/3/rootfs.tar");
    m.fsck();
}

/// What is bound to a view was named with one colon, as Anbox names its images.
#[test]
fn a_store_of_format_6_names_what_is_bound_to_a_view_anew() {
    let mut m = written_by("store-6");
    let same = "test \"$(ls | tr '\\n' ' ')\" = 'bionic:android11:amd64 db dc1::mine dc1::own default jammy old web '; \
                sha256sum web/[0-9]/rootfs.tar db/0/rootfs.tar dc1::own/0/rootfs.tar bionic*/0/rootfs.tar .imgfs/trash/*/rootfs.tar | cut -c-10 | \
                tr '\\n' ' ' | grep -qx 'e781c32c29 e2608fac55 f7a17481ad f0ddee16d1 e781c32c29 f7a17481ad '; \
                test \"$(readlink dc1::mine jammy old default)\" = \"$(printf 'dc1::own\\nweb\\nweb/0\\ndb')\"; ls db/0/used_by | grep -qx dc1::app7; \
                test \"$(ls .imgfs/trash | tr '\\n' ' ')\" = 'dc1::gone web.2 '; cat .imgfs/config/view.dc1.quota | grep -qx 1G; test -e .st/a.tar";
    m.ok(same);
    m.fsck();
    outlives_losses(&mut m, same);
    // A name with one colon is one like any other now, whatever views there are.
    m.ok("cp $S/a.tar dc1:own.tar");
    m.remount();
    m.ok("cmp $S/a.tar dc1:own/0/rootfs.tar; rm -r dc1:own; rm -r .imgfs/trash/dc1:own");
    m.ok(same);
    m.refused("cp $S/a.tar a::b.tar", "Invalid argument");
    m.refused("mkdir a::b", "Invalid argument");
    m.ok("cp $S/b.tar .x");
    m.refused("mv .x dc1::a::b.tar", "not permitted");
    m.fsck();
}

#[test]
fn what_an_older_format_had_is_kept() {
    let mut m = written_by("store-3");
    m.ok("test $(stat -c %s $STORE/catalog.format-3) -gt 4096; test ! -e $STORE/catalog.format-4");
    // The way back: the old number, the old catalog.
    m.unmount();
    let ran = m.sh(
        "cd $STORE; echo 'imgfs 3' > format; rm catalog.db* catalog.rows; mv catalog.format-3 catalog.db",
    );
    assert_eq!(ran.code, 0, "{ran:?}");
    m.mount();
    m.ok("sha256sum < kin/0/rootfs.tar | grep -q ^e40c6554be");
    m.fsck();
}
