//! imgfs fsck: checks every numbered invariant of `format.rs`, and says what is wrong and what that
//! affects. With --repair, it restores what another copy in the store can give, and puts the rest
//! aside.

use std::collections::{HashMap, HashSet};
use std::fs::File;

use crate::base::digest::BlobId;
use crate::blob::{ReadBuf, Record};
use crate::care::gc;
use crate::catalog::{Image, Lease, Model, Row, Version};
use crate::error::{Error, Result};
use crate::images::{export, heal};
use crate::store::Store;
use crate::{fault, format};

/// One broken rule.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Finding {
    /// Number of the invariant in `format.rs`.
    pub invariant: u8,
    pub what: String,
}

/// Checks everything. `progress` gets the bytes done and the bytes in all, and returns whether anybody
/// still waits.
///
/// # Errors
///
/// Only errors that prevent the check itself. Damage is a finding.
pub fn check(store: &Store, mut progress: impl FnMut(u64, u64) -> bool) -> Result<Vec<Finding>> {
    // Garbage is removed first, such as damaged content that was just healed, because its damage does not
    // matter. If that fails, the check finds out why.
    let _ = gc::run_if_due(store);
    let mut found = Vec::new();
    let mut say = |invariant: u8, what: String| found.push(Finding { invariant, what });
    for line in store.catalog.check()? {
        say(9, line);
    }
    check_names(store, &mut say);
    if let Err(e) = format::check(&store.dir) {
        say(12, e.to_string());
    }
    let versions: Vec<_> = store.catalog.read().all_versions().cloned().collect();
    // An open container may have been removed from its directory.
    store.blobs.reopen();
    let mut records = store.blobs.records();
    // Records are sorted by their places, so that each frame is unpacked once.
    records.sort_unstable_by_key(|(_, record)| (record.container, record.offset));
    let total =
        records.iter().map(|(_, r)| r.size).sum::<u64>() + versions.iter().map(|v| v.facts.size).sum::<u64>();
    let mut done = 0;
    let mut goes_on = |bytes: u64| {
        done += bytes;
        if progress(done, total) { Ok(()) } else { Err(Error::Stopping) }
    };
    // Blobs come first, so that each damaged one is named once, with all that it affects.
    let damaged = damaged_blobs(store, &records, &mut goes_on)?;
    for (path, size) in store.blobs.overlong_objects() {
        say(3, format!("{} goes on behind the {size} bytes of its blob", path.display()));
    }
    for what in store.blobs.broken_bases()? {
        say(10, what);
    }
    let mut affected: HashMap<BlobId, Vec<String>> = HashMap::new();
    for version in &versions {
        check_version(store, version, &damaged, &mut affected, &mut say);
        goes_on(version.facts.size)?;
    }
    for (id, what) in damaged {
        let who = affected.remove(&id).unwrap_or_default();
        let who = if who.is_empty() { "no version".into() } else { who.join(", ") };
        say(3, format!("{what}; it affects {who}"));
    }
    // Beside a mount, an upload has a tree and content before it has a row.
    if store.journal.running_jobs() == 0 {
        for name in store.blobs.stray_containers()? {
            say(6, format!("{name}: no record refers to this file; gc will remove it"));
        }
    }
    found.sort_by(|a, b| (a.invariant, &a.what).cmp(&(b.invariant, &b.what)));
    Ok(found)
}

/// Reads every blob. Returns the damaged ones, with what is wrong.
fn damaged_blobs(
    store: &Store,
    records: &[(BlobId, Record)],
    goes_on: &mut impl FnMut(u64) -> Result<()>,
) -> Result<HashMap<BlobId, String>> {
    let mut damaged = HashMap::new();
    for id in store.blobs.damaged_records() {
        damaged.insert(id, format!("the record of blob {id} is damaged"));
    }
    let mut buf = ReadBuf::default();
    for (id, record) in records {
        // The blob was freed meanwhile, beside a mount, so its damage does not matter.
        if let Err(e) = store.blobs.verify(*id, &mut buf)
            && store.blobs.record(*id).is_ok()
        {
            damaged.insert(*id, e.to_string());
        }
        goes_on(record.size)?;
    }
    Ok(damaged)
}

