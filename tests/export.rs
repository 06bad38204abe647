//! What came in compressed can be had compressed: kept, made again, or exported.

use crate::common::limit::wait_until_seen;
use crate::common::{IMGFS, Mount};

/// Waits until the background job has looked at every kept upload.
fn proved(m: &Mount, path: &str) -> String {
    let begun = std::time::Instant::now();
    wait_until_seen("what can be made again", || {
        let ended = m
            .sh("grep -l '\"kind\": \"prove\"' .imgfs/jobs/*.json 2>/dev/null | xargs -r grep -L '\"ended_at\": null' | wc -l")
            .out;
        let kept = m.json(path)["upload"]["kept"].as_str().unwrap_or_default().to_owned();
        let is_told = kept == "made again" || (ended.trim() != "0" && begun.elapsed().as_secs() > 25);
        if is_told { Ok(kept) } else { Err(m.ok("cat .imgfs/jobs/*.json")) }
    })
}

#[test]
fn a_kept_upload_reads_back_bit_for_bit() {
    let mut m = Mount::with(&["keep_upload=always"]);
    for suffix in ["gz", "xz", "bz2", "zst", "lz4"] {
        m.ok(&format!("cp $S/a.tar.{suffix} {suffix}.tar.{suffix}; ls {suffix}/0 | grep -qx {suffix}.tar.{suffix}; cmp $S/a.tar.{suffix} {suffix}/0/{suffix}.tar.{suffix}; cmp $S/a.tar.{suffix} {suffix}.tar.{suffix}; cmp $S/a.tar {suffix}/0/rootfs.tar"));
    }
    m.ok("cp $S/a.tar plain.tar; test $(ls plain/0 | wc -l) = 4; test $(jq -r .upload.kept gz/0/metadata.json) = yes; test $(jq -r .upload.kept plain/0/metadata.json) = no");
    m.ok("dd if=gz/0/gz.tar.gz bs=1 skip=70000 count=5000 status=none | cmp - <(dd if=$S/a.tar.gz bs=1 skip=70000 count=5000 status=none); cp $S/a.tar.gz gz/rootfs.tar; test ! -e gz/1; cp $S/b.tar.gz gz/ 2>/dev/null || gzip -c $S/b.tar > gz/rootfs.tar.gz; ls gz/1");
    // The image's own wish counts over the mount's.
    m.ok("setfattr -n user.imgfs.keep_upload -v never xz; xz -c $S/b.tar > xz/b.tar.xz; test ! -e xz/1/b.tar.xz; jq '.keep_upload = null' xz/metadata.json > xz/.t; mv xz/.t xz/metadata.json; xz -c $S/c.tar > xz/c.tar.xz; xz -dc xz/2/c.tar.xz | cmp - $S/c.tar");
    m.refused("setfattr -n user.imgfs.keep_upload -v banana xz", "Invalid argument");
    m.remount();
    m.ok("cmp $S/a.tar.bz2 bz2/0/bz2.tar.bz2; exec 5< zst/0/zst.tar.zst; rm -r zst; rm -r .imgfs/trash/zst; cmp $S/a.tar.zst - <&5");
    m.fsck();
    m.ok("for i in gz xz bz2 lz4 plain; do ln -sfn plain default; test $i = plain || rm -r $i; done; rm -r plain");
    let ran =
        crate::common::sh(m.dir.path(), &format!("{IMGFS} gc --trash --store store; ls store/trees | wc -l"));
    assert!(ran.out.ends_with("0\n"), "{ran:?}");
}

#[test]
fn an_exact_upload_stays_only_as_parameters() {
    let m = Mount::with(&["keep_upload=exact"]);
    m.ok("bzip2 -c $S/a.tar > bz.tar.bz2; cmp $S/a.tar.bz2 bz/0/bz.tar.bz2");
    assert_eq!(proved(&m, "bz/0"), "made again");
    m.ok("cmp $S/a.tar.bz2 bz/0/bz.tar.bz2; dd if=bz/0/bz.tar.bz2 bs=1 skip=70000 count=500 status=none | cmp - <(dd if=$S/a.tar.bz2 bs=1 skip=70000 count=500 status=none); test -z \"$(ls $STORE/trees | grep kept)\"");
    m.ok("for i in 1 2 3 4; do xz -$i -c $S/a.tar > $S/x; cp $S/x x$i.tar.xz; done; xz -T2 --block-size=100KiB -c $S/a.tar > $S/x; cp $S/x mt.tar.xz");
    for (image, make) in [("x1", "xz -1"), ("x4", "xz -4"), ("mt", "xz -T2 --block-size=100KiB")] {
        let kept = proved(&m, &format!("{image}/0"));
        m.ok(&format!("{make} -c $S/a.tar | cmp - {image}/0/{image}.tar.xz"));
        eprintln!("{image}: {kept}");
    }
    // What no parameters give stays as it came.
    m.ok("(gzip -9 -c $S/b.tar; gzip -c < /dev/null) > $S/odd.gz; cp $S/odd.gz odd.tar.gz; cmp $S/odd.gz odd/0/odd.tar.gz");
    m.fsck();
}

#[test]
fn export_writes_what_the_name_says() {
    let mut m = Mount::with(&["keep_upload=always"]);
    m.ok("cp $S/a.tar.xz web.tar.xz; cp $S/b.tar web/; truncate -s 3M $S/d.img; echo x >> $S/d.img; cp $S/d.img vm.img");
    let export = |m: &Mount, args: &str| m.ok(&format!("cd $S; {IMGFS} export --store $STORE {args}"));
    for mounted in [true, false] {
        for (suffix, unpack) in [
            ("tar", "cat"),
            ("tar.gz", "gzip -dc"),
            ("tar.zst", "zstd -dqc"),
            ("tar.bz2", "bzip2 -dc"),
            ("tgz", "gzip -dc"),
            ("tar.xz", "xz -dc"),
        ] {
            export(&m, &format!("web out.{suffix}"));
            m.ok(&format!("cd $S; {unpack} out.{suffix} | cmp - b.tar"));
        }
        // As it came, unless another level is asked for.
        export(&m, "web/0 out.tar.xz");
        m.ok("cmp $S/out.tar.xz $S/a.tar.xz");
        export(&m, "-l 0 web/0 out.tar.xz");
        m.ok("not cmp -s $S/out.tar.xz $S/a.tar.xz; xz -dc $S/out.tar.xz | cmp - $S/a.tar");
        export(&m, "vm out.img.zst");
        export(&m, "vm/0 out.raw");
        m.ok("zstd -dqc $S/out.img.zst | cmp - $S/d.img; cmp $S/out.raw $S/d.img");
        for bad in [
            "vm out.tar",
            "web out.qcow2",
            "gone out.tar",
            "web/7 out.tar",
            "web nowhere/out.tar",
            "web out.tar.lz4",
        ] {
            let ran = m.sh(&format!(
                "cd $S; rm -f out.*; {IMGFS} export --store $STORE {bad}; code=$?; ls -A | grep -c part; exit $code"
            ));
            assert!(
                ran.code == 1 && ran.err.starts_with("imgfs: ") && ran.out.trim() == "0",
                "{bad}: {ran:?}"
            );
        }
        if mounted {
            m.unmount();
            std::fs::create_dir_all(m.mnt()).unwrap();
        }
    }
}
