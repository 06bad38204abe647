//! Trees and recipes: what was built comes back, and damage is noticed.

use proptest::prelude::*;

use super::recipe::{Cursor, Piece, RecipeBuilder};
use super::*;
use crate::base::digest::Content;

fn meta() -> Meta {
    Meta { mode: 0o644, uid: 5, gid: 6, mtime: (-3, 999_999_999), xattrs: Vec::new() }
}

fn file() -> Make<'static> {
    Make::File { content: None, size: 0, sparse: None }
}

fn finish(builder: Builder, recipe: RecipeBuilder) -> (tempfile::TempDir, Tree) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t");
    let (digest, _) =
        builder.finish(&path, Some(recipe), Vec::new(), |_| Some(7), |_| b"{}\n".to_vec()).unwrap();
    let tree = Tree::open(&path, &digest).unwrap();
    (dir, tree)
}

fn paths(tree: &Tree) -> Vec<String> {
    let mut out = Vec::new();
    let mut todo = vec![(String::new(), ROOT)];
    while let Some((path, node)) = todo.pop() {
        let directory = tree.node(node).unwrap();
        if !matches!(directory.kind, NodeKind::Directory { .. }) {
            continue;
        }
        let mut n = 0;
        while let Some((name, child)) = tree.entry(&directory, n).unwrap() {
            let path = format!("{path}/{}", String::from_utf8_lossy(name));
            out.push(path.clone());
            todo.push((path, child));
            n += 1;
        }
    }
    out.sort();
    out
}

#[test]
fn a_tree_comes_back_as_it_was_built() {
    let mut b = Builder::new();
    let xattrs = vec![(b"user.a".to_vec(), b"1".to_vec()), (b"user.b".to_vec(), vec![0, 255])];
    b.add(b"./", &Meta { mode: 0o700, ..meta() }, Make::Directory).unwrap();
    b.add(b"usr/bin/sh", &Meta { mode: 0o4755, xattrs: xattrs.clone(), ..meta() }, file()).unwrap();
    b.add(b"bin", &meta(), Make::Symlink(b"usr/bin")).unwrap();
    b.add(b"/bin/ls", &meta(), file()).unwrap();
    b.link(b"usr/bin/bash", b"bin/sh", &meta()).unwrap();
    b.add(b"dev/null", &meta(), Make::CharDevice { major: 1, minor: 3 }).unwrap();
    b.add(b"dev/sda", &meta(), Make::BlockDevice { major: 8, minor: 70000 }).unwrap();
    b.add(b"p", &meta(), Make::Fifo).unwrap();
    b.add(
        b"hole",
        &meta(),
        Make::File { content: None, size: 1 << 50, sparse: Some(&[(4096, 5), (1 << 49, 6)]) },
    )
    .unwrap();
    let (_dir, tree) = finish(b, RecipeBuilder::new().unwrap());
    assert_eq!(
        paths(&tree),
        [
            "/bin",
            "/dev",
            "/dev/null",
            "/dev/sda",
            "/hole",
            "/p",
            "/usr",
            "/usr/bin",
            "/usr/bin/bash",
            "/usr/bin/ls",
            "/usr/bin/sh"
        ]
    );
    assert_eq!(tree.node(ROOT).unwrap().mode, 0o700);
    assert_eq!(tree.node(ROOT).unwrap().links, 4);
    let sh = tree.node(tree.find("bin/sh").unwrap()).unwrap();
    assert_eq!((sh.mode, sh.uid, sh.gid, sh.links, sh.mtime), (0o4755, 5, 6, 2, (-3, 999_999_999)));
    let found: Vec<_> = tree.xattrs(&sh).map(|(n, v)| (n.to_vec(), v.to_vec())).collect();
    assert_eq!(found, xattrs);
    assert_eq!(tree.find("usr/bin/bash"), tree.find("usr/bin/sh"));
    assert_eq!(
        tree.node(tree.find("dev/sda").unwrap()).unwrap().kind,
        NodeKind::BlockDevice { major: 8, minor: 70000 }
    );
    let hole = tree.node(tree.find("hole").unwrap()).unwrap();
    assert_eq!((hole.size, tree.sparse_map(&hole).unwrap()), (1 << 50, vec![(4096, 5), (1 << 49, 6)]));
    let usr = tree.node(tree.find("usr").unwrap()).unwrap();
    assert_eq!((usr.mode, usr.uid, usr.mtime), (0o755, 0, (-3, 999_999_999)), "implied directories");
}

#[test]
fn the_last_entry_of_a_path_wins_as_tar_extracts() {
    let mut b = Builder::new();
    b.add(b"a", &meta(), file()).unwrap();
    b.link(b"b", b"a", &meta()).unwrap();
    b.add(b"a", &meta(), Make::Directory).unwrap();
    b.add(b"a", &meta(), Make::Symlink(b"x")).unwrap();
    b.add(b"d/x", &meta(), file()).unwrap();
    assert!(b.add(b"d", &meta(), file()).is_err(), "a full directory stays");
    b.add(b"d", &Meta { mode: 0o711, ..meta() }, Make::Directory).unwrap();
    let (_dir, tree) = finish(b, RecipeBuilder::new().unwrap());
    assert_eq!(paths(&tree), ["/a", "/b", "/d", "/d/x"]);
    assert_eq!(tree.node(tree.find("b").unwrap()).unwrap().links, 1);
    assert_eq!(tree.node(tree.find("d").unwrap()).unwrap().mode, 0o711);
    let a = tree.lookup(&tree.node(ROOT).unwrap(), b"a").unwrap().unwrap();
    assert_eq!(tree.symlink(&tree.node(a).unwrap()).unwrap(), b"x");
}

