//! Journey 4, rmdir, and its undo. Deleted things stay in the trash for a while, and can be restored or
//! purged. Purging drops rows and trees; gc frees the space of their content.

use std::time::{Duration, Instant};

use crate::base::clock::now;
use crate::base::name::{AliasName, ImageName};
use crate::catalog::{
    Alias, DEFAULT_HIDDEN, Image, Label, Model, Named, Row, Transaction, Trashed, Version, View,
};
use crate::error::{Error, Result};
use crate::fault;
use crate::images::identity::check_identity;
use crate::images::links::{first_is_default, refuse_alias_path, show_default};
use crate::images::quota::{self, Payer};
use crate::images::rules::{live_image, not_found, refuse_taken, taken};
use crate::images::{icons, views};
use crate::store::Store;

/// How many seconds the background work has to see something in the trash before it purges it, whatever
/// the clock says.
const SEEN_MIN: u64 = 3600;

/// Finds the entry `.imgfs/trash/NAME`.
pub fn trashed(model: &Model, name: &str) -> Option<Trashed> {
    model.trash().find(|(entry, ..)| entry == name).map(|(_, _, what)| what)
}

/// `mv .imgfs/trash/web MNT/web` restores the image under any free name, with its versions and links.
///
/// # Errors
///
/// `NotFound`, `Taken`, `OverQuota`; `NotUnique` for a uuid that another has by now. `OfView`,
/// `ImageIsViewDefault` for a name of another view; `Attached`, `NameTooLong` in a view. `Io`; those of
/// `Catalog::commit`.
pub fn restore_image(store: &Store, serial: u32, name: &ImageName) -> Result<()> {
    let _held = store.quota.lock();
    refuse_too_much(store, Some(name), |v| v.image == serial && v.trashed_at.is_none())?;
    store.trash_has_changed();
    store.catalog.commit(|txn| {
        refuse_taken(txn.model, name.as_str())?;
        let mut image =
            txn.model.images.get(&serial).ok_or_else(|| not_found("such image in the trash"))?.clone();
        quota::refuse_image(store, txn.whole, &Payer::of(store, txn.whole, image.uid, name.as_str()))?;
        let own: Vec<&Version> =
            txn.model.all_versions().filter(|v| v.image == serial && v.trashed_at.is_none()).collect();
        for version in &own {
            // The origin may come back in the same image.
            let origin =
                Some(version.facts.origin.as_str()).filter(|o| !own.iter().any(|v| v.facts.uuid == **o));
            check_identity(txn.model, &version.facts.uuid, origin.unwrap_or_default())?;
        }
        views::rename(txn, &image, name.as_str())?;
        (image.trashed_at, image.trash_name) = (None, None);
        if image.name != name.as_str() {
            image.rules.named_at = Some(now());
        }
        image.name = name.to_string();
        image.updated_at = now();
        // Whatever deleted the image, it is active again now, and shows its default.
        (image.editable.offer.deleted, image.default_hidden) = (false, false);
        let was_default = std::mem::take(&mut image.rules.was_default);
        image.rules.default_hidden_at = None;
        txn.put(Row::Image(image.into()));
        if was_default {
            default_again(txn, name.as_str(), serial);
        } else {
            first_is_default(txn, name.as_str(), serial);
        }
        Ok(())
    })
}

/// Makes a restored image the default again, because it was when it was deleted: of the store, or of
/// its view.
fn default_again(txn: &mut Transaction<'_>, name: &str, image: u32) {
    match txn.model.bound(name).and_then(|(view, _)| Some((view, txn.model.views.get(view)?))) {
        None => show_default(txn, image),
        Some((name, view)) => {
            let view = View { default_image: Some(image), default_hidden: false, ..view.clone() };
            txn.put(Row::view(name, Some(&view)));
        }
    }
}

/// `mv .imgfs/trash/prod MNT/` restores the alias under any free name. It shows once its target shows.
///
/// # Errors
///
/// `NotFound`, `Taken`, `NameTooLong`.
pub fn restore_alias(store: &Store, serial: u32, name: impl Into<AliasName>) -> Result<()> {
    let name = name.into();
    store.catalog.commit(|txn| {
        let alias = txn.model.aliases.get(&serial).ok_or_else(|| not_found("such alias in the trash"))?;
        if matches!(txn.model.named(name.as_str()), Some(Named::Image(_) | Named::Alias(_))) {
            return Err(taken(txn.model, name.as_str()));
        }
        refuse_alias_path(txn.model, name.as_str())?;
        views::refuse_alias(txn.model, name.as_str(), alias.image)?;
        txn.put(Row::Alias(Alias { name: name.as_str().to_owned(), trashed: None, ..alias.clone() }));
        Ok(())
    })
}

