//! Journey 2, cat, without a message: each `rootfs/` a mount of its own (option `trees=mounted`, root).
//!
//! The kernel can be told, for a whole connection, that nothing ever needs to be opened. On the connection of the
//! mount that would also hide when an upload is closed. So a second one serves the trees alone, read-only, from
//! `STORE/mounted`, and each tree is mounted from there over the `rootfs` that it is, when it is first looked up:
//!
//! ```text
//! lookup web/3/rootfs --> not there: "again", and the thread mounts it
//! the kernel walks the path again --> web, 3 and rootfs wait until that is done, and the walk goes into the mount
//! ```
//!
//! What cannot be mounted, or not in time, is read through the first connection: slower, never wrong.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree};

use crate::error::{Error, Result};
use crate::flags::Flags;
use crate::fs::mount;
use crate::fs::node::{NodeId, VersionPart};
use crate::fs::start_thread;
use crate::store::Store;
use crate::tree::ROOT;

/// Trees mounted at a time: for one more, the one that was looked up longest ago goes.
const MANY: usize = 256;
/// How long a lookup waits for a mount.
const PATIENCE: Duration = Duration::from_millis(200);
/// How long what could not be mounted is read without.
const REFUSED: Duration = Duration::from_secs(5);
/// How long a mount is believed to be there: a name that the kernel is told to forget takes it away.
const SEEN: Duration = Duration::from_secs(2);
/// How long the name of a mounted tree holds. Elsewhere it is asked for each time, because a walker that deletes the
/// version must not take the directory that somebody stands in; who stands in a mount is safe from that.
pub const NAMED: Duration = Duration::from_secs(1);

/// What a lookup is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Go,
    /// It is mounted over; the name holds for `NAMED`.
    Into,
    /// Have the kernel walk the path once more.
    Again,
    /// Wait for the mount of this version's tree.
    Wait(u32),
}

enum State {
    Mounting,
    /// When it was last looked up, and last mounted or seen to be.
    Mounted {
        used: Instant,
        seen: Instant,
    },
    Unmounting,
    /// When it could not be mounted.
    Refused(Instant),
}

impl State {
    fn mounted() -> State {
        let now = Instant::now();
        State::Mounted { used: now, seen: now }
    }
}

/// The trees that are mounts of their own.
pub struct Trees {
    store: Arc<Store>,
    /// The mount whose `rootfs` directories are mounted over.
    point: PathBuf,
    /// Of the second connection's mount: its directories are the trees, by the serials of their versions.
    root: OwnedFd,
    /// The thread that mounts: its own lookups go through.
    thread: AtomicU32,
    wanted: mpsc::Sender<u32>,
    all: Mutex<HashMap<u32, State>>,
    settled: Condvar,
}

/// Mounts the second connection in the store. Its descriptor is to be served before `Trees::open`.
///
/// Errors: as `mount::mount`.
pub fn prepare(store: &Path, flags: &Flags) -> Result<(PathBuf, OwnedFd)> {
    let place = place(store);
    fs::create_dir_all(&place).map_err(Error::io("make", &place))?;
    let fd = mount::mount(&place, store, &flags.read_only())?;
    Ok((place, fd))
}

/// Takes the second connection's mount away: at the end, and if a dead daemon has left one.
///
/// Errors: `Io`.
pub fn clear(store: &Path) -> Result<()> {
    let place = place(store);
    while mount::mounted_on(&place).is_some() {
        mount::unmount(&place, true)?;
    }
    Ok(())
}

fn place(store: &Path) -> PathBuf {
    store.join("mounted")
}

