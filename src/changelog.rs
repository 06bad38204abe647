//! tail -f .imgfs/log: a line a change, in a file of the store that is put aside when it is long.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use crate::error::{Error, Result};

/// Bytes after which the log is put aside, as `log.1`.
const LONG: u64 = 1 << 20;
/// Logs that are kept aside.
pub const ASIDE: u32 = 3;

/// The log of a store's changes: `log`, and the older `log.1` to `log.3`.
pub struct ChangeLog {
    dir: PathBuf,
    /// The file, and how long it is.
    file: Mutex<(File, u64)>,
}

impl ChangeLog {
    /// Opens the log of the store in `dir`.
    ///
    /// Errors: `Io`.
    pub fn open(dir: &Path) -> Result<ChangeLog> {
        let file = open(&dir.join("log"))?;
        let len = file.metadata().map_err(Error::io("read", dir))?.len();
        Ok(ChangeLog { dir: dir.to_owned(), file: Mutex::new((file, len)) })
    }

    /// Adds a line. The change is made: a log that cannot be written does not undo it.
    pub fn add(&self, line: &str) {
        let mut held = self.file.lock();
        if held.1 >= LONG {
            match self.rotate() {
                Ok(file) => *held = (file, 0),
                Err(e) => log::error!("the log goes on in its old file: {e}"),
            }
        }
        match held.0.write_all(line.as_bytes()) {
            Ok(()) => held.1 += line.len() as u64,
            Err(e) => log::error!("cannot write the log: {e}"),
        }
    }

    /// Makes room for a new log; the oldest goes.
    fn rotate(&self) -> Result<File> {
        let path = |n: u32| self.dir.join(name(n));
        for n in (0..ASIDE).rev().filter(|n| path(*n).exists()) {
            std::fs::rename(path(n), path(n + 1)).map_err(Error::io("rename", &path(n)))?;
        }
        open(&path(0))
    }

    /// The bytes of the log, or of the `n`th aside.
    pub fn len(&self, n: u32) -> u64 {
        if n == 0 { self.file.lock().1 } else { std::fs::metadata(self.dir.join(name(n))).map_or(0, |m| m.len()) }
    }

    /// Whether the `n`th is there.
    pub fn has(&self, n: u32) -> bool {
        n == 0 || self.dir.join(name(n)).exists()
    }

    /// Appends what the log, or the `n`th aside, has from `offset` on, up to `most` bytes.
    ///
    /// Errors: `Io`.
    pub fn read(&self, n: u32, offset: u64, most: usize, out: &mut Vec<u8>) -> Result<()> {
        let path = self.dir.join(name(n));
        let file = File::open(&path).map_err(Error::io("open", &path))?;
        let begin = out.len();
        out.resize(begin + usize::try_from(self.len(n).saturating_sub(offset)).unwrap_or(usize::MAX).min(most), 0);
        let read = file.read_at(&mut out[begin..], offset).map_err(Error::io("read", &path))?;
        out.truncate(begin + read);
        Ok(())
    }
}

/// `log`, `log.1` and so on.
pub fn name(n: u32) -> String {
    if n == 0 { "log".into() } else { format!("log.{n}") }
}

fn open(path: &Path) -> Result<File> {
    File::options().create(true).append(true).open(path).map_err(Error::io("open", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_log_is_put_aside_and_the_oldest_goes() {
        let dir = tempfile::tempdir().unwrap();
        let log = ChangeLog::open(dir.path()).unwrap();
        let line = format!("{}\n", "x".repeat(LONG as usize / 4 - 1));
        (0..20).for_each(|_| log.add(&line));
        assert_eq!([0, 1, 2, 3, 4].map(|n| log.len(n)), [LONG, LONG, LONG, LONG, 0]);
        log.add("last\n");
        assert!((0..=ASIDE).all(|n| log.has(n)) && !log.has(ASIDE + 1));
        drop(log);
        let (log, mut out) = (ChangeLog::open(dir.path()).unwrap(), Vec::new());
        log.read(0, 1, 3, &mut out).unwrap();
        log.read(0, 4, 100, &mut out).unwrap();
        log.read(0, 400, 100, &mut out).unwrap();
        assert_eq!(out, b"ast\n");
    }
}
