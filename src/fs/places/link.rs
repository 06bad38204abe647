//! Journey 3, ln -sfn: symlinks in the root, in images and in `.imgfs`. What they lead to, and how they
//! are made, switched and renamed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::base::name::AliasName;
use crate::catalog::{Model, Named};
use crate::error::{Error, Result};
use crate::fs::names::{label_of, text_of};
use crate::fs::node::{Link, NodeId};
use crate::fs::places::{self, Place, no_symlink};
use crate::fs::{Attr, Caller, ImageFs, SetAttr, stale};
use crate::images::labels;
use crate::images::links;
use crate::images::targets::{self, LinkTarget, path_of_target, target_of_alias};

/// How many temporary links are remembered. A link is renamed at once or never.
const TEMPORARY_LINKS: usize = 256;

/// How long a rename waits for the kernel to forget the targets of symlinks. No other process can delay
/// that.
const READING_AGAIN: Duration = Duration::from_secs(1);

/// A symlink under a temporary name, as GNU `ln -sfn` makes one before it renames it over the real name.
struct TemporaryLink {
    number: u64,
    parent: NodeId,
    name: Vec<u8>,
    text: Vec<u8>,
    owner: (u32, u32),
}

/// The links under temporary names, oldest first.
#[derive(Default)]
pub(in crate::fs) struct TemporaryLinks {
    all: Mutex<Vec<TemporaryLink>>,
    next: AtomicU64,
}

impl TemporaryLinks {
    /// The temporary link with this name.
    pub(in crate::fs) fn named(&self, parent: NodeId, name: &[u8]) -> Option<NodeId> {
        let all = self.all.lock();
        all.iter().find(|l| l.parent == parent && l.name == name).map(|l| NodeId::TemporaryLink(l.number))
    }

    /// Makes a temporary link. It replaces one of the same name.
    pub(in crate::fs) fn put(&self, caller: Caller, parent: NodeId, name: &[u8], text: &[u8]) -> NodeId {
        let mut all = self.all.lock();
        all.retain(|l| !(l.parent == parent && l.name == name));
        if all.len() >= TEMPORARY_LINKS {
            all.remove(0);
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (name, text, owner) = (name.to_vec(), text.to_vec(), (caller.uid, caller.gid));
        all.push(TemporaryLink { number, parent, name, text, owner });
        NodeId::TemporaryLink(number)
    }

    /// Removes a temporary link, and returns its text.
    pub(in crate::fs) fn take(&self, parent: NodeId, name: &[u8]) -> Option<Vec<u8>> {
        let mut all = self.all.lock();
        let at = all.iter().position(|l| l.parent == parent && l.name == name)?;
        Some(all.remove(at).text)
    }

    /// The text of a temporary link, and its owner.
    fn get(&self, number: u64) -> Result<(Vec<u8>, (u32, u32))> {
        let all = self.all.lock();
        all.iter().find(|l| l.number == number).map(|l| (l.text.clone(), l.owner)).ok_or_else(stale)
    }
}

/// Symlinks that are not part of a tree.
pub struct Links;

impl Place for Links {
    fn image(&self, model: &Model, node: NodeId) -> Option<u32> {
        if let NodeId::Link(link) = node { image_of(model, link) } else { None }
    }

    /// A link in an image belongs to the image's owner. An alias belongs to the owner of the image it leads
    /// to.
    fn attr(&self, fs: &ImageFs, node: NodeId, own: Attr) -> Result<Attr> {
        let (text, (uid, gid)) = match node {
            NodeId::TemporaryLink(number) => fs.temporary_links.get(number)?,
            NodeId::Link(link) => {
                let model = fs.store.catalog.read();
                // `default` has the same number as an alias of the same image. imgfs itself checks who may
                // change `default`.
                let image = image_of(&model, link).and_then(|image| model.images.get(&image));
                let owner = image.map_or((own.uid, own.gid), |image| (image.uid, image.gid));
                (text_of_link(&model, link)?.into_bytes(), owner)
            }
            _ => return Err(stale()),
        };
        let size = text.len() as u64;
        Ok(Attr { mode: libc::S_IFLNK | 0o777, links: 1, uid, gid, size, data: size, ..own })
    }

