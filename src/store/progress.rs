//! How far the background scrub has come.

use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::base::clock::{now, time};
use crate::base::digest::BlobId;
use crate::format::write_durably;

/// Bytes between two saves of the progress.
const NOTED: u64 = 1 << 30;

/// How far the scrub has come. It is saved in STORE/scrub, so that the scrub goes on after the next
/// mount.
pub struct Progress {
    path: PathBuf,
    state: Mutex<Look>,
}

/// One scrub of everything.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Look {
    /// Nanoseconds since 1970.
    pub started_at: Option<i64>,
    pub ended_at: Option<i64>,
    /// The tree and the blob to check next. Trees come first.
    pub next_version: u32,
    pub next_blob: BlobId,
    pub bytes_done: u64,
    pub bytes_total: u64,
    /// Damaged trees and blobs.
    pub found: u64,
}

impl Look {
    pub fn is_running(&self) -> bool {
        self.started_at.is_some() && self.ended_at.is_none()
    }

    /// Whether the next scrub is due. A clock that was set back does not postpone it.
    pub fn is_due(&self, every: u64) -> bool {
        let since = self.ended_at.map(|at| now().saturating_sub(at));
        since.is_none_or(|since| {
            since < 0 || since / 1_000_000_000 >= i64::try_from(every).unwrap_or(i64::MAX)
        })
    }
}

impl Progress {
    pub fn open(dir: &Path) -> Progress {
        let path = dir.join("scrub");
        // If the file cannot be read, the scrub begins anew.
        let state =
            std::fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        Progress { path, state: Mutex::new(state) }
    }

    pub fn get(&self) -> Look {
        self.state.lock().clone()
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

    pub fn put(&self, state: Look) {
        let noted = self.state.lock().bytes_done / NOTED != state.bytes_done / NOTED || !state.is_running();
        let text = serde_json::to_vec(&state).expect("plain numbers");
        *self.state.lock() = state;
        if noted && let Err(e) = write_durably(&self.path, &text) {
            log::warn!("{e}");
        }
    }
}
