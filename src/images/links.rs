//! Journey 3, ln -sfn: what links lead to, which image is the default, of the store and of a type; aliases.
//!
//! Each gesture is one function and one transaction.

use crate::base::clock::now;
use crate::base::name::{AliasName, ImageName, parse_number};
use crate::catalog::{
    Alias, Change, DEFAULT_HIDDEN, Follows, Image, InTrash, Label, Model, Named, Row, Rules, Version, View,
    default_key,
};
use crate::error::{Error, Result};
use crate::images::rules::{change_image, live_image, live_version, not_found, refuse_taken, taken};
use crate::images::views;
use crate::store::Store;

/// The value of a type's default while its link is hidden.
const HIDDEN: &str = "-";

/// What a link in the root leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkTarget {
    pub image: u32,
    /// A version for good; none: what `follows` says.
    pub number: Option<u32>,
    pub follows: Follows,
}

impl LinkTarget {
    fn image(image: u32) -> LinkTarget {
        LinkTarget { image, number: None, follows: Follows::Image }
    }

    /// The image, if the link leads to that and not into it.
    pub fn whole_image(&self) -> Option<u32> {
        (self.number.is_none() && self.follows.is_image()).then_some(self.image)
    }
}

/// The first image is the default, of the view if it is bound to one.
pub(crate) fn first_is_default(change: &mut Change<'_>, name: &str, image: u32) {
    match change.model.bound(name).and_then(|(view, _)| Some((view, change.model.views.get(view)?))) {
        None if change.model.default_image.is_none() => {
            change.put(Row::Default { image: Some(image), hidden: false })
        }
        Some((name, view)) if change.model.view_default(name, view).is_none() => {
            let view = View { default_image: Some(image), default_hidden: false, ..view.clone() };
            change.put(Row::view(name, Some(&view)));
        }
        _ => {}
    }
}

/// Refuses to take away what is default, of what is to be seen and of the whole store.
///
/// # Errors
///
/// As `refuse_default_of`.
pub fn refuse_default(change: &Change<'_>, image: &Image) -> Result<()> {
    refuse_default_of(change.model, image)?;
    change.whole.images.get(&image.serial).map_or(Ok(()), |image| refuse_default_of(change.whole, image))
}

/// Refuses to take away the default image while there are others, or that of its type while there are others
/// of that.
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

