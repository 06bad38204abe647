//! cp in, the second half: close(2) judges what was written, rename(2) commits what was staged.

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::fs::upload::{PIECE, Phase, Place, State, Upload, repeated};
use crate::fs::{Caller, Handle, ImageFs, Reply, within};
use crate::ingest::{self, Hint, Incoming, Published, Settled, Source, Target, staged};
use crate::name::{Build, ImageName, Promise, promise_of, strip_archive_suffix};
use crate::tar;

/// How long the kernel may take to say what a process is doing.
const TELLING: Duration = Duration::from_millis(500);

/// Whether the process is being killed: then its flush is no close. A killed writer's flush looks like any other,
/// but for this flag. Source: proc(5), PF_SIGNALED in linux/sched.h; measured for KILL, TERM, INT and SEGV.
///
/// A process in the middle of execve(2) holds its own stat closed while it flushes what it has open with O_CLOEXEC, so
/// that waiting for the one in order to answer the other would never end. It is not being killed.
fn is_killed(pid: u32) -> bool {
    const PF_SIGNALED: u64 = 0x400;
    let read = move || std::fs::read_to_string(format!("/proc/{pid}/stat"));
    let Some(Ok(stat)) = within("stat", TELLING, read) else { return false };
    // The command's name may hold anything but ends at the last parenthesis; flags are the 7th field behind it.
    let flags = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(6)?.parse::<u64>().ok());
    flags.is_some_and(|f| f & PF_SIGNALED != 0)
}

/// Whether the thread would be gone but for a request of its own that it waits for. A signal that ends a process is
/// pending as SIGKILL for each of its threads. Source: complete_signal in kernel/signal.c.
pub(in crate::fs) fn waits_to_die(thread: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{thread}/status")).unwrap_or_default();
    let pending = status.lines().find_map(|l| u64::from_str_radix(l.strip_prefix("SigPnd:")?.trim(), 16).ok());
    pending.is_some_and(|set| set & 1 << (libc::SIGKILL - 1) != 0)
}

/// The mode of an image that came as a file with this one: who may read that may enter, as mkdir has it.
fn directory_mode(file: u32) -> u32 {
    file & 0o666 | (file & 0o444) >> 2 | 0o700
}

/// The process (thread group) of a thread; requests carry the thread.
pub(super) fn process_of(thread: u32) -> u32 {
    let status = std::fs::read_to_string(format!("/proc/{thread}/status")).unwrap_or_default();
    status.lines().find_map(|l| l.strip_prefix("Tgid:")?.trim().parse().ok()).unwrap_or(thread)
}

impl ImageFs {
    /// `close(2)`: judges what was written, and publishes what is complete.
    pub fn flush_upload(self: &Arc<Self>, caller: Caller, upload: Arc<Upload>, reply: Reply<()>) {
        if upload.size() == 0 || upload.is_published() {
            return reply(Ok(()));
        }
        // Looked at before the answer is sent: then the process goes on.
        self.offload(reply, move |fs| {
            let killed = is_killed(caller.pid);
            if killed && process_of(caller.pid) != upload.opener {
                // It may only have had the file from its parent, which goes on: `(timeout 1 x; cat y) > web.tar`.
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
                Wanted::Publish => self.judge(caller, upload, &mut state, &upload.name(), false),
                Wanted::Staged => Ok(()),
                Wanted::Refuse(e) => Err(e),
            }
        };
        // Once its threads have ended, no more can come.
        let incomplete = matches!(&result, Err(Error::Truncated { .. })) && !matches!(state.phase, Phase::Moving);
        if let Err(e) = &result
            && !incomplete
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
            Err(_) if incomplete && caller.pid != 0 && process_of(caller.pid) != upload.opener => Ok(()),
            other => other.map_err(|e| self.refused(caller, "close", &path, e)),
        }
    }

