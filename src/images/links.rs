//! Journey 3, ln -sfn: the targets of links, the default images of the store and of each type, and
//! aliases.
//!
//! Each gesture is one function and one transaction.

use crate::base::clock::now;
use crate::base::name::{AliasName, ImageName};
use crate::catalog::{
    Alias, DEFAULT_HIDDEN, Follows, Image, InTrash, Model, Named, Row, Rules, Transaction, View, default_key,
};
use crate::error::{Error, Result};
use crate::images::rules::{change_image, live_image, live_version, not_found, refuse_taken, taken};
use crate::images::targets::{LinkTarget, target_of_alias};
use crate::images::views;
use crate::store::Store;

/// The value of a type's default while its link is hidden.
const HIDDEN: &str = "-";

/// Makes the first image the default. An image that is bound to a view becomes the default of the view.
pub(crate) fn first_is_default(txn: &mut Transaction<'_>, name: &str, image: u32) {
    match txn.model.bound(name).and_then(|(view, _)| Some((view, txn.model.views.get(view)?))) {
        None if txn.model.default_image.is_none() => {
            txn.put(Row::Default { image: Some(image), hidden: false })
        }
        Some((name, view)) if txn.model.view_default(name, view).is_none() => {
            let view = View { default_image: Some(image), default_hidden: false, ..view.clone() };
            txn.put(Row::view(name, Some(&view)));
        }
        _ => {}
    }
}

/// Refuses to remove a default image, both among what shows and in the whole store.
///
/// # Errors
///
/// As `refuse_default_of`.
pub fn refuse_default(txn: &Transaction<'_>, image: &Image) -> Result<()> {
    refuse_default_of(txn.model, image)?;
    txn.whole.images.get(&image.serial).map_or(Ok(()), |image| refuse_default_of(txn.whole, image))
}

/// Refuses to remove the default image while there are others. Also refuses to remove the default of a
/// type while that type has others.
///
/// # Errors
///
/// `ImageIsDefault`, `ImageIsTypeDefault`, `ImageIsViewDefault`.
pub fn refuse_default_of(model: &Model, image: &Image) -> Result<()> {
    if model.default_image == Some(image.serial) && model.live_images().count() > 1 {
        return Err(Error::ImageIsDefault { image: image.name.clone() });
    }
    let is_default = |(name, view): &(&String, &View)| {
        model.view_default(name, view).is_some_and(|i| i.serial == image.serial)
    };
    for name in model.views.iter().filter(is_default).map(|(name, _)| name) {
        if model.images_of_view(name).count() > 1 {
            return Err(Error::ImageIsViewDefault { image: image.name.clone(), view: name.clone() });
        }
    }
    let kind = &image.editable.kind;
    let of_type = model.live_images().filter(|other| other.editable.kind == *kind).count();
    if of_type > 1 && model.default_of(kind).is_some_and(|default| default.serial == image.serial) {
        return Err(Error::ImageIsTypeDefault { image: image.name.clone(), kind: kind.clone() });
    }
    Ok(())
}

/// `ln -sfn ../../web MNT/.imgfs/defaults/vm`. `None` is `rm`, with which BusyBox's ln -sfn begins; the
/// default stays protected then.
///
/// # Errors
///
/// `NotFound`; `Invalid` for an image of another type; `Managed` for one whose status is `deleted`.
pub fn set_type_default(store: &Store, kind: &str, image: Option<u32>) -> Result<()> {
    store.catalog.commit(|txn| {
        let value = match image {
            Some(serial) => {
                let image = live_image(txn.model, serial)?;
                if image.editable.kind != kind {
                    let why = format!("its type is {}", image.editable.kind);
                    return Err(Error::Invalid {
                        what: format!("{} as the default {kind}", image.name),
                        why,
                    });
                }
                refuse_hidden(image)?;
                serial.to_string()
            }
            None => HIDDEN.into(),
        };
        txn.put(Row::Setting { key: default_key(kind), value: Some(value) });
        Ok(())
    })
}

/// Whether `rm` has hidden the link of a type.
pub fn is_type_default_hidden(model: &Model, kind: &str) -> bool {
    model.settings.get(&default_key(kind)).is_some_and(|value| value == HIDDEN)
}

fn refuse_hidden(image: &Image) -> Result<()> {
    if !image.editable.offer.takes_users() {
        let what = format!("an image whose status is {}", image.editable.offer.status().unwrap_or_default());
        return Err(Error::Managed { what, why: "it is not for new users" });
    }
    Ok(())
}

/// `ln -sfn web MNT/default`.
///
/// # Errors
///
/// `NotFound`; `Managed` for a link into an image, or one that takes no new users; those of `Catalog::commit`.
pub fn set_default(store: &Store, target: LinkTarget) -> Result<()> {
    store.catalog.commit(|txn| put_default(txn, target))
}

