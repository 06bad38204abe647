//! imgfs fsck and refused reads: what a node or a blob is called in its version.

use crate::base::digest::BlobId;
use crate::error::Result;
use crate::tree::{Bytes, NodeIndex, NodeKind, ROOT, Tree};

impl Tree {
    /// Finds a path of plain names, following symlinks inside the tree; for looking into an image.
    pub fn find(&self, path: &str) -> Option<NodeIndex> {
        let mut hops = 0;
        self.find_from(ROOT, path.as_bytes(), &mut hops)
    }

    fn find_from(&self, mut at: NodeIndex, path: &[u8], hops: &mut u32) -> Option<NodeIndex> {
        for name in path.split(|b| *b == b'/') {
            let directory = self.node(at).ok()?;
            let next = match name {
                b"" | b"." => continue,
                b".." => self.parent(&directory),
                _ => self.lookup(&directory, name).ok()??,
            };
            let node = self.node(next).ok()?;
            at = if node.kind == NodeKind::Symlink {
                *hops += 1;
                let target = self.symlink(&node).ok()?;
                let from = if target.starts_with(b"/") { ROOT } else { at };
                if *hops > 40 { return None } else { self.find_from(from, target, hops)? }
            } else {
                next
            };
        }
        Some(at)
    }

    /// Shows every name below a directory to `visit`, with its path from there, until that says false.
    ///
    /// # Errors
    ///
    /// `Corrupt`.
    pub fn each_path(&self, from: NodeIndex, mut visit: impl FnMut(&[u8], NodeIndex) -> bool) -> Result<()> {
        let mut todo = vec![(Vec::new(), from)];
        while let Some((path, index)) = todo.pop() {
            let directory = self.node(index)?;
            let mut n = 0;
            while let Some((name, index)) = self.entry(&directory, n)? {
                let below = [&path[..], name].join(if path.is_empty() { &b""[..] } else { b"/" });
                if !visit(&below, index) {
                    return Ok(());
                }
                if matches!(self.node(index)?.kind, NodeKind::Directory { .. }) {
                    todo.push((below, index));
                }
                n += 1;
            }
        }
        Ok(())
    }

    /// What is wanted first below a version's directory, as a path from there: `rootfs/etc/motd`,
    /// `image.tar`.
    pub fn path_where(&self, wanted: impl Fn(NodeIndex) -> bool) -> Option<String> {
        let mut found = None;
        for (prefix, from) in [("rootfs/", self.has_rootfs().then_some(ROOT)), ("", self.beside())] {
            let look = |path: &[u8], index: NodeIndex| {
                if wanted(index) {
                    found = Some(format!("{prefix}{}", String::from_utf8_lossy(path)));
                }
                found.is_none()
            };
            from.and_then(|from| self.each_path(from, look).ok());
            if found.is_some() {
                break;
            }
        }
        found
    }

    /// Where a blob is used first, as a path in the version's directory.
    pub fn path_of_blob(&self, blob: BlobId) -> Option<String> {
        let uses = |index| match self.node(index).ok()?.kind {
            NodeKind::File(Bytes::Blob(id) | Bytes::Sparse(id)) => Some(id),
            _ => None,
        };
        self.path_where(|index| uses(index) == Some(blob))
    }
}
