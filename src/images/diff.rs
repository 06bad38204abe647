//! cat web/2/changes, imgfs diff web/1 web/2: what differs between two trees. No content is read,
//! because equal bytes are one blob.

use std::cmp::Ordering;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::base::journal::escape;
use crate::catalog::Version;
use crate::error::Result;
use crate::images::targets::find_version;
use crate::store::Store;
use crate::tree::{Bytes, Node, NodeIndex, NodeKind, ROOT, Tree};

/// A path that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    pub change: What,
    /// The path below the version's directory: `rootfs/etc/motd`. A backslash is doubled; each byte that is
    /// not UTF-8 is `\\xff`.
    pub path: String,
    /// The size of the file or of the symlink's target, 0 for anything else. `None` on the side where the
    /// path does not exist.
    pub before: Option<u64>,
    pub after: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    Added,
    Removed,
    Modified,
}

/// Two trees side by side.
struct Pair<'t> {
    old: &'t Tree,
    new: &'t Tree,
    /// Whether files of the same name that recipes make are the same.
    same_made: bool,
}

/// A path still to compare, with its nodes in the old and in the new tree.
type Place = (Vec<u8>, Option<NodeIndex>, Option<NodeIndex>);

/// What differs between two versions of a store, ordered by path. Differences only in times, or only in
/// how content is stored, do not count.
///
/// # Errors
///
/// `Corrupt`, `Io` if a tree is damaged.
pub fn between(store: &Store, old: &Version, new: &Version) -> Result<Vec<Difference>> {
    let (before, after) = (store.tree(old.serial)?, store.tree(new.serial)?);
    let same_made =
        old.facts.content_digest() == new.facts.content_digest() && old.facts.digest == new.facts.digest;
    Pair { old: &before.tree, new: &after.tree, same_made }.differences()
}

