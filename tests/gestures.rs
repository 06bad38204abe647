//! The four journeys, and the ways tools really take them: real mounts, real coreutils.

use crate::common::{IMGFS, Mount, shared};

// ---- journey 1: cp in

#[test]
fn cp_adds_an_image_and_its_next_version() {
    let m = Mount::new();
    m.ok("cp $S/a.tar web.tar");
    assert_eq!(m.ok("ls"), "default\nweb\n");
    assert_eq!(m.ok("readlink default web/default web/latest"), "web\nlatest\n0\n");
    assert_eq!(
        m.ok("ls -A web web/0"),
        "web:\n.id\n0\ndefault\nlatest\nmetadata.json\n\nweb/0:\n.id\nmetadata.json\nrootfs\nrootfs.tar\nused_by\n"
    );
    m.ok("cmp $S/a.tar web/0/rootfs.tar && diff -r $S/a web/0/rootfs");
    m.ok("cp $S/b.tar web/; cmp $S/b.tar web/1/rootfs.tar");
    assert_eq!(m.ok("readlink web/latest; cat web/default/rootfs/etc/motd"), "1\nb\n");
    m.ok("cp $S/c.tar default/");
    assert_eq!(m.ok("cat web/2/rootfs/etc/motd"), "c\n");
    m.fsck();
}

#[test]
fn every_compression_is_taken_by_its_magic() {
    let m = Mount::new();
    for suffix in ["gz", "xz", "bz2", "zst", "lz4"] {
        m.ok(&format!(
            "cp $S/a.tar.{suffix} img-{suffix}.tar.{suffix}; cmp $S/a.tar img-{suffix}/0/rootfs.tar"
        ));
        let meta = m.json(&format!("img-{suffix}/0"));
        let codec = match suffix {
            "gz" => "gzip",
            "bz2" => "bzip2",
            "zst" => "zstd",
            other => other,
        };
        assert_eq!(meta["upload"]["compression"], codec);
        let sha256 = m.ok(&format!("sha256sum < $S/a.tar.{suffix} | cut -d' ' -f1"));
        assert_eq!(meta["upload"]["sha256"], sha256.trim());
    }
    // The suffix lies, the content does not.
    m.ok("cp $S/a.tar.xz lie.tar.gz; cmp $S/a.tar lie/0/rootfs.tar");
    // Several members, streams, frames.
    for (suffix, tool) in
        [("gz", "gzip"), ("xz", "xz"), ("bz2", "bzip2"), ("zst", "zstd -q"), ("lz4", "lz4 -q")]
    {
        m.ok(&format!(
            "head -c 70000 $S/a.tar | {tool} > $S/two.{suffix}; tail -c +70001 $S/a.tar | {tool} >> $S/two.{suffix};
             cp $S/two.{suffix} two-{suffix}.tar; cmp $S/a.tar two-{suffix}/0/rootfs.tar"
        ));
    }
    m.fsck();
}

#[test]
fn the_same_bytes_again_make_no_new_version() {
    let m = Mount::new();
    m.ok("cp $S/a.tar web.tar; cp $S/a.tar web.tar; cp $S/a.tar.xz web/");
    assert_eq!(m.json("web")["versions"].as_array().unwrap().len(), 1);
    assert!(m.ok("cat .imgfs/jobs/*.json").contains("already is this"));
    m.ok("cp $S/b.tar web/; cp $S/a.tar web/");
    assert_eq!(m.json("web")["latest_version"], 2, "equal to an older one is a new version");
}

#[test]
fn all_the_ways_of_writing_a_file() {
    let m = Mount::new();
    for (name, script) in [
        ("cat", "cat $S/a.tar > cat.tar"),
        ("dd", "dd if=$S/a.tar of=dd.tar bs=64k status=none"),
        ("ddsync", "dd if=$S/a.tar of=ddsync.tar bs=64k status=none conv=fsync"),
        ("tee", "tee tee.tar < $S/a.tar > /dev/null"),
        ("install", "install -m 600 $S/a.tar install.tar"),
        ("mv", "cp $S/a.tar $S/m.tar; mv $S/m.tar mv.tar; not test -e $S/m.tar"),
        ("cpa", "cp -a $S/a.tar cpa.tar"),
        ("curl", "curl -s -o curl.tar file://$S/a.tar"),
        ("rsync", "rsync $S/a.tar rsync.tar"),
        ("rsynca", "rsync -a $S/a.tar rsynca.tar"),
        ("rsynci", "rsync --inplace $S/a.tar rsynci.tar"),
        ("tar", "tar -C $S/a -cf tar.tar ."),
        ("targz", "tar -C $S/a -czf targz.tar.gz ."),
        ("tarzst", "tar -C $S/a --zstd -cf tarzst.tar.zst ."),
        ("pipe", "tar -C $S/a -c . | zstd -q > pipe.tar.zst"),
        ("dot", "cp $S/a.tar .t && mv .t dot.tar"),
        ("part", "cp $S/a.tar part.tar.part && mv part.tar.part part.tar"),
        ("lists", "{ head -c 1000 $S/a.tar; tail -c +1001 $S/a.tar; } > lists.tar"),
        ("append", "head -c 1000 $S/a.tar > .ap; tail -c +1001 $S/a.tar >> .ap; mv .ap append.tar"),
        ("python", "python3 -c 'import shutil,sys;shutil.copyfile(sys.argv[1],\"python.tar\")' $S/a.tar"),
        ("busybox", "busybox cp $S/a.tar busybox.tar"),
        (
            "reverse",
            "dd if=$S/a.tar of=reverse.tar bs=1000 skip=1 seek=1 status=none; cmp $S/a.tar reverse.tar 2>/dev/null; true",
        ),
        ("tiny", "dd if=$S/a.tar of=tiny.tar bs=100 status=none"),
        ("sparse", "cp --sparse=always $S/a.tar sparse.tar"),
    ] {
        let ran = m.sh(script);
        if name == "reverse" {
            continue;
        }
        assert_eq!(ran.code, 0, "{name}: {ran:?} {}", m.errors());
        m.ok(&format!("diff -r $S/a {name}/0/rootfs"));
    }
    assert_eq!(m.ok("ls -A | grep -F . || true"), "", "no upload is left under its own name");
    m.fsck();
}

