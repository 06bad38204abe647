//! cp in, the second half: close(2) judges what was written, rename(2) commits what was staged.

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::base::name::{Build, ImageName, Promise, image_stem, promise_of};
use crate::base::process::{self, of_thread};
use crate::error::{Error, Result};
use crate::formats::imgapi::is_manifest_name;
use crate::formats::tar;
use crate::fs::upload::keep::{drop_staged, spool_again};
use crate::fs::upload::write::begins_a_document;
use crate::fs::upload::{PIECE, Phase, Place, State, Upload, repeated};
use crate::fs::{Caller, Handle, ImageFs, Reply, within};
use crate::images::icons::Form;
use crate::images::identity::check_identity;
use crate::images::staging;
use crate::images::versions::directory_mode;
use crate::ingest::{self, Hint, Incoming, Published, Settled, Source, Target, staged};

/// How long the kernel may take to say what a process is doing.
const TELLING: Duration = Duration::from_millis(500);

/// Whether the process is being killed: then its flush is no close. A killed writer's flush looks like any
/// other, but for this flag. Source: proc(5), PF_SIGNALED in linux/sched.h; measured for KILL, TERM, INT and
/// SEGV.
///
/// A process in the middle of execve(2) holds its own stat closed while it flushes what it has open with
/// O_CLOEXEC, so that waiting for the one in order to answer the other would never end. It is not being
/// killed.
fn is_killed(pid: u32) -> bool {
    const PF_SIGNALED: u64 = 0x400;
    let read = move || std::fs::read_to_string(format!("/proc/{pid}/stat"));
    let Some(Ok(stat)) = within("stat", TELLING, read) else { return false };
    let flags = process::field(&stat, 6).and_then(|flags| flags.parse::<u64>().ok());
    flags.is_some_and(|f| f & PF_SIGNALED != 0)
}

/// Whether the thread would be gone but for a request of its own that it waits for. A signal that ends a
/// process is pending as SIGKILL for each of its threads. Source: complete_signal in kernel/signal.c.
pub(in crate::fs) fn waits_to_die(thread: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{thread}/status")).unwrap_or_default();
    let pending =
        status.lines().find_map(|l| u64::from_str_radix(l.strip_prefix("SigPnd:")?.trim(), 16).ok());
    pending.is_some_and(|set| set & 1 << (libc::SIGKILL - 1) != 0)
}

impl ImageFs {
    /// `close(2)`: judges what was written, and publishes what is complete.
    pub fn flush_upload(self: &Arc<Self>, caller: Caller, upload: Arc<Upload>, reply: Reply<()>) {
        let empty = upload.size() == 0;
        if upload.is_published() || (empty && !upload.is_staged()) {
            return reply(Ok(()));
        }
        // Looked at before the answer is sent: then the process goes on.
        self.offload(reply, move |fs| {
            let killed = is_killed(caller.pid);
            if empty {
                // Another descriptor may bring its first byte; with the last one it is kept as it is.
                upload.info.lock().closed_empty = !killed;
                return Ok(());
            }
            if killed && of_thread(caller.pid) != upload.opener {
                // It may only have had the file from its parent, which goes on: `(timeout 1 x; cat y) >
                // web.tar`.
                return Ok(());
            }
            fs.judge_at_close(caller, &upload, killed)
        });
    }

