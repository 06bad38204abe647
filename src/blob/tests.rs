//! Content is stored, moved and removed. What should stay must be the same after every step.

use std::sync::Arc;

use super::*;
use crate::base::digest::Content;
use crate::blob::OBJECT_MIN;
use crate::blob::writer::Writer;
use crate::error::Error;

fn store() -> (tempfile::TempDir, Arc<BlobStore>) {
    let dir = tempfile::tempdir().unwrap();
    crate::format::open(dir.path(), |_| Ok(())).unwrap();
    let store = Arc::new(BlobStore::open(dir.path(), &Default::default()).unwrap());
    (dir, store)
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut out);
    out
}

fn put(writer: &mut Writer, content: &[u8]) -> Content {
    if (content.len() as u64) < OBJECT_MIN {
        return writer.put(content).unwrap();
    }
    let mut large = writer.begin_large(content.len() as u64);
    for piece in content.chunks(100_000) {
        large.write(piece).unwrap();
    }
    large.finish().unwrap()
}

fn read_all(store: &BlobStore, id: BlobId) -> Vec<u8> {
    let size = store.record(id).unwrap().size;
    let mut buf = ReadBuf::default();
    let mut out = Vec::new();
    while (out.len() as u64) < size {
        out.extend_from_slice(store.read(id, out.len() as u64, 300_001, &mut buf).unwrap());
    }
    out
}

#[test]
fn content_comes_back_and_is_stored_once() {
    let (_dir, store) = store();
    let mut sparse = noise(9, 3_000_000);
    sparse[100_000..2_000_000].fill(0);
    let contents = [
        noise(1, 1),
        noise(2, 5000),
        noise(3, 65536),
        noise(4, 65537),
        noise(5, 900_000),
        noise(6, 1_500_000),
        sparse,
    ];
    let mut writer = store.writer("a").unwrap();
    let puts: Vec<_> = contents.iter().map(|c| put(&mut writer, c)).collect();
    for (content, first) in contents.iter().zip(&puts) {
        assert_eq!(put(&mut writer, content), *first, "twice in one upload");
    }
    let sealed = writer.seal().unwrap();
    let ids: Vec<_> = puts.iter().map(|p| sealed.id(*p).unwrap()).collect();
    drop(sealed);
    for (id, content) in ids.iter().zip(&contents) {
        assert_eq!(&read_all(&store, *id), content);
    }
    let hole = store.seek(ids[6], 0, false).unwrap();
    assert!((65536..=110_000).contains(&hole), "the hole begins at {hole}");
    assert!(store.seek(ids[6], hole, true).unwrap() >= 1_990_000);

    let mut again = store.writer("b").unwrap();
    for (id, content) in ids.iter().zip(&contents) {
        let p = put(&mut again, content);
        let mut changed = content.clone();
        *changed.last_mut().unwrap() ^= 1;
        let q = put(&mut again, &changed);
        assert_ne!(p, q);
        let _ = id;
    }
    let sealed = again.seal().unwrap();
    assert_eq!(sealed.new_bytes, contents.iter().map(|c| c.len() as u64).sum::<u64>());
}

#[test]
fn two_uploads_of_the_same_bytes_at_once_store_them_once() {
    let (_dir, store) = store();
    let (mut a, mut b) = (store.writer("a").unwrap(), store.writer("b").unwrap());
    let contents = [noise(1, 5000), noise(2, 2_000_000)];
    let pa: Vec<_> = contents.iter().map(|c| put(&mut a, c)).collect();
    let pb: Vec<_> = contents.iter().map(|c| put(&mut b, c)).collect();
    let (a, b) = (a.seal().unwrap(), b.seal().unwrap());
    assert_eq!(a.new_bytes, 2_005_000);
    assert_eq!(b.new_bytes, 0);
    for (x, y) in pa.iter().zip(&pb) {
        assert_eq!(a.id(*x), b.id(*y));
    }
}

