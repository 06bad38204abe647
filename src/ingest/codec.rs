//! Compressed uploads: detects the compression by its magic, and decodes member after member.

use std::sync::atomic::{AtomicBool, Ordering};

use flate2::FlushDecompress;
use parking_lot::{Mutex, MutexGuard};
use xz2::stream::{Action, MtStreamBuilder};
use zstd::stream::raw::Operation;

use crate::error::{Error, Result};
use crate::formats::tar::{Limits, Source};
use crate::ingest::lz4;
use crate::ingest::pipe::{Pipe, PipeReader};
use crate::ingest::sink::{OUT, Sink};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    Gzip,
    Bzip2,
    Xz,
    Lzma,
    Zstd,
    Lz4,
}

impl Codec {
    /// How many bytes of a stream's beginning `detect` needs.
    pub const MAGIC_LEN: usize = 13;

    /// The compression with this beginning, if any.
    pub fn detect(head: &[u8]) -> Option<Codec> {
        match head {
            [0x1f, 0x8b, 8, ..] => Some(Codec::Gzip),
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Some(Codec::Bzip2),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(Codec::Xz),
            // lzma has no magic. It begins with properties, a dictionary size as lzma tools choose it, and a
            // size that is unknown or below 2^40.
            [0..225, a, b, c, d, size @ ..] if is_lzma(u32::from_le_bytes([*a, *b, *c, *d]), size) => {
                Some(Codec::Lzma)
            }
            // A frame, or a skippable frame before one.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Some(Codec::Zstd),
            [0x04, 0x22, 0x4d, 0x18, ..] => Some(Codec::Lz4),
            _ if head.starts_with(&lz4::LEGACY) => Some(Codec::Lz4),
            _ => None,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Codec::Gzip => "gzip",
            Codec::Bzip2 => "bzip2",
            Codec::Xz => "xz",
            Codec::Lzma => "lzma",
            Codec::Zstd => "zstd",
            Codec::Lz4 => "lz4",
        }
    }
}

fn is_lzma(dictionary: u32, size: &[u8]) -> bool {
    // The dictionary size must be 2^n or 2^n + 2^(n-1), and at least 4 KiB.
    let top = 1u32.checked_shl(dictionary.checked_ilog2().unwrap_or(0)).unwrap_or(0);
    let plausible = dictionary >= 1 << 12 && (dictionary == top || dictionary == top | top >> 1);
    plausible
        && size.first_chunk::<8>().is_some_and(|s| *s == [0xff; 8] || (s[5..] == [0; 3] && s[..5] != [0; 5]))
}

/// A decoder that needs this much memory or more is a *large* one. There is only one of them at a time.
pub(super) const LARGE: u64 = 256 << 20;

/// How much memory an xz or lzma stream may ask for, within the limit. Above `LARGE` one thread decodes
/// it.
const XZ_MEMORY: u64 = 512 << 20;

/// Held by the only large decoder of the process. Otherwise twenty uploads could ask for twenty times
/// the window.
static LARGE_DECODER: Mutex<()> = Mutex::new(());

/// What a member's decoder did with some input.
struct Step {
    used: usize,
    made: usize,
    ended: bool,
}

/// Why a decoder cannot go on.
enum Fault {
    Damaged(String),
    /// It would need more memory than is allowed.
    Memory,
}

/// A decoder of one member. It takes input, gives output, and says when the member has ended and its
/// checks have passed.
trait Member {
    fn run(&mut self, input: &[u8], out: &mut [u8]) -> std::result::Result<Step, Fault>;
}

