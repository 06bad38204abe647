//! Journey 4, rmdir and rm; mkdir, chmod, touch; metadata.json edited in place.

use std::sync::Arc;

use crate::base::name::parse_number;
use crate::catalog::{Named, Root, Trashed};
use crate::error::{Error, Result};
use crate::fs::acl::asked;
use crate::fs::ghost::{Object, refuse_walk};
use crate::fs::names::label_of;
use crate::fs::names::text_of;
use crate::fs::node::{ImagePart, NodeId, VersionPart};
use crate::fs::opened::frozen;
use crate::fs::places::trash::TRASH;
use crate::fs::places::{no_mkdir, no_rmdir, no_unlink};
use crate::fs::stale;
use crate::fs::upload::{Place, refuse_over};
use crate::fs::{Attr, Caller, Handle, ImageFs, Reply};
use crate::images::icons::Form;
use crate::images::rules::refuse_immutable;
use crate::images::trash;
use crate::images::versions::directory_mode;
use crate::images::{labels, links, versions};

/// The times and modes that setattr may set.
#[derive(Clone, Copy, Debug, Default)]
pub struct Changes {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    /// Nanoseconds since 1970.
    pub mtime: Option<i64>,
}

impl ImageFs {
    /// How a file is called in messages.
    pub(super) fn path_in(&self, parent: NodeId, name: &[u8]) -> String {
        let name = text_of(name);
        let model = self.store.catalog.read();
        match parent {
            NodeId::Root => format!("/{name}"),
            NodeId::Image { serial, .. } => {
                format!("/{}/{name}", model.images.get(&serial).map_or("?", |i| i.name.as_str()))
            }
            NodeId::Version { serial, .. } => format!("/{}/{name}", self.store.path_of(&model, serial)),
            NodeId::Tree { serial, .. } => {
                format!("/{}/rootfs/.../{name}", self.store.path_of(&model, serial))
            }
            NodeId::Staging(_) => format!("a staging directory's {name}"),
            NodeId::In(kind, directory) => {
                drop(model);
                kind.place().path(self, directory, &name)
            }
            _ => format!("/.imgfs/{name}"),
        }
    }

    /// How an image or a version is called in messages.
    pub(super) fn path_of(&self, node: NodeId) -> String {
        let model = self.store.catalog.read();
        match node {
            NodeId::Image { serial, .. } => {
                format!("/{}", model.images.get(&serial).map_or("?", |i| i.name.as_str()))
            }
            NodeId::Version { serial, .. } | NodeId::Tree { serial, .. } => {
                format!("/{}", self.store.path_of(&model, serial))
            }
            _ => "/".into(),
        }
    }

    /// `mkdir MNT/web`.
    ///
    /// # Errors
    ///
    /// `BadName`, `NameTooLong`, `Taken`, `OverQuota`, `OverLimit`, `NotYours`, `Attached`, `NotFound`.
    /// `Managed`, `NoTree`, `Unsupported`, `Frozen` where no directory can be made. `Io`; those of
    /// `Catalog::commit`.
    pub fn mkdir(&self, caller: Caller, parent: NodeId, name: &[u8], mode: u32) -> Result<NodeId> {
        let made = match parent {
            NodeId::Root | NodeId::Image { part: ImagePart::Dir, .. } if name.starts_with(b".") => {
                let made = self.place_of(parent).and_then(|place| {
                    if let Place::Image(serial) = place {
                        self.refuse_attached(serial)?;
                    }
                    self.make_staging(caller, place, name)
                });
                return made.map_err(|e| self.refused(caller, "mkdir", &self.path_in(parent, name), e));
            }
            NodeId::Staging(_) => Err(Error::Unsupported {
                what: "a directory in a staging directory".into(),
                instead: "tar what it is to hold: tar -C ROOT -cf .new/rootfs.tar .",
            }),
            NodeId::Root => {
                let name = self.new_name(caller, name);
                name.and_then(|name| versions::make_image(&self.store, &name, caller.uid, caller.gid, mode))
            }
            NodeId::Image { part: ImagePart::Dir, .. } if parse_number(name).is_some() => {
                Err(Error::Managed {
                    what: format!("the number {}", text_of(name)),
                    why: "a tarball copied into the image gets the next one",
                })
            }
            NodeId::Image { part: ImagePart::Dir, .. } => Err(Error::NoTree { what: text_of(name) }),
            NodeId::In(kind, directory) => {
                let made = kind.place().mkdir(self, caller, directory, name);
                return made.map_err(|e| self.refused(caller, "mkdir", &self.path_in(parent, name), e));
            }
            NodeId::Version { part: VersionPart::UsedBy, .. } => Err(Error::Managed {
                what: "a directory in used_by".into(),
                why: "a lease is a file or a symlink: touch it",
            }),
            NodeId::Version { .. } | NodeId::Tree { .. } | NodeId::Ghost => {
                Err(Error::Frozen { what: "a version".into() })
            }
            _ => Err(no_mkdir()),
        };
        let serial = made.map_err(|e| {
            self.note_refused_in(caller, parent);
            self.refused(caller, "mkdir", &self.path_in(parent, name), e)
        })?;
        self.shells.note(caller, serial);
        self.store.journal.log(caller.uid, "mkdir", &text_of(name), "made");
        self.root_has_changed();
        Ok(self.image_node(serial))
    }

