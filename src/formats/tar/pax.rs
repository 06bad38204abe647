//! Extended headers: `LENGTH KEY=VALUE\n` records that replace or add to the next header, or all that follow.
//!
//! Source: POSIX pax, "pax Extended Header".

use std::collections::BTreeMap;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use crate::formats::tar::posix_acl;

/// libarchive writes no padding; others do.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The keys that matter, of one header or of all global ones.
#[derive(Clone, Debug, Default)]
pub struct Extensions {
    records: BTreeMap<Vec<u8>, Vec<u8>>,
    /// GNU sparse 0.0 repeats its keys: offsets and lengths in order.
    pub sparse_pieces: Vec<(u64, u64)>,
}

impl Extensions {
    pub fn get(&self, key: &str) -> Option<&[u8]> {
        self.records.get(key.as_bytes()).map(Vec::as_slice)
    }

    pub fn is_empty(&self) -> bool {
        self.records.is_empty() && self.sparse_pieces.is_empty()
    }

    /// All records whose key begins with `prefix`: the rest of the key, and the value.
    pub fn with_prefix<'s>(&'s self, prefix: &'s str) -> impl Iterator<Item = (&'s [u8], &'s [u8])> {
        let all = self.records.range(prefix.as_bytes().to_vec()..);
        all.map_while(move |(key, value)| Some((key.strip_prefix(prefix.as_bytes())?, value.as_slice())))
    }

    /// Takes the records of an extended header, over what `self` has. An empty value deletes, as POSIX says.
    ///
    /// # Errors
    ///
    /// What is wrong with a record, in words. Those before it are taken.
    pub fn take(&mut self, mut data: &[u8]) -> Result<(), &'static str> {
        let mut offset = None;
        while !data.is_empty() {
            let space = data
                .iter()
                .take(20)
                .position(|b| *b == b' ')
                .ok_or("an extended header record without length")?;
            let len: usize = std::str::from_utf8(&data[..space])
                .ok()
                .filter(|t| !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit()))
                .and_then(|t| t.parse().ok())
                .ok_or("an extended header record whose length is no number")?;
            let record = data.get(space + 1..len).ok_or("an extended header record with a wrong length")?;
            let body = record.strip_suffix(b"\n").ok_or("an extended header record without line end")?;
            let equals = body.iter().position(|b| *b == b'=').ok_or("an extended header record without =")?;
            let (key, value) = (&body[..equals], &body[equals + 1..]);
            if key.is_empty() {
                return Err("an extended header record without key");
            }
            match key {
                b"GNU.sparse.offset" => {
                    offset = Some(decimal(value).ok_or("a sparse offset that is no number")?)
                }
                b"GNU.sparse.numbytes" => {
                    let from = offset.take().ok_or("a sparse length without an offset")?;
                    self.sparse_pieces
                        .push((from, decimal(value).ok_or("a sparse length that is no number")?));
                }
                _ if value.is_empty() && !key.starts_with(b"SCHILY.xattr.") => {
                    self.records.remove(key);
                    // The deletion must also hide a global value.
                    self.records.insert(key.to_vec(), Vec::new());
                }
                _ => {
                    self.records.insert(key.to_vec(), value.to_vec());
                }
            }
            data = &data[len..];
        }
        Ok(())
    }

    /// These over the global ones.
    pub fn over(&self, global: &Extensions) -> Extensions {
        let mut all = global.clone();
        all.records.extend(self.records.iter().map(|(k, v)| (k.clone(), v.clone())));
        all.sparse_pieces.clone_from(&self.sparse_pieces);
        all.records.retain(|key, value| !value.is_empty() || key.starts_with(b"SCHILY.xattr."));
        all
    }
}

/// The xattrs in the spellings of star (raw), libarchive (names URL-encoded, values base64) and, for ACLs, of
/// star again (words). Where an entry has one in two spellings, star's raw one counts.
///
/// # Errors
///
/// In words, that a value of libarchive's is no base64.
pub fn xattrs(all: &Extensions) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, &'static str> {
    let mut found = BTreeMap::new();
    for (key, name) in [
        ("SCHILY.acl.access", &b"system.posix_acl_access"[..]),
        ("SCHILY.acl.default", b"system.posix_acl_default"),
    ] {
        if let Some(value) = all.get(key).and_then(posix_acl::to_xattr) {
            found.insert(name.to_vec(), value);
        }
    }
    for (name, value) in all.with_prefix("LIBARCHIVE.xattr.") {
        let value = BASE64.decode(value).map_err(|_| "an xattr whose value is no base64")?;
        found.insert(percent_decode(name), value);
    }
    found.extend(all.with_prefix("SCHILY.xattr.").map(|(name, value)| (gnu_decode(name), value.to_vec())));
    Ok(found)
}

