//! The interface to immutable files: containers of content, and trees. Each is written once, under a
//! name that is never used again. After that it is only read, listed and deleted. What changes (the
//! blob table, the catalog, uploads) is not part of this.
//!
//! ```text
//! put      a durable file of the staging directory becomes such a file, if there is none of the name
//! sync     the names that were made or deleted since are durable
//! open     for reading by range; what is read lies in a local file by then
//! local    all of it lies in a local file, to be mapped
//! size     its bytes, and what it takes on the disk
//! list     the names on a shelf
//! delete   and trim, which gives ranges back that nobody will read
//! ```
//!
//! `Local` keeps them as files of the store. A backend that keeps them elsewhere answers `open` with a
//! cache file. It fetches missing ranges when they are read; only `Container` sees that file.
//!
//! Trees still use their paths in two cases. A new tree is written where `Local` has it, and ends with
//! `sync`. A packed tree replaces the unpacked one. Another backend has to take over both files from
//! there.

mod local;

use std::path::{Path, PathBuf};

pub use local::{Container, Local};

use crate::error::Result;

/// The directory of the store that holds files of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shelf {
    /// Content as it came.
    Loose,
    /// Content at rest.
    Packs,
    Trees,
}

impl Shelf {
    /// The shelves of content.
    pub const CONTENT: [Shelf; 2] = [Shelf::Loose, Shelf::Packs];

    /// Its directory within the store's directory.
    pub fn directory(self) -> &'static str {
        match self {
            Shelf::Loose => "loose",
            Shelf::Packs => "packs",
            Shelf::Trees => "trees",
        }
    }
}

/// The name of such a file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    pub shelf: Shelf,
    /// A file name.
    pub name: String,
}

impl Key {
    /// Its path, relative to the store's directory.
    pub fn path(&self) -> PathBuf {
        Path::new(self.shelf.directory()).join(&self.name)
    }
}

/// The size of such a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Bytes of the file.
    pub len: u64,
    /// Bytes on the disk, without what was trimmed.
    pub stored: u64,
}

/// Keeps immutable files. Only the process that has the store's lock changes them.
pub trait Backend: Send + Sync {
    /// Turns a file on the same disk, whose content is durable, into such a file. The old name is gone
    /// afterwards. The new name is durable after `sync`.
    ///
    /// # Errors
    ///
    /// `Io`, with `AlreadyExists` if there is a file of that name. In that case nothing changes.
    fn put(&self, from: &Path, key: &Key) -> Result<()>;

    /// Makes durable which names were put on a shelf or deleted from it.
    ///
    /// # Errors
    ///
    /// `Io`.
    fn sync(&self, shelf: Shelf) -> Result<()>;

    /// Opens a file for reads of ranges.
    ///
    /// # Errors
    ///
    /// `Io`, with `NotFound` if there is none.
    fn open(&self, key: &Key) -> Result<Container>;

    /// The path of a local file with all of its content. The file need not exist; opening it will then
    /// fail.
    ///
    /// # Errors
    ///
    /// `Io` if it cannot be fetched.
    fn local(&self, key: &Key) -> Result<PathBuf>;

    /// The size of a file.
    ///
    /// # Errors
    ///
    /// `Io`, with `NotFound` if there is none.
    fn size(&self, key: &Key) -> Result<Size>;

    /// The names on a shelf, in any order, including other files there.
    ///
    /// # Errors
    ///
    /// `Io`.
    fn list(&self, shelf: Shelf) -> Result<Vec<String>>;

    /// Deletes a file. Whoever has it open can still read it.
    ///
    /// # Errors
    ///
    /// `Io`, with `NotFound` if there is none.
    fn delete(&self, key: &Key) -> Result<()>;

    /// Returns ranges (offset, bytes) of a file to the disk. They then read as zeros, or stay.
    ///
    /// # Errors
    ///
    /// `Io`.
    fn trim(&self, key: &Key, ranges: &[(u64, u64)]) -> Result<()>;
}
