//! Journey 2, ls: which names there are, and what they lead to.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::name::{image_stem, parse_number};
use crate::catalog::{Follows, Image, Model, Named, Version};
use crate::error::{Error, Result};
use crate::fs::access::READ;
use crate::fs::ghost::Object;
use crate::fs::ghost::refuse_walk;
use crate::fs::names::label_of;
use crate::fs::node::{Control, ImagePart, Link, NodeId, VersionPart};
use crate::fs::opened::Opened;
use crate::fs::stat::format_of;
use crate::fs::upload::Place;
use crate::fs::{Caller, DirEntry, Handle, ImageFs, stale};
use crate::images::icons::{self, Form};
use crate::images::keep;
use crate::ingest;
use crate::tree::{Kind, ROOT, Tree};

/// How long it is remembered who was sent back from a deleted directory, and may stand in it.
const STANDING: Duration = Duration::from_secs(10);

fn not_found(name: &[u8]) -> Error {
    Error::NotFound { what: String::from_utf8_lossy(name).into_owned() }
}

impl ImageFs {
    /// Finds a name in a directory.
    ///
    /// # Errors
    ///
    /// `NotFound`, `NotDirectory`, `NameTooLong`; `Corrupt`, `Io`.
    pub fn lookup(&self, caller: Caller, parent: NodeId, name: &[u8]) -> Result<NodeId> {
        if name.len() > crate::base::name::NAME_MAX {
            return Err(Error::NameTooLong { len: name.len() });
        }
        match parent {
            NodeId::Tree { serial, index } => {
                let slot = self.store.tree(serial)?;
                let directory = slot.tree.node(index)?;
                let found = slot.tree.lookup(&directory, name)?.ok_or_else(|| not_found(name))?;
                Ok(NodeId::Tree { serial, index: found })
            }
            NodeId::Root => self.lookup_in_root(caller, name),
            NodeId::Image { serial, part: ImagePart::Dir, .. } => {
                self.lookup_in_image(caller, parent, serial, name)
            }
            NodeId::Version { serial, part: VersionPart::Dir, incarnation } => {
                self.lookup_in_version(caller, serial, incarnation, name)
            }
            NodeId::In(kind, directory) => kind.place().lookup(self, caller, directory, name),
            NodeId::Control(Control::Dir) => self.lookup_in_control(name),
            NodeId::Staging(directory) => self.lookup_staged(directory, name),
            NodeId::Version { serial, part: VersionPart::UsedBy, .. } => self.lookup_lease(serial, name),
            NodeId::Ghost => Err(not_found(name)),
            _ => Err(Error::NotDirectory { what: "this path".into() }),
        }
    }

    fn lookup_in_root(&self, caller: Caller, name: &[u8]) -> Result<NodeId> {
        if name == b".imgfs" {
            return Ok(NodeId::Control(Control::Dir));
        }
        self.drop_shells();
        if let Some(staged) = self.staged_link(NodeId::Root, name) {
            return Ok(staged);
        }
        if let Ok(text) = std::str::from_utf8(name) {
            if let Some(staging) = self.stagings.named(Place::Root, text) {
                return Ok(staging);
            }
            let model = self.store.catalog.read();
            if text == "default" {
                let shown = model.default_image.filter(|_| !model.default_hidden);
                return shown.map(|i| NodeId::Link(Link::Image(i))).ok_or_else(|| not_found(name));
            }
            match model.named(text) {
                Some(Named::Image(serial)) => return Ok(self.image_node(serial)),
                Some(Named::Alias(serial)) => {
                    return Ok(NodeId::Link(alias_link(&model, serial).ok_or_else(|| not_found(name))?));
                }
                None => {}
            }
            drop(model);
            if let Some(upload) = self.uploads.named(Place::Root, text).filter(|u| self.shows(caller, u)) {
                if self.is_hidden_from(caller, NodeId::Root, name, &upload) {
                    return Err(not_found(name));
                }
                return Ok(NodeId::Upload(upload.number));
            }
            let model = self.store.catalog.read();
            if let Some(image) = model.image_named(ingest::named(&model, image_stem(text)).0)
                && self.may(caller, image, READ)
                && let Some(version) = receipt_in(&model, image.serial, text, true)
            {
                return Ok(NodeId::Receipt(version.serial));
            }
            drop(model);
            if let Some(version) = self.at_label(caller, text) {
                return Ok(version);
            }
        }
        self.ghost_named(caller, NodeId::Root, name)
    }

