//! The catalog: images, versions, their aliases, labels and leases, and settings, in SQLite and in memory.
//!
//! Readers see the `Model` in memory. A change is a list of `Row`s that a verb works out from the model;
//! `commit` writes it in one transaction, and only then does the model change: one gesture, one transaction.
//! All rows are in a second file as well, of which a lost or damaged catalog.db is made again.

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

/// A file that is there from when a catalog is made again without all its rows until trees that lack them
/// have some.
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
    /// Ids of blobs below this were given out.
    Blobs(u32),
    /// The owner and mode of the mount's root, once somebody has set them.
    Root(Root),
    /// What somebody has chosen, by key; none: it is as if nobody had.
    Setting {
        key: String,
        value: Option<String>,
    },
}

/// A change being worked out: the model as it is, and the rows that will change it.
pub struct Transaction<'m> {
    pub model: &'m Model,
    /// The same without a view.
    pub whole: &'m Model,
    rows: Vec<Row>,
    next_serial: u32,
}

impl Transaction<'_> {
    /// A serial that was never given out before.
    pub fn serial(&mut self) -> u32 {
        self.next_serial += 1;
        self.next_serial - 1
    }

    pub fn put(&mut self, row: Row) {
        self.rows.push(row);
    }
}

/// The catalog, or what a view shows of it.
#[derive(Clone)]
pub struct Catalog {
    all: Arc<All>,
    lens: Option<Arc<Lens>>,
}

struct All {
    /// Taken for the whole of a change; lock order: before `model`.
    files: Mutex<Files>,
    model: RwLock<Model>,
    writable: Writable,
    reserve: Reserve,
}

/// The state of the catalog, which holds as long as this does.
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
    /// Nothing out of the way.
    Sound,
    /// It was made again of its copy, and nothing is missing.
    Rebuilt,
    /// It was made again, as far as there was a copy: rows may be missing.
    RebuiltInPart,
}

impl Catalog {
    /// Opens the catalog in `dir`, or makes a new one. One that is lost, damaged, or behind its copy is put
    /// aside and made again. `has_content`: there are trees, so an empty catalog is a lost one.
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
            // The copy is written last: one that is ahead saw commits that SQLite has lost.
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

    /// The view that this is the catalog of.
    pub fn view(&self) -> Option<&str> {
        self.lens.as_ref().map(|lens| lens.view.as_str())
    }

    /// Every tree has a row: after `RebuiltInPart`.
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

    /// Keeps a copy of the catalog of a store of an older format, as `catalog.format-N`. One that cannot be
    /// read has a copy of its own, or none.
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

    /// The state of everything, unchanging while the guard is held. Do not call `commit` meanwhile.
    pub fn read(&self) -> Seen<'_> {
        let whole = self.all.model.read();
        match &self.lens {
            None => Seen::Whole(whole),
            Some(lens) => Seen::View(lens.look(&whole)),
        }
    }

    /// Works out a change and makes it, durably and whole, or not at all.
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
            match db.write(&rows, next_serial, commit) {
                // What changes on a full disk is mostly what is deleted.
                Err(e) if e.is_no_space() => {
                    reserve.give_up()?;
                    fault::reached("commit.reserve");
                    db.write(&rows, next_serial, commit)?;
                    reserve.set();
                }
                // Whether it is committed is not known now.
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
            // It is committed: that there is no copy of it is told, and tried again after the next.
            if copy.is_stale()
                && let Err(e) = copy.rewrite(&all.read())
            {
                log::error!("{e}");
            }
        }
        Ok(result)
    }

    /// Gives back the room of a log that has grown, and sets the reserve aside, if it is not and there is
    /// room now.
    pub fn tidy(&self) {
        if let Err(e) = self.all.files.lock().db.shrink_log() {
            // The next commit says so where it matters.
            log::debug!("the catalog's log: {e}");
        }
        self.all.reserve.set();
    }

    /// Looks for damage: SQLite's own check, every row's, and the copy's, which is made good. For fsck.
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

/// Checks a catalog that has no total against its copy, if that is of the same commit.
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

/// Whether two catalogs say different things.
fn differ(a: &Model, b: &Model) -> bool {
    let text = |model: &Model| serde_json::to_string(&model.rows()).unwrap_or_default();
    text(a) != text(b)
}

/// Puts what is left of catalog.db aside, and makes it again of the copy.
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
