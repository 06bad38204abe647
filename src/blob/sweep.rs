//! gc's lower half: blobs that no tree names become free, and their space goes back to the disk.
//!
//! Deletion in reverse (invariant 1): the caller has removed the rows and trees; records go next, durably, then
//! the bytes. A crash between leaves files or ranges that no record names; the next sweep finds them.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::blob::BlobStore;
use crate::blob::container::{self, Container, Place, punch};
use crate::blob::read::ReadBuf;
use crate::blob::table::Record;
use crate::blob::writer::Segment;
use crate::digest::{BlobId, CV_LEN, GROUP, Outline};
use crate::error::{Error, Result};
use crate::format::{SEGMENT_ENTRY_LEN, SEGMENT_FOOTER_LEN, sync_dir};

/// A set of blob ids: a bit each.
#[derive(Clone, Default)]
pub struct IdSet {
    words: Vec<u64>,
}

impl IdSet {
    pub fn insert(&mut self, id: BlobId) {
        let word = id as usize / 64;
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        self.words[word] |= 1 << (id % 64);
    }

    pub fn contains(&self, id: BlobId) -> bool {
        self.words.get(id as usize / 64).is_some_and(|w| w >> (id % 64) & 1 == 1)
    }
}

/// A mark under way. Blobs given out or pinned since it began are not swept.
pub struct MarkToken<'s> {
    store: &'s BlobStore,
    bound: BlobId,
}

impl Drop for MarkToken<'_> {
    fn drop(&mut self) {
        self.store.pins.lock().retired = None;
    }
}

/// What a sweep did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    pub blobs: u64,
    /// Content freed, in bytes.
    pub bytes: u64,
}

