//! getfattr, setfattr, lsattr and chattr: `user.imgfs.*` on images, versions and files; what the archive
//! brought, on its files; whether an image is immutable.

use crate::base::acl::{ACCESS, Acl, DEFAULT};
use crate::base::clock::{duration_text, time_text};
use crate::error::{Error, Result};
use crate::fs::access::READ;
use crate::fs::change::Changes;
use crate::fs::node::{ImagePart, NodeId, VersionPart};
use crate::fs::stale;
use crate::fs::stat::version_of;
use crate::fs::{Caller, ImageFs};
use crate::images::describe;
use crate::images::versions;
use crate::tree::{Bytes, Kind};

const PREFIX: &str = "user.imgfs.";
const ACLS: &[&str] = &[ACCESS, DEFAULT];

/// Names and values.
type Attributes = Vec<(String, Vec<u8>)>;

impl ImageFs {
    /// The attributes of a node: those that getfattr -d lists, and those that are there by name only, so that
    /// cp -a and rsync -X do not carry them off.
    fn attributes(&self, node: NodeId) -> Result<(Attributes, Attributes)> {
        let named = |name: &str, value: String| (format!("{PREFIX}{name}"), value.into_bytes());
        Ok(match node {
            NodeId::Tree { serial, index } => {
                let slot = self.store.tree(serial)?;
                let found = slot.tree.node(index)?;
                let own = slot
                    .tree
                    .xattrs(&found)
                    .map(|(n, v)| (String::from_utf8_lossy(n).into_owned(), v.to_vec()))
                    .collect();
                let mut hidden = Vec::new();
                if let Kind::File(Bytes::Blob(blob) | Bytes::Sparse(blob)) = found.kind
                    && blob != 0
                {
                    hidden.push(named(
                        "digest",
                        format!("blake3:{}", self.store.blobs.record(blob)?.digest.hex()),
                    ));
                }
                (own, hidden)
            }
            NodeId::Image { serial, part: ImagePart::Dir, .. } => {
                let model = self.store.catalog.read();
                let image = model.images.get(&serial).ok_or_else(stale)?;
                let e = &image.editable;
                let mut all = vec![named("id", image.id.clone())];
                for (key, value) in [
                    ("description", &e.description),
                    ("type", &e.kind),
                    ("os", &e.os),
                    ("release", &e.release),
                    ("architecture", &e.architecture),
                    ("variant", &e.variant),
                    ("tags", &e.tags.join(",")),
                ] {
                    if !value.is_empty() {
                        all.push(named(key, value.clone()));
                    }
                }
                let immutable = image.rules.immutable.as_ref().map(|_| "true".into());
                let keep = e.keep_versions.map(|n| n.to_string());
                let rules = [
                    ("immutable", immutable),
                    ("keep_versions", keep),
                    ("expires_at", e.expires_at.map(time_text)),
                    ("expires_unused", e.expires_unused.map(duration_text)),
                ];
                all.extend(rules.into_iter().filter_map(|(key, value)| Some(named(key, value?))));
                let described = model.aliases_of(serial).into_iter().filter(|a| !a.description.is_empty());
                all.extend(described.map(|a| named(&format!("aliases.{}", a.name), a.description.clone())));
                all.extend(e.properties.iter().map(|(k, v)| named(&format!("properties.{k}"), v.clone())));
                (all, Vec::new())
            }
            NodeId::Version { serial, part: VersionPart::Dir, .. } => {
                let version = {
                    let model = self.store.catalog.read();
                    version_of(&model, serial)?.1.clone()
                };
                let cost = self.store.cost(&version)?;
                let all = vec![
                    named("id", version.id),
                    named("digest", version.facts.digest),
                    named("logical_bytes", version.facts.counts.logical_bytes.to_string()),
                    named("unique_bytes", cost.unique_bytes.to_string()),
                    named("stored_bytes", cost.stored_bytes.to_string()),
                ];
                (all, Vec::new())
            }
            NodeId::Staged { directory, file } => {
                let expected = self.expected_of_staged(directory, file);
                (expected.map(|e| named("expect", e)).into_iter().collect(), Vec::new())
            }
            NodeId::Version { serial, part: VersionPart::Tar, .. } => {
                let digest =
                    self.store.catalog.read().versions.get(&serial).ok_or_else(stale)?.facts.digest.clone();
                (Vec::new(), vec![named("digest", digest)])
            }
            _ => (Vec::new(), Vec::new()),
        })
    }

