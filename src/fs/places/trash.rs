//! ls .imgfs/trash; rm there: deleted things, until their time is over. mv brings them back (links.rs).

use crate::catalog::{Model, Trashed};
use crate::error::{Error, Result};
use crate::fs::names::text_of;
use crate::fs::node::{ImagePart, Link, NodeId, TRASH};
use crate::fs::places::aliases::{is_directory, name_of_restored};
use crate::fs::places::link::forget_links_to;
use crate::fs::places::{Named, Place};
use crate::fs::removal::walkers;
use crate::fs::{Attr, Caller, DirEntry, ImageFs, stale};
use crate::images::trash;

/// `.imgfs/trash`: images, versions and links, under names that imgfs gives them.
pub struct Trash;

/// The node that shows an entry of the trash.
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
    fn lookup(&self, fs: &ImageFs, caller: Caller, _directory: NodeId, name: &[u8]) -> Result<NodeId> {
        let found = {
            let model = fs.store.catalog.read();
            let what = std::str::from_utf8(name).ok().and_then(|name| trash::trashed(&model, name));
            what.and_then(|what| node_of(fs, &model, what))
        };
        found.map_or_else(|| walkers::find_leftover(fs, caller, TRASH, name), Ok)
    }

    fn list(&self, fs: &ImageFs, _caller: Caller, _directory: NodeId, all: &mut Vec<DirEntry>) -> Result<()> {
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

    /// The kernel lets everybody in. imgfs itself checks who may restore or purge an entry.
    fn attr(&self, _fs: &ImageFs, _node: NodeId, own: Attr) -> Result<Attr> {
        Ok(Attr { mode: libc::S_IFDIR | 0o777, ..own })
    }

    /// `rm` removes a link for good.
    fn unlink(&self, fs: &ImageFs, caller: Caller, _directory: NodeId, name: &[u8]) -> Result<()> {
        let name = text_of(name);
        let what = trash::trashed(&fs.store.catalog.read(), &name);
        let what = what.ok_or_else(|| Error::NotFound { what: name.clone() })?;
        if let Trashed::Image(_) | Trashed::Version(_) = what {
            return Err(Error::IsDirectory { what: name });
        }
        refuse_link(fs, caller, what)?;
        trash::purge(&fs.store, what)?;
        fs.store.journal.log(caller.uid, "purge", &name, "gone");
        Ok(())
    }
}

/// Refuses a user who may not change the image of a link in the trash to restore or purge that link.
fn refuse_link(fs: &ImageFs, caller: Caller, what: Trashed) -> Result<()> {
    let image = {
        let model = fs.store.catalog.read();
        match what {
            Trashed::Default => None,
            Trashed::Alias(serial) => model.aliases.get(&serial).map(|alias| alias.image),
            Trashed::Label(serial) => model.labels.get(&serial).map(|label| label.image),
            Trashed::Version(serial) => model.image_of(serial),
            Trashed::Image(serial) | Trashed::ImageDefault(serial) => Some(serial),
        }
    };
    match image {
        Some(image) => fs.refuse_change(caller, fs.store.catalog.read().images.get(&image)),
        None => fs.refuse_default(caller),
    }
}

/// `mv .imgfs/trash/web MNT/`, `mv .imgfs/trash/web.1 MNT/web/`: restores an entry.
pub(in crate::fs) fn restore(fs: &ImageFs, caller: Caller, node: NodeId, to: &Named) -> Result<()> {
    match (node, to.0) {
        (NodeId::Image { serial, .. }, NodeId::Root) => {
            fs.refuse_trashed(caller, serial, false)?;
            trash::restore_image(&fs.store, serial, &fs.new_name(caller, &to.1)?)?;
            forget_links_to(fs, serial);
        }
        // A version that is moved into the root also returns to its image: `mv .imgfs/trash/* MNT/`.
        (NodeId::Version { serial, .. }, NodeId::Root | NodeId::Image { part: ImagePart::Dir, .. }) => {
            let image = match to.0 {
                NodeId::Image { serial: image, .. } => image,
                _ => trash::home_of(&fs.store.catalog.read(), serial)?,
            };
            fs.refuse_trashed(caller, image, true)?;
            trash::restore_version(&fs.store, serial, image)?;
            // The version shows under its number, not under the name that mv gave it.
            fs.has_moved(caller, to, fs.version_node(serial));
        }
        (NodeId::Link(link @ Link::TrashedAlias(_)), directory) if is_directory(directory) => {
            restore_link(fs, caller, link, to)?;
            fs.has_moved(caller, to, node);
        }
        (NodeId::Link(link), NodeId::Root | NodeId::Image { part: ImagePart::Dir, .. }) => {
            restore_link(fs, caller, link, to)?;
            fs.has_moved(caller, to, node);
        }
        (NodeId::Image { .. }, _) => {
            return Err(Error::Managed {
                what: "an image".into(),
                why: "it comes back into the root of the mount",
            });
        }
        _ => {
            return Err(Error::Managed { what: "a version".into(), why: "it comes back into its image" });
        }
    }
    fs.root_has_changed();
    fs.store.journal.log(caller.uid, "restore", &text_of(&to.1), "back from the trash");
    Ok(())
}

/// Restores a link. An alias gets the name in the root to which it is moved. Other links return to
/// where they were.
fn restore_link(fs: &ImageFs, caller: Caller, link: Link, to: &Named) -> Result<()> {
    match link {
        Link::TrashedAlias(serial) => {
            if to.0 != NodeId::Root && !is_directory(to.0) {
                return Err(Error::Managed {
                    what: "an alias".into(),
                    why: "it comes back into the root of the mount",
                });
            }
            refuse_link(fs, caller, Trashed::Alias(serial))?;
            trash::restore_alias(&fs.store, serial, &name_of_restored(fs, caller, serial, to)?)
        }
        Link::TrashedLabel(serial) => {
            refuse_link(fs, caller, Trashed::Label(serial))?;
            trash::restore_label(&fs.store, serial)
        }
        Link::TrashedImageDefault(serial) => {
            refuse_link(fs, caller, Trashed::ImageDefault(serial))?;
            trash::restore_default(&fs.store, Some(serial))
        }
        Link::TrashedDefault(_) => {
            fs.refuse_default(caller)?;
            trash::restore_default(&fs.store, None)
        }
        _ => Err(stale()),
    }
}
