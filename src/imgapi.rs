//! IMGAPI manifests: the `.imgmanifest` or `.dsmanifest` copied in beside its payload, checked before it is believed.
//!
//! The rules are those of `imgadm install`; where they let JavaScript's conversions through (a number as `name`,
//! `type: "toString"`), the plain reading of the rule holds here.
//! Source: TritonDataCenter/node-imgmanifest 3.2.1, lib/imgmanifest.js, `validateMinimalManifest` and `upgradeTo2`.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// The longest manifest that is read, in bytes.
pub const MANIFEST_MAX: usize = 1 << 20;

const REQUIRED: &[&str] = &["v", "uuid", "name", "version", "type", "os"];
const REQUIRED_OF_ZVOL: &[&str] = &["nic_driver", "disk_driver", "cpu_type", "image_size"];
const TYPES: &[&str] = &["zone-dataset", "lx-dataset", "zvol", "docker", "lxd", "other"];
const SYSTEMS: &[&str] = &["smartos", "linux", "windows", "bsd", "illumos", "other"];
const STATES: &[&str] = &["active", "unactivated", "disabled", "failed", "creating"];
const COMPRESSIONS: &[&str] = &["gzip", "bzip2", "xz", "none"];

/// Fields that version 2 has no place for; an upgraded manifest keeps them below `v1`.
const V1_ONLY: &[&str] = &[
    "creator_uuid",
    "creator_name",
    "creator_admin",
    "vendor_uuid",
    "owner_uuid",
    "restricted_to_uuid",
    "cloud_name",
    "platform_type",
    "created_at",
    "updated_at",
    "_url",
];

/// A sentence names at most this many broken fields; a megabyte has room for very many unknown ones.
const NAMED_MAX: usize = 40;

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
    /// `gzip`, `bzip2`, `xz` or `none`. A claim: old tools wrote `none` for xz, so the payload's magic decides.
    pub compression: String,
}

