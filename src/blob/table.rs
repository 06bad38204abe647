//! The blob table: one 64-byte record an id, in an array that only grows. See `format.rs`, "Blob table".

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use hashbrown::HashTable;
use memmap2::Mmap;

use crate::base::digest::{BlobId, Digest};
use crate::base::sys;
use crate::base::writable::Writable;
use crate::blob::container::Place;
use crate::error::{Error, Result};
use crate::format::{RECORD_LEN, TABLE_MAGIC};

/// What the table knows about a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    pub digest: Digest,
    /// The size of the content, in bytes.
    pub size: u64,
    pub place: Place,
    pub offset: u64,
    /// The container that holds the content.
    pub container: u32,
    /// For objects: the segment that holds the outline. For packs: the number of the outline's first value.
    pub outline_in: u32,
    /// The first bytes of the first group's chaining value. They find the blob that a large upload may
    /// equal.
    pub lead: u32,
}

const ALGORITHM_BLAKE3: u8 = 1;

impl Record {
    pub fn is_packed(&self) -> bool {
        self.place == Place::Pack
    }

    /// The stored form. The check covers the id, so that a record cannot stand for another.
    pub fn encode(&self, id: BlobId) -> [u8; RECORD_LEN] {
        let mut out = [0u8; RECORD_LEN];
        out[..32].copy_from_slice(&self.digest.0);
        out[32..38].copy_from_slice(&self.size.to_le_bytes()[..6]);
        out[38] = self.place.code();
        out[39] = ALGORITHM_BLAKE3;
        out[40..48].copy_from_slice(&self.offset.to_le_bytes());
        out[48..52].copy_from_slice(&self.container.to_le_bytes());
        out[52..56].copy_from_slice(&self.outline_in.to_le_bytes());
        out[56..60].copy_from_slice(&self.lead.to_le_bytes());
        let check = record_check(id, &out[..60]);
        out[60..].copy_from_slice(&check);
        out
    }

    /// Reads a stored record back; `None` if it is free, torn or damaged.
    pub fn decode(id: BlobId, raw: &[u8]) -> Option<Record> {
        let u32_at = |at: usize| Some(u32::from_le_bytes(raw.get(at..at + 4)?.try_into().ok()?));
        if raw.len() != RECORD_LEN || raw[39] != ALGORITHM_BLAKE3 || raw[60..] != record_check(id, &raw[..60])
        {
            return None;
        }
        let mut size = [0u8; 8];
        size[..6].copy_from_slice(&raw[32..38]);
        Some(Record {
            digest: Digest(raw[..32].try_into().ok()?),
            size: u64::from_le_bytes(size),
            place: Place::of_code(raw[38])?,
            offset: u64::from_le_bytes(raw[40..48].try_into().ok()?),
            container: u32_at(48)?,
            outline_in: u32_at(52)?,
            lead: u32_at(56)?,
        })
    }
}

fn record_check(id: BlobId, body: &[u8]) -> [u8; 4] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&id.to_le_bytes()).update(body);
    let hash = hasher.finalize();
    let b = hash.as_bytes();
    [b[0], b[1], b[2], b[3]]
}

pub struct Table {
    path: PathBuf,
    writable: Writable,
    file: File,
    /// The whole file. It is mapped again when it grows.
    map: Mmap,
    /// Ids by digest and by (size, lead). It is built when the first upload asks for it.
    index: Option<Index>,
}

struct Index {
    by_digest: HashTable<BlobId>,
    /// Only blobs with an outline.
    by_lead: HashTable<BlobId>,
}

impl Table {
    /// Opens the table, or makes an empty one. A file that does not begin like a table is put aside.
    ///
    /// # Errors
    ///
    /// `Io`.
    pub fn open(path: &Path, writable: &Writable) -> Result<Table> {
        let open = || File::options().read(true).write(true).create(true).truncate(false).open(path);
        let mut file = open().map_err(Error::io("open", path))?;
        let mut magic = [0; TABLE_MAGIC.len()];
        if file.read_exact_at(&mut magic, 0).is_ok() && magic != TABLE_MAGIC {
            log::error!("{} does not begin as a blob table: it is put aside", path.display());
            fs::rename(path, path.with_extension("damaged")).map_err(Error::io("put aside", path))?;
            file = open().map_err(Error::io("open", path))?;
        }
        if file.metadata().map_err(Error::io("stat", path))?.len() < RECORD_LEN as u64 {
            let mut head = [0u8; RECORD_LEN];
            head[..TABLE_MAGIC.len()].copy_from_slice(TABLE_MAGIC);
            file.write_all_at(&head, 0).map_err(Error::io("write", path))?;
            file.sync_all().map_err(Error::io("sync", path))?;
        }
        let map = sys::map(&file, path)?;
        Ok(Table { path: path.to_owned(), writable: writable.clone(), file, map, index: None })
    }

