//! imgfs repack, of a version's tree: at rest it is compressed against the tree of another version, so that
//! the next version's costs what differs.
//!
//! ```text
//! head      PACKED_TREE_MAGIC; the digest in the version's row; of each part: bytes u64, bytes in the file u64, digest;
//!           the version whose tree is the base, 32 bytes, zeros for none; the digest of the base's part 0; zeros up to
//!           256 bytes, the last 32 of which are BLAKE3 of those before
//! part 0    the tree as tree/mod.rs has it, without the inline bytes of its recipes: they have no frames
//! part 1    the inline bytes of all recipes, by their numbers
//! ```
//!
//! Each part is in zstd, against the same part of the base, which has no base itself. The base of a version
//! that is purged stays as long as a tree needs it, under a name that no row knows (invariant 11).

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::base::delta;
use crate::base::digest::Digest;
use crate::error::{Error, Result};
use crate::format::PACKED_TREE_MAGIC;

/// zstd's level for trees at rest.
const LEVEL: i32 = 19;
const HEAD_LEN: usize = 256;
const NAME_LEN: usize = 32;
/// Bytes of a part and its base together: what zstd's window, and memory, may hold.
const MOST: u64 = 1 << 30;

/// A packed tree's file.
pub(super) struct Packed {
    path: PathBuf,
    file: File,
    head: Head,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Head {
    digest: Digest,
    parts: [Part; 2],
    base: Option<(String, Digest)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    size: u64,
    packed: u64,
    digest: Digest,
}

impl Head {
    fn to_bytes(&self) -> [u8; HEAD_LEN] {
        let mut out = PACKED_TREE_MAGIC.to_vec();
        out.extend_from_slice(&self.digest.0);
        for part in &self.parts {
            out.extend_from_slice(&part.size.to_le_bytes());
            out.extend_from_slice(&part.packed.to_le_bytes());
            out.extend_from_slice(&part.digest.0);
        }
        let (name, digest) =
            self.base.as_ref().map_or(("", Digest([0; 32])), |(name, digest)| (name.as_str(), *digest));
        out.extend_from_slice(name.as_bytes());
        out.resize(16 + 32 + 2 * 48 + NAME_LEN, 0);
        out.extend_from_slice(&digest.0);
        out.resize(HEAD_LEN - 32, 0);
        let mut whole = [0; HEAD_LEN];
        whole[..HEAD_LEN - 32].copy_from_slice(&out);
        whole[HEAD_LEN - 32..].copy_from_slice(blake3::hash(&out).as_bytes());
        whole
    }

    fn parse(bytes: &[u8; HEAD_LEN]) -> Option<Head> {
        let (content, check) = bytes.split_at(HEAD_LEN - 32);
        if blake3::hash(content).as_bytes() != check || &content[..16] != PACKED_TREE_MAGIC {
            return None;
        }
        let number = |at: usize| content[at..at + 8].try_into().map(u64::from_le_bytes).ok();
        let digest = |at: usize| content[at..at + 32].try_into().map(Digest).ok();
        let part =
            |at: usize| Some(Part { size: number(at)?, packed: number(at + 8)?, digest: digest(at + 16)? });
        let name = content[144..144 + NAME_LEN].split(|b| *b == 0).next()?;
        let name =
            std::str::from_utf8(name).ok().filter(|name| name.bytes().all(|b| b.is_ascii_alphanumeric()))?;
        let base = (!name.is_empty()).then(|| name.to_owned()).zip(digest(144 + NAME_LEN));
        Some(Head { digest: digest(16)?, parts: [part(48)?, part(96)?], base })
    }
}

impl Packed {
    /// Opens a packed tree.
    ///
    /// # Errors
    ///
    /// `Corrupt` if its head is damaged, or it is cut off or too long; `Io`.
    pub fn open(path: &Path) -> Result<Packed> {
        let file = File::open(path).map_err(Error::io("open", path))?;
        let mut head = [0; HEAD_LEN];
        let read = file.read_exact_at(&mut head, 0);
        let corrupt = |why: &str| Error::Corrupt { what: path.display().to_string(), why: why.into() };
        let head =
            read.ok().and_then(|()| Head::parse(&head)).ok_or_else(|| corrupt("its head is damaged"))?;
        if head.parts.iter().any(|part| part.size.saturating_add(part.packed) > MOST) {
            return Err(corrupt("a part is too long"));
        }
        // What is missing is found before it is read: then it is damage of the tree, and a copy heals it.
        let len = file.metadata().map_err(Error::io("stat", path))?.len();
        if len < HEAD_LEN as u64 + head.parts.iter().map(|part| part.packed).sum::<u64>() {
            return Err(corrupt("it is cut off"));
        }
        Ok(Packed { path: path.to_owned(), file, head })
    }

    /// The digest of the tree as it was written.
    pub fn digest(&self) -> Digest {
        self.head.digest
    }

    /// The version whose tree this one needs.
    pub fn base(&self) -> Option<&str> {
        self.head.base.as_ref().map(|(name, _)| name.as_str())
    }

