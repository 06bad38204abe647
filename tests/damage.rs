//! A bad disk: what is damaged is never served, is named, is healed by a copy in of the same tarball, and
//! harms nobody else.

use crate::common::{IMGFS, Mount};

/// Three images that share little: small files, a large one, one at rest.
fn filled() -> Mount {
    let mut m = Mount::new();
    m.ok("mkdir $S/t; head -c 3000000 /dev/urandom > $S/t/noise; seq 200000 > $S/t/numbers; tar -C $S/t -cf $S/large.tar .; \
          for n in $(seq 50); do seq $n 500 > $S/t/f$n; done; rm $S/t/n*; tar -C $S/t -cf $S/rest0.tar .; echo more >> $S/t/f7; tar -C $S/t -cf $S/rest1.tar .");
    m.ok(&format!("cp $S/rest0.tar rest.tar; cp $S/rest1.tar rest.tar; {IMGFS} repack --store $STORE; cp $S/a.tar web.tar; cp $S/b.tar web.tar; cp $S/large.tar big.tar; cp $S/d.tar db.tar"));
    m.ok(WHOLE);
    m.unmount();
    assert_eq!(m.sh("cp -a $STORE $S/good").code, 0);
    m
}

const WHOLE: &str = "cmp $S/a.tar web/0/rootfs.tar && cmp $S/b.tar web/1/rootfs.tar && cmp $S/large.tar big/0/rootfs.tar && \
                     cmp $S/rest0.tar rest/0/rootfs.tar && cmp $S/rest1.tar rest/1/rootfs.tar";
/// The same tarballs once more.
const AGAIN: &str = "cp $S/a.tar web.tar; cp $S/b.tar web.tar; cp $S/large.tar big.tar; cp $S/rest0.tar rest.tar; cp $S/rest1.tar rest.tar";

/// Ways to damage `$f`.
const HARM: &[(&str, &str)] = &[
    (
        "flipped",
        "python3 -c \"import sys; f=open(sys.argv[1],'r+b'); d=bytearray(f.read()); d[len(d)*2//5]^=4; f.seek(0); f.write(d)\" $f",
    ),
    ("zeroed", "dd if=/dev/zero of=$f bs=4096 count=1 conv=notrunc status=none"),
    ("cut", "truncate -s $(($(stat -c %s $f) * 3 / 5)) $f"),
    ("emptied", ": > $f"),
    ("deleted", "rm $f"),
];

#[test]
fn whatever_file_is_damaged_nothing_wrong_is_read_and_a_copy_heals() {
    let mut m = filled();
    let files = m.sh("cd $STORE; find loose packs trees -type f | sort").out;
    assert!(files.lines().count() >= 10, "{files}");
    let all = std::env::var("IMGFS_TORTURE").is_ok();
    for (n, file) in files.lines().enumerate() {
        // Each kind of harm in turn; torture.sh does all.
        for (harm, how) in HARM
            .iter()
            .enumerate()
            .filter(|(h, _)| all || h % HARM.len() == n % HARM.len())
            .map(|(_, harm)| harm)
        {
            let what = format!("{file} {harm}");
            let ran = m.sh(&format!("rm -rf $STORE; cp -a $S/good $STORE; f=$STORE/{file}; {how}"));
            assert_eq!(ran.code, 0, "{what}: {ran:?}");
            m.mount();
            // Every file is right or refused; what is refused is named.
            let ran = m.sh(
                "for v in web/0:a web/1:b big/0:large rest/0:rest0 rest/1:rest1 db/0:d; do \
                 if cat ${v%:*}/rootfs.tar > $S/out 2> $S/err; then cmp $S/out $S/${v#*:}.tar || echo WRONG $v; \
                 else grep -q 'Input/output' $S/err || { echo OTHER $v; cat $S/err; }; grep -q \"${v%:*}\" .imgfs/errors || echo UNNAMED $v; echo refused $v; fi; done; \
                 ls -lR . > /dev/null 2> $S/err || grep -v 'Input/output' $S/err; cat .imgfs/status.json",
            );
            assert!(
                !ran.out.contains("WRONG") && !ran.out.contains("OTHER") && !ran.out.contains("UNNAMED"),
                "{what}: {ran:?}\n{}",
                m.errors()
            );
            let refused = ran.out.matches("refused").count();
            assert!(refused < 6, "{what}: no other image goes on\n{ran:?}");
            let fsck = m.sh(&format!("{IMGFS} fsck --store $STORE"));
            if refused > 0 {
                assert!(fsck.code == 4 && ran.out.contains("\"damaged\""), "{what}: {fsck:?}\n{ran:?}");
                let first = ran.out.lines().find_map(|l| l.strip_prefix("refused ")).unwrap();
                assert!(fsck.out.contains(first.split(':').next().unwrap()), "{what}: {fsck:?}");
            }
            // Others can be changed, and gc runs or says why not.
            m.ok("cp $S/c.tar db.tar; cmp $S/c.tar db/1/rootfs.tar; ln -sfn db default; rmdir db/0");
            m.ok(AGAIN);
            m.ok("ls -R . > /dev/null");
            let ran = m.sh(WHOLE);
            assert_eq!(ran.code, 0, "{what}: not healed: {ran:?}\n{fsck:?}\n{}", m.errors());
            // Also while what was damaged is still to be swept.
            m.ok("rm -r .imgfs/trash/*");
            m.fsck();
            m.ok(&format!(
                "{IMGFS} gc --trash --store $STORE; {WHOLE}; {IMGFS} repack --store $STORE; {WHOLE}"
            ));
            m.fsck();
            m.ok("grep -q '\"ok\"' .imgfs/status.json");
            m.unmount();
        }
    }
}

