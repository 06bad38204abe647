//! Stores the rows on the disk. This is the only file with SQL.

use std::path::{Path, PathBuf};

use rusqlite::types::Value;
use rusqlite::{Connection, ErrorCode, OptionalExtension, params_from_iter};

use crate::catalog::Row;
use crate::catalog::columns::*;
use crate::catalog::model::Model;
use crate::error::{Error, Result};

/// The steps to the current schema. SQLite's user_version counts the steps that were done.
const SCHEMAS: &[&str] =
    &[include_str!("schema.sql"), include_str!("schema-2.sql"), include_str!("schema-3.sql")];

/// How large SQLite's log may stay, in bytes.
const LOG: u64 = 256 << 10;

/// The key of the setting that holds the total.
const TOTAL: &str = "total";

pub struct Db {
    path: PathBuf,
    connection: Connection,
    /// The XOR of the checks of all rows, except for its own row. It detects a missing row: if a bit flips
    /// in a page's row count, SQLite does not notice that a row is hidden.
    total: u128,
}

impl From<rusqlite::Error> for Error {
    fn from(e: rusqlite::Error) -> Error {
        match e.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => {
                let source = std::io::Error::from_raw_os_error(libc::ENOSPC);
                Error::Io { doing: "write", path: "catalog.db".into(), source }
            }
            Some(
                ErrorCode::SystemIoFailure
                | ErrorCode::CannotOpen
                | ErrorCode::ReadOnly
                | ErrorCode::PermissionDenied
                | ErrorCode::DatabaseBusy
                | ErrorCode::DatabaseLocked
                | ErrorCode::OutOfMemory
                | ErrorCode::ConstraintViolation,
            ) => Error::Catalog(e.to_string()),
            // Any other error that a damaged file can cause in SQLite, or when its values are read.
            _ => Error::Corrupt { what: "catalog.db".into(), why: e.to_string() },
        }
    }
}

