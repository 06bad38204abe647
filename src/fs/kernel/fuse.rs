//! Requests in, replies out, without decisions of its own. With convert.rs this is the only file that
//! names fuser.

mod convert;

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, BackingId, BsdFileFlags, Config, Errno, FileHandle, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, Notifier, OpenAccMode, OpenFlags, RenameFlags,
    ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry,
    ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, Session, SessionACL,
    TimeOrNow, WriteFlags,
};

use crate::blob::ReadBuf;
use crate::error::{Error, Result};
use crate::fs::kernel::attach::{NAMED, Step};
use crate::fs::kernel::held::Held;
use crate::fs::kernel::latency::Latency;
use crate::fs::kernel::passthrough::Backings;
use crate::fs::node::{NodeId, ROOT_INO, VersionPart};
use crate::fs::opened::{OpenMode, Opened};
use crate::fs::places::{dot_imgfs, tree};
use crate::fs::removal::{shells, walkers};
use crate::fs::{Attr, Caller, FOREVER, ImageFs, Kernel, SetAttr, stale};
use convert::{
    EMPTY, answer_empty, answer_xattr, caller, errno, errno_of_node, file_attr, file_type, lasting,
    nanoseconds, node,
};

/// The largest write that the kernel sends, in bytes. This is what it allows by default.
const WRITE_MAX: u32 = 1 << 20;
/// How many requests the kernel may have under way before it holds back readahead.
const BACKGROUND: u16 = 64;
/// More than the size of any file. The kernel lists an entry with this size, and caches nothing about
/// it.
///
/// Source: fuse_direntplus_link and fuse_valid_size in fs/fuse of Linux 5.5.
const NO_SIZE: u64 = u64::MAX;

/// Handles of files that need no memory here: files of trees, and the large ones among them, which are
/// counted.
const LASTING: FileHandle = FileHandle(0);
const LARGE: FileHandle = FileHandle(u64::MAX);

/// The requests of chattr and lsattr: the calls, the flags, the length of the long form.
/// Source: linux/fs.h, FS_IOC_* and struct fsxattr.
const GETFLAGS: u32 = 0x8008_6601;
const SETFLAGS: u32 = 0x4008_6602;
const FSGETXATTR: u32 = 0x801c_581f;
const FSSETXATTR: u32 = 0x401c_5820;
const FS_IMMUTABLE: u32 = 0x10;
const XFLAG_IMMUTABLE: u32 = 0x8;
const FSXATTR_LEN: usize = 28;

fn flag(on: bool, flag: u32) -> u32 {
    if on { flag } else { 0 }
}

thread_local! {
    /// Buffers of an event loop, reused from read to read.
    static BUFFERS: RefCell<(ReadBuf, Vec<u8>)> = RefCell::default();
}

/// What a connection serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plane {
    /// The mount. `passthrough`: the kernel may read large files by itself.
    All { passthrough: bool },
    /// Only trees, which never change. The kernel need not tell imgfs when it opens a file of one.
    Trees,
}

/// How a connection is served.
pub struct Serving {
    pub plane: Plane,
    /// Event loops.
    pub threads: usize,
    pub allow_other: bool,
    pub acls: bool,
    pub latency: Option<Arc<Latency>>,
}

#[derive(Clone)]
struct Adapter {
    fs: Arc<ImageFs>,
    plane: Plane,
    acls: bool,
    latency: Option<Arc<Latency>>,
    held: Arc<Held>,
    /// The large files that are open. `None` if the kernel may not read any by itself.
    backings: Option<Arc<Backings<BackingId>>>,
}

/// The channel to the kernel.
struct ToKernel(Notifier);

impl Kernel for ToKernel {
    fn forget_name(&self, parent: u64, name: &[u8]) {
        if let Err(e) = self.0.inval_entry(INodeNo(parent), OsStr::from_bytes(name)) {
            log::debug!("cannot invalidate a name: {e}");
        }
    }

