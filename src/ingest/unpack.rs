//! The middle of an ingest: an upload of any kind becomes a tree, recipes and blobs.
//!
//! ```text
//! unpacked bytes --+--> tar entries --+--> the tar of a rootfs: as it is
//!                  |                  +--> lxd.rs: metadata.yaml, templates/, rootfs/
//!                  |                  `--> oci.rs: layers over each other
//!                  `--> payload.rs: a disk or file system image --> squashfs.rs: its rootfs, too
//! ```

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};

use crate::base::name::means_raw_disk;
use crate::blob::Writer;
use crate::error::{Error, Result};
use crate::formats::tar::{self, BLOCK, Limits, Reader, Stage};
use crate::ingest::codec::Codec;
use crate::ingest::draft::{Draft, entries, place};
use crate::ingest::kinds::payload::{self, HEAD, Payload};
use crate::ingest::kinds::{lxd, oci, qcow2, squashfs};
use crate::ingest::pipe::PipeReader;
use crate::tree::Builder;

/// What an upload's name says in addition to its content.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hint {
    /// What unrecognised bytes are: a disk image if the name ends in .img or .raw, or any file if a
    /// manifest announces it.
    pub unknown: Option<Payload>,
}

impl Hint {
    pub fn of(name: &str) -> Hint {
        Hint { unknown: means_raw_disk(name).then_some(Payload::Raw) }
    }

    /// The hint for a file that a manifest announces.
    pub fn announced(name: &str) -> Hint {
        Hint { unknown: Hint::of(name).unknown.or(Some(Payload::Opaque)) }
    }

    /// Whether a file with this beginning is an image of any kind. `None` if more bytes are needed to tell.
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

/// Whether an upload may be an LXD image, as far as it was read. `None` before its first entry.
pub type MayBeLxd = Arc<OnceLock<bool>>;

/// Reads an upload to its end. `may_be_lxd` is set by its first entry.
///
/// # Errors
///
/// Those of the reader and the writer; `LeavesRoot` and `BadArchive` for entries that have no place;
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
            let instead =
                "unpack and convert it: tar xf FILE, then qemu-img convert -O qcow2 DISK.vmdk disk.qcow2";
            return Err(Error::Unsupported {
                what: "an OVA (a virtual machine for VMware or VirtualBox)".into(),
                instead,
            });
        }
        if oci::is_archive(&draft.builder) {
            return oci::archive(draft, recipe, limits);
        }
        return Ok(Draft { tar: Some(recipe), ..draft });
    };
    let _ = may_be_lxd.set(false);
    // A small payload may end before everything that its header could name.
    let head = input.peek(HEAD, |_| stage.store(Stage::Ended as u8, Ordering::Release)).to_vec();
    let least = payload.least_size(&head);
    let set = |at: u64| {
        stage.store(if at >= least.max(1) { Stage::Ended } else { Stage::Inside } as u8, Ordering::Release)
    };
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

/// Whether an archive is an OVA: a description in its root, and disks beside it. Source: DMTF DSP0243,
/// section 5.
fn is_ova(builder: &Builder) -> bool {
    let names = builder.names_in_root();
    let ends = |ending: &[u8]| names.iter().any(|name| name.to_ascii_lowercase().ends_with(ending));
    ends(b".ovf") && !["etc", "usr", "bin"].iter().any(|name| builder.find(name).is_some())
}

/// The kind of the upload, if it is no archive. Waits for as many bytes as it needs to tell.
fn payload_in(input: &mut PipeReader, stage: &AtomicU8, hint: Hint) -> Option<Payload> {
    let small = |have: usize| {
        if have > 0 && hint.unknown.is_some() {
            stage.store(Stage::Ended as u8, Ordering::Release);
        }
    };
    let head = input.peek(BLOCK, small);
    let zeros = head.iter().take(BLOCK).all(|b| *b == 0);
    if head.len() < BLOCK {
        // This is too little for any format. A payload that is cut off keeps its kind.
        return Payload::detect(head).or(hint.unknown.filter(|_| !head.is_empty()));
    }
    if tar::begins_a_tar(head) && !zeros {
        return None;
    }
    if let Some(payload) = Payload::detect(head) {
        return Some(payload);
    }
    // An ISO, a file system and an empty archive all begin with zeros. An empty archive may end here.
    let whole = |have: usize| {
        if have >= BLOCK && (zeros || hint.unknown.is_some()) {
            stage.store(Stage::Ended as u8, Ordering::Release);
        }
    };
    let head = input.peek(HEAD, whole);
    Payload::detect(head).or(hint.unknown)
}
