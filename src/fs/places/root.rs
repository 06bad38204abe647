//! The root of the mount: images, aliases, `default`, uploads and staging directories.

use crate::base::acl::{Acl, with_bits};
use crate::base::name::{AliasName, ImageName, image_stem};
use crate::catalog::{self, Follows, Model, Named};
use crate::error::{Error, Result};
use crate::fs::access::READ;
use crate::fs::names::{is_temporary, not_found, text_of};
use crate::fs::node::{Control, Link, NodeId};
use crate::fs::places::at_label::at_label;
use crate::fs::places::image::receipt_in;
use crate::fs::places::link::put_alias;
use crate::fs::places::{Place, staging};
use crate::fs::removal::{shells, walkers};
use crate::fs::rights::{self, Shown, asked};
use crate::fs::upload::{self, Destination};
use crate::fs::{Attr, Caller, DirEntry, ImageFs, SetAttr};
use crate::images::links;
use crate::images::targets::{self, LinkTarget};
use crate::images::versions;
use crate::ingest;

/// The root.
pub struct Root;

impl Place for Root {
    fn lookup(&self, fs: &ImageFs, caller: Caller, directory: NodeId, name: &[u8]) -> Result<NodeId> {
        if name == b".imgfs" {
            return Ok(NodeId::Control(Control::Dir));
        }
        shells::drop_left(fs);
        match std::str::from_utf8(name).map(|text| find(fs, caller, text)) {
            Ok(Some(found)) => found,
            _ => walkers::find_leftover(fs, caller, directory, name),
        }
    }

    fn list(&self, fs: &ImageFs, _caller: Caller, _directory: NodeId, all: &mut Vec<DirEntry>) -> Result<()> {
        shells::drop_left(fs);
        {
            let model = fs.store.catalog.read();
            if let Some(image) = model.default_image.filter(|_| !model.default_hidden) {
                all.push(DirEntry::new("default", NodeId::Link(Link::Image(image)), libc::S_IFLNK));
            }
            for (name, named) in model.names() {
                let (node, format) = match named {
                    Named::Image(serial) if !is_listed(&model, serial) => continue,
                    Named::Image(serial) => (Some(fs.image_node(serial)), libc::S_IFDIR),
                    Named::Alias(serial) => (alias_link(&model, serial).map(NodeId::Link), libc::S_IFLNK),
                };
                all.extend(node.map(|node| DirEntry::new(name, node, format)));
            }
        }
        upload::list(fs, Destination::Root, all);
        Ok(())
    }

    fn attr(&self, fs: &ImageFs, _node: NodeId, own: Attr) -> Result<Attr> {
        let images = fs.store.catalog.read().live_images().count();
        let links = u32::try_from(images).unwrap_or(u32::MAX - 2) + 2;
        let root = fs.root();
        let mode = libc::S_IFDIR | rights::of_root(fs).mode;
        Ok(Attr { mode, links, lasting: true, uid: root.uid, gid: root.gid, ..own })
    }

    fn set(&self, fs: &ImageFs, caller: Caller, _node: NodeId, changes: &SetAttr) -> Result<()> {
        if !changes.are_rights() {
            return Ok(());
        }
        let (old, or) = (fs.root(), |new: Option<u32>, old| new.unwrap_or(old));
        let (uid, gid) = (or(changes.uid, old.uid), or(changes.gid, old.gid));
        let shown = rights::of_root(fs).mode;
        let mode = changes.mode.map_or(old.mode, |mode| asked(mode & 0o7777, shown, old.mode));
        versions::set_root(&fs.store, catalog::Root { uid, gid, mode, acl: old.acl })?;
        fs.store.journal.log(caller.uid, "chmod", ".", "changed");
        Ok(())
    }

    fn rights(&self, fs: &ImageFs, _node: NodeId) -> Option<(Shown, u32)> {
        Some((rights::of_root(fs), rights::ALL))
    }

    fn set_acl(
        &self,
        fs: &ImageFs,
        caller: Caller,
        _node: NodeId,
        acl: Option<Acl>,
        bits: Option<u32>,
    ) -> Result<()> {
        let mut root = fs.root();
        root.mode = with_bits(root.mode, root.acl.as_ref(), bits);
        root.acl = acl;
        versions::set_root(&fs.store, root)?;
        fs.store.journal.log(caller.uid, "setfacl", ".", "changed");
        Ok(())
    }

    fn path(&self, _fs: &ImageFs, _directory: NodeId, name: &str) -> String {
        format!("/{name}")
    }

    /// `cp web.tar MNT/`.
    fn create(
        &self,
        fs: &ImageFs,
        caller: Caller,
        _directory: NodeId,
        name: &[u8],
        mode: u32,
    ) -> Result<(NodeId, u64)> {
        upload::create(fs, caller, Destination::Root, name, mode)
    }

    /// `mkdir MNT/web`, `mkdir MNT/.new`.
    fn mkdir(
        &self,
        fs: &ImageFs,
        caller: Caller,
        _directory: NodeId,
        name: &[u8],
        mode: u32,
    ) -> Result<NodeId> {
        if name.starts_with(b".") {
            return staging::make(fs, caller, Destination::Root, name);
        }
        let new = fs.new_name(caller, name)?;
        let serial = versions::make_image(&fs.store, &new, caller.uid, caller.gid, mode)?;
        fs.shells.note(caller, serial);
        fs.store.journal.log(caller.uid, "mkdir", new.as_str(), "made");
        fs.root_has_changed();
        Ok(fs.image_node(serial))
    }

