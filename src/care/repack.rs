//! imgfs repack, and the same in the background. Content at rest moves into packs. Content that must be
//! fast moves out.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::base::digest::{BlobId, Digest};
use crate::blob::{AUTO, IdSet, Move, SMALL, Shape};
use crate::catalog::Version;
use crate::error::{Error, Result};
use crate::formats::metadata::Storage;
use crate::store::{Store, TreeSlot};
use crate::tree::{Bytes, Form, NodeIndex, NodeKind, ROOT, Tree, form_of};

/// In the background, content of `auto` images is packed once its version has rested for this long. The
/// first time is for the version that `default` leads to, the second for others.
const REST_DEFAULT: Duration = Duration::from_secs(7 * 24 * 3600);
const REST: Duration = Duration::from_secs(3600);
/// How many older versions are searched for files that resemble one.
const REFERENCES: usize = 8;
/// How long the background waits before it checks again whether uploads are under way.
const GIVE_WAY: Duration = Duration::from_millis(200);
/// How many other images are searched for one that the first version of an image resembles.
const KIN: usize = 64;

/// What is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// Everything except for `fast` images.
    All,
    /// Only what has rested.
    Rested,
}

/// What a repack did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Repacked {
    pub blobs: u64,
    /// How many bytes of content moved.
    pub bytes: u64,
}

/// Carries out a repack as a job, if there is anything to do. It runs with low priority, and gives way
/// to uploads. `listen` gets the bytes done and the bytes in all, and returns whether to go on. What is
/// done by then stays.
///
/// # Errors
///
/// `Io`. What was moved stays moved. Content that cannot be read stays where it is.
pub fn run(
    store: &Store,
    what: What,
    threads: usize,
    mut listen: impl FnMut(u64, u64) -> bool,
) -> Result<Repacked> {
    // Only one repack runs at a time, because two would pack the same content.
    let _one = store.repack.lock();
    loop {
        let known = store.blobs.damaged().len();
        match attempt(store, what, threads, &mut listen) {
            Err(e) if e.is_damage() && store.blobs.damaged().len() > known => {
                log::error!("{e}: packing without it")
            }
            done => return done,
        }
    }
}

