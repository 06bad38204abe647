//! A version's directory: its tree, rootfs.tar, and files about it.

use crate::base::json;
use crate::catalog::{self, Model};
use crate::error::{Error, Result};
use crate::fs::names::{a_directory, no_directory, not_found};
use crate::fs::node::{NodeId, VersionPart};
use crate::fs::opened::{OpenMode, Opened, frozen};
use crate::fs::places::{Attributes, Place, changes, made, named, tree};
use crate::fs::removal::{self, walkers};
use crate::fs::rights::{self, Shown};
use crate::fs::{Attr, Caller, DirEntry, ImageFs, SetAttr, stale};
use crate::images::{describe, last_use, leases, manifests};
use crate::tree::{NodeIndex, NodeKind, ROOT, Tree};

/// A version's directory, except for its tree and its leases.
pub struct Version;

impl Place for Version {
    fn lookup(&self, fs: &ImageFs, caller: Caller, directory: NodeId, name: &[u8]) -> Result<NodeId> {
        let NodeId::Version { serial, part: VersionPart::Dir, incarnation } = directory else {
            return Err(no_directory());
        };
        let part = |part| Ok(NodeId::Version { serial, part, incarnation });
        let walker = walkers::caller_has_deleted(fs, caller, serial);
        match name {
            b".id" if walker => Err(not_found(name)),
            b".id" => part(VersionPart::Id),
            b"metadata.json" => part(VersionPart::Metadata),
            b"rootfs" | b"used_by" if walker => Ok(NodeId::Ghost),
            b"used_by" => part(VersionPart::UsedBy),
            b"manifest" if has_manifest(fs, serial) => part(VersionPart::Manifest),
            b"changes" if walker || changes::are_there(fs, serial) => part(VersionPart::Changes),
            _ if made::kept_name(fs, serial).is_some_and(|kept| kept.as_bytes() == name) => {
                part(VersionPart::Upload)
            }
            _ => {
                let slot = fs.store.tree(serial)?;
                match name {
                    b"rootfs.tar" if slot.tree.has_rootfs() => part(VersionPart::Tar),
                    b"rootfs" if slot.tree.has_rootfs() => Ok(NodeId::Tree { serial, index: ROOT }),
                    _ => {
                        let index = beside(&slot.tree, name)?.ok_or_else(|| not_found(name))?;
                        let directory = matches!(slot.tree.node(index)?.kind, NodeKind::Directory { .. });
                        Ok(if walker && directory { NodeId::Ghost } else { NodeId::Tree { serial, index } })
                    }
                }
            }
        }
    }

    fn list(&self, fs: &ImageFs, caller: Caller, directory: NodeId, all: &mut Vec<DirEntry>) -> Result<()> {
        let NodeId::Version { serial, part: VersionPart::Dir, incarnation } = directory else {
            return Err(no_directory());
        };
        if walkers::caller_has_deleted(fs, caller, serial)
            || !fs.store.catalog.read().versions.contains_key(&serial)
        {
            return Ok(());
        }
        let part = |part| NodeId::Version { serial, part, incarnation };
        all.push(DirEntry::new(".id", part(VersionPart::Id), libc::S_IFREG));
        all.push(DirEntry::new("metadata.json", part(VersionPart::Metadata), libc::S_IFREG));
        match fs.store.tree(serial) {
            Ok(slot) => list_content(serial, &slot.tree, part(VersionPart::Tar), all)?,
            // The tree is damaged, but the version can still be looked at and deleted.
            Err(e) => log::error!("{e}"),
        }
        if let Some(kept) = made::kept_name(fs, serial) {
            all.push(DirEntry::new(kept, part(VersionPart::Upload), libc::S_IFREG));
        }
        if has_manifest(fs, serial) {
            all.push(DirEntry::new("manifest", part(VersionPart::Manifest), libc::S_IFREG));
        }
        if changes::are_there(fs, serial) {
            all.push(DirEntry::new("changes", part(VersionPart::Changes), libc::S_IFREG));
        }
        all.push(DirEntry::new("used_by", part(VersionPart::UsedBy), libc::S_IFDIR));
        Ok(())
    }

