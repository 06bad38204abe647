//! mkdir MNT/web/.new, cp into it, mv it to MNT/web/next: several files become one version, all or
//! nothing.
//!
//! A staging directory is a directory below STORE/staged, with `about.json` and the files as they came.
//! Only its maker has access. It survives a restart, and goes when nobody has touched it for a week.

mod known;
pub(in crate::fs) mod publish;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::base::expected::Expected;
use crate::base::name::NAME_MAX;
use crate::error::{Error, Result};
use crate::format::make_subdir;
use crate::fs::names::{a_directory, no_directory, text_of};
use crate::fs::node::NodeId;
use crate::fs::opened::{OpenMode, Opened, frozen};
use crate::fs::places::{Attributes, Named, Place, named, refuse_attribute};
use crate::fs::upload::{Destination, refuse_over};
use crate::fs::{Attr, Caller, DirEntry, Handle, ImageFs, SetAttr, stale};
use crate::images::staging::{self, About};
pub use known::{Staging, Stagings, Writing};

/// How many files a staging directory may hold.
const FILES_MAX: usize = 64;

/// Staging directories, and the files in them.
pub struct StagingDirectory;

/// The number of the staging directory of a node.
fn number(node: NodeId) -> Result<u32> {
    match node {
        NodeId::Staging(number) | NodeId::Staged { directory: number, .. } => Ok(number),
        _ => Err(stale()),
    }
}

/// The number of a staged file, and that of its directory.
fn file_of(node: NodeId) -> Result<(u32, u32)> {
    if let NodeId::Staged { directory, file } = node { Ok((directory, file)) } else { Err(frozen(node)) }
}

impl Place for StagingDirectory {
    fn lookup(&self, fs: &ImageFs, _caller: Caller, directory: NodeId, name: &[u8]) -> Result<NodeId> {
        let NodeId::Staging(directory) = directory else {
            return Err(no_directory());
        };
        let staging = fs.stagings.by_number(directory)?;
        let found = std::str::from_utf8(name).ok().and_then(|name| staging.number_of(name));
        found.map(|n| staging.node(n)).ok_or_else(|| Error::NotFound { what: text_of(name) })
    }

    fn list(&self, fs: &ImageFs, _caller: Caller, directory: NodeId, all: &mut Vec<DirEntry>) -> Result<()> {
        let staging = fs.stagings.by_number(number(directory)?)?;
        let files = staging.files.lock();
        for (name, number) in &files.by_name {
            all.push(DirEntry::new(name.as_str(), staging.node(*number), libc::S_IFREG));
        }
        Ok(())
    }

    /// The directory that a staging directory is in.
    fn parent(&self, fs: &ImageFs, node: NodeId) -> NodeId {
        match number(node).and_then(|number| fs.stagings.by_number(number)).map(|s| s.place()) {
            Ok(Destination::Image(serial)) => fs.image_node(serial),
            _ => NodeId::Root,
        }
    }

    fn path(&self, _fs: &ImageFs, _directory: NodeId, name: &str) -> String {
        format!("a staging directory's {name}")
    }

    fn attr(&self, fs: &ImageFs, node: NodeId, own: Attr) -> Result<Attr> {
        attr(fs, node, own)
    }

    fn set(&self, fs: &ImageFs, _caller: Caller, node: NodeId, changes: &SetAttr) -> Result<()> {
        match node {
            NodeId::Staged { directory, file } => {
                set_file(fs, directory, file, &SetAttr { size: None, ..*changes })
            }
            // A staging directory keeps its owner and mode.
            _ => Ok(()),
        }
    }

    fn truncate(&self, fs: &ImageFs, _caller: Caller, node: NodeId, size: u64) -> Result<()> {
        let (directory, file) = file_of(node)?;
        set_file(fs, directory, file, &SetAttr { size: Some(size), ..SetAttr::default() })
    }

    fn open(&self, fs: &ImageFs, _caller: Caller, node: NodeId, mode: OpenMode) -> Result<Opened> {
        match node {
            NodeId::Staged { directory, file } => open_file(fs, directory, file, mode),
            _ if mode.writes => Err(frozen(node)),
            _ => Err(a_directory()),
        }
    }

