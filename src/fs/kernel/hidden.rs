//! The mount from which the trees are mounted (see attach.rs). No path leads to it, so that no walker
//! and no backup finds it.
//!
//! Linux 6.15 and newer can clone parts of such a mount. Older kernels only clone what is in the mount
//! namespace of the caller. There a thread has a namespace of its own that contains only this mount.

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

/// The mount of the second connection. The mount and the connection end when this value and all clones
/// are gone.
pub enum Hidden {
    Nowhere(OwnedFd),
    /// Sends to the thread that clones: the name of a directory, and the channel for the answer.
    Apart(mpsc::Sender<(String, mpsc::SyncSender<Answer<OwnedFd>>)>),
}

impl Hidden {
    /// Takes a mount that is attached nowhere yet. Its connection must be served already. `old` forces the
    /// way for kernels before Linux 6.15.
    ///
    /// # Errors
    ///
    /// `Io` if neither way works.
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

    /// Clones a directory of the mount, as a mount that can be attached anywhere.
    ///
    /// # Errors
    ///
    /// Those of the kernel.
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

/// Gives this thread a mount namespace with nothing but `mount` in it. All else in the namespace would
/// stay mounted as long as the thread lives.
fn move_apart(mount: &OwnedFd) -> Answer<()> {
    sys::leave_mount_namespace()?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    move_mount(mount, "", rustix::fs::CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    rustix::process::fchdir(mount)?;
    // The old root now lies over the new one.
    rustix::process::pivot_root(".", ".")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)
}