/// `mv .imgfs/trash/web.@1.0 MNT/` restores the label.
///
/// # Errors
///
/// `NotFound`.
pub fn restore_label(store: &Store, serial: u32) -> Result<()> {
    store.catalog.commit(|txn| {
        let label = txn.model.labels.get(&serial).ok_or_else(|| not_found("such label in the trash"))?;
        txn.put(Row::Label(Label { trashed: None, ..label.clone() }));
        Ok(())
    })
}

/// `mv .imgfs/trash/default MNT/`, `mv .imgfs/trash/web.default MNT/`: shows the link again.
///
/// # Errors
///
/// `NotFound`.
pub fn restore_default(store: &Store, of: Option<u32>) -> Result<()> {
    store.catalog.commit(|txn| {
        match of {
            None => {
                let image = txn.model.default_image.ok_or_else(|| not_found("default in the trash"))?;
                show_default(txn, image);
            }
            Some(image) => {
                let mut image = live_image(txn.model, image)?.clone();
                image.default_hidden = false;
                image.rules.default_hidden_at = None;
                txn.put(Row::Image(image.into()));
            }
        }
        Ok(())
    })
}

/// Refuses to restore versions that are over a quota. `name` is the new name of their image.
fn refuse_too_much(store: &Store, name: Option<&ImageName>, which: impl Fn(&Version) -> bool) -> Result<()> {
    let (image, versions) = {
        let model = store.catalog.read();
        let found: Vec<&Version> = model.all_versions().filter(|v| which(v)).collect();
        let image = found.first().and_then(|v| model.images.get(&v.image)).cloned();
        (image, found.iter().map(|v| v.serial).collect::<Vec<_>>())
    };
    let Some(image) = image else { return Ok(()) };
    let name = name.map_or(image.name.as_str(), ImageName::as_str);
    let payers = Payer::of(store, &store.whole().catalog.read(), image.uid, name);
    quota::refuse_restored(store, &payers, &versions)
}

/// The image that a version in the trash belongs to.
///
/// # Errors
///
/// `NotFound`.
pub fn home_of(model: &Model, version: u32) -> Result<u32> {
    model.image_of(version).ok_or_else(|| not_found("such version in the trash"))
}

/// `mv .imgfs/trash/web.1 MNT/web/` restores the version under its number. If its image is still in the
/// trash, the version shows once the image is restored.
///
/// # Errors
///
/// `NotFound`, `OverQuota`; `Managed` for another image than its own; `Taken` for a uuid that another has by
/// now.
pub fn restore_version(store: &Store, serial: u32, into: u32) -> Result<u32> {
    let _held = store.quota.lock();
    refuse_too_much(store, None, |v| v.serial == serial)?;
    store.trash_has_changed();
    store.catalog.commit(|txn| {
        let mut version =
            txn.model.versions.get(&serial).ok_or_else(|| not_found("such version in the trash"))?.clone();
        if version.image != into {
            let home = txn.model.images.get(&version.image).map_or("?", |i| i.name.as_str());
            // The errno must not be EINVAL: for mv that means a directory that is moved into itself.
            return Err(Error::Managed {
                what: format!("the version {home}/{}", version.number),
                why: "it can only go back into its image",
            });
        }
        check_identity(txn.model, &version.facts.uuid, &version.facts.origin)?;
        let image = txn.model.images.get(&into).ok_or_else(|| not_found("such image"))?;
        (version.trashed_at, version.trash_name) = (None, None);
        let number = version.number;
        txn.put(Row::Version(version.into()));
        txn.put(Row::Image(Image { updated_at: now(), ..image.clone() }.into()));
        Ok(number)
    })
}

/// `rm -r .imgfs/trash/web` purges the image for good. The caller runs gc.
///
/// # Errors
///
/// `NotFound` for what is not in the trash any more.
pub fn purge(store: &Store, what: Trashed) -> Result<()> {
    if purge_since(store, what, None)? { Ok(()) } else { Err(not_found("such thing in the trash any more")) }
}

