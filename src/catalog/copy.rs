//! A second copy of all rows, as text. A lost or damaged catalog.db is made again from it.
//!
//! ```text
//! imgfs rows 1
//! CHECK 7 {"next_serial":12,"rows":[{"Image":{...}},{"DropVersion":3}]}
//! ```
//!
//! Each commit is one line with its number, appended and synced after SQLite's own write. CHECK is the
//! BLAKE3 of the rest of the line, in hex. When the file has grown to several times the size of all
//! rows, it is written again, as one line. Only the last line can be torn; it belongs to a commit that
//! nobody was told of.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::catalog::{Model, Row};
use crate::error::{Error, Result};
use crate::format::{ROWS_MAGIC, write_durably};

/// A file with fewer bytes than this is never too long.
const SMALL: u64 = 256 * 1024;
/// How many times the size of all rows it may grow to.
const GROWTH: u64 = 3;
/// How many bytes are read from the end at first.
const TAIL: u64 = 64 * 1024;

/// The copy, open for appending.
pub struct Copy {
    path: PathBuf,
    /// `None` after a failure. What was synced then is unknown, so the file is written again.
    file: Option<File>,
    size: u64,
    /// Its size when it was last written again.
    whole: u64,
}

#[derive(Deserialize)]
struct Line {
    next_serial: u32,
    rows: Vec<Row>,
}

#[derive(Serialize)]
struct LineOf<'r> {
    next_serial: u32,
    rows: &'r [Row],
}

impl Copy {
    /// Opens the copy to continue from `model`. A copy that does not end there, or does not exist, is
    /// written again.
    ///
    /// # Errors
    ///
    /// `Io`.
    pub fn open(path: &Path, model: &Model) -> Result<Copy> {
        let mut copy = Copy { path: path.to_owned(), file: None, size: 0, whole: 0 };
        if last_commit(path)? == Some(model.commit) {
            let file = File::options().append(true).open(path).map_err(Error::io("open", path))?;
            copy.size = file.metadata().map_err(Error::io("stat", path))?.len();
            // The size of all rows in it is unknown, so it may grow by as much again.
            copy.whole = copy.size / 2;
            copy.file = Some(file);
        } else {
            copy.rewrite(model)?;
        }
        Ok(copy)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a commit, durably. A failure is logged, and the copy will be written again.
    pub fn append(&mut self, commit: u64, next_serial: u32, rows: &[Row]) {
        let Some(mut file) = self.file.take() else { return };
        let line = line_of(commit, next_serial, rows);
        match file.write_all(line.as_bytes()).and_then(|()| file.sync_data()) {
            Ok(()) => {
                self.size += line.len() as u64;
                self.file = Some(file);
            }
            Err(e) => log::error!("{}: {e}; it is written anew after the next change", self.path.display()),
        }
    }

    /// Whether it must be written again, because it has grown or failed.
    pub fn is_stale(&self) -> bool {
        self.file.is_none() || self.size > SMALL.max(self.whole * GROWTH)
    }

    /// Writes the copy again.
    ///
    /// # Errors
    ///
    /// `Io`; the copy then stays as it was.
    pub fn rewrite(&mut self, model: &Model) -> Result<()> {
        self.file = None;
        let line = line_of(model.commit, model.next_serial, &model.rows());
        write_durably(&self.path, [ROWS_MAGIC.as_bytes(), line.as_bytes()].concat().as_slice())?;
        self.file =
            Some(File::options().append(true).open(&self.path).map_err(Error::io("open", &self.path))?);
        self.size = (ROWS_MAGIC.len() + line.len()) as u64;
        self.whole = self.size;
        Ok(())
    }
}

fn line_of(commit: u64, next_serial: u32, rows: &[Row]) -> String {
    let json =
        serde_json::to_string(&LineOf { next_serial, rows }).expect("plain structs of text and numbers");
    let text = format!("{commit} {json}");
    format!("{} {text}\n", blake3::hash(text.as_bytes()).to_hex())
}

/// The number and the JSON of a line, if its check is right.
fn parse(line: &[u8]) -> Option<(u64, &str)> {
    let line = std::str::from_utf8(line.strip_suffix(b"\n")?).ok()?;
    let (check, text) = line.split_once(' ')?;
    if *check != *blake3::hash(text.as_bytes()).to_hex() {
        return None;
    }
    let (commit, json) = text.split_once(' ')?;
    Some((commit.parse().ok()?, json))
}

/// The number of the last commit in a copy; `None` if there is no copy, or its last line is damaged or torn.
///
/// # Errors
///
/// `Io`.
pub fn last_commit(path: &Path) -> Result<Option<u64>> {
    let mut file = match File::open(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(Error::io("open", path))?,
    };
    let size = file.metadata().map_err(Error::io("stat", path))?.len();
    let mut tail = TAIL;
    loop {
        let from = size.saturating_sub(tail);
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(from))
            .and_then(|_| file.read_to_end(&mut bytes))
            .map_err(Error::io("read", path))?;
        let before = bytes.len().saturating_sub(1);
        match bytes[..before].iter().rposition(|b| *b == b'\n') {
            Some(at) => return Ok(parse(&bytes[at + 1..]).map(|(commit, _)| commit)),
            None if from == 0 => return Ok(None),
            None => tail *= 4,
        }
    }
}

/// The content of a copy.
pub struct Said {
    pub model: Model,
    /// Whether every line was good, except for a torn last one.
    pub whole: bool,
}

/// Reads a copy up to its first bad line.
///
/// # Errors
///
/// `Io`.
pub fn read(path: &Path) -> Result<Said> {
    let text = std::fs::read(path).map_err(Error::io("read", path))?;
    let mut said = Said { model: Model::default(), whole: text.starts_with(ROWS_MAGIC.as_bytes()) };
    let mut lines = text.split_inclusive(|b| *b == b'\n').skip(1).peekable();
    while let Some(line) = lines.next() {
        let parsed =
            parse(line).and_then(|(commit, json)| Some((commit, serde_json::from_str::<Line>(json).ok()?)));
        let Some((commit, line)) = parsed else {
            said.whole &= lines.peek().is_none() && !line.ends_with(b"\n");
            break;
        };
        said.model.commit = commit;
        said.model.next_serial = line.next_serial;
        line.rows.into_iter().for_each(|row| said.model.apply(row));
    }
    Ok(said)
}
