//! cp in, the second half: close(2) judges what was written.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::base::process::{self, of_thread};
use crate::error::{Error, Result};
use crate::formats::imgapi::is_manifest_name;
use crate::fs::removal::shells;
use crate::fs::upload::{Destination, Phase, State, Upload, announce, judge, keep, repeated, stream};
use crate::fs::{Caller, Handle, ImageFs, Reply, within};

/// How long the kernel may take to answer what a process is doing.
const TELLING: Duration = Duration::from_millis(500);

/// Whether the process is being killed. If so, its flush is not a close; only this flag tells the two
/// apart. Source: proc(5), PF_SIGNALED in linux/sched.h; measured for KILL, TERM, INT and SEGV.
///
/// execve(2) locks the process's own stat while it closes O_CLOEXEC descriptors, which sends flushes.
/// Waiting for stat before answering such a flush would never end. So no answer within `TELLING` means
/// that the process is not being killed.
fn is_killed(pid: u32) -> bool {
    const PF_SIGNALED: u64 = 0x400;
    let read = move || std::fs::read_to_string(format!("/proc/{pid}/stat"));
    let Some(Ok(stat)) = within("stat", TELLING, read) else { return false };
    let flags = process::field(&stat, 6).and_then(|flags| flags.parse::<u64>().ok());
    flags.is_some_and(|f| f & PF_SIGNALED != 0)
}

/// `close(2)`: judges what was written, and publishes what is complete.
pub(in crate::fs) fn flush(fs: &Arc<ImageFs>, caller: Caller, upload: Arc<Upload>, reply: Reply<()>) {
    let empty = upload.size() == 0;
    if upload.is_published() || (empty && !upload.is_staged()) {
        return reply(Ok(()));
    }
    // This happens before the answer is sent, because afterwards the process goes on.
    fs.offload(reply, move |fs| {
        let killed = is_killed(caller.pid);
        if empty {
            // Another descriptor may still write the first byte. The last close keeps the file as it is.
            upload.info.lock().closed_empty = !killed;
            return Ok(());
        }
        if killed && of_thread(caller.pid) != upload.opener {
            // The process may only have inherited the file from its parent, which goes on:
            // `(timeout 1 x; cat y) > web.tar`.
            return Ok(());
        }
        judge_at_close(fs, caller, &upload, killed)
    });
}

pub(super) fn judge_at_close(fs: &ImageFs, caller: Caller, upload: &Arc<Upload>, killed: bool) -> Result<()> {
    let path = stream::path_name(fs, upload);
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
        match wanted(upload, &state) {
            Wanted::Publish => {
                judge::judge(fs, caller, upload, &mut state, upload.place(), &upload.name(), false)
            }
            Wanted::Keep => keep::keep_staged(fs, upload, &mut state),
            Wanted::Manifest => announce::take_manifest(fs, caller, upload, &mut state),
            Wanted::Refuse(e) => Err(e),
        }
    };
    // Once the unpacker's threads have ended, no more bytes can come.
    let incomplete = matches!(&result, Err(Error::Truncated { .. })) && !matches!(state.phase, Phase::Moving);
    if let Err(e) = &result
        && !incomplete
        && upload.info.lock().kept.is_none()
    {
        stream::fail(upload, &mut state, e);
    }
    let published = judge::published_in(&state);
    drop(state);
    if let Some(published) = published {
        judge::after_publish(fs, upload, &published);
    }
    match result {
        // Another process of a pipeline or a shell list may go on where this one stopped.
        Err(_) if incomplete && caller.pid != 0 && of_thread(caller.pid) != upload.opener => Ok(()),
        other => other.map_err(|e| {
            // After this error the name no longer shows, though another descriptor may write the rest.
            let mut info = upload.info.lock();
            info.failed |= info.kept.is_none();
            drop(info);
            if let Destination::Image(image) = upload.place() {
                shells::note_refused_in(fs, caller, fs.image_node(image));
            }
            fs.refused(caller, "close", &path, e)
        }),
    }
}