#[test]
fn writes_out_of_order_are_judged_at_close() {
    let m = Mount::new();
    m.ok("python3 - $S/a.tar <<'EOF'
import os, random, sys
data = open(sys.argv[1], 'rb').read()
random.seed(7)
pieces = list(range(0, len(data), 5000))
random.shuffle(pieces)
fd = os.open('mixed.tar', os.O_CREAT | os.O_WRONLY)
for at in pieces:
    os.pwrite(fd, data[at:at + 5000], at)
os.close(fd)
# In order at first, then a gap that is filled later.
fd = os.open('gap.tar', os.O_CREAT | os.O_WRONLY)
os.pwrite(fd, data[:20000], 0)
os.pwrite(fd, data[40000:], 40000)
os.pwrite(fd, data[20000:40000], 20000)
os.close(fd)
EOF");
    m.ok("cmp $S/a.tar mixed/0/rootfs.tar && cmp $S/a.tar gap/0/rootfs.tar");
}

#[test]
fn what_is_no_whole_archive_is_refused_and_leaves_nothing() {
    let m = Mount::new();
    m.refused("cp $S/not.tar web.tar", "Invalid argument");
    m.refused("cp $S/cut.tar web.tar", "Invalid argument");
    m.refused("head -c 5000 $S/a.tar.gz > $S/cut.gz; cp $S/cut.gz web.tar.gz", "Invalid argument");
    for suffix in ["gz", "xz", "bz2", "zst", "lz4"] {
        m.refused(&format!("head -c -7 $S/a.tar.{suffix} > $S/cut; cp $S/cut web.tar"), "Invalid argument");
        m.refused(
            &format!(
                "cp $S/a.tar.{suffix} $S/bad; printf wxyz | dd of=$S/bad bs=1 seek=20000 conv=notrunc status=none; cp $S/bad web.tar"
            ),
            "Invalid argument",
        );
        m.refused(
            &format!("(cat $S/a.tar.{suffix}; echo trailing) > $S/more; cp $S/more web.tar"),
            "Invalid argument",
        );
    }
    assert_eq!(m.ok("ls -A; ls -A .imgfs/trash"), "");
    assert_eq!(m.ok("ls $STORE/loose $STORE/trees $STORE/staging | grep -v : || true").trim(), "");
    assert!(
        m.errors().lines().next().unwrap().contains("trailing")
            || m.errors().contains("something else follows")
    );
}

#[test]
fn a_tar_cut_between_entries_is_refused_but_a_rename_may_commit_it() {
    let m = Mount::new();
    // Without the end marker: GNU tar takes it silently.
    m.ok("python3 -c \"d=open('$S/a.tar','rb').read().rstrip(b'\\\\0'); n=-(-len(d)//512)*512; open('$S/unmarked.tar','wb').write(d+b'\\\\0'*(n-len(d)))\"; tar tf $S/unmarked.tar");
    m.refused("cp $S/unmarked.tar web.tar", "Invalid argument");
    m.ok("cp $S/unmarked.tar .x; mv .x web.tar; diff -r $S/a web/0/rootfs; cmp $S/unmarked.tar web/0/rootfs.tar");
}

/// A staged upload that was removed, as rsync does when it is told to end, kept three threads and its bytes.
#[test]
fn staged_uploads_that_are_removed_leave_nothing() {
    let m = Mount::new();
    let threads = format!("/proc/{}/task", m.daemon());
    m.ok(&format!(
        "ls {threads} | wc -l > $S/before; cp $S/a.tar .x.tar; rm .x.tar; head -c 200000 $S/a.tar > .y.tar; rm .y.tar"
    ));
    m.ok("(exec 7> .z.tar; head -c 200000 $S/a.tar >&7; rm .z.tar); cp $S/a.tar .v.tar; cp $S/b.tar .w.tar; mv .v.tar .w.tar; rm .w.tar");
    m.ok(&format!("for i in $(seq 100); do [ -z \"$(ls $STORE/staging)\" ] && [ $(ls {threads} | wc -l) -le $(cat $S/before) ] && exit 0; sleep 0.1; done; ls $STORE/staging; exit 1"));
    assert_eq!(m.ok("ls -A"), "");
}

#[test]
fn empty_files_are_never_images_and_never_errors() {
    let m = Mount::new();
    m.ok("touch web.tar; : > x.tar; not wget -q -O y.tar http://127.0.0.1:1/x");
    assert_eq!(m.ok("ls -A"), "");
}

#[test]
fn killed_writers_publish_nothing() {
    let m = Mount::new();
    // All bytes are written: only the signal tells that the writer did not mean to end.
    for signal in ["KILL", "TERM", "INT"] {
        m.ok(&format!(
            "python3 - $S/a.tar <<'EOF'
import os, signal, sys
if os.fork() == 0:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    fd = os.open('killed.tar', os.O_CREAT | os.O_WRONLY)
    os.write(fd, open(sys.argv[1], 'rb').read())
    os.kill(os.getpid(), signal.SIG{signal})
    os._exit(0)
os.wait()
EOF"
        ));
    }
    m.ok("for i in 1 2 3 4 5 6 7 8 9 10; do [ -e .imgfs/failed/killed.tar ] && break; sleep 0.1; done; cat .imgfs/failed/killed.tar");
    assert_eq!(m.ok("ls -A"), "");
    // A normal exit without close publishes.
    m.ok("python3 -c \"import os; fd=os.open('exits.tar',os.O_CREAT|os.O_WRONLY); os.write(fd,open('$S/a.tar','rb').read()); os._exit(0)\"");
    assert_eq!(m.ok("ls -A"), "default\nexits\n");
}

/// Zeros are an end marker: what came without its beginning was an image that is empty.
#[test]
fn what_has_no_beginning_is_no_image() {
    let m = Mount::new();
    m.refused("dd if=$S/a.tar of=web.tar bs=1M seek=5 status=none", "Invalid argument");
    m.refused(
        "(head -c 1024 /dev/zero; cat $S/a.tar) > $S/late.tar; cp $S/late.tar web.tar",
        "Invalid argument",
    );
    m.refused("python3 -c \"import os; d = open('$S/a.tar', 'rb').read(); os.pwrite(os.open('web.tar', os.O_CREAT | os.O_WRONLY), d[4096:], 4096)\"; not test -e web && false", "");
    assert!(m.errors().contains("was its beginning written?"), "{}", m.errors());
    assert_eq!(m.ok("ls -A"), "");
    m.ok("head -c 10240 /dev/zero > $S/empty.tar; cp $S/empty.tar empty.tar; cmp $S/empty.tar empty/0/rootfs.tar");
}

/// mv across file systems makes its file private, and then sets the ACL that means the mode.
#[test]
fn mv_from_elsewhere_keeps_the_mode() {
    let Some(m) = shared(&[]) else { return };
    m.ok("cp $S/a.tar $S/v.tar; chmod 644 $S/v.tar; mv $S/v.tar web.tar; test $(stat -c %a web) = 755; cp $S/b.tar $S/v.tar; chmod 640 $S/v.tar; mv $S/v.tar db.tar; test $(stat -c %a db) = 750");
    m.ok("cp $S/c.tar $S/v.tar; chmod 644 $S/v.tar; mkdir .st; mv $S/v.tar .st/; test $(stat -c %a .st/v.tar) = 644");
}

#[test]
fn who_reads_no_further_is_no_failure() {
    let m = Mount::new();
    m.ok(&format!("for n in $(seq 5); do {IMGFS} status --store $STORE | true; {IMGFS} fsck --store $STORE | head -c 1 > /dev/null; done 2> $S/said || true; not grep -q panick $S/said"));
}

/// What was never written is zeros, and zeros of terabytes take hours to unpack.
#[test]
fn a_hole_is_refused_or_can_be_left() {
    let m = Mount::new();
    m.refused("printf x | timeout 20 dd of=web.tar bs=1 seek=5497558138880", "Argument list too long");
    m.refused(
        "timeout 20 python3 -c \"import os; os.pwrite(os.open('web.tar', os.O_CREAT | os.O_WRONLY), b'x', 1 << 50)\"",
        "too long",
    );
    m.refused("timeout 20 truncate -s 5T web.tar", "");
    assert_eq!(
        m.ok("ls -A; tail -n 1 .imgfs/errors | grep -o 'the size of the file.*4398046511104'")
            .lines()
            .count(),
        1
    );
    // The kernel lets nobody die who waits for a close, but for the answer.
    let hole = "import os, sys, time
fd = os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY)
os.write(fd, open(sys.argv[2], 'rb').read())
os.pwrite(fd, b'x', 3 << 40)
print('closing', flush=True)
";
    let ran = m.sh(&format!("timeout -s INT -k 30 5 python3 -c \"import signal; signal.signal(signal.SIGINT, signal.SIG_DFL)\n{hole}os.close(fd)\" web.tar $S/a.tar"));
    assert!(ran.code == 124 && ran.out == "closing\n", "{ran:?}");
    // A mv that is killed can be done again.
    m.ok(&format!("timeout -k 30 20 python3 -c \"{hole}os.ftruncate(fd, 3 << 40)\" .web.tar $S/a.tar"));
    assert_eq!(m.sh("timeout -k 30 2 mv .web.tar web.tar").code, 124);
    assert_eq!(m.ok("timeout 20 ls -A"), ".web.tar\n");
    m.ok("rm .web.tar; cp $S/a.tar web.tar; cmp $S/a.tar web/0/rootfs.tar");
    m.fsck();
}

