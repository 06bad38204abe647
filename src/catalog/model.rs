//! What exists, in memory: small, and found by name, serial or id without a query.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::catalog::Row;
use crate::compress::Method;
use crate::digest::Digest;
use crate::error::Result;
use crate::manifest::Editable;
use crate::name::new_id;
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
}

impl Image {
    /// An image without versions.
    ///
    /// Errors: `Io` if there is no randomness for its id.
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
    /// Bytes and sha256 of what was uploaded, unpacked, where that is not rootfs.tar: of image.tar or the disk image.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub image_size: u64,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub image_digest: String,
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

    /// The recipe of what was uploaded, unpacked: of rootfs.tar, or number 1 where that was made of it or is not there.
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
    pub number: Option<u32>,
}

/// What a name in the root stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named {
    Image(u32),
    Alias(u32),
}

#[derive(Debug, Default)]
pub struct Model {
    pub images: BTreeMap<u32, Image>,
    pub versions: BTreeMap<u32, Version>,
    pub aliases: BTreeMap<u32, Alias>,
    /// Live names of the root.
    names: BTreeMap<String, Named>,
    /// Live versions: (image, number) to serial.
    numbers: BTreeMap<(u32, u32), u32>,
    pub default_image: Option<u32>,
    pub default_hidden: bool,
    pub next_serial: u32,
    /// Ids of blobs below this were given out, at least: a table that has fewer is cut.
    pub blobs: u32,
    /// How many commits led here.
    pub commit: u64,
}

impl Model {
    /// What a name in the root stands for.
    pub fn named(&self, name: &str) -> Option<Named> {
        self.names.get(name).copied()
    }

    /// All live names of the root, in order.
    pub fn names(&self) -> impl Iterator<Item = (&str, Named)> {
        self.names.iter().map(|(name, named)| (name.as_str(), *named))
    }

    /// The live image of this name; aliases do not count.
    pub fn image_named(&self, name: &str) -> Option<&Image> {
        match self.named(name)? {
            Named::Image(serial) => self.images.get(&serial),
            Named::Alias(_) => None,
        }
    }

    /// The image, if it is not in the trash.
    pub fn live_image(&self, serial: u32) -> Option<&Image> {
        self.images.get(&serial).filter(|i| i.trashed_at.is_none())
    }

    pub fn live_images(&self) -> impl Iterator<Item = &Image> {
        self.images.values().filter(|i| i.trashed_at.is_none())
    }

    /// The live versions of an image, by number.
    pub fn versions_of(&self, image: u32) -> impl DoubleEndedIterator<Item = &Version> {
        self.numbers.range((image, 0)..=(image, u32::MAX)).filter_map(|(_, serial)| self.versions.get(serial))
    }

    pub fn version(&self, image: u32, number: u32) -> Option<&Version> {
        self.versions.get(self.numbers.get(&(image, number))?)
    }

    /// The newest live version.
    pub fn latest(&self, image: u32) -> Option<&Version> {
        self.versions_of(image).next_back()
    }

    /// The version that `default` of an image leads to.
    pub fn default_version(&self, image: &Image) -> Option<&Version> {
        match image.pinned {
            Some(number) => self.version(image.serial, number),
            None => self.latest(image.serial),
        }
    }

    /// Whether a version can be seen: neither it nor its image is in the trash.
    pub fn is_live(&self, version: &Version) -> bool {
        version.trashed_at.is_none() && self.live_image(version.image).is_some()
    }

    /// The live aliases that lead to an image or one of its versions, by name.
    pub fn aliases_of(&self, image: u32) -> Vec<&Alias> {
        let live = |a: &&Alias| self.names.get(&a.name) == Some(&Named::Alias(a.serial));
        let mut found: Vec<&Alias> = self.aliases.values().filter(|a| a.image == image).filter(live).collect();
        found.sort_by(|a, b| a.name.cmp(&b.name));
        found
    }

