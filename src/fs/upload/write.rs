//! cp in, the first half: creat(2), write(2), ftruncate(2) of an upload.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::base::clock::now;
use crate::base::name::{NAME_MAX, Promise, promise_of};
use crate::error::{Error, Result};
use crate::formats::tar;
use crate::fs::node::NodeId;
use crate::fs::opened::{OpenMode, Opened};
use crate::fs::removal::shells;
use crate::fs::stale;
use crate::fs::upload::{
    Before, Destination, Phase, State, Upload, announce, keep, receipt, repeated, stream,
};
use crate::fs::{Caller, Handle, ImageFs, Reply};
use crate::images::export;
use crate::images::rules::refuse_immutable;
use crate::ingest::{self, Published};

/// How long a truncation waits for earlier writes.
const SETTLING: Duration = Duration::from_secs(2);

/// `creat(2)`: a new upload or scratch file. Inside an image it may have any name that no entry of the
/// image has.
///
/// # Errors
///
/// `BadName`, `NameTooLong`, `Taken`, `UploadBusy`; `NotYours`, `Immutable`, `Attached`; what
/// `ingest::refuse_early` refuses.
pub(in crate::fs) fn create(
    fs: &ImageFs,
    caller: Caller,
    destination: Destination,
    name: &[u8],
    mode: u32,
) -> Result<(NodeId, u64)> {
    let text = std::str::from_utf8(name).map_err(|_| bad_name(name, "it is not UTF-8"))?;
    if name.len() > NAME_MAX {
        return Err(Error::NameTooLong { len: name.len() });
    }
    if text.chars().any(char::is_control) {
        return Err(bad_name(name, "it has a control character"));
    }
    match (destination, promise_of(text)) {
        (Destination::Root, Promise::Upload(_)) => {
            // The refusal comes before a gigabyte is copied.
            let (target, tag) = stream::target_named(fs, text, None)?;
            ingest::refuse_early(&fs.store, caller.uid, &target, &tag)?;
            fs.refuse_foreign(caller, &target)?;
        }
        (Destination::Root, Promise::Staged) => {}
        (Destination::Image(serial), _) => {
            refuse_immutable(fs.store.catalog.read().live_image(serial).ok_or_else(stale)?)?;
            fs.refuse_attached(serial)?;
        }
    }
    if fs.uploads.named(destination, text).is_some_and(|u| !u.is_published()) {
        return Err(Error::UploadBusy { name: text.to_owned() });
    }
    let upload = new_upload(fs, caller, destination, text, mode, None, None);
    announce::announce(fs, &upload);
    let fh = fs.open_handle(Handle::Upload { upload: upload.clone(), writes: true });
    Ok((NodeId::Upload(upload.number), fh))
}

pub(super) fn new_upload(
    fs: &ImageFs,
    caller: Caller,
    place: Destination,
    name: &str,
    mode: u32,
    before: Option<Before>,
    number: Option<u64>,
) -> Arc<Upload> {
    let mut upload = Upload::new(&fs.store, caller, place, name, mode);
    // Over a receipt it keeps the number, because the kernel has the file open under that number.
    upload.number = number.unwrap_or(upload.number);
    if let Some(before) = before {
        let info = upload.info.get_mut();
        (info.size, info.mtime, info.untouched, info.version) =
            (before.size, before.mtime, true, Some(before.version));
        upload.state.get_mut().before = Some(before);
    }
    let upload = Arc::new(upload);
    fs.uploads.insert(upload.clone(), name.to_owned());
    upload
}