#[test]
fn sweep_frees_what_is_not_live_and_moves_what_is() {
    let (dir, store) = store();
    let mut writer = store.writer("a").unwrap();
    let contents: Vec<_> = (0..200).map(|i| noise(i, 20_000)).chain([noise(500, 1_200_000)]).collect();
    let puts: Vec<_> = contents.iter().map(|c| put(&mut writer, c)).collect();
    let sealed = writer.seal().unwrap();
    let ids: Vec<_> = puts.iter().map(|p| sealed.id(*p).unwrap()).collect();
    // While the upload is under way, none of it is removed, whether it is in `live` or not.
    assert_eq!(store.sweep(store.begin_mark(), &IdSet::default()).unwrap(), Swept::default());
    drop(sealed);
    let mut live = IdSet::default();
    live.insert(ids[7]);
    live.insert(ids[200]);
    let before = store.stored_bytes().unwrap();
    let swept = store.sweep(store.begin_mark(), &live).unwrap();
    assert_eq!(swept, Swept { blobs: 199, bytes: 199 * 20_000 });
    assert!(store.stored_bytes().unwrap() < before / 3);
    assert_eq!(read_all(&store, ids[7]), contents[7]);
    assert_eq!(read_all(&store, ids[200]), contents[200]);
    assert!(store.record(ids[8]).is_err());
    assert_eq!(store.stray_containers().unwrap(), Vec::<String>::new());
    store.sweep(store.begin_mark(), &IdSet::default()).unwrap();
    assert_eq!(std::fs::read_dir(dir.path().join("loose")).unwrap().count(), 0);
}

#[test]
fn a_pin_taken_and_dropped_during_a_mark_still_counts() {
    let (_dir, store) = store();
    let mut writer = store.writer("a").unwrap();
    let p = writer.put(b"x").unwrap();
    let sealed = writer.seal().unwrap();
    let id = sealed.id(p).unwrap();
    drop(sealed);
    let token = store.begin_mark();
    // An upload finds the blob, publishes and ends, while the mark looks elsewhere.
    let mut late = store.writer("b").unwrap();
    assert_eq!(late.put(b"x").unwrap(), Content::Known(id));
    drop(late.seal().unwrap());
    assert_eq!(store.sweep(token, &IdSet::default()).unwrap().blobs, 0);
    assert_eq!(store.sweep(store.begin_mark(), &IdSet::default()).unwrap().blobs, 1);
}

fn ids_of(sealed: &Sealed, puts: &[Content]) -> Vec<BlobId> {
    puts.iter().map(|p| sealed.id(*p).unwrap()).collect()
}

fn store_all(store: &Arc<BlobStore>, name: &str, contents: &[Vec<u8>]) -> Vec<BlobId> {
    let mut writer = store.writer(name).unwrap();
    let puts: Vec<_> = contents.iter().map(|c| put(&mut writer, c)).collect();
    ids_of(&writer.seal().unwrap(), &puts)
}

fn pack(store: &Arc<BlobStore>, moves: &[Move]) {
    let _pins = store.pin();
    let shape = Shape { frame: 300_000, delta: 100_000, level: 1 };
    store.pack_all(moves, &shape, 2, &|_| true).unwrap();
    keep_all(store);
}

/// Sweeps with all blobs alive. What no record names is removed.
fn keep_all(store: &BlobStore) {
    let token = store.begin_mark();
    let mut live = IdSet::default();
    store.records().iter().for_each(|(id, _)| live.insert(*id));
    store.sweep(token, &live).unwrap();
}

/// Old contents, and newer ones that resemble them.
fn two_generations() -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let mut sparse = noise(9, 3_000_000);
    sparse[100_000..2_000_000].fill(0);
    let sizes = [1, 5000, 65536, 65537, 299_999, 300_000, 300_001, 900_000, 2_500_000];
    let old: Vec<Vec<u8>> =
        sizes.iter().map(|n| noise(*n as u64, *n)).chain([sparse, vec![0; 1_200_000]]).collect();
    let mut new = old.clone();
    for content in &mut new {
        let middle = content.len() / 2;
        content.splice(middle..middle, *b"changed");
    }
    (old, new)
}

