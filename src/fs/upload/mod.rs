//! Journey 1, cp in, as the mount sees it: an upload from its first byte to its receipt.
//!
//! ```text
//!            too little to tell                 in order
//! Empty ---------------------------> Head ----------------> Streaming ----> Published
//!   |                                 |                      |    ^            ^
//!   | out of order, or no archive     |        out of order  v    | at close   |
//!   `---------------------------------+----> Spooled       Gapped-'            |
//!                                              `--------- at close, rename ----'
//! any --> Failed: every further write and close gets the same error
//! ```
//!
//! FLUSH decides, because its error is what close(2) returns; it may come before the first byte, in the middle,
//! and several times after the end. RELEASE is the end: what is not published then is dropped, unless its name
//! says that a rename will publish it.

mod judge;
mod receipt;
mod write;

pub(super) use judge::waits_to_die;
pub(super) use write::refuse_over;

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::time::Instant;

use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::fs::Attr;
use crate::ingest::{Expected, Hint, Incoming, Published};
use crate::journal::Job;
use crate::name::{Promise, promise_of};

/// Receipts that are remembered since the mount; older ones come from the catalog.
const RECEIPTS: usize = 1000;

/// The directory an upload was written into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    Root,
    Image(u32),
}

/// One file being written, or written.
pub struct Upload {
    /// immutable
    pub number: u64,
    place: Place,
    uid: u32,
    gid: u32,
    /// The process that opened it first.
    opener: u32,
    /// Open handles that may write.
    writers: AtomicUsize,
    job: Arc<Job>,
    /// What stat shows. Held for moments only; lock order: after `state`.
    info: Mutex<Info>,
    /// Held while bytes are judged, which may take seconds: never from an event loop without `try_lock`.
    state: Mutex<State>,
}

struct Info {
    name: String,
    /// Bytes of the file so far.
    size: u64,
    mtime: i64,
    /// When something was last done with it, whatever the clock says.
    touched: Instant,
    mode: u32,
    published: bool,
    /// Refused: no longer listed, though its writer may not have let go yet.
    failed: bool,
    /// Opened over a receipt, and nothing written yet: still that receipt.
    untouched: bool,
    /// What `user.imgfs.expect` announced.
    expect: Option<Expected>,
    /// The version that it became, or whose receipt it is.
    version: Option<u32>,
}

struct State {
    phase: Phase,
    /// Where bytes out of order are kept.
    spool: Option<Spool>,
    /// An upload over a receipt: what it begins with, unless it is truncated first.
    before: Option<Before>,
}

#[derive(Clone, Copy)]
struct Before {
    version: u32,
    size: u64,
    mtime: i64,
}

enum Phase {
    Empty,
    Head(Vec<u8>),
    Streaming(Incoming),
    /// As streaming, with `from` bytes unpacked and the rest in the spool.
    Gapped(Incoming, u64),
    Spooled,
    Published(Published),
    Failed(i32, String),
    /// A thread works on it: waiters of the state's lock never see this.
    Moving,
}

struct Spool {
    file: File,
    path: PathBuf,
}

impl Spool {
    /// Fills `out` from `offset` on; what was never written is zeros.
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let mut got = 0;
        while got < out.len() {
            match self.file.read_at(&mut out[got..], offset + got as u64).map_err(Error::io("read", &self.path))? {
                0 => break,
                n => got += n,
            }
        }
        Ok(())
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Off the names and closed: whatever took it there, its threads and its staged bytes go.
impl Drop for Upload {
    fn drop(&mut self) {
        let phase = std::mem::replace(&mut self.state.get_mut().phase, Phase::Empty);
        if let Phase::Streaming(ingest) | Phase::Gapped(ingest, _) = phase {
            // Not here: it waits for them.
            let _ = std::thread::Builder::new().name("abort".into()).spawn(move || ingest.abort());
        }
    }
}

impl Upload {
    pub fn name(&self) -> String {
        self.info.lock().name.clone()
    }

    fn size(&self) -> u64 {
        self.info.lock().size
    }

    /// No longer the receipt it was opened over.
    fn touch(&self) {
        let mut info = self.info.lock();
        (info.untouched, info.version) = (false, None);
    }

    /// Whether a file of this name that begins so is an image; `None` while that cannot be told.
    fn recognises(&self, head: &[u8]) -> Option<bool> {
        Hint::of(&self.info.lock().name).recognises(head)
    }

    fn promise(&self) -> Promise {
        promise_of(&self.info.lock().name)
    }