    fn create(
        &self,
        fs: &ImageFs,
        _caller: Caller,
        directory: NodeId,
        name: &[u8],
        mode: u32,
    ) -> Result<(NodeId, u64)> {
        create_file(fs, number(directory)?, name, mode)
    }

    fn mkdir(
        &self,
        _fs: &ImageFs,
        _caller: Caller,
        _directory: NodeId,
        _name: &[u8],
        _mode: u32,
    ) -> Result<NodeId> {
        Err(Error::Unsupported {
            what: "a directory in a staging directory".into(),
            instead: "tar what it is to hold: tar -C ROOT -cf .new/rootfs.tar .",
        })
    }

    fn rmdir(&self, fs: &ImageFs, _caller: Caller, node: NodeId, _parent: NodeId) -> Result<()> {
        match node {
            NodeId::Staging(number) => remove(fs, number),
            _ => Err(no_directory()),
        }
    }

    fn unlink(&self, fs: &ImageFs, _caller: Caller, directory: NodeId, name: &[u8]) -> Result<()> {
        remove_file(fs, number(directory)?, name)
    }

    /// `mv` of a file within its staging directory.
    fn rename(&self, fs: &ImageFs, _caller: Caller, _node: NodeId, from: &Named, to: &Named) -> Result<()> {
        rename_file(fs, (number(from.0)?, &from.1), (to.0, &to.1))
    }

    fn attributes(&self, fs: &ImageFs, node: NodeId) -> Result<(Attributes, Attributes)> {
        let NodeId::Staged { directory, file } = node else { return Ok((Vec::new(), Vec::new())) };
        Ok((expected(fs, directory, file).map(|e| named("expect", e)).into_iter().collect(), Vec::new()))
    }

    /// `setfattr -n user.imgfs.expect -v sha256:HEX MNT/.new/x.tar.xz`.
    fn set_attribute(
        &self,
        fs: &ImageFs,
        _caller: Caller,
        node: NodeId,
        key: &str,
        value: Option<&str>,
    ) -> Result<()> {
        match (node, value) {
            (NodeId::Staged { directory, file }, _) if key == "expect" => expect(fs, directory, file, value),
            _ => refuse_attribute(key, value),
        }
    }
}

/// `mkdir MNT/.new`, `mkdir MNT/web/.new`.
pub(in crate::fs) fn make(fs: &ImageFs, caller: Caller, place: Destination, name: &[u8]) -> Result<NodeId> {
    let name = checked_name(name)?;
    if name == ".imgfs" || fs.stagings.named(place, &name).is_some() {
        return Err(Error::Taken { name, holder: "there is one already".into() });
    }
    let image = match place {
        Destination::Root => None,
        Destination::Image(serial) => Some(serial),
    };
    let path = fs.store.in_room(|| {
        let path = staging::make(&fs.stagings.store)?;
        make_subdir(&staging::files(&path)).map(|()| path)
    })?;
    let view = fs.store.catalog.view().map(str::to_owned);
    let about =
        About { name, image, uid: caller.uid, gid: caller.gid, view, expect: BTreeMap::new(), file: None };
    staging::save(&path, &about)?;
    let staging = fs.stagings.insert(path, about);
    Ok(NodeId::Staging(staging.number))
}

/// `rmdir`, which is also the last step of `rm -r`.
fn remove(fs: &ImageFs, number: u32) -> Result<()> {
    let staging = fs.stagings.by_number(number)?;
    if !staging.files.lock().by_name.is_empty() {
        let name = staging.about.lock().name.clone();
        return Err(Error::NotEmpty { what: name });
    }
    fs.stagings.remove(&staging);
    Ok(())
}