#[test]
fn packed_content_is_the_same_and_smaller_and_may_come_out_again() {
    let (dir, store) = store();
    let (old, new) = two_generations();
    let (olds, news) = (store_all(&store, "a", &old), store_all(&store, "b", &new));
    let loose = store.stored_bytes().unwrap();
    let moves: Vec<Move> = olds.iter().map(|id| Move { id: *id, base: None }).collect();
    let deltas: Vec<Move> =
        news.iter().zip(&olds).map(|(id, base)| Move { id: *id, base: Some(*base) }).collect();
    pack(&store, &moves);
    let plain = store.stored_bytes().unwrap();
    pack(&store, &deltas);
    let packed = store.stored_bytes().unwrap();
    assert!(packed < plain && plain < loose, "{packed} {plain} {loose}");
    assert!(std::fs::read_dir(dir.path().join("loose")).unwrap().next().is_none(), "nothing is loose");
    assert_eq!(store.broken_bases().unwrap(), Vec::<String>::new());
    let check = |store: &BlobStore| {
        for (id, content) in olds.iter().zip(&old).chain(news.iter().zip(&new)) {
            assert!(read_all(store, *id) == *content, "blob {id}");
            store.verify(*id, &mut ReadBuf::default()).unwrap();
        }
    };
    check(&store);
    let hole = store.seek(olds[9], 0, false).unwrap();
    assert!((100_000..1_900_000).contains(&hole), "the hole begins at {hole}");
    assert_eq!(store.seek(olds[10], 0, true).unwrap(), 1_200_000, "all of it is one");
    // After it is opened again, the store still knows the content.
    drop(store);
    let store = Arc::new(BlobStore::open(dir.path(), &Default::default()).unwrap());
    check(&store);
    assert_eq!(store_all(&store, "c", &new), news);
    let all: Vec<BlobId> = olds.iter().chain(&news).copied().collect();
    store.loosen(&all, &|_| true).unwrap();
    keep_all(&store);
    assert!(std::fs::read_dir(dir.path().join("packs")).unwrap().next().is_none(), "nothing is packed");
    check(&store);
}

#[test]
fn what_a_frame_needs_outlives_its_own_version() {
    let (dir, store) = store();
    let (old, new) = two_generations();
    let (olds, news) = (store_all(&store, "a", &old), store_all(&store, "b", &new));
    pack(&store, &olds.iter().map(|id| Move { id: *id, base: None }).collect::<Vec<_>>());
    pack(
        &store,
        &news.iter().zip(&olds).map(|(id, base)| Move { id: *id, base: Some(*base) }).collect::<Vec<_>>(),
    );
    let mut live = IdSet::default();
    news.iter().for_each(|id| live.insert(*id));
    store.sweep(store.begin_mark(), &live).unwrap();
    for (id, content) in news.iter().zip(&new) {
        assert!(read_all(&store, *id) == *content, "blob {id}");
    }
    // When these are removed too, nothing is left.
    store.sweep(store.begin_mark(), &IdSet::default()).unwrap();
    store.sweep(store.begin_mark(), &IdSet::default()).unwrap();
    assert!(std::fs::read_dir(dir.path().join("packs")).unwrap().next().is_none());
}

#[test]
fn a_frame_that_is_mostly_dead_is_packed_anew() {
    let (_dir, store) = store();
    let contents: Vec<_> = (0..100).map(|i| noise(i, 20_000)).collect();
    let ids = store_all(&store, "a", &contents);
    pack(&store, &ids.iter().map(|id| Move { id: *id, base: None }).collect::<Vec<_>>());
    let before = store.stored_bytes().unwrap();
    assert!(store.thinly_packed().unwrap().is_empty());
    let mut live = IdSet::default();
    // All blobs of one frame stay, and every tenth of the others.
    let kept: Vec<usize> = (0..100).filter(|i| *i < 15 || i % 10 == 0).collect();
    kept.iter().for_each(|i| live.insert(ids[*i]));
    store.sweep(store.begin_mark(), &live).unwrap();
    let thin = store.thinly_packed().unwrap();
    let again: Vec<Move> =
        kept.iter().filter(|i| thin.contains(&ids[**i])).map(|i| Move { id: ids[*i], base: None }).collect();
    assert!(!again.is_empty() && again.len() < 15, "{}", again.len());
    pack(&store, &again);
    assert!(store.stored_bytes().unwrap() < before / 3);
    for i in kept {
        assert!(read_all(&store, ids[i]) == contents[i], "blob {}", ids[i]);
    }
}

