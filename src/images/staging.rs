//! cp x.tar MNT/.x.tar, mkdir MNT/.new: staged files lie below STORE/staged until they are published.
//! They survive the daemon.
//!
//! ```text
//! STORE/staged/ID/about.json   who staged it, under which name, and where; without it the rest goes at the next start
//!                 content      of a staged file
//!                 files/       of a staging directory, under their own names
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::base::clock::time;
use crate::base::expected::Expected;
use crate::base::name::{bound_name, new_id};
use crate::error::{Error, Result};
use crate::format::{make_subdir, sync_dir, write_durably};
use crate::store::Store;

/// Staged data that nobody has touched for this long is removed.
pub const IDLE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// The reasons that are given then, for a staged file and for a staging directory.
pub const NOT_RENAMED: &str = "nobody renamed it for a long time";
pub const NOT_TOUCHED: &str = "nobody touched the staging directory for a long time";
/// A daemon that has known staged data for less than this does not trust the clock that nobody uses it.
const KNOWN_MIN: Duration = Duration::from_secs(3600);

/// What must survive a restart.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct About {
    pub name: String,
    /// The serial of the image that it is in. `None` if it is in the root.
    pub image: Option<u32>,
    pub uid: u32,
    pub gid: u32,
    /// The view in which it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub view: Option<String>,
    /// What `user.imgfs.expect` announced, by the file's name.
    #[serde(default)]
    pub expect: BTreeMap<String, Expected>,
    /// For a file: what stat shows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<FileAbout>,
}

/// What stat shows of a staged file.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct FileAbout {
    /// Permission bits.
    pub mode: u32,
    /// Nanoseconds since 1970.
    pub mtime: i64,
}

/// One staged file or directory: its directory below STORE/staged, and its about.json.
pub struct Staged {
    pub dir: PathBuf,
    pub about: About,
}

impl Staged {
    /// The content of a staged file.
    pub fn content(&self) -> PathBuf {
        content(&self.dir)
    }
}

/// The content of the staged file in this directory.
pub fn content(dir: &Path) -> PathBuf {
    dir.join("content")
}

/// The files of the staging directory in this directory.
pub fn files(dir: &Path) -> PathBuf {
    dir.join("files")
}

/// Makes an empty directory for new staged data. It counts once `save` was called.
///
/// # Errors
///
/// `Io`.
pub fn make(store: &Path) -> Result<PathBuf> {
    let dir = place(store).join(new_id()?);
    make_subdir(&dir)?;
    Ok(dir)
}

/// Writes about.json durably. From then on the staged data survives.
///
/// # Errors
///
/// `Io`.
pub fn save(dir: &Path, about: &About) -> Result<()> {
    let text = serde_json::to_vec(about).expect("plain structs of text");
    write_durably(&dir.join("about.json"), &text)?;
    sync_dir(dir.parent().unwrap_or(Path::new("/")))
}

/// Removes staged data. What cannot be removed now is removed at the next start.
pub fn remove(dir: &Path) {
    // about.json goes first, because without it the next start removes the rest.
    let _ = fs::remove_file(dir.join("about.json"));
    if let Err(e) = fs::remove_dir_all(dir) {
        log::warn!("cannot remove {}: {e}; it goes at the next start", dir.display());
    }
}

/// Everything that is staged in a store.
pub fn all(store: &Path) -> impl Iterator<Item = Staged> {
    let entries = fs::read_dir(place(store)).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some(Staged { about: read(&entry.path())?, dir: entry.path() }))
}

fn read(dir: &Path) -> Option<About> {
    serde_json::from_slice(&fs::read(dir.join("about.json")).ok()?).ok()
}

/// Removes the staged data of a view that was removed.
pub fn forget_view(store: &Path, view: &str) {
    all(store)
        .filter(|staged| staged.about.view.as_deref() == Some(view))
        .for_each(|staged| remove(&staged.dir));
}

/// Makes sure that the directory exists before the first mount. Removes what was half made or half
/// removed.
///
/// # Errors
///
/// `Io`.
pub fn prepare(store: &Path) -> Result<()> {
    let dir = place(store);
    fs::create_dir_all(&dir).map_err(Error::io("create", &dir))?;
    for entry in
        fs::read_dir(&dir).into_iter().flatten().flatten().filter(|entry| read(&entry.path()).is_none())
    {
        let _ = fs::remove_dir_all(entry.path());
    }
    Ok(())
}

