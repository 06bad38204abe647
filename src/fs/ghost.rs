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
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::base::process::born;
use crate::error::{Error, Result};

/// A walker that was last heard of longer ago has ended, or does something else now.
const FORGET: Duration = Duration::from_secs(60);
/// Numbers of threads do not come round in less.
const SAME: Duration = Duration::from_secs(1);
/// A refused walker must not find directories closed when it looks again later.
const CLOSED: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Object {
    Image(u32),
    Version(u32),
}

#[derive(Clone, Debug)]
struct Walk {
    object: Object,
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
    pub fn note(&self, pid: u32, object: Object, parent: u64, name: &[u8], refused: Option<i32>) {
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
    pub fn has_deleted(&self, pid: u32, object: Object) -> bool {
        self.touch(pid, |w| w.object == object && w.refused.is_none()).is_some()
    }

    /// The errno that this process was refused the object's deletion with, a moment ago.
    pub fn was_refused(&self, pid: u32, object: Object) -> Option<i32> {
        let mut all = self.0.lock();
        let walk = walks_of(&mut all, pid)?.iter_mut().find(|w| w.object == object)?;
        if walk.last.elapsed() > CLOSED {
            return None;
        }
        walk.last = Instant::now();
        walk.refused
    }

    /// The deleted object that this process still knows under a name.
    pub fn ghost_named(&self, pid: u32, parent: u64, name: &[u8]) -> Option<Object> {
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

    fn touch(&self, pid: u32, is: impl Fn(&Walk) -> bool) -> Option<Object> {
        if pid == 0 {
            return None;
        }
        let mut all = self.0.lock();
        let walk = walks_of(&mut all, pid)?.iter_mut().find(|w| is(w) && w.last.elapsed() < FORGET)?;
        walk.last = Instant::now();
        Some(walk.object)
    }
}

/// Refuses a part of what this walker was just refused as a whole.
pub(super) fn refuse_walk(errno: Option<i32>) -> Result<()> {
    errno.map_or(Ok(()), |errno| {
        Err(Error::Again { errno, sentence: "it is a part of what may not be deleted".into() })
    })
}