    fn forget_attributes(&self, ino: u64) {
        // A negative offset invalidates only the attributes.
        if let Err(e) = self.0.inval_inode(INodeNo(ino), -1, 0) {
            log::debug!("cannot invalidate attributes: {e}");
        }
    }

    fn forget_content(&self, ino: u64) {
        if let Err(e) = self.0.inval_inode(INodeNo(ino), 0, 0) {
            log::debug!("cannot invalidate content: {e}");
        }
    }
}

/// Serves a mounted `/dev/fuse` descriptor until it is unmounted. `ready` is called after the first
/// exchange with the kernel.
///
/// # Errors
///
/// What the descriptor fails with.
pub fn serve(fs: &Arc<ImageFs>, fd: OwnedFd, serving: Serving, ready: impl FnOnce()) -> io::Result<()> {
    let Serving { plane, threads, allow_other, acls, latency } = serving;
    let mut config = Config::default();
    // The kernel checks permissions. fuser's own check would refuse root on a user's mount.
    let acl = if allow_other { SessionACL::All } else { SessionACL::Owner };
    config.acl = acl;
    config.n_threads = Some(threads);
    // A loop with its own descriptor wakes up alone. Opening /dev/fuse again needs permission.
    config.clone_fd = std::fs::File::options().read(true).write(true).open("/dev/fuse").is_ok();
    let backings = (plane == Plane::All { passthrough: true }).then(Arc::default);
    let held = Arc::new(Held::default());
    let adapter = Adapter { fs: fs.clone(), plane, acls, latency, held: held.clone(), backings };
    let session = Session::from_fd(adapter, fd, acl, config)?;
    let ended = if plane == Plane::Trees {
        fs.connect_trees(Some(Arc::new(ToKernel(session.notifier()))));
        let ended = session.run();
        fs.connect_trees(None);
        ended
    } else {
        fs.connect(Some(Arc::new(ToKernel(session.notifier()))));
        ready();
        let ended = session.run();
        fs.connect(None);
        ended
    };
    held.let_go(&fs.store);
    ended
}

/// Runs a handler. A panic becomes EIO for this request only: dropping the reply sends that error.
fn guarded(what: &'static str, handler: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(handler)).is_err() {
        log::error!("a {what} request stopped by a panic; this is a bug");
    }
}

impl Adapter {
    /// Counts a request of a kind that comes in bursts.
    fn count(&self) {
        if let Some(latency) = &self.latency {
            latency.count();
        }
    }

    /// The attributes of a node that the kernel learns of by this reply. Counts the node as known to it.
    fn entry(&self, who: Caller, id: NodeId) -> Result<Attr> {
        let attr = self.fs.attr_for(who, id)?;
        self.held.count(&self.fs.store, id, 1);
        Ok(attr)
    }

    fn reply_entry(&self, who: Caller, found: Result<NodeId>, reply: ReplyEntry) {
        self.reply_entry_for(who, found, Duration::ZERO, reply);
    }

