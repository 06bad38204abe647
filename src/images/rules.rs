//! What gestures check first: that an image exists, and that a name is free. chattr +i MNT/web: that
//! nobody has made the image immutable.

use crate::base::clock::now;
use crate::catalog::{Image, Immutable, Model, Named, Row, Transaction, Version};
use crate::error::{Error, Result};
use crate::store::Store;

/// The user who asks for a change.
#[derive(Clone, Copy, Debug)]
pub struct By {
    pub uid: u32,
    /// Whether it is root or the owner of the store.
    pub is_admin: bool,
}

/// Refuses a change of an image that is immutable.
///
/// # Errors
///
/// `Immutable`.
pub fn refuse_immutable(image: &Image) -> Result<()> {
    match &image.rules.immutable {
        Some(by) => Err(Error::Immutable { image: image.name.clone(), uid: by.uid }),
        None => Ok(()),
    }
}

/// Sets or clears the flag. Only the user who has set it, and administrators of the store, may clear
/// it.
///
/// # Errors
///
/// `Immutable` for anybody else.
pub fn set_immutable(image: &mut Image, by: By, on: bool) -> Result<()> {
    match (&image.rules.immutable, on) {
        (None, true) => image.rules.immutable = Some(Immutable { uid: by.uid, at: now() }),
        (Some(old), false) if by.is_admin || old.uid == by.uid => image.rules.immutable = None,
        (Some(_), false) => return refuse_immutable(image),
        _ => {}
    }
    Ok(())
}

/// The image, if it is not in the trash.
pub(crate) fn live_image(model: &Model, serial: u32) -> Result<&Image> {
    model.live_image(serial).ok_or_else(|| not_found("such image"))
}

/// The version with this number, and its image.
pub(crate) fn live_version(model: &Model, image: u32, number: u32) -> Result<(&Image, &Version)> {
    let of = live_image(model, image)?;
    let version = model
        .version(image, number)
        .ok_or_else(|| Error::NotFound { what: format!("version {number} of {}", of.name) })?;
    Ok((of, version))
}

/// Refuses a name that already exists in the root.
pub(crate) fn refuse_taken(model: &Model, name: &str) -> Result<()> {
    if model.named(name).is_some() { Err(taken(model, name)) } else { Ok(()) }
}

pub(crate) fn taken(model: &Model, name: &str) -> Error {
    let holder = match model.named(name) {
        Some(Named::Alias(_)) => "it is an alias",
        _ => "it is an image",
    };
    Error::Taken { name: name.to_owned(), holder: holder.into() }
}

pub(crate) fn not_found(what: &str) -> Error {
    Error::NotFound { what: what.into() }
}

pub(crate) fn change_image(
    store: &Store,
    serial: u32,
    work: impl FnOnce(&Model, &mut Image) -> Result<()>,
) -> Result<()> {
    store.catalog.commit(|txn| {
        let before = live_image(txn.model, serial)?;
        let mut image = before.clone();
        work(txn.model, &mut image)?;
        put_image(txn, image);
        Ok(())
    })
}

/// Writes the image's row, if it differs.
pub(crate) fn put_image(txn: &mut Transaction<'_>, mut image: Image) {
    if txn.model.images.get(&image.serial) != Some(&image) {
        image.updated_at = now();
        txn.put(Row::Image(image.into()));
    }
}
