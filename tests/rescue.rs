//! A catalog that is lost or damaged is made again: of its copy, and without one of the trees.

use crate::common::{IMGFS, Mount};

/// All that rows decide, as text.
const STATE: &str = "shopt -s nullglob; for d in . .imgfs/trash; do for i in $d/*; do stat -c '%A %u %g %N' $i $i/*; test -L $i || { \
    cat $i/metadata.json; for v in $i/[0-9]*; do cat $v/metadata.json; sha256sum < $v/rootfs.tar; done; }; done; done | grep -v _bytes";

/// A store with something of everything.
fn filled() -> Mount {
    let m = Mount::new();
    m.ok("cp $S/a.tar web.tar; cp $S/b.tar web.tar; cp $S/c.tar web.tar; cp $S/d.tar db.tar; ln -s web prod; ln -s web/1 old; ln -sfn 1 web/default; ln -sfn db default");
    m.ok("rmdir web/0; cp $S/a.tar gone.tar; rm -r gone; setfattr -n user.imgfs.storage -v small web; mv db site; chmod 750 site; mkdir empty");
    m
}

fn state(m: &Mount) -> String {
    m.ok(STATE)
}

#[test]
fn a_lost_catalog_is_made_again_of_its_copy() {
    let mut m = filled();
    let before = state(&m);
    assert!(before.contains("'./prod' -> 'web'") && before.lines().count() > 60, "{before}");
    for loss in [
        "rm $STORE/catalog.db*",
        "rm $STORE/catalog.db-wal",
        ": > $STORE/catalog.db; rm -f $STORE/catalog.db-*",
        "head -c 5000 /dev/urandom > $STORE/catalog.db; rm -f $STORE/catalog.db-*",
        "rm $STORE/catalog.db*; printf %s '0000 12 {\"next' >> $STORE/catalog.rows",
        "rm $STORE/catalog.rows",
        "sed -i '$d' $STORE/catalog.rows",
        "echo nonsense > $STORE/catalog.rows",
    ] {
        m.kill();
        assert_eq!(m.sh(&format!("cd $STORE; {loss}")).code, 0);
        m.mount();
        assert_eq!(state(&m), before, "{loss}");
        m.fsck();
    }
    // Damage in the middle of the copy is found by fsck, which writes it anew.
    let fsck = format!("{IMGFS} fsck --store $STORE");
    let ran = m.sh(&format!("sed -i '2s/mode/mobe/' $STORE/catalog.rows; {fsck}"));
    assert!(ran.code == 4 && ran.out.contains("catalog.rows"), "{ran:?}");
    m.fsck();
    m.ok("test -e $STORE/catalog.damaged-0; cp $S/b.tar site/; test -e site/1");
}

#[test]
fn a_flipped_bit_anywhere_in_the_catalog_changes_nothing() {
    let mut m = filled();
    let before = state(&m);
    // Everything in one file.
    m.unmount();
    assert_eq!(m.sh("cd $STORE; python3 -c \"import sqlite3; c=sqlite3.connect('catalog.db'); c.execute('pragma wal_checkpoint(truncate)')\"; cp catalog.db $S/good.db").code, 0);
    let good = std::fs::read(m.path("src/good.db")).unwrap();
    for n in 0..40 {
        let mut damaged = good.clone();
        let at = if n < 8 {
            n * 13
        } else if n < 12 {
            52 + n
        } else {
            n * good.len() / 40 + 7 * n
        };
        damaged[at % good.len()] ^= 1 << (n % 8);
        std::fs::write(m.path("store/catalog.db"), damaged).unwrap();
        let ran = m.sh("cd $STORE; rm -f catalog.db-*; rm -f catalog.damaged*");
        assert_eq!(ran.code, 0);
        m.mount();
        assert_eq!(state(&m), before, "byte {at}");
        m.unmount();
    }
}

