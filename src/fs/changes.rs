//! cat web/2/changes: what a version changed, against the newest older one that is there.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::catalog::Version;
use crate::error::Result;
use crate::fs::{ImageFs, stale};
use crate::images::diff;

/// How long the texts are, by the serials of the two versions: stat must not make one each time.
pub(super) type Sizes = Mutex<HashMap<(u32, u32), u64>>;

/// Sizes that are remembered.
const KEPT: usize = 10_000;

impl ImageFs {
    /// Whether there is a version before this one.
    pub(super) fn has_changes(&self, serial: u32) -> bool {
        let model = self.store.catalog.read();
        model.versions.get(&serial).is_some_and(|version| model.before(version).is_some())
    }

    /// The older version and this one.
    fn compared(&self, serial: u32) -> Result<(Version, Version)> {
        let model = self.store.catalog.read();
        let version = model.versions.get(&serial).ok_or_else(stale)?;
        Ok((model.before(version).ok_or_else(stale)?.clone(), version.clone()))
    }

    pub(super) fn changes_text(&self, serial: u32) -> Result<String> {
        let (before, version) = self.compared(serial)?;
        let text = diff::text(&diff::between(&self.store, &before, &version)?);
        let mut sizes = self.changes.lock();
        if sizes.len() >= KEPT {
            sizes.clear();
        }
        sizes.insert((before.serial, serial), text.len() as u64);
        Ok(text)
    }

    pub(super) fn changes_size(&self, serial: u32) -> Result<u64> {
        let (before, version) = self.compared(serial)?;
        let known = self.changes.lock().get(&(before.serial, version.serial)).copied();
        known.map_or_else(|| self.changes_text(serial).map(|text| text.len() as u64), Ok)
    }
}
