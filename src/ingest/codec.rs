//! Compressed uploads: which compression by magic, and its decoding, member after member.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use flate2::FlushDecompress;
use xz2::stream::{Action, MtStreamBuilder};
use zstd::stream::raw::Operation;

use crate::error::{Error, Result};
use crate::ingest::pipe::{Pipe, PipeReader};
use crate::tar::Source;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    Gzip,
    Bzip2,
    Xz,
    Zstd,
    Lz4,
}

impl Codec {
    /// Bytes of a stream's beginning that `detect` needs.
    pub const MAGIC_LEN: usize = 6;

    /// The compression that these bytes begin, if any.
    pub fn detect(head: &[u8]) -> Option<Codec> {
        match head {
            [0x1f, 0x8b, 8, ..] => Some(Codec::Gzip),
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Some(Codec::Bzip2),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(Codec::Xz),
            // A frame, or a skippable frame before one.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Some(Codec::Zstd),
            [0x04, 0x22, 0x4d, 0x18, ..] => Some(Codec::Lz4),
            _ => None,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Codec::Gzip => "gzip",
            Codec::Bzip2 => "bzip2",
            Codec::Xz => "xz",
            Codec::Zstd => "zstd",
            Codec::Lz4 => "lz4",
        }
    }
}

/// Bytes unpacked at a time.
const OUT: usize = 256 * 1024;
/// The largest window a zstd frame may ask for: 2^28 bytes.
const ZSTD_WINDOW_LOG: u32 = 28;
/// Memory an xz stream may ask for; above half of it, it is decoded by one thread.
const XZ_MEMORY: u64 = 512 << 20;

/// What a member's decoder did with some input.
struct Step {
    used: usize,
    made: usize,
    ended: bool,
}

/// A decoder of one member: takes input, gives output, says when the member has ended and its checks held.
trait Member {
    fn run(&mut self, input: &[u8], out: &mut [u8]) -> std::result::Result<Step, String>;
}

struct GzipMember(flate2::Decompress);
struct Bzip2Member(bzip2::Decompress);
struct XzMember(xz2::stream::Stream);
struct ZstdMember(zstd::stream::raw::Decoder<'static>);

impl Member for GzipMember {
    fn run(&mut self, input: &[u8], out: &mut [u8]) -> std::result::Result<Step, String> {
        let (before_in, before_out) = (self.0.total_in(), self.0.total_out());
        let status = self.0.decompress(input, out, FlushDecompress::None).map_err(|e| e.to_string())?;
        let (used, made) = (self.0.total_in() - before_in, self.0.total_out() - before_out);
        Ok(Step { used: used as usize, made: made as usize, ended: status == flate2::Status::StreamEnd })
    }
}

impl Member for Bzip2Member {
    fn run(&mut self, input: &[u8], out: &mut [u8]) -> std::result::Result<Step, String> {
        let (before_in, before_out) = (self.0.total_in(), self.0.total_out());
        let status = self.0.decompress(input, out).map_err(|e| e.to_string())?;
        let (used, made) = (self.0.total_in() - before_in, self.0.total_out() - before_out);
        Ok(Step { used: used as usize, made: made as usize, ended: status == bzip2::Status::StreamEnd })
    }
}

impl Member for XzMember {
    fn run(&mut self, input: &[u8], out: &mut [u8]) -> std::result::Result<Step, String> {
        let (before_in, before_out) = (self.0.total_in(), self.0.total_out());
        let status = self.0.process(input, out, Action::Run).map_err(|e| e.to_string())?;
        let (used, made) = (self.0.total_in() - before_in, self.0.total_out() - before_out);
        Ok(Step { used: used as usize, made: made as usize, ended: status == xz2::stream::Status::StreamEnd })
    }
}

impl Member for ZstdMember {
    fn run(&mut self, input: &[u8], out: &mut [u8]) -> std::result::Result<Step, String> {
        let status = self.0.run_on_buffers(input, out).map_err(|e| e.to_string())?;
        // 0 remaining means: the frame has ended, its checksum held, and all of it was given out.
        Ok(Step { used: status.bytes_read, made: status.bytes_written, ended: status.remaining == 0 })
    }
}

fn member(codec: Codec) -> Result<Box<dyn Member>> {
    let failed = |e: String| Error::BadCompression { codec: codec.name(), at: 0, why: e };
    Ok(match codec {
        Codec::Gzip => Box::new(GzipMember(flate2::Decompress::new_gzip(15))),
        Codec::Bzip2 => Box::new(Bzip2Member(bzip2::Decompress::new(false))),
        Codec::Xz => {
            let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(8)) as u32;
            let stream = MtStreamBuilder::new()
                .threads(threads)
                .memlimit_threading(XZ_MEMORY / 2)
                .memlimit_stop(XZ_MEMORY)
                .decoder()
                .map_err(|e| failed(e.to_string()))?;
            Box::new(XzMember(stream))
        }
        Codec::Zstd => {
            let mut decoder = zstd::stream::raw::Decoder::new().map_err(|e| failed(e.to_string()))?;
            let window = zstd::stream::raw::DParameter::WindowLogMax(ZSTD_WINDOW_LOG);
            decoder.set_parameter(window).map_err(|e| failed(e.to_string()))?;
            Box::new(ZstdMember(decoder))
        }
        Codec::Lz4 => unreachable!("lz4 has no push decoder: see decode_lz4"),
    })
}

