//! Journey 2, cat of a large file: the kernel reads it from the store directly, at the speed of the
//! disk.
//!
//! The kernel's rules: all that have a file open share one backing. A file is open either through imgfs
//! or past it, and this may change only while nobody has it open. So imgfs counts here who has a large
//! file open. The kernel closes a file before it says so, so a count may be too high for a moment. That
//! only keeps the way as it was. A count is never too low.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

/// How the large files are open, by inode number. `B` names a backing to the kernel.
pub struct Backings<B> {
    open: Mutex<HashMap<u64, Open<B>>>,
}

struct Open<B> {
    count: usize,
    /// `None` if reads come to imgfs.
    backing: Option<Arc<B>>,
}

impl<B> Default for Backings<B> {
    fn default() -> Backings<B> {
        Backings { open: Mutex::default() }
    }
}

impl<B> Backings<B> {
    /// Counts one more open of the file. With a backing, reads bypass imgfs. `make` is called for the first
    /// open.
    pub fn enter(&self, ino: u64, make: impl FnOnce() -> Option<B>) -> Option<Arc<B>> {
        let mut all = self.open.lock();
        let open = all.entry(ino).or_insert_with(|| Open { count: 0, backing: make().map(Arc::new) });
        open.count += 1;
        open.backing.clone()
    }

    /// Counts one open less.
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
