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
//! FLUSH decides, because close(2) returns its error. It may come before the first byte, in the middle,
//! and several times after the end. RELEASE is the end: an upload that is neither published nor kept by
//! then is dropped.
//!
//! A staged file (`.web.tar`, `web.tar.part`) goes the same way up to the close, but all its bytes also
//! go into a spool. The close keeps the spool in STORE/staged, where it survives the daemon. The rename
//! publishes what was unpacked meanwhile, or unpacks it then. See keep.rs.

mod announce;
mod close;
mod judge;
mod keep;
mod receipt;
mod rename;
mod stream;
mod write;

pub(super) use close::{flush, note_unfinished, release, sync};
pub(super) use judge::waits_to_die;
pub(super) use keep::{expect, reap};
pub(super) use receipt::{find, has_uploaded_as, list, read, set, set_receipt, unlink};
pub(super) use rename::rename;
pub(super) use stream::{refuse_over, target_named};
pub(super) use write::{create, open, truncate, write};

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use crate::base::clock::now;
use crate::base::expected::Expected;
use crate::base::journal::Job;
use crate::base::name::{Promise, promise_of};
use crate::base::process::of_thread;
use crate::error::{Error, Result};
use crate::formats::imgapi::Manifest;
use crate::fs::node::{ImagePart, NodeId};
use crate::fs::opened::frozen;
use crate::fs::removal::moved::RefusedRename;
use crate::fs::{Attr, Caller};
use crate::ingest::{Hint, Incoming, Published};
use crate::store::Store;

/// How many receipts are remembered since the mount. Older ones come from the catalog.
const RECEIPTS: usize = 1000;

/// The directory an upload was written into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Destination {
    Root,
    Image(u32),
}

impl Destination {
    /// The destination that a node stands for.
    ///
    /// # Errors
    ///
    /// `Frozen`, `Managed` where no upload can be.
    pub(in crate::fs) fn of(node: NodeId) -> Result<Destination> {
        match node {
            NodeId::Root => Ok(Destination::Root),
            NodeId::Image { serial, part: ImagePart::Dir, .. } => Ok(Destination::Image(serial)),
            _ => Err(frozen(node)),
        }
    }
}

/// A file that is being written, or was written.
pub struct Upload {
    /// immutable
    pub number: u64,
    uid: u32,
    gid: u32,
    /// The process that opened it first.
    opener: u32,
    /// Open handles that may write.
    writers: AtomicUsize,
    job: Arc<Job>,
    /// What stat shows. Held only briefly. Lock order: after `state`.
    info: Mutex<Info>,
    /// Held while bytes are judged, which may take seconds. An event loop must use `try_lock`.
    state: Mutex<State>,
}

struct Info {
    /// The directory that it is in.
    place: Destination,
    name: String,
    /// The size of the file so far, in bytes.
    size: u64,
    mtime: i64,
    /// When somebody last used it, by a clock that cannot be set.
    touched: Instant,
    mode: u32,
    published: bool,
    /// It was refused: a listing no longer shows it, though its writer may not have released it yet.
    failed: bool,
    /// It was opened over a receipt, and nothing is written yet, so it still shows that receipt.
    untouched: bool,
    /// The digest that `user.imgfs.expect` announced.
    expect: Option<Expected>,
    /// The version that it became, or the version of its receipt.
    version: Option<u32>,
    /// The directory of a staged file below STORE/staged, once a close has kept it there.
    kept: Option<PathBuf>,
    /// It is staged, though its name does not say so: an editor's copy of metadata.json, a manifest without
    /// its file, or a file that waits for its manifest.
    waits: bool,
    /// The manifest that announces it.
    manifest: Option<Arc<Manifest>>,
    /// It was closed while it had no bytes.
    closed_empty: bool,
}

