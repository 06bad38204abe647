//! What is fuzzed: functions of bytes that must never panic, hang, or let an archive come back different.
//! `tests/hostile.rs` runs them on every change of small inputs, `scripts/fuzz.sh` under libFuzzer.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU8;

use imgfs::base::digest::{Content, Digest};
use imgfs::error::Result;
use imgfs::formats::tar::{Entry, Limits, Reader, Source};
use imgfs::ingest::{lay, place};
use imgfs::tree::recipe::{Cursor, Piece, Recipe};
use imgfs::tree::{Builder, NodeKind, ROOT, Tree};

struct Slice<'d>(&'d [u8]);

impl Source for Slice<'_> {
    fn fill(&mut self) -> Result<&[u8]> {
        // In pieces, so that headers and content come cut.
        Ok(&self.0[..self.0.len().min(700)])
    }

    fn consume(&mut self, n: usize) {
        self.0 = &self.0[n..];
    }
}

/// Opens a tree as it is: its digest is that of its bytes.
fn open(path: &Path) -> Result<Tree> {
    Tree::open(path, &Digest::of(&fs::read(path).expect("it was just written")))
}

/// Limits small enough that a fuzzer meets them.
fn limits() -> Limits {
    Limits {
        tar_size: 1 << 30,
        entries: 5_000,
        depth: 100,
        header: 1 << 16,
        xattrs: 1 << 16,
        pieces: 1_000,
        ..Limits::default()
    }
}

fn scratch() -> PathBuf {
    let dir = ["/dev/shm", "/tmp"].into_iter().find(|d| std::path::Path::new(d).is_dir()).unwrap_or(".");
    let thread = format!("{:?}", std::thread::current().id());
    PathBuf::from(format!(
        "{dir}/imgfs-fuzz-{}-{}",
        std::process::id(),
        thread.replace(|c: char| !c.is_ascii_digit(), "")
    ))
}

/// Reads all entries: each goes to `put` with its content, whose bytes are kept. False if the archive is
/// refused.
fn read(
    reader: &mut Reader<Slice<'_>>,
    contents: &mut Vec<Vec<u8>>,
    mut put: impl FnMut(Entry, Option<Content>) -> Result<()>,
) -> bool {
    loop {
        let Ok(next) = reader.next_entry() else { return false };
        let Some(entry) = next else { return true };
        let mut content = None;
        if entry.packed > 0 {
            let mut bytes = Vec::new();
            let mut take = |piece: &[u8]| {
                bytes.extend_from_slice(piece);
                Ok(())
            };
            loop {
                match reader.read(&mut take) {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(_) => return false,
                }
            }
            assert_eq!(bytes.len() as u64, entry.packed);
            let fresh = Content::Fresh(contents.len() as u32);
            reader.content(fresh, entry.packed);
            contents.push(bytes);
            content = Some(fresh);
        }
        if put(entry, content).is_err() {
            return false;
        }
    }
}

fn blob(content: Content) -> Option<u32> {
    if let Content::Fresh(n) = content { Some(n + 1) } else { None }
}

/// Puts the parts of the input over each other as the layers of an image. What comes out is a whole tree,
/// whatever the whiteouts say.
pub fn layers(data: &[u8]) {
    let mut builder = Builder::new();
    let mut contents = Vec::new();
    for layer in data.split_inclusive(|b| *b == 0xfe).take(20) {
        let layer = repaired(layer);
        let Ok(mut reader) = Reader::new(Slice(&layer), limits(), Arc::new(AtomicU8::new(0))) else { return };
        builder.begin_layer();
        // A layer that is refused in the middle leaves what it has done: a tree must come of that, too.
        read(&mut reader, &mut contents, |entry, content| lay(&mut builder, entry, content));
        builder.end_layer();
    }
    let mut seen = 0;
    builder
        .visit(|_| {
            seen += 1;
            Ok(())
        })
        .expect("nothing is refused");
    let path = scratch();
    let (_, counts) =
        builder.finish(&path, None, Vec::new(), blob, |_| Vec::new()).expect("what was taken can be written");
    let tree = open(&path).expect("what was written can be opened");
    walk(&tree);
    let c = counts;
    assert_eq!(seen, c.files + c.directories + c.symlinks + c.hard_links + c.devices + c.fifos);
    let _ = std::fs::remove_file(path);
}

