//! Journey 4, rmdir, on a full disk: some space is set aside, because the catalog needs room to record
//! a deletion.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};

use crate::error::{Error, Result};
use crate::format::RESERVE;

pub struct Reserve {
    path: PathBuf,
}

impl Reserve {
    pub fn new(dir: &Path) -> Reserve {
        Reserve { path: dir.join("reserve") }
    }

    /// Sets the reserve aside, if there is room now. If there is none, gc tries again.
    pub fn set(&self) {
        let made = File::options().create(true).append(true).open(&self.path).and_then(|file| {
            if file.metadata()?.len() < RESERVE {
                fallocate(&file, FallocateFlags::empty(), 0, RESERVE)?;
            }
            Ok(())
        });
        if let Err(e) = made {
            log::debug!("no reserve: {e}");
        }
    }

    /// The error if the disk takes no writes at all. SQLite only says that a write failed.
    pub fn read_only(&self) -> Option<Error> {
        // After an error a file system may become read-only, and show that only by refusing writes.
        let probe = self.path.with_extension("probe");
        let source = File::create(&probe).map(|_| drop(fs::remove_file(&probe))).err()?;
        let is = source.kind() == std::io::ErrorKind::ReadOnlyFilesystem;
        is.then(|| Error::Io { doing: "write", path: self.path.with_file_name("catalog.db"), source })
    }

    /// Gives up the reserve for a change that cannot wait.
    ///
    /// # Errors
    ///
    /// `Io`.
    pub fn give_up(&self) -> Result<()> {
        match fs::remove_file(&self.path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", &self.path)(e)),
            _ => Ok(()),
        }
    }
}
