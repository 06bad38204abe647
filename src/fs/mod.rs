//! The mount: what the kernel asks, answered from the store.
//!
//! ```text
//! kernel/      requests in, replies out; mount(2); what the kernel knows of us; trees as mounts of their own
//! places/      the kinds of directory in .imgfs, one file each
//! upload/      cp in: an upload from its first byte to its receipt
//! browse.rs    ls: names; stat.rs: what they are; read.rs, opened.rs: cat
//! access.rs    who may, where the kernel does not ask; acl.rs: setfacl; xattr.rs: getfattr, setfattr
//! change.rs    mkdir, rmdir, rm, chmod; links.rs: ln, mv
//! staging.rs   several files that become one version
//! edit.rs      metadata.json being written; icon.rs: icon.png
//! changes.rs   cat web/2/changes
//! leases.rs    touch used_by/app7
//! control.rs   the files of .imgfs
//! ghost.rs     rm -r: what a walker sees of what it has just deleted; gone.rs, moved.rs: and what a mover sees
//! shells.rs    images of a mkdir in which nothing was taken
//! retire.rs    what goes by itself, as kernels are told
//! mounts.rs    several mounts of one store
//! ```
//!
//! Slow work leaves the event loops: such operations take a `Reply` and answer it from a thread of their own.

mod access;
mod acl;
mod at_label;
mod browse;
mod change;
mod changes;
mod control;
mod edit;
mod ghost;
mod gone;
mod icon;
pub mod kernel;
mod leases;
mod links;
mod mounts;
mod moved;
mod names;
mod node;
mod opened;
mod places;
mod read;
mod retire;
mod shells;
mod staging;
mod stat;
mod upload;
mod xattr;

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};

use crate::base::process;
use crate::error::{Error, Result};
use crate::images::export::RecipeReaders;
use crate::store::{Store, TreeSlot};
use crate::tree::Tree;
use edit::Edit;
use ghost::Walkers;
use gone::GoneNames;
pub use mounts::Mounts;
use node::NodeId;
use staging::Stagings;
use upload::{Upload, Uploads};

/// Answers a request; may be called from any thread, once.
pub type Reply<T> = Box<dyn FnOnce(Result<T>) + Send>;

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    pub uid: u32,
    pub gid: u32,
    /// The thread in the daemon's process namespace; 0 if it is in another.
    pub pid: u32,
}

/// The daemon itself, which may do everything.
const DAEMON: Caller = Caller { uid: 0, gid: 0, pid: 0 };

/// How long the kernel may believe names and attributes that another mount of the store may change, if there
/// comes to be one: a new one waits for so long.
pub(crate) const LASTING: Duration = Duration::from_secs(1);

/// How long it may believe what never changes: what is in a version.
const FOREVER: Duration = Duration::from_secs(1 << 31);

/// How long the end of a closed file may take to arrive.
const CLOSING: Duration = Duration::from_secs(1);

/// What stat shows, and for how long it holds.
#[derive(Clone, Copy, Debug)]
pub struct Attr {
    pub ino: u64,
    /// Type and permission bits, as in st_mode.
    pub mode: u32,
    pub links: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    /// Bytes that are no hole; what st_blocks counts.
    pub data: u64,
    pub mtime: (i64, u32),
    pub ctime: (i64, u32),
    /// Device number: major, minor.
    pub device: (u32, u32),
    /// Whether the name, and these values, hold for a while, unless the kernel is told otherwise.
    pub lasting_name: bool,
    pub lasting: bool,
}

/// One name in a directory.
#[derive(Clone, Debug)]
pub struct DirEntry {
    pub name: Vec<u8>,
    pub node: NodeId,
    /// Type bits of st_mode.
    pub format: u32,
}

impl DirEntry {
    pub fn new(name: impl Into<Vec<u8>>, node: NodeId, format: u32) -> DirEntry {
        DirEntry { name: name.into(), node, format }
    }
}

/// An open file or directory that needs memory of its own. Files of trees do not.
enum Handle {
    Upload {
        upload: Arc<Upload>,
        writes: bool,
    },
    /// A file in a staging directory.
    Staged {
        file: std::fs::File,
        path: std::path::PathBuf,
        /// Held for its end.
        #[allow(dead_code, reason = "counts as long as it lives")]
        writing: Option<staging::Writing>,
    },
    /// A log, as its opener may know it; it grows.
    Log {
        number: u32,
        caller: Caller,
    },
    /// A text made at the time of open.
    Text(Vec<u8>),
    /// metadata.json of the image with this serial.
    Edit(u32, Mutex<Edit>),
    Lease(u32, Mutex<Edit>),
    /// The icon of the image with this serial.
    Icon(u32, crate::images::icons::Form, Mutex<Edit>),
    Setting(String, Mutex<places::config::Writing>),
    /// A file that a recipe of a version makes: the version, the recipe. What it needs stays, and `shown` is
    /// what stat says, whatever becomes of the version.
    Made {
        serial: u32,
        slot: Arc<TreeSlot>,
        recipe: u32,
        readers: RecipeReaders,
        shown: Attr,
    },
    /// A kept upload of this version.
    Kept {
        serial: u32,
        tree: Arc<Tree>,
        readers: RecipeReaders,
        shown: Attr,
    },
    Directory(NodeId, Vec<DirEntry>),
}

