//! Which image an upload is for, and what becomes of it.

use crate::base::name::{ImageName, VersionTag};
use crate::catalog::{Image, Model};
use crate::images::quota::Payer;
use crate::store::Store;

/// Where an upload goes.
#[derive(Clone, Debug)]
pub enum Target {
    /// The image of this name, made if it is not there.
    Named(ImageName),
    /// A new image of this name.
    New(ImageName),
    /// The image with this serial.
    Image(u32),
}

impl Target {
    /// The image that it is, if that is there.
    pub fn image<'m>(&self, model: &'m Model) -> Option<&'m Image> {
        match self {
            Target::Named(name) => model.image_named(name.as_str()),
            Target::New(_) => None,
            Target::Image(serial) => model.live_image(*serial),
        }
    }

    /// Whose a version in it counts as: the image's owner's, or of a new image its maker's; and the view's.
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
    /// The file name that was written.
    pub file_name: String,
    pub uid: u32,
    pub gid: u32,
    /// Permission bits for a new image.
    pub mode: u32,
    /// The upload's own time (nanoseconds since 1970) and permission bits, for its receipt, if its name
    /// stays.
    pub receipt: Option<(i64, u32)>,
    /// A metadata.json that came with it: its editable keys are set.
    pub metadata: Option<Vec<u8>>,
    /// What the file's name or a manifest says of the version; see name.rs.
    pub tag: VersionTag,
}

/// What became of an upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    pub image: u32,
    pub name: String,
    pub number: u32,
    /// False if the newest version already is this.
    pub new: bool,
    /// Content that the store did not have, in bytes.
    pub new_bytes: u64,
}
