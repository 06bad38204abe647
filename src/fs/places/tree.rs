//! `rootfs/`, and all that is in it, which is read in place from the version's tree.

use crate::blob::{OBJECT_MIN, ReadBuf};
use crate::catalog::Model;
use crate::error::Result;
use crate::fs::names::not_found;
use crate::fs::node::NodeId;
use crate::fs::opened::{OpenMode, Opened, frozen};
use crate::fs::places::made::{self, Part, damage};
use crate::fs::places::{Attributes, Place, named};
use crate::fs::removal::walkers;
use crate::fs::{Attr, Caller, DirEntry, ImageFs, SetAttr, stale};
use crate::images::{export, last_use};
use crate::tree::{Bytes, Node, NodeKind, ROOT};

/// The nodes of a version's tree. They never change.
pub struct Tree;

impl Place for Tree {
    fn lookup(&self, fs: &ImageFs, _caller: Caller, directory: NodeId, name: &[u8]) -> Result<NodeId> {
        let NodeId::Tree { serial, index } = directory else { return Err(stale()) };
        let slot = fs.store.tree(serial)?;
        let directory = slot.tree.node(index)?;
        let found = slot.tree.lookup(&directory, name)?.ok_or_else(|| not_found(name))?;
        Ok(NodeId::Tree { serial, index: found })
    }

    fn changes(&self) -> bool {
        false
    }

    fn image(&self, model: &Model, node: NodeId) -> Option<u32> {
        let NodeId::Tree { serial, .. } = node else { return None };
        model.image_of(serial)
    }

    fn path(&self, fs: &ImageFs, directory: NodeId, name: &str) -> String {
        format!("{}/rootfs/.../{name}", fs.path_of(directory))
    }

    fn attr(&self, fs: &ImageFs, node: NodeId, own: Attr) -> Result<Attr> {
        let NodeId::Tree { serial, index } = node else { return Err(stale()) };
        let slot = fs.store.tree(serial)?;
        let found = slot.tree.node(index)?;
        let mut attr = attr_of(own.ino, &found, index);
        match found.kind {
            NodeKind::File(Bytes::Sparse(_)) => {
                attr.data = slot.tree.sparse_map(&found)?.iter().map(|(_, len)| len).sum()
            }
            NodeKind::File(Bytes::Recipe(recipe)) => attr.data = slot.tree.recipe(recipe)?.data_size()?,
            _ => {}
        }
        Ok(attr)
    }

    fn set(&self, fs: &ImageFs, caller: Caller, node: NodeId, _changes: &SetAttr) -> Result<()> {
        if is_deleted(fs, caller, node) { Ok(()) } else { Err(frozen(node)) }
    }

    fn open(&self, fs: &ImageFs, _caller: Caller, node: NodeId, mode: OpenMode) -> Result<Opened> {
        if mode.writes {
            return Err(frozen(node));
        }
        let NodeId::Tree { serial, index } = node else { return Err(stale()) };
        last_use::note(&fs.store, serial);
        let found = fs.store.tree(serial)?.tree.node(index)?;
        match found.kind {
            NodeKind::File(Bytes::Recipe(recipe)) => made::open(fs, node, serial, recipe),
            NodeKind::File(Bytes::Blob(blob)) if found.size >= OBJECT_MIN => Ok(Opened::Large(blob)),
            _ => Ok(Opened::Lasting),
        }
    }

    fn readlink(&self, fs: &ImageFs, node: NodeId) -> Result<Vec<u8>> {
        let NodeId::Tree { serial, index } = node else { return Err(stale()) };
        let slot = fs.store.tree(serial)?;
        Ok(slot.tree.symlink(&slot.tree.node(index)?)?.to_vec())
    }

    fn unlink(&self, fs: &ImageFs, caller: Caller, directory: NodeId, _name: &[u8]) -> Result<()> {
        // Every removal succeeds for the process that has deleted the version.
        if is_deleted(fs, caller, directory) { Ok(()) } else { Err(frozen(directory)) }
    }

    fn attributes(&self, fs: &ImageFs, node: NodeId) -> Result<(Attributes, Attributes)> {
        let NodeId::Tree { serial, index } = node else { return Err(stale()) };
        let slot = fs.store.tree(serial)?;
        let found = slot.tree.node(index)?;
        let text =
            |(name, value): (&[u8], &[u8])| (String::from_utf8_lossy(name).into_owned(), value.to_vec());
        let own = slot.tree.xattrs(&found).map(text).collect();
        let mut hidden = Attributes::new();
        if let NodeKind::File(Bytes::Blob(blob) | Bytes::Sparse(blob)) = found.kind
            && blob != 0
        {
            let digest = fs.store.blobs.record(blob)?.digest.hex();
            hidden.push(named("digest", format!("blake3:{digest}")));
        }
        Ok((own, hidden))
    }
}

