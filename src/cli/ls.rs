//! imgfs ls: the images that match filters, as columns or as documents.

use std::process::ExitCode;

use serde_json::Value;

use crate::base::clock::parse_time;
use crate::base::journal::escape;
use crate::cli::args::LsArgs;
use crate::cli::text::{bytes, table};
use crate::cli::through;
use crate::error::{Error, Result};
use crate::images::query::Filter;

/// The columns that are shown by default.
const USUAL: &str = "name,default,versions,latest,size,os,release,arch,aliases";

/// How many digits of a fingerprint lxc shows.
const SHORT: usize = 12;

/// An image, and the version that its `default` leads to. That is null if it has none.
struct Listed<'d> {
    image: &'d Value,
    version: &'d Value,
}

/// The content of a column, and its sort key.
struct Cell {
    text: String,
    /// The text for programs, if that differs: for example, bytes as a number.
    plain: Option<String>,
    key: Key,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Number(i128),
    Text(String),
}

impl Cell {
    fn text(text: impl Into<String>) -> Cell {
        let text = text.into();
        Cell { key: Key::Text(text.clone()), plain: None, text }
    }

    fn yes(is: bool) -> Cell {
        Cell::text(if is { "yes" } else { "" })
    }

    fn number(n: Option<u64>) -> Cell {
        let text = n.map(|n| n.to_string()).unwrap_or_default();
        Cell { text, plain: None, key: Key::Number(n.map_or(-1, i128::from)) }
    }

    fn size(n: Option<u64>) -> Cell {
        Cell {
            text: n.map(bytes).unwrap_or_default(),
            plain: n.map(|n| n.to_string()),
            key: Key::Number(n.map_or(-1, i128::from)),
        }
    }

    /// A time as in the documents, in whole seconds.
    fn time(at: &Value) -> Cell {
        let text = at.as_str().unwrap_or_default();
        let key = Key::Number(parse_time(text).map_or(i128::MIN, i128::from));
        let seconds = text.split_once('.').map_or(text.to_owned(), |(seconds, _)| format!("{seconds}Z"));
        Cell { text: seconds, plain: None, key }
    }
}

impl Listed<'_> {
    fn of(image: &Value) -> Listed<'_> {
        let default = |version: &&Value| version["number"] == image["default_version"];
        let version =
            image["versions"].as_array().into_iter().flatten().find(default).unwrap_or(&Value::Null);
        Listed { image, version }
    }

    fn word(&self, key: &str) -> Cell {
        Cell::text(self.image[key].as_str().unwrap_or_default())
    }

    fn aliases(&self) -> Vec<&str> {
        self.image["aliases"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|alias| alias["name"].as_str())
            .collect()
    }

    fn words(list: &Value) -> Vec<&str> {
        list.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
    }

    /// The users of the image, of any of its versions.
    fn users(&self) -> Vec<&str> {
        let versions = self.image["versions"].as_array().into_iter().flatten();
        versions.flat_map(|version| Listed::words(&version["used_by"])).collect()
    }

    /// LXD's fingerprint. For any other image, the sha256 of its rootfs.tar.
    fn fingerprint(&self) -> &str {
        let digest = || self.version["digest"].as_str().map(|digest| digest.trim_start_matches("sha256:"));
        self.version["fingerprint"].as_str().or_else(digest).unwrap_or_default()
    }

    /// The shortest alias, and how many others there are, as lxc shows it.
    fn shortest_alias(&self) -> String {
        let all = self.aliases();
        let Some(first) = all.iter().min_by_key(|name| (name.len(), **name)) else { return String::new() };
        if all.len() > 1 { format!("{first} ({} more)", all.len() - 1) } else { (*first).to_owned() }
    }

    fn published(&self) -> Cell {
        let of = [&self.version["published_at"], &self.image["published_at"], &self.version["created_at"]];
        Cell::time(of.into_iter().find(|at| at.is_string()).unwrap_or(&Value::Null))
    }

    /// The view to which an image is bound. LXD calls the rest of the store `default`.
    fn project(&self) -> String {
        let name = self.image["name"].as_str().unwrap_or_default();
        name.split_once("::").map_or("default", |(view, _)| view).to_owned()
    }
}

/// A column: its names, lxc's letter for it, its heading, and its content.
struct Column {
    names: &'static [&'static str],
    letter: Option<char>,
    heading: &'static str,
    cell: fn(&Listed<'_>) -> Cell,
}

const fn column(
    names: &'static [&'static str],
    letter: Option<char>,
    heading: &'static str,
    cell: fn(&Listed<'_>) -> Cell,
) -> Column {
    Column { names, letter, heading, cell }
}

