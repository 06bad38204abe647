//! Streams inside an upload: a layer, a metadata tarball. They are unpacked while they are read, within
//! the limits of uploads.

use std::cell::Cell;
use std::io::Read;
use std::rc::Rc;

use crate::error::{Error, Result};
use crate::formats::tar::{Limits, RATIO_FLOOR, Source};
use crate::ingest::codec::{Codec, LARGE, log2};
use crate::ingest::sink::OUT;

/// Unpacks a stream inside another upload, such as a layer, while it is read. The limits of uploads
/// hold for it.
///
/// # Errors
///
/// `Unsupported` for lzma, which nobody packs layers with.
pub fn unpacked<'r>(
    codec: Option<Codec>,
    from: impl Read + 'r,
    limits: &Limits,
) -> Result<Box<dyn Read + 'r>> {
    let Some(codec) = codec else { return Ok(Box::new(from)) };
    let failed = |e: std::io::Error| Error::BadCompression { codec: codec.name(), at: 0, why: e.to_string() };
    let taken = Rc::new(Cell::new(0));
    let from = Counted { from, taken: taken.clone() };
    let inner: Box<dyn Read + 'r> = match codec {
        Codec::Gzip => Box::new(flate2::read::MultiGzDecoder::new(from)),
        Codec::Bzip2 => Box::new(bzip2::read::MultiBzDecoder::new(from)),
        Codec::Xz => {
            let stream =
                xz2::stream::Stream::new_stream_decoder(limits.window.min(LARGE), xz2::stream::CONCATENATED);
            Box::new(xz2::read::XzDecoder::new_stream(from, stream.map_err(|e| failed(e.into()))?))
        }
        Codec::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::new(from).map_err(failed)?;
            decoder.window_log_max(log2(limits.window.min(LARGE)).clamp(10, 31)).map_err(failed)?;
            Box::new(decoder)
        }
        Codec::Lz4 => Box::new(lz4_flex::frame::FrameDecoder::new(from)),
        Codec::Lzma => {
            return Err(Error::Unsupported {
                what: "lzma inside of an image".into(),
                instead: "compress it with gzip, xz or zstd",
            });
        }
    };
    Ok(Box::new(Measured { inner, taken, made: 0, ratio: limits.ratio }))
}

/// Counts the bytes that are read through it.
struct Counted<R> {
    from: R,
    taken: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let n = self.from.read(out)?;
        self.taken.set(self.taken.get() + n as u64);
        Ok(n)
    }
}

/// Ends a stream that unpacks to too many bytes.
struct Measured<'r> {
    inner: Box<dyn Read + 'r>,
    taken: Rc<Cell<u64>>,
    made: u64,
    ratio: u64,
}

impl Read for Measured<'_> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let n = self.inner.read(out)?;
        self.made += n as u64;
        if self.made > RATIO_FLOOR && self.made / self.taken.get().max(1) > self.ratio {
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        Ok(n)
    }
}

/// The error for a stream inside an upload that is too large or damaged.
fn inner_error(e: std::io::Error) -> Error {
    let text = e.to_string();
    if e.kind() == std::io::ErrorKind::FileTooLarge {
        return Error::OverLimit {
            what: "what a stream unpacks to, for each of its bytes,".into(),
            limit: "max_ratio".into(),
        };
    }
    // These are the libraries' own messages about a window or dictionary over the limit.
    if text.contains("too much memory")
        || text.contains("memory limit")
        || text.contains("memory usage limit")
    {
        return Error::OverLimit {
            what: "the memory to decode a stream".into(),
            limit: format!("{LARGE} bytes"),
        };
    }
    Error::BadArchive { at: 0, entry: String::new(), why: text }
}

/// Makes a reader the source of an archive reader.
pub struct ReadSource<R> {
    from: R,
    buffer: Vec<u8>,
    at: usize,
    filled: usize,
}

impl<R: Read> ReadSource<R> {
    pub fn new(from: R) -> ReadSource<R> {
        ReadSource { from, buffer: vec![0; OUT], at: 0, filled: 0 }
    }
}

impl<R: Read> Source for ReadSource<R> {
    fn fill(&mut self) -> Result<&[u8]> {
        while self.at == self.filled {
            match self.from.read(&mut self.buffer) {
                Ok(n) => (self.at, self.filled) = (0, n),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(inner_error(e)),
            }
            if self.filled == 0 {
                break;
            }
        }
        Ok(&self.buffer[self.at..self.filled])
    }

    fn consume(&mut self, n: usize) {
        self.at += n;
    }
}
