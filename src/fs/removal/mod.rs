//! Journey 4, rmdir and rm -r: images and versions go into the trash, and out of it for good.
//!
//! ```text
//! walkers.rs   what rm -r still sees of what it has just deleted
//! gone.rs      names that are no more, and that the kernel still believes in
//! moved.rs     names under which a mover still looks for what it has moved
//! shells.rs    images of a mkdir in which nothing was taken
//! ```

pub(super) mod gone;
pub(super) mod moved;
pub(super) mod shells;
pub(super) mod walkers;

use crate::catalog::Trashed;
use crate::error::{Error, Result};
use crate::fs::names::text_of;
use crate::fs::node::{NodeId, TRASH};
use crate::fs::opened::frozen;
use crate::fs::{Caller, ImageFs, stale};
use crate::images::{trash, versions};
use walkers::{Deleted, refuse_refused, refuse_walk};

/// `rmdir MNT/web`, `rmdir MNT/web/1`, and the last step of a walker.
///
/// # Errors
///
/// As `ImageFs::rmdir`.
pub(super) fn rmdir(fs: &ImageFs, caller: Caller, parent: NodeId, name: &[u8]) -> Result<()> {
    refuse_refused_image(fs, caller, parent)?;
    match parent {
        NodeId::Ghost => return Ok(()),
        // Every removal succeeds for the process that has deleted the version.
        NodeId::Tree { serial, .. } | NodeId::Version { serial, .. } => {
            return if walkers::caller_has_deleted(fs, caller, serial) {
                Ok(())
            } else {
                Err(frozen(parent))
            };
        }
        _ => {}
    }
    let found = fs.lookup(caller, parent, name)?;
    let object = match found {
        NodeId::Image { serial, .. } => Some(Deleted::Image(serial)),
        NodeId::Version { serial, .. } => Some(Deleted::Version(serial)),
        _ => None,
    };
    if object.is_some() {
        if !fs.is_dead(found) && fs.walkers.end_all(caller.pid, parent.ino()) {
            // This is the end of a walk, but the name now belongs to something else. Somebody has created
            // another object there, has restored the same one, or had renamed the deleted one before. What is
            // there now stays. The answer must not be success, or the kernel would take the directory for
            // dead.
            return Err(Error::NotFound { what: format!("{} any more: this is another", text_of(name)) });
        }
        if fs.walkers.ghost_named(caller.pid, parent.ino(), name) == object {
            fs.walkers.end(caller.pid, parent.ino(), name);
            return Ok(());
        }
    }
    if let (NodeId::Version { .. }, NodeId::Image { serial: image, .. }) = (found, parent)
        && fs.walkers.has_deleted(caller.pid, Deleted::Image(image))
    {
        return Ok(());
    }
    found.place().rmdir(fs, caller, found, parent)
}

/// A walker that was just refused an image may not remove anything in it either. If only a version was
/// refused, each node in it gives its own answer.
///
/// # Errors
///
/// `Again`.
pub(super) fn refuse_refused_image(fs: &ImageFs, caller: Caller, parent: NodeId) -> Result<()> {
    match parent {
        NodeId::Tree { .. } => Ok(()),
        _ => refuse_refused(fs, caller, parent),
    }
}

/// Removing `.id`, with which rm -r begins, deletes the directory that it is in.
///
/// # Errors
///
/// `NotFound` if it is deleted already; `Again` for a walker that was just refused the image; those of
/// `delete_image` and `delete_version`.
pub(super) fn unlink_id(fs: &ImageFs, caller: Caller, directory: NodeId) -> Result<()> {
    // Somebody else has deleted it meanwhile. This walker must not purge it from the trash.
    if fs.is_dead(directory) {
        return Err(stale());
    }
    if let NodeId::Version { serial, .. } = directory {
        let image = fs.store.catalog.read().image_of(serial);
        let refused = image.and_then(|image| fs.walkers.was_refused(caller.pid, Deleted::Image(image)));
        refuse_walk(refused)?;
    }
    let (object, parent, name) = what_is_in(fs, directory)?;
    // The name is added before and after the deletion, for lookups between the two.
    let before = fs.gone.add(parent, &name);
    let deleted = match object {
        Deleted::Image(serial) => delete_image(fs, caller, serial, parent),
        Deleted::Version(serial) => delete_version(fs, caller, serial, parent),
    };
    let refused = deleted.as_ref().err().map(Error::errno);
    // Somebody may have renamed it until it was deleted, but not after that. This is the name that the
    // kernel knows.
    let name = match directory {
        NodeId::Image { serial, .. } if parent == NodeId::Root => {
            fs.store.catalog.read().images.get(&serial).map_or(name, |image| image.name.clone())
        }
        _ => name,
    };
    fs.walkers.note(caller.pid, object, parent.ino(), name.as_bytes(), refused);
    if deleted.is_ok() {
        let gone = fs.gone.add(parent, &name);
        drop(before);
        // This blocks nothing. A process that uses a name which the kernel still knows asks what it leads to.
        fs.with_kernel(|kernel| kernel.forget_attributes(directory.ino()));
        fs.forget_soon(gone);
        fs.touch_root();
    }
    deleted
}

