//! Uploads that imgfs can give back as they came. They are kept in pieces, or made again once that is
//! proved to give the same bytes.
//!
//! `keep_upload` of an image, or of the store, says which: `never`, `always` or `exact`. With `exact`
//! an upload is kept until a background job has found parameters for compressing the content to the
//! same bytes. Then only those parameters stay.

use std::fs::{self, File};
use std::io::{self, Write};
use std::sync::atomic::Ordering;

use sha2::{Digest as _, Sha256};

use crate::base::digest::BlobId;
use crate::base::digest::hex;
use crate::base::name::is_part_of_version;
use crate::catalog::{Kept, Row, Version};
use crate::error::{Error, Result};
use crate::formats::compress::Method;
use crate::formats::metadata::KeepUpload;
use crate::images::export::{self, RecipeReader};
use crate::store::Store;
use crate::store::trees::key_of;
use crate::tree::{Bytes, NodeKind, Tree};

/// How many bytes of an upload's beginning show how it may have been compressed.
const HEAD: usize = 64 * 1024;
/// The recipe in the tree of a kept upload.
pub const RECIPE: u32 = 1;

/// Which uploads are kept.
#[derive(Clone, Copy)]
pub struct Policy {
    pub upload: KeepUpload,
    /// An LXD image is kept even if others are not, because clients ask for it by the digest of its upload.
    pub lxd: bool,
}

impl Policy {
    /// The policy for an upload whose digest was announced.
    pub fn announced(self) -> Policy {
        Policy { upload: self.upload.of_announced(), ..self }
    }
}

/// Which uploads into an image are kept: what came with the upload decides, else the image, else the
/// store. LXD images are kept unless one of the first two says `never`.
pub fn policy(store: &Store, image: Option<u32>, said: Option<KeepUpload>) -> Policy {
    let model = store.catalog.read();
    let own = said.or_else(|| model.images.get(&image?)?.editable.keep_upload);
    Policy { upload: own.unwrap_or(store.settings().keep_upload), lxd: own != Some(KeepUpload::Never) }
}

/// The name under which a kept upload lies in its version.
pub fn name(version: &Version) -> Option<String> {
    version.facts.kept.as_ref()?;
    let name = &version.facts.upload_name;
    let taken = is_part_of_version(name);
    Some(if taken { format!("upload-{name}") } else { name.clone() })
}

/// Other files beside the rootfs of a version that are stored as they came.
const PARTS: &[&[u8]] = &[b"metadata.yaml", b"disk.qcow2", b"rootfs.squashfs"];

/// The metadata tarball of a split LXD image: its name in the version, its blob, its size.
///
/// # Errors
///
/// Those of the tree.
pub fn metadata_tarball(tree: &Tree) -> Result<Option<(String, BlobId, u64)>> {
    let Some(index) = tree.beside() else { return Ok(None) };
    let (beside, mut n) = (tree.node(index)?, 0);
    while let Some((name, index)) = tree.entry(&beside, n)? {
        let node = tree.node(index)?;
        if let NodeKind::File(Bytes::Blob(blob)) = node.kind
            && !PARTS.contains(&name)
        {
            return Ok(Some((String::from_utf8_lossy(name).into_owned(), blob, node.size)));
        }
        n += 1;
    }
    Ok(None)
}

/// The name of the file in a version that equals the upload as it came, made or kept.
///
/// # Errors
///
/// `Unsupported` for one whose compressed bytes are not kept; those of the tree.
pub fn came_as(store: &Store, version: &Version) -> Result<String> {
    let facts = &version.facts;
    if let Some(kept) = name(version) {
        return Ok(kept);
    }
    if facts.compression != "none" {
        return Err(Error::Unsupported {
            what: format!("{}: its compressed bytes are not kept, and giving them back", facts.upload_name),
            instead: "name the file: imgfs export VERSION FILE.tar.zst; keep_upload keeps what comes from now on",
        });
    }
    let recipe = facts.as_it_came();
    let made = store.tree(version.serial)?.tree.made_beside()?;
    Ok(made
        .into_iter()
        .find(|(_, number)| *number == recipe)
        .map_or_else(|| "rootfs.tar".into(), |(name, _)| name))
}

