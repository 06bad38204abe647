//! Journey 2, cat: open, read and seek.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::base::json;
use crate::blob::{OBJECT_MIN, ReadBuf};
use crate::catalog::Kept;
use crate::error::{Error, Result};
use crate::formats::metadata::METADATA_MAX;
use crate::fs::control::log_number;
use crate::fs::edit::Edit;
use crate::fs::node::{ImagePart, NodeId, VersionPart};
use crate::fs::opened::{OpenMode, Opened, frozen};
use crate::fs::stale;
use crate::fs::{Attr, Caller, Handle, ImageFs};
use crate::images::describe;
use crate::images::export::{self, RecipeReaders};
use crate::images::keep;
use crate::images::last_use;
use crate::images::leases;
use crate::images::manifests;
use crate::tree::{Bytes, Kind, NodeIndex, Tree};

/// What of a version was to be read.
#[derive(Clone, Copy, Debug)]
pub(super) enum Part {
    Node(NodeIndex),
    /// What the recipe with this number makes.
    Made(u32),
    /// The upload as it came.
    Kept,
}

impl ImageFs {
    /// Opens a file for reading, or metadata.json or an upload also for writing.
    ///
    /// # Errors
    ///
    /// `NotFound` if it is gone; `IsDirectory`; `Corrupt`, `Io`. For writing `Frozen`, `Managed`,
    /// `Immutable`, `Attached`, `NotYours`, `UploadBusy`, and those of `truncate_upload`.
    pub fn open(&self, caller: Caller, node: NodeId, mode: OpenMode) -> Result<Opened> {
        let text = |text: String| Ok(Opened::Direct(self.open_handle(Handle::Text(text.into_bytes()))));
        match node {
            NodeId::Image { serial, part: ImagePart::Metadata, .. } => {
                let model = self.store.catalog.read();
                let image = model.images.get(&serial).ok_or_else(stale)?;
                let now = json::pretty(&describe::image(&model, image));
                if !mode.writes {
                    drop(model);
                    return text(now);
                }
                if image.trashed_at.is_some() {
                    return Err(Error::Frozen { what: "what is in the trash".into() });
                }
                let text = if mode.truncates { String::new() } else { now };
                Ok(Opened::Direct(
                    self.open_handle(Handle::Edit(serial, Mutex::new(Edit::new(text, METADATA_MAX)))),
                ))
            }
            NodeId::Image { serial, part: ImagePart::Icon, .. } => {
                let form = self.icon_form(serial).ok_or_else(stale)?;
                let fh = if mode.writes {
                    self.open_icon(serial, form)?
                } else {
                    self.open_handle(Handle::Text(self.icon_bytes(serial)?))
                };
                Ok(Opened::Direct(fh))
            }
            NodeId::Upload(_) | NodeId::Receipt(_) => self.open_upload(caller, node, mode),
            NodeId::Staged { directory, file } => self.open_staged(directory, file, mode),
            NodeId::In(kind, number) => kind.place().open(self, caller, number, mode),
            NodeId::Lease(serial) => Ok(Opened::Direct(self.open_lease(serial, mode.truncates)?)),
            _ if mode.writes => Err(frozen(node)),
            file @ NodeId::Tree { serial, index } => {
                last_use::note(&self.store, serial);
                let node = self.store.tree(serial)?.tree.node(index)?;
                match node.kind {
                    Kind::File(Bytes::Recipe(recipe)) => self.open_made(file, serial, recipe),
                    Kind::File(Bytes::Blob(blob)) if node.size >= OBJECT_MIN => Ok(Opened::Large(blob)),
                    _ => Ok(Opened::Lasting),
                }
            }
            NodeId::Version { serial, part: VersionPart::Tar, .. } => {
                last_use::note(&self.store, serial);
                self.open_made(node, serial, 0)
            }
            NodeId::Version { serial, part: VersionPart::Upload, .. } => {
                last_use::note(&self.store, serial);
                self.open_kept(node, serial)
            }
            NodeId::Version { serial, part: VersionPart::Metadata, .. } => text(self.version_text(serial)?),
            NodeId::Version { serial, part: VersionPart::Changes, .. } => text(self.changes_text(serial)?),
            NodeId::Version { serial, part: VersionPart::Manifest, .. } => {
                text(self.manifest_text(serial).ok_or_else(stale)?)
            }
            NodeId::Version { serial, part: VersionPart::Id, .. } => {
                let id = self.store.catalog.read().versions.get(&serial).map(|v| v.id.clone());
                text(format!("{}\n", id.ok_or_else(stale)?))
            }
            NodeId::Image { serial, part: ImagePart::Id, .. } => {
                let id = self.store.catalog.read().images.get(&serial).map(|i| i.id.clone());
                text(format!("{}\n", id.ok_or_else(stale)?))
            }
            NodeId::Control(control) if let Some(number) = log_number(control) => {
                Ok(Opened::Direct(self.open_handle(Handle::Log { number, caller })))
            }
            NodeId::Control(_) => text(self.control_text(caller, node)?),
            _ => Err(Error::IsDirectory { what: "this path".into() }),
        }
    }

