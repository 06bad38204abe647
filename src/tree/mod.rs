//! One immutable file a version: its directory tree, the files beside it, and the recipes of its tars.
//!
//! ```text
//! head        TREE_MAGIC, then (offset u64, length u64) of each section in the order of `Section`
//! facts       JSON: what is known of the version, so that a lost catalog can be rebuilt
//! attrs       16 bytes each: mode u32, uid u32, gid u32, xattrs u32 (offset + 1 into xattrs; 0 none). Interned
//! nodes       40 bytes each: attr u32, links u32, size u64, mtime i64, nanoseconds u32, data u32, extra u32, parent u32
//! entries     8 bytes each: node u32, name u32 (offset into names). Those of a directory lie together, by name
//! names       length u8, bytes; symlink targets: length u32, bytes
//! xattrs      sets: count u32, then (name length u32, value length u32, name, value) each, by name
//! sparse      maps: count u32, then (offset u64, length u64) each: where the blob's bytes lie in the file
//! blobs       u32 each, ascending: every blob the version holds; what gc marks
//! recipe      of rootfs.tar, number 0; see recipe.rs. Empty: the version has no rootfs
//! beside      u32: the node of the directory whose entries lie beside rootfs in the version; empty: there is none
//! more        count u32, 0 u32, then (offset u64, length u64) each, from the section's beginning on: recipes 1, 2, ...
//! ```
//!
//! `data` and `extra` of a node: file: blob id (0 for no bytes), offset + 1 of its sparse map (0 none); or 0,
//! 2^31 + the number of the recipe that makes it. Directory: first entry, number of entries. Symlink: offset
//! of its target, 0. Device: major, minor. A recipe names only recipes with higher numbers. A tree of format
//! 1 has no `beside` and no `more`. Node 0 is rootfs. The children of a directory have consecutive numbers in
//! the order of their names, so a reader that follows the listing follows the numbers. The digest of the
//! whole file is in the version's row.

use std::io;

use crate::format::TREE_MAGIC;

mod build;
mod file;
mod packed;
mod paths;
pub mod recipe;
mod varint;

pub use build::{Builder, Counts, Make, Meta, Refused, Visit};
pub use file::{Bytes, Node, NodeKind, Tree, XattrIter};
pub use packed::{Form, form_of};

/// The parts of a tree file, in the order of the head.
#[derive(Clone, Copy)]
enum Section {
    Facts,
    Attrs,
    Nodes,
    Entries,
    Names,
    Xattrs,
    Sparse,
    Blobs,
    Recipe,
    Beside,
    More,
}

const SECTIONS: usize = 11;
/// Sections of a tree of format 1.
const SECTIONS_1: usize = 9;
const HEAD_LEN: usize = 16 + SECTIONS * 16;
/// In a file's `extra`: the rest is the number of a recipe.
const MADE: u32 = 1 << 31;
const ATTR_LEN: usize = 16;
const NODE_LEN: usize = 40;
const ENTRY_LEN: usize = 8;

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

/// Gives the bytes of a tree file of these sections to `take`.
fn lay_out(sections: &[Vec<u8>; SECTIONS], mut take: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut head = TREE_MAGIC.to_vec();
    let mut at = HEAD_LEN as u64;
    for section in sections {
        at = at.next_multiple_of(8);
        head.extend_from_slice(&at.to_le_bytes());
        head.extend_from_slice(&(section.len() as u64).to_le_bytes());
        at += section.len() as u64;
    }
    let mut written = 0usize;
    for part in std::iter::once(&head).chain(sections) {
        let padding = [0u8; 8];
        let padding = &padding[..written.next_multiple_of(8) - written];
        for bytes in [padding, part] {
            take(bytes)?;
            written += bytes.len();
        }
    }
    Ok(())
}

/// A node's number within its tree.
pub type NodeIndex = u32;
pub const ROOT: NodeIndex = 0;

#[cfg(test)]
mod tests;