/// Takes the next upload that stays only if it cannot be made again, and tries to make it. False if
/// there is none.
///
/// # Errors
///
/// What keeps it from reading or from writing the row; the upload stays then.
pub fn prove_next(store: &Store) -> Result<bool> {
    let next = {
        let model = store.catalog.read();
        let waiting = |v: &&Version| {
            matches!(v.facts.kept, Some(Kept::Stored { tried: false, .. })) && model.is_live(v)
        };
        // An LXD image is known by its digest, so it counts as announced.
        let announced = |v: &Version| !v.facts.manifest.is_empty() || v.facts.format == "lxd";
        model.all_versions().filter(waiting).map(|v| (v.serial, v.image, announced(v))).collect::<Vec<_>>()
    };
    let is_exact = |image: u32, announced: bool| {
        let policy = policy(store, Some(image), None);
        (if announced { policy.announced() } else { policy }).upload == KeepUpload::Exact
    };
    let Some(serial) =
        next.into_iter().find(|(_, image, announced)| is_exact(*image, *announced)).map(|(s, ..)| s)
    else {
        return Ok(false);
    };
    let what = store.path_of(&store.catalog.read(), serial);
    let job = store.journal.start_job("prove", &what, 0);
    let found = find_method(store, serial, &job).inspect_err(|e| job.end(&format!("failed: {e}")))?;
    let method = found.clone();
    let changed = store.catalog.commit(|txn| {
        // The version may have been deleted meanwhile.
        let Some(mut version) = txn.model.versions.get(&serial).cloned() else { return Ok(None) };
        version.facts.kept = match (version.facts.kept, method) {
            (Some(_), Some(method)) => Some(Kept::Made { method }),
            (Some(Kept::Stored { tree, .. }), None) => Some(Kept::Stored { tree, tried: true }),
            (kept, _) => kept,
        };
        let id = version.id.clone();
        txn.put(Row::Version(version.into()));
        Ok(Some(id))
    })?;
    if let (Some(id), Some(method)) = (changed, &found) {
        store.forget_kept(serial);
        let path = store.kept_path(&id);
        store.blobs.backend().delete(&key_of(&path))?;
        store.has_garbage();
        job.end(&format!("can be made again: {method:?}"));
    } else {
        job.end("cannot be made again: it stays");
    }
    Ok(true)
}

fn find_method(store: &Store, serial: u32, job: &crate::base::journal::Job) -> Result<Option<Method>> {
    let kept = store.kept(serial)?;
    let mut head = Vec::new();
    RecipeReader::default().read(store, &kept, RECIPE, 0, HEAD, &mut head)?;
    let candidates = Method::candidates(&head);
    job.bytes_total.store(candidates.len() as u64, Ordering::Relaxed);
    for (n, method) in candidates.into_iter().enumerate() {
        job.phase("compressing, to compare");
        job.reached(n as u64);
        let mut comparer = Comparer {
            store,
            kept: &kept,
            reader: RecipeReader::default(),
            at: 0,
            buffer: Vec::new(),
            failed: None,
        };
        let same = make(store, serial, &method, &mut comparer).is_ok();
        if let Some(e) = comparer.failed {
            return Err(e);
        }
        if same && comparer.at == kept.recipe(RECIPE)?.tar_size {
            return Ok(Some(method));
        }
    }
    Ok(None)
}

/// Compresses the content of an upload again.
fn make(store: &Store, serial: u32, method: &Method, out: impl Write) -> Result<()> {
    let slot = store.tree(serial)?;
    let recipe = {
        let model = store.catalog.read();
        model.versions.get(&serial).map_or(0, |v| v.facts.as_it_came())
    };
    let size = slot.tree.recipe(recipe)?.tar_size;
    let failed = |e: io::Error| Error::Io { doing: "compress", path: "an upload".into(), source: e };
    let mut compressor = method.begin(size, out).map_err(failed)?;
    export::replay(store, &slot.tree, recipe, |_, bytes| compressor.write_all(bytes).map_err(failed))?;
    compressor.finish().map(drop).map_err(failed)
}

/// Makes an upload again, in a file without a name.
///
/// # Errors
///
/// `Corrupt` if the bytes differ from those that came in. Then this program has another library than
/// the one that proved it.
pub fn remake(store: &Store, serial: u32, method: &Method) -> Result<File> {
    let path = store.dir.join("staging").join(format!("remade-{serial}-{}", crate::base::name::new_id()?));
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .map_err(Error::io("create", &path))?;
    let _ = fs::remove_file(&path);
    let mut out = Hashing { file: &file, sha256: Sha256::new() };
    make(store, serial, method, &mut out)?;
    let wanted =
        store.catalog.read().versions.get(&serial).map(|v| v.facts.upload_sha256.clone()).unwrap_or_default();
    let found = hex(&out.sha256.finalize());
    if found != wanted {
        let why = format!("compressing it again gives sha256 {found}, and it had {wanted}");
        return Err(Error::Corrupt { what: "the upload".into(), why });
    }
    Ok(file)
}

struct Hashing<'f> {
    file: &'f File,
    sha256: Sha256,
}

impl Write for &mut Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.file.write(bytes)?;
        self.sha256.update(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Accepts bytes as long as they equal those of the kept upload.
struct Comparer<'s> {
    store: &'s Store,
    kept: &'s Tree,
    reader: RecipeReader,
    at: u64,
    buffer: Vec<u8>,
    failed: Option<Error>,
}

impl Write for &mut Comparer<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.clear();
        if let Err(e) =
            self.reader.read(self.store, self.kept, RECIPE, self.at, bytes.len(), &mut self.buffer)
        {
            self.failed = Some(e);
        }
        if self.failed.is_some() || self.buffer != bytes {
            return Err(io::Error::other("other bytes come out"));
        }
        self.at += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