const COLUMNS: &[Column] = &[
    column(&["uuid"], None, "UUID", |l| Cell::text(l.version["uuid"].as_str().unwrap_or_default())),
    column(&["name"], None, "NAME", |l| l.word("name")),
    column(&["version"], None, "VERSION", |l| {
        let labels = Listed::words(&l.version["labels"]).join(",");
        if labels.is_empty() { Cell::number(l.version["number"].as_u64()) } else { Cell::text(labels) }
    }),
    column(&["number"], None, "NUMBER", |l| Cell::number(l.version["number"].as_u64())),
    column(&["os"], None, "OS", |l| l.word("os")),
    column(&["release"], None, "RELEASE", |l| l.word("release")),
    column(&["arch", "architecture"], Some('a'), "ARCH", |l| l.word("architecture")),
    column(&["type"], Some('t'), "TYPE", |l| l.word("type")),
    column(&["published", "published_at"], None, "PUBLISHED", |l| l.published()),
    column(&["pub"], None, "PUB", |l| {
        let published = l.published();
        Cell { text: published.text.chars().take("2014-02-06".len()).collect(), ..published }
    }),
    column(&["id"], None, "ID", |l| l.word("id")),
    column(&["status", "state"], None, "STATUS", |l| l.word("status")),
    column(&["fingerprint"], Some('F'), "FINGERPRINT", |l| Cell::text(l.fingerprint())),
    column(&["short_fingerprint"], Some('f'), "FINGERPRINT", |l| {
        Cell::text(l.fingerprint().chars().take(SHORT).collect::<String>())
    }),
    column(&["size"], Some('s'), "SIZE", |l| Cell::size(l.version["size"].as_u64())),
    column(&["used_by"], None, "USED_BY", |l| Cell::text(l.users().join(","))),
    column(&["clones"], None, "CLONES", |l| Cell::number(Some(l.users().len() as u64))),
    column(&["immutable"], None, "IMMUTABLE", |l| Cell::yes(l.image["immutable"] == true)),
    column(&["default"], None, "DEFAULT", |l| Cell::yes(l.image["is_default"] == true)),
    column(&["public"], Some('p'), "PUBLIC", |l| {
        Cell::text(if l.image["public"] == true { "yes" } else { "no" })
    }),
    column(&["description"], Some('d'), "DESCRIPTION", |l| l.word("description")),
    column(&["aliases"], Some('L'), "ALIASES", |l| Cell::text(l.aliases().join(","))),
    column(&["alias"], Some('l'), "ALIAS", |l| Cell::text(l.shortest_alias())),
    column(&["tags"], None, "TAGS", |l| Cell::text(Listed::words(&l.image["tags"]).join(","))),
    column(&["created", "created_at"], None, "CREATED", |l| Cell::time(&l.image["created_at"])),
    column(&["expires", "expires_at"], None, "EXPIRES", |l| Cell::time(&l.image["expires_at"])),
    column(&["uploaded"], Some('u'), "UPLOADED", |l| Cell::time(&l.version["created_at"])),
    column(&["project"], Some('e'), "PROJECT", |l| Cell::text(l.project())),
    column(&["versions"], None, "VERSIONS", |l| {
        Cell::number(Some(l.image["versions"].as_array().map_or(0, Vec::len) as u64))
    }),
    column(&["latest"], None, "LATEST", |l| Cell::number(l.image["latest_version"].as_u64())),
];

fn column_named(name: &str) -> Option<&'static Column> {
    COLUMNS.iter().find(|column| column.names.contains(&name))
}

/// Parses a list of columns: `uuid,name,version`, or lxc's letters, `lfpdtsu`.
///
/// # Errors
///
/// `Invalid` for a column that there is not, with those that there are.
fn columns(text: &str) -> Result<Vec<&'static Column>> {
    let lettered = |letter: char| COLUMNS.iter().find(|column| column.letter == Some(letter));
    let mut all = Vec::new();
    for name in text.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        match column_named(name) {
            Some(column) => all.push(column),
            None => all
                .extend(name.chars().map(lettered).collect::<Option<Vec<_>>>().ok_or_else(|| unknown(name))?),
        }
    }
    if all.is_empty() { Err(unknown(text)) } else { Ok(all) }
}

fn unknown(name: &str) -> Error {
    let names: Vec<&str> = COLUMNS.iter().map(|column| column.names[0]).collect();
    let letters: String = COLUMNS.iter().filter_map(|column| column.letter).collect();
    let why = format!(
        "there is none of that name, but {}; and, as lxc has them, the letters {letters}",
        names.join(", ")
    );
    Error::Invalid { what: format!("the column {name:?}"), why }
}

