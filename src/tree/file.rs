//! Journey 2, ls and stat: a tree file, mapped and read in place.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use memmap2::Mmap;

use crate::base::digest::{BlobId, Digest};
use crate::base::sys;
use crate::error::{Error, Result};
use crate::format::{PACKED_TREE_MAGIC, PACKED_TREE_MAGIC_1, TREE_MAGIC, TREE_MAGIC_1};
use crate::tree::packed::{self, Packed, nameless};
use crate::tree::recipe::Recipe;
use crate::tree::{
    ATTR_LEN, ENTRY_LEN, MADE, NODE_LEN, NodeIndex, SECTIONS, SECTIONS_1, Section, join, lay_out,
};

/// A version's tree.
pub struct Tree {
    path: PathBuf,
    map: Mmap,
    /// Bytes of the file.
    stored: AtomicU64,
    /// Whether the file is packed by now.
    at_rest: AtomicBool,
    /// Checked when opened: within the map, whole rows.
    sections: [(usize, usize); SECTIONS],
    /// What it was unpacked from.
    packed: Option<Packed>,
    /// The inline bytes of its recipes, if it is packed and one of them was read.
    inline: OnceLock<Mmap>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeKind {
    File(Bytes),
    Directory { first: u32, count: u32 },
    Symlink,
    CharDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
    Fifo,
}

/// Where a file's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bytes {
    None,
    Blob(BlobId),
    /// The blob holds the pieces of a sparse file, back to back.
    Sparse(BlobId),
    /// Made by the recipe with this number.
    Recipe(u32),
}

/// What stat shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    pub kind: NodeKind,
    /// Permission bits, 07777.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub links: u32,
    /// Bytes: of a file's content, a symlink's target.
    pub size: u64,
    /// Seconds since 1970 and nanoseconds.
    pub mtime: (i64, u32),
    xattrs: u32,
    data: u32,
    extra: u32,
    parent: u32,
}

impl Tree {
    /// Opens a tree, as it was written or packed, and checks it against the digest in its version's row.
    ///
    /// # Errors
    ///
    /// `Corrupt`, `Io`.
    pub fn open(path: &Path, digest: &Digest) -> Result<Tree> {
        let (tree, found) = Tree::read(path)?;
        if found == *digest {
            Ok(tree)
        } else {
            Err(tree.corrupt("its bytes do not match the digest in the catalog"))
        }
    }

    /// Opens a tree whose row is lost: with the digest that a row of it is to have.
    ///
    /// # Errors
    ///
    /// `Corrupt`, `Io`.
    pub fn read(path: &Path) -> Result<(Tree, Digest)> {
        let mut file = File::open(path).map_err(Error::io("open", path))?;
        let stored = file.metadata().map_err(Error::io("stat", path))?.len();
        let mut head = [0; 16];
        let _ = file.read_exact_at(&mut head, 0);
        if head == *PACKED_TREE_MAGIC {
            let packed = Packed::open(path)?;
            let mut tree = Tree::parse(path, &nameless(path, &packed.part(0)?)?, stored)?;
            let digest = packed.digest();
            tree.packed = Some(packed);
            tree.at_rest = true.into();
            return Ok((tree, digest));
        }
        let found = if head == *PACKED_TREE_MAGIC_1 {
            // What does not look like zstd is no tree either: the digest says so.
            let _ = file.seek(SeekFrom::Start(head.len() as u64)).map_err(Error::io("read", path))?;
            let packed = zstd::Decoder::new(file).map_err(Error::io("unpack", path))?;
            file = nameless(path, &[])?;
            digest_of(packed, |bytes| file.write_all(bytes)).map_err(Error::io("unpack", path))?
        } else {
            // Read, not mapped: a check through the map would keep the whole tree in memory.
            digest_of(&file, |_| Ok(())).map_err(Error::io("read", path))?
        };
        Ok((Tree::parse(path, &file, stored)?, found))
    }

    pub fn is_packed(&self) -> bool {
        self.at_rest.load(Ordering::Acquire)
    }

