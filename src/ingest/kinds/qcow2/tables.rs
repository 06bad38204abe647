//! What the header leads to. Each named place is counted, and read if it names others.

use std::collections::BTreeMap;

use crate::error::Result;
use crate::ingest::kinds::qcow2::refcounts::Refcounts;
use crate::ingest::kinds::qcow2::{Bitmaps, Header, L1_MAX, SNAPSHOTS_MAX, Table, be, damaged, over};
use crate::ingest::stored::Stored;

/// QEMU's limits of bitmaps: how many; entries of a table; bytes of a bitmap; bytes of a name.
pub const BITMAPS_MAX: u32 = 65535;
const BITMAP_TABLE_MAX: u64 = 0x800_0000;
const BITMAP_MAX: u64 = 0x2000_0000;
const NAME_MAX: u64 = 1023;
/// QEMU's limit of the extra data of a snapshot, in bytes.
const EXTRA_MAX: u64 = 1024;
/// How many bytes of L1 tables, bitmap tables and snapshot lists are read in all. For 1,000 snapshots
/// of a disk of 1 TiB they have 16 MiB.
const TABLES_MAX: u64 = 256 << 20;
/// How many L2 tables are remembered. With 64 KiB clusters this is enough for 1 PiB.
const L2_MAX: usize = 1 << 21;
/// How many bytes of tables are read at a time.
const CHUNK: u64 = 64 * 1024;

/// Bits of an entry. Source: qcow2.rst, "Cluster mapping".
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const L1_UNUSED: u64 = 0x7f00_0000_0000_01ff;
const L2_UNUSED: u64 = 0x3f00_0000_0000_01fe;
const ZERO: u64 = 1;

/// An L2 table: how many L1 entries lead to it, and whether the current state of the disk uses it.
#[derive(Default)]
struct L2 {
    times: u32,
    active: bool,
}

struct Walk<'w, S> {
    image: &'w mut S,
    header: &'w Header,
    counts: &'w mut Refcounts,
    /// By their offsets, so that they are read in the order of the file.
    l2: BTreeMap<u64, L2>,
    /// How many bytes of tables may still be read.
    left: u64,
}

/// Counts all clusters in use, except for those of the reference counts.
///
/// # Errors
///
/// `BadImage` for what `qemu-img check` calls an error; `OverLimit`; those of the store.
pub fn count(image: &mut impl Stored, header: &Header, counts: &mut Refcounts) -> Result<()> {
    counts.add(0, header.cluster(), 1, "its header")?;
    let mut walk = Walk { image, header, counts, l2: BTreeMap::new(), left: TABLES_MAX };
    walk.l1(header.l1, true)?;
    walk.snapshots()?;
    if let Some(crypto) = header.crypto {
        walk.counts.add(crypto.at, crypto.len, 1, "the header of its encryption")?;
    }
    if let Some(bitmaps) = header.bitmaps {
        walk.bitmaps(bitmaps)?;
    }
    for (at, l2) in std::mem::take(&mut walk.l2) {
        walk.l2(at, &l2)?;
    }
    Ok(())
}

