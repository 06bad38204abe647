//! How a file is opened: what the caller asks for, and how the kernel may cache it.

use crate::base::digest::BlobId;
use crate::error::Error;
use crate::fs::node::NodeId;

/// How a file is to be opened.
#[derive(Clone, Copy, Debug)]
pub struct OpenMode {
    pub writes: bool,
    /// O_TRUNC: the old content goes first.
    pub truncates: bool,
}

/// What an open tells the kernel about caching.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    /// The content never changes: the kernel may keep its pages.
    Lasting,
    /// Like `Lasting`, for a blob that may be a file of its own.
    Large(BlobId),
    /// Every read and write comes to imgfs.
    Direct(u64),
    /// A handle whose content the kernel may cache.
    Cached(u64),
}

/// The error for writing to what is not writable: EROFS inside versions, EPERM elsewhere.
pub(super) fn frozen(node: NodeId) -> Error {
    match node {
        NodeId::Tree { .. } | NodeId::Version { .. } | NodeId::Ghost => {
            Error::Frozen { what: "a version".into() }
        }
        _ => Error::Managed { what: "this file".into(), why: "it is only read" },
    }
}
