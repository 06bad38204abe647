//! The rows of the catalog: an image, a version, an alias, a label, a lease.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::base::acl::Acl;
use crate::base::digest::Digest;
use crate::base::name::new_id;
use crate::error::Result;
use crate::formats::compress::Method;
use crate::formats::metadata::Editable;
use crate::tree::Counts;

/// An image: a named series of versions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Image {
    pub serial: u32,
    pub id: String,
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    pub mode: u32,
    pub next_number: u32,
    /// The version to which `default` leads. `None` is the newest.
    pub pinned: Option<u32>,
    pub default_hidden: bool,
    pub editable: Editable,
    pub created_at: i64,
    pub updated_at: i64,
    pub trashed_at: Option<i64>,
    pub trash_name: Option<String>,
    #[serde(default, skip_serializing_if = "Rules::is_none")]
    pub rules: Rules,
}

/// Rules of an image beyond its mode. Most images have none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rules {
    /// Set if no update, edit, renaming or deletion is allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub immutable: Option<Immutable>,
    /// The rights beyond the mode. With an ACL, the mode's group bits are the mask.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acl: Option<Acl>,
    /// When the image got its current name, if not when it was made. Log lines about this name before that
    /// time are not about this image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub named_at: Option<i64>,
    /// The image was the store's default when it was deleted, and nobody has chosen another since.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub was_default: bool,
    /// When `rm web/default` hid the link, as long as the trash shows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_hidden_at: Option<i64>,
    /// When somebody last opened a file of a version, or leased one. Only for an image with
    /// `expires_unused`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_used_at: Option<i64>,
}

impl Rules {
    pub fn is_none(&self) -> bool {
        *self == Rules::default()
    }
}

/// Who has made an image immutable, and when.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Immutable {
    pub uid: u32,
    pub at: i64,
}

impl Image {
    /// An image without versions.
    ///
    /// # Errors
    ///
    /// `Io` if there is no randomness for its id.
    pub fn new(serial: u32, name: &str, uid: u32, gid: u32, mode: u32, at: i64) -> Result<Image> {
        Ok(Image {
            serial,
            id: new_id()?,
            name: name.to_owned(),
            uid,
            gid,
            mode: mode & 0o7777,
            next_number: 0,
            pinned: None,
            default_hidden: false,
            editable: Editable::new(),
            created_at: at,
            updated_at: at,
            trashed_at: None,
            trash_name: None,
            rules: Rules::default(),
        })
    }
}

/// Facts about a version that were known when it was made.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct VersionFacts {
    /// Bytes and sha256 of rootfs.tar.
    pub size: u64,
    pub digest: String,
    /// The upload as it came: name, size, sha256.
    pub upload_name: String,
    pub upload_size: u64,
    pub upload_sha256: String,
    pub upload_sha1: String,
    /// `none` or the codec's name.
    pub compression: String,
    #[serde(flatten)]
    pub counts: Counts,
    pub os: String,
    pub release: String,
    pub architecture: String,
    /// Who uploaded it.
    pub uid: u32,
    /// The format of the upload, if it was no tar of the rootfs: `lxd`, `oci`, `docker`, `qcow2`, `raw` and
    /// so on.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub format: String,
    /// Size and sha256 of the unpacked upload, if that is not rootfs.tar: of image.tar or the disk image.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub image_size: u64,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub image_digest: String,
    /// The size of the disk that a virtual machine sees, from the disk image or its manifest.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub virtual_size: u64,
    /// When the image was made and published, according to the image itself; nanoseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub built_at: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published_at: Option<i64>,
    /// When the image will be out of date, according to the image itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outdated_at: Option<i64>,
    /// LXD's fingerprint: the sha256 in hex of the files as they came, metadata first.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub fingerprint: String,
    /// Properties from the image itself: those in metadata.yaml, or an OCI config's labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub properties: BTreeMap<String, String>,
    /// How a container of it starts, from an OCI config.
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    pub config: serde_json::Value,
    /// IMGAPI: its own uuid, and the uuid of the version over which it is a delta.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uuid: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub origin: String,
    /// The manifest that announced it, in version 2 of IMGAPI's form. Empty if there is none. Also empty
    /// for versions from before format 7, which have it as a file in their tree.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub manifest: String,
    /// How imgfs can give back the upload as it came, if it was compressed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<Kept>,
}