impl<S: Stored> Walk<'_, S> {
    /// Reads `len` bytes of a table in pieces of whole entries. `show` also gets the offset of each piece
    /// in the table.
    fn read(
        &mut self,
        at: u64,
        len: u64,
        mut show: impl FnMut(&mut Self, u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        self.left = self.left.checked_sub(len).ok_or_else(|| over("the size of all tables", TABLES_MAX))?;
        let mut piece = vec![0; CHUNK.min(len) as usize];
        let mut done = 0;
        while done < len {
            let take = CHUNK.min(len - done) as usize;
            self.image.read_at(at.saturating_add(done), &mut piece[..take])?;
            show(self, done, &piece[..take])?;
            done += take as u64;
        }
        Ok(())
    }

    /// Counts an L1 table, and remembers the L2 tables that it names.
    fn l1(&mut self, table: Table, active: bool) -> Result<()> {
        let cluster = self.header.cluster();
        self.counts.add(table.at, table.len * 8, 1, "an L1 table")?;
        self.read(table.at, table.len * 8, |walk, done, piece| {
            for (n, entry) in piece.chunks_exact(8).enumerate() {
                let (n, entry) = (done / 8 + n as u64, be(entry, 0, 8));
                if entry == 0 {
                    continue;
                }
                let at = entry & OFFSET;
                if entry & L1_UNUSED != 0 || at == 0 || !at.is_multiple_of(cluster) {
                    return damaged(format!("L1 entry {n} is no place of an L2 table ({entry:#x})"));
                }
                walk.counts.add(at, cluster, 1, "an L2 table")?;
                if active && walk.counts.is_one(at) != (entry & COPIED != 0) {
                    return damaged(format!("L1 entry {n} and a reference count contradict each other"));
                }
                let l2 = walk.l2.entry(at).or_default();
                l2.times = l2.times.saturating_add(1);
                l2.active |= active;
                if walk.l2.len() > L2_MAX {
                    return Err(over("the number of L2 tables", L2_MAX as u64));
                }
            }
            Ok(())
        })
    }

    /// Counts what an L2 table names, as often as the table itself is named.
    fn l2(&mut self, at: u64, l2: &L2) -> Result<()> {
        let row = self.header.l2_entry_len() as usize;
        let mut table = vec![0; self.header.cluster() as usize];
        self.image.read_at(at, &mut table)?;
        for (n, raw) in table.chunks_exact(row).enumerate() {
            let (entry, subclusters) = (be(raw, 0, 8), be(raw, 8, 8));
            if entry | subclusters == 0 {
                continue;
            }
            if let Err(why) = self.l2_entry(entry, subclusters, l2)? {
                return damaged(format!("entry {n} of the L2 table at byte {at} {why} ({entry:#x})"));
            }
        }
        Ok(())
    }

    /// Counts what an entry names. The inner error says what is wrong with the entry.
    fn l2_entry(
        &mut self,
        entry: u64,
        subclusters: u64,
        l2: &L2,
    ) -> Result<std::result::Result<(), &'static str>> {
        let (header, at) = (self.header, entry & OFFSET);
        // The lower half says where there is data, the upper half what reads as zeros.
        let (there, zeros) = (subclusters & u64::from(u32::MAX), subclusters >> 32);
        if entry & COMPRESSED != 0 {
            if entry & COPIED != 0 || subclusters != 0 {
                return Ok(Err("contradicts itself"));
            }
            let shift = 62 - (header.cluster_bits - 8);
            let from = entry & ((1 << shift) - 1);
            let sectors = (entry >> shift & ((1 << (header.cluster_bits - 8)) - 1)) + 1;
            self.counts.add(from, sectors * 512 - (from & 511), l2.times, "a compressed cluster")?;
            return Ok(Ok(()));
        }
        if entry & L2_UNUSED != 0 || entry & ZERO != 0 && header.has_subclusters() {
            return Ok(Err("has bits that mean nothing"));
        }
        if at == 0 {
            return Ok(if there == 0 { Ok(()) } else { Err("has data and no place") });
        }
        if there & zeros != 0 {
            return Ok(Err("contradicts itself"));
        }
        if !at.is_multiple_of(header.cluster()) {
            return Ok(Err("is no place of a cluster"));
        }
        self.counts.add(at, header.cluster(), l2.times, "a cluster of data")?;
        if l2.active && self.counts.is_one(at) != (entry & COPIED != 0) {
            return Ok(Err("and a reference count contradict each other"));
        }
        Ok(Ok(()))
    }

    /// Counts the list of snapshots, and what they hold.
    fn snapshots(&mut self) -> Result<()> {
        let (version, list) = (self.header.version, self.header.snapshots);
        let mut at = list.at;
        for n in 0..list.len {
            at = at.next_multiple_of(8);
            let mut head = [0u8; 40];
            self.image.read_at(at, &mut head)?;
            let (id, name, extra) = (be(&head, 12, 2), be(&head, 14, 2), be(&head, 36, 4));
            if extra > EXTRA_MAX || version >= 3 && extra < 16 {
                return damaged(format!("snapshot {n} says {extra} bytes more than its name"));
            }
            at += 40 + extra + id + name;
            if at - list.at > u64::from(SNAPSHOTS_MAX) * 1024 {
                return damaged("its list of snapshots is too long");
            }
            let l1 = Table { at: be(&head, 0, 8), len: be(&head, 8, 4) };
            if !l1.at.is_multiple_of(self.header.cluster()) || l1.len > L1_MAX / 8 {
                return damaged(format!("the place or size of the L1 table of snapshot {n} is impossible"));
            }
            self.l1(l1, false)?;
        }
        self.counts.add(list.at, at - list.at, 1, "its list of snapshots")
    }

    /// Counts the directory of bitmaps, their tables, and their clusters.
    fn bitmaps(&mut self, bitmaps: Bitmaps) -> Result<()> {
        let Table { at: begin, len } = bitmaps.directory;
        self.counts.add(begin, len, 1, "its directory of bitmaps")?;
        let (mut at, mut count) = (begin, 0);
        while at < begin + len {
            let mut head = [0u8; 24];
            self.image.read_at(at, &mut head)?;
            let name = be(&head, 18, 2);
            at += (24 + name).next_multiple_of(8);
            count += 1;
            if at > begin + len || count > bitmaps.count {
                return damaged("its directory of bitmaps and the header contradict each other");
            }
            self.bitmap(&head)?;
        }
        if count == bitmaps.count { Ok(()) } else { damaged("it has fewer bitmaps than the header says") }
    }

    /// Counts a bitmap by its entry in the directory.
    fn bitmap(&mut self, head: &[u8; 24]) -> Result<()> {
        let (cluster, table) = (self.header.cluster(), Table { at: be(head, 0, 8), len: be(head, 8, 4) });
        let (flags, kind, granularity) = (be(head, 12, 4), head[16], u32::from(head[17]));
        let (name, extra) = (be(head, 18, 2), be(head, 20, 4));
        let is_place = table.at != 0 && table.at.is_multiple_of(cluster);
        let is_size = (1..=BITMAP_TABLE_MAX).contains(&table.len) && table.len * cluster <= BITMAP_MAX;
        let is_kind =
            flags & !3 == 0 && kind == 1 && (9..=31).contains(&granularity) && name <= NAME_MAX && extra == 0;
        if !is_place || !is_size || !is_kind {
            return damaged("the directory entry of a bitmap makes no sense");
        }
        // A bitmap in use is not read, so its size may be that of an earlier disk.
        let bytes = self.header.size.div_ceil(1 << granularity).div_ceil(64) * 8;
        if flags & 1 == 0 && bytes.div_ceil(cluster) != table.len {
            return damaged("a bitmap is of another size than the disk");
        }
        self.counts.add(table.at, table.len * 8, 1, "the table of a bitmap")?;
        self.read(table.at, table.len * 8, |walk, _, piece| {
            for entry in piece.chunks_exact(8).map(|entry| be(entry, 0, 8)) {
                let at = entry & OFFSET;
                // Without a place, bit 0 means all ones.
                if entry & !OFFSET > u64::from(at == 0) || !at.is_multiple_of(cluster) {
                    return damaged(format!(
                        "an entry of a bitmap's table is no place of a cluster ({entry:#x})"
                    ));
                }
                if at != 0 {
                    walk.counts.add(at, cluster, 1, "a cluster of a bitmap")?;
                }
            }
            Ok(())
        })
    }
}
