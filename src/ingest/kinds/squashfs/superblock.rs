//! The superblock of a squashfs.

use crate::error::Result;
use crate::ingest::kinds::squashfs::{damaged, le};

/// Bytes of the superblock.
pub(super) const SUPERBLOCK: u64 = 96;
/// Means that there is no such table.
pub(super) const ABSENT: u64 = u64::MAX;
/// A flag of versions before 4, whose blocks have another header.
const CHECKED: u32 = 1 << 2;

/// A flag: the block after the superblock holds the options of the compressor.
pub(super) const HAS_OPTIONS: u32 = 1 << 10;

/// The content of the superblock.
pub struct Superblock {
    pub block_size: u32,
    pub(super) flags: u32,
    /// How many inodes there are.
    pub inodes: u32,
    pub(super) fragments: u32,
    pub(super) ids: u32,
    /// A reference to the inode of the root.
    pub root: u64,
    /// The size of the whole squashfs, in bytes.
    pub(super) used: u64,
    pub(super) ids_at: u64,
    pub(super) xattrs_at: u64,
    pub inodes_at: u64,
    pub directories_at: u64,
    pub(super) fragments_at: u64,
    pub(super) exports_at: u64,
}

impl Superblock {
    pub(super) fn read(raw: &[u8; 96]) -> Result<(Superblock, u64)> {
        let (u16_at, u32_at, u64_at) = (|at| le(raw, at, 2), |at| le(raw, at, 4) as u32, |at| le(raw, at, 8));
        if (u16_at(28), u16_at(30)) != (4, 0) {
            return Err(damaged(&format!("its version is {}.{}, and 4.0 is known", u16_at(28), u16_at(30))));
        }
        let block_size = u32_at(12);
        let flags = u16_at(24) as u32;
        let is_size = block_size.is_power_of_two() && (4096..=1 << 20).contains(&block_size);
        if !is_size || u64::from(block_size.ilog2()) != u16_at(22) || flags & CHECKED != 0 {
            return Err(damaged("the size of its blocks makes no sense"));
        }
        let head = Superblock {
            block_size,
            flags,
            inodes: u32_at(4),
            fragments: u32_at(16),
            ids: u16_at(26) as u32,
            root: u64_at(32),
            used: u64_at(40),
            ids_at: u64_at(48),
            xattrs_at: u64_at(56),
            inodes_at: u64_at(64),
            directories_at: u64_at(72),
            fragments_at: u64_at(80),
            exports_at: u64_at(88),
        };
        Ok((head, u16_at(20)))
    }
}
