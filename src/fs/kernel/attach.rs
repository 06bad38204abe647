//! Journey 2, cat, without a message: each `rootfs/` is a mount of its own (option `trees=mounted`; the
//! default for root).
//!
//! A connection can tell the kernel that no file on it ever needs to be opened. On the connection of
//! the mount this would also hide when an upload is closed. So a second connection serves only the
//! trees, read-only, from a mount that no path leads to (hidden.rs). When a tree is first looked up, it
//! is mounted from there over its `rootfs`:
//!
//! ```text
//! lookup web/3/rootfs --> not there: "again", and the thread mounts it
//! the kernel walks the path again --> web/3 waits until that is done, and the walk goes into the mount
//! opendir web/3 --> the thread mounts it, the answer waits: who lists it looks up rootfs next, with no path to walk again
//! ```
//!
//! A lookup of a `rootfs` that the kernel does not know never waits. The mounting thread must look it
//! up too, and the kernel lets only one thread do that at a time. Such a walker (its working directory
//! is web/3) reads through the first connection, and so do all others for a while. A mount over a
//! directory that somebody walks would change its device during the walk. A tree that cannot be mounted
//! in time is read in the same way: slower, but never wrong.
//!
//! A tree that nobody has looked up for a while, and that nobody is in, is unmounted. So umount(2) of
//! the mount finds nothing mounted below it.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, UnmountFlags, move_mount};

use crate::base::flags::Flags;
use crate::error::{Error, Result};
use crate::fs::kernel::hidden::Hidden;
use crate::fs::kernel::mount;
use crate::fs::kernel::sent_back::SentToMount;
use crate::fs::mounts::Mounts;
use crate::fs::node::{NodeId, VersionPart};
use crate::fs::{start_thread, within};
use crate::store::Store;
use crate::tree::ROOT;

/// How many trees are mounted at a time. To mount one more, the one that was looked up longest ago is
/// unmounted.
const MANY: usize = 256;
/// How long a lookup waits for a mount.
const PATIENCE: Duration = Duration::from_millis(200);
/// How long the mounting thread needs to go on after it got an answer.
const NEAR: Duration = Duration::from_micros(200);
/// How long a tree that could not be mounted is read without a mount.
const REFUSED: Duration = Duration::from_secs(5);
/// How long a tree gets no mount because somebody may walk it without one.
const WALKED: Duration = Duration::from_secs(60);
/// How long imgfs believes that a mount is still there. Somebody may have unmounted it.
const SEEN: Duration = Duration::from_secs(2);
/// How long a tree stays mounted that nobody looks up, and how often imgfs checks that.
const IDLE: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_secs(1);
/// How long the kernel may cache the name of a mounted tree. The name of any other tree is asked for
/// each time: a walker that deletes the version must not take the directory that somebody stands in. A
/// mount protects the processes that stand in it from that.
pub const NAMED: Duration = Duration::from_secs(1);

/// What a lookup has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Go,
    /// The tree is mounted here. The name holds for `NAMED`.
    Into,
    /// Make the kernel walk the path once more.
    Again,
    /// Make the kernel walk the path once more, after the mounting thread has started on the way to this
    /// version's tree.
    AgainSoon(u32),
    /// Wait for the mount of this version's tree.
    Wait(u32),
}

/// ```text
/// none --wanted--> Wanted --found--> Moving --> Mounted --idle, deleted--> Unmounting --> none
///                    |  `--walked without, or not to be had--> Refused --in time--> none
///                    `--deleted--> none
/// ```
enum State {
    /// The thread has to find the directory, and may be near. These threads were told to look again.
    Wanted { again: Vec<u32>, near: bool },
    /// The thread has found the directory.
    Moving,
    /// When it was last looked up, and when it was last mounted or seen mounted.
    Mounted { used: Instant, seen: Instant },
    /// The thread that unmounts it.
    Unmounting(u32),
    /// Until when it is refused.
    Refused(Instant),
}

impl State {
    fn mounted() -> State {
        let now = Instant::now();
        State::Mounted { used: now, seen: now }
    }

    fn refused(time: Duration) -> State {
        State::Refused(Instant::now() + time)
    }
}

/// The trees that have mounts of their own.
pub struct Trees {
    store: Arc<Store>,
    mounts: Arc<Mounts>,
    /// The mount whose `rootfs` directories are mounted over.
    point: PathBuf,
    /// The flags with which the mount began.
    flags: Flags,
    /// The second connection's mount. Its directories are the trees, by the serials of their versions.
    /// `None` once it is closed.
    hidden: Mutex<Option<Hidden>>,
    /// The thread that mounts. Its own lookups never wait.
    thread: AtomicU32,
    wanted: mpsc::Sender<u32>,
    all: Mutex<HashMap<u32, State>>,
    sent_back: SentToMount,
    settled: Condvar,
}