/// Whether this process has deleted the version of a node.
fn is_deleted(fs: &ImageFs, caller: Caller, node: NodeId) -> bool {
    matches!(node, NodeId::Tree { serial, .. } if walkers::caller_has_deleted(fs, caller, serial))
}

/// Finds a tree by the serial of its version, as the second connection names it.
///
/// # Errors
///
/// `NotFound` if it is no serial of a version; `Corrupt`, `Io` if the tree is damaged.
pub(in crate::fs) fn called(fs: &ImageFs, name: &[u8]) -> Result<NodeId> {
    let serial =
        std::str::from_utf8(name).ok().and_then(|text| text.parse().ok()).ok_or_else(|| not_found(name))?;
    fs.store.tree(serial)?;
    Ok(NodeId::Tree { serial, index: ROOT })
}

/// Walks a directory of a tree from entry `from` on, until `add` says that the buffer is full.
///
/// # Errors
///
/// `NotFound`, `Corrupt`, `Io`.
pub(in crate::fs) fn list(
    fs: &ImageFs,
    serial: u32,
    index: u32,
    from: u64,
    mut add: impl FnMut(u64, &DirEntry) -> bool,
) -> Result<()> {
    let slot = fs.store.tree(serial)?;
    let tree = &slot.tree;
    let directory = tree.node(index)?;
    let parent = tree.parent(&directory);
    let outermost = index == ROOT || Some(parent) == tree.beside();
    let up = if outermost { fs.version_node(serial) } else { NodeId::Tree { serial, index: parent } };
    let mut n = from;
    loop {
        let entry = match n {
            0 => DirEntry::new(".", NodeId::Tree { serial, index }, libc::S_IFDIR),
            1 => DirEntry::new("..", up, libc::S_IFDIR),
            _ => {
                let at = u32::try_from(n - 2).map_err(|_| stale())?;
                let Some((name, child)) = tree.entry(&directory, at)? else { return Ok(()) };
                let format = format_of(&tree.node(child)?);
                DirEntry::new(name, NodeId::Tree { serial, index: child }, format)
            }
        };
        n += 1;
        if add(n, &entry) {
            return Ok(());
        }
    }
}

/// Reads from a file of a tree. The bytes are in one of the two buffers. There are fewer than `len`
/// only at the end of the file.
///
/// # Errors
///
/// `NotFound`, `IsDirectory`, `Corrupt`, `Io`.
pub(in crate::fs) fn read<'b>(
    fs: &ImageFs,
    serial: u32,
    index: u32,
    range: (u64, usize),
    buf: &'b mut ReadBuf,
    out: &'b mut Vec<u8>,
) -> Result<&'b [u8]> {
    let slot = fs.store.tree(serial)?;
    let node = slot.tree.node(index)?;
    let (offset, len) = range;
    let read = match node.kind {
        // Most files are read straight from one blob.
        NodeKind::File(Bytes::Blob(blob)) => fs.store.blobs.read(blob, offset, len, buf),
        _ => export::read_file(&fs.store, &slot.tree, &node, offset, len, buf, out).map(|()| &out[..]),
    };
    read.map_err(|e| damage(fs, serial, Part::Node(index), e))
}

/// The type bits of a tree's node.
pub(in crate::fs) fn format_of(node: &Node) -> u32 {
    match node.kind {
        NodeKind::File { .. } => libc::S_IFREG,
        NodeKind::Directory { .. } => libc::S_IFDIR,
        NodeKind::Symlink => libc::S_IFLNK,
        NodeKind::CharDevice { .. } => libc::S_IFCHR,
        NodeKind::BlockDevice { .. } => libc::S_IFBLK,
        NodeKind::Fifo => libc::S_IFIFO,
    }
}

fn attr_of(ino: u64, node: &Node, index: u32) -> Attr {
    let device = match node.kind {
        NodeKind::CharDevice { major, minor } | NodeKind::BlockDevice { major, minor } => (major, minor),
        _ => (0, 0),
    };
    let size = if matches!(node.kind, NodeKind::Directory { .. }) { 4096 } else { node.size };
    Attr {
        ino,
        mode: format_of(node) | node.mode,
        links: node.links,
        uid: node.uid,
        gid: node.gid,
        size,
        data: size,
        mtime: node.mtime,
        ctime: node.mtime,
        device,
        // The kernel must ask for this name each time. Otherwise a walker that deletes the version could take
        // the directory that a chroot stands in.
        lasting_name: index != ROOT,
        lasting: true,
    }
}
