//! rm -r: what a walker sees of what it has just deleted.
//!
//! `rm -r web/1` lists, then removes leaf after leaf. The first leaf is `.id`, and removing it is the
//! deletion, at once and whole. What the walker still does there must succeed: for its process the
//! directories are empty, the names resolve until it removes them, and every removal is answered with
//! success. Everybody else sees the version gone; who has a file or directory of it open goes on.
//!
//! If the deletion is refused, the walker finds every directory below closed, so that it complains a few
//! times and not once for each of 30,000 files.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::base::process::born;
use crate::error::{Error, Result};
use crate::fs::names::not_found;
use crate::fs::node::{ImagePart, NodeId, VersionPart};
use crate::fs::{Caller, Handle, ImageFs};

/// A walker that was last heard of longer ago has ended, or does something else now.
const FORGET: Duration = Duration::from_secs(60);
/// Numbers of threads do not come round in less.
const SAME: Duration = Duration::from_secs(1);
/// A refused walker must not find directories closed when it looks again later.
const CLOSED: Duration = Duration::from_secs(1);
/// How long it is remembered who was sent back from a deleted directory, and may stand in it.
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
    /// When it was started, in the clock of /proc: its number may be another's later.
    born: Option<u64>,
    seen: Instant,
    walks: Vec<Walk>,
}

/// Threads that remove something recursively, by number.
#[derive(Default)]
pub struct Walkers(Mutex<HashMap<u32, Walker>>);

/// The walks of a thread, if it is still the same.
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
    /// Notes that a process has deleted an object by its `.id`, or was refused.
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

    /// The errno that this process was refused the object's deletion with, a moment ago.
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

    /// The walker has removed the name itself: the walk is over.
    pub fn end(&self, pid: u32, parent: u64, name: &[u8]) {
        if let Some(walks) = walks_of(&mut self.0.lock(), pid) {
            walks.retain(|w| !(w.parent == parent && w.name == name));
        }
    }

    /// The walker removes a name of this directory that is not its to remove: its walks here are over. False
    /// if it has none.
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
    let image = fs.store.catalog.read().versions.get(&version).map(|version| version.image);
    fs.walkers.has_deleted(caller.pid, Deleted::Version(version))
        || image.is_some_and(|image| fs.walkers.has_deleted(caller.pid, Deleted::Image(image)))
}

/// A name that is gone for all but the process that deleted what was there, or that moved something to it.
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

/// Refuses a walker that was refused the deletion of a directory, or of what that lies in, a moment ago.
///
/// # Errors
///
/// `Again`.
pub(in crate::fs) fn refuse_refused(fs: &ImageFs, caller: Caller, node: NodeId) -> Result<()> {
    let image_of = |serial| fs.store.catalog.read().versions.get(&serial).map(|version| version.image);
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

/// True if `node` is deleted and the caller probably used a stale cached name: the kernel then walks the path
/// again (ESTALE). False the second time, because the caller then stands in the directory, and for names in
/// it, which the kernel would take to be gone.
pub(in crate::fs) fn is_outlived(fs: &ImageFs, caller: Caller, node: NodeId) -> bool {
    let is_deleter = match node {
        NodeId::Image { serial, .. } => fs.walkers.has_deleted(caller.pid, Deleted::Image(serial)),
        NodeId::Version { serial, .. } => caller_has_deleted(fs, caller, serial),
        _ => return false,
    };
    if !fs.is_dead(node) || is_deleter {
        return false;
    }
    // fstat comes to it by no name.
    let is_open = |handle: &Arc<Handle>| matches!(&**handle, Handle::Directory(open, _) if *open == node);
    if fs.handles.read().values().any(is_open) || fs.shown_open(node).is_some() {
        return false;
    }
    fs.sent_back.note(caller.pid, node)
}

/// Who was sent back from a directory that was deleted: process, inode, when.
#[derive(Default)]
pub(in crate::fs) struct SentFromDeleted(Mutex<Vec<(u32, u64, Instant)>>);

impl SentFromDeleted {
    /// Notes that a process is sent back. False if it was a moment ago, and may stand in the directory.
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