    /// What the file of this tree, which has the digest, is to be at rest: against one of the trees in
    /// `bases`, if that is worth it. And the version whose tree it then needs.
    ///
    /// # Errors
    ///
    /// `Corrupt`, `Io`.
    pub fn pack(&self, digest: Digest, bases: &[PathBuf]) -> Result<(Vec<u8>, Option<String>)> {
        let mut sections: [Vec<u8>; SECTIONS] = self.sections.map(|(from, to)| self.map[from..to].to_vec());
        let (mut recipes, mut inline) = (Vec::new(), Vec::new());
        for number in u32::from(!self.has_rootfs())..=self.more_recipes() {
            let (recipe, bytes) = self.recipe(number)?.split()?;
            recipes.push(recipe);
            inline.extend_from_slice(&bytes);
        }
        if self.has_rootfs() {
            sections[Section::Recipe as usize] = recipes.remove(0);
        }
        sections[Section::More as usize] = join(recipes);
        let mut tree = Vec::with_capacity(self.map.len());
        lay_out(&sections, |bytes| tree.write_all(bytes)).map_err(Error::io("pack", &self.path))?;
        packed::pack(digest, [tree, inline], bases)
    }

    /// The file is packed now. Who has it open keeps what it has.
    pub fn has_been_packed(&self, stored: u64) {
        self.stored.store(stored, Ordering::Relaxed);
        self.at_rest.store(true, Ordering::Release);
    }

    /// The inline bytes of all recipes of a packed tree.
    pub(super) fn inline(&self) -> Result<&[u8]> {
        if let Some(inline) = self.inline.get() {
            return Ok(inline);
        }
        let packed = self.packed.as_ref().ok_or_else(|| self.corrupt("a recipe's bytes are elsewhere"))?;
        let inline = sys::map(&nameless(&self.path, &packed.part(1)?)?, &self.path)?;
        Ok(self.inline.get_or_init(|| inline))
    }