impl Pair<'_> {
    fn differences(&self) -> Result<Vec<Difference>> {
        let mut found = Vec::new();
        let root = |tree: &Tree| tree.has_rootfs().then_some(ROOT);
        // Paths are taken from the end: first what lies beside rootfs, then rootfs.
        let mut todo: Vec<Place> = vec![(b"rootfs".to_vec(), root(self.old), root(self.new))];
        self.below(b"", (self.old, self.old.beside()), (self.new, self.new.beside()), &mut todo)?;
        while let Some((path, old, new)) = todo.pop() {
            let node =
                |tree: &Tree, index: Option<NodeIndex>| index.map(|index| tree.node(index)).transpose();
            let (a, b) = (node(self.old, old)?, node(self.new, new)?);
            let is_directory =
                |node: &Option<Node>| node.is_some_and(|n| matches!(n.kind, NodeKind::Directory { .. }));
            let size = |node: &Node| {
                if matches!(node.kind, NodeKind::File(_) | NodeKind::Symlink) { node.size } else { 0 }
            };
            let mut tell = |before: Option<&Node>, after: Option<&Node>| {
                let change = match (before, after) {
                    (None, _) => What::Added,
                    (_, None) => What::Removed,
                    _ => What::Modified,
                };
                let path = readable(&path);
                found.push(Difference { change, path, before: before.map(size), after: after.map(size) });
            };
            match (&a, &b) {
                // For example, a file became a directory: one is removed, the other added.
                (Some(a), Some(b)) if std::mem::discriminant(&a.kind) != std::mem::discriminant(&b.kind) => {
                    tell(Some(a), None);
                    tell(None, Some(b));
                }
                (Some(a), Some(b)) if self.is_same(a, b)? => {}
                (None, None) => {}
                (a, b) => tell(a.as_ref(), b.as_ref()),
            }
            let (old, new) = (old.filter(|_| is_directory(&a)), new.filter(|_| is_directory(&b)));
            self.below(&path, (self.old, old), (self.new, new), &mut todo)?;
        }
        Ok(found)
    }

    /// Puts the entries of two directories on top of the stack, the first by name last.
    fn below(
        &self,
        path: &[u8],
        (old, old_index): (&Tree, Option<NodeIndex>),
        (new, new_index): (&Tree, Option<NodeIndex>),
        todo: &mut Vec<Place>,
    ) -> Result<()> {
        let (from, mut places) =
            (|index: Option<NodeIndex>, tree: &Tree| index.map(|i| tree.node(i)).transpose(), Vec::new());
        let (a, b) = (from(old_index, old)?, from(new_index, new)?);
        let entry = |tree: &Tree, directory: &Option<Node>, n: u32| -> Result<Option<(Vec<u8>, NodeIndex)>> {
            let Some(directory) = directory else { return Ok(None) };
            Ok(tree.entry(directory, n)?.map(|(name, index)| (name.to_vec(), index)))
        };
        let (mut i, mut j) = (0, 0);
        loop {
            let (left, right) = (entry(old, &a, i)?, entry(new, &b, j)?);
            let order = match (&left, &right) {
                (None, None) => break,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((left, _)), Some((right, _))) => left.cmp(right),
            };
            (i, j) = (i + u32::from(order.is_le()), j + u32::from(order.is_ge()));
            let (left, right) = (left.filter(|_| order.is_le()), right.filter(|_| order.is_ge()));
            let name = left.as_ref().or(right.as_ref()).map(|(name, _)| name.as_slice()).unwrap_or_default();
            let below = if path.is_empty() { name.to_vec() } else { [path, name].join(&b'/') };
            places.push((below, left.map(|(_, index)| index), right.map(|(_, index)| index)));
        }
        todo.extend(places.into_iter().rev());
        Ok(())
    }

    fn is_same(&self, a: &Node, b: &Node) -> Result<bool> {
        let content = match (a.kind, b.kind) {
            (NodeKind::File(a_bytes), NodeKind::File(b_bytes)) => match (a_bytes, b_bytes) {
                (Bytes::Recipe(_), Bytes::Recipe(_)) => self.same_made,
                (Bytes::Sparse(one), Bytes::Sparse(other)) => {
                    one == other && self.old.sparse_map(a)? == self.new.sparse_map(b)?
                }
                (one, other) => one == other,
            },
            (NodeKind::Symlink, NodeKind::Symlink) => self.old.symlink(a)? == self.new.symlink(b)?,
            (NodeKind::Directory { .. }, NodeKind::Directory { .. }) => true,
            (one, other) => one == other,
        };
        let same = content && (a.mode, a.uid, a.gid) == (b.mode, b.uid, b.gid);
        let size = matches!(a.kind, NodeKind::Directory { .. }) || a.size == b.size;
        Ok(same && size && self.old.xattrs(a).eq(self.new.xattrs(b)))
    }
}

/// A path as text from which the bytes can be told.
fn readable(path: &[u8]) -> String {
    let mut text = String::new();
    for chunk in path.utf8_chunks() {
        text.push_str(&chunk.valid().replace('\\', "\\\\"));
        for byte in chunk.invalid() {
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

/// One line for each difference, fields separated by tabs: what, size before and after (`-` if it does
/// not exist), path.
pub fn text(differences: &[Difference]) -> String {
    let mut text = String::new();
    let size = |size: Option<u64>| size.map_or_else(|| "-".into(), |n| n.to_string());
    for d in differences {
        let what = match d.change {
            What::Added => "added",
            What::Removed => "removed",
            What::Modified => "modified",
        };
        let _ = writeln!(text, "{what}\t{}\t{}\t{}", size(d.before), size(d.after), escape(&d.path));
    }
    text
}

/// What differs between two versions. Their names are those that a link in the root may have as a
/// target: `web/1`, `web`, an alias.
///
/// # Errors
///
/// `NotFound`; as `between`.
pub fn between_named(store: &Store, old: &str, new: &str) -> Result<Vec<Difference>> {
    let find = |name: &str| find_version(&store.catalog.read(), name);
    between(store, &find(old)?, &find(new)?)
}