/// `ln -sfn ../../web MNT/.imgfs/defaults/vm`; none: `rm`, as BusyBox's ln -sfn begins, and what was default
/// stays protected.
///
/// # Errors
///
/// `NotFound`; `Invalid` for an image of another type; `Managed` for one whose status is `deleted`.
pub fn set_type_default(store: &Store, kind: &str, image: Option<u32>) -> Result<()> {
    store.catalog.commit(|change| {
        let value = match image {
            Some(serial) => {
                let image = live_image(change.model, serial)?;
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
        change.put(Row::Setting { key: default_key(kind), value: Some(value) });
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
    store.catalog.commit(|change| put_default(change, target))
}

fn put_default(change: &mut Change<'_>, target: LinkTarget) -> Result<()> {
    let why = || Error::Managed {
        what: "default".into(),
        why: "it names an image; a version is pinned with IMAGE/default",
    };
    let image = target.whole_image().ok_or_else(why)?;
    refuse_hidden(live_image(change.model, image)?)?;
    show_default(change, image);
    // Chosen: what was the default before it was deleted no longer is when it comes back.
    for before in change.model.images.values().filter(|image| image.rules.was_default) {
        let rules = Rules { was_default: false, ..before.rules.clone() };
        change.put(Row::Image(Image { rules, ..before.clone() }.into()));
    }
    Ok(())
}

/// Makes an image the store's default, and shows the link.
pub(crate) fn show_default(change: &mut Change<'_>, image: u32) {
    change.put(Row::Default { image: Some(image), hidden: false });
    if change.model.settings.contains_key(DEFAULT_HIDDEN) {
        change.put(Row::Setting { key: DEFAULT_HIDDEN.into(), value: None });
    }
}

/// `rm MNT/default`, as BusyBox's ln -sfn begins: the trash has the link. What was default stays protected
/// until another is named.
///
/// # Errors
///
/// Those of `Catalog::commit`.
pub fn hide_default(store: &Store) -> Result<()> {
    store.catalog.commit(|change| {
        put_hidden_default(change, change.model.default_image);
        Ok(())
    })
}

fn put_hidden_default(change: &mut Change<'_>, image: Option<u32>) {
    change.put(Row::Default { image, hidden: true });
    change.put(Row::Setting { key: DEFAULT_HIDDEN.into(), value: Some(now().to_string()) });
}

/// `ln -sfn 1 MNT/web/default` (a number), `ln -sfn latest MNT/web/default` (none).
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

/// Refuses a name of which a part is an alias already, or that is a directory of aliases: `centos` and
/// `centos/6` are not both.
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

/// `ln -s web MNT/jammy`, and with a name that is an alias already, `ln -sfn`. A name with slashes is one of
/// `.imgfs/aliases`.
///
/// # Errors
///
/// `NotFound`, `Taken`, `NotDirectory`.
pub fn put_alias(store: &Store, name: impl Into<AliasName>, target: LinkTarget) -> Result<()> {
    let name = name.into();
    store.catalog.commit(|change| {
        let (serial, description) = match change.model.named(name.as_str()) {
            Some(Named::Alias(serial)) => (serial, change.model.aliases[&serial].description.clone()),
            Some(Named::Image(_)) => return Err(taken(change.model, name.as_str())),
            None => {
                refuse_alias_path(change.model, name.as_str())?;
                (change.serial(), String::new())
            }
        };
        let LinkTarget { image, number, follows } = target;
        live_image(change.model, image)?;
        views::refuse_alias(change.model, name.as_str(), image)?;
        forget_trashed_alias(change, name.as_str());
        let name = name.as_str().to_owned();
        change.put(Row::Alias(Alias { serial, name, image, number, description, follows, trashed: None }));
        Ok(())
    })
}

/// What has the name again replaces what the trash has of it: else an undo would find the name taken.
fn forget_trashed_alias(change: &mut Change<'_>, name: &str) {
    for old in change.model.aliases.values().filter(|alias| alias.trashed.is_some() && alias.name == name) {
        change.put(Row::DropAlias(old.serial));
    }
}

/// `rm MNT/jammy`: into the trash.
///
/// # Errors
///
/// `NotFound`.
pub fn drop_alias(store: &Store, serial: u32) -> Result<()> {
    store.catalog.commit(|change| {
        let alias = change.model.aliases.get(&serial).ok_or_else(|| not_found("such alias"))?;
        let trashed =
            InTrash { at: now(), name: change.model.free_trash_name(&alias.name.replace('/', "%2F")) };
        change.put(Row::Alias(Alias { trashed: Some(trashed), ..alias.clone() }));
        Ok(())
    })
}

/// `mv MNT/jammy MNT/lts`; over `default`, it becomes the default.
///
/// # Errors
///
/// `NotFound`, `Taken`, `NotDirectory`; those of `set_default` over `default`; `NameTooLong` in a view; those
/// of `Catalog::commit`.
pub fn rename_alias(store: &Store, serial: u32, to: Option<impl Into<AliasName>>) -> Result<()> {
    let to: Option<AliasName> = to.map(Into::into);
    store.catalog.commit(|change| {
        let mut alias = change.model.aliases.get(&serial).ok_or_else(|| not_found("such alias"))?.clone();
        match &to {
            None => {
                put_default(change, target_of(&alias))?;
                change.put(Row::DropAlias(serial));
            }
            Some(name) => {
                match change.model.named(name.as_str()) {
                    // Renaming over an alias replaces it, as for any file.
                    Some(Named::Alias(old)) if old != serial => change.put(Row::DropAlias(old)),
                    Some(Named::Image(_)) => return Err(taken(change.model, name.as_str())),
                    Some(_) => {}
                    None => refuse_alias_path(change.model, name.as_str())?,
                }
                views::refuse_alias(change.model, name.as_str(), alias.image)?;
                forget_trashed_alias(change, name.as_str());
                alias.name = name.as_str().to_owned();
                change.put(Row::Alias(alias));
            }
        }
        Ok(())
    })
}

/// `mv .imgfs/aliases/centos .imgfs/aliases/rhel`: all that is in it has other names, at once.
///
/// # Errors
///
/// `Taken`, `NotDirectory`, `BadName`, `NameTooLong`.
pub fn rename_alias_directory(store: &Store, from: &str, to: &str) -> Result<()> {
    store.catalog.commit(|change| {
        refuse_alias_path(change.model, to)?;
        if change.model.alias_named(to).is_some() {
            return Err(taken(change.model, to));
        }
        for (name, alias) in change.model.aliases_in(from) {
            let name = AliasName::parse(format!("{to}{}", &name[from.len()..]).as_bytes())?;
            views::refuse_alias(change.model, name.as_str(), alias.image)?;
            change.put(Row::Alias(Alias { name: name.as_str().to_owned(), ..alias.clone() }));
        }
        Ok(())
    })
}

/// Where a link of the root leads to, as a path from there: `web`, `web/1`, `web/latest`. None if the image
/// is gone.
pub fn path_of_target(model: &Model, target: &LinkTarget) -> Option<String> {
    let image = &model.images.get(&target.image)?.name;
    Some(match (target.number, &target.follows) {
        (Some(number), _) => format!("{image}/{number}"),
        (None, Follows::Image) => image.clone(),
        (None, Follows::Latest) => format!("{image}/latest"),
        (None, Follows::Default) => format!("{image}/default"),
        (None, Follows::Label(label)) => format!("{image}/@{label}"),
    })
}

/// `mv MNT/default MNT/default.~1~`, as ln --backup does: an alias to the same image; the link is hidden.
///
/// # Errors
///
/// `NotFound` if there is no default; `Taken`; `NameTooLong` in a view; those of `Catalog::commit`.
pub fn default_to_alias(store: &Store, to: &ImageName) -> Result<()> {
    store.catalog.commit(|change| {
        let image = change.model.default_image.ok_or_else(|| not_found("default"))?;
        refuse_taken(change.model, to.as_str())?;
        views::refuse_alias(change.model, to.as_str(), image)?;
        let alias = Alias {
            serial: change.serial(),
            name: to.to_string(),
            image,
            number: None,
            description: String::new(),
            follows: Follows::Image,
            trashed: None,
        };
        forget_trashed_alias(change, to.as_str());
        change.put(Row::Alias(alias));
        put_hidden_default(change, Some(image));
        Ok(())
    })
}

/// What an alias leads to.
pub fn target_of(alias: &Alias) -> LinkTarget {
    LinkTarget { image: alias.image, number: alias.number, follows: alias.follows.clone() }
}

/// What a link in the root is to name: `web`, `./web`, `web/1`, `web/latest`, `web/default`, `web/@22.04`,
/// `web@22.04`, or an absolute path into the mount.
///
/// # Errors
///
/// `NotFound` for what is not there.
pub fn resolve_root_link(model: &Model, target: &str, mount_point: &str) -> Result<LinkTarget> {
    let missing = || Error::NotFound { what: format!("{target} to link to") };
    let inside = match target.strip_prefix(mount_point) {
        Some(rest) if !mount_point.is_empty() && (rest.is_empty() || rest.starts_with('/')) => rest,
        _ if target.starts_with('/') => return Err(missing()),
        _ => target,
    };
    let parts: Vec<&str> = inside.split('/').filter(|p| !p.is_empty() && *p != ".").collect();
    if let Some(target) = slashed_alias(model, &parts) {
        return Ok(target);
    }
    let mut parts = parts.into_iter();
    let (first, second, none) = (parts.next().ok_or_else(missing)?, parts.next(), parts.next());
    let target = if first == "default" {
        LinkTarget::image(model.default_image.ok_or_else(missing)?)
    } else {
        match model.named(first) {
            Some(Named::Image(serial)) => LinkTarget::image(serial),
            Some(Named::Alias(serial)) => target_of(&model.aliases[&serial]),
            None => {
                let label = at_label(model, first).ok_or_else(missing)?;
                LinkTarget { image: label.image, number: None, follows: Follows::Label(label.name.clone()) }
            }
        }
    };
    match (target.whole_image(), second, none) {
        (_, None, None) => Ok(target),
        (Some(image), Some(part), None) => resolve_part(model, image, part).ok_or_else(missing),
        _ => Err(missing()),
    }
}

/// What an alias with slashes leads to, `centos/6/amd64`, or a part of the image that it does,
/// `centos/6/amd64/latest`. It goes before a version of the same path.
fn slashed_alias(model: &Model, parts: &[&str]) -> Option<LinkTarget> {
    let slashed = |parts: &[&str]| (parts.len() > 1).then(|| parts.join("/"));
    let alias = |parts: &[&str]| model.alias_named(&slashed(parts)?).map(target_of);
    alias(parts).or_else(|| {
        let (last, before) = parts.split_last()?;
        resolve_part(model, alias(before)?.whole_image()?, last)
    })
}

/// The label that `web@1.0` means, in an image or through an alias for one. Where an image has an `@` in its
/// name, the shortest that has such a label.
pub fn at_label<'m>(model: &'m Model, text: &str) -> Option<&'m Label> {
    text.match_indices('@').filter(|(at, _)| *at > 0).find_map(|(at, _)| {
        let image = match model.named(&text[..at])? {
            Named::Image(serial) => serial,
            Named::Alias(serial) => target_of(model.aliases.get(&serial)?).whole_image()?,
        };
        model.live_label(image, &text[at + 1..])
    })
}

/// What a part of an image's path stands for, if it is there: a number for good, all else follows.
fn resolve_part(model: &Model, image: u32, part: &str) -> Option<LinkTarget> {
    let newest = model.latest(image);
    let (number, follows) = match part {
        "latest" => newest.map(|_| (None, Follows::Latest))?,
        "default" => newest.map(|_| (None, Follows::Default))?,
        _ => match part.strip_prefix('@') {
            Some(label) => {
                model.live_label(image, label).map(|label| (None, Follows::Label(label.name.clone())))?
            }
            None => (Some(model.version(image, parse_number(part.as_bytes())?)?.number), Follows::Image),
        },
    };
    Some(LinkTarget { image, number, follows })
}

/// The version that a link leads to, now.
pub fn version_of<'m>(model: &'m Model, target: &LinkTarget) -> Option<&'m Version> {
    match (target.number, &target.follows) {
        (Some(number), _) => model.version(target.image, number),
        (None, Follows::Latest) => model.latest(target.image),
        (None, Follows::Image | Follows::Default) => model.default_version(model.live_image(target.image)?),
        (None, Follows::Label(name)) => {
            model.version(target.image, model.live_label(target.image, name)?.number)
        }
    }
}

