//! chattr +i MNT/web: an image that nobody updates, edits, renames or deletes.

use crate::catalog::{Image, Immutable};
use crate::error::{Error, Result};
use crate::manifest::now;

/// Who asks for a change.
#[derive(Clone, Copy, Debug)]
pub struct By {
    pub uid: u32,
    /// Root, and the owner of the store.
    pub is_admin: bool,
}

/// Refuses a change of an image that is immutable.
///
/// Errors: `Immutable`.
pub fn refuse_immutable(image: &Image) -> Result<()> {
    match &image.rules.immutable {
        Some(by) => Err(Error::Immutable { image: image.name.clone(), uid: by.uid }),
        None => Ok(()),
    }
}

/// Sets the flag, or takes it away: that may who has set it, and who administers the store.
///
/// Errors: `Immutable` for anybody else.
pub fn set_immutable(image: &mut Image, by: By, on: bool) -> Result<()> {
    match (&image.rules.immutable, on) {
        (None, true) => image.rules.immutable = Some(Immutable { uid: by.uid, at: now() }),
        (Some(old), false) if by.is_admin || old.uid == by.uid => image.rules.immutable = None,
        (Some(_), false) => return refuse_immutable(image),
        _ => {}
    }
    Ok(())
}
