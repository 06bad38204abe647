//! imgfs mount -o view=dc1: the catalog as a view shows and changes it.
//!
//! ```text
//! the whole store                     view dc1
//! dc1::web   bound by its name   <->  web        seen and changed
//! debian     attached            -->  debian     seen
//! lts, dc2::web                                  not there
//! ```
//!
//! A reader with a lens finds only what the view shows in the model. A commit through a lens is checked
//! here, and its rows get the names of the whole store. So a gesture need not know that it runs in a
//! view, and cannot forget it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::base::name::{NAME_MAX, OF_VIEW, bound_name};
use crate::catalog::{Alias, Catalog, Image, InTrash, Label, Lease, Model, Named, Root, Row, Version};
use crate::error::{Error, Result};

/// The prefix of the settings that store views.
const VIEW: &str = "view.";

/// The setting that records that the names of images bound to views use `OF_VIEW`.
const NAMES_FORM: &str = "names.form";

/// A view: its attached images, in addition to those bound to it, and its defaults.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct View {
    pub created_at: i64,
    /// Serials of images.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub attached: BTreeSet<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_image: Option<u32>,
    #[serde(default)]
    pub default_hidden: bool,
    /// For example `default.vm`, as in the model of the store.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub settings: BTreeMap<String, String>,
    /// Who may make and delete images in it, if somebody has set that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<Root>,
}

impl Row {
    /// A view's row. `None` removes the view.
    pub fn view(name: &str, view: Option<&View>) -> Row {
        let value = view.map(|view| serde_json::to_string(view).expect("plain structs of text and numbers"));
        Row::Setting { key: format!("{VIEW}{name}"), value }
    }
}

/// The image whose icon is stored in a setting with this key.
fn icon_of(key: &str) -> Option<u32> {
    key.strip_prefix("icon.")?.parse().ok()
}

/// The name of the view that is stored in a setting with this key.
pub(super) fn view_of_key(key: &str) -> Option<&str> {
    key.strip_prefix(VIEW)
}