    /// `rmdir MNT/web`, `rmdir MNT/web/1`, and the last step of a walker.
    ///
    /// # Errors
    ///
    /// Those of `lookup`, `versions::delete_image`, `versions::delete_version`, and of `trash::purge`.
    /// `NotEmpty`, `InUse`, `NotYours`, `Attached`; `Managed`, `Frozen` for what stays. `Again` for a walker
    /// that was just refused the whole.
    pub fn rmdir(&self, caller: Caller, parent: NodeId, name: &[u8]) -> Result<()> {
        let path = self.path_in(parent, name);
        self.rmdir_inner(caller, parent, name).map_err(|e| self.refused(caller, "rmdir", &path, e))
    }

    fn rmdir_inner(&self, caller: Caller, parent: NodeId, name: &[u8]) -> Result<()> {
        self.refuse_refused(caller, parent)?;
        match parent {
            NodeId::Ghost => return Ok(()),
            // What its own process has deleted goes at once.
            NodeId::Tree { serial, .. } | NodeId::Version { serial, .. }
                if self.has_deleted(caller, serial) =>
            {
                return Ok(());
            }
            NodeId::Tree { .. } | NodeId::Version { .. } => {
                return Err(Error::Frozen { what: "a version".into() });
            }
            _ => {}
        }
        let found = self.lookup(caller, parent, name)?;
        if let NodeId::Image { serial, incarnation, .. } | NodeId::Version { serial, incarnation, .. } = found
            && incarnation == self.incarnation(serial)
            && self.walkers.end_all(caller.pid, parent.ino())
        {
            // The end of a walk, and somebody has put another one there, or the same one back, or has renamed
            // what was deleted before it was: what is there now stays. It must not look like success: the
            // kernel would take the directory for dead.
            return Err(Error::NotFound { what: format!("{} any more: this is another", text_of(name)) });
        }
        match found {
            NodeId::Image { serial, part: ImagePart::Dir, .. } => {
                if self.walkers.ghost_named(caller.pid, parent.ino(), name) == Some(Object::Image(serial)) {
                    self.walkers.end(caller.pid, parent.ino(), name);
                    return Ok(());
                }
                self.delete_image(caller, serial, parent)
            }
            NodeId::Version { serial, part: VersionPart::Dir, .. } => {
                if self.walkers.ghost_named(caller.pid, parent.ino(), name) == Some(Object::Version(serial)) {
                    self.walkers.end(caller.pid, parent.ino(), name);
                    return Ok(());
                }
                if let NodeId::Image { serial: image, .. } = parent
                    && self.walkers.has_deleted(caller.pid, Object::Image(image))
                {
                    return Ok(());
                }
                self.delete_version(caller, serial, parent)
            }
            NodeId::In(kind, number) => kind.place().rmdir(self, caller, number),
            NodeId::Control(_) => Err(no_rmdir()),
            NodeId::Staging(number) => self.remove_staging(number),
            NodeId::Ghost => Ok(()),
            _ => Err(Error::NotDirectory { what: text_of(name) }),
        }
    }

    /// Whether this process has deleted the version, or its image.
    fn has_deleted(&self, caller: Caller, serial: u32) -> bool {
        let image = self.store.catalog.read().versions.get(&serial).map(|v| v.image);
        self.walkers.has_deleted(caller.pid, Object::Version(serial))
            || image.is_some_and(|i| self.walkers.has_deleted(caller.pid, Object::Image(i)))
    }

