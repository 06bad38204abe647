//! cp manifest file MNT/UUID/: an IMGAPI manifest that is copied into an image announces a file.
//!
//! ```text
//! manifest first: it is staged; the next file that is copied into the image must be the one that it announces
//! file first:     in an image that is called by a uuid, `file` is staged until its manifest comes
//! afterwards:     the manifest of a version that is there is attached to it
//! ```

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::formats::imgapi::{Manifest, is_manifest_name, is_uuid_text};
use crate::fs::upload::{Destination, State, Upload, judge, keep, stream};
use crate::fs::{Caller, ImageFs};
use crate::images::manifests;

/// The name of the file in Danube's datasets/UUID/.
const FILE: &str = "file";

/// Looks up what announces a new file in an image, and whether the file has to wait for that.
pub(super) fn announce(fs: &ImageFs, upload: &Upload) {
    let (place, name) = (upload.place(), upload.name());
    let Destination::Image(serial) = place else { return };
    if is_manifest_name(&name) {
        return;
    }
    if let Some((_, manifest)) = keep::staged_manifest(fs, place) {
        upload.info.lock().manifest = Some(manifest);
        return;
    }
    let model = fs.store.catalog.read();
    let is_new = model.latest(serial).is_none();
    let by_uuid = model.images.get(&serial).is_some_and(|image| is_uuid_text(&image.name));
    upload.info.lock().waits = name == FILE && is_new && by_uuid;
}

/// `close(2)` of a manifest in an image. The file that it announces is published with it, or it is
/// attached to an existing version. Otherwise it waits.
///
/// # Errors
///
/// `Invalid` for a manifest that is refused; `Mismatch` for another image's, or where the file is
/// another; what publishing refuses.
pub(super) fn take_manifest(
    fs: &ImageFs,
    caller: Caller,
    upload: &Arc<Upload>,
    state: &mut State,
) -> Result<()> {
    let place = upload.place();
    let Destination::Image(image) = place else { return Err(crate::fs::stale()) };
    let text = stream::scratch_text(upload, state)?;
    let name = upload.name();
    let manifest = Manifest::parse(&text).map_err(|why| Error::Invalid { what: name.clone(), why })?;
    let called =
        fs.store.catalog.read().images.get(&image).map(|image| image.name.clone()).unwrap_or_default();
    if is_uuid_text(&called) && called != manifest.uuid() {
        let (wanted, found) = (called, manifest.uuid().to_owned());
        return Err(Error::Mismatch { what: format!("the uuid in {name}"), wanted, found });
    }
    let waits = |other: &Arc<Upload>| {
        let info = other.info.lock();
        info.name == FILE && info.waits && info.kept.is_some()
    };
    if let Some(file) = fs.uploads.in_place(place).into_iter().find(waits) {
        publish_announced(fs, caller, &file, place, manifest)?;
    } else if !manifests::attach(&fs.store, image, &manifest)? {
        upload.info.lock().waits = true;
        return keep::keep_staged(fs, upload, state);
    }
    // From now on its version shows it.
    upload.job.end("it is the manifest of a version");
    fs.uploads.remove(upload);
    keep::drop_staged(upload, state);
    Ok(())
}

/// Publishes a file that has waited for its manifest.
fn publish_announced(
    fs: &ImageFs,
    caller: Caller,
    file: &Arc<Upload>,
    place: Destination,
    manifest: Manifest,
) -> Result<()> {
    let mut state = file.state.lock();
    // What was unpacked ahead did not know of the manifest.
    keep::spool_alone(&mut state);
    file.info.lock().manifest = Some(Arc::new(manifest));
    let judged = judge::judge(fs, caller, file, &mut state, place, FILE, true);
    if let Err(e) = judged {
        keep::spool_again(file, &mut state);
        file.info.lock().manifest = None;
        return Err(e);
    }
    judge::end_staging(fs, file, &mut state);
    Ok(())
}