    fn parse(path: &Path, file: &File, stored: u64) -> Result<Tree> {
        let mut tree = Tree {
            path: path.to_owned(),
            map: sys::map(file, path)?,
            stored: stored.into(),
            at_rest: false.into(),
            sections: Default::default(),
            packed: None,
            inline: OnceLock::new(),
        };
        let sections = match tree.map.first_chunk::<16>() {
            Some(TREE_MAGIC) => SECTIONS,
            Some(TREE_MAGIC_1) => SECTIONS_1,
            _ => return Err(tree.corrupt("it does not begin as a tree")),
        };
        if tree.map.len() < 16 + sections * 16 {
            return Err(tree.corrupt("it is too short"));
        }
        for n in 0..sections {
            let field = |at: usize| u64::from_le_bytes(tree.map[at..at + 8].try_into().expect("eight bytes"));
            let (at, len) = (field(16 + n * 16), field(24 + n * 16));
            let end = at.checked_add(len).filter(|e| *e <= tree.map.len() as u64);
            let Some(end) = end else { return Err(tree.corrupt("a section lies outside the file")) };
            tree.sections[n] = (at as usize, end as usize);
        }
        let whole = |section: Section, row: usize| tree.section(section).len().is_multiple_of(row);
        if !whole(Section::Attrs, ATTR_LEN)
            || !whole(Section::Nodes, NODE_LEN)
            || !whole(Section::Entries, ENTRY_LEN)
            || !whole(Section::Blobs, 4)
            || tree.is_empty()
        {
            return Err(tree.corrupt("a section has a broken row"));
        }
        Ok(tree)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of nodes.
    pub fn len(&self) -> u32 {
        u32::try_from(self.section(Section::Nodes).len() / NODE_LEN).unwrap_or(u32::MAX)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of the tree file.
    pub fn file_size(&self) -> u64 {
        self.stored.load(Ordering::Relaxed)
    }

    fn section(&self, section: Section) -> &[u8] {
        let (from, to) = self.sections[section as usize];
        &self.map[from..to]
    }

    fn corrupt(&self, why: &str) -> Error {
        Error::Corrupt { what: self.path.display().to_string(), why: why.into() }
    }

    /// Reads a node.
    ///
    /// # Errors
    ///
    /// `Corrupt` if there is no such node or it makes no sense.
    pub fn node(&self, index: NodeIndex) -> Result<Node> {
        let raw = row(self.section(Section::Nodes), index, NODE_LEN)
            .ok_or_else(|| self.corrupt("a node is missing"))?;
        let attr = row(self.section(Section::Attrs), u32_at(raw, 0), ATTR_LEN)
            .ok_or_else(|| self.corrupt("attributes are missing"))?;
        let (data, extra) = (u32_at(raw, 28), u32_at(raw, 32));
        let mode = u32_at(attr, 0);
        let kind = match mode & libc::S_IFMT {
            libc::S_IFREG if extra & MADE != 0 => NodeKind::File(Bytes::Recipe(extra & !MADE)),
            libc::S_IFREG if extra != 0 => NodeKind::File(Bytes::Sparse(data)),
            libc::S_IFREG if data == 0 => NodeKind::File(Bytes::None),
            libc::S_IFREG => NodeKind::File(Bytes::Blob(data)),
            libc::S_IFDIR => NodeKind::Directory { first: data, count: extra },
            libc::S_IFLNK => NodeKind::Symlink,
            libc::S_IFCHR => NodeKind::CharDevice { major: data, minor: extra },
            libc::S_IFBLK => NodeKind::BlockDevice { major: data, minor: extra },
            libc::S_IFIFO => NodeKind::Fifo,
            _ => return Err(self.corrupt("a node has no type")),
        };
        Ok(Node {
            kind,
            mode: mode & 0o7777,
            uid: u32_at(attr, 4),
            gid: u32_at(attr, 8),
            xattrs: u32_at(attr, 12),
            links: u32_at(raw, 4),
            size: u64_at(raw, 8),
            mtime: (u64_at(raw, 16).cast_signed(), u32_at(raw, 24)),
            data,
            extra,
            parent: u32_at(raw, 36),
        })
    }

    /// The directory that a directory is in; the root's is the root.
    pub fn parent(&self, node: &Node) -> NodeIndex {
        node.parent
    }

    /// Entry `n` of a directory: name and node. `None` past its end.
    ///
    /// # Errors
    ///
    /// `Corrupt` if it is no directory, or the entry or its name is missing.
    pub fn entry(&self, directory: &Node, n: u32) -> Result<Option<(&[u8], NodeIndex)>> {
        let NodeKind::Directory { first, count } = directory.kind else {
            return Err(self.corrupt("a directory is none"));
        };
        if n >= count {
            return Ok(None);
        }
        let at = first.checked_add(n).ok_or_else(|| self.corrupt("a directory is too long"))?;
        let raw = row(self.section(Section::Entries), at, ENTRY_LEN)
            .ok_or_else(|| self.corrupt("an entry is missing"))?;
        Ok(Some((self.name(u32_at(raw, 4))?, u32_at(raw, 0))))
    }

    fn name(&self, at: u32) -> Result<&[u8]> {
        let names = self.section(Section::Names);
        let found = names
            .get(at as usize)
            .and_then(|len| names.get(at as usize + 1..at as usize + 1 + usize::from(*len)));
        found.ok_or_else(|| self.corrupt("a name is missing"))
    }

    /// Finds a name in a directory.
    ///
    /// # Errors
    ///
    /// `Corrupt` if it is no directory, or an entry or its name is missing.
    pub fn lookup(&self, directory: &Node, name: &[u8]) -> Result<Option<NodeIndex>> {
        let NodeKind::Directory { count, .. } = directory.kind else {
            return Err(self.corrupt("a directory is none"));
        };
        let (mut low, mut high) = (0, count);
        while low < high {
            let middle = low.midpoint(high);
            let (found, node) =
                self.entry(directory, middle)?.ok_or_else(|| self.corrupt("an entry is missing"))?;
            match found.cmp(name) {
                std::cmp::Ordering::Equal => return Ok(Some(node)),
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        Ok(None)
    }

    /// A symlink's target.
    ///
    /// # Errors
    ///
    /// `Corrupt` if the target is missing.
    pub fn symlink(&self, node: &Node) -> Result<&[u8]> {
        let names = self.section(Section::Names);
        let at = node.data as usize;
        let len = names.get(at..at + 4).map(|b| u32_at(b, 0) as usize);
        let target = len.and_then(|len| names.get(at + 4..(at + 4).checked_add(len)?));
        target.ok_or_else(|| self.corrupt("a symlink's target is missing"))
    }

    /// The extended attributes of a node, by name.
    pub fn xattrs(&self, node: &Node) -> XattrIter<'_> {
        let set = match node.xattrs {
            0 => &[][..],
            at => self.section(Section::Xattrs).get(at as usize - 1..).unwrap_or(&[]),
        };
        let left = if set.len() >= 4 { u32_at(set, 0) } else { 0 };
        XattrIter { left, rest: set.get(4..).unwrap_or(&[]) }
    }

    /// The pieces of a sparse file: (offset in the file, length), ascending. Its blob holds them back to
    /// back.
    ///
    /// # Errors
    ///
    /// `Corrupt` if the map is missing or cut off.
    pub fn sparse_map(&self, node: &Node) -> Result<Vec<(u64, u64)>> {
        let NodeKind::File(Bytes::Sparse(_)) = node.kind else { return Ok(Vec::new()) };
        let bad = || self.corrupt("a sparse map is missing");
        let map = self
            .section(Section::Sparse)
            .get(node.extra as usize - 1..)
            .filter(|m| m.len() >= 4)
            .ok_or_else(bad)?;
        let pieces = map[4..].chunks_exact(16).take(u32_at(map, 0) as usize);
        let pieces: Vec<_> = pieces.map(|p| (u64_at(p, 0), u64_at(p, 8))).collect();
        if pieces.len() == u32_at(map, 0) as usize { Ok(pieces) } else { Err(bad()) }
    }

    /// Every blob the version holds, ascending.
    pub fn blobs(&self) -> impl Iterator<Item = BlobId> + '_ {
        self.section(Section::Blobs).chunks_exact(4).map(|b| u32_at(b, 0))
    }

    /// What was known of the version when it was made: JSON.
    pub fn facts(&self) -> &[u8] {
        self.section(Section::Facts)
    }

    /// The recipe with this number; 0 is that of rootfs.tar.
    ///
    /// # Errors
    ///
    /// `Corrupt` if there is none, or it makes no sense.
    pub fn recipe(&self, number: u32) -> Result<Recipe<'_>> {
        let recipe = self.stored_recipe(number)?;
        if self.packed.is_none() {
            return Ok(recipe);
        }
        let mut from = 0u64;
        for before in u32::from(!self.has_rootfs())..number {
            let size = self.stored_recipe(before)?.inline_size();
            from = from.checked_add(size).ok_or_else(|| self.corrupt("a recipe is too long"))?;
        }
        Ok(recipe.apart(self, from))
    }

    fn stored_recipe(&self, number: u32) -> Result<Recipe<'_>> {
        if number == 0 {
            return Recipe::parse(self.section(Section::Recipe));
        }
        let more = self.section(Section::More);
        let found = (|| {
            let at = 8 + (number as usize - 1).checked_mul(16)?;
            let place = more.get(at..at.checked_add(16)?)?;
            let (from, len) =
                (usize::try_from(u64_at(place, 0)).ok()?, usize::try_from(u64_at(place, 8)).ok()?);
            more.get(from..from.checked_add(len)?)
        })();
        Recipe::parse(
            found
                .filter(|_| number <= self.more_recipes())
                .ok_or_else(|| self.corrupt("a recipe is missing"))?,
        )
    }

