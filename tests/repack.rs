//! imgfs repack: everything reads as before, and the store is smaller; whatever happens in between.

use crate::common::{IMGFS, Mount};

/// Four versions of an image that resemble each other, and another image; what each tar is lies in src.
const IMAGES: &str = r#"
mkdir -p $S/t/usr/lib $S/t/usr/share/doc; cp -r /usr/share/doc/[a-c]* $S/t/usr/share/doc/
head -c 3000000 /dev/urandom | base64 > $S/t/usr/lib/libbig.so.1.0; truncate -s 5M $S/t/usr/lib/sparse; printf end >> $S/t/usr/lib/sparse
for n in 0 1 2 3; do
  for f in $S/t/usr/share/doc/a*/copyright $S/t/usr/lib/*; do [ -h $f ] || echo "change $n" >> $f; done
  seq $n 20000 > $S/t/usr/lib/numbers.$n; tar -C $S/t -cf $S/v$n.tar .; cp $S/v$n.tar web.tar
done
mv $S/t/usr/lib/libbig.so.1.0 $S/t/usr/lib/libbig.so.1.1; echo more >> $S/t/usr/lib/libbig.so.1.1
tar -C $S/t -cf $S/kin.tar .; cp $S/kin.tar kin.tar
"#;

/// Everything is as it was copied in.
const SAME: &str = "for n in 0 1 2 3; do cmp $S/v$n.tar web/$n/rootfs.tar; mkdir $S/x; tar -xf $S/v$n.tar -C $S/x; diff -r --no-dereference $S/x web/$n/rootfs; rm -r $S/x; done; cmp $S/kin.tar kin/0/rootfs.tar";

fn size(m: &Mount) -> u64 {
    m.ok("du -sk $STORE/loose $STORE/packs $STORE/trees | awk '{ n += $1 } END { print n }'")
        .trim()
        .parse()
        .unwrap()
}

fn repack(m: &Mount) {
    m.ok(&format!("{IMGFS} repack --store $STORE"));
}

#[test]
fn a_packed_store_is_small_and_reads_the_same() {
    let mut m = Mount::with(&["trash=0"]);
    m.ok(IMAGES);
    // Held open all the time, and read on behind the move.
    m.ok("exec 5< web/0/rootfs/usr/lib/libbig.so.1.0; head -c 100000 <&5 > $S/first; exec 6< web/2/rootfs.tar; head -c 300000 <&6 > $S/tar-first");
    let before = size(&m);
    let ran = m.ok(&format!(
        "exec 5< web/0/rootfs/usr/lib/libbig.so.1.0; head -c 100000 <&5 > $S/got; exec 6< web/2/rootfs.tar; head -c 300000 <&6 > $S/got-tar; {IMGFS} repack --store $STORE; cat <&5 >> $S/got; cat <&6 >> $S/got-tar; cmp $S/got web/0/rootfs/usr/lib/libbig.so.1.0; cmp $S/got-tar $S/v2.tar"
    ));
    assert!(ran.starts_with("moved "), "{ran}");
    let after = size(&m);
    assert!(after * 3 < before, "{before} KiB became {after}");
    assert_eq!(m.ok("ls $STORE/loose"), "");
    m.ok("jq -e 'select(.kind == \"repack\" and .phase == \"ended\" and .bytes_done == .bytes_total)' .imgfs/jobs/*.json");
    m.ok(SAME);
    m.fsck();
    m.remount();
    m.ok(SAME);
    // Nothing is left to do, and nothing is done, also with the trees still open.
    m.ok("stat -c '%n %i' $STORE/trees/* > $S/trees");
    repack(&m);
    m.ok("stat -c '%n %i' $STORE/trees/* | cmp - $S/trees");
    assert!(size(&m) <= after);
    // The same bytes are still known, new ones come loose.
    m.ok("cp $S/v3.tar web.tar; test ! -e web/4; cp $S/v2.tar web/; test -e web/4; cmp $S/v2.tar web/4/rootfs.tar; echo new >> $S/t/new; tar -C $S/t -cf $S/n.tar .; cp $S/n.tar kin/; test -n \"$(ls $STORE/loose)\"");
    // Versions that others were compressed against go, and the others stay.
    m.ok("cp $S/v3.tar web/; ln -sfn latest web/default; rmdir web/0; rmdir web/1; rmdir kin/0");
    m.ok(&format!("{IMGFS} gc --trash --store $STORE"));
    repack(&m);
    m.remount();
    m.ok("for n in 2 3; do cmp $S/v$n.tar web/$n/rootfs.tar; done; cmp $S/n.tar kin/1/rootfs.tar");
    m.fsck();
    m.ok("ln -sfn web default; rm -r kin; rm -r web");
    m.ok(&format!("{IMGFS} gc --trash --store $STORE; {IMGFS} gc --store $STORE; test -z \"$(ls $STORE/packs $STORE/trees $STORE/loose | grep -v :)\""));
}

#[test]
fn an_update_at_rest_costs_what_differs() {
    let m = Mount::with(&["trash=0"]);
    m.ok("mkdir $S/t; for i in {a..e}{a..j}; do head -c 60000 /dev/urandom > $S/t/lib$i-1.so; done; tar -C $S/t -cf $S/v0.tar .; cp $S/v0.tar web.tar");
    repack(&m);
    // Under the same names, and under others.
    for (n, rename) in [(1, "true"), (2, "mv $S/t/lib$i-1.so $S/t/lib$i-2.so")] {
        let before = size(&m);
        m.ok(&format!("for i in {{a..e}}{{a..j}}; do printf changed{n} | dd of=$S/t/lib$i-1.so bs=1 seek=30000 conv=notrunc status=none; {rename}; done; tar -C $S/t -cf $S/v{n}.tar .; cp $S/v{n}.tar web.tar"));
        repack(&m);
        assert!(size(&m) - before < 60, "{} KiB for 50 changes", size(&m) - before);
        m.ok(&format!("cmp $S/v0.tar web/0/rootfs.tar; cmp $S/v{n}.tar web/{n}/rootfs.tar"));
    }
}

#[test]
fn each_image_says_how_it_is_stored() {
    let m = Mount::with(&["trash=0"]);
    m.ok(IMAGES);
    m.ok("setfattr -n user.imgfs.storage -v fast kin; jq '.storage = \"small\"' web/metadata.json > web/.t; mv web/.t web/metadata.json");
    m.refused("setfattr -n user.imgfs.storage -v banana web", "Invalid argument");
    repack(&m);
    // What both hold stays loose.
    m.ok("test -n \"$(ls $STORE/loose)\"; test -n \"$(ls $STORE/packs)\"");
    m.ok("setfattr -n user.imgfs.storage -v fast web");
    repack(&m);
    m.ok("test -n \"$(ls $STORE/loose)\"; test -z \"$(ls $STORE/packs)\"");
    m.ok(SAME);
    m.ok("jq '.storage = null' web/metadata.json > web/.t; mv web/.t web/metadata.json; jq -e '.storage == \"auto\"' web/metadata.json; setfattr -n user.imgfs.storage -v auto kin");
    repack(&m);
    m.ok("test -z \"$(ls $STORE/loose)\"");
    m.ok(SAME);
    m.fsck();
}

#[test]
fn a_repack_can_be_killed_and_interrupted() {
    let mut m = Mount::with(&["trash=0"]);
    m.ok(IMAGES);
    for n in 0..6 {
        // The client goes away, then the daemon.
        m.sh(&format!("timeout -s INT 0.{n}3 {IMGFS} repack --store $STORE"));
        m.ok(SAME);
        let daemon = m.daemon();
        m.sh(&format!("({IMGFS} repack --store $STORE & sleep 0.{n}5; kill -9 {daemon}) > /dev/null 2>&1"));
        m.kill();
        m.mount();
        m.ok(SAME);
        m.fsck();
    }
    repack(&m);
    m.ok(SAME);
    m.fsck();
    m.ok(&format!("{IMGFS} repack --pause --store $STORE; {IMGFS} repack --resume --store $STORE"));
    m.unmount();
    let ran = crate::common::sh(
        m.dir.path(),
        &format!("{IMGFS} repack --pause --store store; {IMGFS} repack --store store"),
    );
    assert!(ran.err.contains("has no daemon") && ran.out.starts_with("moved 0 blobs"), "{ran:?}");
    m.mount();
}

#[test]
fn uploads_deletions_and_reads_go_on_during_a_repack() {
    let mut m = Mount::with(&["trash=0"]);
    m.ok(IMAGES);
    m.ok(&format!(
        "({IMGFS} repack --store $STORE; touch $S/done) & for i in $(seq 200); do cp $S/v$((i % 4)).tar more.tar; cmp $S/v$((i % 4)).tar more/latest/rootfs.tar; diff -r --no-dereference web/1/rootfs/usr/share more/latest/rootfs/usr/share > /dev/null || true; [ $i = 1 ] || for v in more/[0-9]*; do [ $v = more/$(readlink more/latest) ] || rmdir $v; done; [ -e $S/done ] && break; done; wait; test -e $S/done"
    ));
    m.ok(SAME);
    m.fsck();
    repack(&m);
    m.ok(&format!(
        "{IMGFS} gc --trash --store $STORE; test $(ls $STORE/trees/*.tree | wc -l) = $(ls -d web/[0-9]* kin/[0-9]* more/[0-9]* | wc -l)"
    ));
    m.remount();
    m.ok(SAME);
    m.fsck();
}

#[test]
fn a_damaged_pack_is_an_error_and_fsck_says_whose() {
    let mut m = Mount::with(&["trash=0"]);
    m.ok(IMAGES);
    repack(&m);
    m.unmount();
    crate::common::sh(
        m.dir.path(),
        "for p in store/packs/*.pack; do printf wxyz | dd of=$p bs=1 seek=5000 conv=notrunc status=none; done",
    );
    m.mount();
    m.refused("cat web/0/rootfs.tar > $S/out", "Input/output error");
    m.ok("grep -q 'a frame does not match its check' .imgfs/errors");
    let ran = m.sh(&format!("{IMGFS} fsck --store $STORE"));
    assert!(
        ran.code == 4 && ran.out.contains("invariant 3") && ran.out.contains("it affects web/0"),
        "{ran:?}"
    );
    let ran = m.sh(&format!("rmdir web/0; {IMGFS} fsck --store $STORE"));
    assert!(ran.out.contains("it affects .imgfs/trash/web.0/"), "{ran:?}");
}

#[test]
fn a_large_file_reads_the_same_past_imgfs() {
    let mut m = Mount::with(&["trash=0"]);
    m.ok("mkdir $S/t; head -c 3000000 /dev/urandom > $S/t/large; cp /bin/bash $S/t/bash; head -c 2000000 /bin/bash >> $S/t/bash; truncate -s 4M $S/t/sparse; echo end >> $S/t/sparse; tar -C $S/t -cf $S/a.tar .; cp $S/a.tar web.tar");
    let read = "for f in large bash sparse; do cmp $S/t/$f web/0/rootfs/$f; cmp $S/t/$f web/0/rootfs/$f; done; web/0/rootfs/bash -c 'echo runs'";
    m.ok(read);
    m.remount();
    // Through imgfs and past it at the same time, and while it moves and goes.
    m.ok("exec 5< web/0/rootfs/large; head -c 1000 <&5 > $S/got; cmp $S/t/large web/0/rootfs/large; exec 6< web/0/rootfs/large; cat <&5 >> $S/got; cmp $S/t/large $S/got; exec 5<&-; cmp $S/t/large - <&6");
    m.ok(read);
    m.ok(&format!("exec 5< web/0/rootfs/large; exec 6< web/0/rootfs/bash; head -c 1000 <&5 > $S/got; {IMGFS} repack --store $STORE > /dev/null; cat <&5 >> $S/got; cmp $S/t/large $S/got; cmp $S/t/large web/0/rootfs/large; rm -r web; {IMGFS} gc --trash --store $STORE; cmp $S/t/bash - <&6"));
    // What was not checked since the mount is not given to the kernel.
    m.ok("head -c 3000000 /dev/urandom > $S/t/large; tar -C $S/t -cf $S/b.tar .; cp $S/b.tar web.tar; cmp $S/t/large web/0/rootfs/large");
    m.unmount();
    crate::common::sh(
        m.dir.path(),
        "for o in store/loose/*.obj; do printf wxyz | dd of=$o bs=1 seek=150000 conv=notrunc status=none; done",
    );
    m.mount();
    m.refused("cat web/0/rootfs/large > $S/out", "Input/output error");
    m.refused("cat web/0/rootfs/large > $S/out", "Input/output error");
    // The same without the kernel's help.
    let off = Mount::with(&["passthrough=off"]);
    off.ok("mkdir $S/t; head -c 3000000 /dev/urandom > $S/t/large; tar -C $S/t -cf $S/a.tar .; cp $S/a.tar web.tar; cmp $S/t/large web/0/rootfs/large; cmp $S/t/large web/0/rootfs/large");
}

#[test]
fn the_next_versions_tree_costs_what_differs_and_outlives_what_it_was_packed_against() {
    let mut m = Mount::new();
    m.ok("mkdir $S/t; for n in $(seq 3000); do echo $n > $S/t/a-file-with-the-number-$n; done; for v in 0 1 2; do echo $v > $S/t/v; tar -C $S/t --sort=name -cf $S/v$v.tar .; cp $S/v$v.tar web.tar; done; cp $S/v2.tar kin.tar");
    repack(&m);
    m.ok("set -- $(stat -c %s $STORE/trees/*.tree | sort -n); test $# = 4 -a $(($3 * 20)) -lt $4");
    m.fsck();
    m.remount();
    m.ok("for v in 0 1 2; do cmp $S/v$v.tar web/$v/rootfs.tar; done; cmp $S/v2.tar kin/0/rootfs.tar; diff -r $S/t web/2/rootfs");
    // The first is gone, and its tree is needed; also after what a crash in between leaves.
    m.ok(&format!("rmdir web/0; {IMGFS} gc --trash --store $STORE; ls $STORE/trees/*.base"));
    m.kill();
    let base = m.sh("cd $STORE/trees; mv *.base $(basename *.base .base).tree; ls");
    assert_eq!(base.code, 0, "{base:?}");
    m.mount();
    m.ok("ls $STORE/trees/*.base; for v in 1 2; do cmp $S/v$v.tar web/$v/rootfs.tar; done; cmp $S/v2.tar kin/0/rootfs.tar");
    m.fsck();
    m.ok(&format!("ln -sfn kin default; rm -r web; {IMGFS} gc --trash --store $STORE; ls $STORE/trees/*.base; cmp $S/v2.tar kin/0/rootfs.tar"));
    m.ok(&format!("rm -r kin; {IMGFS} gc --trash --store $STORE"));
    m.ok("test -z \"$(ls $STORE/trees)\" || { ls $STORE/trees; exit 1; }");
    m.fsck();
}
