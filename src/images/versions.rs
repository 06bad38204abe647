//! Journey 4, rmdir, and mkdir, mv, chmod: makes, renames, changes and deletes images and versions.
//!
//! Each gesture is one function and one transaction. Deleting moves a row into the trash; see trash.rs.

use std::collections::HashSet;

use crate::base::acl::{Acl, with_bits};
use crate::base::clock::now;
use crate::base::name::ImageName;
use crate::catalog::{Alias, Image, Model, Root, Row, Version};
use crate::error::{Error, Result};
use crate::formats::metadata::Editable;
use crate::images::leases::{self, refuse_used};
use crate::images::links::{first_is_default, refuse_default};
use crate::images::quota::{self, Payer};
use crate::images::rules::{
    change_image, live_image, live_version, not_found, put_image, refuse_immutable, refuse_taken,
};
use crate::images::views;
use crate::store::Store;

/// `mkdir MNT/web`.
///
/// # Errors
///
/// `Taken`, `OverQuota`; `NameTooLong` in a view; `Io`; those of `Catalog::commit`.
pub fn make_image(store: &Store, name: &ImageName, uid: u32, gid: u32, mode: u32) -> Result<u32> {
    store.catalog.commit(|txn| {
        refuse_taken(txn.model, name.as_str())?;
        views::refuse_shadow(txn.model, name.as_str(), None)?;
        quota::refuse_image(store, txn.whole, &Payer::of(store, txn.whole, uid, name.as_str()))?;
        let serial = txn.serial();
        txn.put(Row::Image(Image::new(serial, name.as_str(), uid, gid, mode, now())?.into()));
        first_is_default(txn, name.as_str(), serial);
        Ok(serial)
    })
}

/// `rmdir MNT/web/1` moves the version into the trash, with its aliases. Returns the version's serial.
///
/// # Errors
///
/// `OnlyVersion`, `VersionIsPinned`, `InUse`, `HasDependents`, `Immutable`, `NotFound`.
pub fn delete_version(store: &Store, image: u32, number: u32) -> Result<u32> {
    store.trash_has_changed();
    let stale = stale_leases(store, image);
    store.catalog.commit(|txn| {
        let (of, version) = live_version(txn.model, image, number)?;
        refuse_immutable(of)?;
        if txn.model.versions_of(image).count() == 1 {
            return Err(Error::OnlyVersion { image: of.name.clone(), number });
        }
        if of.pinned == Some(number) {
            return Err(Error::VersionIsPinned { image: of.name.clone(), number });
        }
        refuse_dependents(txn.model, &[version])?;
        refuse_used(store, txn.model, &[version], &stale)?;
        let (mut of, mut version) = (of.clone(), version.clone());
        let serial = version.serial;
        version.trashed_at = Some(now());
        version.trash_name = Some(txn.model.free_trash_name(&format!("{}.{number}", of.name)));
        of.updated_at = now();
        txn.put(Row::Version(version.into()));
        txn.put(Row::Image(of.into()));
        Ok(serial)
    })
}

/// `rmdir MNT/web` moves the image into the trash, with all its versions and aliases.
///
/// # Errors
///
/// `ImageIsDefault`, `InUse`, `HasDependents`, `Immutable`, `NotFound`.
pub fn delete_image(store: &Store, serial: u32) -> Result<()> {
    store.trash_has_changed();
    let stale = stale_leases(store, serial);
    store.catalog.commit(|txn| {
        let mut image = live_image(txn.model, serial)?.clone();
        refuse_immutable(&image)?;
        let versions: Vec<&Version> = txn.model.versions_of(serial).collect();
        refuse_dependents(txn.model, &versions)?;
        refuse_used(store, txn.model, &versions, &stale)?;
        refuse_default(txn, &image)?;
        if txn.model.default_image == Some(serial) {
            txn.put(Row::Default { image: None, hidden: false });
            image.rules.was_default = true;
        }
        image.trashed_at = Some(now());
        image.trash_name = Some(txn.model.free_trash_name(&image.name));
        txn.put(Row::Image(image.into()));
        Ok(())
    })
}

