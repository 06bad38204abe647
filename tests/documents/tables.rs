//! Tables whose rows name the tests that hold them.

use std::path::Path;

/// The rows of all tables of a document, without their headings, as cells.
pub fn rows(document: &str) -> Vec<Vec<String>> {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(document)).unwrap();
    // A bar inside of a cell has a backslash before it.
    let cells = |row: &str| {
        let row = row.strip_prefix('|').and_then(|row| row.strip_suffix('|')).unwrap_or(row);
        row.replace("\\|", "\0").split('|').map(|cell| cell.trim().replace('\0', "|")).collect::<Vec<_>>()
    };
    let lines: Vec<&str> = text.lines().collect();
    let is_heading = |n: usize| lines.get(n + 1).is_some_and(|next| next.starts_with("|---"));
    let rows = lines.iter().enumerate().filter(|(n, line)| line.starts_with("| ") && !is_heading(*n));
    rows.map(|(_, row)| cells(row)).collect()
}

/// A row names its tests at its end, as `FILE: function` with commas between them: in a cell of its own, or in
/// a comment. FILE is one of tests/, or begins with `src/`.
pub fn assert_has_tests(row: &[String]) {
    let last = row.last().unwrap();
    let names = last.split_once("<!--").map_or(last.as_str(), |(_, rest)| rest.trim_end_matches("-->"));
    for name in names.split(", ") {
        let (file, function) =
            name.trim().split_once(": ").unwrap_or_else(|| panic!("{row:?} names no test"));
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let path = if file.starts_with("src/") { root.join(file) } else { root.join("tests").join(file) };
        let text =
            std::fs::read_to_string(path.with_extension("rs")).unwrap_or_else(|e| panic!("{row:?}: {e}"));
        assert_eq!(missing(&text, function), None, "{row:?}: {file}: {function}");
    }
}

/// Why a file does not have a test that is run; none if it has.
pub fn missing(file: &str, function: &str) -> Option<&'static str> {
    let lines: Vec<&str> = file.lines().map(str::trim).collect();
    let begins = format!("fn {function}() ");
    let Some(at) = lines.iter().position(|line| line.starts_with(&begins)) else { return Some("not there") };
    let above =
        || lines[..at].iter().rev().take_while(|line| line.starts_with("#[") || line.starts_with("//"));
    if !above().any(|line| *line == "#[test]") {
        Some("no test")
    } else if above().any(|line| line.starts_with("#[ignore") || line.starts_with("#[cfg")) {
        Some("ignored")
    } else {
        None
    }
}
