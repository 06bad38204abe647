//! cp icon.png MNT/web/icon.png: the icon of an image, as in IMGAPI.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::base::clock::now;
use crate::catalog::{Image, Model, Row, Transaction};
use crate::error::{Error, Result};
use crate::images::rules::{live_image, refuse_immutable};
use crate::store::Store;

/// The largest size of an icon, in bytes. This is IMGAPI's bound.
pub const ICON_MAX: usize = 128 << 10;

/// The format of an icon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Png,
    Jpeg,
    Svg,
}

impl Form {
    const ALL: [(&'static str, Form); 3] =
        [("icon.png", Form::Png), ("icon.jpg", Form::Jpeg), ("icon.svg", Form::Svg)];

    /// The form of the icon file with this name.
    pub fn of_name(name: &[u8]) -> Option<Form> {
        Form::ALL.iter().find(|(known, _)| known.as_bytes() == name).map(|(_, form)| *form)
    }

    /// The name of its file in an image.
    pub fn name(self) -> &'static str {
        Form::ALL.iter().find(|(_, form)| *form == self).map_or("icon", |(name, _)| name)
    }

    fn begins(self, bytes: &[u8]) -> bool {
        match self {
            Form::Png => bytes.starts_with(b"\x89PNG\r\n\x1a\n"),
            Form::Jpeg => bytes.starts_with(b"\xff\xd8\xff"),
            // Any XML may come before the svg element.
            Form::Svg => std::str::from_utf8(bytes).is_ok_and(|text| text.contains("<svg")),
        }
    }
}

/// The prefix of the settings that store icons.
const ICON: &str = "icon.";

fn key(image: u32) -> String {
    format!("{ICON}{image}")
}

/// The form of an image's icon, if it has one, and its bytes in base64.
fn row(model: &Model, image: u32) -> Option<(Form, &str)> {
    let (name, text) = model.settings.get(&key(image))?.split_once(' ')?;
    Some((Form::of_name(name.as_bytes())?, text))
}

/// The form of an image's icon, if it has one.
pub fn form(model: &Model, image: u32) -> Option<Form> {
    row(model, image).map(|(form, _)| form)
}

/// The bytes of an image's icon.
pub fn bytes(model: &Model, image: u32) -> Option<Vec<u8>> {
    STANDARD.decode(row(model, image)?.1).ok()
}

/// Sets the icon of an image, and replaces an old one.
///
/// # Errors
///
/// `OverLimit`; `Invalid` for other bytes than the name says; `Immutable`, `NotFound`.
pub fn put(store: &Store, image: u32, form: Form, bytes: &[u8]) -> Result<()> {
    if bytes.len() > ICON_MAX {
        return Err(Error::OverLimit {
            what: "the size of an icon".into(),
            limit: format!("{ICON_MAX} bytes"),
        });
    }
    if !form.begins(bytes) {
        return Err(Error::Invalid {
            what: form.name().into(),
            why: "its content is no such picture".into(),
        });
    }
    change(store, image, Some(format!("{} {}", form.name(), STANDARD.encode(bytes))))
}

/// `rm MNT/web/icon.png`.
///
/// # Errors
///
/// `Immutable`, `NotFound`.
pub fn remove(store: &Store, image: u32) -> Result<()> {
    change(store, image, None)
}

fn change(store: &Store, image: u32, value: Option<String>) -> Result<()> {
    store.catalog.commit(|txn| {
        let of = live_image(txn.model, image)?;
        refuse_immutable(of)?;
        txn.put(Row::Image(Image { updated_at: now(), ..of.clone() }.into()));
        txn.put(Row::Setting { key: key(image), value });
        Ok(())
    })
}

/// Removes the icon of an image that is gone for good.
pub(crate) fn forget(txn: &mut Transaction<'_>, image: u32) {
    if txn.model.settings.contains_key(&key(image)) {
        txn.put(Row::Setting { key: key(image), value: None });
    }
}