/// Unpacks all members from `input` into `output`, and ends it.
///
/// `at_end` is true while the stream could end here: every member so far came to its verified end.
/// Errors: `BadCompression`, `Truncated`.
pub fn decode(codec: Codec, input: &mut PipeReader, output: &Pipe, at_end: &AtomicBool) -> Result<()> {
    let mut members = 0u64;
    loop {
        // The first member's magic was seen; between members the stream may end at any time.
        let head = input.peek(Codec::MAGIC_LEN, |have| at_end.store(members > 0 && have == 0, Ordering::Release));
        if head.is_empty() {
            output.end();
            return Ok(());
        }
        if members > 0 && head[0] == 0 {
            // Padding: xz has it in fours, tapes and old gzip users in blocks.
            let zeros = head.iter().take_while(|b| **b == 0).count();
            input.consume(zeros);
            continue;
        }
        let known = Codec::detect(head) == Some(codec);
        at_end.store(false, Ordering::Release);
        if !known {
            let why = "something else follows its end".into();
            return Err(Error::BadCompression { codec: codec.name(), at: input.taken, why });
        }
        let whole = if codec == Codec::Lz4 { decode_lz4(input, output)? } else { decode_member(codec, input, output)? };
        if !whole {
            return Ok(());
        }
        members += 1;
    }
}

/// Unpacks one member. False if nobody reads the output any more.
fn decode_member(codec: Codec, input: &mut PipeReader, output: &Pipe) -> Result<bool> {
    let mut member = member(codec)?;
    let mut out = vec![0u8; OUT];
    let mut filled = 0;
    let mut pumped = false;
    loop {
        let (bytes, dry) = match input.fill_now() {
            Some(bytes) => (bytes, false),
            // A threaded decoder may still hold output: let it give it before waiting for more input.
            None if !pumped => (&[][..], true),
            None => (input.fill()?, false),
        };
        let at_input_end = !dry && bytes.is_empty();
        let step = member.run(bytes, &mut out[filled..]).map_err(|why| Error::BadCompression {
            codec: codec.name(),
            at: input.taken,
            why,
        })?;
        input.consume(step.used);
        filled += step.made;
        pumped = dry && step.made == 0;
        if at_input_end && !step.ended && step.made == 0 {
            return Err(Error::Truncated { at: input.taken, why: format!("the {} stream has no end", codec.name()) });
        }
        // Give out what is there when full, at the end, and before waiting.
        if filled == OUT || step.ended || (pumped && filled > 0) {
            out.truncate(filled);
            if filled > 0 && !output.push(Arc::new(std::mem::replace(&mut out, vec![0u8; OUT]))) {
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

/// Notes whether the input ended while a frame was read: the decoder takes that for the frame's end.
struct EndNoting<'r> {
    input: &'r mut PipeReader,
    ended: bool,
}

impl Read for EndNoting<'_> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let n = self.input.read(out)?;
        self.ended |= n == 0 && !out.is_empty();
        Ok(n)
    }
}

fn decode_lz4(input: &mut PipeReader, output: &Pipe) -> Result<bool> {
    let begin = input.taken;
    let mut noting = EndNoting { input, ended: false };
    let mut decoder = lz4_flex::frame::FrameDecoder::new(&mut noting);
    loop {
        let mut out = vec![0u8; OUT];
        match decoder.read(&mut out) {
            Ok(0) => break,
            Ok(n) => {
                out.truncate(n);
                if !output.push(Arc::new(out)) {
                    return Ok(false);
                }
            }
            Err(e) => {
                drop(decoder);
                if noting.ended {
                    return Err(Error::Truncated { at: noting.input.taken, why: "the lz4 frame has no end".into() });
                }
                return Err(Error::BadCompression { codec: "lz4", at: begin, why: e.to_string() });
            }
        }
    }
    drop(decoder);
    if noting.ended {
        return Err(Error::Truncated { at: noting.input.taken, why: "the lz4 frame has no end".into() });
    }
    Ok(true)
}
