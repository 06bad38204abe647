//! cp x.tar MNT/.x.tar: a staged file. From its close on it is kept in STORE/staged, until a rename
//! publishes it.

use std::fs::{self, File};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::base::expected::Expected;
use crate::base::name::{Promise, promise_of};
use crate::error::{Error, Result};
use crate::format::sync_dir;
use crate::formats::imgapi::{Manifest, is_manifest_name};
use crate::fs::upload::{Destination, Phase, Spool, State, Upload, Uploads, stream};
use crate::fs::{Caller, ImageFs};
use crate::images::staging::{self, About, FileAbout};
use crate::store::Store;

/// How long a file that was unpacked ahead waits for its rename. Its threads cost memory, so a later
/// rename unpacks again.
const AHEAD: Duration = Duration::from_secs(60);

/// Takes a write to a staged file. The bytes go into the spool. While they come in order, they also go
/// to the unpacker, ahead of the rename. The caller pushes streaming data.
pub(super) fn prepare_staged(
    fs: &ImageFs,
    upload: &Upload,
    state: &mut State,
    offset: u64,
    data: &[u8],
) -> Result<()> {
    if let Phase::Failed(errno, sentence) = &state.phase {
        return Err(super::repeated(*errno, sentence));
    }
    stream::make_spool(fs, upload, state)?;
    stream::write_spool(&fs.store, state, offset, data)?;
    state.refused.forget();
    match &mut state.phase {
        Phase::Empty if offset == 0 => state.phase = Phase::Head(Vec::new()),
        Phase::Streaming(ingest) if offset == upload.size() && !ingest.has_failed() => return Ok(()),
        Phase::Head(head) if offset == head.len() as u64 => {}
        _ => {
            spool_alone(state);
            return Ok(());
        }
    }
    if upload.info.lock().waits {
        // It is unpacked once its purpose is known.
        spool_alone(state);
        return Ok(());
    }
    let Phase::Head(head) = &mut state.phase else { return Ok(()) };
    let all = [head.as_slice(), data].concat();
    match upload.recognises(&all) {
        None => *head = all,
        Some(false) => spool_alone(state),
        Some(true) => {
            let first = std::mem::take(head);
            if stream::begin_stream(fs, upload, state, &all).is_err() {
                // No threads are free for it now, so the rename will unpack it.
                spool_alone(state);
            } else if let Phase::Streaming(ingest) = &mut state.phase
                && !first.is_empty()
            {
                ingest.push(Arc::new(first), Box::new(|| {}));
            }
        }
    }
    Ok(())
}

/// `ftruncate(2)` of a staged file.
pub(super) fn truncate_staged(fs: &ImageFs, upload: &Upload, state: &mut State, size: u64) -> Result<()> {
    stream::refuse_over(&fs.store, size)?;
    stream::make_spool(fs, upload, state)?;
    spool_alone(state);
    if size == 0 {
        state.phase = Phase::Empty;
    }
    state.refused.forget();
    let spool = state.spool.as_ref().ok_or(Error::Stopping)?;
    spool.file.set_len(size).map_err(Error::io("write", &spool.path))?;
    let mut info = upload.info.lock();
    (info.size, info.failed) = (size, false);
    Ok(())
}

/// `close(2)` of a staged file: from now on it survives the end of the daemon.
///
/// # Errors
///
/// `Io`; the file then stays as it was.
pub(super) fn keep_staged(fs: &ImageFs, upload: &Upload, state: &mut State) -> Result<()> {
    if state.spool.is_none() {
        stream::begin_spool(fs, upload, state)?;
    }
    let spool = state.spool.as_mut().ok_or(Error::Stopping)?;
    spool.file.sync_data().map_err(Error::io("sync", &spool.path))?;
    let kept = upload.info.lock().kept.clone();
    let dir = match kept {
        Some(dir) => dir,
        None => {
            let dir = fs.store.in_room(|| staging::make(&fs.store.dir))?;
            let content = staging::content(&dir);
            let moved = fs::rename(&spool.path, &content).map_err(Error::io("rename", &spool.path));
            moved.and_then(|()| sync_dir(&dir)).inspect_err(|_| staging::remove(&dir))?;
            (spool.path, spool.stays) = (content, true);
            dir
        }
    };
    staging::save(&dir, &about(fs, upload))?;
    upload.info.lock().kept = Some(dir);
    upload.job.end("staged: a rename publishes it");
    Ok(())
}

fn about(fs: &ImageFs, upload: &Upload) -> About {
    let info = upload.info.lock();
    About {
        name: info.name.clone(),
        image: if let Destination::Image(serial) = info.place { Some(serial) } else { None },
        uid: upload.uid,
        gid: upload.gid,
        view: fs.store.catalog.view().map(str::to_owned),
        expect: info.expect.iter().map(|expected| (info.name.clone(), expected.clone())).collect(),
        file: Some(FileAbout { mode: info.mode, mtime: info.mtime }),
    }
}

/// Saves a changed name, mode, time or announcement of a staged file that is kept.
pub(super) fn save_staged(fs: &ImageFs, upload: &Upload) -> Result<()> {
    let kept = upload.info.lock().kept.clone();
    kept.map_or(Ok(()), |dir| staging::save(&dir, &about(fs, upload)))
}

