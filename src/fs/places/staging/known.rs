//! The staging directories that this daemon knows.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::fs::node::NodeId;
use crate::fs::removal::moved::RefusedRename;
use crate::fs::stale;
use crate::fs::upload::Destination;
use crate::images::staging::{self, About};
use crate::store::Store;

/// One staging directory.
pub struct Staging {
    /// immutable: its number since the mount
    pub(super) number: u32,
    /// immutable: since when this daemon knows it
    pub(super) known: Instant,
    /// immutable: STORE/staged/ID
    pub(super) path: PathBuf,
    pub(super) about: Mutex<About>,
    pub(super) files: Mutex<Files>,
    /// Open handles that may write.
    pub(super) writers: Arc<AtomicUsize>,
    /// Set while its files become a version. Nothing can be created or written meanwhile.
    pub(super) publishing: AtomicBool,
    pub(super) refused: Mutex<RefusedRename>,
}

/// Counts one handle that may write, as long as the value lives.
pub struct Writing(Arc<AtomicUsize>);

impl Writing {
    pub(super) fn new(count: &Arc<AtomicUsize>) -> Writing {
        count.fetch_add(1, Ordering::AcqRel);
        Writing(count.clone())
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[derive(Default)]
pub(super) struct Files {
    pub(super) by_name: BTreeMap<String, u32>,
    pub(super) next: u32,
}

impl Staging {
    pub(super) fn place(&self) -> Destination {
        self.about.lock().image.map_or(Destination::Root, Destination::Image)
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        staging::files(&self.path).join(name)
    }

    pub(super) fn name_of(&self, number: u32) -> Result<String> {
        let files = self.files.lock();
        files.by_name.iter().find(|(_, n)| **n == number).map(|(name, _)| name.clone()).ok_or_else(stale)
    }

    pub(super) fn number_of(&self, name: &str) -> Option<u32> {
        self.files.lock().by_name.get(name).copied()
    }

    pub(super) fn node(&self, file: u32) -> NodeId {
        NodeId::Staged { directory: self.number, file }
    }

    /// Changes what must survive a restart: first on the disk, then in memory.
    pub(super) fn change(&self, work: impl FnOnce(&mut About)) -> Result<()> {
        let mut about = self.about.lock();
        let mut changed = about.clone();
        work(&mut changed);
        staging::save(&self.path, &changed)?;
        *about = changed;
        Ok(())
    }

    /// Must be called before a change of a file in it.
    pub(super) fn begin_change(&self) -> Result<()> {
        self.refused.lock().forget();
        self.refuse_publishing()
    }

    pub(super) fn refuse_publishing(&self) -> Result<()> {
        if self.publishing.load(Ordering::Acquire) {
            return Err(Error::UploadBusy { name: self.about.lock().name.clone() });
        }
        Ok(())
    }
}

/// The number of the next staging directory, in whichever mount it is made.
static NEXT: AtomicU32 = AtomicU32::new(1);

/// The staging directories of a mount.
pub struct Stagings {
    /// immutable: the store's directory
    pub(super) store: PathBuf,
    pub(super) all: Mutex<BTreeMap<u32, Arc<Staging>>>,
}

impl Stagings {
    /// Finds the existing staging directories of the whole store, or of a view.
    pub fn open(store: &Store) -> Stagings {
        let stagings = Stagings { store: store.dir.clone(), all: Mutex::default() };
        let ours = |about: &About| about.file.is_none() && about.view.as_deref() == store.catalog.view();
        for staged in staging::all(&store.dir).filter(|staged| ours(&staged.about)) {
            stagings.insert(staged.dir, staged.about);
        }
        stagings
    }

    pub(super) fn insert(&self, path: PathBuf, about: About) -> Arc<Staging> {
        let mut files = Files::default();
        for entry in fs::read_dir(staging::files(&path)).into_iter().flatten().flatten() {
            if let Ok(name) = entry.file_name().into_string() {
                files.next += 1;
                files.by_name.insert(name, files.next);
            }
        }
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let staging = Arc::new(Staging {
            number,
            known: Instant::now(),
            path,
            about: Mutex::new(about),
            files: Mutex::new(files),
            writers: Arc::default(),
            publishing: AtomicBool::new(false),
            refused: Mutex::default(),
        });
        self.all.lock().insert(number, staging.clone());
        staging
    }

    /// The staging directory with this number.
    ///
    /// # Errors
    ///
    /// `NotFound`.
    pub fn by_number(&self, number: u32) -> Result<Arc<Staging>> {
        self.all.lock().get(&number).cloned().ok_or_else(stale)
    }

    pub fn named(&self, place: Destination, name: &str) -> Option<NodeId> {
        let all = self.all.lock();
        all.values()
            .find(|s| s.place() == place && s.about.lock().name == name)
            .map(|s| NodeId::Staging(s.number))
    }

    pub fn list(&self, place: Destination) -> Vec<(String, NodeId)> {
        let all = self.all.lock();
        let here = all.values().filter(|s| s.place() == place);
        here.map(|s| (s.about.lock().name.clone(), NodeId::Staging(s.number))).collect()
    }

    /// The users whose staging directories are in a place.
    pub fn owners(&self, place: Destination) -> impl Iterator<Item = u32> {
        let all = self.all.lock();
        let owners: Vec<u32> =
            all.values().filter(|s| s.place() == place).map(|s| s.about.lock().uid).collect();
        owners.into_iter()
    }

    /// Drops all staging directories in a place.
    pub fn remove_all(&self, place: Destination) {
        let here: Vec<_> = self.all.lock().values().filter(|s| s.place() == place).cloned().collect();
        here.iter().for_each(|staging| self.remove(staging));
    }

    pub(super) fn remove(&self, staging: &Staging) {
        self.all.lock().remove(&staging.number);
        staging::remove(&staging.path);
    }
}
