//! mkdir MNT/.imgfs/views/dc1, ln -s ../../../web MNT/.imgfs/views/dc1/: which images a view has.
//!
//! A view shows the images that are attached to it, and those that are bound to it. An image whose name
//! in the store is `dc1::web` is bound to `dc1`. catalog/lens.rs says what a mount of a view shows and
//! may change.

use crate::base::clock::now;
use crate::base::name::{ImageName, bound_name};
use crate::catalog::{Image, Model, Row, Transaction, Version, View};
use crate::error::{Error, Result};
use crate::images::rules::{live_image, not_found};
use crate::store::Store;
use crate::store::settings;

/// The longest name of a view. An image that is bound to it has both names in one.
const VIEW_NAME_MAX: usize = 100;

/// `mkdir MNT/.imgfs/views/dc1`.
///
/// # Errors
///
/// `BadName`, `NameTooLong`; `Taken` if there is one, or something else whose name begins so.
pub fn make(store: &Store, name: &[u8]) -> Result<()> {
    let name = ImageName::parse(name)?.to_string();
    if name.contains([':', ',']) || name.len() > VIEW_NAME_MAX {
        let why = "the name of a view has up to 100 bytes, and no colon or comma";
        return Err(Error::BadName { name, why });
    }
    store.catalog.commit(|txn| {
        let prefix = bound_name(&name, "");
        if txn.model.views.contains_key(&name) {
            return Err(Error::Taken { name, holder: "there is one already".into() });
        }
        if let Some((other, _)) = txn.model.all_names().find(|(other, _)| other.starts_with(&prefix)) {
            return Err(Error::Taken { name, holder: format!("{other} would be in it") });
        }
        txn.put(Row::view(&name, Some(&View { created_at: now(), ..View::default() })));
        Ok(())
    })
}

/// `rmdir MNT/.imgfs/views/dc1` removes a view that has no image any more. Its settings go with it.
///
/// # Errors
///
/// `NotEmpty`, `NotFound`.
pub fn remove(store: &Store, name: &str) -> Result<()> {
    store.catalog.commit(|txn| {
        find(txn.model, name)?;
        let prefix = bound_name(name, "");
        let has_bound = txn.model.all_names().any(|(other, _)| other.starts_with(&prefix));
        if has_bound || txn.model.attached_to(name).next().is_some() {
            return Err(Error::NotEmpty { what: format!("view {name}") });
        }
        for key in txn.model.settings.keys().filter(|key| settings::is_of_view(key, name)) {
            txn.put(Row::Setting { key: key.clone(), value: None });
        }
        txn.put(Row::view(name, None));
        Ok(())
    })
}

/// `ln -s ../../../web MNT/.imgfs/views/dc1/web` attaches the image, so the view shows it from now on.
///
/// # Errors
///
/// `NotFound`; `Invalid` for a link of another name; `Taken` where the view has an image of this
/// name; `OfView` for an image that is bound to another.
pub fn attach(store: &Store, name: &str, link: &str, image: u32) -> Result<()> {
    store.catalog.commit(|txn| {
        let (mut view, image) = (find(txn.model, name)?.clone(), live_image(txn.model, image)?);
        if let Some((other, _)) = txn.model.bound(&image.name) {
            return Err(if other == name {
                Error::Taken { name: image.name.clone(), holder: "it is bound to the view already".into() }
            } else {
                Error::OfView { image: image.name.clone(), views: format!("view {other}") }
            });
        }
        if link != image.name {
            let why = format!("the link to {} is called so, too", image.name);
            return Err(Error::Invalid { what: link.to_owned(), why });
        }
        if txn.model.named(&bound_name(name, link)).is_some() {
            return Err(Error::Taken { name: link.to_owned(), holder: "the view has one of its own".into() });
        }
        if txn.model.view_default(name, &view).is_none() {
            (view.default_image, view.default_hidden) = (Some(image.serial), false);
        }
        view.attached.insert(image.serial);
        txn.put(Row::view(name, Some(&view)));
        Ok(())
    })
}

