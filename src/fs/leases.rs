//! touch MNT/web/1/used_by/app7, ln -s PATH there, rm: leases as files.

use std::path::Path;

use parking_lot::Mutex;

use crate::base::clock::now;
use crate::catalog::{Lease, LeaseFacts};
use crate::error::{Error, Result};
use crate::fs::change::Changes;
use crate::fs::edit::Edit;
use crate::fs::names::text_of;
use crate::fs::node::NodeId;
use crate::fs::{Attr, Caller, DirEntry, Handle, ImageFs, stale};
use crate::images::leases;

impl ImageFs {
    fn lease(&self, serial: u32) -> Result<Lease> {
        self.store.catalog.read().leases.get(&serial).cloned().ok_or_else(stale)
    }

    pub(super) fn lookup_lease(&self, version: u32, name: &[u8]) -> Result<NodeId> {
        let missing = || Error::NotFound { what: text_of(name) };
        let text = std::str::from_utf8(name).map_err(|_| missing())?;
        self.store.catalog.read().lease(version, text).map(|l| NodeId::Lease(l.serial)).ok_or_else(missing)
    }

    pub(super) fn list_leases(&self, version: u32, all: &mut Vec<DirEntry>) {
        let model = self.store.catalog.read();
        all.extend(model.leases_of(version).map(|lease| {
            let format = if lease.facts.target.is_some() { libc::S_IFLNK } else { libc::S_IFREG };
            DirEntry::new(lease.name.as_str(), NodeId::Lease(lease.serial), format)
        }));
    }

    pub(super) fn lease_attr(&self, serial: u32, own: Attr) -> Result<Attr> {
        let f = self.lease(serial)?.facts;
        let (format, size) = match &f.target {
            Some(target) => (libc::S_IFLNK | 0o777, target.len()),
            None => (libc::S_IFREG | f.mode & 0o7777, f.text.len()),
        };
        let mtime = crate::fs::stat::split_time(f.mtime);
        Ok(Attr {
            mode: format,
            uid: f.uid,
            gid: f.gid,
            size: size as u64,
            data: size as u64,
            mtime,
            ctime: mtime,
            ..own
        })
    }

    pub(super) fn lease_target(&self, serial: u32) -> Result<Vec<u8>> {
        let target = self.lease(serial)?.facts.target;
        target
            .map(String::into_bytes)
            .ok_or_else(|| Error::Invalid { what: "this path".into(), why: "it is not a symlink".into() })
    }

    fn add_lease(
        &self,
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
        let serial = leases::add(&self.store, version, name, facts)?;
        self.log_lease(caller, "lease", serial, "begins");
        Ok(serial)
    }

    /// `touch used_by/app7`, `echo why > used_by/app7`.
    pub(super) fn create_lease(
        &self,
        caller: Caller,
        version: u32,
        name: &[u8],
        mode: u32,
    ) -> Result<(NodeId, u64)> {
        let serial = self.add_lease(caller, version, name, mode, None)?;
        let fh =
            self.open_handle(Handle::Lease(serial, Mutex::new(Edit::new(String::new(), leases::TEXT_MAX))));
        Ok((NodeId::Lease(serial), fh))
    }

    pub(super) fn open_lease(&self, serial: u32, truncates: bool) -> Result<u64> {
        let text = if truncates { String::new() } else { self.lease(serial)?.facts.text };
        Ok(self.open_handle(Handle::Lease(serial, Mutex::new(Edit::new(text, leases::TEXT_MAX)))))
    }

    /// `ln -s PATH used_by/app7`: it lasts as long as the path is there.
    pub(super) fn link_lease(
        &self,
        caller: Caller,
        version: u32,
        name: &[u8],
        target: &[u8],
    ) -> Result<NodeId> {
        let bad = |why: &str| Error::Invalid { what: text_of(target), why: why.into() };
        let text = std::str::from_utf8(target).map_err(|_| bad("it is not UTF-8"))?;
        let mounts = self.mounts.all();
        let inside =
            mounts.iter().any(|fs| !fs.mount.path.is_empty() && Path::new(text).starts_with(&fs.mount.path));
        if !text.starts_with('/') || inside {
            return Err(bad(
                "a lease leads to a path of its holder: an absolute one, outside of the store's mounts",
            ));
        }
        Ok(NodeId::Lease(self.add_lease(caller, version, name, 0o777, Some(text.to_owned()))?))
    }

    /// `close(2)`: what was written is the lease's text.
    pub(super) fn flush_lease(&self, serial: u32, edit: &Mutex<Edit>) -> Result<()> {
        let mut edit = edit.lock();
        let Some(written) = edit.pending() else { return Ok(()) };
        let text = std::str::from_utf8(written).map_err(|_| Error::Invalid {
            what: "the text of a lease".into(),
            why: "it is not UTF-8".into(),
        })?;
        leases::change(&self.store, serial, |facts| (facts.text, facts.mtime) = (text.to_owned(), now()))?;
        edit.accepted();
        Ok(())
    }

    /// `touch -d TIME`, with a time to come: then the lease ends by itself.
    pub(super) fn set_lease(&self, serial: u32, changes: &Changes) -> Result<()> {
        leases::change(&self.store, serial, |facts| {
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

    /// `rm`. The last lease of an image whose status is `deleted` takes it along, at the background's next
    /// look.
    pub(super) fn unlink_lease(&self, caller: Caller, version: u32, name: &[u8]) -> Result<()> {
        let NodeId::Lease(serial) = self.lookup_lease(version, name)? else { return Err(stale()) };
        self.log_lease(caller, "release", serial, "ends");
        leases::end(&self.store, serial)
    }

    fn log_lease(&self, caller: Caller, gesture: &str, serial: u32, outcome: &str) {
        let Ok(lease) = self.lease(serial) else { return };
        let version = self.store.path_of(&self.store.catalog.read(), lease.version);
        self.store.journal.log(caller.uid, gesture, &format!("{version}/used_by/{}", lease.name), outcome);
    }
}
