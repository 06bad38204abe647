//! ls .imgfs/by/os/ubuntu, imgfs ls os=ubuntu: finds images by what they are.

use std::collections::HashSet;

use regex::Regex;
use serde_json::Value;

use crate::base::name::{NAME_MAX, architecture};
use crate::catalog::{Image, Model};
use crate::images::leases;
use crate::store::Store;

/// The fewest digits of a fingerprint in a bare word. lxc takes any part, which finds too much.
const PREFIX_MIN: usize = 3;

/// The properties by which images can be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dimension {
    Os,
    Release,
    Architecture,
    Type,
    Tag,
}

impl Dimension {
    pub const ALL: [(&'static str, Dimension); 5] = [
        ("os", Dimension::Os),
        ("release", Dimension::Release),
        ("arch", Dimension::Architecture),
        ("type", Dimension::Type),
        ("tag", Dimension::Tag),
    ];

    /// The values of an image. For most dimensions there is at most one.
    pub fn values(self, image: &Image) -> impl Iterator<Item = &str> {
        let e = &image.editable;
        let one = match self {
            Dimension::Os => e.os.as_str(),
            Dimension::Release => &e.release,
            Dimension::Architecture => architecture(&e.architecture).unwrap_or(&e.architecture),
            Dimension::Type => &e.kind,
            Dimension::Tag => "",
        };
        let tags: &[String] = if self == Dimension::Tag { &e.tags } else { &[] };
        Some(one).filter(|value| !value.is_empty()).into_iter().chain(tags.iter().map(String::as_str))
    }

    /// Whether a name in the tree stands for a value. An architecture has many names.
    pub fn is_called(self, value: &str, name: &str) -> bool {
        name_of(value).as_deref() == Some(name)
            || (self == Dimension::Architecture && architecture(name) == Some(value))
    }
}

/// The name of a value in the tree, where a slash or a leading dot would mean something else. `None` if
/// it is too long for a name.
pub fn name_of(value: &str) -> Option<String> {
    let name = value.replace('%', "%25").replace('/', "%2F");
    let name = name.strip_prefix('.').map_or(name.clone(), |rest| format!("%2E{rest}"));
    (name.len() <= NAME_MAX).then_some(name)
}

/// The images that nobody uses: no lease on any version, and no default. This looks at users' paths, so
/// it must not run in an event loop.
pub fn unused(store: &Store) -> HashSet<u32> {
    let stale = leases::stale(leases::links(&store.catalog.read(), |_| true));
    let model = store.catalog.read();
    let used = |image: &Image| {
        model.versions_of(image.serial).any(|v| leases::refuse_used(store, &model, &[v], &stale).is_err())
    };
    let default = |image: &Image| {
        let of_type = model.default_of(&image.editable.kind);
        model.default_image == Some(image.serial) || of_type.is_some_and(|d| d.serial == image.serial)
    };
    let free = |image: &&Image| !image.editable.offer.deleted && !default(image) && !used(image);
    model.live_images().filter(free).map(|image| image.serial).collect()
}

/// The images that have a value.
pub fn having<'m>(model: &'m Model, dimension: Dimension, value: &'m str) -> impl Iterator<Item = &'m Image> {
    let has = move |image: &&Image| {
        image.editable.offer.is_offered() && dimension.values(image).any(|v| v == value)
    };
    model.live_images().filter(has)
}

/// A filter of `imgfs ls`, as in LXD. `KEY=VALUE` compares a key of metadata.json or a property. The
/// parts of the key between dots may be abbreviated. The value is a regular expression for the whole
/// value, or for a part if it has `^` or `$`. A bare word is a part of the name or of an alias, an
/// architecture, a version's uuid, or the beginning of a version's sha256. `uuid=` compares the uuids
/// of all versions.
pub struct Filter {
    text: String,
    pair: Option<(String, Option<Regex>, String)>,
}

impl Filter {
    pub fn parse(text: &str) -> Filter {
        let pair = text.split_once('=').map(|(key, value)| {
            let key = match key {
                "arch" => "architecture",
                "tag" => "tags",
                other => other,
            };
            let value = if key == "architecture" { architecture(value).unwrap_or(value) } else { value };
            let anchored = value.contains(['^', '$']);
            let pattern = if anchored { value.to_owned() } else { format!("^(?:{value})$") };
            (key.to_owned(), Regex::new(&pattern).ok(), value.to_owned())
        });
        Filter { text: text.to_owned(), pair }
    }

