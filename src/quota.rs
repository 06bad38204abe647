//! quota=10G: what a user may have stored.
//!
//! Content counts once for each owner who has it, unpacked, whoever else has it, too, and however it lies on the disk; trees
//! count; the trash does not. Root and the owner of the store have no bound.

use crate::blob::IdSet;
use crate::catalog::Model;
use crate::error::{Error, Result};
use crate::settings::quota_of;
use crate::store::Store;
use crate::tree::Tree;

/// Bytes and images: a bound (0: none), or what there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    pub bytes: u64,
    pub images: u64,
}

/// What a user may have.
pub fn bound(store: &Store, model: &Model, uid: u32) -> Amount {
    if uid == 0 || uid == store.owner() {
        return Amount::default();
    }
    let (bytes, images) = quota_of(&store.settings(), &model.settings, uid);
    Amount { bytes, images }
}

/// Refuses one more image of a user's.
///
/// Errors: `OverQuota`.
pub fn refuse_image(store: &Store, model: &Model, uid: u32) -> Result<()> {
    let most = bound(store, model, uid).images;
    if most > 0 && model.live_images().filter(|image| image.uid == uid).count() as u64 >= most {
        return Err(Error::OverQuota { who: format!("user {uid}"), limit: format!("{most} images") });
    }
    Ok(())
}

/// Refuses what comes back from the trash where it would be too much.
///
/// Errors: as `refuse_bytes`.
pub fn refuse_restored(store: &Store, uid: u32, versions: &[u32]) -> Result<()> {
    let slots: Vec<_> = versions.iter().filter_map(|serial| store.tree(*serial).ok()).collect();
    let trees: Vec<&Tree> = slots.iter().map(|slot| &slot.tree).collect();
    if trees.is_empty() { Ok(()) } else { refuse_bytes(store, uid, &trees) }
}

/// Refuses versions with these trees where they would be too much; without any, where there is no room left.
///
/// Errors: `OverQuota`; `Io` if a tree cannot be read.
pub fn refuse_bytes(store: &Store, uid: u32, new: &[&Tree]) -> Result<()> {
    let most = bound(store, &store.catalog.read(), uid).bytes;
    if most == 0 {
        return Ok(());
    }
    let used = used(store, uid, new)?;
    if used > most || (new.is_empty() && used == most) {
        return Err(Error::OverQuota { who: format!("user {uid}"), limit: format!("{most} bytes") });
    }
    Ok(())
}

/// The bytes of a user's live versions, and of more trees.
fn used(store: &Store, uid: u32, new: &[&Tree]) -> Result<u64> {
    let versions: Vec<u32> = {
        let model = store.catalog.read();
        let own = model.live_images().filter(|image| image.uid == uid).map(|image| image.serial);
        own.flat_map(|image| model.versions_of(image)).map(|version| version.serial).collect()
    };
    let (mut seen, mut bytes) = (IdSet::default(), 0);
    let mut count = |tree: &Tree| {
        bytes += tree.file_size();
        for id in tree.blobs().filter(|id| !seen.contains(*id)).collect::<Vec<_>>() {
            seen.insert(id);
            bytes += store.blobs.record(id).map_or(0, |record| record.size);
        }
    };
    for serial in versions {
        match store.tree(serial) {
            Ok(slot) => count(&slot.tree),
            // Deleted meanwhile; or damaged, and nobody can read what it has.
            Err(e) if e.is_damage() || matches!(e, Error::NotFound { .. }) => {}
            Err(e) => return Err(e),
        }
    }
    new.iter().for_each(|tree| count(tree));
    Ok(bytes)
}
