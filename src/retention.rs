//! keep_versions, expires_at, status deleted: what the daemon deletes by itself. It goes into the trash, as all else does.

use crate::catalog::{Image, Model, Version};
use crate::leases;
use crate::links;
use crate::manifest::now;
use crate::store::Store;

/// What is due, by serial, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Due {
    Image(u32, &'static str),
    Version(u32, &'static str),
}

/// What is to go now. Whether it may, the deletion says: what is default, leased, pinned, an origin or immutable stays.
pub fn due(store: &Store) -> Vec<Due> {
    let stale = leases::stale(leases::links(&store.catalog.read(), |_| true));
    let (model, at) = (store.catalog.read(), now());
    let used = |v: &Version| leases::refuse_used(store, &model, &[v], &stale).is_err();
    let mut all = Vec::new();
    for image in model.live_images().filter(|i| i.rules.immutable.is_none()) {
        let e = &image.editable;
        let is_used = || model.versions_of(image.serial).any(used);
        let default = links::refuse_default_of(&model, image).is_err();
        if e.offer.deleted && !is_used() && !default {
            all.push(Due::Image(image.serial, "its status is deleted, and nobody uses it any more"));
        } else if e.expires_at.is_some_and(|end| end <= at) && !is_used() && !default {
            all.push(Due::Image(image.serial, "its expires_at has come"));
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
