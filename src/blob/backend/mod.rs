//! The seam at immutable files: containers of content, and trees. They are written once, under a name that is
//! never given out again, and then only read, listed and deleted. What changes (the blob table, the catalog,
//! uploads) stays outside.
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
//! `Local` keeps them as files of the store. A backend that keeps them elsewhere answers `open` with a cache
//! file, and fetches what is missing of it when a range is read: nobody but `Container` sees the file.
//!
//! Two things of trees still go by their paths: a new one is written where `Local` has it, with `sync` as its
//! end, and one at rest replaces the same tree unpacked. A backend elsewhere has to take both from there.

mod local;

use std::path::{Path, PathBuf};

pub use local::{Container, Local};

use crate::error::Result;

/// Where files of a kind lie: a directory of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shelf {
    /// Content as it came.
    Loose,
    /// Content at rest.
    Packs,
    Trees,
}

impl Shelf {
    /// Those of content.
    pub const CONTENT: [Shelf; 2] = [Shelf::Loose, Shelf::Packs];

    /// Its directory, in the store's.
    pub fn directory(self) -> &'static str {
        match self {
            Shelf::Loose => "loose",
            Shelf::Packs => "packs",
            Shelf::Trees => "trees",
        }
    }
}

/// What such a file is called.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    pub shelf: Shelf,
    /// A file name.
    pub name: String,
}

impl Key {
    /// From the store's directory on.
    pub fn path(&self) -> PathBuf {
        Path::new(self.shelf.directory()).join(&self.name)
    }
}

/// What such a file takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Bytes of the file.
    pub len: u64,
    /// Bytes on the disk, without what was trimmed.
    pub stored: u64,
}

/// Keeps immutable files. Only one process changes them, the one that has the store's lock.
pub trait Backend: Send + Sync {
    /// Makes one of a file of the same disk, whose content is durable, and which has that name no more then. The
    /// new name is durable after `sync`.
    ///
    /// # Errors
    ///
    /// `Io`, with `AlreadyExists` if there is one of that name; nothing has changed then.
    fn put(&self, from: &Path, key: &Key) -> Result<()>;

    /// Makes names durable that were put on a shelf, or deleted from it.
    ///
    /// # Errors
    ///
    /// `Io`.
    fn sync(&self, shelf: Shelf) -> Result<()>;

    /// Opens one for reading by range.
    ///
    /// # Errors
    ///
    /// `Io`, with `NotFound` if there is none.
    fn open(&self, key: &Key) -> Result<Container>;

    /// Where all of one lies as a local file. It need not be there: then opening that says so.
    ///
    /// # Errors
    ///
    /// `Io` if it cannot be fetched.
    fn local(&self, key: &Key) -> Result<PathBuf>;

    /// What one takes.
    ///
    /// # Errors
    ///
    /// `Io`, with `NotFound` if there is none.
    fn size(&self, key: &Key) -> Result<Size>;

    /// The names on a shelf, in no order, and what else lies there.
    ///
    /// # Errors
    ///
    /// `Io`.
    fn list(&self, shelf: Shelf) -> Result<Vec<String>>;

    /// Deletes one. Who has it open reads on.
    ///
    /// # Errors
    ///
    /// `Io`, with `NotFound` if there is none.
    fn delete(&self, key: &Key) -> Result<()>;

    /// Gives ranges (offset, bytes) of one back to the disk: they read as zeros then, or stay.
    ///
    /// # Errors
    ///
    /// `Io`.
    fn trim(&self, key: &Key, ranges: &[(u64, u64)]) -> Result<()>;
}