fn put_default(txn: &mut Transaction<'_>, target: LinkTarget) -> Result<()> {
    let why = || Error::Managed {
        what: "default".into(),
        why: "it names an image; a version is pinned with IMAGE/default",
    };
    let image = target.whole_image().ok_or_else(why)?;
    refuse_hidden(live_image(txn.model, image)?)?;
    show_default(txn, image);
    // A new default was chosen, so an image that was the default when it was deleted does not become it
    // again.
    for before in txn.model.images.values().filter(|image| image.rules.was_default) {
        let rules = Rules { was_default: false, ..before.rules.clone() };
        txn.put(Row::Image(Image { rules, ..before.clone() }.into()));
    }
    Ok(())
}

/// Makes an image the store's default, and shows the link.
pub(crate) fn show_default(txn: &mut Transaction<'_>, image: u32) {
    txn.put(Row::Default { image: Some(image), hidden: false });
    if txn.model.settings.contains_key(DEFAULT_HIDDEN) {
        txn.put(Row::Setting { key: DEFAULT_HIDDEN.into(), value: None });
    }
}

/// `rm MNT/default`, with which BusyBox's ln -sfn begins: moves the link into the trash. The default
/// stays protected until another image is named.
///
/// # Errors
///
/// Those of `Catalog::commit`.
pub fn hide_default(store: &Store) -> Result<()> {
    store.catalog.commit(|txn| {
        put_hidden_default(txn, txn.model.default_image);
        Ok(())
    })
}

fn put_hidden_default(txn: &mut Transaction<'_>, image: Option<u32>) {
    txn.put(Row::Default { image, hidden: true });
    txn.put(Row::Setting { key: DEFAULT_HIDDEN.into(), value: Some(now().to_string()) });
}

/// `ln -sfn 1 MNT/web/default` (a number), `ln -sfn latest MNT/web/default` (`None`).
///
/// # Errors
///
/// `NotFound` if there is no such image or version; `Attached` in a view; those of `Catalog::commit`.
pub fn pin(store: &Store, image: u32, number: Option<u32>) -> Result<()> {
    change_image(store, image, |model, image| {
        if let Some(number) = number {
            live_version(model, image.serial, number)?;
        }
        (image.pinned, image.default_hidden) = (number, false);
        image.rules.default_hidden_at = None;
        Ok(())
    })
}

/// `rm MNT/web/default`; see `hide_default`.
///
/// # Errors
///
/// `NotFound`; `Attached` in a view; those of `Catalog::commit`.
pub fn hide_image_default(store: &Store, image: u32) -> Result<()> {
    change_image(store, image, |_, image| {
        image.default_hidden = true;
        image.rules.default_hidden_at = Some(now());
        Ok(())
    })
}

/// The directories of an alias whose name has slashes: `centos` and `centos/6` of `centos/6/amd64`.
pub fn parents(name: &str) -> impl Iterator<Item = &str> {
    name.match_indices('/').map(|(at, _)| &name[..at])
}

/// Refuses a name if a part of it is an alias, or if it is a directory of aliases. `centos` and
/// `centos/6` cannot both exist.
///
/// # Errors
///
/// `NotDirectory`, `Taken`.
pub fn refuse_alias_path(model: &Model, name: &str) -> Result<()> {
    if let Some(alias) = parents(name).find(|parent| model.alias_named(parent).is_some()) {
        return Err(Error::NotDirectory { what: format!("{alias}, an alias,") });
    }
    if model.aliases_in(name).next().is_some() {
        return Err(Error::Taken {
            name: name.to_owned(),
            holder: "it is a directory of aliases in .imgfs/aliases".into(),
        });
    }
    Ok(())
}

/// `ln -s web MNT/jammy`, or `ln -sfn` if the name is an alias already. A name with slashes belongs to
/// `.imgfs/aliases`.
///
/// # Errors
///
/// `NotFound`, `Taken`, `NotDirectory`.
pub fn put_alias(store: &Store, name: impl Into<AliasName>, target: LinkTarget) -> Result<()> {
    let name = name.into();
    store.catalog.commit(|txn| {
        let (serial, description) = match txn.model.named(name.as_str()) {
            Some(Named::Alias(serial)) => (serial, txn.model.aliases[&serial].description.clone()),
            Some(Named::Image(_)) => return Err(taken(txn.model, name.as_str())),
            None => {
                refuse_alias_path(txn.model, name.as_str())?;
                (txn.serial(), String::new())
            }
        };
        let LinkTarget { image, number, follows } = target;
        live_image(txn.model, image)?;
        views::refuse_alias(txn.model, name.as_str(), image)?;
        forget_trashed_alias(txn, name.as_str());
        let name = name.as_str().to_owned();
        txn.put(Row::Alias(Alias { serial, name, image, number, description, follows, trashed: None }));
        Ok(())
    })
}

/// Drops a deleted alias from the trash once its name is used again. Otherwise a restore would find the
/// name taken.
fn forget_trashed_alias(txn: &mut Transaction<'_>, name: &str) {
    for old in txn.model.aliases.values().filter(|alias| alias.trashed.is_some() && alias.name == name) {
        txn.put(Row::DropAlias(old.serial));
    }
}