impl Model {
    /// The view to which an image or alias of this name is bound, and its name there.
    pub fn bound<'n>(&self, name: &'n str) -> Option<(&'n str, &'n str)> {
        name.split_once(OF_VIEW).filter(|(view, _)| self.views.contains_key(*view))
    }

    /// The live images that are bound to a view, by their names in it.
    pub fn bound_to<'m>(&'m self, view: &'m str) -> impl Iterator<Item = (&'m str, &'m Image)> {
        self.live_images().filter_map(move |image| {
            let (of, name) = self.bound(&image.name)?;
            (of == view).then_some((name, image))
        })
    }

    /// The live images that are attached to a view and that it shows. Images that were bound to another
    /// view meanwhile do not show. Nor do images whose name the view itself has used.
    pub fn attached_to<'m>(&'m self, view: &'m str) -> impl Iterator<Item = &'m Image> {
        let attached = self.views.get(view).into_iter().flat_map(|view| &view.attached);
        let live = attached.filter_map(|serial| self.live_image(*serial));
        live.filter(move |image| {
            self.bound(&image.name).is_none() && self.named(&bound_name(view, &image.name)).is_none()
        })
    }

    /// All images that a view shows, by their names in it.
    pub fn images_of_view<'m>(&'m self, view: &'m str) -> impl Iterator<Item = (&'m str, &'m Image)> {
        self.bound_to(view).chain(self.attached_to(view).map(|image| (image.name.as_str(), image)))
    }

    /// The default image of a view, if the view shows it.
    pub fn view_default(&self, name: &str, view: &View) -> Option<&Image> {
        let image = view.default_image.and_then(|image| self.live_image(image))?;
        let of = self.bound(&image.name).map(|(of, _)| of);
        (of == Some(name) || of.is_none() && view.attached.contains(&image.serial)).then_some(image)
    }

    /// Refuses a change of an image that this view may only read.
    ///
    /// # Errors
    ///
    /// `Attached`.
    pub fn refuse_attached(&self, image: &Image) -> Result<()> {
        if self.attached.contains(&image.serial) {
            Err(Error::Attached { image: image.name.clone() })
        } else {
            Ok(())
        }
    }

    /// The model that a view shows. It is empty if the view no longer exists.
    fn seen_by(&self, name: &str) -> Model {
        let mut seen = Model::default();
        (seen.next_serial, seen.blobs, seen.commit) = (self.next_serial, self.blobs, self.commit);
        let Some(view) = self.views.get(name) else { return seen };
        let own =
            |stored: &str| self.bound(stored).filter(|(of, _)| *of == name).map(|(_, name)| name.to_owned());
        let shown = |trash: &str| own(trash).unwrap_or_else(|| trash.to_owned());
        let in_trash = |stored: &Option<String>| stored.as_deref().map(shown);
        let link_in_trash = |stored: &Option<InTrash>| {
            stored.as_ref().map(|trash| InTrash { at: trash.at, name: shown(&trash.name) })
        };
        for image in self.images.values() {
            let Some(shown) = own(&image.name) else { continue };
            // What went into the trash before the view was made belongs to an older view of this name, or to
            // none.
            if image.trashed_at.is_some_and(|at| at < view.created_at) {
                continue;
            }
            let trash_name = in_trash(&image.trash_name);
            seen.apply(Row::Image(Image { name: shown, trash_name, ..image.clone() }.into()));
        }
        for image in self.attached_to(name) {
            // The image's mode decides who may read it. Nobody may change it here.
            seen.apply(Row::Image(Image { mode: image.mode & !0o222, ..image.clone() }.into()));
            seen.attached.insert(image.serial);
        }
        let images: BTreeSet<u32> = seen.images.keys().copied().collect();
        for version in self.versions.values().filter(|v| images.contains(&v.image)) {
            let trash_name = in_trash(&version.trash_name);
            if trash_name.is_none() || !seen.attached.contains(&version.image) {
                let version = Version { trash_name, ..version.clone() };
                seen.apply(Row::Version(version.into()));
            }
        }
        for alias in self.aliases.values().filter(|alias| images.contains(&alias.image)) {
            if let Some(name) = own(&alias.name) {
                seen.apply(Row::Alias(Alias {
                    name,
                    trashed: link_in_trash(&alias.trashed),
                    ..alias.clone()
                }));
            }
        }
        for label in self.labels.values().filter(|label| images.contains(&label.image)) {
            // The view must not restore a label that the image's owner has deleted.
            if label.trashed.is_none() || !seen.attached.contains(&label.image) {
                seen.apply(Row::Label(Label { trashed: link_in_trash(&label.trashed), ..label.clone() }));
            }
        }
        for lease in self.leases.values() {
            let Some(version) = seen.versions.get(&lease.version) else { continue };
            // If the image belongs to others, the view does not show which of them use it.
            let name = if seen.attached.contains(&version.image) {
                own(&lease.name)
            } else {
                Some(lease.name.clone())
            };
            if let Some(name) = name {
                seen.apply(Row::Lease(Lease { name, ..lease.clone() }.into()));
            }
        }
        let default = view.default_image.filter(|image| seen.live_image(*image).is_some());
        seen.apply(Row::Default { image: default, hidden: view.default_hidden });
        seen.settings.clone_from(&view.settings);
        let icons =
            self.settings.iter().filter(|(key, _)| icon_of(key).is_some_and(|image| images.contains(&image)));
        seen.settings.extend(icons.map(|(key, value)| (key.clone(), value.clone())));
        seen.root.clone_from(&view.root);
        seen
    }
}

