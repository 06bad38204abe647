//! mv MNT/web/.new MNT/web/next: the files of a staging directory become one version.
//!
//! One file is the image; or two files are, an LXD metadata tarball and its rootfs. Beside them there
//! may be metadata.json (editable keys), an IMGAPI manifest, and digests: `x.tar.xz.sha256`,
//! `SHA256SUMS`.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

use sha1::Sha1;
use sha2::{Digest as _, Sha256};

use crate::base::digest::hex;
use crate::base::expected::Expected;
use crate::base::name::VersionTag;
use crate::error::{Error, Result};
use crate::formats::imgapi::{self, Manifest};
use crate::formats::metadata::editable_keys;
use crate::formats::metadata::{KeepUpload, METADATA_MAX};
use crate::images::identity::check_identity;
use crate::images::keep;
use crate::images::manifests;
use crate::ingest::kinds::lxd;
use crate::ingest::{Hint, Ingest, Published, Settled, Source, Target, Unpacked, Wish};
use crate::store::Store;

/// The largest digest file, manifest or metadata.json, in bytes.
const SMALL_MAX: u64 = METADATA_MAX as u64;
/// The largest metadata tarball of a split image, in bytes.
const METADATA_TARBALL_MAX: u64 = 16 << 20;
/// Bytes read at a time.
const PIECE: usize = 256 * 1024;
/// After this many pieces it checks whether to go on, because a file that is one hole takes an hour.
pub const ASKING: u32 = 64;

/// One staged file.
pub struct File {
    pub name: String,
    pub path: PathBuf,
}

/// What shall become a version, and who asks for it.
pub struct Order {
    pub target: Target,
    pub files: Vec<File>,
    /// The announced digests, by file name.
    pub expect: BTreeMap<String, Expected>,
    pub uid: u32,
    pub gid: u32,
}

/// The files, sorted by their purpose.
struct Sorted {
    images: Vec<File>,
    metadata: Option<Vec<u8>>,
    manifest: Option<Manifest>,
    /// The announced digests, by file name. A file may have several.
    expect: Vec<(String, Expected)>,
}

fn invalid<T>(why: impl Into<String>) -> Result<T> {
    Err(Error::Invalid { what: "the staging directory".into(), why: why.into() })
}

/// Called now and then: whether anybody still waits for the result.
type GoOn<'g> = &'g dyn Fn() -> bool;

/// Publishes all files, or none. `name` is the name of the ingest under STORE/staging.
///
/// # Errors
///
/// `Mismatch` for what was announced differently; `Invalid` for files that make no version;
/// `WriterKilled` once nobody is to `go_on`; those of the ingest and of `publish`.
pub fn publish(store: &Store, name: &str, order: Order, go_on: GoOn) -> Result<Published> {
    let Sorted { images, metadata, manifest, expect } = sort(order.files, order.expect)?;
    let (image, tarball) = match <[File; 2]>::try_from(images) {
        Ok([a, b]) => pair(store, a, b)?,
        Err(mut images) => match (images.pop(), images.is_empty()) {
            (Some(image), true) => (image, None),
            (Some(other), false) => {
                return invalid(format!(
                    "it holds more than one image: {} and {}",
                    images[0].name, other.name
                ));
            }
            (None, _) => return invalid("it holds no image"),
        },
    };
    let label = manifest.as_ref().and_then(Manifest::label);
    let tag = VersionTag { label, architecture: None };
    super::refuse_early(store, order.uid, &order.target, &tag)?;
    if let Some(manifest) = &manifest {
        // This check comes before the work. The commit checks again.
        check_identity(&store.catalog.read(), manifest.uuid(), manifest.origin().unwrap_or_default())?;
    }
    let target = if let Target::Image(serial) = order.target { Some(serial) } else { None };
    let keep = keep::policy(store, target, wished_keep(metadata.as_deref())?);
    let announced = manifest.is_some() || tarball.is_some() && keep.lxd;
    let wish = Wish { keep: if announced { keep.announced() } else { keep }, sha1: true };
    let mut unpacked = ingest(store, name, &image, manifest.is_some(), wish, go_on)?;
    for (_, expected) in expect.iter().filter(|(name, _)| *name == image.name) {
        expected.check(&image.name, &unpacked.upload_sha256, &unpacked.upload_sha1)?;
    }
    if let Some(manifest) = &manifest {
        take_manifest(&mut unpacked, manifest, &image.name)?;
    }
    if let Some(tarball) = tarball {
        let bytes = read_small(&tarball, METADATA_TARBALL_MAX)?;
        check_small(&tarball.name, &bytes, &expect)?;
        lxd::add_metadata(&mut unpacked.draft, &tarball.name, &bytes, &store.settings().limits)?;
        unpacked.draft.facts.fingerprint = fingerprint(&bytes, &image)?;
    }
    let source = Source {
        target: order.target,
        file_name: image.name,
        uid: order.uid,
        gid: order.gid,
        mode: 0o755,
        receipt: None,
        metadata,
        tag,
    };
    super::publish(store, unpacked, &source)
}

