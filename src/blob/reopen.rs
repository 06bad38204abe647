//! Reads content again while its upload is under way: layers, metadata, a squashfs.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use crate::base::digest::{BlobId, Content};
use crate::blob::BlobStore;
use crate::blob::buffer::ReadBuf;
use crate::blob::writer::{Fresh, Writer};
use crate::error::{Error, Result};

impl Writer {
    /// Opens content of this upload, or content that it shares with the store, to read it again.
    ///
    /// # Errors
    ///
    /// `Io`; `Corrupt` for what no blob holds.
    pub fn open(&mut self, content: Content) -> Result<ContentReader> {
        let from = match content {
            Content::Known(id) => From::Store { store: self.store.clone(), id, buf: ReadBuf::default() },
            Content::Fresh(n) => {
                let Fresh { record, staged, .. } = self.fresh.get(n as usize).ok_or_else(no_content)?;
                let (offset, staged) = (record.offset, *staged);
                let path = match (staged, &mut self.segment) {
                    (Some(staged), _) => self.object_path(staged),
                    (None, Some(segment)) => {
                        segment.write_buffer()?;
                        segment.path.clone()
                    }
                    (None, None) => return Err(no_content()),
                };
                let file = File::open(&path).map_err(Error::io("open", &path))?;
                From::Staged { file, path, base: if staged.is_some() { 0 } else { offset } }
            }
            Content::Recipe(_) | Content::Hole => return Err(no_content()),
        };
        let size = match content {
            Content::Fresh(n) => self.fresh[n as usize].record.size,
            Content::Known(id) => self.store.record(id)?.size,
            _ => 0,
        };
        Ok(ContentReader { from, at: 0, size })
    }

    /// Opens content that was stored in pieces (offset, content, length) for random reads, while more is
    /// being stored.
    ///
    /// # Errors
    ///
    /// `Io`; `Corrupt` for what lies in no segment.
    pub fn open_pieces(&mut self, pieces: impl Iterator<Item = (u64, Content, u64)>) -> Result<PieceReader> {
        let segment = match &mut self.segment {
            Some(segment) => {
                segment.write_buffer()?;
                Some((
                    File::open(&segment.path).map_err(Error::io("open", &segment.path))?,
                    segment.path.clone(),
                ))
            }
            None => None,
        };
        let place = |(from, content, len): (u64, Content, u64)| {
            let at = match content {
                Content::Known(id) => At::Store(id),
                Content::Hole => At::Hole,
                Content::Fresh(n) => match self.fresh.get(n as usize) {
                    Some(Fresh { record, staged: None, .. }) => At::Segment(record.offset),
                    _ => return Err(no_content()),
                },
                Content::Recipe(_) => return Err(no_content()),
            };
            Ok((from, len, at))
        };
        let pieces = pieces.map(place).collect::<Result<Vec<_>>>()?;
        Ok(PieceReader {
            store: self.store.clone(),
            segment,
            pieces,
            at: 0,
            piece: None,
            buf: ReadBuf::default(),
        })
    }
}

/// Reads content while its upload is under way.
pub struct ContentReader {
    from: From,
    at: u64,
    pub size: u64,
}

enum From {
    Store { store: Arc<BlobStore>, id: BlobId, buf: ReadBuf },
    Staged { file: File, path: PathBuf, base: u64 },
}

impl ContentReader {
    /// Reads from `offset` on. It fills less than `out` only at the end.
    ///
    /// # Errors
    ///
    /// `Io`; `Corrupt` if a blob of the store is damaged.
    pub fn read_at(&mut self, offset: u64, out: &mut [u8]) -> Result<usize> {
        let len = usize::try_from(self.size.saturating_sub(offset)).unwrap_or(usize::MAX).min(out.len());
        match &mut self.from {
            From::Store { store, id, buf } => {
                let bytes = store.read(*id, offset, len, buf)?;
                out[..bytes.len()].copy_from_slice(bytes);
                Ok(bytes.len())
            }
            From::Staged { file, path, base } => {
                read_staged(file, &mut out[..len], *base + offset).map_err(Error::io("read", path))?;
                Ok(len)
            }
        }
    }
}

impl std::io::Read for ContentReader {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let n = self.read_at(self.at, out).map_err(|e| std::io::Error::other(e.to_string()))?;
        self.at += n as u64;
        Ok(n)
    }
}

/// Random reads of content that was stored in pieces.
pub struct PieceReader {
    store: Arc<BlobStore>,
    segment: Option<(File, PathBuf)>,
    /// In ascending order, without gaps.
    pieces: Vec<(u64, u64, At)>,
    at: u64,
    /// The piece that was read last, with its number.
    piece: Option<(usize, Vec<u8>)>,
    buf: ReadBuf,
}

enum At {
    Store(BlobId),
    Segment(u64),
    Hole,
}

impl PieceReader {
    /// The size of all pieces together, in bytes.
    pub fn size(&self) -> u64 {
        self.pieces.last().map_or(0, |(from, len, _)| from + len)
    }

    fn load(&mut self, n: usize) -> Result<Vec<u8>> {
        let (_, len, at) = &self.pieces[n];
        let len = usize::try_from(*len).map_err(|_| no_content())?;
        match (at, &self.segment) {
            (At::Store(id), _) => Ok(self.store.read(*id, 0, len, &mut self.buf)?.to_vec()),
            (At::Segment(offset), Some((file, path))) => {
                let mut bytes = vec![0; len];
                read_staged(file, &mut bytes, *offset).map_err(Error::io("read", path))?;
                Ok(bytes)
            }
            _ => Err(no_content()),
        }
    }
}

impl std::io::Read for PieceReader {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let n = self.pieces.partition_point(|(from, len, _)| from + len <= self.at);
        let Some((from, len, at)) = self.pieces.get(n) else { return Ok(0) };
        let skip = self.at - from;
        let take = usize::try_from(len - skip).unwrap_or(usize::MAX).min(out.len());
        if let At::Hole = at {
            out[..take].fill(0);
        } else {
            if self.piece.as_ref().is_none_or(|(have, _)| *have != n) {
                let bytes = self.load(n).map_err(|e| std::io::Error::other(e.to_string()))?;
                self.piece = Some((n, bytes));
            }
            let bytes =
                self.piece.as_ref().and_then(|(_, bytes)| bytes.get(skip as usize..skip as usize + take));
            out[..take].copy_from_slice(bytes.ok_or(std::io::ErrorKind::UnexpectedEof)?);
        }
        self.at += take as u64;
        Ok(take)
    }
}

impl std::io::Seek for PieceReader {
    fn seek(&mut self, to: std::io::SeekFrom) -> std::io::Result<u64> {
        let found = match to {
            std::io::SeekFrom::Start(at) => Some(at),
            std::io::SeekFrom::Current(by) => self.at.checked_add_signed(by),
            std::io::SeekFrom::End(by) => self.size().checked_add_signed(by),
        };
        self.at = found.ok_or(std::io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

/// Fills `out` from a staged file, with zeros past its end, because a hole at the end is not written
/// yet.
fn read_staged(file: &File, out: &mut [u8], at: u64) -> std::io::Result<()> {
    let mut have = 0;
    while have < out.len() {
        match file.read_at(&mut out[have..], at + have as u64) {
            Ok(0) => break,
            Ok(n) => have += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    out[have..].fill(0);
    Ok(())
}

fn no_content() -> Error {
    Error::Corrupt { what: "an upload".into(), why: "it names content that it does not hold".into() }
}
