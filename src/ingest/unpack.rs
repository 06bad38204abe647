//! The middle of an ingest: what came becomes a tree, recipes and blobs, whatever kind of image it is.
//!
//! ```text
//! unpacked bytes --+--> tar entries --+--> the tar of a rootfs: as it is
//!                  |                  +--> lxd.rs: metadata.yaml, templates/, rootfs/
//!                  |                  `--> oci.rs: layers over each other
//!                  `--> payload.rs: a disk or file system image --> squashfs.rs: its rootfs, too
//! ```

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};

use crate::base::digest::Content;
use crate::base::name::means_raw_disk;
use crate::blob::{OBJECT_MIN, Writer};
use crate::catalog::VersionFacts;
use crate::error::{Error, Result};
use crate::formats::tar::{self, BLOCK, Entry, Kind, Limits, Reader, Source, Stage};
use crate::ingest::codec::Codec;
use crate::ingest::derive;
use crate::ingest::kinds::payload::{self, HEAD, Payload};
use crate::ingest::kinds::{lxd, oci, qcow2, squashfs};
use crate::ingest::pipe::PipeReader;
use crate::tree::recipe::RecipeBuilder;
use crate::tree::{Builder, Make, Meta, Refused};

/// What an upload's name says beyond its content.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hint {
    /// What bytes are that nothing knows: a disk image where the name ends in .img or .raw, any file where a manifest
    /// announces it.
    pub unknown: Option<Payload>,
}

impl Hint {
    pub fn of(name: &str) -> Hint {
        Hint { unknown: means_raw_disk(name).then_some(Payload::Raw) }
    }

    /// Of a file that a manifest announces.
    pub fn announced(name: &str) -> Hint {
        Hint { unknown: Hint::of(name).unknown.or(Some(Payload::Opaque)) }
    }

    /// Whether a file that begins so is an image of any kind; `None` while that cannot be told.
    pub fn recognises(self, head: &[u8]) -> Option<bool> {
        if Codec::detect(head).is_some() {
            return Some(true);
        }
        if head.len() < BLOCK {
            return None;
        }
        if tar::begins_a_tar(head) || Payload::detect(head).is_some() || self.unknown.is_some() {
            return Some(true);
        }
        (head.len() >= HEAD).then_some(false)
    }
}

/// A version in the making.
pub struct Draft {
    pub writer: Writer,
    pub builder: Builder,
    /// Of rootfs.tar, if there is a rootfs.
    pub tar: Option<RecipeBuilder>,
    /// Of the upload, if it is not rootfs.tar, and of what that is made of.
    pub more: Vec<RecipeBuilder>,
    /// What unpacking found out; sizes and digests of the upload come later.
    pub facts: VersionFacts,
}

impl Draft {
    pub fn new(writer: Writer, builder: Builder) -> Draft {
        Draft { writer, builder, tar: None, more: Vec::new(), facts: VersionFacts::default() }
    }

    /// Shows a file that the next recipe makes beside rootfs.
    pub fn add_made(&mut self, name: &str, recipe: RecipeBuilder) {
        self.more.push(recipe);
        let number = self.more.len() as u32;
        let size = self.more[number as usize - 1].tar_size();
        let make = Make::File { content: Some(Content::Recipe(number)), size, sparse: None };
        self.builder.add_beside(name.as_bytes(), &beside_meta(), make);
    }

    /// Stores a small file and shows it beside rootfs.
    pub fn add_small(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let content = if bytes.is_empty() { None } else { Some(self.writer.put(bytes)?) };
        self.builder.add_beside(name.as_bytes(), &beside_meta(), Make::File { content, size: bytes.len() as u64, sparse: None });
        Ok(())
    }

    /// Makes rootfs.tar of a rootfs that did not come as one.
    pub fn derive_tar(&mut self) -> Result<()> {
        let (recipe, sha256) = derive::rootfs_tar(&self.builder, &mut self.writer)?;
        self.facts.size = recipe.tar_size();
        self.facts.digest = format!("sha256:{sha256}");
        self.tar = Some(recipe);
        Ok(())
    }
}

