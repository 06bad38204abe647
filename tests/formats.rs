//! Stores that older versions of imgfs wrote are read as they are.

mod common;

use common::{IMGFS, Mount};

/// A mount of a store that an older version wrote.
fn written_by(store: &str) -> Mount {
    let mut m = Mount::new();
    m.unmount();
    let data = format!("{}/tests/data/{store}.tar.xz", env!("CARGO_MANIFEST_DIR"));
    let ran = common::sh(m.dir.path(), &format!("rm -rf store; tar -xJf {data} && mv {store} store"));
    assert_eq!(ran.code, 0, "{ran:?}");
    m.mount();
    m
}

#[test]
fn a_store_of_format_1_is_read_and_goes_on() {
    let m = written_by("store-1");
    m.ok("test $(sha256sum < web/0/rootfs.tar | cut -c-10) = d8c7caf01d; test $(sha256sum < old/rootfs.tar | cut -c-10) = d8c7caf01d; test $(sha256sum < web/1/rootfs.tar | cut -c-10) = d1ca8b5b66");
    m.ok("test $(cat web/0/rootfs/etc/hard) = one; ls web/1; cp $S/a.tar web/; cmp $S/a.tar web/2/rootfs.tar; grep -q 'imgfs 4' $STORE/format");
    m.fsck();
}

#[test]
fn a_store_of_format_3_with_packs_is_read_and_goes_on() {
    let mut m = written_by("store-3");
    let same = "sha256sum web/[0-9]/rootfs.tar kin/0/rootfs.tar | cut -c-10 | tr '\\n' ' ' | grep -qx '870710db3f e40c6554be 49aa3a54f6 e40c6554be '";
    m.ok(same);
    m.ok(&format!(
        "{IMGFS} repack --store $STORE; grep -q 'imgfs 4' $STORE/format; {same}; head -c 13 -q $STORE/trees/* | grep -q 'ztree 2'"
    ));
    m.remount();
    m.ok(same);
    m.fsck();
}
