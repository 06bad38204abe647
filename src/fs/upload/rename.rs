//! mv MNT/.web.tar MNT/web.tar: rename(2) publishes a staged file.

use std::sync::Arc;

use crate::base::name::{Promise, promise_of};
use crate::error::{Error, Result};
use crate::fs::places::{icon, metadata};
use crate::fs::upload::{Destination, Phase, Upload, judge, keep, stream};
use crate::fs::{Caller, ImageFs};
use crate::images::icons::Form;

/// `mv MNT/.web.tar.xz.Ab12 MNT/web.tar.xz`, also inside an image: the rename publishes the file. If
/// the file moves into an image, any name publishes it.
pub(in crate::fs) fn rename(
    fs: &ImageFs,
    caller: Caller,
    upload: &Arc<Upload>,
    to: Destination,
    name: &str,
) -> Result<()> {
    let mut state = upload.state.lock();
    if let Phase::Published(_) = state.phase {
        return Err(Error::Managed { what: upload.name(), why: "it is the receipt of an upload" });
    }
    if let (Destination::Image(image), "metadata.json") = (to, name) {
        let text = stream::scratch_text(upload, &state)?;
        metadata::edit(fs, caller, image, &text)?;
        upload.job.end("metadata.json was changed");
        fs.uploads.remove(upload);
        keep::drop_staged(upload, &mut state);
        return Ok(());
    }
    if let (Destination::Image(image), Some(form)) = (to, Form::of_name(name.as_bytes())) {
        let bytes = stream::scratch_text(upload, &state)?;
        icon::put(fs, caller, image, form, &bytes)?;
        upload.job.end("it is the icon");
        fs.uploads.remove(upload);
        keep::drop_staged(upload, &mut state);
        return Ok(());
    }
    let moves_in = to != upload.place() && matches!(to, Destination::Image(_));
    let stays_staged = promise_of(name) == Promise::Staged && !moves_in;
    if stays_staged || upload.size() == 0 {
        drop(state);
        return rename_staged_file(fs, upload, to, name);
    }
    let text =
        if matches!(to, Destination::Image(_)) { stream::scratch_text(upload, &state).ok() } else { None };
    if text.is_some_and(|text| stream::begins_a_document(upload, &text)) && !moves_in {
        // A copy of metadata.json gets another name.
        upload.info.lock().waits = true;
        drop(state);
        return rename_staged_file(fs, upload, to, name);
    }
    state.refused.again(name)?;
    let result = judge::judge(fs, caller, upload, &mut state, to, name, true);
    if let Err(e) = &result {
        // The file stays as it was, and the next attempt gets the same error.
        keep::spool_again(upload, &mut state);
        state.refused.note(name, e);
    }
    if judge::published_in(&state).is_some() {
        if let Some(old) = fs.uploads.rename(upload, to, name) {
            keep::discard(&old);
        }
        judge::end_staging(fs, upload, &mut state);
    }
    result
}

/// Renames a staged file. It replaces a staged file that had the new name.
fn rename_staged_file(fs: &ImageFs, upload: &Upload, to: Destination, name: &str) -> Result<()> {
    let before = (upload.place(), upload.name());
    let replaced = fs.uploads.rename(upload, to, name);
    if let Err(e) = keep::save_staged(fs, upload) {
        fs.uploads.rename(upload, before.0, &before.1);
        return Err(e);
    }
    replaced.iter().for_each(|old| keep::discard(old));
    Ok(())
}
