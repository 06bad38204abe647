//! The catalog: images, versions, aliases and settings, in SQLite and in memory.
//!
//! Readers see the `Model` in memory. A change is a list of `Row`s that a verb works out from the model; `commit`
//! writes it in one transaction, and only then does the model change: one gesture, one transaction.

mod model;
mod sqlite;

use std::path::Path;

use parking_lot::{Mutex, RwLock, RwLockReadGuard};

pub use model::{Alias, Image, Kept, Model, Named, Receipt, Version, VersionFacts};

use crate::error::Result;

/// One row's new state.
#[derive(Clone, Debug)]
pub enum Row {
    Image(Box<Image>),
    Version(Box<Version>),
    Alias(Alias),
    DropImage(u32),
    DropVersion(u32),
    DropAlias(u32),
    /// The store's default image, and whether its link is hidden.
    Default {
        image: Option<u32>,
        hidden: bool,
    },
}

/// A change being worked out: the model as it is, and the rows that will change it.
pub struct Change<'m> {
    pub model: &'m Model,
    rows: Vec<Row>,
    next_serial: u32,
}

impl Change<'_> {
    /// A serial that was never given out before.
    pub fn serial(&mut self) -> u32 {
        self.next_serial += 1;
        self.next_serial - 1
    }

    pub fn put(&mut self, row: Row) {
        self.rows.push(row);
    }
}

pub struct Catalog {
    /// Taken for the whole of a change; lock order: before `model`.
    connection: Mutex<sqlite::Db>,
    model: RwLock<Model>,
}

impl Catalog {
    /// Opens the catalog in `dir`, or makes a new one.
    ///
    /// Errors: `Catalog`, `Corrupt` for a row whose check fails, `Io`.
    pub fn open(dir: &Path) -> Result<Catalog> {
        let mut connection = sqlite::Db::open(&dir.join("catalog.db"))?;
        let model = connection.load()?;
        Ok(Catalog { connection: Mutex::new(connection), model: RwLock::new(model) })
    }

    /// The state of everything, unchanging while the guard is held. Do not call `commit` meanwhile.
    pub fn read(&self) -> RwLockReadGuard<'_, Model> {
        self.model.read()
    }

    /// Works out a change and makes it, durably and whole, or not at all.
    ///
    /// Errors: what `work` refuses; `Catalog` or `Io` if it cannot be written.
    pub fn commit<T>(&self, work: impl FnOnce(&mut Change<'_>) -> Result<T>) -> Result<T> {
        let mut connection = self.connection.lock();
        let (rows, next_serial, result) = {
            let model = self.model.read();
            let mut change = Change { model: &model, rows: Vec::new(), next_serial: model.next_serial };
            let result = work(&mut change)?;
            (change.rows, change.next_serial, result)
        };
        if !rows.is_empty() {
            connection.write(&rows, next_serial)?;
            let mut model = self.model.write();
            model.next_serial = next_serial;
            rows.into_iter().for_each(|row| model.apply(row));
        }
        Ok(result)
    }

    /// Looks for damage in the file itself: SQLite's own check, and every row's. For fsck.
    pub fn check(&self) -> Result<Vec<String>> {
        self.connection.lock().check()
    }
}