    /// Refuses what the commit would refuse in a view, before anything is done.
    pub(super) fn refuse_attached(&self, image: u32) -> Result<()> {
        let model = self.store.catalog.read();
        model.images.get(&image).map_or(Ok(()), |image| model.refuse_attached(image))
    }

    /// The same, of what stands in an image beside its versions: metadata.json, its icon.
    pub(super) fn refuse_edit(&self, image: u32) -> Result<()> {
        self.refuse_attached(image)?;
        refuse_immutable(self.store.catalog.read().live_image(image).ok_or_else(stale)?)
    }

    pub(super) fn count_incarnation(&self, serials: impl IntoIterator<Item = u32>) {
        let mut all = self.mounts.incarnations.lock();
        for serial in serials {
            let count = all.entry(serial).or_insert(0);
            *count = count.wrapping_add(1);
        }
    }

    /// Deletes an image: into the trash, or out of it for good.
    pub(super) fn delete_image(&self, caller: Caller, serial: u32, parent: NodeId) -> Result<()> {
        let name = self.store.catalog.read().images.get(&serial).ok_or_else(stale)?.name.clone();
        if parent == TRASH {
            self.refuse_trashed(caller, serial, false)?;
            trash::purge(&self.store, Trashed::Image(serial))?;
            self.store.journal.log(caller.uid, "purge", &name, "gone");
            return Ok(());
        }
        let below: Vec<u32> = self
            .store
            .catalog
            .read()
            .all_versions()
            .filter(|v| v.image == serial)
            .map(|v| v.serial)
            .collect();
        self.refuse_attached(serial)?;
        self.detach_trees(below.iter().copied());
        versions::delete_image(&self.store, serial)?;
        self.count_incarnation(below.into_iter().chain([serial]));
        self.root_has_changed();
        self.store.journal.log(caller.uid, "delete", &name, "in the trash");
        Ok(())
    }

    pub(super) fn delete_version(&self, caller: Caller, serial: u32, parent: NodeId) -> Result<()> {
        let (image, number, path) = {
            let model = self.store.catalog.read();
            let version = model.versions.get(&serial).ok_or_else(stale)?;
            (version.image, version.number, self.store.path_of(&model, serial))
        };
        if parent == TRASH {
            self.refuse_trashed(caller, image, true)?;
            trash::purge(&self.store, Trashed::Version(serial))?;
            self.store.journal.log(caller.uid, "purge", &path, "gone");
            return Ok(());
        }
        if self.store.catalog.read().live_image(image).is_none() {
            return Err(Error::Frozen { what: "what is in the trash".into() });
        }
        self.refuse_attached(image)?;
        self.detach_trees([serial]);
        versions::delete_version(&self.store, image, number)?;
        self.count_incarnation([serial]);
        self.store.journal.log(caller.uid, "delete", &path, "in the trash");
        Ok(())
    }

    /// `rm`: of a link, an upload, a receipt; of `.id`, which is how rm -r begins.
    pub fn unlink(self: &Arc<Self>, caller: Caller, parent: NodeId, name: &[u8], reply: Reply<()>) {
        if name == b".id" && !matches!(parent, NodeId::Staging(_)) {
            // Tells the kernel about the parent of a directory that this very call has locked: elsewhere.
            let name = name.to_vec();
            return self.offload(reply, move |fs| {
                let path = fs.path_in(parent, &name);
                fs.unlink_id(caller, parent).map_err(|e| fs.refused(caller, "rm -r", &path, e))
            });
        }
        let path = self.path_in(parent, name);
        reply(self.unlink_inner(caller, parent, name).map_err(|e| self.refused(caller, "rm", &path, e)));
    }

