//! mv MNT/.imgfs/trash/* MNT/, mv MNT/.a MNT/.b MNT/web/: names under which a mover still looks for
//! what it has moved.
//!
//! What comes back from the trash, or is published by a rename, shows under a name that imgfs chooses.
//! If GNU mv moves several things, it looks up each new name once more, and fails if the name is
//! missing. So the name that it gave leads to what it moved, for its process and for a while.
//!
//! Two other answers are remembered in the same way. A process that was told that a name is free, and
//! is about to create it, gets the same answer until it does. And a refused mv, which asks twice, gets
//! the same refusal twice.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::fs::node::NodeId;

/// How long a mover may still look up the name.
const LOOKS: Duration = Duration::from_secs(60);
/// How long a process that was told that there is no such name may take to create it.
const CREATES: Duration = Duration::from_secs(2);
/// How long a refusal of a rename is repeated without a second look.
const REPEATED: Duration = Duration::from_secs(1);

/// Facts about processes that are remembered for a while, newest last.
pub(in crate::fs) struct Recent<K, V> {
    all: Mutex<VecDeque<(Instant, K, V)>>,
    lasts: Duration,
    most: usize,
}

impl<K, V: Copy> Recent<K, V> {
    pub(in crate::fs) fn new(lasts: Duration, most: usize) -> Recent<K, V> {
        Recent { all: Mutex::default(), lasts, most }
    }

    pub(in crate::fs) fn note(&self, key: K, value: V) {
        let mut all = self.all.lock();
        while all.len() >= self.most || all.front().is_some_and(|(at, ..)| at.elapsed() >= self.lasts) {
            all.pop_front();
        }
        all.push_back((Instant::now(), key, value));
    }

    /// The newest value whose key matches.
    pub(in crate::fs) fn find(&self, is: impl Fn(&K) -> bool) -> Option<V> {
        let all = self.all.lock();
        all.iter().rev().find(|(at, key, _)| is(key) && at.elapsed() < self.lasts).map(|(.., value)| *value)
    }

    pub(in crate::fs) fn forget(&self, is: impl Fn(&K) -> bool) {
        self.all.lock().retain(|(_, key, _)| !is(key));
    }
}

/// A process, the directory of a name, and the name that the process gave or looked for.
type Name = (u32, u64, Vec<u8>);

fn is_name(key: &Name, pid: u32, parent: NodeId, name: &[u8]) -> bool {
    (key.0, key.1) == (pid, parent.ino()) && key.2 == name
}

/// Names that processes have just looked up and not found.
pub(in crate::fs) struct MissedNames(Recent<Name, ()>);

impl Default for MissedNames {
    fn default() -> MissedNames {
        MissedNames(Recent::new(CREATES, 256))
    }
}

impl MissedNames {
    pub(in crate::fs) fn note(&self, pid: u32, parent: NodeId, name: &[u8]) {
        self.0.note((pid, parent.ino(), name.to_vec()), ());
    }

    /// Whether this process was told a moment ago that there is no such name.
    pub(in crate::fs) fn was_told(&self, pid: u32, parent: NodeId, name: &[u8]) -> bool {
        self.0.find(|key| is_name(key, pid, parent, name)).is_some()
    }
}

/// The names that movers have given.
pub(in crate::fs) struct MovedNames(Recent<Name, NodeId>);

impl Default for MovedNames {
    fn default() -> MovedNames {
        MovedNames(Recent::new(LOOKS, 4096))
    }
}

impl MovedNames {
    /// Notes that a process has moved `leads_to` to this name.
    pub(in crate::fs) fn note(&self, pid: u32, parent: NodeId, name: &[u8], leads_to: NodeId) {
        self.0.note((pid, parent.ino(), name.to_vec()), leads_to);
    }

    /// What this process has moved to a name.
    pub(in crate::fs) fn find(&self, pid: u32, parent: NodeId, name: &[u8]) -> Option<NodeId> {
        self.0.find(|key| is_name(key, pid, parent, name))
    }
}

/// The last refused rename of something staged. mv asks twice, and must get the same answer.
#[derive(Default)]
pub(in crate::fs) struct RefusedRename(Option<(Instant, String, i32, String)>);

impl RefusedRename {
    /// Notes the refusal of a rename to this name. If the writer was killed, the rename may be tried again,
    /// so that refusal is not noted.
    pub(in crate::fs) fn note(&mut self, name: &str, e: &Error) {
        if !matches!(e, Error::WriterKilled { .. }) {
            self.0 = Some((Instant::now(), name.to_owned(), e.errno_of_mv(), e.to_string()));
        }
    }

    /// # Errors
    ///
    /// What a rename to this name was just refused with.
    pub(in crate::fs) fn again(&self, name: &str) -> Result<()> {
        match &self.0 {
            Some((at, what, errno, sentence)) if at.elapsed() < REPEATED && what == name => {
                Err(Error::Again { errno: *errno, sentence: sentence.clone() })
            }
            _ => Ok(()),
        }
    }

    /// Forgets the refusal, because the staged content has changed. The next rename is judged anew.
    pub(in crate::fs) fn forget(&mut self) {
        self.0 = None;
    }
}
