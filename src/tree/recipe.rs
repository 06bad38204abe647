//! The recipe of a file that is made when it is read: which bytes are headers and padding, and which are the
//! content of which blob. A tar is one; so is a disk image, in blobs and holes.
//!
//! ```text
//! head      tar size u64, inline size u64, number of seek points u64, length of records u64, number of frames u64
//! points    24 bytes each, one before every 64 records: offset in the tar u64, in the inline bytes u64, in records u64
//! frames    u64 each: the length of a compressed frame
//! records   varints: inline bytes before the content; what it is; its length. 0: a hole, or, of no length, the end;
//!           below 2^32: the blob with this id; from there on: what recipe n - 2^32 of the same tree makes, whose
//!           number is above this one's own
//! inline    zstd frames of 256 KiB of inline bytes each, the last shorter; none in a tree at rest, see packed.rs
//! ```

use crate::base::digest::{BlobId, Content};
use crate::error::{Error, Result};
use crate::tree::Tree;
use crate::tree::varint::{put_varint, take_varint};

/// Inline bytes in a frame.
const FRAME: usize = 256 * 1024;
/// Records between two seek points.
const STRIDE: usize = 64;
const HEAD: usize = 40;
const POINT: usize = 24;
/// Headers are mostly zeros and repetition; level 1 already takes them to a few per cent.
const LEVEL: i32 = 3;
/// Contents from here on are recipes.
const NESTED: u64 = 1 << 32;

/// Collects a recipe while the tar is parsed.
pub struct RecipeBuilder {
    /// Inline bytes not yet in a frame.
    pending: Vec<u8>,
    frames: Vec<u32>,
    packed: Vec<u8>,
    records: Vec<(u64, Content, u64)>,
    /// Inline bytes since the last blob.
    run: u64,
    inline_size: u64,
    tar_size: u64,
    compressor: zstd::bulk::Compressor<'static>,
}

impl RecipeBuilder {
    /// Begins an empty recipe.
    ///
    /// # Errors
    ///
    /// `Io` if zstd has no compressor for it.
    pub fn new() -> Result<RecipeBuilder> {
        let compressor = zstd::bulk::Compressor::new(LEVEL).map_err(compression)?;
        Ok(RecipeBuilder {
            pending: Vec::with_capacity(FRAME),
            frames: Vec::new(),
            packed: Vec::new(),
            records: Vec::new(),
            run: 0,
            inline_size: 0,
            tar_size: 0,
            compressor,
        })
    }

    /// Bytes of the tar that are no content.
    ///
    /// # Errors
    ///
    /// `Io` if they cannot be compressed.
    pub fn inline(&mut self, mut bytes: &[u8]) -> Result<()> {
        let len = bytes.len() as u64;
        self.run += len;
        self.inline_size += len;
        self.tar_size += len;
        while !bytes.is_empty() {
            let take = bytes.len().min(FRAME - self.pending.len());
            self.pending.extend_from_slice(&bytes[..take]);
            bytes = &bytes[take..];
            if self.pending.len() == FRAME {
                self.pack()?;
            }
        }
        Ok(())
    }

    /// The next `len` bytes of the tar are this content.
    pub fn content(&mut self, content: Content, len: u64) {
        self.tar_size += len;
        if let (Content::Hole, 0, Some((_, Content::Hole, hole))) =
            (content, self.run, self.records.last_mut())
        {
            *hole += len;
            return;
        }
        self.records.push((self.run, content, len));
        self.run = 0;
    }

