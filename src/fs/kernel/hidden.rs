//! Where the trees are mounted from (see attach.rs): a mount that no path leads to, so that no walker and no
//! backup meets it.
//!
//! Linux 6.15 and newer clone parts of a mount that is nowhere. Older ones only clone what is in the mount
//! namespace of who asks: there a thread has a namespace of its own, with this mount alone in it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::mpsc;

use rustix::io::{Errno, Result as Answer};
use rustix::mount::{
    MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount_change, move_mount, open_tree,
};

use crate::base::sys;
use crate::error::{Error, Result};
use crate::fs::start_thread;

/// The mount of the second connection. It ends, and the connection with it, when this and all clones are
/// gone.
pub enum Hidden {
    Nowhere(OwnedFd),
    /// The thread that clones: the name of a directory, and where the answer goes.
    Apart(mpsc::Sender<(String, mpsc::SyncSender<Answer<OwnedFd>>)>),
}

impl Hidden {
    /// Takes a mount that is nowhere yet; its connection must be served already. `old`: as before Linux 6.15.
    ///
    /// # Errors
    ///
    /// `Io` where neither way is open.
    pub fn new(mount: OwnedFd, old: bool) -> Result<Hidden> {
        if !old && clone_of(mount.as_fd(), "").is_ok() {
            return Ok(Hidden::Nowhere(mount));
        }
        let (wanted, queue) = mpsc::channel::<(String, mpsc::SyncSender<Answer<OwnedFd>>)>();
        let (tell, told) = mpsc::sync_channel(1);
        let work = move || {
            let apart = move_apart(&mount);
            let failed = apart.is_err();
            let _ = tell.send(apart);
            if !failed {
                queue.iter().for_each(|(name, answer)| {
                    answer.send(clone_of(mount.as_fd(), &name)).unwrap_or_default()
                });
            }
        };
        start_thread("clone", "clones of trees", work)?;
        told.recv()
            .unwrap_or(Err(Errno::IO))
            .map_err(|e| Error::io("mount trees in", Path::new("a namespace"))(e.into()))?;
        Ok(Hidden::Apart(wanted))
    }

    /// A directory of it as a mount that can be put anywhere.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn tree(&self, name: String) -> Answer<OwnedFd> {
        match self {
            Hidden::Nowhere(mount) => clone_of(mount.as_fd(), &name),
            Hidden::Apart(wanted) => {
                let (answer, answered) = mpsc::sync_channel(1);
                wanted.send((name, answer)).map_err(|_| Errno::IO)?;
                answered.recv().unwrap_or(Err(Errno::IO))
            }
        }
    }
}

fn clone_of(mount: BorrowedFd<'_>, name: &str) -> Answer<OwnedFd> {
    let mut flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_NO_AUTOMOUNT;
    flags.set(OpenTreeFlags::AT_EMPTY_PATH, name.is_empty());
    open_tree(mount, name, flags)
}

/// Gives this thread a mount namespace with nothing but `mount` in it: what else was there would stay mounted
/// for as long.
fn move_apart(mount: &OwnedFd) -> Answer<()> {
    sys::leave_mount_namespace()?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    move_mount(mount, "", rustix::fs::CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    rustix::process::fchdir(mount)?;
    // The old root lies over the new one then.
    rustix::process::pivot_root(".", ".")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)
}
