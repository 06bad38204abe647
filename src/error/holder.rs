//! Names the process that holds a store which another process wants.

use std::fmt;

/// The holder of a store's lock, from what the kernel says about the process, and from the lock file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holder {
    /// 0 if it is unknown.
    pub pid: u32,
    /// The name of its process. Empty if that is not visible.
    pub name: String,
    /// Where the store is mounted. Empty while a mount starts, for a command, and for a process that is not
    /// imgfs.
    pub mounted: String,
    /// Whether it is a daemon that goes on with nothing mounted.
    pub stays: bool,
    pub is_imgfs: bool,
    /// Why a daemon goes on whose mount is gone here. Only a refusal asks for this, because finding out
    /// takes a while.
    pub elsewhere: Option<String>,
    /// Where in the kernel a process waits that was killed or is about to end. It cannot end before it gets
    /// an answer, mostly from the disk.
    pub dying: Option<String>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.pid, self.name.is_empty()) {
            (0, _) => f.write_str("a process that is not shown here")?,
            (pid, true) => write!(f, "process {pid}")?,
            (pid, false) => write!(f, "process {pid} ({})", self.name)?,
        }
        match (&self.dying, &self.elsewhere) {
            (Some(place), _) => write!(f, ", which is ending: it waits in the kernel ({place})"),
            (None, Some(why)) => {
                write!(f, ", which still serves what was mounted on {}: {why}", self.mounted)
            }
            (None, None) if self.mounted.is_empty() && self.stays => {
                f.write_str(", the store's daemon, with nothing mounted")
            }
            (None, None) if self.mounted.is_empty() => Ok(()),
            (None, None) => write!(f, ", mounted on {}", self.mounted),
        }
    }
}