    /// One more than the highest id. Torn records at the end count, so that no id is given out twice.
    pub fn len(&self) -> u32 {
        u32::try_from(self.map.len().div_ceil(RECORD_LEN))
            .expect("the table is bounded when records are appended")
    }

    fn raw(&self, id: BlobId) -> &[u8] {
        let at = id as usize * RECORD_LEN;
        self.map.get(at..at + RECORD_LEN).unwrap_or(&[])
    }

    /// The record. `None` if the id is free, torn or damaged.
    pub fn find(&self, id: BlobId) -> Option<Record> {
        if id == 0 { None } else { Record::decode(id, self.raw(id)) }
    }

    /// The record of a blob that must exist.
    ///
    /// # Errors
    ///
    /// `Corrupt` if the id is free, or its record torn or damaged.
    pub fn get(&self, id: BlobId) -> Result<Record> {
        self.find(id).ok_or_else(|| Error::Corrupt {
            what: format!("blob {id}"),
            why: "its record is missing or damaged".into(),
        })
    }

    /// All records, in order of id.
    pub fn records(&self) -> impl Iterator<Item = (BlobId, Record)> + '_ {
        (1..self.len()).filter_map(|id| Some((id, self.find(id)?)))
    }

    /// Ids whose 64 bytes are neither free nor a whole record.
    pub fn damaged(&self) -> impl Iterator<Item = BlobId> + '_ {
        (1..self.len()).filter(|&id| self.find(id).is_none() && self.raw(id).iter().any(|b| *b != 0))
    }

    /// Appends records durably. They get consecutive ids, and the first one is returned.
    ///
    /// # Errors
    ///
    /// `Io`, `OverLimit` past 2^31 blobs. Nothing changes on an error.
    pub fn append(&mut self, records: &[Record]) -> Result<BlobId> {
        self.writable.check()?;
        let first = self.len();
        if u64::from(first) + records.len() as u64 > 1 << 31 {
            return Err(Error::OverLimit { what: "the number of blobs".into(), limit: "2147483648".into() });
        }
        let mut raw = Vec::with_capacity(records.len() * RECORD_LEN);
        for (i, record) in records.iter().enumerate() {
            raw.extend_from_slice(&record.encode(first + i as u32));
        }
        self.file
            .write_all_at(&raw, u64::from(first) * RECORD_LEN as u64)
            .map_err(Error::io("write", &self.path))?;
        self.sync()?;
        self.map = sys::map(&self.file, &self.path)?;
        if let Some(mut index) = self.index.take() {
            for (i, record) in records.iter().enumerate() {
                index.insert(self, first + i as u32, record);
            }
            self.index = Some(index);
        }
        Ok(first)
    }

    /// Rewrites records in place: with a new place if the content moved, as free if it is gone. A record is
    /// 64 aligned bytes, which no disk tears. Durable after the next `sync`.
    ///
    /// # Errors
    ///
    /// `Stopped` after a sync has failed; `Io`.
    pub fn rewrite(&mut self, changes: &[(BlobId, Option<Record>)]) -> Result<()> {
        if changes.is_empty() {
            return Ok(());
        }
        self.writable.check()?;
        for (id, record) in changes {
            if record.is_none()
                && let (Some(old), Some(mut index)) = (self.find(*id), self.index.take())
            {
                index.remove(*id, &old);
                self.index = Some(index);
            }
        }
        for (id, record) in changes {
            let raw = record.map_or([0u8; RECORD_LEN], |r| r.encode(*id));
            self.file
                .write_all_at(&raw, u64::from(*id) * RECORD_LEN as u64)
                .map_err(Error::io("write", &self.path))?;
        }
        Ok(())
    }

    /// Treats ids below `bound` as given out. They are free until a record says otherwise.
    ///
    /// # Errors
    ///
    /// `Stopped` after a sync has failed; `Io`.
    pub fn grow(&mut self, bound: BlobId) -> Result<()> {
        let len = u64::from(bound) * RECORD_LEN as u64;
        if len > self.map.len() as u64 {
            self.writable.check()?;
            self.file.set_len(len).map_err(Error::io("write", &self.path))?;
            self.writable.synced(&self.path, self.file.sync_all())?;
            self.map = sys::map(&self.file, &self.path)?;
        }
        self.index = None;
        Ok(())
    }

    /// Makes all written records durable.
    ///
    /// # Errors
    ///
    /// `Io`.
    pub fn sync(&self) -> Result<()> {
        self.writable.synced(&self.path, self.file.sync_data())
    }

    /// Returns pages of the table with only free records to the disk.
    ///
    /// # Errors
    ///
    /// `Io`.
    pub fn punch_free(&self) -> Result<()> {
        let per_page = (4096 / RECORD_LEN) as u32;
        for page in 1..self.len() / per_page {
            let (from, to) = (page as usize * 4096, page as usize * 4096 + 4096);
            if self.map.get(from..to).is_some_and(|p| p.iter().all(|b| *b == 0)) {
                sys::punch(&self.file, &self.path, from as u64, 4096)?;
            }
        }
        Ok(())
    }

    /// Builds the lookup index if there is none.
    pub fn build_index(&mut self) {
        if self.index.is_none() {
            let mut index = Index { by_digest: HashTable::new(), by_lead: HashTable::new() };
            for (id, record) in self.records() {
                index.insert(self, id, &record);
            }
            self.index = Some(index);
        }
    }

    pub fn has_index(&self) -> bool {
        self.index.is_some()
    }

    pub fn forget_index(&mut self) {
        self.index = None;
    }

    /// The blob with this digest. The index must have been built.
    pub fn by_digest(&self, digest: &Digest) -> Option<BlobId> {
        let index = self.index.as_ref()?;
        index.by_digest.find(digest_key(digest), |&id| self.raw(id).get(..32) == Some(&digest.0[..])).copied()
    }

    /// A blob of this size with the same beginning, which a large upload may turn out to equal.
    pub fn by_lead(&self, size: u64, lead: u32) -> Option<(BlobId, Record)> {
        let index = self.index.as_ref()?;
        let id = *index.by_lead.find(lead_key(size, lead), |&id| {
            self.find(id).is_some_and(|r| r.size == size && r.lead == lead)
        })?;
        Some((id, self.find(id)?))
    }
}