impl Db {
    /// Opens the database, or makes it, and brings it to the schema of this program.
    ///
    /// # Errors
    ///
    /// `Io` on a full disk; `Catalog`; `Corrupt`, also for a schema that this program does not know.
    pub fn open(path: &Path) -> Result<Db> {
        let connection = Connection::open(path)?;
        // FULL: a commit is on the disk when it returns. In WAL mode, NORMAL could lose the last commits.
        connection.execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA busy_timeout = 5000;",
        )?;
        let found: i64 = connection.query_row("PRAGMA user_version", [], |r| r.get(0))?;
        // A newer schema would come with a newer format of the store.
        let Some(missing) = usize::try_from(found).ok().and_then(|n| SCHEMAS.get(n..)) else {
            let why = format!("its schema is {found}, and {} is known", SCHEMAS.len());
            return Err(Error::Corrupt { what: path.display().to_string(), why });
        };
        if !missing.is_empty() {
            let (all, version) = (missing.concat(), SCHEMAS.len());
            connection.execute_batch(&format!("BEGIN; {all} PRAGMA user_version = {version}; COMMIT;"))?;
        }
        Ok(Db { path: path.to_owned(), connection, total: 0 })
    }

    /// Reads everything. Checks every row, and that none is missing.
    ///
    /// The flag is false if there is no total, as before format 4. Then only the copy can tell whether rows
    /// are missing.
    ///
    /// # Errors
    ///
    /// `Catalog`; `Corrupt` if a row is damaged, makes no sense, or is missing.
    pub fn load(&mut self) -> Result<(Model, bool)> {
        let mut model = Model::default();
        let (mut total, mut said) = (0, None);
        for (row, sum) in self.rows("setting", "key, value")? {
            if let [Value::Text(key), Value::Text(value)] = &row[..] {
                if key == TOTAL {
                    said =
                        Some(u128::from_str_radix(value, 16).map_err(|_| self.bad("setting", "the total"))?);
                    continue;
                }
                total ^= sum;
                match key.as_str() {
                    "commit" => model.commit = value.parse().map_err(|_| self.bad("setting", "a number"))?,
                    "blobs" => model.blobs = value.parse().map_err(|_| self.bad("setting", "a number"))?,
                    "next_serial" => {
                        model.next_serial = value.parse().map_err(|_| self.bad("setting", "a number"))?
                    }
                    "default_image" => model.default_image = value.parse().ok(),
                    "default_hidden" => model.default_hidden = value == "1",
                    "root" => {
                        let root =
                            serde_json::from_str(value).map_err(|_| self.bad("setting", "the root"))?;
                        model.apply(Row::Root(root));
                    }
                    key if key.contains('.') => {
                        model.apply(Row::Setting { key: key.to_owned(), value: Some(value.clone()) });
                    }
                    _ => {}
                }
            }
        }
        for (row, sum) in self.rows("image", IMAGE)? {
            total ^= sum;
            let image = image_from(&row).ok_or_else(|| self.bad("image", "a column"))?;
            model.apply(Row::Image(image.into()));
        }
        for (row, sum) in self.rows("version", VERSION)? {
            total ^= sum;
            let version = version_from(&row).ok_or_else(|| self.bad("version", "a column"))?;
            model.apply(Row::Version(version.into()));
        }
        for (row, sum) in self.rows("alias", ALIAS)? {
            total ^= sum;
            let alias = alias_from(&row).ok_or_else(|| self.bad("alias", "a column"))?;
            model.apply(Row::Alias(alias));
        }
        for (row, sum) in self.rows("label", LABEL)? {
            total ^= sum;
            let label = label_from(&row).ok_or_else(|| self.bad("label", "a column"))?;
            model.apply(Row::Label(label));
        }
        for (row, sum) in self.rows("lease", LEASE)? {
            total ^= sum;
            let lease = lease_from(&row).ok_or_else(|| self.bad("lease", "a column"))?;
            model.apply(Row::Lease(lease.into()));
        }
        model.next_serial = model.next_serial.max(1);
        if said.is_some_and(|said| said != total) {
            return Err(Error::Corrupt {
                what: self.path.display().to_string(),
                why: "rows are missing".into(),
            });
        }
        self.total = total;
        // A total of 0 is right for an empty database, to which nothing was written.
        Ok((model, total == 0 || said.is_some()))
    }

    fn bad(&self, table: &str, what: &str) -> Error {
        Error::Corrupt {
            what: format!("{} (table {table})", self.path.display()),
            why: format!("{what} makes no sense"),
        }
    }

    /// All rows of a table, with their checks, which were right.
    fn rows(&self, table: &str, columns: &str) -> Result<Vec<(Vec<Value>, u128)>> {
        let mut statement = self.connection.prepare(&format!("SELECT {columns}, sum FROM {table}"))?;
        let width = statement.column_count() - 1;
        let mut rows = statement.query([])?;
        let mut all = Vec::new();
        while let Some(row) = rows.next()? {
            let values = (0..width).map(|i| row.get(i)).collect::<rusqlite::Result<Vec<Value>>>()?;
            let sum: Vec<u8> = row.get(width)?;
            let found = sum_of(table, &values);
            if sum != found.to_be_bytes() {
                return Err(Error::Corrupt {
                    what: format!("{} (table {table}, {:?})", self.path.display(), values.first()),
                    why: "a row does not match its check".into(),
                });
            }
            all.push((values, found));
        }
        Ok(all)
    }

    /// Writes all rows in one transaction.
    ///
    /// # Errors
    ///
    /// `Io` on a full disk; `Catalog`, `Corrupt`.
    pub fn write(&mut self, rows: &[Row], next_serial: u32, commit: u64) -> Result<()> {
        let transaction = self.connection.transaction()?;
        let total = std::cell::Cell::new(self.total);
        // What a row contributes to the total now.
        let adds = |table: &str, key: &str, value: &Value| -> Result<u128> {
            let sql = format!("SELECT sum FROM {table} WHERE {key} = ?");
            let sum: Option<Vec<u8>> =
                transaction.prepare_cached(&sql)?.query_row([value], |row| row.get(0)).optional()?;
            Ok(sum.and_then(|sum| Some(u128::from_be_bytes(sum.try_into().ok()?))).unwrap_or(0))
        };
        let drop_where = |table: &str, key: &str, value: &Value| -> Result<()> {
            total.set(total.get() ^ adds(table, key, value)?);
            transaction.execute(&format!("DELETE FROM {table} WHERE {key} = ?"), [value])?;
            Ok(())
        };
        let drop_row = |table: &str, serial: u32| drop_where(table, "serial", &integer(serial));
        let put = |table: &str, columns: &str, values: Vec<Value>| -> Result<()> {
            let marks = vec!["?"; values.len() + 1].join(", ");
            let update = columns
                .split(", ")
                .skip(1)
                .chain(["sum"])
                .map(|c| format!("{c} = excluded.{c}"))
                .collect::<Vec<_>>()
                .join(", ");
            let key = columns.split(", ").next().unwrap_or_default();
            let sum = sum_of(table, &values);
            if values[0] != Value::Text(TOTAL.into()) {
                total.set(total.get() ^ adds(table, key, &values[0])? ^ sum);
            }
            let sum = Value::Blob(sum.to_be_bytes().to_vec());
            let sql = format!(
                "INSERT INTO {table} ({columns}, sum) VALUES ({marks}) ON CONFLICT ({key}) DO UPDATE SET {update}"
            );
            transaction.prepare_cached(&sql)?.execute(params_from_iter(values.into_iter().chain([sum])))?;
            Ok(())
        };
        let setting = |key: &str, value: String| {
            put("setting", "key, value", vec![Value::Text(key.into()), Value::Text(value)])
        };
        for row in rows {
            match row {
                Row::Image(image) => put("image", IMAGE, image_values(image))?,
                Row::Version(version) => put("version", VERSION, version_values(version))?,
                Row::Alias(alias) => put("alias", ALIAS, alias_values(alias))?,
                Row::Label(label) => put("label", LABEL, label_values(label))?,
                Row::Lease(lease) => put("lease", LEASE, lease_values(lease))?,
                Row::DropLabel(serial) => drop_row("label", *serial)?,
                Row::DropLease(serial) => drop_row("lease", *serial)?,
                Row::DropImage(serial) => drop_row("image", *serial)?,
                Row::DropVersion(serial) => drop_row("version", *serial)?,
                Row::DropAlias(serial) => drop_row("alias", *serial)?,
                Row::Blobs(bound) => setting("blobs", bound.to_string())?,
                Row::Root(root) => setting("root", serde_json::to_string(root).expect("numbers"))?,
                Row::Setting { key, value: Some(value) } => setting(key, value.clone())?,
                Row::Setting { key, value: None } => drop_where("setting", "key", &Value::Text(key.clone()))?,
                Row::Default { image, hidden } => {
                    setting("default_image", image.map(|i| i.to_string()).unwrap_or_default())?;
                    setting("default_hidden", u8::from(*hidden).to_string())?;
                }
            }
        }
        setting("next_serial", next_serial.to_string())?;
        setting("commit", commit.to_string())?;
        setting(TOTAL, format!("{:x}", total.get()))?;
        let total = total.get();
        transaction.commit()?;
        self.total = total;
        Ok(())
    }

    /// Moves the content of SQLite's log into the database. Truncates the log if it has grown, because it
    /// would keep its size otherwise.
    ///
    /// # Errors
    ///
    /// `Io` on a full disk; `Catalog`, `Corrupt`.
    pub fn shrink_log(&self) -> Result<()> {
        let log = self.path.with_extension("db-wal");
        if log.metadata().is_ok_and(|meta| meta.len() > LOG) {
            self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        }
        Ok(())
    }

    /// Looks for damage with SQLite's own check, and checks every row. Returns what it found, one sentence
    /// each.
    ///
    /// # Errors
    ///
    /// `Catalog`; `Corrupt` if SQLite cannot read the database at all.
    pub fn check(&mut self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        {
            let mut statement = self.connection.prepare("PRAGMA integrity_check")?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let line: String = row.get(0)?;
                if line != "ok" {
                    found.push(format!("catalog.db: {line}"));
                }
            }
        }
        if let Err(e) = self.load() {
            found.push(e.to_string());
        }
        Ok(found)
    }
}

