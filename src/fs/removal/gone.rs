//! rm -r beside mv: names that are gone, but that the kernel still takes for what rm -r has deleted.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::fs::node::NodeId;

/// All such names.
#[derive(Clone, Default)]
pub(in crate::fs) struct GoneNames(Arc<Mutex<Vec<Arc<Name>>>>);

pub(in crate::fs) struct Name {
    pub parent: u64,
    pub name: Vec<u8>,
    /// Threads that have asked since then, and so know what has the name now. A thread learns nothing from
    /// what another thread was told while its own rename is under way.
    asked: Mutex<Vec<u32>>,
}

/// One such name, until this is dropped.
pub(in crate::fs) struct Gone {
    all: GoneNames,
    pub name: Arc<Name>,
}

impl Name {
    fn is(&self, parent: NodeId, name: &[u8]) -> bool {
        self.parent == parent.ino() && self.name == name
    }
}

impl GoneNames {
    pub(in crate::fs) fn add(&self, parent: NodeId, name: &str) -> Gone {
        let name = Arc::new(Name { parent: parent.ino(), name: name.into(), asked: Mutex::default() });
        self.0.lock().push(name.clone());
        Gone { all: self.clone(), name }
    }

    /// Notes that a thread has looked up a name.
    pub(in crate::fs) fn note_asked(&self, thread: u32, parent: NodeId, name: &[u8]) {
        self.0
            .lock()
            .iter()
            .filter(|gone| gone.is(parent, name))
            .for_each(|gone| gone.asked.lock().push(thread));
    }

    /// Whether the kernel may take this name for the deleted object, for this thread. The kernel would then
    /// move the deleted object, but imgfs would move what has the name now. The kernel has to look up the
    /// name again, once.
    pub(in crate::fs) fn is_mistaken(&self, thread: u32, parent: NodeId, name: &[u8]) -> bool {
        self.0.lock().iter().any(|gone| gone.is(parent, name) && !gone.asked.lock().contains(&thread))
    }
}

impl Drop for Gone {
    fn drop(&mut self) {
        self.all.0.lock().retain(|name| !Arc::ptr_eq(name, &self.name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A lookup by another thread once cleared the name for all, while a rename was under way. The kernel
    /// moved the deleted object, and imgfs moved what had the name by then (many hands, round 421).
    #[test]
    fn who_has_not_asked_is_mistaken() {
        let names = GoneNames::default();
        let before = names.add(NodeId::Root, "web");
        names.note_asked(1, NodeId::Root, b"web");
        assert!(!names.is_mistaken(1, NodeId::Root, b"web") && names.is_mistaken(2, NodeId::Root, b"web"));
        assert!(!names.is_mistaken(2, NodeId::Root, b"db"));
        // The name was deleted once more, so earlier lookups no longer count.
        let after = names.add(NodeId::Root, "web");
        drop(before);
        assert!(names.is_mistaken(1, NodeId::Root, b"web"));
        drop(after);
        assert!(!names.is_mistaken(1, NodeId::Root, b"web"));
    }
}
