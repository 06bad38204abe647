//! A squashfs image shows its rootfs, too: every file of it is stored as the files of a tarball are.
//!
//! Source: squashfs 4.0, Documentation/filesystems/squashfs.rst and fs/squashfs/squashfs_fs.h. Nothing is believed: a
//! table may be cut, a directory may hold itself, a size may lie.

use std::collections::{HashMap, HashSet};
use std::io::{Read, Seek, SeekFrom};

use crate::blob::{OBJECT_MIN, PieceReader};
use crate::digest::Content;
use crate::error::{Error, Result};
use crate::ingest::unpack::{Draft, refusal};
use crate::tar::Limits;
use crate::tree::recipe::RecipeBuilder;
use crate::tree::{Make, Meta};

/// Unpacked bytes of a block of tables.
const TABLE_BLOCK: usize = 8192;
/// Blocks of tables that are remembered.
const REMEMBERED: usize = 2048;
/// No fragment, no xattrs, no table.
const NONE: u32 = u32::MAX;
/// The size of a data block that is stored as it is.
const RAW: u32 = 1 << 24;

/// Fills the rootfs of a draft from the squashfs that `recipe` makes.
///
/// Errors: `BadArchive` if it is damaged; `OverLimit`; those of the writer.
pub fn unpack(draft: &mut Draft, recipe: &RecipeBuilder, limits: &Limits) -> Result<()> {
    let image = draft.writer.open_pieces(recipe.pieces())?;
    let Some(mut image) = Image::open(image)? else {
        log::warn!("a squashfs is kept without its rootfs: gzip, xz, lz4 and zstd are read");
        return Ok(());
    };
    walk(draft, &mut image, limits)?;
    draft.derive_tar()
}

fn damaged(why: &str) -> Error {
    Error::BadArchive { at: 0, entry: String::new(), why: format!("the squashfs cannot be read: {why}") }
}

fn over(what: &str, limit: u64) -> Error {
    Error::OverLimit { what: what.into(), limit: limit.to_string() }
}

#[derive(Clone, Copy)]
enum Compressor {
    Gzip,
    Xz,
    Lz4,
    Zstd,
}

impl Compressor {
    /// Unpacks a block of at most `limit` bytes.
    fn unpack(self, packed: &[u8], limit: usize) -> Result<Vec<u8>> {
        let bad = |e: String| damaged(&e);
        let mut out = Vec::new();
        match self {
            Compressor::Gzip => {
                let mut decoder = flate2::read::ZlibDecoder::new(packed).take(limit as u64 + 1);
                decoder.read_to_end(&mut out).map_err(|e| bad(e.to_string()))?;
            }
            Compressor::Xz => {
                let stream = xz2::stream::Stream::new_stream_decoder(64 << 20, 0).map_err(|e| bad(e.to_string()))?;
                let mut decoder = xz2::read::XzDecoder::new_stream(packed, stream).take(limit as u64 + 1);
                decoder.read_to_end(&mut out).map_err(|e| bad(e.to_string()))?;
            }
            Compressor::Lz4 => out = lz4_flex::block::decompress(packed, limit).map_err(|e| bad(e.to_string()))?,
            Compressor::Zstd => out = zstd::bulk::decompress(packed, limit).map_err(|e| bad(e.to_string()))?,
        }
        if out.len() > limit { Err(damaged("a block unpacks to more than it may")) } else { Ok(out) }
    }
}

struct Image {
    from: PieceReader,
    compressor: Compressor,
    block_size: u32,
    root: u64,
    inodes: u64,
    directories: u64,
    ids: Vec<u32>,
    /// Start and size of each block of tails of files.
    fragments: Vec<(u64, u32)>,
    /// Where xattrs lie, and by number: reference, how many.
    xattrs: (u64, Vec<(u64, u32)>),
    /// Blocks of tables: bytes, and where the next one begins.
    tables: HashMap<u64, (Vec<u8>, u64)>,
    /// The block of tails unpacked last.
    tails: Option<(u32, Vec<u8>)>,
}

/// A place in a table.
#[derive(Clone, Copy)]
struct Cursor {
    block: u64,
    offset: usize,
}

/// What an inode says.
struct Inode {
    kind: u16,
    meta: Meta,
    number: u32,
    links: u32,
    size: u64,
    /// Directory: where its listing begins. File: where its block sizes stand.
    at: Cursor,
    blocks_start: u64,
    fragment: u32,
    fragment_offset: u32,
    device: u32,
    target: Vec<u8>,
}

