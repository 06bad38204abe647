//! All rows, in memory. They are small, and found by name, serial or id without a query.

use std::collections::{BTreeMap, BTreeSet};

use crate::catalog::lens::view_of_key;
use crate::catalog::rows::{Alias, Follows, Image, Label, Lease, Root, Version};
use crate::catalog::{Row, View};

/// What a name in the root leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Named {
    Image(u32),
    Alias(u32),
}

/// The key of the setting for a type's default image. Its value is a serial, or `-` while the link is
/// hidden.
pub fn default_key(kind: &str) -> String {
    format!("default.{kind}")
}

/// The key of the setting with the time since when the store's `default` is hidden. It exists while the
/// trash shows the link.
pub const DEFAULT_HIDDEN: &str = "default.hidden_at";

/// An entry of the trash. Each variant holds the serial of its row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Trashed {
    Image(u32),
    Version(u32),
    Alias(u32),
    Label(u32),
    /// The store's `default` link, which `rm` has hidden.
    Default,
    /// The `default` link of the image with this serial.
    ImageDefault(u32),
}

#[derive(Debug, Default)]
pub struct Model {
    pub images: BTreeMap<u32, Image>,
    pub versions: BTreeMap<u32, Version>,
    pub aliases: BTreeMap<u32, Alias>,
    pub labels: BTreeMap<u32, Label>,
    pub leases: BTreeMap<u32, Lease>,
    /// Labels by image and name, leases by version and name.
    label_names: BTreeMap<(u32, String), u32>,
    lease_names: BTreeMap<(u32, String), u32>,
    /// Live names in the root, and everything that has each name. An image takes precedence over aliases,
    /// and a newer alias over an older one. Something restored from the trash may find its name taken.
    names: BTreeMap<String, BTreeSet<Named>>,
    /// Live versions: (image, number) to serial.
    numbers: BTreeMap<(u32, u32), u32>,
    pub default_image: Option<u32>,
    pub default_hidden: bool,
    pub root: Option<Root>,
    /// Chosen settings: `config.trash`, `default.vm`. Keys have a dot.
    pub settings: BTreeMap<String, String>,
    /// By name. They are also stored among the settings, as `view.dc1`.
    pub views: BTreeMap<String, View>,
    /// In the model of a view: the images that it may only read.
    pub attached: BTreeSet<u32>,
    pub next_serial: u32,
    /// Blob ids below this were given out. A table with fewer ids is truncated.
    pub blobs: u32,
    /// How many commits were made so far.
    pub commit: u64,
}

impl Model {
    /// What a name in the root leads to.
    pub fn named(&self, name: &str) -> Option<Named> {
        self.names.get(name).and_then(first_of)
    }

    /// The live alias of this name.
    pub fn alias_named(&self, name: &str) -> Option<&Alias> {
        match self.named(name)? {
            Named::Alias(serial) => self.aliases.get(&serial),
            Named::Image(_) => None,
        }
    }

    /// All live names in the root, in order. Names with slashes are not among them.
    pub fn names(&self) -> impl Iterator<Item = (&str, Named)> {
        self.all_names().filter(|(name, _)| !name.contains('/'))
    }

    /// All live names, in order, including those with slashes.
    pub fn all_names(&self) -> impl Iterator<Item = (&str, Named)> {
        self.names.iter().filter_map(|(name, all)| Some((name.as_str(), first_of(all)?)))
    }

