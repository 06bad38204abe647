//! How often each cluster is used: by the file's own counts, and as found here.

use crate::error::Result;
use crate::ingest::kinds::qcow2::{CLUSTERS_MAX, Header, be, damaged, over};
use crate::ingest::stored::Stored;

/// The file's own counts, in blocks.
struct Blocks {
    cluster_bits: u32,
    order: u32,
    /// Where each block lies. 0 if there is no such block, and all its counts are 0.
    at: Vec<u64>,
}

/// Counts of clusters.
pub struct Refcounts {
    blocks: Blocks,
    /// The size of the file in bytes.
    size: u64,
    /// One bit for each cluster whose own count is 1.
    ones: Vec<u64>,
    /// How often each cluster was found in use. 255 means that or more.
    used: Vec<u8>,
}

impl Blocks {
    /// Passes the file's own counts of the first `all` clusters to `show`, as far as there are blocks.
    fn each(&self, image: &mut impl Stored, all: usize, mut show: impl FnMut(usize, u64)) -> Result<()> {
        let cluster = 1usize << self.cluster_bits;
        let per_block = (cluster * 8) >> self.order;
        let mut block = vec![0; cluster];
        for (n, at) in self.at.iter().enumerate() {
            let first = n.saturating_mul(per_block);
            if first >= all {
                break;
            }
            if *at != 0 {
                image.read_at(*at, &mut block)?;
                (0..per_block.min(all - first))
                    .for_each(|i| show(first + i, count_in(&block, i, self.order)));
            }
        }
        Ok(())
    }
}

impl Refcounts {
    /// Reads the file's own counts.
    ///
    /// # Errors
    ///
    /// `BadImage` if their table makes no sense; `OverLimit` for more clusters than are counted; those of the
    /// store.
    pub fn open(image: &mut impl Stored, header: &Header) -> Result<Refcounts> {
        let size = image.size();
        let clusters = size.div_ceil(header.cluster());
        if clusters > CLUSTERS_MAX {
            return Err(over("the number of clusters", CLUSTERS_MAX));
        }
        let mut raw = vec![0; (header.refcounts.len * header.cluster()) as usize];
        image.read_at(header.refcounts.at, &mut raw)?;
        let at: Vec<u64> = raw.chunks_exact(8).map(|entry| be(entry, 0, 8)).collect();
        drop(raw);
        for (n, at) in at.iter().enumerate() {
            if !at.is_multiple_of(header.cluster()) {
                return damaged(format!(
                    "entry {n} of its table of reference counts is no place of a cluster"
                ));
            }
            if at >> header.cluster_bits >= clusters {
                return damaged(format!("block {n} of its reference counts lies past the end of the file"));
            }
        }
        let blocks = Blocks { cluster_bits: header.cluster_bits, order: header.refcount_order, at };
        // The last cluster may be named even if the file ends before it.
        let all = clusters as usize + 1;
        let mut ones = vec![0u64; all.div_ceil(64)];
        blocks.each(image, all, |cluster, count| {
            ones[cluster / 64] |= u64::from(count == 1) << (cluster % 64)
        })?;
        Ok(Refcounts { blocks, size, ones, used: vec![0; all] })
    }

    /// Whether the file says that this cluster is used once.
    pub fn is_one(&self, at: u64) -> bool {
        let cluster = at >> self.blocks.cluster_bits;
        let word = usize::try_from(cluster / 64).ok().and_then(|n| self.ones.get(n));
        word.is_some_and(|word| word >> (cluster % 64) & 1 == 1)
    }

    /// Notes that `what` uses `len` bytes from `at` on, `times` times.
    ///
    /// # Errors
    ///
    /// `BadImage` if they lie past the end of the file. The last cluster may be cut off: QEMU leaves it so.
    pub fn add(&mut self, at: u64, len: u64, times: u32, what: &str) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        let cluster = 1u64 << self.blocks.cluster_bits;
        let Some(end) = at.checked_add(len).filter(|end| end.saturating_sub(self.size) < cluster) else {
            return damaged(format!("{what} lies past the end of the file, at byte {at}"));
        };
        for n in at >> self.blocks.cluster_bits..=(end - 1) >> self.blocks.cluster_bits {
            let used = usize::try_from(n).ok().and_then(|n| self.used.get_mut(n));
            let Some(used) = used else {
                return damaged(format!("{what} lies past the end of the file, at byte {at}"));
            };
            *used = used.saturating_add(u8::try_from(times).unwrap_or(u8::MAX));
        }
        Ok(())
    }

    /// Compares the file's own counts with what was found. A count that is too high only wastes room, and
    /// is no damage.
    ///
    /// # Errors
    ///
    /// `BadImage` for a cluster that is used more often than the file says: a write through one reference
    /// would change what the other sees. Those of the store.
    pub fn compare(mut self, image: &mut impl Stored, header: &Header) -> Result<()> {
        self.add(
            header.refcounts.at,
            header.refcounts.len * header.cluster(),
            1,
            "its table of reference counts",
        )?;
        for n in 0..self.blocks.at.len() {
            let at = self.blocks.at[n];
            if at != 0 {
                self.add(at, header.cluster(), 1, "a block of its reference counts")?;
                if self.used[(at >> header.cluster_bits) as usize] != 1 {
                    return damaged(format!(
                        "block {n} of its reference counts lies where something else does"
                    ));
                }
            }
        }
        let mut used = self.used;
        let mut wrong = None;
        self.blocks.each(image, used.len(), |cluster, count| {
            let found = std::mem::take(&mut used[cluster]);
            if count < u64::from(found) {
                wrong.get_or_insert((cluster, count, found));
            }
        })?;
        // Clusters that no block counts.
        let uncounted =
            || used.iter().position(|found| *found > 0).map(|cluster| (cluster, 0, used[cluster]));
        match wrong.or_else(uncounted) {
            Some((cluster, count, found)) => damaged(format!(
                "cluster {cluster} is used {found} times, and its reference count is {count}"
            )),
            None => Ok(()),
        }
    }
}

/// Reads a count of `1 << order` bits from a block.
fn count_in(block: &[u8], n: usize, order: u32) -> u64 {
    if order >= 3 {
        let len = 1 << (order - 3);
        return be(block, n * len, len);
    }
    let bits = 1 << order;
    let per_byte = 8 / bits;
    let byte = block.get(n / per_byte).copied().unwrap_or_default();
    u64::from(byte >> (bits * (n % per_byte)) & ((1u16 << bits) - 1) as u8)
}
