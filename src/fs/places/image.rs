//! An image's directory: its versions, `latest`, `default`, labels, metadata.json and icon, and what
//! somebody is writing there.

use crate::base::acl::Acl;
use crate::base::clock::{duration_text, time_text};
use crate::base::json;
use crate::base::name::parse_number;
use crate::catalog::{self, Model, Version};
use crate::error::{Error, Result};
use crate::fs::names::{a_directory, is_temporary, label_of, no_directory, not_found, text_of};
use crate::fs::node::{ImagePart, Link, NodeId, VersionPart};
use crate::fs::opened::{OpenMode, Opened, frozen};
use crate::fs::places::link::put_label;
use crate::fs::places::{Attributes, Named, Place, icon, metadata, named, refuse_attribute, staging};
use crate::fs::removal;
use crate::fs::removal::walkers::{self, Deleted};
use crate::fs::rights::{self, Shown, asked};
use crate::fs::upload::{self, Destination};
use crate::fs::{Attr, Caller, DirEntry, ImageFs, SetAttr, stale};
use crate::images::icons::{self, Form};
use crate::images::links;
use crate::images::targets;
use crate::images::versions::{self, directory_mode};
use crate::images::{describe, labels};

/// An image's directory, and the files that are the image's own.
pub struct Image;

impl Place for Image {
    fn lookup(&self, fs: &ImageFs, caller: Caller, directory: NodeId, name: &[u8]) -> Result<NodeId> {
        let serial = dir(directory)?;
        if let Some(found) = find(fs, caller, serial, name) {
            return found;
        }
        if let Some(found) = std::str::from_utf8(name).ok().and_then(|text| written(fs, caller, serial, text))
        {
            return found;
        }
        walkers::find_leftover(fs, caller, directory, name)
    }

    fn list(&self, fs: &ImageFs, caller: Caller, directory: NodeId, all: &mut Vec<DirEntry>) -> Result<()> {
        let serial = dir(directory)?;
        if fs.walkers.has_deleted(caller.pid, Deleted::Image(serial)) && fs.is_dead(directory) {
            return Ok(());
        }
        if list_known(fs, directory, serial, all).is_some() {
            upload::list(fs, Destination::Image(serial), all);
        }
        Ok(())
    }

    fn image(&self, _model: &Model, node: NodeId) -> Option<u32> {
        if let NodeId::Image { serial, .. } = node { Some(serial) } else { None }
    }

    fn attr(&self, fs: &ImageFs, node: NodeId, own: Attr) -> Result<Attr> {
        let NodeId::Image { serial, part, .. } = node else { return Err(stale()) };
        let model = fs.store.catalog.read();
        let Some(image) = model.images.get(&serial) else {
            // The image is gone for good, but its walker still removes what it has listed.
            let (mode, links) =
                if part == ImagePart::Dir { (libc::S_IFDIR | 0o777, 2) } else { (libc::S_IFREG | 0o444, 1) };
            return Ok(Attr { mode, links, size: 0, data: 0, ..own });
        };
        let own = Attr { uid: image.uid, gid: image.gid, ..own };
        let mode = rights::of_image(fs, image).mode;
        if part == ImagePart::Dir {
            let links = u32::try_from(model.versions_of(serial).count()).unwrap_or(0) + 2;
            let live = image.trashed_at.is_none();
            let mode = libc::S_IFDIR | mode;
            return Ok(Attr { mode, links, lasting_name: live, lasting: live, ..own }.at(image.updated_at));
        }
        let (most, size) = match part {
            ImagePart::Id => (0o444, image.id.len() + 1),
            ImagePart::Icon => (0o666, icons::bytes(&model, serial).map_or(0, |bytes| bytes.len())),
            ImagePart::Metadata | ImagePart::Dir => {
                (0o666, json::pretty(&describe::image(&model, image)).len())
            }
        };
        let changed = if part == ImagePart::Id { image.created_at } else { image.updated_at };
        Ok(own.file(mode & most, size as u64).at(changed))
    }

