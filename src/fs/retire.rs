//! keep_versions, expires_at, the time of a lease: what goes by itself, done as a gesture of the daemon's.

use crate::fs::links::FORGETTING;
use crate::fs::node::{NodeId, VersionPart};
use crate::fs::{DAEMON, ImageFs};
use crate::leases;
use crate::retention::{self, Due};
use crate::tree::ROOT;

impl ImageFs {
    /// Tells the kernel about the names of versions that are gone for good: what was in use when they were deleted, and is
    /// not any more, it would remember for as long as it has the memory, and with it all their content would stay.
    pub fn forget_outlived(&self) {
        for (serial, slot) in self.store.outlived() {
            let parent = NodeId::Tree { serial, index: ROOT }.ino();
            let Ok(root) = slot.tree.node(ROOT) else { continue };
            let name = |n| Some(slot.tree.entry(&root, n).ok()??.0.to_vec());
            let names: Vec<Vec<u8>> = (0..).map_while(name).collect();
            let directory = |incarnation| NodeId::Version { serial, part: VersionPart::Dir, incarnation }.ino();
            let directories: Vec<u64> = (0..=self.incarnation(serial)).map(directory).collect();
            self.tell_soon(FORGETTING, move |kernel| {
                names.iter().for_each(|name| kernel.forget_name(parent, name));
                directories.iter().for_each(|directory| kernel.forget_name(*directory, b"rootfs"));
            });
        }
    }

    /// Deletes what is due by its own rules, and ends the leases whose time is over. What may not go stays, silently: it is
    /// tried again at the next look.
    pub fn retire(&self) {
        for (lease, path) in leases::expired(&self.store) {
            if leases::end(&self.store, lease).is_ok() {
                self.store.journal.log(DAEMON.uid, "release", &path, "its time is over");
            }
        }
        for due in retention::due(&self.store) {
            let (node, why) = match due {
                Due::Image(serial, why) => (self.image_node(serial), why),
                Due::Version(serial, why) => (self.version_node(serial), why),
            };
            let path = self.path_of(node).trim_start_matches('/').to_owned();
            let parent = self.parent_of(node);
            let gone = self.gone.add(parent, path.rsplit('/').next().unwrap_or_default());
            let deleted = match due {
                Due::Image(serial, _) => self.delete_image(DAEMON, serial, parent),
                Due::Version(serial, _) => self.delete_version(DAEMON, serial, parent),
            };
            match deleted {
                Ok(()) => {
                    self.store.journal.start_job("retention", &path, DAEMON.uid).end(&format!("deleted: {why}"));
                    self.forget_soon(gone);
                    self.touch_root();
                }
                Err(e) => log::debug!("{path} stays: {e}"),
            }
        }
    }
}