/// Copies a database durably into another file.
///
/// # Errors
///
/// `Corrupt`, `Catalog`, `Io`.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    let temporary = to.with_extension("new");
    let _ = std::fs::remove_file(&temporary);
    Connection::open(from)?.backup("main", &temporary, None::<fn(rusqlite::backup::Progress)>)?;
    std::fs::File::open(&temporary)
        .and_then(|file| file.sync_all())
        .map_err(Error::io("sync", &temporary))?;
    std::fs::rename(&temporary, to).map_err(Error::io("rename", &temporary))
}

/// The check of a row: the first 16 bytes of BLAKE3 over its columns, each with its type and length.
fn sum_of(table: &str, values: &[Value]) -> u128 {
    // Columns that were added later count only up to the last one that has a value. So older rows keep
    // their checks.
    let added = match table {
        "alias" => 3,
        "image" | "label" => 1,
        _ => 0,
    };
    let empty = values.iter().rev().take(added).take_while(|value| **value == Value::Null).count();
    let values = &values[..values.len() - empty];
    let mut hasher = blake3::Hasher::new();
    let mut add = |kind: u8, bytes: &[u8]| {
        hasher.update(&[kind]).update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
    };
    for value in values {
        match value {
            Value::Null => add(0, b""),
            Value::Integer(n) => add(1, &n.to_le_bytes()),
            Value::Real(n) => add(2, &n.to_le_bytes()),
            Value::Text(text) => add(3, text.as_bytes()),
            Value::Blob(bytes) => add(4, bytes),
        }
    }
    let mut first = [0; 16];
    first.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    u128::from_be_bytes(first)
}