    /// Removing `.id` is deleting the directory it is in.
    fn unlink_id(&self, caller: Caller, directory: NodeId) -> Result<()> {
        // Deleted meanwhile by somebody else: what it is in the trash is not this walker's to purge.
        if let NodeId::Image { serial, incarnation, .. } | NodeId::Version { serial, incarnation, .. } =
            directory
            && incarnation != self.incarnation(serial)
        {
            return Err(stale());
        }
        if let NodeId::Version { serial, .. } = directory {
            let image = self.store.catalog.read().versions.get(&serial).map(|v| v.image);
            let refused = image.and_then(|image| self.walkers.was_refused(caller.pid, Object::Image(image)));
            refuse_walk(refused)?;
        }
        let (object, parent, name) = {
            let model = self.store.catalog.read();
            let place = |trash_name: &Option<String>, live: NodeId, name: String| match trash_name {
                Some(trash) => (TRASH, trash.clone()),
                None => (live, name),
            };
            match directory {
                NodeId::Image { serial, .. } => {
                    let image = model.images.get(&serial).ok_or_else(stale)?;
                    let (parent, name) = place(&image.trash_name, NodeId::Root, image.name.clone());
                    (Object::Image(serial), parent, name)
                }
                NodeId::Version { serial, .. } => {
                    let version = model.versions.get(&serial).ok_or_else(stale)?;
                    let home = self.image_node(version.image);
                    let (parent, name) = place(&version.trash_name, home, version.number.to_string());
                    (Object::Version(serial), parent, name)
                }
                _ => return Err(Error::NotFound { what: ".id".into() }),
            }
        };
        // Before it is gone, and after it, for a look between the two.
        let before = self.gone.add(parent, &name);
        let deleted = match object {
            Object::Image(serial) => self.delete_image(caller, serial, parent),
            Object::Version(serial) => self.delete_version(caller, serial, parent),
        };
        let refused = deleted.as_ref().err().map(Error::errno);
        // It may have been renamed until it was deleted, and after that no more: this is the name that the
        // kernel knows.
        let name = match directory {
            NodeId::Image { serial, .. } if parent == NodeId::Root => {
                self.store.catalog.read().images.get(&serial).map_or(name, |i| i.name.clone())
            }
            _ => name,
        };
        self.walkers.note(caller.pid, object, parent.ino(), name.as_bytes(), refused);
        if deleted.is_ok() {
            let gone = self.gone.add(parent, &name);
            drop(before);
            // This holds nothing up: who has a name that the kernel still knows asks what it leads to.
            self.with_kernel(|kernel| kernel.forget_attributes(directory.ino()));
            self.forget_soon(gone);
            self.touch_root();
        }
        deleted
    }

    /// A walker that was just refused an image takes nothing out of it, either.
    fn refuse_refused(&self, caller: Caller, parent: NodeId) -> Result<()> {
        // Of a version alone, what lies in it answers for itself.
        let image = match parent {
            NodeId::Tree { .. } => None,
            _ => self.refused_walk(caller, parent),
        };
        refuse_walk(image)
    }

    fn unlink_inner(&self, caller: Caller, parent: NodeId, name: &[u8]) -> Result<()> {
        self.refuse_refused(caller, parent)?;
        match parent {
            NodeId::Version { serial, part: VersionPart::UsedBy, .. }
                if !self.has_deleted(caller, serial) =>
            {
                return self.unlink_lease(caller, serial, name);
            }
            NodeId::Tree { serial, .. } | NodeId::Version { serial, .. } => {
                return if self.has_deleted(caller, serial) {
                    Ok(())
                } else {
                    Err(Error::Frozen { what: "a version".into() })
                };
            }
            NodeId::Image { serial, .. } if self.walkers.has_deleted(caller.pid, Object::Image(serial)) => {
                return Ok(());
            }
            NodeId::Ghost => return Ok(()),
            NodeId::Staging(directory) => return self.unlink_staged(directory, name),
            NodeId::In(kind, directory) => return kind.place().unlink(self, caller, directory, name),
            NodeId::Control(_) => return Err(no_unlink()),
            _ => {}
        }
        let place = self.place_of(parent)?;
        if self.take_staged_link(parent, name).is_some() {
            return Ok(());
        }
        match (place, name) {
            (Place::Root, b"default") => {
                self.lookup(caller, parent, name)?;
                self.refuse_default(caller)?;
                links::hide_default(&self.store)?;
                self.store.journal.log(caller.uid, "default", "", "is not shown any more");
                Ok(())
            }
            (Place::Image(serial), b"default") => {
                self.lookup(caller, parent, name)?;
                links::hide_image_default(&self.store, serial)?;
                self.store.journal.log(
                    caller.uid,
                    "pin",
                    &self.path_of(parent),
                    "default is not shown any more",
                );
                Ok(())
            }
            (Place::Image(_), b"latest") => {
                Err(Error::Managed { what: "latest".into(), why: "it names the newest version" })
            }
            (Place::Image(serial), _) if let Some(label) = label_of(name) => {
                labels::drop_label(&self.store, serial, label)?;
                self.store.journal.log(caller.uid, "unlabel", &self.path_in(parent, name), "dropped");
                Ok(())
            }
            (Place::Image(serial), b"metadata.json") => self.remove_metadata(caller, serial),
            (Place::Image(serial), _) if let Some(form) = Form::of_name(name) => {
                self.remove_icon(caller, serial, form)
            }
            _ => match self.lookup(caller, parent, name)? {
                NodeId::Upload(number) => {
                    let upload = self.uploads.by_number(number).ok_or_else(stale)?;
                    self.unlink_upload(&upload)
                }
                NodeId::Receipt(version) => self.unlink_receipt(version, &text_of(name)),
                NodeId::Link(_) => {
                    let alias = match self.store.catalog.read().named(&text_of(name)) {
                        Some(Named::Alias(serial)) => serial,
                        _ => {
                            return Err(Error::Managed {
                                what: text_of(name),
                                why: "it stands for a label: rm IMAGE/@LABEL",
                            });
                        }
                    };
                    links::drop_alias(&self.store, alias)?;
                    self.store.journal.log(caller.uid, "unalias", &text_of(name), "dropped");
                    Ok(())
                }
                _ => Err(Error::IsDirectory { what: text_of(name) }),
            },
        }
    }

