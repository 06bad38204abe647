//! What background work tells the mounts of the store. `fs` implements it. Without a mount there is
//! nobody to tell.

use std::sync::{Arc, Weak};

use crate::store::Core;

/// What is about to be deleted, by serials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deletion {
    /// An image with its versions.
    Image(u32, Vec<u32>),
    Version(u32),
}

impl Deletion {
    /// The versions that are deleted.
    pub fn versions(&self) -> &[u32] {
        match self {
            Deletion::Image(_, versions) => versions,
            Deletion::Version(serial) => std::slice::from_ref(serial),
        }
    }
}

/// Called after an attempt to delete, with whether it succeeded.
pub type Afterwards = Box<dyn FnOnce(bool)>;

/// All mounts of a store.
pub trait TellMounts: Send + Sync {
    /// The first of these versions whose tree is a mount of its own with somebody in it. Trees with nobody
    /// in them are unmounted.
    fn tree_in_use(&self, versions: &[u32]) -> Option<u32>;

    /// Called before a deletion: unmounts the trees, and notes names that kernels know.
    fn before_deletion(&self, what: &Deletion) -> Afterwards;

    /// Runs `work` unless a mount shows what is staged in a view (`None`: in the whole store). Such a mount
    /// cleans up by itself. No mount can begin to show it meanwhile.
    fn unless_shown(&self, view: Option<&str>, work: &mut dyn FnMut());
}

impl Core {
    /// Sets who tells the mounts, for as long as that value lives. Later calls change nothing.
    pub fn tells(&self, mounts: Weak<dyn TellMounts>) {
        let _ = self.mounts.set(mounts);
    }

    /// The value that tells the mounts, if the store has ever had one.
    pub fn mounts(&self) -> Option<Arc<dyn TellMounts>> {
        self.mounts.get()?.upgrade()
    }
}