    /// Unpacks and checks a part: 0 the tree, 1 the inline bytes.
    ///
    /// # Errors
    ///
    /// `Corrupt`, `Io`, also of the base.
    pub fn part(&self, number: usize) -> Result<Vec<u8>> {
        let base = match &self.head.base {
            None => Vec::new(),
            Some((name, digest)) => {
                let base = find(self.path.parent().unwrap_or(&self.path), name)?;
                if base.head.base.is_some() || base.head.parts[0].digest != *digest {
                    return Err(self.corrupt(&format!(
                        "{} is no longer what it was packed against",
                        base.path.display()
                    )));
                }
                base.part(number)?
            }
        };
        let part = &self.head.parts[number];
        let from = HEAD_LEN as u64 + if number == 0 { 0 } else { self.head.parts[0].packed };
        let mut packed = vec![0; part.packed as usize];
        self.file.read_exact_at(&mut packed, from).map_err(Error::io("read", &self.path))?;
        let content = delta::unpack(&packed, &base, part.size as usize, Vec::new());
        let content = content.map_err(|why| self.corrupt(&format!("it cannot be unpacked: {why}")))?;
        if blake3::hash(&content) == part.digest.0 {
            Ok(content)
        } else {
            Err(self.corrupt("its content is damaged"))
        }
    }

    fn corrupt(&self, why: &str) -> Error {
        Error::Corrupt { what: self.path.display().to_string(), why: why.into() }
    }
}

/// The packed tree of a version, there or gone.
fn find(dir: &Path, version: &str) -> Result<Packed> {
    match Packed::open(&dir.join(format!("{version}.tree"))) {
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            Packed::open(&dir.join(format!("{version}.base")))
        }
        other => other,
    }
}

/// Packs the parts of the tree with this digest: against the first of `bases` that is packed, or its own
/// base, if that is worth it. Gives the file's content, and the name of the base.
///
/// # Errors
///
/// `Io`.
pub(super) fn pack(
    digest: Digest,
    parts: [Vec<u8>; 2],
    bases: &[PathBuf],
) -> Result<(Vec<u8>, Option<String>)> {
    let fits = |base: &Packed| (0..2).all(|n| base.head.parts[n].size + (parts[n].len() as u64) < MOST);
    let open = |path: &PathBuf| {
        let packed = Packed::open(path).ok()?;
        match packed.base() {
            Some(base) => find(path.parent()?, base).ok(),
            None => Some(packed),
        }
    };
    // A damaged one is no base.
    let unpack = |base: Packed| Some(([base.part(0).ok()?, base.part(1).ok()?], base));
    if let Some(([tree, inline], base)) = bases.iter().find_map(open).filter(fits).and_then(unpack) {
        let name = base.path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let named = (name.to_owned(), base.head.parts[0].digest);
        let packed = assemble(digest, &parts, [&tree, &inline], Some(named))?;
        if (packed.len() as u64) < base.head.parts.iter().map(|part| part.packed).sum::<u64>() / 2 {
            return Ok((packed, Some(name.to_owned())));
        }
    }
    // A tree that differs much is the next ones' base.
    Ok((assemble(digest, &parts, [&[], &[]], None)?, None))
}

fn assemble(
    digest: Digest,
    parts: &[Vec<u8>; 2],
    bases: [&[u8]; 2],
    base: Option<(String, Digest)>,
) -> Result<Vec<u8>> {
    let packed = [delta::pack(&parts[0], bases[0], LEVEL)?, delta::pack(&parts[1], bases[1], LEVEL)?];
    let part = |n: usize| Part {
        size: parts[n].len() as u64,
        packed: packed[n].len() as u64,
        digest: Digest(*blake3::hash(&parts[n]).as_bytes()),
    };
    let mut out = Head { digest, parts: [part(0), part(1)], base }.to_bytes().to_vec();
    packed.iter().for_each(|bytes| out.extend_from_slice(bytes));
    Ok(out)
}

/// How the file of a tree lies, as far as its head says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Form {
    /// As it was written, or unreadable.
    Loose,
    /// Packed alone: it may be the base of others.
    Alone,
    /// Packed against the tree of this version.
    Against(String),
}

/// The form of the tree in `path`.
pub fn form_of(path: &Path) -> Form {
    match Packed::open(path) {
        Err(_) => Form::Loose,
        Ok(packed) => packed.base().map_or(Form::Alone, |base| Form::Against(base.to_owned())),
    }
}

/// A file without a name beside a tree's: what is unpacked is not kept in memory, the system may put it
/// aside.
pub(super) fn nameless(path: &Path, content: &[u8]) -> Result<File> {
    let failed = Error::io("create a file beside", path);
    let mut file = tempfile::tempfile_in(path.parent().unwrap_or(path)).map_err(failed)?;
    file.write_all(content).map_err(Error::io("write a file beside", path))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_back_and_damage_is_seen() {
        let part = |n| Part { size: n, packed: n / 2, digest: Digest([n as u8; 32]) };
        let base = Some(("80pfcaq0ko3hk50l8tc7".to_owned(), Digest([9; 32])));
        for base in [base, None] {
            let head = Head { digest: Digest([7; 32]), parts: [part(100), part(50)], base };
            let bytes = head.to_bytes();
            assert_eq!(Head::parse(&bytes), Some(head));
            for n in 0..HEAD_LEN {
                let mut damaged = bytes;
                damaged[n] ^= 1;
                assert_eq!(Head::parse(&damaged), None, "byte {n}");
            }
        }
    }
}
