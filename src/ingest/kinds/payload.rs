//! cp disk.qcow2 in: uploads that are no archive, and are kept whole for random reads: disk images,
//! file system images, streams of zfs.
//!
//! The bytes are cut into pieces of 64 KiB, each a blob. So a version only stores what differs from
//! older ones. Runs of zeros are holes.

use crate::base::digest::Content;
use crate::blob::Writer;
use crate::error::Result;
use crate::formats::tar::Source;
use crate::tree::recipe::RecipeBuilder;

/// The size of a piece in bytes: a cluster of qcow2, and BLAKE3's group.
const PIECE: usize = 64 * 1024;
/// How many bytes of the beginning `detect` needs. An ISO's magic lies at 32 KiB.
pub const HEAD: usize = 34 * 1024;

/// The kind of a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload {
    Qcow2,
    Raw,
    Squashfs,
    Erofs,
    Iso,
    Zfs,
    /// Any bytes that a manifest announces.
    Opaque,
}

impl Payload {
    /// The payload with this beginning, by its magic. With less than `HEAD` bytes, some kinds cannot be
    /// seen yet.
    pub fn detect(head: &[u8]) -> Option<Payload> {
        let at = |offset: usize, magic: &[u8]| head.get(offset..).is_some_and(|rest| rest.starts_with(magic));
        // dmu_replay_record: DRR_BEGIN, a length, the magic, in the writer's byte order. Source: zfs,
        // sys/zfs_ioctl.h.
        const ZFS: u64 = 0x2_f5ba_cbac;
        if at(0, b"QFI\xfb") {
            Some(Payload::Qcow2)
        } else if at(0, b"hsqs") {
            Some(Payload::Squashfs)
        } else if at(8, &ZFS.to_le_bytes()) || at(8, &ZFS.to_be_bytes()) {
            Some(Payload::Zfs)
        } else if at(1024, &[0xe2, 0xe1, 0xf5, 0xe0]) {
            Some(Payload::Erofs)
        } else if at(512, b"EFI PART") {
            Some(Payload::Raw)
        } else if at(32769, b"CD001") {
            Some(Payload::Iso)
        } else if at(510, &[0x55, 0xaa]) && is_partitioned(head) {
            Some(Payload::Raw)
        } else {
            None
        }
    }

