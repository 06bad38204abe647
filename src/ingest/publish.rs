//! The end of an ingest: content, tree, row, name. Each is durable before the next (invariant 1).

use crate::base::clock::now;
use crate::base::digest::Digest;
use crate::base::name::{VersionTag, new_id, parse_tag};
use crate::blob::backend::Shelf;
use crate::blob::{Sealed, Writer};
use crate::catalog::{Kept, Model, Named, Row, Version, VersionFacts};
use crate::error::{Error, Result};
use crate::fault;
use crate::formats::metadata::editable_keys;
use crate::images::rules::refuse_immutable;
use crate::images::{heal, quota};
use crate::ingest::add_version::{add, came_with_the_same, refuse_other_architecture};
use crate::ingest::detect::detect;
use crate::ingest::target::{Published, Source, Target};
use crate::ingest::{Codec, Draft, Unpacked};
use crate::store::Store;
use crate::store::trees::key_of;
use crate::tree::recipe::RecipeBuilder;
use crate::tree::{Builder, Counts, Tree};

/// Bytes that publishing needs apart from the tree, generously: for lists, records and rows.
const ROOM: u64 = 4 << 20;

/// Makes an unpacked upload a version, unless the image's newest version is the same.
///
/// # Errors
///
/// `Taken` if the name belongs to an alias; `NotFound` if the image is gone; `Io`, `Catalog`. On an
/// error nothing is visible, and what was stored is swept.
pub fn publish(store: &Store, unpacked: Unpacked, source: &Source) -> Result<Published> {
    refuse_early(store, source.uid, &source.target, &source.tag)?;
    let same = newest_is_same(store, &unpacked, source);
    if let Some((published, version)) = &same
        && !heal::is_damaged(store, version.serial)
    {
        set_metadata(store, published.image, source)?;
        return Ok(published.clone());
    }
    let id = new_id()?;
    let made = make(store, unpacked, source, &id, same);
    let (path, kept_path) = (store.tree_path(&id), store.kept_path(&id));
    match made {
        Ok(published) => {
            fault::reached("publish.listed");
            if published.new {
                heal_others(store, &published);
            } else {
                // The version exists already: it was healed, or another upload of the same content was
                // faster.
                set_metadata(store, published.image, source)?;
                store.drop_tree(&path)?;
                if kept_path.exists() {
                    store.drop_tree(&kept_path)?;
                }
                store.has_garbage();
            }
            Ok(published)
        }
        Err(e) => {
            // No row names the tree, so it is a stray that the next start would sweep. The exception is a row
            // that could not be synced. The next start may find it, so the files stay.
            if store.writable.stopped().is_none() {
                for path in [&path, &kept_path] {
                    let _ = store.blobs.backend().delete(&key_of(path));
                }
                store.has_garbage();
            }
            Err(e)
        }
    }
}

/// Makes content, trees and row durable, in that order. `same` is the newest version if it has this
/// content, and is damaged.
fn make(
    store: &Store,
    unpacked: Unpacked,
    source: &Source,
    id: &str,
    same: Option<(Published, Version)>,
) -> Result<Published> {
    let Unpacked { draft, kept, codec, size, upload_sha256, upload_sha1, tar_sha256 } = unpacked;
    let Draft { writer, builder, tar, more, mut facts } = draft;
    let came = more.first().or(tar.as_ref()).map_or(0, RecipeBuilder::tar_size);
    // Nothing after this point asks for room itself.
    store.ensure_room(ROOM + builder.size_bound());
    fault::reached("publish.unpacked");
    // This is held until the row is written, because gc keeps the blobs that it names.
    let sealed = writer.seal()?;
    if sealed.healed {
        store.has_garbage();
    }
    fault::reached("publish.sealed");
    let kept = kept.map(|kept| keep_upload(store, kept, id)).transpose()?;
    facts.kept = kept.as_ref().map(|(_, tree)| Kept::Stored { tree: *tree, tried: false }).or(facts.kept);
    let digest = format!("sha256:{tar_sha256}");
    if !more.is_empty() {
        (facts.image_size, facts.image_digest) = (came, digest.clone());
    }
    if facts.digest.is_empty() {
        (facts.size, facts.digest) = (came, digest);
    }
    if facts.format == "lxd" && facts.fingerprint.is_empty() {
        facts.fingerprint.clone_from(&upload_sha256);
    }
    facts.upload_name.clone_from(&source.file_name);
    facts.compression = codec.map_or("none", Codec::name).into();
    (facts.upload_size, facts.upload_sha256, facts.upload_sha1, facts.uid) =
        (size, upload_sha256, upload_sha1, source.uid);
    let stored = |counts: &Counts| {
        facts.counts = *counts;
        serde_json::to_vec(&facts).expect("plain structs of text and numbers")
    };
    let path = store.tree_path(id);
    let (digest, _) = builder.finish(&path, tar, more, |content| sealed.id(content), stored)?;
    fault::reached("publish.written");
    store.blobs.backend().sync(Shelf::Trees)?;
    fault::reached("publish.named");
    let tree = Tree::open(&path, &digest)?;
    let system = detect(store, &tree);
    for (field, found) in [
        (&mut facts.os, system.os),
        (&mut facts.release, system.release),
        (&mut facts.architecture, system.architecture),
    ] {
        // What came with the image counts more than what lies in it.
        if field.is_empty() {
            *field = found;
        }
    }
    let published = match same {
        // The version was damaged, and its content is healed by now.
        Some((published, version)) => {
            heal::heal_trees(store, &version, &path, digest)?;
            published
        }
        None => commit_row(store, source, id, (&tree, digest), facts)?,
    };
    Ok(Published { new_bytes: sealed.new_bytes, ..published })
}

