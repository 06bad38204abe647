//! A store: its catalog, content and trees, locked by the one process that may change it.

mod adopt;
mod open;
pub mod progress;
mod room;
pub mod settings;
pub mod tell;
pub mod trees;

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Instant;

use parking_lot::{Mutex, RwLock};

use crate::base::journal::Journal;
use crate::base::lock::StoreLock;
use crate::base::writable::Writable;
use crate::blob::{BlobStore, IdSet};
use crate::catalog::{Catalog, Kept, Model, Row, Trashed, Version};
use crate::error::{Error, Result};
use crate::formats::metadata::Cost;
use crate::tree::Tree;
use progress::Progress;
use settings::Settings;
use tell::TellMounts;
use trees::key_of;

/// The extensions of tree files: those of versions, and those that are only the base of others.
pub(crate) const TREE: &str = "tree";
const BASE: &str = "base";
/// The extension of tree files that were put aside.
const DAMAGED: &str = "damaged";
/// How exactly the time of a version's last use is recorded.
const NOTE_USE: std::time::Duration = std::time::Duration::from_secs(600);

/// Everything below a mount: what the store holds, and which part of it shows.
pub struct Store {
    core: Arc<Core>,
    /// All rows of the store, or those that a view shows.
    pub catalog: Catalog,
    pub journal: Journal,
    /// In a view: the store without the view.
    whole: Option<Arc<Store>>,
}

impl Deref for Store {
    type Target = Core;

    fn deref(&self) -> &Core {
        &self.core
    }
}

/// What is the same for all mounts and views. Lock order: the catalog's lock, then `slots`, then the
/// blob store's.
pub struct Core {
    /// immutable
    pub dir: PathBuf,
    settings: RwLock<Settings>,
    catalog: Catalog,
    journal: Journal,
    pub blobs: Arc<BlobStore>,
    pub writable: Writable,
    /// Trees that are open, by the serial of their version.
    slots: RwLock<HashMap<u32, Arc<TreeSlot>>>,
    /// Trees of kept uploads that were opened, by the serial of their version.
    kept: RwLock<HashMap<u32, Arc<Tree>>>,
    /// Versions whose trees were found damaged.
    damaged: Mutex<BTreeSet<u32>>,
    /// The user who owns the store.
    owner: u32,
    /// Held from the check of a quota until the row is written.
    pub(crate) quota: Mutex<()>,
    /// Held while a tree is packed against another, and while a tree that may be such a base is removed.
    bases: Mutex<()>,
    /// Allows one gc at a time.
    pub(crate) gc: Mutex<()>,
    /// Allows one repack at a time.
    pub(crate) repack: Mutex<()>,
    /// Whether the background work leaves content where it is.
    pub repack_paused: AtomicBool,
    /// How many bytes emptying the trash would free. Counted on the first request after a change.
    trash_bytes: AtomicU64,
    trash_changed: AtomicBool,
    /// When the background work first saw each entry of the trash.
    pub(crate) seen_in_trash: Mutex<HashMap<Trashed, Instant>>,
    /// When the background work first saw staged data that no mount shows, by its directory.
    pub(crate) seen_staged: Mutex<HashMap<PathBuf, Instant>>,
    /// When versions were last used since the daemon began, by their serials; see last_use.rs.
    pub(crate) used: Mutex<HashMap<u32, i64>>,
    /// The background scrub of everything that is stored.
    pub scrub: Progress,
    /// Whether there may be content that nothing refers to.
    garbage: AtomicBool,
    mounts: OnceLock<Weak<dyn TellMounts>>,
    /// Held as long as the process lives.
    lock: StoreLock,
}

/// A tree in use.
pub struct TreeSlot {
    pub tree: Tree,
    /// How many inodes of it the kernel knows. Above 0 its blobs stay, whatever was deleted.
    lookups: AtomicI64,
}

impl Store {
    /// The store as a view shows it.
    pub fn through(self: &Arc<Store>, view: &str) -> Arc<Store> {
        let since = self.catalog.read().views.get(view).map_or(0, |view| view.created_at);
        let (catalog, journal) = (self.catalog.through(view), self.journal.through(view, since));
        Arc::new(Store { core: self.core.clone(), catalog, journal, whole: Some(self.clone()) })
    }

