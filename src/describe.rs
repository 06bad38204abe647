//! cat metadata.json, and editing it: how images and versions describe themselves.

use serde_json::{Map, Value};

use crate::catalog::{Image, Kept, Model, Version};
use crate::error::{Error, Result};
use crate::manifest::{Cost, EDITABLE, Editable, METADATA_MAX, time};

/// An image's metadata.json.
pub fn image(model: &Model, image: &Image) -> Value {
    let newest = model.latest(image.serial);
    let versions = model.versions_of(image.serial).map(|v| {
        object([
            ("number", v.number.into()),
            ("status", "active".into()),
            ("size", v.facts.size.into()),
            ("created_at", time(v.created_at)),
            ("digest", v.facts.digest.clone().into()),
        ])
    });
    let status = if image.trashed_at.is_some() {
        "deleting"
    } else if newest.is_none() {
        "pending"
    } else {
        "active"
    };
    let number = |v: Option<&Version>| v.map_or(Value::Null, |v| v.number.into());
    let aliases: Vec<Value> = model.aliases_of(image.serial).iter().map(|a| a.name.clone().into()).collect();
    let e = &image.editable;
    object([
        ("id", image.id.clone().into()),
        ("name", image.name.clone().into()),
        ("status", status.into()),
        ("default_version", number(model.default_version(image))),
        ("latest_version", number(newest)),
        ("aliases", Value::Array(aliases)),
        ("is_default", (model.default_image == Some(image.serial)).into()),
        ("immutable", false.into()),
        ("public", (image.mode & 0o004 != 0).into()),
        ("description", e.description.clone().into()),
        ("type", e.kind.clone().into()),
        ("os", e.os.clone().into()),
        ("release", e.release.clone().into()),
        ("architecture", e.architecture.clone().into()),
        ("variant", e.variant.clone().into()),
        ("tags", e.tags.clone().into()),
        ("properties", serde_json::to_value(&e.properties).expect("a map of strings")),
        ("keep_upload", e.keep_upload.map_or(Value::Null, |keep| keep.name().into())),
        ("storage", e.storage.name().into()),
        ("created_at", time(image.created_at)),
        ("updated_at", time(image.updated_at)),
        ("versions", Value::Array(versions.collect())),
    ])
}

/// A version's metadata.json.
pub fn version(model: &Model, version: &Version, cost: Cost) -> Value {
    let f = &version.facts;
    let kept = match &f.kept {
        None => "no",
        Some(Kept::Stored { .. }) => "yes",
        Some(Kept::Made { .. }) => "made again",
    };
    let upload = object([
        ("name", f.upload_name.clone().into()),
        ("compression", f.compression.clone().into()),
        ("size", f.upload_size.into()),
        ("sha256", f.upload_sha256.clone().into()),
        ("sha1", Some(&f.upload_sha1).filter(|sha1| !sha1.is_empty()).cloned().into()),
        ("kept", kept.into()),
    ]);
    let counts = object([
        ("files", f.counts.files.into()),
        ("directories", f.counts.directories.into()),
        ("symlinks", f.counts.symlinks.into()),
        ("hard_links", f.counts.hard_links.into()),
        ("devices", f.counts.devices.into()),
        ("fifos", f.counts.fifos.into()),
    ]);
    let mut document = object([
        ("id", version.id.clone().into()),
        ("version", version.number.into()),
        ("status", if model.is_live(version) { "active" } else { "deleting" }.into()),
        ("created_at", time(version.created_at)),
        ("size", f.size.into()),
        ("digest", f.digest.clone().into()),
        ("upload", upload),
        ("counts", counts),
        ("logical_bytes", f.counts.logical_bytes.into()),
        ("unique_bytes", cost.unique_bytes.into()),
        ("stored_bytes", cost.stored_bytes.into()),
        ("os", f.os.clone().into()),
        ("release", f.release.clone().into()),
        ("architecture", f.architecture.clone().into()),
    ]);
    // Only of what has them: most versions are the tar of a rootfs.
    let mut add = |key: &str, there: bool, value: Value| {
        if there {
            document[key] = value;
        }
    };
    add("format", !f.format.is_empty(), f.format.clone().into());
    add("image_size", f.image_size > 0, f.image_size.into());
    add("image_digest", !f.image_digest.is_empty(), f.image_digest.clone().into());
    add("fingerprint", !f.fingerprint.is_empty(), f.fingerprint.clone().into());
    add("properties", !f.properties.is_empty(), serde_json::to_value(&f.properties).unwrap_or_default());
    add("config", !f.config.is_null(), f.config.clone());
    add("uuid", !f.uuid.is_empty(), f.uuid.clone().into());
    add("origin", !f.origin.is_empty(), f.origin.clone().into());
    document
}

/// Works out what a new text of an image's metadata.json changes.
///
/// A key that is left out stays; null clears it. Errors: `BadMetadata` for anything but a change of editable keys.
pub fn edited(model: &Model, of: &Image, text: &[u8]) -> Result<Editable> {
    let bad = |why: String| Error::BadMetadata { why };
    if text.len() > METADATA_MAX {
        return Err(bad(format!("it is over {METADATA_MAX} bytes")));
    }
    let parsed: Value = serde_json::from_slice(text).map_err(|e| bad(e.to_string()))?;
    let Value::Object(new) = parsed else { return Err(bad("it is no JSON object".into())) };
    let current = image(model, of);
    let mut result = of.editable.clone();
    for (key, value) in &new {
        match current.get(key) {
            None => return Err(bad(format!("{key:?} is no known key"))),
            Some(old) if old == value => {}
            Some(_) if EDITABLE.contains(&key.as_str()) => result.set(key, value)?,
            Some(_) => {
                return Err(bad(format!(
                    "{key:?} is kept by imgfs: leave it as it is, or read the file again if it changed meanwhile"
                )));
            }
        }
    }
    Ok(result)
}

/// Changes one editable key from text, as an extended attribute does: `description`, or `properties.KEY`.
pub fn edited_key(of: &Image, key: &str, value: &str) -> Result<Editable> {
    let mut result = of.editable.clone();
    if let Some(property) = key.strip_prefix("properties.") {
        result.properties.insert(property.to_owned(), value.to_owned());
    } else if key == "tags" {
        result.tags = value.split(',').map(|t| t.trim().to_owned()).filter(|t| !t.is_empty()).collect();
    } else {
        result.set(key, &Value::String(value.to_owned()))?;
    }
    Ok(result)
}

fn object<const N: usize>(pairs: [(&str, Value); N]) -> Value {
    Value::Object(pairs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect::<Map<_, _>>())
}
