//! Requests about any node. There is ONE dispatch: each request goes to the place of its node
//! (places/mod.rs). This file has what all places share: whom imgfs refuses, and how it records that.

use std::sync::Arc;

use crate::base::name::{NAME_MAX, Promise, promise_of};
use crate::error::{Error, Result};
use crate::fault;
use crate::fs::handles::Handle;
use crate::fs::names::{no_directory, text_of};
use crate::fs::node::{ImagePart, NodeId, TRASH};
use crate::fs::opened::{OpenMode, Opened};
use crate::fs::places::{self, link, staging, trash, tree};
use crate::fs::removal::walkers::refuse_refused;
use crate::fs::removal::{self, shells};
use crate::fs::upload::{self, Destination, Upload};
use crate::fs::{Attr, Caller, DirEntry, ImageFs, Reply, SetAttr};

impl ImageFs {
    /// Finds a name in a directory.
    ///
    /// # Errors
    ///
    /// `NotFound`, `NotDirectory`, `NameTooLong`; `Corrupt`, `Io`.
    pub fn lookup(&self, caller: Caller, parent: NodeId, name: &[u8]) -> Result<NodeId> {
        if name.len() > NAME_MAX {
            return Err(Error::NameTooLong { len: name.len() });
        }
        // A link that ln is about to rename stands in any directory where links are. A tree never has one.
        let temporary = match parent {
            NodeId::Tree { .. } => None,
            _ => self.temporary_links.named(parent, name),
        };
        temporary.map_or_else(|| parent.place().lookup(self, caller, parent, name), Ok)
    }

