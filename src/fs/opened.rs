//! How a file is opened: what is asked, and what comes of it.

use crate::base::digest::BlobId;
use crate::error::Error;
use crate::fs::node::NodeId;

/// How a file is to be opened.
#[derive(Clone, Copy, Debug)]
pub struct OpenMode {
    pub writes: bool,
    /// O_TRUNC: what is there is to go first.
    pub truncates: bool,
}

/// What an open asks of the kernel's caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    /// The content never changes: pages may stay.
    Lasting,
    /// The same, of a blob that may be a file of its own.
    Large(BlobId),
    /// Every read and write comes here.
    Direct(u64),
    /// A handle, with the kernel's cache.
    Cached(u64),
}

/// Writing to what is not writable: inside versions EROFS, elsewhere EPERM.
pub(super) fn frozen(node: NodeId) -> Error {
    match node {
        NodeId::Tree { .. } | NodeId::Version { .. } | NodeId::Ghost => {
            Error::Frozen { what: "a version".into() }
        }
        _ => Error::Managed { what: "this file".into(), why: "it is only read" },
    }
}