impl Catalog {
    /// Up to format 6, images bound to views had names with one colon, `dc1:web`. This renames all of them
    /// once to the current form.
    ///
    /// # Errors
    ///
    /// `Catalog`, `Io`.
    pub fn take_over_names(&self) -> Result<()> {
        if self.read().settings.contains_key(NAMES_FORM) {
            return Ok(());
        }
        self.commit(|txn| {
            let model = txn.model;
            let renamed = |name: &str| {
                let (view, rest) = name.split_once(':').filter(|(view, rest)| {
                    model.views.contains_key(*view) && !rest.starts_with(':') && name.len() < NAME_MAX
                })?;
                Some(bound_name(view, rest))
            };
            let or_same = |name: &str| renamed(name).unwrap_or_else(|| name.to_owned());
            for image in model.images.values() {
                let trash_name = image.trash_name.as_deref().map(or_same);
                let image = Image { name: or_same(&image.name), trash_name, ..image.clone() };
                txn.put(Row::Image(image.into()));
            }
            for version in model.versions.values().filter(|version| version.trash_name.is_some()) {
                let trash_name = version.trash_name.as_deref().map(or_same);
                txn.put(Row::Version(Version { trash_name, ..version.clone() }.into()));
            }
            for alias in model.aliases.values() {
                txn.put(Row::Alias(Alias { name: or_same(&alias.name), ..alias.clone() }));
            }
            for lease in model.leases.values() {
                txn.put(Row::Lease(Lease { name: or_same(&lease.name), ..lease.clone() }.into()));
            }
            txn.put(Row::Setting { key: NAMES_FORM.into(), value: Some(OF_VIEW.into()) });
            Ok(())
        })
    }
}

/// The view through which a mount sees the catalog.
#[derive(Debug)]
pub(super) struct Lens {
    /// immutable
    pub(super) view: String,
    /// The model that it shows, as of some commit.
    seen: Mutex<Option<Arc<Model>>>,
}

impl Lens {
    pub(super) fn new(view: &str) -> Lens {
        Lens { view: view.to_owned(), seen: Mutex::default() }
    }

    /// The model that it shows of the whole store as it is now.
    pub(super) fn look(&self, whole: &Model) -> Arc<Model> {
        let mut seen = self.seen.lock();
        match &*seen {
            Some(model) if model.commit == whole.commit => model.clone(),
            _ => seen.insert(Arc::new(whole.seen_by(&self.view))).clone(),
        }
    }

    /// Converts rows of the view to rows of the store.
    ///
    /// # Errors
    ///
    /// `Attached` for a change of what the view may only read; `NotFound` for what it does not show;
    /// `Taken`, `NameTooLong`.
    pub(super) fn stored(&self, whole: &Model, seen: &Model, rows: Vec<Row>) -> Result<Vec<Row>> {
        let before = whole.views.get(&self.view).ok_or_else(|| missing("image any more"))?;
        let mut view = before.clone();
        let is_default = |row: &Row| match row {
            Row::Image(image) => image.trashed_at.is_some() && whole.default_image == Some(image.serial),
            _ => false,
        };
        let no_default = rows.iter().any(is_default);
        let mut out = Vec::new();
        for row in rows {
            if let Some(row) = own_row(&mut view, row) {
                self.refuse_foreign(whole, seen, &row)?;
                out.push(self.bound_row(whole, seen, row)?);
            }
        }
        if no_default {
            out.push(Row::Default { image: None, hidden: false });
        }
        if view != *before {
            out.push(Row::view(&self.view, Some(&view)));
        }
        Ok(out)
    }

