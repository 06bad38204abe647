//! The end of building: nodes get their numbers, and the tree its file.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::base::digest::{BlobId, Content, Digest};
use crate::error::{Error, Result};
use crate::tree::build::{Builder, HEAP_MAX, MADE, Make, Meta, NONE, name_at};
use crate::tree::recipe::RecipeBuilder;
use crate::tree::{NodeIndex, SECTIONS, Section, join, lay_out};

impl Builder {
    /// Writes the tree file, durably, and gives its digest and what was counted. `recipes`: that of
    /// rootfs.tar, if there is a rootfs, and those that other files are made by, from number 1 on. `id` says
    /// which blob a content became.
    ///
    /// # Errors
    ///
    /// `Io`, `OverLimit`.
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
        sections[Section::More as usize] =
            join(more.into_iter().map(|recipe| recipe.finish(&id)).collect::<Result<_>>()?);
        Ok((write(path, &sections)?, counts))
    }

    /// Whether the tree can hold what it was given; asked now and then, so that nothing grows without end.
    ///
    /// # Errors
    ///
    /// `OverLimit`.
    pub fn check_heaps(&self) -> Result<()> {
        for (heap, what) in [
            (&self.names, "names"),
            (&self.targets, "symlinks"),
            (&self.xattrs, "xattrs"),
            (&self.sparse, "sparse maps"),
        ] {
            if heap.len() > HEAP_MAX {
                return Err(Error::OverLimit {
                    what: format!("the size of all {what}"),
                    limit: "1 GiB".into(),
                });
            }
        }
        Ok(())
    }

    /// The live entries of each directory, in the order of their names: entries, and where each directory's
    /// begin and how many they are.
    pub(super) fn listings(&self) -> (Vec<u32>, Vec<(u32, u32)>) {
        let name_of = |e: u32| name_at(&self.names, self.entries[e as usize].name);
        let mut order: Vec<u32> =
            (0..self.entries.len() as u32).filter(|e| self.entries[*e as usize].node != NONE).collect();
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

    /// Numbers the nodes in the order in which a walk meets them, and lists the directories.
    fn in_order(&self) -> Ordered {
        let (order, children) = self.listings();
        let mut number = vec![NONE; self.drafts.len()];
        let mut links = vec![0u32; self.drafts.len()];
        let mut by_number: Vec<NodeIndex> = Vec::new();
        let (mut entries, mut names) = (Vec::new(), Vec::new());
        let mut listing = HashMap::new();
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
        Ordered { number, links, by_number, entries, names, listing }
    }

    /// Gives nodes their numbers: a directory's children together, in the order of their names.
    fn number(&self, id: impl Fn(Content) -> Option<BlobId>) -> Numbered {
        let Ordered { number, links, by_number, entries, mut names, listing } = self.in_order();
        let mut counts = Counts::default();
        let (mut nodes, mut blobs) = (Vec::with_capacity(by_number.len() * 40), Vec::new());
        let outside = self.beside.map_or(NONE, |beside| number[beside as usize]);
        for (n, &node) in by_number.iter().enumerate() {
            let draft = &self.drafts[node as usize];
            let (mut count, mut data, mut extra, mut parent) =
                (links[node as usize], draft.data, draft.extra, 0);
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
    ///
    /// # Errors
    ///
    /// Those of `visit`.
    pub fn visit(&self, mut visit: impl FnMut(Visit<'_>) -> Result<()>) -> Result<()> {
        let (order, children) = self.listings();
        let mut first_names: HashMap<NodeIndex, Vec<u8>> = HashMap::new();
        let mut shared = vec![0u32; self.drafts.len()];
        self.entries.iter().filter(|e| e.node != NONE).for_each(|e| shared[e.node as usize] += 1);
        let mut todo = vec![(Vec::new(), self.root)];
        while let Some((path, node)) = todo.pop() {
            let (meta, make, pieces) = self.describe(node);
            let make = match make {
                Make::File { content, size, sparse: Some(_) } => {
                    Make::File { content, size, sparse: Some(&pieces) }
                }
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

    pub(super) fn xattrs_at(&self, at: u32) -> Vec<(Vec<u8>, Vec<u8>)> {
        let word =
            |at: usize| u32::from_le_bytes(self.xattrs[at..at + 4].try_into().expect("four bytes")) as usize;
        let Some(at) = (at as usize).checked_sub(1) else { return Vec::new() };
        let (count, mut at) = (word(at), at + 4);
        let mut found = Vec::with_capacity(count);
        for _ in 0..count {
            let (name, value) = (word(at), word(at + 4));
            at += 8;
            found.push((
                self.xattrs[at..at + name].to_vec(),
                self.xattrs[at + name..at + name + value].to_vec(),
            ));
            at += name + value;
        }
        found
    }

    pub(super) fn pieces_at(&self, extra: u32) -> Vec<(u64, u64)> {
        let Some(at) = (extra as usize).checked_sub(1).filter(|_| extra & MADE == 0) else {
            return Vec::new();
        };
        let Some(map) = self.sparse.get(at..) else { return Vec::new() };
        let count = u32::from_le_bytes(map[..4].try_into().expect("four bytes")) as usize;
        let number = |b: &[u8]| u64::from_le_bytes(b.try_into().expect("eight bytes"));
        map[4..].chunks_exact(16).take(count).map(|p| (number(&p[..8]), number(&p[8..]))).collect()
    }
}

/// The nodes in the order in which a walk meets them.
struct Ordered {
    /// By draft: its number, or `NONE`; and how many names it has.
    number: Vec<NodeIndex>,
    links: Vec<u32>,
    /// By number: its draft.
    by_number: Vec<NodeIndex>,
    entries: Vec<u8>,
    names: Vec<u8>,
    /// By draft of a directory: its first entry, how many it has, and how many of them are directories.
    listing: HashMap<NodeIndex, (u32, u32, u32)>,
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
    let mut file = File::create(path).map_err(Error::io("create", path))?;
    let mut hasher = blake3::Hasher::new();
    lay_out(sections, |bytes| {
        hasher.update(bytes);
        file.write_all(bytes)
    })
    .map_err(Error::io("write", path))?;
    file.sync_all().map_err(Error::io("sync", path))?;
    Ok(Digest(*hasher.finalize().as_bytes()))
}
