//! keep_versions, expires_at, expires_unused, the time of a lease: what goes by itself, done as a gesture of
//! the daemon's.

use std::time::Duration;

use crate::care::retention::{self, Due, UNUSED};
use crate::error::Result;
use crate::fs::node::{NodeId, ROOT_INO, VersionPart};
use crate::fs::places::staging::publish;
use crate::fs::removal::{self, shells};
use crate::fs::{DAEMON, FORGETTING, ImageFs, upload, within};
use crate::images::last_use;
use crate::images::leases;
use crate::images::staging::IDLE_MAX;
use crate::tree::ROOT;

/// How old the note of an image's last use may be before it is written again.
const KEEP_USE: Duration = Duration::from_secs(3600);

impl ImageFs {
    /// A path leads into a mounted tree, whose files are opened without a word to us: that counts as a use.
    pub(super) fn note_entered(&self, found: &Result<NodeId>) {
        if let Ok(NodeId::Tree { serial, .. }) = found {
            last_use::note(&self.store, *serial);
        }
    }

    /// Whether somebody is in a tree of the image that is a mount of its own. Such a tree is unmounted if
    /// nobody is.
    fn has_users_in_trees(&self, image: u32) -> bool {
        let versions: Vec<u32> =
            self.store.catalog.read().versions_of(image).map(|version| version.serial).collect();
        let in_use = |serial: &u32| {
            self.mounts.all().iter().any(|fs| fs.trees.get().is_some_and(|t| t.is_in_use(*serial)))
        };
        let used = versions.into_iter().find(in_use);
        used.inspect(|serial| last_use::note(&self.store, *serial)).is_some()
    }

    /// What a mount does now and then: it lets go of what nobody has gone on with for long.
    pub fn reap(&self) {
        shells::drop_left(self);
        upload::reap(self, IDLE_MAX);
        publish::reap(self, IDLE_MAX);
        self.forget_outlived();
    }

    /// The mount ends: what nobody has published goes with it.
    pub fn note_unfinished(&self) {
        upload::note_unfinished(self);
    }

    /// Tells the kernel about the names of versions that are gone for good: what was in use when they were
    /// deleted, and is not any more, it would remember for as long as it has the memory, and with it all
    /// their content would stay.
    fn forget_outlived(&self) {
        for (serial, slot) in self.store.outlived() {
            let parent = NodeId::Tree { serial, index: ROOT }.ino();
            let Ok(root) = slot.tree.node(ROOT) else { continue };
            let name = |n| Some(slot.tree.entry(&root, n).ok()??.0.to_vec());
            let names: Vec<Vec<u8>> = (0..).map_while(name).collect();
            let directory =
                |incarnation| NodeId::Version { serial, part: VersionPart::Dir, incarnation }.ino();
            let directories: Vec<u64> = (0..=self.incarnation(serial)).map(directory).collect();
            let trees = self.trees_kernel.read().clone();
            if let Some(kernel) = trees {
                let names = names.clone();
                within("forget", FORGETTING, move || {
                    names.iter().for_each(|name| kernel.forget_name(parent, name));
                    kernel.forget_name(ROOT_INO, serial.to_string().as_bytes());
                });
            }
            self.tell_soon(FORGETTING, move |kernel| {
                names.iter().for_each(|name| kernel.forget_name(parent, name));
                directories.iter().for_each(|directory| kernel.forget_name(*directory, b"rootfs"));
            });
        }
    }

    /// Deletes what is due by its own rules, and ends the leases whose time is over. What may not go stays,
    /// silently: it is tried again at the next look.
    pub fn retire(&self) {
        for (lease, path) in leases::expired(&self.store) {
            if leases::end(&self.store, lease).is_ok() {
                self.store.journal.log(DAEMON.uid, "release", &path, "its time is over");
            }
        }
        if let Err(e) = last_use::keep(&self.store, KEEP_USE) {
            log::debug!("cannot note which images are used: {e}");
        }
        for due in retention::due(&self.store) {
            // Who is in a mounted tree opens its files without a word to us.
            if let Due::Image(serial, UNUSED) = due
                && self.has_users_in_trees(serial)
            {
                continue;
            }
            let (node, why) = match due {
                Due::Image(serial, why) => (self.image_node(serial), why),
                Due::Version(serial, why) => (self.version_node(serial), why),
            };
            let path = self.path_of(node).trim_start_matches('/').to_owned();
            let parent = node.place().parent(self, node);
            let gone = self.gone.add(parent, path.rsplit('/').next().unwrap_or_default());
            let deleted = match due {
                Due::Image(serial, _) => removal::delete_image(self, DAEMON, serial, parent),
                Due::Version(serial, _) => removal::delete_version(self, DAEMON, serial, parent),
            };
            match deleted {
                Ok(()) => {
                    self.store
                        .journal
                        .start_job("retention", &path, DAEMON.uid)
                        .end(&format!("deleted: {why}"));
                    self.forget_soon(gone);
                    self.touch_root();
                }
                Err(e) => log::debug!("{path} stays: {e}"),
            }
        }
    }
}
