//! cat web/2/changes: what a version changed, compared to the newest older version that still exists.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::catalog::Version;
use crate::error::Result;
use crate::fs::{ImageFs, stale};
use crate::images::diff;

/// The sizes of the texts, by the serials of the two versions. Without them each stat would have to
/// make a text.
pub(in crate::fs) type Sizes = Mutex<HashMap<(u32, u32), u64>>;

/// How many sizes are remembered.
const KEPT: usize = 10_000;

/// Whether there is a version before this one.
pub(in crate::fs) fn are_there(fs: &ImageFs, serial: u32) -> bool {
    let model = fs.store.catalog.read();
    model.versions.get(&serial).is_some_and(|version| model.before(version).is_some())
}

/// The older version and this one.
fn compared(fs: &ImageFs, serial: u32) -> Result<(Version, Version)> {
    let model = fs.store.catalog.read();
    let version = model.versions.get(&serial).ok_or_else(stale)?;
    Ok((model.before(version).ok_or_else(stale)?.clone(), version.clone()))
}

pub(in crate::fs) fn text(fs: &ImageFs, serial: u32) -> Result<String> {
    let (before, version) = compared(fs, serial)?;
    let text = diff::text(&diff::between(&fs.store, &before, &version)?);
    let mut sizes = fs.changes.lock();
    if sizes.len() >= KEPT {
        sizes.clear();
    }
    sizes.insert((before.serial, serial), text.len() as u64);
    Ok(text)
}

pub(in crate::fs) fn size(fs: &ImageFs, serial: u32) -> Result<u64> {
    let (before, version) = compared(fs, serial)?;
    let known = fs.changes.lock().get(&(before.serial, version.serial)).copied();
    known.map_or_else(|| text(fs, serial).map(|text| text.len() as u64), Ok)
}
