//! cp manifest file MNT/UUID/: what an IMGAPI manifest in an image announces, and the file that it is about.
//!
//! ```text
//! manifest first: it is staged; the next file that is copied into the image must be the one that it announces
//! file first:     in an image that is called by a uuid, `file` is staged until its manifest comes
//! afterwards:     the manifest of a version that is there is attached to it
//! ```

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::formats::imgapi::{Manifest, is_manifest_name, is_uuid_text};
use crate::fs::upload::keep::{drop_staged, spool_alone};
use crate::fs::upload::{Place, State, Upload};
use crate::fs::{Caller, ImageFs};
use crate::images::manifests;

/// The name of the file in Danube's datasets/UUID/.
const FILE: &str = "file";

impl ImageFs {
    /// The manifest that is staged in a place, with its upload.
    pub(super) fn staged_manifest(&self, place: Place) -> Option<(Arc<Upload>, Arc<Manifest>)> {
        let Place::Image(_) = place else { return None };
        let staged =
            self.uploads.in_place(place).into_iter().filter(|upload| is_manifest_name(&upload.name()));
        staged.into_iter().find_map(|upload| {
            // Closed with success, though its last descriptor may not have let go yet.
            upload.info.lock().kept.as_ref()?;
            let text = self.scratch_text(&upload, &upload.state.lock()).ok()?;
            Some((upload.clone(), Arc::new(Manifest::parse(&text).ok()?)))
        })
    }

    /// A new file in an image: what is announced of it, and whether it waits for what announces it.
    pub(super) fn announce(&self, upload: &Upload) {
        let (place, name) = (upload.place(), upload.name());
        let Place::Image(serial) = place else { return };
        if is_manifest_name(&name) {
            return;
        }
        if let Some((_, manifest)) = self.staged_manifest(place) {
            upload.info.lock().manifest = Some(manifest);
            return;
        }
        let model = self.store.catalog.read();
        let is_new = model.latest(serial).is_none();
        let by_uuid = model.images.get(&serial).is_some_and(|image| is_uuid_text(&image.name));
        upload.info.lock().waits = name == FILE && is_new && by_uuid;
    }

    /// `close(2)` of a manifest in an image: the file that it announces is published with it, or it waits for
    /// that.
    ///
    /// # Errors
    ///
    /// `Invalid` for a manifest that is refused; `Mismatch` for another image's, or where the file is
    /// another; what publishing refuses.
    pub(super) fn take_manifest(
        &self,
        caller: Caller,
        upload: &Arc<Upload>,
        state: &mut State,
    ) -> Result<()> {
        let place = upload.place();
        let Place::Image(image) = place else { return Err(crate::fs::stale()) };
        let text = self.scratch_text(upload, state)?;
        let name = upload.name();
        let manifest = Manifest::parse(&text).map_err(|why| Error::Invalid { what: name.clone(), why })?;
        let called =
            self.store.catalog.read().images.get(&image).map(|image| image.name.clone()).unwrap_or_default();
        if is_uuid_text(&called) && called != manifest.uuid() {
            let (wanted, found) = (called, manifest.uuid().to_owned());
            return Err(Error::Mismatch { what: format!("the uuid in {name}"), wanted, found });
        }
        let waits = |other: &Arc<Upload>| {
            let info = other.info.lock();
            info.name == FILE && info.waits && info.kept.is_some()
        };
        if let Some(file) = self.uploads.in_place(place).into_iter().find(waits) {
            self.publish_announced(caller, &file, place, manifest)?;
        } else if !manifests::attach(&self.store, image, &manifest)? {
            upload.info.lock().waits = true;
            return self.keep_staged(upload, state);
        }
        // It is shown by its version from now on.
        upload.job.end("it is the manifest of a version");
        self.uploads.remove(upload);
        drop_staged(upload, state);
        Ok(())
    }

    /// A file that has waited for its manifest becomes a version.
    fn publish_announced(
        &self,
        caller: Caller,
        file: &Arc<Upload>,
        place: Place,
        manifest: Manifest,
    ) -> Result<()> {
        let mut state = file.state.lock();
        // Whatever was unpacked ahead did not know that it is announced.
        spool_alone(&mut state);
        file.info.lock().manifest = Some(Arc::new(manifest));
        let judged = self.judge(caller, file, &mut state, place, FILE, true);
        if let Err(e) = judged {
            super::keep::spool_again(file, &mut state);
            file.info.lock().manifest = None;
            return Err(e);
        }
        self.end_staging(file, &mut state);
        Ok(())
    }

    /// The manifest that announced what was just published is no longer staged.
    pub(super) fn end_manifest(&self, upload: &Upload) {
        if upload.info.lock().manifest.is_none() {
            return;
        }
        if let Some((manifest, _)) = self.staged_manifest(upload.place()) {
            self.uploads.remove(&manifest);
            self.discard(&manifest);
        }
    }
}
