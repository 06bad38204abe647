//! What is promised when things go wrong: a mistaken rm -r is undone, space comes back, a disk that fails
//! stops what cannot be trusted and nothing else.

use crate::common::{IMGFS, Mount, Ran, as_root, sh};

#[test]
fn rm_of_everything_is_undone() {
    let m = Mount::new();
    m.ok("cp $S/a.tar web.tar; cp $S/b.tar web.tar; cp $S/c.tar db.tar; cp $S/d.tar os.tar; ln -sfn 0 web/default; ln -s web prod; ln -sfn db default; \
          setfattr -n user.imgfs.description -v kept web; sha256sum */*/rootfs.tar > $S/sums; cat web/metadata.json > $S/before");
    // By mistake. What is the default while there are others stays; what is left at the end goes, too.
    m.sh("rm -r *; rm -r *");
    assert_eq!(m.ok("ls | grep -v default || true"), "");
    m.ok("for i in .imgfs/trash/*; do mv $i .; done; test $(readlink prod) = web");
    m.ok("sha256sum -c --quiet $S/sums; test $(readlink web/default) = 0; jq -e '.description == \"kept\"' web/metadata.json");
    m.ok("ln -sfn db default; cp $S/d.tar web.tar; test -e web/2; test -e prod/0");
    m.fsck();
}

#[test]
fn space_comes_back() {
    let m = Mount::new();
    m.ok("mkdir $S/t; for n in $(seq 300); do head -c 9000 /dev/urandom > $S/t/f$n; done; head -c 5000000 /dev/urandom > $S/t/large; \
          for v in 1 2 3 4; do tar -C $S/t -cf $S/v$v.tar .; for n in $(seq $v 7 300); do echo $v >> $S/t/f$n; done; done");
    let size = |m: &Mount| m.ok("du -s -B1 $STORE | cut -f1").trim().parse::<u64>().unwrap();
    for (n, repack) in [true, false].into_iter().enumerate() {
        m.ok(&format!("for v in 1 2 3 4; do cp $S/v$v.tar web{n}.tar; done; cp $S/a.tar other{n}.tar"));
        if repack {
            m.ok(&format!("{IMGFS} repack --store $STORE"));
        }
        // The catalog's log grows with what is written, and keeps its size by itself.
        let log = m.path("store/catalog.db-wal");
        for _ in 0..10 {
            m.ok(&format!(
                "for n in $(seq 150); do ln -sfn 0 web{n}/default; ln -sfn latest web{n}/default; done"
            ));
            if log.metadata().unwrap().len() > 1 << 20 {
                break;
            }
        }
        assert!(log.metadata().unwrap().len() > 1 << 20, "control");
        let full = size(&m);
        // Three of four versions go: no more than twice what lives stays, and what only the records of it
        // take.
        m.ok(&format!(
            "rmdir web{n}/0 web{n}/1 web{n}/2; {IMGFS} gc --trash --store $STORE; {IMGFS} gc --store $STORE"
        ));
        let live: u64 = m
            .ok(&format!("stat -c %s web{n}/3/rootfs.tar other{n}/0/rootfs.tar"))
            .lines()
            .map(|l| l.parse::<u64>().unwrap())
            .sum();
        let left = size(&m);
        assert!(left < 2 * live + (2 << 20), "{left} bytes, {full} before, for {live}");
        m.ok(&format!(
            "ln -sfn other{n} default; rm -r web{n}; rm -r other{n}; {IMGFS} gc --trash --store $STORE"
        ));
        let left = size(&m);
        assert!(left < 1 << 20, "{left} bytes are left of nothing");
    }
    m.fsck();
}

/// The kernel kept the name of what was open when its version went, and with it all that the version had.
#[test]
fn space_of_what_was_open_comes_back_when_it_is_closed() {
    let m = Mount::with(&["trash=0"]);
    m.ok("mkdir -p $S/t/d; head -c 900000 /dev/urandom > $S/t/large; for n in $(seq 20); do echo $n > $S/t/d/$n; done; tar -C $S/t -cf $S/web.tar .; cp $S/web.tar web.tar; cp $S/a.tar db.tar; ln -sfn db default; \
          ls -lR web > /dev/null; exec 5< web/0/rootfs/d/7 6< web/0/rootfs/large; rm -r web; sleep 1; cmp $S/t/d/7 - <&5; exec 5<&-; cd db; cmp $S/t/large - <&6; exec 6<&-");
    m.ok("for n in $(seq 400); do test $(cat $STORE/loose/* | wc -c) -lt 600000 && exit 0; sleep 0.1; done; ls -l $STORE/loose; exit 1");
    m.fsck();
}

/// Runs a daemon with these named points armed.
fn mount_armed(m: &mut Mount, points: &str) {
    m.unmount();
    let ran = m.sh(&format!("FAILPOINTS='{points}' {IMGFS} mount --store $STORE $MNT"));
    assert_eq!(ran.code, 0, "{ran:?}");
}