/// Owner and mode of the files that imgfs puts beside rootfs.
fn beside_meta() -> Meta {
    Meta { mode: 0o444, mtime: (crate::base::clock::now().div_euclid(1_000_000_000), 0), ..Meta::default() }
}

/// Whether an upload may be an LXD image, as far as it has been read; `None` before its first entry.
pub type MayBeLxd = Arc<OnceLock<bool>>;

/// Reads an upload to its end. `may_be_lxd` is set by its first entry.
///
/// Errors: those of the reader and the writer; `LeavesRoot` and `BadArchive` for entries that have no place;
/// `NotTar`, `Unsupported` for what is no image.
pub fn unpack(
    input: &mut PipeReader,
    mut writer: Writer,
    limits: &Limits,
    stage: &Arc<AtomicU8>,
    hint: Hint,
    may_be_lxd: &MayBeLxd,
) -> Result<Draft> {
    let found = payload_in(input, stage, hint);
    let Some(payload) = found else {
        let mut reader = Reader::new(input, *limits, stage.clone())?;
        let mut builder = Builder::new();
        let mut metadata = 0;
        entries(&mut reader, &mut writer, |entry, content| {
            metadata += usize::from(lxd::is_metadata(&entry.path));
            if may_be_lxd.get().is_none()
                && let Some(may) = lxd::may_have(&entry.path)
            {
                let _ = may_be_lxd.set(may);
            }
            place(&mut builder, entry, content)
        })?;
        let recipe = reader.into_recipe();
        let draft = Draft::new(writer, builder);
        if lxd::is_unified(&draft.builder) {
            return lxd::unified(draft, recipe, metadata);
        }
        if is_ova(&draft.builder) {
            let instead = "unpack and convert it: tar xf FILE, then qemu-img convert -O qcow2 DISK.vmdk disk.qcow2";
            return Err(Error::Unsupported { what: "an OVA (a virtual machine for VMware or VirtualBox)".into(), instead });
        }
        if oci::is_archive(&draft.builder) {
            return oci::archive(draft, recipe, limits);
        }
        return Ok(Draft { tar: Some(recipe), ..draft });
    };
    let _ = may_be_lxd.set(false);
    // A small one may end before all that its header could say is there.
    let head = input.peek(HEAD, |_| stage.store(Stage::Ended as u8, Ordering::Release)).to_vec();
    let least = payload.least_size(&head);
    let set = |at: u64| stage.store(if at >= least.max(1) { Stage::Ended } else { Stage::Inside } as u8, Ordering::Release);
    let recipe = payload::store(input, &mut writer, limits.tar_size, set)?;
    if recipe.tar_size() < least {
        let why = format!("its {} header says that it has {least} bytes", payload.name());
        return Err(Error::Truncated { at: recipe.tar_size(), why });
    }
    let mut draft = Draft::new(writer, Builder::new());
    draft.facts.format = payload.name().into();
    draft.facts.virtual_size = payload.virtual_size(&head, recipe.tar_size());
    match payload {
        Payload::Squashfs => squashfs::unpack(&mut draft, &recipe, limits)?,
        Payload::Qcow2 => qcow2::check(&mut draft.writer.open_pieces(recipe.pieces())?)?,
        _ => {}
    }
    draft.add_made(payload.file_name(), recipe);
    Ok(draft)
}

/// Whether an archive is an OVA: a description in its root, and disks beside it. Source: DMTF DSP0243, section 5.
fn is_ova(builder: &Builder) -> bool {
    let names = builder.names_in_root();
    let ends = |ending: &[u8]| names.iter().any(|name| name.to_ascii_lowercase().ends_with(ending));
    ends(b".ovf") && !["etc", "usr", "bin"].iter().any(|name| builder.find(name).is_some())
}