    pub(super) fn judge_at_close(&self, caller: Caller, upload: &Arc<Upload>, killed: bool) -> Result<()> {
        let path = self.path_name(upload);
        let mut state = upload.state.lock();
        if state.before.is_some() || matches!(state.phase, Phase::Published(_)) {
            return Ok(());
        }
        if let Phase::Failed(errno, sentence) = &state.phase {
            return Err(repeated(*errno, sentence));
        }
        let result = if killed {
            Err(Error::WriterKilled { name: upload.name() })
        } else {
            match self.wanted(upload, &state) {
                Wanted::Publish => {
                    self.judge(caller, upload, &mut state, upload.place(), &upload.name(), false)
                }
                Wanted::Keep => self.keep_staged(upload, &mut state),
                Wanted::Manifest => self.take_manifest(caller, upload, &mut state),
                Wanted::Refuse(e) => Err(e),
            }
        };
        // Once its threads have ended, no more can come.
        let incomplete =
            matches!(&result, Err(Error::Truncated { .. })) && !matches!(state.phase, Phase::Moving);
        if let Err(e) = &result
            && !incomplete
            && upload.info.lock().kept.is_none()
        {
            self.fail(upload, &mut state, e);
        }
        let published = published_in(&state);
        drop(state);
        if let Some(published) = published {
            self.after_publish(upload, &published);
        }
        match result {
            // Another process of a pipeline or a shell list may go on where this one stopped.
            Err(_) if incomplete && caller.pid != 0 && of_thread(caller.pid) != upload.opener => Ok(()),
            other => other.map_err(|e| {
                // Who was told so finds nothing under the name any more, though another descriptor may bring
                // the rest.
                let mut info = upload.info.lock();
                info.failed |= info.kept.is_none();
                drop(info);
                if let Place::Image(image) = upload.place() {
                    self.note_refused_in(caller, self.image_node(image));
                }
                self.refused(caller, "close", &path, e)
            }),
        }
    }

    /// `fsync(2)`: an upload is durable when it is closed. fsync fails if close would refuse the upload.
    pub(in crate::fs) fn sync_upload(&self, upload: &Upload) -> Result<()> {
        let Some(state) = upload.state.try_lock() else { return Ok(()) };
        match &state.phase {
            Phase::Published(_) | Phase::Empty => Ok(()),
            Phase::Failed(errno, sentence) => Err(repeated(*errno, sentence)),
            _ => match self.wanted(upload, &state) {
                Wanted::Refuse(e) => Err(e),
                Wanted::Publish | Wanted::Keep | Wanted::Manifest => Ok(()),
            },
        }
    }

    /// What a close of this name and content means.
    fn wanted(&self, upload: &Upload, state: &State) -> Wanted {
        if let Phase::Failed(errno, sentence) = &state.phase {
            return Wanted::Refuse(repeated(*errno, sentence));
        }
        let named_manifest = matches!(upload.place(), Place::Image(_)) && is_manifest_name(&upload.name());
        if upload.is_staged() && !named_manifest {
            return Wanted::Keep;
        }
        let head = self.head_of(state);
        let unpacks = matches!(state.phase, Phase::Streaming(_) | Phase::Gapped(..));
        // An editor's copy of metadata.json, to be renamed over it.
        if !unpacks && begins_a_document(upload, &head) && upload.recognises(&head) != Some(true) {
            if named_manifest {
                return Wanted::Manifest;
            }
            upload.info.lock().waits = true;
            return Wanted::Keep;
        }
        Wanted::Publish
    }

