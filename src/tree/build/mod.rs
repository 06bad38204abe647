//! Journey 1, cp in: the entries of an archive become the tree that GNU tar, as root, would have extracted.
//!
//! Nothing is ever extracted to a real directory: paths are matched, component by component, against the tree
//! being built, so that no archive can reach outside of it.

mod beside;
mod finish;
mod layers;

use std::collections::HashMap;

use hashbrown::HashTable;

pub use finish::{Counts, Visit};

use crate::base::digest::Content;
use crate::tree::{MADE, NodeIndex, ROOT};

/// Bytes of a symlink's target: PATH_MAX less its end. readlink(2) gives no more.
const TARGET_MAX: usize = 4095;
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
    /// Bytes that the tree's file will have, at most, with a recipe of usual length.
    pub fn size_bound(&self) -> u64 {
        let texts = self.names.len() + self.targets.len() + self.xattrs.len() + self.sparse.len();
        (texts + self.drafts.len() * 64 + self.entries.len() * 256) as u64
    }

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
    ///
    /// # Errors
    ///
    /// `Refused` for a path that leaves the root or that something else bars, and for a symlink that no system
    /// could follow.
    pub fn add(&mut self, path: &[u8], meta: &Meta, make: Make<'_>) -> Placed<()> {
        if let Make::Symlink(target) = make {
            check_target(target)?;
        }
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
    ///
    /// # Errors
    ///
    /// `Refused` for a path that leaves the root, and for a target that is not there or is a directory.
    pub fn link(&mut self, path: &[u8], target: &[u8], meta: &Meta) -> Placed<()> {
        let missing =
            || Refused { leaves: false, why: format!("its target {:?} is not there", lossy(target)) };
        let (from, target_name) = self.place(target, None)?.ok_or_else(missing)?;
        let entry = self.child(from, &target_name).ok_or_else(missing)?;
        let node = self.entries[entry as usize].node;
        if self.is_directory(node) {
            return refuse("a directory cannot have a second name");
        }
        let Some((parent, name)) = self.place(path, Some(meta))? else {
            return refuse("only a directory can be the root");
        };
        let existing = self.child(parent, &name);
        if let Some(entry) = existing {
            let old = self.entries[entry as usize].node;
            if old == node {
                return Ok(());
            }
            if self.is_directory(old)
                && self.drafts[old as usize].data > 0
                && self.entries[entry as usize].layer == self.layer
            {
                return refuse("a directory that is not empty is in its place");
            }
        }
        self.put(parent, &name, existing, node);
        Ok(())
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
        let Some(name) = path.rsplit(|b| *b == b'/').next().filter(|n| !n.is_empty()) else {
            return Ok(None);
        };
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

    fn step(
        &mut self,
        at: NodeIndex,
        name: &[u8],
        implied: Option<&Meta>,
        hops: &mut u32,
    ) -> Placed<NodeIndex> {
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

/// Refuses a target that symlink(2) does not take: no kernel could read the link back.
fn check_target(target: &[u8]) -> Placed<()> {
    match target.len() {
        0 => refuse("its target is empty"),
        1..=TARGET_MAX if target.contains(&0) => refuse("its target has a zero byte"),
        1..=TARGET_MAX => Ok(()),
        len => refuse(&format!("its target has {len} bytes, and a symlink holds at most {TARGET_MAX}")),
    }
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
