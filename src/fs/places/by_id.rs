//! ls .imgfs/by-id/ID: images and versions by ids that never change.

use crate::error::{Error, Result};
use crate::fs::access::READ;
use crate::fs::names::text_of;
use crate::fs::node::{Link, NodeId};
use crate::fs::places::Place;
use crate::fs::{Caller, DirEntry, ImageFs};

/// `.imgfs/by-id`: a link for each image and each version.
pub struct ById;

impl Place for ById {
    fn lookup(&self, fs: &ImageFs, caller: Caller, _directory: NodeId, name: &[u8]) -> Result<NodeId> {
        let model = fs.store.catalog.read();
        if let Some(image) = model.live_images().find(|i| i.id.as_bytes() == name && fs.may(caller, i, READ))
        {
            return Ok(NodeId::Link(Link::DeepImage(image.serial)));
        }
        let found = fs.shown_to(caller, &model).find(|v| v.id.as_bytes() == name);
        found
            .map(|v| NodeId::Link(Link::DeepVersion(v.serial)))
            .ok_or_else(|| Error::NotFound { what: text_of(name) })
    }

    fn list(&self, fs: &ImageFs, caller: Caller, _directory: NodeId, all: &mut Vec<DirEntry>) -> Result<()> {
        let mut add = |id: &str, link: Link| {
            all.push(DirEntry::new(id, NodeId::Link(link), libc::S_IFLNK));
        };
        let model = fs.store.catalog.read();
        for image in model.live_images().filter(|i| fs.may(caller, i, READ)) {
            add(&image.id, Link::DeepImage(image.serial));
        }
        for version in fs.shown_to(caller, &model) {
            add(&version.id, Link::DeepVersion(version.serial));
        }
        Ok(())
    }

    fn changes(&self) -> bool {
        false
    }
}
