//! Containers and trees as files of the store, each under its own name.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, SeekFrom};
use rustix::io::Errno;

use crate::base::sys::punch;
use crate::blob::backend::{Backend, Key, Shelf, Size};
use crate::error::{Error, Result};
use crate::format::sync_dir;

/// The directories of a store as a backend.
pub struct Local {
    /// immutable: STORE
    dir: PathBuf,
}

impl Local {
    /// The backend for the store in `dir`, whose directories exist.
    pub fn new(dir: &Path) -> Local {
        Local { dir: dir.to_owned() }
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.dir.join(key.path())
    }
}

impl Backend for Local {
    fn put(&self, from: &Path, key: &Key) -> Result<()> {
        let path = self.path(key);
        let put = match rustix::fs::renameat_with(CWD, from, CWD, &path, RenameFlags::NOREPLACE) {
            // The file system does not support this rename. Only this process makes such files, so a check
            // before a plain rename suffices.
            Err(Errno::INVAL | Errno::NOSYS) if path.exists() => Err(ErrorKind::AlreadyExists.into()),
            Err(Errno::INVAL | Errno::NOSYS) => fs::rename(from, &path),
            put => put.map_err(Into::into),
        };
        put.map_err(Error::io("rename", from))
    }

    fn sync(&self, shelf: Shelf) -> Result<()> {
        sync_dir(&self.dir.join(shelf.directory()))
    }

    fn open(&self, key: &Key) -> Result<Container> {
        let path = self.path(key);
        let file = File::open(&path).map_err(Error::io("open", &path))?;
        Ok(Container { file, path })
    }

    fn local(&self, key: &Key) -> Result<PathBuf> {
        Ok(self.path(key))
    }

    fn size(&self, key: &Key) -> Result<Size> {
        let path = self.path(key);
        fs::metadata(&path).map(|meta| size_of(&meta)).map_err(Error::io("stat", &path))
    }

    fn list(&self, shelf: Shelf) -> Result<Vec<String>> {
        let dir = self.dir.join(shelf.directory());
        let names = fs::read_dir(&dir).and_then(|all| {
            all.map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned())).collect()
        });
        names.map_err(Error::io("list", &dir))
    }

    fn delete(&self, key: &Key) -> Result<()> {
        let path = self.path(key);
        fs::remove_file(&path).map_err(Error::io("remove", &path))
    }

    fn trim(&self, key: &Key, ranges: &[(u64, u64)]) -> Result<()> {
        let path = self.path(key);
        let file = File::options().write(true).open(&path).map_err(Error::io("open", &path))?;
        ranges.iter().try_for_each(|(from, len)| punch(&file, &path, *from, *len))
    }
}

/// A container that is open for reading. The local file has everything that is read from it.
pub struct Container {
    file: File,
    path: PathBuf,
}

impl Container {
    /// Its path, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Fills `out` from `offset` on.
    ///
    /// # Errors
    ///
    /// `Corrupt` if the container is too short, `Io`.
    pub fn read_exact_at(&self, out: &mut [u8], offset: u64) -> Result<()> {
        self.file.read_exact_at(out, offset).map_err(|e| {
            if e.kind() == ErrorKind::UnexpectedEof {
                Error::Corrupt { what: self.path.display().to_string(), why: "it is cut off".into() }
            } else {
                Error::Io { doing: "read", path: self.path.clone(), source: e }
            }
        })
    }

    /// Its current size.
    ///
    /// # Errors
    ///
    /// `Io`.
    pub fn size(&self) -> Result<Size> {
        self.file.metadata().map(|meta| size_of(&meta)).map_err(Error::io("stat", &self.path))
    }

    /// Where data, or a hole, begins, from `offset` on. `None` if there is none. If the file system has no
    /// holes, everything is data.
    pub fn seek(&self, offset: u64, data: bool) -> Option<u64> {
        let how = if data { SeekFrom::Data(offset) } else { SeekFrom::Hole(offset) };
        match rustix::fs::seek(&self.file, how) {
            Ok(found) => Some(found),
            Err(Errno::NXIO) => None,
            Err(_) => data.then_some(offset),
        }
    }

    /// Opens the file again, for the kernel to read directly, so that a read does not change its access
    /// time. Only for a container that was read completely.
    pub fn for_kernel(&self) -> Option<File> {
        File::options().read(true).custom_flags(libc::O_NOATIME).open(&self.path).ok()
    }
}

fn size_of(meta: &fs::Metadata) -> Size {
    Size { len: meta.len(), stored: meta.blocks() * 512 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Local) {
        let dir = tempfile::tempdir().unwrap();
        for shelf in Shelf::CONTENT {
            fs::create_dir(dir.path().join(shelf.directory())).unwrap();
        }
        let local = Local::new(dir.path());
        (dir, local)
    }

    fn key(name: &str) -> Key {
        Key { shelf: Shelf::Packs, name: name.into() }
    }

    #[test]
    fn what_was_put_is_read_listed_and_deleted() {
        let (dir, local) = store();
        let staged = dir.path().join("staged");
        fs::write(&staged, vec![7; 3 * 4096]).unwrap();
        local.put(&staged, &key("a")).unwrap();
        local.sync(Shelf::Packs).unwrap();
        assert!(!staged.exists() && local.list(Shelf::Packs).unwrap() == ["a"]);
        assert!(local.list(Shelf::Loose).unwrap().is_empty());
        let (open, mut out) = (local.open(&key("a")).unwrap(), [0; 4]);
        open.read_exact_at(&mut out, 4096).unwrap();
        assert_eq!((out, open.size().unwrap().len), ([7; 4], 3 * 4096));
        assert!(matches!(open.read_exact_at(&mut out, 3 * 4096 - 2), Err(Error::Corrupt { .. })));
        local.trim(&key("a"), &[(4096, 4096)]).unwrap();
        assert_eq!(local.size(&key("a")).unwrap().len, 3 * 4096);
        open.read_exact_at(&mut out, 0).unwrap();
        assert_eq!(out, [7; 4]);
        local.delete(&key("a")).unwrap();
        open.read_exact_at(&mut out, 0).unwrap();
        let is_gone =
            |e: Error| matches!(e, Error::Io { source, .. } if source.kind() == ErrorKind::NotFound);
        assert!(local.open(&key("a")).err().is_some_and(is_gone));
        assert!(
            local.delete(&key("a")).err().is_some_and(is_gone) && local.size(&key("a")).is_err_and(is_gone)
        );
    }

    /// A plain rename replaced an existing file of that name without an error.
    #[test]
    fn what_is_there_is_not_replaced() {
        let (dir, local) = store();
        let staged = dir.path().join("staged");
        for content in ["first", "second"] {
            fs::write(&staged, content).unwrap();
            let put = local.put(&staged, &key("a"));
            let taken =
                matches!(&put, Err(Error::Io { source, .. }) if source.kind() == ErrorKind::AlreadyExists);
            assert_eq!((put.is_ok(), taken), (content == "first", content == "second"));
        }
        assert!(staged.exists());
        assert_eq!(fs::read_to_string(dir.path().join("packs/a")).unwrap(), "first");
    }
}