/// Unmounts what an older daemon has left mounted in the store when it was killed.
///
/// # Errors
///
/// `Io`.
pub fn clear(store: &Path) -> Result<()> {
    let place = store.join("mounted");
    while mount::mounted_on(&place).is_some() {
        mount::unmount(&place, true)?;
    }
    let _ = fs::remove_dir(place);
    Ok(())
}

fn this_thread() -> u32 {
    rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned()
}

impl Trees {
    /// Starts the thread that mounts.
    ///
    /// # Errors
    ///
    /// `Io`.
    pub fn open(
        store: &Arc<Store>,
        mounts: &Arc<Mounts>,
        point: &Path,
        hidden: Hidden,
        flags: &Flags,
    ) -> Result<Arc<Trees>> {
        let (wanted, queue) = mpsc::channel();
        let trees = Arc::new(Trees {
            store: store.clone(),
            mounts: mounts.clone(),
            point: point.to_owned(),
            flags: flags.clone(),
            hidden: Mutex::new(Some(hidden)),
            // 0 would match every process in another process namespace.
            thread: AtomicU32::new(u32::MAX),
            wanted,
            all: Mutex::default(),
            sent_back: SentToMount::default(),
            settled: Condvar::new(),
        });
        let weak = Arc::downgrade(&trees);
        let work = move || {
            let mut looked = Instant::now();
            loop {
                let next = queue.recv_timeout(LOOK);
                let Some(trees) = weak.upgrade() else { return };
                trees.thread.store(this_thread(), Ordering::Release);
                match next {
                    Ok(serial) => trees.work_on(serial),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                }
                if looked.elapsed() >= LOOK {
                    trees.let_idle_go();
                    looked = Instant::now();
                }
            }
        };
        start_thread("mounter", "mounts of trees", work)?;
        Ok(trees)
    }

    /// Stops mounting trees. The second connection ends when nobody is in a tree any more.
    pub fn close(&self) {
        self.hidden.lock().take();
    }

    /// Decides what to do with a lookup by `thread` that has found `node`. `known`: the kernel knows an
    /// inode of that version's tree.
    pub fn on_the_way(&self, node: NodeId, thread: u32, known: bool) -> Step {
        let (serial, is_tree) = match node {
            NodeId::Tree { serial, index: ROOT } => (serial, true),
            NodeId::Version { serial, part: VersionPart::Dir, .. } => (serial, false),
            _ => return Step::Go,
        };
        let sent_elsewhere = self.sent_back.comes(thread, serial) && is_tree;
        let mut all = self.all.lock();
        if thread == self.thread.load(Ordering::Acquire) {
            if let Some(State::Wanted { near, .. }) = all.get_mut(&serial) {
                *near = true;
                self.settled.notify_all();
            }
            return Step::Go;
        }
        if matches!(all.get(&serial), Some(State::Refused(until)) if *until < Instant::now()) {
            all.remove(&serial);
        }
        match all.get_mut(&serial) {
            Some(State::Wanted { again, .. }) if is_tree && !known => {
                if sent_elsewhere || again.contains(&thread) {
                    // The thread did not come through web/3, or gave up waiting there, or may not be sent
                    // back again.
                    all.insert(serial, State::refused(WALKED));
                    self.settled.notify_all();
                    return Step::Go;
                }
                again.push(thread);
                self.sent_back.note(thread, serial);
                Step::Again
            }
            Some(State::Wanted { .. } | State::Moving) => Step::Wait(serial),
            Some(State::Mounted { used, seen }) => {
                *used = Instant::now();
                if is_tree && seen.elapsed() > SEEN {
                    *seen = *used;
                    let _ = self.wanted.send(serial);
                }
                if is_tree { Step::Into } else { Step::Go }
            }
            Some(State::Unmounting(by)) if is_tree && *by != thread => Step::Wait(serial),
            Some(State::Unmounting(_) | State::Refused(_)) => Step::Go,
            None if !is_tree || !self.is_live(serial) => Step::Go,
            // The kernel only checks that the name is still right, so this blocks nobody else's lookup.
            None if known => {
                self.want(&mut all, serial, Vec::new());
                Step::Wait(serial)
            }
            None if sent_elsewhere => {
                all.insert(serial, State::refused(WALKED));
                Step::Go
            }
            None => {
                self.want(&mut all, serial, vec![thread]);
                self.sent_back.note(thread, serial);
                // With several mounts the kernel now forgets web/3 at once, and lets only one thread look it
                // up. The mounting thread has to be past that first.
                if self.mounts.are_several() { Step::AgainSoon(serial) } else { Step::Again }
            }
        }
    }

