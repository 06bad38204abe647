//! The inodes that the kernel knows on one connection. While the kernel knows any inode of a version,
//! the content of the version stays.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};

use parking_lot::RwLock;

use crate::fs::node::NodeId;
use crate::store::Store;

/// Version serial -> number of inodes the kernel holds.
#[derive(Default)]
pub struct Held(RwLock<HashMap<u32, AtomicI64>>);

impl Held {
    /// Counts inodes that the kernel was told of. A negative count is for inodes that it has forgotten.
    pub fn count(&self, store: &Store, node: NodeId, inodes: i64) {
        let NodeId::Tree { serial, .. } = node else { return };
        store.hold(serial, inodes);
        if let Some(held) = self.0.read().get(&serial) {
            held.fetch_add(inodes, Ordering::Relaxed);
            return;
        }
        self.0.write().entry(serial).or_default().fetch_add(inodes, Ordering::Relaxed);
    }

    /// Whether the kernel knows an inode of the version to which `node` belongs.
    pub fn knows(&self, node: NodeId) -> bool {
        let (NodeId::Tree { serial, .. } | NodeId::Version { serial, .. }) = node else { return false };
        self.0.read().get(&serial).is_some_and(|held| held.load(Ordering::Relaxed) > 0)
    }

    /// The connection has ended, so the kernel knows no inode any more. It does not report that.
    pub fn let_go(&self, store: &Store) {
        for (serial, inodes) in self.0.write().drain() {
            store.hold(serial, -inodes.into_inner());
        }
        store.has_garbage();
    }
}