/// Purges an entry that is still in the trash. With `since`, it must not have left the trash since
/// then. False if there is no such entry.
fn purge_since(store: &Store, what: Trashed, since: Option<i64>) -> Result<bool> {
    let trees = store.catalog.commit(|txn| {
        let (mut trees, model) = (Vec::new(), txn.model);
        let trashed_at = model.trash().find(|(.., entry)| *entry == what).map(|(_, at, _)| at);
        if trashed_at.is_none_or(|at| since.is_some_and(|since| since != at)) {
            return Ok(None);
        }
        match what {
            Trashed::Image(serial) => {
                for version in model.all_versions().filter(|v| v.image == serial) {
                    trees.push(version.id.clone());
                    drop_version(txn, version);
                }
                drop_aliases(txn, serial, None);
                icons::forget(txn, serial);
                txn.put(Row::DropImage(serial));
            }
            Trashed::Version(serial) => {
                if let Some(version) = model.versions.get(&serial) {
                    trees.push(version.id.clone());
                    drop_version(txn, version);
                }
            }
            Trashed::Alias(serial) => txn.put(Row::DropAlias(serial)),
            Trashed::Label(serial) => txn.put(Row::DropLabel(serial)),
            // The links stay hidden, and the trash no longer shows them.
            Trashed::Default => txn.put(Row::Setting { key: DEFAULT_HIDDEN.into(), value: None }),
            Trashed::ImageDefault(serial) => {
                let mut image = live_image(model, serial)?.clone();
                image.rules.default_hidden_at = None;
                txn.put(Row::Image(image.into()));
            }
        }
        Ok(Some(trees))
    })?;
    let Some(trees) = trees else { return Ok(false) };
    fault::reached("purge.rows");
    store.has_garbage();
    // Invariant 1, backwards: rows, then trees, then (gc) blobs. A reader keeps its mapping of a removed
    // tree.
    for path in trees.iter().flat_map(|id| [store.tree_path(id), store.kept_path(id)]) {
        if let Err(e) = store.drop_tree(&path) {
            log::warn!("{e}; it goes at the next start");
        }
        fault::reached("purge.tree");
    }
    Ok(true)
}

/// Drops a version's row, after the rows that belong to the version.
fn drop_version(txn: &mut Transaction<'_>, version: &Version) {
    let model = txn.model;
    for lease in model.leases_of(version.serial) {
        txn.put(Row::DropLease(lease.serial));
    }
    for label in model.labels.values().filter(|l| (l.image, l.number) == (version.image, version.number)) {
        txn.put(Row::DropLabel(label.serial));
    }
    drop_aliases(txn, version.image, Some(version.number));
    txn.put(Row::DropVersion(version.serial));
}

/// Drops the aliases of an image, or of one of its versions. This includes aliases of the whole store
/// to an image that is bound to a view.
fn drop_aliases(txn: &mut Transaction<'_>, image: u32, number: Option<u32>) {
    for alias in txn.whole.aliases.values().filter(|a| (a.image, a.number) == (image, number)) {
        txn.put(Row::DropAlias(alias.serial));
    }
}

/// Purges what has been in the trash for its time, or all of it with `everything`. Returns how many
/// entries went.
///
/// # Errors
///
/// Those of `Catalog::commit`; what was purged before stays so.
pub fn empty_trash(store: &Store, everything: bool) -> Result<usize> {
    purge_those(store, |at, _| everything || at <= trash_limit(store))
}

/// Purges in the background what has been in the trash for its time. An entry that it has not seen
/// there for a while stays, because the clock may have jumped.
///
/// # Errors
///
/// Those of `Catalog::commit`; what was purged before stays so.
pub fn end_trash_time(store: &Store) -> Result<usize> {
    let least = Duration::from_secs(store.settings().trash_seconds.min(SEEN_MIN));
    let mut seen = store.seen_in_trash.lock();
    let there = trash_by_age(&store.catalog.read());
    seen.retain(|seen, _| there.iter().any(|(_, what)| what == seen));
    for (_, what) in there {
        seen.entry(what).or_insert_with(Instant::now);
    }
    purge_those(store, |at, what| {
        at <= trash_limit(store) && seen.get(&what).is_some_and(|since| since.elapsed() >= least)
    })
}

/// Entries that were deleted before this time are due.
fn trash_limit(store: &Store) -> i64 {
    now().saturating_sub(
        i64::try_from(store.settings().trash_seconds).unwrap_or(i64::MAX).saturating_mul(1_000_000_000),
    )
}

fn purge_those(store: &Store, due: impl Fn(i64, Trashed) -> bool) -> Result<usize> {
    let all = trash_by_age(&store.catalog.read());
    let mut purged = 0;
    for (at, what) in all.into_iter().filter(|(at, what)| due(*at, *what)) {
        // Somebody may take an entry out of the trash while others are purged.
        purged += usize::from(purge_since(store, what, Some(at))?);
    }
    Ok(purged)
}

/// Purges the oldest entry of the trash because space is needed. False if there is none.
///
/// # Errors
///
/// Those of `Catalog::commit`.
pub fn purge_oldest(store: &Store) -> Result<bool> {
    // Links free no space.
    let takes_room = |what: &Trashed| matches!(what, Trashed::Image(_) | Trashed::Version(_));
    let all = trash_by_age(&store.catalog.read());
    for (at, what) in all.into_iter().filter(|(_, what)| takes_room(what)) {
        if purge_since(store, what, Some(at))? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// All entries of the trash, oldest first, with the time of their deletion.
fn trash_by_age(model: &Model) -> Vec<(i64, Trashed)> {
    // If a version and its image are both in the trash, the version goes with the image, or before it.
    let mut all: Vec<_> = model.trash().map(|(_, at, what)| (at, what)).collect();
    all.sort_by_key(|(at, what)| (*at, matches!(what, Trashed::Image(_)), *what));
    all
}