    /// A directory is about to be opened. Returns the version whose tree must be mounted before the answer.
    pub fn opened(&self, node: NodeId) -> Option<u32> {
        let NodeId::Version { serial, part: VersionPart::Dir, .. } = node else { return None };
        let mut all = self.all.lock();
        match all.get(&serial) {
            Some(State::Wanted { .. } | State::Moving) => Some(serial),
            Some(State::Refused(until)) if *until > Instant::now() => None,
            None | Some(State::Refused(_)) if self.is_live(serial) => {
                self.want(&mut all, serial, Vec::new());
                Some(serial)
            }
            _ => None,
        }
    }

    /// Waits until the mounting thread has found web/3, but at most for `PATIENCE`.
    pub fn wait_near(&self, serial: u32) {
        let deadline = Instant::now() + PATIENCE;
        let mut all = self.all.lock();
        while matches!(all.get(&serial), Some(State::Wanted { near: false, .. })) {
            if self.settled.wait_until(&mut all, deadline).timed_out() {
                return;
            }
        }
        drop(all);
        std::thread::sleep(NEAR);
    }

    fn want(&self, all: &mut HashMap<u32, State>, serial: u32, again: Vec<u32>) {
        // Sending cannot fail, because the thread lives as long as this value.
        let _ = self.wanted.send(serial);
        all.insert(serial, State::Wanted { again, near: false });
    }

    /// Waits until the tree is mounted, but at most for `PATIENCE`. A tree that was being unmounted is
    /// mounted again.
    pub fn settle(&self, serial: u32) {
        self.wait(serial, true);
    }

    fn wait(&self, serial: u32, anew: bool) {
        let deadline = Instant::now() + PATIENCE;
        let mut all = self.all.lock();
        let anew = anew && matches!(all.get(&serial), Some(State::Unmounting(_)));
        loop {
            match all.get(&serial) {
                Some(State::Wanted { .. } | State::Moving | State::Unmounting(_)) => {}
                None if anew && self.is_live(serial) => self.want(&mut all, serial, Vec::new()),
                _ => return,
            }
            if self.settled.wait_until(&mut all, deadline).timed_out() {
                // The waiting thread goes on without a mount.
                if matches!(all.get(&serial), Some(State::Wanted { .. })) {
                    all.insert(serial, State::refused(WALKED));
                }
                return;
            }
        }
    }

    fn is_live(&self, serial: u32) -> bool {
        let model = self.store.catalog.read();
        model.versions.get(&serial).is_some_and(|version| model.is_live(version))
    }

    /// The path of the version's `rootfs` now.
    fn path_of(&self, serial: u32) -> PathBuf {
        self.point.join(self.store.path_of(&self.store.catalog.read(), serial)).join("rootfs")
    }

    /// The work of the thread: mounts a tree, or checks that it is still mounted.
    fn work_on(&self, serial: u32) {
        if matches!(self.all.lock().get(&serial), Some(State::Mounted { .. })) {
            // The tree is not mounted again here, because umount may be looking it up. The next lookup mounts
            // it again.
            if self.bare(serial).is_ok() {
                let mut all = self.all.lock();
                if matches!(all.get(&serial), Some(State::Mounted { .. })) {
                    all.remove(&serial);
                }
            }
            return;
        }
        self.make_room();
        let mounted = self.mount(serial);
        let mut all = self.all.lock();
        match (all.get(&serial), mounted) {
            (Some(State::Moving), Ok(())) => drop(all.insert(serial, State::mounted())),
            (Some(State::Wanted { .. } | State::Moving), Err(e)) => {
                log::warn!("a tree is read without a mount of its own: {e}");
                all.insert(serial, State::refused(REFUSED));
            }
            // The tree was given up meanwhile.
            _ => {}
        }
        self.settled.notify_all();
    }

    /// Opens the `rootfs` directory itself.
    ///
    /// # Errors
    ///
    /// `NotFound` if it is mounted over, or the name leads elsewhere by now; `Io`.
    fn bare(&self, serial: u32) -> Result<File> {
        let path = self.path_of(serial);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let found =
            rustix::fs::open(&path, flags, Mode::empty()).map_err(|e| Error::io("mount", &path)(e.into()))?;
        let found = File::from(found);
        let meta = found.metadata().map_err(Error::io("stat", &path))?;
        let own = fs::metadata(&self.point).map_err(Error::io("stat", &self.point))?;
        if (meta.dev(), meta.ino()) == (own.dev(), NodeId::Tree { serial, index: ROOT }.ino()) {
            return Ok(found);
        }
        Err(Error::NotFound { what: path.display().to_string() })
    }

