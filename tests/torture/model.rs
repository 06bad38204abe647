//! A directory as system calls make it, on no file system in particular: what is in it after any number of
//! them, and what may be after a crash. A file's content is durable after its fsync, a directory's names
//! after the directory's.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use crate::dice::Dice;

const PAGE: usize = 4096;

/// A file or directory; 0 is the root.
pub type Id = usize;
type Name = (Id, String);

pub enum Op {
    Make { at: Name, id: Id },
    Rename { from: Name, to: Name, id: Id },
    Remove { at: Name },
    Write { id: Id, at: usize, bytes: Vec<u8> },
    Size { id: Id, len: usize },
    Zero { id: Id, at: usize, len: usize },
    Sync { id: Id },
}

/// What record.c wrote down.
#[derive(Default)]
pub struct Calls {
    pub ops: Vec<Op>,
    /// How many bytes of the record there were after each.
    pub ends: Vec<usize>,
    /// Where it was when it was made, with all names it had later.
    pub paths: Vec<String>,
    is_dir: Vec<bool>,
}

/// The names there are while a record is read.
#[derive(Default)]
struct Names {
    by_path: HashMap<String, Id>,
    by_inode: HashMap<u64, Id>,
}

impl Names {
    fn place(&self, path: &str) -> Name {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        (self.by_path[dir], name.to_owned())
    }

    fn forget(&mut self, path: &str) -> Option<Id> {
        let id = self.by_path.remove(path)?;
        self.by_inode.retain(|_, other| *other != id);
        Some(id)
    }
}

impl Calls {
    /// Reads a record of a directory whose inode is `root`. Files it does not know have no name: they change
    /// nothing.
    pub fn read(record: &[u8], root: u64) -> Calls {
        let mut calls = Calls { is_dir: vec![true], paths: vec![String::new()], ..Calls::default() };
        let mut names = Names { by_path: [(String::new(), 0)].into(), by_inode: [(root, 0)].into() };
        let mut from = 0;
        while from < record.len() {
            let word =
                |n: usize| u64::from_le_bytes(record[from + n * 8..from + n * 8 + 8].try_into().unwrap());
            let (what, inode, at, size) =
                (word(0), word(1), usize::try_from(word(2)).unwrap(), usize::try_from(word(3)).unwrap());
            from += 32;
            let bytes = if what <= 5 { &record[from..from + size] } else { &[] };
            from += bytes.len();
            let op = if what <= 4 {
                calls.name_op(&mut names, what, inode, std::str::from_utf8(bytes).unwrap())
            } else {
                names.by_inode.get(&inode).map(|&id| match what {
                    5 => Op::Write { id, at, bytes: bytes.to_vec() },
                    6 => Op::Size { id, len: size },
                    7 => Op::Zero { id, at, len: size },
                    _ => Op::Sync { id },
                })
            };
            // Memory between processes, which is written by mmap as well and made again.
            if let Some(op) = op.filter(|op| !calls.is_memory(op)) {
                calls.ops.push(op);
                calls.ends.push(from);
            }
        }
        calls
    }

    fn is_memory(&self, op: &Op) -> bool {
        let (Op::Write { id, .. } | Op::Size { id, .. } | Op::Zero { id, .. }) = op else { return false };
        self.paths[*id].contains("-shm")
    }

    fn name_op(&mut self, names: &mut Names, what: u64, inode: u64, paths: &str) -> Option<Op> {
        let (path, to) = paths.split_once('\0').unwrap();
        let at = names.place(path);
        match what {
            1 | 2 => {
                let id = self.is_dir.len();
                self.is_dir.push(what == 2);
                self.paths.push(path.to_owned());
                names.by_path.insert(path.to_owned(), id);
                names.by_inode.insert(inode, id);
                Some(Op::Make { at, id })
            }
            3 => {
                let target = names.place(to);
                let id = *names.by_path.get(path)?;
                assert!(!self.is_dir[id], "a directory is renamed");
                names.forget(to);
                names.by_path.remove(path);
                names.by_path.insert(to.to_owned(), id);
                self.paths[id] = format!("{} {to}", self.paths[id]);
                Some(Op::Rename { from: at, to: target, id })
            }
            _ => names.forget(path).map(|_| Op::Remove { at }),
        }
    }

    /// How many calls were in the first bytes of the record.
    pub fn within(&self, bytes: usize) -> usize {
        self.ends.iter().filter(|end| **end <= bytes).count()
    }

