//! Journey 1, cp in: content is hashed as it arrives, known content is dropped, and the rest is made
//! durable.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use blake3::hazmat::ChainingValue;
use hashbrown::HashTable;

use crate::base::digest::{self, BlobId, CV_LEN, Content, Digest, GROUP, Outline};
use crate::base::sys;
use crate::blob::container::Place;
use crate::blob::pins::Pins;
use crate::blob::table::{Record, digest_key};
use crate::blob::{BlobStore, MakeRoom};
use crate::error::{Error, Result};
use crate::fault;
use crate::format::{SEGMENT_END, SEGMENT_FOOTER_LEN, SEGMENT_MAGIC, make_subdir};

/// The size of a page. Holes and punched space come in pages.
const PAGE: usize = 4096;
/// How many bytes of a segment are collected before they are written.
const BUFFER: usize = 1024 * 1024;
/// How many bytes are written before the kernel is asked to start writing them to the disk.
pub(super) const WRITEBACK: u64 = 8 * 1024 * 1024;

/// Takes the content of one upload. If it is dropped before `seal`, it leaves nothing.
pub struct Writer {
    pub(super) store: Arc<BlobStore>,
    pub(super) pins: Arc<Pins>,
    /// immutable: this upload's directory under staging/; removed on drop.
    dir: PathBuf,
    pub(super) segment: Option<Segment>,
    pub(super) fresh: Vec<Fresh>,
    by_digest: HashTable<u32>,
    /// How many objects were begun, for their names.
    pub(super) objects: u32,
}

pub(super) struct Fresh {
    pub record: Record,
    /// For objects: the number in the staged file's name.
    pub staged: Option<u32>,
    /// It was given up, and will not be sealed.
    forgotten: bool,
}

/// A segment that is being written.
pub(super) struct Segment {
    pub file: File,
    pub path: PathBuf,
    buffer: Vec<u8>,
    /// The offset at which `buffer` will be written.
    at: u64,
    /// Up to where the kernel was asked to write to the disk.
    flushed: u64,
    room: Option<MakeRoom>,
}

/// The result of `seal`: the ids of the new blobs. While it lives, gc keeps every blob of the upload.
pub struct Sealed {
    ids: Vec<BlobId>,
    _pins: Arc<Pins>,
    /// How many bytes of new content this upload has.
    pub new_bytes: u64,
    /// Whether damaged content was stored again. Its old place may then be garbage.
    pub healed: bool,
}

impl Sealed {
    /// The blob that holds this content, if there is one.
    pub fn id(&self, content: Content) -> Option<BlobId> {
        match content {
            Content::Known(id) => Some(id),
            Content::Fresh(n) => self.ids.get(n as usize).copied(),
            Content::Recipe(_) | Content::Hole => None,
        }
    }
}

impl BlobStore {
    /// Begins an upload whose new content is staged in `staging/NAME`.
    ///
    /// # Errors
    ///
    /// `Io`.
    pub fn writer(self: &Arc<Self>, name: &str) -> Result<Writer> {
        let pins = Arc::new(self.pin());
        if !self.table.read().has_index() {
            self.table.write().build_index();
        }
        let dir = self.staging.join(name);
        // The directories above are not created, so a store that was moved away is not recreated at its old
        // path.
        in_room(self.room.get(), || make_subdir(&dir))?;
        Ok(Writer {
            store: self.clone(),
            pins,
            dir,
            segment: None,
            fresh: Vec::new(),
            by_digest: HashTable::new(),
            objects: 0,
        })
    }
}

impl Writer {
    /// Takes content of less than `OBJECT_MIN` bytes.
    ///
    /// # Errors
    ///
    /// `Io`.
    pub fn put(&mut self, content: &[u8]) -> Result<Content> {
        let (digest, outline) = digest::hash(content);
        if let Some(known) = self.known(&digest) {
            return Ok(known);
        }
        let lead = outline.0.first().map_or(0, lead_of);
        let segment = self.segment()?;
        if !outline.0.is_empty() {
            // Holes begin at page borders. The padding makes the content, which follows its outline, begin at
            // one.
            let cvs = outline.0.len() * CV_LEN;
            segment.pad_to_page(cvs)?;
            segment.append_outline(&outline)?;
        }
        let offset = segment.append(content)?;
        let size = content.len() as u64;
        let record =
            Record { digest, size, place: Place::Segment, offset, container: 0, outline_in: 0, lead };
        Ok(self.add_fresh(record, None))
    }

