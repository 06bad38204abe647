//! ls .imgfs/by/os/ubuntu: images by what they are, as read-only trees of symlinks.

use std::collections::{BTreeSet, HashSet};

use crate::catalog::Image;
use crate::error::{Error, Result};
use crate::fs::access::READ;
use crate::fs::names::text_of;
use crate::fs::node::{Control, Link, NodeId, number_of};
use crate::fs::places::{Kind, Place};
use crate::fs::{Attr, Caller, DirEntry, ImageFs, stale};
use crate::images::query::{self, Dimension};

/// `.imgfs/by`: a directory for each dimension, in it one for each value, in it a link to each image.
pub struct By;

/// What a directory shows.
enum Shows {
    Dimensions,
    /// The values of a dimension, by its index in `Dimension::ALL`.
    Values(u64),
    /// The images that have a value: the dimension, and a number made of the value.
    Having(u64, u64),
    Unused,
    Deprecated,
}

/// The low bits of a directory's number give its dimension, counted from 1. The rest is the number of
/// the value.
const DIMENSION: u32 = 4;
const UNUSED: u64 = 14;
const DEPRECATED: u64 = 15;

impl Shows {
    fn of(number: u64) -> Shows {
        match (number & ((1 << DIMENSION) - 1), number >> DIMENSION) {
            (0, _) => Shows::Dimensions,
            (UNUSED, _) => Shows::Unused,
            (DEPRECATED, _) => Shows::Deprecated,
            (dimension, 0) => Shows::Values(dimension - 1),
            (dimension, value) => Shows::Having(dimension - 1, value),
        }
    }

    fn node(&self) -> NodeId {
        NodeId::In(
            Kind::By,
            match self {
                Shows::Dimensions => 0,
                Shows::Values(dimension) => dimension + 1,
                Shows::Having(dimension, value) => value << DIMENSION | (dimension + 1),
                Shows::Unused => UNUSED,
                Shows::Deprecated => DEPRECATED,
            },
        )
    }
}

fn dimension(n: u64) -> Result<Dimension> {
    Dimension::ALL.get(n as usize).map(|(_, dimension)| *dimension).ok_or_else(stale)
}

/// The values of a dimension among the images that this user may read.
fn values(fs: &ImageFs, caller: Caller, of: Dimension) -> BTreeSet<String> {
    let model = fs.store.catalog.read();
    let shown =
        model.live_images().filter(|image| image.editable.offer.is_offered() && fs.may(caller, image, READ));
    shown.flat_map(|image| of.values(image).map(str::to_owned)).collect()
}

/// Names and serials of the images that have a value.
fn having(fs: &ImageFs, caller: Caller, of: Dimension, value: u64) -> Vec<(String, u32)> {
    let model = fs.store.catalog.read();
    let value = model.live_images().flat_map(|image| of.values(image)).find(|v| number_of(v) == value);
    let found = value.into_iter().flat_map(|value| query::having(&model, of, value));
    found
        .filter(|image| fs.may(caller, image, READ))
        .map(|image| (image.name.clone(), image.serial))
        .collect()
}

/// The images that nobody uses, or those that are deprecated: names and serials.
fn found_for(fs: &ImageFs, caller: Caller, deprecated: bool) -> Vec<(String, u32)> {
    let unused = if deprecated { HashSet::new() } else { query::unused(&fs.store) };
    let model = fs.store.catalog.read();
    let is = |i: &&Image| if deprecated { i.editable.offer.deprecated } else { unused.contains(&i.serial) };
    let shown = model.live_images().filter(|i| is(i) && fs.may(caller, i, READ));
    shown.map(|image| (image.name.clone(), image.serial)).collect()
}

/// The links of a directory that has links.
fn links(fs: &ImageFs, caller: Caller, shows: &Shows) -> Result<Vec<(String, Link)>> {
    let deeper = |(name, serial)| (name, Link::DeeperImage(serial));
    Ok(match shows {
        Shows::Dimensions | Shows::Values(_) => Vec::new(),
        Shows::Having(of, value) => {
            let found = having(fs, caller, dimension(*of)?, *value).into_iter();
            found.map(|(name, serial)| (name, Link::DeepestImage(serial))).collect()
        }
        Shows::Unused => found_for(fs, caller, false).into_iter().map(deeper).collect(),
        Shows::Deprecated => found_for(fs, caller, true).into_iter().map(deeper).collect(),
    })
}

impl Place for By {
    fn lookup(&self, fs: &ImageFs, caller: Caller, directory: NodeId, name: &[u8]) -> Result<NodeId> {
        let missing = || Error::NotFound { what: text_of(name) };
        let text = std::str::from_utf8(name).map_err(|_| missing())?;
        match Shows::of(directory.number()) {
            Shows::Dimensions if text == "unused" => Ok(Shows::Unused.node()),
            Shows::Dimensions if text == "deprecated" => Ok(Shows::Deprecated.node()),
            Shows::Dimensions => {
                let at = Dimension::ALL.iter().position(|(known, _)| *known == text).ok_or_else(missing)?;
                Ok(Shows::Values(at as u64).node())
            }
            Shows::Values(of) => {
                let kind = dimension(of)?;
                let value = values(fs, caller, kind).into_iter().find(|value| kind.is_called(value, text));
                Ok(Shows::Having(of, number_of(&value.ok_or_else(missing)?)).node())
            }
            shows => {
                let found = links(fs, caller, &shows)?.into_iter().find(|(image, _)| image == text);
                found.map(|(_, link)| NodeId::Link(link)).ok_or_else(missing)
            }
        }
    }

    fn list(&self, fs: &ImageFs, caller: Caller, directory: NodeId, all: &mut Vec<DirEntry>) -> Result<()> {
        let mut add = |name: &str, node: NodeId, format: u32| all.push(DirEntry::new(name, node, format));
        match Shows::of(directory.number()) {
            Shows::Dimensions => {
                for (n, (name, _)) in Dimension::ALL.iter().enumerate() {
                    add(name, Shows::Values(n as u64).node(), libc::S_IFDIR);
                }
                add("unused", Shows::Unused.node(), libc::S_IFDIR);
                add("deprecated", Shows::Deprecated.node(), libc::S_IFDIR);
            }
            Shows::Values(of) => {
                for value in values(fs, caller, dimension(of)?) {
                    if let Some(name) = query::name_of(&value) {
                        add(&name, Shows::Having(of, number_of(&value)).node(), libc::S_IFDIR);
                    }
                }
            }
            shows => links(fs, caller, &shows)?
                .iter()
                .for_each(|(name, link)| add(name, NodeId::Link(*link), libc::S_IFLNK)),
        }
        Ok(())
    }

    fn changes(&self) -> bool {
        false
    }

    fn parent(&self, _fs: &ImageFs, node: NodeId) -> NodeId {
        let number = node.number();
        match Shows::of(number) {
            Shows::Dimensions => NodeId::Control(Control::Dir),
            Shows::Having(dimension, _) => Shows::Values(dimension).node(),
            _ => Shows::Dimensions.node(),
        }
    }

    fn attr(&self, _fs: &ImageFs, node: NodeId, own: Attr) -> Result<Attr> {
        let number = node.number();
        let mode = match Shows::of(number) {
            Shows::Values(_) | Shows::Having(..) => 0o555,
            _ => 0o755,
        };
        Ok(Attr { mode: libc::S_IFDIR | mode, ..own })
    }
}
