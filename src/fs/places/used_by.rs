//! touch MNT/web/1/used_by/app7, ln -s PATH there, rm: leases as files.

use std::path::Path;

use parking_lot::Mutex;

use crate::base::clock::now;
use crate::catalog::{Lease, LeaseFacts, Model};
use crate::error::{Error, Result};
use crate::fs::edit::Edit;
use crate::fs::names::{a_directory, no_directory, not_found, text_of};
use crate::fs::node::{NodeId, VersionPart};
use crate::fs::opened::{OpenMode, Opened, frozen};
use crate::fs::places::version::version_of;
use crate::fs::places::{Place, no_symlink};
use crate::fs::removal::walkers;
use crate::fs::rights::{self, Shown};
use crate::fs::{Attr, Caller, DirEntry, Handle, ImageFs, SetAttr, split_time, stale};
use crate::images::leases;

/// A version's `used_by`: a file or a link for each lease.
pub struct UsedBy;

impl Place for UsedBy {
    fn lookup(&self, fs: &ImageFs, _caller: Caller, directory: NodeId, name: &[u8]) -> Result<NodeId> {
        let version = version(directory)?;
        let found = std::str::from_utf8(name).ok().and_then(|name| {
            let model = fs.store.catalog.read();
            model.lease(version, name).map(|lease| NodeId::Lease(lease.serial))
        });
        found.ok_or_else(|| not_found(name))
    }

    fn list(&self, fs: &ImageFs, _caller: Caller, directory: NodeId, all: &mut Vec<DirEntry>) -> Result<()> {
        let version = version(directory)?;
        let model = fs.store.catalog.read();
        all.extend(model.leases_of(version).map(|lease| {
            let format = if lease.facts.target.is_some() { libc::S_IFLNK } else { libc::S_IFREG };
            DirEntry::new(lease.name.as_str(), NodeId::Lease(lease.serial), format)
        }));
        Ok(())
    }

    fn parent(&self, fs: &ImageFs, node: NodeId) -> NodeId {
        version(node).map_or(NodeId::Root, |version| fs.version_node(version))
    }

    fn image(&self, model: &Model, node: NodeId) -> Option<u32> {
        model.image_of(version(node).ok()?)
    }

    fn attr(&self, fs: &ImageFs, node: NodeId, own: Attr) -> Result<Attr> {
        if let NodeId::Lease(serial) = node {
            return lease_attr(&lease(fs, serial)?.facts, own);
        }
        let model = fs.store.catalog.read();
        let Ok((image, version)) = version_of(&model, version(node)?) else {
            return Ok(Attr { mode: libc::S_IFDIR | 0o777, size: 0, data: 0, ..own });
        };
        let mode = libc::S_IFDIR | mode(rights::of_image(fs, image).mode, model.is_live(version));
        Ok(Attr { mode, uid: image.uid, gid: image.gid, ..own }.at(version.created_at))
    }

    /// `touch -d TIME` with a time in the future sets when the lease ends by itself.
    fn set(&self, fs: &ImageFs, caller: Caller, node: NodeId, changes: &SetAttr) -> Result<()> {
        match node {
            NodeId::Lease(serial) => set_lease(fs, serial, changes),
            _ if walkers::caller_has_deleted(fs, caller, version(node)?) => Ok(()),
            _ => Err(frozen(node)),
        }
    }

    fn truncate(&self, _fs: &ImageFs, _caller: Caller, node: NodeId, size: u64) -> Result<()> {
        if matches!(node, NodeId::Lease(_)) && size == 0 { Ok(()) } else { Err(frozen(node)) }
    }

    fn rights(&self, fs: &ImageFs, node: NodeId) -> Option<(Shown, u32)> {
        let model = fs.store.catalog.read();
        let (image, _) = version_of(&model, version(node).ok()?).ok()?;
        let mut rights = rights::of_image(fs, image);
        if let Some(acl) = rights.acl.as_mut() {
            // A user who may read an image may also use it.
            acl.change(|rights| *rights |= *rights >> 1 & 2);
        }
        Some((rights, rights::ALL))
    }

    fn path(&self, fs: &ImageFs, directory: NodeId, name: &str) -> String {
        let version = version(directory).map_or(NodeId::Root, |version| fs.version_node(version));
        format!("{}/used_by/{name}", fs.path_of(version))
    }

    fn open(&self, fs: &ImageFs, _caller: Caller, node: NodeId, mode: OpenMode) -> Result<Opened> {
        match node {
            NodeId::Lease(serial) => {
                let text = if mode.truncates { String::new() } else { lease(fs, serial)?.facts.text };
                Ok(Opened::Direct(open_lease(fs, serial, text)))
            }
            _ if mode.writes => Err(frozen(node)),
            _ => Err(a_directory()),
        }
    }

    fn readlink(&self, fs: &ImageFs, node: NodeId) -> Result<Vec<u8>> {
        let NodeId::Lease(serial) = node else { return Err(no_symlink()) };
        lease(fs, serial)?.facts.target.map(String::into_bytes).ok_or_else(no_symlink)
    }

    /// `touch used_by/app7`, `echo why > used_by/app7`.
    fn create(
        &self,
        fs: &ImageFs,
        caller: Caller,
        directory: NodeId,
        name: &[u8],
        mode: u32,
    ) -> Result<(NodeId, u64)> {
        let serial = add(fs, caller, version(directory)?, name, mode, None)?;
        Ok((NodeId::Lease(serial), open_lease(fs, serial, String::new())))
    }

