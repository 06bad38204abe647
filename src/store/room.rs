//! Room on the disk for what is written: if the disk is full, the oldest entries of the trash are
//! purged.

use crate::error::Result;
use crate::store::Store;

impl Store {
    /// Runs an attempt that needs room on the disk. If the disk is full, the daemon makes room and repeats
    /// the attempt.
    ///
    /// # Errors
    ///
    /// Those of the attempt.
    pub fn in_room<T>(&self, attempt: impl FnMut() -> Result<T>) -> Result<T> {
        self.blobs.in_room(attempt)
    }

    /// Makes room until `bytes` are free, or until nothing is left that can be purged.
    pub fn ensure_room(&self, bytes: u64) {
        let free = || {
            rustix::fs::statvfs(&self.dir)
                .map_or(u64::MAX, |stat| stat.f_bavail.saturating_mul(stat.f_frsize))
        };
        while free() < bytes && self.blobs.make_room() {}
    }
}
