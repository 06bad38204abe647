//! Content: every file of every image is stored once, under the BLAKE3 digest of its bytes.
//!
//! `Writer` stores new content in *loose* and drops known content. `BlobStore::read` checks content and
//! returns it. `repack` moves content into *packs*, which are small. `sweep` frees the space of content
//! that nothing needs. `format.rs` has the layout of the files.

pub mod backend;
mod buffer;
mod checked;
mod compact;
mod container;
mod damage;
mod large;
mod pack;
mod packing;
mod pins;
mod read;
mod rebuild;
mod reopen;
mod sweep;
mod table;
#[cfg(test)]
mod tests;
mod writer;

use std::cell::Cell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, ReentrantMutex, RwLock};

pub use buffer::ReadBuf;
pub use container::Place;
pub use large::Large;
pub use packing::{AUTO, Move, SMALL, Shape};
pub use pins::Pins;
pub use reopen::{ContentReader, PieceReader};
pub use sweep::{IdSet, MarkToken, Swept};
pub use table::Record;
pub use writer::{Sealed, Writer};

use crate::base::digest::BlobId;
use crate::base::writable::Writable;
use crate::error::Result;
use backend::{Backend, Container, Local};
use checked::Checked;
use damage::Damage;
use pack::{FrameCache, Pack};
use pins::AllPins;
use table::Table;

/// Blobs of this size or more are files of their own (*objects*). Smaller ones share a segment.
pub const OBJECT_MIN: u64 = 1024 * 1024;

/// All content of a store. Shared by every thread; see the field comments for the locks.
pub struct BlobStore {
    /// immutable: STORE
    dir: PathBuf,
    /// immutable: STORE/staging
    staging: PathBuf,
    /// immutable: where containers lie
    backend: Arc<dyn Backend>,
    /// Where each blob lies. Lock order: `table` before `pins` before `containers`.
    table: RwLock<Table>,
    /// Open containers by number. Dropped from here when swept; readers keep their `Arc`.
    containers: Mutex<HashMap<u32, Arc<Container>>>,
    /// Blobs that running work needs.
    pins: Arc<AllPins>,
    /// Open packs by number. Lock order: on its own.
    packs: Mutex<HashMap<u32, Arc<Pack>>>,
    /// Lock order: on its own.
    outlines: Mutex<read::Outlines>,
    /// Lock order: on its own.
    checked: Mutex<Checked>,
    /// Lock order: on its own.
    damage: Damage,
    /// Held during a search for lost records; says whether a search is under way.
    mending: ReentrantMutex<Cell<bool>>,
    /// Frames that were unpacked recently.
    frames: FrameCache,
    /// Called when the disk is full. Returns whether space was freed.
    room: OnceLock<MakeRoom>,
    /// One seal at a time gives out ids and container numbers. Holds the next number.
    seal: Mutex<u32>,
}

/// Frees space. Returns whether it could.
pub type MakeRoom = Arc<dyn Fn() -> bool + Send + Sync>;

impl BlobStore {
    /// Opens the content of the store in `dir`, whose directories exist.
    ///
    /// # Errors
    ///
    /// `Io`; `Corrupt` if the table does not begin as one.
    pub fn open(dir: &Path, writable: &Writable) -> Result<BlobStore> {
        let backend: Arc<dyn Backend> = Arc::new(Local::new(dir));
        let mut next = 1;
        for (number, _) in container::list(&*backend)? {
            next = next.max(number.saturating_add(1));
        }
        Ok(BlobStore {
            dir: dir.to_owned(),
            staging: dir.join("staging"),
            backend,
            table: RwLock::new(Table::open(&dir.join("blobs"), writable)?),
            containers: Mutex::default(),
            pins: Arc::default(),
            packs: Mutex::default(),
            outlines: Mutex::default(),
            checked: Mutex::default(),
            damage: Damage::open(dir),
            mending: ReentrantMutex::default(),
            frames: FrameCache::default(),
            room: OnceLock::new(),
            seal: Mutex::new(next),
        })
    }

    /// Begins to keep blobs from being swept.
    pub fn pin(&self) -> Pins {
        self.pins.pin()
    }

    /// Sets what to do when the disk is full during an upload. Only the first call counts.
    pub fn when_full(&self, make_room: MakeRoom) {
        let _ = self.room.set(make_room);
    }

    /// Runs an attempt that needs room on the disk. If the disk is full, room is made and the attempt is
    /// repeated.
    ///
    /// # Errors
    ///
    /// Those of `attempt`.
    pub fn in_room<T>(&self, attempt: impl FnMut() -> Result<T>) -> Result<T> {
        writer::in_room(self.room.get(), attempt)
    }

    /// Makes room on the disk. False if none could be made, or if nobody has said how.
    pub fn make_room(&self) -> bool {
        self.room.get().is_some_and(|make_room| make_room())
    }

    /// The record of a blob: its digest, size and place.
    ///
    /// # Errors
    ///
    /// `Corrupt` if there is none, or its check fails.
    pub fn record(&self, id: BlobId) -> Result<Record> {
        self.table.read().get(id)
    }

    /// How many ids were ever given out; ids are below this.
    pub fn id_bound(&self) -> u32 {
        self.table.read().len()
    }

    /// Points records to where content has moved, durably. Readers can get in between. The caller holds
    /// `seal`.
    fn move_records(&self, changes: &[(BlobId, Option<Record>)]) -> Result<()> {
        for some in changes.chunks(256) {
            self.table.write().rewrite(some)?;
        }
        self.table.read().sync()
    }

    /// Frees the memory that only an ingest needs, unless an upload is under way.
    pub fn forget_index(&self) {
        let mut table = self.table.write();
        if self.pins.is_empty() {
            table.forget_index();
        }
    }

    /// Opens every file again when it is next needed, and reads its tables again.
    pub fn reopen(&self) {
        self.containers.lock().clear();
        self.packs.lock().clear();
        *self.outlines.lock() = Default::default();
        self.frames.clear();
    }

    /// Frees memory that only makes the next reads faster.
    pub fn forget_frames(&self) {
        self.frames.clear();
    }

    /// Where containers lie.
    pub fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    fn container(&self, number: u32, place: Place) -> Result<Arc<Container>> {
        if let Some(open) = self.containers.lock().get(&number) {
            return Ok(open.clone());
        }
        let opened = Arc::new(self.backend.open(&place.key(number))?);
        Ok(self.containers.lock().entry(number).or_insert(opened).clone())
    }
}