/// The other way round than `gnu_decode`.
pub fn gnu_encode(name: &[u8]) -> Vec<u8> {
    let encoded = |b: &u8| match b {
        b'=' => b"%3D".to_vec(),
        b'%' => b"%25".to_vec(),
        other => vec![*other],
    };
    name.iter().flat_map(encoded).collect()
}

/// GNU tar writes `=` and `%` in a name as %3D and %25, and nothing else.
fn gnu_decode(name: &[u8]) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::with_capacity(name.len()), name);
    while let [first, tail @ ..] = rest {
        (rest, _) = match rest {
            [b'%', b'3', b'D', tail @ ..] => (tail, out.push(b'=')),
            [b'%', b'2', b'5', tail @ ..] => (tail, out.push(b'%')),
            _ => (tail, out.push(*first)),
        };
    }
    out
}

/// `%2e` and so on; a lone % is itself, as libarchive reads it.
fn percent_decode(text: &[u8]) -> Vec<u8> {
    let hex = |b: Option<&u8>| b.and_then(|b| char::from(*b).to_digit(16));
    let (mut out, mut at) = (Vec::with_capacity(text.len()), 0);
    while let Some(&byte) = text.get(at) {
        match (byte, hex(text.get(at + 1)), hex(text.get(at + 2))) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                at += 3;
            }
            _ => {
                out.push(byte);
                at += 1;
            }
        }
    }
    out
}

/// An unsigned decimal number.
pub fn decimal(text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?;
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) { None } else { text.parse().ok() }
}

/// A time: decimal seconds, perhaps negative, perhaps with a fraction; digits past nanoseconds are dropped.
pub fn time(text: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let (negative, text) = text.strip_prefix('-').map_or((false, text), |t| (true, t));
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if (whole.is_empty() && fraction.is_empty())
        || !(whole.bytes().chain(fraction.bytes())).all(|b| b.is_ascii_digit())
    {
        return None;
    }
    let seconds: i64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let nanos = format!("{fraction:0<9}")[..9].parse::<u32>().ok()?;
    if !negative {
        Some((seconds, nanos))
    } else if nanos == 0 {
        Some((-seconds, 0))
    } else {
        // Nanoseconds count forward: -1.25 is 0.75 after -2.
        Some(((-seconds).checked_sub(1)?, 1_000_000_000 - nanos))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_count_forward() {
        assert_eq!(time(b"1700000000.123456789"), Some((1_700_000_000, 123_456_789)));
        assert_eq!(time(b"5"), Some((5, 0)));
        assert_eq!(time(b"5.1"), Some((5, 100_000_000)));
        assert_eq!(time(b"1.0000000019"), Some((1, 1)));
        assert_eq!(time(b"-1.25"), Some((-2, 750_000_000)));
        assert_eq!(time(b"-3"), Some((-3, 0)));
        for bad in [&b""[..], b".", b"-", b"1e5", b"0x1", b"1.2.3", b"99999999999999999999"] {
            assert_eq!(time(bad), None);
        }
    }

    #[test]
    fn xattrs_in_every_spelling() {
        let mut all = Extensions::default();
        all.take(b"35 LIBARCHIVE.xattr.user.a%2eb=aGk\n").unwrap();
        all.take(b"32 LIBARCHIVE.xattr.user.c=aGk=\n25 SCHILY.xattr.user.c=x\n").unwrap();
        all.take(b"53 SCHILY.acl.access=user::rw-,group::r--,other::---\n").unwrap();
        let found = xattrs(&all).unwrap();
        assert_eq!(found.get(&b"user.a.b"[..]), Some(&b"hi".to_vec()));
        assert_eq!(found.get(&b"user.c"[..]), Some(&b"x".to_vec()));
        assert_eq!(found.get(&b"system.posix_acl_access"[..]).map(Vec::len), Some(28));
        let mut bad = Extensions::default();
        bad.take(b"29 LIBARCHIVE.xattr.user.c=!\n").unwrap();
        assert!(xattrs(&bad).is_err());
    }

    #[test]
    fn records_replace_add_and_delete() {
        let mut global = Extensions::default();
        global.take(b"9 uid=12\n13 path=/a/b\n").unwrap();
        let mut local = Extensions::default();
        local.take(b"8 path=\n19 SCHILY.xattr.a=\n").unwrap();
        let all = local.over(&global);
        assert_eq!((all.get("uid"), all.get("path")), (Some(&b"12"[..]), None));
        assert_eq!(all.with_prefix("SCHILY.xattr.").collect::<Vec<_>>(), [(&b"a"[..], &b""[..])]);
        for bad in [
            &b"0 a=b\n"[..],
            b"6 a=b\n\n",
            b"99 a=b\n",
            b"x a=b\n",
            b"5 ab\n",
            b"5 =b\n",
            b"99999999999999999999 a=b\n",
            b"-6 a=b\n",
        ] {
            assert!(Extensions::default().take(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }
}
