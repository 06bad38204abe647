//! ls .imgfs/by-uuid/UUID: versions by the uuid of their manifest.

use crate::error::{Error, Result};
use crate::fs::names::text_of;
use crate::fs::node::{Link, NodeId};
use crate::fs::places::Place;
use crate::fs::{Caller, DirEntry, ImageFs};

/// `.imgfs/by-uuid`: a link for each version that came with a manifest.
pub struct ByUuid;

impl Place for ByUuid {
    fn lookup(&self, fs: &ImageFs, caller: Caller, _directory: NodeId, name: &[u8]) -> Result<NodeId> {
        let model = fs.store.catalog.read();
        let found = fs.shown_to(caller, &model).find(|v| !name.is_empty() && v.facts.uuid.as_bytes() == name);
        found
            .map(|v| NodeId::Link(Link::DeepVersion(v.serial)))
            .ok_or_else(|| Error::NotFound { what: text_of(name) })
    }

    fn list(&self, fs: &ImageFs, caller: Caller, _directory: NodeId, all: &mut Vec<DirEntry>) -> Result<()> {
        let model = fs.store.catalog.read();
        for version in fs.shown_to(caller, &model).filter(|v| !v.facts.uuid.is_empty()) {
            let link = NodeId::Link(Link::DeepVersion(version.serial));
            all.push(DirEntry::new(version.facts.uuid.as_str(), link, libc::S_IFLNK));
        }
        Ok(())
    }

    fn changes(&self) -> bool {
        false
    }
}
