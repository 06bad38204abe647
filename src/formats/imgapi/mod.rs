//! IMGAPI manifests: the `.imgmanifest` or `.dsmanifest` that is copied in beside its payload. Each is
//! checked before it is trusted.
//!
//! The rules are those of `imgadm install`; where they let JavaScript's conversions through (a number as
//! `name`, `type: "toString"`), the plain reading of the rule holds here. Source:
//! TritonDataCenter/node-imgmanifest 3.2.1, lib/imgmanifest.js, `validateMinimalManifest` and `upgradeTo2`.

mod validate;

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use validate::{
    NAMED_MAX, UUID, flag, has_form, instead, is_set, judge, judge_files, requirement, rule, shown, upgrade,
    whole,
};

/// The longest manifest that is read, in bytes.
pub const MANIFEST_MAX: usize = 1 << 20;

/// A validated manifest, always in version 2 form.
#[derive(Clone, Debug)]
pub struct Manifest {
    document: Map<String, Value>,
    files: Vec<File>,
}

/// One payload file as the manifest announces it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// 40 lower-case hexadecimal digits.
    pub sha1: String,
    /// In bytes, as stored; never 0.
    pub size: u64,
    /// `gzip`, `bzip2`, `xz` or `none`. A claim: old tools wrote `none` for xz, so the payload's magic
    /// decides.
    pub compression: String,
}

/// Later edits of an image that has a manifest.
pub struct Edits<'a> {
    /// Empty if it is as it came.
    pub description: &'a str,
    pub is_public: bool,
    pub is_disabled: bool,
    pub has_icon: bool,
    /// Other fields, by their names; see `EDITABLE`.
    pub fields: &'a BTreeMap<String, Value>,
}

impl Manifest {
    /// Reads a manifest: version 2 (`.imgmanifest`), or version 1 (`.dsmanifest`), which is upgraded.
    ///
    /// # Errors
    ///
    /// One sentence that names every broken field at once (the first 40 of them).
    pub fn parse(text: &[u8]) -> Result<Manifest, String> {
        let refused = |why: String| format!("the manifest is refused: {why}");
        if text.len() > MANIFEST_MAX {
            return Err(refused(format!("it has {} bytes, at most {MANIFEST_MAX} are read", text.len())));
        }
        let mut document = match serde_json::from_slice(text) {
            Ok(Value::Object(document)) => document,
            Ok(_) => return Err(refused("it is not a JSON object".into())),
            Err(e) => return Err(refused(format!("it is not valid JSON: {e}"))),
        };
        let mut broken = Vec::new();
        let has_creator = document.get("creator_uuid").is_some_and(is_set);
        match document.get("v").filter(|v| is_set(v)).map(whole) {
            Some(Some(1.0)) => document = upgrade(document, &mut broken),
            Some(Some(2.0)) => _ = document.insert("v".into(), 2.into()),
            Some(_) => broken.push(format!("v must be 1 or 2{}", instead(&document, "v"))),
            None if has_creator => document = upgrade(document, &mut broken),
            None => broken.push("v is missing".into()),
        }
        judge(&document, &mut broken);
        let files = judge_files(&document, &mut broken);
        // Deep nesting grows a hundredfold when it is indented, and text() must stay readable by parse().
        if serde_json::to_writer_pretty(vec![0; MANIFEST_MAX - 1].as_mut_slice(), &document).is_err() {
            broken.push(format!("written with indentation it is longer than {MANIFEST_MAX} bytes"));
        }
        if broken.is_empty() {
            return Ok(Manifest { document, files });
        }
        let unnamed = broken.len().saturating_sub(NAMED_MAX);
        broken.truncate(NAMED_MAX);
        if unnamed > 0 {
            broken.push(format!("and {unnamed} more"));
        }
        Err(refused(broken.join("; ")))
    }

    pub fn uuid(&self) -> &str {
        self.field("uuid").unwrap_or_default()
    }

    /// Not a file name: `..`, `/x` and `a/b` are valid here.
    pub fn name(&self) -> &str {
        self.field("name").unwrap_or_default()
    }

    /// Not a file name either: `..` and `a/b` are valid here.
    pub fn version(&self) -> &str {
        self.field("version").unwrap_or_default()
    }

    pub fn os(&self) -> &str {
        self.field("os").unwrap_or_default()
    }

    /// The field `type`: `zone-dataset`, `zvol`, ...; `null` while its maker has not finished.
    pub fn kind(&self) -> &str {
        self.field("type").unwrap_or_default()
    }

    /// The size of the disk of an image for a virtual machine, in bytes; 0 for other images. IMGAPI counts
    /// in MiB.
    pub fn image_bytes(&self) -> u64 {
        let size = self.document.get("image_size").and_then(whole).filter(|size| *size > 0.0);
        size.map_or(0, |size| (size as u64).saturating_mul(1 << 20))
    }

    /// The version string as a label. A slash is written as in names.
    pub fn label(&self) -> Option<String> {
        Some(self.version().replace('/', "%2F")).filter(|label| !label.is_empty())
    }

    /// A field as it came. `resize` and `deploy` are Danube's, and lie among the tags.
    pub fn value(&self, key: &str) -> Option<&Value> {
        match key {
            "resize" | "deploy" => self.document.get("tags")?.get(key),
            _ => self.document.get(key),
        }
    }