impl Trees {
    /// Starts the thread that mounts.
    ///
    /// Errors: `Io`.
    pub fn open(store: &Arc<Store>, point: &Path, place: &Path) -> Result<Arc<Trees>> {
        let root = rustix::fs::open(place, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let root = root.map_err(|e| Error::io("open", place)(e.into()))?;
        if let Some(mounted) = mount::mounted_on(place) {
            mount::raise_readahead(&mounted);
        }
        let (wanted, queue) = mpsc::channel();
        let trees = Arc::new(Trees {
            store: store.clone(),
            point: point.to_owned(),
            root,
            // 0 is everybody in another process namespace.
            thread: AtomicU32::new(u32::MAX),
            wanted,
            all: Mutex::default(),
            settled: Condvar::new(),
        });
        let weak = Arc::downgrade(&trees);
        let work = move || {
            for serial in queue {
                let Some(trees) = weak.upgrade() else { return };
                trees.thread.store(rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned(), Ordering::Release);
                if matches!(trees.all.lock().get(&serial), Some(State::Mounted { .. })) {
                    trees.look_again(serial);
                    continue;
                }
                trees.make_room();
                let state = match trees.mount(serial) {
                    Ok(()) => State::mounted(),
                    Err(e) => {
                        log::warn!("a tree is read without a mount of its own: {e}");
                        State::Refused(Instant::now())
                    }
                };
                trees.all.lock().insert(serial, state);
                trees.settled.notify_all();
            }
        };
        start_thread("trees", "trees", work)?;
        Ok(trees)
    }

    /// A lookup has found `node`; `thread` made it.
    pub fn on_the_way(&self, node: NodeId, thread: u32) -> Step {
        let (serial, is_tree) = match node {
            NodeId::Tree { serial, index: ROOT } => (serial, true),
            NodeId::Version { serial, part: VersionPart::Dir, .. } => (serial, false),
            _ => return Step::Go,
        };
        if thread == self.thread.load(Ordering::Acquire) {
            return Step::Go;
        }
        let mut all = self.all.lock();
        // Its name may have led elsewhere at that moment.
        if matches!(all.get(&serial), Some(State::Refused(at)) if at.elapsed() > REFUSED) {
            all.remove(&serial);
        }
        match all.get_mut(&serial) {
            Some(State::Mounting) => Step::Wait(serial),
            Some(State::Mounted { used, seen }) => {
                *used = Instant::now();
                if is_tree && seen.elapsed() > SEEN {
                    *seen = *used;
                    let _ = self.wanted.send(serial);
                }
                if is_tree { Step::Into } else { Step::Go }
            }
            Some(State::Unmounting | State::Refused(_)) => Step::Go,
            None if !is_tree || !self.is_live(serial) => Step::Go,
            None => {
                if self.wanted.send(serial).is_err() {
                    return Step::Go;
                }
                all.insert(serial, State::Mounting);
                Step::Again
            }
        }
    }

    /// Waits until the tree is mounted, or for a while.
    pub fn wait(&self, serial: u32) {
        let deadline = Instant::now() + PATIENCE;
        let mut all = self.all.lock();
        while matches!(all.get(&serial), Some(State::Mounting)) {
            if self.settled.wait_until(&mut all, deadline).timed_out() {
                return;
            }
        }
    }

    fn is_live(&self, serial: u32) -> bool {
        let model = self.store.catalog.read();
        model.versions.get(&serial).is_some_and(|version| model.is_live(version))
    }

    /// Where the version's `rootfs` is now.
    fn path_of(&self, serial: u32) -> PathBuf {
        self.point.join(self.store.path_of(&self.store.catalog.read(), serial)).join("rootfs")
    }

    fn mount(&self, serial: u32) -> Result<()> {
        let path = self.path_of(serial);
        let failed = |e: rustix::io::Errno| Error::io("mount", &path)(e.into());
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let target = File::from(rustix::fs::open(&path, flags, Mode::empty()).map_err(failed)?);
        // The name may lead elsewhere by now, or into a mount that is there already.
        let found = target.metadata().map_err(Error::io("stat", &path))?;
        let own = fs::metadata(&self.point).map_err(Error::io("stat", &self.point))?;
        if (found.dev(), found.ino()) != (own.dev(), NodeId::Tree { serial, index: ROOT }.ino()) {
            return Err(Error::NotFound { what: path.display().to_string() });
        }
        let tree = open_tree(
            &self.root,
            serial.to_string(),
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_NO_AUTOMOUNT,
        );
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        move_mount(tree.map_err(failed)?, "", &target, "", flags).map_err(failed)
    }

    /// Mounts a tree again that has lost its mount.
    fn look_again(&self, serial: u32) {
        // Over one that is there it refuses.
        if self.mount(serial).is_ok() && !matches!(self.all.lock().get(&serial), Some(State::Mounted { .. })) {
            // It is being deleted.
            let _ = rustix::mount::unmount(self.path_of(serial), UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        }
    }

    /// Takes mounts away, whoever is in them: before what they show is deleted.
    pub fn detach(&self, serials: impl IntoIterator<Item = u32>) {
        for serial in serials {
            self.wait(serial);
            self.unmount(serial, UnmountFlags::DETACH);
        }
    }

    /// Whether the tree is mounted, and somebody is in it. If nobody is, it is mounted no more.
    pub fn is_in_use(&self, serial: u32) -> bool {
        let is_mounted = matches!(self.all.lock().get(&serial), Some(State::Mounted { .. }));
        is_mounted && !self.unmount(serial, UnmountFlags::empty())
    }

    /// Takes mounts away that are not in use, if there are too many.
    fn make_room(&self) {
        let mut mounted: Vec<_> = {
            let all = self.all.lock();
            all.iter()
                .filter_map(|(serial, state)| if let State::Mounted { used, .. } = state { Some((*used, *serial)) } else { None })
                .collect()
        };
        mounted.sort_unstable();
        let mut left = mounted.len();
        for (_, serial) in mounted {
            if left < MANY {
                return;
            }
            left -= usize::from(self.unmount(serial, UnmountFlags::empty()));
        }
    }

    /// Whether it was mounted, and is no longer.
    fn unmount(&self, serial: u32, flags: UnmountFlags) -> bool {
        {
            let mut all = self.all.lock();
            match all.get(&serial) {
                Some(State::Mounted { .. }) => drop(all.insert(serial, State::Unmounting)),
                _ => return false,
            }
        }
        let unmounted = rustix::mount::unmount(self.path_of(serial), flags | UnmountFlags::NOFOLLOW);
        let mut all = self.all.lock();
        match unmounted {
            Err(rustix::io::Errno::BUSY) => {
                all.insert(serial, State::mounted());
                false
            }
            // Also if somebody else has unmounted it: the next lookup mounts it again.
            _ => all.remove(&serial).is_some(),
        }
    }
}