/// The image or version of a directory, the directory that it shows in, and its name there.
fn what_is_in(fs: &ImageFs, directory: NodeId) -> Result<(Deleted, NodeId, String)> {
    let model = fs.store.catalog.read();
    let (object, in_trash, home) = match directory {
        NodeId::Image { serial, .. } => {
            let image = model.images.get(&serial).ok_or_else(stale)?;
            (Deleted::Image(serial), &image.trash_name, (NodeId::Root, image.name.clone()))
        }
        NodeId::Version { serial, .. } => {
            let version = model.versions.get(&serial).ok_or_else(stale)?;
            let home = (fs.image_node(version.image), version.number.to_string());
            (Deleted::Version(serial), &version.trash_name, home)
        }
        _ => return Err(Error::NotFound { what: ".id".into() }),
    };
    let (parent, name) = in_trash.clone().map_or(home, |name| (TRASH, name));
    Ok((object, parent, name))
}

/// Deletes an image into the trash, or purges it if it is there.
///
/// # Errors
///
/// `NotFound`, `NotYours`, `Attached`; those of `versions::delete_image` and `trash::purge`.
pub(super) fn delete_image(fs: &ImageFs, caller: Caller, serial: u32, parent: NodeId) -> Result<()> {
    let name = fs.store.catalog.read().images.get(&serial).ok_or_else(stale)?.name.clone();
    if parent == TRASH {
        fs.refuse_trashed(caller, serial, false)?;
        trash::purge(&fs.store, Trashed::Image(serial))?;
        fs.store.journal.log(caller.uid, "purge", &name, "gone");
        return Ok(());
    }
    let below: Vec<u32> = {
        let model = fs.store.catalog.read();
        model.all_versions().filter(|version| version.image == serial).map(|version| version.serial).collect()
    };
    fs.refuse_attached(serial)?;
    fs.detach_trees(below.iter().copied());
    versions::delete_image(&fs.store, serial)?;
    count_incarnation(fs, below.into_iter().chain([serial]));
    fs.root_has_changed();
    fs.store.journal.log(caller.uid, "delete", &name, "in the trash");
    Ok(())
}

/// Deletes a version into the trash, or purges it if it is there.
///
/// # Errors
///
/// `NotFound`, `NotYours`, `Attached`, `Frozen`; those of `versions::delete_version` and `trash::purge`.
pub(super) fn delete_version(fs: &ImageFs, caller: Caller, serial: u32, parent: NodeId) -> Result<()> {
    let (image, number, path) = {
        let model = fs.store.catalog.read();
        let version = model.versions.get(&serial).ok_or_else(stale)?;
        (version.image, version.number, fs.store.path_of(&model, serial))
    };
    if parent == TRASH {
        fs.refuse_trashed(caller, image, true)?;
        trash::purge(&fs.store, Trashed::Version(serial))?;
        fs.store.journal.log(caller.uid, "purge", &path, "gone");
        return Ok(());
    }
    if fs.store.catalog.read().live_image(image).is_none() {
        return Err(Error::Frozen { what: "what is in the trash".into() });
    }
    fs.refuse_attached(image)?;
    fs.detach_trees([serial]);
    versions::delete_version(&fs.store, image, number)?;
    count_incarnation(fs, [serial]);
    fs.store.journal.log(caller.uid, "delete", &path, "in the trash");
    Ok(())
}

/// Marks what the kernel knows of these images and versions as dead.
pub(super) fn count_incarnation(fs: &ImageFs, serials: impl IntoIterator<Item = u32>) {
    let mut all = fs.mounts.incarnations.lock();
    for serial in serials {
        let count = all.entry(serial).or_insert(0);
        *count = count.wrapping_add(1);
    }
}
