//! `.imgfs`: the store itself, as files.

use std::sync::LazyLock;

use crate::base::logfile::LogFile;
use crate::base::{document, json};
use crate::error::{Error, Result};
use crate::fs::names::{a_directory, no_directory, not_found};
use crate::fs::node::{Control, NodeId};
use crate::fs::opened::{OpenMode, Opened, frozen};
use crate::fs::places::{self, Place, no_rmdir, views};
use crate::fs::{Attr, Caller, DAEMON, DirEntry, Handle, ImageFs, stale};

/// The map of a mount from the front page, and all gestures.
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
fn log_number(control: Control) -> Option<u32> {
    [Control::Log, Control::Log1, Control::Log2, Control::Log3]
        .iter()
        .position(|c| *c == control)
        .map(|n| n as u32)
}

/// `.imgfs`: its files. The directories in it are kinds of their own.
pub struct DotImgfs;

impl Place for DotImgfs {
    fn lookup(&self, fs: &ImageFs, _caller: Caller, directory: NodeId, name: &[u8]) -> Result<NodeId> {
        if directory != NodeId::Control(Control::Dir) {
            return Err(no_directory());
        }
        let file = FILES.iter().find(|(n, c)| n.as_bytes() == name && is_there(fs, *c));
        let kind = || places::ALL.iter().find(|(n, kind)| n.as_bytes() == name && kind.place().is_there(fs));
        let found = file.map(|(_, c)| NodeId::Control(*c));
        let found = found.or_else(|| kind().map(|(_, kind)| NodeId::In(*kind, 0)));
        found.ok_or_else(|| not_found(name))
    }

    fn list(&self, fs: &ImageFs, _caller: Caller, directory: NodeId, all: &mut Vec<DirEntry>) -> Result<()> {
        if directory != NodeId::Control(Control::Dir) {
            return Err(no_directory());
        }
        let files = FILES.iter().filter(|(_, c)| is_there(fs, *c));
        all.extend(files.map(|(name, c)| DirEntry::new(*name, NodeId::Control(*c), libc::S_IFREG)));
        let kinds = places::ALL.iter().filter(|(_, kind)| kind.place().is_there(fs));
        all.extend(kinds.map(|(name, kind)| DirEntry::new(*name, NodeId::In(*kind, 0), libc::S_IFDIR)));
        Ok(())
    }

    /// The names in it never change what they lead to.
    fn changes(&self) -> bool {
        false
    }

    fn parent(&self, _fs: &ImageFs, node: NodeId) -> NodeId {
        if node == NodeId::Control(Control::Dir) { NodeId::Root } else { NodeId::Control(Control::Dir) }
    }

    fn attr(&self, fs: &ImageFs, node: NodeId, own: Attr) -> Result<Attr> {
        match node {
            NodeId::Control(Control::Dir) => Ok(Attr { mode: libc::S_IFDIR | 0o755, ..own }),
            NodeId::Control(control) => Ok(own.file(0o444, size(fs, DAEMON, control)?)),
            _ => Err(stale()),
        }
    }

    fn open(&self, fs: &ImageFs, caller: Caller, node: NodeId, mode: OpenMode) -> Result<Opened> {
        let NodeId::Control(control) = node else { return Err(stale()) };
        if mode.writes {
            return Err(frozen(node));
        }
        match log_number(control) {
            Some(number) => Ok(Opened::Direct(fs.open_handle(Handle::Log { number, caller }))),
            None => Ok(fs.opened_text(text(fs, caller, control)?)),
        }
    }

    fn rmdir(&self, _fs: &ImageFs, _caller: Caller, _node: NodeId, _parent: NodeId) -> Result<()> {
        Err(no_rmdir())
    }
}

fn is_there(fs: &ImageFs, control: Control) -> bool {
    log_number(control).is_none_or(|n| fs.store.journal.has_log(n))
}

/// The size of a file of `.imgfs`, as one user may see it.
///
/// # Errors
///
/// `Io`.
pub(in crate::fs) fn size(fs: &ImageFs, caller: Caller, control: Control) -> Result<u64> {
    match (log_number(control), log_for(fs, caller)) {
        (Some(n), Some(log)) => Ok(log.len(n)),
        _ => Ok(text(fs, caller, control)?.len() as u64),
    }
}

/// Reads from an offset in a log, which may have grown: tail -f.
pub(in crate::fs) fn read_log(
    fs: &ImageFs,
    caller: Caller,
    n: u32,
    offset: u64,
    len: usize,
    out: &mut Vec<u8>,
) -> Result<()> {
    if let Some(log) = log_for(fs, caller) {
        return log.read(n, offset, len, out);
    }
    let text = log_text(fs, caller, n)?.into_bytes();
    let from = usize::try_from(offset).unwrap_or(usize::MAX).min(text.len());
    out.extend_from_slice(&text[from..text.len().min(from.saturating_add(len))]);
    Ok(())
}

fn log_text(fs: &ImageFs, caller: Caller, n: u32) -> Result<String> {
    Ok(fs.heard_by(caller, fs.store.journal.log_text(n)?))
}

/// The log itself, if this user may know all of it.
fn log_for(fs: &ImageFs, caller: Caller) -> Option<&LogFile> {
    fs.store.journal.whole_log().filter(|_| fs.is_admin(caller))
}

/// The content of a file of `.imgfs`, as it is now.
fn text(fs: &ImageFs, caller: Caller, control: Control) -> Result<String> {
    match control {
        Control::Readme => Ok(README.clone()),
        Control::Status => status_text(fs),
        Control::Errors => Ok(fs.heard_by(caller, fs.store.journal.errors_text())),
        _ if let Some(n) = log_number(control) => log_text(fs, caller, n),
        _ => Err(a_directory()),
    }
}

fn status_text(fs: &ImageFs) -> Result<String> {
    let mut status = match fs.store.catalog.view() {
        Some(view) => views::status(fs, view)?,
        None => crate::images::status::status(&fs.store)?,
    };
    status["uptime_seconds"] = fs.started.elapsed().as_secs().into();
    status["uploads"] = fs.uploads.count().into();
    status["mount_point"] = fs.mount.path.clone().into();
    Ok(json::pretty(&status))
}

/// Total and free space in bytes, and the number of files. The trash counts as free, because it is
/// emptied when space is needed.
///
/// # Errors
///
/// `Io`.
pub(in crate::fs) fn space(fs: &ImageFs) -> Result<(u64, u64, u64)> {
    if let Some(space) = fs.store.catalog.view().map(|view| views::space(fs, view)).transpose()?.flatten() {
        return Ok(space);
    }
    let stat = rustix::fs::statvfs(&fs.store.dir).map_err(|e| Error::Io {
        doing: "stat",
        path: fs.store.dir.clone(),
        source: e.into(),
    })?;
    // Leaves out the space reserved for root, which df would otherwise show as used.
    let total = (stat.f_blocks - stat.f_bfree.saturating_sub(stat.f_bavail)) * stat.f_frsize;
    let free = stat.f_bavail * stat.f_frsize + fs.store.trash_bytes();
    Ok((total, free.min(total), fs.store.blobs.id_bound().into()))
}
