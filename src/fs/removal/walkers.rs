//! rm -r: what a walker sees of what it has just deleted.
//!
//! `rm -r web/1` lists, then removes leaf after leaf. The first leaf is `.id`; removing it deletes the
//! version at once, as a whole. Whatever the walker does there afterwards must succeed. For its process
//! the directories are empty, the names resolve until it removes them, and every removal succeeds.
//! Everybody else sees that the version is gone. A process that has a file or directory of it open can
//! go on.
//!
//! If the deletion is refused, the walker may not open any directory below. So it complains a few
//! times, and not once for each of 30,000 files.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::base::process::born;
use crate::error::{Error, Result};
use crate::fs::names::not_found;
use crate::fs::node::{ImagePart, NodeId, VersionPart};
use crate::fs::{Caller, Handle, ImageFs};

/// A walker that has been silent for longer has ended, or does something else now.
const FORGET: Duration = Duration::from_secs(60);
/// The kernel does not reuse the number of a thread in less time.
const SAME: Duration = Duration::from_secs(1);
/// A refused walker that looks again later must be able to open directories.
const CLOSED: Duration = Duration::from_secs(1);
/// How long imgfs remembers who was sent back from a deleted directory, and may stand in it.
const STANDING: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deleted {
    Image(u32),
    Version(u32),
}

#[derive(Clone, Debug)]
struct Walk {
    object: Deleted,
    /// The directory it was in, and its name there.
    parent: u64,
    name: Vec<u8>,
    /// The errno of a refused deletion.
    refused: Option<i32>,
    last: Instant,
}

/// A thread that removes something recursively.
struct Walker {
    /// When it started, by the clock of /proc. Another thread may have its number later.
    born: Option<u64>,
    seen: Instant,
    walks: Vec<Walk>,
}

/// Threads that remove something recursively, by number.
#[derive(Default)]
pub struct Walkers(Mutex<HashMap<u32, Walker>>);

/// The walks of a thread, if the number still belongs to the same thread.
fn walks_of(all: &mut HashMap<u32, Walker>, pid: u32) -> Option<&mut Vec<Walk>> {
    let quiet = all.get(&pid)?.seen.elapsed();
    if quiet > SAME && all.get(&pid)?.born != born(pid) {
        all.remove(&pid);
    }
    let walker = all.get_mut(&pid)?;
    walker.seen = Instant::now();
    Some(&mut walker.walks)
}

impl Walkers {
    /// Notes that a process has deleted an object by its `.id`, or was refused that.
    pub fn note(&self, pid: u32, object: Deleted, parent: u64, name: &[u8], refused: Option<i32>) {
        if pid == 0 {
            return;
        }
        let mut all = self.0.lock();
        all.retain(|_, walker| walker.walks.iter().any(|w| w.last.elapsed() < FORGET));
        if walks_of(&mut all, pid).is_none() {
            all.insert(pid, Walker { born: born(pid), seen: Instant::now(), walks: Vec::new() });
        }
        let Some(walks) = walks_of(&mut all, pid) else { return };
        walks.retain(|w| w.object != object && w.last.elapsed() < FORGET);
        walks.push(Walk { object, parent, name: name.to_vec(), refused, last: Instant::now() });
    }

    /// Whether this process has deleted the object.
    pub fn has_deleted(&self, pid: u32, object: Deleted) -> bool {
        self.touch(pid, |w| w.object == object && w.refused.is_none()).is_some()
    }

    /// The errno with which this process was just refused the deletion of the object.
    pub fn was_refused(&self, pid: u32, object: Deleted) -> Option<i32> {
        let mut all = self.0.lock();
        let walk = walks_of(&mut all, pid)?.iter_mut().find(|w| w.object == object)?;
        if walk.last.elapsed() > CLOSED {
            return None;
        }
        walk.last = Instant::now();
        walk.refused
    }

    /// The deleted object that this process still knows under a name.
    pub fn ghost_named(&self, pid: u32, parent: u64, name: &[u8]) -> Option<Deleted> {
        self.touch(pid, |w| w.refused.is_none() && w.parent == parent && w.name == name)
    }

    /// Ends a walk, because the walker has removed the name itself.
    pub fn end(&self, pid: u32, parent: u64, name: &[u8]) {
        if let Some(walks) = walks_of(&mut self.0.lock(), pid) {
            walks.retain(|w| !(w.parent == parent && w.name == name));
        }
    }

    /// Ends the walks in this directory, because the walker removes a name that now belongs to something
    /// else. False if it has no walks here.
    pub fn end_all(&self, pid: u32, parent: u64) -> bool {
        let mut all = self.0.lock();
        let Some(walks) = walks_of(&mut all, pid) else { return false };
        let is = |w: &Walk| w.parent == parent && w.refused.is_none() && w.last.elapsed() < FORGET;
        walks.extract_if(.., |w| is(w)).count() > 0
    }

