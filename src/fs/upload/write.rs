//! cp in, the first half: creat(2), write(2), ftruncate(2) of an upload.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::base::clock::now;
use crate::base::name::{Promise, promise_of};
use crate::error::{Error, Result};
use crate::formats::tar;
use crate::fs::node::{NodeId, VersionPart};
use crate::fs::opened::{OpenMode, Opened};
use crate::fs::stale;
use crate::fs::upload::{Before, Phase, Place, Spool, State, Upload, repeated};
use crate::fs::{Caller, Handle, ImageFs, Reply};
use crate::images::export;
use crate::images::icons::Form;
use crate::images::keep;
use crate::images::rules::refuse_immutable;
use crate::ingest::{self, Hint, Incoming, Ingest, Published, Wish};
use crate::store::Store;

/// How long a truncation waits for what was written before it.
const SETTLING: Duration = Duration::from_secs(2);

impl ImageFs {
    /// `creat(2)`: a new upload or scratch file.
    ///
    /// # Errors
    ///
    /// `BadName`, `NameTooLong`, `Taken`, `UploadBusy`.
    pub fn create(&self, caller: Caller, parent: NodeId, name: &[u8], mode: u32) -> Result<(NodeId, u64)> {
        if let NodeId::Staging(directory) = parent {
            return self.create_staged(directory, name, mode);
        }
        if let NodeId::Version { serial, part: VersionPart::UsedBy, .. } = parent {
            return self.create_lease(caller, serial, name, mode);
        }
        if let NodeId::In(kind, directory) = parent {
            return kind.place().create(self, caller, directory, name);
        }
        let place = self.place_of(parent)?;
        let text = std::str::from_utf8(name).map_err(|_| bad_name(name, "it is not UTF-8"))?;
        if name.len() > crate::base::name::NAME_MAX {
            return Err(Error::NameTooLong { len: name.len() });
        }
        if text.chars().any(char::is_control) {
            return Err(bad_name(name, "it has a control character"));
        }
        match (place, promise_of(text)) {
            (_, Promise::Staged) => {}
            (Place::Root, Promise::Upload(_)) => {
                // Said now, not after a gigabyte.
                let (target, build) = self.target_named(text, None)?;
                ingest::refuse_early(&self.store, caller.uid, &target, &build)?;
                self.refuse_foreign(caller, &target)?;
            }
            (Place::Image(image), _) if text == "metadata.json" => return self.create_edit(caller, image),
            (Place::Image(image), _) if let Some(form) = Form::of_name(name) => {
                return self.create_icon(image, form);
            }
            // Inside an image a file may be called anything that no entry of it is.
            (Place::Image(_), _)
                if text == "default"
                    || text == "latest"
                    || crate::base::name::parse_number(name).is_some() =>
            {
                return Err(Error::Managed { what: text.to_owned(), why: "imgfs gives these names" });
            }
            (Place::Image(_), _) => {}
        }
        if let Place::Image(serial) = place {
            refuse_immutable(self.store.catalog.read().live_image(serial).ok_or_else(stale)?)?;
            self.refuse_attached(serial)?;
        }
        if self.uploads.named(place, text).is_some_and(|u| !u.is_published()) {
            return Err(Error::UploadBusy { name: text.to_owned() });
        }
        let upload = self.new_upload(caller, place, text, mode, None, None);
        self.announce(&upload);
        let fh = self.open_handle(Handle::Upload { upload: upload.clone(), writes: true });
        Ok((NodeId::Upload(upload.number), fh))
    }

    pub(super) fn new_upload(
        &self,
        caller: Caller,
        place: Place,
        name: &str,
        mode: u32,
        before: Option<Before>,
        number: Option<u64>,
    ) -> Arc<Upload> {
        let mut upload = Upload::new(&self.store, caller, place, name, mode);
        // Over a receipt it keeps the number: the kernel has the file open under that.
        upload.number = number.unwrap_or(upload.number);
        if let Some(before) = before {
            let info = upload.info.get_mut();
            (info.size, info.mtime, info.untouched, info.version) =
                (before.size, before.mtime, true, Some(before.version));
            upload.state.get_mut().before = Some(before);
        }
        let upload = Arc::new(upload);
        self.uploads.insert(upload.clone(), name.to_owned());
        upload
    }

