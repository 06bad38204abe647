//! docs/refusals.md, a gesture a line: each says what is wrong, and what to do about just that.
//! `cargo test --test remedies -- --nocapture` prints them all for review.

use std::collections::BTreeMap;

use crate::common::{IMGFS, Mount, as_root, by, shared};

/// A refusal: the gesture, what the shell says, and a part of the remedy that fits no other case.
type Row = (&'static str, &'static str, &'static str);

/// `$S` holds the archives; `web` has the versions 0 and 1, `other` and `two` one each; `default` leads to
/// `web`.
const ROWS: &[Row] = &[
    // not a tarball, damaged, truncated, bad JSON, bad name
    ("cp $S/not.tar x.tar", "Invalid argument", "copy the archive, not a text about it"),
    ("cp $S/services.gz x.tar.gz", "Invalid argument", "compress the tarball of it"),
    ("cp $S/a.tar.sha256 web/a.tar.sha256", "Invalid argument", "leave a checksum out"),
    ("cp $S/page x.tar", "Invalid argument", "this is a web page"),
    ("cp $S/json x.tar", "Invalid argument", "a manifest goes with its file"),
    ("cp $S/program x.tar", "Invalid argument", "put it into a tarball"),
    ("cp $S/noise x.tar", "Invalid argument", "copy a tarball (plain, gzip"),
    ("cp $S/broken.tar x.tar", "Invalid argument", "check it with tar tf"),
    ("cp $S/broken.tar.gz x.tar.gz", "Invalid argument", "say whether a copy is whole"),
    ("cp $S/cut.tar x.tar", "Invalid argument", "copy the whole file"),
    ("cp $S/bad.qcow2 x.qcow2", "Invalid argument", "qemu-img check"),
    ("cp $S/bad.squashfs x.squashfs", "Invalid argument", "unsquashfs"),
    ("cp $S/json web/metadata.json", "Invalid argument", "editable: description"),
    ("cp $S/a.tar -- -x.tar", "Invalid argument", "names are 1 to 255 bytes"),
    ("tar -C $S/lxd -cf x.tar metadata.yaml", "", "lxc image export"),
    ("echo often > .imgfs/config/trash", "Invalid argument", "write one value"),
    // not what was announced
    ("mkdir .n; cp $S/b.tar $S/b.tar.sha256 .n/; mv .n x", "", "fetch it again"),
    // leaves the root
    ("cp $S/leaves.tar x.tar", "Invalid argument", "tar -C ROOT -c ."),
    // over a limit
    ("cp $S/deep.tar x.tar", "Argument list too long", "if the file is good, raise the limit"),
    ("cp $S/window.tar.zst x.tar.zst", "Argument list too long", "smaller window"),
    // known but not supported
    ("cp $S/x.zip x.zip", "not supported", "unzip"),
    ("cp $S/x.Z x.tar.Z", "not supported", "uncompress"),
    ("cp $S/x.lz x.tar.lz", "not supported", "lzip -d"),
    ("cp $S/x.vmdk x.tar", "not supported", "qemu-img convert -O qcow2 DISK"),
    ("cp $S/x.vhd x.tar", "not supported", "qemu-img convert -O qcow2 DISK"),
    ("cp $S/x.vdi x.vdi", "not supported", "qemu-img convert -O qcow2 DISK"),
    ("chattr +a web", "not supported", "chattr takes i"),
    // inside a version
    ("touch web/0/rootfs/new", "Read-only file system", "copy a new tarball into the image"),
    ("rm web/0/rootfs/etc/motd", "Read-only file system", "copy a new tarball into the image"),
    // what default leads to
    ("rmdir web", "busy", "point default elsewhere first: ln -sfn OTHER default"),
    ("rmdir two/0", "busy", "rmdir the image to delete all of it"),
    ("ln -sfn 0 web/default; rmdir web/0", "busy", "ln -sfn latest IMAGE/default"),
    ("rmdir other", "busy", "MNT/.imgfs/defaults/TYPE"),
    // a lease
    ("touch web/1/used_by/app; rmdir web/1", "busy", "let its users remove their entries of used_by"),
    // immutable
    ("chattr +i two; cp $S/c.tar two/", "not permitted", "chattr -i it first"),
    // a second build of a label
    ("cp $S/c.tar lab_1.0_amd64.tar; cp $S/d.tar lab_1.0_amd64.tar", "exists", "rm IMAGE/@LABEL first"),
    ("cp $S/d.tar lab_1.1_arm64.tar", "exists", "an image has one architecture"),
    // what imgfs keeps
    ("mkdir web/7", "not permitted", "gives it its number"),
    ("ln -sfn 0 web/latest", "not permitted", "cp a newer tarball in, and latest follows"),
    ("ln web/metadata.json hard", "not permitted", "ln -s IMAGE ALIAS makes an alias"),
    ("mkfifo pipe", "not permitted", "put it into the tarball of a root"),
    // names
    ("mv two web", "", "where there is no NEW yet"),
    ("ln -s other default", "No such file", "make the target first"),
    (
        "ls .imgfs/by-digest/none || echo 1 > .imgfs/config/foo",
        "No such file",
        "ls .imgfs/config shows the settings",
    ),
    ("ln -s nothing alias", "No such file", "make the target first"),
    ("ln -s 9 web/@9", "No such file", "make the target first"),
    ("ln -s ../../nothing .imgfs/defaults/vm", "No such file", "make the target first"),
    ("mkdir .imgfs/new", "not permitted", "see .imgfs/README"),
];

const MAKE: &str = r#"
cp $S/a.tar web.tar; cp $S/b.tar web/; cp $S/c.tar other.tar; cp $S/d.tar two.tar; setfattr -n user.imgfs.type -v vm other two; ln -sfn ../../other .imgfs/defaults/vm; cd $S
seq 3000 | gzip > services.gz; sha256sum a.tar > a.tar.sha256; { echo "$(sha256sum < a.tar | cut -c-64)  b.tar"; } > b.tar.sha256; cp b.tar.sha256 a.sums
(echo '<html>'; seq 3000) > page; (echo '{'; seq 3000) > json; head -c 5000 /bin/ls > program; head -c 5000 /dev/urandom > noise; printf '\1' | dd of=noise conv=notrunc status=none
(head -c 512 a.tar; head -c 3000 /dev/urandom; tail -c +3513 a.tar) > broken.tar; gzip -c a.tar | python3 -c "import sys; b = bytearray(sys.stdin.buffer.read()); b[len(b) // 2] ^= 255; b[-7] ^= 1; sys.stdout.buffer.write(b)" > broken.tar.gz
(printf 'QFI\xfb'; head -c 9000 /dev/zero) > bad.qcow2; (printf hsqs; head -c 9000 /dev/zero) > bad.squashfs; mkdir lxd e; printf 'architecture: z80\ncreation_date: 5\n' > lxd/metadata.yaml; : > e/f
tar -P -C e --transform 's,.*,../x,' -cf leaves.tar f; mkdir -p n/1/2/3/4/5/6/7/8/9; tar -C n -cf deep.tar .; zstd -q --long=31 -c < a.tar > window.tar.zst
for m in 'PK\x03\x04 x.zip' '\x1f\x9d\x90 x.Z' 'LZIP x.lz' 'KDMV x.vmdk' 'conectix x.vhd' '<<< Oracle VM VirtualBox Disk Image >>> x.vdi'; do (printf "${m% *}"; head -c 3000 /dev/zero) > ${m##* }; done
"#;

/// The newest line of `.imgfs/errors`: sentence and remedy.
fn newest(m: &Mount) -> (String, String) {
    let errors = m.errors();
    let mut fields = errors.lines().next().unwrap_or_default().split('\t').skip(4).map(str::to_owned);
    (fields.next().unwrap_or_default(), fields.next().unwrap_or_default())
}

#[test]
fn each_refusal_says_what_to_do_about_it() {
    // Only root lets others in without a word in /etc/fuse.conf.
    if !as_root() {
        return;
    }
    let m = Mount::with(&["max_depth=8,max_window=1M,allow_other,trees=inline"]);
    m.ok(MAKE);
    let mut failed = Vec::new();
    let mut by_remedy: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    println!("gesture | errno | sentence | remedy");
    for (gesture, errno, part) in ROWS {
        let before = m.errors();
        let ran = m.sh(gesture);
        let (sentence, remedy) = newest(&m);
        let says =
            ran.err.lines().last().unwrap_or_default().rsplit(": ").next().unwrap_or_default().to_owned();
        println!("{gesture} | {says} | {sentence} | {remedy}");
        if ran.code == 0
            || m.errors() == before
            || !ran.err.contains(errno)
            || !remedy.contains(part)
            || remedy.is_empty()
        {
            failed
                .push(format!("{gesture}: {ran:?}\n  {sentence}\n  {remedy}\n  wanted {errno:?}, {part:?}"));
        }
        if part.is_empty() {
            continue;
        }
        by_remedy.entry(remedy).or_default().push(part);
        m.ok("chattr -i two 2> /dev/null || true; rm -f web/1/used_by/app; ln -sfn latest web/default; rm -rf .n");
    }
    // A remedy that several share is one that each of them names.
    for (remedy, parts) in &by_remedy {
        if parts.iter().any(|part| part != &parts[0]) {
            failed.push(format!("{remedy:?} is said of cases that differ: {parts:?}"));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// The rows that need somebody else, a view, a full disk, or damage.
#[test]
fn refusals_of_others_and_of_the_disk_say_it_too() {
    let Some(m) = shared(&["quota_images=1"]) else { return };
    m.ok("chmod 1777 .; cp $S/a.tar web.tar; cp $S/b.tar two.tar; chmod 700 two");
    let says = |part: &str| {
        let (sentence, remedy) = newest(&m);
        println!("{sentence} | {remedy}");
        assert!(remedy.contains(part), "{sentence}: {remedy}, not {part}");
    };
    let anna = (1001, 1001, "");
    assert_ne!(by(&m, anna, "cp $S/b.tar web.tgz").code, 0);
    says("ask its owner");
    assert_ne!(by(&m, anna, "mkdir one; mkdir three").code, 0);
    says("ask who administers the store for more");
    // A view.
    m.ok(&format!(
        "mkdir .imgfs/views/dc1; ln -s ../../../web .imgfs/views/dc1/; mkdir $S/v; {IMGFS} mount -o view=dc1 --store $STORE $S/v"
    ));
    m.ok("not cp $S/c.tar $S/v/web/ 2> /dev/null");
    let errors = std::fs::read_to_string(m.path("src/v/.imgfs/errors")).unwrap();
    assert!(errors.lines().next().unwrap().contains("copy its rootfs.tar in under another name"), "{errors}");
    m.ok("ln -sfn web $S/v/default; touch $S/v/web/0/used_by/x; not rm .imgfs/views/dc1/web 2> /dev/null");
    says("let its users remove");
    m.ok(&format!("rm $S/v/web/0/used_by/x; {IMGFS} umount $S/v"));
    m.ok("not ls .imgfs/views/none 2> /dev/null; not ln -s ../../../web .imgfs/views/none/ 2> /dev/null");
    // A digest of two.
    m.ok("not ls .imgfs/by-digest/0 2> /dev/null");
}

#[test]
fn a_full_or_read_only_disk_and_a_damaged_one_say_what_to_do() {
    if !as_root() {
        return;
    }
    let m = Mount::new();
    let store = m.path("src/small");
    m.ok(&format!("mkdir $S/small $S/m; mount -t tmpfs -o size=24M none $S/small; {IMGFS} mount --store $S/small/s $S/m; cp $S/a.tar $S/m/web.tar; mkdir $S/f; head -c 40000000 /dev/urandom > $S/f/f; tar -C $S/f -cf $S/large.tar ."));
    let newest = || {
        let errors = std::fs::read_to_string(m.path("src/m/.imgfs/errors")).unwrap_or_default();
        let line = errors.lines().next().unwrap_or_default().to_owned();
        println!("{line}");
        line
    };
    let full = m.sh("cp $S/large.tar $S/m/x.tar");
    assert!(full.code != 0 && full.err.contains("No space left"), "{full:?}");
    assert!(newest().contains("give the store more room"));
    m.ok(&format!("for f in $(find {}/s/loose -type f); do head -c $(stat -c %s $f) /dev/zero > $f; done; echo 3 > /proc/sys/vm/drop_caches", store.display()));
    let damaged = m.sh("cat $S/m/web/0/rootfs.tar > /dev/null");
    assert!(damaged.code != 0 && damaged.err.contains("Input/output"), "{damaged:?}");
    assert!(newest().contains("copy the same upload in again, which heals it"));
    m.ok(&format!("{IMGFS} umount $S/m; umount $S/small"));
}
