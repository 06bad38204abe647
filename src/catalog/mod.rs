//! The catalog: images, versions, their aliases, labels and leases, and settings, in SQLite and in memory.
//!
//! Readers use the `Model` in memory. A gesture works out a change from the model as a list of `Row`s.
//! `commit` writes it in one transaction, and the model changes only after that: one gesture, one
//! transaction. A second file also has all rows, and a lost or damaged catalog.db is made again from
//! it.

mod columns;
mod copy;
mod lens;
mod model;
mod reserve;
mod rows;
mod sqlite;

use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use serde::{Deserialize, Serialize};

use copy::Copy;
use lens::Lens;
pub use lens::View;
pub use model::{DEFAULT_HIDDEN, Model, Named, Trashed, default_key};
use reserve::Reserve;
pub use rows::{
    Alias, Follows, Image, Immutable, InTrash, Kept, Label, Lease, LeaseFacts, Receipt, Root, Rules, Version,
    VersionFacts,
};

use crate::base::writable::Writable;
use crate::error::{Error, Result};
use crate::fault;
use crate::format::{sync_dir, write_durably};

/// This file exists after the catalog was made again without all its rows. It goes once every tree has
/// a row.
const REBUILDING: &str = "rebuilding";

/// One row's new state.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Row {
    Image(Box<Image>),
    Version(Box<Version>),
    Alias(Alias),
    Label(Label),
    Lease(Box<Lease>),
    DropImage(u32),
    DropVersion(u32),
    DropAlias(u32),
    DropLabel(u32),
    DropLease(u32),
    /// The store's default image, and whether its link is hidden.
    Default {
        image: Option<u32>,
        hidden: bool,
    },
    /// Blob ids below this were given out.
    Blobs(u32),
    /// The owner and mode of the mount's root, if somebody has set them.
    Root(Root),
    /// A setting that somebody has chosen, by key. `None` goes back to the default.
    Setting {
        key: String,
        value: Option<String>,
    },
}

/// A change that is being worked out: the current model, and the rows that will change it.
pub struct Transaction<'m> {
    pub model: &'m Model,
    /// The model of the whole store, without a view.
    pub whole: &'m Model,
    rows: Vec<Row>,
    next_serial: u32,
}

impl Transaction<'_> {
    /// A serial that was never used before.
    pub fn serial(&mut self) -> u32 {
        self.next_serial += 1;
        self.next_serial - 1
    }

    pub fn put(&mut self, row: Row) {
        self.rows.push(row);
    }
}

/// The catalog, or the part of it that a view shows.
#[derive(Clone)]
pub struct Catalog {
    all: Arc<All>,
    lens: Option<Arc<Lens>>,
}

struct All {
    /// Held during a whole change. Lock order: before `model`.
    files: Mutex<Files>,
    model: RwLock<Model>,
    writable: Writable,
    reserve: Reserve,
}

/// The state of the catalog. It does not change while this value lives.
pub enum Seen<'c> {
    Whole(RwLockReadGuard<'c, Model>),
    View(Arc<Model>),
}

impl Deref for Seen<'_> {
    type Target = Model;

    fn deref(&self) -> &Model {
        match self {
            Seen::Whole(model) => model,
            Seen::View(model) => model,
        }
    }
}

struct Files {
    db: sqlite::Db,
    copy: Copy,
}

/// What was done to open the catalog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opened {
    /// The catalog was good.
    Sound,
    /// It was made again from its copy, and nothing is missing.
    Rebuilt,
    /// It was made again from what there was of a copy. Rows may be missing.
    RebuiltInPart,
}

