//! getfattr, setfattr, lsattr and chattr: `user.imgfs.*` on images, versions and files; on a version's
//! files also the attributes from the archive; and whether an image is immutable.

use crate::base::acl::{ACCESS, Acl, DEFAULT};
use crate::error::{Error, Result};
use crate::fs::access::READ;
use crate::fs::node::{ImagePart, NodeId};
use crate::fs::opened::frozen;
use crate::fs::places::{PREFIX, metadata, no_attribute};
use crate::fs::rights;
use crate::fs::{Caller, ImageFs, SetAttr, stale};

const ACLS: &[&str] = &[ACCESS, DEFAULT];

impl ImageFs {
    /// Whether this user may read the image of a node, and so its attributes. The kernel checks that before
    /// getxattr(2) of a user attribute, but never before listxattr(2).
    fn may_know(&self, caller: Caller, node: NodeId) -> bool {
        if let NodeId::Staged { .. } = node {
            let shown = self.attr(node).ok();
            let reads = |mode| mode & READ == READ;
            return shown.is_none_or(|a| self.is_admin(caller) || a.uid == caller.uid || reads(a.mode));
        }
        let model = self.store.catalog.read();
        let image = node.place().image(&model, node).and_then(|image| model.images.get(&image));
        image.is_none_or(|image| self.may(caller, image, READ))
    }

    /// The value of one attribute.
    ///
    /// # Errors
    ///
    /// `NoAttribute`, also for those of imgfs on an image that the caller may not read; what the tree fails
    /// with.
    pub fn getxattr(&self, caller: Caller, node: NodeId, name: &[u8]) -> Result<Vec<u8>> {
        let missing = || Error::NoAttribute { name: String::from_utf8_lossy(name).into_owned() };
        if let NodeId::Tree { serial, index } = node {
            if !name.starts_with(PREFIX.as_bytes()) {
                let slot = self.store.tree(serial)?;
                let found = slot.tree.node(index)?;
                let value = slot.tree.xattrs(&found).find(|(n, _)| *n == name).map(|(_, v)| v.to_vec());
                return value.ok_or_else(missing);
            }
        } else if name == ACCESS.as_bytes() {
            return rights::value(self, node);
        } else if name.starts_with(b"system.posix_acl") || name == b"security.selinux" {
            // ls asks for these on every file.
            return Err(missing());
        }
        if !self.may_know(caller, node) {
            return Err(missing());
        }
        let (listed, hidden) = node.place().attributes(self, node)?;
        let found = listed.into_iter().chain(hidden).find(|(n, _)| n.as_bytes() == name);
        found.map(|(_, value)| value).ok_or_else(missing)
    }

    /// All listed names, each followed by a zero byte. If the caller may not read the image, none of
    /// imgfs's own names are listed.
    ///
    /// # Errors
    ///
    /// Those of the tree and the catalog.
    pub fn listxattr(&self, caller: Caller, node: NodeId) -> Result<Vec<u8>> {
        let zeroed = |name: &[u8]| [name, b"\0"].concat();
        if let NodeId::Tree { serial, index } = node {
            let slot = self.store.tree(serial)?;
            let found = slot.tree.node(index)?;
            return Ok(slot.tree.xattrs(&found).flat_map(|(name, _)| zeroed(name)).collect());
        }
        if !self.may_know(caller, node) {
            return Ok(Vec::new());
        }
        let (listed, _) = node.place().attributes(self, node)?;
        Ok(listed.into_iter().flat_map(|(name, _)| zeroed(name.as_bytes())).collect())
    }

