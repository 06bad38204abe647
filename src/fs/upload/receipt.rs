//! After the close: what the name of an upload still shows, and the end of uploads that nobody needs.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::base::name::{Promise, promise_of};
use crate::base::process::of_thread;
use crate::catalog::Version;
use crate::error::{Error, Result};
use crate::fs::access::READ;
use crate::fs::names::{not_found, text_of};
use crate::fs::node::NodeId;
use crate::fs::upload::{Destination, Phase, State, Upload, keep};
use crate::fs::{Caller, DirEntry, ImageFs, stale};
use crate::images::export::RecipeReader;
use crate::images::versions;
use crate::ingest;

/// Finds what is being written, or was, under a name in the root or in an image. `None` if nothing
/// shows.
pub(in crate::fs) fn find(
    fs: &ImageFs,
    caller: Caller,
    destination: Destination,
    name: &str,
) -> Option<Result<NodeId>> {
    let upload = fs.uploads.named(destination, name).filter(|upload| shows(fs, caller, upload))?;
    let parent = match destination {
        Destination::Root => NodeId::Root,
        Destination::Image(serial) => fs.image_node(serial),
    };
    if is_hidden_from(fs, caller, parent, name.as_bytes(), &upload) {
        return Some(Err(not_found(name.as_bytes())));
    }
    Some(Ok(NodeId::Upload(upload.number)))
}

/// Adds what is being written in the root or in an image: staging directories and uploads.
pub(in crate::fs) fn list(fs: &ImageFs, destination: Destination, all: &mut Vec<DirEntry>) {
    let stagings = fs.stagings.list(destination).into_iter();
    all.extend(stagings.map(|(name, node)| DirEntry::new(name, node, libc::S_IFDIR)));
    for upload in fs.uploads.under_way(Some(destination)) {
        all.push(DirEntry::new(upload.name(), NodeId::Upload(upload.number), libc::S_IFREG));
    }
}

/// Whether a name still shows. An upload always does. A receipt does as long as its version is where
/// the name says: a second rsync must not take the receipt of a deleted image for the image. A user who
/// may not read the image never sees its receipts.
fn shows(fs: &ImageFs, caller: Caller, upload: &Upload) -> bool {
    let (name, version) = {
        let info = upload.info.lock();
        // A refused upload is gone for everybody, though its writer may not have released it yet.
        if info.failed {
            return false;
        }
        if !info.published {
            return true;
        }
        (info.name.clone(), info.version)
    };
    let model = fs.store.catalog.read();
    let Some(version) = version.and_then(|v| model.versions.get(&v)).filter(|v| model.is_live(v)) else {
        return false;
    };
    if !model.images.get(&version.image).is_some_and(|image| fs.may(caller, image, READ)) {
        return false;
    }
    // The catalog shows a newer receipt that came through another mount.
    let in_root = upload.place() == Destination::Root;
    let is_same = |v: &&Version| v.receipt.as_ref().is_some_and(|r| r.name == name && r.in_root == in_root);
    if model
        .versions_of(version.image)
        .rev()
        .find(is_same)
        .is_some_and(|newest| newest.number > version.number)
    {
        return false;
    }
    match (upload.place(), promise_of(&name)) {
        (Destination::Root, Promise::Upload(stem)) => {
            model.image_named(ingest::named(&model, stem).0).is_some_and(|i| i.serial == version.image)
        }
        _ => true,
    }
}

/// Whether this same process has uploaded the image under exactly its name.
pub(in crate::fs) fn has_uploaded_as(fs: &ImageFs, caller: Caller, image: u32) -> bool {
    let name = fs.store.catalog.read().images.get(&image).map(|image| image.name.clone()).unwrap_or_default();
    let upload = fs.uploads.named(Destination::Root, &name).filter(|upload| upload.is_published());
    upload.is_some_and(|upload| caller.pid != 0 && upload.opener == of_thread(caller.pid))
}

/// Whether to hide an upload under way from another process. If that process was just told that the
/// name is free, and asks again, it is about to create the name. It gets the same answer once more. Its
/// create then fails because the name is busy, and not because it exists.
fn is_hidden_from(fs: &ImageFs, caller: Caller, parent: NodeId, name: &[u8], upload: &Upload) -> bool {
    let foreign = upload.writers.load(Ordering::Acquire) > 0 && !upload.is_published() && !upload.is_staged();
    foreign && fs.missed.was_told(caller.pid, parent, name) && upload.opener != of_thread(caller.pid)
}