    /// Links follow the image.
    fn set(&self, _fs: &ImageFs, _caller: Caller, _node: NodeId, _changes: &SetAttr) -> Result<()> {
        Ok(())
    }

    fn readlink(&self, fs: &ImageFs, node: NodeId) -> Result<Vec<u8>> {
        match node {
            NodeId::TemporaryLink(number) => Ok(fs.temporary_links.get(number)?.0),
            NodeId::Link(link) => Ok(text_of_link(&fs.store.catalog.read(), link)?.into_bytes()),
            _ => Err(no_symlink()),
        }
    }

    fn rename(
        &self,
        fs: &ImageFs,
        caller: Caller,
        node: NodeId,
        from: &places::Named,
        to: &places::Named,
    ) -> Result<()> {
        match node {
            NodeId::Link(link) => move_link(fs, caller, link, from, to),
            _ => switch_link(fs, caller, from, to),
        }
    }
}

/// The image that a link is in, or leads to.
fn image_of(model: &Model, link: Link) -> Option<u32> {
    match link {
        Link::Image(image)
        | Link::Latest(image)
        | Link::DeepImage(image)
        | Link::DeeperImage(image)
        | Link::DeepestImage(image)
        | Link::ImageLatest(image)
        | Link::ImageDefault(image)
        | Link::TrashedDefault(image)
        | Link::TrashedImageDefault(image) => Some(image),
        Link::Label(label) | Link::TrashedLabel(label) => model.labels.get(&label).map(|label| label.image),
        Link::TrashedAlias(alias) => model.aliases.get(&alias).map(|alias| alias.image),
        Link::Version(v) | Link::Number(v) | Link::DeepVersion(v) => model.image_of(v),
    }
}

/// The text of a link.
///
/// # Errors
///
/// `NotFound` if what it leads to is gone.
fn text_of_link(model: &Model, link: Link) -> Result<String> {
    let name = |image: u32| model.images.get(&image).map(|i| i.name.clone()).ok_or_else(stale);
    let version = |serial: u32| model.versions.get(&serial).ok_or_else(stale);
    let versioned = |serial: u32| {
        let version = version(serial)?;
        Ok::<_, Error>(format!("{}/{}", name(version.image)?, version.number))
    };
    let label = |serial: u32| {
        let label = model.labels.get(&serial).ok_or_else(stale)?;
        Ok::<_, Error>(format!("{}/@{}", name(label.image)?, label.name))
    };
    Ok(match link {
        Link::Image(serial) => name(serial)?,
        Link::Version(serial) => versioned(serial)?,
        Link::Number(serial) => version(serial)?.number.to_string(),
        Link::Latest(_) => "latest".into(),
        Link::DeepImage(serial) | Link::TrashedDefault(serial) => format!("../../{}", name(serial)?),
        Link::DeeperImage(serial) => format!("../../../{}", name(serial)?),
        Link::DeepestImage(serial) => format!("../../../../{}", name(serial)?),
        Link::DeepVersion(serial) => format!("../../{}", versioned(serial)?),
        Link::ImageLatest(serial) => format!("{}/latest", name(serial)?),
        Link::ImageDefault(serial) => format!("{}/default", name(serial)?),
        Link::Label(serial) => label(serial)?,
        Link::TrashedLabel(serial) => format!("../../{}", label(serial)?),
        Link::TrashedImageDefault(serial) => format!("../../{}/default", name(serial)?),
        Link::TrashedAlias(serial) => {
            let alias = model.aliases.get(&serial).ok_or_else(stale)?;
            let target = path_of_target(model, &target_of_alias(alias)).ok_or_else(stale)?;
            format!("../../{target}")
        }
    })
}

/// The second half of `ln -sfn`: the link under a temporary name replaces another.
fn switch_link(fs: &ImageFs, caller: Caller, from: &places::Named, to: &places::Named) -> Result<()> {
    if from.0 != to.0 {
        let why = "a link is renamed within its directory";
        return Err(Error::Managed { what: text_of(&from.1), why });
    }
    let text = fs.temporary_links.take(from.0, &from.1).ok_or_else(stale)?;
    let switched = from.0.place().switch(fs, caller, from.0, &to.1, &text);
    if switched.is_err() {
        // The link stays as before. The tool removes its temporary link itself.
        fs.temporary_links.put(caller, from.0, &from.1, &text);
    }
    fs.root_has_changed();
    switched
}

/// `mv` of a label within its image, or of an alias or `default` within the root.
fn move_link(
    fs: &ImageFs,
    caller: Caller,
    link: Link,
    from: &places::Named,
    to: &places::Named,
) -> Result<()> {
    if let (NodeId::Image { serial, .. }, Some(old), Some(new)) = (from.0, label_of(&from.1), label_of(&to.1))
        && from.0 == to.0
    {
        labels::rename(&fs.store, serial, old, new)?;
        fs.store.journal.log(caller.uid, "label", &fs.path_in(from.0, &from.1), new);
        return Ok(());
    }
    if (from.0, to.0) != (NodeId::Root, NodeId::Root) {
        return Err(Error::Managed { what: text_of(&from.1), why: "it is changed with ln -sfn" });
    }
    let target = fs.new_name(caller, &to.1);
    if from.1 == b"default" {
        // ln --backup renames the old link.
        let Link::Image(_) = link else { return Err(stale()) };
        fs.refuse_default(caller)?;
        return links::default_to_alias(&fs.store, &target?);
    }
    let Some(Named::Alias(serial)) = fs.store.catalog.read().named(&text_of(&from.1)) else {
        return Err(stale());
    };
    fs.refuse_binding(caller, &text_of(&from.1))?;
    let name = if to.1 == b"default" { None } else { Some(target?) };
    if name.is_none() {
        fs.refuse_default(caller)?;
    }
    links::rename_alias(&fs.store, serial, name.as_ref())?;
    fs.store.journal.log(caller.uid, "rename", &text_of(&from.1), &text_of(&to.1));
    fs.root_has_changed();
    Ok(())
}

/// RENAME_EXCHANGE: two links of the root swap what they lead to, at once.
///
/// # Errors
///
/// `Managed` for anything else; `NotYours`, `OfView`; those of `links::exchange_links`.
pub(in crate::fs) fn exchange(
    fs: &ImageFs,
    caller: Caller,
    from: &places::Named,
    to: &places::Named,
) -> Result<()> {
    let links = [from, to].map(|(parent, name)| match (parent, fs.lookup(caller, *parent, name)) {
        (NodeId::Root, Ok(NodeId::Link(_))) => Ok(text_of(name)),
        _ => Err(Error::Managed { what: text_of(name), why: "only links of the root can be exchanged" }),
    });
    let [first, second] = links;
    let (first, second) = (first?, second?);
    for name in [&first, &second] {
        refuse_alias_change(fs, caller, name)?;
    }
    if [&first, &second].iter().any(|name| *name == "default") {
        fs.refuse_default(caller)?;
    }
    links::exchange_links(&fs.store, &first, &second)
}

/// Makes an alias, or switches it. It belongs to the image that it leads to: only users who may change
/// that image may make, move or remove it.
///
/// # Errors
///
/// `NotYours`, `OfView`, `Taken`; those of `links::put_alias`.
pub(in crate::fs) fn put_alias(
    fs: &ImageFs,
    caller: Caller,
    name: &AliasName,
    to: LinkTarget,
    text: &[u8],
) -> Result<()> {
    {
        let model = fs.store.catalog.read();
        fs.refuse_change(caller, model.images.get(&to.image))?;
    }
    refuse_alias_change(fs, caller, name.as_str())?;
    fs.refuse_staged(name.as_str(), None)?;
    links::put_alias(&fs.store, name, to)?;
    fs.store.journal.log(caller.uid, "alias", &alias_log(name.as_str()), &text_of(text));
    Ok(())
}

/// Refuses to change an alias to an image that this user may not change, or one of a view.
///
/// # Errors
///
/// `NotYours`, `BadName`.
pub(in crate::fs) fn refuse_alias_change(fs: &ImageFs, caller: Caller, name: &str) -> Result<()> {
    fs.refuse_binding(caller, name)?;
    let model = fs.store.catalog.read();
    match model.named(name) {
        Some(Named::Alias(old)) => {
            fs.refuse_change(caller, model.aliases.get(&old).and_then(|a| model.images.get(&a.image)))
        }
        _ => Ok(()),
    }
}

/// `ln -s 1 web/@22.04.5`. If the target is `latest`, the label names the version that is the latest
/// now.
///
/// # Errors
///
/// `NotFound`; those of `labels::put`.
pub(super) fn put_label(
    fs: &ImageFs,
    caller: Caller,
    image: u32,
    label: &str,
    to: Option<u32>,
    moves: bool,
) -> Result<()> {
    let latest = || fs.store.catalog.read().latest(image).map(|version| version.number);
    let number = to.or_else(latest).ok_or_else(stale)?;
    labels::put(&fs.store, image, label, number, moves)?;
    let name = fs.store.catalog.read().images.get(&image).map(|i| i.name.clone()).unwrap_or_default();
    fs.store.journal.log(caller.uid, "label", &format!("{name}/@{label}"), &number.to_string());
    Ok(())
}

/// Makes the kernel read again the symlinks to an image that was renamed, because it caches their
/// targets.
pub(in crate::fs) fn forget_links_to(fs: &ImageFs, image: u32) {
    let (versions, labels) = {
        let model = fs.store.catalog.read();
        let versions: Vec<u32> =
            model.all_versions().filter(|v| v.image == image).map(|v| v.serial).collect();
        let labels: Vec<u32> = model.labels.values().filter(|l| l.image == image).map(|l| l.serial).collect();
        (versions, labels)
    };
    let of_version = |serial| [Link::Version(serial), Link::DeepVersion(serial)];
    let of_label = |serial| [Link::Label(serial), Link::TrashedLabel(serial)];
    let links =
        versions.into_iter().flat_map(of_version).chain(labels.into_iter().flat_map(of_label)).chain([
            Link::Image(image),
            Link::DeepImage(image),
            Link::DeeperImage(image),
            Link::DeepestImage(image),
            Link::ImageLatest(image),
            Link::ImageDefault(image),
            Link::TrashedDefault(image),
            Link::TrashedImageDefault(image),
        ]);
    let links: Vec<u64> = links.map(|link| NodeId::Link(link).ino()).collect();
    for fs in fs.mounts.all() {
        let links = links.clone();
        fs.tell_soon(READING_AGAIN, move |kernel| {
            links.into_iter().for_each(|ino| kernel.forget_content(ino))
        });
    }
}

/// How the log names an alias. If the name has slashes, its first part is not the name of an image.
pub(in crate::fs) fn alias_log(name: &str) -> String {
    if name.contains('/') { format!(".imgfs/aliases/{name}") } else { name.to_owned() }
}

/// The image that a link in a directory of `.imgfs` leads to. The text is `../../web` (`up` is
/// `../../`) or an absolute path into the mount. A bare name also works.
pub(in crate::fs) fn deep_target(fs: &ImageFs, up: &str, target: &[u8]) -> Result<u32> {
    let missing = || Error::NotFound { what: format!("image {} to link to", text_of(target)) };
    let text = std::str::from_utf8(target).map_err(|_| missing())?;
    let text = text.strip_prefix(up).unwrap_or(text);
    let target = targets::resolve_root_link(&fs.store.catalog.read(), text, &fs.mount.path)?;
    target.whole_image().ok_or_else(missing)
}
