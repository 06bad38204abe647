//! Adds the row of a new version, and what it changes in its image, in one commit.

use crate::base::clock::now;
use crate::base::digest::Digest;
use crate::base::name::{ImageName, VersionTag, architecture, means_volume};
use crate::catalog::{Image, Named, Receipt, Row, Transaction, Version, VersionFacts};
use crate::error::{Error, Result};
use crate::formats::imgapi::Manifest;
use crate::formats::metadata::editable_keys;
use crate::images::identity::check_identity;
use crate::images::links::first_is_default;
use crate::images::quota::{self, Payer};
use crate::images::rules::refuse_immutable;
use crate::images::{labels, views};
use crate::ingest::target::{Published, Source, Target};
use crate::store::Store;

/// Adds a version, whose tree is durable under `id`, to the image that its source names.
///
/// # Errors
///
/// `Taken`, `NotFound`, `Immutable`, `NotUnique`, `OverQuota` for the image; `BadMetadata`, `BadName` for what
/// came with it; those of `Catalog::commit`.
pub(super) fn add(
    store: &Store,
    source: &Source,
    id: String,
    tree: Digest,
    facts: VersionFacts,
) -> Result<Published> {
    let at = now();
    store.trash_has_changed();
    store.catalog.commit(|txn| {
        let (mut image, made_image) = image_for(store, txn, source, at)?;
        refuse_immutable(&image)?;
        refuse_other_architecture(&image, &source.tag)?;
        // Another upload of the same content may have been faster.
        if let Some(same) = txn.model.latest(image.serial).filter(|newest| is_same(&facts, newest)) {
            let (image, name, number) = (image.serial, image.name.clone(), same.number);
            return Ok(Published { image, name, number, new: false, new_bytes: 0 });
        }
        let number = image.next_number;
        image.next_number += 1;
        image.updated_at = at;
        take_over(&mut image, source, &facts, number == 0);
        check_identity(txn.model, &facts.uuid, &facts.origin)?;
        for (key, value) in source.metadata.as_deref().map(editable_keys).transpose()?.unwrap_or_default() {
            image.editable.set(&key, &value)?;
        }
        first_is_default(txn, &image.name, image.serial);
        let receipt = source.receipt.map(|(mtime, mode)| Receipt {
            name: source.file_name.clone(),
            in_root: !matches!(source.target, Target::Image(_)),
            mtime,
            mode,
            made_image,
        });
        let (serial, image_serial, name) = (txn.serial(), image.serial, image.name.clone());
        txn.put(Row::Image(image.into()));
        txn.put(Row::Blobs(store.blobs.id_bound()));
        txn.put(Row::Version(Box::new(Version {
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
        if let Some(label) = &source.tag.label {
            labels::put_row(txn, image_serial, labels::parse(label)?, number, false)?;
        }
        Ok(Published { image: image_serial, name, number, new: true, new_bytes: 0 })
    })
}

/// The image that a version goes into, and whether it is new.
fn image_for(store: &Store, txn: &mut Transaction<'_>, source: &Source, at: i64) -> Result<(Image, bool)> {
    let (name, holder) = match &source.target {
        Target::Image(serial) => {
            let gone = || Error::NotFound { what: "such image any more".into() };
            return Ok((txn.model.live_image(*serial).cloned().ok_or_else(gone)?, false));
        }
        Target::Named(name) => match txn.model.named(name.as_str()) {
            Some(Named::Image(serial)) => return Ok((txn.model.images[&serial].clone(), false)),
            Some(Named::Alias(_)) => (name, Some("it is an alias")),
            None => (name, None),
        },
        Target::New(name) => (name, txn.model.named(name.as_str()).map(|_| "there is one already")),
    };
    match holder {
        Some(holder) => Err(Error::Taken { name: name.to_string(), holder: holder.into() }),
        None => Ok((new_image(store, txn, source, name, at)?, true)),
    }
}

fn new_image(
    store: &Store,
    txn: &mut Transaction<'_>,
    source: &Source,
    name: &ImageName,
    at: i64,
) -> Result<Image> {
    views::refuse_shadow(txn.model, name.as_str(), None)?;
    let payers = Payer::of(store, txn.whole, source.uid, name.as_str());
    quota::refuse_image(store, txn.whole, &payers)?;
    Image::new(txn.serial(), name.as_str(), source.uid, source.gid, source.mode, at)
}

/// Fills in fields of the image that its user has not set. An empty key takes what the version says
/// about itself. `first`: the image had no version before.
fn take_over(image: &mut Image, source: &Source, facts: &VersionFacts, first: bool) {
    let editable = &mut image.editable;
    if let Some(architecture) = source.tag.architecture.filter(|_| editable.architecture.is_empty()) {
        editable.architecture = architecture.into();
    }
    for (field, found) in [
        (&mut editable.os, &facts.os),
        (&mut editable.release, &facts.release),
        (&mut editable.architecture, &facts.architecture),
    ] {
        if field.is_empty() {
            field.clone_from(found);
        }
    }
    for (key, value) in &facts.properties {
        editable.properties.entry(key.clone()).or_insert_with(|| value.clone());
    }
    if let Some(description) = facts.properties.get("description").filter(|_| editable.description.is_empty())
    {
        editable.description.clone_from(description);
    }
    if first && is_for_vm(facts) {
        editable.kind = "vm".into();
    }
    if let Some(expires_at) = facts.outdated_at.filter(|then| first && *then > image.updated_at) {
        editable.expires_at.get_or_insert(expires_at);
    }
}

/// Whether the files that came with two uploads are the same: the metadata tarball and the manifest.
pub(super) fn came_with_the_same(new: &VersionFacts, old: &Version) -> bool {
    new.uuid == old.facts.uuid && (new.fingerprint.is_empty() || new.fingerprint == old.facts.fingerprint)
}

fn is_same(new: &VersionFacts, old: &Version) -> bool {
    new.content_digest() == old.facts.content_digest() && came_with_the_same(new, old)
}

/// Refuses another architecture than the image has, if the file's name gives one. An image has only
/// one.
///
/// # Errors
///
/// `NotUnique`.
pub(super) fn refuse_other_architecture(image: &Image, tag: &VersionTag) -> Result<()> {
    let is = architecture(&image.editable.architecture);
    match tag.architecture {
        Some(wanted) if is.is_some_and(|is| is != wanted) => Err(Error::NotUnique {
            what: image.name.clone(),
            holder: format!("its architecture is {}, and this is for {wanted}", image.editable.architecture),
        }),
        _ => Ok(()),
    }
}

/// Whether a virtual machine starts from this. It is a disk, or a zfs volume according to its manifest
/// or the file's name.
fn is_for_vm(facts: &VersionFacts) -> bool {
    let is_zvol =
        || Manifest::parse(facts.manifest.as_bytes()).is_ok_and(|manifest| manifest.kind() == "zvol");
    facts.virtual_size > 0
        || matches!(facts.format.as_str(), "qcow2" | "raw" | "iso")
        || means_volume(&facts.upload_name)
        || !facts.manifest.is_empty() && is_zvol()
}
