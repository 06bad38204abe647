//! Replay: every system call by which a daemon changes its store is recorded. The store after any number of
//! them, and after a crash that kept only what was durable and some of the rest, on whatever file system,
//! opens, is whole, and shows what was acknowledged. After ALICE (OSDI'14).
//!
//! The control leaves syncs out, all and one at a time.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use imgfs::store::Store;
use imgfs::store::settings::Settings;

use crate::common::{IMGFS, limit};
use crate::dice::Dice;
use crate::load::{Done, GESTURES, PREPARE, judge};
use crate::model::{Calls, Crash, Id, Op};
use crate::{World, length, seed};

/// A load as a sequence of calls.
struct Replay {
    calls: Calls,
    done: Vec<Done>,
    /// Where stores are laid out: in memory, where a sync costs nothing.
    scratch: tempfile::TempDir,
}

/// What a daemon that was killed finds missing, and makes again; that can be cut off, too.
const LOST: &[(&str, &str)] = &[
    ("a lost catalog", "catalog.db catalog.db-wal"),
    ("a lost copy", "catalog.rows"),
    ("a lost blob table", "blobs"),
];

/// A daemon whose calls are recorded.
struct Daemon {
    world: World,
    child: Option<Child>,
}

impl Daemon {
    fn new() -> Daemon {
        let world = World::new();
        world.ok(PREPARE);
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/torture/record.c");
        world.ok(&format!("cc -shared -fPIC -O1 -o record.so {source}; touch record"));
        Daemon { world, child: None }
    }

    /// A command whose calls are recorded.
    fn recorded(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("LD_PRELOAD", self.world.path("record.so")).env("RECORD", self.world.path("record"));
        command.env("RECORD_BELOW", self.world.path("store"));
        command
    }

    fn start(&mut self) {
        let mut command = self.recorded(&IMGFS.to_string());
        command
            .args(["mount", "--foreground", "--store"])
            .args([self.world.path("store"), self.world.path("mnt")]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut ready = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        self.child = Some(child);
        assert!(ready.contains("shows"), "{ready}");
    }

    fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        limit::wait(&mut child, &self.world.path("."));
    }

    /// Bytes of the record.
    fn noted(&self) -> usize {
        usize::try_from(std::fs::metadata(self.world.path("record")).unwrap().len()).unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = self.world.sh(".", "$IMGFS umount mnt || umount -l mnt");
            let _ = child.kill().and_then(|()| child.wait());
        }
    }
}

impl Replay {
    fn record() -> Replay {
        let mut daemon = Daemon::new();
        let mut marks = Vec::new();
        let mut mark = |daemon: &Daemon, name, begun, steps| {
            marks.push((name, begun, daemon.noted(), steps, daemon.world.state()))
        };
        daemon.start();
        mark(&daemon, "a new store", 0, false);
        for g in GESTURES {
            let ((name, steps), begun) = (g.name(), daemon.noted());
            let ran = daemon.world.sh("mnt", g.script());
            assert_eq!(ran.code, 0, "{name}: {ran:?}");
            mark(&daemon, name, begun, steps);
        }
        for (name, files) in LOST {
            let begun = daemon.noted();
            daemon.kill();
            let lost = files.split(' ').map(|file| daemon.world.path("store").join(file));
            assert!(daemon.recorded("rm").args(lost).status().unwrap().success());
            daemon.start();
            mark(&daemon, name, begun, false);
        }
        daemon.kill();
        let (record, world) = (std::fs::read(daemon.world.path("record")).unwrap(), &daemon.world);
        let store = world.path("store");
        let calls = Calls::read(&record, std::fs::metadata(&store).unwrap().ino());
        let shm = Path::new("/dev/shm");
        let mut builder = tempfile::Builder::new();
        builder.prefix("imgfs-test-");
        let scratch = if shm.is_dir() { builder.tempdir_in(shm) } else { builder.tempdir() }.unwrap();
        let mut replay = Replay { calls, done: Vec::new(), scratch };
        // Nothing escapes the recorder: what it wrote down makes the very same store.
        replay.lay_out(&mut whole(replay.calls.ops.len()));
        let (ours, theirs) = (content(&replay.store()), content(&store));
        assert!(ours.keys().eq(theirs.keys()), "{:?}\n{:?}", ours.keys(), theirs.keys());
        ours.iter()
            .zip(&theirs)
            .for_each(|((name, a), (_, b))| assert!(a == b, "{} differs", name.display()));
        for (name, begun, acknowledged, steps, state) in marks {
            let (begun, acknowledged) = (replay.calls.within(begun), replay.calls.within(acknowledged));
            let shows = replay.after(&mut whole(acknowledged)).unwrap();
            let sums = state.lines().filter_map(|line| line.strip_suffix("  -"));
            sums.for_each(|sum| assert!(shows.contains(sum), "{name}: {sum} is not in\n{shows}"));
            replay.done.push(Done { name, begun, acknowledged, steps, shows });
        }
        replay
    }

