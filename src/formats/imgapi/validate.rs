//! The rules for a manifest: those of `imgadm install`, and the conversion of version 1 to version 2.

use serde_json::{Map, Value, json};

use crate::formats::imgapi::File;

const REQUIRED: &[&str] = &["v", "uuid", "name", "version", "type", "os"];
const REQUIRED_OF_ZVOL: &[&str] = &["nic_driver", "disk_driver", "cpu_type", "image_size"];
const TYPES: &[&str] = &["zone-dataset", "lx-dataset", "zvol", "docker", "lxd", "other"];
const SYSTEMS: &[&str] = &["smartos", "linux", "windows", "bsd", "illumos", "other"];
const STATES: &[&str] = &["active", "unactivated", "disabled", "failed", "creating"];
const COMPRESSIONS: &[&str] = &["gzip", "bzip2", "xz", "none"];
/// Fields that version 2 does not have. An upgraded manifest keeps them below `v1`.
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
/// A sentence names at most this many broken fields, because a megabyte has room for very many unknown
/// ones.
pub(super) const NAMED_MAX: usize = 40;
pub(super) const UUID: &str = "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx";

/// Converts version 1 to version 2. Fields that version 2 does not have move below `v1`, so nothing is
/// lost.
///
/// Unlike in node-imgmanifest, an explicit `public` stays as it is. There `"public": false` became
/// true.
pub(super) fn upgrade(old: Map<String, Value>, broken: &mut Vec<String>) -> Map<String, Value> {
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
        Some(_) if new.contains_key("owner") => {
            broken.push("owner stands beside creator_uuid, which means the same".into())
        }
        Some(creator) => _ = new.insert("owner".into(), creator.clone()),
    }
    match v1.get("restricted_to_uuid").filter(|uuid| is_set(uuid)) {
        Some(_) if new.contains_key("public") => {
            broken.push("public stands beside restricted_to_uuid".into())
        }
        Some(uuid) => new.extend([("public".into(), false.into()), ("acl".into(), json!([uuid]))]),
        None => _ = new.entry("public").or_insert(true.into()),
    }
    let disabled = new.get("disabled").is_some_and(|value| flag(value).unwrap_or_else(|| is_set(value)));
    new.insert("disabled".into(), disabled.into());
    new.insert("state".into(), if disabled { "disabled" } else { "active" }.into());
    if let Some(time) =
        new.get("published_at").filter(|time| is_set(time)).or_else(|| v1.get("created_at")).cloned()
    {
        let minutes = time.as_str().filter(|time| has_form(time, "0000-00-00T00:00Z"));
        let seconds = minutes.map(|time| time.replace('Z', ":00Z").into());
        new.insert("published_at".into(), seconds.unwrap_or(time));
    }
    if let Some(size) =
        new.get("image_size").and_then(Value::as_str).and_then(|text| text.trim().parse::<i64>().ok())
    {
        new.insert("image_size".into(), size.into());
    }
    if let Some(files) = new.get_mut("files").and_then(Value::as_array_mut) {
        v1.insert("files".into(), files.iter_mut().map(upgrade_file).collect());
    }
    new.insert("v1".into(), v1.into());
    new
}

/// Adds the compression that the file's suffix names; returns its `path` and `url`, which version 2 does not
/// have.
pub(super) fn upgrade_file(file: &mut Value) -> Value {
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

/// Collects a clause for every field that is missing, unknown or breaks its rule. The files are judged
/// separately.
pub(super) fn judge(document: &Map<String, Value>, broken: &mut Vec<String>) {
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
            Some((false, want)) => {
                broken.push(format!("requirements.{key} must be {want}{}", instead(requirements, key)))
            }
            None => broken.push(format!("requirements.{} is no known requirement", shown(key))),
        }
    }
}

