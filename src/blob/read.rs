//! Journey 2, cat: reads ranges of a blob. Bytes are checked before any of them is returned.

use std::collections::HashMap;
use std::sync::Arc;

use crate::base::digest::{BlobId, CV_LEN, Digest, GROUP, Outline};
use crate::blob::BlobStore;
use crate::blob::buffer::ReadBuf;
use crate::blob::container::Place;
use crate::blob::pack::Use;
use crate::blob::table::Record;
use crate::error::{Error, Result};
use crate::fault;

/// Outlines of recently read blobs, so that a random read does not check a whole outline each time.
#[derive(Default)]
pub(super) struct Outlines {
    by_id: HashMap<BlobId, Arc<Outline>>,
    values: usize,
}

/// How many chaining values are kept: 8 MiB.
const OUTLINES_MAX: usize = 256 * 1024;

impl Outlines {
    fn insert(&mut self, id: BlobId, outline: Arc<Outline>) {
        if self.values + outline.0.len() > OUTLINES_MAX {
            *self = Outlines::default();
        }
        self.values += outline.0.len();
        self.by_id.insert(id, outline);
    }
}

impl BlobStore {
    /// Reads up to `len` bytes of a blob's content from `offset` on. It returns fewer only at the end, and
    /// none past it.
    ///
    /// Bytes are checked before they are returned. Loose content is checked against the blob's digest: as a
    /// whole up to 64 KiB, in groups of 64 KiB above. Content in a pack is checked against the check of its
    /// frame.
    ///
    /// # Errors
    ///
    /// `Corrupt`, `Io`.
    pub fn read<'b>(&self, id: BlobId, offset: u64, len: usize, buf: &'b mut ReadBuf) -> Result<&'b [u8]> {
        self.read_as(id, offset, len, buf, Use::Read)
    }

    /// Like `read`, for a given purpose.
    pub(super) fn read_as<'b>(
        &self,
        id: BlobId,
        offset: u64,
        len: usize,
        buf: &'b mut ReadBuf,
        used: Use,
    ) -> Result<&'b [u8]> {
        let mut read = |store: &BlobStore| {
            store.read_record(id, |record| store.read_there(id, record, offset, len, buf, used))
        };
        let mut outcome = read(self);
        if outcome.is_err() && self.mend_record(id) {
            outcome = read(self);
        }
        outcome.inspect_err(|e| self.note_failed(id, e))?;
        Ok(buf.bytes())
    }

    /// Like `read`, but from the place in a given record, whether the table has that record or not.
    pub(super) fn read_there(
        &self,
        id: BlobId,
        record: &Record,
        offset: u64,
        len: usize,
        buf: &mut ReadBuf,
        used: Use,
    ) -> Result<()> {
        match record.place {
            Place::Pack => self.read_packed(record, offset, len, buf, used),
            _ => self.read_checked(id, record, offset, len, buf),
        }
    }

    fn read_packed(
        &self,
        record: &Record,
        offset: u64,
        len: usize,
        buf: &mut ReadBuf,
        used: Use,
    ) -> Result<()> {
        let span = usize::try_from(record.size.saturating_sub(offset)).unwrap_or(usize::MAX).min(len);
        if buf.data.len() < span {
            buf.data.resize(span, 0);
        }
        (buf.start, buf.end) = (0, span);
        if span == 0 {
            return Ok(());
        }
        let from = record.offset.saturating_add(offset);
        self.read_stream(record.container, from, &mut buf.data[..span], used)
    }

    /// Runs `read` with the blob's record, and again if the content moved meanwhile.
    fn read_record<T>(&self, id: BlobId, mut read: impl FnMut(&Record) -> Result<T>) -> Result<T> {
        loop {
            let record = self.record(id)?;
            match read(&record) {
                Err(e) if self.record(id)? == record => return Err(e),
                Err(_) => continue,
                Ok(value) => return Ok(value),
            }
        }
    }

    fn read_checked(
        &self,
        id: BlobId,
        record: &Record,
        offset: u64,
        len: usize,
        buf: &mut ReadBuf,
    ) -> Result<()> {
        let end = record.size.min(offset.saturating_add(len as u64));
        (buf.start, buf.end) = (0, 0);
        if offset >= end {
            return Ok(());
        }
        // The range is widened to whole groups. A blob of one group is read completely.
        let group = GROUP as u64;
        let (from, to) = (offset / group * group, record.size.min(end.div_ceil(group) * group));
        let span = usize::try_from(to - from)
            .map_err(|_| Error::OverLimit { what: "a read".into(), limit: "memory".into() })?;
        if buf.data.len() < span {
            buf.data.resize(span, 0);
        }
        let base = if record.place == Place::Object { 0 } else { record.offset };
        let container = self.container(record.container, record.place)?;
        container.read_exact_at(&mut buf.data[..span], base + from)?;
        if record.size <= group {
            if Digest::of(&buf.data[..span]) != record.digest && !fault::leaves_out("read.check") {
                return Err(damaged(id, record));
            }
        } else {
            let outline = self.outline(id, record)?;
            let first = (from / group) as usize;
            for (i, bytes) in buf.data[..span].chunks(GROUP).enumerate() {
                if !outline.group_matches(first + i, bytes) {
                    return Err(damaged(id, record));
                }
            }
            if record.place == Place::Object {
                self.checked.lock().some(id, first..first + span.div_ceil(GROUP), outline.0.len());
            }
        }
        buf.start = (offset - from) as usize;
        buf.end = (end - from) as usize;
        Ok(())
    }

    /// The outline of a blob over 64 KiB, checked against its digest.
    pub(super) fn outline(&self, id: BlobId, record: &Record) -> Result<Arc<Outline>> {
        if let Some(known) = self.outlines.lock().by_id.get(&id) {
            return Ok(known.clone());
        }
        let count = usize::try_from(Outline::len_for(record.size)).map_err(|_| damaged(id, record))?;
        let (container, at) = match record.place {
            Place::Pack => {
                let outline = Outline(self.pack(record.container)?.outline(record.outline_in, count)?);
                return self.keep_outline(id, record, outline);
            }
            Place::Segment => {
                let at =
                    record.offset.checked_sub((count * CV_LEN) as u64).ok_or_else(|| damaged(id, record))?;
                (record.container, at)
            }
            Place::Object => (record.outline_in, record.offset),
        };
        let mut raw = vec![0u8; count * CV_LEN];
        self.container(container, Place::Segment)?.read_exact_at(&mut raw, at)?;
        self.keep_outline(id, record, Outline(raw.as_chunks().0.to_vec()))
    }

    fn keep_outline(&self, id: BlobId, record: &Record, outline: Outline) -> Result<Arc<Outline>> {
        let outline = Arc::new(outline);
        if !outline.belongs_to(&record.digest) {
            return Err(damaged(id, record));
        }
        self.outlines.lock().insert(id, outline.clone());
        Ok(outline)
    }

    /// Where the next data, or the next hole, of a blob begins, from `offset` on. The blob's size if there
    /// is none.
    ///
    /// # Errors
    ///
    /// `Corrupt`, `Io`.
    pub fn seek(&self, id: BlobId, offset: u64, data: bool) -> Result<u64> {
        self.read_record(id, |record| {
            if record.size <= GROUP as u64 {
                return Ok(if data { offset } else { record.size });
            }
            if record.place == Place::Pack {
                return self.seek_packed(record, offset, data);
            }
            let base = if record.place == Place::Object { 0 } else { record.offset };
            let container = self.container(record.container, record.place)?;
            let found = container.seek(base + offset, data);
            Ok(found.map_or(record.size, |found| (found - base).min(record.size)))
        })
    }

    /// `seek` in a pack. The holes are the frames of zeros.
    fn seek_packed(&self, record: &Record, offset: u64, data: bool) -> Result<u64> {
        let pack = self.pack(record.container)?;
        let (from, end) = (record.offset + offset, record.offset + record.size);
        let found = pack.frames_of(from, end).map(|n| &pack.frames[n]).find(|frame| (frame.len > 0) == data);
        Ok(found.map_or(record.size, |frame| frame.from.clamp(from, end) - record.offset))
    }

    /// Passes all of a blob of `size` bytes to `take`, in order: the offset of a piece, and its bytes.
    ///
    /// # Errors
    ///
    /// `Corrupt`, `Io`, and what `take` fails with.
    pub(super) fn each_piece(
        &self,
        id: BlobId,
        size: u64,
        buf: &mut ReadBuf,
        mut take: impl FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut at = 0;
        while at < size {
            let bytes = self.read(id, at, 1 << 20, buf)?;
            if bytes.is_empty() {
                return Err(Error::Corrupt {
                    what: format!("blob {id}"),
                    why: "it is shorter than its record says".into(),
                });
            }
            take(at, bytes)?;
            at += bytes.len() as u64;
        }
        Ok(())
    }

    /// Reads all of a blob and checks it against its digest, wherever it lies; for fsck.
    ///
    /// # Errors
    ///
    /// `Corrupt` if there is no such blob, or its content is damaged; `Io`.
    pub fn verify(&self, id: BlobId, buf: &mut ReadBuf) -> Result<()> {
        let record = self.record(id)?;
        let mut hasher = blake3::Hasher::new();
        self.each_piece(id, record.size, buf, |_, bytes| {
            hasher.update(bytes);
            Ok(())
        })?;
        let whole = if hasher.finalize().as_bytes() != &record.digest.0 {
            Err(damaged(id, &record))
        } else if record.size > GROUP as u64 {
            self.outline(id, &record).map(drop)
        } else {
            Ok(())
        };
        match &whole {
            Ok(()) => self.note_sound(&[id]),
            Err(e) => self.note_failed(id, e),
        }
        whole
    }
}

fn damaged(id: BlobId, record: &Record) -> Error {
    Error::Corrupt {
        what: format!("blob {id} ({})", record.digest.hex()),
        why: "its bytes do not match its digest".into(),
    }
}
