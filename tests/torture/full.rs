//! A full disk: an upload into every amount of room, from none to enough. It is there whole or it was refused
//! and left no trace; a disk that is full to the last block can be mounted, read, and given room by deleting.

use crate::common::{IMGFS, Ran};
use crate::{World, length};

/// Bytes between two amounts of room.
const STEP: u64 = 64 << 10;

/// A small file system on a loop device, with a store in it.
struct Disk {
    world: World,
}

impl Disk {
    fn new(options: &str) -> Disk {
        let world = World::new();
        world.ok(&format!(
            "mkdir disk; truncate -s 24M image; mkfs.ext4 -q -m 0 {options} image; mount -o loop image disk; mkdir disk/store; rmdir store; ln -s disk/store store"
        ));
        Disk { world }
    }

    fn sh(&self, script: &str) -> Ran {
        self.world.sh(".", script)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.sh("umount -l mnt; umount -l disk");
    }
}

#[test]
#[ignore = "minutes: scripts/torture.sh"]
fn every_amount_of_room() {
    let disk = Disk::new("");
    let world = &disk.world;
    // 1 MiB of new content; the image that is there shares none of it.
    world.ok("cd src; rm -rf u; mkdir u; for n in $(seq 64); do head -c 16384 /dev/urandom > u/f$n; done; tar -C u -cf u.tar .");
    world.mount();
    assert_eq!(
        world
            .sh("mnt", "cp $S/a.tar web.tar; cp $S/b.tar web.tar; cp $S/d.tar.gz old.tar.gz; rmdir old")
            .code,
        0
    );
    let before = world.state();
    world.unmount();
    world.ok("cp -a disk/store good");
    let (mut refused, mut taken, mut room) = (0, 0, 0);
    loop {
        let when = format!("with room for {room} bytes");
        world.ok("rm -rf disk/filler disk/store; cp -a good disk/store; sync -f disk");
        world.mount();
        // All the rest of the disk goes to somebody else, to the last block.
        let filled = disk.sh(&format!(
            "free=$(($(stat -f -c '%a * %S' disk))); fallocate -l $((free > {room} ? free - {room} : 0)) disk/filler 2> /dev/null || dd if=/dev/zero of=disk/filler bs=4096 count=$(((free - {room}) / 4096)) status=none"
        ));
        let ran = world.sh(".", "cd mnt && timeout 60 cp $S/u.tar new.tar");
        let now = world.state();
        if ran.code == 0 {
            taken += 1;
            assert_eq!(world.sh("mnt", "cmp $S/u.tar new/0/rootfs.tar").code, 0, "{when}");
        } else {
            refused += 1;
            assert!(ran.err.contains("No space left"), "{when}: {ran:?} {filled:?}");
            // The trash may have been emptied for it.
            assert!(!now.contains("new") && now.contains("web"), "{when}: {now}");
            assert!(now == before || !now.contains("old"), "{when}: {now}");
            let errors = std::fs::read_to_string(world.path("mnt/.imgfs/errors")).unwrap();
            assert!(errors.contains("No space"), "{when}: {errors}");
        }
        // To the brim: it starts, shows all, and gives room back.
        disk.sh("dd if=/dev/zero of=disk/brim bs=4096 status=none; dd if=/dev/zero of=disk/brim2 bs=512 count=1 status=none");
        world.unmount();
        world.mount();
        let full = world.sh("mnt", "cmp $S/a.tar web/0/rootfs.tar && cmp $S/b.tar web/1/rootfs.tar && ln -sfn 0 web/default && rmdir web/1 && df . && cat .imgfs/status.json");
        assert_eq!(
            full.code,
            0,
            "{when}, full: {full:?}\n{}",
            std::fs::read_to_string(world.path("mnt/.imgfs/errors")).unwrap()
        );
        let ran = disk.sh("$IMGFS gc --trash --store store && rm disk/brim* disk/filler && cp src/c.tar mnt/web.tar && cmp src/c.tar mnt/web/2/rootfs.tar");
        assert_eq!(ran.code, 0, "{when}, after: {ran:?}");
        world.unmount();
        let ran = disk.sh("$IMGFS gc --store store > /dev/null; $IMGFS fsck --store store");
        assert_eq!(ran.code, 0, "{when}: {ran:?}");
        // Enough, and a step beyond.
        if taken >= 2 {
            break;
        }
        room += STEP;
    }
    assert!(refused > 3, "the disk was never full");
    // The control: without the reserve nothing can be deleted there, once the last room in the catalog's
    // files is used.
    world.ok("rm -rf disk/store; cp -a good disk/store");
    world.mount();
    let without = disk.sh(
        "rm disk/store/reserve; dd if=/dev/zero of=disk/brim bs=4096 status=none; dd if=/dev/zero of=disk/brim2 bs=512 count=1 status=none; \
         cd mnt; n=0; while test $n -lt 3000 && mkdir x$n 2> /dev/null; do n=$((n + 1)); done; echo $n made; \
         ln -sfn 0 web/default && rmdir web/1 && rmdir x*",
    );
    assert_ne!(without.code, 0, "{without:?}");
    println!(
        "full disk: {refused} amounts of room refused, {taken} enough ({room} bytes), 0 losses; control, without reserve: cannot delete"
    );
}

#[test]
#[ignore = "minutes: scripts/torture.sh"]
fn no_inodes_left() {
    // 64 inodes: the store needs a handful, an upload some more.
    let disk = Disk::new("-N 64");
    let world = &disk.world;
    world.mount();
    assert_eq!(world.sh("mnt", "cp $S/a.tar web.tar; cp $S/b.tar web.tar").code, 0);
    let mut refused = 0;
    for left in 0..length(8, 30) {
        disk.sh(&format!("rm -f disk/x*; n=0; while : > disk/x$n; do n=$((n + 1)); done 2> /dev/null; for m in $(seq {left}); do rm disk/x$m; done"));
        let ran = world.sh("mnt", "timeout 60 cp $S/large.tar new.tar");
        refused += u32::from(ran.code != 0);
        assert!(ran.code == 0 || ran.err.contains("No space left"), "{left} inodes: {ran:?}");
        assert_eq!(world.sh("mnt", "cmp $S/a.tar web/0/rootfs.tar").code, 0);
        world.unmount();
        world.mount();
        assert_eq!(world.sh("mnt", &format!("test {} = 1 -o -e new/0; ln -sfn web default; test -e new && rm -r new; {IMGFS} gc --trash --store $STORE", ran.code)).code, 0, "{left}");
    }
    assert!(refused > 0);
    world.unmount();
    println!("no inodes: {refused} refused, 0 losses");
}