/// Whether a field obeys its rule, and the rule in words. `None` for a field that does not exist.
pub(super) fn rule(document: &Map<String, Value>, key: &str, value: &Value) -> Option<(bool, String)> {
    let zvol = has_text(document, "type", "zvol");
    let unfinished =
        value == "null" && (has_text(document, "state", "creating") || has_text(document, "state", "failed"));
    let (holds, want) = match key {
        "v" => return Some((true, String::new())),
        "uuid" | "owner" | "origin" => (is_uuid(value), "a uuid in lower case"),
        "name" => (is_label(value, 1024, "._/ -"), "1 to 1024 letters, digits, spaces and . _ / -"),
        "version" => (is_label(value, 512, "._/+-"), "1 to 512 letters, digits and . _ / + -"),
        "description" => (is_text(value, 10 << 10), "a string of at most 10240 characters"),
        "urn" => (value.is_string(), "a string"),
        "homepage" | "eula" => (is_url(value), "an http or https URL of at most 1024 characters"),
        "disabled" | "activated" | "public" | "generate_passwords" => {
            (flag(value).is_some(), "true or false")
        }
        // The object is the form in IMGAPI's own database.
        "icon" => (flag(value).is_some() || value.is_object(), "true or false"),
        "published_at" => {
            (!is_set(value) || is_time(value), "a time like 2012-12-25T12:00:00Z or 2012-12-25T12:00:00.123Z")
        }
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
        "billing_tags" => {
            (is_list(value, |tag| is_text(tag, 128)), "a list of strings of at most 128 characters")
        }
        "inherited_directories" if has_text(document, "type", "zone-dataset") => {
            (is_list(value, Value::is_string), "a list of strings")
        }
        "inherited_directories" => (false, "left out unless type is zone-dataset"),
        "channels" => (is_list(value, Value::is_string), "a list of strings"),
        "traits" => (
            is_map(value, |v| v.is_string() || v.is_boolean() || v.is_array()),
            "a map of strings, booleans and lists",
        ),
        "tags" => (
            value.is_object() && utf16_len(&value.to_string()) <= 100 << 10,
            "a map of at most 102400 characters",
        ),
        "requirements" | "error" | "v1" => (value.is_object(), "an object"),
        "files" => (value.is_array(), "a list"),
        _ => return None,
    };
    Some((holds, want.to_owned()))
}

/// Like `rule`, for one key of `requirements`. A null, false, 0 or empty value asks for nothing.
pub(super) fn requirement(
    all: &Map<String, Value>,
    key: &str,
    value: &Value,
) -> Option<(bool, &'static str)> {
    let size = |key| all.get(key).and_then(Value::as_f64).filter(|bytes| *bytes != 0.0);
    let (holds, want) = match key {
        "networks" => (
            is_list(value, |n| has_keys(n, &["name", "description"])),
            "a list of {\"name\": ..., \"description\": ...}",
        ),
        "brand" => (value.is_string(), "a string"),
        "ssh_key" => (value.is_boolean(), "true or false"),
        "min_ram" => (value.is_number() && whole(value).is_some(), "a whole number"),
        "max_ram" => {
            let ordered = size("min_ram").is_none_or(|min| size("max_ram").is_none_or(|max| min <= max));
            (value.is_number() && whole(value).is_some() && ordered, "a whole number, not below min_ram")
        }
        "min_platform" | "max_platform" => (
            is_map(value, is_platform) && value != &json!({}),
            "a map of times like {\"7.0\": \"20130308T102805Z\"}",
        ),
        "bootrom" => (
            has_text(all, "brand", "bhyve") && (value == "bios" || value == "uefi"),
            "bios or uefi, with brand bhyve",
        ),
        _ => return None,
    };
    Some((holds || !is_set(value), want))
}