struct State {
    phase: Phase,
    /// The file that keeps bytes that come out of order.
    spool: Option<Spool>,
    /// The old content of an upload over a receipt. The upload begins with it, unless it is truncated
    /// first.
    before: Option<Before>,
    refused: RefusedRename,
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
    /// Like `Streaming`, with `from` bytes unpacked and the rest in the spool.
    Gapped(Incoming, u64),
    Spooled,
    Published(Published),
    Failed(i32, String),
    /// A thread works on it. Whoever gets the state's lock never sees this phase.
    Moving,
}

struct Spool {
    file: File,
    path: PathBuf,
    /// The file lies in STORE/staged, and stays when this value is dropped.
    stays: bool,
}

impl Spool {
    /// Fills `out` from `offset` on. Bytes that were never written read as zeros.
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let mut got = 0;
        while got < out.len() {
            match self
                .file
                .read_at(&mut out[got..], offset + got as u64)
                .map_err(Error::io("read", &self.path))?
            {
                0 => break,
                n => got += n,
            }
        }
        Ok(())
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        if !self.stays {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// When the upload has no name and no handle left, its threads and its staged bytes go.
impl Drop for Upload {
    fn drop(&mut self) {
        // This has no effect if the job has ended already.
        self.job.end("gone: it was not published");
        let phase = std::mem::replace(&mut self.state.get_mut().phase, Phase::Empty);
        if let Phase::Streaming(ingest) | Phase::Gapped(ingest, _) = phase {
            // Aborting waits for the threads, so another thread does it.
            let _ = std::thread::Builder::new().name("abort".into()).spawn(move || ingest.abort());
        }
    }
}

impl Upload {
    /// A new upload without bytes, which its maker has open.
    fn new(store: &Store, maker: Caller, place: Destination, name: &str, mode: u32) -> Upload {
        Upload {
            number: LAST.fetch_add(1, Ordering::Relaxed) + 1,
            uid: maker.uid,
            gid: maker.gid,
            opener: of_thread(maker.pid),
            writers: AtomicUsize::new(1),
            job: store.journal.start_job("upload", name, maker.uid),
            info: Mutex::new(Info {
                place,
                name: name.to_owned(),
                size: 0,
                mtime: now(),
                touched: Instant::now(),
                mode: mode & 0o7777,
                published: false,
                failed: false,
                untouched: false,
                expect: None,
                version: None,
                kept: None,
                waits: false,
                manifest: None,
                closed_empty: false,
            }),
            state: Mutex::new(State {
                phase: Phase::Empty,
                spool: None,
                before: None,
                refused: RefusedRename::default(),
            }),
        }
    }

    pub fn name(&self) -> String {
        self.info.lock().name.clone()
    }

    fn size(&self) -> u64 {
        self.info.lock().size
    }

    /// Notes that it is no longer the receipt over which it was opened.
    fn touch(&self) {
        let mut info = self.info.lock();
        (info.untouched, info.version) = (false, None);
    }

    /// Whether a file with this name and this beginning is an image. `None` if more bytes are needed to
    /// tell.
    fn recognises(&self, head: &[u8]) -> Option<bool> {
        self.hint().recognises(head)
    }

    /// What its name, and what announces it, say about its content.
    fn hint(&self) -> Hint {
        let info = self.info.lock();
        if info.manifest.is_some() { Hint::announced(&info.name) } else { Hint::of(&info.name) }
    }

    pub(in crate::fs) fn place(&self) -> Destination {
        self.info.lock().place
    }

    /// Whether a rename publishes it, and not a close.
    fn is_staged(&self) -> bool {
        let info = self.info.lock();
        info.waits || promise_of(&info.name) == Promise::Staged
    }

    pub fn attr(&self, ino: u64) -> Attr {
        let info = self.info.lock();
        Attr::of_directory(ino, (self.uid, self.gid)).file(info.mode, info.size).at(info.mtime)
    }

    /// The version that it became.
    pub(super) fn published_as(&self) -> Option<u32> {
        let info = self.info.lock();
        info.version.filter(|_| info.published)
    }

    /// Whether a listing shows it: it is neither published nor refused.
    pub(in crate::fs) fn is_under_way(&self) -> bool {
        let info = self.info.lock();
        !info.published && !info.failed
    }

    fn is_published(&self) -> bool {
        self.info.lock().published
    }
}

/// The number of the last upload, through whichever mount it came.
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
    by_name: HashMap<(Destination, String), u64>,
    /// The numbers of published uploads, oldest first.
    receipts: std::collections::VecDeque<u64>,
}

impl Uploads {
    pub fn by_number(&self, number: u64) -> Option<Arc<Upload>> {
        self.all.lock().by_number.get(&number).cloned()
    }