    /// `setfattr -n user.imgfs.description -v TEXT MNT/web` sets one editable key of metadata.json.
    ///
    /// # Errors
    ///
    /// `Frozen` in a version; `Unsupported` for what is no such attribute, or an ACL that cannot be.
    /// `BadMetadata`, `NoAttribute`, `Invalid` for a value or key; `NotFound`, `UploadBusy`, `Io` of a staged
    /// file. Those of `versions::edit`, `versions::set_acl`, `versions::set_root` and `setattr`.
    pub fn setxattr(&self, caller: Caller, node: NodeId, name: &[u8], value: &[u8]) -> Result<()> {
        let text = String::from_utf8_lossy(name).into_owned();
        let is_acl = ACLS.contains(&text.as_str());
        if is_acl && is_written(node) {
            // cp -a and mv do this to every file instead of chmod. An upload has a mode, and no ACL.
            if text == ACCESS && !matches!(node, NodeId::Staging(_)) {
                let mode = Some(Acl::parse(value)?.1);
                self.setattr(caller, node, None, SetAttr { mode, ..SetAttr::default() })?;
            }
            return Ok(());
        }
        let set = match text.strip_prefix(PREFIX) {
            _ if matches!(node, NodeId::Tree { .. } | NodeId::Version { .. }) => Err(frozen(node)),
            _ if is_acl => rights::set(self, caller, node, &text, Some(value)),
            Some(key) => std::str::from_utf8(value)
                .map_err(|_| Error::BadMetadata { why: format!("{text} is not UTF-8") })
                .and_then(|value| node.place().set_attribute(self, caller, node, key, Some(value))),
            None => Err(no_attribute(&text)),
        };
        set.map_err(|e| self.refused(caller, "setfattr", &text, e))
    }

    /// `setfattr -x`, `setfacl -b`: clears an editable key, the expected digest of a staged file, or an
    /// ACL.
    ///
    /// # Errors
    ///
    /// `NoAttribute`; `Frozen` in a version; `Unsupported` without ACLs. `NotFound`, `UploadBusy`, `Io` of a
    /// staged file. Those of `versions::edit`, `versions::set_acl` and `versions::set_root`.
    pub fn removexattr(&self, caller: Caller, node: NodeId, name: &[u8]) -> Result<()> {
        let text = String::from_utf8_lossy(name).into_owned();
        let missing = || Error::NoAttribute { name: text.clone() };
        let removed = match text.strip_prefix(PREFIX) {
            _ if text == ACCESS && matches!(node, NodeId::Root | NodeId::Image { .. }) => {
                rights::set(self, caller, node, &text, None)
            }
            // cp -a removes a default ACL even where there is none.
            _ if ACLS.contains(&text.as_str()) => Err(missing()),
            _ if matches!(node, NodeId::Tree { .. } | NodeId::Version { .. }) => Err(frozen(node)),
            Some(key) => node.place().set_attribute(self, caller, node, key, None),
            None => Err(missing()),
        };
        match removed {
            Err(Error::NoAttribute { name }) => Err(Error::NoAttribute { name }),
            other => other.map_err(|e| self.refused(caller, "setfattr", &text, e)),
        }
    }

    /// lsattr. `None` for a node without flags: an overlay would copy the flags of a tree's files.
    ///
    /// # Errors
    ///
    /// `NotFound` if the image is gone.
    pub fn is_immutable(&self, node: NodeId) -> Result<Option<bool>> {
        let NodeId::Image { serial, part: ImagePart::Dir, .. } = node else { return Ok(None) };
        let model = self.store.catalog.read();
        Ok(Some(model.images.get(&serial).ok_or_else(stale)?.rules.immutable.is_some()))
    }

    /// chattr +i, -i. `immutable` is the bit for that flag. The kernel lets only root do this.
    ///
    /// # Errors
    ///
    /// `Frozen` in a version; `Unsupported` for another flag, or elsewhere; those of `versions::edit`.
    pub fn set_flags(&self, caller: Caller, node: NodeId, flags: u32, immutable: u32) -> Result<()> {
        let set = match node {
            NodeId::Image { serial, part: ImagePart::Dir, .. } if flags & !immutable == 0 => {
                let value = if flags == 0 { "false" } else { "true" };
                metadata::edit_key(self, caller, serial, "immutable", value)
            }
            NodeId::Tree { .. } | NodeId::Version { .. } => Err(frozen(node)),
            _ => Err(Error::Unsupported {
                what: "this flag".into(),
                instead: "chattr takes i, of an image's directory",
            }),
        };
        set.map_err(|e| self.refused(caller, "chattr", &self.path_of(node), e))
    }
}

/// Whether a node is, or was, a file that somebody writes outside of versions.
fn is_written(node: NodeId) -> bool {
    matches!(node, NodeId::Upload(_) | NodeId::Receipt(_) | NodeId::Staged { .. } | NodeId::Staging(_))
}
