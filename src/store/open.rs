//! imgfs mount: opens a store, and clears what a crash left.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, RwLock};

use crate::base::journal::Journal;
use crate::base::lock::StoreLock;
use crate::base::writable::Writable;
use crate::blob::BlobStore;
use crate::catalog::{Catalog, Opened};
use crate::error::{Error, Result};
use crate::fault;
use crate::format;
use crate::store::adopt::adopt;
use crate::store::progress::Progress;
use crate::store::settings::Settings;
use crate::store::{BASE, Core, DAMAGED, Store};

impl Store {
    /// Opens the store in `dir`, making a new one of an empty directory, and clears what a crash left.
    ///
    /// # Errors
    ///
    /// `Locked`, `StoreNewer`, `NotAStore`, `FormatLost`, `Corrupt`, `Catalog`, `Io`.
    pub fn open(dir: &Path, settings: Settings) -> Result<Arc<Store>> {
        format::refuse_others(dir)?;
        format::make_dir(dir)?;
        let dir = fs::canonicalize(dir).map_err(Error::io("open", dir))?;
        let lock = StoreLock::take(&dir)?;
        lock.describe("", false)?;
        format::open(&dir, |older| Catalog::keep(&dir, older))?;
        let has_trees = fs::read_dir(dir.join("trees")).map_err(Error::io("list", &dir))?.next().is_some();
        let writable = Writable::default();
        let (catalog, opened) = Catalog::open(&dir, has_trees, &writable)?;
        let blobs = Arc::new(BlobStore::open(&dir, &writable)?);
        let settings = settings.with_chosen(&catalog.read().settings);
        let journal = Journal::open(&dir)?;
        let core = Core {
            journal: journal.clone(),
            settings: RwLock::new(settings),
            catalog: catalog.clone(),
            blobs,
            writable,
            slots: RwLock::default(),
            kept: RwLock::default(),
            damaged: Mutex::default(),
            owner: std::os::unix::fs::MetadataExt::uid(&fs::metadata(&dir).map_err(Error::io("stat", &dir))?),
            quota: Mutex::default(),
            bases: Mutex::default(),
            gc: Mutex::default(),
            repack: Mutex::default(),
            repack_paused: AtomicBool::new(false),
            trash_bytes: AtomicU64::new(0),
            trash_changed: AtomicBool::new(true),
            seen_in_trash: Mutex::default(),
            seen_staged: Mutex::default(),
            used: Mutex::default(),
            scrub: Progress::open(&dir),
            // A crash may have left garbage.
            garbage: AtomicBool::new(true),
            mounts: OnceLock::new(),
            lock,
            dir,
        };
        let store = Store { core: Arc::new(core), catalog, journal, whole: None };
        if opened == Opened::RebuiltInPart {
            adopt(&store)?;
        }
        store.clear_leftovers()?;
        fault::reached("open.cleared");
        store.catalog.take_over_names()?;
        store.mend_table(opened)?;
        if opened == Opened::RebuiltInPart {
            store.catalog.rebuilt(&store.dir)?;
        }
        store.catalog.tidy();
        Ok(Arc::new(store))
    }

    /// Finds the records of blobs again if the table is lost or truncated.
    fn mend_table(&self, opened: Opened) -> Result<()> {
        let bound = self.catalog.read().blobs;
        // If the catalog was rebuilt from trees, nobody knows how many blobs there were.
        if self.blobs.id_bound() < bound || opened == Opened::RebuiltInPart {
            self.blobs.rebuild(bound)?;
        }
        Ok(())
    }

    /// Removes staged uploads and trees that no row names. A crash can leave both.
    fn clear_leftovers(&self) -> Result<()> {
        let staging = self.dir.join("staging");
        for entry in fs::read_dir(&staging).map_err(Error::io("list", &staging))? {
            let path = entry.map_err(Error::io("list", &staging))?.path();
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(Error::io("remove", &path))?;
        }
        let named: std::collections::HashSet<PathBuf> = self
            .catalog
            .read()
            .all_versions()
            .flat_map(|v| [self.tree_path(&v.id), self.kept_path(&v.id)])
            .collect();
        for path in self.tree_files()? {
            if !named.contains(&path) && path.extension().is_none_or(|e| e != BASE && e != DAMAGED) {
                self.drop_tree(&path)?;
            }
        }
        Ok(())
    }
}