/// Removes an image that a mkdir has made, if it has no version and nobody has edited it. Returns its
/// name. `None` if that is not so any more.
///
/// # Errors
///
/// `Catalog`, `Io`.
pub fn drop_shell(store: &Store, serial: u32) -> Result<Option<String>> {
    store.catalog.commit(|txn| {
        let Some(image) = txn.model.live_image(serial) else { return Ok(None) };
        let has_versions = txn.model.all_versions().any(|version| version.image == serial);
        if has_versions || image.editable != Editable::new() || image.rules.immutable.is_some() {
            return Ok(None);
        }
        for alias in txn.whole.aliases.values().filter(|alias| alias.image == serial) {
            txn.put(Row::DropAlias(alias.serial));
        }
        if txn.model.default_image == Some(serial) {
            // The default becomes what it would be if the image had never existed: the oldest of the others.
            let next = txn.model.live_images().map(|image| image.serial).find(|other| *other != serial);
            txn.put(Row::Default { image: next, hidden: false });
        }
        txn.put(Row::DropImage(serial));
        Ok(Some(image.name.clone()))
    })
}

/// The leases of an image that no longer count. This must run before the catalog is held.
fn stale_leases(store: &Store, image: u32) -> HashSet<u32> {
    let links = leases::links(&store.catalog.read(), |version| version.image == image);
    leases::stale(links)
}

/// Refuses to delete versions that other versions are deltas over. Those that are deleted together do
/// not count.
fn refuse_dependents(model: &Model, going: &[&Version]) -> Result<()> {
    let path =
        |v: &Version| format!("{}/{}", model.images.get(&v.image).map_or("?", |i| i.name.as_str()), v.number);
    for version in going.iter().filter(|v| !v.facts.uuid.is_empty()) {
        let others =
            model.all_versions().filter(|v| model.is_live(v) && !going.iter().any(|g| g.serial == v.serial));
        let dependents: Vec<String> =
            others.filter(|v| v.facts.origin == version.facts.uuid).map(path).collect();
        if !dependents.is_empty() {
            return Err(Error::HasDependents { what: path(version), dependents: dependents.join(", ") });
        }
    }
    Ok(())
}

/// `mv MNT/web MNT/www`. In the whole store also `mv MNT/web MNT/dc1::web`, which binds the image to a
/// view.
///
/// # Errors
///
/// `NotFound`, `Immutable`, `Taken`, `OverQuota`; `OfView` for one that another view has attached;
/// `ImageIsViewDefault`.
pub fn rename_image(store: &Store, serial: u32, to: &ImageName) -> Result<()> {
    let _held = store.quota.lock();
    refuse_binding(store, serial, to)?;
    store.catalog.commit(|txn| {
        let mut image = live_image(txn.model, serial)?.clone();
        refuse_immutable(&image)?;
        refuse_taken(txn.model, to.as_str())?;
        views::rename(txn, &image, to.as_str())?;
        image.name = to.to_string();
        image.rules.named_at = Some(now());
        image.updated_at = now();
        txn.put(Row::Image(image.into()));
        first_is_default(txn, to.as_str(), serial);
        Ok(())
    })
}

/// Refuses to bind an image to a view whose quota has no room for it.
fn refuse_binding(store: &Store, serial: u32, to: &ImageName) -> Result<()> {
    if store.catalog.view().is_some() {
        return Ok(());
    }
    let (payers, versions) = {
        let whole = store.whole().catalog.read();
        let new = |name: &str| whole.bound(name).map(|(view, _)| view.to_owned());
        let Some(image) = whole.live_image(serial) else { return Ok(()) };
        let payers: Vec<Payer> = match new(to.as_str()) {
            Some(view) if new(&image.name).as_ref() != Some(&view) => vec![Payer::View(view)],
            _ => return Ok(()),
        };
        quota::refuse_image(store, &whole, &payers)?;
        (payers, whole.versions_of(serial).map(|v| v.serial).collect::<Vec<_>>())
    };
    quota::refuse_restored(store, &payers, &versions)
}