/// Tells the kernel to forget what changed behind its back.
pub trait Kernel: Send + Sync {
    fn forget_name(&self, parent: u64, name: &[u8]);
    fn forget_attributes(&self, ino: u64);
    /// What a symlink leads to, too.
    fn forget_content(&self, ino: u64);
}

/// How the mount was made.
#[derive(Clone, Debug, Default)]
pub struct MountPoint {
    /// Absolute, for links that name it.
    pub path: String,
    /// Owner of the root directory.
    pub uid: u32,
    pub gid: u32,
    /// Whether the kernel asks for ACLs.
    pub has_acls: bool,
}

/// The answer for a node that was, and is no more.
fn stale() -> Error {
    Error::NotFound { what: "such file any more".into() }
}

/// Starts a thread that ends with the process; `what` it does is for the message.
pub(crate) fn start_thread(
    name: &str,
    what: &'static str,
    work: impl FnOnce() + Send + 'static,
) -> Result<()> {
    let made = std::thread::Builder::new().name(name.into()).spawn(work);
    made.map(drop).map_err(Error::io("start a thread for", Path::new(what)))
}

/// Runs `work` on its own thread and gives up after `time`, because it may deadlock on the current request.
fn within<T: Send + 'static>(
    name: &str,
    time: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (tell, told) = std::sync::mpsc::sync_channel(1);
    let work = move || tell.send(work()).unwrap_or_default();
    std::thread::Builder::new().name(name.into()).spawn(work).ok()?;
    told.recv_timeout(time).ok()
}

/// The file system.
pub struct ImageFs {
    pub store: Arc<Store>,
    mount: MountPoint,
    /// The other mounts of the store.
    pub(crate) mounts: Arc<Mounts>,
    uploads: Arc<Uploads>,
    stagings: Arc<Stagings>,
    walkers: Walkers,
    handles: RwLock<HashMap<u64, Arc<Handle>>>,
    next_handle: AtomicU64,
    /// Symlinks under temporary names: number, directory and name, target.
    staged_links: Mutex<Vec<links::StagedLink>>,
    /// Names that rm -r has made an end of, while the kernel still knows them.
    gone: GoneNames,
    /// Names that mv gave to what shows under others.
    moved: moved::MovedNames,
    /// Names that processes have looked for in vain.
    missed: moved::MissedNames,
    /// Bytes of the `changes` of versions that were looked at.
    changes: changes::Sizes,
    /// Processes that have removed metadata.json of an image, as mv does before it makes another.
    replacing: edit::Replacing,
    shells: shells::Shells,
    /// Directories in `.imgfs/aliases` that mkdir made, by their ways from there.
    alias_directories: Mutex<BTreeSet<String>>,
    /// Who was sent back from a directory that was deleted: process, inode, when.
    sent_back: Mutex<Vec<(u32, u64, std::time::Instant)>>,
    /// When the root last changed.
    root_changed: Mutex<i64>,
    kernel: RwLock<Option<Arc<dyn Kernel>>>,
    /// The way back on the connection of trees that are mounts of their own.
    trees_kernel: RwLock<Option<Arc<dyn Kernel>>>,
    /// Trees that are mounts of their own, if any are to be.
    pub(crate) trees: OnceLock<Arc<kernel::attach::Trees>>,
    started: std::time::Instant,
    /// Whether the mount is gone.
    ended: AtomicBool,
}

impl ImageFs {
    /// A file system that shows what `store` does; one of `mounts` as long as it lives.
    pub fn new(store: Arc<Store>, mount: MountPoint, mounts: &Arc<Mounts>) -> Arc<ImageFs> {
        let fs = Arc::new(ImageFs {
            stagings: mounts.stagings(&store),
            uploads: mounts.uploads(&store),
            store,
            mount,
            mounts: mounts.clone(),
            walkers: Walkers::default(),
            handles: RwLock::default(),
            next_handle: AtomicU64::new(1),
            staged_links: Mutex::default(),
            gone: GoneNames::default(),
            moved: moved::MovedNames::default(),
            missed: moved::MissedNames::default(),
            sent_back: Mutex::default(),
            changes: changes::Sizes::default(),
            replacing: edit::Replacing::default(),
            shells: shells::Shells::default(),
            alias_directories: Mutex::default(),
            root_changed: Mutex::new(crate::base::clock::now()),
            kernel: RwLock::new(None),
            trees_kernel: RwLock::new(None),
            trees: OnceLock::new(),
            started: std::time::Instant::now(),
            ended: AtomicBool::new(false),
        });
        mounts.add(&fs);
        fs
    }

