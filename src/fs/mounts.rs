//! imgfs mount -o view=dc1 beside another mount: what those of one store must know of each other.

use std::sync::{Arc, Weak};

use parking_lot::{Mutex, RwLock};

use crate::fs::node::ROOT_INO;
use crate::fs::{ImageFs, Kernel};
use crate::manifest::now;

/// The mounts of a store.
pub struct Mounts {
    all: RwLock<Vec<Weak<ImageFs>>>,
    /// When the names in the root of the whole store last changed.
    pub(super) root_changed: Mutex<i64>,
}

impl Default for Mounts {
    fn default() -> Mounts {
        Mounts { all: RwLock::default(), root_changed: Mutex::new(now()) }
    }
}

impl Mounts {
    pub(super) fn add(&self, fs: &Arc<ImageFs>) {
        let mut all = self.all.write();
        all.retain(|fs| fs.strong_count() > 0);
        all.push(Arc::downgrade(fs));
    }

    /// Those that there are, oldest first.
    pub fn all(&self) -> Vec<Arc<ImageFs>> {
        self.all.read().iter().filter_map(Weak::upgrade).collect()
    }

    /// Whether what one mount shows may change through another: then no kernel may believe what it was told for longer than
    /// the answer takes. Trees are the same for all, and never change.
    pub(super) fn are_several(&self) -> bool {
        let all = self.all.read();
        all.len() > 1 && all.iter().filter(|fs| fs.strong_count() > 0).count() > 1
    }

    /// Has the kernels forget all that they believe: there is one more mount from now on.
    pub fn forget_all(&self) {
        for fs in self.all() {
            let model = fs.store.catalog.read();
            let images: Vec<(u64, String)> =
                model.live_images().map(|i| (fs.image_node(i.serial).ino(), i.name.clone())).collect();
            let versions: Vec<(u64, String)> = (model.all_versions())
                .filter(|v| model.is_live(v))
                .map(|v| (fs.image_node(v.image).ino(), v.number.to_string()))
                .collect();
            drop(model);
            fs.with_kernel(|kernel: &dyn Kernel| {
                kernel.forget_attributes(ROOT_INO);
                for (image, name) in &images {
                    kernel.forget_attributes(*image);
                    kernel.forget_name(ROOT_INO, name.as_bytes());
                }
                versions.iter().for_each(|(image, name)| kernel.forget_name(*image, name.as_bytes()));
            });
        }
    }
}
