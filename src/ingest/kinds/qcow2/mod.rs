//! cp disk.qcow2 in: a qcow2 is accepted if `qemu-img check` would find it whole.
//!
//! ```text
//! mod.rs        the header and its extensions: what qemu-img needs to open the file
//! tables.rs     where everything lies: L1, L2, snapshots, bitmaps; each reference is counted
//! refcounts.rs  the counts that the file itself has, which must be no smaller
//! ```
//!
//! Source: QEMU, docs/interop/qcow2.rst. Nothing in the file is trusted. Tables may be cut off, lie
//! past the end, or be named a thousand times.

mod refcounts;
mod tables;

use crate::error::{Error, Result};
use crate::ingest::stored::Stored;

/// The most clusters that are counted, one byte each: 4 TiB in clusters of 64 KiB.
const CLUSTERS_MAX: u64 = 1 << 26;
/// Limits of QEMU: bytes of an L1 table and of the refcount table; snapshots; bytes of a cluster, as a power
/// of two.
const L1_MAX: u64 = 32 << 20;
const REFCOUNT_TABLE_MAX: u64 = 8 << 20;
const SNAPSHOTS_MAX: u32 = 65536;
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;

/// Incompatible features: the known ones, and their meaning here.
const DATA_FILE: u64 = 1 << 2;
const COMPRESSION: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;
const KNOWN: u64 = 1 | 2 | DATA_FILE | COMPRESSION | EXTENDED_L2;
/// Autoclear features: the bitmaps are up to date; the data file is raw.
const BITMAPS: u64 = 1;
const RAW_DATA: u64 = 2;

/// Where a table lies, and how many entries or clusters it has.
#[derive(Clone, Copy, Debug)]
struct Table {
    at: u64,
    len: u64,
}

/// What the header says, except for what matters only when the disk is opened.
struct Header {
    version: u32,
    cluster_bits: u32,
    /// Bytes of the disk.
    size: u64,
    /// Its `len` counts entries.
    l1: Table,
    /// Its `len` counts clusters.
    refcounts: Table,
    refcount_order: u32,
    /// Its `len` counts snapshots.
    snapshots: Table,
    incompatible: u64,
    autoclear: u64,
    encryption: u32,
    length: u64,
    /// Where the extensions end.
    extensions_end: u64,
    /// Its `len` counts bytes.
    crypto: Option<Table>,
    bitmaps: Option<Bitmaps>,
}

/// The directory of dirty bitmaps.
#[derive(Clone, Copy)]
struct Bitmaps {
    count: u32,
    /// Its `len` counts bytes.
    directory: Table,
}

impl Header {
    fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    fn has_subclusters(&self) -> bool {
        self.incompatible & EXTENDED_L2 != 0
    }

    fn l2_entry_len(&self) -> u64 {
        if self.has_subclusters() { 16 } else { 8 }
    }
}

fn damaged<T>(why: impl Into<String>) -> Result<T> {
    Err(Error::BadImage { kind: "qcow2", why: why.into() })
}

fn unsupported<T>(what: &str, instead: &'static str) -> Result<T> {
    Err(Error::Unsupported { what: what.into(), instead })
}

fn over(what: &str, limit: u64) -> Error {
    Error::OverLimit { what: format!("{what} of the qcow2"), limit: limit.to_string() }
}

/// A big-endian number of `len` bytes. It is zero past the end.
fn be(bytes: &[u8], at: usize, len: usize) -> u64 {
    bytes.get(at..at + len).unwrap_or_default().iter().fold(0, |n, b| n << 8 | u64::from(*b))
}

