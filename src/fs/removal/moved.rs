//! mv MNT/.imgfs/trash/* MNT/, mv MNT/.a MNT/.b MNT/web/: names under which a mover still looks for what it
//! has moved.
//!
//! What comes back from the trash, or is published by a rename, shows under a name of imgfs's own. GNU mv
//! looks at each new name once more when it moves several things, and fails if the name is not there. So for
//! its process, and for a while, the name that it gave leads to what it moved. Likewise a process that was
//! told that a name is free, and that is about to create it, is told so until it does, and a refused mv,
//! which asks twice, hears the same twice.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::fs::node::NodeId;

/// How long a mover may still look.
const LOOKS: Duration = Duration::from_secs(60);
/// How long a process that was told that there is no such name may take to create it.
const CREATES: Duration = Duration::from_secs(2);
/// How long a refusal of a rename is repeated without a second look.
const REPEATED: Duration = Duration::from_secs(1);

/// What is remembered of processes for a while, newest last.
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

    /// The newest of a key that is such.
    pub(in crate::fs) fn find(&self, is: impl Fn(&K) -> bool) -> Option<V> {
        let all = self.all.lock();
        all.iter().rev().find(|(at, key, _)| is(key) && at.elapsed() < self.lasts).map(|(.., value)| *value)
    }

    pub(in crate::fs) fn forget(&self, is: impl Fn(&K) -> bool) {
        self.all.lock().retain(|(_, key, _)| !is(key));
    }
}

/// A process, and a name that it gave or looked for: of which directory.
type Name = (u32, u64, Vec<u8>);

fn is_name(key: &Name, pid: u32, parent: NodeId, name: &[u8]) -> bool {
    (key.0, key.1) == (pid, parent.ino()) && key.2 == name
}

/// Names that processes have just looked for, and that were not there.
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

/// The last rename of something staged that was refused: mv asks twice, and is told the same.
#[derive(Default)]
pub(in crate::fs) struct RefusedRename(Option<(Instant, String, i32, String)>);

impl RefusedRename {
    /// Notes the refusal of a rename to this name. One whose writer was killed may be done again.
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

    /// What is staged has changed: the next rename is looked at.
    pub(in crate::fs) fn forget(&mut self) {
        self.0 = None;
    }
}