/// Checks that a version's tree is whole, and that its tars and its upload come out as they were.
fn check_version(
    store: &Store,
    version: &Version,
    damaged: &HashMap<BlobId, String>,
    affected: &mut HashMap<BlobId, Vec<String>>,
    say: &mut impl FnMut(u8, String),
) {
    let name = place_of(store, version);
    let tree = match store.read_tree(version.serial) {
        Ok(tree) => tree,
        Err(_) if !store.catalog.read().versions.contains_key(&version.serial) => return,
        Err(e) => return say(5, format!("{name}: {e}")),
    };
    let mut whole = true;
    for id in tree.blobs() {
        let path = || tree.path_of_blob(id).unwrap_or_default();
        if damaged.contains_key(&id) {
            affected.entry(id).or_default().push(format!("{name}/{}", path()));
            whole = false;
        } else if store.blobs.record(id).is_err() {
            say(2, format!("{name}/{}: its content, blob {id}, is lost", path()));
            whole = false;
        }
    }
    match store.kept(version.serial) {
        Ok(kept) => {
            let wanted = &version.facts.upload_sha256;
            match export::sha256(store, &kept, crate::images::keep::RECIPE) {
                Ok(found) if found == *wanted => {}
                Ok(found) => say(
                    7,
                    format!("{name}: its kept upload has sha256 {found}, and the catalog says {wanted}"),
                ),
                Err(e) => say(7, format!("{name}: its kept upload: {e}")),
            }
        }
        Err(Error::NotFound { .. }) => {}
        Err(e) => say(5, format!("{name}: {e}")),
    }
    let tars = [
        (0, &version.facts.digest, tree.has_rootfs()),
        (1, &version.facts.image_digest, tree.more_recipes() > 0),
    ];
    for (recipe, digest, is_there) in tars {
        if whole
            && is_there
            && !digest.is_empty()
            && let Err(what) = replay(store, &tree, recipe, digest)
        {
            say(7, format!("{name}: {what}"));
        }
    }
}

/// The path of a version below the mount.
fn place_of(store: &Store, version: &Version) -> String {
    let model = store.catalog.read();
    let image = model.images.get(&version.image);
    match (&version.trash_name, image.and_then(|i| i.trash_name.as_ref())) {
        (Some(name), _) => format!(".imgfs/trash/{name}"),
        (None, Some(name)) => format!(".imgfs/trash/{name}/{}", version.number),
        (None, None) => store.path_of(&model, version.serial),
    }
}

/// The result of a repair.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Repaired {
    /// What was done, one sentence each.
    pub done: Vec<String>,
    /// What is still wrong.
    pub left: Vec<Finding>,
}

/// Checks everything, and repairs what can be repaired.
///
/// # Errors
///
/// Errors that prevent reading or writing. Damage that no copy heals stays.
pub fn repair(store: &Store, mut progress: impl FnMut(u64, u64) -> bool) -> Result<Repaired> {
    let found = check(store, &mut progress)?;
    if found.is_empty() {
        return Ok(Repaired::default());
    }
    let mut done = mend_names(store)?;
    fault::reached("repair.named");
    if found.iter().any(|f| matches!(f.invariant, 2 | 3)) {
        store.blobs.rebuild(0)?;
    }
    let again = store.blobs.find_again(&store.blobs.damaged())?;
    if again > 0 {
        done.push(format!("{again} blobs were found again in other copies"));
    }
    done.extend(
        heal::heal_from_twins(store)?
            .into_iter()
            .map(|name| format!("{name}: its tree is there again, from a copy")),
    );
    fault::reached("repair.healed");
    for (path, size) in store.blobs.overlong_objects() {
        let file = File::options().write(true).open(&path).map_err(Error::io("open", &path))?;
        file.set_len(size).and_then(|()| file.sync_all()).map_err(Error::io("cut", &path))?;
    }
    done.extend(put_aside(store)?);
    // Records are not freed while a tree cannot be read, because their content may belong to that tree.
    if let Ok(live) = store.live_blobs() {
        store.blobs.free_damaged_records(&live)?;
    }
    fault::reached("repair.aside");
    match gc::run(store) {
        Ok(swept) if swept.blobs > 0 => {
            done.push(format!("{} blobs that belong to nothing were removed", swept.blobs))
        }
        Ok(_) => {}
        Err(e) => done.push(format!("gc was not possible: {e}")),
    }
    let left = check(store, progress)?;
    found.iter().filter(|f| !left.contains(f)).for_each(|f| done.push(format!("no longer: {}", f.what)));
    Ok(Repaired { done, left })
}