impl Catalog {
    /// Opens the catalog in `dir`, or makes a new one. A catalog that is lost, damaged, or older than its
    /// copy is put aside and made again. `has_content` means that there are trees, so an empty catalog must
    /// be a lost one.
    ///
    /// # Errors
    ///
    /// `Catalog`, `Io`.
    pub fn open(dir: &Path, has_content: bool, writable: &Writable) -> Result<(Catalog, Opened)> {
        let (path, copy) = (dir.join("catalog.db"), dir.join("catalog.rows"));
        let there = path.exists();
        let stored = sqlite::Db::open(&path).and_then(|mut db| {
            let (model, whole) = db.load()?;
            if !whole {
                agrees(&model, &copy)?;
            }
            Ok((db, model))
        });
        let copied = copy::last_commit(&copy)?;
        let (db, model, opened) = match stored {
            // The copy is written last. If it is ahead, SQLite has lost commits.
            Ok((db, model))
                if (there || !has_content) && copied.is_none_or(|commit| commit <= model.commit) =>
            {
                (db, model, Opened::Sound)
            }
            Err(e) if !matches!(e, Error::Corrupt { .. }) => return Err(e),
            stored => {
                let why = stored.map_or_else(
                    |e| e.to_string(),
                    |_| format!("{} is lost, or older than its copy", path.display()),
                );
                rebuild(&path, &copy, &why)?
            }
        };
        let opened = if dir.join(REBUILDING).exists() { Opened::RebuiltInPart } else { opened };
        let copy = Copy::open(&copy, &model)?;
        let all = All {
            files: Mutex::new(Files { db, copy }),
            model: RwLock::new(model),
            writable: writable.clone(),
            reserve: Reserve::new(dir),
        };
        Ok((Catalog { all: Arc::new(all), lens: None }, opened))
    }

    /// The same catalog as a view shows it.
    pub fn through(&self, view: &str) -> Catalog {
        Catalog { all: self.all.clone(), lens: Some(Arc::new(Lens::new(view))) }
    }

    /// The view to which this catalog belongs.
    pub fn view(&self) -> Option<&str> {
        self.lens.as_ref().map(|lens| lens.view.as_str())
    }

    /// Notes that every tree has a row. Called after `RebuiltInPart`.
    ///
    /// # Errors
    ///
    /// `Io`.
    pub fn rebuilt(&self, dir: &Path) -> Result<()> {
        let path = dir.join(REBUILDING);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", &path)(e)),
            _ => sync_dir(dir),
        }
    }

    /// Keeps a copy of the catalog of an older format, as `catalog.format-N`. A catalog that cannot be read
    /// gets no such copy; it may still have its catalog.rows.
    ///
    /// # Errors
    ///
    /// `Io`, `Catalog`.
    pub fn keep(dir: &Path, format: u32) -> Result<()> {
        let (path, kept) = (dir.join("catalog.db"), dir.join(format!("catalog.format-{format}")));
        if !path.exists() || kept.exists() {
            return Ok(());
        }
        match sqlite::copy(&path, &kept) {
            Err(e @ Error::Corrupt { .. }) => log::error!("{e}: no copy of it is kept"),
            other => other?,
        }
        sync_dir(dir)
    }

    /// The current state. It does not change while the guard is held. The holder must not call `commit`
    /// meanwhile.
    pub fn read(&self) -> Seen<'_> {
        let whole = self.all.model.read();
        match &self.lens {
            None => Seen::Whole(whole),
            Some(lens) => Seen::View(lens.look(&whole)),
        }
    }

    /// Works out a change and makes it, durably and completely, or not at all.
    ///
    /// # Errors
    ///
    /// What `work` refuses; `Catalog` or `Io` if it cannot be written.
    pub fn commit<T>(&self, work: impl FnOnce(&mut Transaction<'_>) -> Result<T>) -> Result<T> {
        let All { files, model: all, writable, reserve } = &*self.all;
        let mut files = files.lock();
        let Files { db, copy } = &mut *files;
        let (rows, next_serial, result) = {
            let whole = &*all.read();
            let seen = self.lens.as_ref().map(|lens| lens.look(whole));
            let model = seen.as_deref().unwrap_or(whole);
            let mut txn = Transaction { model, whole, rows: Vec::new(), next_serial: whole.next_serial };
            let result = work(&mut txn)?;
            let rows = match &self.lens {
                None => txn.rows,
                Some(lens) => lens.stored(whole, model, txn.rows)?,
            };
            (rows, txn.next_serial, result)
        };
        if !rows.is_empty() {
            writable.check()?;
            let commit = all.read().commit + 1;
            let mut written = db.write(&rows, next_serial, commit);
            // A change on a full disk is mostly a deletion.
            if written.as_ref().is_err_and(Error::is_no_space) {
                reserve.give_up()?;
                fault::reached("commit.reserve");
                written = db.write(&rows, next_serial, commit);
                if written.is_ok() {
                    reserve.set();
                }
            }
            match written {
                // Nothing was written.
                Err(e) if e.is_no_space() => return Err(e),
                // It is not known now whether the change was committed.
                Err(e) => {
                    let e = reserve.read_only().unwrap_or(e);
                    writable.stop(&e);
                    return Err(e);
                }
                Ok(()) => {}
            }
            fault::reached("commit.written");
            copy.append(commit, next_serial, &rows);
            fault::reached("commit.copied");
            {
                let mut model = all.write();
                (model.next_serial, model.commit) = (next_serial, commit);
                rows.into_iter().for_each(|row| model.apply(row));
            }
            // The change is committed. A failure to copy it is logged, and tried again after the next commit.
            if copy.is_stale()
                && let Err(e) = copy.rewrite(&all.read())
            {
                log::error!("{e}");
            }
        }
        Ok(result)
    }

    /// Truncates a log that has grown. Sets the reserve aside if it is missing and there is room now.
    pub fn tidy(&self) {
        if let Err(e) = self.all.files.lock().db.shrink_log() {
            // If it matters, the next commit will fail too.
            log::debug!("the catalog's log: {e}");
        }
        self.all.reserve.set();
    }

    /// Looks for damage with SQLite's own check, and checks every row and the copy. A bad copy is written
    /// again. For fsck.
    ///
    /// # Errors
    ///
    /// `Catalog`, `Io`; `Corrupt` if SQLite cannot read the database at all.
    pub fn check(&self) -> Result<Vec<String>> {
        let mut files = self.all.files.lock();
        let mut found = files.db.check()?;
        let said = copy::read(files.copy.path())?;
        if !said.whole || differ(&said.model, &self.read()) {
            files.copy.rewrite(&self.read())?;
            found.push("catalog.rows did not say what catalog.db says: it was written anew".into());
        }
        Ok(found)
    }
}

