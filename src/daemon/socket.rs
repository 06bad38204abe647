//! Commands beside a mount: they ask the daemon that holds the store, over its socket.
//!
//! A request is a line of JSON. The answer is lines of JSON: any number of `Progress`, then one of the
//! others.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use crate::base::flags::Flags;
use crate::care::fsck::Repaired;
use crate::care::repack::What;
use crate::care::{fsck, gc, repack};
use crate::error::{Error, Result};
use crate::images::{diff, keep, manifests, targets, trash};
use crate::store::Store;
use crate::store::settings::TreesAs;

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    Gc {
        trash: bool,
    },
    /// Packs what is loose, and frees what can be freed.
    Repack,
    /// Stops the background packing, or lets it go on.
    Pause {
        pause: bool,
    },
    Fsck {
        repair: bool,
    },
    Status,
    /// The staged data; see staging.rs.
    Staged,
    /// Every image's metadata.json, with what `describe::listed` adds.
    List,
    /// One more mount of the store.
    Mount(MountRequest),
    /// Ends a daemon that has nothing mounted.
    Stop,
    /// Where to find the upload of a version as it came.
    Came {
        version: String,
    },
    /// What differs between two versions.
    Diff {
        old: String,
        new: String,
    },
}

/// A mount to be made beside the existing ones.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MountRequest {
    pub point: PathBuf,
    /// `None` for the whole store.
    pub view: Option<String>,
    pub flags: Flags,
    /// Whether it sets options of the store. Only the daemon's own mount may do that.
    pub own_word: bool,
    /// Whether each tree is a mount of its own.
    pub trees: TreesAs,
}

/// What only the daemon itself can do.
pub trait Host: Send + Sync {
    /// Mounts, and returns a line for the user.
    ///
    /// # Errors
    ///
    /// `Locked` for the whole store once more; `Stopping` once the daemon is ending; what keeps it from
    /// mounting.
    fn mount(&self, request: MountRequest) -> Result<String>;

    /// Ends the daemon soon after the answer.
    ///
    /// # Errors
    ///
    /// `Locked` while something is mounted.
    fn stop(&self) -> Result<()>;
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    Progress {
        done: u64,
        total: u64,
    },
    Swept {
        purged: u64,
        blobs: u64,
        bytes: u64,
    },
    /// Bytes on the disk before and after, and bytes of content that moved.
    Repacked {
        before: u64,
        after: u64,
        blobs: u64,
        bytes: u64,
    },
    Done,
    /// An upload as it came: its version's serial, its directory below the mount, its name, the version's
    /// manifest.
    Came {
        serial: u32,
        path: PathBuf,
        name: String,
        manifest: Option<String>,
        /// The name of the metadata tarball of a split LXD image, in the same place.
        metadata: Option<String>,
    },
    Checked(Repaired),
    Document {
        document: serde_json::Value,
    },
    Failed {
        why: String,
    },
    /// The store is mounted already. It cannot be mounted as a whole twice, and its daemon goes on.
    Held,
}

/// Carries out a request on a store that this process holds.
///
/// `progress` gets how much is done of all, and returns whether anybody still waits.
///
/// # Errors
///
/// Those of what the request asks for; `Stopping` for `Mount` and `Stop`, which only a daemon serves.
pub fn perform(store: &Store, request: Request, progress: impl FnMut(u64, u64) -> bool) -> Result<Answer> {
    Ok(match request {
        Request::Gc { trash: everything } => {
            let purged = trash::empty_trash(store, everything)? as u64;
            let swept = gc::run(store)?;
            Answer::Swept { purged, blobs: swept.blobs, bytes: swept.bytes }
        }
        Request::Fsck { repair: true } => Answer::Checked(fsck::repair(store, progress)?),
        Request::Fsck { repair: false } => {
            Answer::Checked(Repaired { done: Vec::new(), left: fsck::check(store, progress)? })
        }
        Request::Repack => {
            let before = store.stored_bytes()?;
            gc::run(store)?;
            let threads = std::thread::available_parallelism().map_or(1, usize::from);
            let moved = repack::run(store, What::All, threads, progress)?;
            store.blobs.squeeze()?;
            Answer::Repacked { before, after: store.stored_bytes()?, blobs: moved.blobs, bytes: moved.bytes }
        }
        Request::Pause { pause } => {
            store.repack_paused.store(pause, Ordering::Release);
            Answer::Done
        }
        Request::Diff { old, new } => {
            let found = diff::between_named(store, &old, &new)?;
            Answer::Document { document: serde_json::to_value(found).expect("a plain struct") }
        }
        Request::Came { version } => came(store, &version)?,
        // A command that has opened the store does not serve other commands.
        Request::Mount(_) | Request::Stop => return Err(Error::Stopping),
        Request::Status => Answer::Document { document: crate::images::status::status(store)? },
        Request::Staged => Answer::Document { document: crate::images::staging::report(store).into() },
        Request::List => {
            let model = store.catalog.read();
            let mut images: Vec<_> = model.live_images().collect();
            images.sort_by(|a, b| a.name.cmp(&b.name));
            Answer::Document {
                document: images
                    .into_iter()
                    .map(|image| crate::images::describe::listed(&model, image))
                    .collect(),
            }
        }
    })
}