    /// Connects the way back to the kernel, once there is one.
    pub fn connect(&self, kernel: Option<Arc<dyn Kernel>>) {
        *self.kernel.write() = kernel;
    }

    /// The same on the connection of trees that are mounts of their own.
    pub fn connect_trees(&self, kernel: Option<Arc<dyn Kernel>>) {
        *self.trees_kernel.write() = kernel;
    }

    fn with_kernel(&self, tell: impl FnOnce(&dyn Kernel)) {
        let kernel = self.kernel.read().clone();
        if let Some(kernel) = kernel {
            tell(&*kernel);
        }
    }

    fn open_handle(&self, handle: Handle) -> u64 {
        let fh = self.next_handle.fetch_add(1, Ordering::Relaxed);
        self.handles.write().insert(fh, Arc::new(handle));
        fh
    }

    fn handle(&self, fh: u64) -> Result<Arc<Handle>> {
        let found = self.handles.read().get(&fh).cloned();
        found.ok_or_else(|| Error::Invalid { what: "the file handle".into(), why: "it is not open".into() })
    }

    fn incarnation(&self, serial: u32) -> u8 {
        self.mounts.incarnations.lock().get(&serial).copied().unwrap_or(0)
    }

    /// Notes a refusal where the user can read it, and passes it on.
    fn refused(&self, caller: Caller, gesture: &'static str, path: &str, e: Error) -> Error {
        self.note_refusal(caller, gesture, path, &e);
        e
    }

    fn note_refusal(&self, caller: Caller, gesture: &'static str, path: &str, e: &Error) {
        // The kernel looks again, tools copy: nobody is refused anything. What was said before is not to bury
        // why.
        if !matches!(e, Error::OtherPlace { .. } | Error::LookAgain | Error::Again { .. }) {
            self.store.journal.refuse(caller.uid, gesture, path, e);
        }
    }

    /// Notes a refusal of something that has only a name.
    pub fn refuse(&self, caller: Caller, gesture: &'static str, name: &[u8], e: Error) -> Error {
        self.refused(caller, gesture, &String::from_utf8_lossy(name), e)
    }

    fn wait_for_tree(&self, serial: u32) {
        if let Some(trees) = self.trees.get() {
            trees.settle(serial);
        }
    }

    /// umount(8) asks for the kind of file system first. umount(2) fails where something is mounted below, so trees
    /// that nobody is in go before that.
    fn trees_before_umount(&self, caller: Caller) {
        if let Some(trees) = self.trees.get().filter(|_| process::name(caller.pid) == "umount") {
            trees.let_go();
        }
    }

    /// Takes the mounts of these versions' trees away, before they are deleted.
    fn detach_trees(&self, serials: impl IntoIterator<Item = u32>) {
        let serials: Vec<u32> = serials.into_iter().collect();
        for fs in self.mounts.all() {
            if let Some(trees) = fs.trees.get() {
                trees.detach(&serials);
            }
        }
    }

    /// Tries again while an upload of the same name is being closed: the kernel sends the end of a file after
    /// close(2) has returned, and the next command may be faster.
    ///
    /// # Errors
    ///
    /// Those of `work`; `UploadBusy` once it has lasted for long.
    pub fn once_closed<T>(&self, work: impl Fn() -> Result<T>) -> Result<T> {
        let begun = std::time::Instant::now();
        loop {
            match work() {
                Err(Error::UploadBusy { .. }) if begun.elapsed() < CLOSING => {
                    std::thread::sleep(Duration::from_millis(1))
                }
                other => return other,
            }
        }
    }

    /// Runs work that may take long in a thread of its own; `reply` is answered in any case.
    fn offload<T: Send + 'static>(
        self: &Arc<Self>,
        reply: Reply<T>,
        work: impl FnOnce(&Arc<Self>) -> Result<T> + Send + 'static,
    ) {
        let fs = self.clone();
        let reply = Arc::new(Mutex::new(Some(reply)));
        let answer = {
            let reply = reply.clone();
            move |result| {
                if let Some(reply) = reply.lock().take() {
                    reply(result);
                }
            }
        };
        let failed = answer.clone();
        let spawned = std::thread::Builder::new().name("work".into()).spawn(move || answer(work(&fs)));
        if let Err(source) = spawned {
            failed(Err(Error::Io { doing: "start a thread for", path: "a request".into(), source }));
        }
    }
}
