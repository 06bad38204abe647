//! Journey 4, rmdir, on a full disk: space set aside, because the catalog needs room to note that something
//! is gone.

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

    /// Sets the reserve aside, if there is room for it now; gc tries again.
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

    /// What a failure is if the disk takes no writes at all, of which SQLite says only that they failed.
    pub fn read_only(&self) -> Option<Error> {
        // After an error a file system may be so, and not say it but by refusing.
        let probe = self.path.with_extension("probe");
        let source = File::create(&probe).map(|_| drop(fs::remove_file(&probe))).err()?;
        let is = source.kind() == std::io::ErrorKind::ReadOnlyFilesystem;
        is.then(|| Error::Io { doing: "write", path: self.path.with_file_name("catalog.db"), source })
    }

    /// Gives it up, for a change that cannot wait.
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
