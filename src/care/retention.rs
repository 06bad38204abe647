//! keep_versions, expires_at, expires_unused, status deleted, the end of a lease: what the daemon
//! deletes or ends by itself. Images and versions go into the trash, as for any deletion.

use std::time::Duration;

use crate::base::clock::now;
use crate::catalog::{Image, Model, Version};
use crate::error::{Error, Result};
use crate::images::last_use;
use crate::images::leases;
use crate::images::links;
use crate::images::versions;
use crate::store::Store;
use crate::store::tell::Deletion;

/// The reason for deleting an image with `expires_unused`.
const UNUSED: &str = "nobody has used it for the time of its expires_unused";
/// How old the saved last use of an image may be before it is saved again.
const KEEP_USE: Duration = Duration::from_secs(3600);
/// The user in the log for what the daemon does: 0.
const DAEMON: u32 = 0;

/// What is due, by serial, and the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Due {
    Image(u32, &'static str),
    Version(u32, &'static str),
}

/// Deletes what is due by its own rules, and ends leases whose time is over. What may not be deleted
/// stays, without a message; the next round tries again.
pub fn retire(store: &Store) {
    for (lease, path) in leases::expired(store) {
        if leases::end(store, lease).is_ok() {
            store.journal.log(DAEMON, "release", &path, "its time is over");
        }
    }
    if let Err(e) = last_use::keep(store, KEEP_USE) {
        log::debug!("cannot note which images are used: {e}");
    }
    for due in due(store) {
        let (path, why, deletion) = {
            let model = store.catalog.read();
            match due {
                Due::Image(serial, why) => {
                    let Some(image) = model.images.get(&serial) else { continue };
                    let own = model.all_versions().filter(|version| version.image == serial);
                    let versions = own.map(|version| version.serial).collect();
                    (image.name.clone(), why, Deletion::Image(serial, versions))
                }
                Due::Version(serial, why) => (store.path_of(&model, serial), why, Deletion::Version(serial)),
            }
        };
        if why == UNUSED && is_tree_in_use(store, deletion.versions()) {
            continue;
        }
        match delete(store, &deletion) {
            Ok(()) => {
                store.journal.log(DAEMON, "delete", &path, "in the trash");
                store.journal.start_job("retention", &path, DAEMON).end(&format!("deleted: {why}"));
            }
            Err(e) => log::debug!("{path} stays: {e}"),
        }
    }
}

/// Whether somebody is in a mounted tree of one of these versions. Such a user opens files without a
/// request to imgfs.
fn is_tree_in_use(store: &Store, versions: &[u32]) -> bool {
    let used = store.mounts().and_then(|mounts| mounts.tree_in_use(versions));
    used.inspect(|serial| last_use::note(store, *serial)).is_some()
}

/// Deletes an image or a version, and tells the mounts.
fn delete(store: &Store, deletion: &Deletion) -> Result<()> {
    let afterwards = store.mounts().map(|mounts| mounts.before_deletion(deletion));
    let deleted = match deletion {
        Deletion::Image(serial, _) => versions::delete_image(store, *serial),
        Deletion::Version(serial) => {
            let found = store.catalog.read().versions.get(serial).map(|v| (v.image, v.number));
            let found = found.ok_or_else(|| Error::NotFound { what: "such version".into() });
            found.and_then(|(image, number)| versions::delete_version(store, image, number).map(drop))
        }
    };
    if let Some(afterwards) = afterwards {
        afterwards(deleted.is_ok());
    }
    deleted
}

/// What is due now. The deletion itself checks whether it is allowed: a default, leased, pinned or
/// immutable object, or an origin, stays.
fn due(store: &Store) -> Vec<Due> {
    let stale = leases::stale(leases::links(&store.catalog.read(), |_| true));
    let (model, at) = (store.catalog.read(), now());
    let used = |v: &Version| leases::refuse_used(store, &model, &[v], &stale).is_err();
    let mut all = Vec::new();
    for image in model.live_images().filter(|i| i.rules.immutable.is_none()) {
        let e = &image.editable;
        let is_used = || model.versions_of(image.serial).any(used);
        // A lease counts as a use as long as it lasts.
        if e.expires_unused.is_some() {
            model.versions_of(image.serial).filter(|v| used(v)).for_each(|v| last_use::note(store, v.serial));
        }
        let is_idle = |seconds: u64| {
            let time = i64::try_from(seconds).unwrap_or(i64::MAX).saturating_mul(1_000_000_000);
            last_use::idle_since(store, &model, image).saturating_add(time) <= at
        };
        let default = links::refuse_default_of(&model, image).is_err();
        if e.offer.deleted && !is_used() && !default {
            all.push(Due::Image(image.serial, "its status is deleted, and nobody uses it any more"));
        } else if e.expires_at.is_some_and(|end| end <= at) && !is_used() && !default {
            all.push(Due::Image(image.serial, "its expires_at has come"));
        } else if e.expires_unused.is_some_and(is_idle) && !is_used() && !default {
            all.push(Due::Image(image.serial, UNUSED));
        } else if let Some(keep) = e.keep_versions {
            let over = too_many(&model, image, keep).into_iter().filter(|v| !used(v));
            all.extend(over.map(|v| Due::Version(v.serial, "keep_versions is less")));
        }
    }
    all
}

/// The versions that are not among the newest, oldest first. The one that `default` leads to is left
/// out.
fn too_many<'m>(model: &'m Model, image: &Image, keep: u32) -> Vec<&'m Version> {
    let default = model.default_version(image).map(|v| v.serial);
    let newest = model.versions_of(image.serial).rev().skip(keep as usize);
    let mut over: Vec<&Version> = newest.filter(|v| Some(v.serial) != default).collect();
    over.reverse();
    over
}