/// How imgfs can give back a compressed upload.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kept {
    /// In pieces, which a tree file of its own with this digest names. `tried`: it cannot be made again.
    Stored { tree: Digest, tried: bool },
    /// By compressing the content again.
    Made { method: Method },
}

impl VersionFacts {
    /// The digest of the unpacked upload.
    pub fn content_digest(&self) -> &str {
        if self.image_digest.is_empty() { &self.digest } else { &self.image_digest }
    }

    /// The recipe that makes the unpacked upload. It is that of rootfs.tar, or number 1 if rootfs.tar was
    /// derived from the upload or does not exist.
    pub fn as_it_came(&self) -> u32 {
        u32::from(!self.image_digest.is_empty())
    }

    /// Every known sha256 of the version, in hex.
    pub fn sha256s(&self) -> impl Iterator<Item = &str> {
        let prefixed = [&self.digest, &self.image_digest].map(|d| d.strip_prefix("sha256:").unwrap_or(d));
        prefixed.into_iter().chain([self.upload_sha256.as_str(), &self.fingerprint]).filter(|d| !d.is_empty())
    }
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// How the name of an upload still shows after its publish.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Receipt {
    /// The name under which it was written.
    pub name: String,
    /// Whether it was written in the root of the mount, and not in the image.
    pub in_root: bool,
    pub mtime: i64,
    pub mode: u32,
    /// Whether this upload made the image. If so, a chmod of the receipt also changes the image.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub made_image: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Version {
    pub serial: u32,
    /// Serial of its image.
    pub image: u32,
    pub number: u32,
    pub id: String,
    pub tree: Digest,
    pub facts: VersionFacts,
    pub receipt: Option<Receipt>,
    pub created_at: i64,
    pub trashed_at: Option<i64>,
    pub trash_name: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Alias {
    pub serial: u32,
    pub name: String,
    pub image: u32,
    /// The fixed version to which it leads. `None`: what `follows` says.
    pub number: Option<u32>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    #[serde(default, skip_serializing_if = "Follows::is_image")]
    pub follows: Follows,
    /// Set while it is in the trash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trashed: Option<InTrash>,
}

/// What an alias leads to, if it names no version by number.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Follows {
    /// `web`.
    #[default]
    Image,
    /// `web/latest`.
    Latest,
    /// `web/default`.
    Default,
    /// `web/@22.04`, without the `@`.
    Label(String),
}

impl Follows {
    pub fn is_image(&self) -> bool {
        *self == Follows::Image
    }
}

/// Since when an alias or a label is in the trash, and its name there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InTrash {
    /// Nanoseconds since 1970.
    pub at: i64,
    pub name: String,
}

/// Who may make and delete images: `chmod 1777 MNT`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    pub uid: u32,
    pub gid: u32,
    pub mode: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acl: Option<Acl>,
}

/// A version string: `@22.04.5` in an image leads to a version. A name occurs only once in an image. A
/// label shows as long as its version does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Label {
    pub serial: u32,
    pub image: u32,
    /// Without the `@`.
    pub name: String,
    pub number: u32,
    /// Set while it is in the trash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trashed: Option<InTrash>,
}

/// A user of a version: an entry of its `used_by`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lease {
    pub serial: u32,
    /// Serial of the version.
    pub version: u32,
    pub name: String,
    #[serde(flatten)]
    pub facts: LeaseFacts,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LeaseFacts {
    /// What its holder wrote into it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub text: String,
    /// The holder's own path, if the lease is a symlink. While that path does not exist, the lease is
    /// stale.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    pub uid: u32,
    pub gid: u32,
    pub mode: u32,
    pub mtime: i64,
    /// When it ends by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<i64>,
}