    fn open_made(&self, node: NodeId, serial: u32, recipe: u32) -> Result<Opened> {
        let (slot, shown) = (self.store.tree(serial)?, self.attr(node)?);
        let handle = Handle::Made { serial, slot, recipe, readers: RecipeReaders::default(), shown };
        Ok(Opened::Cached(self.open_handle(handle)))
    }

    /// What stat shows of a file that is open, although its version is gone.
    pub(super) fn shown_open(&self, node: NodeId) -> Option<Attr> {
        let shown = |handle: &Arc<Handle>| match &**handle {
            Handle::Made { shown, .. } | Handle::Kept { shown, .. } if shown.ino == node.ino() => {
                Some(*shown)
            }
            _ => None,
        };
        self.handles.read().values().find_map(shown)
    }

    /// Opens an upload as it came: its pieces, or what comes out when its content is compressed again.
    fn open_kept(&self, node: NodeId, serial: u32) -> Result<Opened> {
        let kept = self.store.catalog.read().versions.get(&serial).and_then(|v| v.facts.kept.clone());
        let handle = match kept.ok_or_else(stale)? {
            Kept::Stored { .. } => {
                let tree = self.store.kept(serial).map_err(|e| self.damage(serial, Part::Kept, e))?;
                Handle::Kept { serial, tree, readers: RecipeReaders::default(), shown: self.attr(node)? }
            }
            Kept::Made { method } => {
                let file = keep::remake(&self.store, serial, &method)
                    .map_err(|e| self.damage(serial, Part::Kept, e))?;
                Handle::Staged { file, path: "a remade upload".into(), writing: None }
            }
        };
        Ok(Opened::Cached(self.open_handle(handle)))
    }

    /// A version's metadata.json.
    pub(super) fn version_text(&self, serial: u32) -> Result<String> {
        let version = self.store.catalog.read().versions.get(&serial).cloned().ok_or_else(stale)?;
        let cost = self.store.cost(&version)?;
        let links = leases::links(&self.store.catalog.read(), |v| v.serial == serial);
        let stale = leases::stale(links);
        Ok(json::pretty(&describe::version(&self.store.catalog.read(), &version, cost, &stale)))
    }

    /// A version's manifest, with what was edited since; none if it has none.
    pub(super) fn manifest_text(&self, serial: u32) -> Option<String> {
        let model = self.store.catalog.read();
        manifests::shown(&model, model.versions.get(&serial)?)
    }

    /// Reads from a file of a tree. The bytes are in one of the two buffers. Less than `len` only at its end.
    ///
    /// # Errors
    ///
    /// `NotFound`, `IsDirectory`, `Corrupt`, `Io`.
    pub fn read_tree<'b>(
        &self,
        serial: u32,
        index: u32,
        range: (u64, usize),
        buf: &'b mut ReadBuf,
        out: &'b mut Vec<u8>,
    ) -> Result<&'b [u8]> {
        let slot = self.store.tree(serial)?;
        let node = slot.tree.node(index)?;
        let (offset, len) = range;
        let read = match node.kind {
            // Most files: straight from the blob.
            Kind::File(Bytes::Blob(blob)) => self.store.blobs.read(blob, offset, len, buf),
            _ => export::read_file(&self.store, &slot.tree, &node, offset, len, buf, out).map(|()| &out[..]),
        };
        read.map_err(|e| self.damage(serial, Part::Node(index), e))
    }

    /// Reads from a file that has a handle; appends to `out`. Less than `len` only at its end.
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
                read.map_err(|e| self.damage(*serial, Part::Made(*recipe), e))
            }
            Handle::Kept { serial, tree, readers, .. } => {
                let read = readers.read(&self.store, tree, keep::RECIPE, offset, len, out);
                read.map_err(|e| self.damage(*serial, Part::Kept, e))
            }
            Handle::Staged { file, path, .. } => {
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
            Handle::Log { number, caller } => self.read_log(*caller, *number, offset, len, out),
            Handle::Upload { upload, .. } => self.read_upload(upload, offset, len, out),
            Handle::Directory(..) => Err(Error::IsDirectory { what: "this path".into() }),
        }
    }

    /// Says which image, version and path damage hits, and keeps the sentence.
    pub(super) fn damage(&self, serial: u32, part: Part, e: Error) -> Error {
        let version = self.store.path_of(&self.store.catalog.read(), serial);
        let tree = |find: &dyn Fn(&Tree) -> Option<String>| {
            self.store.tree(serial).ok().and_then(|slot| find(&slot.tree))
        };
        let path = match part {
            Part::Node(index) => tree(&|tree| tree.path_where(|other| other == index)),
            Part::Made(0) => Some("rootfs.tar".into()),
            Part::Made(recipe) => tree(&|tree| {
                let made =
                    |index| tree.node(index).is_ok_and(|node| node.kind == Kind::File(Bytes::Recipe(recipe)));
                tree.path_where(made)
            }),
            Part::Kept => self.kept_name(serial),
        };
        let path = format!("{version}/{}", path.unwrap_or_default());
        let e = if e.is_damage() { Error::Corrupt { what: path.clone(), why: e.to_string() } } else { e };
        self.store.journal.refuse(0, "read", &path, &e);
        e
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
        Ok(if offset >= size {
            None
        } else if data {
            Some(offset)
        } else {
            Some(size)
        })
    }
}
