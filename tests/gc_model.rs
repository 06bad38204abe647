//! gc's rules as a model: uploads, deletions and a gc at once, in every order of their steps. The pins are
//! the real ones, of src/blob/pins.rs; table and rows are sets.

use std::collections::BTreeSet;
use std::sync::Arc;

use imgfs::base::digest::BlobId;
use imgfs::blob::IdSet;
use pins::AllPins;

#[path = "../src/blob/pins.rs"]
#[allow(dead_code, reason = "the model has no index to forget")]
mod pins;

/// The pins' lock, scheduled by the model.
#[derive(Default)]
struct Mutex<T>(shuttle::sync::Mutex<T>);

impl<T> Mutex<T> {
    fn lock(&self) -> shuttle::sync::MutexGuard<'_, T> {
        self.0.lock().unwrap()
    }
}

/// A store: which blobs have records, which versions have rows and name which blob.
#[derive(Default)]
struct Store {
    table: Mutex<BTreeSet<BlobId>>,
    next: Mutex<BlobId>,
    rows: Mutex<Vec<BlobId>>,
    pins: Arc<AllPins>,
}

/// A rule that can be left out, to see that the model notices.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Without {
    Nothing,
    /// Uploads do not pin.
    Pins,
    /// What is pinned is forgotten when an upload ends, though a mark may not have seen its row.
    Retired,
    /// What was given out since the mark began may be swept.
    Bound,
    /// The row is written after the pins are gone.
    Order,
}

impl Store {
    fn with(blobs: &[BlobId]) -> Arc<Store> {
        let store = Store::default();
        store.table.lock().extend(blobs);
        *store.next.lock() = 10;
        Arc::new(store)
    }

    /// As blob/writer.rs and ingest/publish.rs: known content is pinned under the table's lock, new content
    /// gets a record and is pinned, the row comes, and then the pins go.
    fn upload(&self, content: Option<BlobId>, without: Without) {
        let pins = self.pins.pin();
        let known = {
            let table = self.table.lock();
            let known = content.filter(|id| table.contains(id));
            if without != Without::Pins {
                pins.add(known);
            }
            known
        };
        let id = known.unwrap_or_else(|| {
            let mut table = self.table.lock();
            let mut next = self.next.lock();
            *next += 1;
            table.insert(*next);
            if !matches!(without, Without::Pins | Without::Bound) {
                pins.add([*next]);
            }
            *next
        });
        if without == Without::Order {
            drop(pins);
            self.rows.lock().push(id);
        } else {
            self.rows.lock().push(id);
        }
    }

    /// As gc.rs and blob/sweep.rs.
    fn gc(&self, without: Without) {
        if without != Without::Retired {
            self.pins.begin_mark();
        }
        let bound = if without == Without::Bound { BlobId::MAX } else { *self.next.lock() + 1 };
        let live: BTreeSet<BlobId> = self.rows.lock().iter().copied().collect();
        {
            let mut table = self.table.lock();
            let kept = self.pins.kept();
            table.retain(|id| *id >= bound || live.contains(id) || kept.contains(*id));
        }
        self.pins.end_mark();
    }

    fn delete(&self, id: BlobId) {
        self.rows.lock().retain(|row| *row != id);
    }

    /// Invariant 2: what a version names is there.
    fn is_whole(&self) -> bool {
        let table = self.table.lock();
        self.rows.lock().iter().all(|id| table.contains(id))
    }
}

/// An upload of content that is there, one of new content, a deletion of a version that shares, and two gcs.
fn model(without: Without) {
    let store = Store::with(&[1, 2]);
    store.rows.lock().push(1);
    let work = |work: Box<dyn FnOnce(&Store) + Send>| {
        let store = store.clone();
        shuttle::thread::spawn(move || work(&store))
    };
    let all = [
        work(Box::new(move |store| store.upload(Some(1), without))),
        work(Box::new(move |store| store.upload(None, without))),
        work(Box::new(|store| store.delete(1))),
        work(Box::new(move |store| {
            store.gc(without);
            store.gc(without);
        })),
    ];
    all.into_iter().for_each(|thread| thread.join().unwrap());
    assert!(store.is_whole(), "a version names what is gone");
    // What nothing names goes in the end.
    store.gc(Without::Nothing);
    assert!(store.is_whole());
    assert!(!store.table.lock().contains(&2));
}

/// Orders that are tried; all there are is too many.
const ORDERS: usize = 50_000;

#[test]
fn gc_takes_nothing_that_is_needed_in_any_order() {
    let seed = std::env::var("IMGFS_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(7);
    println!("IMGFS_SEED={seed}");
    let scheduler = shuttle::scheduler::RandomScheduler::new_from_seed(seed, ORDERS);
    shuttle::Runner::new(scheduler, shuttle::Config::new()).run(|| model(Without::Nothing));
    shuttle::check_pct(|| model(Without::Nothing), ORDERS, 3);
}

#[test]
fn the_model_notices_each_rule_that_is_left_out() {
    for without in [Without::Pins, Without::Retired, Without::Bound, Without::Order] {
        let noticed = std::panic::catch_unwind(|| shuttle::check_random(move || model(without), ORDERS));
        assert!(noticed.is_err());
    }
}