#[test]
fn nothing_leaves_the_root() {
    let mut b = Builder::new();
    b.add(b"abs", &meta(), Make::Symlink(b"/etc")).unwrap();
    b.add(b"up", &meta(), Make::Symlink(b"d/../..")).unwrap();
    b.add(b"loop", &meta(), Make::Symlink(b"loop")).unwrap();
    b.add(b"d/e", &meta(), file()).unwrap();
    b.add(b"inside", &meta(), Make::Symlink(b"d/../d")).unwrap();
    for (path, leaves) in [
        (&b"../x"[..], true),
        (b"a/../../x", true),
        (b"d/../x", true),
        (b"abs/x", true),
        (b"up/x", true),
        (b"loop/x", false),
        (b"d/e/x", false),
    ] {
        let refused = b.add(path, &meta(), file()).unwrap_err();
        assert_eq!(refused.leaves, leaves, "{}: {}", String::from_utf8_lossy(path), refused.why);
    }
    assert!(b.link(b"l", b"../x", &meta()).is_err());
    assert!(b.link(b"l", b"gone", &meta()).is_err());
    assert!(b.link(b"l", b"d", &meta()).is_err());
    b.add(b"inside/f", &meta(), file()).unwrap();
    b.add(b"/d//./g/", &meta(), Make::Directory).unwrap();
    let (_dir, tree) = finish(b, RecipeBuilder::new().unwrap());
    assert_eq!(paths(&tree), ["/abs", "/d", "/d/e", "/d/f", "/d/g", "/inside", "/loop", "/up"]);
}

#[test]
fn any_flipped_bit_of_a_tree_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t");
    let mut b = Builder::new();
    b.add(b"etc/motd", &meta(), file()).unwrap();
    let (digest, _) = b
        .finish(&path, Some(RecipeBuilder::new().unwrap()), Vec::new(), |_| Some(7), |_| b"{}\n".to_vec())
        .unwrap();
    let good = std::fs::read(&path).unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 4;
        std::fs::write(&path, &bad).unwrap();
        assert!(Tree::open(&path, &digest).is_err(), "byte {at}");
    }
    for len in 0..good.len() {
        std::fs::write(&path, &good[..len]).unwrap();
        assert!(Tree::open(&path, &digest).is_err(), "length {len}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever was recorded, any range read back is the same bytes.
    #[test]
    fn recipes_replay_any_range(pieces in prop::collection::vec((0usize..300_000, 0u64..200_000), 0..150), cuts in prop::collection::vec((0.0..1.0f64, 1u64..400_000), 1..20)) {
        let mut recipe = RecipeBuilder::new().unwrap();
        let mut expected: Vec<u8> = Vec::new();
        let blob_byte = |at: u64| (at % 249) as u8;
        for (i, (inline, blob)) in pieces.iter().enumerate() {
            let inline: Vec<u8> = (0..inline % 3000).map(|j| (i + j / 5) as u8).collect();
            recipe.inline(&inline).unwrap();
            expected.extend_from_slice(&inline);
            if *blob % 3 > 0 {
                recipe.content(if blob % 3 == 1 { Content::Known(5) } else { Content::Hole }, *blob);
                expected.extend((0..*blob).map(|at| if blob % 3 == 1 { blob_byte(at) } else { 0 }));
            }
        }
        prop_assert_eq!(recipe.tar_size(), expected.len() as u64);
        let raw = recipe.finish(&|_| Some(5)).unwrap();
        let recipe = recipe::Recipe::parse(&raw).unwrap();
        let mut cursor = Cursor::default();
        let total = expected.len() as u64;
        let mut ranges: Vec<(u64, u64)> = cuts.iter().map(|(at, len)| ((*at * total as f64) as u64, *len)).collect();
        ranges.extend((0..total.div_ceil(100_000)).map(|i| (i * 100_000, 100_000)));
        ranges.push((total, 10));
        for (offset, len) in ranges {
            let mut got = Vec::new();
            recipe.walk(&mut cursor, offset, len, |piece, bytes| {
                match piece {
                    Piece::Inline => got.extend_from_slice(bytes),
                    Piece::Blob { id, offset, len } => {
                        assert_eq!(id, 5);
                        got.extend((offset..offset + len).map(blob_byte));
                    }
                    Piece::Hole { len } => got.resize(got.len() + len as usize, 0),
                    Piece::Recipe { .. } => unreachable!("none was recorded"),
                }
                Ok(())
            }).unwrap();
            let end = total.min(offset + len);
            prop_assert!(got == expected[offset.min(end) as usize..end as usize], "range {} + {}", offset, len);
        }
    }
}
