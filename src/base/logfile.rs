//! tail -f .imgfs/log: one line for each change. This log and the daemon's own log are files that are
//! put aside when they are long.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use crate::error::{Error, Result};

/// At this size in bytes the log is put aside, as `log.1`.
const LONG: u64 = 1 << 20;
/// How many older logs are kept.
pub const ASIDE: u32 = 3;

/// A file to which lines are added. When it is long, it is put aside as `NAME.1`.
pub struct LongFile {
    path: PathBuf,
    /// The size in bytes at which it is put aside.
    long: u64,
    /// How many older files are kept.
    aside: u32,
    file: File,
    /// Its size so far, in bytes.
    len: u64,
}

impl LongFile {
    /// # Errors
    ///
    /// `Io`.
    pub fn open(path: PathBuf, long: u64, aside: u32) -> Result<LongFile> {
        let file = open(&path)?;
        let len = file.metadata().map_err(Error::io("read", &path))?.len();
        Ok(LongFile { path, long, aside, file, len })
    }

    /// Makes way for a new file. The oldest one goes.
    fn rotate(&mut self) -> Result<()> {
        let path = |n| aside(&self.path, n);
        for n in (0..self.aside).rev().filter(|n| path(*n).exists()) {
            std::fs::rename(path(n), path(n + 1)).map_err(Error::io("rename", &path(n)))?;
        }
        self.file = open(&self.path)?;
        self.len = 0;
        Ok(())
    }
}

impl Write for LongFile {
    fn write(&mut self, lines: &[u8]) -> std::io::Result<usize> {
        // If this fails, the log goes on in its old file.
        if self.len >= self.long {
            let _ = self.rotate();
        }
        self.file.write_all(lines)?;
        self.len += lines.len() as u64;
        Ok(lines.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The log of a store's changes: `log`, and the older `log.1` to `log.3`.
pub struct LogFile {
    dir: PathBuf,
    file: Mutex<LongFile>,
}

impl LogFile {
    /// Opens the log of the store in `dir`.
    ///
    /// # Errors
    ///
    /// `Io`.
    pub fn open(dir: &Path) -> Result<LogFile> {
        let file = LongFile::open(dir.join("log"), LONG, ASIDE)?;
        Ok(LogFile { dir: dir.to_owned(), file: Mutex::new(file) })
    }

    /// Adds a line. The change is made already, so a failure to write the log does not undo it.
    pub fn add(&self, line: &str) {
        if let Err(e) = self.file.lock().write_all(line.as_bytes()) {
            log::error!("cannot write the log: {e}");
        }
    }

    /// The size of the log in bytes, or that of the `n`th older one.
    pub fn len(&self, n: u32) -> u64 {
        if n == 0 { self.file.lock().len } else { std::fs::metadata(self.path(n)).map_or(0, |m| m.len()) }
    }

    /// Whether the `n`th older log exists.
    pub fn has(&self, n: u32) -> bool {
        n == 0 || self.path(n).exists()
    }

    /// Appends the bytes of the log, or of the `n`th older one, from `offset` on, up to `most` bytes.
    ///
    /// # Errors
    ///
    /// `Io`.
    pub fn read(&self, n: u32, offset: u64, most: usize, out: &mut Vec<u8>) -> Result<()> {
        let path = self.path(n);
        let file = File::open(&path).map_err(Error::io("open", &path))?;
        let begin = out.len();
        out.resize(
            begin + usize::try_from(self.len(n).saturating_sub(offset)).unwrap_or(usize::MAX).min(most),
            0,
        );
        let read = file.read_at(&mut out[begin..], offset).map_err(Error::io("read", &path))?;
        out.truncate(begin + read);
        Ok(())
    }

    fn path(&self, n: u32) -> PathBuf {
        aside(&self.dir.join("log"), n)
    }
}

/// `log`, `log.1` and so on.
fn aside(path: &Path, n: u32) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    if n > 0 {
        path.push(format!(".{n}"));
    }
    path.into()
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
        let log = LogFile::open(dir.path()).unwrap();
        let line = format!("{}\n", "x".repeat(LONG as usize / 4 - 1));
        (0..20).for_each(|_| log.add(&line));
        assert_eq!([0, 1, 2, 3, 4].map(|n| log.len(n)), [LONG, LONG, LONG, LONG, 0]);
        log.add("last\n");
        assert!((0..=ASIDE).all(|n| log.has(n)) && !log.has(ASIDE + 1));
        drop(log);
        let (log, mut out) = (LogFile::open(dir.path()).unwrap(), Vec::new());
        log.read(0, 1, 3, &mut out).unwrap();
        log.read(0, 4, 100, &mut out).unwrap();
        log.read(0, 400, 100, &mut out).unwrap();
        assert_eq!(out, b"ast\n");
    }
}