#[test]
fn without_a_copy_the_trees_are_images_again() {
    let mut m = filled();
    m.ok("sha256sum web/*/rootfs.tar site/0/rootfs.tar .imgfs/trash/*/rootfs.tar .imgfs/trash/*/*/rootfs.tar | cut -c-64 | sort > $S/sums");
    m.kill();
    let ran = m.sh("cd $STORE; rm catalog.*; head -c 300 $(ls trees/*.tree | head -1) > trees/cut.tree");
    assert_eq!(ran.code, 0, "{ran:?}");
    m.mount();
    m.ok("sha256sum */*/rootfs.tar | cut -c-64 | sort -u | cmp - <(sort -u $S/sums)");
    m.ok("test -e $STORE/trees/cut.damaged; grep -q recover .imgfs/errors; grep -q recover .imgfs/log; readlink default");
    m.fsck();
    // Half a copy: what it says is kept, what it does not say is found.
    m.kill();
    let ran = m.sh("cd $STORE; rm catalog.db*; sed -i '3,$ s/next/nxet/' catalog.rows");
    assert_eq!(ran.code, 0, "{ran:?}");
    m.mount();
    m.ok("sha256sum */*/rootfs.tar | cut -c-64 | sort -u | cmp - <(sort -u $S/sums)");
    m.fsck();
}

#[test]
fn a_lost_or_damaged_blob_table_is_made_again_of_the_containers() {
    let mut m = Mount::new();
    // Loose and packed, deltas, large files, what was deleted, what moved.
    m.ok("mkdir $S/t; for n in $(seq 300); do seq $n 900 > $S/t/f$n; done; seq 400000 > $S/t/large; head -c 3000000 /dev/urandom > $S/t/noise; truncate -s 5M $S/t/holes; cp $S/t/large $S/t/large2; seq 300000 >> $S/t/large2; tar -C $S/t -cf $S/v0.tar .");
    m.ok("cp $S/v0.tar web.tar; for n in $(seq 300); do echo $n >> $S/t/f$n; done; sed -i s/77/88/ $S/t/large; tar -C $S/t -cf $S/v1.tar .; cp $S/v1.tar web.tar; cp $S/a.tar gone.tar; rmdir gone");
    m.ok(&format!("{IMGFS} gc --trash --store $STORE; {IMGFS} repack --store $STORE; cp $S/b.tar more.tar; cp $S/c.tar db.tar; rmdir db; {IMGFS} gc --trash --store $STORE"));
    const SAME: &str =
        "cmp $S/v0.tar web/0/rootfs.tar && cmp $S/v1.tar web/1/rootfs.tar && cmp $S/b.tar more/0/rootfs.tar";
    m.ok(SAME);
    for loss in [
        "rm blobs",
        ": > blobs",
        "truncate -s -64 blobs",
        "truncate -s 5000 blobs",
        "truncate -s 100 blobs",
        "printf x | dd of=blobs conv=notrunc",
    ] {
        m.unmount();
        assert_eq!(m.sh(&format!("cd $STORE; {loss}")).code, 0);
        m.mount();
        m.ok(SAME);
        m.fsck();
        // No id is given out twice: new content is not taken for old.
        m.ok("echo new >> $S/t/f9; tar -C $S/t -cf $S/n.tar .; cp $S/n.tar new.tar; cmp $S/n.tar new/0/rootfs.tar");
        m.ok(&format!("{SAME}; rmdir new; {IMGFS} gc --trash --store $STORE"));
    }
    // Zeros look free: gc finds out before it frees anything. Damage does not.
    for (from, what) in [(5, "/dev/zero"), (40, "/dev/zero"), (5, "/dev/urandom")] {
        m.unmount();
        assert_eq!(
            m.sh(&format!("dd if={what} of=$STORE/blobs bs=64 seek={from} count=60 conv=notrunc")).code,
            0
        );
        m.mount();
        m.ok(&format!("{IMGFS} gc --store $STORE"));
        m.ok(SAME);
        m.fsck();
    }
}