    fn lookup_in_image(&self, caller: Caller, parent: NodeId, serial: u32, name: &[u8]) -> Result<NodeId> {
        let incarnation = self.incarnation(serial);
        let part = |part| Ok(NodeId::Image { serial, part, incarnation });
        if let Some(staged) = self.staged_link(parent, name) {
            return Ok(staged);
        }
        {
            let model = self.store.catalog.read();
            let Some(image) = model.images.get(&serial) else {
                // Gone for good, and its walker still removes what it has listed.
                return match name {
                    b".id" => Err(not_found(name)),
                    _ if !self.deleted_by(caller, Object::Image(serial)) => {
                        self.ghost_named(caller, parent, name)
                    }
                    _ if parse_number(name).is_some() => Ok(NodeId::Ghost),
                    _ => part(ImagePart::Metadata),
                };
            };
            match name {
                b".id" => {
                    return if image.trashed_at.is_some() && self.deleted_by(caller, Object::Image(serial)) {
                        Err(not_found(name))
                    } else {
                        part(ImagePart::Id)
                    };
                }
                b"metadata.json" if self.replacing.is_removed(caller.pid, serial) => {
                    return Err(not_found(name));
                }
                b"metadata.json" => return part(ImagePart::Metadata),
                _ if let Some(form) = Form::of_name(name) => {
                    let has = icons::form(&model, serial) == Some(form);
                    return if has { part(ImagePart::Icon) } else { Err(not_found(name)) };
                }
                b"latest" => {
                    let newest = model.latest(serial).ok_or_else(|| not_found(name))?;
                    return Ok(NodeId::Link(Link::Number(newest.serial)));
                }
                b"default" => {
                    return default_link(&model, image).map(NodeId::Link).ok_or_else(|| not_found(name));
                }
                _ => {}
            }
            if let Some(version) = parse_number(name).and_then(|n| model.version(serial, n)) {
                return Ok(self.version_node(version.serial));
            }
            if let Some(label) = label_of(name) {
                let version = model.live_label(serial, label).and_then(|l| model.version(serial, l.number));
                return version.map(|v| NodeId::Link(Link::Number(v.serial))).ok_or_else(|| not_found(name));
            }
        }
        if let Ok(text) = std::str::from_utf8(name) {
            if let Some(staging) = self.stagings.named(Place::Image(serial), text) {
                return Ok(staging);
            }
            if let Some(upload) =
                self.uploads.named(Place::Image(serial), text).filter(|u| self.shows(caller, u))
            {
                if self.is_hidden_from(caller, parent, name, &upload) {
                    return Err(not_found(name));
                }
                return Ok(NodeId::Upload(upload.number));
            }
            let model = self.store.catalog.read();
            if let Some(version) = receipt_in(&model, serial, text, false) {
                return Ok(NodeId::Receipt(version.serial));
            }
            // As the receipt of the manifest that was copied in with the newest version.
            if let Some(newest) =
                model.latest(serial).filter(|v| text == "manifest" && !v.facts.manifest.is_empty())
            {
                let (serial, incarnation) = (newest.serial, self.incarnation(newest.serial));
                return Ok(NodeId::Version { serial, part: VersionPart::Manifest, incarnation });
            }
        }
        self.ghost_named(caller, parent, name)
    }

    fn lookup_in_version(&self, caller: Caller, serial: u32, incarnation: u8, name: &[u8]) -> Result<NodeId> {
        let part = |part| NodeId::Version { serial, part, incarnation };
        let image = self.store.catalog.read().versions.get(&serial).map(|v| v.image);
        let walker = self.deleted_by(caller, Object::Version(serial))
            || image.is_some_and(|i| self.deleted_by(caller, Object::Image(i)));
        match name {
            b".id" if walker => Err(not_found(name)),
            b".id" => Ok(part(VersionPart::Id)),
            b"metadata.json" => Ok(part(VersionPart::Metadata)),
            b"rootfs" | b"used_by" if walker => Ok(NodeId::Ghost),
            b"used_by" => Ok(part(VersionPart::UsedBy)),
            b"manifest" if self.has_manifest(serial) => Ok(part(VersionPart::Manifest)),
            b"changes" if walker || self.has_changes(serial) => Ok(part(VersionPart::Changes)),
            _ if self.kept_name(serial).is_some_and(|kept| kept.as_bytes() == name) => {
                Ok(part(VersionPart::Upload))
            }
            _ => {
                let slot = self.store.tree(serial)?;
                match name {
                    b"rootfs.tar" if slot.tree.has_rootfs() => Ok(part(VersionPart::Tar)),
                    b"rootfs" if slot.tree.has_rootfs() => Ok(NodeId::Tree { serial, index: ROOT }),
                    _ => {
                        let beside = slot.tree.beside().map(|index| slot.tree.node(index)).transpose()?;
                        let found = beside
                            .and_then(|beside| slot.tree.lookup(&beside, name).transpose())
                            .transpose()?;
                        let index = found.ok_or_else(|| not_found(name))?;
                        let directory = matches!(slot.tree.node(index)?.kind, Kind::Directory { .. });
                        Ok(if walker && directory { NodeId::Ghost } else { NodeId::Tree { serial, index } })
                    }
                }
            }
        }
    }

