//! setfacl, getfacl on an image and on the mount's root; what the groups of `admin_group` and `import_group`
//! have, shown as the entries of an ACL, so that the kernel lets their members in.

use crate::base::acl::{ACCESS, Acl, DEFAULT, with_bits};
use crate::catalog::Image;
use crate::error::{Error, Result};
use crate::fs::node::{ImagePart, NodeId, VersionPart};
use crate::fs::stat::version_of;
use crate::fs::{Caller, ImageFs};
use crate::images::versions;

/// Read, write and search; what a group of admins has.
const ALL: u32 = 7;

/// Rights as the kernel is to see them.
pub(super) struct Shown {
    /// The mode, with the mask where there is an ACL.
    pub mode: u32,
    pub acl: Option<Acl>,
}

impl Shown {
    /// Of a mode and an ACL, with a group that has everything.
    fn with(mode: u32, acl: Option<&Acl>, groups: impl Iterator<Item = u32>) -> Shown {
        let mut shown = Shown { mode, acl: acl.cloned() };
        for gid in groups {
            let mask = shown.mode >> 3 & ALL;
            let acl = shown.acl.get_or_insert_with(|| Acl { group: mask, ..Acl::default() });
            // The mask must let the group have all, and nobody else more than before.
            acl.change(|rights| *rights &= mask);
            acl.groups.insert(gid, ALL);
            shown.mode |= ALL << 3;
        }
        shown
    }
}

/// The mode that a chmod asks for, of a file that shows another mode than it has: group bits that are left as
/// they are shown stay as they were.
pub(super) fn asked(mode: u32, shown: u32, own: u32) -> u32 {
    let left = (mode ^ shown) & 0o070 == 0;
    if left { mode & !0o070 | own & 0o070 } else { mode }
}

impl ImageFs {
    fn admins(&self) -> impl Iterator<Item = u32> {
        self.store.settings().admin_group.filter(|_| self.mount.has_acls).into_iter()
    }

    /// Of what only admins change.
    pub(super) fn admin_rights(&self, mode: u32) -> Shown {
        Shown::with(mode, None, self.admins())
    }

    pub(super) fn image_rights(&self, image: &Image) -> Shown {
        Shown::with(image.mode, image.rules.acl.as_ref(), self.admins())
    }

    pub(super) fn root_rights(&self) -> Shown {
        let root = self.root();
        let importers = self.store.settings().import_group.filter(|_| self.mount.has_acls);
        Shown::with(root.mode, root.acl.as_ref(), self.admins().chain(importers))
    }

    /// The kernel is to ask again who may: of the root, and of all images and versions.
    pub(super) fn forget_rights(&self) {
        let nodes: Vec<NodeId> = {
            let model = self.store.catalog.read();
            let images = model.live_images().map(|image| self.image_node(image.serial));
            let versions = model.all_versions().map(|version| self.version_node(version.serial));
            [NodeId::Root].into_iter().chain(images).chain(versions).collect()
        };
        self.with_kernel(|kernel| nodes.into_iter().for_each(|node| kernel.forget_attributes(node.ino())));
    }

    /// The value of the xattr of a node that has an ACL; of what is gone there is none, and its walker goes
    /// on. What lies in an image has that of the image, less what nobody may.
    pub(super) fn acl_value(&self, node: NodeId) -> Result<Vec<u8>> {
        let missing = || Error::NoAttribute { name: ACCESS.into() };
        let (rights, most) = match node {
            NodeId::Root => (self.root_rights(), ALL),
            NodeId::In(kind, number) => kind.place().rights(self, number).ok_or_else(missing)?,
            NodeId::Image { serial, part, .. } => {
                let model = self.store.catalog.read();
                let most = match part {
                    ImagePart::Dir => ALL,
                    ImagePart::Id => 4,
                    ImagePart::Metadata | ImagePart::Icon => 6,
                };
                (self.image_rights(model.images.get(&serial).ok_or_else(missing)?), most)
            }
            NodeId::Version { serial, part, .. } => {
                let model = self.store.catalog.read();
                let most = if matches!(part, VersionPart::Dir | VersionPart::UsedBy) { ALL } else { 4 };
                let (image, _) = version_of(&model, serial).map_err(|_| missing())?;
                let mut rights = self.image_rights(image);
                if let Some(acl) = rights.acl.as_mut().filter(|_| part == VersionPart::UsedBy) {
                    // Who may read an image may use it.
                    acl.change(|rights| *rights |= *rights >> 1 & 2);
                }
                (rights, most)
            }
            NodeId::Receipt(_) | NodeId::Upload(_) => {
                let serial = match node {
                    NodeId::Receipt(serial) => Some(serial),
                    NodeId::Upload(number) => {
                        self.uploads.by_number(number).and_then(|upload| upload.published_as())
                    }
                    _ => None,
                };
                let model = self.store.catalog.read();
                let (image, _) = version_of(&model, serial.ok_or_else(missing)?).map_err(|_| missing())?;
                (self.image_rights(image), 6)
            }
            _ => return Err(missing()),
        };
        let mode = self.attr(node)?.mode;
        rights.acl.map(|acl| acl.value(mode, most)).ok_or_else(missing)
    }

    /// `setfacl`; none: `setfacl -b`.
    pub(super) fn set_acl(
        &self,
        caller: Caller,
        node: NodeId,
        name: &str,
        value: Option<&[u8]>,
    ) -> Result<()> {
        let unsupported = |what: &str, instead| Err(Error::Unsupported { what: what.into(), instead });
        if !self.mount.has_acls {
            return unsupported("an ACL on this mount", "mount with -o allow_other, and without noacl");
        }
        if name == DEFAULT {
            return unsupported(
                "a default ACL",
                "new images take the mode that umask leaves: setfacl -m on each",
            );
        }
        let (mut acl, bits) =
            value.map(Acl::parse).transpose()?.map_or((None, None), |(acl, bits)| (acl, Some(bits)));
        if let Some(acl) = &mut acl {
            // What the settings add is not the image's own.
            let settings = self.store.settings();
            let roles = [settings.admin_group, settings.import_group.filter(|_| node == NodeId::Root)];
            acl.groups.retain(|gid, rights| *rights != ALL || !roles.contains(&Some(*gid)));
        }
        match node {
            NodeId::Image { serial, part: ImagePart::Dir, .. } => {
                versions::set_acl(&self.store, serial, acl, bits)?;
                self.store.journal.log(
                    caller.uid,
                    "setfacl",
                    self.path_of(node).trim_start_matches('/'),
                    "changed",
                );
            }
            NodeId::Root => {
                let mut root = self.root();
                root.mode = with_bits(root.mode, root.acl.as_ref(), bits);
                root.acl = acl;
                versions::set_root(&self.store, root)?;
                self.store.journal.log(caller.uid, "setfacl", ".", "changed");
            }
            _ => return unsupported("an ACL here", "images have them, and the root of the mount"),
        }
        Ok(())
    }
}
