//! ls .imgfs/by-digest/sha256:...: versions by the digest of rootfs.tar or of their upload.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::fs::names::text_of;
use crate::fs::node::{Link, NodeId};
use crate::fs::places::Place;
use crate::fs::{Caller, DirEntry, ImageFs};

/// `.imgfs/by-digest`: a link for each digest of a version's content or upload.
pub struct ByDigest;

/// The shortest prefix of a digest that finds a version, if only one digest begins with it.
const PREFIX_MIN: usize = 12;

impl Place for ByDigest {
    fn lookup(&self, fs: &ImageFs, caller: Caller, _directory: NodeId, name: &[u8]) -> Result<NodeId> {
        let missing = || Error::NotFound { what: format!("version with digest {}", text_of(name)) };
        let prefix = std::str::from_utf8(name).map_err(|_| missing())?;
        let prefix = prefix.strip_prefix("sha256:").unwrap_or(prefix);
        if prefix.len() < PREFIX_MIN || !prefix.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(missing());
        }
        let model = fs.store.catalog.read();
        let mut found: Vec<(&str, u32)> = Vec::new();
        for version in fs.shown_to(caller, &model) {
            found.extend(
                version.facts.sha256s().filter(|d| d.starts_with(prefix)).map(|d| (d, version.serial)),
            );
        }
        found.sort_unstable();
        let (first, serial) = *found.first().ok_or_else(missing)?;
        if found.iter().any(|(digest, _)| *digest != first) {
            let candidates = found.iter().map(|(d, _)| &d[..d.len().min(16)]).collect::<Vec<_>>().join(", ");
            return Err(Error::Ambiguous { prefix: prefix.into(), candidates });
        }
        Ok(NodeId::Link(Link::DeepVersion(serial)))
    }

    fn list(&self, fs: &ImageFs, caller: Caller, _directory: NodeId, all: &mut Vec<DirEntry>) -> Result<()> {
        let model = fs.store.catalog.read();
        // The oldest version of those with the same content wins.
        let mut seen = BTreeMap::new();
        for version in fs.shown_to(caller, &model) {
            for digest in version.facts.sha256s() {
                seen.entry(digest.to_owned()).or_insert(version.serial);
            }
        }
        all.extend(seen.into_iter().map(|(digest, serial)| {
            DirEntry::new(digest, NodeId::Link(Link::DeepVersion(serial)), libc::S_IFLNK)
        }));
        Ok(())
    }

    fn changes(&self) -> bool {
        false
    }
}
