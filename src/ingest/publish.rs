//! The end of an ingest: content, tree, row, name, each durable before the next (invariant 1).

use crate::base::clock::now;
use crate::base::digest::Digest;
use crate::base::name::{Build, ImageName, architecture, means_volume, new_id, parse_build};
use crate::catalog::{Change, Image, Kept, Model, Named, Receipt, Row, Version, VersionFacts};
use crate::error::{Error, Result};
use crate::fault;
use crate::format::sync_dir;
use crate::formats::imgapi::Manifest;
use crate::formats::metadata::editable_keys;
use crate::images::identity::check_identity;
use crate::images::links::first_is_default;
use crate::images::quota::Payer;
use crate::images::rules::refuse_immutable;
use crate::images::{heal, labels, quota, views};
use crate::ingest::detect::detect;
use crate::ingest::{Codec, Draft, Unpacked};
use crate::store::Store;
use crate::tree::recipe::RecipeBuilder;
use crate::tree::{Builder, Counts, Tree};

/// Bytes that publishing takes beside the tree, more than enough: lists, records, rows.
const ROOM: u64 = 4 << 20;

/// Where an upload goes.
#[derive(Clone, Debug)]
pub enum Target {
    /// The image of this name, made if it is not there.
    Named(ImageName),
    /// A new image of this name.
    New(ImageName),
    /// The image with this serial.
    Image(u32),
}

impl Target {
    /// The image that it is, if that is there.
    pub fn image<'m>(&self, model: &'m Model) -> Option<&'m Image> {
        match self {
            Target::Named(name) => model.image_named(name.as_str()),
            Target::New(_) => None,
            Target::Image(serial) => model.live_image(*serial),
        }
    }

    /// Whose a version in it counts as: the image's owner's, or of a new image its maker's; and the view's.
    fn payers(&self, store: &Store, maker: u32) -> Vec<Payer> {
        let (uid, name) = {
            let model = store.catalog.read();
            let name = if let Target::Named(name) | Target::New(name) = self { name.as_str() } else { "" };
            self.image(&model).map_or((maker, name.to_owned()), |image| (image.uid, image.name.clone()))
        };
        Payer::of(store, &store.whole().catalog.read(), uid, &name)
    }
}

/// Who uploads what, under which name.
#[derive(Clone, Debug)]
pub struct Source {
    pub target: Target,
    /// The file name that was written.
    pub file_name: String,
    pub uid: u32,
    pub gid: u32,
    /// Permission bits for a new image.
    pub mode: u32,
    /// The upload's own time (nanoseconds since 1970) and permission bits, for its receipt, if its name
    /// stays.
    pub receipt: Option<(i64, u32)>,
    /// A metadata.json that came with it: its editable keys are set.
    pub metadata: Option<Vec<u8>>,
    /// What the file's name or a manifest says of the version; see name.rs.
    pub build: Build,
}

/// What became of an upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    pub image: u32,
    pub name: String,
    pub number: u32,
    /// False if the newest version already is this.
    pub new: bool,
    /// Content that the store did not have, in bytes.
    pub new_bytes: u64,
}

