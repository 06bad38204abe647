//! cat metadata.json, and editing it: how images and versions describe themselves.

use std::collections::{BTreeSet, HashSet};

use serde_json::{Map, Value};

use crate::base::clock::{duration_text, time};
use crate::catalog::{Alias, Image, Kept, Model, Version};
use crate::error::{Error, Result};
use crate::formats::imgapi::{self, Manifest};
use crate::formats::metadata::{Cost, Editable, METADATA_MAX, is_editable};
use crate::images::rules::{By, set_immutable};

/// An image's metadata.json.
pub fn image(model: &Model, image: &Image) -> Value {
    let newest = model.latest(image.serial);
    let versions = model.versions_of(image.serial).map(|v| listed_version(model, v));
    let status = if image.trashed_at.is_some() {
        "deleting"
    } else if let Some(status) = image.editable.offer.status() {
        status
    } else if newest.is_none() {
        "pending"
    } else {
        "active"
    };
    let number = |v: Option<&Version>| v.map_or(Value::Null, |v| v.number.into());
    let aliases = model.aliases_of(image.serial).into_iter().map(alias);
    let e = &image.editable;
    let mut document = object([
        ("id", image.id.clone().into()),
        ("name", image.name.clone().into()),
        ("status", status.into()),
        ("default_version", number(model.default_version(image))),
        ("latest_version", number(newest)),
        ("aliases", Value::Array(aliases.collect())),
        ("is_default", (model.default_image == Some(image.serial)).into()),
        ("immutable", image.rules.immutable.is_some().into()),
        ("immutable_by", image.rules.immutable.as_ref().map(|by| by.uid).into()),
        ("public", (image.mode & 0o004 != 0).into()),
        ("deprecated", e.offer.deprecated.into()),
        ("description", e.description.clone().into()),
        ("type", e.kind.clone().into()),
        ("os", e.os.clone().into()),
        ("os_type", os_type(&e.os, &e.kind).into()),
        ("release", e.release.clone().into()),
        ("architecture", e.architecture.clone().into()),
        ("variant", e.variant.clone().into()),
        ("tags", e.tags.clone().into()),
        ("properties", serde_json::to_value(&e.properties).expect("a map of strings")),
        ("keep_upload", e.keep_upload.map_or(Value::Null, |keep| keep.name().into())),
        ("storage", e.storage.name().into()),
        ("keep_versions", e.keep_versions.into()),
        ("expires_at", e.expires_at.map_or(Value::Null, time)),
        ("expires_unused", e.expires_unused.map(duration_text).into()),
        ("last_used_at", image.rules.last_used_at.map_or(Value::Null, time)),
        ("created_at", time(image.created_at)),
        ("updated_at", time(image.updated_at)),
        ("versions", Value::Array(versions.collect())),
    ]);
    add_manifest(&mut document, e, newest);
    document
}

/// Danube's name for what runs in an image: a virtual machine or a zone, and the system in it.
/// Source: esdc-ce, vms/models/vm.py, OSTYPE. Names of distributions are those of os-release(5).
fn os_type(os: &str, kind: &str) -> Option<&'static str> {
    const BSD: &[&str] = &["bsd", "freebsd", "openbsd", "netbsd", "dragonfly"];
    const SUNOS: &[&str] = &["smartos", "illumos", "omnios", "openindiana", "solaris", "sunos", "tribblix"];
    let (os, vm) = (os.to_ascii_lowercase(), kind == "vm");
    if os.is_empty() || os == "other" {
        return None;
    }
    Some(match (os.as_str(), vm) {
        (os, true) if os.starts_with("windows") => "Windows VM",
        (os, true) if BSD.contains(&os) => "BSD VM",
        (os, true) if SUNOS.contains(&os) => "SunOS VM",
        (os, false) if SUNOS.contains(&os) => "SunOS Zone",
        (os, false) if BSD.contains(&os) || os.starts_with("windows") => return None,
        (_, true) => "Linux VM",
        (_, false) => "Linux Zone",
    })
}

/// What an image's metadata.json says about a version. `uuid` and `fingerprint` only appear for
/// versions that have one.
fn listed_version(model: &Model, v: &Version) -> Value {
    let mut entry = object([
        ("number", v.number.into()),
        ("status", "active".into()),
        ("size", v.facts.size.into()),
        ("created_at", time(v.created_at)),
        ("digest", v.facts.digest.clone().into()),
        ("labels", labels_of(model, v)),
    ]);
    for (key, text) in [("uuid", &v.facts.uuid), ("fingerprint", &v.facts.fingerprint)] {
        if !text.is_empty() {
            entry[key] = text.clone().into();
        }
    }
    entry
}