    /// Whether this user may read the image that a node is of, and so what its attributes say. The kernel
    /// asks that before getxattr(2) of a user attribute, and for listxattr(2) it asks nothing.
    fn may_know(&self, caller: Caller, node: NodeId) -> bool {
        let model = self.store.catalog.read();
        let image = match node {
            NodeId::Image { serial, .. } => model.images.get(&serial),
            NodeId::Version { serial, .. } | NodeId::Tree { serial, .. } | NodeId::Receipt(serial) => {
                version_of(&model, serial).ok().map(|(image, _)| image)
            }
            NodeId::Staged { .. } => {
                drop(model);
                let shown = self.attr(node).ok();
                return shown.is_none_or(|attr| {
                    self.is_admin(caller) || attr.uid == caller.uid || attr.mode & READ == READ
                });
            }
            _ => None,
        };
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
        if name == ACCESS.as_bytes() && !matches!(node, NodeId::Tree { .. }) {
            return self.acl_value(node);
        }
        // What ls asks of every file.
        if (name.starts_with(b"system.posix_acl") || name == b"security.selinux")
            && !matches!(node, NodeId::Tree { .. })
        {
            return Err(missing());
        }
        if let NodeId::Tree { serial, index } = node
            && !name.starts_with(PREFIX.as_bytes())
        {
            let slot = self.store.tree(serial)?;
            let found = slot.tree.node(index)?;
            return slot
                .tree
                .xattrs(&found)
                .find(|(n, _)| *n == name)
                .map(|(_, v)| v.to_vec())
                .ok_or_else(missing);
        }
        if !self.may_know(caller, node) {
            return Err(missing());
        }
        let (listed, hidden) = self.attributes(node)?;
        listed
            .into_iter()
            .chain(hidden)
            .find(|(n, _)| n.as_bytes() == name)
            .map(|(_, v)| v)
            .ok_or_else(missing)
    }

    /// lsattr. None for what has no flags: an overlay would take those of a tree's files along.
    ///
    /// # Errors
    ///
    /// `NotFound` if the image is gone.
    pub fn is_immutable(&self, node: NodeId) -> Result<Option<bool>> {
        let NodeId::Image { serial, part: ImagePart::Dir, .. } = node else { return Ok(None) };
        let model = self.store.catalog.read();
        Ok(Some(model.images.get(&serial).ok_or_else(stale)?.rules.immutable.is_some()))
    }

    /// chattr +i, -i, by the bit that means it. The kernel lets root alone do that.
    ///
    /// # Errors
    ///
    /// `Frozen` in a version; `Unsupported` for another flag, or elsewhere; those of `versions::edit`.
    pub fn set_flags(&self, caller: Caller, node: NodeId, flags: u32, immutable: u32) -> Result<()> {
        let result = match node {
            NodeId::Image { serial, part: ImagePart::Dir, .. } if flags & !immutable == 0 => {
                self.edit_key(caller, serial, "immutable", if flags == 0 { "false" } else { "true" })
            }
            NodeId::Tree { .. } | NodeId::Version { .. } => Err(Error::Frozen { what: "a version".into() }),
            _ => Err(Error::Unsupported {
                what: "this flag".into(),
                instead: "chattr takes i, of an image's directory",
            }),
        };
        result.map_err(|e| self.refused(caller, "chattr", &self.path_of(node), e))
    }

    /// Changes one of the keys of metadata.json.
    fn edit_key(&self, caller: Caller, image: u32, key: &str, value: &str) -> Result<()> {
        versions::edit(&self.store, image, |model, image| {
            describe::edit_key(model, image, self.by(caller), key, value)
        })?;
        let (name, outcome) = (self.path_of(self.image_node(image)), format!("{key}={value}"));
        self.store.journal.log(caller.uid, "edit", name.trim_start_matches('/'), &outcome);
        Ok(())
    }

    /// All listed names, each with a zero byte behind it. Of an image that the caller may not read, imgfs
    /// names none.
    ///
    /// # Errors
    ///
    /// Those of the tree and the catalog.
    pub fn listxattr(&self, caller: Caller, node: NodeId) -> Result<Vec<u8>> {
        if let NodeId::Tree { serial, index } = node {
            let slot = self.store.tree(serial)?;
            let found = slot.tree.node(index)?;
            return Ok(slot.tree.xattrs(&found).flat_map(|(n, _)| [n, b"\0"].concat()).collect());
        }
        if !self.may_know(caller, node) {
            return Ok(Vec::new());
        }
        Ok(self.attributes(node)?.0.into_iter().flat_map(|(n, _)| [n.as_bytes(), b"\0"].concat()).collect())
    }