/// Opens an existing upload: a staged one, one that another process writes, or a receipt.
pub(in crate::fs) fn open(fs: &ImageFs, caller: Caller, node: NodeId, open: OpenMode) -> Result<Opened> {
    let writes = open.writes;
    let upload = match node {
        NodeId::Upload(number) => {
            let upload = fs.uploads.by_number(number).ok_or_else(stale)?;
            let version = {
                let info = upload.info.lock();
                info.published.then(|| (info.version, info.size, info.name.clone(), info.mode, info.mtime))
            };
            match version {
                Some((version, size, name, mode, mtime)) if writes => {
                    let before =
                        version.filter(|_| !open.truncates).map(|version| Before { version, size, mtime });
                    new_upload(fs, caller, upload.place(), &name, mode, before, Some(upload.number))
                }
                None if writes && upload.writers.load(Ordering::Acquire) > 0 && !upload.is_staged() => {
                    return Err(Error::UploadBusy { name: upload.name() });
                }
                _ => {
                    if writes {
                        if open.truncates {
                            truncate(fs, caller, &upload, 0)?;
                        }
                        // The lock keeps this from happening while the last writer releases the upload.
                        let state = upload.state.lock();
                        fs.uploads.by_number(number).filter(|u| Arc::ptr_eq(u, &upload)).ok_or_else(stale)?;
                        upload.writers.fetch_add(1, Ordering::AcqRel);
                        drop(state);
                    }
                    upload
                }
            }
        }
        NodeId::Receipt(serial) => open_receipt(fs, caller, serial, open)?,
        _ => return Err(stale()),
    };
    Ok(Opened::Direct(fs.open_handle(Handle::Upload { upload, writes })))
}

/// Opens the receipt of a version, either as it is or for a new upload in its place.
fn open_receipt(fs: &ImageFs, caller: Caller, serial: u32, open: OpenMode) -> Result<Arc<Upload>> {
    let (place, name, size, mode, mtime, facts) = {
        let model = fs.store.catalog.read();
        let version = model.versions.get(&serial).ok_or_else(stale)?;
        let receipt = version.receipt.as_ref().ok_or_else(stale)?;
        let place = if receipt.in_root { Destination::Root } else { Destination::Image(version.image) };
        let image = model.images.get(&version.image).map(|i| i.name.clone()).unwrap_or_default();
        let published =
            Published { image: version.image, name: image, number: version.number, new: true, new_bytes: 0 };
        (place, receipt.name.clone(), version.facts.upload_size, receipt.mode, receipt.mtime, published)
    };
    Ok(if open.writes {
        new_upload(
            fs,
            caller,
            place,
            &name,
            mode,
            (!open.truncates).then_some(Before { version: serial, size, mtime }),
            None,
        )
    } else {
        let upload = new_upload(fs, caller, place, &name, mode, None, None);
        upload.writers.store(0, Ordering::Release);
        upload.job.end("a receipt was opened");
        upload.state.lock().phase = Phase::Published(facts);
        {
            let mut info = upload.info.lock();
            (info.size, info.mtime, info.version, info.published) = (size, mtime, Some(serial), true);
        }
        fs.uploads.keep_receipt(&upload);
        upload
    })
}

/// `write(2)` to an upload. The answer comes when there is room for more.
pub(in crate::fs) fn write(
    fs: &Arc<ImageFs>,
    caller: Caller,
    upload: &Arc<Upload>,
    offset: u64,
    data: &[u8],
    reply: Reply<u32>,
) {
    let Some(mut state) = upload.state.try_lock() else {
        // The upload is being judged for another descriptor, so another thread waits for that.
        let (upload, data) = (upload.clone(), data.to_vec());
        return fs.offload(reply, move |fs| {
            let (sender, receiver) = std::sync::mpsc::sync_channel(1);
            let mut state = upload.state.lock();
            take_write(
                fs,
                caller,
                &upload,
                &mut state,
                offset,
                &data,
                Box::new(move |result| drop(sender.send(result))),
            );
            drop(state);
            receiver.recv().map_err(|_| Error::Stopping)?
        });
    };
    take_write(fs, caller, upload, &mut state, offset, data, reply);
}