#[test]
fn after_a_failed_sync_nothing_is_written_and_all_is_read() {
    let mut m = Mount::new();
    m.ok("cp $S/a.tar web.tar; cp $S/b.tar web.tar");
    // The sync of the blob table fails once; the kernel would say that the next one is fine.
    mount_armed(&mut m, "sync.fails=1*return");
    let ran = m.sh("cp $S/c.tar new.tar");
    // Unless the background's gc was the first to see it.
    assert!(
        ran.code != 0 && (ran.err.contains("Input/output error") || ran.err.contains("Read-only")),
        "{ran:?}"
    );
    for change in ["cp $S/d.tar new.tar", "rmdir web/0", "ln -sfn 0 web/default", "mkdir other", "mv web www"]
    {
        let ran = m.sh(change);
        assert!(ran.code != 0 && ran.err.contains("Read-only file system"), "{change}: {ran:?}");
    }
    m.ok("cmp $S/a.tar web/0/rootfs.tar; cmp $S/b.tar web/1/rootfs.tar; test ! -e new; grep -q '\"read_only\": \"' .imgfs/status.json");
    assert!(m.errors().contains("accepts no more changes"), "{}", m.errors());
    m.remount();
    m.ok("cp $S/c.tar new.tar; cmp $S/c.tar new/0/rootfs.tar; rmdir web/0; grep -q '\"read_only\": null' .imgfs/status.json");
    m.fsck();
}

/// The kernel was still to be told that `b` was deleted, and a mv waited in front of that; another `b` came.
/// mv renamed the new one, and the kernel its old directory: from then on `c` led into the trash.
#[test]
fn mv_of_a_name_that_rm_r_has_just_left_moves_what_is_there() {
    let mut m = Mount::new();
    m.ok("cp $S/a.tar o.tar; cp $S/a.tar b.tar; cp $S/d.tar .slow.tar");
    // One publish is slow, and its rename holds the root's directory.
    mount_armed(&mut m, "publish.unpacked=1*sleep(2000)");
    // Who deletes stands in b: he needs nothing of the root.
    m.ok("cat b/0/rootfs/etc/motd; cp $S/c.tar .slow.tar; exec 7> b.tar; head -c 9000 $S/b.tar >&7; \
          (cd b; touch $S/in; sleep 0.8; timeout 20 rm .id) & rm=$!; until test -e $S/in; do sleep 0.01; done; mv .slow.tar slow.tar & sleep 0.5; \
          perl -e 'rename(\"b\", \"c\") or die' & wait $rm; tail -c +9001 $S/b.tar >&7; exec 7>&-; wait; \
          ls .imgfs/trash | grep -qx b; cmp $S/b.tar c/0/rootfs.tar; cmp $S/c.tar slow/0/rootfs.tar; not test -e b");
}

/// A directory with mounts in it.
struct Mounts(tempfile::TempDir);

impl Mounts {
    /// None if we are not root, and a line that says so.
    fn new() -> Option<Mounts> {
        as_root().then(|| Mounts(tempfile::Builder::new().prefix("imgfs-test-").tempdir().unwrap()))
    }

    fn sh(&self, script: &str) -> Ran {
        sh(self.0.path(), &format!("export IMGFS={IMGFS}; {script}"))
    }
}

impl Drop for Mounts {
    fn drop(&mut self) {
        sh(self.0.path(), "umount -l mnt disk 2> /dev/null");
    }
}

#[test]
fn a_file_system_that_turns_read_only_is_still_read() {
    let Some(dir) = Mounts::new() else { return };
    let script = |text: &str| dir.sh(text);
    let ran = script(
        "mkdir disk mnt t; truncate -s 32M image; mkfs.ext4 -q -F -E lazy_itable_init=0 -e remount-ro image; mount -o loop image disk; \
         echo 1 > t/f; tar -C t -cf a.tar .; echo 2 > t/f; tar -C t -cf b.tar .; $IMGFS mount --store disk/store mnt && cp a.tar mnt/web.tar && cp b.tar mnt/web.tar",
    );
    assert_eq!(ran.code, 0, "{ran:?}");
    let ran = script(
        "name=$(basename $(findmnt -n -o SOURCE disk)); echo 1 > /sys/fs/ext4/$name/trigger_fs_error; not touch disk/x",
    );
    assert_eq!(ran.code, 0, "{ran:?}");
    for change in [
        "echo 3 > t/f; tar -C t -cf c.tar .; cp c.tar mnt/web.tar",
        "rmdir mnt/web/0",
        "ln -sfn 0 mnt/web/default",
    ] {
        let ran = script(change);
        assert!(ran.code != 0 && ran.err.contains("Read-only file system"), "{change}: {ran:?}");
    }
    let ran = script(
        "cmp a.tar mnt/web/0/rootfs.tar && cmp b.tar mnt/web/1/rootfs.tar && grep f mnt/.imgfs/errors && $IMGFS umount mnt",
    );
    assert_eq!(ran.code, 0, "{ran:?}");
    // On a read-only disk there is no daemon; it says why, and what lets one read.
    let ran = script("$IMGFS mount --store disk/store mnt");
    assert!(
        ran.code == 1 && ran.err.contains("Read-only file system") && ran.err.contains("overlay"),
        "{ran:?}"
    );
    let ran = script(
        "mkdir over all; mount -t tmpfs t over; mkdir over/up over/work; mount -t overlay o -o lowerdir=disk,upperdir=over/up,workdir=over/work all; \
         $IMGFS mount --store all/store mnt && cmp a.tar mnt/web/0/rootfs.tar && cmp b.tar mnt/web/1/rootfs.tar && $IMGFS umount mnt && \
         $IMGFS export --store all/store web/0 out.tar && cmp a.tar out.tar && umount all over",
    );
    assert_eq!(ran.code, 0, "{ran:?}");
    let ran = script(
        "umount disk; e2fsck -fy image > /dev/null; mount -o loop image disk; $IMGFS mount --store disk/store mnt && cmp a.tar mnt/web/0/rootfs.tar && \
         cp c.tar mnt/web.tar && cmp c.tar mnt/web/2/rootfs.tar && $IMGFS umount mnt && $IMGFS fsck --store disk/store",
    );
    assert_eq!(ran.code, 0, "{ran:?}");
}

