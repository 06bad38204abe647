//! Files that are made when they are read: rootfs.tar and others by recipes, and uploads as they came.
//! Also the message about a version whose content is damaged.

use crate::catalog::Kept;
use crate::error::{Error, Result};
use crate::fs::node::NodeId;
use crate::fs::opened::Opened;
use crate::fs::{Handle, ImageFs, stale};
use crate::images::export::RecipeReaders;
use crate::images::keep;
use crate::tree::{Bytes, NodeIndex, NodeKind, Tree};

/// The part of a version that was to be read.
#[derive(Clone, Copy, Debug)]
pub(in crate::fs) enum Part {
    Node(NodeIndex),
    /// What the recipe with this number makes.
    Made(u32),
    /// The upload as it came.
    Kept,
}

/// Opens what a recipe of a version makes.
pub(super) fn open(fs: &ImageFs, node: NodeId, serial: u32, recipe: u32) -> Result<Opened> {
    let (slot, shown) = (fs.store.tree(serial)?, fs.attr(node)?);
    let handle = Handle::Made { serial, slot, recipe, readers: RecipeReaders::default(), shown };
    Ok(Opened::Cached(fs.open_handle(handle)))
}

/// Opens an upload as it came: its stored pieces, or its content compressed again.
pub(super) fn open_kept(fs: &ImageFs, node: NodeId, serial: u32) -> Result<Opened> {
    let kept = fs.store.catalog.read().versions.get(&serial).and_then(|v| v.facts.kept.clone());
    let handle = match kept.ok_or_else(stale)? {
        Kept::Stored { .. } => {
            let tree = fs.store.kept(serial).map_err(|e| damage(fs, serial, Part::Kept, e))?;
            Handle::Kept { serial, tree, readers: RecipeReaders::default(), shown: fs.attr(node)? }
        }
        Kept::Made { method } => {
            let file =
                keep::remake(&fs.store, serial, &method).map_err(|e| damage(fs, serial, Part::Kept, e))?;
            Handle::HostFile { file, path: "a remade upload".into(), writing: None }
        }
    };
    Ok(Opened::Cached(fs.open_handle(handle)))
}

/// Turns damage into an error that names image, version and path, and records it.
pub(in crate::fs) fn damage(fs: &ImageFs, serial: u32, part: Part, e: Error) -> Error {
    let version = fs.store.path_of(&fs.store.catalog.read(), serial);
    let tree =
        |find: &dyn Fn(&Tree) -> Option<String>| fs.store.tree(serial).ok().and_then(|slot| find(&slot.tree));
    let path = match part {
        Part::Node(index) => tree(&|tree| tree.path_where(|other| other == index)),
        Part::Made(0) => Some("rootfs.tar".into()),
        Part::Made(recipe) => tree(&|tree| {
            let made =
                |index| tree.node(index).is_ok_and(|node| node.kind == NodeKind::File(Bytes::Recipe(recipe)));
            tree.path_where(made)
        }),
        Part::Kept => kept_name(fs, serial),
    };
    let path = format!("{version}/{}", path.unwrap_or_default());
    let e = if e.is_damage() { Error::Corrupt { what: path.clone(), why: e.to_string() } } else { e };
    fs.store.journal.refuse(0, "read", &path, &e);
    e
}

/// The name of the version's upload, if imgfs can still give it as it came.
pub(super) fn kept_name(fs: &ImageFs, serial: u32) -> Option<String> {
    keep::name(fs.store.catalog.read().versions.get(&serial)?)
}