    /// Answers a lookup. The name holds for at least `least`.
    fn reply_entry_for(&self, who: Caller, found: Result<NodeId>, least: Duration, reply: ReplyEntry) {
        match found.map(|id| self.entry(who, id)) {
            Ok(Ok(attr)) => {
                let name = lasting(&attr, attr.lasting_name).max(least);
                reply.entry_with_ttls(&lasting(&attr, attr.lasting), &name, &file_attr(&attr), Generation(0))
            }
            Ok(Err(e)) => reply.error(errno_of_node(&e)),
            Err(e) => reply.error(errno(&e)),
        }
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Each capability only saves time. Without it the mount works as well.
        for capability in [
            InitFlags::FUSE_ASYNC_READ,
            InitFlags::FUSE_ATOMIC_O_TRUNC,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_EXPLICIT_INVAL_DATA,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_MAX_PAGES,
        ] {
            let _ = config.add_capabilities(capability);
        }
        if self.acls {
            let _ = config.add_capabilities(InitFlags::FUSE_POSIX_ACL);
        }
        // The kernel opens files on the store's own file system. With depth 1, that file system must not
        // itself be stacked on another.
        if self.backings.is_some()
            && (config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_err()
                || config.set_max_stack_depth(1).is_err())
        {
            self.backings = None;
        }
        let _ = config.set_max_write(WRITE_MAX);
        let _ = config.set_max_readahead(WRITE_MAX);
        let _ = config.set_max_background(BACKGROUND);
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.count();
        let who = caller(req);
        guarded("lookup", || {
            if self.plane == Plane::Trees && parent.0 == ROOT_INO {
                return self.reply_entry(who, tree::called(&self.fs, name.as_bytes()), reply);
            }
            let found = node(parent).and_then(|p| {
                self.fs.gone.note_asked(who.pid, p, name.as_bytes());
                self.fs.lookup(who, p, name.as_bytes())
            });
            if let (Err(Error::NotFound { .. }), Some(NodeId::Tree { .. })) =
                (&found, NodeId::from_ino(parent.0))
            {
                // A name that is not in a version will never be there. Inode 0 lets the kernel cache that.
                let none = Attr { ino: 0, ..EMPTY };
                return reply.entry(&FOREVER, &file_attr(&none), Generation(0));
            }
            let trees = self.fs.trees.get().filter(|_| self.plane != Plane::Trees);
            match trees
                .zip(found.as_ref().ok())
                .map(|(trees, id)| trees.on_the_way(*id, req.pid(), self.held.knows(*id)))
            {
                None | Some(Step::Go) => self.reply_entry(who, found, reply),
                Some(Step::Into) => {
                    self.fs.note_entered(&found);
                    self.reply_entry_for(who, found, NAMED, reply)
                }
                Some(Step::Again) => reply.error(Errno::ESTALE),
                Some(Step::AgainSoon(serial)) => {
                    self.fs.offload(Box::new(|_: Result<()>| reply.error(Errno::ESTALE)), move |fs| {
                        fs.trees.get().iter().for_each(|trees| trees.wait_near(serial));
                        Ok(())
                    });
                }
                Some(Step::Wait(serial)) => {
                    let this = self.clone();
                    self.fs.offload(Box::new(move |found| this.reply_entry(who, found, reply)), move |fs| {
                        fs.wait_for_tree(serial);
                        found
                    });
                }
            }
        });
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        if let Some(id) = NodeId::from_ino(ino.0) {
            self.held.count(&self.fs.store, id, -i64::try_from(nlookup).unwrap_or(i64::MAX));
        }
    }