fn flip(m: &Mount, file: &str, found: &str) {
    let script = "import sys,glob\nfor f in glob.glob(sys.argv[1]):\n d=bytearray(open(f,'rb').read()); i=d.find(sys.argv[2].encode())\n \
                  \n if i>=0: d[i]^=1; open(f,'wb').write(d); print(f)";
    let ran = m.sh(&format!("python3 -c \"{script}\" \"$STORE/{file}\" '{found}'"));
    assert!(ran.code == 0 && !ran.out.is_empty(), "{ran:?}");
}

#[test]
fn repair_puts_back_what_another_copy_has_and_puts_the_rest_aside() {
    let mut m = Mount::new();
    let fsck = format!("{IMGFS} fsck --store $STORE");
    // One tarball under two names: a tree of its own each.
    m.ok("cp $S/a.tar one.tar; cp $S/a.tar two.tar; cp $S/b.tar other.tar");
    let tree = |name: &str| format!("trees/{}.tree", m.json(&format!("{name}/0"))["id"].as_str().unwrap());
    let (one, other) = (tree("one"), tree("other"));
    m.unmount();
    assert_eq!(
        m.sh(&format!(
            "printf wxyz | dd of=$STORE/{one} bs=1 seek=300 conv=notrunc; truncate -s 200 $STORE/{other}"
        ))
        .code,
        0
    );
    let ran = m.sh(&fsck);
    assert!(ran.code == 4 && ran.out.contains("one/0") && ran.out.contains("other/0"), "{ran:?}");
    m.mount();
    for file in ["other/0/rootfs/etc/motd", "one/0/rootfs.tar"] {
        let ran = m.sh(&format!("cat {file}"));
        assert!(ran.code == 1 && ran.err.contains("Input/output error"), "{ran:?}");
    }
    assert!(m.errors().contains("the tree of other/0 is damaged"), "{}", m.errors());
    m.ok("cmp $S/a.tar two/0/rootfs.tar; ls one other; stat one/0 other/0");
    // Before the repair gc refuses: it does not know what the trees name.
    let gc = format!("{IMGFS} gc --store $STORE");
    assert_ne!(m.sh(&gc).code, 0);
    let ran = m.sh(&format!("{fsck} --repair"));
    assert!(
        ran.code == 4
            && ran.out.contains("one/0: its tree is there again")
            && ran.out.contains("other/0: its tree was put aside"),
        "{ran:?}"
    );
    m.ok(&format!("cmp $S/a.tar one/0/rootfs.tar; {gc}"));
    // A copy in brings the other back, under its number.
    m.ok("cp $S/b.tar other.tar; cmp $S/b.tar other/0/rootfs.tar; not test -e other/1");
    m.ok(&gc);
    m.fsck();
    // What is damaged can be deleted, and is gone then.
    m.ok("mkdir two-and-more; cp $S/c.tar two-and-more/x.tar; ln -sfn two-and-more default");
    m.unmount();
    assert_eq!(m.sh(&format!("rm $STORE/{one}")).code, 0);
    m.mount();
    m.ok("rmdir one; mv .imgfs/trash/one two-and-less; rmdir two-and-less");
    m.ok(&format!("{IMGFS} gc --trash --store $STORE"));
    m.fsck();
}

#[test]
fn a_copy_in_of_any_image_heals_what_all_share() {
    let mut m = Mount::new();
    m.ok("for n in a b c; do cp $S/$n.tar $n.tar; done");
    m.unmount();
    flip(&m, "loose/*.seg", "ID=test");
    m.mount();
    m.refused("cat b/0/rootfs/etc/os-release", "Input/output error");
    assert!(m.errors().contains("b/0/rootfs/etc/os-release is damaged"), "{}", m.errors());
    m.refused("cat a/0/rootfs.tar", "Input/output error");
    m.ok("cmp $S/c.tar c/0/rootfs.tar || test $? = 1 -o $? = 2; grep -q '\"damaged_blobs\": 1' .imgfs/status.json");
    // Damage that was found is known after the next mount, too.
    m.remount();
    m.ok("cp $S/d.tar new.tar; for n in a b c; do cmp $S/$n.tar $n/0/rootfs.tar; done; cmp $S/d.tar new/0/rootfs.tar");
    m.ok(&format!("{IMGFS} gc --store $STORE"));
    m.fsck();
}

