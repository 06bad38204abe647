//! Threads that were told to walk a path again, because a tree on it is being mounted.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How long a thread that was told to look again may take to do so.
const WALKS_AGAIN: Duration = Duration::from_secs(1);

/// Threads that were told to walk their path again: thread, version serial, when.
///
/// The kernel walks a path at most twice. If a link on it is switched in between, the second walk comes
/// to another tree, and must get through there.
#[derive(Default)]
pub(super) struct SentToMount(Mutex<Vec<(u32, u32, Instant)>>);

impl SentToMount {
    pub(super) fn note(&self, thread: u32, serial: u32) {
        self.0.lock().push((thread, serial, Instant::now()));
    }

    /// A thread reaches a version or its tree. Returns whether it was just sent back to another one.
    pub(super) fn comes(&self, thread: u32, serial: u32) -> bool {
        let mut sent = self.0.lock();
        if sent.is_empty() {
            return false;
        }
        sent.retain(|(by, to, at)| (*by, *to) != (thread, serial) && at.elapsed() < WALKS_AGAIN);
        sent.iter().any(|(by, ..)| *by == thread)
    }
}
