//! Power cuts: a store on ext4 and xfs, on a disk that remembers every write and flush. The disk of a moment,
//! with any of the writes since the last flush missing or torn, is mounted, and what was acknowledged must be
//! there, whole.
//!
//! The control is a daemon whose syncs are lies.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::dice::Dice;
use crate::disk::{Disk, Event, Pages};
use crate::load::{Done, GESTURES, PREPARE, judge};
use crate::{World, length, seed};

/// A file system, how it is made, how large, and what of a write is whole or not there at all.
struct Kind {
    name: &'static str,
    make: &'static str,
    size: usize,
    sector: usize,
    /// Makes what the file system itself does not survive good again.
    mend: Option<&'static str>,
}

const EXT4: Kind = Kind {
    name: "ext4",
    make: "mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0,nodiscard -m 0",
    size: 48 << 20,
    sector: 512,
    // Its superblock is two sectors.
    mend: Some("e2fsck -fy"),
};

// Sectors of 512 bytes tear its directory blocks, which its log does not mend.
const XFS: Kind = Kind { name: "xfs", make: "mkfs.xfs -q -K", size: 320 << 20, sector: 4096, mend: None };

/// A store that lies in a file system on such a disk.
struct Machine {
    // Dropped in this order: the file system, the disk, the directories.
    mounted: Mounted,
    disk: Disk,
    world: World,
    kind: &'static Kind,
    blank: Pages,
    lies: PathBuf,
}