#[test]
fn the_background_finds_damage_before_a_reader_does() {
    let mut m = Mount::new();
    m.ok("cp $S/a.tar web.tar; cp $S/b.tar db.tar");
    m.unmount();
    flip(&m, "loose/*.seg", "ID=test");
    m.mount();
    m.ok("for n in $(seq 300); do grep -q '\"ended_at\": \"2' .imgfs/status.json && break; sleep 0.1; done; cat .imgfs/status.json .imgfs/errors");
    let status = m.ok("cat .imgfs/status.json");
    assert!(status.contains("\"health\": \"damaged\"") && status.contains("\"damaged\": 1"), "{status}");
    assert!(m.errors().contains("scrub\tweb/0/rootfs/etc/os-release"), "{}", m.errors());
}

/// From the second open on a large file is read past imgfs: what was behind its content was read, too, and
/// where the file had become shorter, less, both without an error.
#[test]
fn large_files_are_as_long_as_they_were() {
    let mut m = filled();
    let fsck = format!("{IMGFS} fsck --store $STORE");
    let look =
        "cat big/0/rootfs/noise > $S/out 2> $S/err && cmp $S/out $S/t.noise || grep -q 'Input/output' $S/err";
    assert_eq!(m.sh("tar -xOf $S/large.tar ./noise > $S/t.noise; for f in $STORE/loose/*.obj; do echo junk >> $f; done").code, 0);
    m.mount();
    m.ok(&format!("for n in 1 2 3; do {look} || exit 1; done; test ! -s $S/err"));
    m.unmount();
    let ran = m.sh(&fsck);
    assert!(ran.code == 4 && ran.out.contains("goes on behind the 3000000 bytes"), "{ran:?}");
    assert_eq!(m.sh(&format!("{fsck} --repair")).code, 0);
    m.mount();
    m.ok(&format!("{look} && test ! -s $S/err; for f in $STORE/loose/*.obj; do truncate -s 1000000 $f; done; for n in 1 2 3; do {look} || exit 1; done"));
}

#[test]
fn a_repair_frees_damaged_records_that_nobody_needs() {
    let m = filled();
    let fsck = format!("{IMGFS} fsck --store $STORE");
    assert_eq!(m.sh("head -c 300 /dev/urandom >> $STORE/blobs").code, 0);
    let ran = m.sh(&fsck);
    assert!(ran.code == 4 && ran.out.contains("it affects no version"), "{ran:?}");
    assert_eq!(m.sh(&format!("{fsck} --repair")).code, 0);
    m.fsck();
}

/// It was read as far as it went, and no copy healed it.
#[test]
fn a_packed_tree_that_was_cut_is_healed_by_a_copy() {
    let mut m = filled();
    m.mount();
    let id = m.ok("cat rest/0/.id");
    m.unmount();
    assert_eq!(m.sh(&format!("truncate -s -1 $STORE/trees/{}.tree", id.trim())).code, 0);
    m.mount();
    let ran = m.sh("cat rest/0/rootfs.tar");
    assert!(ran.err.contains("Input/output error"), "{ran:?}");
    m.ok("cp $S/rest0.tar rest.tar; cmp $S/rest0.tar rest/0/rootfs.tar");
    m.ok(AGAIN);
    m.ok(WHOLE);
    m.fsck();
}

#[test]
fn files_that_nobody_wrote_do_not_stop_gc() {
    let m = Mount::new();
    m.ok("cp $S/a.tar web.tar; cp $S/b.tar web.tar; echo x > $STORE/loose/0123.obj; echo x > $STORE/packs/x.pack; echo x > $STORE/loose/00000124.obj; rmdir web/0");
    m.ok(&format!("{IMGFS} gc --trash --store $STORE; not test -e $STORE/loose/00000124.obj; cmp $S/b.tar web/1/rootfs.tar"));
    m.fsck();
}

#[test]
fn what_is_behind_a_pack_or_a_segment_is_not_read() {
    let mut m = filled();
    assert_eq!(
        m.sh("for f in $STORE/packs/*.pack $STORE/loose/*.seg; do head -c 3000 /dev/urandom >> $f; done")
            .code,
        0
    );
    m.mount();
    m.ok(WHOLE);
    m.fsck();
}
