//! One 512-byte header block.
//!
//! Source: POSIX pax, ustar header block; GNU tar manual, "Basic Tar Format"; star's man page, "star.4".

use crate::formats::tar::BLOCK;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Style {
    /// No magic: V7.
    Old,
    /// `ustar\0`: a prefix field.
    Posix,
    /// `ustar  \0`: times and sparse pieces where the prefix would be.
    Gnu,
    /// `ustar\0` and `tar\0` at the end: a shorter prefix, then times.
    Star,
}

pub struct Header<'b>(pub &'b [u8; BLOCK]);

impl<'b> Header<'b> {
    pub fn field(&self, at: usize, len: usize) -> &'b [u8] {
        &self.0[at..at + len]
    }

    /// A field up to its first zero byte.
    pub fn text(&self, at: usize, len: usize) -> &'b [u8] {
        let field = self.field(at, len);
        &field[..field.iter().position(|b| *b == 0).unwrap_or(len)]
    }

    pub fn style(&self) -> Style {
        match (self.field(257, 8), self.field(508, 4)) {
            (b"ustar  \0", _) => Style::Gnu,
            (magic, b"tar\0") if magic.starts_with(b"ustar\0") => Style::Star,
            (magic, _) if magic.starts_with(b"ustar") => Style::Posix,
            _ => Style::Old,
        }
    }

    pub fn typeflag(&self) -> u8 {
        self.0[156]
    }

    /// The name with the prefix that some styles have.
    pub fn path(&self) -> Vec<u8> {
        let name = self.text(0, 100);
        let prefix = match self.style() {
            Style::Posix => self.text(345, 155),
            Style::Star => self.text(345, 131),
            Style::Old | Style::Gnu => b"",
        };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    /// Whether the checksum holds, as the sum of unsigned or (old writers) signed bytes.
    pub fn checksum_holds(&self) -> bool {
        let Ok(claimed) = number(self.field(148, 8)) else { return false };
        let (mut unsigned, mut signed) = (0i64, 0i64);
        for (i, byte) in self.0.iter().enumerate() {
            let byte = if (148..156).contains(&i) { b' ' } else { *byte };
            unsigned += i64::from(byte);
            signed += i64::from(byte.cast_signed());
        }
        claimed == unsigned || claimed == signed
    }
}

/// Reads a numeric field: octal between blanks, or base 256 when the first bit is set.
///
/// # Errors
///
/// Why the field holds no number, in words: it is empty, not octal, or too large.
pub fn number(field: &[u8]) -> Result<i64, &'static str> {
    let (&first, rest) = field.split_first().ok_or("an empty field")?;
    if first & 0x80 != 0 {
        // Base 256, two's complement in all bits but the marker.
        let negative = first & 0x40 != 0;
        let mut value: i128 = if negative { -1 } else { 0 };
        value = value << 6 | i128::from(first & 0x3f);
        for byte in rest {
            value = value << 8 | i128::from(*byte);
            if value > i128::from(i64::MAX) || value < i128::from(i64::MIN) {
                return Err("a number that is too large");
            }
        }
        return i64::try_from(value).map_err(|_| "a number that is too large");
    }
    // AIX begins with a zero byte, which GNU tar passes over.
    let field = if first == 0 { rest } else { field };
    let text = field.strip_suffix(b"\0").unwrap_or(field);
    let end = text.iter().position(|b| *b == 0).unwrap_or(text.len());
    let text = text[..end].trim_ascii();
    let mut value: i64 = 0;
    for digit in text {
        if !(b'0'..=b'7').contains(digit) {
            return Err("a number that is not octal");
        }
        value = value
            .checked_mul(8)
            .and_then(|v| v.checked_add(i64::from(digit - b'0')))
            .ok_or("a number that is too large")?;
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_every_spelling() {
        assert_eq!(number(b"0000644\0"), Ok(0o644));
        assert_eq!(number(b"   644 \0"), Ok(0o644));
        assert_eq!(number(b"644     "), Ok(0o644));
        assert_eq!(number(b"\0\0\0\0\0\0\0\0"), Ok(0));
        assert_eq!(number(b"\x000644\0"), Ok(0o644));
        assert_eq!(number(b"77777777"), Ok(0o77777777));
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]), Ok(1 << 32));
        assert_eq!(number(&[0xff; 12]), Ok(-1));
        assert_eq!(number(&[0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]), Ok(i64::MAX));
        assert!(number(&[0x80, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0]).is_err());
        assert!(number(&[0x8f; 12]).is_err());
        assert!(number(b"0000898\0").is_err());
        assert!(number(b"-000001\0").is_err());
    }
}