    pub fn attr(&self, ino: u64) -> Attr {
        let info = self.info.lock();
        let at = (info.mtime.div_euclid(1_000_000_000), info.mtime.rem_euclid(1_000_000_000) as u32);
        Attr {
            ino,
            mode: libc::S_IFREG | info.mode & 0o7777,
            links: 1,
            uid: self.uid,
            gid: self.gid,
            size: info.size,
            data: info.size,
            mtime: at,
            ctime: at,
            device: (0, 0),
            lasting_name: false,
            lasting: false,
        }
    }

    /// The version that it became.
    pub(super) fn published_as(&self) -> Option<u32> {
        let info = self.info.lock();
        info.version.filter(|_| info.published)
    }

    /// Neither published nor refused: a listing shows it.
    pub(in crate::fs) fn is_under_way(&self) -> bool {
        let info = self.info.lock();
        !info.published && !info.failed
    }

    fn is_published(&self) -> bool {
        self.info.lock().published
    }
}

/// The last one's number, whichever mount it came through.
static LAST: AtomicU64 = AtomicU64::new(0);

/// All uploads and receipts of the mount.
#[derive(Default)]
pub struct Uploads {
    /// Lock order: before an upload's info.
    all: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    by_number: HashMap<u64, Arc<Upload>>,
    by_name: HashMap<(Place, String), u64>,
    /// Published ones, oldest first.
    receipts: std::collections::VecDeque<u64>,
}

impl Uploads {
    pub fn by_number(&self, number: u64) -> Option<Arc<Upload>> {
        self.all.lock().by_number.get(&number).cloned()
    }

    pub fn named(&self, place: Place, name: &str) -> Option<Arc<Upload>> {
        let all = self.all.lock();
        all.by_number.get(all.by_name.get(&(place, name.to_owned()))?).cloned()
    }

    /// Uploads in a place, or anywhere, that a listing shows: neither published nor refused.
    pub fn under_way(&self, place: Option<Place>) -> Vec<Arc<Upload>> {
        let here = |u: &&Arc<Upload>| place.is_none_or(|place| u.place == place);
        let found: Vec<_> = self.all.lock().by_number.values().filter(here).cloned().collect();
        let mut found: Vec<_> = found.into_iter().filter(|u| u.is_under_way()).collect();
        found.sort_by_key(|u| u.number);
        found
    }

    /// Uploads not yet published.
    pub fn count(&self) -> usize {
        let found: Vec<_> = self.all.lock().by_number.values().cloned().collect();
        found.iter().filter(|u| !u.is_published()).count()
    }

    fn insert(&self, upload: Arc<Upload>, name: String) {
        let mut all = self.all.lock();
        if let Some(old) = all.by_name.insert((upload.place, name), upload.number) {
            if old != upload.number {
                all.by_number.remove(&old);
            }
            all.receipts.retain(|n| *n != old);
        }
        all.by_number.insert(upload.number, upload);
    }

    /// Takes an upload off the names; its handles still work.
    fn remove(&self, upload: &Upload) {
        let name = upload.name();
        let mut all = self.all.lock();
        if all.by_name.get(&(upload.place, name.clone())) == Some(&upload.number) {
            all.by_name.remove(&(upload.place, name));
        }
        all.by_number.remove(&upload.number);
        all.receipts.retain(|n| *n != upload.number);
    }

    fn rename(&self, upload: &Upload, to: &str) {
        let mut all = self.all.lock();
        let from = std::mem::replace(&mut upload.info.lock().name, to.to_owned());
        if all.by_name.get(&(upload.place, from.clone())) == Some(&upload.number) {
            all.by_name.remove(&(upload.place, from));
        }
        if let Some(old) = all.by_name.insert((upload.place, to.to_owned()), upload.number)
            && old != upload.number
        {
            all.by_number.remove(&old);
            all.receipts.retain(|n| *n != old);
        }
    }

    fn keep_receipt(&self, upload: &Upload) {
        let mut all = self.all.lock();
        all.receipts.retain(|n| *n != upload.number);
        all.receipts.push_back(upload.number);
        while all.receipts.len() > RECEIPTS {
            if let Some(old) = all.receipts.pop_front() {
                all.by_number.remove(&old);
                all.by_name.retain(|_, n| *n != old);
            }
        }
    }
}

/// Bytes read from a spool at a time.
const PIECE: usize = 256 * 1024;

/// The error that an upload failed with, for all who ask again.
pub(in crate::fs) fn repeated(errno: i32, sentence: &str) -> Error {
    Error::Again { errno, sentence: sentence.to_owned() }
}