    /// Where each content lies: offset, content, length.
    pub fn pieces(&self) -> impl Iterator<Item = (u64, Content, u64)> + '_ {
        let mut at = 0;
        self.records.iter().map(move |(run, content, len)| {
            let from = at + run;
            at = from + len;
            (from, *content, *len)
        })
    }

    /// Puts another content in the place of one that was recorded.
    pub fn replace(&mut self, old: Content, new: Content) {
        self.records.iter_mut().filter(|(_, content, _)| *content == old).for_each(|record| record.1 = new);
    }

    fn pack(&mut self) -> Result<()> {
        let frame = self.compressor.compress(&self.pending).map_err(compression)?;
        self.frames.push(u32::try_from(frame.len()).expect("a frame is 256 KiB"));
        self.packed.extend_from_slice(&frame);
        self.pending.clear();
        Ok(())
    }

    pub fn tar_size(&self) -> u64 {
        self.tar_size
    }

    /// Every content, in order.
    pub(super) fn contents(&self) -> impl Iterator<Item = Content> + '_ {
        self.records.iter().map(|(_, content, _)| *content)
    }

    /// The stored form; `id` says which blob a content became.
    ///
    /// # Errors
    ///
    /// `Io` if it cannot be compressed.
    pub fn finish(mut self, id: &impl Fn(Content) -> Option<BlobId>) -> Result<Vec<u8>> {
        if !self.pending.is_empty() {
            self.pack()?;
        }
        let (mut points, mut records) = (Vec::new(), Vec::new());
        let (mut tar_at, mut inline_at, mut count) = (0u64, 0u64, 0u64);
        let code = |content: &Content| match *content {
            Content::Hole => 0,
            Content::Recipe(n) => NESTED + u64::from(n),
            // Without a blob the record would be the end: refused when it is read.
            known => id(known).map_or(0, u64::from),
        };
        let all = self.records.iter().map(|(run, content, len)| (*run, code(content), *len));
        for (n, (run, blob, len)) in all.chain([(self.run, 0, 0)]).enumerate() {
            if n % STRIDE == 0 {
                for value in [tar_at, inline_at, records.len() as u64] {
                    points.extend_from_slice(&value.to_le_bytes());
                }
                count += 1;
            }
            put_varint(&mut records, run);
            put_varint(&mut records, blob);
            put_varint(&mut records, len);
            tar_at += run + len;
            inline_at += run;
        }
        let mut out = Vec::with_capacity(
            HEAD + points.len() + self.frames.len() * 8 + records.len() + self.packed.len(),
        );
        for value in [self.tar_size, self.inline_size, count, records.len() as u64, self.frames.len() as u64]
        {
            out.extend_from_slice(&value.to_le_bytes());
        }
        out.extend_from_slice(&points);
        for frame in &self.frames {
            out.extend_from_slice(&u64::from(*frame).to_le_bytes());
        }
        out.extend_from_slice(&records);
        out.extend_from_slice(&self.packed);
        Ok(out)
    }
}

/// A stored recipe, read in place.
#[derive(Clone, Copy)]
pub struct Recipe<'t> {
    raw: &'t [u8],
    pub tar_size: u64,
    inline_size: u64,
    points: usize,
    records: (usize, usize),
    frames: usize,
    /// Of a tree at rest: the tree, and where in its inline bytes those of this recipe begin.
    apart: Option<(&'t Tree, u64)>,
}

/// Where a reader stands: record after record, and the inline frame it unpacked last.
#[derive(Default)]
pub struct Cursor {
    at: Option<Position>,
    frame: Option<(usize, Vec<u8>)>,
}

#[derive(Clone, Copy)]
struct Position {
    /// Offsets in the tar, the inline bytes and the records, before the record.
    tar: u64,
    inline: u64,
    record: usize,
}

/// What a piece of the tar is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Copied into the output by the recipe itself.
    Inline,
    /// `len` bytes of this blob from `offset` on.
    Blob { id: BlobId, offset: u64, len: u64 },
    /// `len` bytes of what recipe `number` of the same tree makes, from `offset` on.
    Recipe { number: u32, offset: u64, len: u64 },
    /// `len` zeros.
    Hole { len: u64 },
}

/// What a record names.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Named {
    Blob(BlobId),
    Recipe(u32),
    Hole,
}

struct Record {
    /// Where the next one begins.
    next: usize,
    run: u64,
    named: Named,
    len: u64,
}

