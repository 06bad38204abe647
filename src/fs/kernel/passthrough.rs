//! Journey 2, cat of a large file: the kernel reads it from the store by itself, at the speed of the disk.
//!
//! Its rules: all that have a file open share one backing; and the way it is open, through imgfs or past it,
//! may change only while nobody has it open. So who has a large file open is counted here. The kernel lets go
//! before it says so: a count may be too high for a moment, which keeps the way as it was, and never too low.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

/// How large files are open, by inode number. `B` is what the kernel knows a backing by.
pub struct Backings<B> {
    open: Mutex<HashMap<u64, Open<B>>>,
}

struct Open<B> {
    count: usize,
    /// None: reads come to imgfs.
    backing: Option<Arc<B>>,
}

impl<B> Default for Backings<B> {
    fn default() -> Backings<B> {
        Backings { open: Mutex::default() }
    }
}

impl<B> Backings<B> {
    /// One more has the file open: past imgfs if there is a backing. `make` makes it for the first.
    pub fn enter(&self, ino: u64, make: impl FnOnce() -> Option<B>) -> Option<Arc<B>> {
        let mut all = self.open.lock();
        let open = all.entry(ino).or_insert_with(|| Open { count: 0, backing: make().map(Arc::new) });
        open.count += 1;
        open.backing.clone()
    }

    /// One fewer.
    pub fn leave(&self, ino: u64) {
        let mut all = self.open.lock();
        if let Some(open) = all.get_mut(&ino) {
            open.count -= 1;
            if open.count == 0 {
                all.remove(&ino);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_changes_only_when_nobody_has_the_file_open() {
        let backings = Backings::default();
        assert_eq!(backings.enter(1, || None::<u32>), None);
        assert_eq!(backings.enter(1, || Some(5)), None, "it is open through imgfs");
        backings.leave(1);
        backings.leave(1);
        let first = backings.enter(1, || Some(6)).unwrap();
        let second = backings.enter(1, || Some(7)).unwrap();
        assert!(Arc::ptr_eq(&first, &second) && *first == 6);
        backings.leave(1);
        assert_eq!(backings.enter(1, || None).as_deref(), Some(&6));
    }
}
