//! imgfs status: what a store holds and what it costs.

use serde_json::json;

use crate::error::Result;
use crate::store::Store;

/// What `status.json` and `imgfs status` say about a store.
///
/// # Errors
///
/// `Io`.
pub fn status(store: &Store) -> Result<serde_json::Value> {
    let (mut images, mut versions, mut logical, mut tar_bytes, mut in_trash) = (0, 0, 0, 0, 0);
    {
        let model = store.catalog.read();
        images += model.live_images().count();
        for version in model.all_versions() {
            if model.is_live(version) {
                versions += 1;
                logical += version.facts.counts.logical_bytes;
                tar_bytes += version.facts.size;
            } else {
                in_trash += 1;
            }
        }
    }
    let unique: u64 = store.blobs.records().iter().map(|(_, record)| record.size).sum();
    let stored = store.stored_bytes()?;
    let (damaged_blobs, damaged_trees) = (store.blobs.damaged().len(), store.damaged_trees().len());
    let ratio = if stored == 0 { 1.0 } else { (tar_bytes as f64 / stored as f64 * 100.0).round() / 100.0 };
    Ok(json!({
        "program": concat!("imgfs ", env!("CARGO_PKG_VERSION")),
        "format": crate::format::FORMAT,
        "store": store.dir,
        "images": images,
        "versions": versions,
        "versions_in_trash": in_trash,
        "tar_bytes": tar_bytes,
        "logical_bytes": logical,
        "unique_bytes": unique,
        "stored_bytes": stored,
        "trash_bytes": store.trash_bytes(),
        "dedup_ratio": ratio,
        "scrub": store.scrub.document(),
        "read_only": store.writable.stopped(),
        "jobs_running": store.journal.running_jobs(),
        "staged": crate::images::staging::report(store),
        "health": if damaged_blobs + damaged_trees == 0 { "ok" } else { "damaged" },
        "damaged_blobs": damaged_blobs,
        "damaged_trees": damaged_trees,
    }))
}