fn place(store: &Path) -> PathBuf {
    store.join("staged")
}

/// How long nobody has touched any of it. `known` is when this daemon first saw it. The clock may have
/// jumped, so nothing counts as idle until it was known for `KNOWN_MIN`, or for `trash` if that is
/// shorter.
pub fn idle(dir: &Path, known: Instant, trash: Duration) -> Duration {
    if known.elapsed() < KNOWN_MIN.min(trash) {
        return Duration::ZERO;
    }
    touched(dir).and_then(|at| SystemTime::now().duration_since(at).ok()).unwrap_or_default()
}

fn touched(dir: &Path) -> Option<SystemTime> {
    let inside = fs::read_dir(files(dir)).into_iter().flatten().flatten().map(|entry| entry.path());
    let paths = inside.chain([files(dir), content(dir), dir.join("about.json")]);
    paths.filter_map(|path| fs::metadata(path).ok()?.modified().ok()).max()
}

/// Removes what nobody has touched for `IDLE_MAX`, if no mount shows it. A mount does that itself for
/// what it shows.
pub fn reap(store: &Store) {
    let trash = Duration::from_secs(store.settings().trash_seconds);
    let all: Vec<Staged> = all(&store.dir).collect();
    let mut seen = store.seen_staged.lock();
    seen.retain(|dir, _| all.iter().any(|staged| staged.dir == *dir));
    for Staged { dir, about } in all {
        let known = *seen.entry(dir.clone()).or_insert_with(Instant::now);
        if idle(&dir, known, trash) <= IDLE_MAX {
            continue;
        }
        let mut work = || {
            let why = if about.file.is_some() { NOT_RENAMED } else { NOT_TOUCHED };
            let of_view = about.view.as_ref().map(|view| store.journal.through(view, 0));
            of_view.as_ref().unwrap_or(&store.journal).fail(&about.name, about.uid, why);
            remove(&dir);
        };
        match store.mounts() {
            Some(mounts) => mounts.unless_shown(about.view.as_deref(), &mut work),
            None => work(),
        }
    }
}

/// The staged data in `status.json`, of one view or of all: path, kind, bytes, owner and expiry, oldest
/// first.
pub fn report(store: &Store) -> Vec<Value> {
    let model = store.whole().catalog.read();
    let view = store.catalog.view();
    let mut found: Vec<(SystemTime, Value)> = Vec::new();
    for Staged { dir, about } in
        all(&store.dir).filter(|staged| view.is_none() || staged.about.view.as_deref() == view)
    {
        let inside = fs::read_dir(files(&dir)).into_iter().flatten().flatten().map(|entry| entry.path());
        let sizes = inside.chain([content(&dir)]).filter_map(|path| fs::metadata(path).ok());
        let bytes: u64 = sizes.map(|meta| meta.size()).sum();
        let image =
            about.image.map(|serial| model.images.get(&serial).map_or("?", |image| image.name.as_str()));
        let shown = image
            .map(|name| if view.is_some() { model.bound(name).map_or(name, |(_, own)| own) } else { name });
        let path =
            shown.map_or_else(|| format!("/{}", about.name), |image| format!("/{image}/{}", about.name));
        // The path in the root of a view is written like the name of an image that is bound to the view.
        let path = match &about.view {
            Some(of) if view.is_none() && about.image.is_none() => {
                format!("/{}", bound_name(of, &about.name))
            }
            _ => path,
        };
        let at = touched(&dir).unwrap_or(SystemTime::UNIX_EPOCH);
        let goes = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default() + IDLE_MAX;
        let kind = if about.file.is_some() { "file" } else { "directory" };
        let goes_at = time(i64::try_from(goes.as_nanos()).unwrap_or(i64::MAX));
        found.push((
            at,
            json!({"path": path, "kind": kind, "bytes": bytes, "uid": about.uid, "goes_at": goes_at}),
        ));
    }
    found.sort_by_key(|(at, _)| *at);
    found.into_iter().map(|(_, entry)| entry).collect()
}