    fn getattr(&self, req: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        self.count();
        guarded("getattr", || {
            if node(ino).is_ok_and(|id| walkers::is_outlived(&self.fs, caller(req), id)) {
                return reply.error(Errno::ESTALE);
            }
            let attr = node(ino).and_then(|id| match fh {
                Some(fh) if !matches!(id, NodeId::Tree { .. }) => self.fs.handle_attr(caller(req), id, fh.0),
                _ => self.fs.attr_for(caller(req), id),
            });
            match attr {
                Ok(attr) => reply.attr(&lasting(&attr, attr.lasting), &file_attr(&attr)),
                Err(e) => reply.error(errno_of_node(&e)),
            }
        });
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let (fs, who) = (self.fs.clone(), caller(req));
        let changes = SetAttr { mode, uid, gid, size, mtime: mtime.map(nanoseconds) };
        let answer = move |result: Result<Attr>| match result {
            Ok(attr) => reply.attr(&lasting(&attr, attr.lasting), &file_attr(&attr)),
            Err(e) => reply.error(errno(&e)),
        };
        // Truncating may end an upload's threads, and a receipt's time is a row of the catalog. So this does
        // not run in the event loop.
        self.fs.offload(Box::new(answer), move |_| fs.setattr(who, node(ino)?, fh.map(|f| f.0), changes));
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        self.count();
        guarded("readlink", || match node(ino).and_then(|id| self.fs.readlink(id)) {
            Ok(target) => reply.data(&target),
            Err(e) => reply.error(errno(&e)),
        });
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        guarded("mknod", || {
            let e = match NodeId::from_ino(parent.0) {
                Some(NodeId::Tree { .. } | NodeId::Version { .. }) => {
                    Error::Frozen { what: "a version".into() }
                }
                _ => Error::Managed {
                    what: "a device, pipe or socket".into(),
                    why: "only tarballs bring them",
                },
            };
            node(parent).iter().for_each(|parent| shells::note_refused_in(&self.fs, caller(req), *parent));
            reply.error(errno(&self.fs.refuse(caller(req), "mknod", name.as_bytes(), e)));
        });
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        guarded("mkdir", || {
            let made =
                node(parent).and_then(|p| self.fs.mkdir(caller(req), p, name.as_bytes(), mode & !umask));
            self.reply_entry(caller(req), made, reply);
        });
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        guarded("unlink", || match node(parent) {
            Ok(p) => self.fs.unlink(
                caller(req),
                p,
                name.as_bytes(),
                Box::new(|result| answer_empty(reply, result)),
            ),
            Err(e) => reply.error(errno(&e)),
        });
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (who, name) = (caller(req), name.as_bytes().to_vec());
        self.fs.offload(Box::new(|result| answer_empty(reply, result)), move |fs| {
            fs.rmdir(who, node(parent)?, &name)
        });
    }

    fn symlink(&self, req: &Request, parent: INodeNo, link_name: &OsStr, target: &Path, reply: ReplyEntry) {
        guarded("symlink", || {
            let target = target.as_os_str().as_bytes();
            let made =
                node(parent).and_then(|p| self.fs.symlink(caller(req), p, link_name.as_bytes(), target));
            self.reply_entry(caller(req), made, reply);
        });
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        guarded("rename", || match (node(parent), node(newparent)) {
            (Ok(from), Ok(to)) => {
                let (from, to) = ((from, name.as_bytes().to_vec()), (to, newname.as_bytes().to_vec()));
                self.fs.rename(
                    caller(req),
                    from,
                    to,
                    flags.bits(),
                    Box::new(|result| answer_empty(reply, result)),
                );
            }
            (Err(e), _) | (_, Err(e)) => reply.error(errno(&e)),
        });
    }