struct GzipMember(flate2::Decompress);
struct Bzip2Member(bzip2::Decompress);
struct XzMember(xz2::stream::Stream);
struct ZstdMember(zstd::stream::raw::Decoder<'static>);

impl Member for GzipMember {
    fn run(&mut self, input: &[u8], out: &mut [u8]) -> std::result::Result<Step, Fault> {
        let (before_in, before_out) = (self.0.total_in(), self.0.total_out());
        let status = self
            .0
            .decompress(input, out, FlushDecompress::None)
            .map_err(|e| Fault::Damaged(e.to_string()))?;
        let (used, made) = (self.0.total_in() - before_in, self.0.total_out() - before_out);
        Ok(Step { used: used as usize, made: made as usize, ended: status == flate2::Status::StreamEnd })
    }
}

impl Member for Bzip2Member {
    fn run(&mut self, input: &[u8], out: &mut [u8]) -> std::result::Result<Step, Fault> {
        let (before_in, before_out) = (self.0.total_in(), self.0.total_out());
        let status = self.0.decompress(input, out).map_err(|e| Fault::Damaged(e.to_string()))?;
        let (used, made) = (self.0.total_in() - before_in, self.0.total_out() - before_out);
        Ok(Step { used: used as usize, made: made as usize, ended: status == bzip2::Status::StreamEnd })
    }
}

impl Member for XzMember {
    fn run(&mut self, input: &[u8], out: &mut [u8]) -> std::result::Result<Step, Fault> {
        let (before_in, before_out) = (self.0.total_in(), self.0.total_out());
        let status = self.0.process(input, out, Action::Run).map_err(|e| match e {
            xz2::stream::Error::MemLimit => Fault::Memory,
            e => Fault::Damaged(e.to_string()),
        })?;
        let (used, made) = (self.0.total_in() - before_in, self.0.total_out() - before_out);
        Ok(Step { used: used as usize, made: made as usize, ended: status == xz2::stream::Status::StreamEnd })
    }
}

impl Member for ZstdMember {
    fn run(&mut self, input: &[u8], out: &mut [u8]) -> std::result::Result<Step, Fault> {
        let status = self.0.run_on_buffers(input, out).map_err(|e| Fault::Damaged(e.to_string()))?;
        // 0 remaining means that the frame has ended, its checksum was right, and all output was given.
        Ok(Step { used: status.bytes_read, made: status.bytes_written, ended: status.remaining == 0 })
    }
}

/// The largest power of two that is no more than `bytes`.
pub(super) fn log2(bytes: u64) -> u32 {
    bytes.max(1).ilog2()
}

/// The window that a zstd frame with this beginning asks for. Source: RFC 8878, 3.1.1.1.
fn zstd_window(head: &[u8]) -> u64 {
    let [0x28, 0xb5, 0x2f, 0xfd, descriptor, rest @ ..] = head else { return 0 };
    let single_segment = descriptor & 0x20 != 0;
    if !single_segment {
        let Some(window) = rest.first() else { return 0 };
        let base = 1u64 << (10 + u32::from(window >> 3));
        return base + base / 8 * u64::from(window & 7);
    }
    // Without a window, the content's size counts. It follows the dictionary's id.
    let at = [0, 1, 2, 4][usize::from(descriptor & 3)];
    let size = |len: usize| {
        let bytes = rest.get(at..at + len).unwrap_or_default();
        bytes.iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b))
    };
    match descriptor >> 6 {
        0 => size(1),
        1 => size(2) + 256,
        2 => size(4),
        _ => size(8),
    }
}

fn over_memory(codec: Codec, limits: &Limits) -> Error {
    let what = format!("the memory to decode this {} stream", codec.name());
    Error::OverLimit { what, limit: format!("{} bytes (mount -o max_window=)", limits.window) }
}

/// Checks that a decoder may use `need` bytes of memory. Returns the permit of a large one.
fn permit(codec: Codec, need: u64, limits: &Limits) -> Result<Option<MutexGuard<'static, ()>>> {
    if need > limits.window {
        return Err(over_memory(codec, limits));
    }
    if need <= LARGE {
        return Ok(None);
    }
    // This does not wait, because the other upload may take as long as its writer likes.
    LARGE_DECODER.try_lock().map(Some).ok_or(Error::DecoderBusy { codec: codec.name(), need })
}

