//! The files of trees. Each version has ID.tree, and perhaps ID.kept. ID.base exists while others are
//! packed against it. ID.damaged was put aside.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::blob::backend::{Key, Shelf};
use crate::error::{Error, Result};
use crate::fault;
use crate::format;
use crate::store::{BASE, Core, DAMAGED, TREE};
use crate::tree::{Form, Tree, form_of};

impl Core {
    pub fn tree_path(&self, version_id: &str) -> PathBuf {
        self.dir.join("trees").join(format!("{version_id}.{TREE}"))
    }

    /// Every file in `trees/`.
    ///
    /// # Errors
    ///
    /// `Io`.
    pub fn tree_files(&self) -> Result<Vec<PathBuf>> {
        let dir = self.dir.join(Shelf::Trees.directory());
        Ok(self.blobs.backend().list(Shelf::Trees)?.into_iter().map(|name| dir.join(name)).collect())
    }

    /// The file that names the pieces of a version's upload, if it is kept.
    pub fn kept_path(&self, version_id: &str) -> PathBuf {
        self.dir.join("trees").join(format!("{version_id}.kept"))
    }

    /// Replaces a tree file by a packed one, which is packed against that of `base`. Does nothing if either
    /// was purged meanwhile.
    ///
    /// # Errors
    ///
    /// `Io`.
    pub fn put_packed(&self, serial: u32, tree: &Tree, packed: &[u8], base: Option<&str>) -> Result<()> {
        let _held = self.bases.lock();
        let there = |base: &str| [TREE, BASE].iter().any(|e| self.tree_path(base).with_extension(e).exists());
        if base.is_none_or(there) && self.catalog.read().versions.contains_key(&serial) {
            format::write_durably(tree.path(), packed)?;
            fault::reached("tree.packed");
            tree.has_been_packed(packed.len() as u64);
            // A row is deleted before its file, so without a row this file is a leftover.
            if !self.catalog.read().versions.contains_key(&serial) {
                self.blobs.backend().delete(&key_of(tree.path()))?;
            }
        }
        Ok(())
    }

    /// Removes a tree file that no row names. One that may be the base of others stays until `drop_bases`.
    ///
    /// # Errors
    ///
    /// `Io`.
    pub fn drop_tree(&self, path: &Path) -> Result<()> {
        let _held = self.bases.lock();
        let gone = match form_of(path) {
            Form::Alone => fs::rename(path, path.with_extension(BASE)).map_err(Error::io("remove", path)),
            Form::Loose | Form::Against(_) => self.blobs.backend().delete(&key_of(path)),
        };
        match gone {
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(()),
            gone => gone,
        }
    }

    /// Removes the bases that no packed tree needs any more.
    ///
    /// # Errors
    ///
    /// `Io`.
    pub fn drop_bases(&self) -> Result<()> {
        let _held = self.bases.lock();
        let paths = self.tree_files()?;
        let (bases, others): (Vec<&PathBuf>, Vec<_>) =
            paths.iter().partition(|path| path.extension().is_some_and(|e| e == BASE));
        if bases.is_empty() {
            return Ok(());
        }
        let needed: std::collections::HashSet<String> = others
            .iter()
            .filter_map(|path| if let Form::Against(base) = form_of(path) { Some(base) } else { None })
            .collect();
        let unused = bases
            .iter()
            .filter(|path| path.file_stem().and_then(|s| s.to_str()).is_none_or(|s| !needed.contains(s)));
        unused.into_iter().try_for_each(|path| self.blobs.backend().delete(&key_of(path)))
    }

    /// Renames a tree file that cannot be read to `ID.damaged`. For gc such a tree holds nothing.
    ///
    /// # Errors
    ///
    /// `Io`.
    pub fn quarantine(&self, path: &Path) -> Result<()> {
        match fs::rename(path, path.with_extension(DAMAGED)) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                // The tree file does not exist. The empty file marks it as put aside, so that gc can go on.
                File::create(path.with_extension(DAMAGED)).map(drop).map_err(Error::io("put aside", path))
            }
            other => other.map_err(Error::io("put aside", path)),
        }
    }

    pub fn is_quarantined(&self, path: &Path) -> bool {
        path.with_extension(DAMAGED).exists() && !path.exists()
    }
}

/// The key of a tree file in the backend.
pub fn key_of(path: &Path) -> Key {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Key { shelf: Shelf::Trees, name }
}