    fn link(&self, req: &Request, _ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        guarded("link", || {
            let e = match NodeId::from_ino(newparent.0) {
                Some(NodeId::Tree { .. } | NodeId::Version { .. }) => {
                    Error::Frozen { what: "a version".into() }
                }
                _ => Error::Managed { what: "a hard link".into(), why: "use ln -s for an alias" },
            };
            node(newparent).iter().for_each(|parent| shells::note_refused_in(&self.fs, caller(req), *parent));
            reply.error(errno(&self.fs.refuse(caller(req), "ln", newname.as_bytes(), e)));
        });
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.count();
        if self.plane == Plane::Trees {
            // ENOSYS holds for the whole connection.
            return reply.error(Errno::ENOSYS);
        }
        let (who, fs) = (caller(req), &self.fs);
        let mode = OpenMode {
            writes: flags.acc_mode() != OpenAccMode::O_RDONLY,
            truncates: flags.0 & libc::O_TRUNC != 0,
        };
        let this = self.clone();
        let answer = move |opened: Result<Opened>| match opened {
            Ok(Opened::Lasting) => {
                reply.opened(LASTING, FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH)
            }
            Ok(Opened::Large(blob)) => {
                let object = || {
                    this.fs.store.blobs.checked_object(blob).and_then(|file| reply.open_backing(file).ok())
                };
                let cached = FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH;
                match this.backings.as_ref().map(|backings| backings.enter(ino.0, object)) {
                    Some(Some(backing)) => {
                        reply.opened_passthrough(LARGE, FopenFlags::FOPEN_NOFLUSH, &backing)
                    }
                    Some(None) => reply.opened(LARGE, cached),
                    None => reply.opened(LASTING, cached),
                }
            }
            Ok(Opened::Cached(fh)) => {
                reply.opened(FileHandle(fh), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH);
            }
            Ok(Opened::Direct(fh)) => reply.opened(FileHandle(fh), FopenFlags::FOPEN_DIRECT_IO),
            Err(e) => reply.error(errno_of_node(&e)),
        };
        let slow = NodeId::from_ino(ino.0).is_some_and(|node| node.place().opens_slowly(node));
        if !mode.writes && !slow {
            return guarded("open", || answer(node(ino).and_then(|id| fs.open(who, id, mode))));
        }
        // It may truncate an upload, wait until one is closed, or make an upload's bytes again.
        fs.offload(Box::new(answer), move |fs| {
            fs.retry_while_busy(|| fs.open(who, node(ino)?, mode)).map_err(|e| match e {
                Error::NotFound { .. } => e,
                e => fs.refuse(who, "open", b"", e),
            })
        });
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.count();
        guarded("read", || {
            BUFFERS.with_borrow_mut(|(buf, out)| {
                out.clear();
                let found = match node(ino) {
                    Ok(NodeId::Tree { serial, index }) if fh == LASTING || fh == LARGE => {
                        tree::read(&self.fs, serial, index, (offset, size as usize), buf, out)
                    }
                    Ok(_) => self.fs.read(fh.0, offset, size as usize, out).map(|()| &out[..]),
                    Err(e) => Err(e),
                };
                match found {
                    Ok(bytes) => reply.data(bytes),
                    Err(e) => reply.error(errno(&e)),
                }
            });
            self.fs.store.blobs.read_ahead();
        });
    }

    fn write(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        guarded("write", || {
            let answer = |result: Result<u32>| match result {
                Ok(n) => reply.written(n),
                Err(e) => reply.error(errno(&e)),
            };
            self.fs.write(caller(req), fh.0, offset, data, Box::new(answer));
        });
    }

    fn flush(&self, req: &Request, _ino: INodeNo, fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        if self.plane == Plane::Trees {
            return reply.error(Errno::ENOSYS);
        }
        guarded("flush", || {
            self.fs.flush(caller(req), fh.0, Box::new(|result| answer_empty(reply, result)));
        });
    }

    fn release(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        if let (LARGE, Some(backings)) = (fh, &self.backings) {
            backings.leave(ino.0);
        }
        if fh == LASTING || fh == LARGE {
            return reply.ok();
        }
        self.fs.release(caller(req), fh.0, Box::new(|result| answer_empty(reply, result)));
    }

    fn fsync(&self, req: &Request, _ino: INodeNo, fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        // An upload becomes durable when it is closed. An editor's fsync asks whether the document is valid.
        guarded("fsync", || {
            answer_empty(
                reply,
                if fh == LASTING || fh == LARGE { Ok(()) } else { self.fs.fsync(caller(req), fh.0) },
            )
        });
    }

