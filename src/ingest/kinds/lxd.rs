//! An LXD or Incus image: metadata.yaml, templates/ and rootfs/ in one tarball, or two files.
//!
//! Source: LXD, doc/reference/image_format.md; shared/api/image.go.

use std::collections::BTreeMap;
use std::io::Read;

use crate::base::digest::Content;
use crate::base::name::{architecture, is_part_of_version};
use crate::error::{Error, Result};
use crate::formats::tar::{Limits, Reader};
use crate::ingest::codec::Codec;
use crate::ingest::draft::{Draft, entries, place};
use crate::ingest::inner::{self, ReadSource};
use crate::ingest::kinds::payload::Payload;
use crate::ingest::kinds::{qcow2, squashfs};
use crate::tree::Builder;
use crate::tree::recipe::RecipeBuilder;

/// The largest metadata.yaml, in bytes. This is LXD's own limit.
const METADATA_MAX: u64 = 1 << 20;
/// How many bytes the metadata tarball of a split image may unpack to.
const TARBALL_MAX: u64 = 64 << 20;
/// What a unified image's archive may hold in its root.
const PARTS: &[&[u8]] = &[b"metadata.yaml", b"rootfs", b"templates", b"rootfs.img", b"rootfs.squashfs"];

/// Whether an entry is metadata.yaml. An archive may have only one.
pub fn is_metadata(path: &[u8]) -> bool {
    path.strip_prefix(b"./").unwrap_or(path) == b"metadata.yaml"
}

/// Whether an archive is an LXD image, or half of one: it has metadata.yaml, and nothing in its root
/// that LXD does not know.
pub fn is_unified(builder: &Builder) -> bool {
    builder.find("metadata.yaml").is_some()
        && builder.names_in_root().iter().all(|name| PARTS.contains(&name.as_slice()))
}

/// Whether an archive with this entry may be an LXD image. `None` if the entry is the root itself.
pub fn may_have(path: &[u8]) -> Option<bool> {
    let first = path.split(|b| *b == b'/').find(|part| !part.is_empty() && *part != b".")?;
    Some(PARTS.contains(&first))
}

fn refuse<T>(why: impl Into<String>) -> Result<T> {
    Err(Error::Invalid { what: "the LXD image".into(), why: why.into() })
}

/// Makes a version of a unified image. rootfs/ stays rootfs/, metadata.yaml and templates/ go beside
/// it, and image.tar is the upload.
///
/// # Errors
///
/// `Invalid` for what LXD would refuse.
pub fn unified(mut draft: Draft, recipe: RecipeBuilder, metadata: usize) -> Result<Draft> {
    if metadata > 1 {
        return refuse("it has metadata.yaml more than once");
    }
    take_metadata(&mut draft)?;
    let find = |draft: &Draft, name: &str| draft.builder.find(name);
    draft.facts.format = "lxd".into();
    if let Some(rootfs) = find(&draft, "rootfs").filter(|node| draft.builder.is_directory(*node)) {
        draft.builder.set_root(rootfs);
        draft.derive_tar()?;
    } else if let Some((payload, node)) =
        [("rootfs.img", Payload::Qcow2), ("rootfs.squashfs", Payload::Squashfs)]
            .into_iter()
            .find_map(|(n, p)| Some((p, find(&draft, n)?)))
    {
        let head = head_of(&mut draft, node)?;
        if Payload::detect(&head) != Some(payload) {
            return refuse(format!("its rootfs.img is no {}", payload.name()));
        }
        draft.facts.virtual_size = payload.virtual_size(&head, 0);
        if let Some((Some(content), _)) = draft.builder.file(node) {
            let mut disk = draft.writer.open(content)?;
            if payload == Payload::Qcow2 { qcow2::check(&mut disk)? } else { squashfs::check(disk)? }
        }
        draft.builder.show_beside(payload.file_name().as_bytes(), node);
        // The archive's root is not shown, only the files beside it.
        let empty = draft.builder.new_directory();
        draft.builder.set_root(empty);
    } else {
        return refuse(
            "it has neither rootfs/ nor rootfs.img: put both files of a split image into a staging directory",
        );
    }
    draft.add_made("image.tar", recipe);
    Ok(draft)
}

/// Adds the metadata tarball of a split image to a version of its rootfs. `name` is the tarball's name.
///
/// # Errors
///
/// `Invalid` for what LXD would refuse; those of the decoder and the archive reader.
pub fn add_metadata(draft: &mut Draft, name: &str, tarball: &[u8], limits: &Limits) -> Result<()> {
    let limits = Limits { tar_size: TARBALL_MAX.min(limits.tar_size), ..*limits };
    let mut reader = Reader::new(
        ReadSource::new(inner::unpacked(Codec::detect(tarball), tarball, &limits)?.take(TARBALL_MAX + 1)),
        limits,
        Default::default(),
    )?;
    let (mut builder, mut metadata) = (Builder::new(), 0);
    entries(&mut reader, &mut draft.writer, |entry, content| {
        metadata += usize::from(is_metadata(&entry.path));
        place(&mut builder, entry, content)
    })?;
    if metadata > 1 {
        return refuse("it has metadata.yaml more than once");
    }
    let text = read_metadata(&mut draft.writer, &builder)?;
    describe(draft, &text)?;
    draft.builder.take_beside(&builder, "metadata.yaml");
    draft.builder.take_beside(&builder, "templates");
    draft.facts.format = "lxd".into();
    let taken = is_part_of_version(name);
    draft.add_small(&if taken { format!("metadata-{name}") } else { name.to_owned() }, tarball)
}