/// Makes an unpacked upload a version, unless the image's newest version is the same.
///
/// # Errors
///
/// `Taken` if the name belongs to an alias; `NotFound` if the image is gone; `Io`, `Catalog`. On an
/// error nothing is visible, and what was stored is swept.
pub fn publish(store: &Store, unpacked: Unpacked, source: &Source) -> Result<Published> {
    refuse_early(store, source.uid, &source.target, &source.build)?;
    let same = newest_is_same(store, &unpacked, source);
    if let Some((published, version)) = &same
        && !heal::is_hurt(store, version.serial)
    {
        set_metadata(store, published.image, source)?;
        return Ok(published.clone());
    }
    let Unpacked { draft, kept, codec, size, upload_sha256, upload_sha1, tar_sha256 } = unpacked;
    let Draft { writer, builder, tar, more, mut facts } = draft;
    let came = more.first().or(tar.as_ref()).map_or(0, RecipeBuilder::tar_size);
    // Of what follows, nothing asks for room itself.
    store.ensure_room(ROOM + builder.size_bound());
    fault::reached("publish.unpacked");
    let sealed = writer.seal()?;
    if sealed.healed {
        store.has_garbage();
    }
    fault::reached("publish.sealed");
    let id = new_id()?;
    let path = store.tree_path(&id);
    // Held until the row is written: gc keeps what it names.
    let mut kept_pins = None;
    if let Some((writer, recipe)) = kept {
        let sealed = writer.seal()?;
        let kept = Builder::new().finish(
            &store.kept_path(&id),
            None,
            vec![recipe],
            |c| sealed.id(c),
            |_| Vec::new(),
        );
        let (tree, _) = kept.inspect_err(|_| drop(std::fs::remove_file(store.kept_path(&id))))?;
        facts.kept = Some(Kept::Stored { tree, tried: false });
        kept_pins = Some(sealed);
    }
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
    let kept_path = kept_pins.as_ref().map(|_| store.kept_path(&id));
    let written = builder.finish(&path, tar, more, |content| sealed.id(content), stored);
    let made = written.and_then(|(digest, _)| {
        fault::reached("publish.written");
        sync_dir(path.parent().expect("trees/"))?;
        fault::reached("publish.named");
        let tree = Tree::open(&path, &digest)?;
        let system = detect(store, &tree);
        for (field, found) in [
            (&mut facts.os, system.os),
            (&mut facts.release, system.release),
            (&mut facts.architecture, system.architecture),
        ] {
            // What came with the image says more than what lies in it.
            if field.is_empty() {
                *field = found;
            }
        }
        match same {
            // It was damaged, and its content is healed by now.
            Some((published, version)) => {
                heal::heal_trees(store, &version, &path, digest)?;
                Ok(published)
            }
            None => {
                let payers = source.target.payers(store, source.uid);
                let kept = match &facts.kept {
                    Some(Kept::Stored { tree, .. }) => Some(Tree::open(&store.kept_path(&id), tree)?),
                    _ => None,
                };
                let trees: Vec<&Tree> = [&tree].into_iter().chain(&kept).collect();
                let _held = store.quota.lock();
                quota::refuse_bytes(store, &payers, &trees)?;
                add_rows(store, source, id, digest, facts)
            }
        }
    });
    match made {
        Ok(mut published) => {
            fault::reached("publish.listed");
            published.new_bytes = sealed.new_bytes;
            drop(kept_pins);
            if published.new {
                heal_others(store, &published);
            } else {
                // It is there already: healed, or another upload of the same was faster.
                set_metadata(store, published.image, source)?;
                store.drop_tree(&path)?;
                kept_path.map_or(Ok(()), |kept| store.drop_tree(&kept))?;
                store.has_garbage();
            }
            Ok(published)
        }
        Err(e) => {
            // No row names it: a stray that the next start would sweep, too. Unless the row could not be
            // synced: then the next start finds it, or not.
            if store.writable.stopped().is_none() {
                let _ = std::fs::remove_file(&path);
                if let Some(kept) = kept_path {
                    let _ = std::fs::remove_file(kept);
                }
                store.has_garbage();
            }
            Err(e)
        }
    }
}

/// What the commit would refuse, said before the work: of an upload of this user's.
///
/// # Errors
///
/// `Immutable`, `Attached`, `Taken`, `OverQuota`.
pub fn refuse_early(store: &Store, uid: u32, target: &Target, build: &Build) -> Result<()> {
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
    refuse_other_architecture(image, build)
}

/// The image that a file called so less its suffix is for, and which build of it that is: `web`, or with no
/// image of the whole name, `web_1.7_amd64`.
pub fn named<'n>(model: &Model, stem: &'n str) -> (&'n str, Build) {
    match parse_build(stem) {
        Some(found) if model.named(stem).is_none() => found,
        _ => (stem, Build::default()),
    }
}

/// The newest version, if that is what was unpacked.
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

/// What came with the image counts, too: another metadata tarball, another manifest.
fn came_with_the_same(new: &VersionFacts, old: &Version) -> bool {
    new.uuid == old.facts.uuid && (new.fingerprint.is_empty() || new.fingerprint == old.facts.fingerprint)
}

fn is_same(new: &VersionFacts, old: &Version) -> bool {
    new.content_digest() == old.facts.content_digest() && came_with_the_same(new, old)
}

/// Other versions that came as the same bytes and are damaged get from this one what they lack.
fn heal_others(store: &Store, published: &Published) {
    if !store.blobs.has_damage() && store.hurt_trees().is_empty() {
        return;
    }
    let version = store.catalog.read().version(published.image, published.number).cloned();
    let healed = version.map(|v| heal::heal_trees(store, &v, &store.tree_path(&v.id), v.tree));
    if let Some(Err(e)) = healed {
        log::error!("{e}");
    }
}

/// Sets the editable keys that came with an image which is there already.
fn set_metadata(store: &Store, image: u32, source: &Source) -> Result<()> {
    let Some(text) = &source.metadata else { return Ok(()) };
    let keys = editable_keys(text)?;
    store.catalog.commit(|change| {
        let gone = || Error::NotFound { what: "such image any more".into() };
        let mut image = change.model.live_image(image).cloned().ok_or_else(gone)?;
        for (key, value) in &keys {
            image.editable.set(key, value)?;
        }
        image.updated_at = now();
        change.put(Row::Image(image.into()));
        Ok(())
    })
}

