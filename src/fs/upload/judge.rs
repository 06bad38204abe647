//! Judges what was written, and publishes what is complete.

use crate::base::name::{Promise, VersionTag, promise_of};
use crate::error::{Error, Result};
use crate::formats::tar;
use crate::fs::upload::{Destination, Phase, State, Upload, keep, repeated, stream};
use crate::fs::{Caller, ImageFs};
use crate::images::identity::check_identity;
use crate::images::staging;
use crate::images::versions::directory_mode;
use crate::ingest::{self, Hint, Incoming, Published, Settled, Source, Target, staged};

/// Whether the thread would be dead if it did not wait for a request of its own. A signal that kills a
/// process is pending as SIGKILL for each of its threads. Source: complete_signal in kernel/signal.c.
pub(in crate::fs) fn waits_to_die(thread: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{thread}/status")).unwrap_or_default();
    let pending =
        status.lines().find_map(|l| u64::from_str_radix(l.strip_prefix("SigPnd:")?.trim(), 16).ok());
    pending.is_some_and(|set| set & 1 << (libc::SIGKILL - 1) != 0)
}

/// Unpacks what is still in the spool, and publishes if the archive is complete. With `commit`, an
/// archive without an end marker is accepted, because a rename says that it is whole.
pub(super) fn judge(
    fs: &ImageFs,
    caller: Caller,
    upload: &Upload,
    state: &mut State,
    place: Destination,
    name: &str,
    commit: bool,
) -> Result<()> {
    if let Phase::Head(_) = state.phase {
        stream::begin_spool(fs, upload, state)?;
    }
    if let Phase::Spooled = state.phase {
        let head = stream::head_of(state);
        let hint = if upload.info.lock().manifest.is_some() { Hint::announced(name) } else { Hint::of(name) };
        if hint.recognises(&head) != Some(true) && (hint.unknown.is_none() || head.is_empty()) {
            return Err(tar::not_a_tar(upload.name(), &head));
        }
        let ingest = stream::begin_with(fs, upload, hint)(&head)?;
        state.phase = Phase::Gapped(Incoming::fresh(ingest), 0);
    }
    if let Phase::Gapped(..) = state.phase {
        stream::feed_spool(state, upload, &|| !waits_to_die(caller.pid))?;
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
    // If a digest was announced, the content must be hashed to compare.
    let may_skip_hashing = {
        let info = upload.info.lock();
        info.expect.is_none() && info.manifest.is_none()
    };
    let published = match ingest.same(may_skip_hashing) {
        Some(published) => published,
        None => publish_unpacked(fs, upload, state, ingest, (place, name), commit)?,
    };
    let version = fs.store.catalog.read().version(published.image, published.number).map(|v| v.serial);
    {
        let mut info = upload.info.lock();
        (info.version, info.published, info.failed) = (version, true, false);
    }
    state.phase = Phase::Published(published);
    state.spool = None;
    Ok(())
}

/// Turns what was unpacked into a version, if it is complete.
fn publish_unpacked(
    fs: &ImageFs,
    upload: &Upload,
    state: &mut State,
    ingest: Incoming,
    (place, name): (Destination, &str),
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
    let mut source = source(fs, upload, place, name)?;
    let manifest = upload.info.lock().manifest.clone();
    if let Some(manifest) = manifest {
        check_identity(&fs.store.catalog.read(), manifest.uuid(), manifest.origin().unwrap_or_default())?;
        staged::take_manifest(&mut unpacked, &manifest, name)?;
        source.tag.label = manifest.label();
    }
    ingest::publish(&fs.store, unpacked, &source)
}

pub(super) fn source(fs: &ImageFs, upload: &Upload, place: Destination, name: &str) -> Result<Source> {
    let (target, tag) = match place {
        Destination::Image(serial) => (Target::Image(serial), VersionTag::default()),
        Destination::Root => stream::target_named(fs, name, Some(upload.number))?,
    };
    // The image may belong to somebody else by now.
    if place == Destination::Root {
        fs.refuse_foreign(Caller { uid: upload.uid, gid: upload.gid, pid: upload.opener }, &target)?;
    }
    let info = upload.info.lock();
    Ok(Source {
        target,
        file_name: name.to_owned(),
        uid: upload.uid,
        gid: upload.gid,
        mode: directory_mode(info.mode),
        // Nobody later looks for an upload under a temporary name, so it gets no receipt.
        receipt: (promise_of(name) != Promise::Staged).then_some((info.mtime, info.mode)),
        metadata: None,
        tag,
    })
}

/// Does what follows a publish: the log, the job, and what the kernel has cached.
pub(super) fn after_publish(fs: &ImageFs, upload: &Upload, published: &Published) {
    let what = format!("{}/{}", published.name, published.number);
    let outcome = if published.new { "added" } else { "the newest version already is this" };
    fs.store.journal.log(upload.uid, "upload", &what, outcome);
    upload.job.end(&format!("{what}: {outcome}"));
    fs.uploads.keep_receipt(upload);
    keep::end_manifest(fs, upload);
    fs.touch_root();
    let image = fs.image_node(published.image).ino();
    fs.with_kernel(|kernel| kernel.forget_attributes(image));
    crate::base::sys::trim_memory();
}

/// Removes the staged bytes of a file that was published.
pub(super) fn end_staging(fs: &ImageFs, upload: &Upload, state: &mut State) {
    let kept = upload.info.lock().kept.take();
    kept.iter().for_each(|dir| staging::remove(dir));
    if let Some(published) = published_in(state) {
        after_publish(fs, upload, &published);
    }
}

pub(super) fn published_in(state: &State) -> Option<Published> {
    if let Phase::Published(published) = &state.phase { Some(published.clone()) } else { None }
}
