//! What work that goes on by itself tells the mounts of the store. `fs` implements it; without a mount nobody
//! need be told.

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

/// Called once a deletion has been tried, with whether it was carried out.
pub type Afterwards = Box<dyn FnOnce(bool)>;

/// All mounts of a store.
pub trait TellMounts: Send + Sync {
    /// The first of these versions whose tree is a mount of its own that somebody is in. Trees that nobody is
    /// in are unmounted.
    fn tree_in_use(&self, versions: &[u32]) -> Option<u32>;

    /// Before a deletion: mounts of the trees go, and names that kernels know are noted.
    fn before_deletion(&self, what: &Deletion) -> Afterwards;

    /// Runs `work`, unless a mount shows what is staged in a view (none: in the whole store) and so cares for
    /// it itself. No mount begins to show it meanwhile.
    fn unless_shown(&self, view: Option<&str>, work: &mut dyn FnMut());
}

impl Core {
    /// Says who tells the mounts, as long as that lives. Later calls change nothing.
    pub fn tells(&self, mounts: Weak<dyn TellMounts>) {
        let _ = self.mounts.set(mounts);
    }

    /// Who tells the mounts, if the store has had one.
    pub fn mounts(&self) -> Option<Arc<dyn TellMounts>> {
        self.mounts.get()?.upgrade()
    }
}
