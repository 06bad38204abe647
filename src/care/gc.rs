//! Frees the space of what no version, no trash, no open file and no upload needs.

use crate::blob::Swept;
use crate::error::{Error, Result};
use crate::fault;
use crate::images::trash;
use crate::store::Store;

/// Marks what is in use, and sweeps the rest.
///
/// # Errors
///
/// Any error that prevents it from reading every tree. In that case nothing is swept.
pub fn run(store: &Store) -> Result<Swept> {
    let _one_at_a_time = store.gc.lock();
    let token = store.blobs.begin_mark();
    store.close_idle_trees(usize::MAX);
    let live = store.live_blobs()?;
    // Blobs whose records are lost must not count as free.
    if !store.blobs.missing(&live).is_empty() {
        store.blobs.rebuild(0)?;
        // Blobs that fsck --repair has searched for everywhere are lost for good.
        if !store.blobs.missing(&live).iter().all(|id| store.blobs.is_damaged(*id)) {
            let what = store.dir.join("blobs").display().to_string();
            return Err(Error::Corrupt {
                what,
                why: "records that versions need are lost: imgfs fsck says which".into(),
            });
        }
    }
    store.blobs.forget_damage(&live);
    fault::reached("gc.marked");
    let swept = store.blobs.sweep(token, &live)?;
    fault::reached("gc.swept");
    store.drop_bases()?;
    store.trash_has_changed();
    store.catalog.tidy();
    if swept.blobs > 0 {
        log::info!("gc: removed {} blobs, {} bytes", swept.blobs, swept.bytes);
    }
    Ok(swept)
}

/// Purges the oldest entries of the trash and sweeps, for a write that found the disk full. False if no
/// space was freed.
///
/// # Errors
///
/// `Stopped`, `Catalog`, `Io` of the trash; those of `run`.
pub fn make_room(store: &Store) -> Result<bool> {
    let store = store.whole();
    while trash::purge_oldest(store)? {
        if run(store)?.bytes > 0 {
            return Ok(true);
        }
    }
    Ok(run(store)?.bytes > 0)
}

/// Frees space if there may be garbage.
///
/// # Errors
///
/// Those of `run`. The next call tries again.
pub fn run_if_due(store: &Store) -> Result<()> {
    if store.take_garbage() {
        run(store).inspect_err(|_| store.has_garbage())?;
    }
    Ok(())
}

/// What the daemon does every few seconds: purges what is due in the trash, and frees space.
///
/// # Errors
///
/// Those of `end_trash_time` and `run_if_due`. The steps after a failure wait for the next round.
pub fn tick(store: &Store) -> Result<()> {
    trash::end_trash_time(store)?;
    store.note_use();
    store.close_idle_trees(64);
    run_if_due(store)?;
    if !store.journal.is_busy() {
        store.catalog.tidy();
        store.blobs.forget_index();
        store.blobs.forget_frames();
        crate::base::sys::trim_memory();
    }
    Ok(())
}
