//! Reads the tables of a squashfs: inodes, names, xattrs, blocks of data.

use std::collections::HashMap;
use std::io::Read;

use crate::error::{Error, Result};
use crate::ingest::kinds::squashfs::superblock::Superblock;
use crate::ingest::kinds::squashfs::{damaged, le};
use crate::ingest::stored::Stored;
use crate::tree::Meta;

/// The size of an unpacked block of tables, in bytes.
pub const TABLE_BLOCK: usize = 8192;
/// How many blocks of tables are remembered.
const REMEMBERED: usize = 2048;
/// Means no fragment, no xattrs, or no table.
pub const NONE: u32 = u32::MAX;
/// A bit in a data block's size: the block is stored uncompressed.
const RAW: u32 = 1 << 24;

/// How blocks are compressed.
#[derive(Clone, Copy)]
pub enum Compressor {
    Gzip,
    Lzma,
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
                let stream =
                    xz2::stream::Stream::new_stream_decoder(64 << 20, 0).map_err(|e| bad(e.to_string()))?;
                let mut decoder = xz2::read::XzDecoder::new_stream(packed, stream).take(limit as u64 + 1);
                decoder.read_to_end(&mut out).map_err(|e| bad(e.to_string()))?;
            }
            Compressor::Lzma => {
                // The block has properties, the size in eight bytes (four of which count), and data.
                let size = le(packed, 5, 4).to_le_bytes();
                let whole =
                    [packed.get(..5).unwrap_or_default(), &size, packed.get(13..).unwrap_or_default()]
                        .concat();
                let stream =
                    xz2::stream::Stream::new_lzma_decoder(64 << 20).map_err(|e| bad(e.to_string()))?;
                let mut decoder = xz2::read::XzDecoder::new_stream(&whole[..], stream).take(limit as u64 + 1);
                let read = decoder.read_to_end(&mut out);
                // Bytes after the last one are not checked. unsquashfs also accepts such a block.
                if out.len() as u64 != le(packed, 5, 4) {
                    read.map_err(|e| bad(e.to_string()))?;
                }
            }
            Compressor::Lz4 => {
                out = lz4_flex::block::decompress(packed, limit).map_err(|e| bad(e.to_string()))?
            }
            Compressor::Zstd => {
                out = zstd::bulk::decompress(packed, limit).map_err(|e| bad(e.to_string()))?
            }
        }
        if out.len() > limit { Err(damaged("a block unpacks to more than it may")) } else { Ok(out) }
    }
}

/// A squashfs that is being read.
pub struct Image<S> {
    pub(super) from: S,
    pub(super) compressor: Compressor,
    pub(super) head: Superblock,
    pub(super) ids: Vec<u32>,
    /// Offset and size of each block of file tails.
    pub(super) fragments: Vec<(u64, u32)>,
    /// Where xattrs lie, and for each number the reference and the count.
    pub(super) xattrs: (u64, Vec<(u64, u32)>),
    /// Unpacked blocks of tables: their bytes, and where the next block begins.
    tables: HashMap<u64, (Vec<u8>, u64)>,
    /// The block of file tails that was unpacked last.
    tails: Option<(u32, Vec<u8>)>,
}

/// A place in a table.
#[derive(Clone, Copy)]
struct Cursor {
    block: u64,
    offset: usize,
}

/// The content of an inode.
pub struct Inode {
    /// 1 to 7. Long inodes have the number of the basic kind.
    pub kind: u16,
    pub meta: Meta,
    pub number: u32,
    pub links: u32,
    pub size: u64,
    /// For a directory: where its listing begins. For a file: where its block sizes are.
    at: Cursor,
    blocks_start: u64,
    pub fragment: u32,
    fragment_offset: u32,
    pub device: u32,
    pub target: Vec<u8>,
}

impl<S: Stored> Image<S> {
    pub(super) fn new(from: S, compressor: Compressor, head: Superblock) -> Image<S> {
        Image {
            from,
            compressor,
            head,
            ids: Vec::new(),
            fragments: Vec::new(),
            xattrs: (0, Vec::new()),
            tables: HashMap::new(),
            tails: None,
        }
    }

