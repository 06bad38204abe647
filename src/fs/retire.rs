//! keep_versions, expires_at, expires_unused: what imgfs deletes by itself, and how the kernel learns
//! of it.

use std::sync::Arc;

use crate::error::Result;
use crate::fs::mounts::Mounts;
use crate::fs::node::{NodeId, ROOT_INO, VersionPart};
use crate::fs::places::staging::publish;
use crate::fs::removal::{self, shells};
use crate::fs::{FORGETTING, ImageFs, upload, within};
use crate::images::last_use;
use crate::images::staging::IDLE_MAX;
use crate::store::tell::{Afterwards, Deletion, TellMounts};
use crate::tree::ROOT;

impl ImageFs {
    /// Counts a path into a mounted tree as a use. The files in it are opened without a request to imgfs.
    pub(super) fn note_entered(&self, found: &Result<NodeId>) {
        if let Ok(NodeId::Tree { serial, .. }) = found {
            last_use::note(&self.store, *serial);
        }
    }

    /// Drops what nobody has continued for a long time. A mount calls this now and then.
    pub fn reap(&self) {
        shells::drop_left(self);
        upload::reap(self, IDLE_MAX);
        publish::reap(self, IDLE_MAX);
        self.forget_outlived();
    }

    /// The mount ends. This drops uploads that nobody has published.
    pub fn note_unfinished(&self) {
        upload::note_unfinished(self);
    }

    /// Tells the kernel to forget the names of versions that are gone for good. Those versions were in use
    /// when they were deleted, and are not any more. Otherwise the kernel would remember them while it has
    /// memory, and all their content would stay.
    fn forget_outlived(&self) {
        for (serial, slot) in self.store.outlived() {
            let parent = NodeId::Tree { serial, index: ROOT }.ino();
            let Ok(root) = slot.tree.node(ROOT) else { continue };
            let name = |n| Some(slot.tree.entry(&root, n).ok()??.0.to_vec());
            let names: Vec<Vec<u8>> = (0..).map_while(name).collect();
            let directory =
                |incarnation| NodeId::Version { serial, part: VersionPart::Dir, incarnation }.ino();
            // The kernel may know the directory by the inode of any of its incarnations.
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

    /// Notes the name of an image or version before imgfs deletes it by itself. The kernel is told of that
    /// name afterwards, if this mount shows it.
    fn before_deletion(self: &Arc<Self>, what: &Deletion) -> Option<Afterwards> {
        let node = {
            let model = self.store.catalog.read();
            match what {
                Deletion::Image(serial, _) => model.images.get(serial).map(|_| self.image_node(*serial))?,
                Deletion::Version(serial) => {
                    model.versions.get(serial).map(|_| self.version_node(*serial))?
                }
            }
        };
        let path = self.path_of(node);
        let gone =
            self.gone.add(node.place().parent(self, node), path.rsplit('/').next().unwrap_or_default());
        let fs = self.clone();
        Some(Box::new(move |deleted| {
            if deleted {
                fs.forget_soon(gone);
                fs.touch_root();
            }
        }))
    }
}

impl TellMounts for Mounts {
    fn tree_in_use(&self, versions: &[u32]) -> Option<u32> {
        let all = self.all();
        let used = |serial: &u32| all.iter().any(|fs| fs.trees.get().is_some_and(|t| t.is_in_use(*serial)));
        versions.iter().copied().find(used)
    }

    fn before_deletion(&self, what: &Deletion) -> Afterwards {
        let all = self.all();
        let told: Vec<Afterwards> = all.iter().filter_map(|fs| fs.before_deletion(what)).collect();
        let any = all.into_iter().next();
        if let Some(fs) = &any {
            fs.detach_trees(what.versions().iter().copied());
        }
        let image = if let Deletion::Image(serial, _) = what { Some(*serial) } else { None };
        let serials: Vec<u32> = what.versions().iter().copied().chain(image).collect();
        Box::new(move |deleted| {
            if let Some(fs) = any.filter(|_| deleted) {
                removal::count_incarnation(&fs, serials);
            }
            told.into_iter().for_each(|afterwards| afterwards(deleted));
        })
    }

    fn unless_shown(&self, view: Option<&str>, work: &mut dyn FnMut()) {
        self.unless_open(view, work);
    }
}