impl Manifest {
    /// Reads a manifest: version 2 (`.imgmanifest`), or version 1 (`.dsmanifest`), which is upgraded.
    ///
    /// Errors: one sentence that names every broken field at once (the first 40 of them).
    pub fn parse(text: &[u8]) -> Result<Manifest, String> {
        let refused = |why: String| format!("the manifest is refused: {why}");
        if text.len() > MANIFEST_MAX {
            return Err(refused(format!("it has {} bytes, at most {MANIFEST_MAX} are read", text.len())));
        }
        let mut document = match serde_json::from_slice(text) {
            Ok(Value::Object(document)) => document,
            Ok(_) => return Err(refused("it is no JSON object".into())),
            Err(e) => return Err(refused(format!("it is no JSON: {e}"))),
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

    /// The field `type`: `zone-dataset`, `zvol`, ...; `null` while the maker is still at it.
    pub fn kind(&self) -> &str {
        self.field("type").unwrap_or_default()
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

    /// False unless the manifest says otherwise; version 1 says so by not naming who it is restricted to.
    pub fn is_public(&self) -> bool {
        self.document.get("public").and_then(flag).unwrap_or(false)
    }

    /// At most one, except for type `lxd` (two); none as long as the image is not activated.
    pub fn files(&self) -> &[File] {
        &self.files
    }

    /// The tags that have a plain value; nested ones (`docker:config`) are left out.
    pub fn tags(&self) -> BTreeMap<String, String> {
        let tags = self.document.get("tags").and_then(Value::as_object);
        let plain = tags.into_iter().flatten().filter_map(|(key, value)| match value {
            Value::String(text) => Some((key.clone(), text.clone())),
            Value::Number(_) | Value::Bool(_) => Some((key.clone(), value.to_string())),
            _ => None,
        });
        plain.collect()
    }

    /// The document with all it came with, pretty, with a newline at the end. `parse` takes it back.
    pub fn text(&self) -> String {
        pretty(&self.document)
    }

    /// As `text`, less what `imgadm install` refuses or trips over: `v1`, `channels`, an icon's particulars.
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

/// Whether a file name says manifest: `X.imgmanifest`, `X.dsmanifest`, `X.manifest`, or `manifest` as in Danube's
/// datasets/UUID/.
pub fn is_manifest_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let stem = [".imgmanifest", ".dsmanifest", ".manifest"].iter().find_map(|suffix| name.strip_suffix(suffix));
    name == "manifest" || stem.is_some_and(|stem| !stem.is_empty())
}

/// Turns version 1 into version 2. What has no place there moves below `v1`, so that nothing is lost.
///
/// Unlike node-imgmanifest, an explicit `public` stays as it is: there `"public": false` came out as true.
fn upgrade(old: Map<String, Value>, broken: &mut Vec<String>) -> Map<String, Value> {
    let (mut new, mut v1) = (Map::new(), Map::new());
    new.insert("v".into(), 2.into());
    for (key, value) in old.into_iter().filter(|(key, _)| key != "v") {
        match key.as_str() {
            "v1" => broken.push("v1 is no field of a version 1 manifest".into()),
            k if V1_ONLY.contains(&k) => _ = v1.insert(key, value),
            _ => _ = new.insert(key, value),
        }
    }
    match v1.get("creator_uuid") {
        None => broken.push("creator_uuid is missing".into()),
        Some(_) if new.contains_key("owner") => broken.push("owner stands beside creator_uuid, which means the same".into()),
        Some(creator) => _ = new.insert("owner".into(), creator.clone()),
    }
    match v1.get("restricted_to_uuid").filter(|uuid| is_set(uuid)) {
        Some(_) if new.contains_key("public") => broken.push("public stands beside restricted_to_uuid".into()),
        Some(uuid) => new.extend([("public".into(), false.into()), ("acl".into(), json!([uuid]))]),
        None => _ = new.entry("public").or_insert(true.into()),
    }
    let disabled = new.get("disabled").is_some_and(|value| flag(value).unwrap_or_else(|| is_set(value)));
    new.insert("disabled".into(), disabled.into());
    new.insert("state".into(), if disabled { "disabled" } else { "active" }.into());
    if let Some(time) = new.get("published_at").filter(|time| is_set(time)).or_else(|| v1.get("created_at")).cloned() {
        let minutes = time.as_str().filter(|time| has_form(time, "0000-00-00T00:00Z"));
        let seconds = minutes.map(|time| time.replace('Z', ":00Z").into());
        new.insert("published_at".into(), seconds.unwrap_or(time));
    }
    if let Some(size) = new.get("image_size").and_then(Value::as_str).and_then(|text| text.trim().parse::<i64>().ok()) {
        new.insert("image_size".into(), size.into());
    }
    if let Some(files) = new.get_mut("files").and_then(Value::as_array_mut) {
        v1.insert("files".into(), files.iter_mut().map(upgrade_file).collect());
    }
    new.insert("v1".into(), v1.into());
    new
}

/// Adds the compression that the file's suffix names; returns its `path` and `url`, which version 2 does not have.
fn upgrade_file(file: &mut Value) -> Value {
    let Some(file) = file.as_object_mut() else { return Value::Null };
    let moved: Map<_, _> = ["path", "url"].iter().filter_map(|key| file.shift_remove_entry(*key)).collect();
    if !file.get("compression").is_some_and(is_set) {
        let place = moved.values().find(|place| is_set(place)).and_then(Value::as_str).unwrap_or_default();
        let compression = match place.rsplit_once('.').map(|(_, suffix)| suffix) {
            Some("gz") => "gzip",
            Some("bz2") => "bzip2",
            Some("xz") => "xz",
            _ => "none",
        };
        file.insert("compression".into(), compression.into());
    }
    moved.into()
}

/// Collects a clause for every field that is missing, unknown or breaks its rule; the files come separately.
fn judge(document: &Map<String, Value>, broken: &mut Vec<String>) {
    let zvol: &[&str] = if has_text(document, "type", "zvol") { REQUIRED_OF_ZVOL } else { &[] };
    let missing = REQUIRED.iter().chain(zvol).filter(|key| !document.contains_key(**key) && **key != "v");
    broken.extend(missing.map(|key| format!("{key} is missing")));
    for (key, value) in document {
        match rule(document, key, value) {
            Some((true, _)) => {}
            Some((false, want)) => broken.push(format!("{key} must be {want}{}", instead(document, key))),
            None => broken.push(format!("{} is no field of a manifest", shown(key))),
        }
    }
    let Some(requirements) = document.get("requirements").and_then(Value::as_object) else { return };
    for (key, value) in requirements {
        match requirement(requirements, key, value) {
            Some((true, _)) => {}
            Some((false, want)) => broken.push(format!("requirements.{key} must be {want}{}", instead(requirements, key))),
            None => broken.push(format!("requirements.{} is no known requirement", shown(key))),
        }
    }
}

/// Whether a field keeps its rule, and the rule in words; nothing for a field that does not exist.
fn rule(document: &Map<String, Value>, key: &str, value: &Value) -> Option<(bool, String)> {
    let zvol = has_text(document, "type", "zvol");
    let unfinished = value == "null" && (has_text(document, "state", "creating") || has_text(document, "state", "failed"));
    let (holds, want) = match key {
        "v" => return Some((true, String::new())),
        "uuid" | "owner" | "origin" => (is_uuid(value), "a uuid in lower case"),
        "name" => (is_label(value, 1024, "._/ -"), "1 to 1024 letters, digits, spaces and . _ / -"),
        "version" => (is_label(value, 512, "._/+-"), "1 to 512 letters, digits and . _ / + -"),
        "description" => (is_text(value, 10 << 10), "a string of at most 10240 characters"),
        "urn" => (value.is_string(), "a string"),
        "homepage" | "eula" => (is_url(value), "an http or https URL of at most 1024 characters"),
        "disabled" | "activated" | "public" | "generate_passwords" => (flag(value).is_some(), "true or false"),
        // The object is the form in IMGAPI's own database.
        "icon" => (flag(value).is_some() || value.is_object(), "true or false"),
        "published_at" => (!is_set(value) || is_time(value), "a time like 2012-12-25T12:00:00Z or 2012-12-25T12:00:00.123Z"),
        "state" => return Some(one_of(value, STATES)),
        "type" if !unfinished => return Some(one_of(value, TYPES)),
        "os" if !unfinished => return Some(one_of(value, SYSTEMS)),
        "type" | "os" => (true, ""),
        "nic_driver" | "disk_driver" | "cpu_type" if zvol => (value.is_string(), "a string"),
        "nic_driver" | "disk_driver" | "cpu_type" => (value == "", "left out unless type is zvol"),
        "image_size" if zvol => (whole(value).is_some(), "a whole number"),
        "image_size" => (!is_set(value), "left out unless type is zvol"),
        "acl" => (is_list(value, is_uuid), "a list of uuids in lower case"),
        "users" => (is_list(value, |user| has_keys(user, &["name"])), "a list of {\"name\": ...}"),
        "billing_tags" => (is_list(value, |tag| is_text(tag, 128)), "a list of strings of at most 128 characters"),
        "inherited_directories" if has_text(document, "type", "zone-dataset") => {
            (is_list(value, Value::is_string), "a list of strings")
        }
        "inherited_directories" => (false, "left out unless type is zone-dataset"),
        "channels" => (is_list(value, Value::is_string), "a list of strings"),
        "traits" => (is_map(value, |v| v.is_string() || v.is_boolean() || v.is_array()), "a map of strings, booleans and lists"),
        "tags" => (value.is_object() && utf16_len(&value.to_string()) <= 100 << 10, "a map of at most 102400 characters"),
        "requirements" | "error" | "v1" => (value.is_object(), "an object"),
        "files" => (value.is_array(), "a list"),
        _ => return None,
    };
    Some((holds, want.to_owned()))
}

/// As `rule`, for one key of `requirements`. A null, false, 0 or empty one asks for nothing.
fn requirement(all: &Map<String, Value>, key: &str, value: &Value) -> Option<(bool, &'static str)> {
    let size = |key| all.get(key).and_then(Value::as_f64).filter(|bytes| *bytes != 0.0);
    let (holds, want) = match key {
        "networks" => {
            (is_list(value, |n| has_keys(n, &["name", "description"])), "a list of {\"name\": ..., \"description\": ...}")
        }
        "brand" => (value.is_string(), "a string"),
        "ssh_key" => (value.is_boolean(), "true or false"),
        "min_ram" => (value.is_number() && whole(value).is_some(), "a whole number"),
        "max_ram" => {
            let ordered = size("min_ram").is_none_or(|min| size("max_ram").is_none_or(|max| min <= max));
            (value.is_number() && whole(value).is_some() && ordered, "a whole number, not below min_ram")
        }
        "min_platform" | "max_platform" => {
            (is_map(value, is_platform) && value != &json!({}), "a map of times like {\"7.0\": \"20130308T102805Z\"}")
        }
        "bootrom" => (has_text(all, "brand", "bhyve") && (value == "bios" || value == "uefi"), "bios or uefi, with brand bhyve"),
        _ => return None,
    };
    Some((holds || !is_set(value), want))
}

/// Reads `files`, and collects what is wrong with them.
fn judge_files(document: &Map<String, Value>, broken: &mut Vec<String>) -> Vec<File> {
    let files = document.get("files").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let most = if has_text(document, "type", "lxd") { 2 } else { 1 };
    if files.len() > most {
        broken.push(format!("files must be at most {most}, not {} (type lxd may have 2, any other 1)", files.len()));
        return Vec::new();
    }
    let mut read = Vec::new();
    for (i, file) in files.iter().enumerate() {
        let Some(file) = file.as_object() else {
            broken.push(format!("files[{i}] must be an object"));
            continue;
        };
        let text = |key| file.get(key).and_then(Value::as_str);
        let sha1 = text("sha1").filter(|sha1| sha1.len() == 40 && sha1.bytes().all(|b| b.is_ascii_hexdigit()));
        let size = file.get("size").and_then(Value::as_u64).filter(|size| *size > 0);
        let compression = text("compression").filter(|name| COMPRESSIONS.contains(name));
        let mut check = |key: &str, holds: bool, want: &str| match file.contains_key(key) {
            _ if holds => {}
            true => broken.push(format!("files[{i}].{key} must be {want}{}", instead(file, key))),
            false => broken.push(format!("files[{i}].{key} is missing")),
        };
        check("sha1", sha1.is_some(), "40 hexadecimal digits");
        check("size", size.is_some(), "a number of bytes above 0");
        check("compression", compression.is_some(), "one of gzip, bzip2, xz, none");
        if let (Some(sha1), Some(size), Some(compression)) = (sha1, size, compression) {
            read.push(File { sha1: sha1.to_ascii_lowercase(), size, compression: compression.into() });
        }
    }
    read
}

fn pretty(document: &Map<String, Value>) -> String {
    // Writing a map of strings and values into memory has nothing that could fail.
    format!("{}\n", serde_json::to_string_pretty(document).unwrap_or_default())
}

/// What JavaScript takes for true, and so what IMGAPI takes for given.
fn is_set(value: &Value) -> bool {
    !(value.is_null() || value == false || value == "" || value.as_f64() == Some(0.0))
}

/// Booleans may stand as strings.
fn flag(value: &Value) -> Option<bool> {
    value.as_bool().or_else(|| value.as_str()?.parse().ok())
}

/// Whole numbers may stand as strings. Negative ones are whole too: IMGAPI takes an `image_size` of -1.
fn whole(value: &Value) -> Option<f64> {
    let number = value.as_f64().or_else(|| value.as_str()?.trim().parse().ok())?;
    (number.fract() == 0.0).then_some(number)
}

fn has_text(document: &Map<String, Value>, key: &str, text: &str) -> bool {
    document.get(key).is_some_and(|value| value == text)
}

fn one_of(value: &Value, list: &[&str]) -> (bool, String) {
    (value.as_str().is_some_and(|text| list.contains(&text)), format!("one of {}", list.join(", ")))
}

fn is_list(value: &Value, each: fn(&Value) -> bool) -> bool {
    value.as_array().is_some_and(|list| list.iter().all(each))
}

fn is_map(value: &Value, each: fn(&Value) -> bool) -> bool {
    value.as_object().is_some_and(|map| map.values().all(each))
}

fn has_keys(value: &Value, keys: &[&str]) -> bool {
    value.as_object().is_some_and(|map| map.len() == keys.len() && keys.iter().all(|key| map.contains_key(*key)))
}

/// JavaScript counts UTF-16 units, and so do IMGAPI's limits.
fn utf16_len(text: &str) -> usize {
    text.encode_utf16().count()
}

fn is_text(value: &Value, max: usize) -> bool {
    value.as_str().is_some_and(|text| utf16_len(text) <= max)
}

fn is_label(value: &Value, max: usize, marks: &str) -> bool {
    let fits = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || marks.contains(c));
    value.as_str().is_some_and(|text| !text.is_empty() && text.len() <= max && fits(text))
}

fn is_url(value: &Value) -> bool {
    let scheme = value.as_str().and_then(|url| url.split_once(':')).map(|(scheme, _)| scheme.to_ascii_lowercase());
    is_text(value, 1024) && matches!(scheme.as_deref(), Some("http" | "https"))
}

/// Whether `text` looks like `form`, in which 0 stands for a digit and x for a lower-case hexadecimal one.
fn has_form(text: &str, form: &str) -> bool {
    let fits = |(byte, sign): (u8, u8)| match sign {
        b'0' => byte.is_ascii_digit(),
        b'x' => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
        _ => byte == sign,
    };
    text.len() == form.len() && text.bytes().zip(form.bytes()).all(fits)
}

fn is_uuid(value: &Value) -> bool {
    value.as_str().is_some_and(|text| has_form(text, "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx"))
}

fn is_time(value: &Value) -> bool {
    let forms = ["0000-00-00T00:00:00Z", "0000-00-00T00:00:00.000Z"];
    value.as_str().is_some_and(|text| forms.iter().any(|form| has_form(text, form)))
}

/// The time a SmartOS platform was built: `YYYYMMDDTHHMMSSZ`, from 2012 on.
fn is_platform(value: &Value) -> bool {
    let text = value.as_str().unwrap_or_default();
    let within = |at: std::ops::Range<usize>, low, high| text.get(at).is_some_and(|part| (low..=high).contains(&part));
    has_form(text, "00000000T000000Z")
        && (within(0..4, "2012", "9999") && within(4..6, "01", "12") && within(6..8, "01", "31"))
        && (within(9..11, "00", "23") && within(11..13, "00", "59") && within(13..15, "00", "59"))
}

/// `, not VALUE`, so that a user finds the place; the manifest came from elsewhere, so it is cut and defused.
fn instead(document: &Map<String, Value>, key: &str) -> String {
    format!(", not {}", document.get(key).map(|value| shown(&value.to_string())).unwrap_or_default())
}

fn shown(text: &str) -> String {
    let mut chars = text.chars().map(|c| if c.is_control() { '?' } else { c });
    let start: String = chars.by_ref().take(60).collect();
    if chars.next().is_some() { start + "..." } else { start }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEED: &str = include_str!("../tests/data/imgapi/seed-v1-smartos-1.3.12.dsmanifest");
    const FAUXNODEJS_V1: &str = include_str!("../tests/data/imgapi/fauxnodejs-1.4.0.dsmanifest");
    const FAUXUBUNTU_V1: &str = include_str!("../tests/data/imgapi/fauxubuntu.dsmanifest");
    const FAUXNODEJS: &str = include_str!("../tests/data/imgapi/fauxnodejs-1.4.0.imgmanifest");
    const INC_LEVEL_1: &str = include_str!("../tests/data/imgapi/xdc-inc-level-1.manifest");
    const INC_LEVEL_3: &str = include_str!("../tests/data/imgapi/xdc-inc-level-3.manifest");
    const CENTOS: &str = include_str!("../tests/data/imgapi/danube-centos-6.manifest");
    const RIAK: &str = include_str!("../tests/data/imgapi/danube-riak.manifest");
    const PUBLIC_DATABASE: &str = include_str!("../tests/data/imgapi/public-test-images.json");
    const DC_DATABASE: &str = include_str!("../tests/data/imgapi/dc-test-images.json");

    /// The least that is valid, with the fields of `patch` put in; null takes one out.
    fn patched(patch: Value) -> Result<Manifest, String> {
        let uuid = "1f9b7958-289e-4ea3-8f88-5486a40d6823";
        let mut manifest =
            json!({"v": 2, "uuid": uuid, "name": "foo", "version": "1.2.3", "type": "zone-dataset", "os": "smartos"});
        for (key, value) in patch.as_object().unwrap() {
            match value {
                Value::Null => _ = manifest.as_object_mut().unwrap().shift_remove(key),
                _ => manifest[key] = value.clone(),
            }
        }
        Manifest::parse(manifest.to_string().as_bytes())
    }

    fn zvol(patch: Value) -> Value {
        let mut manifest =
            json!({"type": "zvol", "nic_driver": "virtio", "disk_driver": "", "cpu_type": "host", "image_size": 1});
        manifest.as_object_mut().unwrap().extend(patch.as_object().unwrap().clone());
        manifest
    }

    fn document(manifest: &Manifest) -> Value {
        serde_json::from_str(&manifest.text()).unwrap()
    }

    #[test]
    fn manifests_in_the_wild_are_accepted_and_read_back_the_same() {
        for text in [SEED, FAUXNODEJS_V1, FAUXUBUNTU_V1, FAUXNODEJS, INC_LEVEL_1, INC_LEVEL_3, CENTOS, RIAK] {
            assert!(looks_like(&serde_json::from_str(text).unwrap()));
            let manifest = Manifest::parse(text.as_bytes()).unwrap();
            let again = Manifest::parse(manifest.text().as_bytes()).unwrap();
            assert_eq!(again.text(), manifest.text());
            assert!(manifest.text().starts_with("{\n  \"v\": 2,\n") && manifest.text().ends_with("}\n"));
            Manifest::parse(manifest.export_text().as_bytes()).unwrap();
        }
        for element in serde_json::from_str::<Vec<Value>>(PUBLIC_DATABASE).unwrap() {
            let manifest = Manifest::parse(element.to_string().as_bytes()).unwrap();
            let export: Value = serde_json::from_str(&manifest.export_text()).unwrap();
            assert_eq!((&export["icon"], export.get("channels")), (&true.into(), None));
        }
    }

    /// A dump of IMGAPI's LDAP: its rows are no manifests, and one sentence says all that is wrong.
    #[test]
    fn a_database_row_is_refused_with_every_broken_field() {
        let rows: Vec<Value> = serde_json::from_str(DC_DATABASE).unwrap();
        let refusals: Vec<_> = rows.iter().map(|row| Manifest::parse(row.to_string().as_bytes()).unwrap_err()).collect();
        assert_eq!(refusals[0], "the manifest is refused: objectclass is no field of a manifest");
        assert_eq!(
            refusals[3],
            "the manifest is refused: acl must be a list of uuids in lower case, not \"91ba0e64-2547-11e2-a972-df579e5fddb3\"; \
             objectclass is no field of a manifest"
        );
    }

    #[test]
    fn the_fields_come_out_as_they_went_in() {
        let manifest = Manifest::parse(INC_LEVEL_1.as_bytes()).unwrap();
        assert_eq!(manifest.uuid(), "c58161c0-2547-11e2-a75e-9fdca1940570");
        assert_eq!((manifest.name(), manifest.version()), ("inc-level-1", "1.0.0"));
        assert_eq!((manifest.os(), manifest.kind()), ("smartos", "zone-dataset"));
        assert_eq!(manifest.description(), "Base operator owned public image");
        assert_eq!((manifest.origin(), manifest.published_at()), (None, Some("2018-01-04T11:35:37Z")));
        assert!(manifest.is_public());
        let sha1 = "f6217f583a64e1b39cea7a8700b96cbb2375bb23".into();
        assert_eq!(manifest.files(), [File { sha1, size: 65, compression: "bzip2".into() }]);
        assert_eq!(document(&manifest), serde_json::from_str::<Value>(INC_LEVEL_1).unwrap());

        let child = Manifest::parse(INC_LEVEL_3.as_bytes()).unwrap();
        assert_eq!(child.origin(), Some("900cffef-55e3-4e7d-b7ec-ccf439a159e3"));
        assert!(!child.is_public() && !patched(json!({})).unwrap().is_public());

        let tags = patched(json!({"tags": {"a": "b", "n": 5, "t": true, "docker:config": {"Cmd": []}}})).unwrap().tags();
        let expected = [("a", "b"), ("n", "5"), ("t", "true")];
        assert_eq!(tags, expected.map(|(key, value)| (key.into(), value.into())).into());
    }

    #[test]
    fn version_1_is_upgraded_and_loses_nothing() {
        let seed = Manifest::parse(SEED.as_bytes()).unwrap();
        let [new, old] = [document(&seed), serde_json::from_str(SEED).unwrap()];
        assert_eq!(new["owner"], old["creator_uuid"]);
        assert_eq!(seed.published_at(), Some("2011-04-11T08:45:00Z"));
        assert_eq!((&new["state"], &new["disabled"], seed.is_public()), (&"active".into(), &false.into(), true));
        assert_eq!(seed.files()[0].compression, "bzip2");
        for key in ["creator_uuid", "creator_name", "vendor_uuid", "cloud_name", "platform_type", "created_at", "updated_at"] {
            assert_eq!((new.get(key), &new["v1"][key]), (None, &old[key]), "{key}");
        }
        for key in ["path", "url"] {
            assert_eq!((new["files"][0].get(key), &new["v1"]["files"][0][key]), (None, &old["files"][0][key]));
        }
        assert!(!seed.export_text().contains("v1"));
        assert_eq!(document(&Manifest::parse(FAUXUBUNTU_V1.as_bytes()).unwrap())["image_size"], 16384);
    }

    #[test]
    fn version_1_has_odd_corners() {
        let owner = "352971aa-31ba-496c-9ade-a379feaecd52";
        let v1 = |patch: Value| {
            let mut manifest = json!({"v": null, "creator_uuid": owner});
            manifest.as_object_mut().unwrap().extend(patch.as_object().unwrap().clone());
            patched(manifest)
        };
        for v in [json!(null), json!(1), json!("1")] {
            assert_eq!(document(&v1(json!({"v": v})).unwrap())["v"], 2);
        }
        let restricted = v1(json!({"restricted_to_uuid": owner})).unwrap();
        assert_eq!((restricted.is_public(), &document(&restricted)["acl"]), (false, &json!([owner])));
        assert!(!v1(json!({"public": false})).unwrap().is_public());
        assert_eq!(document(&v1(json!({"disabled": true})).unwrap())["state"], "disabled");
        let created = v1(json!({"created_at": "2012-01-02T03:04Z"})).unwrap();
        assert_eq!(created.published_at(), Some("2012-01-02T03:04:00Z"));
        for (path, compression) in
            [("a.zfs.gz", "gzip"), ("a.zfs.bz2", "bzip2"), ("a.zfs.xz", "xz"), ("a.zfs", "none"), ("", "xz")]
        {
            let file = json!({"path": path, "url": "http://a/b.xz", "sha1": "A".repeat(40), "size": 1});
            let file = v1(json!({"files": [file]})).unwrap().files()[0].clone();
            assert_eq!((file.compression.as_str(), file.sha1.as_str()), (compression, "a".repeat(40).as_str()), "{path}");
        }
        for (bad, why) in [
            (json!({"owner": owner}), "owner stands beside"),
            (json!({"restricted_to_uuid": owner, "public": true}), "public stands beside"),
            (json!({"v": 1, "creator_uuid": ""}), "owner must be a uuid in lower case, not \"\""),
            (json!({"v": 2}), "creator_uuid is no field"),
            (json!({"v1": {}}), "v1 is no field"),
            (json!({"files": [7]}), "files[0] must be an object"),
        ] {
            let refusal = v1(bad.clone()).unwrap_err();
            assert!(refusal.contains(why), "{bad}: {refusal}");
        }
        assert_eq!(patched(json!({"v": 1})).unwrap_err(), "the manifest is refused: creator_uuid is missing");
    }

    #[test]
    fn what_the_rules_allow_is_accepted() {
        let uuid = "930896af-bf8c-48d4-885c-6573a94b1853";
        let file = json!({"sha1": "a".repeat(40), "size": 1, "compression": "xz", "stor": "local", "digest": "x"});
        for good in [
            json!({"v": "2", "uuid": uuid, "owner": uuid, "origin": uuid, "urn": "a:b", "v1": {}}),
            json!({"name": ".."}),
            json!({"name": "/a b/-_.", "version": "../1.2+3-_"}),
            json!({"name": "a".repeat(1024), "version": "1".repeat(512), "description": "ü".repeat(10240)}),
            json!({"homepage": "HTTP://a", "eula": "https://a"}),
            json!({"disabled": "false", "activated": true, "public": "true", "generate_passwords": false, "icon": "true"}),
            json!({"published_at": "2012-13-25T12:00:00Z"}),
            json!({"published_at": "2012-12-25T12:00:00.123Z"}),
            json!({"published_at": ""}),
            json!({"state": "creating", "type": "null", "os": "null"}),
            json!({"type": "lx-dataset", "os": "linux"}),
            json!({"type": "docker", "os": "other", "nic_driver": "", "image_size": 0}),
            json!({"acl": [uuid], "users": [{"name": "root"}], "billing_tags": ["a".repeat(128)], "channels": ["dev"]}),
            json!({"inherited_directories": ["/opt"], "traits": {"a": "b", "c": true, "d": []}, "tags": {"a": {"b": null}}}),
            json!({"error": {"message": "no peers"}, "icon": {"sha1": "x"}}),
            json!({"files": []}),
            json!({"files": [file]}),
            json!({"type": "lxd", "files": [file, file]}),
            zvol(json!({"image_size": "16384"})),
            zvol(json!({"image_size": -1})),
            json!({"requirements": {}}),
            json!({"requirements": {"networks": [{"name": "net0", "description": "public"}], "brand": "lx", "ssh_key": true}}),
            json!({"requirements": {"min_ram": 512, "max_ram": 512, "min_platform": {"7.0": "20130308T102805Z"}}}),
            json!({"requirements": {"bootrom": "uefi", "brand": "bhyve", "max_platform": null, "min_ram": 0, "ssh_key": ""}}),
        ] {
            assert_eq!(patched(good.clone()).err(), None, "{good}");
        }
    }

    #[test]
    fn what_the_rules_forbid_is_refused_by_name() {
        let file = |patch: Value| {
            let mut file = json!({"sha1": "a".repeat(40), "size": 1, "compression": "gzip"});
            file.as_object_mut().unwrap().extend(patch.as_object().unwrap().clone());
            file
        };
        let platform = |time: &str| json!({"requirements": {"min_platform": {"7.0": time}}});
        for (bad, why) in [
            (json!({"v": null}), "v is missing"),
            (json!({"v": 3}), "v must be 1 or 2, not 3"),
            (json!({"v": "two"}), "v must be 1 or 2"),
            (json!({"uuid": "1F9B7958-289e-4ea3-8f88-5486a40d6823"}), "uuid must be a uuid in lower case, not \"1F9B"),
            (json!({"uuid": null}), "uuid is missing"),
            (json!({"owner": "me"}), "owner must be"),
            (json!({"origin": ""}), "origin must be"),
            (json!({"urn": 1}), "urn must be"),
            (json!({"name": ""}), "name must be"),
            (json!({"name": "a+b"}), "name must be"),
            (json!({"name": "a\n"}), "name must be"),
            (json!({"name": 7}), "name must be"),
            (json!({"name": "a".repeat(1025)}), "name must be"),
            (json!({"version": "1 2"}), "version must be"),
            (json!({"version": "1:2~3"}), "version must be"),
            (json!({"version": "1".repeat(513)}), "version must be"),
            (json!({"description": "\u{1F600}".repeat(5121)}), "description must be"),
            (json!({"homepage": "ftp://a"}), "homepage must be"),
            (json!({"eula": format!("http://{}", "a".repeat(1018))}), "eula must be"),
            (json!({"public": "proto"}), "public must be true or false, not \"proto\""),
            (json!({"icon": 1}), "icon must be"),
            (json!({"published_at": "2011-04-11T08:45Z"}), "published_at must be"),
            (json!({"published_at": "2012-12-25T12:00:00.12Z"}), "published_at must be"),
            (json!({"state": "installed"}), "state must be one of active"),
            (json!({"type": "toString"}), "type must be one of zone-dataset"),
            (json!({"type": "null"}), "type must be"),
            (json!({"os": "SmartOS"}), "os must be one of smartos"),
            (
                json!({"type": "zvol"}),
                "nic_driver is missing; disk_driver is missing; cpu_type is missing; image_size is missing",
            ),
            (zvol(json!({"image_size": 1.5})), "image_size must be a whole number, not 1.5"),
            (zvol(json!({"image_size": "inf"})), "image_size must be a whole number"),
            (zvol(json!({"cpu_type": 1})), "cpu_type must be a string"),
            (json!({"nic_driver": "virtio"}), "nic_driver must be left out unless type is zvol"),
            (json!({"image_size": 1}), "image_size must be left out"),
            (json!({"acl": ["x"]}), "acl must be"),
            (json!({"users": [{"name": "a", "id": 1}]}), "users must be"),
            (json!({"billing_tags": ["a".repeat(129)]}), "billing_tags must be"),
            (json!({"type": "other", "inherited_directories": []}), "inherited_directories must be left out"),
            (json!({"inherited_directories": [1]}), "inherited_directories must be a list"),
            (json!({"channels": "dev"}), "channels must be"),
            (json!({"traits": {"a": 1}}), "traits must be"),
            (json!({"tags": []}), "tags must be"),
            (json!({"tags": {"a": "b".repeat(100 << 10)}}), "tags must be a map of at most"),
            (json!({"error": "x"}), "error must be"),
            (json!({"foo\u{7}": 1}), "foo? is no field of a manifest"),
            (json!({"files": {}}), "files must be a list"),
            (json!({"files": [file(json!({})), file(json!({}))]}), "files must be at most 1, not 2"),
            (json!({"files": [{}]}), "files[0].sha1 is missing; files[0].size is missing; files[0].compression is missing"),
            (json!({"files": [file(json!({"size": 0}))]}), "files[0].size must be a number of bytes above 0, not 0"),
            (json!({"files": [file(json!({"sha1": "a"}))]}), "files[0].sha1 must be"),
            (json!({"files": [file(json!({"compression": "zstd"}))]}), "files[0].compression must be one of"),
            (json!({"requirements": []}), "requirements must be"),
            (json!({"requirements": {"foo": null}}), "requirements.foo is no known requirement"),
            (json!({"requirements": {"networks": [{"name": "net0"}]}}), "requirements.networks must be"),
            (json!({"requirements": {"brand": 1}}), "requirements.brand must be"),
            (json!({"requirements": {"ssh_key": "yes"}}), "requirements.ssh_key must be"),
            (json!({"requirements": {"min_ram": "512"}}), "requirements.min_ram must be"),
            (
                json!({"requirements": {"min_ram": 2, "max_ram": 1}}),
                "requirements.max_ram must be a whole number, not below min_ram",
            ),
            (json!({"requirements": {"max_platform": {}}}), "requirements.max_platform must be"),
            (platform("undefined"), "requirements.min_platform must be"),
            (platform("20111231T000000Z"), "requirements.min_platform must be"),
            (platform("20131301T000000Z"), "requirements.min_platform must be"),
            (platform("20130100T000000Z"), "requirements.min_platform must be"),
            (platform("20130101T240000Z"), "requirements.min_platform must be"),
            (json!({"requirements": {"bootrom": "uefi"}}), "requirements.bootrom must be bios or uefi, with brand bhyve"),
            (json!({"requirements": {"bootrom": "/x", "brand": "bhyve"}}), "requirements.bootrom must be"),
        ] {
            let refusal = patched(bad.clone()).expect_err(why);
            assert!(refusal.contains(why) && refusal.starts_with("the manifest is refused: "), "{bad}: {refusal}");
        }
    }

    #[test]
    fn hostile_texts_are_refused_in_a_short_sentence() {
        let nested = format!("{}{}", "[".repeat(100), "]".repeat(100));
        let many = |element: &str, n| vec![element; n].join(",");
        for (text, why) in [
            (String::new(), "it is no JSON: "),
            ("{\"v\": 2".into(), "it is no JSON: "),
            ("[".repeat(100_000), "it is no JSON: recursion limit exceeded"),
            ("[]".into(), "it is no JSON object"),
            ("{}".into(), "v is missing; uuid is missing; name is missing; version is missing; type is missing; os is missing"),
            (" ".repeat(MANIFEST_MAX + 1), "it has 1048577 bytes, at most 1048576 are read"),
            (format!("{{{}}}", (0..9999).map(|i| format!("\"x{i}\":0")).collect::<Vec<_>>().join(",")), "; and 9965 more"),
            (format!("{{\"error\":{{\"a\":[{}]}}}}", many(&nested, 5000)), "longer than 1048576 bytes"),
            (format!("{{\"name\":[{}]}}", many("1", 99999)), "name must be"),
        ] {
            let refusal = Manifest::parse(text.as_bytes()).unwrap_err();
            assert!(refusal.contains(why) && refusal.len() < 4096, "{refusal}");
        }
        assert!(Manifest::parse(b"{\"v\": \"\xff\"}").unwrap_err().contains("it is no JSON: "));
    }

    #[test]
    fn a_manifest_is_told_from_our_own_metadata() {
        for (value, expected) in [
            (json!({"uuid": "x", "v": 2}), true),
            (json!({"uuid": "x", "files": []}), true),
            (json!({"uuid": "x", "creator_uuid": "y"}), true),
            (json!({"uuid": "x"}), false),
            (json!({"id": "x", "versions": [], "v": 2}), false),
            (json!([{"uuid": "x", "v": 2}]), false),
            (json!(null), false),
        ] {
            assert_eq!(looks_like(&value), expected, "{value}");
        }
        for name in ["a.imgmanifest", "a.dsmanifest", "a.b.manifest", "A.IMGMANIFEST", "manifest"] {
            assert!(is_manifest_name(name), "{name}");
        }
        for name in ["", ".manifest", ".imgmanifest", "manifests", "amanifest", "manifest.json", "metadata.json", "a.zfs.gz"] {
            assert!(!is_manifest_name(name), "{name}");
        }
    }
}