    /// The store without a view.
    pub fn whole(&self) -> &Store {
        self.whole.as_deref().unwrap_or(self)
    }

    /// The content that only this version holds, among the versions that show.
    ///
    /// # Errors
    ///
    /// `NotFound`; `Corrupt`, `Io` if the version's own tree is damaged.
    pub fn cost(&self, version: &Version) -> Result<Cost> {
        let mut others = IdSet::default();
        let serials: Vec<u32> =
            self.catalog.read().all_versions().map(|v| v.serial).filter(|s| *s != version.serial).collect();
        for serial in serials {
            if let Ok(slot) = self.tree(serial) {
                slot.tree.blobs().for_each(|id| others.insert(id));
            }
        }
        let slot = self.tree(version.serial)?;
        let kept = self.kept(version.serial).ok();
        let (mut unique, mut stored) = (0, slot.tree.file_size().next_multiple_of(4096));
        for id in slot
            .tree
            .blobs()
            .chain(kept.iter().flat_map(|tree| tree.blobs()))
            .filter(|id| !others.contains(*id))
        {
            // A blob whose record is lost takes no room.
            let size = self.blobs.record(id).map_or(0, |record| record.size);
            unique += size;
            stored += size;
        }
        Ok(Cost { unique_bytes: unique, stored_bytes: stored })
    }
}

impl Core {
    /// The user who owns the store. Like root, this user has no quota.
    pub fn owner(&self) -> u32 {
        self.owner
    }

    /// The current settings of the store.
    pub fn settings(&self) -> Settings {
        *self.settings.read()
    }

    /// Chooses a setting permanently. `None` goes back to the default.
    ///
    /// # Errors
    ///
    /// `NotFound`, `Invalid`; what the catalog fails with.
    pub fn choose(&self, name: &str, text: Option<&str>) -> Result<()> {
        let (name, value) = match text {
            Some(text) => settings::check(name, text).map(|(name, value)| (name, Some(value)))?,
            None => (name.to_owned(), None),
        };
        self.catalog.commit(|txn| {
            txn.put(Row::Setting { key: settings::key(&name), value });
            Ok(())
        })?;
        let mut settings = self.settings.write();
        settings.forget_given(&name);
        *settings = settings.with_chosen(&self.catalog.read().settings);
        Ok(())
    }

    /// Writes into the lock file where the store is mounted, and whether its daemon goes on without a
    /// mount. Messages and `imgfs umount` read this.
    ///
    /// # Errors
    ///
    /// `Io`.
    pub fn describe(&self, mount_point: &str, stays: bool) -> Result<()> {
        self.lock.describe(mount_point, stays)
    }

    /// The tree of a kept upload.
    ///
    /// # Errors
    ///
    /// `NotFound` if it is not kept; `Corrupt` and `Io` if the file is damaged.
    pub fn kept(&self, serial: u32) -> Result<Arc<Tree>> {
        if let Some(tree) = self.kept.read().get(&serial) {
            return Ok(tree.clone());
        }
        let (path, digest) = {
            let model = self.catalog.read();
            match model.versions.get(&serial) {
                Some(v) => match &v.facts.kept {
                    Some(Kept::Stored { tree, .. }) => (self.kept_path(&v.id), *tree),
                    _ => return Err(Error::NotFound { what: "kept upload".into() }),
                },
                None => return Err(Error::NotFound { what: "such version".into() }),
            }
        };
        let tree = Arc::new(Tree::open(&self.blobs.backend().local(&key_of(&path))?, &digest)?);
        Ok(self.kept.write().entry(serial).or_insert(tree).clone())
    }

    /// Forgets the tree of an upload that is no longer kept. The tree is closed when its last reader
    /// closes.
    pub fn forget_kept(&self, serial: u32) {
        self.kept.write().remove(&serial);
    }

    /// The tree of a version, opened and checked on first use.
    ///
    /// # Errors
    ///
    /// `NotFound`; `Corrupt` and `Io` if the file is damaged.
    pub fn tree(&self, serial: u32) -> Result<Arc<TreeSlot>> {
        if let Some(slot) = self.slots.read().get(&serial) {
            return Ok(slot.clone());
        }
        let slot = Arc::new(TreeSlot { tree: self.read_tree(serial)?, lookups: AtomicI64::new(0) });
        Ok(self.slots.write().entry(serial).or_insert(slot).clone())
    }

