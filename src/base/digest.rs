//! Content addresses: BLAKE3 of a whole file, and the chaining values that let a part of it be checked alone.
//!
//! BLAKE3 is a tree. A blob over 64 KiB also keeps the chaining value of each 64 KiB group (its
//! *outline*). A read of any range checks its groups, and the outline itself merges to the digest.
//! Nothing is hashed twice for this.

use std::fmt;

use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};
use serde::{Deserialize, Serialize};

/// How many bytes of content one chaining value covers: a power of two of BLAKE3's 1 KiB chunks.
pub const GROUP: usize = 64 * 1024;
/// Bytes of a chaining value.
pub const CV_LEN: usize = 32;

/// The address of a blob.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(pub [u8; 32]);

impl Digest {
    pub fn of(content: &[u8]) -> Digest {
        Digest(*blake3::hash(content).as_bytes())
    }

    pub fn hex(&self) -> String {
        hex(&self.0)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.hex()
    }
}

impl TryFrom<String> for Digest {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Digest, &'static str> {
        let mut digest = [0; 32];
        let digits = text.as_bytes().chunks_exact(2);
        if text.len() != 64 {
            return Err("a digest has 64 hex digits");
        }
        for (byte, pair) in digest.iter_mut().zip(digits) {
            let pair = std::str::from_utf8(pair).map_err(|_| "a digest is hex")?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| "a digest is hex")?;
        }
        Ok(Digest(digest))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.hex())
    }
}

/// A blob's number in its store. Numbers are dense, begin at 1, and are never used twice.
pub type BlobId = u32;

/// Content on its way into a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// A blob that the store has.
    Known(BlobId),
    /// The n-th new blob of an upload.
    Fresh(u32),
    /// The output of the n-th recipe of the same version.
    Recipe(u32),
    /// Zeros.
    Hole,
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|b| [b >> 4, b & 15]).map(|d| char::from(DIGITS[usize::from(d)])).collect()
}

/// The chaining values of a blob's groups, in order. Empty for content of at most one group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outline(pub Vec<ChainingValue>);

impl Outline {
    /// How many values content of `size` bytes has.
    pub fn len_for(size: u64) -> u64 {
        if size <= GROUP as u64 { 0 } else { size.div_ceil(GROUP as u64) }
    }

    /// The digest to which these values merge. There must be at least two.
    fn root(&self) -> Digest {
        let (left, right) = split(&self.0);
        Digest(*merge_subtrees_root(&merge(left), &merge(right), Mode::Hash).as_bytes())
    }

    /// Whether these are the values of the content that `digest` names.
    pub fn belongs_to(&self, digest: &Digest) -> bool {
        self.0.len() >= 2 && self.root() == *digest
    }

    /// Whether `group`, the bytes of group number `index`, is what was stored.
    pub fn group_matches(&self, index: usize, group: &[u8]) -> bool {
        self.0.get(index).is_some_and(|cv| *cv == group_cv(index, group))
    }
}

/// BLAKE3's tree is left-full: the left side has the largest power of two of groups that leaves some
/// for the right.
fn split(cvs: &[ChainingValue]) -> (&[ChainingValue], &[ChainingValue]) {
    cvs.split_at(cvs.len().div_ceil(2).next_power_of_two())
}

fn merge(cvs: &[ChainingValue]) -> ChainingValue {
    if let [only] = cvs {
        return *only;
    }
    let (left, right) = split(cvs);
    merge_subtrees_non_root(&merge(left), &merge(right), Mode::Hash)
}

fn group_cv(index: usize, group: &[u8]) -> ChainingValue {
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(index as u64 * GROUP as u64);
    hasher.update(group).finalize_non_root()
}

/// Hashes content of more than one group, group by group.
#[derive(Default)]
pub struct GroupHasher {
    outline: Outline,
}

impl GroupHasher {
    /// Takes the next group: exactly `GROUP` bytes, except for the last one. Returns its chaining value.
    pub fn push(&mut self, group: &[u8]) -> ChainingValue {
        let cv = group_cv(self.outline.0.len(), group);
        self.outline.0.push(cv);
        cv
    }

    /// The digest and outline of the content, which must have more than one group.
    pub fn finish(self) -> (Digest, Outline) {
        (self.outline.root(), self.outline)
    }
}

/// Digest and outline of content in memory.
pub fn hash(content: &[u8]) -> (Digest, Outline) {
    if content.len() <= GROUP {
        return (Digest::of(content), Outline::default());
    }
    let mut hasher = GroupHasher::default();
    for group in content.chunks(GROUP) {
        hasher.push(group);
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_merge_to_the_ordinary_blake3() {
        let content: Vec<u8> = (0..20 * GROUP + 17).map(|i| (i / 7 % 251) as u8).collect();
        for len in [
            0,
            1,
            GROUP - 1,
            GROUP,
            GROUP + 1,
            2 * GROUP,
            3 * GROUP,
            5 * GROUP + 1,
            16 * GROUP,
            content.len(),
        ] {
            let part = &content[..len];
            let (digest, outline) = hash(part);
            assert_eq!(digest, Digest::of(part), "length {len}");
            assert_eq!(outline.0.len() as u64, Outline::len_for(len as u64));
            if len > GROUP {
                assert!(outline.belongs_to(&digest));
                for (i, group) in part.chunks(GROUP).enumerate() {
                    assert!(outline.group_matches(i, group));
                    let mut flipped = group.to_vec();
                    flipped[group.len() / 2] ^= 1;
                    assert!(!outline.group_matches(i, &flipped));
                }
            }
        }
    }
}
