//! ls .imgfs/trash; rm there: what was deleted, until its time is over. mv brings it back (links.rs).

use crate::catalog::{Model, Trashed};
use crate::error::{Error, Result};
use crate::fs::names::text_of;
use crate::fs::node::{Link, NodeId};
use crate::fs::places::{Kind, Place};
use crate::fs::{Attr, Caller, DirEntry, ImageFs};
use crate::images::trash;

/// `.imgfs/trash`: images, versions and links under names of their own.
pub struct Trash;

/// The directory.
pub(in crate::fs) const TRASH: NodeId = NodeId::In(Kind::Trash, 0);

/// What shows an entry of the trash.
fn node_of(fs: &ImageFs, model: &Model, what: Trashed) -> Option<NodeId> {
    Some(match what {
        Trashed::Image(serial) => fs.image_node(serial),
        Trashed::Version(serial) => fs.version_node(serial),
        Trashed::Alias(serial) => NodeId::Link(Link::TrashedAlias(serial)),
        Trashed::Label(serial) => NodeId::Link(Link::TrashedLabel(serial)),
        Trashed::Default => NodeId::Link(Link::TrashedDefault(model.default_image?)),
        Trashed::ImageDefault(serial) => NodeId::Link(Link::TrashedImageDefault(serial)),
    })
}

impl Place for Trash {
    fn kind(&self) -> Kind {
        Kind::Trash
    }

    fn lookup(&self, fs: &ImageFs, caller: Caller, _directory: u64, name: &[u8]) -> Result<NodeId> {
        let found = {
            let model = fs.store.catalog.read();
            let what = std::str::from_utf8(name).ok().and_then(|name| trash::trashed(&model, name));
            what.and_then(|what| node_of(fs, &model, what))
        };
        found.map_or_else(|| fs.ghost_named(caller, TRASH, name), Ok)
    }

    fn list(&self, fs: &ImageFs, _caller: Caller, _directory: u64, all: &mut Vec<DirEntry>) -> Result<()> {
        let model = fs.store.catalog.read();
        for (name, _, what) in model.trash() {
            let format = if matches!(what, Trashed::Image(_) | Trashed::Version(_)) {
                libc::S_IFDIR
            } else {
                libc::S_IFLNK
            };
            let node = node_of(fs, &model, what);
            all.extend(node.map(|node| DirEntry::new(name, node, format)));
        }
        Ok(())
    }

    /// imgfs itself knows who may bring something back, or end it.
    fn attr(&self, _fs: &ImageFs, _number: u64, own: Attr) -> Result<Attr> {
        Ok(Attr { mode: libc::S_IFDIR | 0o777, ..own })
    }

    /// `rm`: a link is gone for good.
    fn unlink(&self, fs: &ImageFs, caller: Caller, _directory: u64, name: &[u8]) -> Result<()> {
        let name = text_of(name);
        let what = trash::trashed(&fs.store.catalog.read(), &name);
        let what = what.ok_or_else(|| Error::NotFound { what: name.clone() })?;
        if let Trashed::Image(_) | Trashed::Version(_) = what {
            return Err(Error::IsDirectory { what: name });
        }
        fs.refuse_link(caller, what)?;
        trash::purge(&fs.store, what)?;
        fs.store.journal.log(caller.uid, "purge", &name, "gone");
        Ok(())
    }
}

impl ImageFs {
    /// Refuses to bring back or to end a link in the trash by who may not change what it is of.
    pub(in crate::fs) fn refuse_link(&self, caller: Caller, what: Trashed) -> Result<()> {
        let image = {
            let model = self.store.catalog.read();
            match what {
                Trashed::Default => None,
                Trashed::Alias(serial) => model.aliases.get(&serial).map(|alias| alias.image),
                Trashed::Label(serial) => model.labels.get(&serial).map(|label| label.image),
                Trashed::Version(serial) => model.versions.get(&serial).map(|version| version.image),
                Trashed::Image(serial) | Trashed::ImageDefault(serial) => Some(serial),
            }
        };
        match image {
            Some(image) => self.refuse_change(caller, self.store.catalog.read().images.get(&image)),
            None => self.refuse_default(caller),
        }
    }
}
