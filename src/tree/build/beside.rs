//! What an archive turns out to be: which directory is rootfs, what lies beside it, what is found in it.

use crate::base::digest::Content;
use crate::tree::build::{Builder, HOPS_MAX, MADE, Make, Meta, NONE, name_at};
use crate::tree::{NodeIndex, ROOT};

impl Builder {
    /// Gives a file, as `Make::File` says, a name beside rootfs.
    pub fn add_beside(&mut self, name: &[u8], meta: &Meta, make: Make<'_>) {
        let node = self.draft(meta, make, ROOT);
        self.show_beside(name, node);
    }

    /// Shows a node of the tree beside rootfs.
    pub fn show_beside(&mut self, name: &[u8], node: NodeIndex) {
        let beside = match self.beside {
            Some(beside) => beside,
            None => {
                let made = self.draft(&Meta { mode: 0o755, ..Meta::default() }, Make::Directory, ROOT);
                self.beside = Some(made);
                made
            }
        };
        if self.is_directory(node) {
            self.drafts[node as usize].parent = beside;
        }
        let existing = self.child(beside, name);
        self.put(beside, name, existing, node);
    }

    /// Makes a directory of the tree its rootfs. What lies outside of it is dropped, but for what is shown
    /// beside.
    pub fn set_root(&mut self, directory: NodeIndex) {
        self.root = directory;
    }

    /// A directory that has no name yet.
    pub fn new_directory(&mut self) -> NodeIndex {
        self.draft(&Meta { mode: 0o755, ..Meta::default() }, Make::Directory, ROOT)
    }

    /// Shows what another tree has at a path of plain names beside this one's rootfs, with all below it. Both
    /// have their content from the same upload.
    pub fn take_beside(&mut self, other: &Builder, name: &str) {
        let Some(from) = other.find(name) else { return };
        let (order, children) = other.listings();
        let to = self.copy(other, from, ROOT);
        self.show_beside(name.as_bytes(), to);
        let mut todo = vec![(from, to)];
        while let Some((from, to)) = todo.pop() {
            let (first, count) = children[from as usize];
            for &e in &order[first as usize..(first + count) as usize] {
                let entry = &other.entries[e as usize];
                let made = self.copy(other, entry.node, to);
                self.put(to, name_at(&other.names, entry.name), None, made);
                if other.is_directory(entry.node) {
                    todo.push((entry.node, made));
                }
            }
        }
    }

    /// A node of another tree in this one, without what is below it.
    fn copy(&mut self, other: &Builder, node: NodeIndex, parent: NodeIndex) -> NodeIndex {
        let (meta, make, pieces) = other.describe(node);
        let make = match make {
            Make::File { content, size, sparse: Some(_) } => {
                Make::File { content, size, sparse: Some(&pieces) }
            }
            make => make,
        };
        self.draft(&meta, make, parent)
    }

    /// What a node is; the pieces of a sparse file stand apart.
    pub(super) fn describe(&self, node: NodeIndex) -> (Meta, Make<'_>, Vec<(u64, u64)>) {
        let draft = &self.drafts[node as usize];
        let attr = self.attrs[draft.attr as usize];
        let xattrs = self.xattrs_at(attr.xattrs);
        let meta =
            Meta { mode: attr.mode & 0o7777, uid: attr.uid, gid: attr.gid, mtime: draft.mtime, xattrs };
        let mut pieces = Vec::new();
        let make = match attr.mode & libc::S_IFMT {
            libc::S_IFDIR => Make::Directory,
            libc::S_IFREG => {
                pieces = self.pieces_at(draft.extra);
                let sparse: Option<&[(u64, u64)]> =
                    (draft.extra != 0 && draft.extra & MADE == 0).then_some(&[]);
                Make::File { content: draft.content, size: draft.size, sparse }
            }
            libc::S_IFLNK => Make::Symlink(self.target(node)),
            libc::S_IFCHR => Make::CharDevice { major: draft.data, minor: draft.extra },
            libc::S_IFBLK => Make::BlockDevice { major: draft.data, minor: draft.extra },
            _ => Make::Fifo,
        };
        (meta, make, pieces)
    }

    /// The node at a path of plain names from the archive's root on; symlinks are not followed.
    pub fn find(&self, path: &str) -> Option<NodeIndex> {
        path.split('/')
            .filter(|p| !p.is_empty())
            .try_fold(ROOT, |at, name| Some(self.entries[self.child(at, name.as_bytes())? as usize].node))
    }

    /// The file at a path; symlinks are followed, within the tree.
    pub fn find_file(&self, path: &str) -> Option<NodeIndex> {
        let mut path = path.to_owned();
        for _ in 0..HOPS_MAX {
            let node = self.find(&path)?;
            if self.mode(node) != libc::S_IFLNK {
                return Some(node);
            }
            let target = std::str::from_utf8(self.target(node)).ok()?;
            let mut parts: Vec<&str> =
                if target.starts_with('/') { Vec::new() } else { path.split('/').collect() };
            parts.pop();
            for part in target.split('/') {
                match part {
                    "" | "." => {}
                    ".." => drop(parts.pop()?),
                    _ => parts.push(part),
                }
            }
            path = parts.join("/");
        }
        None
    }

    /// The names in the archive's root.
    pub fn names_in_root(&self) -> Vec<Vec<u8>> {
        let live = self.entries.iter().filter(|e| e.parent == ROOT && e.node != NONE);
        live.map(|e| name_at(&self.names, e.name).to_vec()).collect()
    }

    /// A regular file's content and size; `None` for anything else, and for sparse files.
    pub fn file(&self, node: NodeIndex) -> Option<(Option<Content>, u64)> {
        let draft = &self.drafts[node as usize];
        (self.mode(node) == libc::S_IFREG && draft.extra == 0).then_some((draft.content, draft.size))
    }

    pub fn is_directory(&self, node: NodeIndex) -> bool {
        self.mode(node) == libc::S_IFDIR
    }
}
