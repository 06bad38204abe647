//! A squashfs image also shows its rootfs: each of its files is stored as a file of a tarball is.
//!
//! ```text
//! mod.rs     files, directories and so on, one by one, into a draft
//! layout.rs  the superblock, and where the tables lie
//! image.rs   what the tables say: inodes, names, xattrs, blocks of data
//! ```
//!
//! Source: squashfs 4.0, Documentation/filesystems/squashfs.rst and fs/squashfs/squashfs_fs.h. Nothing
//! in the file is trusted. A table may be cut off, a directory may contain itself, a size may be wrong.
//! imgfs refuses what unsquashfs calls damaged.

mod image;
mod layout;
mod superblock;

use std::collections::{HashMap, HashSet};

use crate::base::digest::Content;
use crate::blob::OBJECT_MIN;
use crate::error::{Error, Result};
use crate::formats::tar::Limits;
use crate::ingest::draft::{Draft, refusal};
use crate::ingest::kinds::squashfs::image::{Image, Inode, NONE};
use crate::ingest::stored::Stored;
use crate::tree::recipe::RecipeBuilder;
use crate::tree::{Make, Meta};

/// Fills the rootfs of a draft from the squashfs that `recipe` makes.
///
/// # Errors
///
/// `BadImage` if it is damaged; `BadArchive` for an entry that has no place; `OverLimit`; those of the
/// writer.
pub fn unpack(draft: &mut Draft, recipe: &RecipeBuilder, limits: &Limits) -> Result<()> {
    let from = draft.writer.open_pieces(recipe.pieces())?;
    let Some(mut image) = Image::open(from)? else {
        log::warn!("a squashfs is kept without its rootfs: gzip, lzma, xz, lz4 and zstd are read");
        return Ok(());
    };
    walk(draft, &mut image, limits)?;
    draft.derive_tar()
}

/// Checks the superblock and the tables of a squashfs that is kept in another image.
///
/// # Errors
///
/// `BadImage` if it is damaged; those of the store.
pub fn check(from: impl Stored) -> Result<()> {
    Image::open(from).map(drop)
}

fn damaged(why: &str) -> Error {
    Error::BadImage { kind: "squashfs", why: why.into() }
}

fn over(what: &str, limit: u64) -> Error {
    Error::OverLimit { what: what.into(), limit: limit.to_string() }
}

fn walk(draft: &mut Draft, image: &mut Image<impl Stored>, limits: &Limits) -> Result<()> {
    let (mut entries, mut left) = (0, limits.tar_size);
    let mut seen = HashSet::new();
    let mut linked: HashMap<u32, Vec<u8>> = HashMap::new();
    let mut todo = vec![(Vec::new(), image.root(), true, 0)];
    while let Some((path, reference, is_directory, depth)) = todo.pop() {
        entries += 1;
        if entries > limits.entries {
            return Err(over("the number of entries", limits.entries));
        }
        if depth > limits.depth {
            return Err(over("the depth of a path", limits.depth as u64));
        }
        let inode = image.inode(reference)?;
        if is_directory != (inode.kind == 1) {
            return Err(damaged("a name and its inode are not of one type"));
        }
        let refused = |refused| refusal(0, &path, refused);
        if let Some(first) = linked.get(&inode.number).filter(|_| !is_directory) {
            draft.builder.link(&path, first, &inode.meta).map_err(refused)?;
            continue;
        }
        let (major, minor) = device_number(inode.device);
        let symlink = Meta { mode: 0o777, ..inode.meta.clone() };
        match inode.kind {
            1 => {
                // A directory may occur only once. Reading one that contains itself would never end.
                if !seen.insert(inode.number) {
                    return Err(damaged("a directory is in two places"));
                }
                draft.builder.add(&path, &inode.meta, Make::Directory).map_err(refused)?;
                for (name, reference, is_directory) in image.list(&inode)? {
                    let below = if path.is_empty() { name } else { [&path[..], b"/", &name[..]].concat() };
                    todo.push((below, reference, is_directory, depth + 1));
                }
            }
            2 => add_file(draft, image, &path, &inode, &mut left, limits)?,
            3 => draft.builder.add(&path, &symlink, Make::Symlink(&inode.target)).map_err(refused)?,
            4 => {
                draft.builder.add(&path, &inode.meta, Make::BlockDevice { major, minor }).map_err(refused)?
            }
            5 => draft.builder.add(&path, &inode.meta, Make::CharDevice { major, minor }).map_err(refused)?,
            6 => draft.builder.add(&path, &inode.meta, Make::Fifo).map_err(refused)?,
            // A socket is useless without its listener. tar leaves it out too.
            _ => continue,
        }
        draft.builder.check_heaps()?;
        if inode.kind != 1 && inode.links > 1 {
            linked.insert(inode.number, path);
        }
    }
    Ok(())
}