/// Checks that a qcow2 is whole: everything it names lies in the file, and its own counts agree.
///
/// For a file of 4 TiB it takes up to 150 MiB of memory, for one of 64 GiB 2 MiB. It reads the tables
/// once or twice, and none of the data.
///
/// # Errors
///
/// `BadImage` for what `qemu-img check` calls an error. `Unsupported` for a disk that is not all in this
/// file, or has features that nobody knows. `OverLimit`. Those of the store.
pub fn check(image: &mut impl Stored) -> Result<()> {
    let header = read_header(image)?;
    let mut counts = refcounts::Refcounts::open(image, &header)?;
    tables::count(image, &header, &mut counts)?;
    counts.compare(image, &header)
}

/// Reads the header and its extensions.
fn read_header(image: &mut impl Stored) -> Result<Header> {
    let mut raw = [0u8; 112];
    image.read_at(0, &mut raw)?;
    let (u32_at, u64_at) = (|at| be(&raw, at, 4) as u32, |at| be(&raw, at, 8));
    let version = u32_at(4);
    match version {
        1 => {
            return unsupported(
                "a qcow disk of version 1",
                "make a qcow2 of it: qemu-img convert -O qcow2 OLD NEW",
            );
        }
        2 | 3 => {}
        _ => return damaged(format!("its version is {version}, and 2 and 3 are known")),
    }
    let cluster_bits = u32_at(20);
    if !CLUSTER_BITS.contains(&cluster_bits) {
        return damaged(format!("its clusters have 2^{cluster_bits} bytes, and 2^9 to 2^21 are possible"));
    }
    let cluster = 1u64 << cluster_bits;
    let newer = version == 3;
    let length = if newer { u64::from(u32_at(100)) } else { 72 };
    if newer && length < 104 || length > cluster {
        return damaged(format!("its header has {length} bytes"));
    }
    let (backing, backing_len) = (u64_at(8), u64::from(u32_at(16)));
    if backing > cluster {
        return damaged("the name of its backing file does not lie in the first cluster");
    }
    let mut header = Header {
        version,
        cluster_bits,
        size: u64_at(24),
        l1: Table { at: u64_at(40), len: u64::from(u32_at(36)) },
        refcounts: Table { at: u64_at(48), len: u64::from(u32_at(56)) },
        refcount_order: if newer { u32_at(96) } else { 4 },
        snapshots: Table { at: u64_at(64), len: u64::from(u32_at(60)) },
        incompatible: if newer { u64_at(72) } else { 0 },
        autoclear: if newer { u64_at(88) } else { 0 },
        encryption: u32_at(32),
        length,
        extensions_end: if backing == 0 { cluster } else { backing },
        crypto: None,
        bitmaps: None,
    };
    check_features(&header, if length > 104 { raw[104] } else { 0 })?;
    check_tables(&header)?;
    read_extensions(image, &mut header)?;
    if header.encryption == 2 && header.crypto.is_none() {
        return damaged("it is encrypted, and has no header for that");
    }
    if backing != 0 && backing_len > 1023.min(cluster - backing) {
        return damaged("the name of its backing file is too long");
    }
    if backing != 0 && backing_len != 0 {
        return unsupported("a qcow2 with a backing file", WHOLE);
    }
    Ok(header)
}

/// How to make one file of a disk that has several.
const WHOLE: &str =
    "make one file of the disk, where all its files are: qemu-img convert -O qcow2 DISK WHOLE";

/// Refuses unknown features, and features that contradict each other.
fn check_features(header: &Header, compression: u8) -> Result<()> {
    let has = |bit: u64| header.incompatible & bit != 0;
    if header.incompatible & !KNOWN != 0 {
        let what = format!("a qcow2 with features that are not known ({:#x})", header.incompatible & !KNOWN);
        return unsupported(&what, "make one without them: qemu-img convert -O qcow2 DISK NEW");
    }
    match compression {
        0 | 1 if has(COMPRESSION) == (compression == 1) => {}
        0 | 1 => return damaged("its header contradicts itself about compression"),
        _ => return damaged(format!("its compression is of no known type ({compression})")),
    }
    if header.has_subclusters() && header.cluster_bits < 14 {
        return damaged("its subclusters are too small");
    }
    if header.refcount_order > 6 {
        return damaged("its reference counts are wider than 64 bits");
    }
    if has(DATA_FILE) {
        return unsupported("a qcow2 whose data lies in another file", WHOLE);
    }
    if header.autoclear & RAW_DATA != 0 {
        return damaged("its data should be in another file, and is not");
    }
    match header.encryption {
        0 | 2 => Ok(()),
        1 => unsupported(
            "a qcow2 encrypted with AES",
            "decrypt it: qemu-img convert -O qcow2 OLD NEW, with its secret",
        ),
        other => damaged(format!("its encryption is of no known kind ({other})")),
    }
}