    fn parent(&self, fs: &ImageFs, node: NodeId) -> NodeId {
        let image = self.image(&fs.store.catalog.read(), node);
        image.map_or(NodeId::Root, |image| fs.image_node(image))
    }

    fn image(&self, model: &Model, node: NodeId) -> Option<u32> {
        let NodeId::Version { serial, .. } = node else { return None };
        model.image_of(serial)
    }

    fn attr(&self, fs: &ImageFs, node: NodeId, own: Attr) -> Result<Attr> {
        let NodeId::Version { serial, part, .. } = node else { return Err(stale()) };
        let made = match part {
            VersionPart::Metadata => text_of(fs, serial).map(|text| text.len() as u64),
            VersionPart::Changes => changes::size(fs, serial),
            VersionPart::Manifest => Ok(manifest_of(fs, serial).map_or(0, |text| text.len() as u64)),
            _ => Ok(0),
        };
        let model = fs.store.catalog.read();
        let Ok((image, version)) = version_of(&model, serial) else {
            let gone = Attr { size: 0, data: 0, ..own };
            let gone = match part {
                VersionPart::Dir => Attr { mode: libc::S_IFDIR | 0o777, ..gone },
                _ => gone.file(0o444, 0),
            };
            return Ok(fs.shown_open(node).unwrap_or(gone));
        };
        let live = model.is_live(version);
        let mode = rights::of_image(fs, image).mode;
        let own = Attr { uid: image.uid, gid: image.gid, ..own }.at(version.created_at);
        let lasting = |attr: Attr| Attr { lasting: live, lasting_name: live, ..attr };
        Ok(match part {
            // rm -r starts in this directory, so users who may change the image may write to it. imgfs
            // refuses all other changes in it.
            VersionPart::Dir => lasting(Attr { mode: libc::S_IFDIR | mode & 0o777, links: 4, ..own }),
            VersionPart::Id => own.file(mode & 0o444, version.id.len() as u64 + 1),
            VersionPart::Tar => lasting(own.file(mode & 0o444, version.facts.size)),
            VersionPart::Upload => lasting(own.file(mode & 0o444, version.facts.upload_size)),
            _ => own.file(mode & 0o444, made?),
        })
    }

    fn set(&self, fs: &ImageFs, caller: Caller, node: NodeId, _changes: &SetAttr) -> Result<()> {
        match node {
            NodeId::Version { serial, .. } if !walkers::caller_has_deleted(fs, caller, serial) => {
                Err(frozen(node))
            }
            _ => Ok(()),
        }
    }

    fn rights(&self, fs: &ImageFs, node: NodeId) -> Option<(Shown, u32)> {
        let NodeId::Version { serial, part, .. } = node else { return None };
        let most = if part == VersionPart::Dir { rights::ALL } else { 4 };
        let model = fs.store.catalog.read();
        let (image, _) = version_of(&model, serial).ok()?;
        Some((rights::of_image(fs, image), most))
    }

    fn path(&self, fs: &ImageFs, directory: NodeId, name: &str) -> String {
        format!("{}/{name}", fs.path_of(directory))
    }

    fn opens_slowly(&self, node: NodeId) -> bool {
        matches!(node, NodeId::Version { part: VersionPart::Upload, .. })
    }

    fn open(&self, fs: &ImageFs, _caller: Caller, node: NodeId, mode: OpenMode) -> Result<Opened> {
        if mode.writes {
            return Err(frozen(node));
        }
        let NodeId::Version { serial, part, .. } = node else { return Err(stale()) };
        match part {
            VersionPart::Tar => {
                last_use::note(&fs.store, serial);
                made::open(fs, node, serial, 0)
            }
            VersionPart::Upload => {
                last_use::note(&fs.store, serial);
                made::open_kept(fs, node, serial)
            }
            VersionPart::Metadata => Ok(fs.opened_text(text_of(fs, serial)?)),
            VersionPart::Changes => Ok(fs.opened_text(changes::text(fs, serial)?)),
            VersionPart::Manifest => Ok(fs.opened_text(manifest_of(fs, serial).ok_or_else(stale)?)),
            VersionPart::Id => {
                let id = fs.store.catalog.read().versions.get(&serial).map(|version| version.id.clone());
                Ok(fs.opened_text(format!("{}\n", id.ok_or_else(stale)?)))
            }
            VersionPart::Dir | VersionPart::UsedBy => Err(a_directory()),
        }
    }

