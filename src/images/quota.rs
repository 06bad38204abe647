//! quota=10G: what a user, or a view, may have stored.
//!
//! Content counts once for each user who has it, at its unpacked size. It does not matter who else has
//! it, or how it lies on the disk. Trees and kept uploads count; the trash does not. Root and the owner
//! of the store have no bound. An image that is bound to a view counts both for its owner and for the
//! view.

use crate::blob::IdSet;
use crate::catalog::{Image, Model};
use crate::error::{Error, Result};
use crate::store::Store;
use crate::store::settings::{quota_of, quota_of_view};
use crate::tree::Tree;

/// Bytes and images. As a bound, 0 means none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    pub bytes: u64,
    pub images: u64,
}

/// The user or view for whom an image counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payer {
    User(u32),
    View(String),
}

impl Payer {
    /// The payers for an image with this owner and name. `store` is the store or the view in which the
    /// image has that name.
    pub fn of(store: &Store, whole: &Model, uid: u32, name: &str) -> Vec<Payer> {
        let view = store.catalog.view().or_else(|| whole.bound(name).map(|(view, _)| view));
        [Payer::User(uid)].into_iter().chain(view.map(|view| Payer::View(view.to_owned()))).collect()
    }

    /// The bound of this payer.
    pub fn bound(&self, store: &Store, whole: &Model) -> Amount {
        let (bytes, images) = match self {
            Payer::User(uid) if *uid == 0 || *uid == store.owner() => (0, 0),
            Payer::User(uid) => quota_of(&store.settings(), &whole.settings, *uid),
            Payer::View(view) => quota_of_view(&whole.settings, view),
        };
        Amount { bytes, images }
    }

    fn has(&self, whole: &Model, image: &Image) -> bool {
        match self {
            Payer::User(uid) => image.uid == *uid,
            Payer::View(view) => whole.bound(&image.name).is_some_and(|(of, _)| of == view),
        }
    }

    fn refusal(&self, limit: String) -> Error {
        let who = match self {
            Payer::User(uid) => format!("user {uid}"),
            Payer::View(view) => format!("view {view}"),
        };
        Error::OverQuota { who, limit }
    }
}

/// Refuses one more image if that is over a bound.
///
/// # Errors
///
/// `OverQuota`.
pub fn refuse_image(store: &Store, whole: &Model, payers: &[Payer]) -> Result<()> {
    for payer in payers {
        let most = payer.bound(store, whole).images;
        if most > 0 && whole.live_images().filter(|image| payer.has(whole, image)).count() as u64 >= most {
            return Err(payer.refusal(format!("{most} images")));
        }
    }
    Ok(())
}

/// Refuses to restore versions, or to bring them into a view, if that is over a bound.
///
/// # Errors
///
/// As `refuse_bytes`.
pub fn refuse_restored(store: &Store, payers: &[Payer], versions: &[u32]) -> Result<()> {
    let slots: Vec<_> = versions.iter().filter_map(|serial| store.tree(*serial).ok()).collect();
    let kept: Vec<_> = versions.iter().filter_map(|serial| store.kept(*serial).ok()).collect();
    let trees: Vec<&Tree> =
        slots.iter().map(|slot| &slot.tree).chain(kept.iter().map(|kept| &**kept)).collect();
    if trees.is_empty() { Ok(()) } else { refuse_bytes(store, payers, &trees) }
}

/// Refuses versions with these trees if they are over a bound. Without trees, refuses if no room is
/// left.
///
/// # Errors
///
/// `OverQuota`; `Io` if a tree cannot be read.
pub fn refuse_bytes(store: &Store, payers: &[Payer], new: &[&Tree]) -> Result<()> {
    for payer in payers {
        let most = payer.bound(store, &store.whole().catalog.read()).bytes;
        if most == 0 {
            continue;
        }
        let used = used(store, payer, new)?;
        if used > most || (new.is_empty() && used == most) {
            return Err(payer.refusal(format!("{most} bytes")));
        }
    }
    Ok(())
}

/// The bytes of live versions that count for this payer, and of the additional trees.
///
/// # Errors
///
/// `Io` if a tree cannot be read.
pub fn used(store: &Store, payer: &Payer, new: &[&Tree]) -> Result<u64> {
    let versions: Vec<u32> = {
        let whole = store.whole().catalog.read();
        let own = whole.live_images().filter(|image| payer.has(&whole, image)).map(|image| image.serial);
        own.flat_map(|image| whole.versions_of(image)).map(|version| version.serial).collect()
    };
    let (mut seen, mut bytes) = (IdSet::default(), 0);
    let mut count = |tree: &Tree| {
        bytes += tree.file_size();
        for id in tree.blobs().filter(|id| !seen.contains(*id)).collect::<Vec<_>>() {
            seen.insert(id);
            bytes += store.blobs.record(id).map_or(0, |record| record.size);
        }
    };
    // The version was deleted meanwhile, or is damaged, and nobody can read its content.
    let is_nothing = |e: &Error| e.is_damage() || matches!(e, Error::NotFound { .. });
    for serial in versions {
        match store.tree(serial) {
            Ok(slot) => count(&slot.tree),
            Err(e) if is_nothing(&e) => {}
            Err(e) => return Err(e),
        }
        match store.kept(serial) {
            Ok(kept) => count(&kept),
            Err(e) if is_nothing(&e) => {}
            Err(e) => return Err(e),
        }
    }
    new.iter().for_each(|tree| count(tree));
    Ok(bytes)
}
