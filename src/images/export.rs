//! cat web/1/rootfs.tar, image.tar, disk.raw: files that are made bit for bit from a recipe and blobs.
//! Also ranges of sparse files.

use std::collections::HashMap;

use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};

use crate::base::digest::hex;
use crate::blob::ReadBuf;
use crate::error::{Error, Result};
use crate::store::Store;
use crate::tree::recipe::{Cursor, Piece};
use crate::tree::{Bytes, Node, NodeKind, Tree};

/// The position of a reader in a file that a recipe makes, such as rootfs.tar or a disk image.
#[derive(Default)]
pub struct RecipeReader {
    /// By the number of the recipe, because a recipe may use others.
    cursors: HashMap<u32, Cursor>,
    buf: ReadBuf,
}

impl RecipeReader {
    /// Appends up to `len` bytes of what recipe `number` makes, from `offset` on, to `out`. It gives less
    /// only at the end.
    ///
    /// # Errors
    ///
    /// `Corrupt`, `Io`.
    pub fn read(
        &mut self,
        store: &Store,
        tree: &Tree,
        number: u32,
        offset: u64,
        len: usize,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let recipe = tree.recipe(number)?;
        let mut cursor = self.cursors.remove(&number).unwrap_or_default();
        let walked = recipe.walk(&mut cursor, offset, len as u64, |piece, inline| {
            match piece {
                Piece::Inline => out.extend_from_slice(inline),
                Piece::Blob { id, offset, len } => append_blob(store, id, offset, len, &mut self.buf, out)?,
                Piece::Hole { len } => out.resize(out.len() + memory(len)?, 0),
                // A recipe may only use recipes with higher numbers, so this recursion ends.
                Piece::Recipe { number: nested, offset, len } if nested > number => {
                    let (before, len) = (out.len(), memory(len)?);
                    self.read(store, tree, nested, offset, len, out)?;
                    if out.len() != before + len {
                        return Err(Error::Corrupt {
                            what: format!("recipe {nested}"),
                            why: "it is too short".into(),
                        });
                    }
                }
                Piece::Recipe { number: nested, .. } => {
                    return Err(Error::Corrupt {
                        what: format!("recipe {number}"),
                        why: format!("it is made of {nested}"),
                    });
                }
            }
            Ok(())
        });
        self.cursors.insert(number, cursor);
        walked
    }
}

/// The readers of one open file. There are as many as read at the same time, each with its position.
#[derive(Default)]
pub struct RecipeReaders {
    idle: Mutex<Vec<RecipeReader>>,
}

impl RecipeReaders {
    /// As `RecipeReader::read`.
    ///
    /// # Errors
    ///
    /// `Corrupt`, `Io`.
    pub fn read(
        &self,
        store: &Store,
        tree: &Tree,
        number: u32,
        offset: u64,
        len: usize,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let mut reader = self.idle.lock().pop().unwrap_or_default();
        let read = reader.read(store, tree, number, offset, len, out);
        self.idle.lock().push(reader);
        read
    }
}

/// The sha256 of all that a recipe makes, in hex.
///
/// # Errors
///
/// `Corrupt`, `Io`.
pub fn sha256(store: &Store, tree: &Tree, recipe: u32) -> Result<String> {
    let mut hasher = Sha256::new();
    replay(store, tree, recipe, |_, bytes| {
        hasher.update(bytes);
        Ok(())
    })?;
    Ok(hex(&hasher.finalize()))
}

/// Passes all that a recipe makes to `take`, in order: the offset of a piece, and its bytes.
///
/// # Errors
///
/// `Corrupt`, `Io`, and what `take` fails with.
pub fn replay(
    store: &Store,
    tree: &Tree,
    recipe: u32,
    mut take: impl FnMut(u64, &[u8]) -> Result<()>,
) -> Result<()> {
    let size = tree.recipe(recipe)?.tar_size;
    let (mut reader, mut at, mut piece) = (RecipeReader::default(), 0, Vec::new());
    while at < size {
        piece.clear();
        reader.read(store, tree, recipe, at, 1 << 20, &mut piece)?;
        if piece.is_empty() {
            return Err(Error::Corrupt {
                what: format!("recipe {recipe}"),
                why: format!("it ends at byte {at} of {size}"),
            });
        }
        take(at, &piece)?;
        at += piece.len() as u64;
    }
    Ok(())
}

