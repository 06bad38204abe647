//! imgfs repack: content at rest moves into packs, compressed together and against older versions.
//!
//! A pack is written completely and made durable. Then the records of its blobs point to it, and then
//! the old places are freed (invariant 1). A crash before the records leaves a pack that nothing names,
//! and the next sweep removes it. Readers look up a record for each read, and again if the read
//! failed and the record changed. So they notice nothing.

use std::collections::HashSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use blake3::hazmat::ChainingValue;

use crate::base::delta;
use crate::base::digest::{BlobId, Digest, GROUP};
use crate::blob::buffer::ReadBuf;
use crate::blob::container::Place;
use crate::blob::pack::{Base, FRAME_MAX, Frame, check_of};
use crate::blob::table::Record;
use crate::blob::{BlobStore, OBJECT_MIN};
use crate::error::{Error, Result};
use crate::fault;
use crate::format::{PACK_END, PACK_FOOTER_LEN, PACK_MAGIC};

/// How content is compressed.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// How many bytes of content are compressed together. More give smaller packs, but slower random reads.
    pub frame: usize,
    /// How many bytes are compressed together if they are compressed against older versions.
    pub delta: usize,
    /// The level of zstd.
    pub level: i32,
}

/// For most images. A cold read unpacks 4 MiB, at 0.75 GB/s.
pub const AUTO: Shape = Shape { frame: 4 << 20, delta: 1 << 20, level: 19 };
/// For `storage: small`. A cold read unpacks 16 MiB, at 0.7 GB/s; packs are 5 % smaller.
pub const SMALL: Shape = Shape { frame: 16 << 20, delta: 4 << 20, level: 19 };

/// About how many bytes of content one pack has. An interrupted repack loses at most that much work.
const PACK: u64 = 256 << 20;

/// A blob that moves into a pack.
#[derive(Clone, Copy, Debug)]
pub struct Move {
    pub id: BlobId,
    /// A blob that it resembles: the one that an older version has in its place.
    pub base: Option<BlobId>,
}