    /// The document with later edits of its image.
    pub fn edited(&self, edits: &Edits<'_>) -> String {
        let mut document = self.document.clone();
        if !edits.description.is_empty() {
            document.insert("description".into(), edits.description.into());
        }
        document.insert("public".into(), edits.is_public.into());
        if edits.has_icon {
            document.insert("icon".into(), true.into());
        }
        if edits.is_disabled {
            document.extend([("disabled".into(), true.into()), ("state".into(), "disabled".into())]);
        }
        for (key, value) in edits.fields {
            let into = match key.as_str() {
                "resize" | "deploy" => document.entry("tags").or_insert_with(|| json!({})).as_object_mut(),
                _ => Some(&mut document),
            };
            into.map(|into| into.insert(key.clone(), value.clone()));
        }
        pretty(&document)
    }

    /// Empty if there is none.
    pub fn description(&self) -> &str {
        self.field("description").unwrap_or_default()
    }

    /// The uuid of the image that an incremental payload builds on.
    pub fn origin(&self) -> Option<&str> {
        self.field("origin")
    }

    /// `YYYY-MM-DDTHH:MM:SS[.mmm]Z`: the form is checked, the calendar is not (month 13 passes).
    pub fn published_at(&self) -> Option<&str> {
        self.field("published_at").filter(|time| !time.is_empty())
    }

    /// False unless the manifest says otherwise. Version 1 says so by naming no users to whom it is
    /// restricted.
    pub fn is_public(&self) -> bool {
        self.document.get("public").and_then(flag).unwrap_or(false)
    }

    /// At most one, except for type `lxd` (two); none as long as the image is not activated.
    pub fn files(&self) -> &[File] {
        &self.files
    }

    /// The tags with a plain value. Nested ones (`docker:config`) are left out.
    pub fn tags(&self) -> BTreeMap<String, String> {
        let tags = self.document.get("tags").and_then(Value::as_object);
        let plain = tags.into_iter().flatten().filter_map(|(key, value)| match value {
            Value::String(text) => Some((key.clone(), text.clone())),
            Value::Number(_) | Value::Bool(_) => Some((key.clone(), value.to_string())),
            _ => None,
        });
        plain.collect()
    }

    /// The document with everything that came in it, pretty, with a newline at the end. `parse` can read
    /// it.
    pub fn text(&self) -> String {
        pretty(&self.document)
    }

    /// Like `text`, but without what `imgadm install` refuses or cannot handle: `v1`, `channels`, the
    /// details of an icon.
    pub fn export_text(&self) -> String {
        let mut document = self.document.clone();
        document.shift_remove("v1");
        document.shift_remove("channels");
        if let Some(icon) = document.get_mut("icon").filter(|icon| icon.is_object()) {
            *icon = true.into();
        }
        pretty(&document)
    }

    fn field(&self, key: &str) -> Option<&str> {
        self.document.get(key)?.as_str()
    }
}

/// Whether this JSON value is meant as a manifest, valid or not. Our own metadata.json has no `uuid`.
pub fn looks_like(value: &Value) -> bool {
    let has = |key| value.get(key).is_some();
    value.get("uuid").is_some_and(Value::is_string) && (has("v") || has("files") || has("creator_uuid"))
}

/// The additional fields that users may change in metadata.json: those that IMGAPI's UpdateImage can
/// change, and Danube's two tags. Source: TritonDataCenter/sdc-imgapi, docs/index.md, summary of
/// manifest fields, "Mutable?".
pub const EDITABLE: &[&str] = &[
    "homepage",
    "eula",
    "acl",
    "requirements",
    "users",
    "billing_tags",
    "traits",
    "generate_passwords",
    "inherited_directories",
    "nic_driver",
    "disk_driver",
    "cpu_type",
    "image_size",
    "channels",
    "resize",
    "deploy",
];

/// The fields of a manifest that metadata.json shows, but that nobody can change.
pub const SHOWN: &[&str] = &["owner", "urn"];

/// Checks a new value of one of `EDITABLE`.
///
/// # Errors
///
/// A clause that says what the value must be.
pub fn check_edit(key: &str, value: &Value) -> Result<(), String> {
    if matches!(key, "resize" | "deploy") {
        return if value.is_boolean() { Ok(()) } else { Err("is true or false".into()) };
    }
    // The rules of some fields depend on this type.
    let kind = if key == "inherited_directories" { "zone-dataset" } else { "zvol" };
    let document = Map::from_iter([("type".to_owned(), Value::from(kind)), (key.to_owned(), value.clone())]);
    match rule(&document, key, value) {
        Some((true, _)) => {}
        Some((false, want)) => return Err(format!("is {want}")),
        None => return Err("is no field of a manifest".into()),
    }
    let requirements = if key == "requirements" { value.as_object() } else { None };
    for (of, value) in requirements.into_iter().flatten() {
        match requirement(requirements.unwrap_or(&document), of, value) {
            Some((true, _)) => {}
            Some((false, want)) => return Err(format!("{of} is {want}")),
            None => return Err(format!("{} is no known requirement", shown(of))),
        }
    }
    Ok(())
}

/// Whether a name is a uuid in lower case, as Danube and IMGAPI call their images.
pub fn is_uuid_text(name: &str) -> bool {
    has_form(name, UUID)
}

/// Whether a file name is that of a manifest: `X.imgmanifest`, `X.dsmanifest`, `X.manifest`, or
/// `manifest` as in Danube's datasets/UUID/.
pub fn is_manifest_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let stem =
        [".imgmanifest", ".dsmanifest", ".manifest"].iter().find_map(|suffix| name.strip_suffix(suffix));
    name == "manifest" || stem.is_some_and(|stem| !stem.is_empty())
}

fn pretty(document: &Map<String, Value>) -> String {
    // A map of strings and values can always be written into memory.
    format!("{}\n", serde_json::to_string_pretty(document).unwrap_or_default())
}

#[cfg(test)]
mod tests;