/// Reads an archive as an upload is read. One that is taken must come back from its recipe bit for bit, and
/// its tree must be whole.
pub fn archive(data: &[u8]) {
    let stage = Arc::new(AtomicU8::new(0));
    let Ok(mut reader) = Reader::new(Slice(data), limits(), stage) else { return };
    let (mut builder, mut contents) = (Builder::new(), Vec::<Vec<u8>>::new());
    if !read(&mut reader, &mut contents, |entry, content| place(&mut builder, entry, content)) {
        return;
    }
    let path = scratch();
    let (_, counts) = builder
        .finish(&path, Some(reader.into_recipe()), Vec::new(), blob, |_| Vec::new())
        .expect("what was taken can be written");
    let tree = open(&path).expect("what was written can be opened");
    let mut back = Vec::new();
    let recipe = tree.recipe(0).expect("its recipe is whole");
    let replay = |back: &mut Vec<u8>, from: u64, len: u64| {
        recipe.walk(&mut Cursor::default(), from, len, |piece, inline| {
            match piece {
                Piece::Blob { id, offset, len } => {
                    back.extend_from_slice(
                        &contents[id as usize - 1][offset as usize..(offset + len) as usize],
                    );
                }
                _ => back.extend_from_slice(inline),
            }
            Ok(())
        })
    };
    replay(&mut back, 0, u64::MAX).expect("the recipe can be walked");
    assert!(back == data, "the tar comes back different");
    let (from, len) = (data.len() as u64 / 3, data.len() as u64 / 2);
    back.clear();
    replay(&mut back, from, len).expect("the recipe can be walked from the middle");
    assert!(back == data[from as usize..(from + len) as usize], "a part of the tar comes back different");
    walk(&tree);
    assert_eq!(counts.directories as usize, (0..tree.len()).filter(|n| is_directory(&tree, *n)).count());
    let _ = std::fs::remove_file(path);
}

fn is_directory(tree: &Tree, index: u32) -> bool {
    matches!(tree.node(index).map(|n| n.kind), Ok(NodeKind::Directory { .. }))
}

/// An archive after its checksums were put right, so that a fuzzer's changes get past them.
pub fn repaired(data: &[u8]) -> Vec<u8> {
    let mut data = data.to_vec();
    for block in data.chunks_exact_mut(512).filter(|b| b[257..262] == *b"ustar" || b[156] != 0) {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    data
}

/// Looks at everything in a tree, as readers of the mount do: errors are fine, panics and hangs are not.
fn walk(tree: &Tree) {
    for index in 0..tree.len().min(2_000) {
        let Ok(node) = tree.node(index) else { continue };
        tree.xattrs(&node).take(100).for_each(drop);
        let _ = tree.sparse_map(&node);
        if node.kind == NodeKind::Symlink {
            let _ = tree.symlink(&node);
        }
        for n in 0..200 {
            let Ok(Some((name, _))) = tree.entry(&node, n) else { break };
            let _ = tree.lookup(&node, name);
        }
    }
    let _ = (
        tree.find("a/b/../c"),
        tree.find("etc/os-release"),
        tree.node(ROOT),
        tree.blobs().count(),
        tree.facts().len(),
    );
}

/// Opens a tree file of any bytes.
pub fn tree(data: &[u8]) {
    let path = scratch();
    if std::fs::write(&path, data).is_err() {
        return;
    }
    if let Ok(tree) = open(&path) {
        walk(&tree);
        for number in 0..=tree.more_recipes().min(8) {
            if let Ok(found) = tree.recipe(number) {
                walk_recipe(&found, 0);
                let _ =
                    (found.data_size(), found.seek_data(7, true), found.seek_data(found.tar_size / 2, false));
            }
        }
        let _ = (tree.made_beside(), tree.beside());
    }
    let _ = std::fs::remove_file(path);
}

/// Reads a recipe of any bytes.
pub fn recipe(data: &[u8]) {
    let (seed, raw) = data.split_at(data.len().min(2));
    if let Ok(recipe) = Recipe::parse(raw) {
        walk_recipe(&recipe, seed.iter().map(|b| u64::from(*b)).sum());
    }
}

fn walk_recipe(recipe: &Recipe<'_>, seed: u64) {
    let mut cursor = Cursor::default();
    for from in [0, seed * 97, recipe.tar_size / 2, recipe.tar_size.saturating_sub(10), 0] {
        let mut bytes = 0u64;
        let _ = recipe.walk(&mut cursor, from, 1 << 20, |piece, inline| {
            bytes += match piece {
                Piece::Blob { len, .. } | Piece::Hole { len } | Piece::Recipe { len, .. } => len,
                Piece::Inline => inline.len() as u64,
            };
            Ok(())
        });
        assert!(bytes <= 1 << 20, "more than was asked for");
    }
}