    /// A tree by the serial of its version, as the second connection calls it.
    ///
    /// # Errors
    ///
    /// `NotFound` if it is no serial of a version; `Corrupt`, `Io` if the tree is damaged.
    pub fn tree_called(&self, name: &[u8]) -> Result<NodeId> {
        let serial = std::str::from_utf8(name)
            .ok()
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| not_found(name))?;
        self.store.tree(serial)?;
        Ok(NodeId::Tree { serial, index: ROOT })
    }

    /// Whether the version has a manifest that is not a file of its tree.
    fn has_manifest(&self, serial: u32) -> bool {
        self.store
            .catalog
            .read()
            .versions
            .get(&serial)
            .is_some_and(|version| !version.facts.manifest.is_empty())
    }

    /// The name of the version's upload, if it can be had as it came.
    pub(super) fn kept_name(&self, serial: u32) -> Option<String> {
        keep::name(self.store.catalog.read().versions.get(&serial)?)
    }

    fn deleted_by(&self, caller: Caller, object: Object) -> bool {
        self.walkers.has_deleted(caller.pid, object)
    }

    /// A name that is gone for all but the process that deleted what was there, or that moved something to
    /// it.
    pub(super) fn ghost_named(&self, caller: Caller, parent: NodeId, name: &[u8]) -> Result<NodeId> {
        if let Some(moved) = self.moved.find(caller.pid, parent, name) {
            return Ok(moved);
        }
        match self.walkers.ghost_named(caller.pid, parent.ino(), name) {
            Some(Object::Image(serial)) => Ok(NodeId::Image {
                serial,
                part: ImagePart::Dir,
                incarnation: self.incarnation(serial).wrapping_sub(1),
            }),
            Some(Object::Version(serial)) => Ok(NodeId::Version {
                serial,
                part: VersionPart::Dir,
                incarnation: self.incarnation(serial).wrapping_sub(1),
            }),
            None => {
                self.missed.note(caller.pid, parent, name);
                Err(not_found(name))
            }
        }
    }

    /// True if `node` is deleted and the caller probably used a stale cached name: the kernel then walks the path
    /// again (ESTALE). False the second time, because the caller then stands in the directory, and for names in
    /// it, which the kernel would take to be gone.
    pub fn is_outlived(&self, caller: Caller, node: NodeId) -> bool {
        let (serial, incarnation, object) = match node {
            NodeId::Image { serial, incarnation, .. } => (serial, incarnation, Object::Image(serial)),
            NodeId::Version { serial, incarnation, .. } => (serial, incarnation, Object::Version(serial)),
            _ => return false,
        };
        if incarnation == self.incarnation(serial) {
            return false;
        }
        let image = self.store.catalog.read().versions.get(&serial).map(|v| v.image);
        if self.deleted_by(caller, object) || image.is_some_and(|i| self.deleted_by(caller, Object::Image(i)))
        {
            return false;
        }
        // fstat comes to it by no name.
        let is_open = |handle: &Arc<Handle>| matches!(&**handle, Handle::Directory(open, _) if *open == node);
        if self.handles.read().values().any(is_open) || self.shown_open(node).is_some() {
            return false;
        }
        let mut sent = self.sent_back.lock();
        sent.retain(|(_, _, at)| at.elapsed() < STANDING);
        let again = sent.iter().any(|(pid, ino, _)| (*pid, *ino) == (caller.pid, node.ino()));
        if !again {
            sent.push((caller.pid, node.ino(), Instant::now()));
        }
        !again
    }

    pub(super) fn image_node(&self, serial: u32) -> NodeId {
        self.part_of_image(serial, ImagePart::Dir)
    }

    pub(super) fn part_of_image(&self, serial: u32, part: ImagePart) -> NodeId {
        NodeId::Image { serial, part, incarnation: self.incarnation(serial) }
    }

    pub(super) fn version_node(&self, serial: u32) -> NodeId {
        NodeId::Version { serial, part: VersionPart::Dir, incarnation: self.incarnation(serial) }
    }

    /// Opens a directory: a listing of its own, or nothing for trees, which are read in place.
    ///
    /// # Errors
    ///
    /// `NotDirectory`; `NotFound` if it is gone; `Corrupt` for a damaged tree. `Again` for a walker that was
    /// just refused to delete it.
    pub fn opendir(&self, caller: Caller, node: NodeId) -> Result<Opened> {
        refuse_walk(self.refused_walk(caller, node))?;
        if let NodeId::Tree { .. } = node {
            return Ok(Opened::Lasting);
        }
        Ok(Opened::Direct(self.open_handle(Handle::Directory(node, self.list(caller, node)?))))
    }

    /// The errno that this walker was refused the deletion of a directory with, or of what that lies in, a
    /// moment ago.
    pub(super) fn refused_walk(&self, caller: Caller, node: NodeId) -> Option<i32> {
        let image_of = |serial| self.store.catalog.read().versions.get(&serial).map(|v| v.image);
        let (version, image) = match node {
            NodeId::Image { serial, .. } => (None, Some(serial)),
            NodeId::Version { serial, .. } | NodeId::Tree { serial, .. } => (Some(serial), image_of(serial)),
            NodeId::Staging(number) => match self.staging_parent(number) {
                NodeId::Image { serial, .. } => (None, Some(serial)),
                _ => (None, None),
            },
            _ => (None, None),
        };
        let objects = version.map(Object::Version).into_iter().chain(image.map(Object::Image));
        objects.into_iter().find_map(|object| self.walkers.was_refused(caller.pid, object))
    }

    fn list(&self, caller: Caller, node: NodeId) -> Result<Vec<DirEntry>> {
        let mut all = vec![
            DirEntry::new(".", node, libc::S_IFDIR),
            DirEntry::new("..", self.parent_of(node), libc::S_IFDIR),
        ];
        match node {
            NodeId::Root => self.list_root(&mut all),
            NodeId::Image { serial, part: ImagePart::Dir, incarnation } => {
                self.list_image(caller, (serial, incarnation), &mut all)
            }
            NodeId::Version { serial, part: VersionPart::Dir, incarnation } => {
                self.list_version(caller, (serial, incarnation), &mut all)?
            }
            NodeId::In(kind, directory) => kind.place().list(self, caller, directory, &mut all)?,
            NodeId::Control(Control::Dir) => self.list_control(&mut all),
            NodeId::Staging(number) => self.list_staged(number, &mut all)?,
            NodeId::Version { serial, part: VersionPart::UsedBy, .. } => self.list_leases(serial, &mut all),
            NodeId::Ghost => {}
            _ => return Err(Error::NotDirectory { what: "this path".into() }),
        }
        Ok(all)
    }

    /// What the root shows.
    fn list_root(&self, all: &mut Vec<DirEntry>) {
        self.drop_shells();
        let model = self.store.catalog.read();
        if let Some(image) = model.default_image.filter(|_| !model.default_hidden) {
            all.push(DirEntry::new("default", NodeId::Link(Link::Image(image)), libc::S_IFLNK));
        }
        for (name, named) in model.names() {
            match named {
                Named::Image(serial)
                    if model.images.get(&serial).is_some_and(|i| !i.editable.offer.is_listed()) => {}
                Named::Image(serial) => all.push(DirEntry::new(name, self.image_node(serial), libc::S_IFDIR)),
                Named::Alias(serial) => {
                    all.extend(
                        alias_link(&model, serial)
                            .map(|l| DirEntry::new(name, NodeId::Link(l), libc::S_IFLNK)),
                    );
                }
            }
        }
        drop(model);
        all.extend(
            self.stagings
                .list(Place::Root)
                .into_iter()
                .map(|(name, node)| DirEntry::new(name, node, libc::S_IFDIR)),
        );
        for upload in self.uploads.under_way(Some(Place::Root)) {
            all.push(DirEntry::new(upload.name(), NodeId::Upload(upload.number), libc::S_IFREG));
        }
    }

    /// What an image shows; `of` is its serial and the incarnation that is listed.
    fn list_image(&self, caller: Caller, of: (u32, u8), all: &mut Vec<DirEntry>) {
        let (serial, incarnation) = of;
        if self.deleted_by(caller, Object::Image(serial)) && incarnation != self.incarnation(serial) {
            return;
        }
        let part = |part| NodeId::Image { serial, part, incarnation };
        let model = self.store.catalog.read();
        let Some(image) = model.images.get(&serial) else { return };
        // First, so that rm -r meets it first.
        all.push(DirEntry::new(".id", part(ImagePart::Id), libc::S_IFREG));
        all.push(DirEntry::new("metadata.json", part(ImagePart::Metadata), libc::S_IFREG));
        if let Some(form) = icons::form(&model, serial) {
            all.push(DirEntry::new(form.name(), part(ImagePart::Icon), libc::S_IFREG));
        }
        if let Some(newest) = model.latest(serial) {
            all.push(DirEntry::new("latest", NodeId::Link(Link::Number(newest.serial)), libc::S_IFLNK));
        }
        if let Some(target) = default_link(&model, image) {
            all.push(DirEntry::new("default", NodeId::Link(target), libc::S_IFLNK));
        }
        for version in model.versions_of(serial) {
            all.push(DirEntry::new(
                version.number.to_string(),
                self.version_node(version.serial),
                libc::S_IFDIR,
            ));
        }
        for label in model.labels_of(serial) {
            let version = model.version(serial, label.number).map(|v| NodeId::Link(Link::Number(v.serial)));
            all.extend(version.map(|node| DirEntry::new(format!("@{}", label.name), node, libc::S_IFLNK)));
        }
        drop(model);
        let here = self.stagings.list(Place::Image(serial));
        all.extend(here.into_iter().map(|(name, node)| DirEntry::new(name, node, libc::S_IFDIR)));
        for upload in self.uploads.under_way(Some(Place::Image(serial))) {
            all.push(DirEntry::new(upload.name(), NodeId::Upload(upload.number), libc::S_IFREG));
        }
    }

    /// What a version shows; `of` is its serial and the incarnation that is listed.
    fn list_version(&self, caller: Caller, of: (u32, u8), all: &mut Vec<DirEntry>) -> Result<()> {
        let (serial, incarnation) = of;
        let image = self.store.catalog.read().versions.get(&serial).map(|v| v.image);
        let walker = self.deleted_by(caller, Object::Version(serial))
            || image.is_some_and(|i| self.deleted_by(caller, Object::Image(i)));
        if walker || image.is_none() {
            return Ok(());
        }
        let part = |part| NodeId::Version { serial, part, incarnation };
        all.push(DirEntry::new(".id", part(VersionPart::Id), libc::S_IFREG));
        all.push(DirEntry::new("metadata.json", part(VersionPart::Metadata), libc::S_IFREG));
        match self.store.tree(serial) {
            Ok(slot) => list_content(serial, &slot.tree, part(VersionPart::Tar), all)?,
            // A damaged tree: the version can still be looked at, and deleted.
            Err(e) => log::error!("{e}"),
        }
        if let Some(kept) = self.kept_name(serial) {
            all.push(DirEntry::new(kept, part(VersionPart::Upload), libc::S_IFREG));
        }
        if self.has_manifest(serial) {
            all.push(DirEntry::new("manifest", part(VersionPart::Manifest), libc::S_IFREG));
        }
        if self.has_changes(serial) {
            all.push(DirEntry::new("changes", part(VersionPart::Changes), libc::S_IFREG));
        }
        all.push(DirEntry::new("used_by", part(VersionPart::UsedBy), libc::S_IFDIR));

        Ok(())
    }

    pub(super) fn parent_of(&self, node: NodeId) -> NodeId {
        match node {
            NodeId::Version { serial, part: VersionPart::Dir, .. } => {
                let image = self.store.catalog.read().versions.get(&serial).map(|v| v.image);
                image.map_or(NodeId::Root, |i| self.image_node(i))
            }
            NodeId::Version { serial, .. } => self.version_node(serial),
            NodeId::In(kind, number) => kind.place().parent(self, number),
            NodeId::Control(c) if c != Control::Dir => NodeId::Control(Control::Dir),
            NodeId::Staging(number) => self.staging_parent(number),
            _ => NodeId::Root,
        }
    }

    /// Walks a listing from entry `from` on, until `add` says that the buffer is full. `add` gets the number
    /// that the next listing would begin with.
    ///
    /// # Errors
    ///
    /// `Invalid` if the handle is not open; `NotDirectory` if it is of something else. Of a tree `NotFound`,
    /// `Corrupt`, `Io`.
    pub fn list_entries(
        &self,
        node: NodeId,
        fh: u64,
        from: u64,
        mut add: impl FnMut(u64, &DirEntry) -> bool,
    ) -> Result<()> {
        if let NodeId::Tree { serial, index } = node {
            return self.list_tree(serial, index, from, add);
        }
        let handle = self.handle(fh)?;
        let Handle::Directory(_, entries) = &*handle else {
            return Err(Error::NotDirectory { what: "this path".into() });
        };
        for (n, entry) in entries.iter().enumerate().skip(usize::try_from(from).unwrap_or(usize::MAX)) {
            if add(n as u64 + 1, entry) {
                break;
            }
        }
        Ok(())
    }

    /// Whether a name of a listing leads to what it led to when the directory was opened.
    pub fn still_leads(&self, caller: Caller, directory: NodeId, entry: &DirEntry) -> bool {
        match directory {
            NodeId::Tree { .. } => true,
            NodeId::In(kind, _) if !kind.place().changes() => true,
            // What is in the others stays what it is, or leads to a link that does.
            NodeId::Control(_) => true,
            _ => self.lookup(caller, directory, &entry.name).is_ok_and(|node| node == entry.node),
        }
    }

    fn list_tree(
        &self,
        serial: u32,
        index: u32,
        from: u64,
        mut add: impl FnMut(u64, &DirEntry) -> bool,
    ) -> Result<()> {
        let slot = self.store.tree(serial)?;
        let tree = &slot.tree;
        let directory = tree.node(index)?;
        let parent = tree.parent(&directory);
        let outermost = index == ROOT || Some(parent) == tree.beside();
        let up = if outermost { self.version_node(serial) } else { NodeId::Tree { serial, index: parent } };
        let mut n = from;
        loop {
            let entry = match n {
                0 => DirEntry::new(".", NodeId::Tree { serial, index }, libc::S_IFDIR),
                1 => DirEntry::new("..", up, libc::S_IFDIR),
                _ => {
                    let at = u32::try_from(n - 2).map_err(|_| stale())?;
                    let Some((name, child)) = tree.entry(&directory, at)? else { return Ok(()) };
                    let format = format_of(&tree.node(child)?);
                    DirEntry::new(name, NodeId::Tree { serial, index: child }, format)
                }
            };
            n += 1;
            if add(n, &entry) {
                return Ok(());
            }
        }
    }

    pub fn close_directory(&self, fh: u64) {
        self.handles.write().remove(&fh);
    }
}

