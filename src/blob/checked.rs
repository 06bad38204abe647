//! Which large blobs were read and found right since the store was opened: the kernel may read those by
//! itself.

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;

use crate::base::digest::BlobId;
use crate::blob::container::Place;
use crate::blob::{BlobStore, IdSet};

/// Objects by the groups that were checked.
#[derive(Default)]
pub struct Checked {
    whole: IdSet,
    /// A bit for each group that was, and how many were not.
    partly: HashMap<BlobId, (IdSet, usize)>,
}

impl Checked {
    /// It was found damaged.
    pub fn none(&mut self, id: BlobId) {
        self.whole.remove(id);
        self.partly.remove(&id);
    }

    /// These groups of `count` were read and found right.
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
    /// The file that holds just this blob, if all of it has been checked since the store was opened. Not if
    /// its length is another than the blob's: whoever reads the file itself would see that.
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