impl Image {
    /// Reads the superblock and the small tables. Nothing for a compressor that is not known.
    fn open(mut from: PieceReader) -> Result<Option<Image>> {
        let mut head = [0u8; 96];
        from.seek(SeekFrom::Start(0)).and_then(|_| from.read_exact(&mut head)).map_err(|e| damaged(&e.to_string()))?;
        let (u16_at, u32_at, u64_at) = (|at| le(&head, at, 2) as u32, |at| le(&head, at, 4) as u32, |at| le(&head, at, 8));
        let compressor = match u16_at(20) {
            1 => Compressor::Gzip,
            4 => Compressor::Xz,
            5 => Compressor::Lz4,
            6 => Compressor::Zstd,
            _ => return Ok(None),
        };
        let block_size = u32_at(12);
        if u16_at(28) != 4 || !block_size.is_power_of_two() || !(4096..=1 << 20).contains(&block_size) {
            return Err(damaged("its version or block size is none"));
        }
        let mut image = Image {
            from,
            compressor,
            block_size,
            root: u64_at(32),
            inodes: u64_at(64),
            directories: u64_at(72),
            ids: Vec::new(),
            fragments: Vec::new(),
            xattrs: (0, Vec::new()),
            tables: HashMap::new(),
            tails: None,
        };
        let ids = image.table(u64_at(48), u64::from(u16_at(26)), 4)?;
        image.ids = ids.chunks_exact(4).map(|id| le(id, 0, 4) as u32).collect();
        if u64_at(80) != u64::MAX {
            let fragments = image.table(u64_at(80), u64::from(u32_at(16)), 16)?;
            image.fragments = fragments.chunks_exact(16).map(|f| (le(f, 0, 8), le(f, 8, 4) as u32)).collect();
        }
        if u64_at(56) != u64::MAX {
            let mut start = [0u8; 16];
            image.read_at(u64_at(56), &mut start)?;
            let table = image.table(u64_at(56).saturating_add(16), le(&start, 8, 4), 16)?;
            image.xattrs = (le(&start, 0, 8), table.chunks_exact(16).map(|x| (le(x, 0, 8), le(x, 8, 4) as u32)).collect());
        }
        Ok(Some(image))
    }

    fn read_at(&mut self, at: u64, out: &mut [u8]) -> Result<()> {
        let read = self.from.seek(SeekFrom::Start(at)).and_then(|_| self.from.read_exact(out));
        read.map_err(|e| damaged(&e.to_string()))
    }

    /// A table of `count` rows that is found through a list of its blocks.
    fn table(&mut self, list: u64, count: u64, row: u64) -> Result<Vec<u8>> {
        let bytes = count.checked_mul(row).filter(|n| *n <= 1 << 30).ok_or_else(|| damaged("a table is too long"))?;
        let mut table = Vec::new();
        for n in 0..bytes.div_ceil(TABLE_BLOCK as u64) {
            let mut pointer = [0u8; 8];
            self.read_at(list.saturating_add(n * 8), &mut pointer)?;
            table.extend_from_slice(&self.table_block(u64::from_le_bytes(pointer))?.0);
        }
        if (table.len() as u64) < bytes {
            return Err(damaged("a table is cut off"));
        }
        table.truncate(bytes as usize);
        Ok(table)
    }

    fn table_block(&mut self, at: u64) -> Result<&(Vec<u8>, u64)> {
        if !self.tables.contains_key(&at) {
            let mut head = [0u8; 2];
            self.read_at(at, &mut head)?;
            let head = u16::from_le_bytes(head);
            let len = usize::from(head & 0x7fff);
            if len == 0 || len > TABLE_BLOCK {
                return Err(damaged("a block of a table has no size"));
            }
            let mut packed = vec![0; len];
            self.read_at(at.saturating_add(2), &mut packed)?;
            let bytes = if head & 0x8000 != 0 { packed } else { self.compressor.unpack(&packed, TABLE_BLOCK)? };
            if self.tables.len() >= REMEMBERED {
                self.tables.clear();
            }
            self.tables.insert(at, (bytes, at.saturating_add(2 + len as u64)));
        }
        self.tables.get(&at).ok_or_else(|| damaged("a block of a table is gone"))
    }