    fn rmdir(&self, fs: &ImageFs, caller: Caller, node: NodeId, parent: NodeId) -> Result<()> {
        match node {
            NodeId::Version { serial, part: VersionPart::Dir, .. } => {
                removal::delete_version(fs, caller, serial, parent)
            }
            _ => Err(no_directory()),
        }
    }

    fn unlink(&self, fs: &ImageFs, caller: Caller, directory: NodeId, _name: &[u8]) -> Result<()> {
        match directory {
            NodeId::Version { serial, .. } if walkers::caller_has_deleted(fs, caller, serial) => Ok(()),
            _ => Err(frozen(directory)),
        }
    }

    fn rename(
        &self,
        _fs: &ImageFs,
        _caller: Caller,
        node: NodeId,
        _from: &super::Named,
        _to: &super::Named,
    ) -> Result<()> {
        match node {
            NodeId::Version { part: VersionPart::Dir, .. } => {
                Err(Error::Managed { what: "a version's place".into(), why: "versions do not move" })
            }
            _ => Err(frozen(node)),
        }
    }

    fn attributes(&self, fs: &ImageFs, node: NodeId) -> Result<(Attributes, Attributes)> {
        let NodeId::Version { serial, part, .. } = node else { return Err(stale()) };
        let version = || {
            let model = fs.store.catalog.read();
            Ok::<_, Error>(version_of(&model, serial)?.1.clone())
        };
        Ok(match part {
            VersionPart::Dir => {
                let version = version()?;
                let cost = fs.store.cost(&version)?;
                let all = vec![
                    named("id", version.id),
                    named("digest", version.facts.digest),
                    named("logical_bytes", version.facts.counts.logical_bytes.to_string()),
                    named("unique_bytes", cost.unique_bytes.to_string()),
                    named("stored_bytes", cost.stored_bytes.to_string()),
                ];
                (all, Vec::new())
            }
            VersionPart::Tar => (Vec::new(), vec![named("digest", version()?.facts.digest)]),
            _ => (Vec::new(), Vec::new()),
        })
    }
}

/// A version with its image.
///
/// # Errors
///
/// `NotFound`.
pub(in crate::fs) fn version_of(model: &Model, serial: u32) -> Result<(&catalog::Image, &catalog::Version)> {
    let version = model.versions.get(&serial).ok_or_else(stale)?;
    Ok((model.images.get(&version.image).ok_or_else(stale)?, version))
}

/// Finds a name beside the root file system of a version.
fn beside(tree: &Tree, name: &[u8]) -> Result<Option<NodeIndex>> {
    let Some(index) = tree.beside() else { return Ok(None) };
    tree.lookup(&tree.node(index)?, name)
}

/// Adds what a version shows of its tree: rootfs and its tar, and files beside them.
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
        add(name, NodeId::Tree { serial, index }, tree::format_of(&tree.node(index)?));
        n += 1;
    }
    Ok(())
}

/// Whether the version has a manifest that is not a file of its tree.
fn has_manifest(fs: &ImageFs, serial: u32) -> bool {
    let model = fs.store.catalog.read();
    model.versions.get(&serial).is_some_and(|version| !version.facts.manifest.is_empty())
}

/// A version's manifest, with later edits. `None` if it has none.
fn manifest_of(fs: &ImageFs, serial: u32) -> Option<String> {
    let model = fs.store.catalog.read();
    manifests::shown(&model, model.versions.get(&serial)?)
}

/// A version's metadata.json.
fn text_of(fs: &ImageFs, serial: u32) -> Result<String> {
    let version = fs.store.catalog.read().versions.get(&serial).cloned().ok_or_else(stale)?;
    let cost = fs.store.cost(&version)?;
    let links = leases::links(&fs.store.catalog.read(), |v| v.serial == serial);
    let stale = leases::stale(links);
    Ok(json::pretty(&describe::version(&fs.store.catalog.read(), &version, cost, &stale)))
}