    pub fn named(&self, place: Destination, name: &str) -> Option<Arc<Upload>> {
        let all = self.all.lock();
        all.by_number.get(all.by_name.get(&(place, name.to_owned()))?).cloned()
    }

    /// The uploads in a place, or anywhere, that a listing shows.
    pub fn under_way(&self, place: Option<Destination>) -> Vec<Arc<Upload>> {
        let here = |u: &&Arc<Upload>| place.is_none_or(|place| u.place() == place);
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

    fn in_place(&self, place: Destination) -> Vec<Arc<Upload>> {
        self.all
            .lock()
            .by_number
            .values()
            .filter(|u| u.place() == place && !u.is_published())
            .cloned()
            .collect()
    }

    /// The users whose uploads are in a place.
    pub fn owners(&self, place: Destination) -> impl Iterator<Item = u32> {
        self.in_place(place).into_iter().map(|upload| upload.uid)
    }

    /// Whether somebody still writes an upload in this place. One that was refused takes no more bytes, even
    /// while its writer has it open.
    pub fn is_written(&self, place: Destination) -> bool {
        let written =
            |upload: &Arc<Upload>| upload.is_under_way() && upload.writers.load(Ordering::Acquire) > 0;
        self.in_place(place).iter().any(written)
    }

    /// Drops all uploads in a place.
    pub fn remove_all(&self, place: Destination) {
        for upload in self.in_place(place) {
            self.remove(&upload);
            keep::drop_staged(&upload, &mut upload.state.lock());
        }
    }

    fn insert(&self, upload: Arc<Upload>, name: String) {
        let place = upload.place();
        let mut all = self.all.lock();
        if let Some(old) = all.by_name.insert((place, name), upload.number) {
            if old != upload.number {
                all.by_number.remove(&old);
            }
            all.receipts.retain(|n| *n != old);
        }
        all.by_number.insert(upload.number, upload);
    }

    /// Removes the name of an upload. Its handles still work.
    fn remove(&self, upload: &Upload) {
        let key = (upload.place(), upload.name());
        let mut all = self.all.lock();
        if all.by_name.get(&key) == Some(&upload.number) {
            all.by_name.remove(&key);
        }
        all.by_number.remove(&upload.number);
        all.receipts.retain(|n| *n != upload.number);
    }

    /// Gives the upload another place and name. Returns the upload that had them.
    fn rename(&self, upload: &Upload, place: Destination, name: &str) -> Option<Arc<Upload>> {
        let mut all = self.all.lock();
        let from = {
            let mut info = upload.info.lock();
            let from = (info.place, std::mem::replace(&mut info.name, name.to_owned()));
            info.place = place;
            from
        };
        if all.by_name.get(&from) == Some(&upload.number) {
            all.by_name.remove(&from);
        }
        let old = all
            .by_name
            .insert((place, name.to_owned()), upload.number)
            .filter(|old| *old != upload.number)?;
        all.receipts.retain(|n| *n != old);
        all.by_number.remove(&old)
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

/// Repeats the error with which an upload failed.
pub(in crate::fs) fn repeated(errno: i32, sentence: &str) -> Error {
    Error::Again { errno, sentence: sentence.to_owned() }
}
