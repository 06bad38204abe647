//! `.imgfs`: the store itself, as files.

use std::collections::HashSet;
use std::sync::LazyLock;

use crate::base::changelog::ChangeLog;
use crate::base::{document, json};
use crate::catalog::{Model, Version};
use crate::error::{Error, Result};
use crate::fs::access::READ;
use crate::fs::names::text_of;
use crate::fs::node::{Control, NodeId};
use crate::fs::places;
use crate::fs::{Caller, DirEntry, ImageFs};

/// The front page's map of a mount, and all gestures.
static README: LazyLock<String> = LazyLock::new(|| {
    let front = document::parse(document::README);
    let map = document::plain(document::section(&front, "What a mount holds"));
    let gestures = document::plain(&document::parse(document::GESTURES));
    format!("WHAT A MOUNT HOLDS\n\n{map}\n{gestures}\n{REFUSED}")
});

const REFUSED: &str = "\
When something is refused, the reason and the remedy are in .imgfs/errors, newest first. `man 7 imgfs` has all
refusals, permissions and views, `man imgfs-mount` the options.
";

const FILES: &[(&str, Control)] = &[
    ("README", Control::Readme),
    ("status.json", Control::Status),
    ("errors", Control::Errors),
    ("log", Control::Log),
    ("log.1", Control::Log1),
    ("log.2", Control::Log2),
    ("log.3", Control::Log3),
];

/// Which log a file shows: 0 for the newest.
pub(super) fn log_number(control: Control) -> Option<u32> {
    [Control::Log, Control::Log1, Control::Log2, Control::Log3]
        .iter()
        .position(|c| *c == control)
        .map(|n| n as u32)
}

impl ImageFs {
    /// A name in `.imgfs`.
    pub(super) fn lookup_in_control(&self, name: &[u8]) -> Result<NodeId> {
        let file = FILES.iter().find(|(n, c)| n.as_bytes() == name && self.is_there(*c));
        let kind =
            || places::ALL.iter().find(|(n, kind)| n.as_bytes() == name && kind.place().is_there(self));
        let found = file.map(|(_, c)| NodeId::Control(*c));
        let found = found.or_else(|| kind().map(|(_, kind)| NodeId::In(*kind, 0)));
        found.ok_or_else(|| Error::NotFound { what: text_of(name) })
    }

    /// The live versions of images that this user may read.
    pub(super) fn shown_to<'m>(&self, caller: Caller, model: &'m Model) -> impl Iterator<Item = &'m Version> {
        let images: HashSet<u32> =
            model.live_images().filter(|i| self.may(caller, i, READ)).map(|i| i.serial).collect();
        model.all_versions().filter(move |v| v.trashed_at.is_none() && images.contains(&v.image))
    }

    /// What `.imgfs` shows.
    pub(super) fn list_control(&self, all: &mut Vec<DirEntry>) {
        let files = FILES.iter().filter(|(_, c)| self.is_there(*c));
        all.extend(files.map(|(name, c)| DirEntry::new(*name, NodeId::Control(*c), libc::S_IFREG)));
        let kinds = places::ALL.iter().filter(|(_, kind)| kind.place().is_there(self));
        all.extend(kinds.map(|(name, kind)| DirEntry::new(*name, NodeId::In(*kind, 0), libc::S_IFDIR)));
    }

    fn is_there(&self, control: Control) -> bool {
        log_number(control).is_none_or(|n| self.store.journal.has_log(n))
    }

    /// Type bits and size of a file or directory of `.imgfs`, for whom it may show less than others.
    pub(super) fn control_shape(&self, caller: Caller, node: NodeId) -> Result<(u32, u64)> {
        match node {
            NodeId::Control(Control::Dir) => Ok((libc::S_IFDIR, 4096)),
            NodeId::Control(control)
                if let (Some(n), Some(log)) = (log_number(control), self.log_for(caller)) =>
            {
                Ok((libc::S_IFREG, log.len(n)))
            }
            _ => Ok((libc::S_IFREG, self.control_text(caller, node)?.len() as u64)),
        }
    }

    /// Reads on in a log, which may have grown: tail -f.
    pub(super) fn read_log(
        &self,
        caller: Caller,
        n: u32,
        offset: u64,
        len: usize,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        if let Some(log) = self.log_for(caller) {
            return log.read(n, offset, len, out);
        }
        let text = self.log_text(caller, n)?.into_bytes();
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(text.len());
        out.extend_from_slice(&text[from..text.len().min(from.saturating_add(len))]);
        Ok(())
    }

    fn log_text(&self, caller: Caller, n: u32) -> Result<String> {
        Ok(self.heard_by(caller, self.store.journal.log_text(n)?))
    }

    /// The log itself, for who may know all of it.
    fn log_for(&self, caller: Caller) -> Option<&ChangeLog> {
        self.store.journal.whole_log().filter(|_| self.is_admin(caller))
    }

    /// The content of a file of `.imgfs`, as it is now.
    pub(super) fn control_text(&self, caller: Caller, node: NodeId) -> Result<String> {
        match node {
            NodeId::Control(Control::Readme) => Ok(README.clone()),
            NodeId::Control(Control::Status) => self.status_text(),
            NodeId::Control(Control::Errors) => Ok(self.heard_by(caller, self.store.journal.errors_text())),
            NodeId::Control(control) if let Some(n) = log_number(control) => self.log_text(caller, n),
            _ => Err(Error::IsDirectory { what: "this path".into() }),
        }
    }

    fn status_text(&self) -> Result<String> {
        let mut status = match self.store.catalog.view() {
            Some(view) => self.view_status(view)?,
            None => crate::images::status::status(&self.store)?,
        };
        status["uptime_seconds"] = self.started.elapsed().as_secs().into();
        status["uploads"] = self.uploads.count().into();
        status["mount_point"] = self.mount.path.clone().into();
        Ok(json::pretty(&status))
    }

    /// Total and free space, in bytes, and files. What the trash holds counts as free: it is emptied when
    /// space is needed.
    ///
    /// # Errors
    ///
    /// `Io`.
    pub fn space(&self) -> Result<(u64, u64, u64)> {
        if let Some(space) =
            self.store.catalog.view().map(|view| self.view_space(view)).transpose()?.flatten()
        {
            return Ok(space);
        }
        let stat = rustix::fs::statvfs(&self.store.dir).map_err(|e| Error::Io {
            doing: "stat",
            path: self.store.dir.clone(),
            source: e.into(),
        })?;
        // Without what is kept for root, which df would show as used.
        let total = (stat.f_blocks - stat.f_bfree.saturating_sub(stat.f_bavail)) * stat.f_frsize;
        let free = stat.f_bavail * stat.f_frsize + self.store.trash_bytes();
        Ok((total, free.min(total), self.store.blobs.id_bound().into()))
    }
}
