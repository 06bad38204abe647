//! mv MNT/.imgfs/trash/* MNT/, mv MNT/.a MNT/.b MNT/web/: names under which a mover still looks for what it has moved.
//!
//! What comes back from the trash, or is published by a rename, shows under a name of imgfs's own. GNU mv looks at each
//! new name once more when it moves several things, and fails if the name is not there. So for its process, and for a
//! while, the name that it gave leads to what it moved. Likewise a process that was told that a name is free, and that is
//! about to create it, is told so until it does.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::fs::node::NodeId;

/// How long a mover may still look.
const LOOKS: Duration = Duration::from_secs(60);
/// Names that are remembered at most.
const KEPT: usize = 4096;

struct Name {
    pid: u32,
    parent: u64,
    name: Vec<u8>,
    leads_to: NodeId,
    at: Instant,
}

/// How long a process that was told that there is no such name may take to create it.
const CREATES: Duration = Duration::from_secs(2);
/// Such names that are remembered at most.
const MISSES: usize = 256;

struct Miss {
    pid: u32,
    parent: u64,
    name: Vec<u8>,
    at: Instant,
}

/// Names that processes have just looked for, and that were not there.
#[derive(Default)]
pub(super) struct MissedNames(Mutex<VecDeque<Miss>>);

impl MissedNames {
    pub(super) fn note(&self, pid: u32, parent: NodeId, name: &[u8]) {
        let mut all = self.0.lock();
        if all.len() >= MISSES {
            all.pop_front();
        }
        all.push_back(Miss { pid, parent: parent.ino(), name: name.to_vec(), at: Instant::now() });
    }

    /// Whether this process was told a moment ago that there is no such name.
    pub(super) fn was_told(&self, pid: u32, parent: NodeId, name: &[u8]) -> bool {
        let is = |miss: &Miss| (miss.pid, miss.parent) == (pid, parent.ino()) && miss.name == name;
        self.0.lock().iter().any(|miss| is(miss) && miss.at.elapsed() < CREATES)
    }
}

/// The names that movers have given, newest last.
#[derive(Default)]
pub(super) struct MovedNames(Mutex<Vec<Name>>);

impl MovedNames {
    /// Notes that a process has moved `leads_to` to this name.
    pub(super) fn note(&self, pid: u32, parent: NodeId, name: &[u8], leads_to: NodeId) {
        let mut all = self.0.lock();
        all.retain(|moved| moved.at.elapsed() < LOOKS);
        if all.len() >= KEPT {
            all.remove(0);
        }
        all.push(Name { pid, parent: parent.ino(), name: name.to_vec(), leads_to, at: Instant::now() });
    }

    /// What this process has moved to a name.
    pub(super) fn find(&self, pid: u32, parent: NodeId, name: &[u8]) -> Option<NodeId> {
        let all = self.0.lock();
        let is =
            |moved: &&Name| (moved.pid, moved.parent) == (pid, parent.ino()) && moved.name == name && moved.at.elapsed() < LOOKS;
        all.iter().rev().find(is).map(|moved| moved.leads_to)
    }
}