/// Checks a catalog that has no total against its copy, if both have the same commit.
///
/// # Errors
///
/// `Corrupt`.
fn agrees(model: &Model, copy: &Path) -> Result<()> {
    if copy::last_commit(copy)? != Some(model.commit) {
        return Ok(());
    }
    let said = copy::read(copy)?;
    if said.whole && differ(&said.model, model) {
        return Err(Error::Corrupt { what: "catalog.db".into(), why: "its copy says otherwise".into() });
    }
    Ok(())
}

/// Whether two catalogs differ.
fn differ(a: &Model, b: &Model) -> bool {
    let text = |model: &Model| serde_json::to_string(&model.rows()).unwrap_or_default();
    text(a) != text(b)
}

/// Puts aside what is left of catalog.db, and makes it again from the copy.
fn rebuild(path: &Path, copy: &Path, why: &str) -> Result<(sqlite::Db, Model, Opened)> {
    log::error!("{why}: it is made again of {}", copy.display());
    let aside = (0..)
        .map(|n| path.with_extension(format!("damaged-{n}")))
        .find(|aside| !aside.exists())
        .expect("numbers do not end");
    for ending in ["", "-wal", "-shm"] {
        let with = |path: &Path| {
            let mut name = path.as_os_str().to_owned();
            name.push(ending);
            PathBuf::from(name)
        };
        match std::fs::rename(with(path), with(&aside)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("put aside", path)(e));
            }
            _ => {}
        }
    }
    sync_dir(path.parent().unwrap_or(Path::new("/")))?;
    fault::reached("rebuild.aside");
    let said =
        if copy.exists() { copy::read(copy)? } else { copy::Said { model: Model::default(), whole: false } };
    if !said.whole {
        write_durably(&path.with_file_name(REBUILDING), b"")?;
    }
    let mut db = sqlite::Db::open(path)?;
    db.write(&said.model.rows(), said.model.next_serial.max(1), said.model.commit)?;
    let (model, _) = db.load()?;
    fault::reached("rebuild.made");
    Ok((db, model, if said.whole { Opened::Rebuilt } else { Opened::RebuiltInPart }))
}
