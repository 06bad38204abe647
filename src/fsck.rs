//! imgfs fsck: every numbered invariant of `format.rs`, checked; what is wrong, and what it affects.

use std::collections::HashMap;

use crate::blob::ReadBuf;
use crate::digest::BlobId;
use crate::error::{Error, Result};
use crate::export;
use crate::store::Store;

/// One broken rule.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Finding {
    /// Number of the invariant in `format.rs`.
    pub invariant: u8,
    pub what: String,
}

/// Checks all; `progress` is told bytes done and bytes in all, and says whether anybody waits for more.
///
/// Errors: only what keeps it from looking at all; damage is a finding.
pub fn check(store: &Store, mut progress: impl FnMut(u64, u64) -> bool) -> Result<Vec<Finding>> {
    let mut found = Vec::new();
    let mut say = |invariant: u8, what: String| found.push(Finding { invariant, what });
    for line in store.catalog.check()? {
        say(9, line);
    }
    check_names(store, &mut say);
    let versions: Vec<_> = store.catalog.read().all_versions().cloned().collect();
    let mut records = store.blobs.records();
    // As they lie, so that a frame is unpacked once.
    records.sort_unstable_by_key(|(_, record)| (record.container, record.offset));
    let total = records.iter().map(|(_, r)| r.size).sum::<u64>() + versions.iter().map(|v| v.facts.size).sum::<u64>();
    let mut done = 0;

    // Blobs first: a damaged one is named once, with all that it affects.
    let mut damaged: HashMap<BlobId, String> = HashMap::new();
    for id in store.blobs.damaged_records() {
        damaged.insert(id, format!("the record of blob {id} is damaged"));
    }
    let mut buf = ReadBuf::default();
    for (id, record) in &records {
        // Freed meanwhile, beside a mount: no longer there, no longer of interest.
        if let Err(e) = store.blobs.verify(*id, &mut buf)
            && store.blobs.record(*id).is_ok()
        {
            damaged.insert(*id, e.to_string());
        }
        done += record.size;
        if !progress(done, total) {
            return Err(Error::Stopping);
        }
    }
    for what in store.blobs.broken_bases()? {
        say(10, what);
    }
    let mut affected: HashMap<BlobId, Vec<String>> = HashMap::new();
    for version in &versions {
        let name = store.path_of(&store.catalog.read(), version.serial);
        let slot = match store.tree(version.serial) {
            Ok(slot) => slot,
            Err(_) if !store.catalog.read().versions.contains_key(&version.serial) => continue,
            Err(e) => {
                say(5, format!("{name}: {e}"));
                continue;
            }
        };
        let mut whole = true;
        for id in slot.tree.blobs() {
            if damaged.contains_key(&id) {
                affected.entry(id).or_default().push(name.clone());
                whole = false;
            } else if store.blobs.record(id).is_err() {
                say(2, format!("{name}: its tree names blob {id}, which is free"));
                whole = false;
            }
        }
        let facts = &version.facts;
        let replays = [(0, &facts.digest), (1, &facts.image_digest)];
        match store.kept(version.serial) {
            Ok(kept) => {
                let wanted = &version.facts.upload_sha256;
                match export::sha256(store, &kept, crate::keep::RECIPE) {
                    Ok(found) if found == *wanted => {}
                    Ok(found) => say(7, format!("{name}: its kept upload has sha256 {found}, and the catalog says {wanted}")),
                    Err(e) => say(7, format!("{name}: its kept upload: {e}")),
                }
            }
            Err(Error::NotFound { .. }) => {}
            Err(e) => say(5, format!("{name}: {e}")),
        }
        for (recipe, digest) in replays {
            let there = if recipe == 0 { slot.tree.has_rootfs() } else { slot.tree.more_recipes() > 0 };
            if whole
                && there
                && !digest.is_empty()
                && let Err(what) = replay(store, &slot.tree, recipe, digest)
            {
                say(7, format!("{name}: {what}"));
            }
        }
        done += version.facts.size;
        if !progress(done, total) {
            return Err(Error::Stopping);
        }
    }
    for (id, what) in damaged {
        let who = affected.remove(&id).unwrap_or_default();
        let who = if who.is_empty() { "no version".into() } else { who.join(", ") };
        say(3, format!("{what}; it affects {who}"));
    }
    // Beside a mount, an upload has a tree and content before its row.
    if store.journal.running_jobs() == 0 {
        for name in store.blobs.stray_containers()? {
            say(6, format!("{name} belongs to nothing"));
        }
    }
    found.sort_by(|a, b| (a.invariant, &a.what).cmp(&(b.invariant, &b.what)));
    Ok(found)
}

fn check_names(store: &Store, say: &mut impl FnMut(u8, String)) {
    let model = store.catalog.read();
    if let Some(serial) = model.default_image
        && model.live_image(serial).is_none()
    {
        say(8, "default names an image that is not there".into());
    }
    for image in model.live_images() {
        if let Some(number) = image.pinned
            && model.version(image.serial, number).is_none()
        {
            say(8, format!("{}/default names version {number}, which is not there", image.name));
        }
    }
    for version in model.all_versions() {
        match model.images.get(&version.image) {
            Some(image) if version.number < image.next_number && version.serial < model.next_serial => {}
            _ => say(4, format!("version {} of image {} has a number that was not given out", version.number, version.image)),
        }
    }
    for alias in model.aliases.values() {
        if !model.images.contains_key(&alias.image) {
            say(8, format!("the alias {} leads nowhere", alias.name));
        }
    }
}

/// Checks that a recipe makes what the catalog says.
fn replay(store: &Store, tree: &crate::tree::Tree, recipe: u32, digest: &str) -> std::result::Result<(), String> {
    let found = format!("sha256:{}", export::sha256(store, tree, recipe).map_err(|e| e.to_string())?);
    if found == digest { Ok(()) } else { Err(format!("recipe {recipe} makes {found}, and the catalog says {digest}")) }
}
