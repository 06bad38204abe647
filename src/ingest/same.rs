//! Journey 1, cp in, of an upload that is in the store already: the bytes are compared with the newest
//! version while they arrive.
//!
//! A tar that equals the newest version's tar is neither hashed nor unpacked. Most versions differ
//! within their first kilobytes, so the comparison costs nothing. If they differ later, what was
//! compared is read back from the store.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use crate::blob::ReadBuf;
use crate::error::{Error, Result};
use crate::images::export::RecipeReader;
use crate::ingest::pipe::{Block, OnRoom, Pipe, PipeReader};
use crate::ingest::{Ingest, Published, Settled, UPLOAD_PIPE, Unpacked, spawn};
use crate::store::{Store, TreeSlot};

/// The beginning of a version's tar is read back in pieces of this size.
const PIECE: usize = 1 << 20;

/// Begins to unpack an upload with this beginning.
pub type Begin = Box<dyn FnOnce(&[u8]) -> Result<Ingest> + Send>;

/// An upload whose bytes come in order.
pub enum Incoming {
    /// So far it equals the newest version's tar. A thread compares them.
    Comparing {
        pipe: Arc<Pipe>,
        thread: JoinHandle<Result<Compared>>,
        differs: Arc<AtomicBool>,
    },
    Fresh(Box<Ingest>),
    /// It could not be unpacked. The error can be taken once.
    Failed(Option<Error>),
}

/// The result of a comparison.
pub enum Compared {
    Same(Box<Same>),
    /// It differs, and is being unpacked.
    Differs(Box<Ingest>),
}

/// An upload that has begun like the newest version of its image.
pub struct Same {
    store: Arc<Store>,
    image: u32,
    serial: u32,
    slot: Arc<TreeSlot>,
    reader: RecipeReader,
    /// How many bytes have come, and how many the version's tar has.
    at: u64,
    size: u64,
    ours: Vec<u8>,
    begin: Begin,
}

impl Same {
    /// Compares with the newest version of an image, if that came as its rootfs.tar and nothing came with
    /// it.
    fn new(store: &Arc<Store>, image: u32, begin: Begin) -> std::result::Result<Same, Begin> {
        let newest = store.catalog.read().latest(image).cloned();
        let plain = newest.filter(|v| {
            v.facts.as_it_came() == 0 && v.facts.fingerprint.is_empty() && v.facts.uuid.is_empty()
        });
        match plain
            .and_then(|v| Some((v.serial, store.tree(v.serial).ok().filter(|slot| slot.tree.has_rootfs())?)))
        {
            Some((serial, slot)) => {
                let size = slot.tree.recipe(0).map_or(0, |recipe| recipe.tar_size);
                let (store, reader, ours) = (store.clone(), RecipeReader::default(), Vec::new());
                Ok(Same { store, image, serial, slot, reader, at: 0, size, ours, begin })
            }
            None => Err(begin),
        }
    }

    /// Compares all that comes through the pipe. From the first different byte on, the whole upload is
    /// unpacked. Once that has caught up, `differs` is set. Whoever ends the pipe after that takes over the
    /// following bytes.
    fn compare(mut self: Box<Self>, mut input: PipeReader, differs: &AtomicBool) -> Result<Compared> {
        while let Some(block) = input.next_block() {
            if self.goes_on(&block) {
                continue;
            }
            let mut ingest = Box::new(self.leave(&block)?);
            ingest.push_and_wait(block);
            differs.store(true, Ordering::Release);
            while let Some(block) = input.next_block() {
                ingest.push_and_wait(block);
            }
            return Ok(Compared::Differs(ingest));
        }
        Ok(Compared::Same(self))
    }

    /// Whether these bytes are the next ones of the version. If so, they count as taken.
    fn goes_on(&mut self, bytes: &[u8]) -> bool {
        self.ours.clear();
        let read = self.reader.read(&self.store, &self.slot.tree, 0, self.at, bytes.len(), &mut self.ours);
        if let Err(e) = &read {
            // The upload can heal damage that is known, so this finds all damage of the tree.
            log::error!("{}: {e}", self.slot.tree.path().display());
            let mut buf = ReadBuf::default();
            self.slot.tree.blobs().for_each(|id| drop(self.store.blobs.verify(id, &mut buf)));
        }
        let same = read.is_ok() && self.ours == bytes;
        if same {
            self.at += bytes.len() as u64;
        }
        same
    }

    /// Unpacks the upload as if it had never been compared. `next` has the bytes after the compared ones.
    fn leave(mut self, next: &[u8]) -> Result<Ingest> {
        let mut piece = |at: u64, len: u64| {
            let mut bytes = Vec::new();
            let len = usize::try_from(len).unwrap_or(usize::MAX).min(PIECE);
            self.reader.read(&self.store, &self.slot.tree, 0, at, len, &mut bytes).map(|()| bytes)
        };
        let mut head = piece(0, self.at)?;
        head.extend_from_slice(next);
        let mut ingest = (self.begin)(&head)?;
        let mut at = 0;
        while at < self.at && !ingest.has_failed() {
            let bytes = piece(at, self.at - at)?;
            at += bytes.len() as u64;
            ingest.push_and_wait(Arc::new(bytes));
        }
        Ok(ingest)
    }

