//! Journey 2, ls -l: what stat and readlink show of a node.

use crate::base::json;
use crate::catalog::{Image, Model, Root, Version};
use crate::error::{Error, Result};
use crate::fs::node::{ImagePart, Link, NodeId, VersionPart};
use crate::fs::stale;
use crate::fs::{Attr, Caller, DAEMON, ImageFs};
use crate::images::describe;
use crate::images::icons;
use crate::images::links::{path_of_target, target_of};
use crate::tree::{Bytes, Kind, Node, ROOT};

impl ImageFs {
    /// What stat shows of a node; of some files each user sees what that one may know.
    ///
    /// # Errors
    ///
    /// Those of `attr`.
    pub fn attr_for(&self, caller: Caller, node: NodeId) -> Result<Attr> {
        let attr = self.attr(node)?;
        match node {
            NodeId::Control(_) if attr.mode & libc::S_IFMT == libc::S_IFREG => {
                let (_, size) = self.control_shape(caller, node)?;
                Ok(Attr { size, data: size, ..attr })
            }
            _ => Ok(attr),
        }
    }

    /// What stat shows of a node to the daemon itself.
    ///
    /// # Errors
    ///
    /// `NotFound` if it is gone; `Corrupt`, `Io` if what is shown of it cannot be read.
    pub fn attr(&self, node: NodeId) -> Result<Attr> {
        let attr = self.attr_of(node)?;
        // A tree never changes; the rest may through another mount.
        let lasting = matches!(node, NodeId::Tree { .. }) || !self.mounts.are_several();
        Ok(Attr { lasting: attr.lasting && lasting, lasting_name: attr.lasting_name && lasting, ..attr })
    }

    /// What the mount's owner has, changed at `at`; neither the name nor the rest holds for a while.
    fn own(&self, node: NodeId, mode: u32, size: u64, at: i64) -> Attr {
        Attr {
            ino: node.ino(),
            mode,
            links: if mode & libc::S_IFMT == libc::S_IFDIR { 2 } else { 1 },
            uid: self.mount.uid,
            gid: self.mount.gid,
            size,
            data: size,
            mtime: split_time(at),
            ctime: split_time(at),
            device: (0, 0),
            lasting_name: false,
            lasting: false,
        }
    }

    fn attr_of(&self, node: NodeId) -> Result<Attr> {
        let (directory, file, link) = (libc::S_IFDIR, libc::S_IFREG, libc::S_IFLNK | 0o777);
        match node {
            NodeId::Tree { serial, index } => self.tree_attr(node, serial, index),
            NodeId::Root => {
                let images = self.store.catalog.read().live_images().count();
                let links = u32::try_from(images).unwrap_or(u32::MAX - 2) + 2;
                let root = self.root();
                let attr = self.own(node, directory | self.root_rights().mode, 4096, self.root_changed());
                Ok(Attr { links, lasting: true, uid: root.uid, gid: root.gid, ..attr })
            }
            NodeId::Image { serial, part, .. } => self.image_attr(node, serial, part),
            NodeId::Version { serial, part, .. } => self.version_attr(node, serial, part),
            NodeId::Link(of) => {
                let (uid, gid) = self.owner_of_link(of);
                Ok(Attr {
                    uid,
                    gid,
                    ..self.own(node, link, self.readlink(node)?.len() as u64, self.root_changed())
                })
            }
            NodeId::StagedLink(number) => {
                let (uid, gid) = self.staged_owner(number);
                Ok(Attr {
                    uid,
                    gid,
                    ..self.own(node, link, self.readlink(node)?.len() as u64, self.root_changed())
                })
            }
            NodeId::Upload(number) => self.upload_attr(node, number),
            NodeId::Receipt(serial) => self.receipt_attr(node, serial),
            NodeId::Lease(serial) => self.lease_attr(serial, self.own(node, file, 0, 0)),
            NodeId::Staging(_) | NodeId::Staged { .. } => {
                self.staged_attr(node, self.own(node, directory, 0, 0))
            }
            NodeId::Ghost => Ok(self.own(node, directory | 0o555, 4096, 0)),
            NodeId::In(kind, number) => {
                kind.place().attr(self, number, self.own(node, directory, 4096, self.root_changed()))
            }
            NodeId::Control(_) => {
                let (format, size) = self.control_shape(DAEMON, node)?;
                let mode = if format == directory { 0o755 } else { 0o444 };
                Ok(self.own(node, format | mode, size, self.root_changed()))
            }
        }
    }

