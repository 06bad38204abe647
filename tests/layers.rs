//! The house: who may use whom. Nobody imports upward.

use std::path::{Path, PathBuf};

/// Modules from the ground up; a module may use those of its own row and of the rows before.
const LAYERS: &[&[&str]] = &[
    &[
        "error",
        "flags",
        "fault",
        "compress",
        "delta",
        "sys",
        "digest",
        "name",
        "manifest",
        "imgapi",
        "format",
        "writable",
        "lock",
        "process",
        "progress",
        "acl",
        "settings",
        "changelog",
        "journal",
        "tar",
        "tree",
    ],
    &["blob", "catalog"],
    &["store", "adopt"],
    &[
        "describe",
        "diff",
        "export",
        "fsck",
        "gc",
        "heal",
        "icons",
        "ingest",
        "keep",
        "labels",
        "last_use",
        "leases",
        "links",
        "manifests",
        "query",
        "quota",
        "remote",
        "repack",
        "retention",
        "rules",
        "scrub",
        "staging",
        "status",
        "trash",
        "versions",
        "views",
    ],
    &["fs"],
    &["cli"],
];

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

fn all() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    sources(&root, &mut found);
    found
        .into_iter()
        .map(|path| (path.strip_prefix(&root).unwrap().display().to_string(), std::fs::read_to_string(&path).unwrap()))
        .collect()
}

/// The code of a file: without comments, and without its tests.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

fn layer_of(module: &str) -> Option<usize> {
    LAYERS.iter().position(|row| row.contains(&module))
}

#[test]
fn nobody_imports_upward() {
    for (path, text) in all() {
        let module = path.split(['/', '.']).next().unwrap();
        let Some(layer) = layer_of(module) else {
            assert!(["lib", "main"].contains(&module), "{path} is in no layer: add it here");
            continue;
        };
        for used in code(&text).split("crate::").skip(1) {
            let used: String = used.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            if let Some(theirs) = layer_of(&used) {
                assert!(theirs <= layer, "{path} uses {used}, which is above it");
                let pair = [module, used.as_str()];
                assert!(
                    !(pair.contains(&"blob") && pair.contains(&"catalog")),
                    "{path}: blob and catalog do not know each other"
                );
            }
        }
    }
}

#[test]
fn each_foreign_library_has_one_home() {
    for (path, text) in all() {
        let code = code(&text);
        for (word, home) in [("fuser::", "fs/fuse"), ("rusqlite", "catalog/"), ("unsafe ", "sys.rs")] {
            assert!(!code.contains(word) || path.starts_with(home), "{path} names {word}, which belongs into {home}");
        }
    }
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

/// Rows of a table of tests/ that name their test last, as `FILE: function`; a file outside of tests/ begins with `src/`.
fn rows(table: &str) -> Vec<Vec<String>> {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(table)).unwrap();
    // A bar inside of a cell has a backslash before it.
    let cells = |row: &str| row.replace("\\|", "\0").split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
    let mut rows: Vec<_> = text.lines().filter(|line| line.starts_with("| ")).map(|row| cells(row.trim_matches('|'))).collect();
    rows.retain(|row| row.last().is_some_and(|last| last != "test"));
    rows
}

fn assert_has_test(row: &[String]) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (file, name) = row.last().and_then(|last| last.split_once(": ")).unwrap_or_else(|| panic!("{row:?} names no test"));
    let file = if file.starts_with("src/") { root.join(file) } else { root.join("tests").join(file) };
    let text = std::fs::read_to_string(file.with_extension("rs")).unwrap_or_else(|e| panic!("{row:?}: {e}"));
    assert!(text.contains(&format!("#[test]\nfn {name}() ")), "{row:?}: there is no such test");
}

/// Every rule in tests/RULES.md names a test that is there.
#[test]
fn every_rule_has_its_test() {
    let rules = rows("RULES.md");
    rules.iter().for_each(|row| assert_has_test(row));
    assert!(rules.len() > 40, "only {} rules", rules.len());
}

/// tests/FEATURES.md has each row of the four systems once, with a state, and a test that is there.
#[test]
fn every_feature_has_its_row_and_its_test() {
    let numbers = |letter: char, all: std::ops::RangeInclusive<u32>| all.map(move |n| format!("{letter}{n}"));
    let wanted: Vec<String> = numbers('A', 1..=43)
        .chain(numbers('D', 1..=37))
        .chain(numbers('L', 1..=33))
        .chain(numbers('S', 1..=37))
        .chain(numbers('S', 40..=60))
        .collect();
    let features = rows("FEATURES.md");
    assert_eq!(features.iter().map(|row| row[0].clone()).collect::<Vec<_>>(), wanted);
    for row in &features {
        let [_, what, here, state, test] = row.as_slice() else { panic!("{row:?} has not five cells") };
        assert!(!what.is_empty() && !here.is_empty(), "{row:?}");
        match state.as_str() {
            "works" | "works otherwise" => assert_has_test(row),
            "belongs to servers" | "not here" => assert_eq!(test, "-", "{row:?}"),
            _ => panic!("{row:?}: {state} is no state"),
        }
    }
}
