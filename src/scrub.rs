//! The background's slow look at everything that is stored: damage is found before somebody needs what it hit.

use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::blob::ReadBuf;
use crate::digest::BlobId;
use crate::format::write_durably;
use crate::manifest::{now, time};
use crate::store::Store;

/// Bytes that one step looks at, at least.
const STEP: u64 = 16 << 20;
/// Steps that a look at a large store takes: with one every ten seconds, a week's.
const STEPS: u64 = 7 * 24 * 360;
/// Bytes between two notes of how far it came.
const NOTED: u64 = 1 << 30;

/// How far the look came; in STORE/scrub, so that it goes on after the next mount.
pub struct Scrub {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Clone, Default, Serialize, Deserialize)]
struct State {
    /// Nanoseconds since 1970.
    started_at: Option<i64>,
    ended_at: Option<i64>,
    /// The tree and the blob to look at next; trees come first.
    next_version: u32,
    next_blob: BlobId,
    bytes_done: u64,
    bytes_total: u64,
    /// Damaged trees and blobs.
    found: u64,
}

impl State {
    fn is_running(&self) -> bool {
        self.started_at.is_some() && self.ended_at.is_none()
    }

    /// Whether the next look is due. A clock that went back does not put it off.
    fn is_due(&self, every: u64) -> bool {
        let since = self.ended_at.map(|at| now().saturating_sub(at));
        since.is_none_or(|since| since < 0 || since / 1_000_000_000 >= i64::try_from(every).unwrap_or(i64::MAX))
    }
}

impl Scrub {
    pub fn open(dir: &Path) -> Scrub {
        let path = dir.join("scrub");
        // What cannot be read begins anew.
        let state = std::fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        Scrub { path, state: Mutex::new(state) }
    }

    /// For status.json.
    pub fn document(&self) -> serde_json::Value {
        let state = self.state.lock();
        json!({
            "running": state.is_running(),
            "bytes_done": state.bytes_done,
            "bytes_total": state.bytes_total,
            "damaged": state.found,
            "started_at": state.started_at.map(time),
            "ended_at": state.ended_at.map(time),
        })
    }

    fn put(&self, state: State) {
        let noted = self.state.lock().bytes_done / NOTED != state.bytes_done / NOTED || !state.is_running();
        let text = serde_json::to_vec(&state).expect("plain numbers");
        *self.state.lock() = state;
        if noted && let Err(e) = write_durably(&self.path, &text) {
            log::warn!("{e}");
        }
    }
}

/// Looks at some more, if a look is due or under way; damage is noted where reads note it.
pub fn step(store: &Store) {
    let every = store.settings.scrub_seconds;
    let mut state = store.scrub.state.lock().clone();
    if every == 0 || (!state.is_running() && !state.is_due(every)) {
        return;
    }
    if !state.is_running() {
        let trees: u64 = store.tree_files().map_or(0, |all| all.iter().filter_map(|p| p.metadata().ok()).map(|m| m.len()).sum());
        let bytes_total = trees + store.blobs.records().iter().map(|(_, record)| record.size).sum::<u64>();
        state = State { started_at: Some(now()), bytes_total, ..State::default() };
    }
    let mut budget = STEP.max(state.bytes_total / STEPS);
    let mut look = |state: &mut State, bytes: u64, damage: bool| {
        state.bytes_done += bytes;
        state.found += u64::from(damage);
        budget = budget.saturating_sub(bytes.max(1));
        budget > 0
    };
    let versions: Vec<u32> = store.catalog.read().all_versions().map(|v| v.serial).filter(|s| *s >= state.next_version).collect();
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

/// A file that has this content.
fn place_of(store: &Store, id: BlobId) -> String {
    let versions: Vec<u32> = store.catalog.read().all_versions().map(|v| v.serial).collect();
    let uses = |serial: u32| {
        let path = store.read_tree(serial).ok()?.path_of_blob(id)?;
        Some(format!("{}/{path}", store.path_of(&store.catalog.read(), serial)))
    };
    versions.into_iter().find_map(uses).unwrap_or_default()
}