impl BlobStore {
    /// Moves blobs into packs, in this order; those with a base come after the others. `go_on` gets the
    /// bytes that were just packed, and returns whether to go on. What is done by then stays. `threads`
    /// threads compress at once.
    ///
    /// The caller pins the blobs and their bases.
    ///
    /// # Errors
    ///
    /// `Corrupt` for what cannot be read; `Stopped` after a sync has failed; `Io`.
    pub fn pack_all(
        self: &Arc<Self>,
        moves: &[Move],
        shape: &Shape,
        threads: usize,
        go_on: &dyn Fn(u64) -> bool,
    ) -> Result<()> {
        // A blob that serves as a base must not be compressed against another.
        let packs = self.all_packs()?;
        let in_use =
            packs.values().flat_map(|pack| pack.frames.iter().flat_map(|frame| pack.bases_of(frame)));
        let mut plain: HashSet<BlobId> = in_use.map(|base| base.id).collect();
        plain.extend(moves.iter().filter_map(|m| m.base));
        let (deltas, plains): (Vec<&Move>, Vec<&Move>) =
            moves.iter().partition(|m| m.base.is_some_and(|base| base != m.id) && !plain.contains(&m.id));
        let all: Vec<Move> =
            plains.iter().map(|m| Move { base: None, ..**m }).chain(deltas.into_iter().copied()).collect();
        let mut rest = &all[..];
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = rest.iter().take_while(|m| {
                let before = bytes;
                bytes += self.record(m.id).map_or(0, |record| record.size);
                before < PACK
            });
            let (now, later) = rest.split_at(fits.count());
            rest = later;
            if !self.write_pack(now, shape, threads, go_on)? {
                break;
            }
        }
        Ok(())
    }

    /// Writes one pack and points the records there. False if `go_on` stopped it.
    fn write_pack(
        self: &Arc<Self>,
        moves: &[Move],
        shape: &Shape,
        threads: usize,
        go_on: &dyn Fn(u64) -> bool,
    ) -> Result<bool> {
        let mut writer = PackWriter::create(self, *shape, threads)?;
        for m in moves {
            // The blob was freed meanwhile, so there is nothing to move.
            let Ok(record) = self.record(m.id) else { continue };
            match m.base {
                Some(base) => writer.put_delta(m.id, &record, base)?,
                None => writer.put(m.id, &record)?,
            }
            if !go_on(record.size) {
                return Ok(false);
            }
        }
        let moved = writer.finish()?;
        fault::reached("pack.written");
        let mut next_container = self.seal.lock();
        let number = *next_container;
        *next_container += 1;
        self.backend.put(&moved.path, &Place::Pack.key(number))?;
        self.backend.sync(Place::Pack.shelf())?;
        fault::reached("pack.named");
        let mut changes = Vec::with_capacity(moved.blobs.len());
        for blob in &moved.blobs {
            // The blob may have moved meanwhile. An equal digest means that its bytes are the same.
            if let Ok(record) = self.record(blob.id)
                && record.digest == blob.digest
            {
                let place = Place::Pack;
                let here = Record {
                    place,
                    offset: blob.offset,
                    container: number,
                    outline_in: blob.outline,
                    ..record
                };
                changes.push((blob.id, Some(here)));
            }
        }
        self.move_records(&changes)?;
        fault::reached("pack.recorded");
        Ok(true)
    }

    /// Whether a blob is compressed against others.
    ///
    /// # Errors
    ///
    /// `Corrupt` if there is no such blob, or its pack is damaged; `Io`.
    pub fn has_bases(&self, id: BlobId) -> Result<bool> {
        let record = self.record(id)?;
        if record.place != Place::Pack {
            return Ok(false);
        }
        let pack = self.pack(record.container)?;
        Ok(pack.frames_of(record.offset, record.offset + record.size).any(|n| pack.frames[n].bases.1 > 0))
    }

    /// The packed blobs that lie in frames which are mostly unused. They are worth packing again.
    ///
    /// # Errors
    ///
    /// `Io`. Damaged packs are skipped.
    pub fn thinly_packed(&self) -> Result<HashSet<BlobId>> {
        let mut live: std::collections::HashMap<(u32, usize), u64> = Default::default();
        let records: Vec<_> = self.records().into_iter().filter(|(_, r)| r.place == Place::Pack).collect();
        let mut places = Vec::with_capacity(records.len());
        let packs = self.all_packs()?;
        for (id, record) in &records {
            let Some(pack) = packs.get(&record.container) else { continue };
            let frames = pack.frames_of(record.offset, record.offset + record.size);
            for n in frames.clone() {
                let frame = &pack.frames[n];
                let (from, to) =
                    (record.offset.max(frame.from), (record.offset + record.size).min(frame.end()));
                *live.entry((record.container, n)).or_default() += to - from;
            }
            places.push((*id, record.container, frames));
        }
        let mut thin = HashSet::new();
        for (id, container, mut frames) in places {
            let pack = &packs[&container];
            if frames.any(|n| live.get(&(container, n)).is_some_and(|bytes| bytes * 2 < pack.frames[n].size))
            {
                thin.insert(id);
            }
        }
        Ok(thin)
    }
}

/// A pack that is being written. If it is dropped before its end, it leaves nothing.
struct PackWriter<'s> {
    store: &'s Arc<BlobStore>,
    shape: Shape,
    threads: usize,
    file: File,
    path: PathBuf,
    /// How many bytes were written.
    at: u64,
    /// How many bytes of the stream are in `frames`, `batch` and `open`.
    stream: u64,
    frames: Vec<Frame>,
    bases: Vec<Base>,
    outlines: Vec<ChainingValue>,
    blobs: Vec<Packed>,
    /// Frames that wait to be compressed together.
    batch: Vec<Draft>,
    open: Draft,
    buf: ReadBuf,
    finished: bool,
}

/// A blob in a pack.
struct Packed {
    id: BlobId,
    digest: Digest,
    size: u64,
    offset: u64,
    /// The number of its outline's first value.
    outline: u32,
}

/// A frame that is being filled.
#[derive(Default)]
struct Draft {
    from: u64,
    content: Vec<u8>,
    bases: Vec<Base>,
    base_bytes: Vec<u8>,
}

/// The result of `finish`: the file, still under its temporary name, and where each blob lies.
struct Finished {
    path: PathBuf,
    blobs: Vec<Packed>,
}

