//! The mount: what the kernel asks, answered from the store.
//!
//! ```text
//! kernel/      requests in, replies out; mount(2); what the kernel knows of us; trees as mounts of their own
//! requests.rs  what is asked about any node: one dispatch, to the place of the node
//! places/      what answers: each kind of directory, one file each
//! handles.rs   open files: read, write, close
//! upload/      cp in: an upload from its first byte to its receipt
//! removal/     rmdir and rm -r, and what a walker and a mover see afterwards
//! access.rs    who may, where the kernel does not ask; rights.rs: setfacl; xattr.rs: getfattr, setfattr
//! node.rs      what an inode's number stands for
//! retire.rs    what goes by itself, as kernels are told
//! mounts.rs    several mounts of one store
//! ```
//!
//! Slow work leaves the event loops: such operations take a `Reply` and answer it from a thread of their own.

mod access;
mod edit;
mod handles;
pub mod kernel;
mod mounts;
mod names;
mod node;
mod opened;
mod places;
mod removal;
mod requests;
mod retire;
mod rights;
mod upload;
mod xattr;

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};

use crate::base::process;
use crate::error::{Error, Result};
use crate::store::Store;
use handles::Handle;
pub use mounts::Mounts;
use node::{ImagePart, NodeId, VersionPart};
use places::link::TemporaryLinks;
use places::staging::Stagings;
use removal::gone::{Gone, GoneNames};
use removal::moved::{MissedNames, MovedNames};
use removal::shells::Shells;
use removal::walkers::{SentFromDeleted, Walkers};
use upload::Uploads;

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

/// How long the kernel may cache names and attributes while the store has a single mount. Another mount could
/// change them, so a new one waits this long before it starts.
pub(crate) const LASTING: Duration = Duration::from_secs(1);

/// How long the kernel may cache what never changes: the content of a version.
const FOREVER: Duration = Duration::from_secs(1 << 31);

/// How long a deletion waits for the kernel to forget a name. Only a caller that removes and renames at
/// the same time waits that long.
const FORGETTING: Duration = Duration::from_millis(100);

/// How long the kernel may take to send the end of a closed file.
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
    /// Bytes outside of holes. `st_blocks` counts these.
    pub data: u64,
    pub mtime: (i64, u32),
    pub ctime: (i64, u32),
    /// Device number: major, minor.
    pub device: (u32, u32),
    /// Whether the kernel may cache the name, and these values, until it is told otherwise.
    pub lasting_name: bool,
    pub lasting: bool,
}

impl Attr {
    /// A directory of imgfs itself that belongs to `owner` (user, group). The kernel caches neither its
    /// name nor its values.
    fn of_directory(ino: u64, owner: (u32, u32)) -> Attr {
        Attr {
            ino,
            mode: libc::S_IFDIR,
            links: 2,
            uid: owner.0,
            gid: owner.1,
            size: 4096,
            data: 4096,
            mtime: (0, 0),
            ctime: (0, 0),
            device: (0, 0),
            lasting_name: false,
            lasting: false,
        }
    }

    /// Turns this into the values of a regular file of `size` bytes.
    fn file(self, permissions: u32, size: u64) -> Attr {
        Attr { mode: libc::S_IFREG | permissions & 0o7777, links: 1, size, data: size, ..self }
    }

    /// Sets both times to `time`, in nanoseconds since 1970.
    fn at(self, time: i64) -> Attr {
        Attr { mtime: split_time(time), ctime: split_time(time), ..self }
    }
}

/// Splits nanoseconds into whole seconds and the rest.
fn split_time(nanoseconds: i64) -> (i64, u32) {
    (nanoseconds.div_euclid(1_000_000_000), nanoseconds.rem_euclid(1_000_000_000) as u32)
}

/// What setattr may set.
#[derive(Clone, Copy, Debug, Default)]
pub struct SetAttr {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    /// Nanoseconds since 1970.
    pub mtime: Option<i64>,
}

