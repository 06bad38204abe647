//! imgfs mount -o view=dc1 beside another mount: what those of one store must know of each other.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, RwLock};

use crate::base::clock::now;
use crate::fs::ImageFs;
use crate::fs::node::ROOT_INO;
use crate::fs::places::staging::Stagings;
use crate::fs::upload::Uploads;
use crate::store::Store;

/// The mounts of a store.
pub struct Mounts {
    all: RwLock<Vec<Weak<ImageFs>>>,
    /// When the names in the root of the whole store last changed.
    pub(super) root_changed: Mutex<i64>,
    /// Deletions of each image or version since the start; see `NodeId::Image`.
    pub(super) incarnations: Mutex<HashMap<u32, u8>>,
    /// By view.
    stagings: Mutex<HashMap<Option<String>, Arc<Stagings>>>,
    uploads: Mutex<HashMap<Option<String>, Arc<Uploads>>>,
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
    pub(super) fn add(&self, fs: &Arc<ImageFs>) {
        let mut all = self.all.write();
        all.retain(|fs| fs.strong_count() > 0);
        all.push(Arc::downgrade(fs));
    }

    /// Those that there are, oldest first.
    pub fn all(&self) -> Vec<Arc<ImageFs>> {
        self.all.read().iter().filter_map(Weak::upgrade).collect()
    }

    /// Whether what one mount shows may change through another: then no kernel may believe what it was told
    /// for longer than the answer takes. Trees are the same for all, and never change.
    pub(crate) fn are_several(&self) -> bool {
        let all = self.all.read();
        all.len() > 1 && all.iter().filter(|fs| fs.strong_count() > 0).count() > 1
    }

    /// The staging directories of the whole store, or of a view: the same in each of its mounts.
    pub(super) fn stagings(&self, store: &Store) -> Arc<Stagings> {
        let mut all = self.stagings.lock();
        all.entry(store.catalog.view().map(str::to_owned))
            .or_insert_with(|| Arc::new(Stagings::open(store)))
            .clone()
    }

    /// The uploads into the whole store, or into a view: the same in each of its mounts.
    pub(super) fn uploads(&self, store: &Store) -> Arc<Uploads> {
        let mut all = self.uploads.lock();
        all.entry(store.catalog.view().map(str::to_owned))
            .or_insert_with(|| Arc::new(Uploads::open(store)))
            .clone()
    }

    /// A view is no more.
    pub(super) fn forget_view(&self, view: &str) {
        self.stagings.lock().remove(&Some(view.to_owned()));
        self.uploads.lock().remove(&Some(view.to_owned()));
    }
}

impl ImageFs {
    /// The names in the root have changed: in this mount, and in that of the whole store.
    pub(super) fn root_has_changed(&self) {
        let at = now();
        *self.root_changed.lock() = at;
        *self.mounts.root_changed.lock() = at;
    }

    /// When they did.
    pub(super) fn root_changed(&self) -> i64 {
        match self.store.catalog.view() {
            None => *self.mounts.root_changed.lock(),
            // What happens elsewhere is not to be seen; to what is bound to the view it is.
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