    pub(super) fn head_of(&self, state: &State) -> Vec<u8> {
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

    /// Unpacks what is not yet, and publishes if the archive is complete. `commit`: an archive without end
    /// marker is taken, because a rename says that it is whole.
    pub(super) fn judge(
        &self,
        caller: Caller,
        upload: &Upload,
        state: &mut State,
        place: Place,
        name: &str,
        commit: bool,
    ) -> Result<()> {
        if let Phase::Head(_) = state.phase {
            self.begin_spool(upload, state)?;
        }
        if let Phase::Spooled = state.phase {
            let head = self.head_of(state);
            let hint =
                if upload.info.lock().manifest.is_some() { Hint::announced(name) } else { Hint::of(name) };
            if hint.recognises(&head) != Some(true) && (hint.unknown.is_none() || head.is_empty()) {
                return Err(tar::not_a_tar(upload.name(), &head));
            }
            let ingest = self.begin_with(upload, hint)(&head)?;
            state.phase = Phase::Gapped(Incoming::fresh(ingest), 0);
        }
        if let Phase::Gapped(..) = state.phase {
            feed_spool(state, upload, &|| !waits_to_die(caller.pid))?;
        }
        match &state.phase {
            Phase::Published(_) => return Ok(()),
            Phase::Failed(errno, sentence) => return Err(repeated(*errno, sentence)),
            Phase::Streaming(_) => {}
            _ => return Err(Error::Stopping),
        }
        let Phase::Streaming(mut ingest) = std::mem::replace(&mut state.phase, Phase::Moving) else {
            unreachable!("matched")
        };
        // What was announced is to be found by hashing.
        let counts = {
            let info = upload.info.lock();
            info.expect.is_none() && info.manifest.is_none()
        };
        let published = match ingest.same(counts) {
            Some(published) => published,
            None => self.publish_unpacked(upload, state, ingest, (place, name), commit)?,
        };
        let version = self.store.catalog.read().version(published.image, published.number).map(|v| v.serial);
        {
            let mut info = upload.info.lock();
            (info.version, info.published, info.failed) = (version, true, false);
        }
        state.phase = Phase::Published(published);
        state.spool = None;
        Ok(())
    }

    /// Makes what was unpacked a version, if it is complete.
    fn publish_unpacked(
        &self,
        upload: &Upload,
        state: &mut State,
        ingest: Incoming,
        (place, name): (Place, &str),
        commit: bool,
    ) -> Result<Published> {
        let expected = upload.info.lock().expect.clone();
        match ingest.settle() {
            Settled::Complete | Settled::Failed => {}
            Settled::Unmarked(_) if commit || expected.is_some() => {}
            Settled::Unmarked(e) | Settled::Incomplete(e) => {
                state.phase = Phase::Streaming(ingest);
                return Err(e);
            }
        }
        upload.job.phase("publishing");
        let mut unpacked = ingest.finish()?;
        if let Some(expected) = expected {
            expected.check(name, &unpacked.upload_sha256, &unpacked.upload_sha1)?;
        }
        let mut source = self.source(upload, place, name)?;
        let manifest = upload.info.lock().manifest.clone();
        if let Some(manifest) = manifest {
            check_identity(
                &self.store.catalog.read(),
                manifest.uuid(),
                manifest.origin().unwrap_or_default(),
            )?;
            staged::take_manifest(&mut unpacked, &manifest, name)?;
            source.build.label = manifest.label();
        }
        ingest::publish(&self.store, unpacked, &source)
    }

    pub(super) fn source(&self, upload: &Upload, place: Place, name: &str) -> Result<Source> {
        let (target, build) = match place {
            Place::Image(serial) => (Target::Image(serial), Build::default()),
            Place::Root => self.target_named(name, Some(upload.number))?,
        };
        // The image may be somebody else's by now.
        if place == Place::Root {
            self.refuse_foreign(Caller { uid: upload.uid, gid: upload.gid, pid: upload.opener }, &target)?;
        }
        let info = upload.info.lock();
        Ok(Source {
            target,
            file_name: name.to_owned(),
            uid: upload.uid,
            gid: upload.gid,
            mode: directory_mode(info.mode),
            // Under a temporary name nobody looks for it later.
            receipt: (promise_of(name) != Promise::Staged).then_some((info.mtime, info.mode)),
            metadata: None,
            build,
        })
    }

    /// Which image a file of this name in the root is for. `own`: the number of its upload, if that has one
    /// yet.
    pub(in crate::fs) fn target_named(&self, name: &str, own: Option<u64>) -> Result<(Target, Build)> {
        let (image, build) = ingest::named(&self.store.catalog.read(), image_stem(name));
        let image = ImageName::parse(image.as_bytes())?;
        self.refuse_staged(image.as_str(), own)?;
        Ok((Target::Named(image), build))
    }

    /// Everything that follows a publish: the log, the job, what the kernel knows.
    pub(super) fn after_publish(&self, upload: &Upload, published: &Published) {
        let what = format!("{}/{}", published.name, published.number);
        let outcome = if published.new { "added" } else { "the newest version already is this" };
        self.store.journal.log(upload.uid, "upload", &what, outcome);
        upload.job.end(&format!("{what}: {outcome}"));
        self.uploads.keep_receipt(upload);
        self.end_manifest(upload);
        self.touch_root();
        let image = self.image_node(published.image).ino();
        self.with_kernel(|kernel| kernel.forget_attributes(image));
        crate::base::sys::trim_memory();
    }

    pub(super) fn fail(&self, upload: &Upload, state: &mut State, e: &Error) {
        let old = std::mem::replace(&mut state.phase, Phase::Failed(e.errno(), e.to_string()));
        if let Phase::Streaming(ingest) | Phase::Gapped(ingest, _) = old {
            ingest.abort();
        }
        state.spool = None;
        upload.info.lock().failed = true;
        upload.job.end(&format!("refused: {e}"));
    }

    /// The mount ends: what nobody has published goes with it.
    pub(crate) fn note_unfinished(&self) {
        let lost = |upload: &Arc<Upload>| upload.size() > 0 && upload.info.lock().kept.is_none();
        for upload in self.uploads.under_way(None).into_iter().filter(lost) {
            self.store.journal.log(
                upload.uid,
                "upload",
                &self.path_name(&upload),
                "is gone with the mount: it was not published",
            );
        }
    }

    pub(super) fn path_name(&self, upload: &Upload) -> String {
        let name = upload.name();
        match upload.place() {
            Place::Root => format!("/{name}"),
            Place::Image(serial) => {
                let model = self.store.catalog.read();
                format!("/{}/{name}", model.images.get(&serial).map_or("?", |i| i.name.as_str()))
            }
        }
    }

    /// The last close. What is not published is dropped, unless a rename may publish it.
    pub fn release_upload(self: &Arc<Self>, fh: u64) {
        let Some(handle) = self.handles.write().remove(&fh) else { return };
        let Handle::Upload { upload, writes: true } = &*handle else { return };
        // Held until it is off the names: nobody opens what is about to go.
        let mut state = upload.state.lock();
        if upload.writers.fetch_sub(1, Ordering::AcqRel) > 1 {
            return;
        }
        if state.before.take().is_some() {
            // Opened and closed: the receipt in the catalog is what it was.
            upload.job.end("nothing was written");
            self.uploads.remove(upload);
            return;
        }
        let closed_empty = upload.info.lock().closed_empty;
        if matches!(state.phase, Phase::Empty) && upload.is_staged() && closed_empty {
            if let Err(e) = self.keep_staged(upload, &mut state) {
                log::error!("{}: {e}", upload.name());
            }
            state.phase = Phase::Empty;
        }
        let why =
            match &mut state.phase {
                Phase::Published(_) => return,
                _ if upload.info.lock().kept.is_some() => return,
                Phase::Empty => None,
                Phase::Failed(_, sentence) => Some(sentence.clone()),
                Phase::Streaming(ingest) => Some(ingest.failure().map_or_else(
                    || "it was closed before the archive was complete".into(),
                    |e| e.to_string(),
                )),
                _ => Some("it was closed before the archive was complete".into()),
            };
        let name = upload.name();
        drop_staged(upload, &mut state);
        match why {
            Some(why) => {
                self.store.journal.fail(&name, upload.uid, &why);
                upload.job.end(&format!("dropped: {why}"));
            }
            None => upload.job.end("nothing was written"),
        }
        self.uploads.remove(upload);
    }

    /// `mv MNT/.web.tar.xz.Ab12 MNT/web.tar.xz`, and inside an image: the rename publishes.
    /// Into an image it is published whatever its name, unless it was in that image before.
    pub(in crate::fs) fn rename_upload(
        &self,
        caller: Caller,
        upload: &Arc<Upload>,
        to: Place,
        name: &str,
    ) -> Result<()> {
        let mut state = upload.state.lock();
        if let Phase::Published(_) = state.phase {
            return Err(Error::Managed { what: upload.name(), why: "it is the receipt of an upload" });
        }
        if let (Place::Image(image), "metadata.json") = (to, name) {
            let text = self.scratch_text(upload, &state)?;
            self.edit_metadata(caller, image, &text)?;
            upload.job.end("metadata.json was changed");
            self.uploads.remove(upload);
            drop_staged(upload, &mut state);
            return Ok(());
        }
        if let (Place::Image(image), Some(form)) = (to, Form::of_name(name.as_bytes())) {
            let bytes = self.scratch_text(upload, &state)?;
            self.put_icon(caller, image, form, &bytes)?;
            upload.job.end("it is the icon");
            self.uploads.remove(upload);
            drop_staged(upload, &mut state);
            return Ok(());
        }
        let moves_in = to != upload.place() && matches!(to, Place::Image(_));
        let stays_staged = promise_of(name) == Promise::Staged && !moves_in;
        if stays_staged || upload.size() == 0 {
            drop(state);
            return self.rename_staged_file(upload, to, name);
        }
        let text = if matches!(to, Place::Image(_)) { self.scratch_text(upload, &state).ok() } else { None };
        if text.is_some_and(|text| begins_a_document(upload, &text)) && !moves_in {
            // Another name for a copy of metadata.json.
            upload.info.lock().waits = true;
            drop(state);
            return self.rename_staged_file(upload, to, name);
        }
        state.refused.again(name)?;
        let result = self.judge(caller, upload, &mut state, to, name, true);
        if let Err(e) = &result {
            // It stays as it was, and says the same again.
            spool_again(upload, &mut state);
            state.refused.note(name, e);
        }
        if published_in(&state).is_some() {
            if let Some(old) = self.uploads.rename(upload, to, name) {
                self.discard(&old);
            }
            self.end_staging(upload, &mut state);
        }
        result
    }

    /// A staged file was published.
    pub(super) fn end_staging(&self, upload: &Upload, state: &mut State) {
        let kept = upload.info.lock().kept.take();
        kept.iter().for_each(|dir| staging::remove(dir));
        if let Some(published) = published_in(state) {
            self.after_publish(upload, &published);
        }
    }

    /// A staged file gets another name, and replaces what was staged under that.
    fn rename_staged_file(&self, upload: &Upload, to: Place, name: &str) -> Result<()> {
        let before = (upload.place(), upload.name());
        let replaced = self.uploads.rename(upload, to, name);
        if let Err(e) = self.save_staged(upload) {
            self.uploads.rename(upload, before.0, &before.1);
            return Err(e);
        }
        replaced.iter().for_each(|old| self.discard(old));
        Ok(())
    }

    pub(super) fn scratch_text(&self, upload: &Upload, state: &State) -> Result<Vec<u8>> {
        if upload.size() > crate::formats::metadata::METADATA_MAX as u64 {
            return Err(Error::BadMetadata {
                why: format!("it is over {} bytes", crate::formats::metadata::METADATA_MAX),
            });
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
}

enum Wanted {
    Publish,
    /// Staged: it survives until a rename.
    Keep,
    /// It announces another file.
    Manifest,
    Refuse(Error),
}

fn published_in(state: &State) -> Option<Published> {
    if let Phase::Published(published) = &state.phase { Some(published.clone()) } else { None }
}

/// Gives the rest of the file to the unpacker; what was never written is zeros. `go_on` is asked now and
/// then: a hole of terabytes takes an hour. Else the upload stays as far as it came.
fn feed_spool(state: &mut State, upload: &Upload, go_on: &dyn Fn() -> bool) -> Result<()> {
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