    /// The file's name in its version.
    pub fn file_name(self) -> &'static str {
        match self {
            Payload::Qcow2 => "disk.qcow2",
            Payload::Raw => "disk.raw",
            Payload::Squashfs => "rootfs.squashfs",
            Payload::Erofs => "rootfs.erofs",
            Payload::Iso => "image.iso",
            Payload::Zfs => "rootfs.zfs",
            Payload::Opaque => "file",
        }
    }

    /// The payload with this name.
    pub fn named(name: &str) -> Option<Payload> {
        let all = [
            Payload::Qcow2,
            Payload::Raw,
            Payload::Squashfs,
            Payload::Erofs,
            Payload::Iso,
            Payload::Zfs,
            Payload::Opaque,
        ];
        all.into_iter().find(|payload| payload.name() == name)
    }

    pub fn name(self) -> &'static str {
        match self {
            Payload::Qcow2 => "qcow2",
            Payload::Raw => "raw",
            Payload::Squashfs => "squashfs",
            Payload::Erofs => "erofs",
            Payload::Iso => "iso",
            Payload::Zfs => "zfs",
            Payload::Opaque => "file",
        }
    }

    /// The size of the disk that a virtual machine sees, in bytes. The payload has `size` bytes and begins
    /// with `head`. 0 if it is no disk. Source: qemu, docs/interop/qcow2.txt, bytes 24 to 31 of the header.
    pub fn virtual_size(self, head: &[u8], size: u64) -> u64 {
        match self {
            Payload::Qcow2 => {
                head.get(24..32).map_or(0, |b| u64::from_be_bytes(b.try_into().unwrap_or_default()))
            }
            Payload::Raw => size,
            _ => 0,
        }
    }

    /// The size that its own header demands, as far as that can be known. A shorter payload is cut off.
    pub fn least_size(self, head: &[u8]) -> u64 {
        let le32 = |at: usize| {
            head.get(at..at + 4)
                .map_or(0, |b| u64::from(u32::from_le_bytes(b.try_into().unwrap_or_default())))
        };
        let le64 = |at: usize| {
            head.get(at..at + 8).map_or(0, |b| u64::from_le_bytes(b.try_into().unwrap_or_default()))
        };
        let be64 = |at: usize| {
            head.get(at..at + 8).map_or(0, |b| u64::from_be_bytes(b.try_into().unwrap_or_default()))
        };
        let be32 = |at: usize| {
            head.get(at..at + 4)
                .map_or(0, |b| u64::from(u32::from_be_bytes(b.try_into().unwrap_or_default())))
        };
        match self {
            // The field bytes_used.
            Payload::Squashfs => le64(40),
            // The size is in blocks of 2^blkszbits bytes.
            Payload::Erofs => {
                le32(1024 + 36).checked_shl(head.get(1024 + 12).map_or(0, |b| u32::from(*b))).unwrap_or(0)
            }
            // The volume space size, in logical blocks.
            Payload::Iso => le32(32768 + 80).saturating_mul(2048),
            // The backup of the partition table lies in the last sector.
            Payload::Raw if head.get(512..520) == Some(b"EFI PART") => {
                le64(512 + 32).saturating_add(1).saturating_mul(512)
            }
            // The header names two tables: of the clusters, and of their reference counts.
            Payload::Qcow2 => {
                let tables = be64(40).saturating_add(be32(36) * 8);
                let counts = be64(48).saturating_add(be32(56) << be32(20).min(30));
                tables.max(counts)
            }
            Payload::Raw | Payload::Zfs | Payload::Opaque => 0,
        }
    }
}

/// Whether the partition table of a master boot record makes sense. If not, 55 AA may be there by
/// chance.
fn is_partitioned(head: &[u8]) -> bool {
    let entries = head.get(446..510).unwrap_or_default().chunks_exact(16);
    let used = entries.clone().filter(|e| e[4] != 0 && e[8..16] != [0; 8]).count();
    used > 0 && entries.clone().all(|e| matches!(e[0], 0 | 0x80))
}

/// Stores all bytes of the source, and returns their recipe.
///
/// # Errors
///
/// `OverLimit` over `limit` bytes; those of the writer and the source.
pub fn store(
    source: &mut impl Source,
    writer: &mut Writer,
    limit: u64,
    mut at: impl FnMut(u64),
) -> Result<RecipeBuilder> {
    let mut recipe = RecipeBuilder::new()?;
    let mut piece = Vec::with_capacity(PIECE);
    loop {
        let bytes = source.fill()?;
        let take = bytes.len().min(PIECE - piece.len());
        let ended = bytes.is_empty();
        if piece.is_empty() && take == PIECE {
            put(writer, &mut recipe, &bytes[..PIECE])?;
        } else {
            piece.extend_from_slice(&bytes[..take]);
            if piece.len() == PIECE || (ended && !piece.is_empty()) {
                put(writer, &mut recipe, &piece)?;
                piece.clear();
            }
        }
        source.consume(take);
        at(recipe.tar_size() + piece.len() as u64);
        if ended {
            return Ok(recipe);
        }
        if recipe.tar_size() > limit {
            return Err(crate::error::Error::OverLimit {
                what: "the size of the image".into(),
                limit: limit.to_string(),
            });
        }
    }
}

fn put(writer: &mut Writer, recipe: &mut RecipeBuilder, piece: &[u8]) -> Result<()> {
    let content = if piece.iter().all(|b| *b == 0) { Content::Hole } else { writer.put(piece)? };
    recipe.content(content, piece.len() as u64);
    Ok(())
}