/// `rm MNT/jammy` moves the alias into the trash.
///
/// # Errors
///
/// `NotFound`.
pub fn drop_alias(store: &Store, serial: u32) -> Result<()> {
    store.catalog.commit(|txn| {
        let alias = txn.model.aliases.get(&serial).ok_or_else(|| not_found("such alias"))?;
        let trashed = InTrash { at: now(), name: txn.model.free_trash_name(&alias.name.replace('/', "%2F")) };
        txn.put(Row::Alias(Alias { trashed: Some(trashed), ..alias.clone() }));
        Ok(())
    })
}

/// `mv MNT/jammy MNT/lts`. Renaming an alias to `default` makes its image the default.
///
/// # Errors
///
/// `NotFound`, `Taken`, `NotDirectory`; those of `set_default` over `default`; `NameTooLong` in a view; those
/// of `Catalog::commit`.
pub fn rename_alias(store: &Store, serial: u32, to: Option<impl Into<AliasName>>) -> Result<()> {
    let to: Option<AliasName> = to.map(Into::into);
    store.catalog.commit(|txn| {
        let mut alias = txn.model.aliases.get(&serial).ok_or_else(|| not_found("such alias"))?.clone();
        match &to {
            None => {
                put_default(txn, target_of_alias(&alias))?;
                txn.put(Row::DropAlias(serial));
            }
            Some(name) => {
                match txn.model.named(name.as_str()) {
                    // Renaming to the name of another alias replaces that one, as for any file.
                    Some(Named::Alias(old)) if old != serial => txn.put(Row::DropAlias(old)),
                    Some(Named::Image(_)) => return Err(taken(txn.model, name.as_str())),
                    Some(_) => {}
                    None => refuse_alias_path(txn.model, name.as_str())?,
                }
                views::refuse_alias(txn.model, name.as_str(), alias.image)?;
                forget_trashed_alias(txn, name.as_str());
                alias.name = name.as_str().to_owned();
                txn.put(Row::Alias(alias));
            }
        }
        Ok(())
    })
}

/// `mv .imgfs/aliases/centos .imgfs/aliases/rhel` renames all aliases in the directory at once.
///
/// # Errors
///
/// `Taken`, `NotDirectory`, `BadName`, `NameTooLong`.
pub fn rename_alias_directory(store: &Store, from: &str, to: &str) -> Result<()> {
    store.catalog.commit(|txn| {
        refuse_alias_path(txn.model, to)?;
        if txn.model.alias_named(to).is_some() {
            return Err(taken(txn.model, to));
        }
        for (name, alias) in txn.model.aliases_in(from) {
            let name = AliasName::parse(format!("{to}{}", &name[from.len()..]).as_bytes())?;
            views::refuse_alias(txn.model, name.as_str(), alias.image)?;
            txn.put(Row::Alias(Alias { name: name.as_str().to_owned(), ..alias.clone() }));
        }
        Ok(())
    })
}

/// `mv MNT/default MNT/default.~1~`, as ln --backup does: makes an alias to the same image, and hides
/// the link.
///
/// # Errors
///
/// `NotFound` if there is no default; `Taken`; `NameTooLong` in a view; those of `Catalog::commit`.
pub fn default_to_alias(store: &Store, to: &ImageName) -> Result<()> {
    store.catalog.commit(|txn| {
        let image = txn.model.default_image.ok_or_else(|| not_found("default"))?;
        refuse_taken(txn.model, to.as_str())?;
        views::refuse_alias(txn.model, to.as_str(), image)?;
        let alias = Alias {
            serial: txn.serial(),
            name: to.to_string(),
            image,
            number: None,
            description: String::new(),
            follows: Follows::Image,
            trashed: None,
        };
        forget_trashed_alias(txn, to.as_str());
        txn.put(Row::Alias(alias));
        put_hidden_default(txn, Some(image));
        Ok(())
    })
}

/// RENAME_EXCHANGE of two links of the root; one of them may be `default`.
///
/// # Errors
///
/// `NotFound` for what is no link; `Taken`; those of `set_default` if one is `default`, and of
/// `Catalog::commit`.
pub fn exchange_links(store: &Store, first: &str, second: &str) -> Result<()> {
    store.catalog.commit(|txn| {
        let link = |name: &str| -> Result<(Option<Alias>, LinkTarget)> {
            if name == "default" {
                let image = txn.model.default_image.ok_or_else(|| not_found("default"))?;
                return Ok((None, LinkTarget::image(image)));
            }
            match txn.model.named(name) {
                Some(Named::Alias(serial)) => {
                    let alias = txn.model.aliases[&serial].clone();
                    let target = target_of_alias(&alias);
                    Ok((Some(alias), target))
                }
                _ => Err(not_found("such link")),
            }
        };
        let (a, b) = (link(first)?, link(second)?);
        for (alias, target) in [(a.0, b.1), (b.0, a.1)] {
            match alias {
                None => put_default(txn, target)?,
                Some(alias) => {
                    let LinkTarget { image, number, follows } = target;
                    views::refuse_alias(txn.model, &alias.name, image)?;
                    txn.put(Row::Alias(Alias { image, number, follows, ..alias }));
                }
            }
        }
        Ok(())
    })
}