    /// The next bytes of a table.
    fn take<const N: usize>(&mut self, cursor: &mut Cursor) -> Result<[u8; N]> {
        let mut out = [0; N];
        self.fill(cursor, &mut out)?;
        Ok(out)
    }

    fn fill(&mut self, cursor: &mut Cursor, out: &mut [u8]) -> Result<()> {
        let mut have = 0;
        while have < out.len() {
            let (bytes, next) = self.table_block(cursor.block)?;
            let rest = bytes.get(cursor.offset..).ok_or_else(|| damaged("a reference leads nowhere"))?;
            let n = rest.len().min(out.len() - have);
            out[have..have + n].copy_from_slice(&rest[..n]);
            have += n;
            cursor.offset += n;
            if cursor.offset == bytes.len() {
                *cursor = Cursor { block: *next, offset: 0 };
            }
        }
        Ok(())
    }

    fn inode(&mut self, reference: u64) -> Result<Inode> {
        let mut at = Cursor { block: self.inodes.saturating_add(reference >> 16), offset: (reference & 0xffff) as usize };
        let head: [u8; 16] = self.take(&mut at)?;
        let id =
            |image: &Image, at| image.ids.get(le(&head, at, 2) as usize).copied().ok_or_else(|| damaged("an owner is missing"));
        let meta = Meta {
            mode: le(&head, 2, 2) as u32 & 0o7777,
            uid: id(self, 4)?,
            gid: id(self, 6)?,
            mtime: (le(&head, 8, 4).cast_signed(), 0),
            xattrs: Vec::new(),
        };
        let kind = le(&head, 0, 2) as u16;
        let mut inode = Inode {
            kind: if kind > 7 { kind - 7 } else { kind },
            meta,
            number: le(&head, 12, 4) as u32,
            links: 1,
            size: 0,
            at,
            blocks_start: 0,
            fragment: NONE,
            fragment_offset: 0,
            device: 0,
            target: Vec::new(),
        };
        let mut xattrs = NONE;
        match kind {
            1 => {
                let b: [u8; 16] = self.take(&mut at)?;
                inode.size = le(&b, 8, 2);
                inode.at = Cursor { block: self.directories.saturating_add(le(&b, 0, 4)), offset: le(&b, 10, 2) as usize };
            }
            8 => {
                let b: [u8; 24] = self.take(&mut at)?;
                inode.size = le(&b, 4, 4);
                inode.at = Cursor { block: self.directories.saturating_add(le(&b, 8, 4)), offset: le(&b, 18, 2) as usize };
                xattrs = le(&b, 20, 4) as u32;
            }
            2 => {
                let b: [u8; 16] = self.take(&mut at)?;
                (inode.blocks_start, inode.fragment) = (le(&b, 0, 4), le(&b, 4, 4) as u32);
                (inode.fragment_offset, inode.size, inode.at) = (le(&b, 8, 4) as u32, le(&b, 12, 4), at);
            }
            9 => {
                let b: [u8; 40] = self.take(&mut at)?;
                (inode.blocks_start, inode.size, inode.links) = (le(&b, 0, 8), le(&b, 8, 8), le(&b, 24, 4) as u32);
                (inode.fragment, inode.fragment_offset) = (le(&b, 28, 4) as u32, le(&b, 32, 4) as u32);
                (xattrs, inode.at) = (le(&b, 36, 4) as u32, at);
            }
            3 | 10 => {
                let b: [u8; 8] = self.take(&mut at)?;
                (inode.links, inode.size) = (le(&b, 0, 4) as u32, le(&b, 4, 4));
                if inode.size > 65536 {
                    return Err(damaged("a symlink is too long"));
                }
                inode.target = vec![0; inode.size as usize];
                let mut target = std::mem::take(&mut inode.target);
                self.fill(&mut at, &mut target)?;
                inode.target = target;
                if kind == 10 {
                    xattrs = u32::from_le_bytes(self.take(&mut at)?);
                }
            }
            4 | 5 | 11 | 12 => {
                let b: [u8; 8] = self.take(&mut at)?;
                (inode.links, inode.device) = (le(&b, 0, 4) as u32, le(&b, 4, 4) as u32);
                if kind > 7 {
                    xattrs = u32::from_le_bytes(self.take(&mut at)?);
                }
            }
            6 | 7 | 13 | 14 => {
                inode.links = u32::from_le_bytes(self.take(&mut at)?);
                if kind > 7 {
                    xattrs = u32::from_le_bytes(self.take(&mut at)?);
                }
            }
            _ => return Err(damaged("an inode has no type")),
        }
        if xattrs != NONE {
            inode.meta.xattrs = self.xattrs(xattrs)?;
        }
        Ok(inode)
    }

