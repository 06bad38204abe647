//! Which large blobs were read and found good since the store was opened. The kernel may read those
//! directly.

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;

use crate::base::digest::BlobId;
use crate::blob::container::Place;
use crate::blob::{BlobStore, IdSet};

/// Objects, with the groups that were checked.
#[derive(Default)]
pub struct Checked {
    whole: IdSet,
    /// One bit for each checked group, and how many groups are not checked.
    partly: HashMap<BlobId, (IdSet, usize)>,
}

impl Checked {
    /// Notes that the blob was found damaged.
    pub fn none(&mut self, id: BlobId) {
        self.whole.remove(id);
        self.partly.remove(&id);
    }

    /// Notes that these groups, of `count` in all, were read and found good.
    pub fn some(&mut self, id: BlobId, groups: Range<usize>, count: usize) {
        if self.whole.contains(id) {
            return;
        }
        let (seen, left) = self.partly.entry(id).or_insert_with(|| (IdSet::default(), count));
        for group in groups.filter_map(|group| u32::try_from(group).ok()) {
            if !seen.contains(group) {
                seen.insert(group);
                *left -= 1;
            }
        }
        if *left == 0 {
            self.partly.remove(&id);
            self.whole.insert(id);
        }
    }
}

impl BlobStore {
    /// The file that holds only this blob, if all of it was checked since the store was opened. `None` if
    /// the file is longer or shorter than the blob, because a direct reader would see that.
    pub fn checked_object(&self, id: BlobId) -> Option<File> {
        let record = self.record(id).ok()?;
        if record.place != Place::Object || !self.checked.lock().whole.contains(id) {
            return None;
        }
        let object = self.container(record.container, Place::Object).ok()?;
        let file = object.for_kernel()?;
        file.metadata().is_ok_and(|meta| meta.len() == record.size).then_some(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_counts_when_every_group_was_seen() {
        let mut checked = Checked::default();
        checked.some(7, 0..3, 5);
        checked.some(7, 1..3, 5);
        checked.some(7, 4..5, 5);
        assert!(!checked.whole.contains(7));
        checked.some(7, 2..4, 5);
        assert!(checked.whole.contains(7) && checked.partly.is_empty());
    }
}
