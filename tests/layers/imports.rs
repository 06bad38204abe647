//! Which file uses which, read from `use` and from paths in the code.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The source files of a program, by their modules' paths: `fs::node`.
pub struct House {
    files: BTreeMap<String, File>,
}

struct File {
    path: String,
    code: String,
}

/// The code of a file: without comments, and without its tests.
pub fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// All `.rs` files below a directory: their paths from there, and what is in them.
pub fn sources(root: &Path) -> Vec<(String, String)> {
    let (mut found, mut open) = (Vec::new(), vec![root.to_owned()]);
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                found.push((path.strip_prefix(root).unwrap().display().to_string(), text));
            }
        }
    }
    found.sort();
    found
}

impl House {
    pub fn of(files: &[(String, String)]) -> House {
        let module = |path: &str| {
            let path = path.trim_end_matches(".rs");
            path.strip_suffix("/mod").unwrap_or(path).replace('/', "::")
        };
        let file =
            |(path, text): &(String, String)| (module(path), File { path: path.clone(), code: code(text) });
        House { files: files.iter().map(file).collect() }
    }

    /// The file in which a path leads, if that is one of ours.
    fn file_of(&self, path: &[String]) -> Option<&String> {
        (1..=path.len())
            .rev()
            .find_map(|n| self.files.get_key_value(&path[..n].join("::")))
            .map(|(module, _)| module)
    }

    /// Who uses whom. A folder's own file (`mod.rs`) hands on what is in the folder: those are no arrows.
    pub fn arrows(&self) -> BTreeSet<(&String, &String)> {
        let mut arrows = BTreeSet::new();
        for (module, file) in &self.files {
            for path in paths(&file.code) {
                let Some(target) = absolute(module, &path).and_then(|path| self.file_of(&path)) else {
                    continue;
                };
                if target != module && !target.starts_with(&format!("{module}::")) {
                    arrows.insert((module, target));
                }
            }
        }
        arrows
    }

    /// The arrows that lead from a lower floor to a higher one. `floors` are folders from the ground up; the
    /// first has the files that lie in no folder.
    pub fn upward(&self, floors: &[&str]) -> Vec<String> {
        let floor = |module: &String| {
            let path = &self.files[module].path;
            let folder = path.split_once('/').map_or(floors[0], |(folder, _)| folder);
            // `error.rs` and `error/` are one.
            let folder = if self.files.get(folder).is_some_and(|f| !f.path.contains('/')) {
                floors[0]
            } else {
                folder
            };
            floors
                .iter()
                .position(|name| *name == folder)
                .unwrap_or_else(|| panic!("{path} is on no floor: add {folder}"))
        };
        let tops = ["lib", "main"];
        let is_up =
            |(from, to): &(&String, &String)| !tops.contains(&from.as_str()) && floor(to) > floor(from);
        let name =
            |(from, to): (&String, &String)| format!("{} -> {}", self.files[from].path, self.files[to].path);
        self.arrows().into_iter().filter(is_up).map(name).collect()
    }

    /// Files that use one another in a circle, each circle once.
    pub fn circles(&self) -> Vec<BTreeSet<String>> {
        let arrows = self.arrows();
        let next =
            |from: &String| arrows.iter().filter(|(f, _)| *f == from).map(|(_, to)| *to).collect::<Vec<_>>();
        let reached = |from: &String| {
            let (mut seen, mut open) = (BTreeSet::new(), next(from));
            while let Some(module) = open.pop() {
                if seen.insert(module.clone()) {
                    open.extend(next(module));
                }
            }
            seen
        };
        let all: BTreeMap<&String, BTreeSet<String>> = self.files.keys().map(|m| (m, reached(m))).collect();
        let circle = |m: &&String| {
            all[*m].iter().filter(|other| all[*other].contains(*m)).cloned().collect::<BTreeSet<_>>()
        };
        let mut circles: Vec<_> =
            self.files.keys().filter(|m| all[m].contains(*m)).map(|m| circle(&m)).collect();
        circles.sort();
        circles.dedup();
        circles
    }
}

/// A path as the code has it, from the crate's root.
fn absolute(module: &str, path: &[String]) -> Option<Vec<String>> {
    let mut here: Vec<String> = module.split("::").map(str::to_owned).collect();
    match path.first()?.as_str() {
        "crate" => Some(path[1..].to_vec()),
        "self" => Some([here, path[1..].to_vec()].concat()),
        "super" => {
            let ups = path.iter().take_while(|part| *part == "super").count();
            here.truncate(here.len().checked_sub(ups)?);
            Some([here, path[ups..].to_vec()].concat())
        }
        _ => None,
    }
}

/// Every path in the code that begins with `crate`, `self` or `super`; those in braces one by one.
fn paths(code: &str) -> Vec<Vec<String>> {
    let mut all = Vec::new();
    for (at, word) in words(code) {
        // Not `pub(super)`.
        let is_path = code[at + word.len()..].starts_with("::") && !code[..at].ends_with("::");
        if is_path && ["crate", "self", "super"].contains(&word) {
            tree(&code[at..], Vec::new(), &mut all);
        }
    }
    all
}

fn words(code: &str) -> impl Iterator<Item = (usize, &str)> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut at = 0;
    std::iter::from_fn(move || {
        at += code[at..].find(is_word)?;
        let end = at + code[at..].find(|c| !is_word(c)).unwrap_or(code.len() - at);
        let found = (at, &code[at..end]);
        at = end;
        Some(found)
    })
}

/// One path or tree of paths: gives what is behind it.
fn tree<'c>(mut rest: &'c str, mut path: Vec<String>, all: &mut Vec<Vec<String>>) -> &'c str {
    loop {
        rest = rest.trim_start();
        if let Some(inner) = rest.strip_prefix('{') {
            rest = inner;
            loop {
                rest = tree(rest, path.clone(), all).trim_start();
                match rest.strip_prefix(',') {
                    Some(more) if !more.trim_start().starts_with('}') => rest = more,
                    Some(more) => return more.trim_start().strip_prefix('}').unwrap_or(more),
                    None => return rest.strip_prefix('}').unwrap_or(rest),
                }
            }
        }
        let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(rest.len());
        // `{self, Name}` is the module itself.
        if end > 0 && (path.is_empty() || rest[..end] != *"self") {
            path.push(rest[..end].to_owned());
        }
        rest = &rest[end..];
        let Some(more) = rest.strip_prefix("::") else {
            all.push(path);
            // `Name as Other`
            let behind = rest
                .trim_start()
                .strip_prefix("as ")
                .map(|other| other.trim_start_matches(|c: char| c != ',' && c != '}' && c != ';'));
            return behind.unwrap_or(rest);
        };
        rest = more;
    }
}