/// Takes a file system off its place, whatever happened.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = unmount(self.0.parent().unwrap().join("mnt"), UnmountFlags::DETACH);
        let begun = Instant::now();
        while unmount(&self.0, UnmountFlags::empty()) == Err(rustix::io::Errno::BUSY)
            && begun.elapsed().as_secs() < 20
        {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A load as the disk saw it.
struct Recording {
    events: Vec<Event>,
    done: Vec<Done>,
}

impl Machine {
    fn new(kind: &'static Kind) -> Machine {
        let world = World::new();
        world.ok(PREPARE);
        let lies = world.path("lies.so");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/torture/lies.c");
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .arg(&lies)
            .args([source, "-ldl"])
            .status();
        assert!(built.unwrap().success());
        let disk = Disk::new(&world.path("."), kind.size, kind.sector);
        world.ok(&format!("{} {}", kind.make, disk.device));
        let (_, blank) = disk.take();
        Machine { mounted: Mounted(world.path("store")), disk, world, kind, blank, lies }
    }

    fn mount(&self) -> Result<(), String> {
        let mounted = mount(&self.disk.device, &self.mounted.0, self.kind.name, MountFlags::empty(), None);
        mounted.map_err(|e| format!("{} cannot be mounted: {e}", self.kind.name))
    }

    fn unmount(&self) {
        drop(Mounted(self.mounted.0.clone()));
    }

    /// Runs the load, by a daemon that lies about the syncs of files whose path has one of the words.
    fn record(&self, lies: Option<&str>) -> Recording {
        self.disk.set(Some(self.blank.clone()), Pages::default());
        self.mount().unwrap();
        let (mut done, mut begun) = (Vec::new(), 0);
        let env =
            lies.map_or(String::new(), |words| format!("LD_PRELOAD={} LIES='{words}'", self.lies.display()));
        let mut gesture = |(name, steps), script: &str| {
            let ran = self.world.sh("mnt", script);
            assert_eq!(ran.code, 0, "{name}: {ran:?}");
            let acknowledged = self.disk.position();
            done.push(Done { name, begun, acknowledged, steps, shows: self.world.state() });
            if lies.is_some() {
                // What a lie has left out reaches the disk in time: only the last gesture is at risk.
                self.world.ok("sync -f store");
            }
            begun = self.disk.position();
        };
        gesture(("a new store", false), &format!("cd ..; {env} $IMGFS mount --store store mnt"));
        GESTURES.iter().for_each(|g| gesture(g.name(), g.script()));
        self.world.ok("$IMGFS umount mnt");
        self.unmount();
        Recording { events: self.disk.take().0, done }
    }

    /// Lets the power fail after `cut` events: what was flushed is there, of ten other writes `share`.
    /// `settled` events are on the disk already. Says whether the file system had to be mended.
    ///
    /// Errors: what was lost.
    fn cut(
        &self,
        recording: &Recording,
        settled: &mut usize,
        cut: &Cut,
        dice: &mut Dice,
    ) -> Result<bool, String> {
        let flushed = recording.events[..cut.at]
            .iter()
            .rposition(|e| matches!(e, Event::Flush))
            .unwrap_or(0)
            .max(*settled);
        let mut over = Pages::default();
        self.disk.with_base(|base| {
            for event in &recording.events[*settled..flushed] {
                if let Event::Write { at, bytes } = event {
                    base.write(&Pages::default(), *at, bytes);
                }
            }
            for event in &recording.events[flushed..cut.at] {
                let Event::Write { at, bytes } = event else { continue };
                if dice.roll(10) >= cut.share {
                    continue;
                }
                let torn = dice.roll(4) == 0;
                for (n, sector) in bytes.chunks(self.kind.sector).enumerate() {
                    if !torn || dice.roll(2) == 0 {
                        over.write(base, at + n * self.kind.sector, sector);
                    }
                }
            }
        });
        *settled = flushed;
        self.disk.set(None, over);
        let mended = match (self.mount(), self.kind.mend) {
            (Err(_), Some(mend)) => {
                self.world.sh(".", &format!("{mend} {}", self.disk.device));
                self.mount()?;
                true
            }
            (mounted, _) => mounted.map(|()| false)?,
        };
        let looked = self.look(cut.harm);
        self.unmount();
        judge(&recording.done, cut.at, &looked?)?;
        Ok(mended)
    }

    /// Makes cuts, first to last. Gives how often the file system was mended, and what was lost.
    fn cuts(&self, recording: &Recording, mut cuts: Vec<Cut>, dice: &mut Dice) -> (usize, Vec<String>) {
        self.disk.set(Some(self.blank.clone()), Pages::default());
        cuts.sort_by_key(|cut| cut.at);
        let (mut settled, mut mended, mut lost) = (0, 0, Vec::new());
        for cut in &cuts {
            match self.cut(recording, &mut settled, cut, dice) {
                Ok(had) => mended += usize::from(had),
                Err(why) => {
                    let of = recording.events.len();
                    lost.push(format!("{}, {:?} of {of} events: {why}", self.kind.name, cut));
                }
            }
        }
        (mended, lost)
    }

    /// What the store shows, if it can be mounted and fsck finds nothing.
    fn look(&self, harm: &str) -> Result<String, String> {
        let steps = [
            format!("({harm}) && timeout 60 $IMGFS mount --store store mnt > mounted"),
            "timeout 60 $IMGFS umount mnt && timeout 60 $IMGFS fsck --store store > fsck".to_owned(),
        ];
        let mut ran = self.world.sh(".", &steps[0]);
        let mut shown = String::new();
        if ran.code == 0 {
            shown = self.world.shown().map_err(|e| format!("it cannot be read: {e}"))?;
            ran = self.world.sh(".", &steps[1]);
        }
        if ran.code == 0 {
            return Ok(shown);
        }
        let log =
            self.world.sh(".", "cat mounted fsck; tail -n 5 store/daemon.log; find store | head -50").out;
        Err(format!("it ended with {}: {}{}\n{log}", ran.code, ran.out, ran.err))
    }
}

/// When the power fails, how much of what was not flushed is there, and what is done to the store then.
#[derive(Debug)]
struct Cut {
    at: usize,
    share: usize,
    harm: &'static str,
}

const HARMS: &[&str] = &["true", "true", "true", "rm -f store/catalog.db*"];

/// A cut right after each gesture was acknowledged, with nothing there that was not flushed.
fn at_acknowledgements(recording: &Recording) -> Vec<Cut> {
    recording.done.iter().map(|d| Cut { at: d.acknowledged, share: 0, harm: "true" }).collect()
}

fn cut_power(kind: &'static Kind, count: u32) {
    let mut dice = Dice(seed());
    let begun = Instant::now();
    let machine = Machine::new(kind);
    let recording = machine.record(None);
    let mut cuts = at_acknowledgements(&recording);
    while cuts.len() < count as usize {
        let at = dice.roll(recording.events.len() + 1);
        cuts.push(Cut { at, share: [0, 1, 5, 9, 10][dice.roll(5)], harm: HARMS[dice.roll(HARMS.len())] });
    }
    let made = cuts.len();
    let (mended, lost) = machine.cuts(&recording, cuts, &mut dice);
    println!(
        "power cuts, {}: {made} in {} writes and flushes of {} gestures, {} losses, {mended} file systems mended; {:.0} s",
        kind.name,
        recording.events.len(),
        recording.done.len(),
        lost.len(),
        begun.elapsed().as_secs_f32(),
    );
    assert!(lost.is_empty(), "{} of {made}; the first: {}", lost.len(), lost[0]);
}

#[test]
#[ignore = "minutes: scripts/torture.sh"]
fn power_fails_anywhere_on_ext4() {
    cut_power(&EXT4, length(300, 10_000));
}

#[test]
#[ignore = "minutes: scripts/torture.sh"]
fn power_fails_anywhere_on_xfs() {
    match length(0, 10_000) {
        0 => println!("power cuts, xfs: none in the short form"),
        count => cut_power(&XFS, count),
    }
}

/// Syncs by the paths of their files, and whether a power cut right after a gesture shows that they are
/// missing. Names of files are durable on ext4 when any later sync is, and each half of the catalog makes up
/// for the other: there replay.rs looks.
const LIES: &[(&str, bool)] = &[
    ("/", true),
    ("staging/", true),
    ("store/blobs$", true),
    (".tree$", true),
    ("catalog.db:catalog.rows", true),
    ("catalog.db", false),
    ("catalog.rows", false),
    ("loose$", false),
    ("packs$", false),
    ("trees$", false),
    ("store$", false),
];

#[test]
#[ignore = "minutes: scripts/torture.sh"]
fn power_cuts_show_which_syncs_are_lies() {
    let (seed, begun) = (seed(), Instant::now());
    let machine = Machine::new(&EXT4);
    let mut said = Vec::new();
    for (lies, noticed) in LIES.iter().filter(|(_, noticed)| *noticed || length(0, 1) > 0) {
        let recording = machine.record(Some(lies));
        let cuts = at_acknowledgements(&recording);
        let made = cuts.len();
        let lost = machine.cuts(&recording, cuts, &mut Dice(seed)).1.len();
        assert!(lost > 0 || !noticed, "syncs of {lies} are lies, and nothing is lost");
        said.push(format!("{lies} {lost} of {made}"));
    }
    println!(
        "power cuts, control: losses when syncs are lies: {}; {:.0} s",
        said.join(", "),
        begun.elapsed().as_secs_f32()
    );
}