    fn opendir(&self, req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.count();
        if self.plane == Plane::Trees {
            return reply.error(Errno::ENOSYS);
        }
        if node(ino).is_ok_and(|id| walkers::is_outlived(&self.fs, caller(req), id)) {
            return reply.error(Errno::ESTALE);
        }
        let who = caller(req);
        let answer = move |opened: Result<Opened>| match opened {
            Ok(Opened::Direct(fh) | Opened::Cached(fh)) => reply.opened(FileHandle(fh), FopenFlags::empty()),
            Ok(Opened::Lasting | Opened::Large(_)) => {
                reply.opened(LASTING, FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE);
            }
            Err(e) => reply.error(errno(&e)),
        };
        let open = move |fs: &ImageFs| node(ino).and_then(|id| fs.opendir(who, id));
        guarded("opendir", || {
            match self.fs.trees.get().zip(node(ino).ok()).and_then(|(trees, id)| trees.opened(id)) {
                None => answer(open(&self.fs)),
                Some(serial) => self.fs.offload(Box::new(answer), move |fs| {
                    fs.wait_for_tree(serial);
                    open(fs)
                }),
            }
        });
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        guarded("readdir", || {
            let listed = node(ino).and_then(|id| {
                self.fs.list_entries(id, fh.0, offset, |next, entry| {
                    reply.add(
                        INodeNo(entry.node.ino()),
                        next,
                        file_type(entry.format),
                        OsStr::from_bytes(&entry.name),
                    )
                })
            });
            match listed {
                Ok(()) => reply.ok(),
                Err(e) => reply.error(errno(&e)),
            }
        });
    }

    fn readdirplus(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        self.count();
        let who = caller(req);
        guarded("readdirplus", || {
            let listed = node(ino).and_then(|id| {
                self.fs.list_entries(id, fh.0, offset, |next, entry| {
                    // The kernel takes no reference to these two entries.
                    let dots = matches!(entry.name.as_slice(), b"." | b"..");
                    let current = dots || self.fs.still_leads(who, id, entry);
                    // Computing the size would take long, so it is left out here. The kernel asks again if
                    // somebody wants it.
                    let slow = matches!(entry.node, NodeId::Version { part: VersionPart::Changes, .. });
                    let attr =
                        if current && !slow { self.fs.attr_for(who, entry.node) } else { Err(stale()) };
                    let size = if current { 0 } else { NO_SIZE };
                    let attr =
                        attr.unwrap_or(Attr { ino: entry.node.ino(), mode: entry.format, size, ..EMPTY });
                    let ttl = lasting(&attr, attr.lasting && attr.lasting_name);
                    let full = reply.add(
                        INodeNo(attr.ino),
                        next,
                        OsStr::from_bytes(&entry.name),
                        &ttl,
                        &file_attr(&attr),
                        Generation(0),
                    );
                    if !full && !dots {
                        self.held.count(&self.fs.store, entry.node, 1);
                    }
                    full
                })
            });
            match listed {
                Ok(()) => reply.ok(),
                Err(e) => reply.error(errno(&e)),
            }
        });
    }