    fn mkdir(
        &self,
        _fs: &ImageFs,
        _caller: Caller,
        _directory: NodeId,
        _name: &[u8],
        _mode: u32,
    ) -> Result<NodeId> {
        let why = "a lease is a file or a symlink: touch it";
        Err(Error::Managed { what: "a directory in used_by".into(), why })
    }

    /// `rm`. If it was the last lease of an image with status `deleted`, the background work soon deletes
    /// the image.
    fn unlink(&self, fs: &ImageFs, caller: Caller, directory: NodeId, name: &[u8]) -> Result<()> {
        if walkers::caller_has_deleted(fs, caller, version(directory)?) {
            return Ok(());
        }
        let NodeId::Lease(serial) = self.lookup(fs, caller, directory, name)? else { return Err(stale()) };
        log(fs, caller, "release", serial, "ends");
        leases::end(&fs.store, serial)
    }

    /// `ln -s PATH used_by/app7`: the lease lasts as long as the path exists.
    fn symlink(
        &self,
        fs: &ImageFs,
        caller: Caller,
        directory: NodeId,
        name: &[u8],
        target: &[u8],
    ) -> Result<NodeId> {
        let bad = |why: &str| Error::Invalid { what: text_of(target), why: why.into() };
        let text = std::str::from_utf8(target).map_err(|_| bad("it is not UTF-8"))?;
        let mounts = fs.mounts.all();
        let inside =
            mounts.iter().any(|fs| !fs.mount.path.is_empty() && Path::new(text).starts_with(&fs.mount.path));
        if !text.starts_with('/') || inside {
            return Err(bad(
                "a lease leads to a path of its holder: an absolute one, outside of the store's mounts",
            ));
        }
        let serial = add(fs, caller, version(directory)?, name, 0o777, Some(text.to_owned()))?;
        Ok(NodeId::Lease(serial))
    }
}

/// The version whose `used_by` this is.
fn version(directory: NodeId) -> Result<u32> {
    match directory {
        NodeId::Version { serial, part: VersionPart::UsedBy, .. } => Ok(serial),
        _ => Err(no_directory()),
    }
}

/// A user who may read an image may use it, and may end own leases.
fn mode(image: u32, live: bool) -> u32 {
    let reads = image & 0o444;
    let leases = if live { reads >> 1 } else { 0 };
    reads | leases | image & 0o111 | libc::S_ISVTX
}

fn lease(fs: &ImageFs, serial: u32) -> Result<Lease> {
    fs.store.catalog.read().leases.get(&serial).cloned().ok_or_else(stale)
}

fn lease_attr(facts: &LeaseFacts, own: Attr) -> Result<Attr> {
    let (mode, size) = match &facts.target {
        Some(target) => (libc::S_IFLNK | 0o777, target.len()),
        None => (libc::S_IFREG | facts.mode & 0o7777, facts.text.len()),
    };
    let (size, mtime) = (size as u64, split_time(facts.mtime));
    let (uid, gid) = (facts.uid, facts.gid);
    Ok(Attr { mode, links: 1, uid, gid, size, data: size, mtime, ctime: mtime, ..own })
}

fn add(
    fs: &ImageFs,
    caller: Caller,
    version: u32,
    name: &[u8],
    mode: u32,
    target: Option<String>,
) -> Result<u32> {
    let facts = LeaseFacts {
        target,
        uid: caller.uid,
        gid: caller.gid,
        mode: mode & 0o7777,
        mtime: now(),
        ..LeaseFacts::default()
    };
    let serial = leases::add(&fs.store, version, name, facts)?;
    log(fs, caller, "lease", serial, "begins");
    Ok(serial)
}

fn open_lease(fs: &ImageFs, serial: u32, text: String) -> u64 {
    fs.open_handle(Handle::Lease(serial, Mutex::new(Edit::new(text, leases::TEXT_MAX))))
}

/// `close(2)`: makes what was written the text of the lease.
///
/// # Errors
///
/// `Invalid` if it is not UTF-8; those of `leases::change`.
pub(in crate::fs) fn flush(fs: &ImageFs, serial: u32, edit: &Mutex<Edit>) -> Result<()> {
    let mut edit = edit.lock();
    let Some(written) = edit.pending() else { return Ok(()) };
    let text = std::str::from_utf8(written)
        .map_err(|_| Error::Invalid { what: "the text of a lease".into(), why: "it is not UTF-8".into() })?;
    leases::change(&fs.store, serial, |facts| (facts.text, facts.mtime) = (text.to_owned(), now()))?;
    edit.accepted();
    Ok(())
}

fn set_lease(fs: &ImageFs, serial: u32, changes: &SetAttr) -> Result<()> {
    leases::change(&fs.store, serial, |facts| {
        facts.mode = changes.mode.map_or(facts.mode, |mode| mode & 0o7777);
        (facts.uid, facts.gid) = (changes.uid.unwrap_or(facts.uid), changes.gid.unwrap_or(facts.gid));
        if changes.size == Some(0) {
            facts.text.clear();
        }
        if let Some(mtime) = changes.mtime {
            facts.mtime = mtime;
            facts.expires_at = Some(mtime).filter(|at| *at > now());
        }
    })
}

fn log(fs: &ImageFs, caller: Caller, gesture: &str, serial: u32, outcome: &str) {
    let Ok(lease) = lease(fs, serial) else { return };
    let version = fs.store.path_of(&fs.store.catalog.read(), lease.version);
    fs.store.journal.log(caller.uid, gesture, &format!("{version}/used_by/{}", lease.name), outcome);
}
