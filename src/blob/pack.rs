//! Journey 2, cat, of content at rest: frames of a pack are checked, unpacked, and kept for the next
//! read.

use std::collections::VecDeque;
use std::sync::Arc;

use blake3::hazmat::ChainingValue;
use parking_lot::Mutex;

use crate::base::delta;
use crate::base::digest::{BlobId, CV_LEN, Digest};
use crate::blob::BlobStore;
use crate::blob::backend::Container;
use crate::blob::buffer::ReadBuf;
use crate::blob::container::Place;
use crate::error::{Error, Result};
use crate::format::{PACK_END, PACK_FOOTER_LEN};

/// Bytes of a frame's row in the table.
const FRAME_LEN: usize = 56;
/// Bytes of a base's row.
const BASE_LEN: usize = 16;
/// How many bytes a frame, and all its bases together, may have. A reader keeps that much in memory.
pub const FRAME_MAX: u64 = 64 << 20;
/// How far before the end of a pack its footer is searched for.
const JUNK: u64 = 1 << 20;
/// How many frames are unpacked before a sequential reader asks for them.
const AHEAD: usize = 2;
/// How many bytes of unpacked frames are kept.
const CACHE: usize = 64 << 20;

/// The purpose of a read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// For a caller that asked for it.
    Read,
    /// For a frame that was compressed against it. It must not need bases itself.
    Base,
    /// For a read that is expected soon.
    Later,
}

/// A part of a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Where its content begins in the pack's stream, and its length.
    pub from: u64,
    pub size: u64,
    /// Where it lies in the file, and its length there. With 0 bytes its content is zeros.
    pub at: u64,
    pub len: u32,
    /// The number of its first base, and how many it has.
    pub bases: (u32, u32),
    /// The check of its bytes in the file.
    pub check: [u8; 16],
}

/// Bytes of a blob that a frame was compressed against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    pub id: BlobId,
    pub len: u32,
    pub offset: u64,
}

impl Frame {
    pub fn end(&self) -> u64 {
        self.from + self.size
    }

    pub fn encode(&self) -> [u8; FRAME_LEN] {
        let mut out = [0; FRAME_LEN];
        out[..8].copy_from_slice(&self.from.to_le_bytes());
        out[8..16].copy_from_slice(&self.size.to_le_bytes());
        out[16..24].copy_from_slice(&self.at.to_le_bytes());
        out[24..28].copy_from_slice(&self.len.to_le_bytes());
        out[28..32].copy_from_slice(&self.bases.0.to_le_bytes());
        out[32..36].copy_from_slice(&self.bases.1.to_le_bytes());
        out[40..].copy_from_slice(&self.check);
        out
    }

    fn decode(raw: &[u8; FRAME_LEN]) -> Frame {
        Frame {
            from: u64_at(raw, 0),
            size: u64_at(raw, 8),
            at: u64_at(raw, 16),
            len: u32_at(raw, 24),
            bases: (u32_at(raw, 28), u32_at(raw, 32)),
            check: raw[40..].try_into().expect("16 bytes"),
        }
    }
}

impl Base {
    pub fn encode(&self) -> [u8; BASE_LEN] {
        let mut out = [0; BASE_LEN];
        out[..4].copy_from_slice(&self.id.to_le_bytes());
        out[4..8].copy_from_slice(&self.len.to_le_bytes());
        out[8..].copy_from_slice(&self.offset.to_le_bytes());
        out
    }

    fn decode(raw: &[u8; BASE_LEN]) -> Base {
        Base { id: u32_at(raw, 0), len: u32_at(raw, 4), offset: u64_at(raw, 8) }
    }
}