    fn set(&self, fs: &ImageFs, caller: Caller, node: NodeId, changes: &SetAttr) -> Result<()> {
        // The files in an image follow the image.
        let NodeId::Image { serial, part: ImagePart::Dir, .. } = node else { return Ok(()) };
        if !changes.are_rights() {
            return Ok(());
        }
        let modes = {
            let model = fs.store.catalog.read();
            model.images.get(&serial).map(|image| (rights::of_image(fs, image).mode, image.mode))
        };
        let mode = changes.mode.map(|mode| modes.map_or(mode, |(shown, own)| asked(mode, shown, own)));
        // `install -m 644 x.tar MNT/web`: the tool means the file that it has written, not the directory.
        let by_uploader = upload::has_uploaded_as(fs, caller, serial);
        let mode = mode.map(|mode| if by_uploader { directory_mode(mode) } else { mode });
        versions::set_owner(&fs.store, serial, mode, changes.uid, changes.gid)?;
        fs.log(caller, "chmod", node, "changed");
        Ok(())
    }

    fn rights(&self, fs: &ImageFs, node: NodeId) -> Option<(Shown, u32)> {
        let NodeId::Image { serial, part, .. } = node else { return None };
        let most = match part {
            ImagePart::Dir => rights::ALL,
            ImagePart::Id => 4,
            ImagePart::Metadata | ImagePart::Icon => 6,
        };
        Some((rights::of_image(fs, fs.store.catalog.read().images.get(&serial)?), most))
    }

    fn set_acl(
        &self,
        fs: &ImageFs,
        caller: Caller,
        node: NodeId,
        acl: Option<Acl>,
        bits: Option<u32>,
    ) -> Result<()> {
        versions::set_acl(&fs.store, dir(node)?, acl, bits)?;
        fs.log(caller, "setfacl", node, "changed");
        Ok(())
    }

    fn attributes(&self, fs: &ImageFs, node: NodeId) -> Result<(Attributes, Attributes)> {
        match node {
            NodeId::Image { serial, part: ImagePart::Dir, .. } => {
                let model = fs.store.catalog.read();
                Ok((attributes(&model, model.images.get(&serial).ok_or_else(stale)?), Attributes::new()))
            }
            _ => Ok((Attributes::new(), Attributes::new())),
        }
    }

    fn set_attribute(
        &self,
        fs: &ImageFs,
        caller: Caller,
        node: NodeId,
        key: &str,
        value: Option<&str>,
    ) -> Result<()> {
        match node {
            NodeId::Image { serial, part: ImagePart::Dir, .. } => {
                metadata::edit_key(fs, caller, serial, key, value.unwrap_or_default())
            }
            _ => refuse_attribute(key, value),
        }
    }

    fn path(&self, fs: &ImageFs, directory: NodeId, name: &str) -> String {
        format!("{}/{name}", fs.path_of(directory))
    }

    fn truncate(&self, _fs: &ImageFs, _caller: Caller, node: NodeId, size: u64) -> Result<()> {
        match node {
            // `: > metadata.json` writes nothing, so there is no document to judge.
            NodeId::Image { part: ImagePart::Metadata | ImagePart::Icon, .. } if size == 0 => Ok(()),
            _ => Err(frozen(node)),
        }
    }

    fn open(&self, fs: &ImageFs, _caller: Caller, node: NodeId, mode: OpenMode) -> Result<Opened> {
        let NodeId::Image { serial, part, .. } = node else { return Err(stale()) };
        match part {
            ImagePart::Metadata => metadata::open(fs, serial, mode),
            ImagePart::Icon => icon::open(fs, serial, mode),
            ImagePart::Id if !mode.writes => {
                let id = fs.store.catalog.read().images.get(&serial).map(|image| image.id.clone());
                Ok(fs.opened_text(format!("{}\n", id.ok_or_else(stale)?)))
            }
            ImagePart::Dir if !mode.writes => Err(a_directory()),
            ImagePart::Id | ImagePart::Dir => Err(frozen(node)),
        }
    }

    fn create(
        &self,
        fs: &ImageFs,
        caller: Caller,
        directory: NodeId,
        name: &[u8],
        mode: u32,
    ) -> Result<(NodeId, u64)> {
        let serial = dir(directory)?;
        if name == b"metadata.json" {
            return metadata::create(fs, caller, serial);
        }
        if let Some(form) = Form::of_name(name) {
            return icon::create(fs, serial, form);
        }
        if name == b"default" || name == b"latest" || parse_number(name).is_some() {
            return Err(Error::Managed { what: text_of(name), why: "imgfs gives these names" });
        }
        upload::create(fs, caller, Destination::Image(serial), name, mode)
    }

