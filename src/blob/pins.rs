//! Journey 4, rmdir: blobs that gc keeps because running work needs them.

use std::collections::HashMap;
use std::sync::Arc;

// These names come through the parent module, so that tests/gc_model.rs can substitute a lock of its
// own.
use super::{BlobId, IdSet, Mutex};

/// The pins of all running work.
#[derive(Default)]
pub struct AllPins {
    /// Lock order: before the ids of a single pin.
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    next: u64,
    /// The blobs that each running work needs.
    held: HashMap<u64, Ids>,
    /// During a mark: pins that ended since it began. The mark may not have seen their rows.
    retired: Option<Vec<BlobId>>,
}

type Ids = Arc<Mutex<Vec<BlobId>>>;

/// Blobs that running work needs. gc keeps them as long as this value lives.
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

    /// Whether no work is running.
    pub fn is_empty(&self) -> bool {
        self.inner.lock().held.is_empty()
    }

    /// From now on, pins that end are remembered.
    pub fn begin_mark(&self) {
        self.inner.lock().retired = Some(Vec::new());
    }

    pub fn end_mark(&self) {
        self.inner.lock().retired = None;
    }

    /// The blobs that a sweep must keep: all that are pinned, or were since the mark began.
    pub fn kept(&self) -> IdSet {
        let inner = self.inner.lock();
        let mut kept = IdSet::default();
        inner.held.values().for_each(|ids| ids.lock().iter().for_each(|id| kept.insert(*id)));
        inner.retired.iter().flatten().for_each(|id| kept.insert(*id));
        kept
    }
}

impl Pins {
    /// Keeps these blobs too. The caller must know that they are in use now, or check that afterwards.
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