impl SetAttr {
    /// Whether these changes touch the mode or the owner.
    fn are_rights(&self) -> bool {
        self.mode.is_some() || self.uid.is_some() || self.gid.is_some()
    }
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

/// Tells the kernel to forget what changed behind its back.
pub trait Kernel: Send + Sync {
    fn forget_name(&self, parent: u64, name: &[u8]);
    fn forget_attributes(&self, ino: u64);
    /// Forgets the cached pages of a file, or the cached target of a symlink.
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

/// The error for a node that no longer exists.
fn stale() -> Error {
    Error::NotFound { what: "such file any more".into() }
}

/// Starts a thread that ends with the process. `what` names its work in the error message.
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
    /// Symlinks under temporary names.
    temporary_links: TemporaryLinks,
    /// Names that rm -r has removed while the kernel still caches them.
    gone: GoneNames,
    /// Names that mv gave to something that the mount shows under another name.
    moved: MovedNames,
    /// Names that processes looked up and did not find.
    missed: MissedNames,
    /// Sizes of the `changes` files that somebody has looked at.
    changes: places::changes::Sizes,
    /// Processes that have removed metadata.json of an image. mv does so before it creates the new one.
    replacing: edit::Replacing,
    shells: Shells,
    /// Directories in `.imgfs/aliases` that mkdir made, by their paths from there.
    alias_directories: Mutex<BTreeSet<String>>,
    /// Threads that were sent back from a directory that was deleted.
    sent_back: SentFromDeleted,
    /// When the root last changed.
    root_changed: Mutex<i64>,
    kernel: RwLock<Option<Arc<dyn Kernel>>>,
    /// The channel to the kernel on the connection of trees that have mounts of their own.
    trees_kernel: RwLock<Option<Arc<dyn Kernel>>>,
    /// Trees that have mounts of their own, if the mount has any.
    pub(crate) trees: OnceLock<Arc<kernel::attach::Trees>>,
    started: std::time::Instant,
    /// Whether the mount has ended.
    ended: AtomicBool,
}

impl ImageFs {
    /// A file system that shows the content of `store`. It counts as one of `mounts` as long as it lives.
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
            temporary_links: TemporaryLinks::default(),
            gone: GoneNames::default(),
            moved: MovedNames::default(),
            missed: MissedNames::default(),
            sent_back: SentFromDeleted::default(),
            changes: places::changes::Sizes::default(),
            replacing: edit::Replacing::default(),
            shells: Shells::default(),
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

    /// Sets the channel to the kernel once there is one.
    pub fn connect(&self, kernel: Option<Arc<dyn Kernel>>) {
        *self.kernel.write() = kernel;
    }

    /// Sets the channel to the kernel for trees that have mounts of their own.
    pub fn connect_trees(&self, kernel: Option<Arc<dyn Kernel>>) {
        *self.trees_kernel.write() = kernel;
    }

    fn with_kernel(&self, tell: impl FnOnce(&dyn Kernel)) {
        let kernel = self.kernel.read().clone();
        if let Some(kernel) = kernel {
            tell(&*kernel);
        }
    }

    fn incarnation(&self, serial: u32) -> u8 {
        self.mounts.incarnations.lock().get(&serial).copied().unwrap_or(0)
    }

    /// Whether `node` belongs to an image or a version that was deleted after the kernel had learned of it.
    fn is_dead(&self, node: NodeId) -> bool {
        match node {
            NodeId::Image { serial, incarnation, .. } | NodeId::Version { serial, incarnation, .. } => {
                incarnation != self.incarnation(serial)
            }
            _ => false,
        }
    }

    fn image_node(&self, serial: u32) -> NodeId {
        self.part_of_image(serial, ImagePart::Dir)
    }

    fn part_of_image(&self, serial: u32, part: ImagePart) -> NodeId {
        NodeId::Image { serial, part, incarnation: self.incarnation(serial) }
    }

    fn version_node(&self, serial: u32) -> NodeId {
        self.part_of_version(serial, VersionPart::Dir)
    }

    fn part_of_version(&self, serial: u32, part: VersionPart) -> NodeId {
        NodeId::Version { serial, part, incarnation: self.incarnation(serial) }
    }

    /// Logs what a caller did to an image, or to something in it.
    fn log(&self, caller: Caller, gesture: &str, node: NodeId, outcome: &str) {
        let path = self.path_of(node);
        self.store.journal.log(caller.uid, gesture, path.trim_start_matches('/'), outcome);
    }