    /// How many recipes there are beside that of rootfs.tar; their numbers begin at 1.
    pub fn more_recipes(&self) -> u32 {
        self.section(Section::More).get(..4).map_or(0, |count| u32_at(count, 0))
    }

    /// Whether the version has a rootfs.
    pub fn has_rootfs(&self) -> bool {
        !self.section(Section::Recipe).is_empty()
    }

    /// The files beside rootfs that recipes make: name, number of the recipe.
    ///
    /// # Errors
    ///
    /// `Corrupt`.
    pub fn made_beside(&self) -> Result<Vec<(String, u32)>> {
        let mut found = Vec::new();
        let Some(index) = self.beside() else { return Ok(found) };
        let beside = self.node(index)?;
        let mut n = 0;
        while let Some((name, index)) = self.entry(&beside, n)? {
            if let NodeKind::File(Bytes::Recipe(recipe)) = self.node(index)?.kind {
                found.push((String::from_utf8_lossy(name).into_owned(), recipe));
            }
            n += 1;
        }
        Ok(found)
    }

    /// The directory whose entries are shown beside rootfs.
    pub fn beside(&self) -> Option<NodeIndex> {
        self.section(Section::Beside).get(..4).map(|index| u32_at(index, 0))
    }
}

pub struct XattrIter<'t> {
    left: u32,
    rest: &'t [u8],
}

impl<'t> Iterator for XattrIter<'t> {
    type Item = (&'t [u8], &'t [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let lens = self.rest.get(..8)?;
        let (name_len, value_len) = (u32_at(lens, 0) as usize, u32_at(lens, 4) as usize);
        let name = self.rest.get(8..8 + name_len)?;
        let value = self.rest.get(8 + name_len..8 + name_len + value_len)?;
        self.rest = &self.rest[8 + name_len + value_len..];
        Some((name, value))
    }
}

/// The digest of all that `from` has; `also` gets it too.
fn digest_of(mut from: impl Read, mut also: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<Digest> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0u8; 1 << 18];
    loop {
        let n = from.read(&mut buffer)?;
        if n == 0 {
            return Ok(Digest(*hasher.finalize().as_bytes()));
        }
        hasher.update(&buffer[..n]);
        also(&buffer[..n])?;
    }
}

fn row(section: &[u8], index: u32, len: usize) -> Option<&[u8]> {
    let at = (index as usize).checked_mul(len)?;
    section.get(at..at + len)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
