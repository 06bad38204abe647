//! A version's uuid must be unique, and its origin must exist.

use crate::catalog::Model;
use crate::error::{Error, Result};

/// Checks what a manifest needs: its uuid is new, and its origin exists.
///
/// # Errors
///
/// `NotUnique`, `NotFound`.
pub fn check_identity(model: &Model, uuid: &str, origin: &str) -> Result<()> {
    let known = |uuid: &str| model.all_versions().find(|v| v.facts.uuid == uuid && model.is_live(v));
    if let Some(version) = known(uuid).filter(|_| !uuid.is_empty()) {
        let image = model.images.get(&version.image).map_or("?", |i| i.name.as_str());
        let holder = format!("it is the uuid of {image}/{}", version.number);
        return Err(Error::NotUnique { what: uuid.into(), holder });
    }
    if !origin.is_empty() && known(origin).is_none() {
        return Err(Error::NotFound { what: format!("origin {origin} of the manifest") });
    }
    Ok(())
}
