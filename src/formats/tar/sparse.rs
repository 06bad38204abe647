//! Sparse files: where the bytes in the archive lie in the file. GNU's four formats and star's, one result.
//!
//! Source: GNU tar manual, "Storing Sparse Files"; GNU tar, src/tar.h, `struct star_in_header`.

use crate::formats::tar::BLOCK;
use crate::formats::tar::header::{Header, Style, number};
use crate::formats::tar::pax::{Extensions, decimal};

/// What `Limits::pieces` is met with.
pub const TOO_MANY: &str = "a sparse map with too many pieces";

/// Pieces of a sparse file, (offset, length), and its whole size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Map {
    pub pieces: Vec<(u64, u64)>,
    pub size: u64,
}

impl Map {
    /// Checks the order, the sum and the limit, and drops empty pieces.
    ///
    /// `packed` is the number of bytes in the archive.
    ///
    /// # Errors
    ///
    /// Why the map is refused, in words: pieces overlap, go past the end, or hold more than `packed` bytes.
    pub fn check(mut self, packed: u64) -> Result<Map, &'static str> {
        let (mut end, mut sum) = (0u64, 0u64);
        for (offset, len) in &self.pieces {
            if *offset < end {
                return Err("a sparse map whose pieces overlap");
            }
            end = offset.checked_add(*len).ok_or("a sparse map with a number that is too large")?;
            sum += len;
        }
        if end > self.size || self.size > i64::MAX.cast_unsigned() {
            return Err("a sparse map that goes past the end of its file");
        }
        // More than that was seen in the wild; GNU tar passes over it.
        if sum > packed {
            return Err("a sparse map that does not add up to the bytes in the archive");
        }
        self.pieces.retain(|(_, len)| *len > 0);
        Ok(self)
    }
}

/// Where the headers of the old formats have their maps: GNU's, and star's.
pub struct Old {
    /// Four pieces.
    pub pieces_at: usize,
    /// Whether blocks with 21 more follow.
    pub more_at: usize,
    size_at: usize,
}

impl Old {
    pub fn of(style: Style) -> Option<Old> {
        match style {
            Style::Gnu => Some(Old { pieces_at: 386, more_at: 482, size_at: 483 }),
            Style::Star => Some(Old { pieces_at: 356, more_at: 355, size_at: 452 }),
            Style::Old | Style::Posix => None,
        }
    }

    /// The whole size.
    ///
    /// # Errors
    ///
    /// Why the field holds none, in words.
    pub fn size(&self, header: &Header<'_>) -> Result<u64, &'static str> {
        u64::try_from(number(header.field(self.size_at, 12))?).map_err(|_| "a negative size")
    }
}

/// The pieces in an old header or one of its extension blocks.
///
/// # Errors
///
/// Which number is none, or negative, in words. The pieces before it are taken.
pub fn old_pieces(fields: &[u8], pieces: &mut Vec<(u64, u64)>) -> Result<(), &'static str> {
    for piece in fields.chunks_exact(24) {
        if piece[0] == 0 {
            break;
        }
        let (offset, len) = (number(&piece[..12])?, number(&piece[12..])?);
        let unsigned = |n: i64| u64::try_from(n).map_err(|_| "a negative number in a sparse map");
        pieces.push((unsigned(offset)?, unsigned(len)?));
    }
    Ok(())
}

/// The map that pax records 0.0 and 0.1 give; nothing if the file is not sparse that way.
///
/// # Errors
///
/// `TOO_MANY` for more pieces than `limit`; else what is wrong with the records, in words.
pub fn from_records(extensions: &Extensions, limit: usize) -> Result<Option<Map>, &'static str> {
    let pieces = match extensions.get("GNU.sparse.map") {
        Some(list) => {
            let numbers = list.split(|b| *b == b',').map(decimal).collect::<Option<Vec<u64>>>();
            let numbers = numbers
                .filter(|n| n.len().is_multiple_of(2))
                .ok_or("a sparse map that is no list of numbers")?;
            numbers.chunks_exact(2).map(|p| (p[0], p[1])).collect()
        }
        None if !extensions.sparse_pieces.is_empty()
            || extensions.get("GNU.sparse.numblocks") == Some(b"0") =>
        {
            extensions.sparse_pieces.clone()
        }
        None => return Ok(None),
    };
    if pieces.len() > limit {
        return Err(TOO_MANY);
    }
    let size = extensions.get("GNU.sparse.size").and_then(decimal).ok_or("a sparse file without its size")?;
    Ok(Some(Map { pieces, size }))
}

/// Reads the map that format 1.0 puts before the content: decimal lines, in whole blocks.
#[derive(Default)]
pub struct MapReader {
    number: Option<u64>,
    count: Option<u64>,
    numbers: Vec<u64>,
}

impl MapReader {
    /// Takes a block; true when the map is complete.
    ///
    /// # Errors
    ///
    /// `TOO_MANY` for more pieces than `limit`; else what is wrong with the map, in words.
    pub fn take(&mut self, block: &[u8; BLOCK], limit: usize) -> Result<bool, &'static str> {
        for byte in block {
            match byte {
                b'0'..=b'9' => {
                    let digit = u64::from(byte - b'0');
                    let value = self.number.unwrap_or(0).checked_mul(10).and_then(|n| n.checked_add(digit));
                    self.number = Some(value.ok_or("a sparse map with a number that is too large")?);
                }
                b'\n' => {
                    let value = self.number.take().ok_or("a sparse map with an empty line")?;
                    match self.count {
                        None if value > limit as u64 => return Err(TOO_MANY),
                        None => self.count = Some(value),
                        Some(_) => self.numbers.push(value),
                    }
                    if self.count.is_some_and(|c| self.numbers.len() as u64 == c * 2) {
                        return Ok(true);
                    }
                }
                _ => return Err("a sparse map that is no list of numbers"),
            }
        }
        Ok(false)
    }

    pub fn pieces(&self) -> Vec<(u64, u64)> {
        self.numbers.chunks_exact(2).map(|p| (p[0], p[1])).collect()
    }
}