fn default_link(model: &Model, image: &Image) -> Option<Link> {
    if image.default_hidden {
        return None;
    }
    match image.pinned {
        Some(number) => model.version(image.serial, number).map(|v| Link::Number(v.serial)),
        None => model.latest(image.serial).map(|_| Link::Latest(image.serial)),
    }
}

/// What a version's tree shows in the version: rootfs and its tar, and what lies beside them.
fn list_content(serial: u32, tree: &Tree, tar: NodeId, all: &mut Vec<DirEntry>) -> Result<()> {
    let mut add = |name: &[u8], node: NodeId, format: u32| all.push(DirEntry::new(name, node, format));
    if tree.has_rootfs() {
        add(b"rootfs", NodeId::Tree { serial, index: ROOT }, libc::S_IFDIR);
        add(b"rootfs.tar", tar, libc::S_IFREG);
    }
    let Some(index) = tree.beside() else { return Ok(()) };
    let beside = tree.node(index)?;
    let mut n = 0;
    while let Some((name, index)) = tree.entry(&beside, n)? {
        add(name, NodeId::Tree { serial, index }, format_of(&tree.node(index)?));
        n += 1;
    }
    Ok(())
}

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

/// The newest version whose upload was written under this name.
fn receipt_in<'m>(model: &'m Model, image: u32, name: &str, in_root: bool) -> Option<&'m Version> {
    model.live_image(image)?;
    model
        .versions_of(image)
        .rev()
        .find(|v| v.receipt.as_ref().is_some_and(|r| r.name == name && r.in_root == in_root))
}