fn member(codec: Codec, limits: &Limits) -> Result<Box<dyn Member>> {
    let failed = |e: String| Error::BadCompression { codec: codec.name(), at: 0, why: e };
    Ok(match codec {
        Codec::Gzip => Box::new(GzipMember(flate2::Decompress::new_gzip(15))),
        Codec::Bzip2 => Box::new(Bzip2Member(bzip2::Decompress::new(false))),
        Codec::Xz => {
            let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(8)) as u32;
            let stream = MtStreamBuilder::new()
                .threads(threads)
                .memlimit_threading(LARGE)
                .memlimit_stop(limits.window.min(XZ_MEMORY))
                .decoder()
                .map_err(|e| failed(e.to_string()))?;
            Box::new(XzMember(stream))
        }
        Codec::Lzma => {
            let memory = limits.window.min(XZ_MEMORY);
            Box::new(XzMember(
                xz2::stream::Stream::new_lzma_decoder(memory).map_err(|e| failed(e.to_string()))?,
            ))
        }
        Codec::Zstd => {
            let mut decoder = zstd::stream::raw::Decoder::new().map_err(|e| failed(e.to_string()))?;
            let window = zstd::stream::raw::DParameter::WindowLogMax(log2(limits.window).clamp(10, 31));
            decoder.set_parameter(window).map_err(|e| failed(e.to_string()))?;
            Box::new(ZstdMember(decoder))
        }
        Codec::Lz4 => unreachable!("lz4 has no push decoder: see lz4.rs"),
    })
}

/// Unpacks all members from `input` into `output`, and ends it.
///
/// `found` is the codec by the first bytes. It is corrected if later bytes show another one.
/// `at_end` is true while the stream could end here, because every member so far came to its verified
/// end.
///
/// # Errors
///
/// `BadCompression`, `Truncated`.
pub fn decode(
    found: &Mutex<Codec>,
    input: &mut PipeReader,
    output: &Pipe,
    limits: &Limits,
    at_end: &AtomicBool,
) -> Result<()> {
    let mut codec = *found.lock();
    let (mut members, mut padding) = (0u64, 0u64);
    let mut sink = Sink { output, made: 0, ratio: limits.ratio };
    let mut large = None;
    loop {
        // Between members the stream may end at any time, if it may end after the padding so far.
        if members > 0 {
            let fits = may_end(codec, padding);
            let head = input.peek(1, |_| at_end.store(fits, Ordering::Release));
            let zeros = head.iter().take_while(|b| **b == 0).count();
            if zeros > 0 && is_padded(codec) {
                input.consume(zeros);
                padding += zeros as u64;
                continue;
            }
            if !fits {
                let why = format!("{padding} zero bytes follow its end, which is no multiple of 4");
                return Err(Error::BadCompression { codec: codec.name(), at: input.taken, why });
            }
        }
        let idle = |have| at_end.store(members > 0 && have == 0, Ordering::Release);
        let enough = match members {
            0 => Codec::MAGIC_LEN,
            // The magic of a legacy lz4 frame alone is an empty frame.
            _ if input.peek(lz4::LEGACY.len(), idle).starts_with(&lz4::LEGACY) => lz4::LEGACY.len(),
            _ => NEXT_LEN,
        };
        let head = input.peek(enough, idle);
        if head.is_empty() {
            output.end();
            return Ok(());
        }
        if let Some(len) = skippable(head) {
            at_end.store(false, Ordering::Release);
            if !skip(input, 8 + len)? {
                return Err(Error::Truncated { at: input.taken, why: "a skippable frame is cut off".into() });
            }
            continue;
        }
        // zstd and lz4 have the same skippable frames. The first other frame shows which of the two it is.
        if members == 0 && codec == Codec::Zstd && Codec::detect(head) == Some(Codec::Lz4) {
            codec = Codec::Lz4;
            *found.lock() = codec;
        }
        let known = Codec::detect(head) == Some(codec);
        at_end.store(false, Ordering::Release);
        if !known {
            let why = "something else follows its end".into();
            return Err(Error::BadCompression { codec: codec.name(), at: input.taken, why });
        }
        if codec == Codec::Zstd {
            let window = zstd_window(input.peek(ZSTD_HEADER, |_| {}));
            if window > LARGE && large.is_none() || window > limits.window {
                large = permit(codec, window, limits)?;
            }
        }
        let whole = match codec {
            Codec::Lz4 => lz4::decode(input, &mut sink, |border| at_end.store(border, Ordering::Release))?,
            _ => decode_member(codec, input, &mut sink, limits)?,
        };
        if !whole {
            return Ok(());
        }
        (members, padding) = (members + 1, 0);
    }
}