    /// Of a file in a version's tree.
    fn tree_attr(&self, node: NodeId, serial: u32, index: u32) -> Result<Attr> {
        let slot = self.store.tree(serial)?;
        let found = slot.tree.node(index)?;
        let mut attr = attr_in_tree(node, &found, index);
        match found.kind {
            Kind::File(Bytes::Sparse(_)) => {
                attr.data = slot.tree.sparse_map(&found)?.iter().map(|(_, len)| len).sum()
            }
            Kind::File(Bytes::Recipe(recipe)) => attr.data = slot.tree.recipe(recipe)?.data_size()?,
            _ => {}
        }
        Ok(attr)
    }

    /// Of an image, and of what is its own.
    fn image_attr(&self, node: NodeId, serial: u32, part: ImagePart) -> Result<Attr> {
        let model = self.store.catalog.read();
        let Some(image) = model.images.get(&serial) else {
            // Gone for good: its walker still removes what it has listed.
            return Ok(self.own(
                node,
                if part == ImagePart::Dir { libc::S_IFDIR | 0o777 } else { libc::S_IFREG | 0o444 },
                0,
                0,
            ));
        };
        let owned = |attr: Attr| Attr { uid: image.uid, gid: image.gid, ..attr };
        let mode = self.image_rights(image).mode;
        let live = image.trashed_at.is_none();
        Ok(match part {
            ImagePart::Dir => {
                let links = u32::try_from(model.versions_of(serial).count()).unwrap_or(0) + 2;
                let attr = self.own(node, libc::S_IFDIR | mode, 4096, image.updated_at);
                Attr { links, lasting_name: live, lasting: live, ..owned(attr) }
            }
            ImagePart::Id => owned(self.own(
                node,
                libc::S_IFREG | mode & 0o444,
                image.id.len() as u64 + 1,
                image.created_at,
            )),
            ImagePart::Icon => {
                let size = icons::bytes(&model, serial).map_or(0, |bytes| bytes.len() as u64);
                owned(self.own(node, libc::S_IFREG | mode & 0o666, size, image.updated_at))
            }
            ImagePart::Metadata => {
                let size = json::pretty(&describe::image(&model, image)).len() as u64;
                owned(self.own(node, libc::S_IFREG | mode & 0o666, size, image.updated_at))
            }
        })
    }

    /// Of a version, and of what is made for it.
    fn version_attr(&self, node: NodeId, serial: u32, part: VersionPart) -> Result<Attr> {
        let size = match part {
            VersionPart::Metadata => self.version_text(serial).map(|text| text.len() as u64),
            VersionPart::Changes => self.changes_size(serial),
            VersionPart::Manifest => Ok(self.manifest_text(serial).map_or(0, |text| text.len() as u64)),
            _ => Ok(0),
        };
        let model = self.store.catalog.read();
        let Ok((image, version)) = version_of(&model, serial) else {
            let mode = if matches!(part, VersionPart::Dir | VersionPart::UsedBy) {
                libc::S_IFDIR | 0o777
            } else {
                libc::S_IFREG | 0o444
            };
            return Ok(self.shown_open(node).unwrap_or_else(|| self.own(node, mode, 0, 0)));
        };
        let live = model.is_live(version);
        let mode = self.image_rights(image).mode;
        let attr = match part {
            VersionPart::Dir => {
                // rm -r begins in it, by who may change the image; anything else in it is refused.
                let attr = self.own(node, libc::S_IFDIR | mode & 0o777, 4096, version.created_at);
                Attr { links: 4, lasting_name: live, lasting: live, ..attr }
            }
            VersionPart::Id => {
                self.own(node, libc::S_IFREG | mode & 0o444, version.id.len() as u64 + 1, version.created_at)
            }
            VersionPart::Tar => Attr {
                lasting: live,
                lasting_name: live,
                ..self.own(node, libc::S_IFREG | mode & 0o444, version.facts.size, version.created_at)
            },
            VersionPart::Upload => Attr {
                lasting: live,
                lasting_name: live,
                ..self.own(node, libc::S_IFREG | mode & 0o444, version.facts.upload_size, version.created_at)
            },
            VersionPart::UsedBy => {
                self.own(node, libc::S_IFDIR | used_by_mode(mode, live), 4096, version.created_at)
            }
            VersionPart::Metadata | VersionPart::Changes | VersionPart::Manifest => {
                self.own(node, libc::S_IFREG | mode & 0o444, size?, version.created_at)
            }
        };
        Ok(Attr { uid: image.uid, gid: image.gid, ..attr })
    }