    /// Refuses a row about something that is not bound to the view.
    fn refuse_foreign(&self, whole: &Model, seen: &Model, row: &Row) -> Result<()> {
        let bound = |serial: u32| match seen.images.get(&serial) {
            Some(image) => seen.refuse_attached(image),
            // The image is made by this same change.
            None if !whole.images.contains_key(&serial) => Ok(()),
            None => Err(missing("such image")),
        };
        match row {
            Row::Image(image) => bound(image.serial),
            Row::Version(version) => bound(version.image),
            Row::Label(label) => bound(label.image),
            Row::DropImage(serial) => bound(*serial),
            Row::DropVersion(serial) => {
                bound(seen.versions.get(serial).ok_or_else(|| missing("such version"))?.image)
            }
            Row::DropAlias(serial) => {
                // An alias of the whole store is dropped together with its target.
                let of = whole.aliases.get(serial).map(|alias| alias.image);
                if seen.aliases.contains_key(serial) {
                    return Ok(());
                }
                bound(of.ok_or_else(|| missing("such alias"))?)
            }
            Row::DropLabel(serial) => {
                bound(seen.labels.get(serial).ok_or_else(|| missing("such label"))?.image)
            }
            Row::DropLease(serial) if !seen.leases.contains_key(serial) => Err(missing("such lease")),
            Row::Setting { key, .. } => match icon_of(key) {
                // An icon follows the rules of its image.
                Some(image) => bound(image),
                None => Err(Error::Managed { what: format!("the setting {key}"), why: "it is the store's" }),
            },
            Row::Alias(_)
            | Row::Lease(_)
            | Row::DropLease(_)
            | Row::Blobs(_)
            | Row::Default { .. }
            | Row::Root(_) => Ok(()),
        }
    }

    /// Converts a row to the names that the whole store uses.
    fn bound_row(&self, whole: &Model, seen: &Model, row: Row) -> Result<Row> {
        let name_of = |name: &str| {
            let stored = bound_name(&self.view, name);
            if stored.len() > NAME_MAX { Err(Error::NameTooLong { len: stored.len() }) } else { Ok(stored) }
        };
        let trash_name = |trash: InTrash| InTrash { name: bound_name(&self.view, &trash.name), ..trash };
        Ok(match row {
            Row::Image(mut image) => {
                image.name = name_of(&image.name)?;
                image.trash_name = image.trash_name.as_deref().map(|trash| bound_name(&self.view, trash));
                if image.trashed_at.is_none() {
                    refuse_unseen(whole, seen, &image.name, Named::Image(image.serial))?;
                }
                Row::Image(image)
            }
            Row::Version(mut version) => {
                version.trash_name = version.trash_name.as_deref().map(|trash| bound_name(&self.view, trash));
                Row::Version(version)
            }
            Row::Alias(mut alias) => {
                alias.name = name_of(&alias.name)?;
                alias.trashed = alias.trashed.map(trash_name);
                refuse_unseen(whole, seen, &alias.name, Named::Alias(alias.serial))?;
                Row::Alias(alias)
            }
            Row::Label(label) => Row::Label(Label { trashed: label.trashed.map(trash_name), ..label }),
            Row::Lease(mut lease) => {
                let version = seen.versions.get(&lease.version).ok_or_else(|| missing("such version"))?;
                if seen.attached.contains(&version.image) {
                    lease.name = name_of(&lease.name)?;
                }
                Row::Lease(lease)
            }
            other => other,
        })
    }
}

fn missing(what: &str) -> Error {
    Error::NotFound { what: format!("{what} in this view") }
}

/// Takes out a row that the view stores itself: its default, its root, or the default of a type.
/// Returns any other row.
fn own_row(view: &mut View, row: Row) -> Option<Row> {
    match row {
        Row::Default { image, hidden } => (view.default_image, view.default_hidden) = (image, hidden),
        Row::Root(root) => view.root = Some(root),
        Row::Setting { key, value } if key.starts_with("default.") => match value {
            Some(value) => drop(view.settings.insert(key, value)),
            None => drop(view.settings.remove(&key)),
        },
        other => return Some(other),
    }
    None
}

/// Refuses a name that something in the store already has which the view does not show, such as an
/// alias to an image that is not attached.
fn refuse_unseen(whole: &Model, seen: &Model, name: &str, is: Named) -> Result<()> {
    match whole.named(name) {
        Some(Named::Image(serial)) if seen.images.contains_key(&serial) => Ok(()),
        // An alias that is replaced is dropped by the same change.
        Some(Named::Alias(serial)) if seen.aliases.contains_key(&serial) => Ok(()),
        Some(found) if found != is => {
            Err(Error::Taken { name: name.to_owned(), holder: "there is one already".into() })
        }
        _ => Ok(()),
    }
}