/// Where to find the upload of a version as it came.
///
/// # Errors
///
/// `NotFound`; `Unsupported` for one whose compressed bytes are not kept.
fn came(store: &Store, version: &str) -> Result<Answer> {
    let model = store.catalog.read();
    let found = targets::find_version(&model, version)?;
    let inside = keep::came_as(store, &found)?;
    let path = PathBuf::from(store.path_of(&model, found.serial)).join(inside);
    let manifest = manifests::shown(&model, &found);
    let metadata = if found.facts.format == "lxd" {
        keep::metadata_tarball(&store.tree(found.serial)?.tree)?
    } else {
        None
    };
    let name = found.facts.upload_name.clone();
    Ok(Answer::Came { serial: found.serial, path, name, manifest, metadata: metadata.map(|(name, ..)| name) })
}

/// Asks the daemon that holds the store in `dir`.
///
/// # Errors
///
/// `Io` if the daemon cannot be reached or goes away; `Invalid` for an answer that is not understood.
/// `Stopping` if it ends without an answer, or `progress` gives up.
pub fn ask(dir: &Path, request: &Request, mut progress: impl FnMut(u64, u64) -> bool) -> Result<Answer> {
    let path = dir.join("control");
    let (dir_fd, address) = short_address(dir)?;
    let mut stream = UnixStream::connect(address).map_err(Error::io("connect to", &path))?;
    drop(dir_fd);
    let line = serde_json::to_string(request).expect("a plain enum");
    writeln!(stream, "{line}").map_err(Error::io("write to", &path))?;
    for line in BufReader::new(stream).lines() {
        let line = line.map_err(Error::io("read from", &path))?;
        let bad =
            |e: serde_json::Error| Error::Invalid { what: "the daemon's answer".into(), why: e.to_string() };
        match serde_json::from_str(&line).map_err(bad)? {
            Answer::Progress { done, total } if progress(done, total) => {}
            Answer::Progress { .. } => break,
            answer => return Ok(answer),
        }
    }
    Err(Error::Stopping)
}

/// Listens for requests until the process ends.
///
/// # Errors
///
/// `Io`.
pub fn listen(store: Arc<Store>, host: Arc<dyn Host>) -> Result<()> {
    let path = store.dir.join("control");
    // A socket that a killed daemon has left would make bind fail.
    let _ = std::fs::remove_file(&path);
    let (dir_fd, address) = short_address(&store.dir)?;
    let listener = UnixListener::bind(address).map_err(Error::io("bind", &path))?;
    drop(dir_fd);
    let served = move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else {
                // For example, too many files may be open. Until that ends, nobody gets an answer.
                std::thread::sleep(std::time::Duration::from_millis(100));
                continue;
            };
            let (store, host) = (store.clone(), host.clone());
            let _ = std::thread::Builder::new()
                .name("control".into())
                .spawn(move || answer(&store, &*host, stream));
        }
    };
    std::thread::Builder::new()
        .name("listen".into())
        .spawn(served)
        .map(drop)
        .map_err(Error::io("listen on", &path))
}

fn answer(store: &Store, host: &dyn Host, stream: UnixStream) {
    let Ok(mut out) = stream.try_clone() else { return };
    let mut line = String::new();
    if BufReader::new(stream).read_line(&mut line).is_err() {
        return;
    }
    let mut send =
        |answer: &Answer| writeln!(out, "{}", serde_json::to_string(answer).expect("a plain enum"));
    let Ok(request) = serde_json::from_str(&line) else {
        let _ = send(&Answer::Failed { why: "the request is not understood".into() });
        return;
    };
    let mut last = std::time::Instant::now();
    let done = match request {
        Request::Mount(request) => match host.mount(request) {
            Err(Error::Locked { .. }) => Ok(Answer::Held),
            // The daemon is ending, so this does not answer, as if it were gone.
            Err(Error::Stopping) => return,
            mounted => mounted.map(|line| Answer::Document { document: line.into() }),
        },
        Request::Stop => match host.stop() {
            Err(Error::Locked { .. }) => Ok(Answer::Held),
            stopped => stopped.map(|()| Answer::Done),
        },
        request => perform(store, request, |done, total| {
            if last.elapsed().as_millis() <= 100 {
                return true;
            }
            last = std::time::Instant::now();
            send(&Answer::Progress { done, total }).is_ok()
        }),
    };
    let _ = send(&done.unwrap_or_else(|e| Answer::Failed { why: e.to_string() }));
}

/// A socket's address holds only 107 bytes. The path through an open descriptor is short for any
/// directory.
fn short_address(dir: &Path) -> Result<(std::fs::File, std::path::PathBuf)> {
    let fd = std::fs::File::open(dir).map_err(Error::io("open", dir))?;
    let address = format!("/proc/self/fd/{}/control", fd.as_raw_fd()).into();
    Ok((fd, address))
}