fn u32_at(raw: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(raw[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(raw: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(raw[at..at + 8].try_into().expect("eight bytes"))
}

/// The check of a frame's bytes in the file.
pub fn check_of(bytes: &[u8]) -> [u8; 16] {
    Digest::of(bytes).0[..16].try_into().expect("half a digest")
}

/// An open pack: its tables, checked.
pub struct Pack {
    number: u32,
    container: Container,
    /// In the order of the stream, without gaps.
    pub frames: Vec<Frame>,
    bases: Vec<Base>,
    outlines_at: u64,
    outlines: u64,
    /// Offset and length of the list, and its digest.
    list: (u64, u64, Digest),
}

/// Where the footer is: at the end, or before garbage that a bad disk has put after it.
fn footer_of(container: &Container) -> Result<Option<u64>> {
    let len = container.size()?.len;
    for look in [PACK_FOOTER_LEN as u64, JUNK] {
        let from = len.saturating_sub(look);
        let mut tail = vec![0; (len - from) as usize];
        container.read_exact_at(&mut tail, from)?;
        let whole = tail.len().saturating_sub(PACK_FOOTER_LEN - PACK_END.len());
        if let Some(at) = tail[..whole].windows(PACK_END.len()).rposition(|found| found == PACK_END) {
            return Ok(Some(from + at as u64));
        }
    }
    Ok(None)
}

impl Pack {
    /// Checks the tables of a pack.
    ///
    /// # Errors
    ///
    /// `Corrupt`, `Io`.
    pub fn open(container: Container, number: u32) -> Result<Pack> {
        let bad =
            |why: &str| Error::Corrupt { what: container.path().display().to_string(), why: why.into() };
        let footer_at = footer_of(&container)?.ok_or_else(|| bad("it does not end as a pack"))?;
        let mut footer = [0; PACK_FOOTER_LEN];
        container.read_exact_at(&mut footer, footer_at)?;
        let [frames, bases, outlines, tables_at] = [16, 24, 32, 40].map(|at| u64_at(&footer, at));
        let rows = [(frames, FRAME_LEN), (bases, BASE_LEN), (outlines, CV_LEN)];
        let [frames_len, bases_len, outlines_len] = rows.map(|(n, row)| n.saturating_mul(row as u64));
        let outlines_at = tables_at.checked_add(frames_len).and_then(|at| at.checked_add(bases_len));
        let whole =
            outlines_at.and_then(|at| at.checked_add(outlines_len)).is_some_and(|end| end <= footer_at);
        let (true, Some(outlines_at)) = (whole, outlines_at) else {
            return Err(bad("it does not end as a pack"));
        };
        let mut tables =
            vec![0; usize::try_from(outlines_at - tables_at).map_err(|_| bad("it is too long"))?];
        container.read_exact_at(&mut tables, tables_at)?;
        if Digest::of(&tables).0 != footer[96..] {
            return Err(bad("its tables do not match their digest"));
        }
        let (frames, bases) = tables.split_at(frames_len as usize);
        let frames: Vec<Frame> = frames.as_chunks().0.iter().map(Frame::decode).collect();
        let bases: Vec<Base> = bases.as_chunks().0.iter().map(Base::decode).collect();
        let list_len = u64_at(&footer, 48);
        let list_digest = Digest(footer[64..96].try_into().expect("32 bytes"));
        let list = (footer_at.saturating_sub(list_len), list_len, list_digest);
        let pack = Pack { number, container, frames, bases, outlines_at, outlines, list };
        pack.check()?;
        Ok(pack)
    }

    /// Checks that the tables make sense, whoever wrote the pack.
    fn check(&self) -> Result<()> {
        let mut at = 0;
        for frame in &self.frames {
            let bases =
                self.bases.get(frame.bases.0 as usize..).and_then(|rest| rest.get(..frame.bases.1 as usize));
            let sizes = bases.map(|bases| bases.iter().map(|base| u64::from(base.len)).sum::<u64>());
            let sane = frame.from == at
                && frame.from.checked_add(frame.size).is_some()
                && (frame.len == 0 || frame.size <= FRAME_MAX)
                && sizes.is_some_and(|size| size <= FRAME_MAX);
            if !sane {
                return Err(self.corrupt("a frame makes no sense"));
            }
            at = frame.end();
        }
        Ok(())
    }

    fn corrupt(&self, why: &str) -> Error {
        Error::Corrupt { what: self.container.path().display().to_string(), why: why.into() }
    }

    /// Numbers of the frames that hold `[from, to)` of the stream.
    pub fn frames_of(&self, from: u64, to: u64) -> std::ops::Range<usize> {
        let first = self.frames.partition_point(|frame| frame.end() <= from);
        let end = self.frames.partition_point(|frame| frame.from < to);
        first..end.max(first)
    }

    pub fn bases_of(&self, frame: &Frame) -> &[Base] {
        &self.bases[frame.bases.0 as usize..][..frame.bases.1 as usize]
    }

    /// Values of an outline, from number `first` on.
    ///
    /// # Errors
    ///
    /// `Io`; `Corrupt` if the pack holds no such values, or is cut off.
    pub fn outline(&self, first: u32, count: usize) -> Result<Vec<ChainingValue>> {
        if u64::from(first) + count as u64 > self.outlines {
            return Err(self.corrupt("it holds no such outline"));
        }
        let mut raw = vec![0; count * CV_LEN];
        self.container.read_exact_at(&mut raw, self.outlines_at + u64::from(first) * CV_LEN as u64)?;
        Ok(raw.as_chunks().0.to_vec())
    }

    /// Id and size of each blob, in the order of the stream.
    ///
    /// # Errors
    ///
    /// `Corrupt`, `Io`.
    pub fn list(&self) -> Result<Vec<(BlobId, u64)>> {
        let (at, len, digest) = self.list;
        let packed_len = usize::try_from(len)
            .ok()
            .filter(|_| at >= self.outlines_at)
            .ok_or_else(|| self.corrupt("its list is damaged"))?;
        let mut packed = vec![0; packed_len];
        self.container.read_exact_at(&mut packed, at)?;
        if Digest::of(&packed) != digest {
            return Err(self.corrupt("its list is damaged"));
        }
        let list = zstd::decode_all(&packed[..]).map_err(|_| self.corrupt("its list is damaged"))?;
        Ok(list.chunks_exact(12).map(|raw| (u32_at(raw, 0), u64_at(raw, 4))).collect())
    }

    /// The bytes of a frame in the file, after their check.
    fn packed(&self, frame: &Frame) -> Result<Vec<u8>> {
        let mut packed = vec![0; frame.len as usize];
        self.container.read_exact_at(&mut packed, frame.at)?;
        if check_of(&packed) != frame.check {
            return Err(self.corrupt("a frame does not match its check"));
        }
        Ok(packed)
    }
}

/// Frames that were unpacked recently. The least recently used one is dropped first.
#[derive(Default)]
pub struct FrameCache {
    inner: Mutex<Slots>,
}

#[derive(Default)]
struct Slots {
    /// Newest last. There are few, so a search from the end is as fast as a map.
    slots: VecDeque<Slot>,
    /// A buffer that is no longer used. New memory from the system would cost a tenth of the unpacking.
    spare: Vec<u8>,
    /// Frames that a sequential reader will need next.
    ahead: VecDeque<Key>,
}

/// A pack and the number of a frame in it.
type Key = (u32, usize);
/// Locked during unpacking, so that one reader does it for all.
type Content = Arc<Mutex<Option<Arc<Vec<u8>>>>>;

struct Slot {
    key: Key,
    size: usize,
    /// Whether anybody has read from it.
    read: bool,
    content: Content,
}

impl FrameCache {
    pub fn clear(&self) {
        *self.inner.lock() = Slots::default();
    }

    /// The slot of a frame. If there is none, one is made, and others make room for it.
    fn slot(&self, key: Key, size: usize, reads: bool) -> Content {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        let found = inner.slots.iter().rposition(|slot| slot.key == key).and_then(|n| inner.slots.remove(n));
        let mut slot = found.unwrap_or_else(|| {
            let mut held: usize = inner.slots.iter().map(|slot| slot.size).sum();
            while held + size > CACHE
                && let Some(oldest) = inner.slots.pop_front()
            {
                held -= oldest.size;
                let buffer = Arc::into_inner(oldest.content)
                    .and_then(|content| Arc::into_inner(content.into_inner()?));
                inner.spare = buffer.unwrap_or_default();
            }
            Slot { key, size, read: false, content: Content::default() }
        });
        let before = key.1.checked_sub(1).map(|n| (key.0, n));
        if reads && !slot.read && inner.slots.iter().any(|slot| slot.read && Some(slot.key) == before) {
            let next = (key.1 + 1..=key.1 + AHEAD).map(|n| (key.0, n));
            inner.ahead = next.filter(|next| inner.slots.iter().all(|slot| slot.key != *next)).collect();
        }
        slot.read |= reads;
        let content = slot.content.clone();
        inner.slots.push_back(slot);
        content
    }

    fn take_spare(&self) -> Vec<u8> {
        std::mem::take(&mut self.inner.lock().spare)
    }
}

impl BlobStore {
    /// An open pack.
    pub(super) fn pack(&self, number: u32) -> Result<Arc<Pack>> {
        if let Some(open) = self.packs.lock().get(&number) {
            return Ok(open.clone());
        }
        let opened = Arc::new(Pack::open(self.backend.open(&Place::Pack.key(number))?, number)?);
        Ok(self.packs.lock().entry(number).or_insert(opened).clone())
    }

    /// Unpacks a frame that a sequential reader will need soon, while that reader takes the frame before
    /// it. Threads that have answered a read call this, so several unpack at once.
    pub fn read_ahead(&self) {
        let Some((number, n)) = self.frames.inner.lock().ahead.pop_front() else { return };
        if let Ok(pack) = self.pack(number)
            && pack.frames.get(n).is_some_and(|frame| frame.len > 0)
            && let Err(e) = self.frame(&pack, n, Use::Later)
        {
            log::warn!("reading ahead: {e}");
        }
    }

    /// The unpacked content of a frame. Frames of zeros have none.
    fn frame(&self, pack: &Pack, number: usize, used: Use) -> Result<Arc<Vec<u8>>> {
        let frame = &pack.frames[number];
        if used == Use::Base && frame.bases.1 > 0 {
            return Err(pack.corrupt("a frame with bases is itself a base"));
        }
        let size = usize::try_from(frame.size).map_err(|_| pack.corrupt("a frame is too long"))?;
        let slot = || self.frames.slot((pack.number, number), size, used == Use::Read);
        if let Some(content) = &*slot().lock() {
            return Ok(content.clone());
        }
        // The lock is not held here: a lost base makes all frames be read, and this is one of them.
        let mut base = Vec::new();
        for part in pack.bases_of(frame) {
            self.append_base(part, &mut base)?;
        }
        // The slot is looked up again, because the bases, which may lie in many frames, may have driven it
        // out.
        let slot = slot();
        let mut content = slot.lock();
        if let Some(content) = &*content {
            return Ok(content.clone());
        }
        let unpacked = delta::unpack(&pack.packed(frame)?, &base, size, self.frames.take_spare());
        let unpacked =
            Arc::new(unpacked.map_err(|why| pack.corrupt(&format!("a frame cannot be unpacked: {why}")))?);
        *content = Some(unpacked.clone());
        Ok(unpacked)
    }

    /// Appends the bytes of a base to `out`.
    pub(super) fn append_base(&self, base: &Base, out: &mut Vec<u8>) -> Result<()> {
        let mut buf = ReadBuf::default();
        let bytes = self.read_as(base.id, base.offset, base.len as usize, &mut buf, Use::Base)?;
        if bytes.len() != base.len as usize {
            return Err(Error::Corrupt {
                what: format!("blob {}", base.id),
                why: "it is shorter than a frame needs".into(),
            });
        }
        out.extend_from_slice(bytes);
        Ok(())
    }

    /// Fills `out` from the stream of a pack, from `from` on.
    pub(super) fn read_stream(
        &self,
        number: u32,
        mut from: u64,
        mut out: &mut [u8],
        used: Use,
    ) -> Result<()> {
        let pack = self.pack(number)?;
        for n in pack.frames_of(from, from + out.len() as u64) {
            let frame = &pack.frames[n];
            let skip = from - frame.from;
            let take = usize::try_from(frame.size - skip).unwrap_or(usize::MAX).min(out.len());
            let (here, rest) = out.split_at_mut(take);
            if frame.len == 0 {
                here.fill(0);
            } else {
                let skip = usize::try_from(skip).map_err(|_| pack.corrupt("a frame is too long"))?;
                here.copy_from_slice(&self.frame(&pack, n, used)?[skip..skip + take]);
            }
            (out, from) = (rest, from + take as u64);
        }
        if out.is_empty() { Ok(()) } else { Err(pack.corrupt("it ends before a blob does")) }
    }
}