fn attr(fs: &ImageFs, node: NodeId, own: Attr) -> Result<Attr> {
    let (NodeId::Staging(directory) | NodeId::Staged { directory, .. }) = node else {
        return Err(stale());
    };
    let staging = fs.stagings.by_number(directory)?;
    let (uid, gid) = {
        let about = staging.about.lock();
        (about.uid, about.gid)
    };
    let (path, mode) = match node {
        NodeId::Staged { file, .. } => (staging.file(&staging.name_of(file)?), libc::S_IFREG),
        // A staging directory is private, whatever mode mkdir asked for.
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
fn create_file(fs: &ImageFs, directory: u32, name: &[u8], mode: u32) -> Result<(NodeId, u64)> {
    let staging = fs.stagings.by_number(directory)?;
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
    let file = fs.store.in_room(|| create().map_err(Error::io("create", &path)))?;
    // The file has the caller's mode, but imgfs can always read it.
    let _ = file.set_permissions(fs::Permissions::from_mode(mode & 0o777 | 0o600));
    files.next += 1;
    let number = files.next;
    files.by_name.insert(name, number);
    Ok((
        staging.node(number),
        fs.open_handle(Handle::HostFile { file, path, writing: Some(Writing::new(&staging.writers)) }),
    ))
}

fn open_file(fs: &ImageFs, directory: u32, number: u32, mode: OpenMode) -> Result<Opened> {
    let staging = fs.stagings.by_number(directory)?;
    if mode.writes {
        staging.begin_change()?;
    }
    let path = staging.file(&staging.name_of(number)?);
    let opened =
        File::options().read(true).write(mode.writes).truncate(mode.writes && mode.truncates).open(&path);
    let file = opened.map_err(Error::io("open", &path))?;
    let writing = mode.writes.then(|| Writing::new(&staging.writers));
    Ok(Opened::Direct(fs.open_handle(Handle::HostFile { file, path, writing })))
}

/// `write(2)` to a staged file. If the disk is full, the trash makes room.
///
/// # Errors
///
/// `OverLimit`, `Io`.
pub(in crate::fs) fn write(fs: &ImageFs, file: &File, path: &Path, offset: u64, data: &[u8]) -> Result<u32> {
    refuse_over(&fs.store, offset.saturating_add(data.len() as u64))?;
    fs.store.in_room(|| file.write_all_at(data, offset).map_err(Error::io("write", path)))?;
    Ok(data.len() as u32)
}

fn set_file(fs: &ImageFs, directory: u32, number: u32, changes: &SetAttr) -> Result<()> {
    let staging = fs.stagings.by_number(directory)?;
    staging.begin_change()?;
    refuse_over(&fs.store, changes.size.unwrap_or(0))?;
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
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_nanos(u64::try_from(at).unwrap_or(0)))?;
        }
        Ok(())
    })();
    changed.map_err(Error::io("change", &path))
}

fn remove_file(fs: &ImageFs, directory: u32, name: &[u8]) -> Result<()> {
    let staging = fs.stagings.by_number(directory)?;
    let name = text_of(name);
    staging.begin_change()?;
    let path = staging.file(&name);
    staging.files.lock().by_name.remove(&name).ok_or_else(|| Error::NotFound { what: name.clone() })?;
    if staging.about.lock().expect.contains_key(&name) {
        staging.change(|about| drop(about.expect.remove(&name)))?;
    }
    fs::remove_file(&path).map_err(Error::io("remove", &path))
}

/// `mv` of a file within its staging directory. rsync, wget and editors finish a file like this.
fn rename_file(fs: &ImageFs, from: (u32, &[u8]), to: (NodeId, &[u8])) -> Result<()> {
    if to.0 != NodeId::Staging(from.0) {
        return Err(Error::OtherPlace { what: text_of(from.1) });
    }
    let staging = fs.stagings.by_number(from.0)?;
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
fn expect(fs: &ImageFs, directory: u32, number: u32, value: Option<&str>) -> Result<()> {
    let staging = fs.stagings.by_number(directory)?;
    let name = staging.name_of(number)?;
    staging.begin_change()?;
    let expected = value.map(Expected::parse).transpose()?;
    staging.change(|about| {
        about.expect.remove(&name);
        about.expect.extend(expected.map(|expected| (name, expected)));
    })
}

/// What `getfattr -n user.imgfs.expect` shows.
fn expected(fs: &ImageFs, directory: u32, number: u32) -> Option<String> {
    let staging = fs.stagings.by_number(directory).ok()?;
    let name = staging.name_of(number).ok()?;
    Some(staging.about.lock().expect.get(&name)?.to_string())
}

fn bad_name(name: &[u8]) -> Error {
    Error::BadName { name: text_of(name), why: "it is not UTF-8" }
}

/// Checks that a file on the host may also have this name.
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
