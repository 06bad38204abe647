//! setfacl, getfacl on an image and on the mount's root. The rights of `admin_group` and `import_group`
//! show as entries of an ACL, so that the kernel lets their members in.

use crate::base::acl::{ACCESS, Acl, DEFAULT};
use crate::catalog::Image;
use crate::error::{Error, Result};
use crate::fs::node::NodeId;
use crate::fs::{Caller, ImageFs};

/// Read, write and search. A group of admins has all three.
pub(super) const ALL: u32 = 7;

/// Rights as imgfs shows them to the kernel.
pub(super) struct Shown {
    /// The mode. Its group bits are the mask if there is an ACL.
    pub mode: u32,
    pub acl: Option<Acl>,
}

impl Shown {
    /// Adds groups that have all rights to a mode and an ACL.
    fn with(mode: u32, acl: Option<&Acl>, groups: impl Iterator<Item = u32>) -> Shown {
        let mut shown = Shown { mode, acl: acl.cloned() };
        for gid in groups {
            let mask = shown.mode >> 3 & ALL;
            let acl = shown.acl.get_or_insert_with(|| Acl { group: mask, ..Acl::default() });
            // The mask must let the group have all rights, and give nobody else more than before.
            acl.change(|rights| *rights &= mask);
            acl.groups.insert(gid, ALL);
            shown.mode |= ALL << 3;
        }
        shown
    }
}

/// The mode that a chmod asks for, of a file that shows another mode than its own. Group bits that the
/// chmod leaves as shown keep their own value.
pub(super) fn asked(mode: u32, shown: u32, own: u32) -> u32 {
    let left = (mode ^ shown) & 0o070 == 0;
    if left { mode & !0o070 | own & 0o070 } else { mode }
}

fn admins(fs: &ImageFs) -> impl Iterator<Item = u32> {
    fs.store.settings().admin_group.filter(|_| fs.mount.has_acls).into_iter()
}

/// The rights on something that only admins change.
pub(super) fn of_admins(fs: &ImageFs, mode: u32) -> Shown {
    Shown::with(mode, None, admins(fs))
}

pub(super) fn of_image(fs: &ImageFs, image: &Image) -> Shown {
    Shown::with(image.mode, image.rules.acl.as_ref(), admins(fs))
}

pub(super) fn of_root(fs: &ImageFs) -> Shown {
    let root = fs.root();
    let importers = fs.store.settings().import_group.filter(|_| fs.mount.has_acls);
    Shown::with(root.mode, root.acl.as_ref(), admins(fs).chain(importers))
}

/// Makes the kernel ask again for the rights on the root, and on all images and versions.
pub(super) fn forget(fs: &ImageFs) {
    let nodes: Vec<NodeId> = {
        let model = fs.store.catalog.read();
        let images = model.live_images().map(|image| fs.image_node(image.serial));
        let versions = model.all_versions().map(|version| fs.version_node(version.serial));
        [NodeId::Root].into_iter().chain(images).chain(versions).collect()
    };
    fs.with_kernel(|kernel| nodes.into_iter().for_each(|node| kernel.forget_attributes(node.ino())));
}

/// The ACL of a node, as the value of its xattr. A node that is gone has none, so its walker goes on. A
/// node inside an image has the image's ACL, reduced to `most`.
///
/// # Errors
///
/// `NoAttribute`; those of `ImageFs::attr`.
pub(super) fn value(fs: &ImageFs, node: NodeId) -> Result<Vec<u8>> {
    let missing = || Error::NoAttribute { name: ACCESS.into() };
    let (rights, most) = node.place().rights(fs, node).ok_or_else(missing)?;
    let mode = fs.attr(node)?.mode;
    rights.acl.map(|acl| acl.value(mode, most)).ok_or_else(missing)
}

/// `setfacl`; without a value `setfacl -b`.
///
/// # Errors
///
/// `Unsupported` where there are no ACLs, or not such ones; `Invalid` for a bad one; those of the place.
pub(super) fn set(
    fs: &ImageFs,
    caller: Caller,
    node: NodeId,
    name: &str,
    value: Option<&[u8]>,
) -> Result<()> {
    let unsupported = |what: &str, instead| Err(Error::Unsupported { what: what.into(), instead });
    if !fs.mount.has_acls {
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
        // Entries that come from the settings are not the image's own.
        let settings = fs.store.settings();
        let roles = [settings.admin_group, settings.import_group.filter(|_| node == NodeId::Root)];
        acl.groups.retain(|gid, rights| *rights != ALL || !roles.contains(&Some(*gid)));
    }
    node.place().set_acl(fs, caller, node, acl, bits)
}
