//! Journey 1, cp in: the bytes of an upload become a version while they arrive.
//!
//! ```text
//! write(2) --> upload pipe --+--> sha256, sha1 of the upload
//!                            +--> decoder --> tar pipe --+--> sha256 of rootfs.tar    (compressed uploads)
//!                            |                           +--> tar reader --> blobs, tree, recipe
//!                            `--> tar reader --> blobs, tree, recipe                  (plain ones)
//! ```
//!
//! Before that, `same.rs` compares an upload with the newest version until a byte differs.
//!
//! A close calls `Ingest::settle` to know whether the archive is complete so far. `finish` ends the
//! upload, and `publish` makes it a version. If it is dropped before that, it leaves nothing.

mod add_version;
mod codec;
mod derive;
mod detect;
mod draft;
mod inner;
mod kinds;
mod lz4;
mod pipe;
mod publish;
mod same;
mod sink;
pub mod staged;
mod stored;
mod target;
mod unpack;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use parking_lot::Mutex;
use sha1::Sha1;
use sha2::{Digest as _, Sha256};

pub use codec::Codec;
pub use draft::{Draft, place};
pub use kinds::oci::lay;
pub use kinds::payload::{HEAD, Payload};
pub use pipe::{Block, OnRoom};
pub use publish::{named, publish, refuse_early};
pub use same::Incoming;
pub use target::{Published, Source, Target};
pub use unpack::Hint;

use crate::base::digest::hex;
use crate::blob::Writer;
use crate::error::{Error, Result};
use crate::formats::metadata::KeepUpload;
use crate::formats::tar::{self, Stage};
use crate::images::keep;
use crate::store::Store;
use crate::tree::recipe::RecipeBuilder;
use kinds::payload;
use pipe::{Pipe, PipeReader};
use unpack::MayBeLxd;

/// The file in a version that shows the unpacked upload, if that is not rootfs.tar.
pub fn made_name(format: &str) -> &'static str {
    Payload::named(format).map_or("image.tar", Payload::file_name)
}

/// How many bytes of an upload may be in flight before its writer waits.
const UPLOAD_PIPE: usize = 2 << 20;
/// How many bytes may be in flight between the decoder and the tar reader.
const TAR_PIPE: usize = 2 << 20;

/// An upload that is being unpacked.
pub struct Ingest {
    /// The codec. The decoder corrects it if it finds another one.
    codec: Option<Arc<Mutex<Codec>>>,
    /// Where the bytes of the upload go.
    inputs: Vec<Arc<Pipe>>,
    /// The pipes in the order in which they are settled.
    stages: Vec<Arc<Pipe>>,
    stage: Arc<AtomicU8>,
    /// For a compressed upload: whether every member came to its end.
    decoded: Arc<AtomicBool>,
    /// The first failure of any of its threads.
    failure: Arc<Mutex<Option<Error>>>,
    parts: Parts,
    size: u64,
    wish: Wish,
}

/// What is wanted of an upload apart from its content.
#[derive(Clone, Copy)]
pub struct Wish {
    pub keep: keep::Policy,
    /// Whether to compute its sha1. That takes as long as all the rest, so only if somebody may say which
    /// sha1 it must have.
    pub sha1: bool,
}

impl Wish {
    /// Whether the upload is kept, whatever kind it is.
    fn keeps_all(self) -> bool {
        self.keep.upload != KeepUpload::Never
    }
}

/// The pieces of an upload that is kept as it came.
type Kept = (Writer, RecipeBuilder);

/// An upload that is being kept: all of it, or only as long as it may be an LXD image.
struct Keeping {
    input: PipeReader,
    while_lxd: Option<MayBeLxd>,
}

impl Keeping {
    fn is_not_wanted(&self) -> bool {
        self.while_lxd.as_ref().is_some_and(|may| may.get() == Some(&false))
    }
}

impl tar::Source for Keeping {
    fn fill(&mut self) -> Result<&[u8]> {
        if self.is_not_wanted() {
            return Err(Error::Stopping);
        }
        self.input.fill()
    }

    fn consume(&mut self, n: usize) {
        self.input.consume(n);
    }
}

struct Parts {
    upload_sha256: JoinHandle<String>,
    upload_sha1: Option<JoinHandle<String>>,
    tar: Option<JoinHandle<String>>,
    decoder: Option<JoinHandle<()>>,
    /// The upload as it comes, if it has to be kept.
    kept: Option<JoinHandle<Option<Kept>>>,
    unpacker: JoinHandle<Option<Draft>>,
}

/// Whether an upload could end here.
#[derive(Debug)]
pub enum Settled {
    Complete,
    /// The upload is not complete yet.
    Incomplete(Error),
    /// The entries are complete, but no end marker follows. A rename may commit the upload.
    Unmarked(Error),
    Failed,
}

/// An upload that is unpacked to its end, but not a version yet.
pub struct Unpacked {
    pub draft: Draft,
    pub codec: Option<Codec>,
    pub size: u64,
    pub upload_sha256: String,
    /// Empty if nobody can ask for it.
    pub upload_sha1: String,
    pub tar_sha256: String,
    /// Set for an upload that is kept.
    kept: Option<Kept>,
}

