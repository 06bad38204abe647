//! Journey 1, cp in: the entries of an archive become the tree that GNU tar, as root, would have extracted.
//!
//! Nothing is ever extracted to a real directory: paths are matched, component by component, against the tree
//! being built, so that no archive can reach outside of it.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;

use hashbrown::HashTable;
use serde::{Deserialize, Serialize};

use crate::digest::{BlobId, Content, Digest};
use crate::error::{Error, Result};
use crate::format::TREE_MAGIC;
use crate::tree::recipe::RecipeBuilder;
use crate::tree::{HEAD_LEN, MADE, NodeIndex, ROOT, SECTIONS, Section};

/// Symlinks followed on the way to one entry.
const HOPS_MAX: u32 = 40;

/// Why an entry cannot be put into the tree.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused {
    /// It would lie outside of the root.
    pub leaves: bool,
    pub why: String,
}

type Placed<T> = std::result::Result<T, Refused>;

/// Owner, mode and time of an entry.
#[derive(Clone, Debug, Default)]
pub struct Meta {
    /// Permission bits, 07777.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, u32),
    /// Sorted by name, names unique.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What an entry is.
#[derive(Clone, Copy, Debug)]
pub enum Make<'a> {
    /// `size` is what stat shows; `sparse` says where the content's bytes lie in it.
    File {
        content: Option<Content>,
        size: u64,
        sparse: Option<&'a [(u64, u64)]>,
    },
    Directory,
    Symlink(&'a [u8]),
    CharDevice {
        major: u32,
        minor: u32,
    },
    BlockDevice {
        major: u32,
        minor: u32,
    },
    Fifo,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Attr {
    mode: u32,
    uid: u32,
    gid: u32,
    xattrs: u32,
}

struct Draft {
    attr: u32,
    size: u64,
    mtime: (i64, u32),
    /// Symlink: place of its target in `targets`. Device: major. Directory: number of children.
    data: u32,
    /// Sparse map or minor.
    extra: u32,
    /// Directory: the one it is in.
    parent: NodeIndex,
    content: Option<Content>,
}

/// No node: what an entry that was removed leads to.
const NONE: u32 = u32::MAX;
/// Bytes that all names, all symlinks and so on of a tree may have.
const HEAP_MAX: usize = 1 << 30;

struct Entry {
    parent: NodeIndex,
    node: NodeIndex,
    name: u32,
    /// The layer that put it there last.
    layer: u32,
}

/// A tree being built.
pub struct Builder {
    drafts: Vec<Draft>,
    entries: Vec<Entry>,
    by_name: HashTable<u32>,
    names: Vec<u8>,
    targets: Vec<u8>,
    attrs: Vec<Attr>,
    attr_of: HashMap<Attr, u32>,
    xattrs: Vec<u8>,
    xattrs_of: HashMap<Vec<u8>, u32>,
    sparse: Vec<u8>,
    /// The directory of the last entry: archives list a directory's files together.
    last: Option<(Vec<u8>, NodeIndex)>,
    /// What rootfs is: the archive's root, or a directory of it.
    root: NodeIndex,
    /// What lies beside rootfs in the version.
    beside: Option<NodeIndex>,
    /// Of an image in layers: the one being put over the others, from 1 on. 0: what comes is one archive.
    layer: u32,
    /// Directories whose content below this layer goes.
    opaque: Vec<NodeIndex>,
}

impl Default for Builder {
    fn default() -> Builder {
        Builder::new()
    }
}

impl Builder {
    pub fn new() -> Builder {
        let mut builder = Builder {
            drafts: Vec::new(),
            entries: Vec::new(),
            by_name: HashTable::new(),
            names: Vec::new(),
            targets: Vec::new(),
            attrs: Vec::new(),
            attr_of: HashMap::new(),
            xattrs: Vec::new(),
            xattrs_of: HashMap::new(),
            sparse: Vec::new(),
            last: None,
            root: ROOT,
            beside: None,
            layer: 0,
            opaque: Vec::new(),
        };
        let meta = Meta { mode: 0o755, ..Meta::default() };
        let root = builder.draft(&meta, Make::Directory, ROOT);
        debug_assert_eq!(root, ROOT);
        builder
    }

    /// Puts an entry at `path`, replacing what tar would replace.
    pub fn add(&mut self, path: &[u8], meta: &Meta, make: Make<'_>) -> Placed<()> {
        let Some((parent, name)) = self.place(path, Some(meta))? else {
            // `./`: the root itself.
            if !matches!(make, Make::Directory) {
                return refuse("only a directory can be the root");
            }
            self.set_meta(ROOT, meta);
            return Ok(());
        };
        let existing = self.child(parent, &name);
        if let Some(entry) = existing {
            let old = self.entries[entry as usize].node;
            if self.is_directory(old) {
                if matches!(make, Make::Directory) {
                    self.set_meta(old, meta);
                    self.entries[entry as usize].layer = self.layer;
                    return Ok(());
                }
                if self.drafts[old as usize].data > 0 && self.entries[entry as usize].layer == self.layer {
                    return refuse("a directory that is not empty is in its place");
                }
            }
        }
        let node = self.draft(meta, make, parent);
        self.put(parent, &name, existing, node);
        Ok(())
    }

    /// Makes `path` another name of what `target` names.
    pub fn link(&mut self, path: &[u8], target: &[u8], meta: &Meta) -> Placed<()> {
        let missing = || Refused { leaves: false, why: format!("its target {:?} is not there", lossy(target)) };
        let (from, target_name) = self.place(target, None)?.ok_or_else(missing)?;
        let entry = self.child(from, &target_name).ok_or_else(missing)?;
        let node = self.entries[entry as usize].node;
        if self.is_directory(node) {
            return refuse("a directory cannot have a second name");
        }
        let Some((parent, name)) = self.place(path, Some(meta))? else { return refuse("only a directory can be the root") };
        let existing = self.child(parent, &name);
        if let Some(entry) = existing {
            let old = self.entries[entry as usize].node;
            if old == node {
                return Ok(());
            }
            if self.is_directory(old) && self.drafts[old as usize].data > 0 && self.entries[entry as usize].layer == self.layer {
                return refuse("a directory that is not empty is in its place");
            }
        }
        self.put(parent, &name, existing, node);
        Ok(())
    }

    /// Begins the next layer of an image: it goes over what is there.
    pub fn begin_layer(&mut self) {
        self.layer += 1;
        self.last = None;
    }

    /// A whiteout: what lower layers have under this path goes.
    ///
    /// Source: OCI image-spec, layer.md, "Whiteouts".
    pub fn white_out(&mut self, path: &[u8]) -> Placed<()> {
        let Some((parent, name)) = self.place(path, Some(&Meta::default()))? else { return refuse("the root cannot be removed") };
        let Some(at) = self.child(parent, &name) else { return Ok(()) };
        let entry = &self.entries[at as usize];
        if entry.layer < self.layer {
            self.remove(at);
        } else if self.is_directory(entry.node) {
            self.opaque.push(entry.node);
        }
        Ok(())
    }

    /// An opaque whiteout: what lower layers have in this directory goes.
    pub fn make_opaque(&mut self, path: &[u8]) -> Placed<()> {
        let inside = [path, b"/x"].concat();
        let Some((directory, _)) = self.place(&inside, Some(&Meta::default()))? else { return Ok(()) };
        self.opaque.push(directory);
        Ok(())
    }

    /// Ends a layer: its opaque directories lose what the layer itself did not bring, in whatever order that came.
    pub fn end_layer(&mut self) {
        let opaque = std::mem::take(&mut self.opaque);
        if opaque.is_empty() {
            return;
        }
        let (order, children) = self.listings();
        let mut seen = vec![false; self.drafts.len()];
        let mut doomed = Vec::new();
        for top in opaque {
            // Each directory twice: on the way down, and when all below it is known.
            let mut todo = vec![(top, false)];
            while let Some((directory, known)) = todo.pop() {
                let (first, count) = children[directory as usize];
                let below = &order[first as usize..(first + count) as usize];
                if known {
                    for &e in below {
                        let entry = &self.entries[e as usize];
                        let holds = self.is_directory(entry.node) && self.drafts[entry.node as usize].data > 0;
                        if entry.layer < self.layer && !holds {
                            self.remove(e);
                        }
                    }
                } else if !std::mem::replace(&mut seen[directory as usize], true) {
                    todo.push((directory, true));
                    let nodes = below.iter().map(|e| self.entries[*e as usize].node);
                    doomed.extend(nodes.filter(|n| self.is_directory(*n)));
                    todo.extend(doomed.drain(..).map(|n| (n, false)));
                }
            }
        }
    }

    fn remove(&mut self, at: u32) {
        let entry = &self.entries[at as usize];
        let (parent, hash) = (entry.parent, hash_name(entry.parent, name_at(&self.names, entry.name)));
        if let Ok(found) = self.by_name.find_entry(hash, |&e| e == at) {
            found.remove();
        }
        self.drafts[parent as usize].data -= 1;
        self.entries[at as usize].node = NONE;
        self.last = None;
    }

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

    /// Makes a directory of the tree its rootfs. What lies outside of it is dropped, but for what is shown beside.
    pub fn set_root(&mut self, directory: NodeIndex) {
        self.root = directory;
    }

    /// A directory that has no name yet.
    pub fn new_directory(&mut self) -> NodeIndex {
        self.draft(&Meta { mode: 0o755, ..Meta::default() }, Make::Directory, ROOT)
    }

    /// Shows what another tree has at a path of plain names beside this one's rootfs, with all below it. Both have
    /// their content from the same upload.
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
            Make::File { content, size, sparse: Some(_) } => Make::File { content, size, sparse: Some(&pieces) },
            make => make,
        };
        self.draft(&meta, make, parent)
    }