    fn xattrs(&mut self, number: u32) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let (start, table) = (self.xattrs.0, &self.xattrs.1);
        let (reference, count) = *table.get(number as usize).ok_or_else(|| damaged("xattrs are missing"))?;
        let place = |r: u64| Cursor { block: start.saturating_add(r >> 16), offset: (r & 0xffff) as usize };
        let mut at = place(reference);
        let (mut found, mut bytes) = (Vec::new(), 0);
        for _ in 0..count {
            let head: [u8; 4] = self.take(&mut at)?;
            let kind = le(&head, 0, 2);
            let prefix: &[u8] = match kind & 0xff {
                0 => b"user.",
                1 => b"trusted.",
                2 => b"security.",
                _ => return Err(damaged("an xattr has no kind")),
            };
            let mut name = vec![0; le(&head, 2, 2) as usize];
            self.fill(&mut at, &mut name)?;
            let mut len = u32::from_le_bytes(self.take(&mut at)?);
            let mut elsewhere = None;
            if kind & 0x100 != 0 {
                let mut other = place(u64::from_le_bytes(self.take(&mut at)?));
                len = u32::from_le_bytes(self.take(&mut other)?);
                elsewhere = Some(other);
            }
            bytes += name.len() + len as usize;
            if len > 65536 || name.len() > 255 || bytes > 1 << 20 {
                return Err(damaged("xattrs are too large"));
            }
            let mut value = vec![0; len as usize];
            match &mut elsewhere {
                Some(other) => self.fill(other, &mut value)?,
                None => self.fill(&mut at, &mut value)?,
            }
            found.push(([prefix, &name].concat(), value));
        }
        found.sort();
        found.dedup_by(|a, b| a.0 == b.0);
        Ok(found)
    }

    /// The names in a directory, with references to their inodes.
    fn list(&mut self, directory: &Inode) -> Result<Vec<(Vec<u8>, u64)>> {
        let (mut at, mut left) = (directory.at, directory.size.saturating_sub(3));
        let mut found = Vec::new();
        while left > 0 {
            let head: [u8; 12] = self.take(&mut at)?;
            left = left.checked_sub(12).ok_or_else(|| damaged("a directory is cut off"))?;
            let (count, block) = (le(&head, 0, 4) + 1, le(&head, 4, 4));
            if count > 256 {
                return Err(damaged("a directory's part is too long"));
            }
            for _ in 0..count {
                let entry: [u8; 8] = self.take(&mut at)?;
                let mut name = vec![0; le(&entry, 6, 2) as usize + 1];
                self.fill(&mut at, &mut name)?;
                left = left.checked_sub(8 + name.len() as u64).ok_or_else(|| damaged("a directory is cut off"))?;
                if name.contains(&b'/') || name == b"." || name == b".." {
                    return Err(damaged("a name is none"));
                }
                found.push((name, block << 16 | le(&entry, 0, 2)));
            }
        }
        Ok(found)
    }

    fn data_block(&mut self, at: u64, size: u32) -> Result<Vec<u8>> {
        let len = size & (RAW - 1);
        if len > self.block_size {
            return Err(damaged("a block is too long"));
        }
        let mut packed = vec![0; len as usize];
        self.read_at(at, &mut packed)?;
        if size & RAW != 0 { Ok(packed) } else { self.compressor.unpack(&packed, self.block_size as usize) }
    }

    /// The bytes of a file's tail, in a block that it shares.
    fn tail(&mut self, inode: &Inode, len: usize) -> Result<Vec<u8>> {
        if self.tails.as_ref().is_none_or(|(n, _)| *n != inode.fragment) {
            let (at, size) = *self.fragments.get(inode.fragment as usize).ok_or_else(|| damaged("a fragment is missing"))?;
            self.tails = Some((inode.fragment, self.data_block(at, size)?));
        }
        let from = inode.fragment_offset as usize;
        let found = self.tails.as_ref().and_then(|(_, bytes)| bytes.get(from..from.checked_add(len)?));
        found.map(<[u8]>::to_vec).ok_or_else(|| damaged("a fragment is cut off"))
    }

    /// Shows the pieces of a file in order: what lies between them are holes.
    fn pieces(&mut self, inode: &Inode, mut show: impl FnMut(&mut Image, u64, u32, u64) -> Result<()>) -> Result<()> {
        let block = u64::from(self.block_size);
        let blocks = if inode.fragment == NONE { inode.size.div_ceil(block) } else { inode.size / block };
        let (mut sizes, mut at) = (inode.at, inode.blocks_start);
        for n in 0..blocks {
            let size = u32::from_le_bytes(self.take(&mut sizes)?);
            if size != 0 {
                show(self, n * block, size, at)?;
                at = at.saturating_add(u64::from(size & (RAW - 1)));
            }
        }
        Ok(())
    }
}