    /// Of a file that is being written, or was.
    fn upload_attr(&self, node: NodeId, number: u64) -> Result<Attr> {
        let upload = self.uploads.by_number(number).ok_or_else(stale)?;
        let (attr, model) = (upload.attr(node.ino()), self.store.catalog.read());
        // Once it is a version, who may change the image may write that again. It is hidden from who
        // may not read it.
        match upload.published_as().and_then(|serial| version_of(&model, serial).ok()) {
            Some((image, _)) => Ok(Attr { mode: attr.mode | self.image_rights(image).mode & 0o022, ..attr }),
            None => Ok(attr),
        }
    }

    /// Of the name under which a version was written.
    fn receipt_attr(&self, node: NodeId, serial: u32) -> Result<Attr> {
        let model = self.store.catalog.read();
        let version = model.versions.get(&serial).ok_or_else(stale)?;
        let receipt = version.receipt.as_ref().ok_or_else(stale)?;
        let image = model.images.get(&version.image).ok_or_else(stale)?;
        let mode = self.receipt_mode(image, libc::S_IFREG | receipt.mode);
        let attr = self.own(node, mode, version.facts.upload_size, receipt.mtime);
        Ok(Attr { uid: version.facts.uid, gid: image.gid, ..attr })
    }

    /// What the image lets nobody read, its receipt does not, either; who may change it may write that again.
    fn receipt_mode(&self, image: &Image, own: u32) -> u32 {
        let shown = self.image_rights(image).mode;
        own & !0o444 | own & shown & 0o444 | shown & 0o022
    }

    /// The owner and mode of the mount's root.
    pub(super) fn root(&self) -> Root {
        let own = Root { uid: self.mount.uid, gid: self.mount.gid, mode: 0o755, acl: None };
        self.store.catalog.read().root.clone().unwrap_or(own)
    }

    /// Whose a link is: in an image its owner's, as an alias that of the image; `default`, which has the
    /// number of an alias of the same image, is for imgfs to guard.
    fn owner_of_link(&self, link: Link) -> (u32, u32) {
        let model = self.store.catalog.read();
        let image = match link {
            Link::Image(image)
            | Link::Latest(image)
            | Link::DeepImage(image)
            | Link::DeeperImage(image)
            | Link::DeepestImage(image)
            | Link::ImageLatest(image)
            | Link::ImageDefault(image)
            | Link::TrashedDefault(image)
            | Link::TrashedImageDefault(image) => Some(image),
            Link::Label(label) | Link::TrashedLabel(label) => {
                model.labels.get(&label).map(|label| label.image)
            }
            Link::TrashedAlias(alias) => model.aliases.get(&alias).map(|alias| alias.image),
            Link::Version(v) | Link::Number(v) | Link::DeepVersion(v) => {
                model.versions.get(&v).map(|v| v.image)
            }
        };
        image.and_then(|i| model.images.get(&i)).map_or((self.mount.uid, self.mount.gid), |i| (i.uid, i.gid))
    }

