//! Any gestures, in the whole store and in two views of it: what a view shows and changes is its own, and no
//! more.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use imgfs::base::clock::now;
use imgfs::base::digest::Digest;
use imgfs::base::name::{ImageName, bound_name, new_id};
use imgfs::catalog::{Follows, LeaseFacts, Model, Row, Trashed, Version, VersionFacts};
use imgfs::images::links;
use imgfs::images::targets::LinkTarget;
use imgfs::images::trash;
use imgfs::images::{labels, leases, versions, views};
use imgfs::store::Store;
use imgfs::store::settings::Settings;
use proptest::prelude::*;

const VIEWS: [&str; 2] = ["dc1", "dc2"];

/// A gesture: where it is made (0: the whole store), which, on what.
type Gesture = (usize, u8, usize, usize);

fn pick<T: Clone>(all: &[T], n: usize) -> Option<T> {
    all.get(n % all.len().max(1)).cloned()
}

/// Images and versions of the whole store, seen or not: who attacks knows the numbers of all.
fn images(whole: &Model) -> Vec<u32> {
    whole.images.keys().copied().collect()
}

/// Makes a gesture through a store or a view of it; what it is refused is not looked at.
fn make(store: &Store, whole: &Store, (_, which, a, b): Gesture) {
    let (image, version, other) = {
        let model = whole.catalog.read();
        let versions: Vec<Version> = model.versions.values().cloned().collect();
        (pick(&images(&model), a), pick(&versions, a), pick(&images(&model), b))
    };
    let name = |n: usize| {
        ImageName::parse(["web", "db", "lts", "dc1::web", "dc2::db", "dc1::lts"][n % 6].as_bytes()).unwrap()
    };
    let any = || versions::make_image(store, &name(a), 7, 7, 0o755);
    let image = image.unwrap_or_else(|| any().unwrap_or(0));
    let target = LinkTarget { image: other.unwrap_or(0), number: None, follows: Follows::Image };
    let number = version.as_ref().map_or(0, |v| v.number);
    let _ = match which {
        0 => any().map(drop),
        1 => store.catalog.commit(|txn| {
            let Some(mut of) = txn.model.live_image(image).cloned() else { return Ok(()) };
            let (serial, number) = (txn.serial(), of.next_number);
            of.next_number += 1;
            txn.put(Row::Image(of.into()));
            let facts = VersionFacts { uid: 7, ..VersionFacts::default() };
            txn.put(Row::Version(Box::new(Version {
                serial,
                image,
                number,
                id: new_id()?,
                tree: Digest::of(b""),
                facts,
                receipt: None,
                created_at: now(),
                trashed_at: None,
                trash_name: None,
            })));
            Ok(())
        }),
        2 => versions::delete_version(store, image, number).map(drop),
        3 => versions::delete_image(store, image),
        4 => versions::rename_image(store, image, &name(b)),
        5 => links::set_default(store, target),
        6 => links::put_alias(store, &name(a), target),
        7 => labels::put(store, image, ["1.0", "2.0"][b % 2], number, b % 3 == 0),
        8 => leases::add(
            store,
            version.map_or(0, |v| v.serial),
            ["app", "dc1::app", "dc2::x"][b % 3].as_bytes(),
            LeaseFacts::default(),
        )
        .map(drop),
        9 => {
            let lease = pick(&whole.catalog.read().leases.keys().copied().collect::<Vec<_>>(), a);
            leases::end(store, lease.unwrap_or(0))
        }
        10 => trash::restore_image(store, image, &name(b)),
        11 => trash::restore_version(
            store,
            version.as_ref().map_or(0, |v| v.serial),
            version.map_or(0, |v| v.image),
        )
        .map(drop),
        12 => trash::purge(
            store,
            if b % 2 == 0 {
                Trashed::Image(image)
            } else {
                Trashed::Version(version.map_or(0, |v| v.serial))
            },
        ),
        13 => links::pin(store, image, Some(number)),
        14 => versions::set_owner(store, image, Some(0o700 + (b as u32 % 64)), None, None),
        15 => {
            let alias = pick(&whole.catalog.read().aliases.keys().copied().collect::<Vec<_>>(), a);
            if b % 2 == 0 {
                links::drop_alias(store, alias.unwrap_or(0))
            } else {
                links::rename_alias(store, alias.unwrap_or(0), Some(&name(b)))
            }
        }
        16 => links::set_type_default(store, "container", other),
        17 => links::hide_default(store),
        18 => labels::drop_label(store, image, ["1.0", "2.0"][b % 2]),
        22 => {
            let trash: Vec<Trashed> = store.catalog.read().trash().map(|(.., what)| what).collect();
            match pick(&trash, a) {
                Some(Trashed::Alias(alias)) => trash::restore_alias(store, alias, &name(b)),
                Some(Trashed::Label(label)) => trash::restore_label(store, label),
                Some(Trashed::Default) => trash::restore_default(store, None),
                Some(Trashed::ImageDefault(image)) => trash::restore_default(store, Some(image)),
                _ => links::hide_image_default(store, image),
            }
        }
        // Only who administers the store does these.
        19 | 20 => {
            let shown = whole.catalog.read().images.get(&image).map(|i| i.name.clone()).unwrap_or_default();
            views::attach(whole, VIEWS[b % 2], &shown, image)
        }
        _ => views::detach(whole, VIEWS[b % 2], name(a).as_str()),
    };
}

