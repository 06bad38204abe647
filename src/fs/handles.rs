//! Open files and directories that need memory of their own. Files in trees need none.

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::fs::edit::Edit;
use crate::fs::names::a_directory;
use crate::fs::node::NodeId;
use crate::fs::opened::Opened;
use crate::fs::places::config::{self, Writing};
use crate::fs::places::made::{Part, damage};
use crate::fs::places::{dot_imgfs, icon, metadata, staging, used_by};
use crate::fs::upload::{self, Upload, refuse_over};
use crate::fs::{Attr, Caller, DirEntry, ImageFs, Reply};
use crate::images::export::{self, RecipeReaders};
use crate::images::icons::Form;
use crate::images::keep;
use crate::store::TreeSlot;
use crate::tree::Tree;

/// An open file or directory.
pub(super) enum Handle {
    Upload {
        upload: Arc<Upload>,
        writes: bool,
    },
    /// A file of the host: one in a staging directory, or an upload that was made again.
    HostFile {
        file: std::fs::File,
        path: std::path::PathBuf,
        /// Counts as an open writer until it is dropped.
        #[allow(dead_code, reason = "counts as long as it lives")]
        writing: Option<staging::Writing>,
    },
    /// A log, reduced to what its opener may know. It can grow while it is open.
    Log {
        number: u32,
        caller: Caller,
    },
    /// A text made at the time of open.
    Text(Vec<u8>),
    /// metadata.json of the image with this serial.
    Edit(u32, Mutex<Edit>),
    Lease(u32, Mutex<Edit>),
    /// The icon of the image with this serial.
    Icon(u32, Form, Mutex<Edit>),
    Setting(String, Mutex<Writing>),
    /// A file that a recipe of a version makes: the version and the recipe. The handle keeps all that it
    /// needs, and `shown` keeps the values for stat, even if the version is deleted.
    Made {
        serial: u32,
        slot: Arc<TreeSlot>,
        recipe: u32,
        readers: RecipeReaders,
        shown: Attr,
    },
    /// The kept upload of this version.
    Kept {
        serial: u32,
        tree: Arc<Tree>,
        readers: RecipeReaders,
        shown: Attr,
    },
    Directory(NodeId, Vec<DirEntry>),
}

impl Handle {
    /// Truncates or extends a file that is open for writing. `None` means that the node itself must do it.
    pub(super) fn truncate(&self, fs: &ImageFs, caller: Caller, size: u64) -> Option<Result<()>> {
        Some(match self {
            Handle::Upload { upload, writes: true } => upload::truncate(fs, caller, upload, size),
            Handle::Edit(_, edit) | Handle::Lease(_, edit) | Handle::Icon(_, _, edit) => {
                edit.lock().truncate(size)
            }
            Handle::HostFile { file, path, .. } => refuse_over(&fs.store, size)
                .and_then(|()| file.set_len(size).map_err(Error::io("truncate", path))),
            _ => return None,
        })
    }
}

impl ImageFs {
    pub(super) fn open_handle(&self, handle: Handle) -> u64 {
        let fh = self.next_handle.fetch_add(1, Ordering::Relaxed);
        self.handles.write().insert(fh, Arc::new(handle));
        fh
    }

    /// Opens `text` as it is now.
    pub(super) fn opened_text(&self, text: String) -> Opened {
        Opened::Direct(self.open_handle(Handle::Text(text.into_bytes())))
    }

    pub(super) fn handle(&self, fh: u64) -> Result<Arc<Handle>> {
        let found = self.handles.read().get(&fh).cloned();
        found.ok_or_else(|| Error::Invalid { what: "the file handle".into(), why: "it is not open".into() })
    }

    pub(super) fn close_handle(&self, fh: u64) {
        self.handles.write().remove(&fh);
    }