/// Converts a length. It is never more than a caller of `read` asked for.
fn memory(len: u64) -> Result<usize> {
    usize::try_from(len).map_err(|_| Error::OverLimit { what: "a read".into(), limit: "memory".into() })
}

fn append_blob(
    store: &Store,
    id: u32,
    offset: u64,
    len: u64,
    buf: &mut ReadBuf,
    out: &mut Vec<u8>,
) -> Result<()> {
    let mut at = offset;
    let end = offset + len;
    while at < end {
        let want = usize::try_from(end - at).unwrap_or(usize::MAX).min(1 << 20);
        let bytes = store.blobs.read(id, at, want, buf)?;
        if bytes.is_empty() {
            return Err(Error::Corrupt {
                what: format!("blob {id}"),
                why: "it is shorter than its version says".into(),
            });
        }
        out.extend_from_slice(bytes);
        at += bytes.len() as u64;
    }
    Ok(())
}

/// Appends up to `len` bytes of a file in a tree to `out`.
///
/// # Errors
///
/// `IsDirectory` for what is no file; `Corrupt`, `Io`.
pub fn read_file(
    store: &Store,
    tree: &Tree,
    node: &Node,
    offset: u64,
    len: usize,
    buf: &mut ReadBuf,
    out: &mut Vec<u8>,
) -> Result<()> {
    let NodeKind::File(bytes) = node.kind else {
        return Err(Error::IsDirectory { what: "this path".into() });
    };
    let end = node.size.min(offset.saturating_add(len as u64));
    if offset >= end {
        return Ok(());
    }
    let blob = match bytes {
        Bytes::None => {
            return Err(Error::Corrupt { what: "a file".into(), why: "it has a size and no content".into() });
        }
        Bytes::Blob(blob) => return append_blob(store, blob, offset, end - offset, buf, out),
        Bytes::Recipe(n) => {
            return RecipeReader::default().read(store, tree, n, offset, memory(end - offset)?, out);
        }
        Bytes::Sparse(blob) => blob,
    };
    let pieces = tree.sparse_map(node)?;
    let mut packed = 0;
    let mut at = offset;
    for (from, piece_len) in pieces {
        let to = from + piece_len;
        if to > at && from < end {
            // Zeros up to the piece, then its bytes.
            let begin = at.max(from);
            out.resize(out.len() + (begin - at) as usize, 0);
            let stop = end.min(to);
            append_blob(store, blob, packed + (begin - from), stop - begin, buf, out)?;
            at = stop;
        }
        packed += piece_len;
    }
    out.resize(out.len() + (end - at) as usize, 0);
    Ok(())
}

/// SEEK_DATA and SEEK_HOLE in a file of a tree. Returns the offset found, or `None` past the last data.
///
/// # Errors
///
/// `IsDirectory` for what is no file; `Corrupt`, `Io`.
pub fn seek(store: &Store, tree: &Tree, node: &Node, offset: u64, data: bool) -> Result<Option<u64>> {
    let NodeKind::File(bytes) = node.kind else {
        return Err(Error::IsDirectory { what: "this path".into() });
    };
    if offset >= node.size {
        return Ok(None);
    }
    let found = match bytes {
        Bytes::None => Some(node.size),
        Bytes::Blob(blob) => Some(store.blobs.seek(blob, offset, data)?),
        Bytes::Recipe(n) => Some(tree.recipe(n)?.seek_data(offset, data)?),
        Bytes::Sparse(_) => None,
    };
    if let Some(found) = found {
        return Ok(if data && found >= node.size { None } else { Some(found) });
    }
    let mut at = offset;
    for (from, len) in tree.sparse_map(node)? {
        if from + len <= at {
            continue;
        }
        if data {
            return Ok(Some(at.max(from)));
        }
        if at < from {
            return Ok(Some(at));
        }
        at = from + len;
    }
    Ok(if data { None } else { Some(at.min(node.size)) })
}