    /// Reads the tree of a version from its file, even if it is open already.
    ///
    /// # Errors
    ///
    /// `NotFound`; `Corrupt`, `Io` if the file is damaged.
    pub fn read_tree(&self, serial: u32) -> Result<Tree> {
        let (path, digest) = {
            let model = self.catalog.read();
            let version =
                model.versions.get(&serial).ok_or_else(|| Error::NotFound { what: "such version".into() })?;
            (self.tree_path(&version.id), version.tree)
        };
        let found = self.blobs.backend().local(&key_of(&path)).and_then(|path| Tree::open(&path, &digest));
        found.map_err(|e| self.note_damaged(serial, e))
    }

    /// Names the version whose tree is damaged, and records that, once.
    fn note_damaged(&self, serial: u32, e: Error) -> Error {
        if !e.is_damage() {
            return e;
        }
        let name = self.path_of(&self.catalog.read(), serial);
        let e = Error::Corrupt { what: format!("the tree of {name}"), why: e.to_string() };
        if self.damaged.lock().insert(serial) {
            self.journal.refuse(0, "read", &name, &e);
        }
        e
    }

    /// Versions whose trees are known to be damaged.
    pub fn damaged_trees(&self) -> Vec<u32> {
        let model = self.catalog.read();
        self.damaged.lock().iter().copied().filter(|serial| model.versions.contains_key(serial)).collect()
    }

    /// Notes that a version has another tree file, so the next access opens that one. Inodes of the old one
    /// stay counted.
    ///
    /// # Errors
    ///
    /// `NotFound`; `Corrupt`, `Io` if the new file is damaged.
    pub fn tree_was_replaced(&self, serial: u32) -> Result<()> {
        let old = self.slots.write().remove(&serial);
        self.damaged.lock().remove(&serial);
        let lookups = old.map_or(0, |slot| slot.lookups.load(Ordering::Acquire));
        self.tree(serial)?.lookups.fetch_add(lookups, Ordering::AcqRel);
        Ok(())
    }

    /// Counts inodes of a tree that the kernel was told of. A negative count is for inodes that it has
    /// forgotten.
    pub fn hold(&self, serial: u32, inodes: i64) {
        if let Some(slot) = self.slots.read().get(&serial) {
            slot.lookups.fetch_add(inodes, Ordering::AcqRel);
        }
    }

    /// Versions that are gone for good while the kernel still knows inodes of them.
    pub fn outlived(&self) -> Vec<(u32, Arc<TreeSlot>)> {
        let model = self.catalog.read();
        let slots = self.slots.read();
        let gone = slots.iter().filter(|(serial, slot)| {
            slot.lookups.load(Ordering::Acquire) > 0 && !model.versions.contains_key(serial)
        });
        gone.map(|(serial, slot)| (*serial, slot.clone())).collect()
    }

    /// Records which versions are in use, in the times of their tree files. The background work does not
    /// pack versions in use.
    pub fn note_use(&self) {
        let now = std::time::SystemTime::now();
        for slot in self.slots.read().values() {
            let path = slot.tree.path();
            let noted = fs::metadata(path)
                .and_then(|meta| meta.modified())
                .ok()
                .and_then(|at| now.duration_since(at).ok());
            if slot.lookups.load(Ordering::Acquire) > 0
                && noted.is_some_and(|ago| ago > NOTE_USE)
                && let Err(e) = File::open(path).and_then(|file| file.set_modified(now))
            {
                log::warn!("cannot note the use of {}: {e}", path.display());
            }
        }
    }

    /// Notes that there may be content that nothing refers to.
    pub fn has_garbage(&self) {
        self.garbage.store(true, Ordering::Release);
    }

    /// Whether there may be such content, since the last call.
    pub fn take_garbage(&self) -> bool {
        self.garbage.swap(false, Ordering::AcqRel)
    }

    /// Closes trees that nobody uses: those of deleted versions, and others if many are open.
    pub fn close_idle_trees(&self, keep: usize) {
        let model = self.catalog.read();
        let mut freed = false;
        self.kept.write().retain(|serial, tree| {
            let used = Arc::strong_count(tree) > 1;
            freed |= !used && !model.versions.contains_key(serial);
            used
        });
        let mut slots = self.slots.write();
        let many = slots.len() > keep;
        slots.retain(|serial, slot| {
            let used = slot.lookups.load(Ordering::Acquire) > 0 || Arc::strong_count(slot) > 1;
            let there = model.versions.contains_key(serial);
            freed |= !used && !there;
            used || (there && !many)
        });
        if freed {
            // The last user of a deleted version is gone.
            self.has_garbage();
        }
    }

