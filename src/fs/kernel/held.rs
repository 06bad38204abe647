//! The inodes that the kernel knows on one connection: as long as it knows any of a version, its content
//! stays.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};

use parking_lot::RwLock;

use crate::fs::node::NodeId;
use crate::store::Store;

/// Version serial -> number of inodes the kernel holds.
#[derive(Default)]
pub struct Held(RwLock<HashMap<u32, AtomicI64>>);

impl Held {
    /// Counts inodes that the kernel was told of (or, negative, has forgotten).
    pub fn count(&self, store: &Store, node: NodeId, inodes: i64) {
        let NodeId::Tree { serial, .. } = node else { return };
        store.hold(serial, inodes);
        if let Some(held) = self.0.read().get(&serial) {
            held.fetch_add(inodes, Ordering::Relaxed);
            return;
        }
        self.0.write().entry(serial).or_default().fetch_add(inodes, Ordering::Relaxed);
    }

    /// Whether the kernel knows an inode of the version that `node` is of.
    pub fn knows(&self, node: NodeId) -> bool {
        let (NodeId::Tree { serial, .. } | NodeId::Version { serial, .. }) = node else { return false };
        self.0.read().get(&serial).is_some_and(|held| held.load(Ordering::Relaxed) > 0)
    }

    /// The connection has ended: the kernel knows none any more, and does not say so.
    pub fn let_go(&self, store: &Store) {
        for (serial, inodes) in self.0.write().drain() {
            store.hold(serial, -inodes.into_inner());
        }
        store.has_garbage();
    }
}