/// One attempt. It ends at content that cannot be read, which is known to be damaged from then on.
fn attempt(
    store: &Store,
    what: What,
    threads: usize,
    listen: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<Repacked> {
    let pins = store.blobs.pin();
    let versions = in_order(store);
    if what == What::Rested && !may_find(store, &versions)? {
        return Ok(Repacked::default());
    }
    let plan = plan(store, what, &versions)?;
    if plan.is_empty() && what == What::Rested {
        return Ok(Repacked::default());
    }
    // Blobs that a running gc has freed are skipped later.
    pins.add(plan.moves().flat_map(|m| [Some(m.id), m.base]).flatten().chain(plan.loosen.iter().copied()));
    let job = store.journal.start_job("repack", "", rustix::process::geteuid().as_raw());
    // The compressing threads are started from this one, and inherit its priority.
    let nice = rustix::thread::gettid();
    let _ = rustix::process::setpriority_process(Some(nice), if what == What::Rested { 19 } else { 10 });
    let listen = std::cell::RefCell::new(listen);
    let stopped = std::cell::Cell::new(false);
    let done = carry_out(store, &plan, threads, &|done, total| {
        job.reached(done);
        job.bytes_total.store(total, Ordering::Relaxed);
        job.phase("packing");
        while what == What::Rested && store.journal.is_uploading() && listen.borrow_mut()(done, total) {
            job.phase("waiting for uploads");
            std::thread::sleep(GIVE_WAY);
        }
        stopped.set(!listen.borrow_mut()(done, total));
        !stopped.get()
    });
    job.end(&match &done {
        Ok(_) if stopped.get() => "stopped; what was packed stays so".to_owned(),
        Ok(done) => format!("moved {} blobs, {} bytes", done.blobs, done.bytes),
        Err(e) => e.to_string(),
    });
    done
}

/// Moves content. The caller pins its blobs. `go_on` gets the bytes done and the bytes in all, and
/// returns whether to go on.
fn carry_out(
    store: &Store,
    plan: &Plan,
    threads: usize,
    go_on: &dyn Fn(u64, u64) -> bool,
) -> Result<Repacked> {
    let size = |id: BlobId| store.blobs.record(id).map_or(0, |record| record.size);
    let total = plan.moves().map(|m| size(m.id)).chain(plan.loosen.iter().map(|id| size(*id))).sum();
    let done = AtomicU64::new(0);
    let tell = |bytes| go_on(done.fetch_add(bytes, Ordering::Relaxed) + bytes, total);
    let blobs = (plan.moves().count() + plan.loosen.len()) as u64;
    if blobs > 0 {
        store.blobs.loosen(&plan.loosen, &tell)?;
        for (shape, moves) in &plan.packs {
            store.blobs.pack_all(moves, shape, threads, &tell)?;
        }
        store.has_garbage();
    }
    for tree in &plan.trees {
        if !go_on(done.load(Ordering::Relaxed), total) {
            break;
        }
        let (packed, base) = tree.slot.tree.pack(tree.digest, &tree.bases)?;
        store.put_packed(tree.serial, &tree.slot.tree, &packed, base.as_deref())?;
    }
    Ok(Repacked { blobs, bytes: done.into_inner() })
}

/// What moves, and in which order.
#[derive(Default)]
struct Plan {
    loosen: Vec<BlobId>,
    packs: Vec<(Shape, Vec<Move>)>,
    trees: Vec<TreeMove>,
}

/// A tree whose content is all at rest.
struct TreeMove {
    serial: u32,
    digest: Digest,
    slot: Arc<TreeSlot>,
    /// Trees that it resembles.
    bases: Vec<PathBuf>,
}

impl Plan {
    fn is_empty(&self) -> bool {
        self.loosen.is_empty() && self.packs.is_empty() && self.trees.is_empty()
    }

    fn moves(&self) -> impl Iterator<Item = &Move> {
        self.packs.iter().flat_map(|(_, moves)| moves)
    }
}

/// Whether a look into every tree may find something to move. That look takes a while.
fn may_find(store: &Store, versions: &[(Version, Storage, bool)]) -> Result<bool> {
    let moves = |(version, storage, is_default): &(Version, Storage, bool)| {
        let packed = form_of(&store.tree_path(&version.id)) != Form::Loose;
        match storage {
            Storage::Fast => packed,
            Storage::Auto => !packed && has_rested(store, version, *is_default),
            Storage::Small => !packed,
        }
    };
    Ok(versions.iter().any(moves) || !store.blobs.thinly_packed()?.is_empty())
}

fn plan(store: &Store, what: What, versions: &[(Version, Storage, bool)]) -> Result<Plan> {
    // Content that several versions share lies where the fastest of them needs it.
    let (mut fast, mut stays, mut auto) = (IdSet::default(), IdSet::default(), IdSet::default());
    let (mut trees, mut plan) = (Vec::new(), Plan::default());
    for (version, storage, is_default) in versions {
        let slot = match store.tree(version.serial) {
            // The version is gone meanwhile, or damaged. Content that only it has stays where it is.
            Err(e) if e.is_damage() || matches!(e, Error::NotFound { .. }) => continue,
            other => other?,
        };
        let set = match storage {
            Storage::Fast => Some(&mut fast),
            Storage::Auto if what == What::Rested && !has_rested(store, version, *is_default) => {
                Some(&mut stays)
            }
            Storage::Auto => Some(&mut auto),
            Storage::Small => None,
        };
        if let Some(set) = set {
            slot.tree.blobs().for_each(|id| set.insert(id));
        }
        trees.push((version, slot));
    }
    let stay = |slot: &TreeSlot| slot.tree.blobs().any(|id| fast.contains(id) || stays.contains(id));
    let thin = store.blobs.thinly_packed()?;
    let mut wanted = IdSet::default();
    for (id, record) in store.blobs.records() {
        if store.blobs.is_damaged(id) {
            continue;
        }
        if fast.contains(id) {
            if record.is_packed() {
                plan.loosen.push(id);
            }
        } else if !stays.contains(id) && (!record.is_packed() || thin.contains(&id)) {
            wanted.insert(id);
        }
    }
    let (mut for_auto, mut for_small) = (Vec::new(), Vec::new());
    let mut planner = Planner { store, wanted, deltas: IdSet::default(), moves: Vec::new() };
    for (n, (version, slot)) in trees.iter().enumerate() {
        let before = &trees[..n];
        let own: Vec<&Tree> = before
            .iter()
            .rev()
            .filter(|(of, _)| of.image == version.image)
            .map(|(_, s)| &s.tree)
            .take(REFERENCES)
            .collect();
        let references =
            if own.is_empty() { most_alike(&slot.tree, before).into_iter().collect() } else { own };
        if !slot.tree.is_packed() && !stay(slot) {
            let bases = references.iter().map(|tree| tree.path().to_owned()).collect();
            plan.trees.push(TreeMove {
                serial: version.serial,
                digest: version.tree,
                slot: slot.clone(),
                bases,
            });
        }
        planner.version(&slot.tree, &references)?;
        for mut m in planner.moves.drain(..) {
            m.base = m.base.filter(|base| !store.blobs.is_damaged(*base));
            if auto.contains(m.id) { &mut for_auto } else { &mut for_small }.push(m);
        }
    }
    for (shape, moves) in [(AUTO, for_auto), (SMALL, for_small)] {
        if !moves.is_empty() {
            plan.packs.push((shape, moves));
        }
    }
    Ok(plan)
}

/// Every version, oldest image first, oldest version first. Each has the storage setting of its image,
/// and whether it is the image's default.
fn in_order(store: &Store) -> Vec<(Version, Storage, bool)> {
    let model = store.catalog.read();
    let mut versions: Vec<_> = model.all_versions().cloned().collect();
    versions.sort_by_key(|v| (v.image, v.number));
    let of = |version: Version| {
        let image = model.images.get(&version.image);
        let is_default =
            image.and_then(|image| model.default_version(image)).is_some_and(|v| v.serial == version.serial);
        (version, image.map_or(Storage::Auto, |image| image.editable.storage), is_default)
    };
    versions.into_iter().map(of).collect()
}

fn has_rested(store: &Store, version: &Version, is_default: bool) -> bool {
    let used = std::fs::metadata(store.tree_path(&version.id)).and_then(|meta| meta.modified());
    let rest = used.ok().and_then(|used| SystemTime::now().duration_since(used).ok()).unwrap_or_default();
    rest >= if is_default { REST_DEFAULT } else { REST }
}

/// Takes the newest versions of some other images. Returns the one that shares the most blobs with this
/// tree.
fn most_alike<'t>(tree: &Tree, others: &'t [(&Version, Arc<TreeSlot>)]) -> Option<&'t Tree> {
    let mut ids = IdSet::default();
    tree.blobs().for_each(|id| ids.insert(id));
    let newest: HashMap<u32, &Tree> = others.iter().map(|(of, slot)| (of.image, &slot.tree)).collect();
    let mut newest: Vec<_> = newest.into_iter().collect();
    newest.sort_unstable_by_key(|(image, _)| std::cmp::Reverse(*image));
    let shared = |other: &Tree| other.blobs().filter(|id| ids.contains(*id)).count();
    let counted = newest.into_iter().take(KIN).map(|(_, other)| (shared(other), other));
    counted.filter(|(shared, _)| *shared > 0).max_by_key(|(shared, _)| *shared).map(|(_, other)| other)
}