/// Finds out the purpose of each file.
fn sort(files: Vec<File>, announced: BTreeMap<String, Expected>) -> Result<Sorted> {
    let mut small: Vec<(String, Vec<u8>)> = Vec::new();
    let mut sorted = Sorted { images: Vec::new(), metadata: None, manifest: None, expect: Vec::new() };
    let names: Vec<String> = files.iter().map(|file| file.name.clone()).collect();
    for file in files {
        if file.name == "metadata.json" {
            let text = read_small(&file, SMALL_MAX)?;
            small.push((file.name, text.clone()));
            sorted.metadata = Some(text);
        } else if file.name == "SHA256SUMS" {
            let text = read_small(&file, SMALL_MAX)?;
            for line in String::from_utf8_lossy(&text).lines().filter(|l| !l.trim().is_empty()) {
                // A line is `HEX  NAME`, perhaps with a star for binary.
                let (digest, name) = line.trim().split_once([' ', '\t']).unwrap_or((line, ""));
                let name = name.trim_start().trim_start_matches('*').trim_start_matches("./");
                if line.starts_with('#') {
                    continue;
                }
                let expected = Expected::parse(digest).map_err(|_| Error::Invalid {
                    what: "SHA256SUMS".into(),
                    why: format!("a line of it is no digest and name: {line:?}"),
                })?;
                // Such lists also name files that are not here.
                let name = name.rsplit('/').next().unwrap_or(name).to_owned();
                if names.contains(&name) {
                    sorted.expect.push((name, expected));
                }
            }
        } else if let Some(of) = [".sha256", ".sha1"].iter().find_map(|s| file.name.strip_suffix(s)) {
            let text = String::from_utf8_lossy(&read_small(&file, SMALL_MAX)?).into_owned();
            let digest = text.split_whitespace().next().unwrap_or_default();
            if !names.iter().any(|name| name == of) {
                return invalid(format!("{} is of {of}, which is not there", file.name));
            }
            let expected = Expected::parse(digest);
            sorted.expect.push((
                of.to_owned(),
                expected.map_err(|e| Error::Invalid { what: file.name, why: e.to_string() })?,
            ));
        } else if imgapi::is_manifest_name(&file.name) || file.name == "manifest" {
            if sorted.manifest.is_some() {
                return invalid("it holds more than one manifest");
            }
            let text = read_small(&file, SMALL_MAX)?;
            let parsed = Manifest::parse(&text);
            small.push((file.name.clone(), text));
            sorted.manifest = Some(parsed.map_err(|why| Error::Invalid { what: file.name, why })?);
        } else if !file.name.starts_with('.') {
            sorted.images.push(file);
        }
    }
    sorted.expect.extend(announced);
    for (name, text) in &small {
        check_small(name, text, &sorted.expect)?;
    }
    Ok(sorted)
}

fn check_small(name: &str, bytes: &[u8], expect: &[(String, Expected)]) -> Result<()> {
    for (_, expected) in expect.iter().filter(|(of, _)| of == name) {
        expected.check(name, &hex(&Sha256::digest(bytes)), &hex(&Sha1::digest(bytes)))?;
    }
    Ok(())
}

fn read_small(file: &File, limit: u64) -> Result<Vec<u8>> {
    let opened = std::fs::File::open(&file.path).map_err(Error::io("open", &file.path))?;
    let mut text = Vec::new();
    opened.take(limit + 1).read_to_end(&mut text).map_err(Error::io("read", &file.path))?;
    if text.len() as u64 > limit {
        return Err(Error::OverLimit {
            what: format!("the size of {}", file.name),
            limit: format!("{limit} bytes"),
        });
    }
    Ok(text)
}