/// `fsync(2)`: an upload is durable when it is closed. fsync fails if close would refuse the upload.
pub(in crate::fs) fn sync(upload: &Upload) -> Result<()> {
    let Some(state) = upload.state.try_lock() else { return Ok(()) };
    match &state.phase {
        Phase::Published(_) | Phase::Empty => Ok(()),
        Phase::Failed(errno, sentence) => Err(repeated(*errno, sentence)),
        _ => match wanted(upload, &state) {
            Wanted::Refuse(e) => Err(e),
            Wanted::Publish | Wanted::Keep | Wanted::Manifest => Ok(()),
        },
    }
}

enum Wanted {
    Publish,
    /// It is staged: it survives until a rename.
    Keep,
    /// It is a manifest that announces another file.
    Manifest,
    Refuse(Error),
}

/// What a close does, for this name and content.
fn wanted(upload: &Upload, state: &State) -> Wanted {
    if let Phase::Failed(errno, sentence) = &state.phase {
        return Wanted::Refuse(repeated(*errno, sentence));
    }
    let named_manifest = matches!(upload.place(), Destination::Image(_)) && is_manifest_name(&upload.name());
    if upload.is_staged() && !named_manifest {
        return Wanted::Keep;
    }
    let head = stream::head_of(state);
    let unpacks = matches!(state.phase, Phase::Streaming(_) | Phase::Gapped(..));
    // It may be an editor's copy of metadata.json, which will be renamed over it.
    if !unpacks && stream::begins_a_document(upload, &head) && upload.recognises(&head) != Some(true) {
        if named_manifest {
            return Wanted::Manifest;
        }
        upload.info.lock().waits = true;
        return Wanted::Keep;
    }
    Wanted::Publish
}

/// The last close. What is not published is dropped, unless a rename may publish it.
pub(in crate::fs) fn release(fs: &Arc<ImageFs>, fh: u64) {
    let Some(handle) = fs.handles.write().remove(&fh) else { return };
    let Handle::Upload { upload, writes: true } = &*handle else { return };
    // The lock is held until the upload has no name, so nobody opens an upload that is about to go.
    let mut state = upload.state.lock();
    if upload.writers.fetch_sub(1, Ordering::AcqRel) > 1 {
        return;
    }
    if state.before.take().is_some() {
        // It was opened and closed without a write, so the receipt in the catalog is unchanged.
        upload.job.end("nothing was written");
        fs.uploads.remove(upload);
        return;
    }
    let closed_empty = upload.info.lock().closed_empty;
    if matches!(state.phase, Phase::Empty) && upload.is_staged() && closed_empty {
        if let Err(e) = keep::keep_staged(fs, upload, &mut state) {
            log::error!("{}: {e}", upload.name());
        }
        state.phase = Phase::Empty;
    }
    let why = match &mut state.phase {
        Phase::Published(_) => return,
        _ if upload.info.lock().kept.is_some() => return,
        Phase::Empty => None,
        Phase::Failed(_, sentence) => Some(sentence.clone()),
        Phase::Streaming(ingest) => Some(
            ingest
                .failure()
                .map_or_else(|| "it was closed before the archive was complete".into(), |e| e.to_string()),
        ),
        _ => Some("it was closed before the archive was complete".into()),
    };
    let name = upload.name();
    keep::drop_staged(upload, &mut state);
    match why {
        Some(why) => {
            fs.store.journal.fail(&name, upload.uid, &why);
            upload.job.end(&format!("dropped: {why}"));
        }
        None => upload.job.end("nothing was written"),
    }
    fs.uploads.remove(upload);
}

/// The mount ends, so uploads that nobody has published are lost. Records each of them.
pub(in crate::fs) fn note_unfinished(fs: &ImageFs) {
    let lost = |upload: &Arc<Upload>| upload.size() > 0 && upload.info.lock().kept.is_none();
    for upload in fs.uploads.under_way(None).into_iter().filter(lost) {
        fs.store.journal.log(
            upload.uid,
            "upload",
            &stream::path_name(fs, &upload),
            "is gone with the mount: it was not published",
        );
    }
}