/// An image as `imgfs ls` gets it. It is the image's metadata.json; each version also lists its known
/// sha256s and its users.
pub fn listed(model: &Model, of: &Image) -> Value {
    let mut document = image(model, of);
    for (entry, version) in
        document["versions"].as_array_mut().into_iter().flatten().zip(model.versions_of(of.serial))
    {
        let known_by: BTreeSet<&str> = version.facts.sha256s().collect();
        entry["sha256"] = known_by.into_iter().map(Value::from).collect();
        entry["used_by"] =
            model.leases_of(version.serial).map(|lease| Value::from(lease.name.clone())).collect();
    }
    document
}

/// The additional fields of IMGAPI and Danube. They appear for images that come with a manifest, or if
/// somebody has set one of them.
fn add_manifest(document: &mut Value, editable: &Editable, newest: Option<&Version>) {
    let text = newest.map(|v| v.facts.manifest.as_str()).unwrap_or_default();
    let manifest =
        Some(text).filter(|text| !text.is_empty()).and_then(|text| Manifest::parse(text.as_bytes()).ok());
    let own = |key: &str| manifest.as_ref().and_then(|manifest| manifest.value(key));
    for key in imgapi::SHOWN.iter().chain(imgapi::EDITABLE) {
        if let Some(value) = editable.manifest.get(*key).or_else(|| own(key)) {
            document[*key] = value.clone();
        }
    }
}

fn alias(a: &Alias) -> Value {
    object([
        ("name", a.name.clone().into()),
        ("version", a.number.into()),
        ("description", a.description.clone().into()),
    ])
}

fn labels_of(model: &Model, version: &Version) -> Value {
    model
        .labels_of(version.image)
        .filter(|l| l.number == version.number)
        .map(|l| Value::from(l.name.clone()))
        .collect()
}

/// A version's metadata.json. `stale` are the leases that no longer count.
pub fn version(model: &Model, version: &Version, cost: Cost, stale: &HashSet<u32>) -> Value {
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
    let here = |a: &&Alias| a.number == Some(version.number);
    let aliases = model.aliases_of(version.image).into_iter().filter(here).map(alias);
    let used_by = model.leases_of(version.serial).map(|lease| {
        let f = &lease.facts;
        object([
            ("name", lease.name.clone().into()),
            ("uid", f.uid.into()),
            ("since", time(f.mtime)),
            ("expires_at", f.expires_at.map_or(Value::Null, time)),
            ("path", f.target.clone().into()),
            ("stale", stale.contains(&lease.serial).into()),
            ("text", f.text.clone().into()),
        ])
    });
    let mut document = object([
        ("id", version.id.clone().into()),
        ("version", version.number.into()),
        ("status", if model.is_live(version) { "active" } else { "deleting" }.into()),
        ("created_at", time(f.built_at.unwrap_or(version.created_at))),
        ("published_at", time(f.published_at.unwrap_or(version.created_at))),
        ("uploaded_at", time(version.created_at)),
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
        ("labels", labels_of(model, version)),
        ("aliases", aliases.collect()),
        ("used_by", used_by.collect()),
    ]);
    // Only versions that have these show them: most versions are the tar of a rootfs.
    let mut add = |key: &str, there: bool, value: Value| {
        if there {
            document[key] = value;
        }
    };
    add("format", !f.format.is_empty(), f.format.clone().into());
    add("image_size", f.image_size > 0, f.image_size.into());
    add("virtual_size", f.virtual_size > 0, f.virtual_size.into());
    add("expiry_date", f.outdated_at.is_some(), f.outdated_at.map_or(Value::Null, time));
    add("image_digest", !f.image_digest.is_empty(), f.image_digest.clone().into());
    add("fingerprint", !f.fingerprint.is_empty(), f.fingerprint.clone().into());
    add("properties", !f.properties.is_empty(), serde_json::to_value(&f.properties).unwrap_or_default());
    add("config", !f.config.is_null(), f.config.clone());
    add("uuid", !f.uuid.is_empty(), f.uuid.clone().into());
    add("origin", !f.origin.is_empty(), f.origin.clone().into());
    document
}