/// Reads `files`, and collects what is wrong with them.
pub(super) fn judge_files(document: &Map<String, Value>, broken: &mut Vec<String>) -> Vec<File> {
    let files = document.get("files").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let most = if has_text(document, "type", "lxd") { 2 } else { 1 };
    if files.len() > most {
        broken.push(format!(
            "files must be at most {most}, not {} (type lxd may have 2, any other 1)",
            files.len()
        ));
        return Vec::new();
    }
    let mut read = Vec::new();
    for (i, file) in files.iter().enumerate() {
        let Some(file) = file.as_object() else {
            broken.push(format!("files[{i}] must be an object"));
            continue;
        };
        let text = |key| file.get(key).and_then(Value::as_str);
        let sha1 =
            text("sha1").filter(|sha1| sha1.len() == 40 && sha1.bytes().all(|b| b.is_ascii_hexdigit()));
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

/// Whether JavaScript takes the value for true, so IMGAPI takes it as given.
pub(super) fn is_set(value: &Value) -> bool {
    !(value.is_null() || value == false || value == "" || value.as_f64() == Some(0.0))
}

/// Reads a boolean, which may be a string.
pub(super) fn flag(value: &Value) -> Option<bool> {
    value.as_bool().or_else(|| value.as_str()?.parse().ok())
}

/// Reads a whole number, which may be a string. Negative ones count too: IMGAPI accepts an `image_size`
/// of -1.
pub(super) fn whole(value: &Value) -> Option<f64> {
    let number = value.as_f64().or_else(|| value.as_str()?.trim().parse().ok())?;
    (number.fract() == 0.0).then_some(number)
}

pub(super) fn has_text(document: &Map<String, Value>, key: &str, text: &str) -> bool {
    document.get(key).is_some_and(|value| value == text)
}

pub(super) fn one_of(value: &Value, list: &[&str]) -> (bool, String) {
    (value.as_str().is_some_and(|text| list.contains(&text)), format!("one of {}", list.join(", ")))
}

pub(super) fn is_list(value: &Value, each: fn(&Value) -> bool) -> bool {
    value.as_array().is_some_and(|list| list.iter().all(each))
}

pub(super) fn is_map(value: &Value, each: fn(&Value) -> bool) -> bool {
    value.as_object().is_some_and(|map| map.values().all(each))
}

pub(super) fn has_keys(value: &Value, keys: &[&str]) -> bool {
    value
        .as_object()
        .is_some_and(|map| map.len() == keys.len() && keys.iter().all(|key| map.contains_key(*key)))
}

/// The length in UTF-16 units, as in JavaScript and so in IMGAPI's limits.
pub(super) fn utf16_len(text: &str) -> usize {
    text.encode_utf16().count()
}

pub(super) fn is_text(value: &Value, max: usize) -> bool {
    value.as_str().is_some_and(|text| utf16_len(text) <= max)
}

pub(super) fn is_label(value: &Value, max: usize, marks: &str) -> bool {
    let fits = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || marks.contains(c));
    value.as_str().is_some_and(|text| !text.is_empty() && text.len() <= max && fits(text))
}

pub(super) fn is_url(value: &Value) -> bool {
    let scheme =
        value.as_str().and_then(|url| url.split_once(':')).map(|(scheme, _)| scheme.to_ascii_lowercase());
    is_text(value, 1024) && matches!(scheme.as_deref(), Some("http" | "https"))
}

/// Whether `text` has the form `form`. In that, 0 stands for a digit, and x for a lower-case
/// hexadecimal digit.
pub(super) fn has_form(text: &str, form: &str) -> bool {
    let fits = |(byte, sign): (u8, u8)| match sign {
        b'0' => byte.is_ascii_digit(),
        b'x' => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
        _ => byte == sign,
    };
    text.len() == form.len() && text.bytes().zip(form.bytes()).all(fits)
}

pub(super) fn is_uuid(value: &Value) -> bool {
    value.as_str().is_some_and(|text| has_form(text, UUID))
}

pub(super) fn is_time(value: &Value) -> bool {
    let forms = ["0000-00-00T00:00:00Z", "0000-00-00T00:00:00.000Z"];
    value.as_str().is_some_and(|text| forms.iter().any(|form| has_form(text, form)))
}

/// The time a SmartOS platform was built: `YYYYMMDDTHHMMSSZ`, from 2012 on.
pub(super) fn is_platform(value: &Value) -> bool {
    let text = value.as_str().unwrap_or_default();
    let within =
        |at: std::ops::Range<usize>, low, high| text.get(at).is_some_and(|part| (low..=high).contains(&part));
    has_form(text, "00000000T000000Z")
        && (within(0..4, "2012", "9999") && within(4..6, "01", "12") && within(6..8, "01", "31"))
        && (within(9..11, "00", "23") && within(11..13, "00", "59") && within(13..15, "00", "59"))
}

/// `, not VALUE`, so that a user finds the place. The manifest came from elsewhere, so the value is
/// shortened and escaped.
pub(super) fn instead(document: &Map<String, Value>, key: &str) -> String {
    format!(", not {}", document.get(key).map(|value| shown(&value.to_string())).unwrap_or_default())
}

pub(super) fn shown(text: &str) -> String {
    let mut chars = text.chars().map(|c| if c.is_control() { '?' } else { c });
    let start: String = chars.by_ref().take(60).collect();
    if chars.next().is_some() { start + "..." } else { start }
}