/// The bases of a frame may lie in more frames than the cache keeps. They drove the frame out while it
/// was unpacked. It was then unpacked again for each of its blobs, and they for it (44 s instead of 5
/// for a `cat` of 162 MiB).
#[test]
fn a_frame_is_kept_although_its_bases_are_not() {
    let (dir, store) = store();
    const FRAME: usize = 34 << 20;
    let line = |n: usize| format!("{n:015}\n").into_bytes();
    let large = |from: usize| (from..from + FRAME / 16).flat_map(line).collect::<Vec<u8>>();
    let old = [noise(1, 20_000), large(0), noise(2, 20_000), large(1 << 30)];
    let new = [noise(1, 20_001), noise(2, 20_001)];
    let (olds, news) = (store_all(&store, "a", &old), store_all(&store, "b", &new));
    let shape = Shape { frame: FRAME, delta: 1 << 20, level: 1 };
    let plain: Vec<Move> = olds.iter().map(|id| Move { id: *id, base: None }).collect();
    let deltas = [Move { id: news[0], base: Some(olds[0]) }, Move { id: news[1], base: Some(olds[2]) }];
    let _pins = store.pin();
    for moves in [&plain[..], &deltas] {
        store.pack_all(moves, &shape, 2, &|_| true).unwrap();
    }
    assert!(read_all(&store, news[0]) == new[0]);
    // What is read now must not come from the disk.
    for pack in std::fs::read_dir(dir.path().join("packs")).unwrap() {
        let file = std::fs::File::options().write(true).open(pack.unwrap().path()).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[0; 4096], 64).unwrap();
    }
    assert!(read_all(&store, news[1]) == new[1]);
    assert!(store.verify(olds[0], &mut ReadBuf::default()).is_err(), "what is not kept is read");
}

#[test]
fn damage_in_a_pack_is_an_error_never_other_bytes() {
    let (dir, store) = store();
    let (old, new) = two_generations();
    let (olds, news) = (store_all(&store, "a", &old), store_all(&store, "b", &new));
    pack(&store, &olds.iter().map(|id| Move { id: *id, base: None }).collect::<Vec<_>>());
    pack(
        &store,
        &news.iter().zip(&olds).map(|(id, base)| Move { id: *id, base: Some(*base) }).collect::<Vec<_>>(),
    );
    drop(store);
    let packs: Vec<_> =
        std::fs::read_dir(dir.path().join("packs")).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(packs.len(), 2);
    for path in packs {
        let good = std::fs::read(&path).unwrap();
        for n in 0..60 {
            let mut bad = good.clone();
            // Bits are flipped everywhere, and more densely in the tables at the end.
            let at = if n % 2 == 0 { good.len() * n / 60 } else { good.len() - 1 - n * 19 };
            bad[at] ^= 1 << (n % 8);
            std::fs::write(&path, &bad).unwrap();
            let store = BlobStore::open(dir.path(), &Default::default()).unwrap();
            for (id, content) in olds.iter().zip(&old).chain(news.iter().zip(&new)) {
                let mut buf = ReadBuf::default();
                for at in (0..content.len()).step_by(400_000) {
                    match store.read(*id, at as u64, 400_000, &mut buf) {
                        Ok(bytes) => assert!(content[at..].starts_with(bytes), "byte {at} of blob {id}"),
                        Err(Error::Corrupt { .. }) => break,
                        Err(e) => panic!("{e}"),
                    }
                }
            }
        }
        std::fs::write(&path, &good).unwrap();
    }
}