/// What the upload is, if it is no archive. Waits for as many bytes as that takes.
fn payload_in(input: &mut PipeReader, stage: &AtomicU8, hint: Hint) -> Option<Payload> {
    let small = |have: usize| {
        if have > 0 && hint.unknown.is_some() {
            stage.store(Stage::Ended as u8, Ordering::Release);
        }
    };
    let head = input.peek(BLOCK, small);
    let zeros = head.iter().take(BLOCK).all(|b| *b == 0);
    if head.len() < BLOCK {
        // Too little for any format; one that is cut off stays what it is.
        return Payload::detect(head).or(hint.unknown.filter(|_| !head.is_empty()));
    }
    if tar::begins_a_tar(head) && !zeros {
        return None;
    }
    if let Some(payload) = Payload::detect(head) {
        return Some(payload);
    }
    // Zeros begin an ISO, a file system, and an empty archive, which may end here.
    let whole = |have: usize| {
        if have >= BLOCK && (zeros || hint.unknown.is_some()) {
            stage.store(Stage::Ended as u8, Ordering::Release);
        }
    };
    let head = input.peek(HEAD, whole);
    Payload::detect(head).or(hint.unknown)
}

/// Reads an archive entry by entry: its content is stored, then `put` says where it goes.
pub fn entries<S: Source>(
    reader: &mut Reader<S>,
    writer: &mut Writer,
    mut put: impl FnMut(Entry, Option<Content>) -> Result<()>,
) -> Result<()> {
    let mut buffer = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        let content = if entry.packed == 0 { None } else { Some(store_content(reader, writer, &entry, &mut buffer)?) };
        put(entry, content)?;
    }
    Ok(())
}

/// Puts an entry into the tree.
///
/// Errors: `LeavesRoot` and `BadArchive` for one that has no place there.
pub fn place(builder: &mut Builder, entry: Entry, content: Option<Content>) -> Result<()> {
    builder.check_heaps()?;
    let meta = Meta { mode: entry.mode, uid: entry.uid, gid: entry.gid, mtime: entry.mtime, xattrs: entry.xattrs };
    let (major, minor) = entry.device;
    let pieces = entry.sparse.as_ref().map(|map| map.pieces.as_slice());
    let size = entry.sparse.as_ref().map_or(entry.packed, |map| map.size);
    let placed = match entry.kind {
        Kind::File => builder.add(&entry.path, &meta, Make::File { content, size, sparse: pieces }),
        Kind::Directory => builder.add(&entry.path, &meta, Make::Directory),
        Kind::Symlink => builder.add(&entry.path, &meta, Make::Symlink(&entry.link)),
        Kind::HardLink => builder.link(&entry.path, &entry.link, &meta),
        Kind::CharDevice => builder.add(&entry.path, &meta, Make::CharDevice { major, minor }),
        Kind::BlockDevice => builder.add(&entry.path, &meta, Make::BlockDevice { major, minor }),
        Kind::Fifo => builder.add(&entry.path, &meta, Make::Fifo),
    };
    placed.map_err(|refused| refusal(entry.at, &entry.path, refused))
}

fn store_content<S: Source>(reader: &mut Reader<S>, writer: &mut Writer, entry: &Entry, buffer: &mut Vec<u8>) -> Result<Content> {
    let content = if entry.packed >= OBJECT_MIN {
        let mut large = writer.begin_large(entry.packed);
        while reader.read(&mut |bytes| large.write(bytes))? {}
        large.finish()?
    } else {
        let size = entry.packed as usize;
        buffer.clear();
        let mut whole = None;
        while reader.read(&mut |bytes| {
            // Most files arrive in one piece: hash and store them from where they lie.
            if bytes.len() == size {
                whole = Some(writer.put(bytes)?);
            } else {
                buffer.extend_from_slice(bytes);
            }
            Ok(())
        })? {}
        match whole {
            Some(content) => content,
            None => writer.put(buffer)?,
        }
    };
    reader.content(content, entry.packed);
    Ok(content)
}

/// The error for an entry that has no place.
pub fn refusal(at: u64, path: &[u8], refused: Refused) -> Error {
    let entry = String::from_utf8_lossy(path).into_owned();
    if refused.leaves {
        Error::LeavesRoot { at, entry, why: refused.why }
    } else {
        Error::BadArchive { at, entry, why: refused.why }
    }
}