    /// The content with this digest, if the store or this upload has it. It is pinned.
    pub(super) fn known(&self, digest: &Digest) -> Option<Content> {
        if let Some(&n) =
            self.by_digest.find(digest_key(digest), |&n| self.fresh[n as usize].record.digest == *digest)
        {
            return Some(Content::Fresh(n));
        }
        let table = self.store.table.read();
        let id = table.by_digest(digest).filter(|id| !self.store.is_damaged(*id))?;
        // It is pinned under the table's lock. A sweep takes that lock for writing and then reads the pins.
        self.pins.add([id]);
        Some(Content::Known(id))
    }

    pub(super) fn add_fresh(&mut self, record: Record, staged: Option<u32>) -> Content {
        let n = u32::try_from(self.fresh.len()).expect("bounded by the entry limit, far below 2^31");
        self.fresh.push(Fresh { record, staged, forgotten: false });
        let fresh = &self.fresh;
        self.by_digest
            .insert_unique(digest_key(&record.digest), n, |&i| digest_key(&fresh[i as usize].record.digest));
        Content::Fresh(n)
    }

    pub(super) fn segment(&mut self) -> Result<&mut Segment> {
        if self.segment.is_none() {
            self.segment = Some(Segment::create(self.dir.join("segment"), self.store.room.get().cloned())?);
        }
        Ok(self.segment.as_mut().expect("just made"))
    }

    /// Excludes this blob from deduplication, so that `forget` can remove it.
    pub fn hide(&mut self, content: Content) {
        let Content::Fresh(n) = content else { return };
        let Some(Fresh { record, .. }) = self.fresh.get(n as usize) else { return };
        if let Ok(entry) = self.by_digest.find_entry(digest_key(&record.digest), |&i| i == n) {
            entry.remove();
        }
    }

    /// Drops an object that was stored and hidden, because something else makes its bytes.
    ///
    /// # Errors
    ///
    /// `Io`.
    pub fn forget(&mut self, content: Content) -> Result<()> {
        let Content::Fresh(n) = content else { return Ok(()) };
        let Some(Fresh { staged: Some(staged), .. }) = self.fresh.get(n as usize) else { return Ok(()) };
        let path = self.object_path(*staged);
        self.fresh[n as usize].forgotten = true;
        fs::remove_file(&path).map_err(Error::io("remove", &path))
    }

    pub(super) fn object_path(&self, staged: u32) -> PathBuf {
        self.dir.join(format!("object-{staged}"))
    }

    /// Makes all content durable and known (invariant 1, first half): content, then names of the files,
    /// then table records.
    ///
    /// # Errors
    ///
    /// `Io`. The store then knows nothing of the upload, and stray files are swept.
    pub fn seal(mut self) -> Result<Sealed> {
        // Most data is synced before the lock is taken. What follows under the lock is small.
        for fresh in self.fresh.iter().filter(|f| !f.forgotten) {
            if let Some(staged) = fresh.staged {
                let path = self.object_path(staged);
                File::open(&path).and_then(|f| f.sync_data()).map_err(Error::io("sync", &path))?;
            }
        }
        if let Some(segment) = &mut self.segment {
            segment.write_buffer()?;
            segment.file.sync_data().map_err(Error::io("sync", &segment.path))?;
        }
        let store = self.store.clone();
        fault::reached("seal.synced");
        self.seal_locked(&store, &mut store.seal.lock())
    }

