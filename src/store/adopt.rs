//! imgfs mount, when rows are lost with the catalog and its copy: trees that no row names become images
//! again.
//!
//! A tree knows the name of its upload, and its image gets a name from that. The times of the files
//! give the versions their order. Aliases, pins and edits are lost.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::base::clock::now;
use crate::base::name::{ImageName, image_stem};
use crate::catalog::{Image, Row, Version, VersionFacts};
use crate::error::{Error, Result};
use crate::fault;
use crate::store::{Store, TREE};
use crate::tree::Tree;

/// The name of an image whose upload had no name that an image could have.
const NAMELESS: &str = "recovered";

/// Gives a row to every good tree that no row names. Renames damaged ones to `ID.damaged`.
///
/// # Errors
///
/// `Io`, `Catalog`.
pub fn adopt(store: &Store) -> Result<()> {
    let named: HashSet<PathBuf> =
        store.catalog.read().all_versions().map(|v| store.tree_path(&v.id)).collect();
    let mut lost = Vec::new();
    for path in store.tree_files()? {
        if path.extension().is_some_and(|e| e == TREE) && !named.contains(&path) {
            let written =
                path.metadata().and_then(|meta| meta.modified()).map_err(Error::io("stat", &path))?;
            lost.push((written, path));
        }
    }
    lost.sort();
    for (written, path) in lost {
        fault::reached("adopt.next");
        match adopt_one(store, &path, written) {
            Ok(name) => store.journal.log(0, "recover", &name, "the catalog was lost, its tree was not"),
            Err(e @ Error::Corrupt { .. }) => {
                store.journal.refuse(0, "recover", &path.display().to_string(), &e);
                store.quarantine(&path)?;
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn adopt_one(store: &Store, path: &Path, written: SystemTime) -> Result<String> {
    let (tree, digest) = Tree::read(path)?;
    let corrupt = |why: &str| Error::Corrupt { what: path.display().to_string(), why: why.into() };
    let facts: VersionFacts = serde_json::from_slice(tree.facts()).map_err(|e| corrupt(&e.to_string()))?;
    let id =
        path.file_stem().and_then(|stem| stem.to_str()).ok_or_else(|| corrupt("its name is no version's"))?;
    let stem = image_stem(&facts.upload_name).trim_start_matches('.');
    let name =
        ImageName::parse(stem.as_bytes()).map_or_else(|_| NAMELESS.to_owned(), |name| name.to_string());
    let created_at =
        written.duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX));
    store.catalog.commit(|txn| {
        let model = txn.model;
        let taken = |name: &str| model.named(name).is_some() && model.image_named(name).is_none();
        // An alias has the name by now, so the image gets another one.
        let name = if taken(&name) { format!("{NAMELESS}-{id}") } else { name };
        let mut image = match model.image_named(&name) {
            Some(image) => image.clone(),
            None => Image::new(txn.serial(), &name, facts.uid, facts.uid, 0o755, now())?,
        };
        let number = image.next_number;
        image.next_number += 1;
        if model.default_image.is_none() {
            txn.put(Row::Default { image: Some(image.serial), hidden: false });
        }
        let version = Version {
            serial: txn.serial(),
            image: image.serial,
            number,
            id: id.to_owned(),
            tree: digest,
            facts: facts.clone(),
            receipt: None,
            created_at,
            trashed_at: None,
            trash_name: None,
        };
        txn.put(Row::Image(image.into()));
        txn.put(Row::Version(version.into()));
        Ok(format!("{name}/{number}"))
    })
}