    /// `setfattr -n user.imgfs.description -v TEXT MNT/web`: the editable keys of metadata.json, one by one.
    ///
    /// # Errors
    ///
    /// `Frozen` in a version; `Unsupported` for what is no such attribute, or an ACL that cannot be.
    /// `BadMetadata`, `NoAttribute`, `Invalid` for a value or key; `NotFound`, `UploadBusy`, `Io` of a staged
    /// file. Those of `versions::edit`, `versions::set_acl`, `versions::set_root` and `setattr`.
    pub fn setxattr(&self, caller: Caller, node: NodeId, name: &[u8], value: &[u8]) -> Result<()> {
        let text = String::from_utf8_lossy(name).into_owned();
        if ACLS.contains(&text.as_str())
            && matches!(
                node,
                NodeId::Upload(_) | NodeId::Receipt(_) | NodeId::Staged { .. } | NodeId::Staging(_)
            )
        {
            // What cp -a and mv do to every file, instead of chmod: an upload has a mode, and no more.
            if text == ACCESS && !matches!(node, NodeId::Staging(_)) {
                let mode = Some(Acl::parse(value)?.1);
                self.setattr(caller, node, None, Changes { mode, ..Changes::default() })?;
            }
            return Ok(());
        }
        let value_text = std::str::from_utf8(value)
            .map_err(|_| Error::BadMetadata { why: format!("{text} is not UTF-8") });
        let result = match (node, text.strip_prefix(PREFIX)) {
            (NodeId::Staged { directory, file }, Some("expect")) => {
                value_text.and_then(|value| self.expect_staged(directory, file, Some(value)))
            }
            (NodeId::Upload(number), Some("expect")) => {
                value_text.and_then(|value| self.expect_upload(number, value))
            }
            (NodeId::Tree { .. } | NodeId::Version { .. }, _) => {
                Err(Error::Frozen { what: "a version".into() })
            }
            _ if ACLS.contains(&text.as_str()) => self.set_acl(caller, node, &text, Some(value)),
            (NodeId::Image { serial, part: ImagePart::Dir, .. }, Some(key)) => {
                value_text.and_then(|value| self.edit_key(caller, serial, key, value))
            }
            _ => Err(Error::Unsupported {
                what: format!("the attribute {text}"),
                instead: "images take user.imgfs.KEY for the editable keys of metadata.json",
            }),
        };
        result.map_err(|e| self.refused(caller, "setfattr", &text, e))
    }

    /// `setfattr -x`, `setfacl -b`: clears an editable key, what is expected of a staged file, or an ACL.
    ///
    /// # Errors
    ///
    /// `NoAttribute`; `Frozen` in a version; `Unsupported` without ACLs. `NotFound`, `UploadBusy`, `Io` of a
    /// staged file. Those of `versions::edit`, `versions::set_acl` and `versions::set_root`.
    pub fn removexattr(&self, caller: Caller, node: NodeId, name: &[u8]) -> Result<()> {
        let text = String::from_utf8_lossy(name).into_owned();
        let result = match (node, text.strip_prefix(PREFIX)) {
            (NodeId::Root | NodeId::Image { .. }, _) if text == ACCESS => {
                self.set_acl(caller, node, &text, None)
            }
            // cp -a drops a default ACL that is not there.
            _ if ACLS.contains(&text.as_str()) => Err(Error::NoAttribute { name: text.clone() }),
            (NodeId::Staged { directory, file }, Some("expect")) => self.expect_staged(directory, file, None),
            (NodeId::Tree { .. } | NodeId::Version { .. }, _) => {
                Err(Error::Frozen { what: "a version".into() })
            }
            (NodeId::Image { serial, part: ImagePart::Dir, .. }, Some(key)) => {
                self.edit_key(caller, serial, key, "")
            }
            _ => Err(Error::NoAttribute { name: text.clone() }),
        };
        match result {
            Err(Error::NoAttribute { name }) => Err(Error::NoAttribute { name }),
            other => other.map_err(|e| self.refused(caller, "setfattr", &text, e)),
        }
    }
}
