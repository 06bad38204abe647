//! keep_versions, expires_at, expires_unused, status deleted: what the daemon deletes by itself. It goes into
//! the trash, as all else does.

use crate::base::clock::now;
use crate::catalog::{Image, Model, Version};
use crate::images::last_use;
use crate::images::leases;
use crate::images::links;
use crate::store::Store;

/// Why an image goes that has `expires_unused`.
pub const UNUSED: &str = "nobody has used it for the time of its expires_unused";

/// What is due, by serial, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Due {
    Image(u32, &'static str),
    Version(u32, &'static str),
}

/// What is to go now. Whether it may, the deletion says: what is default, leased, pinned, an origin or
/// immutable stays.
pub fn due(store: &Store) -> Vec<Due> {
    let stale = leases::stale(leases::links(&store.catalog.read(), |_| true));
    let (model, at) = (store.catalog.read(), now());
    let used = |v: &Version| leases::refuse_used(store, &model, &[v], &stale).is_err();
    let mut all = Vec::new();
    for image in model.live_images().filter(|i| i.rules.immutable.is_none()) {
        let e = &image.editable;
        let is_used = || model.versions_of(image.serial).any(used);
        // A lease is a use for as long as it lasts.
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

/// The versions that are not among the newest, oldest first; the one that `default` leads to is apart.
fn too_many<'m>(model: &'m Model, image: &Image, keep: u32) -> Vec<&'m Version> {
    let default = model.default_version(image).map(|v| v.serial);
    let newest = model.versions_of(image.serial).rev().skip(keep as usize);
    let mut over: Vec<&Version> = newest.filter(|v| Some(v.serial) != default).collect();
    over.reverse();
    over
}
