//! Journeys 1 and 2 on a bad disk: which content is known to be damaged. Copying in the same content
//! again heals it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::base::digest::BlobId;
use crate::blob::container::Place;
use crate::blob::{BlobStore, IdSet};
use crate::error::{Error, Result};
use crate::format::write_durably;

/// Content that was found damaged and is not healed yet. STORE/damaged lists it, one id a line, so that
/// a healing copy may come after the next mount. Damage that this file does not list is found again
/// when it is read.
pub(super) struct Damage {
    path: PathBuf,
    ids: Mutex<BTreeSet<BlobId>>,
    /// Whether there is any damage. Readers of good content check only this.
    any: AtomicBool,
}

impl Damage {
    pub fn open(dir: &Path) -> Damage {
        let path = dir.join("damaged");
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let ids: BTreeSet<BlobId> = text.lines().filter_map(|line| line.parse().ok()).collect();
        Damage { path, any: AtomicBool::new(!ids.is_empty()), ids: Mutex::new(ids) }
    }

    fn change(&self, change: impl FnOnce(&mut BTreeSet<BlobId>) -> bool) {
        let mut ids = self.ids.lock();
        if !change(&mut ids) {
            return;
        }
        self.any.store(!ids.is_empty(), Ordering::Release);
        let text: String = ids.iter().map(|id| format!("{id}\n")).collect();
        if let Err(e) = write_durably(&self.path, text.as_bytes()) {
            log::error!("{e}");
        }
    }
}

impl BlobStore {
    /// Whether any content is known to be damaged.
    pub fn has_damage(&self) -> bool {
        self.damage.any.load(Ordering::Acquire)
    }

    /// Whether this content is known to be damaged.
    pub fn is_damaged(&self, id: BlobId) -> bool {
        self.has_damage() && self.damage.ids.lock().contains(&id)
    }

    /// All that is known to be damaged.
    pub fn damaged(&self) -> Vec<BlobId> {
        self.damage.ids.lock().iter().copied().collect()
    }

    /// Forgets damage of content that nobody needs any more.
    pub fn forget_damage(&self, live: &IdSet) {
        if self.has_damage() {
            self.damage.change(|ids| {
                let before = ids.len();
                ids.retain(|id| live.contains(*id) || self.record(*id).is_ok());
                ids.len() < before
            });
        }
    }

    /// Frees damaged records that nobody needs. For fsck --repair.
    ///
    /// # Errors
    ///
    /// `Io`.
    pub fn free_damaged_records(&self, live: &IdSet) -> Result<()> {
        let mut table = self.table.write();
        let free: Vec<_> = table.damaged().filter(|id| !live.contains(*id)).map(|id| (id, None)).collect();
        table.rewrite(&free)?;
        table.sync()
    }

    /// Objects whose files are longer than their blobs, with the length that they should have. For fsck.
    pub fn overlong_objects(&self) -> Vec<(PathBuf, u64)> {
        let objects = self.records().into_iter().filter(|(_, record)| record.place == Place::Object);
        let objects = objects
            .map(|(_, record)| (self.dir.join(record.place.key(record.container).path()), record.size));
        objects.filter(|(path, size)| path.metadata().is_ok_and(|meta| meta.len() > *size)).collect()
    }

    /// Notes damage from a failed read, unless the failure is temporary.
    pub(super) fn note_failed(&self, id: BlobId, e: &Error) {
        if e.is_damage() {
            self.checked.lock().none(id);
            self.damage.change(|ids| ids.insert(id));
        }
    }

    /// Notes that these blobs were read and found good, were stored again, or are gone.
    pub(super) fn note_sound(&self, ids: &[BlobId]) {
        if self.has_damage() {
            self.damage.change(|damaged| ids.iter().filter(|id| damaged.remove(id)).count() > 0);
        }
    }
}