/// Sorts by the first key, then by the next for equal ones. A `-` before a key reverses its order.
fn sort(images: &mut [Value], keys: &str) -> Result<()> {
    let keys: Vec<(&Column, bool)> = keys
        .split(',')
        .map(|key| {
            let name = key.trim().trim_start_matches('-');
            Ok((column_named(name).ok_or_else(|| unknown(name))?, key.trim().starts_with('-')))
        })
        .collect::<Result<_>>()?;
    images.sort_by(|a, b| {
        let (a, b) = (Listed::of(a), Listed::of(b));
        let each = keys.iter().map(|(column, turned)| {
            let order = (column.cell)(&a).key.cmp(&(column.cell)(&b).key);
            if *turned { order.reverse() } else { order }
        });
        each.fold(std::cmp::Ordering::Equal, std::cmp::Ordering::then)
    });
    Ok(())
}

/// Lists images. Exit status 1 if filters were given and no image matches.
///
/// # Errors
///
/// `Invalid` for a column that there is not; what the store or its daemon fails with.
pub fn ls(args: &LsArgs) -> Result<ExitCode> {
    let shown = columns(args.columns.as_deref().unwrap_or(USUAL))?;
    let images = through::images(args)?;
    let wanted: Vec<Filter> = args.filters.iter().map(|text| Filter::parse(text)).collect();
    let mut found: Vec<Value> =
        images.into_iter().filter(|image| wanted.iter().all(|filter| filter.matches(image))).collect();
    if let Some(keys) = &args.sort {
        sort(&mut found, keys)?;
    }
    let code =
        if found.is_empty() && !args.filters.is_empty() { ExitCode::from(1) } else { ExitCode::SUCCESS };
    if args.json {
        println!("{:#}", Value::Array(found));
        return Ok(code);
    }
    // If somebody has chosen the columns, each gets a word, so that scripts can count them.
    let or_dash = |text: String| {
        if text.is_empty() && (args.columns.is_some() || args.bare) { "-".into() } else { text }
    };
    let cells =
        |image: &Value| shown.iter().map(|column| (column.cell)(&Listed::of(image))).collect::<Vec<Cell>>();
    if args.bare {
        for image in &found {
            let plain = |cell: Cell| escape(&or_dash(cell.plain.unwrap_or(cell.text)));
            println!("{}", cells(image).into_iter().map(plain).collect::<Vec<_>>().join("\t"));
        }
        return Ok(code);
    }
    let mut rows = vec![shown.iter().map(|column| column.heading.to_owned()).collect::<Vec<_>>()];
    rows.extend(found.iter().map(|image| cells(image).into_iter().map(|cell| or_dash(cell.text)).collect()));
    print!("{}", table(&rows));
    Ok(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_have_one_name_each_and_are_all_listed() {
        let mut names: Vec<&str> = COLUMNS.iter().flat_map(|column| column.names).copied().collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        let letters: Vec<&str> =
            columns("lLfFpdatsue").unwrap().iter().map(|column| column.names[0]).collect();
        assert_eq!(letters.len(), 11);
        assert_eq!(columns("os,type").unwrap().len(), 2);
        let refusal = columns("name,colour").map(|_| ()).unwrap_err().to_string();
        assert!(
            refusal.contains("\"colour\"")
                && names.iter().all(|n| COLUMNS.iter().any(|c| c.names.contains(n)))
        );
        assert!(refusal.contains("fingerprint, ") && columns("").is_err());
    }

    #[test]
    fn images_are_sorted_by_what_stands_in_columns() {
        let image = |name: &str, size: u64, at: &str| serde_json::json!({"name": name, "default_version": 0, "versions": [{"number": 0, "size": size, "created_at": at}]});
        let mut all = vec![
            image("a", 900, "2026-01-01T00:00:00.12Z"),
            image("b", 1_000, "2026-01-01T00:00:00.1Z"),
            image("c", 900, "2025-01-01T00:00:00Z"),
        ];
        let names =
            |all: &[Value]| all.iter().map(|i| i["name"].as_str().unwrap_or_default()).collect::<String>();
        for (keys, order) in
            [("published", "cba"), ("-published", "abc"), ("size,-name", "cab"), ("-size,name", "bac")]
        {
            sort(&mut all, keys).unwrap();
            assert_eq!(names(&all), order, "{keys}");
        }
        assert!(sort(&mut all, "colour").is_err());
    }
}