/// Makes the upload as it came durable too. Returns what pins its content, and the digest of its tree.
fn keep_upload(store: &Store, kept: (Writer, RecipeBuilder), id: &str) -> Result<(Sealed, Digest)> {
    let (writer, recipe) = kept;
    let sealed = writer.seal()?;
    let path = store.kept_path(id);
    let (tree, _) = Builder::new().finish(&path, None, vec![recipe], |c| sealed.id(c), |_| Vec::new())?;
    Ok((sealed, tree))
}

/// Writes the row, if the quota permits it.
fn commit_row(
    store: &Store,
    source: &Source,
    id: &str,
    made: (&Tree, Digest),
    facts: VersionFacts,
) -> Result<Published> {
    let (tree, digest) = made;
    let payers = source.target.payers(store, source.uid);
    let kept = match &facts.kept {
        Some(Kept::Stored { tree, .. }) => Some(Tree::open(&store.kept_path(id), tree)?),
        _ => None,
    };
    let trees: Vec<&Tree> = [tree].into_iter().chain(&kept).collect();
    let _held = store.quota.lock();
    quota::refuse_bytes(store, &payers, &trees)?;
    add(store, source, id.to_owned(), digest, facts)
}

/// Refuses an upload by this user early, if the commit would refuse it.
///
/// # Errors
///
/// `Immutable`, `Attached`, `Taken`, `OverQuota`.
pub fn refuse_early(store: &Store, uid: u32, target: &Target, tag: &VersionTag) -> Result<()> {
    let payers = target.payers(store, uid);
    quota::refuse_bytes(store, &payers, &[])?;
    let model = store.catalog.read();
    if let Target::Named(name) = target
        && let Some(Named::Alias(_)) = model.named(name.as_str())
    {
        return Err(Error::Taken { name: name.to_string(), holder: "it is an alias".into() });
    }
    let Some(image) = target.image(&model) else {
        drop(model);
        return quota::refuse_image(store, &store.whole().catalog.read(), &payers);
    };
    model.refuse_attached(image)?;
    refuse_immutable(image)?;
    refuse_other_architecture(image, tag)
}

/// The image that a file goes to, and what else its name says. `stem` is the name without its suffix:
/// `web`, or, if no image has that whole name, `web_1.7_amd64`.
pub fn named<'n>(model: &Model, stem: &'n str) -> (&'n str, VersionTag) {
    match parse_tag(stem) {
        Some(found) if model.named(stem).is_none() => found,
        _ => (stem, VersionTag::default()),
    }
}

/// The newest version, if it is the same as what was unpacked.
fn newest_is_same(store: &Store, unpacked: &Unpacked, source: &Source) -> Option<(Published, Version)> {
    let digest = format!("sha256:{}", unpacked.tar_sha256);
    let model = store.catalog.read();
    let image = source.target.image(&model)?;
    let new = &unpacked.draft.facts;
    let newest = model
        .latest(image.serial)
        .filter(|newest| newest.facts.content_digest() == digest && came_with_the_same(new, newest))?;
    let number = newest.number;
    Some((
        Published { image: image.serial, name: image.name.clone(), number, new: false, new_bytes: 0 },
        newest.clone(),
    ))
}

/// Heals damaged versions that came as the same bytes, from this version.
fn heal_others(store: &Store, published: &Published) {
    if !store.blobs.has_damage() && store.damaged_trees().is_empty() {
        return;
    }
    let version = store.catalog.read().version(published.image, published.number).cloned();
    let healed = version.map(|v| heal::heal_trees(store, &v, &store.tree_path(&v.id), v.tree));
    if let Some(Err(e)) = healed {
        log::error!("{e}");
    }
}

/// Sets the editable keys that came with an upload into an existing image.
fn set_metadata(store: &Store, image: u32, source: &Source) -> Result<()> {
    let Some(text) = &source.metadata else { return Ok(()) };
    let keys = editable_keys(text)?;
    store.catalog.commit(|txn| {
        let gone = || Error::NotFound { what: "such image any more".into() };
        let mut image = txn.model.live_image(image).cloned().ok_or_else(gone)?;
        for (key, value) in &keys {
            image.editable.set(key, value)?;
        }
        image.updated_at = now();
        txn.put(Row::Image(image.into()));
        Ok(())
    })
}
