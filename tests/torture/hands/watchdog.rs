//! Ends what hangs: a request that is never answered holds its caller, and all who wait for the same
//! directory, for ever.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

/// Longer than a round takes.
const PATIENCE: Duration = Duration::from_secs(25);
const CONNECTIONS: &str = "/sys/fs/fuse/connections";

/// What outlives its patience has its connection aborted: then all callers get an error.
pub struct Watchdog {
    _alive: Sender<()>,
}

impl Watchdog {
    pub fn new(mnt: &Path) -> Watchdog {
        // The connection is called by the minor number of the mount's device.
        let connection = rustix::fs::minor(std::fs::metadata(mnt).unwrap().dev());
        let path = PathBuf::from(CONNECTIONS).join(connection.to_string()).join("abort");
        if !path.exists() {
            let _ = std::process::Command::new("mount").args(["-t", "fusectl", "none", CONNECTIONS]).output();
        }
        let (alive, listen) = channel::<()>();
        std::thread::spawn(move || {
            if listen.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                eprintln!("the mount hangs: aborting it");
                let _ = std::fs::write(&path, "1");
            }
        });
        Watchdog { _alive: alive }
    }
}