    pub(in crate::fs) fn place_of(&self, parent: NodeId) -> Result<Place> {
        use crate::fs::node::ImagePart;
        match parent {
            NodeId::Root => Ok(Place::Root),
            NodeId::Image { serial, part: ImagePart::Dir, .. } => Ok(Place::Image(serial)),
            _ => Err(crate::fs::opened::frozen(parent)),
        }
    }

    /// Opens an upload that is there: a staged one, one that another process writes, or a receipt.
    pub(in crate::fs) fn open_upload(&self, caller: Caller, node: NodeId, open: OpenMode) -> Result<Opened> {
        let writes = open.writes;
        let upload = match node {
            NodeId::Upload(number) => {
                let upload = self.uploads.by_number(number).ok_or_else(stale)?;
                let version = {
                    let info = upload.info.lock();
                    info.published
                        .then(|| (info.version, info.size, info.name.clone(), info.mode, info.mtime))
                };
                match version {
                    Some((version, size, name, mode, mtime)) if writes => {
                        let before = version.filter(|_| !open.truncates).map(|version| Before {
                            version,
                            size,
                            mtime,
                        });
                        self.new_upload(caller, upload.place(), &name, mode, before, Some(upload.number))
                    }
                    None if writes && upload.writers.load(Ordering::Acquire) > 0 && !upload.is_staged() => {
                        return Err(Error::UploadBusy { name: upload.name() });
                    }
                    _ => {
                        if writes {
                            if open.truncates {
                                self.truncate_upload(caller, &upload, 0)?;
                            }
                            // Not while the last one to have it open lets go of it.
                            let state = upload.state.lock();
                            self.uploads
                                .by_number(number)
                                .filter(|u| Arc::ptr_eq(u, &upload))
                                .ok_or_else(stale)?;
                            upload.writers.fetch_add(1, Ordering::AcqRel);
                            drop(state);
                        }
                        upload
                    }
                }
            }
            NodeId::Receipt(serial) => {
                let (place, name, size, mode, mtime, facts) = {
                    let model = self.store.catalog.read();
                    let version = model.versions.get(&serial).ok_or_else(stale)?;
                    let receipt = version.receipt.as_ref().ok_or_else(stale)?;
                    let place = if receipt.in_root { Place::Root } else { Place::Image(version.image) };
                    let image = model.images.get(&version.image).map(|i| i.name.clone()).unwrap_or_default();
                    let published = Published {
                        image: version.image,
                        name: image,
                        number: version.number,
                        new: true,
                        new_bytes: 0,
                    };
                    (
                        place,
                        receipt.name.clone(),
                        version.facts.upload_size,
                        receipt.mode,
                        receipt.mtime,
                        published,
                    )
                };
                if writes {
                    self.new_upload(
                        caller,
                        place,
                        &name,
                        mode,
                        (!open.truncates).then_some(Before { version: serial, size, mtime }),
                        None,
                    )
                } else {
                    let upload = self.new_upload(caller, place, &name, mode, None, None);
                    upload.writers.store(0, Ordering::Release);
                    upload.job.end("a receipt was opened");
                    upload.state.lock().phase = Phase::Published(facts);
                    {
                        let mut info = upload.info.lock();
                        (info.size, info.mtime, info.version, info.published) =
                            (size, mtime, Some(serial), true);
                    }
                    self.uploads.keep_receipt(&upload);
                    upload
                }
            }
            _ => return Err(stale()),
        };
        Ok(Opened::Direct(self.open_handle(Handle::Upload { upload, writes })))
    }

