//! What every change checks first: whether the store may still be written.
//!
//! imgfs does not simply repeat a failed sync. The kernel reports the failure once, drops what it could
//! not write, and the next sync succeeds. After that nobody knows what the disk holds. So nothing is
//! written until the store is opened again; reading goes on.

use std::io;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use crate::error::{Error, Result};
use crate::fault;

/// Shared by everything that writes files which outlive an upload.
#[derive(Clone, Default)]
pub struct Writable {
    stopped: Arc<OnceLock<String>>,
}

impl Writable {
    /// # Errors
    ///
    /// `Stopped` after a sync has failed.
    pub fn check(&self) -> Result<()> {
        match self.stopped.get() {
            None => Ok(()),
            Some(why) => Err(Error::Stopped { why: why.clone() }),
        }
    }

    /// What stopped the writing.
    pub fn stopped(&self) -> Option<&str> {
        self.stopped.get().map(String::as_str)
    }

    /// Stops all writing from now on.
    pub fn stop(&self, why: &Error) {
        log::error!("{why}: nothing is written until the store is opened again");
        let _ = self.stopped.set(why.to_string());
    }

    /// Checks the outcome of a sync of `path`. A failure stops all writing.
    ///
    /// # Errors
    ///
    /// `Io` if the sync failed.
    pub fn synced(&self, path: &Path, outcome: io::Result<()>) -> Result<()> {
        let outcome = if fault::leaves_out("sync.fails") {
            Err(io::Error::from_raw_os_error(libc::EIO))
        } else {
            outcome
        };
        outcome.map_err(Error::io("sync", path)).inspect_err(|e| self.stop(e))
    }
}
