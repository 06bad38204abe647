//! The house: who may use whom. Nobody imports upward, and no files use one another in a circle.

#[path = "layers/imports.rs"]
mod imports;

use std::path::Path;

use imports::{House, code, sources};

/// The folders of `src` from the ground up. A file may use its own folder and those before it.
const FLOORS: &[&str] = &[
    // The files that lie in no folder: errors, the store's format, the places where tests end the process.
    "", "base", "tree", "formats", "blob", "catalog", "store", "images", "ingest", "care", "fs", "daemon",
    "cli",
];

/// Files at the root of `src`.
const AT_THE_ROOT: usize = 6;

fn all() -> Vec<(String, String)> {
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"))
}

fn house(files: &[(&str, &str)]) -> House {
    House::of(&files.iter().map(|(path, text)| (path.to_string(), text.to_string())).collect::<Vec<_>>())
}

#[test]
fn nobody_imports_upward() {
    let house = House::of(&all());
    assert_eq!(house.upward(FLOORS), Vec::<String>::new());
    let knows_blobs = |(from, to): &(&String, &String)| from.starts_with("catalog") && to.starts_with("blob");
    assert_eq!(house.arrows().into_iter().find(knows_blobs), None, "blob and catalog do not know each other");
}

#[test]
fn no_files_use_one_another_in_a_circle() {
    assert_eq!(House::of(&all()).circles(), Vec::new());
}

#[test]
fn few_files_lie_at_the_root() {
    let files: Vec<String> =
        all().into_iter().map(|(path, _)| path).filter(|path| !path.contains('/')).collect();
    assert!(files.len() <= AT_THE_ROOT, "{files:?}");
}

/// The two rules above see what they are to see.
#[test]
fn what_is_planted_is_found() {
    let good =
        [("base/mod.rs", "pub mod name;"), ("base/name.rs", ""), ("store/mod.rs", "use crate::base::name;")];
    assert!(house(&good).upward(FLOORS).is_empty() && house(&good).circles().is_empty());
    for upward in [
        "use crate::store::Store;",
        "use crate::{error, store};",
        "use crate::{error::{self, Error}, store::{self as below, Store}};",
        "use super::super::store::Store;",
        "fn f() { crate::store::open() }",
        "pub use crate::{\n    error,\n    store,\n};",
    ] {
        let planted = house(&[good[0], ("base/name.rs", upward), good[2], ("error.rs", "")]);
        assert_eq!(planted.upward(FLOORS), ["base/name.rs -> store/mod.rs"], "{upward}");
        assert_eq!(planted.circles().len(), 1, "{upward}");
    }
    let unseen = house(&[
        good[0],
        ("base/name.rs", "// use crate::store;\n#[cfg(test)]\nmod tests { use crate::store; }"),
        good[2],
    ]);
    assert!(unseen.upward(FLOORS).is_empty());
    // Two files of one folder; a folder's own file may hand on what is in it.
    let twins = [
        ("fs/mod.rs", "pub use node::Node;\nuse crate::fs::ls::list;"),
        ("fs/ls.rs", "pub(super) use crate::fs::Node;\npub(in crate::fs) fn f() {}"),
    ];
    assert!(house(&[twins[0], twins[1], ("fs/node.rs", "use super::Node;")]).circles().is_empty());
    let planted = house(&[
        twins[0],
        ("fs/ls.rs", "use super::node::{self, Node};"),
        ("fs/node.rs", "use crate::fs::{ls, Node};"),
    ]);
    assert_eq!(planted.circles().iter().map(|c| c.len()).collect::<Vec<_>>(), [2]);
}

#[test]
fn each_foreign_library_has_one_home() {
    for (path, text) in all() {
        let code = code(&text);
        for (word, home) in [
            ("fuser::", "fs/kernel/fuse"),
            ("rusqlite", "catalog/"),
            ("unsafe ", "base/sys.rs"),
            ("pulldown_cmark", "base/document.rs"),
        ] {
            assert!(
                !code.contains(word) || path.starts_with(home),
                "{path} names {word}, which belongs into {home}"
            );
        }
    }
}

/// The lines that a file and a function may have, and the one file that may have more: the trait that fuser
/// calls, which is one `impl`.
const FILE: usize = 500;
const FUNCTION: usize = 80;
const TRAIT: &str = "fs/kernel/fuse.rs";