    /// What a node is; the pieces of a sparse file stand apart.
    fn describe(&self, node: NodeIndex) -> (Meta, Make<'_>, Vec<(u64, u64)>) {
        let draft = &self.drafts[node as usize];
        let attr = self.attrs[draft.attr as usize];
        let xattrs = self.xattrs_at(attr.xattrs);
        let meta = Meta { mode: attr.mode & 0o7777, uid: attr.uid, gid: attr.gid, mtime: draft.mtime, xattrs };
        let mut pieces = Vec::new();
        let make = match attr.mode & libc::S_IFMT {
            libc::S_IFDIR => Make::Directory,
            libc::S_IFREG => {
                pieces = self.pieces_at(draft.extra);
                let sparse: Option<&[(u64, u64)]> = (draft.extra != 0 && draft.extra & MADE == 0).then_some(&[]);
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
            let mut parts: Vec<&str> = if target.starts_with('/') { Vec::new() } else { path.split('/').collect() };
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

    fn put(&mut self, parent: NodeIndex, name: &[u8], existing: Option<u32>, node: NodeIndex) {
        match existing {
            Some(entry) => {
                // What is replaced may have been on the way to the last directory.
                self.last = None;
                (self.entries[entry as usize].node, self.entries[entry as usize].layer) = (node, self.layer);
            }
            None => {
                let at = self.names.len() as u32;
                self.names.push(name.len() as u8);
                self.names.extend_from_slice(name);
                let entry = self.entries.len() as u32;
                self.entries.push(Entry { parent, node, name: at, layer: self.layer });
                let (entries, names) = (&self.entries, &self.names);
                self.by_name.insert_unique(hash_name(parent, name), entry, |&e| {
                    let e = &entries[e as usize];
                    hash_name(e.parent, name_at(names, e.name))
                });
                self.drafts[parent as usize].data += 1;
            }
        }
    }

    fn draft(&mut self, meta: &Meta, make: Make<'_>, parent: NodeIndex) -> NodeIndex {
        let (format, size, data, extra, content) = match make {
            Make::File { content, size, sparse } => {
                let map = sparse.map_or(0, |pieces| {
                    let at = self.sparse.len() as u32 + 1;
                    self.sparse.extend_from_slice(&(pieces.len() as u32).to_le_bytes());
                    for (offset, len) in pieces {
                        self.sparse.extend_from_slice(&offset.to_le_bytes());
                        self.sparse.extend_from_slice(&len.to_le_bytes());
                    }
                    at
                });
                let made = if let Some(Content::Recipe(n)) = content { MADE | n } else { 0 };
                (libc::S_IFREG, size, 0, map | made, content)
            }
            Make::Directory => (libc::S_IFDIR, 0, 0, 0, None),
            Make::Symlink(target) => {
                let at = self.targets.len() as u32;
                self.targets.extend_from_slice(&(target.len() as u32).to_le_bytes());
                self.targets.extend_from_slice(target);
                (libc::S_IFLNK, target.len() as u64, at, 0, None)
            }
            Make::CharDevice { major, minor } => (libc::S_IFCHR, 0, major, minor, None),
            Make::BlockDevice { major, minor } => (libc::S_IFBLK, 0, major, minor, None),
            Make::Fifo => (libc::S_IFIFO, 0, 0, 0, None),
        };
        let attr = self.attr(meta, format);
        let node = self.drafts.len() as NodeIndex;
        self.drafts.push(Draft { attr, size, mtime: meta.mtime, data, extra, parent, content });
        node
    }

    fn set_meta(&mut self, node: NodeIndex, meta: &Meta) {
        let attr = self.attr(meta, libc::S_IFDIR);
        let draft = &mut self.drafts[node as usize];
        (draft.attr, draft.mtime) = (attr, meta.mtime);
    }

    fn attr(&mut self, meta: &Meta, format: u32) -> u32 {
        let xattrs = if meta.xattrs.is_empty() { 0 } else { self.xattr_set(&meta.xattrs) };
        let attr = Attr { mode: format | meta.mode & 0o7777, uid: meta.uid, gid: meta.gid, xattrs };
        *self.attr_of.entry(attr).or_insert_with(|| {
            self.attrs.push(attr);
            self.attrs.len() as u32 - 1
        })
    }

    fn xattr_set(&mut self, xattrs: &[(Vec<u8>, Vec<u8>)]) -> u32 {
        let mut set = (xattrs.len() as u32).to_le_bytes().to_vec();
        for (name, value) in xattrs {
            set.extend_from_slice(&(name.len() as u32).to_le_bytes());
            set.extend_from_slice(&(value.len() as u32).to_le_bytes());
            set.extend_from_slice(name);
            set.extend_from_slice(value);
        }
        if let Some(&at) = self.xattrs_of.get(&set) {
            return at;
        }
        let at = self.xattrs.len() as u32 + 1;
        self.xattrs.extend_from_slice(&set);
        self.xattrs_of.insert(set, at);
        at
    }

    fn mode(&self, node: NodeIndex) -> u32 {
        self.attrs[self.drafts[node as usize].attr as usize].mode & libc::S_IFMT
    }

    fn child(&self, parent: NodeIndex, name: &[u8]) -> Option<u32> {
        let same = |&e: &u32| {
            let e = &self.entries[e as usize];
            e.parent == parent && name_at(&self.names, e.name) == name
        };
        self.by_name.find(hash_name(parent, name), same).copied()
    }

    /// The directory and name that a path of the archive means; nothing for the root. With `implied`, missing
    /// directories on the way are made, as tar does.
    fn place(&mut self, path: &[u8], implied: Option<&Meta>) -> Placed<Option<(NodeIndex, Vec<u8>)>> {
        let path = clean(path)?;
        let Some(name) = path.rsplit(|b| *b == b'/').next().filter(|n| !n.is_empty()) else { return Ok(None) };
        let directory = &path[..path.len() - name.len()];
        if let Some((last, node)) = &self.last
            && last == directory
        {
            return Ok(Some((*node, name.to_vec())));
        }
        let mut at = ROOT;
        for part in directory.split(|b| *b == b'/').filter(|p| !p.is_empty()) {
            at = self.step(at, part, implied, &mut 0)?;
        }
        // Symlinks on the way may be replaced later: `put` forgets this.
        let found = (at, name.to_vec());
        self.last = Some((directory.to_vec(), at));
        Ok(Some(found))
    }

    fn step(&mut self, at: NodeIndex, name: &[u8], implied: Option<&Meta>, hops: &mut u32) -> Placed<NodeIndex> {
        let Some(entry) = self.child(at, name) else {
            let Some(meta) = implied else { return refuse("a directory on its way is not there") };
            let meta = Meta { mode: 0o755, mtime: meta.mtime, ..Meta::default() };
            let node = self.draft(&meta, Make::Directory, at);
            self.put(at, name, None, node);
            return Ok(node);
        };
        let node = self.entries[entry as usize].node;
        match self.mode(node) {
            libc::S_IFDIR => Ok(node),
            libc::S_IFLNK => {
                *hops += 1;
                if *hops > HOPS_MAX {
                    return refuse("the symlinks on its way go in a circle");
                }
                let target = self.target(node).to_vec();
                // Layers are put over each other in the root of a container: there is no outside.
                let contained = self.layer > 0;
                if target.starts_with(b"/") && !contained {
                    return leaves(format!("{:?} is a symlink to {:?}", lossy(name), lossy(&target)));
                }
                let mut to = if target.starts_with(b"/") { ROOT } else { at };
                for part in target.split(|b| *b == b'/') {
                    to = match part {
                        b"" | b"." => to,
                        b".." if to == ROOT && !contained => {
                            return leaves(format!("{:?} is a symlink to {:?}", lossy(name), lossy(&target)));
                        }
                        b".." => self.drafts[to as usize].parent,
                        _ => self.step(to, part, None, hops)?,
                    };
                }
                Ok(to)
            }
            _ => refuse(&format!("{:?} on its way is not a directory", lossy(name))),
        }
    }

    fn target(&self, node: NodeIndex) -> &[u8] {
        let at = self.drafts[node as usize].data as usize;
        let len = u32::from_le_bytes(self.targets[at..at + 4].try_into().expect("four bytes")) as usize;
        &self.targets[at + 4..at + 4 + len]
    }

    /// Writes the tree file, durably, and gives its digest and what was counted. `recipes`: that of rootfs.tar, if
    /// there is a rootfs, and those that other files are made by, from number 1 on. `id` says which blob a content
    /// became.
    ///
    /// Errors: `Io`, `OverLimit`.
    pub fn finish(
        self,
        path: &Path,
        tar: Option<RecipeBuilder>,
        more: Vec<RecipeBuilder>,
        id: impl Fn(Content) -> Option<BlobId>,
        facts: impl FnOnce(&Counts) -> Vec<u8>,
    ) -> Result<(Digest, Counts)> {
        self.check_heaps()?;
        let Numbered { nodes, entries, names, beside, mut blobs, counts } = self.number(&id);
        let mut attrs = Vec::with_capacity(self.attrs.len() * 16);
        for attr in &self.attrs {
            for value in [attr.mode, attr.uid, attr.gid, attr.xattrs] {
                attrs.extend_from_slice(&value.to_le_bytes());
            }
        }
        for recipe in tar.iter().chain(&more) {
            blobs.extend(recipe.contents().filter_map(&id));
        }
        blobs.sort_unstable();
        blobs.dedup();
        let blobs: Vec<u8> = blobs.iter().flat_map(|b| b.to_le_bytes()).collect();
        let mut sections: [Vec<u8>; SECTIONS] = Default::default();
        sections[Section::Facts as usize] = facts(&counts);
        sections[Section::Attrs as usize] = attrs;
        sections[Section::Nodes as usize] = nodes;
        sections[Section::Entries as usize] = entries;
        sections[Section::Names as usize] = names;
        sections[Section::Xattrs as usize] = self.xattrs;
        sections[Section::Sparse as usize] = self.sparse;
        sections[Section::Blobs as usize] = blobs;
        sections[Section::Recipe as usize] = tar.map(|tar| tar.finish(&id)).transpose()?.unwrap_or_default();
        sections[Section::Beside as usize] = beside.map(|n| n.to_le_bytes().to_vec()).unwrap_or_default();
        sections[Section::More as usize] = join(more.into_iter().map(|recipe| recipe.finish(&id)).collect::<Result<_>>()?);
        Ok((write(path, &sections)?, counts))
    }

    /// Whether the tree can hold what it was given; asked now and then, so that nothing grows without end.
    ///
    /// Errors: `OverLimit`.
    pub fn check_heaps(&self) -> Result<()> {
        for (heap, what) in
            [(&self.names, "names"), (&self.targets, "symlinks"), (&self.xattrs, "xattrs"), (&self.sparse, "sparse maps")]
        {
            if heap.len() > HEAP_MAX {
                return Err(Error::OverLimit { what: format!("the size of all {what}"), limit: "1 GiB".into() });
            }
        }
        Ok(())
    }

    /// The live entries of each directory, in the order of their names: entries, and where each directory's begin and
    /// how many they are.
    fn listings(&self) -> (Vec<u32>, Vec<(u32, u32)>) {
        let name_of = |e: u32| name_at(&self.names, self.entries[e as usize].name);
        let mut order: Vec<u32> = (0..self.entries.len() as u32).filter(|e| self.entries[*e as usize].node != NONE).collect();
        order.sort_unstable_by(|&a, &b| {
            let (x, y) = (&self.entries[a as usize], &self.entries[b as usize]);
            x.parent.cmp(&y.parent).then_with(|| name_of(a).cmp(name_of(b)))
        });
        let mut children = vec![(0u32, 0u32); self.drafts.len()];
        for (i, &e) in order.iter().enumerate() {
            let range = &mut children[self.entries[e as usize].parent as usize];
            if range.1 == 0 {
                range.0 = i as u32;
            }
            range.1 += 1;
        }
        (order, children)
    }

    /// Gives nodes their numbers: a directory's children together, in the order of their names.
    fn number(&self, id: impl Fn(Content) -> Option<BlobId>) -> Numbered {
        let (order, children) = self.listings();
        let mut number = vec![NONE; self.drafts.len()];
        let mut links = vec![0u32; self.drafts.len()];
        let mut by_number: Vec<NodeIndex> = Vec::new();
        let (mut entries, mut names) = (Vec::new(), Vec::new());
        // (first entry, number of entries, subdirectories) of directories, by draft.
        let mut listing: HashMap<NodeIndex, (u32, u32, u32)> = HashMap::new();
        for top in std::iter::once(self.root).chain(self.beside) {
            number[top as usize] = by_number.len() as u32;
            by_number.push(top);
            let mut todo = vec![top];
            while let Some(directory) = todo.pop() {
                let (first, count) = children[directory as usize];
                let first_entry = (entries.len() / 8) as u32;
                let mut below = Vec::new();
                for &e in &order[first as usize..(first + count) as usize] {
                    let entry = &self.entries[e as usize];
                    let (node, name) = (entry.node, name_at(&self.names, entry.name));
                    if number[node as usize] == NONE {
                        number[node as usize] = by_number.len() as u32;
                        by_number.push(node);
                    }
                    links[node as usize] += 1;
                    if self.is_directory(node) {
                        below.push(node);
                    }
                    entries.extend_from_slice(&number[node as usize].to_le_bytes());
                    entries.extend_from_slice(&(names.len() as u32).to_le_bytes());
                    names.push(name.len() as u8);
                    names.extend_from_slice(name);
                }
                listing.insert(directory, (first_entry, count, below.len() as u32));
                todo.extend(below.into_iter().rev());
            }
        }
        let mut counts = Counts::default();
        let (mut nodes, mut blobs) = (Vec::with_capacity(by_number.len() * 40), Vec::new());
        let outside = self.beside.map_or(NONE, |beside| number[beside as usize]);
        for (n, &node) in by_number.iter().enumerate() {
            let draft = &self.drafts[node as usize];
            let (mut count, mut data, mut extra, mut parent) = (links[node as usize], draft.data, draft.extra, 0);
            // What lies beside rootfs is no part of it.
            let mut ignored = Counts::default();
            let counts = if (n as u32) < outside { &mut counts } else { &mut ignored };
            match self.mode(node) {
                libc::S_IFDIR => {
                    let (first, number_of, below) = listing.get(&node).copied().unwrap_or_default();
                    (count, data, extra) = (2 + below, first, number_of);
                    let up = number[draft.parent as usize];
                    parent = if node == self.root || up == NONE { number[node as usize] } else { up };
                    counts.directories += 1;
                }
                libc::S_IFREG => {
                    data = draft.content.and_then(&id).unwrap_or(0);
                    if data != 0 {
                        blobs.push(data);
                    }
                    counts.files += 1;
                    counts.hard_links += u64::from(count) - 1;
                    counts.logical_bytes = counts.logical_bytes.saturating_add(draft.size);
                }
                libc::S_IFLNK => {
                    // Targets follow the names in one section.
                    let target = self.target(node);
                    data = names.len() as u32;
                    names.extend_from_slice(&(target.len() as u32).to_le_bytes());
                    names.extend_from_slice(target);
                    counts.symlinks += 1;
                    counts.hard_links += u64::from(count) - 1;
                }
                libc::S_IFIFO => counts.fifos += 1,
                _ => counts.devices += 1,
            }
            for value in [draft.attr, count] {
                nodes.extend_from_slice(&value.to_le_bytes());
            }
            nodes.extend_from_slice(&draft.size.to_le_bytes());
            nodes.extend_from_slice(&draft.mtime.0.to_le_bytes());
            for value in [draft.mtime.1, data, extra, parent] {
                nodes.extend_from_slice(&value.to_le_bytes());
            }
        }
        let beside = self.beside.map(|node| number[node as usize]);
        Numbered { nodes, entries, names, beside, blobs, counts }
    }

    /// Shows every name below rootfs to `visit`, a directory before what it holds, in the order of the names.
    pub fn visit(&self, mut visit: impl FnMut(Visit<'_>) -> Result<()>) -> Result<()> {
        let (order, children) = self.listings();
        let mut first_names: HashMap<NodeIndex, Vec<u8>> = HashMap::new();
        let mut shared = vec![0u32; self.drafts.len()];
        self.entries.iter().filter(|e| e.node != NONE).for_each(|e| shared[e.node as usize] += 1);
        let mut todo = vec![(Vec::new(), self.root)];
        while let Some((path, node)) = todo.pop() {
            let (meta, make, pieces) = self.describe(node);
            let make = match make {
                Make::File { content, size, sparse: Some(_) } => Make::File { content, size, sparse: Some(&pieces) },
                make => make,
            };
            let first = first_names.get(&node).map(Vec::as_slice);
            visit(Visit { path: &path, meta: &meta, make, first })?;
            if shared[node as usize] > 1 && first.is_none() && !self.is_directory(node) {
                first_names.insert(node, path.clone());
            }
            if self.is_directory(node) {
                let (first, count) = children[node as usize];
                for &e in order[first as usize..(first + count) as usize].iter().rev() {
                    let entry = &self.entries[e as usize];
                    let mut below = path.clone();
                    if !below.is_empty() {
                        below.push(b'/');
                    }
                    below.extend_from_slice(name_at(&self.names, entry.name));
                    todo.push((below, entry.node));
                }
            }
        }
        Ok(())
    }

    fn xattrs_at(&self, at: u32) -> Vec<(Vec<u8>, Vec<u8>)> {
        let word = |at: usize| u32::from_le_bytes(self.xattrs[at..at + 4].try_into().expect("four bytes")) as usize;
        let Some(at) = (at as usize).checked_sub(1) else { return Vec::new() };
        let (count, mut at) = (word(at), at + 4);
        let mut found = Vec::with_capacity(count);
        for _ in 0..count {
            let (name, value) = (word(at), word(at + 4));
            at += 8;
            found.push((self.xattrs[at..at + name].to_vec(), self.xattrs[at + name..at + name + value].to_vec()));
            at += name + value;
        }
        found
    }

    fn pieces_at(&self, extra: u32) -> Vec<(u64, u64)> {
        let Some(at) = (extra as usize).checked_sub(1).filter(|_| extra & MADE == 0) else { return Vec::new() };
        let Some(map) = self.sparse.get(at..) else { return Vec::new() };
        let count = u32::from_le_bytes(map[..4].try_into().expect("four bytes")) as usize;
        let number = |b: &[u8]| u64::from_le_bytes(b.try_into().expect("eight bytes"));
        map[4..].chunks_exact(16).take(count).map(|p| (number(&p[..8]), number(&p[8..]))).collect()
    }
}

/// The sections that hold nodes and names.
struct Numbered {
    nodes: Vec<u8>,
    entries: Vec<u8>,
    names: Vec<u8>,
    beside: Option<NodeIndex>,
    blobs: Vec<BlobId>,
    counts: Counts,
}

/// One name below rootfs, as `Builder::visit` shows it.
pub struct Visit<'v> {
    /// Without a slash at the beginning or the end; empty for rootfs itself.
    pub path: &'v [u8],
    pub meta: &'v Meta,
    pub make: Make<'v>,
    /// The same node was shown under this path before.
    pub first: Option<&'v [u8]>,
}

/// The section of recipes 1, 2 and so on.
fn join(recipes: Vec<Vec<u8>>) -> Vec<u8> {
    if recipes.is_empty() {
        return Vec::new();
    }
    let mut out = (recipes.len() as u64).to_le_bytes().to_vec();
    let mut at = (8 + recipes.len() * 16) as u64;
    for recipe in &recipes {
        out.extend_from_slice(&at.to_le_bytes());
        out.extend_from_slice(&(recipe.len() as u64).to_le_bytes());
        at += recipe.len() as u64;
    }
    recipes.iter().for_each(|recipe| out.extend_from_slice(recipe));
    out
}

/// What a tree holds, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    pub files: u64,
    pub directories: u64,
    pub symlinks: u64,
    /// Names beyond the first.
    pub hard_links: u64,
    pub devices: u64,
    pub fifos: u64,
    /// Sum of the sizes of all files, each once.
    pub logical_bytes: u64,
}

fn write(path: &Path, sections: &[Vec<u8>; SECTIONS]) -> Result<Digest> {
    let mut head = TREE_MAGIC.to_vec();
    let mut at = HEAD_LEN as u64;
    for section in sections {
        at = at.next_multiple_of(8);
        head.extend_from_slice(&at.to_le_bytes());
        head.extend_from_slice(&(section.len() as u64).to_le_bytes());
        at += section.len() as u64;
    }
    let mut file = File::create(path).map_err(Error::io("create", path))?;
    let mut hasher = blake3::Hasher::new();
    let mut written = 0usize;
    for part in std::iter::once(&head).chain(sections) {
        let padding = [0u8; 8];
        let padding = &padding[..written.next_multiple_of(8) - written];
        for bytes in [padding, part] {
            file.write_all(bytes).map_err(Error::io("write", path))?;
            hasher.update(bytes);
            written += bytes.len();
        }
    }
    file.sync_all().map_err(Error::io("sync", path))?;
    Ok(Digest(*hasher.finalize().as_bytes()))
}

/// A path of the archive less what does not matter: leading and doubled slashes, `.`, a trailing slash.
fn clean(path: &[u8]) -> Placed<Vec<u8>> {
    let mut out = Vec::with_capacity(path.len());
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return leaves("it has a .. in its path".into()),
            _ if part.len() > 255 => return refuse("a name in its path is over 255 bytes"),
            _ if part.contains(&0) => return refuse("a name in its path has a zero byte"),
            _ => {
                if !out.is_empty() {
                    out.push(b'/');
                }
                out.extend_from_slice(part);
            }
        }
    }
    Ok(out)
}

fn name_at(names: &[u8], at: u32) -> &[u8] {
    let at = at as usize;
    &names[at + 1..at + 1 + usize::from(names[at])]
}

fn hash_name(parent: NodeIndex, name: &[u8]) -> u64 {
    // FNV-1a over the name, then mixed: names of one directory often differ in the last byte only.
    let mut hash = 0xcbf2_9ce4_8422_2325 ^ u64::from(parent).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    for &byte in name {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash ^ hash >> 29
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn refuse<T>(why: &str) -> Placed<T> {
    Err(Refused { leaves: false, why: why.into() })
}

fn leaves<T>(why: String) -> Placed<T> {
    Err(Refused { leaves: true, why })
}