fn add_file(
    draft: &mut Draft,
    image: &mut Image<impl Stored>,
    path: &[u8],
    inode: &Inode,
    left: &mut u64,
    limits: &Limits,
) -> Result<()> {
    let block = u64::from(image.block_size());
    let tail = if inode.fragment == NONE { 0 } else { inode.size % block };
    // The numbers of blocks have 31 bits.
    if inode.size / block > i32::MAX as u64 {
        return Err(damaged("a file is too long"));
    }
    // The first pass counts the bytes, the second one takes them.
    let len = |at: u64| (inode.size - at).min(block);
    let (mut pieces, mut stored): (Vec<(u64, u64)>, u64) = (Vec::new(), 0);
    let mut add = |at: u64, len: u64| {
        stored += len;
        match pieces.last_mut() {
            Some((from, n)) if *from + *n == at => *n += len,
            _ => pieces.push((at, len)),
        }
    };
    image.pieces(inode, |_, at, _, _| {
        add(at, len(at));
        Ok(())
    })?;
    if tail > 0 {
        add(inode.size - tail, tail);
    }
    *left =
        left.checked_sub(stored).ok_or_else(|| over("the size of the unpacked image", limits.tar_size))?;
    if pieces.len() > limits.pieces {
        return Err(over("the number of pieces of a sparse file", limits.pieces as u64));
    }
    let mut small = Vec::new();
    let mut large = (stored >= OBJECT_MIN).then(|| draft.writer.begin_large(stored));
    let mut keep = |bytes: &[u8]| match &mut large {
        Some(large) => large.write(bytes),
        None => {
            small.extend_from_slice(bytes);
            Ok(())
        }
    };
    image.pieces(inode, |image, at, size, place| {
        let bytes = image.data_block(place, size)?;
        if bytes.len() as u64 != len(at) {
            return Err(damaged("a block of a file has another length"));
        }
        keep(&bytes)
    })?;
    if tail > 0 {
        keep(&image.tail(inode, tail as usize)?)?;
    }
    let content: Option<Content> = match large {
        Some(large) => Some(large.finish()?),
        None if small.is_empty() => None,
        None => Some(draft.writer.put(&small)?),
    };
    let whole = stored == inode.size;
    let sparse = (!whole).then_some(pieces.as_slice());
    let added = draft.builder.add(path, &inode.meta, Make::File { content, size: inode.size, sparse });
    added.map_err(|refused| refusal(0, path, refused))
}

/// A little-endian number of `len` bytes. It is zero past the end.
fn le(bytes: &[u8], at: usize, len: usize) -> u64 {
    bytes.get(at..at + len).unwrap_or_default().iter().rev().fold(0, |n, b| n << 8 | u64::from(*b))
}

/// The kernel's packing of a device number. Source: linux/kdev_t.h, new_decode_dev.
fn device_number(packed: u32) -> (u32, u32) {
    ((packed & 0xfff00) >> 8, (packed & 0xff) | ((packed >> 12) & 0xfff00))
}
