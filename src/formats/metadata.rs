//! The keys of metadata.json that users may change, and the form of their values.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::base::clock::{TIMES, duration, parse_time};
use crate::error::{Error, Result};
use crate::formats::imgapi;

/// The longest metadata.json that is read.
pub const METADATA_MAX: usize = 1 << 20;

/// The keys of an image that users may change.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Editable {
    pub description: String,
    /// `container` or `vm`.
    #[serde(rename = "type")]
    pub kind: String,
    pub os: String,
    pub release: String,
    pub architecture: String,
    pub variant: String,
    pub tags: Vec<String>,
    pub properties: BTreeMap<String, String>,
    /// `None`: the setting of the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_upload: Option<KeepUpload>,
    #[serde(default, skip_serializing_if = "Storage::is_auto")]
    pub storage: Storage,
    /// How many of the newest versions stay. `None`: all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_versions: Option<u32>,
    /// When the image is deleted by itself; nanoseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<i64>,
    #[serde(flatten)]
    pub offer: Offer,
    /// After how many seconds without a use the image is deleted by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_unused: Option<u64>,
    /// Fields of IMGAPI manifests that were edited, by name; see `imgapi::EDITABLE`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub manifest: BTreeMap<String, Value>,
}

/// To whom an image is offered; see RULES.md for the names in the four systems.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// `status` is `deleted`: not listed, no new leases, and deleted with the last lease.
    #[serde(default, rename = "hidden", skip_serializing_if = "std::ops::Not::not")]
    pub deleted: bool,
    /// `status` is `hidden`: not listed, but used as before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unlisted: bool,
    /// `status` is `disabled`: listed, but no new leases.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub disabled: bool,
    /// Not offered to somebody who looks for an image; used as before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deprecated: bool,
}

impl Offer {
    /// The value of `status`. `None` for an ordinary image.
    pub fn status(self) -> Option<&'static str> {
        match self {
            Offer { deleted: true, .. } => Some("deleted"),
            Offer { unlisted: true, .. } => Some("hidden"),
            Offer { disabled: true, .. } => Some("disabled"),
            _ => None,
        }
    }

    /// Whether `ls` of the root shows it.
    pub fn is_listed(self) -> bool {
        !self.deleted && !self.unlisted
    }

    /// Whether it takes new leases, and may become a default.
    pub fn takes_users(self) -> bool {
        !self.deleted && !self.disabled
    }

    /// Whether it shows to somebody who looks for an image: in `.imgfs/by`, and as the default of a type.
    pub fn is_offered(self) -> bool {
        self.is_listed() && self.takes_users() && !self.deprecated
    }
}

/// Where an image's content lies: loose, which is fast, or in packs, which are small; see repack.rs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Storage {
    Fast,
    #[default]
    Auto,
    Small,
}

impl Storage {
    pub fn parse(text: &str) -> Option<Storage> {
        [Storage::Fast, Storage::Auto, Storage::Small].into_iter().find(|s| s.name() == text)
    }

    pub fn name(self) -> &'static str {
        match self {
            Storage::Fast => "fast",
            Storage::Auto => "auto",
            Storage::Small => "small",
        }
    }

    fn is_auto(&self) -> bool {
        *self == Storage::Auto
    }
}

/// Whether imgfs can give back compressed uploads as they came; see keep.rs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeepUpload {
    #[default]
    Never,
    Always,
    Exact,
}

impl KeepUpload {
    pub fn parse(text: &str) -> Option<KeepUpload> {
        [KeepUpload::Never, KeepUpload::Always, KeepUpload::Exact].into_iter().find(|k| k.name() == text)
    }

    /// The setting for an upload whose digest was announced. imgfs must be able to give back both the
    /// upload and the announcement.
    pub fn of_announced(self) -> KeepUpload {
        if self == KeepUpload::Never { KeepUpload::Exact } else { self }
    }

    pub fn name(self) -> &'static str {
        match self {
            KeepUpload::Never => "never",
            KeepUpload::Always => "always",
            KeepUpload::Exact => "exact",
        }
    }
}

/// What an image can be: a tree to run in, or a disk.
pub const TYPES: &[&str] = &["container", "vm"];

impl Editable {
    pub fn new() -> Editable {
        Editable { kind: "container".into(), ..Editable::default() }
    }

    /// Changes one key. Null or an empty value clears it.
    ///
    /// # Errors
    ///
    /// `BadMetadata` if no such key can be changed, or it does not take the value.
    pub fn set(&mut self, key: &str, value: &Value) -> Result<()> {
        let refused = |why: String| Error::BadMetadata { why: format!("{key} {why}") };
        self.take(key, value).map_err(refused)
    }