/// Reads back what was written, or the content of a receipt.
pub(in crate::fs) fn read(
    fs: &ImageFs,
    upload: &Upload,
    offset: u64,
    len: usize,
    out: &mut Vec<u8>,
) -> Result<()> {
    let name = upload.name();
    // The upload is being judged, so nothing can be read back.
    let Some(state) = upload.state.try_lock() else { return Err(Error::UploadBusy { name }) };
    let cannot = |name: &str, why: &str| Error::Unsupported {
        what: format!("reading {name}: {why}"),
        instead: "read rootfs.tar of the version",
    };
    let version = match (&state.phase, state.before) {
        (_, Some(before)) => Some(before.version),
        (Phase::Published(_), None) => upload.info.lock().version,
        (Phase::Empty, None) => return Ok(()),
        // All bytes of a staged file are in its spool, in any phase.
        (_, None) if upload.is_staged() && state.spool.is_some() => {
            return read_spool(&state, upload.size(), offset, len, out);
        }
        (Phase::Head(head), None) => {
            let from = usize::try_from(offset).unwrap_or(usize::MAX).min(head.len());
            out.extend_from_slice(&head[from..head.len().min(from.saturating_add(len))]);
            return Ok(());
        }
        (Phase::Spooled, None) => return read_spool(&state, upload.size(), offset, len, out),
        _ => return Err(cannot(&name, "it is being unpacked")),
    };
    drop(state);
    let version = version.ok_or_else(|| cannot(&name, "its version is gone"))?;
    if let Ok(kept) = fs.store.kept(version) {
        return RecipeReader::default().read(&fs.store, &kept, crate::images::keep::RECIPE, offset, len, out);
    }
    if !came_plain(fs, version) {
        return Err(cannot(&name, "its compressed bytes are not kept"));
    }
    let slot = fs.store.tree(version)?;
    RecipeReader::default().read(&fs.store, &slot.tree, as_it_came(fs, version), offset, len, out)
}

/// `rm` of what a name leads to, if that is an upload or a receipt.
///
/// # Errors
///
/// `UploadBusy` while it is written; `IsDirectory` for anything else; those of `versions::change_receipt`.
pub(in crate::fs) fn unlink(fs: &ImageFs, found: NodeId, name: &[u8]) -> Result<()> {
    match found {
        NodeId::Upload(number) => remove(fs, &fs.uploads.by_number(number).ok_or_else(stale)?),
        NodeId::Receipt(version) => unlink_receipt(fs, version, &text_of(name)),
        _ => Err(Error::IsDirectory { what: text_of(name) }),
    }
}

/// `rm` of an upload, a scratch file or a receipt.
fn remove(fs: &ImageFs, upload: &Arc<Upload>) -> Result<()> {
    let (version, name) = {
        let info = upload.info.lock();
        (info.version.filter(|_| info.published || info.untouched), info.name.clone())
    };
    if version.is_none()
        && !upload.is_published()
        && upload.writers.load(Ordering::Acquire) > 0
        && !upload.is_staged()
    {
        return Err(Error::UploadBusy { name });
    }
    if let Some(version) = version {
        unlink_receipt(fs, version, &name)?;
    }
    upload.job.end("removed");
    fs.uploads.remove(upload);
    if !upload.is_published() {
        keep::discard(upload);
    }
    Ok(())
}

/// Whether the version's receipt is under this name.
fn has_receipt(fs: &ImageFs, version: u32, name: &str) -> bool {
    let model = fs.store.catalog.read();
    model.versions.get(&version).and_then(|v| v.receipt.as_ref()).is_some_and(|r| r.name == name)
}

/// Whether the version's upload was a plain tar. imgfs can make its bytes again.
pub(super) fn came_plain(fs: &ImageFs, version: u32) -> bool {
    fs.store.catalog.read().versions.get(&version).is_some_and(|v| v.facts.compression == "none")
}

/// The recipe that makes the upload as it came.
pub(super) fn as_it_came(fs: &ImageFs, version: u32) -> u32 {
    fs.store.catalog.read().versions.get(&version).map_or(0, |v| v.facts.as_it_came())
}

/// Hides the receipt of a version, if it is under this name.
fn unlink_receipt(fs: &ImageFs, version: u32, name: &str) -> Result<()> {
    if has_receipt(fs, version, name) {
        crate::images::versions::change_receipt(&fs.store, version, |receipt| *receipt = None)
    } else {
        Ok(())
    }
}

/// `touch`, `chmod` and `cp -p` on an upload or its receipt.
pub(in crate::fs) fn set(
    fs: &ImageFs,
    caller: Caller,
    upload: &Upload,
    mode: Option<u32>,
    mtime: Option<i64>,
) -> Result<()> {
    let version = {
        let mut info = upload.info.lock();
        info.mode = mode.map_or(info.mode, |m| m & 0o7777);
        info.mtime = mtime.unwrap_or(info.mtime);
        info.touched = Instant::now();
        info.version.filter(|_| info.published || info.untouched).map(|v| (v, info.name.clone()))
    };
    let Some((version, name)) = version else { return keep::save_staged(fs, upload) };
    if has_receipt(fs, version, &name) { set_receipt(fs, caller, version, mode, mtime) } else { Ok(()) }
}

pub(in crate::fs) fn set_receipt(
    fs: &ImageFs,
    caller: Caller,
    version: u32,
    mode: Option<u32>,
    mtime: Option<i64>,
) -> Result<()> {
    if let Some(image) = versions::set_receipt(&fs.store, version, caller.uid, mode, mtime)? {
        let image = fs.image_node(image).ino();
        fs.with_kernel(|kernel| kernel.forget_attributes(image));
    }
    Ok(())
}

fn read_spool(state: &State, size: u64, offset: u64, len: usize, out: &mut Vec<u8>) -> Result<()> {
    let spool = state.spool.as_ref().ok_or(Error::Stopping)?;
    let want = usize::try_from(size.saturating_sub(offset)).unwrap_or(usize::MAX).min(len);
    let begin = out.len();
    out.resize(begin + want, 0);
    spool.read(offset, &mut out[begin..])
}
