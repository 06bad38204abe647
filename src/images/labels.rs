//! ln -s 1 MNT/web/@22.04.5: version strings, as in IMGAPI and Danube Cloud.

use crate::base::clock::now;
use crate::base::name::NAME_MAX;
use crate::catalog::{InTrash, Label, Row, Transaction};
use crate::error::{Error, Result};
use crate::images::rules::{live_image, live_version, not_found, refuse_immutable};
use crate::store::Store;

/// Puts a label on a version. With `moves`, it may be taken from another version.
///
/// # Errors
///
/// `NotFound`, `BadName`, `NotUnique`, `Immutable`.
pub fn put(store: &Store, image: u32, name: &str, number: u32, moves: bool) -> Result<()> {
    let name = parse(name)?;
    store.catalog.commit(|txn| {
        refuse_immutable(live_image(txn.model, image)?)?;
        live_version(txn.model, image, number)?;
        put_row(txn, image, name, number, moves)
    })
}

/// Puts a label as a part of another change. A label whose version is in the trash is free.
///
/// # Errors
///
/// `NotUnique`.
pub fn put_row(txn: &mut Transaction<'_>, image: u32, name: &str, number: u32, moves: bool) -> Result<()> {
    let serial = match txn.model.label(image, name) {
        Some(old) if old.number != number && !moves && txn.model.is_label_live(old) => {
            let holder = format!("it is the label of version {}", old.number);
            return Err(Error::NotUnique { what: format!("@{name}"), holder });
        }
        Some(old) => old.serial,
        None => txn.serial(),
    };
    txn.put(Row::Label(Label { serial, image, name: name.to_owned(), number, trashed: None }));
    Ok(())
}

/// `rm MNT/web/@22.04.5` moves the label into the trash, as `web.@22.04.5`.
///
/// # Errors
///
/// `NotFound`, `Immutable`.
pub fn drop_label(store: &Store, image: u32, name: &str) -> Result<()> {
    store.catalog.commit(|txn| {
        let of = live_image(txn.model, image)?;
        refuse_immutable(of)?;
        let label = txn.model.live_label(image, name).ok_or_else(|| not_found("such label"))?;
        let trashed = InTrash { at: now(), name: txn.model.free_trash_name(&format!("{}.@{name}", of.name)) };
        txn.put(Row::Label(Label { trashed: Some(trashed), ..label.clone() }));
        Ok(())
    })
}

/// `mv MNT/web/@a MNT/web/@b` replaces an existing label `@b`, as any mv does.
///
/// # Errors
///
/// `NotFound`, `BadName`, `Immutable`.
pub fn rename(store: &Store, image: u32, from: &str, to: &str) -> Result<()> {
    let to = parse(to)?;
    store.catalog.commit(|txn| {
        refuse_immutable(live_image(txn.model, image)?)?;
        let label = txn.model.live_label(image, from).ok_or_else(|| not_found("such label"))?.clone();
        if let Some(old) = txn.model.label(image, to).filter(|old| old.serial != label.serial) {
            txn.put(Row::DropLabel(old.serial));
        }
        txn.put(Row::Label(Label { name: to.to_owned(), ..label }));
        Ok(())
    })
}

/// Checks the name of a label without its `@`. A slash is written as in image names.
///
/// # Errors
///
/// `BadName`, `NameTooLong`.
pub fn parse(name: &str) -> Result<&str> {
    let bad = |why| Err(Error::BadName { name: format!("@{name}"), why });
    if name.len() >= NAME_MAX {
        return Err(Error::NameTooLong { len: name.len() + 1 });
    }
    if name.is_empty() {
        return bad("a label has something behind its @");
    }
    if name.contains('/') || name.chars().any(char::is_control) {
        return bad("it has a slash or a control character");
    }
    Ok(name)
}