    /// What stat shows of an open file whose version is gone.
    pub(super) fn shown_open(&self, node: NodeId) -> Option<Attr> {
        let shown = |handle: &Arc<Handle>| match &**handle {
            Handle::Made { shown, .. } | Handle::Kept { shown, .. } if shown.ino == node.ino() => {
                Some(*shown)
            }
            _ => None,
        };
        self.handles.read().values().find_map(shown)
    }

    /// What fstat shows of an open handle.
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

    /// Reads from a file that has a handle, and appends to `out`. It gives less than `len` only at the end
    /// of the file.
    ///
    /// # Errors
    ///
    /// `Invalid` if the handle is not open, or only for writing; `IsDirectory`; `Corrupt`, `Io`. Of an upload
    /// `UploadBusy`, `Stopping`, `NotFound`, and `Unsupported` if its bytes are not there to be read.
    pub fn read(&self, fh: u64, offset: u64, len: usize, out: &mut Vec<u8>) -> Result<()> {
        let handle = self.handle(fh)?;
        match &*handle {
            Handle::Made { serial, slot, recipe, readers, .. } => {
                let read = readers.read(&self.store, &slot.tree, *recipe, offset, len, out);
                read.map_err(|e| damage(self, *serial, Part::Made(*recipe), e))
            }
            Handle::Kept { serial, tree, readers, .. } => {
                let read = readers.read(&self.store, tree, keep::RECIPE, offset, len, out);
                read.map_err(|e| damage(self, *serial, Part::Kept, e))
            }
            Handle::HostFile { file, path, .. } => {
                let begin = out.len();
                out.resize(begin + len, 0);
                let n = file.read_at(&mut out[begin..], offset).map_err(Error::io("read", path))?;
                out.truncate(begin + n);
                Ok(())
            }
            Handle::Text(text) => {
                let from = usize::try_from(offset).unwrap_or(usize::MAX).min(text.len());
                out.extend_from_slice(&text[from..text.len().min(from.saturating_add(len))]);
                Ok(())
            }
            Handle::Edit(_, edit) | Handle::Lease(_, edit) | Handle::Icon(_, _, edit) => {
                out.extend_from_slice(edit.lock().read(offset, len));
                Ok(())
            }
            Handle::Setting(..) => {
                Err(Error::Invalid { what: "this file".into(), why: "it is open for writing".into() })
            }
            Handle::Log { number, caller } => dot_imgfs::read_log(self, *caller, *number, offset, len, out),
            Handle::Upload { upload, .. } => upload::read(self, upload, offset, len, out),
            Handle::Directory(..) => Err(a_directory()),
        }
    }

    /// SEEK_DATA, SEEK_HOLE. `None`: there is no data from `offset` on.
    ///
    /// # Errors
    ///
    /// `NotFound`, `IsDirectory`, `Corrupt`, `Io` of a tree; those of `attr` of anything else.
    pub fn seek(&self, node: NodeId, fh: u64, offset: u64, data: bool) -> Result<Option<u64>> {
        let size = match node {
            NodeId::Tree { serial, index } => {
                let slot = self.store.tree(serial)?;
                return export::seek(&self.store, &slot.tree, &slot.tree.node(index)?, offset, data);
            }
            _ => match self.handles.read().get(&fh).map(|h| &**h) {
                Some(Handle::Text(text)) => text.len() as u64,
                _ => self.attr(node)?.size,
            },
        };
        Ok(match offset {
            _ if offset >= size => None,
            _ if data => Some(offset),
            _ => Some(size),
        })
    }