/// Whether the tool of the codec takes zeros after a member for padding. Tapes and old users of gzip
/// pad to blocks, xz to multiples of four.
fn is_padded(codec: Codec) -> bool {
    matches!(codec, Codec::Gzip | Codec::Bzip2 | Codec::Xz)
}

/// Whether a stream may end after this many bytes of padding. Source: the .xz file format, 2.2, Stream
/// Padding.
fn may_end(codec: Codec, padding: u64) -> bool {
    codec != Codec::Xz || padding.is_multiple_of(4)
}

/// The length of the skippable frame with this beginning (the same for zstd and lz4). Source: RFC 8878,
/// 3.1.2.
fn skippable(head: &[u8]) -> Option<u64> {
    let [0x50..=0x5f, 0x2a, 0x4d, 0x18, a, b, c, d, ..] = *head else { return None };
    Some(u64::from(u32::from_le_bytes([a, b, c, d])))
}

/// Skips `len` bytes of the input. False if the input ends before.
fn skip(input: &mut PipeReader, mut len: u64) -> Result<bool> {
    while len > 0 {
        let have = input.fill()?.len() as u64;
        if have == 0 {
            return Ok(false);
        }
        let take = have.min(len);
        input.consume(take as usize);
        len -= take;
    }
    Ok(true)
}

/// How many bytes tell another member, or a skippable frame, from garbage.
const NEXT_LEN: usize = 8;
/// The longest header of a zstd frame, in bytes.
const ZSTD_HEADER: usize = 18;

/// Unpacks one member. False if nobody reads the output any more.
fn decode_member(codec: Codec, input: &mut PipeReader, sink: &mut Sink<'_>, limits: &Limits) -> Result<bool> {
    let mut member = member(codec, limits)?;
    let mut out = vec![0u8; OUT];
    let mut filled = 0;
    let mut pumped = false;
    loop {
        let (bytes, dry) = match input.fill_now() {
            Some(bytes) => (bytes, false),
            // A threaded decoder may still hold output. It must give that before this waits for more input.
            None if !pumped => (&[][..], true),
            None => (input.fill()?, false),
        };
        let at_input_end = !dry && bytes.is_empty();
        let step = match member.run(bytes, &mut out[filled..]) {
            Ok(step) => step,
            Err(Fault::Damaged(why)) => {
                return Err(Error::BadCompression { codec: codec.name(), at: input.taken, why });
            }
            Err(Fault::Memory) => return Err(over_memory(codec, limits)),
        };
        input.consume(step.used);
        filled += step.made;
        pumped = dry && step.made == 0;
        if at_input_end && !step.ended && step.made == 0 {
            return Err(Error::Truncated {
                at: input.taken,
                why: format!("the {} stream has no end", codec.name()),
            });
        }
        // Output is passed on when the buffer is full, at the end, and before waiting.
        if filled == OUT || step.ended || (pumped && filled > 0) {
            out.truncate(filled);
            if filled > 0 && !sink.push(std::mem::replace(&mut out, vec![0u8; OUT]), input.taken)? {
                return Ok(false);
            }
            out.resize(OUT, 0);
            filled = 0;
        }
        if step.ended {
            return Ok(true);
        }
    }
}