impl Ingest {
    /// Starts the threads for an upload that begins with `head`. This has at least `Codec::MAGIC_LEN`
    /// bytes, if the upload has them.
    ///
    /// # Errors
    ///
    /// `Io`.
    pub fn start(store: &Store, staging: &str, head: &[u8], hint: Hint, wish: Wish) -> Result<Ingest> {
        let limits = store.settings().limits;
        let codec = Codec::detect(head).map(|codec| Arc::new(Mutex::new(codec)));
        let writer = store.blobs.writer(staging)?;
        let (stage, decoded) = (Arc::new(AtomicU8::new(0)), Arc::new(AtomicBool::new(false)));
        let failure = Arc::new(Mutex::new(None));
        let archive = Pipe::new(UPLOAD_PIPE);
        let mut stages = vec![archive.clone()];
        // Each digest has its own thread. In one thread, they would take longer than everything else
        // together.
        let for_sha256 = Pipe::new(UPLOAD_PIPE);
        let upload_sha256 = spawn_hash::<Sha256>("sha256", &for_sha256)?;
        let mut inputs = vec![for_sha256, archive.clone()];
        let mut upload_sha1 = None;
        if wish.sha1 {
            let pipe = Pipe::new(UPLOAD_PIPE);
            upload_sha1 = Some(spawn_hash::<Sha1>("sha1", &pipe)?);
            inputs.push(pipe);
        }
        let (mut tar, mut decoder) = (None, None);
        let unpacked_pipe = match codec.clone() {
            None => archive.clone(),
            Some(codec) => {
                // The decoder feeds a relay, which hashes blocks and passes them on. So a block is shared and
                // not copied.
                let (raw, unpacked) = (Pipe::new(TAR_PIPE), Pipe::new(TAR_PIPE));
                stages.push(raw.clone());
                stages.push(unpacked.clone());
                let (mut input, output, failure) = (PipeReader::new(&archive), raw.clone(), failure.clone());
                let decoded = decoded.clone();
                decoder = Some(spawn("decode", move || {
                    if let Err(e) = codec::decode(&codec, &mut input, &output, &limits, &decoded) {
                        note(&failure, e);
                    }
                    output.end();
                })?);
                tar = Some(spawn_relay(&raw, &unpacked)?);
                unpacked
            }
        };
        let may_be_lxd = MayBeLxd::default();
        let unpacker = {
            let (mut input, stage, failure) =
                (PipeReader::new(&unpacked_pipe), stage.clone(), failure.clone());
            let may_be_lxd = may_be_lxd.clone();
            // A failure is noted before the reader goes away, because whoever waits for the reader then looks
            // for the failure.
            spawn("unpack", move || {
                unpack::unpack(&mut input, writer, &limits, &stage, hint, &may_be_lxd)
                    .map_err(|e| note(&failure, e))
                    .ok()
            })?
        };
        let mut kept = None;
        if (wish.keeps_all() || wish.keep.lxd) && codec.is_some() {
            let pipe = Pipe::new(UPLOAD_PIPE);
            let while_lxd = (!wish.keeps_all()).then_some(may_be_lxd);
            let input = Keeping { input: PipeReader::new(&pipe), while_lxd };
            inputs.push(pipe);
            kept = Some(spawn_keeper(input, store.blobs.writer(&format!("{staging}-kept"))?, &failure)?);
        }
        let parts = Parts { upload_sha256, upload_sha1, tar, decoder, kept, unpacker };
        Ok(Ingest { codec, inputs, stages, stage, decoded, failure, parts, size: 0, wish })
    }

    /// Takes the next bytes of the upload. `on_room` is called when there is room for more.
    pub fn push(&mut self, block: Block, on_room: OnRoom) {
        self.size += block.len() as u64;
        // All readers must have room.
        let waiting = Arc::new((AtomicUsize::new(self.inputs.len()), Mutex::new(Some(on_room))));
        for pipe in &self.inputs {
            let waiting = waiting.clone();
            let ready = move || {
                if waiting.0.fetch_sub(1, Ordering::AcqRel) == 1
                    && let Some(on_room) = waiting.1.lock().take()
                {
                    on_room();
                }
            };
            pipe.push_deferred(block.clone(), Box::new(ready));
        }
    }

    /// Takes the next bytes, and waits until there is room for more.
    pub fn push_and_wait(&mut self, block: Block) {
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        self.push(block, Box::new(move || sender.send(()).unwrap_or_default()));
        let _ = receiver.recv();
    }

    /// The first failure, if there was one.
    pub fn failure(&self) -> Option<Error> {
        self.failure.lock().take()
    }

    pub fn has_failed(&self) -> bool {
        self.failure.lock().is_some() || self.parts.unpacker.is_finished()
    }

