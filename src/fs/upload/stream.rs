//! Where the bytes of an upload go: to the unpacker, or into a spool.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::base::name::{ImageName, Promise, VersionTag, image_stem, promise_of};
use crate::error::{Error, Result};
use crate::formats::metadata::METADATA_MAX;
use crate::fs::ImageFs;
use crate::fs::upload::{Destination, PIECE, Phase, Spool, State, Upload};
use crate::images::keep;
use crate::ingest::{self, Hint, Incoming, Ingest, Target, Wish, staged};
use crate::store::Store;

pub(super) fn begin_stream(fs: &ImageFs, upload: &Upload, state: &mut State, head: &[u8]) -> Result<()> {
    upload.job.phase("unpacking");
    let begin = begin_with(fs, upload, upload.hint());
    // A staged file has no target until its rename.
    let image = if upload.is_staged() { None } else { image_of_upload(fs, upload) };
    state.phase = Phase::Streaming(Incoming::start(&fs.store, image, head, Box::new(begin))?);
    Ok(())
}

/// Makes the function that begins to unpack an upload.
pub(super) fn begin_with(
    fs: &ImageFs,
    upload: &Upload,
    hint: Hint,
) -> impl FnOnce(&[u8]) -> Result<Ingest> + Send + use<> {
    let (store, staging, wish) = (fs.store.clone(), format!("upload-{}", upload.number), wish(fs, upload));
    move |head| Ingest::start(&store, &staging, head, hint, wish)
}

/// The image that the upload goes into, if its name and place say so.
fn image_of_upload(fs: &ImageFs, upload: &Upload) -> Option<u32> {
    match (upload.place(), promise_of(&upload.name())) {
        (Destination::Image(serial), _) => Some(serial),
        (Destination::Root, Promise::Upload(stem)) => {
            let model = fs.store.catalog.read();
            model.image_named(ingest::named(&model, stem).0).map(|i| i.serial)
        }
        (Destination::Root, Promise::Staged) => None,
    }
}

/// Whether to keep the upload as it came, by the setting of its image or of the store. Also whether to
/// compute its sha1: a manifest may announce a staged file before its rename.
fn wish(fs: &ImageFs, upload: &Upload) -> Wish {
    let announced = upload.info.lock().manifest.is_some();
    let keep = keep::policy(&fs.store, image_of_upload(fs, upload), None);
    Wish { keep: if announced { keep.announced() } else { keep }, sha1: announced || upload.is_staged() }
}

pub(super) fn make_spool(fs: &ImageFs, upload: &Upload, state: &mut State) -> Result<()> {
    if state.spool.is_none() {
        upload.job.phase("spooling");
        let path = fs.store.dir.join("staging").join(format!("spool-{}", upload.number));
        let create = || File::options().read(true).write(true).create(true).truncate(true).open(&path);
        let file = fs.store.in_room(|| create().map_err(Error::io("create", &path)))?;
        state.spool = Some(Spool { file, path, stays: false });
    }
    Ok(())
}

pub(super) fn begin_spool(fs: &ImageFs, upload: &Upload, state: &mut State) -> Result<()> {
    make_spool(fs, upload, state)?;
    if let Phase::Head(head) = std::mem::replace(&mut state.phase, Phase::Spooled) {
        write_spool(&fs.store, state, 0, &head)?;
    }
    Ok(())
}

pub(super) fn write_spool(store: &Store, state: &State, offset: u64, data: &[u8]) -> Result<()> {
    refuse_over(store, offset.saturating_add(data.len() as u64))?;
    let spool = state.spool.as_ref().ok_or(Error::Stopping)?;
    store.in_room(|| spool.file.write_all_at(data, offset).map_err(Error::io("write", &spool.path)))
}

/// Refuses a file that is larger than an upload may be, before it is unpacked. Such a file may be one
/// hole, so the disk sets no limit.
pub(in crate::fs) fn refuse_over(store: &Store, size: u64) -> Result<()> {
    let limit = store.settings().limits.tar_size;
    if size > limit {
        return Err(Error::OverLimit { what: "the size of the file".into(), limit: limit.to_string() });
    }
    Ok(())
}