    /// Whether an image with this metadata.json matches.
    pub fn matches(&self, image: &Value) -> bool {
        let Some((key, pattern, text)) = &self.pair else { return self.is_part(image) };
        let usual = |value: &str| {
            if key == "architecture" {
                architecture(value).unwrap_or(value).to_owned()
            } else {
                value.to_owned()
            }
        };
        let equals =
            |value: &str| pattern.as_ref().map_or(value == text, |pattern| pattern.is_match(&usual(value)));
        let fits = |value: &Value| match value {
            Value::String(value) => equals(value),
            Value::Array(list) => list.iter().any(|v| v.as_str().is_some_and(equals)),
            Value::Object(_) | Value::Null => false,
            other => equals(&other.to_string()),
        };
        let fields = |value: &Value| value.as_object().cloned().unwrap_or_default().into_iter();
        let all: Vec<(String, Value)> =
            fields(image).filter(|(_, v)| !v.is_object()).chain(fields(&image["properties"])).collect();
        let exact: Vec<&(String, Value)> = all.iter().filter(|(name, _)| name == key).collect();
        if key == "uuid" {
            let versions = image["versions"].as_array().into_iter().flatten();
            return versions.filter_map(|version| version["uuid"].as_str()).any(equals);
        }
        if exact.is_empty() {
            return all.iter().any(|(name, value)| is_short_for(key, name) && fits(value));
        }
        exact.into_iter().any(|(_, value)| fits(value))
    }

    fn is_part(&self, image: &Value) -> bool {
        let part = |v: &Value| v.as_str().is_some_and(|t| t.contains(&self.text));
        let list = |key: &str| image[key].as_array().into_iter().flatten();
        let begins = |sha256: &str| self.text.len() >= PREFIX_MIN && sha256.starts_with(&self.text);
        let known_as = |v: &Value| {
            let digest = v["digest"].as_str().and_then(|d| d.strip_prefix("sha256:"));
            let others = v["sha256"].as_array().into_iter().flatten().filter_map(Value::as_str);
            digest.into_iter().chain(v["fingerprint"].as_str()).chain(others).any(begins)
                || v["uuid"] == self.text
        };
        part(&image["name"])
            || list("aliases").any(|alias| part(&alias["name"]))
            || list("versions").any(known_as)
            || architecture(&self.text)
                .is_some_and(|word| image["architecture"].as_str().and_then(architecture) == Some(word))
    }
}

/// Whether each part of a key is the beginning of that part of a name: `u.v` of `user.variant`.
fn is_short_for(key: &str, name: &str) -> bool {
    let (key, name): (Vec<&str>, Vec<&str>) = (key.split('.').collect(), name.split('.').collect());
    key.len() == name.len() && key.iter().zip(&name).all(|(k, n)| !k.is_empty() && n.starts_with(k))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_compare_keys_and_find_words() {
        let image = serde_json::json!({"name": "jammy", "os": "ubuntu", "architecture": "x86_64", "aliases": [{"name": "lts"}],
            "tags": ["a", "b+c"], "is_default": true, "keep_versions": 3, "properties": {"support": "yes", "user.variant": "cloud(1"},
            "versions": [{"digest": "sha256:0123456789", "uuid": "15963d90-61d7-4664-87a6-f56b16492d5a"},
                {"digest": "sha256:4567", "fingerprint": "abcd", "sha256": ["4567", "f00d"], "uuid": "u2"}]});
        let yes = [
            "os=ubuntu",
            "amd64",
            "x86_64",
            "jam",
            "lts",
            "support=yes",
            "tags=a",
            "is_default=true",
            "tag=a",
            "arch=amd64",
            "o=ubuntu",
            "os=ub.*",
            "os=^ub",
            "os=tu$",
            "keep_versions=3",
            "u.v=cloud(1",
            "sup=y.s",
            "0123",
            "os=ubuntu|debian",
            "uuid=15963d90-61d7-4664-87a6-f56b16492d5a",
            "uuid=15963d90.*",
            "uuid=u2",
            "15963d90-61d7-4664-87a6-f56b16492d5a",
            "abc",
            "f00",
            "012",
        ];
        for yes in yes {
            assert!(Filter::parse(yes).matches(&image), "{yes}");
        }
        for no in [
            "os=ubunt",
            "arm64",
            "focal",
            "support=no",
            "nothing=x",
            "os=^tu",
            "u=cloud(1",
            "01",
            "tag=c",
            "q",
            "uuid=15963d90",
            "ab",
            "00d",
        ] {
            assert!(!Filter::parse(no).matches(&image), "{no}");
        }
    }

    #[test]
    fn every_value_has_a_name_of_its_own() {
        let values = ["a/b", "a%2Fb", ".x", "%2Ex", "..", "x86_64", "a.b", "x%2Ey", "100%"];
        for value in values {
            let name = name_of(value).unwrap();
            assert!(!name.contains('/') && !name.starts_with('.'), "{name}");
            assert_eq!(values.iter().filter(|v| Dimension::Os.is_called(v, &name)).count(), 1, "{name}");
        }
        assert!(
            Dimension::Architecture.is_called("x86_64", "amd64")
                && Dimension::Architecture.is_called("a/b", "a%2Fb")
        );
        assert_eq!(name_of(&"x".repeat(256)), None);
    }
}