/// Name and lines of each function of a file, as rustfmt lays them out.
fn functions(text: &str) -> Vec<(String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let words = line.trim_start();
        let indent = &line[..line.len() - words.len()];
        let Some((before, name)) = words.split_once("fn ") else { continue };
        let is_head = before.is_empty() || before.starts_with("pub") || before.starts_with("const ");
        let end = format!("{indent}}}");
        if let Some(len) =
            lines[at..].iter().position(|l| *l == end).filter(|_| is_head && !line.ends_with(';'))
        {
            found.push((name.split(['(', '<']).next().unwrap_or_default().to_owned(), len + 1));
        }
    }
    found
}

#[test]
fn files_and_functions_are_short() {
    let (mut long, mut count) = (Vec::new(), 0);
    for (path, text) in all() {
        if text.lines().count() > FILE && path != TRAIT {
            long.push(format!("{path}: {} lines", text.lines().count()));
        }
        for (name, lines) in functions(&text) {
            count += 1;
            if lines > FUNCTION {
                long.push(format!("{path}: {name} has {lines} lines"));
            }
        }
    }
    assert!(count > 1000, "only {count} functions were seen");
    assert_eq!(long, Vec::<String>::new());
    let planted = format!("    pub fn long() {{\n{}    }}\n", "        f();\n".repeat(FUNCTION));
    assert_eq!(functions(&planted), [("long".to_owned(), FUNCTION + 2)]);
}

/// The file system is one type, whose methods lie in few files.
#[test]
fn the_methods_of_the_file_system_lie_together() {
    let (mut files, mut methods) = (Vec::new(), 0);
    for (path, text) in all() {
        let mut inside = false;
        for line in text.lines() {
            if line.starts_with("impl ImageFs") {
                inside = true;
                files.push(path.clone());
            }
            inside &= line != "}";
            let words = line.strip_prefix("    ").unwrap_or_default();
            methods += usize::from(
                inside && (words.starts_with("fn ") || words.starts_with("pub") && words.contains(" fn ")),
            );
        }
    }
    assert!(files.len() <= 8 && (60..=120).contains(&methods), "{methods} methods in {files:?}");
}

/// docs/ARCHITECTURE.md has the folders in their order, and each step of its journeys is there.
#[test]
fn the_map_of_the_code_is_true() {
    let map =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/ARCHITECTURE.md")).unwrap();
    assert!(map.lines().count() <= 140, "it has {} lines", map.lines().count());
    let folders = map.lines().skip_while(|line| !line.starts_with("| folder")).skip(2);
    let folders: Vec<&str> = folders.map_while(|row| row.split('|').nth(1)).map(|cell| cell.trim()).collect();
    let named = |floor: &&str| if floor.is_empty() { "(none)".into() } else { format!("`{floor}`") };
    assert_eq!(folders, FLOORS.iter().map(named).collect::<Vec<_>>());
    let (steps, lost) = lost_steps(&map, &all());
    assert!(steps > 30 && lost.is_empty(), "{steps} steps, and these are not there: {lost:?}");
    let (steps, lost) =
        lost_steps("`a.rs: one`, `a/:\n two`, `b.rs: one` `a`", &[("a.rs".into(), "fn one(".into())]);
    assert_eq!((steps, lost), (3, vec!["a/: two".to_owned(), "b.rs: one".to_owned()]));
}

/// How many `FILE: function` a text names, and those that are not in the sources. A folder, with its slash,
/// stands for all files below it.
fn lost_steps(text: &str, sources: &[(String, String)]) -> (usize, Vec<String>) {
    let spans =
        text.split('`').skip(1).step_by(2).map(|span| span.split_whitespace().collect::<Vec<_>>().join(" "));
    let steps: Vec<String> = spans
        .filter(|span| {
            span.split_once(": ").is_some_and(|(file, _)| file.ends_with(".rs") || file.ends_with('/'))
        })
        .collect();
    let is_there = |step: &String| {
        step.split_once(": ").is_some_and(|(file, function)| {
            let of_it = |path: &str| path == file || file.ends_with('/') && path.starts_with(file);
            let has_it =
                |text: &str| ["(", "<"].iter().any(|next| text.contains(&format!("fn {function}{next}")));
            sources.iter().any(|(path, text)| of_it(path) && has_it(text))
        })
    };
    (steps.len(), steps.iter().filter(|step| !is_there(step)).cloned().collect())
}

#[test]
fn every_file_says_what_it_is_for_and_stays_readable() {
    for (path, text) in all() {
        assert!(text.starts_with("//! "), "{path} does not begin with what it is for");
        for word in ["todo!", "unimplemented!", "FIXME", "XXX"] {
            assert!(!text.contains(word), "{path} has {word}");
        }
    }
}