    /// All blobs that are needed: by a version, by the trash, or by an inode that the kernel still knows.
    ///
    /// # Errors
    ///
    /// Any tree that cannot be read, unless fsck --repair has put it aside: then nothing may be
    /// swept.
    pub fn live_blobs(&self) -> Result<IdSet> {
        let mut live = IdSet::default();
        let versions: Vec<(u32, PathBuf)> =
            self.catalog.read().all_versions().map(|v| (v.serial, self.tree_path(&v.id))).collect();
        for (serial, path) in versions {
            match self.tree(serial) {
                Ok(slot) => slot.tree.blobs().for_each(|id| live.insert(id)),
                Err(_) if self.is_quarantined(&path) => {}
                // The version was purged meanwhile, and its row is gone. It counts only if it is open; see
                // below.
                Err(Error::NotFound { .. }) if !self.catalog.read().versions.contains_key(&serial) => {}
                Err(e) => return Err(e),
            }
            match self.kept(serial) {
                Ok(tree) => tree.blobs().for_each(|id| live.insert(id)),
                Err(Error::NotFound { .. }) => {}
                Err(e) => return Err(e),
            }
        }
        // What is open stays, even if its version is gone.
        self.slots.read().values().for_each(|slot| slot.tree.blobs().for_each(|id| live.insert(id)));
        self.kept.read().values().for_each(|tree| tree.blobs().for_each(|id| live.insert(id)));
        Ok(live)
    }

    /// Bytes that content and trees take on the disk.
    ///
    /// # Errors
    ///
    /// `Io`.
    pub fn stored_bytes(&self) -> Result<u64> {
        let mut total = self.blobs.stored_bytes()?;
        for path in self.tree_files()? {
            total += self.blobs.backend().size(&key_of(&path)).map_or(0, |size| size.stored);
        }
        Ok(total)
    }

    /// Notes that something went into the trash or left it, or that content shared with the trash did.
    pub fn trash_has_changed(&self) {
        self.trash_changed.store(true, Ordering::Release);
    }

    /// Content that only the trash holds, in bytes.
    pub fn trash_bytes(&self) -> u64 {
        if self.trash_changed.swap(false, Ordering::AcqRel) {
            self.count_trash();
        }
        self.trash_bytes.load(Ordering::Relaxed)
    }

    fn count_trash(&self) {
        let (live, trashed): (Vec<u32>, Vec<u32>) = {
            let model = self.catalog.read();
            let (live, trashed): (Vec<&Version>, Vec<&Version>) =
                model.all_versions().partition(|v| model.is_live(v));
            (live.iter().map(|v| v.serial).collect(), trashed.iter().map(|v| v.serial).collect())
        };
        let mut bytes = 0;
        if !trashed.is_empty() {
            let mut seen = IdSet::default();
            for serial in live {
                self.tree(serial)
                    .into_iter()
                    .for_each(|slot| slot.tree.blobs().for_each(|id| seen.insert(id)));
                self.kept(serial).into_iter().for_each(|kept| kept.blobs().for_each(|id| seen.insert(id)));
            }
            for serial in trashed {
                let Ok(slot) = self.tree(serial) else { continue };
                let kept = self.kept(serial).ok();
                bytes += slot.tree.file_size();
                for id in slot.tree.blobs().chain(kept.iter().flat_map(|kept| kept.blobs())) {
                    if !seen.contains(id) {
                        seen.insert(id);
                        bytes += self.blobs.record(id).map_or(0, |record| record.size);
                    }
                }
            }
        }
        self.trash_bytes.store(bytes, Ordering::Relaxed);
    }

    /// The name of a version in messages.
    pub fn path_of(&self, model: &Model, serial: u32) -> String {
        match model.versions.get(&serial) {
            Some(v) => {
                format!("{}/{}", model.images.get(&v.image).map_or("?", |i| i.name.as_str()), v.number)
            }
            None => "a deleted version".into(),
        }
    }
}