/// Applies a new text of metadata.json to an image. Returns the aliases of the image that it changes.
///
/// A missing key stays as it is; null clears it.
///
/// # Errors
///
/// `BadMetadata` for anything but a change of editable keys; `Immutable`.
pub fn edit(model: &Model, of: &mut Image, by: By, text: &[u8]) -> Result<Vec<Alias>> {
    let bad = |why: String| Error::BadMetadata { why };
    if text.len() > METADATA_MAX {
        return Err(bad(format!("it is over {METADATA_MAX} bytes")));
    }
    let parsed: Value = serde_json::from_slice(text).map_err(|e| bad(e.to_string()))?;
    let Value::Object(new) = parsed else { return Err(bad("it is not a JSON object".into())) };
    let current = image(model, of);
    let mut aliases = Vec::new();
    for (key, value) in &new {
        match current.get(key) {
            Some(old) if key == "aliases" && old != value => aliases = edit_aliases(model, of, value)?,
            // The key does not show because nobody has set it.
            None if imgapi::EDITABLE.contains(&key.as_str()) => set(of, by, key, value)?,
            None => return Err(bad(format!("{key:?} is no known key"))),
            Some(old) if old == value => {}
            // The value may be newer than the text that the editor has read.
            Some(_) if key == "last_used_at" => {}
            Some(_) if is_editable(key) => set(of, by, key, value)?,
            Some(_) => {
                return Err(bad(format!(
                    "{key:?} is kept by imgfs: leave it as it is, or read the file again if it changed meanwhile"
                )));
            }
        }
    }
    Ok(aliases)
}

/// The aliases whose descriptions the new list changes. links.rs decides which aliases exist, and what
/// they lead to.
fn edit_aliases(model: &Model, of: &Image, list: &Value) -> Result<Vec<Alias>> {
    let all = model.aliases_of(of.serial);
    let described = |a: &&Alias| {
        let new = list.as_array()?.iter().find(|new| new["name"] == a.name)?["description"].as_str()?;
        Some(Alias { description: new.to_owned(), ..(*a).clone() })
    };
    let new: Vec<Alias> = all.iter().filter_map(described).collect();
    if new.len() < all.len() || Value::Array(new.iter().map(alias).collect()) != *list {
        let why = "aliases: their descriptions can be changed here, and no more; links are made with ln -s";
        return Err(Error::BadMetadata { why: why.into() });
    }
    Ok(new)
}

/// Changes one editable key from text, as an extended attribute does: `description`, `properties.KEY`,
/// or an alias's description, `aliases.NAME`. An empty text clears it.
///
/// # Errors
///
/// `BadMetadata`, `Immutable`, `NoAttribute`.
pub fn edit_key(model: &Model, of: &mut Image, by: By, key: &str, value: &str) -> Result<Vec<Alias>> {
    let editable = &mut of.editable;
    if let Some(name) = key.strip_prefix("aliases.") {
        let of = model.aliases_of(of.serial).into_iter().find(|a| a.name == name);
        let of = of.ok_or_else(|| Error::NoAttribute { name: key.to_owned() })?;
        return Ok(vec![Alias { description: value.to_owned(), ..of.clone() }]);
    }
    if let Some(property) = key.strip_prefix("properties.") {
        if value.is_empty() {
            editable.properties.remove(property);
        } else {
            editable.properties.insert(property.to_owned(), value.to_owned());
        }
    } else if key == "tags" {
        editable.tags = value.split(',').map(|t| t.trim().to_owned()).filter(|t| !t.is_empty()).collect();
    } else {
        // These keys take words for values that are not text in JSON.
        let value = match (key, value) {
            ("immutable", "true" | "yes" | "1") => true.into(),
            ("immutable", "false" | "no" | "0" | "") => false.into(),
            ("keep_versions", "") => Value::Null,
            (key, "") if imgapi::EDITABLE.contains(&key) => Value::Null,
            // Here any value but text is written as JSON.
            (key, value) if imgapi::EDITABLE.contains(&key) => {
                serde_json::from_str(value).unwrap_or_else(|_| value.into())
            }
            _ => value.into(),
        };
        set(of, by, key, &value)?;
    }
    Ok(Vec::new())
}

fn set(of: &mut Image, by: By, key: &str, value: &Value) -> Result<()> {
    match (key, value) {
        ("immutable", Value::Bool(on)) => set_immutable(of, by, *on),
        ("immutable", Value::Null) => set_immutable(of, by, false),
        ("immutable", _) => Err(Error::BadMetadata { why: "immutable is true or false".into() }),
        _ => of.editable.set(key, value),
    }
}

fn object<const N: usize>(pairs: [(&str, Value); N]) -> Value {
    Value::Object(pairs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect::<Map<_, _>>())
}