    /// Changes one key. The error is the rest of a sentence about the key.
    fn take(&mut self, key: &str, value: &Value) -> std::result::Result<(), String> {
        let text = match value {
            Value::Null => Some(""),
            Value::String(text) => Some(text.as_str()),
            _ => None,
        };
        match key {
            "type" => match text {
                Some("container" | "") => self.kind = "container".into(),
                Some("vm") => self.kind = "vm".into(),
                _ => return Err("is container or vm".into()),
            },
            "keep_upload" => {
                self.keep_upload = choice(text, KeepUpload::parse).ok_or("is never, always or exact")?;
            }
            "storage" => {
                let storage = choice(text, Storage::parse).ok_or("is fast, auto or small")?;
                self.storage = storage.unwrap_or_default();
            }
            "keep_versions" => {
                let number = value.as_u64().map_or_else(|| text.map(str::to_owned), |n| Some(n.to_string()));
                let parse = |text: &str| text.parse().ok().filter(|n: &u32| *n > 0);
                let keep = choice(number.as_deref(), parse).filter(|keep| keep.is_some() || value.is_null());
                self.keep_versions = keep.ok_or("is a number from 1 on")?;
            }
            "expires_at" => {
                let seconds = value.as_u64().map(|seconds| seconds.to_string());
                self.expires_at = choice(seconds.as_deref().or(text), parse_time).ok_or(TIMES)?;
            }
            "expires_unused" => {
                let parse = |text: &str| duration(text).filter(|seconds| *seconds > 0);
                self.expires_unused =
                    choice(text, parse).ok_or("is how long nobody has used the image: 10d, 12h, 30m")?;
            }
            "status" => {
                let (deleted, unlisted, disabled) = match text {
                    Some("deleted") => (true, false, false),
                    Some("hidden") => (false, true, false),
                    Some("disabled") => (false, false, true),
                    Some("active" | "pending" | "") => (false, false, false),
                    _ => return Err("is active, hidden, disabled or deleted".into()),
                };
                self.offer = Offer { deleted, unlisted, disabled, ..self.offer };
            }
            "deprecated" => match (value, text) {
                (Value::Bool(on), _) => self.offer.deprecated = *on,
                (_, Some("true" | "yes" | "1")) => self.offer.deprecated = true,
                (_, Some("false" | "no" | "0" | "")) => self.offer.deprecated = false,
                _ => return Err("is true or false".into()),
            },
            "description" => self.description = text.ok_or("is a string")?.into(),
            "os" => self.os = text.ok_or("is a string")?.into(),
            "release" => self.release = text.ok_or("is a string")?.into(),
            "architecture" => self.architecture = text.ok_or("is a string")?.into(),
            "variant" => self.variant = text.ok_or("is a string")?.into(),
            "tags" => self.tags = strings(value).ok_or("is a list of strings")?,
            "properties" => self.properties = string_map(value).ok_or("is a map of strings")?,
            // Without an edit, the manifest's value counts.
            _ if imgapi::EDITABLE.contains(&key) && value.is_null() => drop(self.manifest.remove(key)),
            _ if imgapi::EDITABLE.contains(&key) => {
                imgapi::check_edit(key, value)?;
                self.manifest.insert(key.to_owned(), value.clone());
            }
            _ => return Err("is no key that can be changed".into()),
        }
        Ok(())
    }
}

/// Whether users may change this key.
pub fn is_editable(key: &str) -> bool {
    EDITABLE.contains(&key) || imgapi::EDITABLE.contains(&key)
}

pub const EDITABLE: &[&str] = &[
    "description",
    "type",
    "os",
    "release",
    "architecture",
    "variant",
    "tags",
    "properties",
    "keep_upload",
    "storage",
    "keep_versions",
    "expires_at",
    "expires_unused",
    "status",
    "deprecated",
    "immutable",
];

/// The cost of a version, computed on request.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    /// How many bytes of content no other version has.
    pub unique_bytes: u64,
    /// How many bytes on the disk its deletion would free: its unique content and its tree.
    pub stored_bytes: u64,
}

/// The editable keys in a metadata.json that came with an image. Keys that imgfs manages are skipped.
///
/// # Errors
///
/// `BadMetadata` if it is no JSON object.
pub fn editable_keys(text: &[u8]) -> Result<Vec<(String, Value)>> {
    let bad = |why: String| Error::BadMetadata { why };
    match serde_json::from_slice(text).map_err(|e| bad(e.to_string()))? {
        Value::Object(keys) => Ok(keys.into_iter().filter(|(k, _)| is_editable(k)).collect()),
        _ => Err(bad("it is not a JSON object".into())),
    }
}

/// Parses a text; an empty text means no value. The outer `None` if the text has no meaning.
fn choice<T>(text: Option<&str>, parse: impl Fn(&str) -> Option<T>) -> Option<Option<T>> {
    match text? {
        "" => Some(None),
        text => parse(text).map(Some),
    }
}

/// A list of strings; null is an empty one.
fn strings(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::Null => Some(Vec::new()),
        Value::Array(list) => list.iter().map(|text| text.as_str().map(str::to_owned)).collect(),
        _ => None,
    }
}

/// A map of strings; null is an empty one.
fn string_map(value: &Value) -> Option<BTreeMap<String, String>> {
    match value {
        Value::Null => Some(BTreeMap::new()),
        Value::Object(map) => {
            map.iter().map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
        }
        _ => None,
    }
}
