//! One daemon a store: who holds it, and where it is mounted.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use crate::error::{Error, Result};

/// How long the lock may be held by somebody who only looks whether it is; see `holder`.
const LOOKING: Duration = Duration::from_millis(200);

/// The lock file: flock, so that a dead holder's lock is free by itself.
pub struct StoreLock {
    file: File,
    path: PathBuf,
}

impl StoreLock {
    /// Takes the lock of the store in `dir`.
    ///
    /// Errors: `Locked` with the holder's process and mount point.
    pub fn take(dir: &Path) -> Result<StoreLock> {
        let path = dir.join("lock");
        let mut file =
            File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(Error::io("open", &path))?;
        let begun = Instant::now();
        let taken = loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Err(rustix::io::Errno::WOULDBLOCK) if begun.elapsed() < LOOKING => std::thread::sleep(LOOKING / 50),
                taken => break taken,
            }
        };
        match taken {
            Ok(()) => Ok(StoreLock { file, path }),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut text = String::new();
                let _ = file.read_to_string(&mut text);
                let (pid, mounted) = parse_lock(&text);
                Err(Error::Locked { store: dir.to_owned(), pid, mounted })
            }
            Err(e) => Err(Error::Io { doing: "lock", path, source: e.into() }),
        }
    }

    /// Writes who holds the lock, and where the store is mounted.
    pub fn describe(&self, mounted: &str) -> Result<()> {
        let text = format!("{}\n{mounted}\n", std::process::id());
        self.file.set_len(0).map_err(Error::io("write", &self.path))?;
        let mut file = &self.file;
        std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(0)).map_err(Error::io("write", &self.path))?;
        file.write_all(text.as_bytes()).map_err(Error::io("write", &self.path))
    }

    /// Whether some process holds the lock now: its id and mount point.
    pub fn holder(dir: &Path) -> Option<(u32, String)> {
        let file = File::open(dir.join("lock")).ok()?;
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Err(rustix::io::Errno::WOULDBLOCK) => fs::read_to_string(dir.join("lock")).ok().map(|text| parse_lock(&text)),
            _ => None,
        }
    }
}

fn parse_lock(text: &str) -> (u32, String) {
    let (pid, rest) = text.split_once('\n').unwrap_or((text, ""));
    (pid.trim().parse().unwrap_or(0), rest.trim_end_matches('\n').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Right after an umount the guard of the daemon that was looked whether it still held the lock: a command that came
    /// in that moment was told that the daemon was there.
    #[test]
    fn who_looks_at_the_lock_does_not_keep_it_from_being_taken() {
        let dir = tempfile::tempdir().unwrap();
        let lock = StoreLock::take(dir.path()).unwrap();
        assert!(matches!(StoreLock::take(dir.path()), Err(Error::Locked { .. })));
        drop(lock);
        let looks = File::open(dir.path().join("lock")).unwrap();
        flock(&looks, FlockOperation::NonBlockingLockShared).unwrap();
        let ends = std::thread::spawn(move || {
            std::thread::sleep(LOOKING / 4);
            drop(looks);
        });
        StoreLock::take(dir.path()).unwrap();
        ends.join().unwrap();
    }
}