    /// The version, if the whole upload equals it and it is still the newest.
    fn whole(&self) -> Option<Published> {
        let model = self.store.catalog.read();
        let image = model.live_image(self.image)?;
        let newest = model.latest(self.image).filter(|v| v.serial == self.serial && self.at == self.size)?;
        Some(Published {
            image: image.serial,
            name: image.name.clone(),
            number: newest.number,
            new: false,
            new_bytes: 0,
        })
    }
}

impl Incoming {
    /// Begins an upload into `image`, if that is given. `head` is its beginning, which is also pushed
    /// later.
    ///
    /// # Errors
    ///
    /// Those of `begin`; `Io` if no thread can be started.
    pub fn start(store: &Arc<Store>, image: Option<u32>, head: &[u8], begin: Begin) -> Result<Incoming> {
        let begin = match image {
            None => begin,
            Some(image) => match Same::new(store, image, begin) {
                Err(begin) => begin,
                Ok(same) => {
                    let (pipe, differs) = (Pipe::new(UPLOAD_PIPE), Arc::<AtomicBool>::default());
                    let (input, flag) = (PipeReader::new(&pipe), differs.clone());
                    let thread = spawn("compare", move || Box::new(same).compare(input, &flag))?;
                    return Ok(Incoming::Comparing { pipe, thread, differs });
                }
            },
        };
        Ok(Incoming::fresh(begin(head)?))
    }

    pub fn fresh(ingest: Ingest) -> Incoming {
        Incoming::Fresh(Box::new(ingest))
    }

    /// Takes the next bytes. `on_room` is called when there is room for more.
    pub fn push(&mut self, block: Block, on_room: OnRoom) {
        if let Incoming::Comparing { differs, .. } = self
            && differs.load(Ordering::Acquire)
        {
            // The upload differs, so this returns no version. Unpacking has caught up, so this takes no time.
            self.same(false);
        }
        match self {
            Incoming::Comparing { pipe, .. } => pipe.push_deferred(block, on_room),
            Incoming::Fresh(ingest) => ingest.push(block, on_room),
            Incoming::Failed(_) => on_room(),
        }
    }

    /// Takes the next bytes, and waits until there is room for more.
    pub fn push_and_wait(&mut self, block: Block) {
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        self.push(block, Box::new(move || sender.send(()).unwrap_or_default()));
        let _ = receiver.recv();
    }

    /// Ends the comparison.
    fn compared(&mut self) -> Option<Result<Compared>> {
        match std::mem::replace(self, Incoming::Failed(None)) {
            Incoming::Comparing { pipe, thread, .. } => {
                pipe.end();
                Some(thread.join().unwrap_or(Err(Error::Stopping)))
            }
            other => {
                *self = other;
                None
            }
        }
    }

    /// Ends the comparison. Returns the version if the whole upload equals the newest one, and if `counts`
    /// is true. Otherwise the upload is unpacked.
    pub fn same(&mut self, counts: bool) -> Option<Published> {
        let fresh = match self.compared()? {
            Ok(Compared::Differs(ingest)) => Ok(ingest),
            Ok(Compared::Same(same)) => match same.whole().filter(|_| counts) {
                None => same.leave(&[]).map(Box::new),
                whole => return whole,
            },
            Err(e) => Err(e),
        };
        *self = fresh.map_or_else(|e| Incoming::Failed(Some(e)), Incoming::Fresh);
        None
    }

    /// The first failure, if there was one.
    pub fn failure(&mut self) -> Option<Error> {
        match self {
            Incoming::Comparing { .. } => None,
            Incoming::Fresh(ingest) => ingest.failure(),
            Incoming::Failed(e) => e.take(),
        }
    }

    pub fn has_failed(&self) -> bool {
        match self {
            // The comparing thread ends by itself only if something fails.
            Incoming::Comparing { thread, .. } => thread.is_finished(),
            Incoming::Fresh(ingest) => ingest.has_failed(),
            Incoming::Failed(_) => true,
        }
    }

    /// As `Ingest::settle`, once the comparison has ended.
    pub fn settle(&self) -> Settled {
        if let Incoming::Fresh(ingest) = self { ingest.settle() } else { Settled::Failed }
    }

    /// As `Ingest::finish`, once the comparison has ended.
    ///
    /// # Errors
    ///
    /// Those of `Ingest::finish`, or the error that kept the upload from being unpacked. `Stopping` if that
    /// error was taken before, or if nothing differed.
    pub fn finish(mut self) -> Result<Unpacked> {
        match self.compared() {
            Some(Err(e)) => return Err(e),
            Some(Ok(Compared::Differs(ingest))) => return ingest.finish(),
            Some(Ok(Compared::Same(_))) | None => {}
        }
        match self {
            Incoming::Fresh(ingest) => ingest.finish(),
            Incoming::Failed(e) => Err(e.unwrap_or(Error::Stopping)),
            Incoming::Comparing { .. } => Err(Error::Stopping),
        }
    }

    pub fn abort(mut self) {
        match self.compared() {
            Some(Ok(Compared::Differs(ingest))) => ingest.abort(),
            Some(_) => {}
            None => {
                if let Incoming::Fresh(ingest) = self {
                    ingest.abort();
                }
            }
        }
    }
}