impl BlobStore {
    /// Begins a mark. Call before looking at which trees exist; only one at a time.
    pub fn begin_mark(&self) -> MarkToken<'_> {
        self.pins.lock().retired = Some(Vec::new());
        MarkToken { store: self, bound: self.id_bound() }
    }

    /// Frees what is neither in `live` nor counted on by an upload, and gives its space back.
    ///
    /// Errors: `Io`; what was freed stays free, and the next sweep goes on.
    pub fn sweep(&self, token: MarkToken<'_>, live: &IdSet) -> Result<Swept> {
        let mut swept = Swept::default();
        {
            let mut table = self.table.write();
            let mut kept = IdSet::default();
            {
                let pins = self.pins.lock();
                for ids in pins.writers.values() {
                    ids.lock().iter().for_each(|&id| kept.insert(id));
                }
                pins.retired.iter().flatten().for_each(|&id| kept.insert(id));
            }
            let mut freed = Vec::new();
            for (id, record) in table.records() {
                if id < token.bound && !live.contains(id) && !kept.contains(id) {
                    swept.blobs += 1;
                    swept.bytes += record.size;
                    freed.push((id, None));
                }
            }
            table.rewrite(&freed)?;
            if !freed.is_empty() {
                table.punch_free()?;
            }
        }
        drop(token);
        self.reclaim(false)?;
        Ok(swept)
    }

    /// Writes every segment that holds freed content anew, however little that is.
    pub fn repack(&self) -> Result<()> {
        self.reclaim(true)
    }

    /// Gives space in containers that no record names back to the disk. Idempotent.
    fn reclaim(&self, all: bool) -> Result<()> {
        // No new container can appear half-named while this is held.
        let mut next_container = self.seal.lock();
        let mut extents: HashMap<u32, Vec<(u64, u64)>> = HashMap::new();
        for (_, record) in self.table.read().records() {
            let outline = Outline::len_for(record.size) * CV_LEN as u64;
            match record.place {
                Place::Segment => {
                    let from = record.offset.saturating_sub(outline);
                    extents.entry(record.container).or_default().push((from, record.offset + record.size));
                }
                Place::Object => {
                    extents.entry(record.container).or_default();
                    extents.entry(record.outline_in).or_default().push((record.offset, record.offset + outline));
                }
            }
        }
        let mut removed = false;
        for (number, place) in container::list(&self.loose)? {
            match extents.get_mut(&number) {
                None => {
                    self.containers.lock().remove(&number);
                    let path = Container::path_of(&self.loose, number, place);
                    fs::remove_file(&path).map_err(Error::io("remove", &path))?;
                    removed = true;
                }
                Some(live) if place == Place::Segment => {
                    live.sort_unstable();
                    if self.punch_segment(number, live, all)? {
                        self.compact(number, &mut next_container)?;
                        removed = true;
                    }
                }
                Some(_) => {}
            }
        }
        if removed { sync_dir(&self.loose) } else { Ok(()) }
    }

    /// Punches the gaps between what lives in a segment; says whether it is worth writing anew.
    fn punch_segment(&self, number: u32, live: &[(u64, u64)], all: bool) -> Result<bool> {
        let segment = self.container(number, Place::Segment)?;
        let stat = |c: &Container| c.file.metadata().map_err(Error::io("stat", &c.path));
        let meta = stat(&segment)?;
        let live_bytes: u64 = live.iter().map(|(from, to)| to - from).sum();
        let wasted = |blocks: u64| (blocks * 512).saturating_sub(live_bytes + (live.len() * SEGMENT_ENTRY_LEN) as u64);
        // The list at the end may have an entry for each blob that ever lived here.
        let slack = 64 * 1024 + live_bytes / 8;
        if all {
            return Ok(wasted(meta.blocks()) > 8192);
        }
        if wasted(meta.blocks()) <= slack {
            return Ok(false);
        }
        let list_at = list_offset(&segment, meta.len());
        let mut at = 0;
        for &(from, to) in live.iter().chain([(list_at, meta.len())].iter()) {
            punch_between(&segment.file, &segment.path, at, from)?;
            at = at.max(to);
        }
        Ok(wasted(stat(&segment)?.blocks()) > live_bytes.max(slack))
    }

    /// Writes what lives in a segment to a new one, points the records there, and drops the old one.
    fn compact(&self, old: u32, next_container: &mut u32) -> Result<()> {
        let staged = self.staging.join(format!("compact-{old:08x}"));
        let _ = fs::remove_file(&staged);
        let mut segment = Segment::create(staged, None)?;
        let number = *next_container;
        *next_container += 1;
        let mut moved: Vec<(BlobId, Record)> = Vec::new();
        let mut buf = ReadBuf::default();
        let here: Vec<(BlobId, Record)> = {
            let table = self.table.read();
            let lives_here = |r: &Record| match r.place {
                Place::Segment => r.container == old,
                Place::Object => r.outline_in == old,
            };
            table.records().filter(|(_, r)| lives_here(r)).collect()
        };
        for (id, mut record) in here {
            let outline = if record.size > GROUP as u64 { Some(self.outline(id, &record)?) } else { None };
            if record.place == Place::Segment {
                let len = usize::try_from(record.size).expect("segments hold blobs below OBJECT_MIN");
                let content = self.read(id, 0, len, &mut buf)?;
                if let Some(outline) = &outline {
                    segment.pad_to_page(outline.0.len() * CV_LEN)?;
                    segment.append_outline(outline)?;
                }
                record.container = number;
                record.offset = segment.append(content)?;
            } else if let Some(outline) = &outline {
                record.outline_in = number;
                record.offset = segment.append_outline(outline)?;
            }
            moved.push((id, record));
        }
        segment.finish(&moved)?;
        let path = Container::path_of(&self.loose, number, Place::Segment);
        fs::rename(&segment.path, &path).map_err(Error::io("rename", &segment.path))?;
        sync_dir(&self.loose)?;
        let changes: Vec<_> = moved.into_iter().map(|(id, record)| (id, Some(record))).collect();
        self.table.write().rewrite(&changes)?;
        self.containers.lock().remove(&old);
        let path = Container::path_of(&self.loose, old, Place::Segment);
        fs::remove_file(&path).map_err(Error::io("remove", &path))
    }

    /// Bytes the content takes on the disk.
    pub fn stored_bytes(&self) -> Result<u64> {
        let mut total = 0;
        for (number, place) in container::list(&self.loose)? {
            match fs::metadata(Container::path_of(&self.loose, number, place)) {
                Ok(meta) => total += meta.blocks() * 512,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => return Err(Error::Io { doing: "stat", path: self.loose.clone(), source: e }),
            }
        }
        Ok(total)
    }

    /// Damage that the table shows by itself: records that are neither free nor whole. For fsck.
    pub fn damaged_records(&self) -> Vec<BlobId> {
        self.table.read().damaged().collect()
    }

    /// All blobs and their records. For fsck and statistics.
    pub fn records(&self) -> Vec<(BlobId, Record)> {
        self.table.read().records().collect()
    }

    /// Container files that no record names (invariant 6). For fsck.
    pub fn stray_containers(&self) -> Result<Vec<String>> {
        let _no_new_ones = self.seal.lock();
        let named: std::collections::HashSet<u32> =
            self.records().iter().flat_map(|(_, r)| [r.container, r.outline_in]).collect();
        let all = container::list(&self.loose)?;
        Ok(all.into_iter().filter(|(n, _)| !named.contains(n)).map(|(n, p)| format!("{n:08x}.{}", p.suffix())).collect())
    }
}

