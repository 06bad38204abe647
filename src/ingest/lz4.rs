//! Frames of lz4: the current ones, and the legacy ones of `lz4 -l` and of kernels.
//!
//! Source: lz4, doc/lz4_Frame_format.md, and programs/lz4io.c for the order of frames.

use std::io::Read;

use crate::error::{Error, Result};
use crate::formats::tar::Source;
use crate::ingest::pipe::PipeReader;
use crate::ingest::sink::{OUT, Sink};

/// The magic of a legacy frame.
pub(super) const LEGACY: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
/// The size of an unpacked legacy block, in bytes. The last block may be smaller.
const LEGACY_BLOCK: usize = 8 << 20;
/// The largest packed legacy block in bytes (`LZ4_COMPRESSBOUND`). A larger number is the magic of the
/// next frame.
const LEGACY_PACKED_MAX: usize = LEGACY_BLOCK + LEGACY_BLOCK / 255 + 16;

/// Notes whether the input ended within a frame, because the decoder takes that for the frame's end.
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

/// Unpacks one frame. `at_border` is told whether the input may end where the decoder now waits for
/// more, because a legacy frame has no end mark.
///
/// Returns false if nobody reads the output any more.
///
/// # Errors
///
/// `BadCompression`, `Truncated`; `OverLimit` by the ratio.
pub(super) fn decode(
    input: &mut PipeReader,
    sink: &mut Sink<'_>,
    at_border: impl FnMut(bool),
) -> Result<bool> {
    if input.peek(LEGACY.len(), |_| {}).starts_with(&LEGACY) {
        return decode_legacy(input, sink, at_border);
    }
    let begin = input.taken;
    let mut noting = EndNoting { input, ended: false };
    let mut decoder = lz4_flex::frame::FrameDecoder::new(&mut noting);
    loop {
        let mut out = vec![0u8; OUT];
        match decoder.read(&mut out) {
            Ok(0) => break,
            Ok(n) => {
                out.truncate(n);
                if !sink.push(out, decoder.get_ref().input.taken)? {
                    return Ok(false);
                }
            }
            Err(e) => {
                drop(decoder);
                return Err(if noting.ended {
                    cut(noting.input.taken)
                } else {
                    damaged(begin, &e.to_string())
                });
            }
        }
    }
    drop(decoder);
    if noting.ended { Err(cut(noting.input.taken)) } else { Ok(true) }
}

/// Unpacks a legacy frame: its blocks go on until the input ends or another frame begins.
fn decode_legacy(
    input: &mut PipeReader,
    sink: &mut Sink<'_>,
    mut at_border: impl FnMut(bool),
) -> Result<bool> {
    input.consume(LEGACY.len());
    loop {
        let head = input.peek(4, |have| at_border(have == 0));
        let Some(size) = head.first_chunk::<4>().map(|size| u32::from_le_bytes(*size) as usize) else {
            return if head.is_empty() { Ok(true) } else { Err(cut(input.taken)) };
        };
        if size > LEGACY_PACKED_MAX {
            return Ok(true);
        }
        at_border(false);
        let begin = input.taken;
        input.consume(4);
        // The buffered input may be far larger than the block, so only the block is copied.
        let mut packed = vec![0; size];
        if let Err(e) = input.read_exact(&mut packed) {
            return Err(if e.kind() == std::io::ErrorKind::UnexpectedEof {
                cut(input.taken)
            } else {
                damaged(begin, &e.to_string())
            });
        }
        let mut out = vec![0; LEGACY_BLOCK];
        let n = lz4_flex::block::decompress_into(&packed, &mut out)
            .map_err(|e| damaged(begin, &e.to_string()))?;
        for piece in out[..n].chunks(OUT) {
            if !sink.push(piece.to_vec(), input.taken)? {
                return Ok(false);
            }
        }
    }
}

fn cut(at: u64) -> Error {
    Error::Truncated { at, why: "the lz4 frame has no end".into() }
}

fn damaged(at: u64, why: &str) -> Error {
    Error::BadCompression { codec: "lz4", at, why: why.into() }
}