    /// `write(2)`. An upload answers once there is room for more. A setting is a row of the catalog.
    pub fn write(self: &Arc<Self>, caller: Caller, fh: u64, offset: u64, data: &[u8], reply: Reply<u32>) {
        let handle = self.handle(fh);
        match handle.as_deref() {
            Ok(Handle::Upload { upload, writes: true }) => {
                upload::write(self, caller, upload, offset, data, reply);
            }
            Ok(Handle::Edit(_, edit) | Handle::Lease(_, edit) | Handle::Icon(_, _, edit)) => {
                let written = edit.lock().write(offset, data).map(|()| data.len() as u32);
                reply(written.map_err(|e| self.refused(caller, "write", "", e)));
            }
            Ok(Handle::Setting(..)) => {
                let data = data.to_vec();
                self.offload(reply, move |fs| config::write(fs, caller, fh, offset, &data));
            }
            Ok(Handle::HostFile { file, path, .. }) => {
                let written = staging::write(self, file, path, offset, data);
                reply(written.map_err(|e| self.refused(caller, "write", &path.display().to_string(), e)));
            }
            _ => reply(Err(Error::Invalid {
                what: "this file".into(),
                why: "it is not open for writing".into(),
            })),
        }
    }

    /// `close(2)` of a descriptor, which comes before `release`: judges an upload, a document or a setting.
    pub fn flush(self: &Arc<Self>, caller: Caller, fh: u64, reply: Reply<()>) {
        match self.handle(fh).as_deref() {
            Ok(Handle::Upload { upload, writes: true }) => {
                upload::flush(self, caller, upload.clone(), reply);
            }
            Ok(Handle::Setting(..)) => self.offload(reply, move |fs| config::flush(fs, caller, fh)),
            Ok(handle) => reply(self.flush_document(caller, handle)),
            Err(_) => reply(Ok(())),
        }
    }

    /// `fsync(2)` and `close(2)` of metadata.json, a lease or an icon: judges the whole document.
    ///
    /// # Errors
    ///
    /// Of a document those of `metadata::edit`, of a lease those of `used_by::flush`, of an icon those of
    /// `icon::put`.
    fn flush_document(&self, caller: Caller, handle: &Handle) -> Result<()> {
        match handle {
            Handle::Edit(image, edit) => {
                let mut edit = edit.lock();
                let Some(text) = edit.pending() else { return Ok(()) };
                let edited = metadata::edit(self, caller, *image, text);
                edited.map_err(|e| self.refused(caller, "edit", "metadata.json", e))?;
                edit.accepted();
                Ok(())
            }
            Handle::Lease(serial, edit) => {
                let flushed = used_by::flush(self, *serial, edit);
                flushed.map_err(|e| self.refused(caller, "write", "used_by", e))
            }
            Handle::Icon(image, form, edit) => {
                let mut edit = edit.lock();
                let Some(bytes) = edit.pending() else { return Ok(()) };
                let put = icon::put(self, caller, *image, *form, bytes);
                put.map_err(|e| self.refused(caller, "write", form.name(), e))?;
                edit.accepted();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// `fsync(2)`: an editor asks whether its document is valid, or a staged file must reach the disk.
    ///
    /// # Errors
    ///
    /// `Invalid` if the handle is not open; those of `flush_document`; `Io`. `Again` for an upload that has
    /// failed already.
    pub fn fsync(&self, caller: Caller, fh: u64) -> Result<()> {
        let handle = self.handle(fh)?;
        match &*handle {
            Handle::Upload { upload, .. } => upload::sync(upload),
            Handle::HostFile { file, path, .. } => file.sync_all().map_err(Error::io("sync", path)),
            handle => self.flush_document(caller, handle),
        }
    }

    /// The last close.
    pub fn release(self: &Arc<Self>, caller: Caller, fh: u64, reply: Reply<()>) {
        match self.handle(fh).as_deref() {
            // Dropping an upload waits for its threads, so another thread does it.
            Ok(Handle::Upload { .. }) => self.offload(reply, move |fs| {
                upload::release(fs, fh);
                Ok(())
            }),
            Ok(Handle::Setting(..)) => self.offload(reply, move |fs| {
                config::release(fs, caller, fh);
                Ok(())
            }),
            _ => {
                self.close_handle(fh);
                reply(Ok(()));
            }
        }
    }
}