/// Not the content, but the directory that it was to be staged in found no room, and nothing was made for
/// that.
#[test]
fn a_disk_that_only_the_trash_fills_takes_a_copy_of_any_kind() {
    let Some(dir) = Mounts::new() else { return };
    let script = |text: &str| dir.sh(&format!("set -e; {text}"));
    for (fill, copy) in [
        (
            "dd if=/dev/zero of=disk/fill bs=64K status=none || true; dd if=/dev/zero of=disk/fill2 bs=512 status=none || true",
            "cp a.tar mnt/new.tar",
        ),
        (
            "dd if=/dev/zero of=disk/fill bs=64K status=none || true",
            "cp a.tar mnt/.new.tar; mv mnt/.new.tar mnt/new.tar",
        ),
        (
            "dd if=/dev/zero of=disk/fill bs=64K status=none || true",
            "mkdir mnt/.two; cp a.tar mnt/.two/rootfs.tar; mv mnt/.two mnt/new",
        ),
        (
            "mkdir disk/i; (seq 100000 | sed s,^,disk/i/, | xargs touch) 2> /dev/null || true",
            "cp a.tar mnt/new.tar",
        ),
    ] {
        let ran = script(&format!(
            "mkdir -p disk mnt t; truncate -s 24M image; mkfs.ext4 -q -F -m 0 -N 200 image; mount -o loop image disk; \
             echo 1 > t/f; tar -C t -cf a.tar .; for n in 1 2 3; do head -c 3000000 /dev/urandom > t/f; tar -C t -cf $n.tar .; done; \
             $IMGFS mount --store disk/store mnt; cp a.tar mnt/keep.tar; echo more > t/f; tar -C t -cf a.tar .; \
             for n in 1 2 3; do cp $n.tar mnt/gone$n.tar; rmdir mnt/gone$n; done; {fill}; not touch disk/no"
        ));
        assert!(ran.code == 0 || ran.err.contains("No space left"), "{ran:?}");
        let ran = script(&format!(
            "{copy}; cmp a.tar mnt/new/0/rootfs.tar; test $(ls mnt/.imgfs/trash | wc -l) -lt 3; $IMGFS umount mnt; $IMGFS fsck --store disk/store; umount disk"
        ));
        assert_eq!(ran.code, 0, "{copy}: {ran:?}");
    }
}

/// A daemon whose store was moved away began it again, as an empty directory with `staging`, which mount then
/// refused.
#[test]
fn a_store_that_is_moved_away_is_not_begun_again_where_it_was() {
    let m = Mount::new();
    m.ok("cp $S/a.tar web.tar; mkdir .dir; mv $STORE $STORE.moved");
    m.refused("cp $S/b.tar web.tar", "");
    m.refused("mkdir .other", "");
    m.ok("not test -e $STORE; mv $STORE.moved $STORE; cp $S/b.tar web.tar; cmp $S/b.tar web/1/rootfs.tar");
    m.fsck();
}

#[test]
fn what_the_daemon_has_to_say_takes_no_more_than_its_room() {
    let mut m = Mount::new();
    m.ok("head -c 300000 /dev/zero > $STORE/daemon.log; cp $S/a.tar web.tar");
    m.unmount();
    // It has something to say of that.
    assert_eq!(m.sh("rm $STORE/blobs").code, 0);
    m.mount();
    m.ok("test $(stat -c %s $STORE/daemon.log) -lt 100000; test $(stat -c %s $STORE/daemon.log.1) -ge 300000; test -s $STORE/daemon.log");
}
