//! ln -sfn ../../web .imgfs/defaults/vm: the default image of each type.

use crate::error::{Error, Result};
use crate::formats::metadata::TYPES;
use crate::fs::names::is_temporary;
use crate::fs::names::text_of;
use crate::fs::node::{Link, NodeId};
use crate::fs::places::link::deep_target;
use crate::fs::places::{Kind, Place};
use crate::fs::rights::{self, Shown};
use crate::fs::{Attr, Caller, DirEntry, ImageFs};
use crate::images::links;

/// The path from there to the root of the mount.
const UP: &str = "../../";
const HERE: NodeId = NodeId::In(Kind::Defaults, 0);

fn kind_of(name: &[u8]) -> Result<&'static str> {
    let known = TYPES.iter().find(|kind| kind.as_bytes() == name);
    known.copied().ok_or_else(|| Error::NotFound { what: format!("type of images {}", text_of(name)) })
}

/// `.imgfs/defaults`: a link for each type of image.
pub struct Defaults;

/// The links of the directory: type and image.
fn shown(fs: &ImageFs) -> Vec<(&'static str, u32)> {
    let model = fs.store.catalog.read();
    let shown = TYPES.iter().filter(|kind| !links::is_type_default_hidden(&model, kind));
    shown.filter_map(|kind| Some((*kind, model.default_of(kind)?.serial))).collect()
}

impl Place for Defaults {
    fn lookup(&self, fs: &ImageFs, _caller: Caller, _directory: NodeId, name: &[u8]) -> Result<NodeId> {
        let found = shown(fs).into_iter().find(|(kind, _)| kind.as_bytes() == name);
        found
            .map(|(_, image)| NodeId::Link(Link::DeepImage(image)))
            .ok_or_else(|| Error::NotFound { what: text_of(name) })
    }

    fn list(&self, fs: &ImageFs, _caller: Caller, _directory: NodeId, all: &mut Vec<DirEntry>) -> Result<()> {
        all.extend(
            shown(fs).into_iter().map(|(kind, image)| {
                DirEntry::new(kind, NodeId::Link(Link::DeepImage(image)), libc::S_IFLNK)
            }),
        );
        Ok(())
    }

    /// The owner of the root owns the defaults.
    fn attr(&self, fs: &ImageFs, _node: NodeId, own: Attr) -> Result<Attr> {
        let root = fs.root();
        Ok(Attr { mode: libc::S_IFDIR | rights::of_root(fs).mode, uid: root.uid, gid: root.gid, ..own })
    }

    fn rights(&self, fs: &ImageFs, _node: NodeId) -> Option<(Shown, u32)> {
        Some((rights::of_root(fs), 7))
    }

    fn symlink(
        &self,
        fs: &ImageFs,
        caller: Caller,
        directory: NodeId,
        name: &[u8],
        target: &[u8],
    ) -> Result<NodeId> {
        if is_temporary(name) {
            deep_target(fs, UP, target)?;
            return Ok(fs.temporary_links.put(caller, HERE, name, target));
        }
        self.switch(fs, caller, directory, name, target)?;
        self.lookup(fs, caller, directory, name)
    }

    fn switch(
        &self,
        fs: &ImageFs,
        caller: Caller,
        _directory: NodeId,
        name: &[u8],
        target: &[u8],
    ) -> Result<()> {
        let (kind, image) = (kind_of(name)?, deep_target(fs, UP, target)?);
        fs.refuse_default(caller)?;
        links::set_type_default(&fs.store, kind, Some(image))?;
        fs.store.journal.log(caller.uid, "default", kind, &text_of(target));
        Ok(())
    }

    /// `rm` hides the link until somebody makes it again. BusyBox's ln -sfn does both.
    fn unlink(&self, fs: &ImageFs, caller: Caller, directory: NodeId, name: &[u8]) -> Result<()> {
        self.lookup(fs, caller, directory, name)?;
        fs.refuse_default(caller)?;
        links::set_type_default(&fs.store, kind_of(name)?, None)
    }
}
