//! Which image an upload goes to, and the result of an upload.

use crate::base::name::{ImageName, VersionTag};
use crate::catalog::{Image, Model};
use crate::images::quota::Payer;
use crate::store::Store;

/// Where an upload goes.
#[derive(Clone, Debug)]
pub enum Target {
    /// The image with this name, which is made if it does not exist.
    Named(ImageName),
    /// A new image of this name.
    New(ImageName),
    /// The image with this serial.
    Image(u32),
}

impl Target {
    /// The image, if it exists.
    pub fn image<'m>(&self, model: &'m Model) -> Option<&'m Image> {
        match self {
            Target::Named(name) => model.image_named(name.as_str()),
            Target::New(_) => None,
            Target::Image(serial) => model.live_image(*serial),
        }
    }

    /// The payers of a version in it: the owner of the image, or the maker of a new one, and the view.
    pub(super) fn payers(&self, store: &Store, maker: u32) -> Vec<Payer> {
        let (uid, name) = {
            let model = store.catalog.read();
            let name = if let Target::Named(name) | Target::New(name) = self { name.as_str() } else { "" };
            self.image(&model).map_or((maker, name.to_owned()), |image| (image.uid, image.name.clone()))
        };
        Payer::of(store, &store.whole().catalog.read(), uid, &name)
    }
}

/// Who uploads what, under which name.
#[derive(Clone, Debug)]
pub struct Source {
    pub target: Target,
    /// The name of the file that was written.
    pub file_name: String,
    pub uid: u32,
    pub gid: u32,
    /// Permission bits for a new image.
    pub mode: u32,
    /// For the receipt: the upload's own time (nanoseconds since 1970) and permission bits. `None` if its
    /// name does not stay.
    pub receipt: Option<(i64, u32)>,
    /// A metadata.json that came with it. Its editable keys are set.
    pub metadata: Option<Vec<u8>>,
    /// What the file's name or a manifest says about the version; see name.rs.
    pub tag: VersionTag,
}

/// The result of an upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    pub image: u32,
    pub name: String,
    pub number: u32,
    /// False if the newest version is the same already.
    pub new: bool,
    /// How many bytes of content the store did not have before.
    pub new_bytes: u64,
}
