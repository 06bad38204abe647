//! docs/, README and the tables of tests/: each row has its test, and each link leads somewhere.

#[path = "documents/tables.rs"]
mod tables;

use std::path::Path;

use tables::{assert_has_tests, missing, rows};

/// The front page fits a screen or two, and every link of the documents leads to a file.
#[test]
fn the_documents_are_short_and_lead_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
    assert!(readme.lines().count() <= 150, "README.md has {} lines", readme.lines().count());
    let long = readme.lines().find(|line| line.chars().count() > 100);
    assert_eq!(long, None, "a line of README.md has over 100 columns");
    let docs = std::fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let (mut links, mut lost) = (0, Vec::new());
    for file in docs.chain(["README.md", "CONTRIBUTING.md", "CHANGELOG.md"].map(|name| root.join(name))) {
        let text = std::fs::read_to_string(&file).unwrap();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next()) {
            links += 1;
            if !target.is_empty() && !target.contains("://") && !file.with_file_name(target).exists() {
                lost.push(format!("{}: {target}", file.display()));
            }
        }
    }
    assert!(links > 20 && lost.is_empty(), "{links} links, and these lead nowhere: {lost:?}");
}

/// Each gesture and each refusal names the tests that hold it, in a comment that no reader sees.
#[test]
fn every_row_of_gestures_and_refusals_has_its_test() {
    for (document, least) in [("docs/gestures.md", 40), ("docs/refusals.md", 20)] {
        let rows = rows(document);
        rows.iter().for_each(|row| assert_has_tests(row));
        assert!(rows.len() >= least, "{document} has only {} rows", rows.len());
    }
}

/// What a row may name wrongly is seen.
#[test]
fn a_test_that_is_not_there_or_is_ignored_is_found() {
    let file = "mod x;\n\n/// Why.\n#[test]\nfn one() {}\n\n#[test]\n#[ignore]\nfn two() {}\n\n#[ignore = \"long\"]\n#[test]\nfn \
                three() {}\n\nfn four() {}\n";
    assert_eq!(missing(file, "one"), None);
    for (name, why) in [("two", "ignored"), ("three", "ignored"), ("four", "no test"), ("five", "not there")]
    {
        assert_eq!(missing(file, name), Some(why), "{name}");
    }
}

/// Every rule in tests/RULES.md names a test that is there.
#[test]
fn every_rule_has_its_test() {
    let rules = rows("tests/RULES.md");
    rules.iter().for_each(|row| assert_has_tests(row));
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
    let features = rows("tests/FEATURES.md");
    assert_eq!(features.iter().map(|row| row[0].clone()).collect::<Vec<_>>(), wanted);
    for row in &features {
        let [_, what, here, state, test] = row.as_slice() else { panic!("{row:?} has not five cells") };
        assert!(!what.is_empty() && !here.is_empty(), "{row:?}");
        match state.as_str() {
            "works" | "works otherwise" => assert_has_tests(row),
            "belongs to servers" | "not here" => assert_eq!(test, "-", "{row:?}"),
            _ => panic!("{row:?}: {state} is no state"),
        }
    }
}
