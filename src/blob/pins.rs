//! Journey 4, rmdir: what gc leaves alone because somebody at work counts on it.

use std::collections::HashMap;
use std::sync::Arc;

// Named through the module above, so that tests/gc_model.rs can put a lock of its own in its place.
use super::{BlobId, IdSet, Mutex};

/// The pins of everybody at work.
#[derive(Default)]
pub struct AllPins {
    /// Lock order: before the ids of one.
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    next: u64,
    /// What each that is under way counts on.
    held: HashMap<u64, Ids>,
    /// While a mark is under way: pins that ended since it began, whose rows it may not have seen.
    retired: Option<Vec<BlobId>>,
}

type Ids = Arc<Mutex<Vec<BlobId>>>;

/// Blobs that somebody at work counts on: gc keeps them as long as this lives.
pub struct Pins {
    all: Arc<AllPins>,
    key: u64,
    ids: Ids,
}

impl AllPins {
    /// Begins to keep blobs from being swept.
    pub fn pin(self: &Arc<Self>) -> Pins {
        let mut inner = self.inner.lock();
        let (key, ids) = (inner.next, Ids::default());
        inner.next += 1;
        inner.held.insert(key, ids.clone());
        Pins { all: self.clone(), key, ids }
    }

    /// Whether nobody is at work.
    pub fn is_empty(&self) -> bool {
        self.inner.lock().held.is_empty()
    }

    /// From now on what ends is remembered.
    pub fn begin_mark(&self) {
        self.inner.lock().retired = Some(Vec::new());
    }

    pub fn end_mark(&self) {
        self.inner.lock().retired = None;
    }

    /// What a sweep leaves alone: all that is pinned, or was since the mark began.
    pub fn kept(&self) -> IdSet {
        let inner = self.inner.lock();
        let mut kept = IdSet::default();
        inner.held.values().for_each(|ids| ids.lock().iter().for_each(|id| kept.insert(*id)));
        inner.retired.iter().flatten().for_each(|id| kept.insert(*id));
        kept
    }
}

impl Pins {
    /// Keeps these too. Whoever names them must know them to live now, or check afterwards.
    pub fn add(&self, ids: impl IntoIterator<Item = BlobId>) {
        self.ids.lock().extend(ids);
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        let mut inner = self.all.inner.lock();
        inner.held.remove(&self.key);
        if let Some(retired) = &mut inner.retired {
            retired.append(&mut self.ids.lock());
        }
    }
}