    /// `write(2)` to an upload. Answered when there is room for more.
    pub fn write_upload(
        self: &Arc<Self>,
        caller: Caller,
        upload: &Arc<Upload>,
        offset: u64,
        data: &[u8],
        reply: Reply<u32>,
    ) {
        let Some(mut state) = upload.state.try_lock() else {
            // It is being judged, for another descriptor: wait for that elsewhere.
            let (upload, data) = (upload.clone(), data.to_vec());
            return self.offload(reply, move |fs| {
                let (sender, receiver) = std::sync::mpsc::sync_channel(1);
                let mut state = upload.state.lock();
                fs.take_write(
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
        self.take_write(caller, upload, &mut state, offset, data, reply);
    }

    pub(super) fn take_write(
        &self,
        caller: Caller,
        upload: &Arc<Upload>,
        state: &mut State,
        offset: u64,
        data: &[u8],
        reply: Reply<u32>,
    ) {
        let len = data.len() as u32;
        if let Err(e) = self.prepare_write(upload, state, offset, data) {
            let path = self.path_name(upload);
            // What a close has kept stays as it is.
            if !matches!(state.phase, Phase::Published(_)) && upload.info.lock().kept.is_none() {
                self.fail(upload, state, &e);
            }
            if let Place::Image(image) = upload.place() {
                self.note_refused_in(caller, self.image_node(image));
            }
            return reply(Err(self.refused(caller, "write", &path, e)));
        }
        {
            let mut info = upload.info.lock();
            info.size = info.size.max(offset + data.len() as u64);
            (info.mtime, info.touched) = (now(), Instant::now());
            upload.job.reached(info.size);
        }
        match &mut state.phase {
            Phase::Streaming(ingest) => {
                ingest.push(Arc::new(data.to_vec()), Box::new(move || reply(Ok(len))))
            }
            _ => reply(Ok(len)),
        }
    }

    /// Brings the upload into the phase that takes this write. Streaming data is pushed by the caller, all
    /// other is kept here.
    pub(super) fn prepare_write(
        &self,
        upload: &Upload,
        state: &mut State,
        offset: u64,
        data: &[u8],
    ) -> Result<()> {
        if let Some(before) = state.before.take() {
            upload.touch();
            self.seed(upload, state, before)?;
        }
        if upload.is_staged() {
            return self.prepare_staged(upload, state, offset, data);
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
                    // What was collected, with the new bytes, may be enough to tell.
                    let all = [head.as_slice(), data].concat();
                    match upload.recognises(&all) {
                        Some(true) => {
                            let first = std::mem::take(head);
                            self.begin_stream(upload, state, &all)?;
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
                        // It may be metadata.json in the making.
                        Some(false) if begins_a_document(upload, &all) => self.begin_spool(upload, state)?,
                        Some(false) => return Err(tar::not_a_tar(upload.name(), &all)),
                    }
                }
                Phase::Empty | Phase::Head(_) => self.begin_spool(upload, state)?,
                Phase::Streaming(ingest) => {
                    if ingest.has_failed() {
                        let Phase::Streaming(ingest) = std::mem::replace(&mut state.phase, Phase::Moving)
                        else {
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
                    self.make_spool(upload, state)?;
                }
                Phase::Gapped(_, from) => {
                    if offset < *from {
                        return Err(Error::WrittenTwice { name: upload.name(), at: offset });
                    }
                    return write_spool(&self.store, state, offset, data);
                }
                Phase::Spooled => return write_spool(&self.store, state, offset, data),
                Phase::Moving => return Err(Error::Stopping),
            }
        }
    }

    pub(super) fn begin_stream(&self, upload: &Upload, state: &mut State, head: &[u8]) -> Result<()> {
        upload.job.phase("unpacking");
        let begin = self.begin_with(upload, upload.hint());
        // What a rename publishes has no target yet.
        let image = if upload.is_staged() { None } else { self.target_of(upload) };
        state.phase = Phase::Streaming(Incoming::start(&self.store, image, head, Box::new(begin))?);
        Ok(())
    }

    /// What begins to unpack an upload.
    pub(super) fn begin_with(
        &self,
        upload: &Upload,
        hint: Hint,
    ) -> impl FnOnce(&[u8]) -> Result<Ingest> + Send + use<> {
        let (store, staging, wish) =
            (self.store.clone(), format!("upload-{}", upload.number), self.wish(upload));
        move |head| Ingest::start(&store, &staging, head, hint, wish)
    }

    /// The image that the upload goes into, if its name and place say so.
    fn target_of(&self, upload: &Upload) -> Option<u32> {
        match (upload.place(), promise_of(&upload.name())) {
            (Place::Image(serial), _) => Some(serial),
            (Place::Root, Promise::Upload(stem)) => {
                let model = self.store.catalog.read();
                model.image_named(ingest::named(&model, stem).0).map(|i| i.serial)
            }
            (Place::Root, Promise::Staged) => None,
        }
    }

    /// Whether the upload is kept as it came: what the image that it goes into says, or the mount. What a
    /// rename publishes may have been announced with its sha1 by then.
    fn wish(&self, upload: &Upload) -> Wish {
        let announced = upload.info.lock().manifest.is_some();
        let keep = keep::policy(&self.store, self.target_of(upload), None);
        Wish { keep: if announced { keep.announced() } else { keep }, sha1: announced || upload.is_staged() }
    }

    pub(super) fn make_spool(&self, upload: &Upload, state: &mut State) -> Result<()> {
        if state.spool.is_none() {
            upload.job.phase("spooling");
            let path = self.store.dir.join("staging").join(format!("spool-{}", upload.number));
            let create = || File::options().read(true).write(true).create(true).truncate(true).open(&path);
            let file = self.store.in_room(|| create().map_err(Error::io("create", &path)))?;
            state.spool = Some(Spool { file, path, stays: false });
        }
        Ok(())
    }

    pub(super) fn begin_spool(&self, upload: &Upload, state: &mut State) -> Result<()> {
        self.make_spool(upload, state)?;
        if let Phase::Head(head) = std::mem::replace(&mut state.phase, Phase::Spooled) {
            write_spool(&self.store, state, 0, &head)?;
        }
        Ok(())
    }

    /// A write without truncation over a receipt goes on with what was there, if that can be made: `tar -r`.
    pub(super) fn seed(&self, upload: &Upload, state: &mut State, before: Before) -> Result<()> {
        if !self.came_plain(before.version) {
            return Err(Error::Unsupported {
                what: format!("changing {} in place: its compressed bytes are not kept", upload.name()),
                instead: "copy the whole file",
            });
        }
        self.make_spool(upload, state)?;
        let slot = self.store.tree(before.version)?;
        let recipe = self.as_it_came(before.version);
        export::replay(&self.store, &slot.tree, recipe, |at, bytes| {
            write_spool(&self.store, state, at, bytes)
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
    pub fn truncate_upload(&self, caller: Caller, upload: &Arc<Upload>, size: u64) -> Result<()> {
        // The last write may have been answered a moment before it let go.
        let locked = upload.state.try_lock_for(SETTLING);
        let Some(mut state) = locked else { return Err(Error::UploadBusy { name: upload.name() }) };
        self.truncate(upload, &mut state, size)
            .map_err(|e| self.refused(caller, "truncate", &self.path_name(upload), e))
    }

    pub(super) fn truncate(&self, upload: &Upload, state: &mut State, size: u64) -> Result<()> {
        if let Some(before) = state.before.take() {
            upload.touch();
            if size > 0 {
                self.seed(upload, state, before)?;
            } else {
                upload.info.lock().size = 0;
            }
        }
        if size == upload.size() {
            return Ok(());
        }
        if upload.is_staged() && !matches!(state.phase, Phase::Published(_) | Phase::Failed(..)) {
            return self.truncate_staged(upload, state, size);
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
            Phase::Empty | Phase::Head(_) => self.begin_spool(upload, state)?,
            Phase::Streaming(_) if size > upload.size() => {
                let Phase::Streaming(ingest) = std::mem::replace(&mut state.phase, Phase::Moving) else {
                    unreachable!("matched")
                };
                state.phase = Phase::Gapped(ingest, upload.size());
                self.make_spool(upload, state)?;
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
        refuse_over(&self.store, size)?;
        let spool = state.spool.as_ref().ok_or(Error::Stopping)?;
        spool.file.set_len(size).map_err(Error::io("write", &spool.path))?;
        upload.info.lock().size = size;
        Ok(())
    }
}

/// What is larger than any upload may be needs no disk, for it may be one hole: it is refused before it is
/// unpacked.
pub(in crate::fs) fn refuse_over(store: &Store, size: u64) -> Result<()> {
    let limit = store.settings().limits.tar_size;
    if size > limit {
        return Err(Error::OverLimit { what: "the size of the file".into(), limit: limit.to_string() });
    }
    Ok(())
}

/// Whether what begins so may become metadata.json: JSON in an image.
pub(super) fn begins_a_document(upload: &Upload, head: &[u8]) -> bool {
    matches!(upload.place(), Place::Image(_)) && head.trim_ascii_start().starts_with(b"{")
}

pub(super) fn write_spool(store: &Store, state: &State, offset: u64, data: &[u8]) -> Result<()> {
    refuse_over(store, offset.saturating_add(data.len() as u64))?;
    let spool = state.spool.as_ref().ok_or(Error::Stopping)?;
    store.in_room(|| spool.file.write_all_at(data, offset).map_err(Error::io("write", &spool.path)))
}

fn bad_name(name: &[u8], why: &'static str) -> Error {
    Error::BadName { name: String::from_utf8_lossy(name).into_owned(), why }
}
