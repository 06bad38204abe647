//! The slow background check of everything that is stored. It finds damage before somebody needs the
//! damaged content.

use crate::base::clock::now;
use crate::base::digest::BlobId;
use crate::blob::ReadBuf;
use crate::store::Store;
use crate::store::progress::Look;

/// How many bytes one step checks at least.
const STEP: u64 = 16 << 20;
/// How many steps the scrub of a large store takes: one every ten seconds, for a week.
const STEPS: u64 = 7 * 24 * 360;

/// Checks some more content, if a scrub is due or under way. Damage is recorded where reads record it.
pub fn step(store: &Store) {
    let every = store.settings().scrub_seconds;
    let mut state = store.scrub.get();
    if every == 0 || (!state.is_running() && !state.is_due(every)) {
        return;
    }
    if !state.is_running() {
        let trees: u64 = store
            .tree_files()
            .map_or(0, |all| all.iter().filter_map(|p| p.metadata().ok()).map(|m| m.len()).sum());
        let bytes_total = trees + store.blobs.records().iter().map(|(_, record)| record.size).sum::<u64>();
        state = Look { started_at: Some(now()), bytes_total, ..Look::default() };
    }
    let mut budget = STEP.max(state.bytes_total / STEPS);
    let mut look = |state: &mut Look, bytes: u64, damage: bool| {
        state.bytes_done += bytes;
        state.found += u64::from(damage);
        budget = budget.saturating_sub(bytes.max(1));
        budget > 0
    };
    let versions: Vec<u32> =
        store.catalog.read().all_versions().map(|v| v.serial).filter(|s| *s >= state.next_version).collect();
    for serial in versions {
        let tree = store.read_tree(serial);
        state.next_version = serial + 1;
        let bytes = tree.as_ref().map_or(0, |tree| tree.file_size());
        if !look(&mut state, bytes, tree.is_err_and(|e| e.is_damage())) {
            return store.scrub.put(state);
        }
    }
    let mut buf = ReadBuf::default();
    for id in state.next_blob..store.blobs.id_bound() {
        state.next_blob = id + 1;
        let Ok(record) = store.blobs.record(id) else { continue };
        let damage = match store.blobs.verify(id, &mut buf) {
            Err(e) if store.blobs.record(id).is_ok() => {
                store.journal.refuse(0, "scrub", &place_of(store, id), &e);
                true
            }
            _ => false,
        };
        if !look(&mut state, record.size, damage) {
            return store.scrub.put(state);
        }
    }
    state.ended_at = Some(now());
    state.bytes_done = state.bytes_total;
    store.scrub.put(state);
}

/// The path of a file with this content.
fn place_of(store: &Store, id: BlobId) -> String {
    let versions: Vec<u32> = store.catalog.read().all_versions().map(|v| v.serial).collect();
    let uses = |serial: u32| {
        let path = store.read_tree(serial).ok()?.path_of_blob(id)?;
        Some(format!("{}/{path}", store.path_of(&store.catalog.read(), serial)))
    };
    versions.into_iter().find_map(uses).unwrap_or_default()
}