fn walk(draft: &mut Draft, image: &mut Image, limits: &Limits) -> Result<()> {
    let (mut entries, mut left) = (0, limits.tar_size);
    let mut seen = HashSet::new();
    let mut linked: HashMap<u32, Vec<u8>> = HashMap::new();
    let mut todo = vec![(Vec::new(), image.root, 0)];
    while let Some((path, reference, depth)) = todo.pop() {
        entries += 1;
        if entries > limits.entries {
            return Err(over("the number of entries", limits.entries));
        }
        if depth > limits.depth {
            return Err(over("the depth of a path", limits.depth as u64));
        }
        let inode = image.inode(reference)?;
        if depth == 0 && inode.kind != 1 {
            return Err(damaged("its root is no directory"));
        }
        let refused = |refused| refusal(0, &path, refused);
        if let Some(first) = linked.get(&inode.number) {
            draft.builder.link(&path, first, &inode.meta).map_err(refused)?;
            continue;
        }
        let (major, minor) = device_number(inode.device);
        let symlink = Meta { mode: 0o777, ..inode.meta.clone() };
        match inode.kind {
            1 => {
                // A directory has one place: one that holds itself would never end.
                if !seen.insert(reference) {
                    return Err(damaged("a directory is in two places"));
                }
                draft.builder.add(&path, &inode.meta, Make::Directory).map_err(refused)?;
                for (name, reference) in image.list(&inode)? {
                    let below = if path.is_empty() { name } else { [&path[..], b"/", &name[..]].concat() };
                    todo.push((below, reference, depth + 1));
                }
            }
            2 => add_file(draft, image, &path, &inode, &mut left, limits)?,
            3 => draft.builder.add(&path, &symlink, Make::Symlink(&inode.target)).map_err(refused)?,
            4 => draft.builder.add(&path, &inode.meta, Make::BlockDevice { major, minor }).map_err(refused)?,
            5 => draft.builder.add(&path, &inode.meta, Make::CharDevice { major, minor }).map_err(refused)?,
            6 => draft.builder.add(&path, &inode.meta, Make::Fifo).map_err(refused)?,
            // A socket outlives nobody who listens on it; tar leaves it out, too.
            _ => continue,
        }
        draft.builder.check_heaps()?;
        if inode.kind != 1 && inode.links > 1 {
            linked.insert(inode.number, path);
        }
    }
    Ok(())
}

fn add_file(draft: &mut Draft, image: &mut Image, path: &[u8], inode: &Inode, left: &mut u64, limits: &Limits) -> Result<()> {
    let block = u64::from(image.block_size);
    let tail = if inode.fragment == NONE { 0 } else { inode.size % block };
    if inode.size > i64::MAX.cast_unsigned() {
        return Err(damaged("a file is too long"));
    }
    // Once to know how much there is, once to take it.
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
    *left = left.checked_sub(stored).ok_or_else(|| over("the size of the unpacked image", limits.tar_size))?;
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

/// A little-endian number of `len` bytes; zero past the end.
fn le(bytes: &[u8], at: usize, len: usize) -> u64 {
    bytes.get(at..at + len).unwrap_or_default().iter().rev().fold(0, |n, b| n << 8 | u64::from(*b))
}

/// The kernel's packing of a device number. Source: linux/kdev_t.h, new_decode_dev.
fn device_number(packed: u32) -> (u32, u32) {
    ((packed & 0xfff00) >> 8, (packed & 0xff) | ((packed >> 12) & 0xfff00))
}