    fn store(&self) -> PathBuf {
        self.scratch.path().join("store")
    }

    fn lay_out(&self, crash: &mut Crash) {
        let _ = std::fs::remove_dir_all(self.store());
        let tree = self.calls.after(crash);
        self.calls.lay_out(&tree, 0, &self.store());
    }

    /// What the store shows after a crash.
    fn after(&self, crash: &mut Crash) -> Result<String, String> {
        self.lay_out(crash);
        catch_unwind(AssertUnwindSafe(|| look(&self.store()))).unwrap_or_else(|_| Err("it panics".into()))
    }

    fn check(&self, crash: &mut Crash) -> Result<(), String> {
        let cut = crash.cut;
        let shows = self.after(crash)?;
        judge(&self.done, cut, &shows)
    }
}

/// After so many calls, all of which are durable.
fn whole(cut: usize) -> Crash<'static> {
    Crash { cut, settled: cut, is_lie: &|_, _| false, share: 10, dice: Dice(0) }
}

/// All files below a directory, but for memory between processes.
fn content(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = PathBuf::from(path.file_name().unwrap());
        if path.is_dir() {
            all.extend(content(&path).into_iter().map(|(below, bytes)| (name.join(below), bytes)));
        } else if path.is_file() && !path.to_string_lossy().ends_with("-shm") {
            all.insert(name, std::fs::read(&path).unwrap());
        }
    }
    all
}

/// Opens a store as a mount does, and says what is in it, if nothing is wrong.
pub fn look(dir: &Path) -> Result<String, String> {
    let store = Store::open(dir, Settings::default()).map_err(|e| format!("open: {e}"))?;
    imgfs::care::gc::run(&store).map_err(|e| format!("gc: {e}"))?;
    let found = imgfs::care::fsck::check(&store, |_, _| true).map_err(|e| format!("fsck: {e}"))?;
    if !found.is_empty() {
        return Err(format!("fsck: {found:?}"));
    }
    let model = store.catalog.read();
    let mut lines = vec![format!("default {:?} {}", model.default_image, model.default_hidden)];
    for i in model.images.values() {
        let storage = &i.editable;
        lines.push(format!(
            "image {} {} {:?} {:o} {:?} {storage:?}",
            i.serial, i.name, i.trash_name, i.mode, i.pinned
        ));
    }
    for v in model.versions.values() {
        lines.push(format!("version {}/{} {:?} {}", v.image, v.number, v.trash_name, v.facts.digest));
    }
    lines.extend(model.aliases.values().map(|a| format!("alias {} {} {:?}", a.name, a.image, a.number)));
    Ok(lines.join("\n"))
}

#[test]
#[ignore = "minutes: scripts/torture.sh"]
fn every_order_of_calls_leaves_a_whole_store() {
    let (seed, begun) = (seed(), Instant::now());
    let replay = Replay::record();
    let count = replay.calls.ops.len();
    let mut lost = Vec::new();
    // In the order in which they were made: what a kill leaves.
    for cut in 0..=count {
        if cut == 0 || !matches!(replay.calls.ops[cut - 1], Op::Sync { .. }) {
            lost.extend(replay.check(&mut whole(cut)).err().map(|why| format!("call {cut}: {why}")));
        }
    }
    let in_order = begun.elapsed();
    let mut dice = Dice(seed);
    let reordered = length(300, 10_000) as usize;
    for n in 0..reordered {
        let ends = replay.done.get(n).map(|d| d.acknowledged);
        let cut = ends.unwrap_or_else(|| dice.roll(count + 1));
        let share = if ends.is_some() { 0 } else { [0, 1, 5, 9][dice.roll(4)] };
        let dice = Dice(dice.roll(usize::MAX) as u64);
        let mut crash = Crash { cut, settled: 0, is_lie: &|_, _| false, share, dice };
        lost.extend(
            replay
                .check(&mut crash)
                .err()
                .map(|why| format!("reordering {n}, call {cut}, share {share}: {why}")),
        );
    }
    println!(
        "replay: {count} calls of {} gestures, each prefix and {reordered} reorderings, {} losses; {:.0} s, of it {:.0} s the prefixes",
        replay.done.len(),
        lost.len(),
        begun.elapsed().as_secs_f32(),
        in_order.as_secs_f32(),
    );
    assert!(lost.is_empty(), "{} losses; the first: {}", lost.len(), lost[0]);
}