    fn touch(&self, pid: u32, is: impl Fn(&Walk) -> bool) -> Option<Deleted> {
        if pid == 0 {
            return None;
        }
        let mut all = self.0.lock();
        let walk = walks_of(&mut all, pid)?.iter_mut().find(|w| is(w) && w.last.elapsed() < FORGET)?;
        walk.last = Instant::now();
        Some(walk.object)
    }
}

/// Whether this process has deleted the version, or its image.
pub(in crate::fs) fn caller_has_deleted(fs: &ImageFs, caller: Caller, version: u32) -> bool {
    let image = fs.store.catalog.read().image_of(version);
    fs.walkers.has_deleted(caller.pid, Deleted::Version(version))
        || image.is_some_and(|image| fs.walkers.has_deleted(caller.pid, Deleted::Image(image)))
}

/// Resolves a name that is gone for all processes, except for the one that deleted what was there, or
/// moved something to it.
///
/// # Errors
///
/// `NotFound` for all others.
pub(in crate::fs) fn find_leftover(
    fs: &ImageFs,
    caller: Caller,
    parent: NodeId,
    name: &[u8],
) -> Result<NodeId> {
    if let Some(moved) = fs.moved.find(caller.pid, parent, name) {
        return Ok(moved);
    }
    // The walker knows the directory by its incarnation before the deletion.
    let before = |serial| fs.incarnation(serial).wrapping_sub(1);
    match fs.walkers.ghost_named(caller.pid, parent.ino(), name) {
        Some(Deleted::Image(serial)) => {
            Ok(NodeId::Image { serial, part: ImagePart::Dir, incarnation: before(serial) })
        }
        Some(Deleted::Version(serial)) => {
            Ok(NodeId::Version { serial, part: VersionPart::Dir, incarnation: before(serial) })
        }
        None => {
            fs.missed.note(caller.pid, parent, name);
            Err(not_found(name))
        }
    }
}

/// Refuses a walker that was just refused the deletion of this directory, or of a directory above it.
///
/// # Errors
///
/// `Again`.
pub(in crate::fs) fn refuse_refused(fs: &ImageFs, caller: Caller, node: NodeId) -> Result<()> {
    let image_of = |serial| fs.store.catalog.read().image_of(serial);
    let (version, image) = match node {
        NodeId::Image { serial, .. } => (None, Some(serial)),
        NodeId::Version { serial, .. } | NodeId::Tree { serial, .. } => (Some(serial), image_of(serial)),
        NodeId::Staging(_) => match node.place().parent(fs, node) {
            NodeId::Image { serial, .. } => (None, Some(serial)),
            _ => (None, None),
        },
        _ => (None, None),
    };
    let objects = version.map(Deleted::Version).into_iter().chain(image.map(Deleted::Image));
    let refused = |object| fs.walkers.was_refused(caller.pid, object);
    refuse_walk(objects.into_iter().find_map(refused))
}

/// True if `node` is deleted and the caller probably used a stale cached name: the kernel then walks
/// the path again (ESTALE). False the second time, because the caller then stands in the directory.
/// Also false for names in the directory, because the kernel would take them to be gone.
pub(in crate::fs) fn is_outlived(fs: &ImageFs, caller: Caller, node: NodeId) -> bool {
    let is_deleter = match node {
        NodeId::Image { serial, .. } => fs.walkers.has_deleted(caller.pid, Deleted::Image(serial)),
        NodeId::Version { serial, .. } => caller_has_deleted(fs, caller, serial),
        _ => return false,
    };
    if !fs.is_dead(node) || is_deleter {
        return false;
    }
    // fstat reaches the node without a name.
    let is_open = |handle: &Arc<Handle>| matches!(&**handle, Handle::Directory(open, _) if *open == node);
    if fs.handles.read().values().any(is_open) || fs.shown_open(node).is_some() {
        return false;
    }
    fs.sent_back.note(caller.pid, node)
}

/// Processes that were sent back from a deleted directory: process, inode, time.
#[derive(Default)]
pub(in crate::fs) struct SentFromDeleted(Mutex<Vec<(u32, u64, Instant)>>);

impl SentFromDeleted {
    /// Notes that a process is sent back. False if it was just sent back already, so it may stand in the
    /// directory.
    fn note(&self, pid: u32, node: NodeId) -> bool {
        let mut sent = self.0.lock();
        sent.retain(|(_, _, at)| at.elapsed() < STANDING);
        let again = sent.iter().any(|(by, ino, _)| (*by, *ino) == (pid, node.ino()));
        if !again {
            sent.push((pid, node.ino(), Instant::now()));
        }
        !again
    }
}

/// Refuses a part of what this walker was just refused as a whole.
pub(in crate::fs) fn refuse_walk(errno: Option<i32>) -> Result<()> {
    errno.map_or(Ok(()), |errno| {
        Err(Error::Again { errno, sentence: "it is a part of what may not be deleted".into() })
    })
}