impl Index {
    fn insert(&mut self, table: &Table, id: BlobId, record: &Record) {
        self.by_digest.insert_unique(digest_key(&record.digest), id, |&i| {
            table.find(i).map_or(0, |r| digest_key(&r.digest))
        });
        if record.lead != 0 {
            self.by_lead.insert_unique(lead_key(record.size, record.lead), id, |&i| {
                table.find(i).map_or(0, |r| lead_key(r.size, r.lead))
            });
        }
    }

    fn remove(&mut self, id: BlobId, record: &Record) {
        if let Ok(entry) = self.by_digest.find_entry(digest_key(&record.digest), |&i| i == id) {
            entry.remove();
        }
        if let Ok(entry) = self.by_lead.find_entry(lead_key(record.size, record.lead), |&i| i == id) {
            entry.remove();
        }
    }
}

/// A digest is already random, so its first bytes serve as the hash key.
pub fn digest_key(digest: &Digest) -> u64 {
    let d = &digest.0;
    u64::from_le_bytes([d[0], d[1], d[2], d[3], d[4], d[5], d[6], d[7]])
}

fn lead_key(size: u64, lead: u32) -> u64 {
    (u64::from(lead) << 32 | u64::from(lead)) ^ size.wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(n: u8, size: u64) -> Record {
        Record {
            digest: Digest([n; 32]),
            size,
            place: Place::Segment,
            offset: 7,
            container: 3,
            outline_in: 0,
            lead: if size > 65536 { u32::from(n) } else { 0 },
        }
    }

    #[test]
    fn records_come_back_and_ids_are_never_reused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("blobs");
        let mut table = Table::open(&path, &Writable::default()).unwrap();
        table.build_index();
        assert_eq!(table.append(&[record(1, 5), record(2, 1 << 40)]).unwrap(), 1);
        assert_eq!(table.by_digest(&Digest([2; 32])), Some(2));
        assert_eq!(table.by_lead(1 << 40, 2).unwrap().0, 2);
        table.rewrite(&[(2, None)]).unwrap();
        assert_eq!(table.by_digest(&Digest([2; 32])), None);
        assert_eq!(table.by_lead(1 << 40, 2), None);
        drop(table);
        let mut table = Table::open(&path, &Writable::default()).unwrap();
        assert_eq!(table.find(1), Some(record(1, 5)));
        assert_eq!(table.find(2), None);
        assert_eq!(table.append(&[record(3, 1)]).unwrap(), 3, "2 was given out once");
    }

    #[test]
    fn any_flipped_bit_makes_a_record_invalid() {
        let raw = record(9, 70000).encode(4);
        assert_eq!(Record::decode(4, &raw), Some(record(9, 70000)));
        assert_eq!(Record::decode(5, &raw), None, "a record stands for its own id only");
        for bit in 0..RECORD_LEN * 8 {
            let mut flipped = raw;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Record::decode(4, &flipped), None, "bit {bit}");
        }
    }

    #[test]
    fn a_torn_append_is_skipped_not_reused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("blobs");
        let mut table = Table::open(&path, &Writable::default()).unwrap();
        table.append(&[record(1, 5)]).unwrap();
        drop(table);
        let file = File::options().write(true).open(&path).unwrap();
        file.set_len(RECORD_LEN as u64 * 2 + 10).unwrap();
        let mut table = Table::open(&path, &Writable::default()).unwrap();
        assert_eq!(table.find(2), None);
        assert_eq!(table.append(&[record(2, 6)]).unwrap(), 3);
        assert_eq!(table.find(3), Some(record(2, 6)));
    }
}