/// `rm MNT/.imgfs/views/dc1/web` detaches the image, so the view no longer shows it. The view's aliases
/// to it go too.
///
/// # Errors
///
/// `NotFound`; `Managed` for what is bound to it; `InUse` while it is used in the view;
/// `ImageIsViewDefault` while that has others.
pub fn detach(store: &Store, name: &str, link: &str) -> Result<()> {
    store.catalog.commit(|txn| {
        let mut view = find(txn.model, name)?.clone();
        let image = image_in(txn.model, name, link).ok_or_else(|| not_found("such image in the view"))?;
        if txn.model.bound(&image.name).is_some() {
            let why = "it is bound to the view by its name: mv it to another";
            return Err(Error::Managed { what: link.to_owned(), why });
        }
        let prefix = bound_name(name, "");
        let leases = txn.model.versions_of(image.serial).flat_map(|v| txn.model.leases_of(v.serial));
        let holders: Vec<&str> =
            leases.map(|lease| lease.name.as_str()).filter(|lease| lease.starts_with(&prefix)).collect();
        if !holders.is_empty() {
            return Err(Error::InUse { what: link.to_owned(), holders: holders.join(", ") });
        }
        if view.default_image == Some(image.serial) {
            if txn.model.images_of_view(name).count() > 1 {
                return Err(Error::ImageIsViewDefault { image: link.to_owned(), view: name.to_owned() });
            }
            view.default_image = None;
        }
        view.attached.remove(&image.serial);
        drop_aliases(txn, name, image.serial);
        txn.put(Row::view(name, Some(&view)));
        Ok(())
    })
}

/// What a new name of an image changes in the views of the whole store: in the view that it leaves, in
/// the view that it becomes bound to, and in those that have it attached. In a view there are no views.
///
/// # Errors
///
/// `OfView`, `Taken`, `ImageIsViewDefault`.
pub(crate) fn rename(txn: &mut Transaction<'_>, image: &Image, to: &str) -> Result<()> {
    let model = txn.model;
    let (old, new) = (model.bound(&image.name).map(|(view, _)| view), model.bound(to).map(|(view, _)| view));
    refuse_shadow(model, to, Some(image.serial))?;
    for (name, before) in &model.views {
        let mut view = before.clone();
        let is_new = new == Some(name);
        if view.attached.contains(&image.serial) {
            if is_new {
                view.attached.remove(&image.serial);
            } else if new.is_some() {
                return Err(Error::OfView { image: image.name.clone(), views: format!("view {name}") });
            } else if model.named(&bound_name(name, to)).is_some() {
                let holder = format!("view {name}, which has it attached, has one of its own of that name");
                return Err(Error::Taken { name: to.to_owned(), holder });
            }
        }
        if old == Some(name) && !is_new {
            if model.view_default(name, before).is_some_and(|default| default.serial == image.serial) {
                if model.images_of_view(name).count() > 1 {
                    return Err(Error::ImageIsViewDefault { image: image.name.clone(), view: name.clone() });
                }
                view.default_image = None;
            }
            drop_aliases(txn, name, image.serial);
        }
        if view != *before {
            txn.put(Row::view(name, Some(&view)));
        }
    }
    if old != new {
        for version in model.versions.values().filter(|v| v.image == image.serial && v.trashed_at.is_some()) {
            let trash_name = Some(model.free_trash_name(&format!("{to}.{}", version.number)));
            txn.put(Row::Version(Version { trash_name, ..version.clone() }.into()));
        }
    }
    Ok(())
}

/// Drops a view's aliases to an image that the view no longer shows.
fn drop_aliases(txn: &mut Transaction<'_>, view: &str, image: u32) {
    let prefix = bound_name(view, "");
    let model = txn.model;
    for alias in
        model.aliases.values().filter(|alias| alias.image == image && alias.name.starts_with(&prefix))
    {
        txn.put(Row::DropAlias(alias.serial));
    }
}

/// Refuses a name that would hide an image attached to the view of that name. The image itself may have
/// the name.
///
/// # Errors
///
/// `Taken`.
pub(crate) fn refuse_shadow(model: &Model, name: &str, itself: Option<u32>) -> Result<()> {
    let Some((of, shown)) = model.bound(name) else { return Ok(()) };
    match model.attached_to(of).find(|image| image.name == shown && Some(image.serial) != itself) {
        Some(_) => Err(Error::Taken { name: name.to_owned(), holder: format!("view {of} has it attached") }),
        None => Ok(()),
    }
}

/// Refuses an alias of a view to an image that the view does not show.
///
/// # Errors
///
/// `NotFound`, `Taken`.
pub(crate) fn refuse_alias(model: &Model, name: &str, image: u32) -> Result<()> {
    refuse_shadow(model, name, None)?;
    let Some((of, _)) = model.bound(name) else { return Ok(()) };
    if model.images_of_view(of).any(|(_, shown)| shown.serial == image) {
        return Ok(());
    }
    Err(Error::NotFound { what: format!("such image in view {of}") })
}

/// The image that a view shows under a name.
pub fn image_in<'m>(model: &'m Model, name: &'m str, image: &str) -> Option<&'m Image> {
    model.images_of_view(name).find(|(shown, _)| *shown == image).map(|(_, image)| image)
}

/// # Errors
///
/// `NotFound`.
pub fn find<'m>(model: &'m Model, name: &str) -> Result<&'m View> {
    model.views.get(name).ok_or_else(|| Error::NotFound { what: format!("view {name}") })
}