/// Puts the blobs of one version after another into an order, each with a blob that it resembles.
struct Planner<'s> {
    store: &'s Store,
    /// Blobs that must move and have no place in the order yet.
    wanted: IdSet,
    /// Blobs that will be compressed against others, so they cannot be bases.
    deltas: IdSet,
    moves: Vec<Move>,
}

/// The same directory in several reference trees.
type Beside<'t> = Vec<(&'t Tree, NodeIndex)>;
/// Finds what a file may resemble if its path does not help: the blobs of a reference, by the stems of
/// their files' names.
type Names = HashMap<Vec<u8>, BlobId>;

impl Planner<'_> {
    /// Takes blobs in the order of the tree, which is that of a reader. Blobs that no file of the tree
    /// holds come last.
    fn version(&mut self, tree: &Tree, references: &[&Tree]) -> Result<()> {
        if !tree.blobs().any(|id| self.wanted.contains(id)) {
            return Ok(());
        }
        let names: Vec<Names> = references.iter().map(|reference| by_name(reference)).collect();
        let tops: Beside = references.iter().map(|reference| (*reference, ROOT)).collect();
        let mut todo = vec![(ROOT, tops)];
        while let Some((index, beside)) = todo.pop() {
            let below = self.directory(tree, index, &beside, &names)?;
            todo.extend(below.into_iter().rev());
        }
        for id in tree.blobs() {
            if self.wanted.remove(id) {
                self.moves.push(Move { id, base: None });
            }
        }
        Ok(())
    }

    /// Takes the files of one directory. `beside` is the same directory in reference trees. Returns its
    /// subdirectories.
    fn directory<'t>(
        &mut self,
        tree: &Tree,
        index: NodeIndex,
        beside: &[(&'t Tree, NodeIndex)],
        names: &[Names],
    ) -> Result<Vec<(NodeIndex, Beside<'t>)>> {
        let directory = tree.node(index)?;
        let mut below = Vec::new();
        let mut n = 0;
        while let Some((name, index)) = tree.entry(&directory, n)? {
            n += 1;
            let node = tree.node(index)?;
            let same = || beside.iter().filter_map(|(other, at)| Some((*other, find(other, *at, name)?)));
            match node.kind {
                NodeKind::Directory { .. } => below.push((index, same().collect())),
                NodeKind::File(Bytes::Blob(id) | Bytes::Sparse(id)) if self.wanted.remove(id) => {
                    let older = same().filter_map(|(other, at)| blob_of(other, at));
                    let stem = stem(name);
                    let named = names.iter().filter_map(|names| names.get(&stem).copied());
                    let base = self.first_base(id, older.chain(named));
                    if base.is_some() {
                        self.deltas.insert(id);
                    }
                    self.moves.push(Move { id, base });
                }
                _ => {}
            }
        }
        Ok(below)
    }

    /// The first candidate that helps: it has a similar size, and is not compressed against others itself.
    fn first_base(&self, id: BlobId, mut candidates: impl Iterator<Item = BlobId>) -> Option<BlobId> {
        let size = self.store.blobs.record(id).ok()?.size;
        candidates.find(|&base| {
            let alike = |record: crate::blob::Record| record.size / 4 <= size && size / 4 <= record.size;
            base != id
                && !self.deltas.contains(base)
                && self.store.blobs.record(base).is_ok_and(alike)
                && !self.store.blobs.has_bases(base).unwrap_or(true)
        })
    }
}

