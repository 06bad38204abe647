//! The archive format, read as a stream: V7, ustar, pax, GNU and star headers, sparse files, long names.
//!
//! The reader keeps every byte that is no content in the recipe, so that `rootfs.tar` is the upload bit for
//! bit, whatever odd writer made it. It allocates nothing by a size that a header claims.

mod fields;
mod foreign;
mod header;
mod pax;
mod posix_acl;
mod reader;
mod sparse;
mod write;

pub use foreign::not_a_tar;
#[cfg(test)]
pub use posix_acl::to_xattr as acl_value;
pub use reader::{Entry, EntryKind, Limits, RATIO_FLOOR, Reader, Source, Stage, begins_a_tar};
pub use write::NewEntry;

/// A tar is made of these.
pub const BLOCK: usize = 512;