    /// A symlink's target.
    ///
    /// # Errors
    ///
    /// `NotFound` if it is gone; `Invalid` if it is no symlink. Of a tree `Corrupt`, `Io`.
    pub fn readlink(&self, node: NodeId) -> Result<Vec<u8>> {
        let model = self.store.catalog.read();
        let name = |image: u32| model.images.get(&image).map(|i| i.name.clone()).ok_or_else(stale);
        let versioned = |serial: u32| {
            let version = model.versions.get(&serial).ok_or_else(stale)?;
            Ok::<_, Error>(format!("{}/{}", name(version.image)?, version.number))
        };
        let label = |serial: u32| {
            let label = model.labels.get(&serial).ok_or_else(stale)?;
            Ok::<_, Error>(format!("{}/@{}", name(label.image)?, label.name))
        };
        let text = match node {
            NodeId::Tree { serial, index } => {
                drop(model);
                let slot = self.store.tree(serial)?;
                return Ok(slot.tree.symlink(&slot.tree.node(index)?)?.to_vec());
            }
            NodeId::StagedLink(number) => return self.staged_target(number),
            NodeId::In(kind, number) => {
                drop(model);
                return kind.place().readlink(self, number);
            }
            NodeId::Lease(serial) => {
                drop(model);
                return self.lease_target(serial);
            }
            NodeId::Link(Link::Image(serial)) => name(serial)?,
            NodeId::Link(Link::Version(serial)) => versioned(serial)?,
            NodeId::Link(Link::Number(serial)) => {
                model.versions.get(&serial).ok_or_else(stale)?.number.to_string()
            }
            NodeId::Link(Link::Latest(_)) => "latest".into(),
            NodeId::Link(Link::DeepImage(serial)) => format!("../../{}", name(serial)?),
            NodeId::Link(Link::DeeperImage(serial)) => format!("../../../{}", name(serial)?),
            NodeId::Link(Link::DeepestImage(serial)) => format!("../../../../{}", name(serial)?),
            NodeId::Link(Link::DeepVersion(serial)) => format!("../../{}", versioned(serial)?),
            NodeId::Link(Link::ImageLatest(serial)) => format!("{}/latest", name(serial)?),
            NodeId::Link(Link::ImageDefault(serial)) => format!("{}/default", name(serial)?),
            NodeId::Link(Link::Label(serial)) => label(serial)?,
            NodeId::Link(Link::TrashedLabel(serial)) => format!("../../{}", label(serial)?),
            NodeId::Link(Link::TrashedDefault(serial)) => format!("../../{}", name(serial)?),
            NodeId::Link(Link::TrashedImageDefault(serial)) => format!("../../{}/default", name(serial)?),
            NodeId::Link(Link::TrashedAlias(serial)) => {
                let alias = model.aliases.get(&serial).ok_or_else(stale)?;
                let target = path_of_target(&model, &target_of(alias)).ok_or_else(stale)?;
                format!("../../{target}")
            }
            _ => return Err(Error::Invalid { what: "this path".into(), why: "it is not a symlink".into() }),
        };
        Ok(text.into_bytes())
    }
}

/// Who may read an image may use it, and end what is his.
fn used_by_mode(image: u32, live: bool) -> u32 {
    let reads = image & 0o444;
    let leases = if live { reads >> 1 } else { 0 };
    reads | leases | image & 0o111 | libc::S_ISVTX
}

/// The type bits of a tree's node.
pub(super) fn format_of(node: &Node) -> u32 {
    match node.kind {
        Kind::File { .. } => libc::S_IFREG,
        Kind::Directory { .. } => libc::S_IFDIR,
        Kind::Symlink => libc::S_IFLNK,
        Kind::CharDevice { .. } => libc::S_IFCHR,
        Kind::BlockDevice { .. } => libc::S_IFBLK,
        Kind::Fifo => libc::S_IFIFO,
    }
}

fn attr_in_tree(id: NodeId, node: &Node, index: u32) -> Attr {
    let device = match node.kind {
        Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } => (major, minor),
        _ => (0, 0),
    };
    let size = if matches!(node.kind, Kind::Directory { .. }) { 4096 } else { node.size };
    Attr {
        ino: id.ino(),
        mode: format_of(node) | node.mode,
        links: node.links,
        uid: node.uid,
        gid: node.gid,
        size,
        data: size,
        mtime: node.mtime,
        ctime: node.mtime,
        device,
        // A walker that deletes the version must not take the directory that a chroot stands in: its name is
        // asked for each time.
        lasting_name: index != ROOT,
        lasting: true,
    }
}

pub(super) fn version_of(model: &Model, serial: u32) -> Result<(&Image, &Version)> {
    let version = model.versions.get(&serial).ok_or_else(stale)?;
    Ok((model.images.get(&version.image).ok_or_else(stale)?, version))
}

pub(super) fn split_time(nanoseconds: i64) -> (i64, u32) {
    (nanoseconds.div_euclid(1_000_000_000), nanoseconds.rem_euclid(1_000_000_000) as u32)
}
