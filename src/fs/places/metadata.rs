//! metadata.json of an image, which is read and edited in place as one document.

use parking_lot::Mutex;

use crate::base::json;
use crate::error::{Error, Result};
use crate::formats::metadata::METADATA_MAX;
use crate::fs::edit::Edit;
use crate::fs::node::{ImagePart, NodeId};
use crate::fs::opened::{OpenMode, Opened};
use crate::fs::{Caller, Handle, ImageFs, stale};
use crate::images::{describe, versions};

/// Opens the document. Changes count once it is closed.
///
/// # Errors
///
/// `NotFound` if the image is gone; for writing `Frozen` in the trash.
pub(super) fn open(fs: &ImageFs, image: u32, mode: OpenMode) -> Result<Opened> {
    let (now, is_trashed) = {
        let model = fs.store.catalog.read();
        let image = model.images.get(&image).ok_or_else(stale)?;
        (json::pretty(&describe::image(&model, image)), image.trashed_at.is_some())
    };
    if !mode.writes {
        return Ok(fs.opened_text(now));
    }
    if is_trashed {
        return Err(Error::Frozen { what: "what is in the trash".into() });
    }
    let text = if mode.truncates { String::new() } else { now };
    let handle = Handle::Edit(image, Mutex::new(Edit::new(text, METADATA_MAX)));
    Ok(Opened::Direct(fs.open_handle(handle)))
}

/// `rm MNT/web/metadata.json` has no effect, except that the same process may create the file again.
///
/// # Errors
///
/// `Immutable`, `Attached`.
pub(super) fn remove(fs: &ImageFs, caller: Caller, image: u32) -> Result<()> {
    fs.refuse_edit(image)?;
    fs.replacing.begin(caller.pid, image);
    Ok(())
}

/// `creat(2)` of metadata.json starts an edit of the whole document.
///
/// # Errors
///
/// `Immutable`, `Attached`.
pub(super) fn create(fs: &ImageFs, caller: Caller, image: u32) -> Result<(NodeId, u64)> {
    fs.refuse_edit(image)?;
    fs.replacing.end(caller.pid, image);
    let handle = Handle::Edit(image, Mutex::new(Edit::new(String::new(), METADATA_MAX)));
    Ok((fs.part_of_image(image, ImagePart::Metadata), fs.open_handle(handle)))
}

/// Judges the whole document after it was written.
///
/// # Errors
///
/// Those of `versions::edit` and `describe::edit`.
pub(in crate::fs) fn edit(fs: &ImageFs, caller: Caller, image: u32, text: &[u8]) -> Result<()> {
    versions::edit(&fs.store, image, |model, image| describe::edit(model, image, fs.by(caller), text))?;
    fs.with_kernel(|kernel| kernel.forget_attributes(fs.image_node(image).ino()));
    Ok(())
}

/// Changes one of the keys of the document; an empty value clears it.
///
/// # Errors
///
/// Those of `versions::edit` and `describe::edit_key`.
pub(in crate::fs) fn edit_key(
    fs: &ImageFs,
    caller: Caller,
    image: u32,
    key: &str,
    value: &str,
) -> Result<()> {
    versions::edit(&fs.store, image, |model, image| {
        describe::edit_key(model, image, fs.by(caller), key, value)
    })?;
    fs.log(caller, "edit", fs.image_node(image), &format!("{key}={value}"));
    Ok(())
}