fn find(tree: &Tree, directory: NodeIndex, name: &[u8]) -> Option<NodeIndex> {
    tree.lookup(&tree.node(directory).ok()?, name).ok()?
}

fn blob_of(tree: &Tree, index: NodeIndex) -> Option<BlobId> {
    match tree.node(index).ok()?.kind {
        NodeKind::File(Bytes::Blob(id) | Bytes::Sparse(id)) => Some(id),
        _ => None,
    }
}

/// Every file of a tree by the stem of its name. If several have the same stem, the last one counts.
fn by_name(tree: &Tree) -> Names {
    let mut names = Names::default();
    for index in 0..tree.len() {
        let Ok(node) = tree.node(index) else { continue };
        let mut n = 0;
        while let (NodeKind::Directory { .. }, Ok(Some((name, index)))) = (node.kind, tree.entry(&node, n)) {
            n += 1;
            names.extend(blob_of(tree, index).map(|id| (stem(name), id)));
        }
    }
    names
}

/// A name without its digits, which are mostly versions: `libc-2.36.so` becomes `libc-.so`.
fn stem(name: &[u8]) -> Vec<u8> {
    let stem: Vec<u8> = name.iter().copied().filter(|b| !b.is_ascii_digit()).collect();
    if stem.len() < 3 { name.to_vec() } else { stem }
}