    /// What stat shows of a node to `caller`. Some files show each user only what that user may know.
    ///
    /// # Errors
    ///
    /// Those of `attr`.
    pub fn attr_for(&self, caller: Caller, node: NodeId) -> Result<Attr> {
        let attr = self.attr(node)?;
        match node {
            NodeId::Control(control) if attr.mode & libc::S_IFMT == libc::S_IFREG => {
                let size = places::dot_imgfs::size(self, caller, control)?;
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
        // Only these show when the root changed, which costs a look at every image in a view.
        let changed = match node {
            NodeId::Root
            | NodeId::Control(_)
            | NodeId::In(..)
            | NodeId::Link(_)
            | NodeId::TemporaryLink(_) => self.root_changed(),
            _ => 0,
        };
        let own = Attr::of_directory(node.ino(), (self.mount.uid, self.mount.gid)).at(changed);
        let attr = node.place().attr(self, node, own)?;
        // A tree never changes. Everything else may change through another mount.
        let lasting = matches!(node, NodeId::Tree { .. }) || !self.mounts.are_several();
        Ok(Attr { lasting: attr.lasting && lasting, lasting_name: attr.lasting_name && lasting, ..attr })
    }

    /// The target of a symlink.
    ///
    /// # Errors
    ///
    /// `NotFound` if it is gone; `Invalid` if it is no symlink. Of a tree `Corrupt`, `Io`.
    pub fn readlink(&self, node: NodeId) -> Result<Vec<u8>> {
        node.place().readlink(self, node)
    }

    /// Opens a directory. Trees are read in place and need no listing; every other directory gets one.
    ///
    /// # Errors
    ///
    /// `NotDirectory`; `NotFound` if it is gone; `Corrupt` for a damaged tree. `Again` for a walker that was
    /// just refused to delete it.
    pub fn opendir(&self, caller: Caller, node: NodeId) -> Result<Opened> {
        refuse_refused(self, caller, node)?;
        if let NodeId::Tree { .. } = node {
            return Ok(Opened::Lasting);
        }
        let mut all = vec![
            DirEntry::new(".", node, libc::S_IFDIR),
            DirEntry::new("..", node.place().parent(self, node), libc::S_IFDIR),
        ];
        node.place().list(self, caller, node, &mut all)?;
        Ok(Opened::Direct(self.open_handle(Handle::Directory(node, all))))
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
            return tree::list(self, serial, index, from, add);
        }
        let handle = self.handle(fh)?;
        let Handle::Directory(_, entries) = &*handle else {
            return Err(no_directory());
        };
        for (n, entry) in entries.iter().enumerate().skip(usize::try_from(from).unwrap_or(usize::MAX)) {
            if add(n as u64 + 1, entry) {
                break;
            }
        }
        Ok(())
    }

    /// Whether a name in a listing still leads to the same node as when the directory was opened.
    pub fn still_leads(&self, caller: Caller, directory: NodeId, entry: &DirEntry) -> bool {
        !directory.place().changes()
            || self.lookup(caller, directory, &entry.name).is_ok_and(|node| node == entry.node)
    }

    /// Opens a file for reading. Some files, such as metadata.json and uploads, can also be opened for
    /// writing.
    ///
    /// # Errors
    ///
    /// `NotFound` if it is gone; `IsDirectory`; `Corrupt`, `Io`. For writing `Frozen`, `Managed`,
    /// `Immutable`, `Attached`, `NotYours`, `UploadBusy`, and those of `upload::truncate`.
    pub fn open(&self, caller: Caller, node: NodeId, mode: OpenMode) -> Result<Opened> {
        node.place().open(self, caller, node, mode)
    }

    /// `creat(2)`: a new upload or scratch file.
    ///
    /// # Errors
    ///
    /// `BadName`, `NameTooLong`, `Taken`, `UploadBusy`.
    pub fn create(&self, caller: Caller, parent: NodeId, name: &[u8], mode: u32) -> Result<(NodeId, u64)> {
        parent.place().create(self, caller, parent, name, mode)
    }

    /// `mkdir MNT/web`.
    ///
    /// # Errors
    ///
    /// `BadName`, `NameTooLong`, `Taken`, `OverQuota`, `OverLimit`, `NotYours`, `Attached`, `NotFound`.
    /// `Managed`, `NoTree`, `Unsupported`, `Frozen` where no directory can be made. `Io`; those of
    /// `Catalog::commit`.
    pub fn mkdir(&self, caller: Caller, parent: NodeId, name: &[u8], mode: u32) -> Result<NodeId> {
        parent.place().mkdir(self, caller, parent, name, mode).map_err(|e| {
            if !name.starts_with(b".") {
                shells::note_refused_in(self, caller, parent);
            }
            self.refused(caller, "mkdir", &self.path_in(parent, name), e)
        })
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
        removal::rmdir(self, caller, parent, name).map_err(|e| self.refused(caller, "rmdir", &path, e))
    }

    /// `rm` of a link, an upload, a receipt, or `.id`. rm -r begins with `.id`.
    pub fn unlink(self: &Arc<Self>, caller: Caller, parent: NodeId, name: &[u8], reply: Reply<()>) {
        if name == b".id" && !matches!(parent, NodeId::Staging(_)) {
            // This tells the kernel about the parent of a directory that the current call has locked, so
            // another thread does it.
            let name = name.to_vec();
            return self.offload(reply, move |fs| {
                let path = fs.path_in(parent, &name);
                let unlinked = removal::unlink_id(fs, caller, parent);
                unlinked.map_err(|e| fs.refused(caller, "rm -r", &path, e))
            });
        }
        let path = self.path_in(parent, name);
        let unlinked = removal::refuse_refused_image(self, caller, parent).and_then(|()| {
            match self.temporary_links.take(parent, name) {
                Some(_) => Ok(()),
                None => parent.place().unlink(self, caller, parent, name),
            }
        });
        reply(unlinked.map_err(|e| self.refused(caller, "rm", &path, e)));
    }

    /// `ln -s web MNT/jammy`, and the first half of `ln -sfn`.
    ///
    /// # Errors
    ///
    /// `NotFound` for a target that is not there; `BadName`, `NameTooLong`, `Taken`, `NotUnique`,
    /// `NotDirectory` for the name. `NotYours`, `Immutable`, `Attached`, `OfView`, `Invalid`. `Managed`,
    /// `Frozen` where there can be no such link. Those of `lookup` and `Catalog::commit`.
    pub fn symlink(&self, caller: Caller, parent: NodeId, name: &[u8], target: &[u8]) -> Result<NodeId> {
        let made = parent.place().symlink(self, caller, parent, name, target);
        made.map_err(|e| {
            shells::note_refused_in(self, caller, parent);
            self.refused(caller, "ln -s", &self.path_in(parent, name), e)
        })
    }

    /// `mv`, and the second half of `ln -sfn`, rsync and editors.
    pub fn rename(
        self: &Arc<Self>,
        caller: Caller,
        from: places::Named,
        to: places::Named,
        flags: u32,
        reply: Reply<()>,
    ) {
        // The rename may publish an upload, which can be slow. It also waits for the kernel, which may wait
        // for the answer to another request.
        self.offload(reply, move |fs| {
            let path = fs.path_in(from.0, &from.1);
            let destination = Destination::of(from.0).ok();
            if let Some(upload) = destination.and_then(|at| fs.uploads.named(at, &text_of(&from.1))) {
                return fs.rename_upload(caller, &upload, &from, &to).map_err(|e| {
                    shells::note_refused_in(fs, caller, to.0);
                    fs.refused_mv(caller, &path, &e)
                });
            }
            if let Ok(NodeId::Staging(number)) = fs.lookup(caller, from.0, &from.1) {
                return fs.rename_staging(caller, number, &to).map_err(|e| fs.refused_mv(caller, &path, &e));
            }
            // ln renames the link that it has made, and has a fitting message for EINVAL. So it gets the
            // plain error.
            let by_ln = fs.temporary_links.named(from.0, &from.1).is_some();
            fs.rename_shown(caller, &from, &to, flags).map_err(|e| match e {
                e if by_ln => fs.refused(caller, "ln", &path, e),
                e => fs.refused_mv(caller, &path, &e),
            })
        });
    }

    /// `mv MNT/.new MNT/web` publishes a staging directory, or only renames it.
    fn rename_staging(self: &Arc<Self>, caller: Caller, number: u32, to: &places::Named) -> Result<()> {
        // The last write to a file in it may arrive after its close.
        let publish =
            |at| self.retry_while_busy(|| staging::publish::rename(self, caller, number, (at, &to.1)));
        // The kernel moved the directory to its new name, but that name now belongs to a version or an image.
        match Destination::of(to.0).and_then(publish)? {
            Some(serial) if to.0 != NodeId::Root => self.has_moved(caller, to, self.version_node(serial)),
            _ => self.forget_later(to.0.ino(), to.1.clone()),
        }
        self.root_has_changed();
        Ok(())
    }

    /// `mv MNT/.web.tar MNT/web.tar` publishes a written file, or only renames it.
    fn rename_upload(
        self: &Arc<Self>,
        caller: Caller,
        upload: &Arc<Upload>,
        from: &places::Named,
        to: &places::Named,
    ) -> Result<()> {
        let destination = match to.0 {
            NodeId::Staging(_) => {
                let why =
                    "it is unpacked already, and not moved into a directory (rsync: without --delay-updates)";
                return Err(Error::Managed { what: text_of(&from.1), why });
            }
            _ => Destination::of(to.0)?,
        };
        let name = text_of(&to.1);
        match self.lookup(caller, to.0, &to.1) {
            Ok(NodeId::Image { part: ImagePart::Dir, .. } | NodeId::Version { .. }) => {
                return Err(Error::IsDirectory { what: name });
            }
            Ok(NodeId::Link(_)) => return Err(Error::Taken { name, holder: "it is a link".into() }),
            _ => {}
        }
        match (destination, promise_of(&name)) {
            (Destination::Image(image), _) => self.refuse_attached(image)?,
            (Destination::Root, Promise::Upload(_)) => {
                let target = upload::target_named(self, &name, Some(upload.number))?.0;
                self.refuse_foreign(caller, &target)?;
            }
            (Destination::Root, Promise::Staged) => {}
        }
        upload::rename(self, caller, upload, destination, &name)?;
        // The kernel now shows the upload under the new name. It has to look that name up again.
        self.forget_later(to.0.ino(), to.1.clone());
        Ok(())
    }

    /// `mv` of a node that is not being written.
    fn rename_shown(
        &self,
        caller: Caller,
        from: &places::Named,
        to: &places::Named,
        flags: u32,
    ) -> Result<()> {
        if flags & libc::RENAME_WHITEOUT != 0 {
            let instead = "rename it without that flag";
            return Err(Error::Unsupported { what: "a whiteout".into(), instead });
        }
        if flags & libc::RENAME_EXCHANGE != 0 {
            return link::exchange(self, caller, from, to);
        }
        fault::reached("rename.begun");
        let node = self.lookup(caller, from.0, &from.1)?;
        // The name may have passed to another node after the kernel sent this request.
        if self.gone.is_mistaken(caller.pid, from.0, &from.1) {
            return Err(Error::LookAgain);
        }
        if from.0 == TRASH {
            return trash::restore(self, caller, node, to);
        }
        node.place().rename(self, caller, node, from, to)
    }

    /// Changes what stat shows, and returns the new values.
    ///
    /// # Errors
    ///
    /// Those of `attr`, `upload::truncate`, `versions::set_owner`, `versions::set_root`, and of
    /// `Catalog::commit`. `Invalid`, `OverLimit`, `UploadBusy`, `NotYours`, `NotFound`, `Io` for what cannot
    /// have that size or mode. `Frozen` in a version, `Managed` for what follows the mount.
    pub fn setattr(&self, caller: Caller, node: NodeId, fh: Option<u64>, changes: SetAttr) -> Result<Attr> {
        let handle = fh.map(|fh| self.handle(fh)).transpose()?;
        if let Some(size) = changes.size {
            let truncated = match handle.as_deref().map(|handle| handle.truncate(self, caller, size)) {
                None | Some(None) => node.place().truncate(self, caller, node, size),
                Some(Some(truncated)) => truncated,
            };
            truncated.map_err(|e| self.refused(caller, "truncate", &self.path_of(node), e))?;
        }
        if let Some(Handle::Upload { upload, .. }) = handle.as_deref() {
            // The handle may belong to a new upload, while the name still shows the receipt of the old one.
            upload::set(self, caller, upload, changes.mode, changes.mtime)?;
            return Ok(upload.attr(node.ino()));
        }
        let set = node.place().set(self, caller, node, &changes);
        set.map_err(|e| self.refused(caller, "chmod", &self.path_of(node), e))?;
        self.attr(node)
    }

    /// The path of a name in a directory, for messages.
    pub(super) fn path_in(&self, parent: NodeId, name: &[u8]) -> String {
        parent.place().path(self, parent, &text_of(name))
    }

    /// The path of an image or a version, for messages.
    pub(super) fn path_of(&self, node: NodeId) -> String {
        let model = self.store.catalog.read();
        match node {
            NodeId::Image { serial, .. } => {
                format!("/{}", model.images.get(&serial).map_or("?", |image| image.name.as_str()))
            }
            NodeId::Version { serial, .. } | NodeId::Tree { serial, .. } => {
                format!("/{}", self.store.path_of(&model, serial))
            }
            _ => "/".into(),
        }
    }
}