/// Whether these bytes are the metadata tarball of a split image: metadata.yaml, and no rootfs.
pub fn is_metadata_tarball(bytes: &[u8], limits: &Limits) -> bool {
    let looked = (|| {
        let limits = Limits { tar_size: TARBALL_MAX, ..*limits };
        let source =
            ReadSource::new(inner::unpacked(Codec::detect(bytes), bytes, &limits)?.take(TARBALL_MAX));
        let mut reader = Reader::new(source, limits, Default::default())?;
        let (mut metadata, mut other) = (false, false);
        while let Some(entry) = reader.next_entry()? {
            let path = entry.path.strip_prefix(b"./").unwrap_or(&entry.path);
            metadata |= is_metadata(path);
            other |=
                !(path.is_empty() || path == b"." || is_metadata(path) || path.starts_with(b"templates"));
            while reader.read(&mut |_| Ok(()))? {}
        }
        Ok::<_, Error>(metadata && !other)
    })();
    looked.unwrap_or(false)
}

fn take_metadata(draft: &mut Draft) -> Result<()> {
    let text = read_metadata(&mut draft.writer, &draft.builder)?;
    describe(draft, &text)?;
    if draft.builder.find("templates").is_some_and(|node| !draft.builder.is_directory(node)) {
        return refuse("its templates is no directory");
    }
    for name in ["metadata.yaml", "templates"] {
        if let Some(node) = draft.builder.find(name) {
            draft.builder.show_beside(name.as_bytes(), node);
        }
    }
    Ok(())
}

/// The first bytes of a regular file in the archive. Empty for anything else.
fn head_of(draft: &mut Draft, node: crate::tree::NodeIndex) -> Result<Vec<u8>> {
    let Some((Some(content), _)) = draft.builder.file(node) else { return Ok(Vec::new()) };
    let mut head = vec![0; 4096];
    let n = draft.writer.open(content)?.read_at(0, &mut head)?;
    head.truncate(n);
    Ok(head)
}

fn read_metadata(writer: &mut crate::blob::Writer, builder: &Builder) -> Result<Vec<u8>> {
    let Some(node) = builder.find("metadata.yaml") else { return refuse("it has no metadata.yaml") };
    let Some((content, size)) = builder.file(node) else {
        return refuse("its metadata.yaml is no regular file");
    };
    if size > METADATA_MAX {
        return refuse(format!("its metadata.yaml is over {METADATA_MAX} bytes"));
    }
    read_small(writer, content)
}

/// All bytes of a small content.
///
/// # Errors
///
/// `Corrupt`, `Io`.
pub fn read_small(writer: &mut crate::blob::Writer, content: Option<Content>) -> Result<Vec<u8>> {
    let Some(content) = content else { return Ok(Vec::new()) };
    let mut text = Vec::new();
    let read = writer.open(content)?.read_to_end(&mut text);
    read.map_err(Error::io("read", std::path::Path::new("the upload")))?;
    Ok(text)
}

/// The parts of metadata.yaml that imgfs uses. Values are text, as written there.
#[derive(serde::Deserialize)]
struct Metadata {
    architecture: Option<String>,
    creation_date: Option<i64>,
    expiry_date: Option<i64>,
    properties: Option<BTreeMap<String, String>>,
}

/// Keeps properties up to 64 KiB in all, because they must fit into an editable metadata.json.
pub fn limited(properties: BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut left = 64 * 1024usize;
    let fits = |(key, value): &(String, String)| {
        let fits = key.len() + value.len() <= left;
        left -= if fits { key.len() + value.len() } else { 0 };
        fits
    };
    properties.into_iter().filter(fits).collect()
}

/// Reads metadata.yaml into the facts.
fn describe(draft: &mut Draft, text: &[u8]) -> Result<()> {
    let text = std::str::from_utf8(text).or_else(|_| refuse("its metadata.yaml is not UTF-8"))?;
    let parsed: Metadata =
        serde_saphyr::from_str(text).or_else(|e| refuse(format!("its metadata.yaml: {e}")))?;
    let word = parsed.architecture.unwrap_or_default();
    // "x86_64 x86_64" was seen. LXD takes the first word.
    let Some(machine) = word.split_whitespace().next().and_then(architecture) else {
        return refuse(format!("its metadata.yaml has no architecture that is known ({word:?})"));
    };
    if parsed.creation_date.is_none_or(|at| at == 0) {
        return refuse("its metadata.yaml has no creation_date");
    }
    let nanoseconds = |seconds: i64| seconds.checked_mul(1_000_000_000);
    draft.facts.built_at = parsed.creation_date.and_then(nanoseconds);
    draft.facts.outdated_at = parsed.expiry_date.filter(|at| *at > 0).and_then(nanoseconds);
    draft.facts.architecture = machine.into();
    draft.facts.properties = limited(parsed.properties.unwrap_or_default());
    for (key, field) in [("os", &mut draft.facts.os), ("release", &mut draft.facts.release)] {
        if let Some(value) = draft.facts.properties.get(key) {
            field.clone_from(value);
        }
    }
    Ok(())
}