/// Files whose syncs, all of a gesture, are needed: without them something can be lost.
const NEEDED: &[&str] = &[
    "blobs",
    "catalog",
    "format.new to format",
    "loose",
    "packs",
    "staging/object to loose/.obj",
    "staging/pack to packs/.pack",
    "staging/segment to loose/.seg",
    "trees",
    "trees/.tree",
];

#[test]
#[ignore = "minutes: scripts/torture.sh"]
fn a_missing_sync_is_noticed() {
    let (seed, begun) = (seed(), Instant::now());
    let replay = Replay::record();
    let mut dice = Dice(seed);
    // In some moment from a call of a gesture on, if all that was before the gesture is durable.
    let mut loses = |is_lie: &dyn Fn(usize, Id) -> bool, from: usize, of: &Done| {
        (0..length(6, 40)).any(|n| {
            let cut = if n == 0 { of.acknowledged } else { from + 1 + dice.roll(of.acknowledged - from) };
            let (share, dice) =
                (if n == 0 { 0 } else { [0, 1, 5, 9][dice.roll(4)] }, Dice(dice.roll(usize::MAX) as u64));
            replay.check(&mut Crash { cut, settled: of.begun, is_lie, share, dice }).is_err()
        })
    };
    let syncs = |of: &Done| {
        let all = replay.calls.ops[of.begun..of.acknowledged].iter().zip(of.begun..);
        let found = all.filter_map(|(op, n)| {
            if let Op::Sync { id } = op { Some((n, class(&replay.calls.paths[*id]))) } else { None }
        });
        found.collect::<Vec<_>>()
    };
    let (mut kinds, mut single) = (BTreeMap::<String, Count>::new(), BTreeMap::<String, Count>::new());
    for of in &replay.done {
        let syncs = syncs(of);
        let mut here: Vec<&str> = syncs.iter().map(|(_, class)| class.as_str()).collect();
        // The two halves of the catalog make up for each other.
        here.extend(["", "catalog"]);
        here.sort_unstable();
        here.dedup();
        for kind in here {
            let lies = |_, id: Id| {
                let class = class(&replay.calls.paths[id]);
                kind.is_empty() || kind == class || kind == "catalog" && class.starts_with(kind)
            };
            kinds.entry(kind.to_owned()).or_default().add(loses(&lies, of.begun, of));
        }
        for (n, class) in &syncs {
            single.entry(class.clone()).or_default().add(loses(&|call, _| call == *n, *n, of));
        }
    }
    let all = kinds.remove("").unwrap_or_default();
    println!(
        "replay, control: without syncs {} of {} gestures lose something; {:.0} s",
        all.lost,
        all.of,
        begun.elapsed().as_secs_f32()
    );
    println!("  without all syncs of a kind of file in a gesture: {}", Count::list(&kinds));
    println!("  without a single one: {}", Count::list(&single));
    for kind in NEEDED {
        assert!(
            kinds.get(*kind).is_some_and(|count| count.lost > 0),
            "nobody notices that {kind} is not synced"
        );
    }
}

/// So many were lost, of so many.
#[derive(Default)]
struct Count {
    lost: usize,
    of: usize,
}

impl Count {
    fn add(&mut self, lost: bool) {
        self.lost += usize::from(lost);
        self.of += 1;
    }

    fn list(all: &BTreeMap<String, Count>) -> String {
        all.iter()
            .map(|(what, count)| format!("{what} {} of {}", count.lost, count.of))
            .collect::<Vec<_>>()
            .join(", ")
    }
}

/// What kind of file has had these names: where it was, and how it ends or begins.
fn class(paths: &str) -> String {
    let one = |path: &str| match path.rsplit_once('/') {
        None if path.is_empty() => "the store".to_owned(),
        None => path.to_owned(),
        Some((dir, name)) => {
            let dir = dir.split('/').next().unwrap_or(dir);
            let (begin, end) =
                (name.split('-').next().unwrap_or(name), name.rfind('.').map_or("", |dot| &name[dot..]));
            let begin = if begin.len() < 10 && begin != name || end.is_empty() && begin.len() < 10 {
                begin
            } else {
                ""
            };
            format!("{dir}/{begin}{end}")
        }
    };
    paths.split(' ').map(one).collect::<Vec<_>>().join(" to ")
}