/// Drops staged files that nobody has touched for `idle`, and data that was unpacked ahead but not
/// used.
pub(in crate::fs) fn reap(fs: &ImageFs, idle: Duration) {
    let all: Vec<_> = fs.uploads.all.lock().by_number.values().cloned().collect();
    let trash = Duration::from_secs(fs.store.settings().trash_seconds);
    for upload in all.into_iter().filter(|upload| upload.writers.load(Ordering::Acquire) == 0) {
        let (kept, since, published) = {
            let info = upload.info.lock();
            (info.kept.clone(), info.touched, info.published)
        };
        let old = match &kept {
            Some(dir) => staging::idle(dir, since, trash),
            None => since.elapsed(),
        };
        if published || old <= idle {
            if kept.is_some() && since.elapsed() > AHEAD {
                spool_alone(&mut upload.state.lock());
            }
            continue;
        }
        let name = upload.name();
        fs.uploads.remove(&upload);
        drop_staged(&upload, &mut upload.state.lock());
        fs.store.journal.fail(&name, upload.uid, staging::NOT_RENAMED);
        upload.job.end("dropped");
    }
}

/// Drops a staged file, with all its bytes, that a rename has replaced or `rm` has removed.
pub(super) fn discard(upload: &Upload) {
    drop_staged(upload, &mut upload.state.lock());
}

/// `setfattr -n user.imgfs.expect -v sha256:HEX MNT/.x.tar`: the file is published only if it has that
/// digest.
pub(in crate::fs) fn expect(fs: &ImageFs, number: u64, value: &str) -> Result<()> {
    let expected = Expected::parse(value)?;
    let upload = fs.uploads.by_number(number).ok_or_else(crate::fs::stale)?;
    upload.info.lock().expect = Some(expected);
    save_staged(fs, &upload)
}

/// Drops what was unpacked ahead. The rename will unpack the file from the spool.
pub(super) fn spool_alone(state: &mut State) {
    match std::mem::replace(&mut state.phase, Phase::Spooled) {
        Phase::Streaming(ingest) | Phase::Gapped(ingest, _) => ingest.abort(),
        Phase::Empty | Phase::Head(_) | Phase::Spooled => {}
        other => state.phase = other,
    }
}

/// Drops what a refused rename has unpacked. The bytes of the file stay as they are.
pub(super) fn spool_again(upload: &Upload, state: &mut State) {
    match std::mem::replace(&mut state.phase, Phase::Spooled) {
        Phase::Streaming(ingest) | Phase::Gapped(ingest, _) => ingest.abort(),
        Phase::Published(published) => state.phase = Phase::Published(published),
        _ => {}
    }
    upload.job.phase("staged");
}

/// Drops all bytes of a staged file, including those that a close has kept.
pub(super) fn drop_staged(upload: &Upload, state: &mut State) {
    let kept = upload.info.lock().kept.take();
    if let Phase::Streaming(ingest) | Phase::Gapped(ingest, _) =
        std::mem::replace(&mut state.phase, Phase::Empty)
    {
        ingest.abort();
    }
    state.spool = None;
    if let Some(dir) = kept {
        staging::remove(&dir);
    }
}

impl Uploads {
    /// Finds the existing staged files of the whole store, or of a view.
    pub fn open(store: &Store) -> Uploads {
        let uploads = Uploads::default();
        for staged in
            staging::all(&store.dir).filter(|staged| staged.about.view.as_deref() == store.catalog.view())
        {
            let Some(file) = staged.about.file else { continue };
            let path = staged.content();
            let opened = File::options().read(true).write(true).open(&path);
            let (opened, size) =
                match opened.and_then(|opened| opened.metadata().map(|meta| (opened, meta.len()))) {
                    Ok(found) => found,
                    Err(e) => {
                        log::error!("the staged file {}: {e}", staged.about.name);
                        continue;
                    }
                };
            let About { name, image, uid, gid, mut expect, .. } = staged.about;
            let place = image.map_or(Destination::Root, Destination::Image);
            let maker = Caller { uid, gid, pid: 0 };
            let upload = Upload::new(store, maker, place, &name, file.mode);
            upload.writers.store(0, Ordering::Release);
            upload.job.end("staged: a rename publishes it");
            {
                let mut info = upload.info.lock();
                (info.size, info.mtime, info.expect) = (size, file.mtime, expect.remove(&name));
                info.kept = Some(staged.dir);
                info.waits = promise_of(&info.name) != Promise::Staged;
                let mut state = upload.state.lock();
                state.phase = if size == 0 { Phase::Empty } else { Phase::Spooled };
                state.spool = Some(Spool { file: opened, path, stays: true });
            }
            uploads.insert(Arc::new(upload), name);
        }
        uploads
    }
}

/// The manifest that is staged in a place, with its upload.
pub(super) fn staged_manifest(fs: &ImageFs, place: Destination) -> Option<(Arc<Upload>, Arc<Manifest>)> {
    let Destination::Image(_) = place else { return None };
    let staged = fs.uploads.in_place(place).into_iter().filter(|upload| is_manifest_name(&upload.name()));
    staged.into_iter().find_map(|upload| {
        // A kept manifest was closed with success, even if its last descriptor is not released yet.
        upload.info.lock().kept.as_ref()?;
        let text = stream::scratch_text(&upload, &upload.state.lock()).ok()?;
        Some((upload.clone(), Arc::new(Manifest::parse(&text).ok()?)))
    })
}

/// Removes the staged manifest of an upload that was just published.
pub(super) fn end_manifest(fs: &ImageFs, upload: &Upload) {
    if upload.info.lock().manifest.is_none() {
        return;
    }
    if let Some((manifest, _)) = staged_manifest(fs, upload.place()) {
        fs.uploads.remove(&manifest);
        discard(&manifest);
    }
}
