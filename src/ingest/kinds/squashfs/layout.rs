//! The superblock of a squashfs, and where its tables lie. Each table ends where the next one begins.
//!
//! ```text
//! superblock | data | inodes | directories | fragments | exports | ids | xattrs | end
//! ```

use crate::error::Result;
use crate::ingest::kinds::squashfs::image::{Compressor, Image, TABLE_BLOCK};
use crate::ingest::kinds::squashfs::superblock::{ABSENT, HAS_OPTIONS, SUPERBLOCK, Superblock};
use crate::ingest::kinds::squashfs::{damaged, le};
use crate::ingest::stored::Stored;

impl<S: Stored> Image<S> {
    /// Reads the superblock and the small tables. `None` for a known compressor that imgfs cannot read.
    ///
    /// # Errors
    ///
    /// `BadImage`; those of the store.
    pub fn open(mut from: S) -> Result<Option<Image<S>>> {
        if from.size() < SUPERBLOCK {
            return Err(damaged("it ends in its superblock"));
        }
        let mut raw = [0u8; 96];
        from.read_at(0, &mut raw)?;
        let (head, compressor) = Superblock::read(&raw)?;
        let compressor = match compressor {
            1 => Compressor::Gzip,
            2 => Compressor::Lzma,
            3 => return Ok(None),
            4 => Compressor::Xz,
            5 => Compressor::Lz4,
            6 => Compressor::Zstd,
            other => return Err(damaged(&format!("its blocks are packed in no known way ({other})"))),
        };
        let mut image = Image::new(from, compressor, head);
        image.options()?;
        image.tables()?;
        Ok(Some(image))
    }

    /// Checks the options of the compressor. Only lz4 must have them: they say in which of its two forms
    /// blocks are.
    fn options(&mut self) -> Result<()> {
        let mut options = &[][..];
        if self.head.flags & HAS_OPTIONS != 0 {
            options = self.table_block(SUPERBLOCK)?.0.as_slice();
        }
        let is_known = options.len() >= 8 && le(options, 0, 4) == 1;
        match self.compressor {
            Compressor::Lz4 if !is_known => Err(damaged("its lz4 is of no known form")),
            _ => Ok(()),
        }
    }

    /// Reads the tables from the last one to the first.
    fn tables(&mut self) -> Result<()> {
        let mut end = self.head.used;
        if end > self.from.size() {
            return Err(damaged("its superblock says that it is longer"));
        }
        if self.head.xattrs_at != ABSENT {
            end = self.xattr_table(end)?;
        }
        let (count, inodes) = (u64::from(self.head.ids), u64::from(self.head.inodes));
        if count == 0 || count > inodes * 2 {
            return Err(damaged("the number of its owners makes no sense"));
        }
        let ids = self.table(self.head.ids_at, count, 4, &mut end)?;
        self.ids = ids.chunks_exact(4).map(|id| le(id, 0, 4) as u32).collect();
        if self.head.exports_at != ABSENT {
            // This table is for NFS servers. Its content is not checked.
            end = self.index(self.head.exports_at, inodes, 8, end)?.first().copied().unwrap_or(end);
        }
        if self.head.fragments > 0 {
            if self.head.fragments > self.head.inodes {
                return Err(damaged("the number of its fragments makes no sense"));
            }
            let rows = self.table(self.head.fragments_at, u64::from(self.head.fragments), 16, &mut end)?;
            self.fragments = rows.chunks_exact(16).map(|f| (le(f, 0, 8), le(f, 8, 4) as u32)).collect();
        }
        if self.head.directories_at > end || self.head.inodes_at >= self.head.directories_at {
            return Err(damaged("its tables lie over each other"));
        }
        Ok(())
    }

    /// Reads the list of xattrs, and unpacks all of them once. Returns where they begin.
    fn xattr_table(&mut self, mut end: u64) -> Result<u64> {
        let mut start = [0u8; 16];
        self.read_at(self.head.xattrs_at, &mut start)?;
        let (begin, count) = (le(&start, 0, 8), le(&start, 8, 4));
        if count == 0 {
            return Err(damaged("it has a table of xattrs and none"));
        }
        let rows = self.table(self.head.xattrs_at.saturating_add(16), count, 16, &mut end)?;
        let (mut at, mut last) = (begin, TABLE_BLOCK);
        while at < end {
            if last != TABLE_BLOCK {
                return Err(damaged("a block of xattrs is too short"));
            }
            let (bytes, next) = self.table_block(at)?;
            (at, last) = (*next, bytes.len());
        }
        self.xattrs = (begin, rows.chunks_exact(16).map(|x| (le(x, 0, 8), le(x, 8, 4) as u32)).collect());
        Ok(begin)
    }

    /// The offsets of the blocks of a table. The list of them, at `at`, ends where the next table begins.
    fn index(&mut self, at: u64, count: u64, row: u64, end: u64) -> Result<Vec<u64>> {
        let bytes =
            count.checked_mul(row).filter(|n| *n <= 1 << 30).ok_or_else(|| damaged("a table is too long"))?;
        let len = bytes.div_ceil(TABLE_BLOCK as u64) * 8;
        if at.checked_add(len) != Some(end) {
            return Err(damaged("a table does not end where the next one begins"));
        }
        let mut list = vec![0; len as usize];
        self.read_at(at, &mut list)?;
        Ok(list.chunks_exact(8).map(|place| le(place, 0, 8)).collect())
    }

    /// Reads a table of `count` rows. The list of its blocks ends at `end`, which is then set to where its
    /// blocks begin.
    fn table(&mut self, at: u64, count: u64, row: u64, end: &mut u64) -> Result<Vec<u8>> {
        let places = self.index(at, count, row, *end)?;
        let bytes = (count * row) as usize;
        let mut table = Vec::new();
        for place in &places {
            let wanted = TABLE_BLOCK.min(bytes - table.len());
            let (block, next) = self.table_block(*place)?;
            // A block that compression would make larger is stored as it is.
            if block.len() != wanted || next - place - 2 > wanted as u64 {
                return Err(damaged("a block of a table has another length"));
            }
            table.extend_from_slice(block);
        }
        *end = places.first().copied().unwrap_or(*end);
        Ok(table)
    }
}