impl<'t> Recipe<'t> {
    /// Reads the head of a stored recipe; the rest is read when it is asked for.
    ///
    /// # Errors
    ///
    /// `Corrupt` if the lengths in its head contradict its bytes.
    pub fn parse(raw: &'t [u8]) -> Result<Recipe<'t>> {
        let field = |n: usize| {
            raw.get(n * 8..n * 8 + 8).map(|b| u64::from_le_bytes(b.try_into().expect("eight bytes")))
        };
        let fields = (0..5).map(field).collect::<Option<Vec<u64>>>().ok_or_else(bad)?;
        let usize_of = |n: u64| usize::try_from(n).ok().filter(|n| *n <= raw.len()).ok_or_else(bad);
        let (points, records_len, frames) =
            (usize_of(fields[2])?, usize_of(fields[3])?, usize_of(fields[4])?);
        let records_at =
            HEAD + points.checked_mul(POINT).ok_or_else(bad)? + frames.checked_mul(8).ok_or_else(bad)?;
        let records_end = records_at.checked_add(records_len).filter(|e| *e <= raw.len()).ok_or_else(bad)?;
        if points == 0 {
            return Err(bad());
        }
        let records = (records_at, records_end);
        Ok(Recipe { raw, tar_size: fields[0], inline_size: fields[1], points, records, frames, apart: None })
    }

    /// The same, of a tree at rest, whose inline bytes from `from` on are this one's.
    pub(super) fn apart(self, tree: &'t Tree, from: u64) -> Recipe<'t> {
        Recipe { apart: Some((tree, from)), ..self }
    }

    pub(super) fn inline_size(&self) -> u64 {
        self.inline_size
    }

    /// The stored form without inline bytes, and those: what a tree at rest has of it.
    pub(super) fn split(&self) -> Result<(Vec<u8>, Vec<u8>)> {
        let frames = HEAD + self.points * POINT;
        let mut out = self.raw[..frames].to_vec();
        out[HEAD - 8..HEAD].fill(0);
        out.extend_from_slice(&self.raw[self.records.0..self.records.1]);
        let mut inline = Vec::new();
        self.inline(&mut Cursor::default(), 0, self.inline_size, &mut |_, bytes| {
            inline.extend_from_slice(bytes);
            Ok(())
        })?;
        Ok((out, inline))
    }

    fn point(&self, n: usize) -> Position {
        let field = |i: usize| {
            let at = HEAD + n * POINT + i * 8;
            u64::from_le_bytes(self.raw[at..at + 8].try_into().expect("eight bytes"))
        };
        Position { tar: field(0), inline: field(1), record: usize::try_from(field(2)).unwrap_or(usize::MAX) }
    }

    /// Walks the pieces that make up `[offset, offset + len)` of the tar; `emit` takes the bytes of inline
    /// pieces and the places of blob pieces, in order.
    ///
    /// # Errors
    ///
    /// `Corrupt`, and what `emit` fails with.
    pub fn walk(
        &self,
        cursor: &mut Cursor,
        offset: u64,
        len: u64,
        mut emit: impl FnMut(Piece, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let end = self.tar_size.min(offset.saturating_add(len));
        if offset >= end {
            return Ok(());
        }
        let mut position = match cursor.at {
            Some(p) if p.tar <= offset && offset - p.tar < 4 << 20 => p,
            _ => self.seek(offset),
        };
        let mut at = offset;
        while at < end {
            let record = self.record(position.record)?;
            let inline_end = position.tar.checked_add(record.run).ok_or_else(bad)?;
            let record_end = inline_end.checked_add(record.len).ok_or_else(bad)?;
            if at < position.tar {
                return Err(bad());
            }
            if at < inline_end {
                let to = end.min(inline_end);
                let from = position.inline.checked_add(at - position.tar).ok_or_else(bad)?;
                self.inline(cursor, from, to - at, &mut emit)?;
                at = to;
            }
            if at < end && at < record_end {
                let to = end.min(record_end);
                let (offset, len) = (at - inline_end, to - at);
                let piece = match record.named {
                    Named::Blob(id) => Piece::Blob { id, offset, len },
                    Named::Recipe(number) => Piece::Recipe { number, offset, len },
                    Named::Hole => Piece::Hole { len },
                };
                emit(piece, &[])?;
                at = to;
            }
            let last = record.named == Named::Hole && record.len == 0;
            if last && at < end {
                return Err(bad());
            }
            if at >= record_end && !last {
                let inline = position.inline.checked_add(record.run).ok_or_else(bad)?;
                position = Position { tar: record_end, inline, record: record.next };
            }
        }
        cursor.at = Some(position);
        Ok(())
    }

    /// Where the next data (or hole) begins, from `offset` on; the end of the file if there is none.
    ///
    /// # Errors
    ///
    /// `Corrupt`.
    pub fn seek_data(&self, offset: u64, data: bool) -> Result<u64> {
        let mut position = self.seek(offset);
        while position.tar < self.tar_size {
            let record = self.record(position.record)?;
            let inline_end = position.tar.checked_add(record.run).ok_or_else(bad)?;
            let end = inline_end.checked_add(record.len).ok_or_else(bad)?;
            for (from, to, is_data) in
                [(position.tar, inline_end, true), (inline_end, end, record.named != Named::Hole)]
            {
                if to > offset && to > from && is_data == data {
                    return Ok(from.max(offset).min(self.tar_size));
                }
            }
            if record.named == Named::Hole && record.len == 0 {
                break;
            }
            position = Position { tar: end, inline: 0, record: record.next };
        }
        Ok(self.tar_size)
    }

    /// Bytes that are no hole.
    ///
    /// # Errors
    ///
    /// `Corrupt`.
    pub fn data_size(&self) -> Result<u64> {
        let (mut at, mut data) = (0, 0u64);
        loop {
            let record = self.record(at)?;
            data = data.checked_add(record.run).ok_or_else(bad)?;
            match record.named {
                Named::Hole if record.len == 0 => return Ok(data),
                Named::Hole => {}
                _ => data = data.checked_add(record.len).ok_or_else(bad)?,
            }
            at = record.next;
        }
    }

    fn seek(&self, offset: u64) -> Position {
        let (mut low, mut high) = (0, self.points);
        while high - low > 1 {
            let middle = low.midpoint(high);
            if self.point(middle).tar <= offset { low = middle } else { high = middle }
        }
        self.point(low)
    }

    fn record(&self, at: usize) -> Result<Record> {
        let records = &self.raw[self.records.0..self.records.1];
        let mut rest = records.get(at..).ok_or_else(bad)?;
        let run = take_varint(&mut rest).ok_or_else(bad)?;
        let code = take_varint(&mut rest).ok_or_else(bad)?;
        let len = take_varint(&mut rest).ok_or_else(bad)?;
        let named = match (BlobId::try_from(code), code.checked_sub(NESTED).map(u32::try_from)) {
            (Ok(0), _) => Named::Hole,
            (Ok(id), _) => Named::Blob(id),
            (_, Some(Ok(number))) => Named::Recipe(number),
            _ => return Err(bad()),
        };
        Ok(Record { next: records.len() - rest.len(), run, named, len })
    }

    fn inline(
        &self,
        cursor: &mut Cursor,
        from: u64,
        len: u64,
        emit: &mut impl FnMut(Piece, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let (mut at, end) = (from, from.checked_add(len).filter(|e| *e <= self.inline_size).ok_or_else(bad)?);
        if let Some((tree, begin)) = self.apart {
            let range = begin.checked_add(from).zip(begin.checked_add(end)).ok_or_else(bad)?;
            let found = usize::try_from(range.0).ok().zip(usize::try_from(range.1).ok());
            let bytes =
                found.map(|(from, to)| tree.inline().map(|all| all.get(from..to))).transpose()?.flatten();
            return emit(Piece::Inline, bytes.ok_or_else(bad)?);
        }
        while at < end {
            let n = usize::try_from(at / FRAME as u64).map_err(|_| bad())?;
            if cursor.frame.as_ref().is_none_or(|(have, _)| *have != n) {
                let mut unpacked = cursor.frame.take().map(|(_, v)| v).unwrap_or_default();
                self.unpack(n, &mut unpacked)?;
                cursor.frame = Some((n, unpacked));
            }
            let (_, bytes) = cursor.frame.as_ref().expect("just unpacked");
            let skip = (at % FRAME as u64) as usize;
            let take = (bytes.len().checked_sub(skip).ok_or_else(bad)? as u64).min(end - at);
            if take == 0 {
                return Err(bad());
            }
            emit(Piece::Inline, &bytes[skip..skip + take as usize])?;
            at += take;
        }
        Ok(())
    }

    fn unpack(&self, n: usize, out: &mut Vec<u8>) -> Result<()> {
        let lengths_at = HEAD + self.points * POINT;
        let length = |i: usize| {
            let at = lengths_at + i * 8;
            usize::try_from(u64::from_le_bytes(self.raw[at..at + 8].try_into().expect("eight bytes")))
                .unwrap_or(usize::MAX)
        };
        if n >= self.frames {
            return Err(bad());
        }
        let mut from = self.records.1;
        for i in 0..n {
            from = from.checked_add(length(i)).ok_or_else(bad)?;
        }
        let to = from.checked_add(length(n)).ok_or_else(bad)?;
        let packed = self.raw.get(from..to).ok_or_else(bad)?;
        out.resize(FRAME, 0);
        let len = zstd::bulk::decompress_to_buffer(packed, out).map_err(|_| bad())?;
        out.truncate(len);
        Ok(())
    }
}

fn bad() -> Error {
    Error::Corrupt { what: "a tar recipe".into(), why: "it contradicts itself".into() }
}

fn compression(e: std::io::Error) -> Error {
    Error::Io { doing: "compress", path: "a tar recipe".into(), source: e }
}