/// What a model says, row by row.
fn rows(model: &Model) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let mut add = |kind: &str, serial: u32, row: String| drop(all.insert(format!("{kind} {serial}"), row));
    model.images.values().for_each(|i| add("image", i.serial, format!("{i:?}")));
    model.versions.values().for_each(|v| add("version", v.serial, format!("{v:?}")));
    model.aliases.values().for_each(|a| add("alias", a.serial, format!("{a:?}")));
    model.labels.values().for_each(|l| add("label", l.serial, format!("{l:?}")));
    model.leases.values().for_each(|l| add("lease", l.serial, format!("{l:?}")));
    add("default", 0, format!("{:?} {}", model.default_image, model.default_hidden));
    add("root", 0, format!("{:?}", model.root));
    all.extend(model.settings.iter().map(|(key, value)| (key.clone(), value.clone())));
    all
}

/// The rows that a view may change: of what is bound to it, leases by its name, its own.
fn is_own(model: &Model, view: &str, row: &str) -> bool {
    let (kind, serial) = row.split_once(' ').unwrap_or((row, ""));
    let serial: u32 = serial.parse().unwrap_or(0);
    let bound = |image: u32| {
        model.images.get(&image).is_some_and(|i| model.bound(&i.name).is_some_and(|(of, _)| of == view))
    };
    let prefix = bound_name(view, "");
    match kind {
        "image" => bound(serial),
        "version" => model.versions.get(&serial).is_some_and(|v| bound(v.image)),
        "label" => model.labels.get(&serial).is_some_and(|l| bound(l.image)),
        // Those of others go with what is bound to it.
        "alias" => model.aliases.get(&serial).is_some_and(|a| a.name.starts_with(&prefix) || bound(a.image)),
        "lease" => model.leases.get(&serial).is_some_and(|l| {
            l.name.starts_with(&prefix) || model.versions.get(&l.version).is_some_and(|v| bound(v.image))
        }),
        // It goes with the last image.
        "default" => model.default_image.is_none_or(bound),
        _ => row == format!("view.{view}"),
    }
}

/// What a view shows is consistent, and all of it is bound or attached to it.
fn check_shown(whole: &Model, seen: &Model, view: &str) {
    let of = whole.views.get(view).unwrap();
    for image in seen.images.values() {
        let own = whole.images[&image.serial].name == bound_name(view, &image.name);
        let attached = of.attached.contains(&image.serial) && image.name == whole.images[&image.serial].name;
        assert!(own != seen.attached.contains(&image.serial) && (own || attached), "{image:?} in {view}");
        assert!(own || image.trashed_at.is_none(), "{image:?}");
    }
    let serials: BTreeSet<u32> = seen.images.keys().copied().collect();
    assert!(seen.versions.values().all(|v| serials.contains(&v.image)));
    assert!(
        seen.aliases.values().all(|a| serials.contains(&a.image) && whole.aliases[&a.serial].name == bound_name(view, &a.name))
    );
    assert!(seen.labels.values().all(|l| serials.contains(&l.image)));
    assert!(seen.leases.values().all(|l| seen.versions.contains_key(&l.version)));
    assert!(seen.default_image.is_none_or(|image| seen.live_image(image).is_some()));
    // Each name leads to one thing, and each live image has its own.
    for image in seen.live_images() {
        assert_eq!(seen.image_named(&image.name).map(|i| i.serial), Some(image.serial), "{}", image.name);
    }
    // Two entries of the trash of one name would be one of them lost.
    let trash: Vec<String> = seen.trash().map(|(name, ..)| name).collect();
    assert_eq!(trash.len(), trash.iter().collect::<BTreeSet<_>>().len(), "{trash:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 2000, ..ProptestConfig::default() })]
    #[test]
    fn a_view_shows_and_changes_its_own(gestures in prop::collection::vec((0..3usize, 0..23u8, 0..12usize, 0..12usize), 1..60)) {
        let dir = tempfile::tempdir().unwrap();
        let whole = Store::open(dir.path(), Settings::default()).unwrap();
        let seen: Vec<Arc<Store>> = VIEWS.iter().map(|view| { views::make(&whole, view.as_bytes()).unwrap(); whole.through(view) }).collect();
        for gesture in gestures {
            let before = rows(&whole.catalog.read());
            let (old, own): (Vec<String>, _) = {
                let model = whole.catalog.read();
                let view = gesture.0.checked_sub(1).map(|n| VIEWS[n]).filter(|_| gesture.1 < 19);
                let keys: Vec<String> = before.keys().cloned().collect();
                (keys.iter().filter(|row| view.is_none_or(|view| is_own(&model, view, row))).cloned().collect(), view)
            };
            let through = gesture.0.checked_sub(1).map_or(&whole, |n| &seen[n]);
            make(through, &whole, gesture);
            let model = whole.catalog.read();
            let after = rows(&model);
            if let Some(view) = own {
                for (row, text) in &after {
                    let changed = before.get(row) != Some(text);
                    prop_assert!(!changed || is_own(&model, view, row), "{gesture:?} changed {row}: {:?} to {text}", before.get(row));
                }
                for row in before.keys().filter(|row| !after.contains_key(*row)) {
                    prop_assert!(old.contains(row), "{gesture:?} dropped {row}: {}", before[row]);
                }
                for (row, text) in &before {
                    prop_assert!(old.contains(row) || after.get(row) == Some(text), "{gesture:?} changed {row}: {text} to {:?}", after.get(row));
                }
            }
            drop(model);
            for (n, view) in VIEWS.iter().enumerate() {
                let shown = seen[n].catalog.read();
                check_shown(&whole.catalog.read(), &shown, view);
            }
        }
        // As a restart finds it.
        let (all, first) = (rows(&whole.catalog.read()), rows(&seen[0].catalog.read()));
        drop((whole, seen));
        let whole = Store::open(dir.path(), Settings::default()).unwrap();
        prop_assert_eq!(all, rows(&whole.catalog.read()));
        prop_assert_eq!(first, rows(&whole.through(VIEWS[0]).catalog.read()));
    }
}