    fn unlink(&self, fs: &ImageFs, caller: Caller, directory: NodeId, name: &[u8]) -> Result<()> {
        let found = self.lookup(fs, caller, directory, name)?;
        if name == b"default" {
            fs.refuse_default(caller)?;
            links::hide_default(&fs.store)?;
            fs.store.journal.log(caller.uid, "default", "", "is not shown any more");
            return Ok(());
        }
        let NodeId::Link(_) = found else { return upload::unlink(fs, found, name) };
        let Some(Named::Alias(serial)) = fs.store.catalog.read().named(&text_of(name)) else {
            let why = "it stands for a label: rm IMAGE/@LABEL";
            return Err(Error::Managed { what: text_of(name), why });
        };
        links::drop_alias(&fs.store, serial)?;
        fs.store.journal.log(caller.uid, "unalias", &text_of(name), "dropped");
        Ok(())
    }

    /// `ln -s web MNT/jammy`.
    fn symlink(
        &self,
        fs: &ImageFs,
        caller: Caller,
        directory: NodeId,
        name: &[u8],
        target: &[u8],
    ) -> Result<NodeId> {
        let to = root_target(fs, target)?;
        if is_temporary(name) {
            return Ok(fs.temporary_links.put(caller, directory, name, target));
        }
        if name == b"default" {
            switch_default(fs, caller, to)?;
        } else {
            let name = AliasName::from(&ImageName::parse(name)?);
            if fs.store.catalog.read().named(name.as_str()).is_some() {
                let holder = "there is one already".into();
                return Err(Error::Taken { name: name.as_str().into(), holder });
            }
            put_alias(fs, caller, &name, to, target)?;
        }
        fs.root_has_changed();
        self.lookup(fs, caller, directory, name)
    }

    /// `ln -sfn db MNT/default`.
    fn switch(
        &self,
        fs: &ImageFs,
        caller: Caller,
        directory: NodeId,
        name: &[u8],
        target: &[u8],
    ) -> Result<()> {
        let to = root_target(fs, target)?;
        if name == b"default" {
            return switch_default(fs, caller, to);
        }
        if is_temporary(name) {
            fs.temporary_links.put(caller, directory, name, target);
            return Ok(());
        }
        put_alias(fs, caller, &(&ImageName::parse(name)?).into(), to, target)
    }
}

/// What a name in the root leads to. `None` if nothing has the name; a walker may still know it.
fn find(fs: &ImageFs, caller: Caller, text: &str) -> Option<Result<NodeId>> {
    if let Some(staging) = fs.stagings.named(Destination::Root, text) {
        return Some(Ok(staging));
    }
    {
        let model = fs.store.catalog.read();
        let missing = || not_found(text.as_bytes());
        if text == "default" {
            let shown = model.default_image.filter(|_| !model.default_hidden);
            return Some(shown.map(|image| NodeId::Link(Link::Image(image))).ok_or_else(missing));
        }
        match model.named(text) {
            Some(Named::Image(serial)) => return Some(Ok(fs.image_node(serial))),
            Some(Named::Alias(serial)) => {
                return Some(alias_link(&model, serial).map(NodeId::Link).ok_or_else(missing));
            }
            None => {}
        }
    }
    if let Some(upload) = upload::find(fs, caller, Destination::Root, text) {
        return Some(upload);
    }
    let model = fs.store.catalog.read();
    if let Some(image) = model.image_named(ingest::named(&model, image_stem(text)).0)
        && fs.may(caller, image, READ)
        && let Some(version) = receipt_in(&model, image.serial, text, true)
    {
        return Some(Ok(NodeId::Receipt(version.serial)));
    }
    drop(model);
    at_label(fs, caller, text).map(Ok)
}

fn is_listed(model: &Model, image: u32) -> bool {
    model.images.get(&image).is_none_or(|image| image.editable.offer.is_listed())
}

/// The link that an alias shows in the root.
fn alias_link(model: &Model, serial: u32) -> Option<Link> {
    let alias = model.aliases.get(&serial)?;
    Some(match (alias.number, &alias.follows) {
        (Some(number), _) => Link::Version(model.version(alias.image, number)?.serial),
        (None, Follows::Image) => Link::Image(alias.image),
        (None, Follows::Latest) => Link::ImageLatest(alias.image),
        (None, Follows::Default) => Link::ImageDefault(alias.image),
        (None, Follows::Label(label)) => Link::Label(model.live_label(alias.image, label)?.serial),
    })
}

/// What a link in the root is to lead to.
fn root_target(fs: &ImageFs, target: &[u8]) -> Result<LinkTarget> {
    let text = std::str::from_utf8(target).map_err(|_| not_found(target))?;
    targets::resolve_root_link(&fs.store.catalog.read(), text, &fs.mount.path)
}

/// `ln -sfn web MNT/default`.
fn switch_default(fs: &ImageFs, caller: Caller, to: LinkTarget) -> Result<()> {
    fs.refuse_default(caller)?;
    links::set_default(&fs.store, to)?;
    let name = {
        let model = fs.store.catalog.read();
        let image = model.default_image.and_then(|serial| model.images.get(&serial));
        image.map_or("?", |image| image.name.as_str()).to_owned()
    };
    fs.store.journal.log(caller.uid, "default", &name, "is the default image");
    Ok(())
}
