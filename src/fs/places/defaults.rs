//! ln -sfn ../../web .imgfs/defaults/vm: the default image of each type.

use crate::error::{Error, Result};
use crate::formats::metadata::TYPES;
use crate::fs::names::is_temporary;
use crate::fs::names::text_of;
use crate::fs::node::{Control, Link, NodeId};
use crate::fs::{Caller, DirEntry, ImageFs};
use crate::images::links;

/// The way from there to the root of the mount.
const UP: &str = "../../";
const HERE: NodeId = NodeId::Control(Control::Defaults);

fn kind_of(name: &[u8]) -> Result<&'static str> {
    let known = TYPES.iter().find(|kind| kind.as_bytes() == name);
    known.copied().ok_or_else(|| Error::NotFound { what: format!("type of images {}", text_of(name)) })
}

impl ImageFs {
    /// The links of the directory: type and image.
    fn type_defaults(&self) -> Vec<(&'static str, u32)> {
        let model = self.store.catalog.read();
        let shown = TYPES.iter().filter(|kind| !links::is_type_default_hidden(&model, kind));
        shown.filter_map(|kind| Some((*kind, model.default_of(kind)?.serial))).collect()
    }

    pub(super) fn lookup_default(&self, name: &[u8]) -> Result<NodeId> {
        if let Some(staged) = self.staged_link(HERE, name) {
            return Ok(staged);
        }
        let found = self.type_defaults().into_iter().find(|(kind, _)| kind.as_bytes() == name);
        found.map(|(_, image)| NodeId::Link(Link::DeepImage(image))).ok_or_else(|| Error::NotFound { what: text_of(name) })
    }

    pub(super) fn list_defaults(&self, all: &mut Vec<DirEntry>) {
        all.extend(self.type_defaults().into_iter().map(|(kind, image)| DirEntry {
            name: kind.into(),
            node: NodeId::Link(Link::DeepImage(image)),
            format: libc::S_IFLNK,
        }));
    }

    /// `ln -s`, and the first half of `ln -sfn`.
    pub(super) fn link_default(&self, caller: Caller, name: &[u8], target: &[u8]) -> Result<NodeId> {
        if is_temporary(name) {
            self.deep_target(UP, target)?;
            return Ok(self.stage_link(caller, HERE, name, target));
        }
        self.set_type_default(caller, name, target)?;
        self.lookup_default(name)
    }

    pub(super) fn set_type_default(&self, caller: Caller, name: &[u8], target: &[u8]) -> Result<()> {
        let (kind, image) = (kind_of(name)?, self.deep_target(UP, target)?);
        self.refuse_default(caller)?;
        links::set_type_default(&self.store, kind, Some(image))?;
        self.store.journal.log(caller.uid, "default", kind, &text_of(target));
        Ok(())
    }

    /// `rm`: the link is hidden until it is made again, as BusyBox's ln -sfn does.
    pub(super) fn unlink_default(&self, caller: Caller, name: &[u8]) -> Result<()> {
        if self.take_staged_link(HERE, name).is_some() {
            return Ok(());
        }
        self.lookup_default(name)?;
        self.refuse_default(caller)?;
        links::set_type_default(&self.store, kind_of(name)?, None)
    }

    /// The image that a link in a directory of `.imgfs` leads to: `../../web` (`up` is `../../`), or an absolute path into the
    /// mount. A bare name is taken for what was meant.
    pub(super) fn deep_target(&self, up: &str, target: &[u8]) -> Result<u32> {
        let missing = || Error::NotFound { what: format!("image {} to link to", text_of(target)) };
        let text = std::str::from_utf8(target).map_err(|_| missing())?;
        let text = text.strip_prefix(up).unwrap_or(text);
        let target = links::resolve_root_link(&self.store.catalog.read(), text, &self.mount.path)?;
        target.whole_image().ok_or_else(missing)
    }
}