#[test]
fn the_copy_stays_short() {
    let mut m = Mount::new();
    m.ok("cp $S/a.tar web.tar; cp $S/b.tar web.tar; for n in $(seq 700); do ln -sfn $((n % 2)) web/default; done");
    m.ok("test $(stat -c %s $STORE/catalog.rows) -lt 400000");
    let before = state(&m);
    m.kill();
    assert_eq!(m.sh("rm $STORE/catalog.db*").code, 0);
    m.mount();
    assert_eq!(state(&m), before);
}

/// A frame's base was lost, too: for it all frames were read, also the one that waited for it, for ever.
#[test]
fn a_blob_table_is_made_again_of_packs_whose_frames_have_bases() {
    let mut m = Mount::new();
    m.ok(r#"cd $S; python3 -c '
import io, random, tarfile
for family, files in ("i", 200), ("j", 60), ("k", 5):
    for v in range(3):
        tar = tarfile.open(f"{family}{v}.tar", "w")
        for n in range(files):
            seed = random.Random(f"{v} {n}").random()
            r = random.Random(f"{family} {n} {v if seed < .06 else 0}")
            words = [r.randbytes(3).hex() for _ in range(40)]
            size = int(r.choice([10, 1000, 5000, 20000, 70000, 200000]) * (0.5 + r.random()))
            data = r.randbytes(size) if r.random() < .5 else " ".join(r.choice(words) for _ in range(size // 7)).encode()
            info = tarfile.TarInfo(f"f{n}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        tar.close()
'"#);
    m.ok(&format!("for f in i j k; do for v in 0 1 2; do cp $S/$f$v.tar $f.tar; done; done; {IMGFS} repack --store $STORE"));
    m.unmount();
    let ran = m.sh(&format!("rm $STORE/blobs; timeout 60 {IMGFS} fsck --store $STORE"));
    assert_eq!(ran.code, 0, "{ran:?}");
    m.mount();
    m.ok("for f in i j; do for v in 0 1 2; do cmp $S/$f$v.tar $f/$v/rootfs.tar; done; done; cmp $S/k0.tar k/0/rootfs.tar");
}

/// Eight bytes locked the store out, with advice that led in a circle.
#[test]
fn a_lost_or_damaged_format_file_is_written_again() {
    let mut m = filled();
    let before = state(&m);
    let mount = format!("{IMGFS} mount --store $STORE $MNT");
    for loss in [
        "rm format",
        ": > format",
        "printf 'imgfs \\377\\n' > format",
        "printf 'imgfs x\\n' > format",
        "head -c 8 /dev/zero > format",
    ] {
        m.unmount();
        assert_eq!(m.sh(&format!("cd $STORE; {loss}")).code, 0);
        for command in [
            mount.clone(),
            format!("{IMGFS} status --store $STORE"),
            format!("{IMGFS} export --store $STORE web $S/x.tar"),
        ] {
            let ran = m.sh(&command);
            assert!(
                ran.code != 0 && ran.err.contains("lost or damaged") && ran.err.contains("fsck --repair"),
                "{loss}: {ran:?}"
            );
        }
        let ran = m.sh(&format!("{IMGFS} fsck --repair --store $STORE"));
        assert!(ran.code == 0 && ran.err.contains("is there again"), "{loss}: {ran:?}");
        m.mount();
        assert_eq!(state(&m), before, "{loss}");
        m.fsck();
    }
    m.ok("rm $STORE/format");
    let ran = m.sh(&format!("{IMGFS} fsck --store $STORE"));
    assert!(ran.code == 4 && ran.out.contains("invariant 12"), "{ran:?}");
    assert_eq!(m.sh(&format!("{IMGFS} fsck --repair --store $STORE")).code, 0);
    m.fsck();
    // What was never a store is not made one.
    let ran = m.sh(&format!("mkdir $S/other; echo > $S/other/x; {IMGFS} fsck --repair --store $S/other"));
    assert!(ran.code != 0 && ran.err.contains("is not an imgfs store"), "{ran:?}");
}

/// The second of two commands on a store that is not mounted could not "connect", or was told to unmount it.
#[test]
fn a_command_beside_another_says_who_is_at_work() {
    let mut m = filled();
    m.unmount();
    // It holds the lock as a command does that works.
    let ran = m.sh(&format!(
        "export STORE; python3 -c \"import fcntl, os, time
f = open(os.environ['STORE'] + '/lock', 'r+')
fcntl.flock(f, fcntl.LOCK_EX)
f.truncate(0); f.write(str(os.getpid()) + '\\n\\n'); f.flush()
print('held', flush=True)
time.sleep(60)\" > $S/held & \
         for n in $(seq 100); do grep -q held $S/held && break; sleep 0.1; done; {IMGFS} status --store $STORE; {IMGFS} gc --store $STORE; {IMGFS} mount --store $STORE $MNT; kill %1"
    ));
    let lines: Vec<&str> = ran.err.lines().filter(|line| line.contains("is used by process")).collect();
    assert!(lines.len() == 3 && ran.err.matches("wait for that command").count() == 3, "{ran:?}");
    m.mount();
    // A daemon that ends while a command waits for it.
    let ran = m.sh(&format!("cd /; kill -STOP $(head -n 1 $STORE/lock); {IMGFS} gc --store $STORE 2> $S/said & sleep 1; kill -KILL $(head -n 1 $STORE/lock); wait; cat $S/said; umount -l $MNT"));
    assert!(ran.out.contains("ended before it answered"), "{ran:?}");
    m.mount();
}

/// Files of the same names made a directory a store that had lost its format file: the repair, as it said,
/// took it, and the next mount emptied its `staging`. And a mount that was refused left `lock` and
/// `daemon.log`.
#[test]
fn what_is_no_store_is_left_as_it_was() {
    let m = Mount::new();
    for make in [
        "echo mine > catalog.rows; echo mine > blobs",
        "mkdir blobs; echo x > blobs/sha256",
        "python3 -c \"import sqlite3; sqlite3.connect('catalog.db').execute('create table books(t)')\"; mkdir staging loose trees; echo precious > staging/p",
        "head -c 300000 /dev/zero > daemon.log; echo old > daemon.log.1; echo x > x",
    ] {
        m.ok(&format!(
            "rm -rf $S/other $S/m; mkdir $S/other $S/m; cd $S/other; {make}; cd /; cp -a $S/other $S/before"
        ));
        for command in
            ["fsck --repair --store $S/other", "mount --store $S/other $S/m", "gc --store $S/other"]
        {
            let ran = m.sh(&format!("{IMGFS} {command}"));
            assert!(ran.code != 0 && ran.err.contains("is not an imgfs store"), "{make}: {command}: {ran:?}");
        }
        m.ok("diff -r $S/other $S/before; rm -r $S/before");
    }
    let ran = m.sh(&format!("{IMGFS} mount --store $S/new $S/nowhere"));
    assert!(ran.code != 0, "{ran:?}");
    let ran = m.sh(&format!("{IMGFS} mount --store $S/new $MNT"));
    assert!(ran.code != 0, "{ran:?}");
    m.ok("not test -e $S/new");
    let ran = m.sh(&format!("{IMGFS} status --store $S/new"));
    assert!(ran.code != 0 && ran.err.contains("there is no store yet"), "{ran:?}");
    // A pipe is not waited for.
    let ran = m.sh(&format!(
        "cp -a $STORE $S/piped; rm $S/piped/format; mkfifo $S/piped/format; timeout 20 {IMGFS} fsck --store $S/piped"
    ));
    assert!(ran.code == 1 && ran.err.contains("lost or damaged"), "{ran:?}");
}
