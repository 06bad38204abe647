//! touch MNT/web/1/used_by/app7: who uses a version, so that nobody deletes it meanwhile.

use std::collections::HashSet;

use crate::base::clock::now;
use crate::base::name::NAME_MAX;
use crate::catalog::{Lease, LeaseFacts, Model, Row, Version};
use crate::error::{Error, Result};
use crate::images::last_use;
use crate::images::rules::not_found;
use crate::store::Store;

/// The longest text of a lease, in bytes.
pub const TEXT_MAX: usize = 4096;

/// Adds a lease. Returns its serial.
///
/// # Errors
///
/// `NotFound`, `BadName`, `Taken`; `Managed` for an image whose status is `deleted`.
pub fn add(store: &Store, version: u32, name: &[u8], facts: LeaseFacts) -> Result<u32> {
    let name = parse_name(name)?;
    last_use::note(store, version);
    store.catalog.commit(|txn| {
        let of = txn.model.versions.get(&version).filter(|v| txn.model.is_live(v)).ok_or_else(gone)?;
        if txn.model.bound(&name).is_some() {
            return Err(Error::Managed {
                what: format!("the name {name}"),
                why: "it is one of a lease that was made in a view",
            });
        }
        let offer = txn.model.images.get(&of.image).map(|image| image.editable.offer).unwrap_or_default();
        if !offer.takes_users() {
            let what = format!("an image whose status is {}", offer.status().unwrap_or_default());
            return Err(Error::Managed { what, why: "it takes no new leases" });
        }
        if txn.model.lease(version, &name).is_some() {
            return Err(Error::Taken { name, holder: "it is a lease".into() });
        }
        let serial = txn.serial();
        txn.put(Row::Lease(Lease { serial, version, name, facts }.into()));
        Ok(serial)
    })
}

/// Changes a lease's text, owner, mode or time.
///
/// # Errors
///
/// `NotFound`.
pub fn change(store: &Store, serial: u32, work: impl FnOnce(&mut LeaseFacts)) -> Result<()> {
    store.catalog.commit(|txn| {
        let mut lease = txn.model.leases.get(&serial).ok_or_else(gone)?.clone();
        work(&mut lease.facts);
        txn.put(Row::Lease(lease.into()));
        Ok(())
    })
}

/// `rm` ends the lease.
///
/// # Errors
///
/// `NotFound`.
pub fn end(store: &Store, serial: u32) -> Result<()> {
    store.catalog.commit(|txn| {
        let lease = txn.model.leases.get(&serial).ok_or_else(gone)?;
        last_use::note(store, lease.version);
        txn.put(Row::DropLease(serial));
        Ok(())
    })
}

/// The leases whose time is over, with the paths of their versions.
pub fn expired(store: &Store) -> Vec<(u32, String)> {
    let (model, now) = (store.catalog.read(), now());
    let over = model.leases.values().filter(|l| l.facts.expires_at.is_some_and(|at| at <= now));
    over.map(|l| (l.serial, format!("{}/used_by/{}", store.path_of(&model, l.version), l.name))).collect()
}

/// Leases that no longer count, because their path does not exist for their owner. This looks at users'
/// paths, so it must not run in an event loop, or while the catalog is held.
pub fn stale(leases: impl IntoIterator<Item = Lease>) -> HashSet<u32> {
    let is = |lease: &Lease| {
        let f = &lease.facts;
        f.target.as_ref().is_some_and(|target| {
            crate::base::sys::is_there_for(f.uid, f.gid, target.as_ref()) == Some(false)
        })
    };
    leases.into_iter().filter(is).map(|lease| lease.serial).collect()
}

/// The symlinks among the leases of some versions, for `stale`.
pub fn links(model: &Model, of: impl Fn(&Version) -> bool) -> Vec<Lease> {
    let there =
        |lease: &&Lease| lease.facts.target.is_some() && model.versions.get(&lease.version).is_some_and(&of);
    model.leases.values().filter(there).cloned().collect()
}

/// Refuses a deletion that would take a version from its users.
///
/// # Errors
///
/// `InUse`.
pub fn refuse_used(store: &Store, model: &Model, going: &[&Version], stale: &HashSet<u32>) -> Result<()> {
    let now = now();
    let holds =
        |lease: &&Lease| !stale.contains(&lease.serial) && lease.facts.expires_at.is_none_or(|at| at > now);
    for version in going {
        let holders: Vec<&str> =
            model.leases_of(version.serial).filter(holds).map(|lease| lease.name.as_str()).collect();
        if !holders.is_empty() {
            return Err(Error::InUse {
                what: store.path_of(model, version.serial),
                holders: holders.join(", "),
            });
        }
    }
    Ok(())
}

fn parse_name(name: &[u8]) -> Result<String> {
    let bad = |why| Error::BadName { name: String::from_utf8_lossy(name).into_owned(), why };
    if name.len() > NAME_MAX {
        return Err(Error::NameTooLong { len: name.len() });
    }
    let text = std::str::from_utf8(name).map_err(|_| bad("it is not UTF-8"))?;
    if text.starts_with('.') || text.chars().any(char::is_control) {
        return Err(bad("the name of a lease has no dot at its beginning and no control character"));
    }
    Ok(text.to_owned())
}

fn gone() -> Error {
    not_found("such version or lease any more")
}