    /// Changes what stat shows; gives the new values.
    ///
    /// # Errors
    ///
    /// Those of `attr`, `truncate_upload`, `versions::set_owner`, `versions::set_root`, and of
    /// `Catalog::commit`. `Invalid`, `OverLimit`, `UploadBusy`, `NotYours`, `NotFound`, `Io` for what cannot
    /// have that size or mode. `Frozen` in a version, `Managed` for what follows the mount.
    pub fn setattr(&self, caller: Caller, node: NodeId, fh: Option<u64>, changes: Changes) -> Result<Attr> {
        if let Some(size) = changes.size {
            self.set_size(caller, node, fh, size)?;
        }
        let rights = changes.mode.is_some() || changes.uid.is_some() || changes.gid.is_some();
        let refused = |e| self.refused(caller, "chmod", &self.path_of(node), e);
        let handle = fh.map(|fh| self.handle(fh)).transpose()?;
        if let Some(Handle::Upload { upload, .. }) = handle.as_deref() {
            // The handle may stand for a new upload over the receipt that the name still shows.
            self.set_upload(caller, upload, changes.mode, changes.mtime)?;
            return Ok(upload.attr(node.ino()));
        }
        match node {
            NodeId::Upload(number) => {
                let upload = self.uploads.by_number(number).ok_or_else(stale)?;
                self.set_upload(caller, &upload, changes.mode, changes.mtime)?;
            }
            NodeId::Receipt(version) => self.set_receipt(caller, version, changes.mode, changes.mtime)?,
            NodeId::Image { serial, part: ImagePart::Dir, .. } if rights => {
                let shown = self
                    .store
                    .catalog
                    .read()
                    .images
                    .get(&serial)
                    .map(|i| (self.image_rights(i).mode, i.mode));
                let mode =
                    changes.mode.map(|mode| shown.map_or(mode, |(shown, own)| asked(mode, shown, own)));
                // `install -m 644 x.tar MNT/web`: it still speaks of the file that it has written.
                let mode =
                    mode.map(
                        |mode| if self.has_uploaded_as(caller, serial) { directory_mode(mode) } else { mode },
                    );
                versions::set_owner(&self.store, serial, mode, changes.uid, changes.gid).map_err(refused)?;
                self.store.journal.log(
                    caller.uid,
                    "chmod",
                    self.path_of(node).trim_start_matches('/'),
                    "changed",
                );
            }
            NodeId::Root if rights => {
                let (old, or) = (self.root(), |new: Option<u32>, old| new.unwrap_or(old));
                let (uid, gid) = (or(changes.uid, old.uid), or(changes.gid, old.gid));
                let shown = self.root_rights().mode;
                let mode = changes.mode.map_or(old.mode, |mode| asked(mode & 0o7777, shown, old.mode));
                let root = Root { uid, gid, mode, acl: old.acl };
                versions::set_root(&self.store, root).map_err(refused)?;
                self.store.journal.log(caller.uid, "chmod", ".", "changed");
            }
            NodeId::Staged { directory, file } => {
                self.set_staged(directory, file, &Changes { size: None, ..changes })?
            }
            NodeId::Lease(serial) => self.set_lease(serial, &changes)?,
            // Its maker's, with the mode it has.
            NodeId::Staging(_) => {}
            // They follow the image.
            NodeId::Image { .. } | NodeId::Link(_) | NodeId::StagedLink(_) => {}
            NodeId::Tree { serial, .. } | NodeId::Version { serial, .. }
                if !self.has_deleted(caller, serial) =>
            {
                return Err(refused(Error::Frozen { what: "a version".into() }));
            }
            NodeId::Tree { .. } | NodeId::Version { .. } | NodeId::Ghost => {}
            _ if rights => {
                return Err(refused(Error::Managed {
                    what: "this file".into(),
                    why: "its owner and mode follow the mount's",
                }));
            }
            _ => {}
        }
        self.attr(node)
    }