    fn seal_locked(&mut self, store: &BlobStore, next_container: &mut u32) -> Result<Sealed> {
        // Another upload may have stored the same content meanwhile. Its copy then counts, and this one is
        // dropped.
        let mut ids = vec![0; self.fresh.len()];
        {
            let table = store.table.read();
            for (id, fresh) in ids.iter_mut().zip(&self.fresh) {
                if let Some(known) = table.by_digest(&fresh.record.digest) {
                    *id = known;
                    self.pins.add([known]);
                }
            }
        }
        // Known but damaged content is stored again, under the id that trees have for it.
        let wanted = |i: usize| !self.fresh[i].forgotten && (ids[i] == 0 || store.is_damaged(ids[i]));
        let kept: Vec<usize> = (0..ids.len()).filter(|&i| wanted(i)).collect();
        let new_bytes = kept.iter().map(|&i| self.fresh[i].record.size).sum();
        if kept.is_empty() {
            return Ok(Sealed { ids, _pins: self.pins.clone(), new_bytes, healed: false });
        }
        let segment_number = *next_container;
        *next_container += 1;
        let mut records = Vec::with_capacity(kept.len());
        let mut renames = Vec::new();
        for &i in &kept {
            let mut record = self.fresh[i].record;
            match self.fresh[i].staged {
                Some(staged) => {
                    record.container = *next_container;
                    record.outline_in = segment_number;
                    *next_container += 1;
                    renames.push((self.object_path(staged), Place::Object.key(record.container)));
                }
                None => record.container = segment_number,
            }
            records.push(record);
        }
        let mut table = store.table.write();
        let mut next = table.len();
        for &i in &kept {
            if ids[i] == 0 {
                ids[i] = next;
                next += 1;
            }
        }
        // A segment always exists here, because a new object has put its outline there.
        let segment = self.segment.as_mut().expect("fresh content lies in a segment, or its outline does");
        let entries: Vec<(BlobId, Record)> =
            kept.iter().zip(records).map(|(&i, record)| (ids[i], record)).collect();
        segment.finish(&entries)?;
        fault::reached("seal.listed");
        renames.push((segment.path.clone(), Place::Segment.key(segment_number)));
        for (from, to) in &renames {
            store.backend.put(from, to)?;
        }
        fault::reached("seal.renamed");
        store.backend.sync(Place::Segment.shelf())?;
        fault::reached("seal.named");
        let (healed, new): (Vec<_>, Vec<_>) = entries.into_iter().partition(|(id, _)| *id < table.len());
        table.append(&new.into_iter().map(|(_, record)| record).collect::<Vec<_>>())?;
        fault::reached("seal.recorded");
        let is_healed = !healed.is_empty();
        if is_healed {
            let healed: Vec<_> = healed.into_iter().map(|(id, record)| (id, Some(record))).collect();
            table.rewrite(&healed)?;
            table.sync()?;
            fault::reached("seal.healed");
            store.note_sound(&healed.iter().map(|(id, _)| *id).collect::<Vec<_>>());
        }
        self.pins.add(ids.iter().copied());
        // The caller drops the pins once the version's row is written.
        Ok(Sealed { ids, _pins: self.pins.clone(), new_bytes, healed: is_healed })
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Err(e) = fs::remove_dir_all(&self.dir) {
            log::warn!("cannot remove {}: {e}; it goes at the next start", self.dir.display());
        }
    }
}

impl Segment {
    /// Begins a segment. With `room`, a full disk makes room before a write fails.
    ///
    /// # Errors
    ///
    /// `Io`.
    pub fn create(path: PathBuf, room: Option<MakeRoom>) -> Result<Segment> {
        let create = || {
            File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .open(&path)
                .map_err(Error::io("create", &path))
        };
        let file = in_room(room.as_ref(), create)?;
        Ok(Segment { file, path, buffer: SEGMENT_MAGIC.to_vec(), at: 0, flushed: 0, room })
    }

    fn end(&self) -> u64 {
        self.at + self.buffer.len() as u64
    }

    /// Pads the segment so that what follows after `ahead` more bytes begins at a page border.
    ///
    /// # Errors
    ///
    /// `Io`.
    pub fn pad_to_page(&mut self, ahead: usize) -> Result<()> {
        let page = PAGE as u64;
        let pad = (page - (self.end() + ahead as u64) % page) % page;
        self.buffer.resize(self.buffer.len() + pad as usize, 0);
        self.write_full()
    }

    /// Appends the values of an outline. Returns their offset.
    ///
    /// # Errors
    ///
    /// `Io`.
    pub fn append_outline(&mut self, outline: &Outline) -> Result<u64> {
        let offset = self.end();
        for cv in &outline.0 {
            self.buffer.extend_from_slice(cv);
        }
        self.write_full()?;
        Ok(offset)
    }