/// The version that a command names: `web/1`, `web/@22.04`, `web@22.04`, or `web` and an alias for its
/// default.
///
/// # Errors
///
/// `NotFound`.
pub fn find_version(model: &Model, name: &str) -> Result<Version> {
    let missing = || Error::NotFound { what: format!("version {name}") };
    let target = resolve_root_link(model, name, "").map_err(|_| missing())?;
    version_of(model, &target).cloned().ok_or_else(missing)
}

/// What a link inside an image is to name: a version's number, that of a label, or none for `latest`.
///
/// # Errors
///
/// `NotFound` for what is not there.
pub fn resolve_inner_link(model: &Model, image: u32, target: &str) -> Result<Option<u32>> {
    let missing = || Error::NotFound { what: format!("version {target} to link to") };
    let target = target.strip_prefix("./").unwrap_or(target).trim_end_matches('/');
    if target == "latest" {
        return Ok(None);
    }
    let number = match target.strip_prefix('@') {
        Some(label) => model.live_label(image, label).map(|l| l.number),
        None => parse_number(target.as_bytes()),
    };
    let number = number.ok_or_else(missing)?;
    model.version(image, number).map(|v| Some(v.number)).ok_or_else(missing)
}

/// RENAME_EXCHANGE of two links of the root; one of them may be `default`.
///
/// # Errors
///
/// `NotFound` for what is no link; `Taken`; those of `set_default` if one is `default`, and of
/// `Catalog::commit`.
pub fn exchange_links(store: &Store, first: &str, second: &str) -> Result<()> {
    store.catalog.commit(|change| {
        let link = |name: &str| -> Result<(Option<Alias>, LinkTarget)> {
            if name == "default" {
                let image = change.model.default_image.ok_or_else(|| not_found("default"))?;
                return Ok((None, LinkTarget::image(image)));
            }
            match change.model.named(name) {
                Some(Named::Alias(serial)) => {
                    let alias = change.model.aliases[&serial].clone();
                    let target = target_of(&alias);
                    Ok((Some(alias), target))
                }
                _ => Err(not_found("such link")),
            }
        };
        let (a, b) = (link(first)?, link(second)?);
        for (alias, target) in [(a.0, b.1), (b.0, a.1)] {
            match alias {
                None => put_default(change, target)?,
                Some(alias) => {
                    let LinkTarget { image, number, follows } = target;
                    views::refuse_alias(change.model, &alias.name, image)?;
                    change.put(Row::Alias(Alias { image, number, follows, ..alias }));
                }
            }
        }
        Ok(())
    })
}
