//! cp icon.png MNT/web/icon.png, cat, rm: the picture of an image.

use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::fs::edit::Edit;
use crate::fs::node::{ImagePart, NodeId};
use crate::fs::{Caller, Handle, ImageFs, stale};
use crate::images::icons::{self, Form, ICON_MAX};

impl ImageFs {
    /// The form of an image's icon, if it has one.
    pub(super) fn icon_form(&self, image: u32) -> Option<Form> {
        icons::form(&self.store.catalog.read(), image)
    }

    pub(super) fn icon_bytes(&self, image: u32) -> Result<Vec<u8>> {
        icons::bytes(&self.store.catalog.read(), image).ok_or_else(stale)
    }

    /// Opens an icon to be written anew; it counts when it is closed.
    ///
    /// # Errors
    ///
    /// `Immutable`, `Attached`.
    pub(super) fn open_icon(&self, image: u32, form: Form) -> Result<u64> {
        self.refuse_edit(image)?;
        Ok(self.open_handle(Handle::Icon(image, form, Mutex::new(Edit::new(String::new(), ICON_MAX)))))
    }

    pub(super) fn create_icon(&self, image: u32, form: Form) -> Result<(NodeId, u64)> {
        let fh = self.open_icon(image, form)?;
        Ok((self.part_of_image(image, ImagePart::Icon), fh))
    }

    /// `close(2)`, or a rename to its name.
    pub(super) fn put_icon(&self, caller: Caller, image: u32, form: Form, bytes: &[u8]) -> Result<()> {
        self.refuse_attached(image)?;
        icons::put(&self.store, image, form, bytes)?;
        self.icon_has_changed(caller, image, form);
        Ok(())
    }

    /// `rm`.
    pub(super) fn remove_icon(&self, caller: Caller, image: u32, form: Form) -> Result<()> {
        self.refuse_attached(image)?;
        if self.icon_form(image) != Some(form) {
            return Err(Error::NotFound { what: form.name().into() });
        }
        icons::remove(&self.store, image)?;
        self.icon_has_changed(caller, image, form);
        Ok(())
    }

    fn icon_has_changed(&self, caller: Caller, image: u32, form: Form) {
        let node = self.image_node(image);
        self.store.journal.log(caller.uid, "icon", self.path_of(node).trim_start_matches('/'), form.name());
        self.with_kernel(|kernel| kernel.forget_attributes(node.ino()));
    }
}
