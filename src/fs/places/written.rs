//! Files that are being written in the root and in images, and their receipts afterwards.

use crate::catalog::{self, Model};
use crate::error::{Error, Result};
use crate::fs::node::NodeId;
use crate::fs::opened::{OpenMode, Opened, frozen};
use crate::fs::places::version::version_of;
use crate::fs::places::{Named, Place, refuse_attribute};
use crate::fs::rights::{self, Shown};
use crate::fs::upload;
use crate::fs::{Attr, Caller, ImageFs, SetAttr, stale};

/// Uploads and receipts.
pub struct Written;

impl Place for Written {
    /// The image of a receipt. An upload under way gives none: only its writer may know about it.
    fn image(&self, model: &Model, node: NodeId) -> Option<u32> {
        let NodeId::Receipt(serial) = node else { return None };
        model.image_of(serial)
    }

    fn attr(&self, fs: &ImageFs, node: NodeId, own: Attr) -> Result<Attr> {
        match node {
            NodeId::Upload(number) => upload_attr(fs, node, number),
            NodeId::Receipt(serial) => receipt_attr(fs, serial, own),
            _ => Err(stale()),
        }
    }

    fn set(&self, fs: &ImageFs, caller: Caller, node: NodeId, changes: &SetAttr) -> Result<()> {
        match node {
            NodeId::Upload(number) => {
                let upload = fs.uploads.by_number(number).ok_or_else(stale)?;
                upload::set(fs, caller, &upload, changes.mode, changes.mtime)
            }
            NodeId::Receipt(version) => upload::set_receipt(fs, caller, version, changes.mode, changes.mtime),
            _ => Err(stale()),
        }
    }

    fn truncate(&self, fs: &ImageFs, caller: Caller, node: NodeId, size: u64) -> Result<()> {
        match node {
            NodeId::Upload(number) => {
                let upload = fs.uploads.by_number(number).ok_or_else(stale)?;
                upload::truncate(fs, caller, &upload, size)
            }
            NodeId::Receipt(_) if size == 0 => Ok(()),
            _ => Err(frozen(node)),
        }
    }

    fn open(&self, fs: &ImageFs, caller: Caller, node: NodeId, mode: OpenMode) -> Result<Opened> {
        upload::open(fs, caller, node, mode)
    }

    fn rename(&self, _fs: &ImageFs, _caller: Caller, node: NodeId, from: &Named, _to: &Named) -> Result<()> {
        match node {
            NodeId::Receipt(_) => {
                let why = "it is the receipt of an upload";
                Err(Error::Managed { what: crate::fs::names::text_of(&from.1), why })
            }
            _ => Err(frozen(node)),
        }
    }

    fn rights(&self, fs: &ImageFs, node: NodeId) -> Option<(Shown, u32)> {
        let serial = match node {
            NodeId::Receipt(serial) => serial,
            NodeId::Upload(number) => fs.uploads.by_number(number)?.published_as()?,
            _ => return None,
        };
        let model = fs.store.catalog.read();
        let (image, _) = version_of(&model, serial).ok()?;
        Some((rights::of_image(fs, image), 6))
    }

    /// `setfattr -n user.imgfs.expect -v sha256:HEX`.
    fn set_attribute(
        &self,
        fs: &ImageFs,
        _caller: Caller,
        node: NodeId,
        key: &str,
        value: Option<&str>,
    ) -> Result<()> {
        match (node, value) {
            (NodeId::Upload(number), Some(value)) if key == "expect" => upload::expect(fs, number, value),
            _ => refuse_attribute(key, value),
        }
    }
}

fn upload_attr(fs: &ImageFs, node: NodeId, number: u64) -> Result<Attr> {
    let upload = fs.uploads.by_number(number).ok_or_else(stale)?;
    let (attr, model) = (upload.attr(node.ino()), fs.store.catalog.read());
    // Once it is a version, users who may change the image may write the file again. Users who may not
    // read the image do not see it.
    match upload.published_as().and_then(|serial| version_of(&model, serial).ok()) {
        Some((image, _)) => Ok(Attr { mode: attr.mode | rights::of_image(fs, image).mode & 0o022, ..attr }),
        None => Ok(attr),
    }
}

/// What stat shows of a receipt.
fn receipt_attr(fs: &ImageFs, serial: u32, own: Attr) -> Result<Attr> {
    let model = fs.store.catalog.read();
    let (image, version) = version_of(&model, serial)?;
    let receipt = version.receipt.as_ref().ok_or_else(stale)?;
    let mode = receipt_mode(fs, image, receipt.mode);
    let own = Attr { uid: version.facts.uid, gid: image.gid, ..own };
    Ok(own.file(mode, version.facts.upload_size).at(receipt.mtime))
}

/// The mode of a receipt. It hides what the image hides. Users who may change the image may write the
/// file again.
fn receipt_mode(fs: &ImageFs, image: &catalog::Image, own: u32) -> u32 {
    let shown = rights::of_image(fs, image).mode;
    own & !0o444 | own & shown & 0o444 | shown & 0o022
}