pub(super) fn take_write(
    fs: &ImageFs,
    caller: Caller,
    upload: &Arc<Upload>,
    state: &mut State,
    offset: u64,
    data: &[u8],
    reply: Reply<u32>,
) {
    let len = data.len() as u32;
    if let Err(e) = prepare_write(fs, upload, state, offset, data) {
        let path = stream::path_name(fs, upload);
        // What a close has kept stays as it is.
        if !matches!(state.phase, Phase::Published(_)) && upload.info.lock().kept.is_none() {
            stream::fail(upload, state, &e);
        }
        if let Destination::Image(image) = upload.place() {
            shells::note_refused_in(fs, caller, fs.image_node(image));
        }
        return reply(Err(fs.refused(caller, "write", &path, e)));
    }
    {
        let mut info = upload.info.lock();
        info.size = info.size.max(offset + data.len() as u64);
        (info.mtime, info.touched) = (now(), Instant::now());
        upload.job.reached(info.size);
    }
    match &mut state.phase {
        Phase::Streaming(ingest) => ingest.push(Arc::new(data.to_vec()), Box::new(move || reply(Ok(len)))),
        _ => reply(Ok(len)),
    }
}

/// Brings the upload into the phase that takes this write. The caller pushes streaming data. All other
/// data is stored here.
pub(super) fn prepare_write(
    fs: &ImageFs,
    upload: &Upload,
    state: &mut State,
    offset: u64,
    data: &[u8],
) -> Result<()> {
    if let Some(before) = state.before.take() {
        upload.touch();
        seed(fs, upload, state, before)?;
    }
    if upload.is_staged() {
        return keep::prepare_staged(fs, upload, state, offset, data);
    }
    loop {
        match &mut state.phase {
            Phase::Failed(errno, sentence) => return Err(repeated(*errno, sentence)),
            Phase::Published(_) => {
                let why = "it is published already: copy the whole file in one go".into();
                return Err(Error::Invalid { what: upload.name(), why });
            }
            Phase::Empty if offset == 0 => state.phase = Phase::Head(Vec::new()),
            Phase::Head(head) if offset == head.len() as u64 => {
                // The collected bytes, together with the new ones, may be enough to tell.
                let all = [head.as_slice(), data].concat();
                match upload.recognises(&all) {
                    Some(true) => {
                        let first = std::mem::take(head);
                        stream::begin_stream(fs, upload, state, &all)?;
                        if let Phase::Streaming(ingest) = &mut state.phase
                            && !first.is_empty()
                        {
                            ingest.push(Arc::new(first), Box::new(|| {}));
                        }
                        return Ok(());
                    }
                    None => {
                        *head = all;
                        return Ok(());
                    }
                    // It may be the start of a new metadata.json.
                    Some(false) if stream::begins_a_document(upload, &all) => {
                        stream::begin_spool(fs, upload, state)?
                    }
                    Some(false) => return Err(tar::not_a_tar(upload.name(), &all)),
                }
            }
            Phase::Empty | Phase::Head(_) => stream::begin_spool(fs, upload, state)?,
            Phase::Streaming(ingest) => {
                if ingest.has_failed() {
                    let Phase::Streaming(ingest) = std::mem::replace(&mut state.phase, Phase::Moving) else {
                        unreachable!("matched")
                    };
                    return Err(ingest.finish().err().unwrap_or(Error::Stopping));
                }
                if offset == upload.size() {
                    return Ok(());
                }
                let Phase::Streaming(ingest) = std::mem::replace(&mut state.phase, Phase::Moving) else {
                    unreachable!("matched")
                };
                state.phase = Phase::Gapped(ingest, upload.size());
                stream::make_spool(fs, upload, state)?;
            }
            Phase::Gapped(_, from) => {
                if offset < *from {
                    return Err(Error::WrittenTwice { name: upload.name(), at: offset });
                }
                return stream::write_spool(&fs.store, state, offset, data);
            }
            Phase::Spooled => return stream::write_spool(&fs.store, state, offset, data),
            Phase::Moving => return Err(Error::Stopping),
        }
    }
}