    /// Records a refusal where the user can read it, and returns the error.
    fn refused(&self, caller: Caller, gesture: &'static str, path: &str, e: Error) -> Error {
        self.note_refusal(caller, gesture, path, &e);
        e
    }

    fn note_refusal(&self, caller: Caller, gesture: &'static str, path: &str, e: &Error) {
        // These errors are not refusals: the kernel looks up again, or the tool copies instead. Recording
        // them would hide the error that explains why.
        if !matches!(e, Error::OtherPlace { .. } | Error::LookAgain | Error::Again { .. }) {
            self.store.journal.refuse(caller.uid, gesture, path, e);
        }
    }

    /// Records a refusal of something that has only a name.
    pub fn refuse(&self, caller: Caller, gesture: &'static str, name: &[u8], e: Error) -> Error {
        self.refused(caller, gesture, &String::from_utf8_lossy(name), e)
    }

    /// Records a refusal of mv, and returns an error with the number that mv has a message for.
    fn refused_mv(&self, caller: Caller, path: &str, e: &Error) -> Error {
        self.note_refusal(caller, "mv", path, e);
        Error::Again { errno: e.errno_of_mv(), sentence: e.to_string() }
    }

    /// Notes that a moved node shows under another name. The mover may still look up the name that it gave;
    /// the kernel has to forget that name.
    fn has_moved(&self, caller: Caller, to: &(NodeId, Vec<u8>), leads_to: NodeId) {
        self.moved.note(caller.pid, to.0, &to.1, leads_to);
        self.forget_later(to.0.ino(), to.1.clone());
    }

    /// Tells the kernel before the answer that a name is gone. It waits only for a limited time: the kernel
    /// locks the directory of that name. The process that holds the lock (`mv web www`, `rmdir web`) may
    /// itself wait for the directory that the current call has locked.
    fn forget_soon(&self, gone: Gone) {
        self.tell_soon(FORGETTING, move |kernel| kernel.forget_name(gone.name.parent, &gone.name.name));
    }

    /// Tells the kernel something before the answer, but waits at most for `time`.
    fn tell_soon(&self, time: Duration, tell: impl FnOnce(&dyn Kernel) + Send + 'static) {
        if let Some(kernel) = self.kernel.read().clone() {
            within("forget", time, move || tell(&*kernel));
        }
    }

    /// Tells the kernel to forget a name after the answer, because the current call has locked its
    /// directory.
    fn forget_later(&self, parent: u64, name: Vec<u8>) {
        if let Some(kernel) = self.kernel.read().clone() {
            let _ = std::thread::Builder::new()
                .name("forget".into())
                .spawn(move || kernel.forget_name(parent, &name));
        }
    }

    fn wait_for_tree(&self, serial: u32) {
        if let Some(trees) = self.trees.get() {
            trees.settle(serial);
        }
    }

    /// Unmounts the trees that nobody uses when umount(8) begins. umount(8) first asks for the kind of file
    /// system, and umount(2) then fails if something is mounted below.
    fn trees_before_umount(&self, caller: Caller) {
        if let Some(trees) = self.trees.get().filter(|_| process::name(caller.pid) == "umount") {
            trees.let_go();
        }
    }

    /// Unmounts the trees of these versions, before the versions are deleted.
    fn detach_trees(&self, serials: impl IntoIterator<Item = u32>) {
        let serials: Vec<u32> = serials.into_iter().collect();
        for fs in self.mounts.all() {
            if let Some(trees) = fs.trees.get() {
                trees.detach(&serials);
            }
        }
    }

    /// Repeats `work` while an upload of the same name is being closed. The kernel sends the end of a file
    /// after close(2) has returned, so the next command may arrive first.
    ///
    /// # Errors
    ///
    /// Those of `work`; `UploadBusy` once it has lasted for long.
    pub fn retry_while_busy<T>(&self, work: impl Fn() -> Result<T>) -> Result<T> {
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

    /// Runs slow work in a thread of its own. `reply` is answered in any case.
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
