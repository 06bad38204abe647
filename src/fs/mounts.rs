//! imgfs mount -o view=dc1 beside another mount: what the mounts of one store must know of each other.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, RwLock};

use crate::base::clock::now;
use crate::fs::ImageFs;
use crate::fs::node::ROOT_INO;
use crate::fs::places::staging::Stagings;
use crate::fs::upload::Uploads;
use crate::store::Store;
use crate::store::tell::TellMounts;

/// The mounts of a store.
pub struct Mounts {
    all: RwLock<Vec<Weak<ImageFs>>>,
    /// When the names in the root of the whole store last changed.
    pub(super) root_changed: Mutex<i64>,
    /// Deletions of each image or version since the start; see `NodeId::Image`.
    pub(super) incarnations: Mutex<HashMap<u32, u8>>,
    /// By view, as long as a mount shows that view. Staged files lie in the store, so the next mount finds
    /// them.
    stagings: Mutex<HashMap<Option<String>, Weak<Stagings>>>,
    uploads: Mutex<HashMap<Option<String>, Weak<Uploads>>>,
    /// Held while a view is mounted, and while one is removed.
    pub(crate) views: Mutex<()>,
}

impl Default for Mounts {
    fn default() -> Mounts {
        Mounts {
            all: RwLock::default(),
            root_changed: Mutex::new(now()),
            incarnations: Mutex::default(),
            stagings: Mutex::default(),
            uploads: Mutex::default(),
            views: Mutex::default(),
        }
    }
}

impl Mounts {
    /// Connects this mount to the store: the store tells it of deletions from now on.
    pub(super) fn add(self: &Arc<Mounts>, fs: &Arc<ImageFs>) {
        let mounts: Arc<dyn TellMounts> = self.clone();
        fs.store.tells(Arc::downgrade(&mounts));
        let mut all = self.all.write();
        all.retain(|fs| fs.strong_count() > 0);
        if all.is_empty() {
            // Nobody has noted what changed while nothing was mounted.
            *self.root_changed.lock() = now();
        }
        all.push(Arc::downgrade(fs));
    }

    /// The mounts that still exist, oldest first.
    pub fn all(&self) -> Vec<Arc<ImageFs>> {
        self.all.read().iter().filter_map(Weak::upgrade).collect()
    }

    /// Whether another mount can change what this one shows. If so, the kernel must not cache any answer.
    /// Trees are the exception: they are the same in all mounts, and never change.
    pub(crate) fn are_several(&self) -> bool {
        let all = self.all.read();
        let shows = |fs: &&Weak<ImageFs>| fs.upgrade().is_some_and(|fs| !fs.ended.load(Ordering::Acquire));
        all.len() > 1 && all.iter().filter(shows).count() > 1
    }

    /// The staging directories of the whole store, or of a view. All mounts of it share them.
    pub(super) fn stagings(&self, store: &Store) -> Arc<Stagings> {
        opened(&self.stagings, store, Stagings::open)
    }

    /// The uploads into the whole store, or into a view. All mounts of it share them.
    pub(super) fn uploads(&self, store: &Store) -> Arc<Uploads> {
        opened(&self.uploads, store, Uploads::open)
    }

    /// Forgets a view that was removed.
    pub(super) fn forget_view(&self, view: &str) {
        self.stagings.lock().remove(&Some(view.to_owned()));
        self.uploads.lock().remove(&Some(view.to_owned()));
    }

    /// Runs `work` unless a mount shows the view (or the whole store). No such mount can start meanwhile.
    pub(super) fn unless_open(&self, view: Option<&str>, work: &mut dyn FnMut()) {
        // A mount opens its stagings first, so it waits for this lock.
        let stagings = self.stagings.lock();
        if stagings.get(&view.map(str::to_owned)).is_none_or(|shown| shown.strong_count() == 0) {
            work();
        }
    }
}

/// Returns what `all` has for the store's view, or for the whole store. Opens it unless another mount
/// has it open.
fn opened<T>(
    all: &Mutex<HashMap<Option<String>, Weak<T>>>,
    store: &Store,
    open: impl FnOnce(&Store) -> T,
) -> Arc<T> {
    let (mut all, view) = (all.lock(), store.catalog.view().map(str::to_owned));
    if let Some(known) = all.get(&view).and_then(Weak::upgrade) {
        return known;
    }
    let new = Arc::new(open(store));
    all.insert(view, Arc::downgrade(&new));
    new
}

impl ImageFs {
    /// Notes that the connection to the kernel has ended, so the kernel caches nothing any more. Trees with
    /// mounts of their own may stay mounted.
    pub fn has_ended(&self) {
        self.ended.store(true, Ordering::Release);
    }

    /// Notes that names in the root have changed, for this mount and for that of the whole store.
    pub(super) fn root_has_changed(&self) {
        let at = now();
        *self.root_changed.lock() = at;
        *self.mounts.root_changed.lock() = at;
    }

    /// When the names in the root last changed.
    pub(super) fn root_changed(&self) -> i64 {
        match self.store.catalog.view() {
            None => *self.mounts.root_changed.lock(),
            // A view does not show what happens elsewhere. It does show changes to what is bound to it.
            Some(_) => {
                let model = self.store.catalog.read();
                let changed =
                    model.images.values().map(|image| image.updated_at.max(image.trashed_at.unwrap_or(0)));
                changed.max().unwrap_or(0).max(*self.root_changed.lock())
            }
        }
    }

    pub(super) fn touch_root(&self) {
        self.root_has_changed();
        self.with_kernel(|kernel| kernel.forget_attributes(ROOT_INO));
    }
}