/// Begins a write without truncation over a receipt with the old content, if imgfs can make that:
/// `tar -r`.
pub(super) fn seed(fs: &ImageFs, upload: &Upload, state: &mut State, before: Before) -> Result<()> {
    if !receipt::came_plain(fs, before.version) {
        return Err(Error::Unsupported {
            what: format!("changing {} in place: its compressed bytes are not kept", upload.name()),
            instead: "copy the whole file",
        });
    }
    stream::make_spool(fs, upload, state)?;
    let slot = fs.store.tree(before.version)?;
    let recipe = receipt::as_it_came(fs, before.version);
    export::replay(&fs.store, &slot.tree, recipe, |at, bytes| {
        stream::write_spool(&fs.store, state, at, bytes)
    })?;
    upload.info.lock().size = before.size;
    state.phase = Phase::Spooled;
    Ok(())
}

/// `ftruncate(2)`, and `O_TRUNC` as the kernel sends it.
///
/// # Errors
///
/// `UploadBusy` while it is written or judged; `WrittenTwice` below what is unpacked; `Invalid` once it
/// is published. `Again` if it has failed; `OverLimit`, `Stopping`, `Io`. Over a receipt `Unsupported` if
/// its bytes are not kept, `NotFound`, `Corrupt`.
pub(in crate::fs) fn truncate(fs: &ImageFs, caller: Caller, upload: &Arc<Upload>, size: u64) -> Result<()> {
    // The last write may have been answered shortly before it released the lock.
    let locked = upload.state.try_lock_for(SETTLING);
    let Some(mut state) = locked else { return Err(Error::UploadBusy { name: upload.name() }) };
    cut(fs, upload, &mut state, size)
        .map_err(|e| fs.refused(caller, "truncate", &stream::path_name(fs, upload), e))
}

pub(super) fn cut(fs: &ImageFs, upload: &Upload, state: &mut State, size: u64) -> Result<()> {
    if let Some(before) = state.before.take() {
        upload.touch();
        if size > 0 {
            seed(fs, upload, state, before)?;
        } else {
            upload.info.lock().size = 0;
        }
    }
    if size == upload.size() {
        return Ok(());
    }
    if upload.is_staged() && !matches!(state.phase, Phase::Published(_) | Phase::Failed(..)) {
        return keep::truncate_staged(fs, upload, state, size);
    }
    if size == 0 {
        if let Phase::Published(_) = state.phase {
            return Err(Error::Invalid { what: upload.name(), why: "it is published already".into() });
        }
        if let Phase::Streaming(ingest) | Phase::Gapped(ingest, _) =
            std::mem::replace(&mut state.phase, Phase::Empty)
        {
            ingest.abort();
        }
        state.spool = None;
        let mut info = upload.info.lock();
        (info.size, info.failed) = (0, false);
        return Ok(());
    }
    match &state.phase {
        Phase::Empty | Phase::Head(_) => stream::begin_spool(fs, upload, state)?,
        Phase::Streaming(_) if size > upload.size() => {
            let Phase::Streaming(ingest) = std::mem::replace(&mut state.phase, Phase::Moving) else {
                unreachable!("matched")
            };
            state.phase = Phase::Gapped(ingest, upload.size());
            stream::make_spool(fs, upload, state)?;
        }
        Phase::Gapped(_, from) if size < *from => {
            return Err(Error::WrittenTwice { name: upload.name(), at: size });
        }
        Phase::Streaming(_) => return Err(Error::WrittenTwice { name: upload.name(), at: size }),
        Phase::Spooled | Phase::Gapped(..) => {}
        Phase::Published(_) => {
            return Err(Error::Invalid { what: upload.name(), why: "it is published already".into() });
        }
        Phase::Failed(errno, sentence) => return Err(repeated(*errno, sentence)),
        Phase::Moving => return Err(Error::Stopping),
    }
    stream::refuse_over(&fs.store, size)?;
    let spool = state.spool.as_ref().ok_or(Error::Stopping)?;
    spool.file.set_len(size).map_err(Error::io("write", &spool.path))?;
    upload.info.lock().size = size;
    Ok(())
}

fn bad_name(name: &[u8], why: &'static str) -> Error {
    Error::BadName { name: String::from_utf8_lossy(name).into_owned(), why }
}