    fn set_size(&self, caller: Caller, node: NodeId, fh: Option<u64>, size: u64) -> Result<()> {
        let handle = fh.map(|fh| self.handle(fh)).transpose()?;
        match handle.as_deref() {
            Some(Handle::Upload { upload, writes: true }) => {
                return self.truncate_upload(caller, upload, size);
            }
            Some(Handle::Edit(_, edit) | Handle::Lease(_, edit) | Handle::Icon(_, _, edit)) => {
                return edit.lock().truncate(size);
            }
            Some(Handle::Staged { file, path, .. }) => {
                let set = refuse_over(&self.store, size)
                    .and_then(|()| file.set_len(size).map_err(Error::io("truncate", path)));
                return set.map_err(|e| self.refused(caller, "truncate", &self.path_of(node), e));
            }
            _ => {}
        }
        let refused = |e| self.refused(caller, "truncate", &self.path_of(node), e);
        match node {
            NodeId::In(kind, number) => kind.place().truncate(self, caller, number, size).map_err(refused),
            NodeId::Upload(number) => {
                let upload = self.uploads.by_number(number).ok_or_else(stale)?;
                self.truncate_upload(caller, &upload, size)
            }
            NodeId::Staged { directory, file } => {
                self.set_staged(directory, file, &Changes { size: Some(size), ..Changes::default() })
            }
            // `: > metadata.json` writes nothing, and nothing is no document.
            NodeId::Image { part: ImagePart::Metadata | ImagePart::Icon, .. }
            | NodeId::Receipt(_)
            | NodeId::Lease(_)
                if size == 0 =>
            {
                Ok(())
            }
            other => Err(refused(frozen(other))),
        }
    }

    /// `fsync(2)`: an editor asks whether the document is good; a staged file reaches the disk.
    ///
    /// # Errors
    ///
    /// Those of `flush_edit` and `sync_staged`. `Again` for an upload that has failed already.
    pub fn fsync(&self, caller: Caller, fh: u64) -> Result<()> {
        self.flush_edit(caller, fh)?;
        if let Some(Handle::Upload { upload, .. }) = self.handles.read().get(&fh).map(|handle| &**handle) {
            self.sync_upload(upload)?;
        }
        self.sync_staged(fh)
    }

    /// Size of what an open handle shows; for a stat of the descriptor.
    ///
    /// # Errors
    ///
    /// Those of `attr_for`.
    pub fn handle_attr(&self, caller: Caller, node: NodeId, fh: u64) -> Result<Attr> {
        let handle = self.handles.read().get(&fh).cloned();
        match handle.as_deref() {
            Some(Handle::Upload { upload, .. }) => Ok(upload.attr(node.ino())),
            Some(Handle::Edit(_, edit) | Handle::Lease(_, edit) | Handle::Icon(_, _, edit)) => {
                Ok(Attr { size: edit.lock().len(), ..self.attr(node)? })
            }
            Some(Handle::Text(text)) => Ok(Attr { size: text.len() as u64, ..self.attr(node)? }),
            _ => self.attr_for(caller, node),
        }
    }
}