    /// Waits until all bytes so far are unpacked. Returns whether they make a complete archive.
    pub fn settle(&self) -> Settled {
        for pipe in &self.stages {
            pipe.settle();
        }
        if self.has_failed() {
            return Settled::Failed;
        }
        let cut = |why: &str| Error::Truncated { at: self.size, why: why.into() };
        let stage = Stage::load(&self.stage);
        if self.codec.is_some() {
            if !self.decoded.load(Ordering::Acquire) {
                return Settled::Incomplete(cut("the compressed stream has no end"));
            }
            if matches!(stage, Stage::Boundary | Stage::Ended) {
                return Settled::Complete;
            }
            if stage == Stage::Begun {
                let what = crate::error::UNPACKED.to_owned();
                return Settled::Incomplete(Error::NotTar { what, looks: "a file that is no image".into() });
            }
        }
        match stage {
            Stage::Ended => Settled::Complete,
            Stage::Boundary => Settled::Unmarked(cut("it has no end marker")),
            Stage::Begun => Settled::Incomplete(cut("there is no whole header")),
            Stage::Inside => {
                Settled::Incomplete(cut("it ends within an entry, or before its own header says"))
            }
        }
    }

    /// Ends the upload and waits for its threads.
    ///
    /// # Errors
    ///
    /// The error of the archive, or of the store's disk.
    pub fn finish(mut self) -> Result<Unpacked> {
        for pipe in &self.inputs {
            pipe.end();
        }
        let panicked = |what: &'static str| {
            move |_| Error::Invalid { what: what.into(), why: "the thread stopped; this is a bug".into() }
        };
        if let Some(decoder) = self.parts.decoder.take() {
            decoder.join().map_err(panicked("decoding"))?;
        }
        let tar = self.parts.tar.take().map(|t| t.join().map_err(panicked("hashing"))).transpose()?;
        let unpacked = self.parts.unpacker.join().map_err(panicked("unpacking"))?;
        let kept =
            self.parts.kept.take().map(|k| k.join().map_err(panicked("keeping"))).transpose()?.flatten();
        let upload_sha256 = self.parts.upload_sha256.join().map_err(panicked("hashing"))?;
        let upload_sha1 =
            self.parts.upload_sha1.take().map(|t| t.join().map_err(panicked("hashing"))).transpose()?;
        if let Some(e) = self.failure.lock().take() {
            return Err(e);
        }
        let draft = unpacked.ok_or(Error::Stopping)?;
        let kept = kept.filter(|_| self.wish.keeps_all() || draft.facts.format == "lxd");
        let tar_sha256 = tar.unwrap_or_else(|| upload_sha256.clone());
        let codec = self.codec.map(|codec| *codec.lock());
        Ok(Unpacked {
            draft,
            kept,
            codec,
            size: self.size,
            upload_sha256,
            upload_sha1: upload_sha1.unwrap_or_default(),
            tar_sha256,
        })
    }

    /// Gives up the upload: its threads end, and the data that they have staged goes.
    pub fn abort(self) {
        note(&self.failure, Error::Stopping);
        // The unpacker fails because its input is cut off. It then drops its writer, and with it the staged
        // files.
        let _ = self.finish();
    }
}

/// Hashes the unpacked bytes, and passes them on.
fn spawn_relay(raw: &Arc<Pipe>, unpacked: &Arc<Pipe>) -> Result<JoinHandle<String>> {
    let (mut input, output) = (PipeReader::new(raw), unpacked.clone());
    spawn("tar-hash", move || {
        let mut sha256 = Sha256::new();
        while let Some(block) = input.next_block() {
            // The block is passed on first, so the unpacker works while this hashes.
            if !output.push(block.clone()) {
                break;
            }
            sha256.update(block.as_slice());
        }
        output.end();
        hex(&sha256.finalize())
    })
}

/// Stores an upload as it comes, as long as it has to be kept.
fn spawn_keeper(
    mut input: Keeping,
    mut writer: Writer,
    failure: &Arc<Mutex<Option<Error>>>,
) -> Result<JoinHandle<Option<Kept>>> {
    let failure = failure.clone();
    spawn("keep", move || match payload::store(&mut input, &mut writer, u64::MAX, |_| {}) {
        Ok(recipe) => Some((writer, recipe)),
        Err(_) if input.is_not_wanted() => None,
        Err(e) => {
            note(&failure, e);
            None
        }
    })
}

/// Hashes all bytes of a pipe. Returns the digest in hex.
fn spawn_hash<H: sha2::Digest>(name: &str, pipe: &Arc<Pipe>) -> Result<JoinHandle<String>> {
    let mut reader = PipeReader::new(pipe);
    spawn(name, move || {
        let mut hasher = H::new();
        while let Some(block) = reader.next_block() {
            hasher.update(block.as_slice());
        }
        hex(&hasher.finalize())
    })
}

fn note(failure: &Mutex<Option<Error>>, e: Error) {
    // A failure of the decoder cuts off the archive. So the first failure is the cause.
    failure.lock().get_or_insert(e);
}

fn spawn<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> Result<JoinHandle<T>> {
    let made = std::thread::Builder::new().name(name.into()).stack_size(512 * 1024).spawn(work);
    made.map_err(|source| Error::Io { doing: "start a thread for", path: name.into(), source })
}