    /// `mkdir MNT/web/.new`.
    fn mkdir(
        &self,
        fs: &ImageFs,
        caller: Caller,
        directory: NodeId,
        name: &[u8],
        _mode: u32,
    ) -> Result<NodeId> {
        let serial = dir(directory)?;
        if name.starts_with(b".") {
            fs.refuse_attached(serial)?;
            return staging::make(fs, caller, Destination::Image(serial), name);
        }
        if parse_number(name).is_some() {
            let why = "a tarball copied into the image gets the next one";
            return Err(Error::Managed { what: format!("the number {}", text_of(name)), why });
        }
        Err(Error::NoTree { what: text_of(name) })
    }

    fn rmdir(&self, fs: &ImageFs, caller: Caller, node: NodeId, parent: NodeId) -> Result<()> {
        match node {
            NodeId::Image { serial, part: ImagePart::Dir, .. } => {
                removal::delete_image(fs, caller, serial, parent)
            }
            _ => Err(no_directory()),
        }
    }

    fn unlink(&self, fs: &ImageFs, caller: Caller, directory: NodeId, name: &[u8]) -> Result<()> {
        let serial = dir(directory)?;
        if fs.walkers.has_deleted(caller.pid, Deleted::Image(serial)) {
            return Ok(());
        }
        match name {
            b"default" => {
                self.lookup(fs, caller, directory, name)?;
                links::hide_image_default(&fs.store, serial)?;
                let path = fs.path_of(directory);
                fs.store.journal.log(caller.uid, "pin", &path, "default is not shown any more");
                Ok(())
            }
            b"latest" => Err(Error::Managed { what: "latest".into(), why: "it names the newest version" }),
            b"metadata.json" => metadata::remove(fs, caller, serial),
            _ if let Some(label) = label_of(name) => {
                labels::drop_label(&fs.store, serial, label)?;
                fs.store.journal.log(caller.uid, "unlabel", &fs.path_in(directory, name), "dropped");
                Ok(())
            }
            _ if let Some(form) = Form::of_name(name) => icon::remove(fs, caller, serial, form),
            _ => upload::unlink(fs, self.lookup(fs, caller, directory, name)?, name),
        }
    }

    fn symlink(
        &self,
        fs: &ImageFs,
        caller: Caller,
        directory: NodeId,
        name: &[u8],
        target: &[u8],
    ) -> Result<NodeId> {
        let serial = dir(directory)?;
        let to = target_number(fs, serial, target)?;
        if is_temporary(name) {
            return Ok(fs.temporary_links.put(caller, directory, name, target));
        }
        match name {
            b"default" => pin(fs, caller, serial, to)?,
            b"latest" => {
                return Err(Error::Managed { what: "latest".into(), why: "it names the newest version" });
            }
            _ if let Some(label) = label_of(name) => put_label(fs, caller, serial, label, to, false)?,
            // Without -n, `ln -s 1 default` puts the link into the image that `default` leads to.
            _ => {
                let what = format!("link {} in an image; use ln -sfn", text_of(name));
                return Err(Error::NotFound { what });
            }
        }
        self.lookup(fs, caller, directory, name)
    }

    fn switch(
        &self,
        fs: &ImageFs,
        caller: Caller,
        directory: NodeId,
        name: &[u8],
        target: &[u8],
    ) -> Result<()> {
        let serial = dir(directory)?;
        let number = target_number(fs, serial, target)?;
        match name {
            b"default" => pin(fs, caller, serial, number),
            b"latest" => Err(Error::Managed { what: "latest".into(), why: "it names the newest version" }),
            _ if let Some(label) = label_of(name) => put_label(fs, caller, serial, label, number, true),
            _ => Err(Error::NotFound { what: format!("link {} in an image", text_of(name)) }),
        }
    }

    fn rename(&self, fs: &ImageFs, caller: Caller, node: NodeId, from: &Named, to: &Named) -> Result<()> {
        let NodeId::Image { serial, part, .. } = node else { return Err(stale()) };
        match (part, to.0) {
            (ImagePart::Dir, NodeId::Root) => rename_image(fs, caller, serial, from, to),
            (ImagePart::Dir, _) => {
                let why = "an image can only be renamed within the root";
                Err(Error::Managed { what: text_of(&from.1), why })
            }
            (ImagePart::Metadata, _) => {
                Err(Error::Managed { what: "metadata.json".into(), why: "it stays where it is" })
            }
            (ImagePart::Id | ImagePart::Icon, _) => Err(frozen(node)),
        }
    }
}