    /// Appends content. Returns its offset. If it begins at a page border, whole pages of zeros become
    /// holes.
    ///
    /// # Errors
    ///
    /// `Io`.
    pub fn append(&mut self, content: &[u8]) -> Result<u64> {
        let offset = self.end();
        if content.len() > GROUP
            && offset.is_multiple_of(PAGE as u64)
            && content.chunks_exact(PAGE).any(is_zero)
        {
            self.write_buffer()?;
            write_with_holes(&self.file, &self.path, content, self.at, self.room.as_ref())?;
            self.at += content.len() as u64;
        } else {
            self.buffer.extend_from_slice(content);
        }
        self.write_full()?;
        Ok(offset)
    }

    fn write_full(&mut self) -> Result<()> {
        if self.buffer.len() >= BUFFER { self.write_buffer() } else { Ok(()) }
    }

    pub(super) fn write_buffer(&mut self) -> Result<()> {
        write_at(&self.file, &self.path, &self.buffer, self.at, self.room.as_ref())?;
        self.at += self.buffer.len() as u64;
        self.buffer.clear();
        if self.at - self.flushed >= WRITEBACK {
            sys::start_writeback(&self.file, self.flushed, self.at - self.flushed);
            self.flushed = self.at;
        }
        Ok(())
    }

    /// Writes the list of stored blobs and the footer, durably.
    ///
    /// # Errors
    ///
    /// `Io`.
    pub fn finish(&mut self, entries: &[(BlobId, Record)]) -> Result<()> {
        // Making room runs a sweep, which would wait for the seal under way here.
        self.room = None;
        self.pad_to_page(0)?;
        let list_at = self.end();
        let mut list = Vec::with_capacity(entries.len() * crate::format::SEGMENT_ENTRY_LEN);
        for (id, record) in entries {
            list.extend_from_slice(&id.to_le_bytes());
            list.extend_from_slice(&record.encode(*id));
        }
        let mut footer = [0u8; SEGMENT_FOOTER_LEN];
        footer[..16].copy_from_slice(SEGMENT_END);
        footer[16..24].copy_from_slice(&(entries.len() as u64).to_le_bytes());
        footer[24..32].copy_from_slice(&list_at.to_le_bytes());
        footer[32..].copy_from_slice(&Digest::of(&list).0);
        self.buffer.extend_from_slice(&list);
        self.buffer.extend_from_slice(&footer);
        self.write_buffer()?;
        self.file.sync_data().map_err(Error::io("sync", &self.path))
    }
}

/// The lead is never 0, because 0 means none.
pub(super) fn lead_of(cv: &ChainingValue) -> u32 {
    u32::from_le_bytes([cv[0], cv[1], cv[2], cv[3]]).max(1)
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|b| *b == 0)
}

/// Runs an attempt that needs room on the disk. It repeats the attempt as long as room can be made.
pub(super) fn in_room<T>(room: Option<&MakeRoom>, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    loop {
        match attempt() {
            Err(e) if e.is_no_space() && room.is_some_and(|make_room| make_room()) => {}
            other => return other,
        }
    }
}

fn write_at(file: &File, path: &Path, bytes: &[u8], at: u64, room: Option<&MakeRoom>) -> Result<()> {
    in_room(room, || file.write_all_at(bytes, at).map_err(Error::io("write", path)))
}

/// Writes at `at`, which is a page border, and leaves whole pages of zeros out.
pub(super) fn write_with_holes(
    file: &File,
    path: &Path,
    bytes: &[u8],
    at: u64,
    room: Option<&MakeRoom>,
) -> Result<()> {
    let mut from = 0;
    while from < bytes.len() {
        let page = |i: usize| &bytes[i..bytes.len().min(i + PAGE)];
        if is_zero(page(from)) {
            from += PAGE;
            continue;
        }
        let mut to = from;
        while to < bytes.len() && !is_zero(page(to)) {
            to += PAGE;
        }
        let to = to.min(bytes.len());
        write_at(file, path, &bytes[from..to], at + from as u64, room)?;
        from = to;
    }
    Ok(())
}