    /// What is there after a crash.
    pub fn after(&self, crash: &mut Crash) -> Tree {
        let mut durable = vec![crash.settled; self.is_dir.len()];
        for (n, op) in self.ops[..crash.cut].iter().enumerate() {
            if let Op::Sync { id } = op
                && !(crash.is_lie)(n, *id)
            {
                durable[*id] = n.max(durable[*id]);
            }
        }
        // Of the names that are not durable, the first so many are there, in each directory.
        let mut pending = vec![0usize; self.is_dir.len()];
        for (n, op) in self.ops[..crash.cut].iter().enumerate() {
            let dirs = match op {
                Op::Make { at, .. } | Op::Remove { at } => vec![at.0],
                Op::Rename { from, to, .. } if from.0 == to.0 => vec![to.0],
                Op::Rename { from, to, .. } => vec![from.0, to.0],
                _ => vec![],
            };
            dirs.into_iter().filter(|dir| n >= durable[*dir]).for_each(|dir| pending[dir] += 1);
        }
        for count in &mut pending {
            *count = crash.how_many(*count);
        }
        let mut tree = Tree::default();
        for (n, op) in self.ops[..crash.cut].iter().enumerate() {
            let mut holds = |dir: Id| {
                let more = pending[dir] > 0;
                pending[dir] = pending[dir].saturating_sub(usize::from(n >= durable[dir]));
                n < durable[dir] || more
            };
            match op {
                Op::Make { at, id } if holds(at.0) => tree.put(at, *id),
                Op::Remove { at } if holds(at.0) => tree.drop(at),
                Op::Rename { from, to, id } => {
                    // The file is in one of the two at least, if it was there at all.
                    let came = holds(to.0);
                    let gone = if from.0 == to.0 { came } else { holds(from.0) };
                    if came || (gone && n < durable[from.0]) {
                        tree.put(to, *id);
                        if gone {
                            tree.drop(from);
                        }
                    } else {
                        pending[from.0] = 0;
                    }
                }
                Op::Write { id, .. } | Op::Size { id, .. } | Op::Zero { id, .. } => {
                    let file = tree.files.entry(*id).or_default();
                    if n < durable[*id] { change(file, op, |_| true) } else { crash.change(file, op) }
                }
                _ => {}
            }
        }
        tree
    }

    /// Makes the directory that a tree is.
    pub fn lay_out(&self, tree: &Tree, dir: Id, path: &Path) {
        std::fs::create_dir_all(path).unwrap();
        for (name, id) in tree.names.get(&dir).into_iter().flatten() {
            if self.is_dir[*id] {
                self.lay_out(tree, *id, &path.join(name));
            } else if !name.ends_with("-shm") {
                std::fs::write(path.join(name), tree.files.get(id).map_or(&[][..], |file| file)).unwrap();
            }
        }
    }
}

/// A moment, and what of the calls before it that were not durable is there.
pub struct Crash<'a> {
    /// So many calls were made.
    pub cut: usize,
    /// So many of them were made so long ago that they are durable.
    pub settled: usize,
    /// Whether this call, a sync of this file, is none.
    pub is_lie: &'a dyn Fn(usize, Id) -> bool,
    /// Of ten changes that are not durable, so many are there.
    pub share: usize,
    pub dice: Dice,
}

impl Crash<'_> {
    fn how_many(&mut self, of: usize) -> usize {
        match self.share {
            0 => 0,
            10 => of,
            _ => self.dice.roll(of + 1),
        }
    }

    /// Makes a change of a file whole, in part, or not at all.
    fn change(&mut self, file: &mut Vec<u8>, op: &Op) {
        if self.share == 10 || self.dice.roll(10) < self.share {
            return change(file, op, |_| true);
        }
        match self.dice.roll(3) {
            1 if self.share > 0 => change(file, op, |_| self.dice.roll(2) == 0),
            // Only the size has changed.
            2 if self.share > 0 => change(file, op, |_| false),
            _ => {}
        }
    }
}

/// Changes a file, of a write those pages that are `kept`.
fn change(file: &mut Vec<u8>, op: &Op, mut kept: impl FnMut(usize) -> bool) {
    match op {
        Op::Write { at, bytes, .. } => {
            file.resize(file.len().max(at + bytes.len()), 0);
            let mut from = *at;
            while from < at + bytes.len() {
                let to = ((from / PAGE + 1) * PAGE).min(at + bytes.len());
                if kept(from / PAGE) {
                    file[from..to].copy_from_slice(&bytes[from - at..to - at]);
                }
                from = to;
            }
        }
        Op::Size { len, .. } => file.resize(*len, 0),
        Op::Zero { at, len, .. } => {
            let end = file.len();
            file[*at.min(&end)..end.min(at + len)].fill(0);
        }
        _ => {}
    }
}

/// Files and the names in directories.
#[derive(Default)]
pub struct Tree {
    names: HashMap<Id, BTreeMap<String, Id>>,
    files: HashMap<Id, Vec<u8>>,
}

impl Tree {
    fn put(&mut self, (dir, name): &Name, id: Id) {
        self.names.entry(*dir).or_default().insert(name.clone(), id);
    }

    fn drop(&mut self, (dir, name): &Name) {
        self.names.entry(*dir).or_default().remove(name);
    }
}
