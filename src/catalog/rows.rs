//! What a row of the catalog is: an image, a version, an alias, a label, a lease.

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
    /// The version that `default` names; none: the newest.
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

/// What holds for an image beyond its mode; for most nothing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rules {
    /// No update, edit, renaming or deletion.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub immutable: Option<Immutable>,
    /// What there is beside the mode, whose group bits are its mask then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acl: Option<Acl>,
    /// When the image got the name that it has, if not when it was made: what was said of the name before is
    /// not of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub named_at: Option<i64>,
    /// The image was the store's default when it was deleted, and nobody has chosen another since.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub was_default: bool,
    /// When `rm web/default` hid the link, while the trash shows that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_hidden_at: Option<i64>,
    /// When a file of a version was last opened, or a version leased, of an image that goes when nobody uses
    /// it.
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

/// What is known of a version since it was made.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct VersionFacts {
    /// Bytes and sha256 of rootfs.tar.
    pub size: u64,
    pub digest: String,
    /// The bytes as they came.
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
    /// What it came as, if not as a tar of its rootfs: `lxd`, `oci`, `docker`, `qcow2`, `raw` and so on.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub format: String,
    /// Bytes and sha256 of what was uploaded, unpacked, where that is not rootfs.tar: of image.tar or the
    /// disk image.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub image_size: u64,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub image_digest: String,
    /// Bytes of the disk that a virtual machine sees, of a disk image or as its manifest says.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub virtual_size: u64,
    /// When the image itself was made and published, as it says; nanoseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub built_at: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published_at: Option<i64>,
    /// When it is out of date, as it says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outdated_at: Option<i64>,
    /// LXD's: sha256 in hex of the files as they came, metadata first.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub fingerprint: String,
    /// What the image says of itself: metadata.yaml's properties, an OCI config's labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub properties: BTreeMap<String, String>,
    /// How a container of it starts: of an OCI config.
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    pub config: serde_json::Value,
    /// IMGAPI: its own uuid, and that of the version it is a delta over.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uuid: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub origin: String,
    /// The manifest that announced it, as version 2 of IMGAPI's form; empty for none, and for versions of
    /// before format 7, which have it as a file in their tree.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub manifest: String,
    /// How the upload can be had as it came, if it was compressed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<Kept>,
}

/// How a compressed upload can be had again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kept {
    /// In pieces that a tree file of its own names, with this digest. `tried`: it cannot be made again.
    Stored { tree: Digest, tried: bool },
    /// By compressing what was uploaded.
    Made { method: Method },
}

impl VersionFacts {
    /// The digest of what was uploaded, unpacked.
    pub fn content_digest(&self) -> &str {
        if self.image_digest.is_empty() { &self.digest } else { &self.image_digest }
    }

    /// The recipe of what was uploaded, unpacked: of rootfs.tar, or number 1 where that was made of it or is
    /// not there.
    pub fn as_it_came(&self) -> u32 {
        u32::from(!self.image_digest.is_empty())
    }

    /// Every sha256 that the version is known by, in hex.
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
    /// The name it was written under.
    pub name: String,
    /// Whether that was in the root of the mount, not in the image.
    pub in_root: bool,
    pub mtime: i64,
    pub mode: u32,
    /// Whether this upload made the image: then a chmod of the receipt is one of the image.
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
    /// The version that it leads to for good; none: what `follows` says.
    pub number: Option<u32>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    #[serde(default, skip_serializing_if = "Follows::is_image")]
    pub follows: Follows,
    /// Set while it is in the trash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trashed: Option<InTrash>,
}

/// What an alias leads to that names no version by its number.
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

/// A version string, as `@22.04.5` in an image leads to a version. Of one name there is one in an image; it
/// shows as long as its version does.
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

/// Who uses a version: an entry of its `used_by`.
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
    /// The holder's own path, if it is a symlink: while that is not there, the lease is stale.
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
