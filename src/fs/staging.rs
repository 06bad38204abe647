//! mkdir MNT/web/.new, cp into it, mv it to MNT/web/next: several files that become one version, all or
//! nothing.
//!
//! A staging directory is a directory of its own below STORE/staged, with `about.json` and the files as they
//! came. It is its maker's alone, survives a restart, and goes when nobody has touched it for a week.

mod publish;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;

use crate::base::expected::Expected;
use crate::base::name::NAME_MAX;
use crate::error::{Error, Result};
use crate::format::make_subdir;
use crate::fs::change::Changes;
use crate::fs::moved::RefusedRename;
use crate::fs::names::text_of;
use crate::fs::node::NodeId;
use crate::fs::opened::{OpenMode, Opened};
use crate::fs::stale;
use crate::fs::upload::{Place, refuse_over};
use crate::fs::{Attr, Caller, DirEntry, Handle, ImageFs};
use crate::images::staging::{self, About};
use crate::store::Store;

/// Files that a staging directory may hold.
const FILES_MAX: usize = 64;

/// One staging directory.
pub struct Staging {
    /// immutable: its number since the mount
    number: u32,
    /// immutable: since when this daemon knows it
    known: Instant,
    /// immutable: STORE/staged/ID
    path: PathBuf,
    about: Mutex<About>,
    files: Mutex<Files>,
    /// Open handles that may write.
    writers: Arc<AtomicUsize>,
    /// Its files are becoming a version: nothing is created or written meanwhile.
    publishing: AtomicBool,
    refused: Mutex<RefusedRename>,
}

/// Counts a handle that may write, as long as it lives.
pub struct Writing(Arc<AtomicUsize>);