    fn releasedir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        if fh.0 != 0 {
            self.fs.close_handle(fh.0);
        }
        reply.ok();
    }

    fn fsyncdir(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        // Every change was durable before it was answered.
        reply.ok();
    }

    fn statfs(&self, req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        // This may count what the trash holds, which is slow.
        let answer = |result| match result {
            Ok((total, free, files)) => {
                reply.statfs(
                    total / 4096,
                    free / 4096,
                    free / 4096,
                    files + (1 << 28),
                    1 << 28,
                    4096,
                    255,
                    4096,
                );
            }
            Err(e) => reply.error(errno(&e)),
        };
        let who = caller(req);
        self.fs.offload(Box::new(answer), move |fs| {
            fs.trees_before_umount(who);
            dot_imgfs::space(fs)
        });
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        _flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        guarded("setxattr", || {
            answer_empty(
                reply,
                node(ino).and_then(|id| self.fs.setxattr(caller(req), id, name.as_bytes(), value)),
            );
        });
    }

    fn getxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.count();
        guarded("getxattr", || {
            answer_xattr(
                reply,
                size,
                node(ino).and_then(|id| self.fs.getxattr(caller(req), id, name.as_bytes())),
            )
        });
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        guarded("listxattr", || {
            answer_xattr(reply, size, node(ino).and_then(|id| self.fs.listxattr(caller(req), id)))
        });
    }

    fn removexattr(&self, req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        guarded("removexattr", || {
            answer_empty(
                reply,
                node(ino).and_then(|id| self.fs.removexattr(caller(req), id, name.as_bytes())),
            );
        });
    }

    fn access(&self, _req: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        // ENOSYS holds for the whole mount: the kernel checks permissions, or all files are the user's own.
        reply.error(Errno::ENOSYS);
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let (who, name, adapter) = (caller(req), name.as_bytes().to_vec(), self.clone());
        let make = move |fs: &ImageFs| {
            fs.retry_while_busy(|| fs.create(who, node(parent)?, &name, mode & !umask)).map_err(|e| {
                node(parent).iter().for_each(|parent| shells::note_refused_in(fs, who, *parent));
                fs.refuse(who, "create", &name, e)
            })
        };
        let answer = move |made: Result<(NodeId, u64)>| match made
            .and_then(|(id, fh)| Ok((adapter.entry(who, id)?, fh)))
        {
            // With cached writes the kernel would send a getxattr for each write.
            Ok((attr, fh)) => {
                let flags = FopenFlags::FOPEN_DIRECT_IO;
                reply.created(&Duration::ZERO, &file_attr(&attr), Generation(0), FileHandle(fh), flags);
            }
            Err(e) => reply.error(errno(&e)),
        };
        self.fs.offload(Box::new(answer), move |fs| make(fs));
    }

    fn ioctl(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        cmd: u32,
        in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        guarded("ioctl", || {
            let Some(id) = NodeId::from_ino(ino.0) else { return reply.error(Errno::ENOTTY) };
            let first = in_data.first_chunk().map(|word| u32::from_ne_bytes(*word));
            // The kernel reads the long form before it sets the short one.
            let answer = match (cmd, first) {
                (GETFLAGS, _) => self
                    .fs
                    .is_immutable(id)
                    .map(|on| on.map(|on| flag(on, FS_IMMUTABLE).to_ne_bytes().to_vec())),
                (FSGETXATTR, _) => self.fs.is_immutable(id).map(|on| {
                    let mut fsxattr = flag(on?, XFLAG_IMMUTABLE).to_ne_bytes().to_vec();
                    fsxattr.resize(FSXATTR_LEN, 0);
                    Some(fsxattr)
                }),
                (SETFLAGS, Some(flags)) => {
                    self.fs.set_flags(caller(req), id, flags, FS_IMMUTABLE).map(|()| Some(Vec::new()))
                }
                (FSSETXATTR, Some(flags)) => {
                    self.fs.set_flags(caller(req), id, flags, XFLAG_IMMUTABLE).map(|()| Some(Vec::new()))
                }
                // Other calls are for terminals or tapes.
                _ => Ok(None),
            };
            match answer {
                Ok(Some(data)) => reply.ioctl(0, &data),
                Ok(None) => reply.error(Errno::ENOTTY),
                Err(e) => reply.error(errno(&e)),
            }
        });
    }

    fn fallocate(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _offset: u64,
        _length: u64,
        _mode: i32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EOPNOTSUPP);
    }

    fn lseek(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        guarded("lseek", || {
            let data = match whence {
                libc::SEEK_DATA => true,
                libc::SEEK_HOLE => false,
                _ => return reply.error(Errno::EINVAL),
            };
            let Ok(offset) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
            match node(ino).and_then(|id| self.fs.seek(id, fh.0, offset, data)) {
                Ok(Some(found)) => reply.offset(i64::try_from(found).unwrap_or(i64::MAX)),
                Ok(None) => reply.error(Errno::ENXIO),
                Err(e) => reply.error(errno(&e)),
            }
        });
    }

    #[rustfmt::skip]
    fn copy_file_range(&self, _req: &Request, _ino_in: INodeNo, _fh_in: FileHandle, _offset_in: u64, _ino_out: INodeNo,
        _fh_out: FileHandle, _offset_out: u64, _len: u64, _flags: fuser::CopyFileRangeFlags, reply: ReplyWrite) {
        // cp then reads and writes, and imgfs checks an upload by its writes.
        reply.error(Errno::EOPNOTSUPP);
    }
}
