//! A squashfs image shows its rootfs, too: every file of it is stored as the files of a tarball are.
//!
//! The library keeps neither hard links nor xattrs: two names of one file are two files here, with the same content.
//! rootfs.squashfs itself has them.

use std::io::{BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::panic::AssertUnwindSafe;

use backhand::{FilesystemReader, InnerNode};

use crate::blob::{OBJECT_MIN, Writer};
use crate::digest::Content;
use crate::error::{Error, Result};
use crate::ingest::unpack::{Draft, refusal};
use crate::tar::Limits;
use crate::tree::recipe::RecipeBuilder;
use crate::tree::{Make, Meta};

/// Compressors that are read: gzip, xz, lz4, zstd. Source: squashfs, "The Superblock".
const COMPRESSORS: &[u16] = &[1, 4, 5, 6];

/// Fills the rootfs of a draft from the squashfs that `recipe` makes.
///
/// Errors: `BadArchive` if it is damaged; `OverLimit`; those of the writer.
pub fn unpack(draft: &mut Draft, recipe: &RecipeBuilder, limits: &Limits) -> Result<()> {
    let mut head = [0u8; 22];
    let mut image = draft.writer.open_pieces(recipe.pieces())?;
    image.read_exact(&mut head).map_err(|e| damaged(&e.to_string()))?;
    let compressor = u16::from_le_bytes([head[20], head[21]]);
    if !COMPRESSORS.contains(&compressor) {
        log::warn!("a squashfs with compressor {compressor} is kept without its rootfs: gzip, xz, lz4 and zstd are read");
        return Ok(());
    }
    // A library that trusts its input may panic on a hostile one.
    let unpacked = std::panic::catch_unwind(AssertUnwindSafe(|| unpack_all(draft, image, limits)));
    unpacked.unwrap_or_else(|_| Err(damaged("its tables contradict each other")))?;
    draft.derive_tar()
}

fn damaged(why: &str) -> Error {
    Error::BadArchive { at: 0, entry: String::new(), why: format!("the squashfs cannot be read: {why}") }
}

fn unpack_all(draft: &mut Draft, mut image: crate::blob::PieceReader, limits: &Limits) -> Result<()> {
    std::io::Seek::rewind(&mut image).map_err(|e| damaged(&e.to_string()))?;
    let files = FilesystemReader::from_reader(BufReader::new(image)).map_err(|e| damaged(&e.to_string()))?;
    let (mut left, mut count) = (limits.tar_size, 0);
    for node in files.files() {
        count += 1;
        if count > limits.entries {
            return Err(Error::OverLimit { what: "the number of entries".into(), limit: limits.entries.to_string() });
        }
        let path = node.fullpath.as_os_str().as_bytes();
        let h = &node.header;
        let meta = Meta {
            mode: u32::from(h.permissions) & 0o7777,
            uid: h.uid,
            gid: h.gid,
            mtime: (i64::from(h.mtime), 0),
            xattrs: Vec::new(),
        };
        let placed = match &node.inner {
            InnerNode::Dir(_) => draft.builder.add(path, &meta, Make::Directory),
            InnerNode::Symlink(link) => {
                draft.builder.add(path, &Meta { mode: 0o777, ..meta }, Make::Symlink(link.link.as_os_str().as_bytes()))
            }
            InnerNode::CharacterDevice(device) => {
                let (major, minor) = device_number(device.device_number);
                draft.builder.add(path, &meta, Make::CharDevice { major, minor })
            }
            InnerNode::BlockDevice(device) => {
                let (major, minor) = device_number(device.device_number);
                draft.builder.add(path, &meta, Make::BlockDevice { major, minor })
            }
            InnerNode::NamedPipe => draft.builder.add(path, &meta, Make::Fifo),
            // A socket outlives nobody who listens on it; tar leaves it out, too.
            InnerNode::Socket => continue,
            InnerNode::File(file) => {
                let size = file.file_len() as u64;
                left = left.checked_sub(size).ok_or_else(|| Error::OverLimit {
                    what: "the size of the unpacked image".into(),
                    limit: limits.tar_size.to_string(),
                })?;
                let content = if size == 0 { None } else { Some(keep(&mut draft.writer, files.file(file).reader(), size)?) };
                draft.builder.add(path, &meta, Make::File { content, size, sparse: None })
            }
        };
        placed.map_err(|refused| refusal(0, path, refused))?;
        draft.builder.check_heaps()?;
    }
    Ok(())
}

fn keep(writer: &mut Writer, mut from: impl Read, size: u64) -> Result<Content> {
    let mut piece = vec![0u8; 1 << 17];
    let (mut small, mut taken) = (Vec::new(), 0);
    let mut large = (size >= OBJECT_MIN).then(|| writer.begin_large(size));
    while taken < size {
        let n = from.read(&mut piece).map_err(|e| damaged(&e.to_string()))?;
        let n = n.min(usize::try_from(size - taken).unwrap_or(usize::MAX));
        if n == 0 {
            return Err(damaged("a file of it ends early"));
        }
        match &mut large {
            Some(large) => large.write(&piece[..n])?,
            None => small.extend_from_slice(&piece[..n]),
        }
        taken += n as u64;
    }
    match large {
        Some(large) => large.finish(),
        None => writer.put(&small),
    }
}

/// The kernel's packing of a device number. Source: linux/kdev_t.h, new_decode_dev.
fn device_number(packed: u32) -> (u32, u32) {
    ((packed & 0xfff00) >> 8, (packed & 0xff) | ((packed >> 12) & 0xfff00))
}