    /// A reference to the inode of its root.
    pub fn root(&self) -> u64 {
        self.head.root
    }

    /// The size of a block of data, in bytes.
    pub fn block_size(&self) -> u32 {
        self.head.block_size
    }

    pub(super) fn read_at(&mut self, at: u64, out: &mut [u8]) -> Result<()> {
        if at.checked_add(out.len() as u64).is_none_or(|end| end > self.from.size()) {
            return Err(damaged("something in it lies past its end"));
        }
        self.from.read_at(at, out)
    }

    pub(super) fn table_block(&mut self, at: u64) -> Result<&(Vec<u8>, u64)> {
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
            let bytes =
                if head & 0x8000 != 0 { packed } else { self.compressor.unpack(&packed, TABLE_BLOCK)? };
            if self.tables.len() >= REMEMBERED {
                self.tables.clear();
            }
            self.tables.insert(at, (bytes, at.saturating_add(2 + len as u64)));
        }
        self.tables.get(&at).ok_or_else(|| damaged("a block of a table is gone"))
    }

    /// Takes the next bytes of a table.
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

    /// Reads an inode.
    ///
    /// # Errors
    ///
    /// `BadImage`; those of the store.
    pub fn inode(&mut self, reference: u64) -> Result<Inode> {
        let mut at = Cursor {
            block: self.head.inodes_at.saturating_add(reference >> 16 & u64::from(u32::MAX)),
            offset: (reference & 0xffff) as usize,
        };
        let head: [u8; 16] = self.take(&mut at)?;
        let id = |image: &Image<S>, at| {
            image.ids.get(le(&head, at, 2) as usize).copied().ok_or_else(|| damaged("an owner is missing"))
        };
        let meta = Meta {
            mode: le(&head, 2, 2) as u32 & 0o7777,
            uid: id(self, 4)?,
            gid: id(self, 6)?,
            mtime: (le(&head, 8, 4).cast_signed(), 0),
            xattrs: Vec::new(),
        };
        let kind = le(&head, 0, 2) as u16;
        let number = le(&head, 12, 4) as u32;
        if number == 0 || number > self.head.inodes {
            return Err(damaged("an inode has a number that is none"));
        }
        let mut inode = Inode {
            kind: if kind > 7 { kind - 7 } else { kind },
            meta,
            number,
            links: 1,
            size: 0,
            at,
            blocks_start: 0,
            fragment: NONE,
            fragment_offset: 0,
            device: 0,
            target: Vec::new(),
        };
        let xattrs = self.rest_of(&mut inode, kind, at)?;
        // Without a table of xattrs there are none. The kernel does the same.
        if xattrs != NONE && !self.xattrs.1.is_empty() {
            inode.meta.xattrs = self.xattrs(xattrs).map_err(|e| match e {
                Error::BadImage { why, .. } => damaged(&format!("in the xattrs of an inode, {why}")),
                e => e,
            })?;
        }
        Ok(inode)
    }

    /// Reads the rest of an inode of this kind, at `at`. Returns the number of its xattrs.
    fn rest_of(&mut self, inode: &mut Inode, kind: u16, mut at: Cursor) -> Result<u32> {
        let mut xattrs = NONE;
        match kind {
            1 => {
                let b: [u8; 16] = self.take(&mut at)?;
                inode.size = le(&b, 8, 2);
                inode.at = Cursor {
                    block: self.head.directories_at.saturating_add(le(&b, 0, 4)),
                    offset: le(&b, 10, 2) as usize,
                };
            }
            8 => {
                let b: [u8; 24] = self.take(&mut at)?;
                inode.size = le(&b, 4, 4);
                inode.at = Cursor {
                    block: self.head.directories_at.saturating_add(le(&b, 8, 4)),
                    offset: le(&b, 18, 2) as usize,
                };
                xattrs = le(&b, 20, 4) as u32;
            }
            2 => {
                let b: [u8; 16] = self.take(&mut at)?;
                (inode.blocks_start, inode.fragment) = (le(&b, 0, 4), le(&b, 4, 4) as u32);
                (inode.fragment_offset, inode.size, inode.at) = (le(&b, 8, 4) as u32, le(&b, 12, 4), at);
            }
            9 => {
                let b: [u8; 40] = self.take(&mut at)?;
                (inode.blocks_start, inode.size, inode.links) =
                    (le(&b, 0, 8), le(&b, 8, 8), le(&b, 24, 4) as u32);
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
        Ok(xattrs)
    }

    fn xattrs(&mut self, number: u32) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let (start, table) = (self.xattrs.0, &self.xattrs.1);
        let (reference, count) = *table.get(number as usize).ok_or_else(|| damaged("xattrs are missing"))?;
        if count == 0 {
            return Err(damaged("there are xattrs without any"));
        }
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

    /// The names in a directory, in order. Each has the reference to its inode, and whether it is a
    /// directory.
    ///
    /// # Errors
    ///
    /// `BadImage`; those of the store.
    pub fn list(&mut self, directory: &Inode) -> Result<Vec<(Vec<u8>, u64, bool)>> {
        let (mut at, mut left) = (directory.at, directory.size.saturating_sub(3));
        let mut found: Vec<(Vec<u8>, u64, bool)> = Vec::new();
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
                left = left
                    .checked_sub(8 + name.len() as u64)
                    .ok_or_else(|| damaged("a directory is cut off"))?;
                if name.contains(&b'/') || name == b"." || name == b".." {
                    return Err(damaged("a name is none"));
                }
                if found.last().is_some_and(|(last, ..)| *last >= name) {
                    return Err(damaged("the names in a directory are not in order"));
                }
                found.push((name, block << 16 | le(&entry, 0, 2), le(&entry, 4, 2) == 1));
            }
        }
        Ok(found)
    }

    /// Unpacks a block of data.
    ///
    /// # Errors
    ///
    /// `BadImage`; those of the store.
    pub fn data_block(&mut self, at: u64, size: u32) -> Result<Vec<u8>> {
        let len = size & !RAW;
        if len > self.block_size() {
            return Err(damaged("a block is too long"));
        }
        let mut packed = vec![0; len as usize];
        self.read_at(at, &mut packed)?;
        if size & RAW != 0 { Ok(packed) } else { self.compressor.unpack(&packed, self.block_size() as usize) }
    }

    /// The bytes of a file's tail, in a block that it shares with others.
    ///
    /// # Errors
    ///
    /// `BadImage`; those of the store.
    pub fn tail(&mut self, inode: &Inode, len: usize) -> Result<Vec<u8>> {
        if self.tails.as_ref().is_none_or(|(n, _)| *n != inode.fragment) {
            let (at, size) = *self
                .fragments
                .get(inode.fragment as usize)
                .ok_or_else(|| damaged("a fragment is missing"))?;
            self.tails = Some((inode.fragment, self.data_block(at, size)?));
        }
        let from = inode.fragment_offset as usize;
        let found = self.tails.as_ref().and_then(|(_, bytes)| bytes.get(from..from.checked_add(len)?));
        found.map(<[u8]>::to_vec).ok_or_else(|| damaged("a fragment is cut off"))
    }

    /// Passes the pieces of a file to `show`, in order. Between them are holes.
    ///
    /// # Errors
    ///
    /// `BadImage`; what `show` fails with; those of the store.
    pub fn pieces(
        &mut self,
        inode: &Inode,
        mut show: impl FnMut(&mut Image<S>, u64, u32, u64) -> Result<()>,
    ) -> Result<()> {
        let block = u64::from(self.block_size());
        let blocks = if inode.fragment == NONE { inode.size.div_ceil(block) } else { inode.size / block };
        let (mut sizes, mut at) = (inode.at, inode.blocks_start);
        for n in 0..blocks {
            let size = u32::from_le_bytes(self.take(&mut sizes)?);
            if size != 0 {
                show(self, n * block, size, at)?;
                at = at.saturating_add(u64::from(size & !RAW));
            }
        }
        Ok(())
    }
}
