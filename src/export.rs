//! cat web/1/rootfs.tar: the upload's tar, bit for bit, from the recipe and the blobs; and ranges of sparse files.

use crate::blob::ReadBuf;
use crate::error::{Error, Result};
use crate::store::Store;
use crate::tree::recipe::{Cursor, Piece};
use crate::tree::{Kind, Node, Tree};

/// Where a reader of a rootfs.tar stands.
#[derive(Default)]
pub struct TarReader {
    cursor: Cursor,
    buf: ReadBuf,
}

impl TarReader {
    /// Appends up to `len` bytes of the tar from `offset` on to `out`; less only at its end.
    ///
    /// Errors: `Corrupt`, `Io`.
    pub fn read(&mut self, store: &Store, tree: &Tree, offset: u64, len: usize, out: &mut Vec<u8>) -> Result<()> {
        let recipe = tree.recipe()?;
        let buf = &mut self.buf;
        recipe.walk(&mut self.cursor, offset, len as u64, |piece, inline| {
            match piece {
                Piece::Inline => out.extend_from_slice(inline),
                Piece::Blob { id, offset, len } => append_blob(store, id, offset, len, buf, out)?,
            }
            Ok(())
        })
    }
}

fn append_blob(store: &Store, id: u32, offset: u64, len: u64, buf: &mut ReadBuf, out: &mut Vec<u8>) -> Result<()> {
    let mut at = offset;
    let end = offset + len;
    while at < end {
        let want = usize::try_from(end - at).unwrap_or(usize::MAX).min(1 << 20);
        let bytes = store.blobs.read(id, at, want, buf)?;
        if bytes.is_empty() {
            return Err(Error::Corrupt { what: format!("blob {id}"), why: "it is shorter than its version says".into() });
        }
        out.extend_from_slice(bytes);
        at += bytes.len() as u64;
    }
    Ok(())
}

/// Appends up to `len` bytes of a file in a tree to `out`.
pub fn read_file(
    store: &Store,
    tree: &Tree,
    node: &Node,
    offset: u64,
    len: usize,
    buf: &mut ReadBuf,
    out: &mut Vec<u8>,
) -> Result<()> {
    let Kind::File { blob, sparse } = node.kind else { return Err(Error::IsDirectory { what: "it".into() }) };
    let end = node.size.min(offset.saturating_add(len as u64));
    if offset >= end {
        return Ok(());
    }
    if !sparse {
        return append_blob(store, blob, offset, end - offset, buf, out);
    }
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

/// SEEK_DATA and SEEK_HOLE in a file of a tree: the offset found, or nothing past the last data.
pub fn seek(store: &Store, tree: &Tree, node: &Node, offset: u64, data: bool) -> Result<Option<u64>> {
    let Kind::File { blob, sparse } = node.kind else { return Err(Error::IsDirectory { what: "it".into() }) };
    if offset >= node.size {
        return Ok(None);
    }
    if !sparse {
        let found = if blob == 0 { node.size } else { store.blobs.seek(blob, offset, data)? };
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