    /// The live aliases in a directory and its subdirectories. The empty name gives all aliases.
    pub fn aliases_in<'m>(&'m self, directory: &str) -> impl Iterator<Item = (&'m str, &'m Alias)> + use<'m> {
        let first = if directory.is_empty() { String::new() } else { format!("{directory}/") };
        let there = self.names.range(first.clone()..).take_while(move |(name, _)| name.starts_with(&first));
        there.filter_map(|(name, all)| match first_of(all)? {
            Named::Alias(serial) => Some((name.as_str(), self.aliases.get(&serial)?)),
            Named::Image(_) => None,
        })
    }

    /// The live image of this name; aliases do not count.
    pub fn image_named(&self, name: &str) -> Option<&Image> {
        match self.named(name)? {
            Named::Image(serial) => self.images.get(&serial),
            Named::Alias(_) => None,
        }
    }

    /// The image, if it is not in the trash.
    pub fn live_image(&self, serial: u32) -> Option<&Image> {
        self.images.get(&serial).filter(|i| i.trashed_at.is_none())
    }

    pub fn live_images(&self) -> impl Iterator<Item = &Image> {
        self.images.values().filter(|i| i.trashed_at.is_none())
    }

    /// The serial of the image that a version is of.
    pub fn image_of(&self, version: u32) -> Option<u32> {
        self.versions.get(&version).map(|version| version.image)
    }

    /// The live versions of an image, by number.
    pub fn versions_of(&self, image: u32) -> impl DoubleEndedIterator<Item = &Version> {
        self.numbers.range((image, 0)..=(image, u32::MAX)).filter_map(|(_, serial)| self.versions.get(serial))
    }

    pub fn version(&self, image: u32, number: u32) -> Option<&Version> {
        self.versions.get(self.numbers.get(&(image, number))?)
    }

    /// The newest live version.
    pub fn latest(&self, image: u32) -> Option<&Version> {
        self.versions_of(image).next_back()
    }

    /// The newest live version of the same image that is older than this one.
    pub fn before(&self, version: &Version) -> Option<&Version> {
        let older = self.numbers.range((version.image, 0)..(version.image, version.number));
        older.last().and_then(|(_, serial)| self.versions.get(serial))
    }

    /// The version to which an image's `default` leads.
    pub fn default_version(&self, image: &Image) -> Option<&Version> {
        match image.pinned {
            Some(number) => self.version(image.serial, number),
            None => self.latest(image.serial),
        }
    }

    /// The chosen default image of a type. Without one, the store's default if it has this type, or else
    /// the oldest offered image of this type.
    pub fn default_of(&self, kind: &str) -> Option<&Image> {
        let fits = |image: &&Image| image.editable.kind == kind && image.editable.offer.is_offered();
        let chosen = self.settings.get(&default_key(kind)).and_then(|serial| serial.parse().ok());
        let live = |serial: u32| self.live_image(serial).filter(fits);
        chosen
            .and_then(live)
            .or_else(|| self.default_image.and_then(live))
            .or_else(|| self.live_images().find(fits))
    }

    /// Whether a version shows: neither it nor its image is in the trash.
    pub fn is_live(&self, version: &Version) -> bool {
        version.trashed_at.is_none() && self.live_image(version.image).is_some()
    }

    /// The live aliases that lead to an image or one of its versions, by name.
    pub fn aliases_of(&self, image: u32) -> Vec<&Alias> {
        let live = |a: &&Alias| self.named(&a.name) == Some(Named::Alias(a.serial));
        let mut found: Vec<&Alias> =
            self.aliases.values().filter(|a| a.image == image).filter(live).collect();
        found.sort_by(|a, b| a.name.cmp(&b.name));
        found
    }

    /// The label with this name, even while its version is in the trash.
    pub fn label(&self, image: u32, name: &str) -> Option<&Label> {
        self.labels.get(self.label_names.get(&(image, name.to_owned()))?)
    }

    /// The labels of an image that show, by name.
    pub fn labels_of(&self, image: u32) -> impl Iterator<Item = &Label> {
        let all = self.label_names.range((image, String::new())..(image + 1, String::new()));
        all.filter_map(|(_, serial)| self.labels.get(serial)).filter(|label| self.is_label_live(label))
    }

    /// The label of this name, if it shows.
    pub fn live_label(&self, image: u32, name: &str) -> Option<&Label> {
        self.label(image, name).filter(|label| self.is_label_live(label))
    }

    /// Whether neither the label nor its version is in the trash.
    pub fn is_label_live(&self, label: &Label) -> bool {
        label.trashed.is_none() && self.version(label.image, label.number).is_some()
    }

    pub fn lease(&self, version: u32, name: &str) -> Option<&Lease> {
        self.leases.get(self.lease_names.get(&(version, name.to_owned()))?)
    }

    /// The leases of a version, by name.
    pub fn leases_of(&self, version: u32) -> impl Iterator<Item = &Lease> {
        let all = self.lease_names.range((version, String::new())..(version + 1, String::new()));
        all.filter_map(|(_, serial)| self.leases.get(serial))
    }

    /// The entries of the trash: name, time of deletion, and what it is.
    pub fn trash(&self) -> impl Iterator<Item = (String, i64, Trashed)> {
        let images = self
            .images
            .values()
            .filter_map(|i| Some((i.trash_name.clone()?, i.trashed_at?, Trashed::Image(i.serial))));
        let versions = self
            .versions
            .values()
            .filter_map(|v| Some((v.trash_name.clone()?, v.trashed_at?, Trashed::Version(v.serial))));
        let aliases =
            self.aliases.values().filter_map(|a| Some((a.trashed.as_ref()?, Trashed::Alias(a.serial))));
        let labels =
            self.labels.values().filter_map(|l| Some((l.trashed.as_ref()?, Trashed::Label(l.serial))));
        let links = aliases.chain(labels).map(|(trash, what)| (trash.name.clone(), trash.at, what));
        let hidden = self
            .live_images()
            .filter_map(|i| Some((i, i.rules.default_hidden_at.filter(|_| i.default_hidden)?)));
        let hidden =
            hidden.map(|(i, at)| (format!("{}.default", i.name), at, Trashed::ImageDefault(i.serial)));
        let default = self.default_hidden_at().map(|at| ("default".to_owned(), at, Trashed::Default));
        images.chain(versions).chain(links).chain(hidden).chain(default)
    }

    /// Since when the store's `default` link is in the trash.
    fn default_hidden_at(&self) -> Option<i64> {
        self.default_image.filter(|image| self.default_hidden && self.live_image(*image).is_some())?;
        self.settings.get(DEFAULT_HIDDEN)?.parse().ok()
    }

    /// An unused name for the trash: the wish, or the wish with a number.
    pub fn free_trash_name(&self, wish: &str) -> String {
        let taken = |name: &str| self.trash().any(|(n, ..)| n == name);
        if !taken(wish) {
            return wish.to_owned();
        }
        (2..).map(|n| format!("{wish}~{n}")).find(|name| !taken(name)).expect("numbers do not end")
    }

    /// Every version that has a tree on the disk, live or in the trash.
    pub fn all_versions(&self) -> impl Iterator<Item = &Version> {
        self.versions.values()
    }

    /// Rows that turn an empty model into this one.
    pub(super) fn rows(&self) -> Vec<Row> {
        let images = self.images.values().map(|image| Row::Image(image.clone().into()));
        let versions = self.versions.values().map(|version| Row::Version(version.clone().into()));
        let aliases = self.aliases.values().map(|alias| Row::Alias(alias.clone()));
        let labels = self.labels.values().map(|label| Row::Label(label.clone()));
        let leases = self.leases.values().map(|lease| Row::Lease(lease.clone().into()));
        let settings = self
            .settings
            .iter()
            .map(|(key, value)| Row::Setting { key: key.clone(), value: Some(value.clone()) });
        let default = Row::Default { image: self.default_image, hidden: self.default_hidden };
        images
            .chain(versions)
            .chain(aliases)
            .chain(labels)
            .chain(leases)
            .chain([default, Row::Blobs(self.blobs)])
            .chain(self.root.clone().map(Row::Root))
            .chain(settings)
            .collect()
    }

    pub(super) fn apply(&mut self, row: Row) {
        match row {
            Row::Image(image) => {
                self.unname_image(image.serial);
                let (serial, live) = (image.serial, image.trashed_at.is_none());
                if live {
                    self.put_name(&image.name, Named::Image(serial));
                }
                self.images.insert(serial, *image);
                self.show_aliases(serial);
            }
            Row::Version(version) => {
                self.numbers.remove(&(version.image, version.number));
                if version.trashed_at.is_none() {
                    self.numbers.insert((version.image, version.number), version.serial);
                }
                let image = version.image;
                self.versions.insert(version.serial, *version);
                self.show_aliases(image);
            }
            Row::Alias(alias) => {
                self.unname_alias(alias.serial);
                if self.shows(&alias) {
                    self.put_name(&alias.name, Named::Alias(alias.serial));
                }
                self.aliases.insert(alias.serial, alias);
            }
            Row::DropImage(serial) => {
                self.unname_image(serial);
                self.images.remove(&serial);
            }
            Row::DropVersion(serial) => {
                if let Some(version) = self.versions.remove(&serial)
                    && self.numbers.get(&(version.image, version.number)) == Some(&serial)
                {
                    self.numbers.remove(&(version.image, version.number));
                }
            }
            Row::DropAlias(serial) => {
                self.unname_alias(serial);
                self.aliases.remove(&serial);
            }
            Row::Label(label) => {
                self.unname_label(label.serial);
                let image = label.image;
                self.label_names.insert((image, label.name.clone()), label.serial);
                self.labels.insert(label.serial, label);
                self.show_aliases(image);
            }
            Row::DropLabel(serial) => {
                self.unname_label(serial);
                if let Some(label) = self.labels.remove(&serial) {
                    self.show_aliases(label.image);
                }
            }
            Row::Lease(lease) => {
                self.lease_names.insert((lease.version, lease.name.clone()), lease.serial);
                self.leases.insert(lease.serial, *lease);
            }
            Row::DropLease(serial) => {
                if let Some(lease) = self.leases.remove(&serial) {
                    self.lease_names.remove(&(lease.version, lease.name));
                }
            }
            Row::Root(root) => self.root = Some(root),
            Row::Setting { key, value } => self.set(key, value),
            Row::Blobs(bound) => self.blobs = self.blobs.max(bound),
            Row::Default { image, hidden } => (self.default_image, self.default_hidden) = (image, hidden),
        }
    }

    /// Sets or removes a setting. A view is also stored as a setting.
    fn set(&mut self, key: String, value: Option<String>) {
        if let Some(name) = view_of_key(&key) {
            self.views.remove(name);
            match value.as_deref().map(serde_json::from_str).transpose() {
                Ok(view) => self.views.extend(view.map(|view| (name.to_owned(), view))),
                Err(e) => log::error!("view {name} cannot be read: {e}"),
            }
        }
        match value {
            Some(value) => drop(self.settings.insert(key, value)),
            None => drop(self.settings.remove(&key)),
        }
    }

    /// Whether an alias shows. It does while its target does: an image, or one of its versions.
    fn shows(&self, alias: &Alias) -> bool {
        alias.trashed.is_none() && self.live_image(alias.image).is_some() && self.leads_somewhere(alias)
    }

    fn leads_somewhere(&self, alias: &Alias) -> bool {
        match (alias.number, &alias.follows) {
            (Some(number), _) => self.version(alias.image, number).is_some(),
            (None, Follows::Image) => true,
            (None, Follows::Latest | Follows::Default) => self.latest(alias.image).is_some(),
            (None, Follows::Label(name)) => self.live_label(alias.image, name).is_some(),
        }
    }

    fn show_aliases(&mut self, image: u32) {
        let of_it = self.aliases.values().filter(|a| a.image == image);
        let all: Vec<_> = of_it.map(|a| (a.name.clone(), a.serial, self.shows(a))).collect();
        for (name, serial, shown) in all {
            let put = if shown { Model::put_name } else { Model::drop_name };
            put(self, &name, Named::Alias(serial));
        }
    }

    fn put_name(&mut self, name: &str, named: Named) {
        self.names.entry(name.to_owned()).or_default().insert(named);
    }

    fn drop_name(&mut self, name: &str, named: Named) {
        if let Some(all) = self.names.get_mut(name) {
            all.remove(&named);
            if all.is_empty() {
                self.names.remove(name);
            }
        }
    }

    fn unname_image(&mut self, serial: u32) {
        if let Some(old) = self.images.get(&serial).map(|image| image.name.clone()) {
            self.drop_name(&old, Named::Image(serial));
        }
    }

    fn unname_label(&mut self, serial: u32) {
        if let Some(old) = self.labels.get(&serial) {
            self.label_names.remove(&(old.image, old.name.clone()));
        }
    }

    fn unname_alias(&mut self, serial: u32) {
        if let Some(old) = self.aliases.get(&serial).map(|alias| alias.name.clone()) {
            self.drop_name(&old, Named::Alias(serial));
        }
    }
}

/// The thing to which a name leads, of all that have the name.
fn first_of(all: &BTreeSet<Named>) -> Option<Named> {
    all.first().filter(|named| matches!(named, Named::Image(_))).or(all.last()).copied()
}