/// The serial of the image whose directory this is.
fn dir(node: NodeId) -> Result<u32> {
    match node {
        NodeId::Image { serial, part: ImagePart::Dir, .. } => Ok(serial),
        _ => Err(no_directory()),
    }
}

/// What a name leads to, if the catalog knows it. `None`: the name may be that of an upload, or may be
/// gone.
fn find(fs: &ImageFs, caller: Caller, serial: u32, name: &[u8]) -> Option<Result<NodeId>> {
    let incarnation = fs.incarnation(serial);
    let part = |part| NodeId::Image { serial, part, incarnation };
    let deleted = || fs.walkers.has_deleted(caller.pid, Deleted::Image(serial));
    let link = |link: Option<Link>| Some(link.map(NodeId::Link).ok_or_else(|| not_found(name)));
    let when = |there: bool, node: NodeId| Some(if there { Ok(node) } else { Err(not_found(name)) });
    let model = fs.store.catalog.read();
    let Some(image) = model.images.get(&serial) else {
        // The image is gone for good, but its walker still removes what it has listed.
        return match name {
            b".id" => Some(Err(not_found(name))),
            _ if !deleted() => None,
            _ if parse_number(name).is_some() => Some(Ok(NodeId::Ghost)),
            _ => Some(Ok(part(ImagePart::Metadata))),
        };
    };
    match name {
        b".id" => return when(image.trashed_at.is_none() || !deleted(), part(ImagePart::Id)),
        b"metadata.json" => {
            return when(!fs.replacing.is_removed(caller.pid, serial), part(ImagePart::Metadata));
        }
        b"latest" => return link(model.latest(serial).map(|newest| Link::Number(newest.serial))),
        b"default" => return link(default_link(&model, image)),
        _ => {}
    }
    if let Some(form) = Form::of_name(name) {
        return when(icons::form(&model, serial) == Some(form), part(ImagePart::Icon));
    }
    if let Some(version) = parse_number(name).and_then(|number| model.version(serial, number)) {
        return Some(Ok(fs.version_node(version.serial)));
    }
    let label = label_of(name)?;
    let version = model.live_label(serial, label).and_then(|label| model.version(serial, label.number));
    link(version.map(|version| Link::Number(version.serial)))
}

/// What is being written, or was written, under a name.
fn written(fs: &ImageFs, caller: Caller, serial: u32, text: &str) -> Option<Result<NodeId>> {
    let here = Destination::Image(serial);
    if let Some(staging) = fs.stagings.named(here, text) {
        return Some(Ok(staging));
    }
    if let Some(upload) = upload::find(fs, caller, here, text) {
        return Some(upload);
    }
    let model = fs.store.catalog.read();
    if let Some(version) = receipt_in(&model, serial, text, false) {
        return Some(Ok(NodeId::Receipt(version.serial)));
    }
    // `manifest` leads to the manifest that came with the newest version, as its receipt.
    let newest = model.latest(serial).filter(|v| text == "manifest" && !v.facts.manifest.is_empty())?;
    Some(Ok(fs.part_of_version(newest.serial, VersionPart::Manifest)))
}