/// Finds out which of two files is the metadata tarball. Returns the image first, then the tarball.
fn pair(store: &Store, a: File, b: File) -> Result<(File, Option<File>)> {
    let is_metadata = |file: &File| {
        let small = std::fs::metadata(&file.path).is_ok_and(|m| m.len() <= METADATA_TARBALL_MAX);
        small
            && read_small(file, METADATA_TARBALL_MAX)
                .is_ok_and(|b| lxd::is_metadata_tarball(&b, &store.settings().limits))
    };
    match (is_metadata(&a), is_metadata(&b)) {
        (true, false) => Ok((b, Some(a))),
        (false, true) => Ok((a, Some(b))),
        (true, true) => {
            invalid(format!("both {} and {} are metadata tarballs: the rootfs is missing", a.name, b.name))
        }
        (false, false) => invalid(format!(
            "it holds two images, {} and {}, and neither is the metadata tarball of the other",
            a.name, b.name
        )),
    }
}

/// Unpacks a staged file. The rename says that it is complete.
fn ingest(
    store: &Store,
    name: &str,
    file: &File,
    announced: bool,
    wish: Wish,
    go_on: GoOn,
) -> Result<Unpacked> {
    let opened = std::fs::File::open(&file.path).map_err(Error::io("open", &file.path))?;
    let mut head = Vec::new();
    (&opened).take(PIECE as u64).read_to_end(&mut head).map_err(Error::io("read", &file.path))?;
    let hint = if announced { Hint::announced(&file.name) } else { Hint::of(&file.name) };
    if hint.recognises(&head) != Some(true) && (!announced || head.is_empty()) {
        return Err(crate::formats::tar::not_a_tar(file.name.clone(), &head));
    }
    let mut ingest = Ingest::start(store, name, &head, hint, wish)?;
    if let Err(e) = feed(&mut ingest, &opened, head, file, go_on) {
        ingest.abort();
        return Err(e);
    }
    match ingest.settle() {
        Settled::Complete | Settled::Failed | Settled::Unmarked(_) => ingest.finish(),
        Settled::Incomplete(e) => {
            ingest.abort();
            Err(e)
        }
    }
}

fn feed(ingest: &mut Ingest, opened: &std::fs::File, head: Vec<u8>, file: &File, go_on: GoOn) -> Result<()> {
    let (mut piece, mut pieces) = (head, 0_u32);
    while !piece.is_empty() && !ingest.has_failed() {
        if pieces.is_multiple_of(ASKING) && !go_on() {
            return Err(Error::WriterKilled { name: file.name.clone() });
        }
        pieces = pieces.wrapping_add(1);
        ingest.push_and_wait(Arc::new(std::mem::take(&mut piece)));
        opened.take(PIECE as u64).read_to_end(&mut piece).map_err(Error::io("read", &file.path))?;
    }
    Ok(())
}

/// The `keep_upload` in a metadata.json that comes with an image. It already applies to this upload.
fn wished_keep(metadata: Option<&[u8]>) -> Result<Option<KeepUpload>> {
    let keys = metadata.map(editable_keys).transpose()?.unwrap_or_default();
    let said = keys.iter().find(|(key, _)| key == "keep_upload").and_then(|(_, value)| value.as_str());
    Ok(said.and_then(KeepUpload::parse))
}

/// Checks the file against its manifest, and records what the manifest says.
///
/// # Errors
///
/// `Mismatch`.
pub fn take_manifest(unpacked: &mut Unpacked, manifest: &Manifest, name: &str) -> Result<()> {
    if let Some(file) = manifest.files().first() {
        if file.size != unpacked.size {
            let (wanted, found) = (format!("{} bytes", file.size), format!("{} bytes", unpacked.size));
            return Err(Error::Mismatch { what: name.into(), wanted, found });
        }
        Expected::Sha1(file.sha1.clone()).check(name, &unpacked.upload_sha256, &unpacked.upload_sha1)?;
    }
    manifests::note(&mut unpacked.draft.facts, manifest);
    Ok(())
}

/// LXD's fingerprint: the sha256 of the metadata tarball and the rootfs, as they came, one after the
/// other.
fn fingerprint(metadata: &[u8], rootfs: &File) -> Result<String> {
    let mut hasher = Sha256::new_with_prefix(metadata);
    let mut file = std::fs::File::open(&rootfs.path).map_err(Error::io("open", &rootfs.path))?;
    let mut piece = vec![0; PIECE];
    loop {
        match file.read(&mut piece).map_err(Error::io("read", &rootfs.path))? {
            0 => return Ok(hex(&hasher.finalize())),
            n => hasher.update(&piece[..n]),
        }
    }
}
