//! cat MNT/web/1/manifest: the IMGAPI manifests of versions. They are attached to versions, and show
//! later edits.

use std::io::{Read, Seek};
use std::path::Path;

use sha1::Sha1;
use sha2::Digest as _;

use crate::base::clock::parse_time;
use crate::base::digest::hex;
use crate::catalog::{Kept, Model, Row, Version, VersionFacts};
use crate::error::{Error, Result};
use crate::formats::imgapi::{Edits, File, Manifest};
use crate::images::export;
use crate::images::icons;
use crate::images::identity::check_identity;
use crate::images::keep;
use crate::images::labels;
use crate::store::Store;

/// Attaches a manifest to the version whose upload it announces. This needs a version in the image
/// whose upload can be given back byte for byte. False if there is none.
///
/// # Errors
///
/// `NotUnique` for a uuid or a version string that another version has; `NotFound` for an origin; `Corrupt`,
/// `Io`.
pub fn attach(store: &Store, image: u32, manifest: &Manifest) -> Result<bool> {
    let Some(file) = manifest.files().first() else { return Ok(false) };
    let fits: Vec<Version> = {
        let model = store.catalog.read();
        model.versions_of(image).rev().filter(|v| v.facts.upload_size == file.size).cloned().collect()
    };
    for version in fits {
        if sha1_of_upload(store, &version)?.is_some_and(|sha1| sha1 == file.sha1) {
            put(store, &version, manifest, file)?;
            return Ok(true);
        }
    }
    Ok(false)
}

/// The sha1 of a version's upload as it came. `None` if its bytes cannot be made again.
fn sha1_of_upload(store: &Store, version: &Version) -> Result<Option<String>> {
    let facts = &version.facts;
    let is_there = facts.kept.is_some() || facts.compression == "none";
    if !is_there || !facts.upload_sha1.is_empty() {
        return Ok(Some(facts.upload_sha1.clone()).filter(|_| is_there));
    }
    let mut hasher = Sha1::new();
    let take = |_, bytes: &[u8]| {
        hasher.update(bytes);
        Ok(())
    };
    match store.kept(version.serial) {
        Ok(kept) => export::replay(store, &kept, keep::RECIPE, take)?,
        Err(_) if facts.kept.is_some() => return sha1_of_remade(store, version).map(Some),
        Err(_) => export::replay(store, &store.tree(version.serial)?.tree, facts.as_it_came(), take)?,
    }
    Ok(Some(hex(&hasher.finalize())))
}

fn sha1_of_remade(store: &Store, version: &Version) -> Result<String> {
    let Some(Kept::Made { method }) = &version.facts.kept else { return Ok(String::new()) };
    let path = Path::new("a remade upload");
    let mut file = keep::remake(store, version.serial, method)?;
    let (mut hasher, mut piece) = (Sha1::new(), vec![0; 1 << 18]);
    file.rewind().map_err(Error::io("read", path))?;
    loop {
        match file.read(&mut piece).map_err(Error::io("read", path))? {
            0 => return Ok(hex(&hasher.finalize())),
            n => hasher.update(&piece[..n]),
        }
    }
}

fn put(store: &Store, version: &Version, manifest: &Manifest, file: &File) -> Result<()> {
    store.catalog.commit(|txn| {
        let Some(mut version) = txn.model.versions.get(&version.serial).cloned() else { return Ok(()) };
        let known = version.facts.uuid == manifest.uuid();
        let uuid = if known { "" } else { manifest.uuid() };
        check_identity(txn.model, uuid, manifest.origin().unwrap_or_default())?;
        let facts = &mut version.facts;
        facts.upload_sha1.clone_from(&file.sha1);
        note(facts, manifest);
        let (image, number) = (version.image, version.number);
        txn.put(Row::Version(version.into()));
        if let Some(label) = manifest.label() {
            labels::put_row(txn, image, labels::parse(&label)?, number, false)?;
        }
        Ok(())
    })
}

/// Records what a manifest says about a version.
pub fn note(facts: &mut VersionFacts, manifest: &Manifest) {
    facts.manifest = manifest.text();
    facts.uuid = manifest.uuid().into();
    facts.origin = manifest.origin().unwrap_or_default().into();
    facts.published_at = manifest.published_at().and_then(parse_time);
    facts.virtual_size = facts.virtual_size.max(manifest.image_bytes());
    if facts.os.is_empty() {
        facts.os = manifest.os().into();
    }
    facts.properties.extend(manifest.tags());
    for (key, value) in
        [("name", manifest.name()), ("version", manifest.version()), ("description", manifest.description())]
    {
        if !value.is_empty() {
            facts.properties.entry(key.into()).or_insert_with(|| value.into());
        }
    }
}

/// The manifest of a version as it is shown: as it came, with later edits of the image. `None` if it
/// has none.
pub fn shown(model: &Model, version: &Version) -> Option<String> {
    let text = &version.facts.manifest;
    let image = model.images.get(&version.image)?;
    let manifest = Manifest::parse(text.as_bytes()).ok().filter(|_| !text.is_empty())?;
    let has_icon = icons::form(model, image.serial).is_some();
    let edits = Edits {
        description: &image.editable.description,
        is_public: image.mode & 0o004 != 0,
        is_disabled: image.editable.offer.disabled,
        has_icon,
        fields: &image.editable.manifest,
    };
    Some(manifest.edited(&edits))
}
