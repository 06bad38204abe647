//! ls .imgfs/by/os/ubuntu: images by what they are, as read-only trees of symlinks.

use std::collections::{BTreeSet, HashSet};

use crate::catalog::Image;
use crate::error::{Error, Result};
use crate::fs::access::READ;
use crate::fs::names::text_of;
use crate::fs::node::{Control, Link, NodeId, number_of};
use crate::fs::{Caller, DirEntry, ImageFs, stale};
use crate::images::query::{self, Dimension};

fn dimension(n: u8) -> Result<Dimension> {
    Dimension::ALL.get(usize::from(n)).map(|(_, dimension)| *dimension).ok_or_else(stale)
}

impl ImageFs {
    /// The values that images of a dimension have which this user may read.
    fn values(&self, caller: Caller, of: Dimension) -> BTreeSet<String> {
        let model = self.store.catalog.read();
        let shown = model.live_images().filter(|image| image.editable.offer.is_offered() && self.may(caller, image, READ));
        shown.flat_map(|image| of.values(image).map(str::to_owned)).collect()
    }

    /// Names and serials of the images in a directory of `by`.
    fn images_in(&self, caller: Caller, of: Dimension, value: u64) -> Vec<(String, u32)> {
        let model = self.store.catalog.read();
        let value = model.live_images().flat_map(|image| of.values(image)).find(|v| number_of(v) == value);
        let found = value.into_iter().flat_map(|value| query::having(&model, of, value));
        found.filter(|image| self.may(caller, image, READ)).map(|image| (image.name.clone(), image.serial)).collect()
    }

    pub(super) fn lookup_query(&self, caller: Caller, parent: NodeId, name: &[u8]) -> Result<NodeId> {
        let missing = || Error::NotFound { what: text_of(name) };
        let text = std::str::from_utf8(name).map_err(|_| missing())?;
        match parent {
            NodeId::Control(Control::By) if text == "unused" => Ok(NodeId::Control(Control::Unused)),
            NodeId::Control(Control::By) if text == "deprecated" => Ok(NodeId::Control(Control::Deprecated)),
            NodeId::Control(Control::By) => {
                let at = Dimension::ALL.iter().position(|(known, _)| *known == text).ok_or_else(missing)?;
                Ok(NodeId::Query { dimension: at as u8, value: 0 })
            }
            NodeId::Query { dimension: of, value: 0 } => {
                let kind = dimension(of)?;
                let value =
                    self.values(caller, kind).into_iter().find(|value| kind.is_called(value, text)).ok_or_else(missing)?;
                Ok(NodeId::Query { dimension: of, value: number_of(&value) })
            }
            NodeId::Query { dimension: of, value } => {
                let found = self.images_in(caller, dimension(of)?, value);
                let image = found.into_iter().find(|(image, _)| image == text).ok_or_else(missing)?;
                Ok(NodeId::Link(Link::DeepestImage(image.1)))
            }
            _ => {
                let found = self.found_for(caller, parent).into_iter().find(|(image, _)| image == text);
                found.map(|(_, serial)| NodeId::Link(Link::DeeperImage(serial))).ok_or_else(missing)
            }
        }
    }

    /// The images that nobody uses, or those that are deprecated: names and serials.
    fn found_for(&self, caller: Caller, directory: NodeId) -> Vec<(String, u32)> {
        let deprecated = directory == NodeId::Control(Control::Deprecated);
        let unused = if deprecated { HashSet::new() } else { query::unused(&self.store) };
        let model = self.store.catalog.read();
        let is = |i: &&Image| if deprecated { i.editable.offer.deprecated } else { unused.contains(&i.serial) };
        let shown = model.live_images().filter(|i| is(i) && self.may(caller, i, READ));
        shown.map(|image| (image.name.clone(), image.serial)).collect()
    }

    pub(super) fn list_query(&self, caller: Caller, node: NodeId, all: &mut Vec<DirEntry>) -> Result<()> {
        let mut add = |name: &str, node: NodeId, format: u32| all.push(DirEntry { name: name.as_bytes().to_vec(), node, format });
        match node {
            NodeId::Control(Control::By) => {
                for (n, (name, _)) in Dimension::ALL.iter().enumerate() {
                    add(name, NodeId::Query { dimension: n as u8, value: 0 }, libc::S_IFDIR);
                }
                add("unused", NodeId::Control(Control::Unused), libc::S_IFDIR);
                add("deprecated", NodeId::Control(Control::Deprecated), libc::S_IFDIR);
            }
            NodeId::Query { dimension: of, value: 0 } => {
                for value in self.values(caller, dimension(of)?) {
                    if let Some(name) = query::name_of(&value) {
                        add(&name, NodeId::Query { dimension: of, value: number_of(&value) }, libc::S_IFDIR);
                    }
                }
            }
            NodeId::Query { dimension: of, value } => {
                for (name, serial) in self.images_in(caller, dimension(of)?, value) {
                    add(&name, NodeId::Link(Link::DeepestImage(serial)), libc::S_IFLNK);
                }
            }
            _ => {
                for (name, serial) in self.found_for(caller, node) {
                    add(&name, NodeId::Link(Link::DeeperImage(serial)), libc::S_IFLNK);
                }
            }
        }
        Ok(())
    }
}