    /// `fsync(2)`: an upload is durable when it is closed; of what the close would refuse that cannot be promised.
    pub(in crate::fs) fn sync_upload(&self, upload: &Upload) -> Result<()> {
        let Some(state) = upload.state.try_lock() else { return Ok(()) };
        match &state.phase {
            Phase::Published(_) | Phase::Empty => Ok(()),
            Phase::Failed(errno, sentence) => Err(repeated(*errno, sentence)),
            _ => match self.wanted(upload, &state) {
                Wanted::Refuse(e) => Err(e),
                Wanted::Publish | Wanted::Staged => Ok(()),
            },
        }
    }

    /// What a close of this name and content means.
    fn wanted(&self, upload: &Upload, state: &State) -> Wanted {
        let promise = upload.promise();
        if promise == Promise::Dotted || matches!(state.phase, Phase::Failed(..)) {
            return if let Phase::Failed(errno, sentence) = &state.phase {
                Wanted::Refuse(repeated(*errno, sentence))
            } else {
                Wanted::Staged
            };
        }
        if let Promise::Archive(_) = promise {
            return Wanted::Publish;
        }
        let head = self.head_of(state);
        let archive = matches!(state.phase, Phase::Streaming(_) | Phase::Gapped(..)) || upload.recognises(&head) == Some(true);
        match upload.place {
            // Inside an image any archive is its next version, whatever it is called.
            Place::Image(_) if archive => Wanted::Publish,
            // An editor's copy of metadata.json, to be renamed over it.
            Place::Image(_) if head.trim_ascii_start().starts_with(b"{") => Wanted::Staged,
            // `web.tar.xz.part` and the like: the rename that follows says what it is.
            Place::Root if archive => Wanted::Staged,
            _ => Wanted::Refuse(tar::not_a_tar(upload.name(), &head)),
        }
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

    /// Unpacks what is not yet, and publishes if the archive is complete. `commit`: an archive without end marker
    /// is taken, because a rename says that it is whole.
    pub(super) fn judge(&self, caller: Caller, upload: &Upload, state: &mut State, name: &str, commit: bool) -> Result<()> {
        if let Phase::Head(_) = state.phase {
            self.begin_spool(upload, state)?;
        }
        if let Phase::Spooled = state.phase {
            let head = self.head_of(state);
            if Hint::of(name).recognises(&head) != Some(true) {
                return Err(tar::not_a_tar(upload.name(), &head));
            }
            let ingest = self.begin_with(upload, Hint::of(name))(&head)?;
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
        let Phase::Streaming(mut ingest) = std::mem::replace(&mut state.phase, Phase::Moving) else { unreachable!("matched") };
        // What was announced is to be found by hashing.
        let counts = upload.info.lock().expect.is_none();
        let published = match ingest.same(counts) {
            Some(published) => published,
            None => self.publish_unpacked(upload, state, ingest, name, commit)?,
        };
        let version = self.store.catalog.read().version(published.image, published.number).map(|v| v.serial);
        {
            let mut info = upload.info.lock();
            (info.version, info.published) = (version, true);
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
        name: &str,
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
        let unpacked = ingest.finish()?;
        if let Some(expected) = expected {
            expected.check(name, &unpacked.upload_sha256, &unpacked.upload_sha1)?;
        }
        ingest::publish(&self.store, unpacked, &self.source(upload, name)?)
    }

    pub(super) fn source(&self, upload: &Upload, name: &str) -> Result<Source> {
        let (target, build) = match upload.place {
            Place::Image(serial) => (Target::Image(serial), Build::default()),
            Place::Root => self.target_named(name, Some(upload.number))?,
        };
        // The image may be somebody else's by now.
        if upload.place == Place::Root {
            self.refuse_foreign(Caller { uid: upload.uid, gid: upload.gid, pid: upload.opener }, &target)?;
        }
        let info = upload.info.lock();
        Ok(Source {
            target,
            file_name: name.to_owned(),
            uid: upload.uid,
            gid: upload.gid,
            mode: directory_mode(info.mode),
            receipt: Some((info.mtime, info.mode)),
            metadata: None,
            build,
        })
    }

    /// Which image a file of this name in the root is for. `own`: the number of its upload, if that has one yet.
    pub(in crate::fs) fn target_named(&self, name: &str, own: Option<u64>) -> Result<(Target, Build)> {
        let stem = strip_archive_suffix(name).unwrap_or(name);
        let (image, build) = ingest::named(&self.store.catalog.read(), stem);
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
        self.touch_root();
        let image = self.image_node(published.image).ino();
        self.with_kernel(|kernel| kernel.forget_attributes(image));
        crate::sys::trim_memory();
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
    pub(in crate::fs) fn note_unfinished(&self) {
        for upload in self.uploads.under_way(None).into_iter().filter(|upload| upload.size() > 0) {
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
        match upload.place {
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
        let staged = match upload.promise() {
            Promise::Dotted | Promise::Foreign => true,
            Promise::Archive(_) => false,
        };
        let (why, keep) = match &mut state.phase {
            Phase::Published(_) => return,
            // A rename was refused: it stays until it is removed.
            Phase::Failed(..) if staged && !upload.info.lock().failed => (None, true),
            Phase::Failed(_, sentence) => (Some(sentence.clone()), false),
            Phase::Empty => (None, staged),
            _ if staged => (None, true),
            Phase::Streaming(ingest) => (
                Some(ingest.failure().map_or_else(|| "it was closed before the archive was complete".into(), |e| e.to_string())),
                false,
            ),
            _ => (Some("it was closed before the archive was complete".into()), false),
        };
        if keep {
            return;
        }
        let name = upload.name();
        if let Phase::Streaming(ingest) | Phase::Gapped(ingest, _) = std::mem::replace(&mut state.phase, Phase::Empty) {
            ingest.abort();
        }
        state.spool = None;
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
    pub(in crate::fs) fn rename_upload(&self, caller: Caller, upload: &Arc<Upload>, to: Place, name: &str) -> Result<()> {
        if to != upload.place {
            // Not EINVAL: mv takes that for a directory moved into itself.
            return Err(Error::Managed { what: upload.name(), why: "a staged file is renamed within its directory" });
        }
        let mut state = upload.state.lock();
        if let Phase::Published(_) = state.phase {
            return Err(Error::Managed { what: upload.name(), why: "it is the receipt of an upload" });
        }
        if let (Place::Image(image), "metadata.json") = (to, name) {
            let text = self.scratch_text(upload, &state)?;
            drop(state);
            self.edit_metadata(caller, image, &text)?;
            upload.job.end("metadata.json was changed");
            self.uploads.remove(upload);
            return Ok(());
        }
        let still_staged = match promise_of(name) {
            Promise::Dotted => true,
            Promise::Foreign => to == Place::Root,
            Promise::Archive(_) => false,
        };
        if still_staged || upload.size() == 0 {
            drop(state);
            self.uploads.rename(upload, name);
            return Ok(());
        }
        let result = self.judge(caller, upload, &mut state, name, true);
        // A mv that was killed may be done again.
        if let Err(e) = &result
            && (!matches!(e, Error::Truncated { .. } | Error::WriterKilled { .. }) || matches!(state.phase, Phase::Moving))
        {
            self.fail(upload, &mut state, e);
            // It stays, and says the same again: mv asks twice.
            upload.info.lock().failed = false;
        }
        let published = published_in(&state);
        drop(state);
        if let Some(published) = published {
            self.uploads.rename(upload, name);
            self.after_publish(upload, &published);
        }
        result
    }

    pub(super) fn scratch_text(&self, upload: &Upload, state: &State) -> Result<Vec<u8>> {
        if upload.size() > crate::manifest::METADATA_MAX as u64 {
            return Err(Error::BadMetadata { why: format!("it is over {} bytes", crate::manifest::METADATA_MAX) });
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
            _ => Err(Error::BadMetadata { why: "it is no JSON".into() }),
        }
    }
}

enum Wanted {
    Publish,
    Staged,
    Refuse(Error),
}

fn published_in(state: &State) -> Option<Published> {
    if let Phase::Published(published) = &state.phase { Some(published.clone()) } else { None }
}

/// Gives the rest of the file to the unpacker; what was never written is zeros. `go_on` is asked now and then: a hole of
/// terabytes takes an hour. Else the upload stays as far as it came.
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
