//! Converts rows to the columns of their tables, and back.

use rusqlite::types::Value;

use crate::base::digest::Digest;
use crate::catalog::rows::{Alias, Image, Label, Lease, Rules, Version};

pub(super) const IMAGE: &str = "serial, id, name, uid, gid, mode, next_number, pinned, default_hidden, editable, created_at, updated_at, trashed_at, trash_name, rules";
pub(super) const VERSION: &str =
    "serial, image, number, id, tree, facts, receipt, created_at, trashed_at, trash_name";
pub(super) const ALIAS: &str = "serial, name, image, number, description, follows, trash";
pub(super) const LABEL: &str = "serial, image, name, number, trash";
pub(super) const LEASE: &str = "serial, version, name, facts";

pub(super) fn integer(n: impl Into<i64>) -> Value {
    Value::Integer(n.into())
}

fn optional<T>(value: Option<T>, make: impl FnOnce(T) -> Value) -> Value {
    value.map_or(Value::Null, make)
}

fn json(value: &impl serde::Serialize) -> Value {
    Value::Text(serde_json::to_string(value).expect("plain structs of text and numbers"))
}

pub(super) fn image_values(i: &Image) -> Vec<Value> {
    vec![
        integer(i.serial),
        Value::Text(i.id.clone()),
        Value::Text(i.name.clone()),
        integer(i.uid),
        integer(i.gid),
        integer(i.mode),
        integer(i.next_number),
        optional(i.pinned, integer),
        integer(u8::from(i.default_hidden)),
        json(&i.editable),
        integer(i.created_at),
        integer(i.updated_at),
        optional(i.trashed_at, integer),
        optional(i.trash_name.clone(), Value::Text),
        optional(Some(&i.rules).filter(|rules| !rules.is_none()), json),
    ]
}

pub(super) fn version_values(v: &Version) -> Vec<Value> {
    vec![
        integer(v.serial),
        integer(v.image),
        integer(v.number),
        Value::Text(v.id.clone()),
        Value::Blob(v.tree.0.to_vec()),
        json(&v.facts),
        optional(v.receipt.as_ref(), json),
        integer(v.created_at),
        optional(v.trashed_at, integer),
        optional(v.trash_name.clone(), Value::Text),
    ]
}

pub(super) fn alias_values(a: &Alias) -> Vec<Value> {
    let description = Some(&a.description).filter(|d| !d.is_empty()).cloned();
    vec![
        integer(a.serial),
        Value::Text(a.name.clone()),
        integer(a.image),
        optional(a.number, integer),
        optional(description, Value::Text),
        optional(Some(&a.follows).filter(|follows| !follows.is_image()), json),
        optional(a.trashed.as_ref(), json),
    ]
}

pub(super) fn label_values(l: &Label) -> Vec<Value> {
    let trash = optional(l.trashed.as_ref(), json);
    vec![integer(l.serial), integer(l.image), Value::Text(l.name.clone()), integer(l.number), trash]
}

pub(super) fn lease_values(l: &Lease) -> Vec<Value> {
    vec![integer(l.serial), integer(l.version), Value::Text(l.name.clone()), json(&l.facts)]
}

/// A column as a type. `None` if it has another type.
pub(super) trait Column: Sized {
    fn take(value: &Value) -> Option<Self>;
}

impl Column for i64 {
    fn take(value: &Value) -> Option<i64> {
        if let Value::Integer(n) = value { Some(*n) } else { None }
    }
}

impl Column for u32 {
    fn take(value: &Value) -> Option<u32> {
        i64::take(value)?.try_into().ok()
    }
}

impl Column for String {
    fn take(value: &Value) -> Option<String> {
        if let Value::Text(text) = value { Some(text.clone()) } else { None }
    }
}

impl<T: Column> Column for Option<T> {
    fn take(value: &Value) -> Option<Option<T>> {
        if *value == Value::Null { Some(None) } else { T::take(value).map(Some) }
    }
}

pub(super) fn column<T: Column>(row: &[Value], n: usize) -> Option<T> {
    T::take(row.get(n)?)
}

/// A column of JSON that may be NULL. The outer `None` means that it holds something else.
fn json_column<T: serde::de::DeserializeOwned>(row: &[Value], n: usize) -> Option<Option<T>> {
    match column::<Option<String>>(row, n)? {
        Some(text) => serde_json::from_str(&text).ok().map(Some),
        None => Some(None),
    }
}

pub(super) fn image_from(row: &[Value]) -> Option<Image> {
    Some(Image {
        serial: column(row, 0)?,
        id: column(row, 1)?,
        name: column(row, 2)?,
        uid: column(row, 3)?,
        gid: column(row, 4)?,
        mode: column(row, 5)?,
        next_number: column(row, 6)?,
        pinned: column(row, 7)?,
        default_hidden: column::<i64>(row, 8)? != 0,
        editable: serde_json::from_str(&column::<String>(row, 9)?).ok()?,
        created_at: column(row, 10)?,
        updated_at: column(row, 11)?,
        trashed_at: column(row, 12)?,
        trash_name: column(row, 13)?,
        rules: json_column::<Rules>(row, 14)?.unwrap_or_default(),
    })
}

pub(super) fn version_from(row: &[Value]) -> Option<Version> {
    let Value::Blob(tree) = row.get(4)? else { return None };
    Some(Version {
        serial: column(row, 0)?,
        image: column(row, 1)?,
        number: column(row, 2)?,
        id: column(row, 3)?,
        tree: Digest(tree.as_slice().try_into().ok()?),
        facts: serde_json::from_str(&column::<String>(row, 5)?).ok()?,
        receipt: json_column(row, 6)?,
        created_at: column(row, 7)?,
        trashed_at: column(row, 8)?,
        trash_name: column(row, 9)?,
    })
}

pub(super) fn alias_from(row: &[Value]) -> Option<Alias> {
    Some(Alias {
        serial: column(row, 0)?,
        name: column(row, 1)?,
        image: column(row, 2)?,
        number: column(row, 3)?,
        description: column::<Option<String>>(row, 4)?.unwrap_or_default(),
        follows: json_column(row, 5)?.unwrap_or_default(),
        trashed: json_column(row, 6)?,
    })
}

pub(super) fn label_from(row: &[Value]) -> Option<Label> {
    Some(Label {
        serial: column(row, 0)?,
        image: column(row, 1)?,
        name: column(row, 2)?,
        number: column(row, 3)?,
        trashed: json_column(row, 4)?,
    })
}

pub(super) fn lease_from(row: &[Value]) -> Option<Lease> {
    Some(Lease {
        serial: column(row, 0)?,
        version: column(row, 1)?,
        name: column(row, 2)?,
        facts: serde_json::from_str(&column::<String>(row, 3)?).ok()?,
    })
}