impl<'s> PackWriter<'s> {
    fn create(store: &'s Arc<BlobStore>, shape: Shape, threads: usize) -> Result<PackWriter<'s>> {
        let path = store.staging.join("pack");
        let _ = fs::remove_file(&path);
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(Error::io("create", &path))?;
        file.write_all_at(PACK_MAGIC, 0).map_err(Error::io("write", &path))?;
        Ok(PackWriter {
            store,
            shape,
            threads,
            file,
            path,
            at: PACK_MAGIC.len() as u64,
            stream: 0,
            frames: Vec::new(),
            bases: Vec::new(),
            outlines: Vec::new(),
            blobs: Vec::new(),
            batch: Vec::new(),
            open: Draft::default(),
            buf: ReadBuf::default(),
            finished: false,
        })
    }

    /// Notes that a blob begins here.
    fn begin(&mut self, id: BlobId, record: &Record) -> Result<()> {
        let outline = u32::try_from(self.outlines.len()).map_err(|_| too_large())?;
        if record.size > GROUP as u64 {
            self.outlines.extend_from_slice(&self.store.outline(id, record)?.0);
        }
        self.blobs.push(Packed {
            id,
            digest: record.digest,
            size: record.size,
            offset: self.stream,
            outline,
        });
        Ok(())
    }

    /// Adds a blob.
    fn put(&mut self, id: BlobId, record: &Record) -> Result<()> {
        if !self.open.bases.is_empty() || (record.size <= OBJECT_MIN && self.room() < record.size) {
            self.close_frame()?;
        }
        self.begin(id, record)?;
        let mut at = 0;
        while at < record.size {
            if self.room() == 0 {
                self.close_frame()?;
            }
            at += self.append(id, at, self.room())?;
        }
        Ok(())
    }

    /// How many bytes the open frame can still take.
    fn room(&self) -> u64 {
        (self.shape.frame - self.open.content.len()) as u64
    }

    /// Adds a blob that is compressed against another.
    fn put_delta(&mut self, id: BlobId, record: &Record, base: BlobId) -> Result<()> {
        let frame = self.shape.delta as u64;
        let of_base = self.store.record(base)?.size;
        let filled = self.open.content.len() as u64;
        if filled > 0 && (self.open.bases.is_empty() || filled + record.size > frame) {
            self.close_frame()?;
        }
        self.begin(id, record)?;
        let mut at = 0;
        while at < record.size {
            // For a large base, only the same region and as much around it is used.
            let (from, to) = if of_base <= 2 * frame {
                (0, of_base)
            } else {
                (at.saturating_sub(frame / 2).min(of_base - frame), (at + frame + frame / 2).min(of_base))
            };
            let part =
                Base { id: base, len: u32::try_from(to - from).map_err(|_| too_large())?, offset: from };
            if part.len > 0 {
                self.store.append_base(&part, &mut self.open.base_bytes)?;
                self.open.bases.push(part);
            }
            let room = frame.saturating_sub(self.open.content.len() as u64);
            let more = self.append(id, at, room)?;
            at += more;
            if at < record.size {
                self.close_frame()?;
            }
        }
        if self.open.base_bytes.len() as u64 >= 2 * frame {
            self.close_frame()?;
        }
        Ok(())
    }

    /// Appends up to `room` bytes of a blob to the open frame, and returns how many. A long run of zeros
    /// becomes a frame of its own.
    fn append(&mut self, id: BlobId, at: u64, room: u64) -> Result<u64> {
        let bytes = self.store.read(id, at, OBJECT_MIN as usize, &mut self.buf)?;
        if bytes.is_empty() {
            return Err(Error::Corrupt {
                what: format!("blob {id}"),
                why: "it is shorter than its record says".into(),
            });
        }
        if bytes.len() >= GROUP && bytes.iter().all(|b| *b == 0) {
            let zeros = bytes.len() as u64;
            self.close_frame()?;
            if self.batch.last().is_none_or(|draft| !draft.content.is_empty()) {
                self.batch.push(Draft { from: self.stream, ..Draft::default() });
            }
            self.stream += zeros;
            self.open.from = self.stream;
            return Ok(zeros);
        }
        let bytes = &bytes[..bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX))];
        self.open.content.extend_from_slice(bytes);
        self.stream += bytes.len() as u64;
        Ok(bytes.len() as u64)
    }

    fn close_frame(&mut self) -> Result<()> {
        if self.open.content.is_empty() {
            // The bases are dropped, because no bytes were compressed against them.
            self.open = Draft { from: self.stream, ..Draft::default() };
            return Ok(());
        }
        let next = Draft { from: self.stream, ..Draft::default() };
        self.batch.push(std::mem::replace(&mut self.open, next));
        if self.batch.iter().filter(|draft| !draft.content.is_empty()).count() >= self.threads {
            self.write_batch()
        } else {
            Ok(())
        }
    }

    /// Compresses the waiting frames, each in a thread, and writes them in their order.
    fn write_batch(&mut self) -> Result<()> {
        let batch = std::mem::take(&mut self.batch);
        let shape = &self.shape;
        let packed: Vec<Result<Vec<u8>>> = std::thread::scope(|scope| {
            let workers: Vec<_> = batch.iter().map(|draft| scope.spawn(move || draft.pack(shape))).collect();
            workers
                .into_iter()
                .map(|worker| worker.join().unwrap_or_else(|_| Err(compression("a thread stopped"))))
                .collect()
        });
        let ends = batch.iter().skip(1).map(|draft| draft.from).chain([self.open.from]);
        for ((draft, packed), end) in batch.iter().zip(packed).zip(ends) {
            let packed = packed?;
            self.file.write_all_at(&packed, self.at).map_err(Error::io("write", &self.path))?;
            let first = u32::try_from(self.bases.len()).map_err(|_| too_large())?;
            let frame = Frame {
                from: draft.from,
                size: end - draft.from,
                at: self.at,
                len: u32::try_from(packed.len()).map_err(|_| too_large())?,
                bases: (first, u32::try_from(draft.bases.len()).map_err(|_| too_large())?),
                check: check_of(&packed),
            };
            self.at += packed.len() as u64;
            match self.frames.last_mut() {
                Some(last) if last.len == 0 && frame.len == 0 => last.size += frame.size,
                _ => self.frames.push(frame),
            }
            self.bases.extend_from_slice(&draft.bases);
        }
        Ok(())
    }

    /// Writes the tables durably.
    fn finish(mut self) -> Result<Finished> {
        self.close_frame()?;
        self.write_batch()?;
        let mut tables: Vec<u8> = self.frames.iter().flat_map(Frame::encode).collect();
        tables.extend(self.bases.iter().flat_map(Base::encode));
        let digest = Digest::of(&tables);
        tables.extend(self.outlines.iter().flatten());
        let list: Vec<u8> = self
            .blobs
            .iter()
            .flat_map(|blob| blob.id.to_le_bytes().into_iter().chain(blob.size.to_le_bytes()))
            .collect();
        let list = zstd::bulk::compress(&list, self.shape.level).map_err(|e| compression(&e.to_string()))?;
        let mut footer = [0; PACK_FOOTER_LEN];
        footer[..16].copy_from_slice(PACK_END);
        let numbers = [
            self.frames.len() as u64,
            self.bases.len() as u64,
            self.outlines.len() as u64,
            self.at,
            list.len() as u64,
        ];
        for (n, number) in numbers.into_iter().enumerate() {
            footer[16 + n * 8..24 + n * 8].copy_from_slice(&number.to_le_bytes());
        }
        footer[64..96].copy_from_slice(&Digest::of(&list).0);
        footer[96..].copy_from_slice(&digest.0);
        tables.extend_from_slice(&list);
        tables.extend_from_slice(&footer);
        self.file.write_all_at(&tables, self.at).map_err(Error::io("write", &self.path))?;
        self.file.sync_data().map_err(Error::io("sync", &self.path))?;
        self.finished = true;
        Ok(Finished { path: self.path.clone(), blobs: std::mem::take(&mut self.blobs) })
    }
}

impl Drop for PackWriter<'_> {
    fn drop(&mut self) {
        if !self.finished {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Draft {
    /// The frame's bytes for the file, after a test that they unpack to the same content. Empty for zeros.
    fn pack(&self, shape: &Shape) -> Result<Vec<u8>> {
        if self.content.is_empty() {
            return Ok(Vec::new());
        }
        debug_assert!(self.base_bytes.len() as u64 <= FRAME_MAX, "a draft is closed long before");
        delta::pack(&self.content, &self.base_bytes, shape.level)
    }
}

fn compression(why: &str) -> Error {
    Error::Io { doing: "compress", path: "a frame".into(), source: std::io::Error::other(why.to_owned()) }
}

fn too_large() -> Error {
    Error::OverLimit { what: "a pack".into(), limit: "32 bits".into() }
}
