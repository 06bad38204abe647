//! What happens to clients when the daemon is killed: a process beside it ends what the kernel cannot
//! end.
//!
//! A thread that tells the kernel to forget a name may wait for a directory, whose holder waits for the
//! daemon. If the daemon is killed at that moment, the thread never ends. The connection stays, and all
//! clients hang forever. The kernel tells the guard when the daemon's first thread ends. If the daemon
//! is dying, the guard ends its connections. The clients then get ENOTCONN, as from any dead daemon.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Signal, getppid, set_parent_process_death_signal};
use signal_hook::consts::SIGTERM;
use signal_hook::iterator::Signals;

use crate::base::lock::StoreLock;
use crate::error::{Error, Result};
use crate::fs::kernel::mount;

/// Time between two checks whether the daemon is gone.
const LOOK: Duration = Duration::from_millis(50);

/// Starts the guard of this process. It must be called in the first thread, because the guard is told
/// of that thread's end.
///
/// # Errors
///
/// `Io`.
pub fn start(store: &Path) -> Result<()> {
    let program = std::env::current_exe().map_err(Error::io("find", Path::new("imgfs")))?;
    let mut command = Command::new(&program);
    command
        .args(["guard", "--daemon", &std::process::id().to_string(), "--store"])
        .arg(store)
        .current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().map(drop).map_err(Error::io("start", &program))
}

/// Waits for the daemon's end.
///
/// # Errors
///
/// `Io`.
pub fn run(store: &Path, daemon: u32) -> Result<()> {
    let failed = |source: std::io::Error| Error::Io { doing: "watch", path: "the daemon".into(), source };
    let mut signals = Signals::new([SIGTERM]).map_err(failed)?;
    set_parent_process_death_signal(Some(Signal::TERM)).map_err(|e| failed(e.into()))?;
    // The daemon may have ended before the guard could ask for the signal.
    if getppid().is_some_and(|pid| pid.as_raw_nonzero().get().cast_unsigned() == daemon) {
        signals.forever().next();
    }
    let mut seen = false;
    // Somebody else may have sent the signal while the daemon still runs. Once it is gone, so is its lock.
    while StoreLock::holder(store).is_some_and(|holder| holder.pid == daemon) {
        // Detached connections are ended only once: later their numbers may belong to others.
        seen |= mount::end_dying(store, !seen);
        std::thread::sleep(LOOK);
    }
    Ok(())
}