fn add_rows(
    store: &Store,
    source: &Source,
    id: String,
    tree: Digest,
    facts: VersionFacts,
) -> Result<Published> {
    let at = now();
    store.trash_has_changed();
    store.catalog.commit(|change| {
        let mut made_image = false;
        let mut new = |change: &mut Change<'_>, name: &ImageName| {
            made_image = true;
            views::refuse_shadow(change.model, name.as_str(), None)?;
            quota::refuse_image(
                store,
                change.whole,
                &Payer::of(store, change.whole, source.uid, name.as_str()),
            )?;
            Image::new(change.serial(), name.as_str(), source.uid, source.gid, source.mode, at)
        };
        let (mut image, in_root) = match &source.target {
            Target::Image(serial) => {
                let gone = || Error::NotFound { what: "such image any more".into() };
                (change.model.live_image(*serial).cloned().ok_or_else(gone)?, false)
            }
            Target::Named(name) => match change.model.named(name.as_str()) {
                Some(Named::Image(serial)) => (change.model.images[&serial].clone(), true),
                Some(Named::Alias(_)) => {
                    return Err(Error::Taken { name: name.to_string(), holder: "it is an alias".into() });
                }
                None => (new(change, name)?, true),
            },
            Target::New(name) => {
                if change.model.named(name.as_str()).is_some() {
                    return Err(Error::Taken {
                        name: name.to_string(),
                        holder: "there is one already".into(),
                    });
                }
                (new(change, name)?, true)
            }
        };
        refuse_immutable(&image)?;
        refuse_other_architecture(&image, &source.build)?;
        // Another upload of the same may have been faster.
        if let Some(same) = change.model.latest(image.serial).filter(|newest| is_same(&facts, newest)) {
            let (image, name, number) = (image.serial, image.name.clone(), same.number);
            return Ok(Published { image, name, number, new: false, new_bytes: 0 });
        }
        let (number, newest_is_first) = (image.next_number, image.next_number == 0);
        image.next_number += 1;
        image.updated_at = at;
        if let Some(architecture) =
            source.build.architecture.filter(|_| image.editable.architecture.is_empty())
        {
            image.editable.architecture = architecture.into();
        }
        for (field, found) in [
            (&mut image.editable.os, &facts.os),
            (&mut image.editable.release, &facts.release),
            (&mut image.editable.architecture, &facts.architecture),
        ] {
            // What the user wrote stays; an empty key takes what the image says of itself.
            if field.is_empty() {
                field.clone_from(found);
            }
        }
        for (key, value) in &facts.properties {
            image.editable.properties.entry(key.clone()).or_insert_with(|| value.clone());
        }
        if let Some(description) =
            facts.properties.get("description").filter(|_| image.editable.description.is_empty())
        {
            image.editable.description.clone_from(description);
        }
        if newest_is_first && is_for_vm(&facts) {
            image.editable.kind = "vm".into();
        }
        if let Some(expires_at) = facts.outdated_at.filter(|then| newest_is_first && *then > at) {
            image.editable.expires_at.get_or_insert(expires_at);
        }
        let published =
            Published { image: image.serial, name: image.name.clone(), number, new: true, new_bytes: 0 };
        check_identity(change.model, &facts.uuid, &facts.origin)?;
        let receipt = source.receipt.map(|(mtime, mode)| Receipt {
            name: source.file_name.clone(),
            in_root,
            mtime,
            mode,
            made_image,
        });
        for (key, value) in source.metadata.as_deref().map(editable_keys).transpose()?.unwrap_or_default() {
            image.editable.set(&key, &value)?;
        }
        first_is_default(change, &image.name, image.serial);
        let serial = change.serial();
        let image_serial = image.serial;
        change.put(Row::Image(image.into()));
        change.put(Row::Blobs(store.blobs.id_bound()));
        change.put(Row::Version(Box::new(Version {
            serial,
            image: image_serial,
            number,
            id,
            tree,
            facts,
            receipt,
            created_at: at,
            trashed_at: None,
            trash_name: None,
        })));
        if let Some(label) = &source.build.label {
            labels::put_row(change, image_serial, labels::parse(label)?, number, false)?;
        }
        Ok(published)
    })
}

/// One image is for one architecture, where a file's name says which.
fn refuse_other_architecture(image: &Image, build: &Build) -> Result<()> {
    let is = architecture(&image.editable.architecture);
    match build.architecture {
        Some(wanted) if is.is_some_and(|is| is != wanted) => Err(Error::NotUnique {
            what: image.name.clone(),
            holder: format!("its architecture is {}, and this is for {wanted}", image.editable.architecture),
        }),
        _ => Ok(()),
    }
}

/// Whether a virtual machine starts from this: a disk, or a volume of zfs by its manifest or by the file's
/// name.
fn is_for_vm(facts: &VersionFacts) -> bool {
    let is_zvol =
        || Manifest::parse(facts.manifest.as_bytes()).is_ok_and(|manifest| manifest.kind() == "zvol");
    facts.virtual_size > 0
        || matches!(facts.format.as_str(), "qcow2" | "raw" | "iso")
        || means_volume(&facts.upload_name)
        || !facts.manifest.is_empty() && is_zvol()
}
