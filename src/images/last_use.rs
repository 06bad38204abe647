//! setfattr -n user.imgfs.expires_unused -v 10d MNT/web: when somebody last used an image.
//!
//! Opening a file, or holding a lease, is noted in memory, which costs nothing on disk. If the image
//! has `expires_unused`, its row is updated at most once an hour, and when the daemon ends. A daemon
//! that is killed loses that much.

use std::collections::HashMap;
use std::time::Duration;

use crate::base::clock::now;
use crate::catalog::{Image, Model, Row, Rules};
use crate::error::Result;
use crate::store::Store;

/// Notes that a version is used now.
pub fn note(store: &Store, version: u32) {
    store.used.lock().insert(version, now());
}

/// Since when nobody is known to have used an image: the time when it was last made, updated, edited,
/// opened or leased.
pub fn idle_since(store: &Store, model: &Model, image: &Image) -> i64 {
    let uploads = model.versions_of(image.serial).map(|version| version.created_at);
    let used = store.used.lock();
    let noted = model.versions_of(image.serial).filter_map(|version| used.get(&version.serial).copied());
    let known = [image.created_at, image.updated_at].into_iter().chain(image.rules.last_used_at);
    known.chain(uploads).chain(noted).max().unwrap_or(i64::MAX)
}

/// Saves the last use in the rows of images that expire without use, if it is newer than the saved one
/// by `least`.
///
/// # Errors
///
/// `Stopped`, `Catalog`, `Io`.
pub fn keep(store: &Store, least: Duration) -> Result<()> {
    let least = i64::try_from(least.as_nanos()).unwrap_or(i64::MAX);
    let noted = store.used.lock().clone();
    let newer = {
        let model = store.catalog.read();
        let mut newest: HashMap<u32, i64> = HashMap::new();
        for (version, at) in noted {
            let Some(version) = model.versions.get(&version) else { continue };
            let newest = newest.entry(version.image).or_insert(at);
            *newest = at.max(*newest);
        }
        let is_newer = |image: &u32, at: &i64| {
            let image = model.live_image(*image).filter(|image| image.editable.expires_unused.is_some());
            image.is_some_and(|image| {
                image.rules.last_used_at.is_none_or(|before| at.saturating_sub(before) >= least)
            })
        };
        newest.retain(|image, at| is_newer(image, at));
        store.used.lock().retain(|version, _| model.versions.contains_key(version));
        newest
    };
    if newer.is_empty() {
        return Ok(());
    }
    store.catalog.commit(|txn| {
        for (image, at) in newer {
            let Some(image) = txn.model.live_image(image) else { continue };
            let rules = Rules { last_used_at: Some(at), ..image.rules.clone() };
            txn.put(Row::Image(Image { rules, ..image.clone() }.into()));
        }
        Ok(())
    })
}
