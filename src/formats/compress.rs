//! imgfs export FILE.tar.zst, and uploads that can be made again: finds out how a stream was
//! compressed, and compresses it in the same way.
//!
//! A compressor's output depends only on its input, its library and a few parameters. Common parameters
//! are tried until the same bytes come out. Then imgfs keeps the parameters instead of the bytes. (The
//! idea is pristine-tar's.)

use std::io::{self, Write};

use flate2::{Compression, Crc};
use serde::{Deserialize, Serialize};
use xz2::stream::{Check, MtStreamBuilder, Stream};

/// One way to compress.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "codec", rename_all = "lowercase")]
pub enum Method {
    /// `header`: everything before the deflated bytes, such as times and names.
    Gzip {
        level: u32,
        header: Vec<u8>,
    },
    Bzip2 {
        level: u32,
    },
    /// `preset` as in liblzma, with its bit for *extreme*. `block`: the size of a block in bytes, or 0 for
    /// a single block.
    Xz {
        preset: u32,
        check: u8,
        block: u64,
    },
    /// `sized`: the frame gives the size of its content. `threaded`: it is cut into jobs, as `zstd` itself
    /// does.
    Zstd {
        level: i32,
        checksum: bool,
        sized: bool,
        threaded: bool,
    },
}

/// liblzma's bit for `xz -e`.
const EXTREME: u32 = 1 << 31;
/// The dictionary sizes of xz's presets 0 to 9, as powers of two.
const XZ_DICTIONARIES: [u32; 10] = [18, 20, 21, 22, 22, 23, 23, 24, 25, 26];
/// The levels of zstd, the likeliest first.
const ZSTD_LEVELS: [i32; 22] =
    [3, 19, 1, 9, 6, 2, 4, 5, 7, 8, 10, 11, 12, 13, 14, 15, 16, 17, 18, 20, 21, 22];