/// Puts aside trees that cannot be read and that no copy heals, so that gc can go on. Also puts aside
/// damaged kept uploads; their versions go on without them.
fn put_aside(store: &Store) -> Result<Vec<String>> {
    let mut done = Vec::new();
    let versions: Vec<_> = store.catalog.read().all_versions().cloned().collect();
    for version in versions {
        let name = place_of(store, &version);
        let path = store.tree_path(&version.id);
        if store.tree(version.serial).is_err_and(|e| e.is_damage()) && !store.is_quarantined(&path) {
            store.quarantine(&path)?;
            done.push(format!(
                "{name}: its tree was put aside; a copy of the same upload into it brings it back"
            ));
        }
        if store.kept(version.serial).is_err_and(|e| e.is_damage()) {
            store.catalog.commit(|txn| {
                if let Some(version) = txn.model.versions.get(&version.serial) {
                    let mut version = version.clone();
                    version.facts.kept = None;
                    txn.put(Row::Version(version.into()));
                }
                Ok(())
            })?;
            store.forget_kept(version.serial);
            store.drop_tree(&store.kept_path(&version.id))?;
            done.push(format!("{name}: its upload is no longer kept as it came"));
        }
    }
    Ok(done)
}

/// Mends links that lead nowhere: the default goes to the image that was changed last, others are
/// removed.
fn mend_names(store: &Store) -> Result<Vec<String>> {
    store.catalog.commit(|txn| {
        let (model, mut done) = (txn.model, Vec::new());
        if model.default_image.is_some_and(|serial| model.live_image(serial).is_none()) {
            let newest = model.live_images().max_by_key(|image| image.updated_at);
            txn.put(Row::Default { image: newest.map(|image| image.serial), hidden: false });
            done.push(format!("default names {} now", newest.map_or("nothing", |image| &image.name)));
        }
        for image in model.live_images() {
            if image.pinned.is_some_and(|number| model.version(image.serial, number).is_none()) {
                txn.put(Row::Image(Image { pinned: None, ..image.clone() }.into()));
                done.push(format!("{}/default names the newest version now", image.name));
            }
        }
        for alias in model.aliases.values().filter(|alias| !model.images.contains_key(&alias.image)) {
            txn.put(Row::DropAlias(alias.serial));
            done.push(format!("the alias {} is gone", alias.name));
        }
        Ok(done)
    })
}

fn check_names(store: &Store, say: &mut impl FnMut(u8, String)) {
    let model = store.catalog.read();
    if let Some(serial) = model.default_image
        && model.live_image(serial).is_none()
    {
        say(8, "default names an image that is not there".into());
    }
    for image in model.live_images() {
        if let Some(number) = image.pinned
            && model.version(image.serial, number).is_none()
        {
            say(8, format!("{}/default names version {number}, which is not there", image.name));
        }
    }
    for version in model.all_versions() {
        match model.images.get(&version.image) {
            Some(image) if version.number < image.next_number && version.serial < model.next_serial => {}
            _ => say(
                4,
                format!(
                    "version {} of image {} has a number that was not given out",
                    version.number, version.image
                ),
            ),
        }
    }
    // This includes versions in the trash.
    let there: HashSet<(u32, u32)> = model.all_versions().map(|v| (v.image, v.number)).collect();
    for alias in model.aliases.values() {
        if !model.images.contains_key(&alias.image)
            || alias.number.is_some_and(|n| !there.contains(&(alias.image, n)))
        {
            say(8, format!("the alias {} leads nowhere", alias.name));
        }
    }
    for label in model.labels.values().filter(|l| !there.contains(&(l.image, l.number))) {
        say(8, format!("the label @{} leads nowhere", label.name));
    }
    for lease in lost_leases(&model) {
        say(8, format!("the lease {} is of no version", lease.name));
    }
}

fn lost_leases(model: &Model) -> impl Iterator<Item = &Lease> {
    model.leases.values().filter(|l| !model.versions.contains_key(&l.version))
}

/// Checks that a recipe makes what the catalog says.
fn replay(
    store: &Store,
    tree: &crate::tree::Tree,
    recipe: u32,
    digest: &str,
) -> std::result::Result<(), String> {
    let found = format!("sha256:{}", export::sha256(store, tree, recipe).map_err(|e| e.to_string())?);
    if found == digest {
        Ok(())
    } else {
        Err(format!("recipe {recipe} makes {found}, and the catalog says {digest}"))
    }
}