impl Writing {
    fn new(count: &Arc<AtomicUsize>) -> Writing {
        count.fetch_add(1, Ordering::AcqRel);
        Writing(count.clone())
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[derive(Default)]
struct Files {
    by_name: BTreeMap<String, u32>,
    next: u32,
}

impl Staging {
    fn place(&self) -> Place {
        self.about.lock().image.map_or(Place::Root, Place::Image)
    }

    fn file(&self, name: &str) -> PathBuf {
        staging::files(&self.path).join(name)
    }

    fn name_of(&self, number: u32) -> Result<String> {
        let files = self.files.lock();
        files.by_name.iter().find(|(_, n)| **n == number).map(|(name, _)| name.clone()).ok_or_else(stale)
    }

    fn number_of(&self, name: &str) -> Option<u32> {
        self.files.lock().by_name.get(name).copied()
    }

    fn node(&self, file: u32) -> NodeId {
        NodeId::Staged { directory: self.number, file }
    }

    /// Changes what must survive: on the disk, and only then here.
    fn change(&self, work: impl FnOnce(&mut About)) -> Result<()> {
        let mut about = self.about.lock();
        let mut changed = about.clone();
        work(&mut changed);
        staging::save(&self.path, &changed)?;
        *about = changed;
        Ok(())
    }

    /// Before a change of a file in it.
    fn begin_change(&self) -> Result<()> {
        self.refused.lock().forget();
        self.refuse_publishing()
    }

    fn refuse_publishing(&self) -> Result<()> {
        if self.publishing.load(Ordering::Acquire) {
            return Err(Error::UploadBusy { name: self.about.lock().name.clone() });
        }
        Ok(())
    }
}

/// The next one's number, whichever mount it is made in.
static NEXT: AtomicU32 = AtomicU32::new(1);

/// The staging directories of a mount.
pub struct Stagings {
    /// immutable: the store's directory
    store: PathBuf,
    all: Mutex<BTreeMap<u32, Arc<Staging>>>,
}

impl Stagings {
    /// Finds those that are there, of the whole store or of a view.
    pub fn open(store: &Store) -> Stagings {
        let stagings = Stagings { store: store.dir.clone(), all: Mutex::default() };
        let ours = |about: &About| about.file.is_none() && about.view.as_deref() == store.catalog.view();
        for staged in staging::all(&store.dir).filter(|staged| ours(&staged.about)) {
            stagings.insert(staged.dir, staged.about);
        }
        stagings
    }

    fn insert(&self, path: PathBuf, about: About) -> Arc<Staging> {
        let mut files = Files::default();
        for entry in fs::read_dir(staging::files(&path)).into_iter().flatten().flatten() {
            if let Ok(name) = entry.file_name().into_string() {
                files.next += 1;
                files.by_name.insert(name, files.next);
            }
        }
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let staging = Arc::new(Staging {
            number,
            known: Instant::now(),
            path,
            about: Mutex::new(about),
            files: Mutex::new(files),
            writers: Arc::default(),
            publishing: AtomicBool::new(false),
            refused: Mutex::default(),
        });
        self.all.lock().insert(number, staging.clone());
        staging
    }

    /// The staging directory with this number.
    ///
    /// # Errors
    ///
    /// `NotFound`.
    pub fn by_number(&self, number: u32) -> Result<Arc<Staging>> {
        self.all.lock().get(&number).cloned().ok_or_else(stale)
    }

    pub fn named(&self, place: Place, name: &str) -> Option<NodeId> {
        let all = self.all.lock();
        all.values()
            .find(|s| s.place() == place && s.about.lock().name == name)
            .map(|s| NodeId::Staging(s.number))
    }

    pub fn list(&self, place: Place) -> Vec<(String, NodeId)> {
        let all = self.all.lock();
        let here = all.values().filter(|s| s.place() == place);
        here.map(|s| (s.about.lock().name.clone(), NodeId::Staging(s.number))).collect()
    }

    /// The users whose staging directories are in a place.
    pub fn owners(&self, place: Place) -> impl Iterator<Item = u32> {
        let all = self.all.lock();
        let owners: Vec<u32> =
            all.values().filter(|s| s.place() == place).map(|s| s.about.lock().uid).collect();
        owners.into_iter()
    }

    /// Drops all that are in a place.
    pub fn remove_all(&self, place: Place) {
        let here: Vec<_> = self.all.lock().values().filter(|s| s.place() == place).cloned().collect();
        here.iter().for_each(|staging| self.remove(staging));
    }

    fn remove(&self, staging: &Staging) {
        self.all.lock().remove(&staging.number);
        staging::remove(&staging.path);
    }
}

impl ImageFs {
    /// `mkdir MNT/.new`, `mkdir MNT/web/.new`.
    pub(super) fn make_staging(&self, caller: Caller, place: Place, name: &[u8]) -> Result<NodeId> {
        let name = checked_name(name)?;
        if name == ".imgfs" || self.stagings.named(place, &name).is_some() {
            return Err(Error::Taken { name, holder: "there is one already".into() });
        }
        let image = match place {
            Place::Root => None,
            Place::Image(serial) => Some(serial),
        };
        let path = self.store.in_room(|| {
            let path = staging::make(&self.stagings.store)?;
            make_subdir(&staging::files(&path)).map(|()| path)
        })?;
        let view = self.store.catalog.view().map(str::to_owned);
        let about = About {
            name,
            image,
            uid: caller.uid,
            gid: caller.gid,
            view,
            expect: BTreeMap::new(),
            file: None,
        };
        staging::save(&path, &about)?;
        let staging = self.stagings.insert(path, about);
        Ok(NodeId::Staging(staging.number))
    }

    /// `rmdir`, the last step of `rm -r`.
    pub(super) fn remove_staging(&self, number: u32) -> Result<()> {
        let staging = self.stagings.by_number(number)?;
        if !staging.files.lock().by_name.is_empty() {
            let name = staging.about.lock().name.clone();
            return Err(Error::NotEmpty { what: name });
        }
        self.stagings.remove(&staging);
        Ok(())
    }

    pub(super) fn lookup_staged(&self, directory: u32, name: &[u8]) -> Result<NodeId> {
        let staging = self.stagings.by_number(directory)?;
        let found = std::str::from_utf8(name).ok().and_then(|name| staging.number_of(name));
        found.map(|n| staging.node(n)).ok_or_else(|| Error::NotFound { what: text_of(name) })
    }

    pub(super) fn list_staged(&self, directory: u32, all: &mut Vec<DirEntry>) -> Result<()> {
        let staging = self.stagings.by_number(directory)?;
        let files = staging.files.lock();
        for (name, number) in &files.by_name {
            all.push(DirEntry::new(name.as_str(), staging.node(*number), libc::S_IFREG));
        }
        Ok(())
    }

    /// The directory that a staging directory is in.
    pub(super) fn staging_parent(&self, number: u32) -> NodeId {
        match self.stagings.by_number(number).map(|s| s.place()) {
            Ok(Place::Image(serial)) => self.image_node(serial),
            _ => NodeId::Root,
        }
    }

    pub(super) fn staged_attr(&self, node: NodeId, own: Attr) -> Result<Attr> {
        let (NodeId::Staging(directory) | NodeId::Staged { directory, .. }) = node else {
            return Err(stale());
        };
        let staging = self.stagings.by_number(directory)?;
        let (uid, gid) = {
            let about = staging.about.lock();
            (about.uid, about.gid)
        };
        let (path, mode) = match node {
            NodeId::Staged { file, .. } => (staging.file(&staging.name_of(file)?), libc::S_IFREG),
            // Private, whatever mkdir asked for.
            _ => (crate::images::staging::files(&staging.path), libc::S_IFDIR | 0o700),
        };
        let found = fs::metadata(&path).map_err(Error::io("stat", &path))?;
        let mode = if mode == libc::S_IFREG { mode | found.mode() & 0o7777 } else { mode };
        let size = if found.is_dir() { 4096 } else { found.len() };
        let mtime = (found.mtime(), u32::try_from(found.mtime_nsec()).unwrap_or(0));
        let links = if found.is_dir() { 2 } else { 1 };
        Ok(Attr { ino: node.ino(), mode, uid, gid, size, data: size, mtime, ctime: mtime, links, ..own })
    }

    /// `creat(2)` in a staging directory.
    pub(super) fn create_staged(&self, directory: u32, name: &[u8], mode: u32) -> Result<(NodeId, u64)> {
        let staging = self.stagings.by_number(directory)?;
        staging.begin_change()?;
        let name = checked_name(name)?;
        let path = staging.file(&name);
        let mut files = staging.files.lock();
        if files.by_name.len() >= FILES_MAX {
            return Err(Error::OverLimit {
                what: "the number of staged files".into(),
                limit: FILES_MAX.to_string(),
            });
        }
        let create =
            || File::options().read(true).write(true).create_new(true).mode(mode & 0o700 | 0o600).open(&path);
        let file = self.store.in_room(|| create().map_err(Error::io("create", &path)))?;
        // With the caller's mode, but always ours to read.
        let _ = file.set_permissions(fs::Permissions::from_mode(mode & 0o777 | 0o600));
        files.next += 1;
        let number = files.next;
        files.by_name.insert(name, number);
        Ok((
            staging.node(number),
            self.open_handle(Handle::Staged { file, path, writing: Some(Writing::new(&staging.writers)) }),
        ))
    }

    pub(super) fn open_staged(&self, directory: u32, number: u32, mode: OpenMode) -> Result<Opened> {
        let staging = self.stagings.by_number(directory)?;
        if mode.writes {
            staging.begin_change()?;
        }
        let path = staging.file(&staging.name_of(number)?);
        let opened =
            File::options().read(true).write(mode.writes).truncate(mode.writes && mode.truncates).open(&path);
        let file = opened.map_err(Error::io("open", &path))?;
        let writing = mode.writes.then(|| Writing::new(&staging.writers));
        Ok(Opened::Direct(self.open_handle(Handle::Staged { file, path, writing })))
    }

    /// `write(2)` to a staged file; the trash makes room where the disk is full.
    ///
    /// # Errors
    ///
    /// `Invalid` if the handle is not open, `NotFound` if it is of something else; `OverLimit`, `Io`.
    pub fn write_staged(&self, caller: Caller, fh: u64, offset: u64, data: &[u8]) -> Result<u32> {
        let handle = self.handle(fh)?;
        let Handle::Staged { file, path, .. } = &*handle else { return Err(stale()) };
        let end = offset.saturating_add(data.len() as u64);
        let written = refuse_over(&self.store, end).and_then(|()| {
            self.store.in_room(|| file.write_all_at(data, offset).map_err(Error::io("write", path)))
        });
        written.map_err(|e| self.refused(caller, "write", &path.display().to_string(), e))?;
        Ok(data.len() as u32)
    }

    /// `fsync(2)` of a staged file.
    ///
    /// # Errors
    ///
    /// `Invalid` if the handle is not open; `Io`.
    pub fn sync_staged(&self, fh: u64) -> Result<()> {
        let handle = self.handle(fh)?;
        let Handle::Staged { file, path, .. } = &*handle else { return Ok(()) };
        file.sync_all().map_err(Error::io("sync", path))
    }

    pub(super) fn set_staged(&self, directory: u32, number: u32, changes: &Changes) -> Result<()> {
        let staging = self.stagings.by_number(directory)?;
        staging.begin_change()?;
        refuse_over(&self.store, changes.size.unwrap_or(0))?;
        let path = staging.file(&staging.name_of(number)?);
        let file = File::options().write(true).open(&path).map_err(Error::io("open", &path))?;
        let changed = (|| {
            if let Some(size) = changes.size {
                file.set_len(size)?;
            }
            if let Some(mode) = changes.mode {
                file.set_permissions(fs::Permissions::from_mode(mode & 0o777 | 0o600))?;
            }
            if let Some(at) = changes.mtime {
                file.set_modified(
                    SystemTime::UNIX_EPOCH + Duration::from_nanos(u64::try_from(at).unwrap_or(0)),
                )?;
            }
            Ok(())
        })();
        changed.map_err(Error::io("change", &path))
    }

    pub(super) fn unlink_staged(&self, directory: u32, name: &[u8]) -> Result<()> {
        let staging = self.stagings.by_number(directory)?;
        let name = text_of(name);
        staging.begin_change()?;
        let path = staging.file(&name);
        staging.files.lock().by_name.remove(&name).ok_or_else(|| Error::NotFound { what: name.clone() })?;
        if staging.about.lock().expect.contains_key(&name) {
            staging.change(|about| drop(about.expect.remove(&name)))?;
        }
        fs::remove_file(&path).map_err(Error::io("remove", &path))
    }

    /// `mv` of a file within its staging directory: rsync, wget and editors finish so.
    pub(super) fn rename_staged(&self, from: (u32, &[u8]), to: (NodeId, &[u8])) -> Result<()> {
        if to.0 != NodeId::Staging(from.0) {
            return Err(Error::OtherPlace { what: text_of(from.1) });
        }
        let staging = self.stagings.by_number(from.0)?;
        staging.begin_change()?;
        let (old, new) = (text_of(from.1), checked_name(to.1)?);
        let mut files = staging.files.lock();
        let number = files.by_name.remove(&old).ok_or_else(|| Error::NotFound { what: old.clone() })?;
        let path = staging.file(&old);
        if let Err(e) = fs::rename(&path, staging.file(&new)) {
            files.by_name.insert(old, number);
            return Err(Error::Io { doing: "rename", path, source: e });
        }
        files.by_name.insert(new.clone(), number);
        drop(files);
        if !staging.about.lock().expect.contains_key(&old) {
            return Ok(());
        }
        staging.change(|about| {
            let expected = about.expect.remove(&old);
            about.expect.extend(expected.map(|expected| (new, expected)));
        })
    }

    /// `setfattr -n user.imgfs.expect -v sha256:HEX MNT/.new/x.tar.xz`.
    pub(super) fn expect_staged(&self, directory: u32, number: u32, value: Option<&str>) -> Result<()> {
        let staging = self.stagings.by_number(directory)?;
        let name = staging.name_of(number)?;
        staging.begin_change()?;
        let expected = value.map(Expected::parse).transpose()?;
        staging.change(|about| {
            about.expect.remove(&name);
            about.expect.extend(expected.map(|expected| (name, expected)));
        })
    }

    /// What `getfattr -n user.imgfs.expect` shows.
    pub(super) fn expected_of_staged(&self, directory: u32, number: u32) -> Option<String> {
        let staging = self.stagings.by_number(directory).ok()?;
        let name = staging.name_of(number).ok()?;
        Some(staging.about.lock().expect.get(&name)?.to_string())
    }
}

fn bad_name(name: &[u8]) -> Error {
    Error::BadName { name: text_of(name), why: "it is not UTF-8" }
}

/// A name that a host file may have, too.
fn checked_name(name: &[u8]) -> Result<String> {
    if name.len() > NAME_MAX {
        return Err(Error::NameTooLong { len: name.len() });
    }
    let text = std::str::from_utf8(name).map_err(|_| bad_name(name))?;
    if text.is_empty()
        || text == "."
        || text == ".."
        || text == ".id"
        || text.chars().any(|c| c.is_control() || c == '/')
    {
        return Err(Error::BadName {
            name: text_of(name),
            why: "it has a slash or a control character, or is one of imgfs's own",
        });
    }
    Ok(text.to_owned())
}