impl Method {
    /// A good way to compress a new file with this ending. `None` for an ending that means no compression.
    pub fn for_suffix(suffix: &str, level: Option<u32>) -> Option<Method> {
        Some(match suffix {
            "gz" | "tgz" => {
                // Deflate, no flags, no time, Unix. So the same input gives the same bytes each time.
                Method::Gzip {
                    level: level.unwrap_or(6).min(9),
                    header: vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3],
                }
            }
            "bz2" | "tbz2" => Method::Bzip2 { level: level.unwrap_or(9).clamp(1, 9) },
            "xz" | "txz" => {
                Method::Xz { preset: level.unwrap_or(6).min(9), check: Check::Crc64 as u8, block: 24 << 20 }
            }
            "zst" | "tzst" => {
                let level = i32::try_from(level.unwrap_or(3).clamp(1, 19)).unwrap_or(3);
                Method::Zstd { level, checksum: true, sized: true, threaded: true }
            }
            _ => return None,
        })
    }

    /// The ways in which a stream that begins with `head` may have been compressed, the likeliest first.
    pub fn candidates(head: &[u8]) -> Vec<Method> {
        match head {
            [0x1f, 0x8b, 8, ..] => gzip_header(head).map_or(Vec::new(), |len| {
                let levels = match head.get(8) {
                    Some(2) => vec![9],
                    Some(4) => vec![1],
                    _ => vec![6, 5, 7, 8, 4, 3, 2, 9, 1],
                };
                levels.into_iter().map(|level| Method::Gzip { level, header: head[..len].to_vec() }).collect()
            }),
            [b'B', b'Z', b'h', level @ b'1'..=b'9', ..] => {
                vec![Method::Bzip2 { level: u32::from(level - b'0') }]
            }
            [0xfd, b'7', b'z', b'X', b'Z', 0, 0, check, ..] => xz_candidates(head, check & 15),
            [0x28, 0xb5, 0x2f, 0xfd, descriptor, ..] => {
                let (checksum, sized) = (descriptor & 4 != 0, descriptor & 0xe0 != 0);
                let ways =
                    ZSTD_LEVELS.iter().flat_map(|level| [true, false].map(|threaded| (*level, threaded)));
                ways.map(|(level, threaded)| Method::Zstd { level, checksum, sized, threaded }).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Begins to compress `size` bytes into `out`.
    ///
    /// # Errors
    ///
    /// Parameters that the library refuses.
    pub fn begin<W: Write>(&self, size: u64, mut out: W) -> io::Result<Compressor<W>> {
        Ok(match self {
            Method::Gzip { level, header } => {
                out.write_all(header)?;
                let deflate = flate2::write::DeflateEncoder::new(out, Compression::new(*level));
                Compressor::Gzip(deflate, Crc::new())
            }
            Method::Bzip2 { level } => {
                Compressor::Bzip2(bzip2::write::BzEncoder::new(out, bzip2::Compression::new(*level)))
            }
            Method::Xz { preset, check, block } => {
                let check = check_of(*check).ok_or(io::ErrorKind::InvalidInput)?;
                let stream = if *block == 0 {
                    Stream::new_easy_encoder(*preset, check)
                } else {
                    MtStreamBuilder::new()
                        .preset(*preset)
                        .check(check)
                        .block_size(*block)
                        .threads(2)
                        .encoder()
                };
                Compressor::Xz(xz2::write::XzEncoder::new_stream(out, stream?))
            }
            Method::Zstd { level, checksum, sized, threaded } => {
                let mut encoder = zstd::stream::write::Encoder::new(out, *level)?;
                encoder.include_checksum(*checksum)?;
                encoder.include_contentsize(*sized)?;
                if *sized {
                    encoder.set_pledged_src_size(Some(size))?;
                }
                if *threaded {
                    encoder.multithread(2)?;
                }
                Compressor::Zstd(encoder)
            }
        })
    }
}

/// Compresses what is written to it.
pub enum Compressor<W: Write> {
    Gzip(flate2::write::DeflateEncoder<W>, Crc),
    Bzip2(bzip2::write::BzEncoder<W>),
    Xz(xz2::write::XzEncoder<W>),
    Zstd(zstd::stream::write::Encoder<'static, W>),
}

impl<W: Write> Compressor<W> {
    /// Ends the stream, and returns the output.
    ///
    /// # Errors
    ///
    /// Those of the output; what the library fails with.
    pub fn finish(self) -> io::Result<W> {
        match self {
            Compressor::Gzip(encoder, crc) => {
                let mut out = encoder.finish()?;
                out.write_all(&crc.sum().to_le_bytes())?;
                out.write_all(&crc.amount().to_le_bytes())?;
                Ok(out)
            }
            Compressor::Bzip2(encoder) => encoder.finish(),
            Compressor::Xz(encoder) => encoder.finish(),
            Compressor::Zstd(encoder) => encoder.finish(),
        }
    }
}

impl<W: Write> Write for Compressor<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Compressor::Gzip(encoder, crc) => {
                let n = encoder.write(bytes)?;
                crc.update(&bytes[..n]);
                Ok(n)
            }
            Compressor::Bzip2(encoder) => encoder.write(bytes),
            Compressor::Xz(encoder) => encoder.write(bytes),
            Compressor::Zstd(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        // Buffered data comes out when the stream ends.
        Ok(())
    }
}

/// The length of a gzip header in bytes. Source: RFC 1952, 2.3.
fn gzip_header(head: &[u8]) -> Option<usize> {
    let flags = *head.get(3)?;
    let mut at = 10;
    if flags & 4 != 0 {
        at += 2 + usize::from(u16::from_le_bytes([*head.get(at)?, *head.get(at + 1)?]));
    }
    // These flags mean a name and a comment, which end with a zero byte.
    for flag in [8, 16] {
        if flags & flag != 0 {
            at += head.get(at..)?.iter().position(|b| *b == 0)? + 1;
        }
    }
    if flags & 2 != 0 {
        at += 2;
    }
    (at < head.len()).then_some(at)
}

fn check_of(number: u8) -> Option<Check> {
    [Check::None, Check::Crc32, Check::Crc64, Check::Sha256].into_iter().find(|c| *c as u8 == number)
}

/// Source: The .xz File Format, 2.1 and 3.1.
fn xz_candidates(head: &[u8], check: u8) -> Vec<Method> {
    let parsed = (|| {
        let flags = *head.get(13)?;
        let mut rest = head.get(14..)?;
        let mut number = || {
            let mut value = 0u64;
            for shift in (0..63).step_by(7) {
                let (byte, tail) = rest.split_first()?;
                rest = tail;
                value |= u64::from(byte & 0x7f) << shift;
                if byte & 0x80 == 0 {
                    return Some(value);
                }
            }
            None
        };
        if flags & 0x40 != 0 {
            number()?;
        }
        let block = if flags & 0x80 != 0 { number()? } else { 0 };
        // One filter, LZMA2, with one byte of properties.
        if flags & 3 != 0 || number()? != 0x21 || number()? != 1 {
            return None;
        }
        let dictionary = number()?;
        Some((block, dictionary))
    })();
    let Some((block, dictionary)) = parsed else { return Vec::new() };
    // From 2^12 on, the size 2^n has an even code.
    let same = |preset: &u32| u64::from(XZ_DICTIONARIES[*preset as usize] - 12) * 2 == dictionary;
    // 6 is xz's own choice. Of two presets with the same dictionary, the higher one is more common.
    let presets = (0..10u32).rev().filter(same);
    presets
        .flat_map(|preset| [preset, preset | EXTREME])
        .map(|preset| Method::Xz { preset, check, block })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_method_made_is_found_among_its_candidates() {
        let data: Vec<u8> = (0..300_000u32).map(|i| (i / 7 % 251 * (i / 1000)) as u8).collect();
        for method in [
            Method::Gzip { level: 9, header: b"\x1f\x8b\x08\x08\x01\x02\x03\x04\x02\x03name\0".to_vec() },
            Method::Bzip2 { level: 7 },
            Method::Xz { preset: 6, check: 4, block: 0 },
            Method::Xz { preset: 2 | EXTREME, check: 1, block: 100_000 },
            Method::Zstd { level: 9, checksum: true, sized: false, threaded: true },
            Method::Zstd { level: 1, checksum: false, sized: true, threaded: false },
        ] {
            let make = |method: &Method| {
                let mut compressor = method.begin(data.len() as u64, Vec::new()).unwrap();
                compressor.write_all(&data).unwrap();
                compressor.finish().unwrap()
            };
            let made = make(&method);
            let candidates = Method::candidates(&made);
            assert!(candidates.iter().any(|c| make(c) == made), "{method:?}: none of {candidates:?}");
        }
        assert!(Method::candidates(b"").is_empty() && Method::candidates(b"\x1f\x8b\x08\x08").is_empty());
    }
}
