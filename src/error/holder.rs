//! Who holds a store that somebody else wants.

use std::fmt;

/// Who holds a store's lock: what the kernel says of the process, and what is written in the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holder {
    /// 0: nobody says it.
    pub pid: u32,
    /// As its process is called; empty where that is not shown.
    pub name: String,
    /// Where the store is mounted; empty while a mount begins, for a command, and for what is no imgfs.
    pub mounted: String,
    /// Whether it is a daemon that goes on with nothing mounted.
    pub stays: bool,
    pub is_imgfs: bool,
    /// Why a daemon goes on whose mount is not here any more; asked for a refusal only, because it takes a
    /// while.
    pub elsewhere: Option<String>,
    /// Where a process waits in the kernel that was killed, or is at its end, and cannot go before that
    /// answers: the disk, mostly.
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