/// Checks the sizes and places of the tables that the header names.
fn check_tables(header: &Header) -> Result<()> {
    let cluster = header.cluster();
    let fits = |table: &Table, row: u64, most: u64| {
        let end = table.len.checked_mul(row).filter(|n| *n <= most).and_then(|n| n.checked_add(table.at));
        end.is_some_and(|end| end <= i64::MAX.cast_unsigned()) && table.at.is_multiple_of(cluster)
    };
    if header.refcounts.len == 0 {
        return damaged("it has no reference counts");
    }
    if !fits(&header.refcounts, cluster, REFCOUNT_TABLE_MAX) {
        return damaged("the place or size of its table of reference counts is impossible");
    }
    if !fits(&header.snapshots, 40, 40 * u64::from(SNAPSHOTS_MAX)) {
        return damaged("the place or size of its table of snapshots is impossible");
    }
    if !fits(&header.l1, 8, L1_MAX) {
        return damaged("the place or size of its L1 table is impossible");
    }
    let covered = cluster * (cluster / header.l2_entry_len());
    if header.size.div_ceil(covered) > header.l1.len {
        return damaged(format!("its L1 table is too small for a disk of {} bytes", header.size));
    }
    Ok(())
}

/// Reads those extensions of the header that name places.
fn read_extensions(image: &mut impl Stored, header: &mut Header) -> Result<()> {
    let mut at = header.length;
    while at < header.extensions_end {
        let mut head = [0u8; 8];
        image.read_at(at, &mut head)?;
        at += 8;
        let (kind, len) = (be(&head, 0, 4), be(&head, 4, 4));
        if len > header.extensions_end.saturating_sub(at) || at > header.extensions_end {
            return damaged("an extension of its header is too long");
        }
        let mut body = [0u8; 24];
        image.read_at(at, &mut body)?;
        match kind {
            0 => break,
            // The format of a backing file.
            0xe279_2aca if len > 15 => return damaged("the format of its backing file is too long"),
            // Encryption.
            0x0537_be77 => {
                let table = Table { at: be(&body, 0, 8), len: be(&body, 8, 8) };
                if header.encryption != 2 || len != 16 || !table.at.is_multiple_of(header.cluster()) {
                    return damaged("the header of its encryption makes no sense");
                }
                header.crypto = Some(table);
            }
            0x2385_2875 if len != 24 => return damaged("the header of its bitmaps has another length"),
            0x2385_2875 if header.autoclear & BITMAPS != 0 => {
                let (count, unused) = (be(&body, 0, 4) as u32, be(&body, 4, 4));
                let directory = Table { at: be(&body, 16, 8), len: be(&body, 8, 8) };
                let most = u64::from(tables::BITMAPS_MAX) * 1024;
                let fits =
                    directory.at.is_multiple_of(header.cluster()) && (1..=most).contains(&directory.len);
                if unused != 0 || !(1..=tables::BITMAPS_MAX).contains(&count) || !fits {
                    return damaged("the header of its bitmaps makes no sense");
                }
                header.bitmaps = Some(Bitmaps { count, directory });
            }
            _ => {}
        }
        at += len.next_multiple_of(8);
    }
    Ok(())
}
