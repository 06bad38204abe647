//! Images in layers: what the next one brings goes over what is there, and whiteouts take away.
//!
//! Source: OCI image-spec, layer.md.

use crate::tree::build::{Builder, Meta, NONE, Placed, hash_name, name_at, refuse};

impl Builder {
    /// Begins the next layer of an image: it goes over what is there.
    pub fn begin_layer(&mut self) {
        self.layer += 1;
        self.last = None;
    }

    /// A whiteout: what lower layers have under this path goes.
    ///
    /// Source: OCI image-spec, layer.md, "Whiteouts".
    ///
    /// # Errors
    ///
    /// `Refused` for the root, and for a path that cannot be walked or leaves it.
    pub fn white_out(&mut self, path: &[u8]) -> Placed<()> {
        let Some((parent, name)) = self.place(path, Some(&Meta::default()))? else {
            return refuse("the root cannot be removed");
        };
        let Some(at) = self.child(parent, &name) else { return Ok(()) };
        let entry = &self.entries[at as usize];
        if entry.layer < self.layer {
            self.remove(at);
        } else if self.is_directory(entry.node) {
            self.opaque.push(entry.node);
        }
        Ok(())
    }

    /// An opaque whiteout: what lower layers have in this directory goes.
    ///
    /// # Errors
    ///
    /// `Refused` for a path that cannot be walked or leaves the root.
    pub fn make_opaque(&mut self, path: &[u8]) -> Placed<()> {
        let inside = [path, b"/x"].concat();
        let Some((directory, _)) = self.place(&inside, Some(&Meta::default()))? else { return Ok(()) };
        self.opaque.push(directory);
        Ok(())
    }

    /// Ends a layer: its opaque directories lose what the layer itself did not bring, in whatever order that
    /// came.
    pub fn end_layer(&mut self) {
        let opaque = std::mem::take(&mut self.opaque);
        if opaque.is_empty() {
            return;
        }
        let (order, children) = self.listings();
        let mut seen = vec![false; self.drafts.len()];
        let mut doomed = Vec::new();
        for top in opaque {
            // Each directory twice: on the way down, and when all below it is known.
            let mut todo = vec![(top, false)];
            while let Some((directory, known)) = todo.pop() {
                let (first, count) = children[directory as usize];
                let below = &order[first as usize..(first + count) as usize];
                if known {
                    for &e in below {
                        let entry = &self.entries[e as usize];
                        let holds =
                            self.is_directory(entry.node) && self.drafts[entry.node as usize].data > 0;
                        if entry.layer < self.layer && !holds {
                            self.remove(e);
                        }
                    }
                } else if !std::mem::replace(&mut seen[directory as usize], true) {
                    todo.push((directory, true));
                    let nodes = below.iter().map(|e| self.entries[*e as usize].node);
                    doomed.extend(nodes.filter(|n| self.is_directory(*n)));
                    todo.extend(doomed.drain(..).map(|n| (n, false)));
                }
            }
        }
    }

    fn remove(&mut self, at: u32) {
        let entry = &self.entries[at as usize];
        let (parent, hash) = (entry.parent, hash_name(entry.parent, name_at(&self.names, entry.name)));
        if let Ok(found) = self.by_name.find_entry(hash, |&e| e == at) {
            found.remove();
        }
        self.drafts[parent as usize].data -= 1;
        self.entries[at as usize].node = NONE;
        self.last = None;
    }
}
