//! Room on the disk for what is written: where it is full, the oldest of the trash goes for it.

use crate::error::Result;
use crate::store::Store;

impl Store {
    /// Does what takes room on the disk. Where it is full, the daemon makes room and the attempt is repeated.
    ///
    /// # Errors
    ///
    /// Those of the attempt.
    pub fn in_room<T>(&self, attempt: impl FnMut() -> Result<T>) -> Result<T> {
        self.blobs.in_room(attempt)
    }

    /// Makes room until `bytes` are free, or until there is nothing left to give.
    pub fn ensure_room(&self, bytes: u64) {
        let free = || {
            rustix::fs::statvfs(&self.dir)
                .map_or(u64::MAX, |stat| stat.f_bavail.saturating_mul(stat.f_frsize))
        };
        while free() < bytes && self.blobs.make_room() {}
    }
}
