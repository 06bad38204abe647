//! docs/, README and the tables of tests/: each row has its test, each link leads somewhere, and the man pages
//! are made of them.

#[path = "documents/tables.rs"]
mod tables;

use std::path::Path;
use std::process::{Command, Stdio};

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

/// README.md, docs/performance.md and the charts show what docs/bench.json says, and a figure that was changed by
/// hand is found.
#[test]
fn figures_are_those_that_the_bench_found() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let check = |root: &Path| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/bench.sh");
        Command::new(script).arg("check").arg(root).output().unwrap()
    };
    let ran = check(root);
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let copy = tempfile::tempdir().unwrap();
    let copied = |name: &str, change: &dyn Fn(String) -> String| {
        let text = std::fs::read_to_string(root.join(name)).unwrap();
        std::fs::create_dir_all(copy.path().join(name).parent().unwrap()).unwrap();
        std::fs::write(copy.path().join(name), change(text)).unwrap();
    };
    let names = ["README.md", "docs/performance.md", "docs/bench.json"];
    names.iter().for_each(|name| copied(name, &|text| text));
    ["cold", "ingest", "space", "warm"]
        .iter()
        .for_each(|name| copied(&format!("scripts/bench/{name}.svg"), &|t| t));
    assert!(check(copy.path()).status.success());
    for (name, end) in [
        ("README.md", "<!-- end -->"),
        ("docs/performance.md", "<!-- end -->"),
        ("scripts/bench/warm.svg", "</svg>"),
    ] {
        copied(name, &|text| text.replace(end, &format!("1{end}")));
        let ran = check(copy.path());
        assert!(
            !ran.status.success() && String::from_utf8_lossy(&ran.stderr).contains(name),
            "{name}: {ran:?}"
        );
        copied(name, &|text| text);
    }
}

fn man(section: &str) -> String {
    let ran = Command::new(env!("CARGO_BIN_EXE_imgfs")).args(["man", section]).output().unwrap();
    assert!(ran.status.success(), "{ran:?}");
    String::from_utf8(ran.stdout).unwrap()
}

/// A program that reads a page from its standard input; none if it is not installed.
fn reads(program: &str, arguments: &[&str], page: &str) -> Option<(String, String)> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let Ok(mut child) = command.spawn() else {
        println!("skipped: there is no {program}");
        return None;
    };
    let (mut input, page) = (child.stdin.take().unwrap(), page.to_owned());
    let writer = std::thread::spawn(move || std::io::Write::write_all(&mut input, page.as_bytes()));
    let ran = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    Some((String::from_utf8(ran.stdout).unwrap(), String::from_utf8(ran.stderr).unwrap()))
}

/// groff and mandoc have nothing to say about a page.
#[test]
fn man_pages_are_well_formed() {
    for section in ["1", "7", "8"] {
        let page = man(section);
        assert!(page.contains(&format!(" {section} ")), "{page}");
        if let Some((_, said)) = reads("groff", &["-man", "-ww", "-z", "-Tutf8"], &page) {
            assert_eq!(said, "", "imgfs man {section}");
        }
        if let Some((said, _)) = reads("mandoc", &["-man", "-T", "lint", "-W", "warning"], &page) {
            assert_eq!(said, "", "imgfs man {section}");
        }
    }
}

/// Whoever reads imgfs(7) and imgfs-mount(8) finds each gesture, refusal and option of the documents, and
/// nothing of their tests.
#[test]
fn man_pages_have_every_row_of_the_documents() {
    let shown = |section: &str| {
        let (text, _) = reads("groff", &["-man", "-P-cbou", "-Tutf8", "-rLL=2000n"], &man(section))?;
        Some(text)
    };
    let (Some(file_system), Some(mounting)) = (shown("7"), shown("8")) else { return };
    for (document, page) in [
        ("docs/gestures.md", &file_system),
        ("docs/refusals.md", &file_system),
        ("docs/kinds.md", &file_system),
        ("docs/permissions.md", &file_system),
        ("docs/options.md", &mounting),
        ("docs/trees.md", &mounting),
    ] {
        for row in rows(document) {
            let first = row[0].replace("`", "").replace("[options](options.md)", "options");
            assert!(page.contains(&first), "{document}: {first}");
        }
        assert!(!page.contains("<!--"), "a comment of {document} is shown");
    }
    // imgfs(1) has the commands.
    let options =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/options.md")).unwrap();
    let parts =
        options.lines().filter_map(|line| line.strip_prefix("## ")).filter(|part| *part != "Commands");
    for part in parts {
        assert!(mounting.contains(&part.to_uppercase()), "docs/options.md: {part}");
    }
    for other in ["a_refused_mv_does_not", "semantics:"] {
        assert!(!file_system.contains(other), "{other}");
    }
}
