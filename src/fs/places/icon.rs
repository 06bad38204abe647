//! cp icon.png MNT/web/icon.png, cat, rm: the picture of an image.

use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::fs::edit::Edit;
use crate::fs::node::{ImagePart, NodeId};
use crate::fs::opened::{OpenMode, Opened};
use crate::fs::{Caller, Handle, ImageFs, stale};
use crate::images::icons::{self, Form, ICON_MAX};

/// The form of an image's icon, if it has one.
fn form_of(fs: &ImageFs, image: u32) -> Option<Form> {
    icons::form(&fs.store.catalog.read(), image)
}

/// Opens an icon. An open for writing starts with an empty file.
///
/// # Errors
///
/// `NotFound` if there is none; for writing `Immutable`, `Attached`.
pub(super) fn open(fs: &ImageFs, image: u32, mode: OpenMode) -> Result<Opened> {
    let form = form_of(fs, image).ok_or_else(stale)?;
    let fh = if mode.writes {
        open_to_write(fs, image, form)?
    } else {
        let bytes = icons::bytes(&fs.store.catalog.read(), image).ok_or_else(stale)?;
        fs.open_handle(Handle::Text(bytes))
    };
    Ok(Opened::Direct(fh))
}

/// Opens an empty icon for writing. The new icon counts once it is closed.
///
/// # Errors
///
/// `Immutable`, `Attached`.
fn open_to_write(fs: &ImageFs, image: u32, form: Form) -> Result<u64> {
    fs.refuse_edit(image)?;
    Ok(fs.open_handle(Handle::Icon(image, form, Mutex::new(Edit::new(String::new(), ICON_MAX)))))
}

pub(super) fn create(fs: &ImageFs, image: u32, form: Form) -> Result<(NodeId, u64)> {
    let fh = open_to_write(fs, image, form)?;
    Ok((fs.part_of_image(image, ImagePart::Icon), fh))
}

/// Stores an icon, at `close(2)` or at a rename to its name.
pub(in crate::fs) fn put(fs: &ImageFs, caller: Caller, image: u32, form: Form, bytes: &[u8]) -> Result<()> {
    fs.refuse_attached(image)?;
    icons::put(&fs.store, image, form, bytes)?;
    has_changed(fs, caller, image, form);
    Ok(())
}

/// `rm`.
pub(super) fn remove(fs: &ImageFs, caller: Caller, image: u32, form: Form) -> Result<()> {
    fs.refuse_attached(image)?;
    if form_of(fs, image) != Some(form) {
        return Err(Error::NotFound { what: form.name().into() });
    }
    icons::remove(&fs.store, image)?;
    has_changed(fs, caller, image, form);
    Ok(())
}

fn has_changed(fs: &ImageFs, caller: Caller, image: u32, form: Form) {
    let node = fs.image_node(image);
    fs.log(caller, "icon", node, form.name());
    fs.with_kernel(|kernel| kernel.forget_attributes(node.ino()));
}