/// Adds what the catalog knows of an image. `None` if the image is gone for good.
fn list_known(fs: &ImageFs, directory: NodeId, serial: u32, all: &mut Vec<DirEntry>) -> Option<()> {
    let NodeId::Image { incarnation, .. } = directory else { return None };
    let part = |part| NodeId::Image { serial, part, incarnation };
    let model = fs.store.catalog.read();
    let image = model.images.get(&serial)?;
    // `.id` comes first, so that rm -r removes it first.
    all.push(DirEntry::new(".id", part(ImagePart::Id), libc::S_IFREG));
    all.push(DirEntry::new("metadata.json", part(ImagePart::Metadata), libc::S_IFREG));
    let mut add = |name: &str, node: NodeId, format: u32| all.push(DirEntry::new(name, node, format));
    if let Some(form) = icons::form(&model, serial) {
        add(form.name(), part(ImagePart::Icon), libc::S_IFREG);
    }
    if let Some(newest) = model.latest(serial) {
        add("latest", NodeId::Link(Link::Number(newest.serial)), libc::S_IFLNK);
    }
    if let Some(target) = default_link(&model, image) {
        add("default", NodeId::Link(target), libc::S_IFLNK);
    }
    for version in model.versions_of(serial) {
        add(&version.number.to_string(), fs.version_node(version.serial), libc::S_IFDIR);
    }
    for label in model.labels_of(serial) {
        if let Some(version) = model.version(serial, label.number) {
            add(&format!("@{}", label.name), NodeId::Link(Link::Number(version.serial)), libc::S_IFLNK);
        }
    }
    Some(())
}

/// The newest version whose upload was written under this name.
pub(super) fn receipt_in<'m>(model: &'m Model, image: u32, name: &str, in_root: bool) -> Option<&'m Version> {
    model.live_image(image)?;
    let is = |v: &&Version| v.receipt.as_ref().is_some_and(|r| r.name == name && r.in_root == in_root);
    model.versions_of(image).rev().find(is)
}

/// The link that an image shows as `default`.
fn default_link(model: &Model, image: &catalog::Image) -> Option<Link> {
    if image.default_hidden {
        return None;
    }
    match image.pinned {
        Some(number) => model.version(image.serial, number).map(|version| Link::Number(version.serial)),
        None => model.latest(image.serial).map(|_| Link::Latest(image.serial)),
    }
}

/// What getfattr -d shows of an image.
fn attributes(model: &Model, image: &catalog::Image) -> Attributes {
    let e = &image.editable;
    let tags = e.tags.join(",");
    let texts = [
        ("description", &e.description),
        ("type", &e.kind),
        ("os", &e.os),
        ("release", &e.release),
        ("architecture", &e.architecture),
        ("variant", &e.variant),
        ("tags", &tags),
    ];
    let rules = [
        ("immutable", image.rules.immutable.as_ref().map(|_| "true".into())),
        ("keep_versions", e.keep_versions.map(|n| n.to_string())),
        ("expires_at", e.expires_at.map(time_text)),
        ("expires_unused", e.expires_unused.map(duration_text)),
    ];
    let mut all = vec![named("id", image.id.clone())];
    all.extend(
        texts.iter().filter(|(_, text)| !text.is_empty()).map(|(key, text)| named(key, text.to_string())),
    );
    all.extend(rules.into_iter().filter_map(|(key, value)| Some(named(key, value?))));
    let described = model.aliases_of(image.serial).into_iter().filter(|alias| !alias.description.is_empty());
    all.extend(described.map(|a| named(&format!("aliases.{}", a.name), a.description.clone())));
    all.extend(e.properties.iter().map(|(key, value)| named(&format!("properties.{key}"), value.clone())));
    all
}

/// The number of the version that a link in an image is to lead to. `None` is `latest`.
fn target_number(fs: &ImageFs, image: u32, target: &[u8]) -> Result<Option<u32>> {
    let text = std::str::from_utf8(target).map_err(|_| not_found(target))?;
    targets::resolve_inner_link(&fs.store.catalog.read(), image, text)
}

/// `ln -sfn 1 web/default`.
fn pin(fs: &ImageFs, caller: Caller, image: u32, to: Option<u32>) -> Result<()> {
    links::pin(&fs.store, image, to)?;
    let name = fs.store.catalog.read().images.get(&image).map(|i| i.name.clone()).unwrap_or_default();
    fs.store.journal.log(caller.uid, "pin", &name, &to.map_or("latest".into(), |n| n.to_string()));
    Ok(())
}

/// `mv MNT/web MNT/www`.
fn rename_image(fs: &ImageFs, caller: Caller, image: u32, from: &Named, to: &Named) -> Result<()> {
    let name = fs.new_name(caller, &to.1)?;
    fs.refuse_binding(caller, &text_of(&from.1))?;
    versions::rename_image(&fs.store, image, &name)?;
    super::link::forget_links_to(fs, image);
    fs.root_has_changed();
    fs.store.journal.log(caller.uid, "rename", &text_of(&from.1), name.as_str());
    Ok(())
}