/// Whether a file with this beginning may become metadata.json: it is JSON in an image.
pub(super) fn begins_a_document(upload: &Upload, head: &[u8]) -> bool {
    matches!(upload.place(), Destination::Image(_)) && head.trim_ascii_start().starts_with(b"{")
}

pub(super) fn head_of(state: &State) -> Vec<u8> {
    match &state.phase {
        Phase::Head(head) => head.clone(),
        _ => {
            let mut head = vec![0; ingest::HEAD];
            let got = state.spool.as_ref().and_then(|s| s.file.read_at(&mut head, 0).ok()).unwrap_or(0);
            head.truncate(got);
            head
        }
    }
}

pub(super) fn scratch_text(upload: &Upload, state: &State) -> Result<Vec<u8>> {
    if upload.size() > METADATA_MAX as u64 {
        return Err(Error::BadMetadata { why: format!("it is over {} bytes", METADATA_MAX) });
    }
    match &state.phase {
        Phase::Head(head) => Ok(head.clone()),
        Phase::Spooled => {
            let spool = state.spool.as_ref().ok_or(Error::Stopping)?;
            let mut text = vec![0; upload.size() as usize];
            spool.file.read_exact_at(&mut text, 0).map_err(Error::io("read", &spool.path))?;
            Ok(text)
        }
        Phase::Empty => Ok(Vec::new()),
        _ => Err(Error::BadMetadata { why: "it is not valid JSON".into() }),
    }
}

/// The image to which a file of this name in the root goes. `own` is the number of its upload, if it
/// has one already.
pub(in crate::fs) fn target_named(
    fs: &ImageFs,
    name: &str,
    own: Option<u64>,
) -> Result<(Target, VersionTag)> {
    let (image, tag) = ingest::named(&fs.store.catalog.read(), image_stem(name));
    let image = ImageName::parse(image.as_bytes())?;
    fs.refuse_staged(image.as_str(), own)?;
    Ok((Target::Named(image), tag))
}

pub(super) fn path_name(fs: &ImageFs, upload: &Upload) -> String {
    let name = upload.name();
    match upload.place() {
        Destination::Root => format!("/{name}"),
        Destination::Image(serial) => {
            let model = fs.store.catalog.read();
            format!("/{}/{name}", model.images.get(&serial).map_or("?", |i| i.name.as_str()))
        }
    }
}

pub(super) fn fail(upload: &Upload, state: &mut State, e: &Error) {
    let old = std::mem::replace(&mut state.phase, Phase::Failed(e.errno(), e.to_string()));
    if let Phase::Streaming(ingest) | Phase::Gapped(ingest, _) = old {
        ingest.abort();
    }
    state.spool = None;
    upload.info.lock().failed = true;
    upload.job.end(&format!("refused: {e}"));
}

/// Gives the rest of the file to the unpacker; bytes that were never written are zeros. A hole of
/// terabytes takes an hour, so `go_on` is called now and then. If that returns false, the upload stays
/// where it is.
pub(super) fn feed_spool(state: &mut State, upload: &Upload, go_on: &dyn Fn() -> bool) -> Result<()> {
    let State { phase, spool, .. } = state;
    let Phase::Gapped(ingest, at) = phase else { return Ok(()) };
    let spool = spool.as_ref().ok_or(Error::Stopping)?;
    let size = upload.size();
    for n in 0_u32.. {
        if *at >= size || ingest.has_failed() {
            break;
        }
        if n.is_multiple_of(staged::ASKING) && !go_on() {
            return Err(Error::WriterKilled { name: upload.name() });
        }
        let want = usize::try_from(size - *at).unwrap_or(PIECE).min(PIECE);
        let mut piece = vec![0; want];
        spool.read(*at, &mut piece)?;
        ingest.push_and_wait(Arc::new(piece));
        *at += want as u64;
        upload.job.reached(*at);
    }
    if let Phase::Gapped(ingest, _) = std::mem::replace(phase, Phase::Moving) {
        *phase = Phase::Streaming(ingest);
    }
    Ok(())
}