/// Where a segment's list begins, from its footer; the whole footer's place if that cannot be read.
fn list_offset(segment: &Container, len: u64) -> u64 {
    let footer_at = len.saturating_sub(SEGMENT_FOOTER_LEN as u64);
    let mut footer = [0u8; SEGMENT_FOOTER_LEN];
    match segment.read_exact_at(&mut footer, footer_at) {
        Ok(()) => u64::from_le_bytes(footer[24..32].try_into().expect("eight bytes")).min(footer_at),
        Err(_) => footer_at,
    }
}

/// Punches the whole pages in `[from, to)`.
fn punch_between(file: &File, path: &Path, from: u64, to: u64) -> Result<()> {
    let (from, to) = (from.div_ceil(4096) * 4096, to / 4096 * 4096);
    if from < to { punch(file, path, from, to - from) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::blob::OBJECT_MIN;
    use crate::blob::writer::Writer;
    use crate::digest::Content;

    fn store() -> (tempfile::TempDir, Arc<BlobStore>) {
        let dir = tempfile::tempdir().unwrap();
        crate::format::open(dir.path()).unwrap();
        let store = Arc::new(BlobStore::open(dir.path()).unwrap());
        (dir, store)
    }

    fn noise(seed: u64, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes());
        hasher.finalize_xof().fill(&mut out);
        out
    }

    fn put(writer: &mut Writer, content: &[u8]) -> Content {
        if (content.len() as u64) < OBJECT_MIN {
            return writer.put(content).unwrap();
        }
        let mut large = writer.begin_large(content.len() as u64);
        for piece in content.chunks(100_000) {
            large.write(piece).unwrap();
        }
        large.finish().unwrap()
    }

    fn read_all(store: &BlobStore, id: BlobId) -> Vec<u8> {
        let size = store.record(id).unwrap().size;
        let mut buf = ReadBuf::default();
        let mut out = Vec::new();
        while (out.len() as u64) < size {
            out.extend_from_slice(store.read(id, out.len() as u64, 300_001, &mut buf).unwrap());
        }
        out
    }

    #[test]
    fn content_comes_back_and_is_stored_once() {
        let (_dir, store) = store();
        let mut sparse = noise(9, 3_000_000);
        sparse[100_000..2_000_000].fill(0);
        let contents =
            [noise(1, 1), noise(2, 5000), noise(3, 65536), noise(4, 65537), noise(5, 900_000), noise(6, 1_500_000), sparse];
        let mut writer = store.writer("a").unwrap();
        let puts: Vec<_> = contents.iter().map(|c| put(&mut writer, c)).collect();
        for (content, first) in contents.iter().zip(&puts) {
            assert_eq!(put(&mut writer, content), *first, "twice in one upload");
        }
        let sealed = writer.seal().unwrap();
        let ids: Vec<_> = puts.iter().map(|p| sealed.id(*p).unwrap()).collect();
        drop(sealed);
        for (id, content) in ids.iter().zip(&contents) {
            assert_eq!(&read_all(&store, *id), content);
        }
        let hole = store.seek(ids[6], 0, false).unwrap();
        assert!((65536..=110_000).contains(&hole), "the hole begins at {hole}");
        assert!(store.seek(ids[6], hole, true).unwrap() >= 1_990_000);

        let mut again = store.writer("b").unwrap();
        for (id, content) in ids.iter().zip(&contents) {
            let p = put(&mut again, content);
            let mut changed = content.clone();
            *changed.last_mut().unwrap() ^= 1;
            let q = put(&mut again, &changed);
            assert_ne!(p, q);
            let _ = id;
        }
        let sealed = again.seal().unwrap();
        assert_eq!(sealed.new_bytes, contents.iter().map(|c| c.len() as u64).sum::<u64>());
    }

    #[test]
    fn two_uploads_of_the_same_bytes_at_once_store_them_once() {
        let (_dir, store) = store();
        let (mut a, mut b) = (store.writer("a").unwrap(), store.writer("b").unwrap());
        let contents = [noise(1, 5000), noise(2, 2_000_000)];
        let pa: Vec<_> = contents.iter().map(|c| put(&mut a, c)).collect();
        let pb: Vec<_> = contents.iter().map(|c| put(&mut b, c)).collect();
        let (a, b) = (a.seal().unwrap(), b.seal().unwrap());
        assert_eq!(a.new_bytes, 2_005_000);
        assert_eq!(b.new_bytes, 0);
        for (x, y) in pa.iter().zip(&pb) {
            assert_eq!(a.id(*x), b.id(*y));
        }
    }

    #[test]
    fn sweep_frees_what_is_not_live_and_moves_what_is() {
        let (dir, store) = store();
        let mut writer = store.writer("a").unwrap();
        let contents: Vec<_> = (0..200).map(|i| noise(i, 20_000)).chain([noise(500, 1_200_000)]).collect();
        let puts: Vec<_> = contents.iter().map(|c| put(&mut writer, c)).collect();
        let sealed = writer.seal().unwrap();
        let ids: Vec<_> = puts.iter().map(|p| sealed.id(*p).unwrap()).collect();
        // While the upload is under way, nothing of it goes, live or not.
        assert_eq!(store.sweep(store.begin_mark(), &IdSet::default()).unwrap(), Swept::default());
        drop(sealed);
        let mut live = IdSet::default();
        live.insert(ids[7]);
        live.insert(ids[200]);
        let before = store.stored_bytes().unwrap();
        let swept = store.sweep(store.begin_mark(), &live).unwrap();
        assert_eq!(swept, Swept { blobs: 199, bytes: 199 * 20_000 });
        assert!(store.stored_bytes().unwrap() < before / 3);
        assert_eq!(read_all(&store, ids[7]), contents[7]);
        assert_eq!(read_all(&store, ids[200]), contents[200]);
        assert!(store.record(ids[8]).is_err());
        assert_eq!(store.stray_containers().unwrap(), Vec::<String>::new());
        store.sweep(store.begin_mark(), &IdSet::default()).unwrap();
        assert_eq!(std::fs::read_dir(dir.path().join("loose")).unwrap().count(), 0);
    }

    #[test]
    fn a_pin_taken_and_dropped_during_a_mark_still_counts() {
        let (_dir, store) = store();
        let mut writer = store.writer("a").unwrap();
        let p = writer.put(b"x").unwrap();
        let sealed = writer.seal().unwrap();
        let id = sealed.id(p).unwrap();
        drop(sealed);
        let token = store.begin_mark();
        // An upload finds the blob, publishes and ends while the mark looks elsewhere.
        let mut late = store.writer("b").unwrap();
        assert_eq!(late.put(b"x").unwrap(), Content::Known(id));
        drop(late.seal().unwrap());
        assert_eq!(store.sweep(token, &IdSet::default()).unwrap().blobs, 0);
        assert_eq!(store.sweep(store.begin_mark(), &IdSet::default()).unwrap().blobs, 1);
    }
}