/// Python opens with O_CLOEXEC: a child's execve closes the upload, and nobody can read the child's stat
/// meanwhile. The event loop waited for that, and the mount hung.
#[test]
fn a_writer_may_start_programs() {
    let m = Mount::new();
    m.ok("timeout 60 python3 - $S/a.tar <<'EOF'
import os, subprocess, sys
data = open(sys.argv[1], 'rb').read()
with open('web.tar', 'wb') as out:
    for at in range(0, len(data), 100000):
        out.write(data[at:at + 100000])
        out.flush()
        # Forked, not vforked: the child closes its own copies.
        subprocess.run(['true'], preexec_fn=lambda: None, close_fds=False, check=True)
EOF");
    m.ok("cmp $S/a.tar web/0/rootfs.tar; test ! -e web/1");
}

#[test]
fn an_upload_shows_under_its_name_until_it_is_done() {
    let m = Mount::new();
    m.ok("exec 7> web.tar; head -c 20000 $S/a.tar >&7; ls; stat -c %s web.tar; ls .imgfs/jobs; tail -c +20001 $S/a.tar >&7; exec 7>&-; ls; test -d web/0");
    m.refused("exec 7> x.tar; head -c 2000 $S/a.tar >&7; cp $S/a.tar x.tar", "Device or resource busy");
}

#[test]
fn receipts_let_tools_end_well() {
    let mut m = Mount::new();
    m.ok("cp -p $S/a.tar web.tar; test $(stat -c %s web.tar) = $(stat -c %s $S/a.tar); test web.tar -nt $S/x -o ! web.tar -ot $S/a.tar");
    assert_eq!(m.ok("ls"), "default\nweb\n", "not listed");
    m.ok("chmod 600 web.tar; touch -d 2020-01-01 web.tar; test $(stat -c %Y web.tar) = 1577836800");
    // The end of a file comes after its close has returned, while the next call is under way.
    for _ in 0..2000 {
        drop(std::fs::File::options().write(true).open(m.mnt().join("web.tar")).unwrap());
        std::fs::metadata(m.mnt().join("web.tar")).unwrap();
    }
    m.ok("cmp $S/a.tar web.tar");
    m.remount();
    m.ok("test $(stat -c %Y web.tar) = 1577836800; cmp $S/a.tar web.tar");
    m.ok("rsync -t $S/b.tar web.tar; rsync -ti $S/b.tar web.tar > $S/out; not grep -q f $S/out");
    assert_eq!(m.json("web")["latest_version"], 1);
    m.ok("cp $S/a.tar.xz other.tar.xz; rm other.tar.xz; not test -e other.tar.xz; test -d other/0");
    m.ok("cp $S/a.tar.gz z.tar.gz; not cat z.tar.gz");
    m.ok("cp $S/c.tar g.tar; gzip g.tar; not test -e g.tar; test -e g/0 -a ! -e g/1");
}

/// A second rsync after `rm -r` found the receipt, sent nothing, and the image stayed gone.
#[test]
fn receipts_go_with_their_version() {
    let m = Mount::new();
    m.ok("cp -p $S/a.tar web.tar; rm -r web; not test -e web.tar; rsync -t $S/a.tar web.tar; test -d web/0");
    m.ok("mv web www; not test -e web.tar; cp $S/b.tar web.tar; test -d web/0; cp $S/c.tar web/x.tar; rmdir web/0; test -e web/x.tar; ln -sfn 1 web/default");
}

#[test]
fn tar_append_over_a_receipt_makes_the_next_version() {
    let m = Mount::new();
    m.ok("cp $S/a.tar web.tar; tar -C $S -rf web.tar not.tar; cmp $S/not.tar web/1/rootfs/not.tar");
}

#[test]
fn twenty_uploads_at_once() {
    let m = Mount::new();
    m.ok(
        "for i in $(seq 20); do cp $S/a.tar.zst img$i.tar.zst & done; wait; test $(ls -d img* | wc -l) = 20",
    );
    m.ok("for i in $(seq 20); do cmp $S/a.tar img$i/0/rootfs.tar || exit 1; done");
    m.ok("for i in $(seq 20); do cp -a $S/a $S/v$i; echo $i > $S/v$i/n; tar -C $S/v$i -cf $S/v$i.tar .; done; for i in $(seq 20); do cp $S/v$i.tar img1/ & done; wait");
    assert_eq!(m.json("img1")["versions"].as_array().unwrap().len(), 21);
    let stored = m.json("img1/0")["stored_bytes"].as_u64().unwrap();
    assert!(stored < 100_000, "content is stored once: {stored}");
    m.fsck();
}

// ---- journey 2: cat

#[test]
fn versions_are_read_only_whoever_asks() {
    // Into a tree that is a mount of its own the kernel lets nobody write, and says so alone: see trees.rs.
    let m = Mount::with(&["trees=inline"]);
    m.ok("cp $S/a.tar web.tar");
    m.refused("echo x > web/0/rootfs/etc/motd", "Read-only file system");
    m.refused("rm web/0/rootfs/etc/motd", "Read-only file system");
    m.refused("mkdir web/0/rootfs/x", "Read-only file system");
    m.refused("touch web/0/rootfs/new", "Read-only file system");
    m.refused("chmod 777 web/0/rootfs/etc/motd", "Read-only file system");
    m.refused("ln -s a web/0/rootfs/b", "Read-only file system");
    m.refused("mv web/0/rootfs/etc/motd web/0/rootfs/etc/m2", "Read-only file system");
    m.refused("echo > web/0/rootfs.tar", "Read-only file system");
    m.refused("setfattr -n user.x -v 1 web/0/rootfs/etc/motd", "Read-only file system");
    m.ok("diff -r $S/a web/0/rootfs");
}

#[test]
fn rootfs_tar_reads_at_random() {
    let m = Mount::new();
    m.ok("cp $S/a.tar.zst web.tar.zst");
    m.ok("python3 - $S/a.tar web/0/rootfs.tar <<'EOF'
import os, random, sys
random.seed(3)
want = open(sys.argv[1], 'rb').read()
fd = os.open(sys.argv[2], os.O_RDONLY)
assert os.fstat(fd).st_size == len(want)
for _ in range(500):
    at = random.randrange(len(want) + 10)
    n = random.randrange(40000)
    assert os.pread(fd, n, at) == want[at:at + n], (at, n)
EOF");
    m.ok("mkdir $S/x; tar xf web/0/rootfs.tar -C $S/x; diff -r $S/a $S/x");
}

#[test]
fn du_and_stat_make_sense() {
    let m = Mount::new();
    m.ok("cp $S/a.tar web.tar; cp $S/b.tar web/");
    m.ok("test $(stat -c %i web/0/rootfs/bin/tool) != $(stat -c %i web/1/rootfs/bin/tool)");
    m.ok("test $(stat -c %i web/0/rootfs/etc/motd) = $(stat -c %i web/0/rootfs/etc/hard); test $(stat -c %h web/0/rootfs/etc/motd) = 2");
    m.ok("test $(stat -c %b web/0/rootfs/bin/tool) -ge $((300000 / 512))");
    // Without the directories, whose size is another on each file system.
    m.ok("sum() { echo $(($(du -sb $1 | cut -f1) - ($(find $1 -type d -printf '%s + ') 0))); }; test $(sum $S/a) = $(sum web/0/rootfs)");
    m.ok("df . | grep -q fuse.imgfs || df -T . | grep -q fuse.imgfs");
    assert!(m.ok("find . -name .imgfs; du -a . | grep -c imgfs || true").trim().ends_with('0'));
}

#[test]
fn holes_are_served_as_holes() {
    let m = Mount::new();
    m.ok("mkdir $S/h; truncate -s 40G $S/h/hole; printf end | dd of=$S/h/hole bs=1 seek=20G conv=notrunc status=none; tar -C $S/h -S -cf h.tar .");
    m.ok("timeout 20 cp --sparse=auto h/0/rootfs/hole $S/copy; test $(stat -c %s $S/copy) = $((40 << 30)); test $(stat -c %b $S/copy) -lt 1000");
    m.ok("test \"$(dd if=h/0/rootfs/hole bs=1 skip=20G count=3 status=none)\" = end");
    m.ok("head -c 8M /dev/zero > $S/h/hole; printf x >> $S/h/hole; tar -C $S/h -cf z.tar .; test $(du -k $STORE/loose | cut -f1) -lt 400; cmp $S/h/hole z/0/rootfs/hole");
}

// ---- journey 3: ln -sfn

#[test]
fn links_follow_the_image_they_lead_to() {
    let m = Mount::new();
    m.ok("cp $S/a.tar web.tar; cp $S/b.tar db.tar; ln -s web prod; ln -s web/0 old");
    for name in ["site", "other"] {
        // Read before, so that the kernel remembers.
        m.ok("readlink prod old default; readlink .imgfs/by-id/*; cat prod/0/rootfs/etc/motd old/rootfs/etc/motd default/0/.id");
        m.ok(&format!("mv $(readlink prod) {name}; test $(readlink prod) = {name}; test $(readlink old) = {name}/0; test $(readlink default) = {name}"));
        m.ok("cat prod/0/rootfs/etc/motd old/rootfs/etc/motd default/0/.id; for l in .imgfs/by-id/*; do test -e $l/metadata.json || exit 1; done");
    }
    m.ok("ln -sfn db default; rm -r other; ls -l; mv .imgfs/trash/other back; test $(readlink prod) = back; cat old/rootfs/etc/motd");
}

#[test]
fn the_default_image_is_switched_by_a_link() {
    let m = Mount::new();
    m.ok("cp $S/a.tar web.tar; cp $S/b.tar db.tar");
    assert_eq!(m.ok("readlink default"), "web\n");
    m.ok("ln -sfn db default; test $(readlink default) = db; ln -sfT web default; test $(readlink default) = web");
    m.ok("busybox ln -sfn db default; test $(readlink default) = db");
    m.ok("python3 -c \"import os;os.symlink('web','.t');os.replace('.t','default')\"; test $(readlink default) = web");
    m.ok("ln -sfn $MNT/db default; test $(readlink default) = db");
    m.ok("ln --backup=numbered -sfn web default; test $(readlink default) = web; test $(readlink default.~1~) = db");
    m.refused("ln -sfn nothing default", "No such file or directory");
    assert_eq!(m.ok("readlink default"), "web\n");
    m.refused("ln -sf db default", "No such file or directory");
    m.refused("ln -s db default", "No such file or directory");
}

#[test]
fn versions_are_pinned_and_followed() {
    let m = Mount::new();
    m.ok("cp $S/a.tar web.tar; cp $S/b.tar web/; ln -sfn 0 web/default; test $(cat web/default/rootfs/etc/motd) = one");
    m.ok("cp $S/c.tar web/; test $(cat web/default/rootfs/etc/motd) = one; test $(readlink web/latest) = 2");
    assert_eq!(m.json("web")["default_version"], 0);
    m.ok("ln -sfn latest web/default; test $(cat web/default/rootfs/etc/motd) = c");
    m.ok("busybox ln -sfn 1 web/default; test $(readlink web/default) = 1");
    m.refused("ln -sfn 9 web/default", "No such file or directory");
    m.refused("ln -sfn 0 web/latest", "Operation not permitted");
    assert_eq!(m.ok("readlink web/default"), "1\n");
}

#[test]
fn readers_of_default_never_see_it_dangling() {
    let m = Mount::new();
    m.ok("cp $S/a.tar web.tar; cp $S/b.tar db.tar");
    m.ok("( while [ ! -e $S/stop ]; do cat default/0/rootfs/etc/os-release > /dev/null || echo dangling >> $S/bad; done ) &
         for i in $(seq 200); do ln -sfn web default; ln -sfn db default; done; touch $S/stop; wait; not test -e $S/bad");
}

#[test]
fn aliases_come_go_and_follow_renames() {
    let m = Mount::new();
    m.ok("cp $S/a.tar web.tar; cp $S/b.tar web/; ln -s web jammy; ln -s web/0 old; ln -s ./web dot");
    assert_eq!(m.ok("readlink jammy old dot; cat old/rootfs/etc/motd"), "web\nweb/0\nweb\none\n");
    let names: Vec<String> = m.json("web")["aliases"]
        .as_array()
        .unwrap()
        .iter()
        .map(|a| a["name"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(names, ["dot", "jammy", "old"]);
    m.ok("id=$(cat web/.id); mv web www; test $(readlink jammy) = www; test $(readlink old) = www/0; test $(readlink default) = www; test $(cat www/.id) = $id; test $(readlink .imgfs/by-id/$id) = ../../www");
    m.ok("rm jammy; mv old older; test $(readlink older) = www/0; not test -e jammy");
    m.refused("ln -s nothing x", "No such file or directory");
    m.refused("cp $S/a.tar older.tar", "File exists");
    // The kernel answers this one itself.
    m.ok("not mkdir older 2> $S/err; grep -q 'File exists' $S/err");
    m.ok("cp $S/c.tar other.tar");
    m.refused("mv -T www other", "File exists");
    m.ok("ln -sfn other older; test $(readlink older) = other");
}

// ---- journey 4: rmdir

#[test]
fn rmdir_deletes_a_version_or_an_image_at_once() {
    let m = Mount::new();
    m.ok("cp $S/a.tar web.tar; cp $S/b.tar web/; cp $S/c.tar db.tar");
    m.ok("rmdir web/1; not test -e web/1; test $(readlink web/latest) = 0");
    m.refused("rmdir web/0", "Device or resource busy");
    m.refused("rmdir web", "Device or resource busy");
    m.ok("ln -sfn db default; rmdir web; not test -e web; rmdir db");
    assert_eq!(m.ok("ls -A"), "");
    m.ok("cp $S/a.tar web.tar; test -d web/0; test $(readlink default) = web");
    m.fsck();
}

#[test]
fn a_number_is_never_used_twice() {
    let m = Mount::new();
    m.ok("cp $S/a.tar web.tar; cp $S/b.tar web/; rmdir web/1; cp $S/c.tar web/");
    assert_eq!(m.ok("ls web"), "0\n2\ndefault\nlatest\nmetadata.json\n");
}

#[test]
fn recursive_removal_by_every_tool() {
    let m = Mount::new();
    for tool in ["rm -r", "rm -rf", "busybox rm -rf", "find"] {
        let command = |path: &str| {
            if tool == "find" { format!("find {path} -delete") } else { format!("{tool} {path}") }
        };
        m.ok("cp $S/a.tar web.tar; cp $S/b.tar web/; cp $S/c.tar web/");
        let ran = m.sh(&command("web/1"));
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{tool} of a version");
        m.ok("not test -e web/1; test -d web/0 -a -d web/2; test -e .imgfs/trash/web.1/rootfs/etc/motd; diff -r $S/b .imgfs/trash/web.1/rootfs");
        let ran = m.sh(&command("web"));
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{tool} of an image");
        m.ok("not test -e web; test \"$(ls -A)\" = ''; test -e .imgfs/trash/web");
        m.ok("rm -r .imgfs/trash/web.1 .imgfs/trash/web; test \"$(ls -A .imgfs/trash)\" = ''");
    }
    for script in
        ["python3 -c 'import shutil;shutil.rmtree(\"web\")'", "perl -MFile::Path -e 'rmtree(\"web\")'"]
    {
        m.ok("cp $S/a.tar web.tar; cp $S/b.tar web/");
        m.ok(&format!("{script}; not test -e web"));
    }
    m.fsck();
}

#[test]
fn a_refused_recursive_removal_leaves_everything_and_says_little() {
    // Into a tree that is a mount of its own the kernel lets nobody write, and says so alone: see trees.rs.
    let m = Mount::with(&["trees=inline"]);
    m.ok(
        "for i in $(seq 300); do echo $i > $S/a/etc/f$i; done; tar -C $S/a -cf web.tar .; cp $S/b.tar db.tar",
    );
    for target in ["web", "web/0"] {
        let ran = m.refused(&format!("rm -r {target}"), "Device or resource busy");
        assert!(ran.err.lines().count() < 12, "{} lines", ran.err.lines().count());
        assert!(!ran.err.contains("Input/output error"), "{}", ran.err);
        m.ok("diff -r $S/a web/0/rootfs");
    }
}

#[test]
fn who_stands_in_a_deleted_version_goes_on() {
    // A chroot and an overlay.
    if !crate::common::as_root() {
        return;
    }
    let m = Mount::new();
    m.ok("mkdir -p $S/root/bin $S/root/d; cp $(which busybox) $S/root/bin/busybox; \
          for f in $(ldd $(which busybox) 2> /dev/null | grep -o '/[^ ]*'); do mkdir -p $S/root/$(dirname $f); cp $f $S/root/$f; done; \
          for t in sh cat ls sleep; do ln -s busybox $S/root/bin/$t; done; echo here > $S/root/d/f; tar -C $S/root -cf web.tar .; cp $S/a.tar web/; cp $S/b.tar db.tar");
    m.ok("mkdir -p $S/up $S/work $S/merged; mount -t overlay overlay -o lowerdir=web/0/rootfs,upperdir=$S/up,workdir=$S/work $S/merged");
    // A chroot, a working directory, an open file, an overlay: all in the version that goes.
    m.ok(
        "mkfifo $S/go $S/go2; ( chroot web/0/rootfs /bin/sh -c 'echo in; read x; cat /d/f; ls /d' < $S/go > $S/chrooted 2>&1 ) & a=$!
         ( cd web/0/rootfs/d; exec 5< f; read x < $S/go2; cat f <&5 > $S/cwd; ls >> $S/cwd; cat f >> $S/cwd ) & b=$!
         exec 8> $S/go 9> $S/go2
         until grep -q in $S/chrooted; do kill -0 $a || { cat $S/chrooted >&2; exit 1; }; sleep 0.01; done
         rm -r web/0; not test -e web/0
         echo >&8; echo >&9; wait $a $b; cat $S/chrooted $S/cwd; test \"$(cat $S/chrooted)\" = \"$(printf 'in\\nhere\\nf')\"; test \"$(cat $S/cwd)\" = \"$(printf 'here\\nf\\nhere')\"",
    );
    m.ok("cat $S/merged/d/f; chroot $S/merged /bin/ls /d");
    // Also when it is gone for good.
    m.ok("rm -r .imgfs/trash/web.0; $(which true); cat $S/merged/d/f; chroot $S/merged /bin/cat /d/f; umount $S/merged");
    m.fsck();
}

#[test]
fn what_is_open_is_read_on_when_its_version_is_gone_for_good() {
    let m = Mount::with(&["keep_upload=always"]);
    m.ok("cp $S/a.tar.zst web.tar.zst; cp $S/b.tar db.tar; ln -sfn db default");
    m.ok(&format!(
        "exec 5< web/0/rootfs.tar 6< web/0/rootfs.tar 7< web/0/*.zst 8< web/0/*.zst; head -c 5000 <&5 > $S/tar; head -c 500 <&7 > $S/kept
         rm -r web; {IMGFS} gc --trash --store $STORE; sleep 1.1
         cat <&5 >> $S/tar; cmp $S/a.tar $S/tar; sha256sum <&6 | cut -c-64 > $S/sum; sha256sum < $S/a.tar | cut -c-64 | cmp - $S/sum
         cat <&7 >> $S/kept; cmp $S/a.tar.zst $S/kept; cmp $S/a.tar.zst - <&8"
    ));
    // Then its content goes, too.
    m.ok("for n in $(seq 400); do test $(cat $STORE/loose/* | wc -c) -lt 400000 && exit 0; sleep 0.1; done; exit 1");
    m.fsck();
}

#[test]
fn the_trash_gives_back_what_was_deleted() {
    let mut m = Mount::new();
    m.ok("cp $S/a.tar web.tar; cp $S/b.tar web/; cp $S/c.tar web/; ln -s web prod; rmdir web/1; ls .imgfs/trash");
    m.remount();
    m.ok("mv .imgfs/trash/web.1 web/; test -d web/1; not test -e web/web.1; diff -r $S/b web/1/rootfs; test \"$(ls -A .imgfs/trash)\" = ''");
    m.ok("rm -r web; not test -e prod; mv .imgfs/trash/web .; diff -r $S/b web/1/rootfs; test $(readlink prod) = web; test $(readlink default) = web");
    m.ok("rm -r web; cp $S/a.tar web.tar; rm -r web; ls .imgfs/trash; mv .imgfs/trash/web first; mv .imgfs/trash/web~2 second; test $(ls -d first/? | wc -l) = 3");
    m.refused(
        "cp $S/a.tar web.tar; cp $S/b.tar web/; rmdir web/1; mv .imgfs/trash/web.1 first/",
        "Operation not permitted",
    );
    m.fsck();
}

/// An alias of a version went for good when that went into the trash.
#[test]
fn aliases_of_a_version_go_and_come_with_it() {
    let m = Mount::new();
    m.ok("cp $S/a.tar web.tar; cp $S/b.tar web.tar; cp $S/c.tar db.tar; ln -s web/0 old; ln -s web/0 also; ln -s web all");
    m.ok("rmdir web/0; sleep 1.1; test ! -L old; test \"$(ls)\" = \"$(echo all db default web | tr ' ' '\\n')\"; grep -q '\"aliases\": \\[$' web/metadata.json; not grep -q old web/metadata.json");
    // One whose name was taken meanwhile comes back when that is free again.
    m.ok("ln -s db also; mv .imgfs/trash/web.0 web/; test $(readlink old) = web/0; test $(readlink also) = db; rm also; sleep 1.1; test $(readlink also) = web/0; diff -r $S/a old/rootfs");
    m.ok("ln -sfn db default; rmdir web/0; rm -r web; mv .imgfs/trash/web .; test ! -e old; mv .imgfs/trash/web.0 web/; test $(readlink old) = web/0");
    m.fsck();
    m.ok(&format!("rmdir web/0; {IMGFS} gc --trash --store $STORE; ln -s db old; test $(readlink old) = db"));
    m.fsck();
}

/// An image and a staged file had the same name.
#[test]
fn a_name_that_is_staged_is_taken() {
    let m = Mount::new();
    m.ok("cp $S/a.tar foo.part; cp $S/b.tar db.tar; ls -l foo.part");
    let gestures = [
        "cp $S/a.tar foo.part.tar",
        "mkdir foo.part",
        "mv -T db foo.part",
        "ln -sT db foo.part",
        "cp $S/c.tar .t; mv .t foo.part.tar",
    ];
    for gesture in gestures {
        m.ok(&format!("not eval '{gesture}'"));
        m.ok("test $(ls | grep -c foo) = 1; test -f foo.part; rm -f .t");
    }
    m.ok("rmdir db; mkdir .new; cp $S/c.tar .new/");
    m.ok("not mv -T .imgfs/trash/db foo.part; not mv -T .new foo.part");
    m.ok("mv foo.part foo.tar; diff -r $S/a foo/0/rootfs; mkdir foo.part; ls");
    m.fsck();
}

/// What followed a refused rm -r stood above the reason.
#[test]
fn why_rm_r_was_refused_stands_first() {
    let m = Mount::new();
    m.ok("cp $S/a.tar web.tar; cp $S/b.tar db.tar");
    m.refused("rm -r web", "busy");
    m.ok("head -1 .imgfs/errors | grep -q 'default image'");
}

#[test]
fn the_trash_ends_after_its_time_and_the_space_comes_back() {
    let m = Mount::with(&["trash=1s"]);
    m.ok("cp $S/a.tar web.tar; rmdir web; for i in $(seq 300); do [ -z \"$(ls -A .imgfs/trash)\" ] && [ -z \"$(ls $STORE/loose $STORE/trees | grep -v :)\" ] && exit 0; sleep 0.1; done; exit 1");
    let kept = Mount::new();
    kept.ok("cp $S/a.tar web.tar; rmdir web");
    let ran = kept.sh(&format!("{} gc --trash --store $STORE; du -sk $STORE | cut -f1", IMGFS));
    assert_eq!(ran.code, 0, "{ran:?}");
    let kib: u64 = ran.out.lines().last().unwrap().trim().parse().unwrap();
    assert!(kib < 1024, "{kib} KiB");
}

// ---- metadata.json

#[test]
fn metadata_is_edited_in_every_usual_way() {
    let m = Mount::new();
    m.ok("cp $S/a.tar web.tar");
    m.ok("jq '.description=\"by jq\"' web/metadata.json > web/.t && mv web/.t web/metadata.json");
    assert_eq!(m.json("web")["description"], "by jq");
    m.ok("sed -i 's/by jq/by sed/' web/metadata.json");
    assert_eq!(m.json("web")["description"], "by sed");
    m.ok("perl -pi -e 's/by sed/by perl/' web/metadata.json");
    assert_eq!(m.json("web")["description"], "by perl");
    m.ok("vim -u NONE -es -c 's/xx/yy/e' -c '%s/by perl/by vim/' -c wq web/metadata.json");
    assert_eq!(m.json("web")["description"], "by vim");
    m.ok("jq '.tags=[\"a\",\"b\"]|.properties={k:\"v\"}|.type=\"vm\"|.variant=\"x\"' web/metadata.json > $S/t.json; cp $S/t.json web/metadata.json");
    assert_eq!(m.json("web")["tags"], serde_json::json!(["a", "b"]));
    m.ok("python3 -c \"import json;d=json.load(open('web/metadata.json'));d['os']='plan9';json.dump(d,open('web/metadata.json','w'))\"");
    assert_eq!(m.json("web")["os"], "plan9");
    m.ok("echo '{\"release\": \"4\"}' > web/metadata.json");
    assert_eq!((m.json("web")["release"].clone(), m.json("web")["os"].clone()), ("4".into(), "plan9".into()));
    m.ok("setfattr -n user.imgfs.description -v 'by xattr' web; test \"$(getfattr --only-values -n user.imgfs.description web)\" = 'by xattr'");
    m.ok(
        "rsync $S/t.json web/metadata.json 2>/dev/null || true; ls -A web > $S/ls; not grep -q '[.]t$' $S/ls",
    );
    let text = m.ok("cat web/metadata.json");
    assert!(text.ends_with("}\n") && text.starts_with("{\n  \"id\": "));
}

#[test]
fn bad_edits_are_refused_whole() {
    let m = Mount::new();
    m.ok("cp $S/a.tar web.tar");
    let before = m.ok("cat web/metadata.json");
    m.refused("printf '{bad' > $S/j; cp $S/j web/metadata.json", "Invalid argument");
    m.refused("jq '.name=\"x\"' web/metadata.json > $S/j; cp $S/j web/metadata.json", "Invalid argument");
    m.refused("jq '.nonsense=1' web/metadata.json > $S/j; cp $S/j web/metadata.json", "Invalid argument");
    m.refused("jq '.description=1' web/metadata.json > $S/j; cp $S/j web/metadata.json", "Invalid argument");
    m.refused(
        "jq '.description=\"y\"|.size=1' web/metadata.json > web/.t; mv web/.t web/metadata.json",
        "cannot move",
    );
    m.ok("rm web/metadata.json");
    m.refused("echo x > web/0/metadata.json", "Read-only file system");
    assert_eq!(m.ok("cat web/metadata.json"), before);
    m.ok(": > web/metadata.json");
    assert_eq!(m.ok("cat web/metadata.json"), before, "an empty document is none");
}

#[test]
fn the_system_is_told_from_the_image() {
    let m = Mount::new();
    m.ok("mkdir -p $S/r/usr/bin $S/r/etc $S/r/usr/lib; ln -s usr/bin $S/r/bin; cp /bin/true $S/r/usr/bin/dash; ln -s dash $S/r/usr/bin/sh; ln -s ../usr/lib/os-release $S/r/etc/os-release; printf 'ID=\"debian\"\\nVERSION_CODENAME=bookworm\\n' > $S/r/usr/lib/os-release; tar -C $S/r -cf r.tar .");
    let meta = m.json("r");
    assert_eq!((&meta["os"], &meta["release"]), (&"debian".into(), &"bookworm".into()));
    assert_eq!(meta["architecture"], m.ok("uname -m").trim());
    assert_eq!(m.json("r/0")["os"], "debian");
}

// ---- the store itself

#[test]
fn control_files_tell_the_store() {
    let m = Mount::new();
    m.ok("cp $S/a.tar web.tar; not cp $S/b.tar.x web/ 2>/dev/null; not cp $S/not.tar web/ 2>/dev/null");
    m.ok("grep -q 'ln -sfn' .imgfs/README; grep -q '^  df MNT  ' .imgfs/README; grep -q 'the default image$' .imgfs/README; not grep -q -e '<!--' -e semantics: -e '](' .imgfs/README; jq -e '.images == 1 and .versions == 1' .imgfs/status.json; grep -q 'no tarball\\|not a tarball' .imgfs/errors; grep -q added .imgfs/log");
    m.ok("d=$(jq -r .digest web/0/metadata.json | cut -d: -f2); test $(readlink .imgfs/by-digest/$d) = ../../web/0; test -d .imgfs/by-digest/$(echo $d | cut -c1-12)/rootfs; not test -e .imgfs/by-digest/$(echo $d | cut -c1-11)");
    m.ok("test -d .imgfs/by-id/$(cat web/.id)/0; test -d .imgfs/by-id/$(cat web/0/.id)/rootfs");
    m.ok("test $(stat -c %s .imgfs/status.json) -gt 10; test \"$(stat -c %s web/metadata.json)\" = \"$(wc -c < web/metadata.json)\"");
}

#[test]
fn a_second_daemon_is_refused_with_the_first_ones_number() {
    let m = Mount::new();
    let ran = m.sh(&format!("mkdir $S/m2; {} mount --store $STORE $S/m2", IMGFS));
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains(&m.daemon().to_string()), "{}", ran.err);
}

#[test]
fn what_was_copied_survives_a_crash_and_the_rest_left_no_trace() {
    let mut m = Mount::new();
    m.ok("cp $S/a.tar web.tar; cp $S/b.tar web/; ln -s web prod; ln -sfn 0 web/default");
    let mut open = std::process::Command::new("bash");
    let writer = format!("exec 7> x.tar; head -c 50000 {}/c.tar >&7; sleep 60", m.path("src").display());
    let mut child = open.args(["-c", &writer]).current_dir(m.mnt()).spawn().unwrap();
    m.ok("while ! test -e x.tar; do :; done");
    m.kill();
    let _ = child.kill();
    crate::common::limit::wait(&mut child, m.dir.path());
    m.mount();
    assert_eq!(m.ok("ls; readlink prod web/default"), "default\nprod\nweb\nweb\n0\n");
    m.ok("cmp $S/b.tar web/1/rootfs.tar; test -z \"$(ls -A $STORE/staging)\"");
    m.fsck();
}

#[test]
fn a_terminated_daemon_unmounts() {
    let mut m = Mount::new();
    m.ok("cp $S/a.tar web.tar");
    let pid = m.daemon();
    m.ok(&format!(
        "kill {pid}; for i in $(seq 100); do mountpoint -q $MNT || exit 0; sleep 0.1; done; exit 1"
    ));
    m.ok(&format!("for i in $(seq 100); do kill -0 {pid} 2>/dev/null || exit 0; sleep 0.1; done; exit 1"));
    m.mount();
    m.ok("cmp $S/a.tar web/0/rootfs.tar");
}

#[test]
fn commands_work_mounted_and_not() {
    let mut m = Mount::new();
    m.ok("cp $S/a.tar web.tar; cp $S/b.tar db.tar");
    for _ in 0..2 {
        let (ls, status) = (
            m.sh(&format!("{IMGFS} ls --store $STORE")),
            m.sh(&format!("{IMGFS} status --json --store $STORE")),
        );
        assert!(ls.out.contains("web") && ls.out.contains("db"), "{ls:?}");
        assert!(status.out.contains("\"images\": 2"), "{status:?}");
        assert_eq!(m.sh(&format!("{IMGFS} ls --store $STORE --json os=test | jq length")).out, "2\n");
        assert_eq!(m.sh(&format!("{IMGFS} ls --store $STORE os=none")).code, 1);
        assert_eq!(
            m.sh(&format!(
                "{IMGFS} gc --store $STORE && {IMGFS} repack --store $STORE && {IMGFS} fsck --store $STORE"
            ))
            .code,
            0
        );
        if m.mnt().join("web").exists() {
            m.unmount();
        }
    }
    m.mount();
}

#[test]
fn mount_reports_what_is_wrong() {
    let m = Mount::new();
    for (script, wanted) in [
        (format!("{IMGFS} mount --store $S/s2 /nowhere"), "No such file"),
        (format!("{IMGFS} mount -o magic --store $S/s2 $S/a"), "no such option"),
        (format!("{IMGFS} mount --store $S $S/a"), "not an imgfs store"),
        (format!("{IMGFS} mount --store $S/s3 $MNT"), "is mounted there"),
        (format!("{IMGFS} umount $S"), "there is no imgfs mount"),
        (format!("mkdir $S/new; echo imgfs 99 > $S/new/format; {IMGFS} mount --store $S/new $S/a"), "99"),
    ] {
        let ran = m.sh(&script);
        assert!(ran.code != 0 && ran.err.contains(wanted), "{script}: {ran:?}");
    }
}

/// Both took what the other had deleted out of the trash for good.
#[test]
fn two_walkers_leave_it_in_the_trash() {
    let m = Mount::new();
    m.ok("cp $S/a.tar web.tar; cp $S/b.tar web/; cp $S/c.tar db.tar; ln -sfn db default");
    m.ok("exec 8< web/0; rm -r web/0; not rm /proc/self/fd/8/.id; test -d .imgfs/trash/web.0/rootfs");
    m.ok("exec 9< web; rm -r web; not rm /proc/self/fd/9/.id; test -d .imgfs/trash/web/1/rootfs");
    m.ok("mv .imgfs/trash/web .; mv .imgfs/trash/web.0 web/; diff -r $S/a web/0/rootfs");
}

/// A script's lock stayed locked for as long as the daemon ran that it had started.
#[test]
fn a_daemon_leaves_alone_what_a_script_has_open() {
    let mut m = Mount::new();
    m.unmount();
    m.ok(&format!(
        "exec 9> $S/lock; flock 9; {IMGFS} mount --store $STORE $MNT; exec 9>&-; flock -n $S/lock true"
    ));
    m.ok(&format!("cd $S; {IMGFS} umount $MNT"));
}

/// The trash was looked at once and emptied then: what had been taken out of it meanwhile was purged with the
/// rest.
#[test]
fn what_leaves_the_trash_while_it_is_emptied_stays() {
    let m = Mount::new();
    m.ok("for i in $(seq 60); do cp $S/a.tar web$i.tar; done; for i in $(seq 60 -1 1); do rmdir web$i; done");
    m.ok(&format!(
        "for i in $(seq 60); do mv .imgfs/trash/web$i . 2> /dev/null && echo $i >> $S/back; done & until test -s $S/back; do :; done; {IMGFS} gc --trash --store $STORE
         wait; test -s $S/back; for i in $(cat $S/back); do cmp $S/a.tar web$i/0/rootfs.tar; done"
    ));
    m.fsck();
}

/// rm -r named to the kernel what was deleted as it was called when it began, not as it was renamed just
/// before it was deleted: the new name led into the trash from then on.
#[test]
fn an_image_renamed_while_it_is_removed_has_no_name_left() {
    let m = Mount::new();
    m.ok("python3 -c \"
import os, threading
for n in range(200):
    open('web.tar', 'wb').write(open('../src/a.tar', 'rb').read())
    there = os.open('web', os.O_RDONLY)
    both = threading.Barrier(2)
    def rename():
        both.wait()
        try: os.rename('web', 'www')
        except OSError: pass
    def remove():
        both.wait()
        os.unlink('.id', dir_fd=there)
    hands = [threading.Thread(target=rename), threading.Thread(target=remove)]
    [hand.start() for hand in hands], [hand.join() for hand in hands]
    os.close(there)
    for name in ('web', 'www'):
        if os.path.exists(name): raise SystemExit('%s of round %d is still there' % (name, n))
    if n % 40 == 0: [os.unlink('.imgfs/trash/%s/.id' % name) for name in os.listdir('.imgfs/trash')]
\"");
    m.fsck();
}

/// The same, and another image had taken the old name: the last step of rm -r deleted that.
#[test]
fn what_takes_the_name_of_a_renamed_image_stays() {
    let m = Mount::new();
    m.ok("cp $S/a.tar web.tar; cp $S/b.tar db.tar; ln -sfn db default");
    m.ok("python3 -c \"
import os, subprocess
there = os.open('web', os.O_RDONLY)
subprocess.run('mv web www', shell=True, check=True)
os.unlink('.id', dir_fd=there)
subprocess.run('cp ../src/c.tar web.tar', shell=True, check=True)
try: os.rmdir('web')
except FileNotFoundError: pass
else: raise SystemExit('it was removed')
\"; ls; cmp $S/c.tar web/0/rootfs.tar; test -d .imgfs/trash/www; rm -r web; test -d .imgfs/trash/web");
}

/// The last step of rm -r took a new image of the name with it, and left one that had come back unreadable.
#[test]
fn what_comes_while_a_walker_ends_stays() {
    let m = Mount::new();
    m.ok("cp $S/a.tar web.tar; cp $S/b.tar db.tar; ln -sfn db default");
    for comes in ["mv .imgfs/trash/web web", "cp ../src/c.tar web.tar"] {
        m.ok(&format!(
            "python3 -c \"
import os, subprocess
os.unlink('web/.id')
subprocess.run('{comes}; cd web; exec sleep 1 &', shell=True, check=True)
try: os.rmdir('web')
except FileNotFoundError: pass
else: raise SystemExit('it was removed')
\"; cat web/0/rootfs/etc/motd"
        ));
    }
}

/// rm -r has the image's directory locked while it removes `.id`, mv has the root's and waits for the
/// image's; the daemon, which had to tell the kernel about the root, waited for mv before it answered rm: all
/// three for ever.
#[test]
fn rm_r_and_mv_of_one_image_at_once() {
    let m = Mount::new();
    m.ok("cp $S/c.tar db.tar; for i in $(seq 60); do cp $S/a.tar web.tar; rm -rf web & mv -T web www || true; rmdir web || true; wait; rm -rf web www; test ! -e web -a ! -e www || exit 1; done 2> /dev/null");
}

/// mv was sent for what rm -r then deleted, and done to what had the name when its turn came: the kernel gave
/// the new name to the one, imgfs to the other. Found by many hands (round 421).
#[test]
fn mv_moves_what_the_kernel_moves() {
    let mut m = Mount::new();
    m.ok("cp $S/d.tar other.tar; ln -sfn other default; cp $S/a.tar web.tar");
    m.unmount();
    assert_eq!(
        m.sh(&format!("FAILPOINTS='rename.begun=1*sleep(500)' {IMGFS} mount --store $STORE $MNT")).code,
        0
    );
    let ran = m.sh("ls web; python3 - $S/b.tar <<'EOF'
import os, subprocess, sys, time
with open('web.tar', 'wb') as upload:
    mv = subprocess.Popen(['mv', 'web', 'www'])
    until = time.time() + 5
    while 'wait_answer' not in open(f'/proc/{mv.pid}/wchan').read() and time.time() < until: time.sleep(0.005)
    time.sleep(0.1)
    try: os.unlink('web/.id')
    except FileNotFoundError: sys.exit(77)
    upload.write(open(sys.argv[1], 'rb').read())
sys.exit(mv.wait())
EOF");
    if ran.code == 77 {
        return println!("skipped: this machine is too slow for it");
    }
    assert_eq!(ran.code, 0, "{ran:?}");
    // At first: who reads there is sent to look again.
    m.refused("rmdir www/0", "busy");
    m.ok("cmp $S/b.tar www/0/rootfs.tar; cmp $S/a.tar .imgfs/trash/web/0/rootfs.tar; not test -e web");
    m.fsck();
}

/// A listing was of when the directory was opened, and told the kernel of each name what it had led to then,
/// whoever had been renamed since. It then had two names for one image, and mv from the one to the other did
/// nothing, and said that all was well. Found by many hands (round 1,190).
#[test]
fn a_listing_tells_the_kernel_nothing_that_is_no_more() {
    let m = Mount::new();
    m.ok("cp $S/a.tar web.tar; cp $S/b.tar db.tar; cp $S/c.tar db.tar; cp $S/d.tar other.tar; ln -sfn other default");
    m.ok("python3 - <<'EOF'
import os
def while_listed(directory, work):
    listing = os.scandir(directory)
    work()
    return [entry.name for entry in listing]
def switch(to, at):
    new = os.path.join(os.path.dirname(at), '.new')
    os.symlink(to, new)
    os.rename(new, at)
assert 'web' in while_listed('.', lambda: os.rename('web', 'www')), 'what is listed is of one moment'
assert not os.path.exists('web')
os.rename('www', 'web')
while_listed('.', lambda: switch('db', 'default'))
assert os.readlink('default') == 'db', os.readlink('default')
switch('other', 'default')
while_listed('db', lambda: switch('0', 'db/default'))
assert os.readlink('db/default') == '0', os.readlink('db/default')
os.rmdir('web')
def another():
    os.rename('.imgfs/trash/web', 'www')
    os.rename('db', 'web')
    os.rmdir('web')
while_listed('.imgfs/trash', another)
os.rename('.imgfs/trash/web', 'db')
try:
    os.rename('db', 'www')
except FileExistsError:
    pass
else:
    raise SystemExit('mv did nothing, and said that all was well')
EOF
cmp $S/b.tar db/0/rootfs.tar; cmp $S/a.tar www/0/rootfs.tar; test ! -e web");
    m.fsck();
}

/// coreutils' rm goes on after it was refused `.id`: it had put the other versions into the trash.
#[test]
fn a_refused_rm_r_of_an_image_takes_nothing() {
    let m = Mount::new();
    m.ok("cp $S/a.tar w.tar; cp $S/b.tar w.tar; cp $S/c.tar w.tar; cp $S/d.tar o.tar; ln -sfn w default; mkdir w/.s; cp $S/d.tar w/.s/");
    for rm in ["rm", "busybox rm"] {
        m.refused(&format!("{rm} -r w"), "busy");
        m.ok("ls w/0/rootfs w/1/rootfs w/2/rootfs w/.s/d.tar > /dev/null; test $(readlink w/default) = latest; test -z \"$(ls .imgfs/trash)\"");
    }
    m.ok("ln -sfn o default; rm -r w; test ! -e w");
}

#[test]
fn a_name_that_was_just_refused_can_be_written_again_at_once() {
    let m = Mount::new();
    // The end of the first comes after its close, maybe between the look-up and the open of the second.
    let ran = m.sh(
        "for i in $(seq 1000); do echo 'no tar' > b.tar; done 2> $S/said; wc -l < $S/said; head -3 $S/said",
    );
    assert!(ran.out.starts_with("0\n"), "{}", ran.out);
}

/// strace kills a child of its own when it starts: that ended the upload which the shell around it had open.
#[test]
fn who_is_killed_beside_an_upload_does_not_end_it() {
    let m = Mount::new();
    m.ok("{ head -c 9000 $S/b.tar; bash -c 'kill -9 $$' || true; tail -c +9001 $S/b.tar; } > web.tar; cmp $S/b.tar web/0/rootfs.tar");
    // Nor does it publish anything: what is there then is judged by who closes it.
    m.sh("{ head -c 9000 $S/a.tar; bash -c 'kill -9 $$'; } > web.tar");
    assert!(m.errors().contains("the archive is cut off at byte 9000"), "{}", m.errors());
    m.ok("test ! -e web/1; { cat $S/a.tar; bash -c 'kill -9 $$' || true; } > web.tar; cmp $S/a.tar web/1/rootfs.tar");
}

#[test]
fn what_begins_as_the_newest_version_is_judged_by_its_end() {
    let mut m = Mount::with(&["trash=0"]);
    m.ok("mkdir $S/t; head -c 9000000 /dev/urandom > $S/t/large; head -c 70000 /dev/urandom > $S/t/small; tar -C $S/t -cf $S/big.tar large small; cp $S/big.tar web.tar");
    // All of it: nothing new, whatever writes it and however.
    m.ok("cp $S/big.tar web.tar; cp $S/big.tar web/again.tar; dd if=$S/big.tar of=web.tar bs=1000 status=none; (head -c 5000000 $S/big.tar; tail -c +5000001 $S/big.tar) > web.tar; test ! -e web/1");
    m.ok("grep -c 'the newest version already is this' .imgfs/log | grep -qx 4");
    // A part of it, short and long; and what is killed in the middle.
    for cut in [1, 511, 512, 100_000, 3_000_000, 9_000_000, 9_001_472, 9_072_000] {
        m.refused(&format!("head -c {cut} $S/big.tar > $S/cut; cp $S/cut web.tar"), "Invalid argument");
    }
    m.ok("timeout -s KILL 0.3 sh -c '(head -c 4000000 $S/big.tar; sleep 5) > web.tar' || true; test ! -e web/1");
    // Another end: after it, instead of it, in the middle of a file.
    m.ok("(cat $S/big.tar; head -c 10240 /dev/zero) > $S/longer.tar; cp $S/longer.tar web.tar; cmp $S/longer.tar web/1/rootfs.tar; cp $S/big.tar web.tar; cmp $S/big.tar web/2/rootfs.tar");
    m.ok("cp $S/big.tar $S/appended.tar; echo more > $S/t/more; tar -C $S/t -rf $S/appended.tar more; cp $S/appended.tar web.tar; cmp $S/appended.tar web/3/rootfs.tar; cmp $S/t/more web/3/rootfs/more");
    m.ok("cp $S/appended.tar $S/other.tar; printf x | dd of=$S/other.tar bs=1 seek=8000000 conv=notrunc status=none; cp $S/other.tar web.tar; cmp $S/other.tar web/4/rootfs.tar; cmp $S/appended.tar web/3/rootfs.tar");
    // The version that it is compared with goes meanwhile, and is replaced meanwhile.
    m.ok(
        "(head -c 6000000 $S/other.tar; rmdir web/4; tail -c +6000001 $S/other.tar) > web.tar; cmp $S/other.tar web/5/rootfs.tar",
    );
    m.ok("(head -c 6000000 $S/other.tar; cp $S/big.tar web/; tail -c +6000001 $S/other.tar) > web.tar; cmp $S/big.tar web/6/rootfs.tar; cmp $S/other.tar web/7/rootfs.tar");
    // Announced is announced.
    m.ok("cp $S/other.tar .x; setfattr -n user.imgfs.expect -v sha256:$(sha256sum < $S/other.tar | cut -c-64) .x; mv .x web.tar; test ! -e web/8");
    m.remount();
    m.ok("cp $S/other.tar web.tar; test ! -e web/8; test -z \"$(ls $STORE/staging)\"");
    m.fsck();
}

/// A walker died in the middle, and another process got its number: rmdir of another image was told that
/// there is none.
#[test]
fn who_has_the_number_of_a_walker_that_died_is_not_taken_for_it() {
    let m = Mount::new();
    if m.sh("echo $$ > /proc/sys/kernel/ns_last_pid").code != 0 {
        println!("skipped: numbers of processes cannot be chosen here");
        return;
    }
    let tried = m.ok("mkdir keep; for n in $(seq 60); do mkdir x y; P=$(python3 -c 'import os; os.unlink(\"x/.id\"); print(os.getpid())'); sleep 1.1; \
          echo $((P - 1)) > /proc/sys/kernel/ns_last_pid; bash -c 'echo $$ > $1/pid; exec rmdir y' x $S; if test $(cat $S/pid) = $P; then echo met; break; fi; done; test ! -e x -a ! -e y");
    if tried.trim() != "met" {
        println!("skipped: others were faster to take the number");
    }
}

/// The name of an upload whose publishing rename was refused could not be used again, nor removed, until the
/// next mount.
#[test]
fn a_refused_publishing_rename_says_why_and_leaves_a_file_that_can_be_removed() {
    let m = Mount::new();
    // EINVAL, which mv has its own words for.
    m.ok("cp $S/a.tar web.tar");
    for (dir, to) in [(".", "x.tar"), ("web", "p.tar")] {
        for _ in 0..2 {
            m.refused(&format!("cd {dir}; echo junk > .k; mv .k {to}"), "cannot move");
            m.ok(&format!("cd {dir}; ls -a | grep -qx .k; rm .k; not test -e .k"));
        }
        m.refused(&format!("cd {dir}; echo junk > .k; mv .k {to}"), "cannot move");
        m.ok(&format!("cd {dir}; cp $S/b.tar .k; mv .k {to}"));
    }
    m.ok("test $(jq .uploads .imgfs/status.json) = 0; cmp $S/b.tar x/0/rootfs.tar; cmp $S/b.tar web/1/rootfs.tar");
}

/// The kernel forgets a name only once it has the directory of the name, which whoever publishes in it holds:
/// for as long `ls` showed what was in the trash by then. Found by many hands.
#[test]
fn what_is_deleted_is_gone_at_once_while_somebody_publishes_beside_it() {
    let m = Mount::new();
    m.ok("mkdir $S/l; head -c 30000000 /dev/urandom > $S/l/noise; tar -C $S/l -cf - . | bzip2 -1 > $S/slow.tar.bz2; cp $S/a.tar other.tar");
    for look in ["ls web", "stat web"] {
        m.ok(
            "cp $S/a.tar web.tar; cp $S/b.tar web/; ls -lR web > /dev/null; mkdir .n; cp $S/slow.tar.bz2 .n/",
        );
        let script = format!(
            "mv .n big & sleep 0.15; rm web/.id; code=seen; {look} > /dev/null 2>&1 || code=gone; echo $code; wait; rm -r big .imgfs/trash/*"
        );
        assert_eq!(m.ok(&script), "gone\n", "{look}");
    }
    // Who stands in it goes on.
    m.ok("cp $S/a.tar web.tar; cd web/0; (cd $MNT; rm web/.id); ls . > /dev/null; stat . > /dev/null");
    m.ok("cp $S/a.tar web.tar; exec 5< web; (cd $MNT; rm -r web); python3 -c 'import os; os.fstat(5); os.listdir(5)'");
}