    /// Mounts the tree, if it is still wanted once its directory is found.
    fn mount(&self, serial: u32) -> Result<()> {
        let target = self.bare(serial)?;
        let failed = |e: Errno| Error::io("mount", &self.path_of(serial))(e.into());
        let tree = match &*self.hidden.lock() {
            Some(hidden) => hidden.tree(serial.to_string()).map_err(failed)?,
            None => return Err(Error::Stopping),
        };
        match self.all.lock().get_mut(&serial) {
            Some(state @ State::Wanted { .. }) => *state = State::Moving,
            _ => return Ok(()),
        }
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        move_mount(tree, "", &target, "", flags).map_err(failed)?;
        mount::follow(&self.point, &self.path_of(serial), &self.flags)
    }

    /// Unmounts trees before what they show is deleted, even if somebody is in them.
    ///
    /// It waits at most for `PATIENCE`. umount(2) walks the path, and may have to look up a directory that
    /// the deleting call has locked. In that case the mounts go once that call is answered.
    pub fn detach(self: &Arc<Self>, serials: &[u32]) {
        let used: Vec<u32> = {
            let mut all = self.all.lock();
            // The deleting call may keep the thread from finding the directory.
            all.retain(|serial, state| !(serials.contains(serial) && matches!(state, State::Wanted { .. })));
            self.settled.notify_all();
            serials.iter().copied().filter(|serial| all.contains_key(serial)).collect()
        };
        if used.is_empty() {
            return;
        }
        let trees = self.clone();
        let work = move || {
            for serial in used {
                trees.wait(serial, false);
                trees.unmount(serial, UnmountFlags::DETACH);
            }
        };
        within("detach", PATIENCE, work);
    }

    /// Whether the tree is mounted and somebody is in it. If nobody is in it, it is unmounted.
    pub fn is_in_use(&self, serial: u32) -> bool {
        let is_mounted = matches!(self.all.lock().get(&serial), Some(State::Mounted { .. }));
        is_mounted && !self.unmount(serial, UnmountFlags::empty())
    }

    /// The mounted trees, with the time when each was last looked up, oldest first.
    fn mounted(&self) -> Vec<(Instant, u32)> {
        let used = |(serial, state): (&u32, &State)| {
            if let State::Mounted { used, .. } = state { Some((*used, *serial)) } else { None }
        };
        let mut mounted: Vec<_> = self.all.lock().iter().filter_map(used).collect();
        mounted.sort_unstable();
        mounted
    }

    /// Unmounts trees that are not in use, if too many are mounted.
    fn make_room(&self) {
        let mounted = self.mounted();
        let mut left = mounted.len();
        for (_, serial) in mounted {
            if left < MANY {
                return;
            }
            left -= usize::from(self.unmount(serial, UnmountFlags::empty()));
        }
    }

    /// Unmounts all trees that nobody is in, because somebody is about to unmount the whole mount.
    pub fn let_go(&self) {
        for (_, serial) in self.mounted() {
            self.unmount(serial, UnmountFlags::empty());
        }
    }

    /// Unmounts trees that nobody has looked up for a while, and that nobody has used since the last check.
    fn let_idle_go(&self) {
        for (used, serial) in self.mounted() {
            if used.elapsed() < IDLE {
                return;
            }
            self.unmount(serial, UnmountFlags::EXPIRE);
        }
    }

    /// Unmounts a tree. True if it was mounted before, and is not any more.
    fn unmount(&self, serial: u32, flags: UnmountFlags) -> bool {
        let was = {
            let mut all = self.all.lock();
            match all.get_mut(&serial) {
                Some(state @ State::Mounted { .. }) => {
                    std::mem::replace(state, State::Unmounting(this_thread()))
                }
                _ => return false,
            }
        };
        let unmounted = rustix::mount::unmount(self.path_of(serial), flags | UnmountFlags::NOFOLLOW);
        let mut all = self.all.lock();
        let gone = match unmounted {
            // It is in use, or was used since the last check.
            Err(Errno::BUSY | Errno::AGAIN) => {
                all.insert(serial, if flags == UnmountFlags::EXPIRE { was } else { State::mounted() });
                false
            }
            // Somebody else may have unmounted it. The next lookup mounts it again.
            _ => all.remove(&serial).is_some(),
        };
        self.settled.notify_all();
        gone
    }
}