    /// What is in the trash: name, and the serial of an image or a version.
    pub fn trash(&self) -> impl Iterator<Item = (&str, u32)> {
        let images =
            self.images.values().filter(|i| i.trashed_at.is_some()).filter_map(|i| Some((i.trash_name.as_deref()?, i.serial)));
        let versions =
            self.versions.values().filter(|v| v.trashed_at.is_some()).filter_map(|v| Some((v.trash_name.as_deref()?, v.serial)));
        images.chain(versions)
    }

    /// A name for the trash that is not in use: the wish, or the wish and a number.
    pub fn free_trash_name(&self, wish: &str) -> String {
        let taken = |name: &str| self.trash().any(|(n, _)| n == name);
        if !taken(wish) {
            return wish.to_owned();
        }
        (2..).map(|n| format!("{wish}~{n}")).find(|name| !taken(name)).expect("numbers do not end")
    }

    /// Every version that has a tree on the disk, live or in the trash.
    pub fn all_versions(&self) -> impl Iterator<Item = &Version> {
        self.versions.values()
    }

    /// Rows that make this model of an empty one.
    pub(super) fn rows(&self) -> Vec<Row> {
        let images = self.images.values().map(|image| Row::Image(image.clone().into()));
        let versions = self.versions.values().map(|version| Row::Version(version.clone().into()));
        let aliases = self.aliases.values().map(|alias| Row::Alias(alias.clone()));
        let default = Row::Default { image: self.default_image, hidden: self.default_hidden };
        images.chain(versions).chain(aliases).chain([default, Row::Blobs(self.blobs)]).collect()
    }

    pub(super) fn apply(&mut self, row: Row) {
        match row {
            Row::Image(image) => {
                self.unname_image(image.serial);
                let (serial, live) = (image.serial, image.trashed_at.is_none());
                if live {
                    self.names.insert(image.name.clone(), Named::Image(serial));
                }
                self.images.insert(serial, *image);
                self.rename_aliases(serial, live);
            }
            Row::Version(version) => {
                self.numbers.remove(&(version.image, version.number));
                if version.trashed_at.is_none() {
                    self.numbers.insert((version.image, version.number), version.serial);
                }
                self.versions.insert(version.serial, *version);
            }
            Row::Alias(alias) => {
                self.unname_alias(alias.serial);
                if self.live_image(alias.image).is_some() {
                    self.names.insert(alias.name.clone(), Named::Alias(alias.serial));
                }
                self.aliases.insert(alias.serial, alias);
            }
            Row::DropImage(serial) => {
                self.unname_image(serial);
                self.images.remove(&serial);
            }
            Row::DropVersion(serial) => {
                if let Some(version) = self.versions.remove(&serial)
                    && self.numbers.get(&(version.image, version.number)) == Some(&serial)
                {
                    self.numbers.remove(&(version.image, version.number));
                }
            }
            Row::DropAlias(serial) => {
                self.unname_alias(serial);
                self.aliases.remove(&serial);
            }
            Row::Blobs(bound) => self.blobs = self.blobs.max(bound),
            Row::Default { image, hidden } => (self.default_image, self.default_hidden) = (image, hidden),
        }
    }

    /// Aliases come and go with their image.
    fn rename_aliases(&mut self, image: u32, live: bool) {
        for alias in self.aliases.values().filter(|a| a.image == image) {
            if live {
                self.names.entry(alias.name.clone()).or_insert(Named::Alias(alias.serial));
            } else if self.names.get(&alias.name) == Some(&Named::Alias(alias.serial)) {
                self.names.remove(&alias.name);
            }
        }
    }

    fn unname_image(&mut self, serial: u32) {
        if let Some(old) = self.images.get(&serial)
            && self.names.get(&old.name) == Some(&Named::Image(serial))
        {
            self.names.remove(&old.name);
        }
    }

    fn unname_alias(&mut self, serial: u32) {
        if let Some(old) = self.aliases.get(&serial)
            && self.names.get(&old.name) == Some(&Named::Alias(serial))
        {
            self.names.remove(&old.name);
        }
    }
}