/// Changes metadata.json, or one key by an extended attribute. `change` returns the aliases that it
/// changes. An immutable image takes no change but that of the flag itself.
///
/// # Errors
///
/// What `change` refuses; `Immutable`, `ImageIsDefault`.
pub fn edit(
    store: &Store,
    image: u32,
    change: impl FnOnce(&Model, &mut Image) -> Result<Vec<Alias>>,
) -> Result<()> {
    store.catalog.commit(|commit| {
        let before = live_image(commit.model, image)?;
        let mut image = before.clone();
        let aliases = change(commit.model, &mut image)?;
        if before.editable != image.editable || !aliases.is_empty() {
            refuse_immutable(before)?;
        }
        if !image.editable.offer.takes_users() {
            refuse_default(commit, before)?;
        }
        for alias in aliases {
            commit.put(Row::Alias(alias));
        }
        put_image(commit, image);
        Ok(())
    })
}

/// `chmod`, `chown` on an image.
///
/// # Errors
///
/// `NotFound`, `Immutable`; `Attached` in a view; those of `Catalog::commit`.
pub fn set_owner(
    store: &Store,
    image: u32,
    mode: Option<u32>,
    uid: Option<u32>,
    gid: Option<u32>,
) -> Result<()> {
    change_image(store, image, |_, image| {
        refuse_immutable(image)?;
        image.mode = mode.map_or(image.mode, |m| m & 0o7777);
        (image.uid, image.gid) = (uid.unwrap_or(image.uid), gid.unwrap_or(image.gid));
        Ok(())
    })
}

/// `setfacl` on an image: the ACL, and the nine mode bits that belong to it. `None` is `setfacl -b`.
///
/// # Errors
///
/// `Immutable`, `NotFound`.
pub fn set_acl(store: &Store, image: u32, acl: Option<Acl>, bits: Option<u32>) -> Result<()> {
    change_image(store, image, |_, image| {
        refuse_immutable(image)?;
        image.mode = with_bits(image.mode, image.rules.acl.as_ref(), bits);
        image.rules.acl = acl;
        Ok(())
    })
}

/// `chmod`, `chown` on the mount's root decides who may make and delete images.
///
/// # Errors
///
/// Those of `Catalog::commit`.
pub fn set_root(store: &Store, root: Root) -> Result<()> {
    store.catalog.commit(|txn| {
        txn.put(Row::Root(root));
        Ok(())
    })
}

/// The mode of an image whose file came with this mode. Who may read it may also enter it, as with
/// mkdir.
pub fn directory_mode(file: u32) -> u32 {
    file & 0o666 | (file & 0o444) >> 2 | 0o700
}

/// `chmod`, `touch` on a receipt. If its upload made the image, a chmod by the uploader also changes
/// the image. install and rsync make a file for themselves alone, and open it to others after the
/// close. A mode that somebody has chosen for the image stays. Returns the image whose mode has
/// changed.
///
/// # Errors
///
/// `NotFound`.
pub fn set_receipt(
    store: &Store,
    version: u32,
    uid: u32,
    mode: Option<u32>,
    mtime: Option<i64>,
) -> Result<Option<u32>> {
    store.catalog.commit(|txn| {
        let mut version = txn.model.versions.get(&version).ok_or_else(|| not_found("such version"))?.clone();
        let Some(receipt) = &mut version.receipt else { return Ok(None) };
        let before = receipt.mode;
        receipt.mode = mode.map_or(before, |mode| mode & 0o7777);
        receipt.mtime = mtime.unwrap_or(receipt.mtime);
        let (made_image, mode) = (receipt.made_image && version.facts.uid == uid, receipt.mode);
        let image = txn.model.live_image(version.image).filter(|image| {
            made_image
                && mode != before
                && image.mode == directory_mode(before)
                && refuse_immutable(image).is_ok()
        });
        if let Some(image) = image {
            txn.put(Row::Image(Image { mode: directory_mode(mode), ..image.clone() }.into()));
        }
        let changed = image.map(|image| image.serial);
        txn.put(Row::Version(version.into()));
        Ok(changed)
    })
}

/// Changes the receipt of a version: its time or its mode. `None` removes it.
///
/// # Errors
///
/// `NotFound`; `Attached` in a view; those of `Catalog::commit`.
pub fn change_receipt(
    store: &Store,
    version: u32,
    work: impl FnOnce(&mut Option<crate::catalog::Receipt>),
) -> Result<()> {
    store.catalog.commit(|txn| {
        let mut version = txn.model.versions.get(&version).ok_or_else(|| not_found("such version"))?.clone();
        work(&mut version.receipt);
        txn.put(Row::Version(version.into()));
        Ok(())
    })
}
