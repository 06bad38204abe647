//! Named points: the process is killed between any two steps of each gesture, of a migration, a rebuild, a
//! repair.

use std::collections::BTreeSet;
use std::path::Path;

use crate::World;
use crate::calls::GESTURES;
use crate::common::limit::wait_until_free;

/// What happens before anything is mounted, or beside: harm, the command that sees to it, and how the points
/// on its way begin. Behind each, the mount shows what it did before.
const COMMANDS: &[(&str, &str, &str, &[&str])] = &[
    (
        "a migration",
        "printf 'imgfs 3\\n' > store/format",
        "$IMGFS mount --store store mnt",
        &["migrate", "durably", "open"],
    ),
    (
        "a lost catalog",
        "rm store/catalog.db*",
        "$IMGFS mount --store store mnt",
        &["rebuild", "durably", "open"],
    ),
    (
        "a lost catalog and its copy",
        "rm store/catalog.*",
        "$IMGFS mount --store store mnt",
        &["rebuild", "durably", "open", "adopt", "commit"],
    ),
    ("a lost table", "rm store/blobs", "$IMGFS mount --store store mnt", &["rebuild", "durably", "open"]),
    (
        "a repair",
        "printf wxyz | dd of=store/trees/$(cat two.id).tree bs=1 seek=300 conv=notrunc",
        "$IMGFS fsck --repair --store store",
        &["repair", "heal", "commit", "gc", "sweep", "reclaim", "durably"],
    ),
    (
        "a copy in that heals",
        "for f in store/loose/*.seg; do dd if=/dev/urandom of=$f bs=1 seek=20 count=9 conv=notrunc; done; for f in store/trees/*.tree; do printf wxyz | dd of=$f bs=1 seek=300 conv=notrunc; done",
        "$IMGFS mount --store store mnt && { cat mnt/*/*/rootfs.tar; cp $S/a.tar mnt/web.tar; cp $S/c.tar mnt/web.tar; cp $S/b.tar mnt/two.tar; cp $S/b.tar mnt/three.tar; } 2> /dev/null",
        &["seal", "publish", "heal", "commit", "purge", "durably"],
    ),
];

/// All points in the source.
fn points() -> BTreeSet<String> {
    fn look(dir: &Path, found: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                look(&path, found);
            } else {
                let text = std::fs::read_to_string(&path).unwrap();
                found.extend(
                    text.split("reached(\"").skip(1).map(|rest| rest.split('"').next().unwrap().to_owned()),
                );
            }
        }
    }
    let mut found = BTreeSet::new();
    look(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    assert!(found.len() > 20);
    found
}

/// Which points a log says were reached.
fn reached(world: &World) -> BTreeSet<String> {
    let log = std::fs::read_to_string(world.path("store/daemon.log")).unwrap_or_default();
    log.split("failpoint ").skip(1).map(|rest| rest.split(' ').next().unwrap().to_owned()).collect()
}

#[test]
#[ignore = "minutes: scripts/torture.sh"]
fn every_named_point_can_be_the_last() {
    let all = points();
    let armed: Vec<String> = all.iter().map(|point| format!("{point}=print")).collect();
    let (mut never, mut tried) = (all.clone(), 0);
    let world = World::new();
    for (name, gesture) in GESTURES {
        world.ok("rm -rf before; cp -a store before; rm -f store/daemon.log");
        world.mount_armed(&armed.join(";")).unwrap();
        let before = world.state();
        std::fs::write(world.path("store/daemon.log"), "").unwrap();
        assert_eq!(world.sh("mnt", gesture).code, 0, "{name}");
        let on_the_way = reached(&world);
        world.unmount();
        world.mount();
        let after = world.state();
        world.unmount();
        world.ok("rm -rf after; cp -a store after");
        for point in on_the_way {
            never.remove(&point);
            let when = format!("{name}, killed at {point}");
            world.ok("rm -rf store; cp -a before store");
            world.mount();
            world.unmount();
            // The background may come to the point before anybody else.
            let _ = world.mount_armed(&format!("{point}=return"));
            let ran = world.sh(".", &format!("cd mnt && timeout 20 bash -c '{gesture}'"));
            assert_ne!(ran.code, 124, "{when}: it hangs");
            world.unmount();
            world.mount();
            crate::calls::check(&when, &ran, &before, &after, &world.state());
            world.unmount();
            let ran = world.sh(".", "$IMGFS fsck --store store");
            assert_eq!(ran.code, 0, "{when}: {ran:?}");
            tried += 1;
        }
        world.ok("rm -rf store; cp -a after store");
    }
    tried += commands(&all, &mut never);
    // Only a full disk comes to this one; full.rs does.
    never.remove("commit.reserve");
    println!("named points: {} of {} reached, {tried} kills, 0 losses", all.len() - never.len(), all.len());
    assert!(never.is_empty(), "never reached: {never:?}");
}

fn commands(all: &BTreeSet<String>, never: &mut BTreeSet<String>) -> u32 {
    let world = World::new();
    let mut tried = 0;
    world.mount();
    let made = world
        .sh("mnt", "cp $S/a.tar web.tar; cp $S/b.tar two.tar; cp $S/b.tar three.tar; cp $S/c.tar web.tar; ln -sfn two default; cat two/0/.id > ../two.id");
    assert_eq!(made.code, 0, "{made:?}");
    // Without the links, which a catalog made of trees alone has lost.
    let state = |world: &World| world.sh("mnt", "sha256sum */*/rootfs.tar | cut -c-64 | sort -u").out;
    let whole = state(&world);
    world.unmount();
    world.ok("rm -rf before; cp -a store before");
    for (name, harm, command, on_the_way) in COMMANDS {
        for point in all.iter().filter(|point| on_the_way.iter().any(|begin| point.starts_with(begin))) {
            world.ok(&format!("rm -rf store; cp -a before store; {harm}"));
            let ran =
                world.sh(".", &format!("export FAILPOINTS={point}=return; timeout 20 bash -c '{command}'"));
            // The command itself, or the daemon that it started or that it left.
            let mounts = command.contains(" mount ");
            let killed =
                ran.code == -1 || (mounts && (ran.code != 0 || world.sh(".", "stat mnt/.imgfs").code != 0));
            world.ok("$IMGFS umount mnt 2> /dev/null || $IMGFS umount --lazy mnt 2> /dev/null || true");
            wait_until_free(&world.path("store"));
            if !killed {
                continue;
            }
            let when = format!("{name}, killed at {point}");
            never.remove(point);
            tried += 1;
            // The same once more, in peace.
            let ran = world.sh(".", command);
            world.ok("$IMGFS umount mnt 2> /dev/null || true");
            wait_until_free(&world.path("store"));
            world.mount();
            assert_eq!(state(&world), whole, "{when}: {ran:?}");
            world.unmount();
            let ran = world.sh(".", "$IMGFS gc --store store && $IMGFS fsck --store store");
            assert_eq!(ran.code, 0, "{when}: {ran:?}");
        }
    }
    // The control: a loss is seen.
    world.ok("rm -rf store; cp -a before store; rm store/trees/*.tree");
    world.mount();
    assert_ne!(state(&world), whole);
    world.unmount();
    tried
}
