//! Journey 1, cp in, of an image that is damaged in the store. `blob/writer.rs` stores content anew
//! under its id. Here a version gets back the tree that a good copy of its tarball makes.

use std::path::{Path, PathBuf};

use crate::base::digest::Digest;
use crate::blob::backend::Shelf;
use crate::catalog::{Row, Version};
use crate::error::{Error, Result};
use crate::fault;
use crate::store::Store;
use crate::store::trees::key_of;

/// Whether any part of a version is known to be damaged.
pub fn is_damaged(store: &Store, serial: u32) -> bool {
    match store.tree(serial) {
        Err(e) => e.is_damage(),
        Ok(slot) => store.blobs.has_damage() && slot.tree.blobs().any(|id| store.blobs.is_damaged(id)),
    }
}

/// Whether a version's tree is useless: it cannot be read, or names content whose record is lost.
fn needs_tree(store: &Store, serial: u32) -> bool {
    match store.tree(serial) {
        Err(e) => e.is_damage(),
        Ok(slot) => {
            store.blobs.has_damage()
                && slot.tree.blobs().any(|id| store.blobs.is_damaged(id) && store.blobs.record(id).is_err())
        }
    }
}

/// Whether two versions have the same tree, because all that came with them is the same.
fn are_twins(a: &Version, b: &Version) -> bool {
    let (a, b) = (&a.facts, &b.facts);
    (&a.digest, &a.image_digest, &a.fingerprint, &a.uuid)
        == (&b.digest, &b.image_digest, &b.fingerprint, &b.uuid)
}

/// Gives a good tree to every version that came as the same bytes and has lost its own. The tree is
/// that of `good`, or was just made. Returns the names of those versions.
///
/// # Errors
///
/// `Io`, `Catalog`.
pub fn heal_trees(store: &Store, good: &Version, tree: &Path, digest: Digest) -> Result<Vec<String>> {
    let all: Vec<Version> =
        store.catalog.read().all_versions().filter(|v| are_twins(v, good)).cloned().collect();
    let mut healed = Vec::new();
    for version in all.into_iter().filter(|v| needs_tree(store, v.serial)) {
        let name = store.path_of(&store.catalog.read(), version.serial);
        replace_tree(store, version, tree, digest)?;
        store.journal.log(0, "heal", &name, "its tree is there again");
        healed.push(name);
    }
    Ok(healed)
}

fn replace_tree(store: &Store, version: Version, tree: &Path, digest: Digest) -> Result<()> {
    let path = store.tree_path(&version.id);
    let copy: PathBuf = store.dir.join("staging").join(format!("heal-{}", version.id));
    std::fs::copy(tree, &copy).map_err(Error::io("copy", tree))?;
    std::fs::File::open(&copy).and_then(|file| file.sync_all()).map_err(Error::io("sync", &copy))?;
    fault::reached("heal.copied");
    // Other trees may be packed against the old one.
    store.drop_tree(&path)?;
    fault::reached("heal.dropped");
    store.blobs.backend().put(&copy, &key_of(&path))?;
    fault::reached("heal.renamed");
    store.blobs.backend().sync(Shelf::Trees)?;
    let serial = version.serial;
    store.catalog.commit(|txn| {
        // If the version was deleted meanwhile, the file is a leftover.
        if let Some(now) = txn.model.versions.get(&serial) {
            txn.put(Row::Version(Version { tree: digest, ..now.clone() }.into()));
        }
        Ok(())
    })?;
    store.tree_was_replaced(serial)
}

/// Heals versions that cannot be read from versions that can. For fsck --repair.
///
/// # Errors
///
/// `Io`, `Catalog`.
pub fn heal_from_twins(store: &Store) -> Result<Vec<String>> {
    let all: Vec<Version> = store.catalog.read().all_versions().cloned().collect();
    let mut healed = Vec::new();
    for lost in all.iter().filter(|v| needs_tree(store, v.serial)) {
        let twin = all.iter().find(|v| are_twins(v, lost) && !needs_tree(store, v.serial));
        if let Some(twin) = twin {
            healed.extend(heal_trees(store, twin, &store.tree_path(&twin.id), twin.tree)?);
        }
    }
    Ok(healed)
}
