//! docker save, podman save, skopeo copy: an archive of layers becomes the rootfs with which its
//! containers start.
//!
//! Source: OCI image-spec, image-layout.md, manifest.md, layer.md; Docker image specification 1.2.

use std::io::Read;

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use crate::base::digest::{Content, hex};
use crate::base::name::architecture;
use crate::error::{Error, Result};
use crate::formats::tar::{Entry, Limits, Reader};
use crate::ingest::codec::Codec;
use crate::ingest::draft::{Draft, entries, place, refusal};
use crate::ingest::inner::{self, ReadSource};
use crate::ingest::kinds::lxd::{limited, read_small};
use crate::tree::Builder;
use crate::tree::recipe::RecipeBuilder;

/// The largest manifest, index or config, and how many bytes of them are read from one archive.
const JSON_MAX: u64 = 1 << 20;
const JSON_TOTAL: u64 = 16 << 20;
/// The most layers of an image. overlayfs takes 500, Docker 127.
const LAYERS_MAX: usize = 512;
/// How deep indexes may be nested.
const NESTED_MAX: u32 = 4;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// One image of an archive.
struct Image {
    config: Value,
    layers: Vec<Blob>,
    tags: Vec<String>,
    /// The digest of its manifest, if it has one. Another descriptor with the same digest is another tag.
    digest: String,
}

/// A file of the archive that holds a layer.
struct Blob {
    name: String,
    content: Option<Content>,
    /// The sha256 that it must have, in hex: as it lies in the archive (`digest`), and unpacked
    /// (`diff_id`).
    digest: Option<String>,
    diff_id: Option<String>,
}

/// Whether docker or an OCI tool made this archive.
pub fn is_archive(builder: &Builder) -> bool {
    let file = |name: &str| builder.find(name).is_some_and(|node| builder.file(node).is_some());
    // A rootfs does not count, even with such files: its root holds bin, etc, usr.
    let is_root = ["etc", "usr", "bin", "dev"].iter().any(|name| builder.find(name).is_some());
    !is_root && (file("manifest.json") || file("oci-layout") && file("index.json"))
}

fn refuse<T>(why: impl Into<String>) -> Result<T> {
    Err(Error::Invalid { what: "the image archive".into(), why: why.into() })
}

/// Makes a version of an archive with one image. Its layers, one over the other, are rootfs/. The
/// archive is image.tar.
///
/// # Errors
///
/// `Unsupported` for several images, naming them; `Invalid`, `Mismatch` for what contradicts itself.
pub fn archive(outer: Draft, mut recipe: RecipeBuilder, limits: &Limits) -> Result<Draft> {
    let Draft { mut writer, builder, .. } = outer;
    let mut archive =
        Archive { builder: &builder, writer: &mut writer, left: JSON_TOTAL, image: None, others: Vec::new() };
    let docker = builder.find("manifest.json").is_some();
    // Docker's own list has the tags. New docker archives are OCI layouts too.
    if docker {
        archive.docker()?
    } else {
        archive.oci()?
    }
    let Archive { image, others, .. } = archive;
    let Some(Image { config, layers, mut tags, .. }) = image else { return refuse("it holds no image") };
    tags.dedup();
    if !others.is_empty() {
        let first = tags.first().cloned().unwrap_or_else(|| describe(&config));
        let names: Vec<String> = std::iter::once(first).chain(others.iter().take(20).cloned()).collect();
        return Err(Error::Unsupported {
            what: format!("an archive of {} images ({})", others.len() + 1, names.join(", ")),
            instead: "save each image into an archive of its own",
        });
    }
    if layers.len() > LAYERS_MAX {
        return Err(Error::OverLimit { what: "the number of layers".into(), limit: LAYERS_MAX.to_string() });
    }
    // The layers are forgotten once their recipes are known, so no file may use their blobs.
    for content in layers.iter().filter_map(|layer| layer.content) {
        let mut head = [0u8; Codec::MAGIC_LEN];
        let len = writer.open(content)?.read_at(0, &mut head)?;
        if Codec::detect(&head[..len]).is_none() {
            writer.hide(content);
        }
    }
    let mut draft = Draft::new(writer, Builder::new());
    let mut left = *limits;
    // Layers that lie uncompressed in the archive get recipes of their own, so image.tar is made from the
    // content of rootfs.
    let (mut nested, mut replaced) = (Vec::new(), Vec::new());
    for layer in &layers {
        if let Some(inner) = put_layer(&mut draft, layer, &mut left)?
            && let Some(content @ Content::Fresh(_)) = layer.content
            // The same layer may occur twice.
            && !replaced.contains(&content)
        {
            nested.push(inner);
            replaced.push(content);
            recipe.replace(content, Content::Recipe(1 + nested.len() as u32));
        }
    }
    for content in replaced {
        draft.writer.forget(content)?;
    }
    draft.facts.format = if docker { "docker" } else { "oci" }.into();
    draft.facts.architecture =
        config["architecture"].as_str().and_then(architecture).unwrap_or_default().into();
    draft.facts.config = summary(&config, &tags);
    if let Some(labels) = config["config"]["Labels"].as_object() {
        draft.facts.properties =
            limited(labels.iter().filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned()))).collect());
    }
    draft.derive_tar()?;
    draft.add_made("image.tar", recipe);
    draft.more.append(&mut nested);
    Ok(draft)
}

/// Puts a layer over the rootfs. Returns its recipe if it lies uncompressed in the archive.
fn put_layer(draft: &mut Draft, layer: &Blob, limits: &mut Limits) -> Result<Option<RecipeBuilder>> {
    let Some(content) = layer.content else { return Ok(None) };
    let mut reader = draft.writer.open(content)?;
    let mut head = [0u8; Codec::MAGIC_LEN];
    let len = reader.read_at(0, &mut head)?;
    let codec = Codec::detect(&head[..len]);
    let size = reader.size;
    if let Some(wanted) = &layer.digest {
        check(&mut draft.writer.open(content)?, &layer.name, wanted)?;
    }
    let mut hashing = Hashing { from: inner::unpacked(codec, reader, limits)?, sha256: Sha256::new() };
    let mut tar = Reader::new(ReadSource::new(&mut hashing), *limits, Default::default())?;
    draft.builder.begin_layer();
    let Draft { writer, builder, .. } = draft;
    let mut count = 0;
    let put = entries(&mut tar, writer, |entry, content| {
        count += 1;
        lay(builder, entry, content)
    });
    put.map_err(|e| in_layer(&layer.name, e))?;
    builder.end_layer();
    let inner = tar.into_recipe();
    limits.entries = limits.entries.saturating_sub(count);
    limits.tar_size = limits.tar_size.saturating_sub(inner.tar_size());
    if let Some(wanted) = &layer.diff_id {
        // The digest also covers what follows the end marker, and the reader has read that.
        let found = hex(&hashing.sha256.finalize());
        if found != *wanted {
            let (wanted, found) = (format!("sha256:{wanted}"), format!("sha256:{found}"));
            return Err(Error::Mismatch { what: format!("layer {}, unpacked,", layer.name), wanted, found });
        }
    }
    Ok((codec.is_none() && inner.tar_size() == size).then_some(inner))
}

/// Adds the name of the layer to an archive's error.
fn in_layer(name: &str, e: Error) -> Error {
    match e {
        Error::BadArchive { at, entry, why } => {
            Error::BadArchive { at, entry, why: format!("in layer {name}: {why}") }
        }
        Error::LeavesRoot { at, entry, why } => {
            Error::LeavesRoot { at, entry, why: format!("in layer {name}: {why}") }
        }
        Error::Truncated { at, why } => {
            Error::BadArchive { at, entry: String::new(), why: format!("layer {name} is cut off: {why}") }
        }
        Error::OverLimit { what, limit } => {
            Error::OverLimit { what: format!("in layer {name}, {what}"), limit }
        }
        other => other,
    }
}

/// Puts an entry of a layer over what is there, or removes what the entry whites out.
///
/// # Errors
///
/// `LeavesRoot` and `BadArchive` for one that has no place there.
pub fn lay(builder: &mut Builder, entry: Entry, content: Option<Content>) -> Result<()> {
    let (directory, name) = match entry.path.iter().rposition(|b| *b == b'/') {
        Some(at) => (&entry.path[..at], &entry.path[at + 1..]),
        None => (&[][..], &entry.path[..]),
    };
    let done = match name.strip_prefix(WHITEOUT) {
        None => return place(builder, entry, content),
        Some(_) if name == OPAQUE => builder.make_opaque(directory),
        // aufs kept its own files under such names.
        Some(hidden) if hidden.starts_with(WHITEOUT) => Ok(()),
        Some(hidden) => builder.white_out(&[directory, b"/", hidden].concat()),
    };
    done.map_err(|refused| refusal(entry.at, &entry.path, refused))
}

struct Archive<'a> {
    builder: &'a Builder,
    writer: &'a mut crate::blob::Writer,
    /// How many bytes of documents may still be read.
    left: u64,
    image: Option<Image>,
    /// The names of further images, which are not read.
    others: Vec<String>,
}

impl Archive<'_> {
    /// A file of the archive. Symlinks are followed, because old docker archives have them among the
    /// layers.
    fn file(&self, name: &str) -> Result<(Option<Content>, u64)> {
        let found = self.builder.find_file(name).and_then(|node| self.builder.file(node));
        found.map_or_else(|| refuse(format!("it names {name:?}, which is not there")), Ok)
    }

    fn json(&mut self, name: &str) -> Result<Value> {
        let (content, size) = self.file(name)?;
        if size > JSON_MAX {
            return refuse(format!("{name} is over {JSON_MAX} bytes"));
        }
        let Some(left) = self.left.checked_sub(size) else {
            return Err(Error::OverLimit {
                what: "the size of all its documents".into(),
                limit: format!("{JSON_TOTAL} bytes"),
            });
        };
        self.left = left;
        let text = read_small(self.writer, content)?;
        serde_json::from_slice(&text).or_else(|e| refuse(format!("{name}: {e}")))
    }

    /// Reads manifest.json, as docker save writes it.
    fn docker(&mut self) -> Result<()> {
        let list = self.json("manifest.json")?;
        let Some(list) = list.as_array() else { return refuse("its manifest.json is no list") };
        for image in list {
            let tags = image["RepoTags"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .map(str::to_owned);
            let tags: Vec<String> = tags.collect();
            if self.image.is_some() {
                self.others.push(tags.first().cloned().unwrap_or_else(|| "without a tag".into()));
                continue;
            }
            let Some(config) = image["Config"].as_str() else {
                return refuse("its manifest.json names no Config");
            };
            let config = self.json(config)?;
            let Some(names) = image["Layers"].as_array() else {
                return refuse("its manifest.json names no Layers");
            };
            let mut layers = Vec::new();
            for (n, name) in names.iter().enumerate() {
                let Some(name) = name.as_str() else {
                    return refuse("its manifest.json has a layer without name");
                };
                let (content, _) = self.file(name)?;
                layers.push(Blob { name: name.into(), content, digest: None, diff_id: diff_id(&config, n) });
            }
            self.image = Some(Image { config, layers, tags, digest: String::new() });
        }
        Ok(())
    }

    /// Reads index.json of an OCI layout.
    fn oci(&mut self) -> Result<()> {
        let index = self.json("index.json")?;
        self.manifests(&index, &[], 0)
    }

    fn manifests(&mut self, index: &Value, tags: &[String], depth: u32) -> Result<()> {
        if depth > NESTED_MAX {
            return refuse("its indexes lead to each other");
        }
        let Some(list) = index["manifests"].as_array() else {
            return refuse("an index of it has no manifests");
        };
        for descriptor in list {
            let annotation = |key: &str| descriptor["annotations"][key].as_str().map(str::to_owned);
            // These are attestations of buildkit.
            if annotation("vnd.docker.reference.type").is_some() || descriptor["platform"]["os"] == "unknown"
            {
                continue;
            }
            let named = annotation("io.containerd.image.name")
                .or_else(|| annotation("org.opencontainers.image.ref.name"));
            let tags: Vec<String> = named.into_iter().chain(tags.iter().cloned()).collect();
            let digest = descriptor["digest"].as_str().unwrap_or_default();
            match &mut self.image {
                Some(image) if image.digest == digest => {
                    image.tags.extend(tags);
                    continue;
                }
                Some(_) => {
                    self.others.push(tags.into_iter().next().unwrap_or_else(|| digest.to_owned()));
                    continue;
                }
                None => {}
            }
            let document = self.blob_json(descriptor)?;
            if document["manifests"].is_array() {
                self.manifests(&document, &tags, depth + 1)?;
                continue;
            }
            let config = self.blob_json(&document["config"])?;
            let Some(list) = document["layers"].as_array() else {
                return refuse("a manifest of it has no layers");
            };
            let mut layers = Vec::new();
            for (n, layer) in list.iter().enumerate() {
                let (name, digest) = blob_name(layer)?;
                let (content, size) = self.file(&name)?;
                if layer["size"].as_u64().is_some_and(|wanted| wanted != size) {
                    let (wanted, found) = (format!("{} bytes", layer["size"]), format!("{size} bytes"));
                    return Err(Error::Mismatch { what: format!("layer {name}"), wanted, found });
                }
                layers.push(Blob { name, content, digest: Some(digest), diff_id: diff_id(&config, n) });
            }
            self.image = Some(Image { config, layers, tags, digest: digest.to_owned() });
        }
        Ok(())
    }

    fn blob_json(&mut self, descriptor: &Value) -> Result<Value> {
        let (name, digest) = blob_name(descriptor)?;
        if let (Some(content), _) = self.file(&name)? {
            check(&mut self.writer.open(content)?, &name, &digest)?;
        }
        self.json(&name)
    }
}

/// The name of a descriptor's blob in the archive, and its sha256.
fn blob_name(descriptor: &Value) -> Result<(String, String)> {
    let digest = descriptor["digest"].as_str().unwrap_or_default();
    let Some(hex) =
        digest.strip_prefix("sha256:").filter(|h| h.len() == 64 && h.bytes().all(|b| b.is_ascii_hexdigit()))
    else {
        return refuse(format!("it names a blob with the digest {digest:?}, and only sha256 is known"));
    };
    Ok((format!("blobs/sha256/{hex}"), hex.to_ascii_lowercase()))
}

fn diff_id(config: &Value, layer: usize) -> Option<String> {
    Some(config["rootfs"]["diff_ids"].get(layer)?.as_str()?.strip_prefix("sha256:")?.to_ascii_lowercase())
}

/// Checks that content has the digest that the archive gives.
fn check(from: &mut impl Read, name: &str, wanted: &str) -> Result<()> {
    let mut hashing = Hashing { from, sha256: Sha256::new() };
    let copied = std::io::copy(&mut hashing, &mut std::io::sink());
    copied.map_err(Error::io("read", std::path::Path::new("the upload")))?;
    let found = hex(&hashing.sha256.finalize());
    if found == wanted {
        return Ok(());
    }
    Err(Error::Mismatch {
        what: name.into(),
        wanted: format!("sha256:{wanted}"),
        found: format!("sha256:{found}"),
    })
}

/// Hashes the bytes that are read through it.
struct Hashing<R> {
    from: R,
    sha256: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let n = self.from.read(out)?;
        self.sha256.update(&out[..n]);
        Ok(n)
    }
}

fn describe(config: &Value) -> String {
    let word = |key: &str| config[key].as_str().unwrap_or("?").to_owned();
    format!("{}/{}", word("os"), word("architecture"))
}

/// What metadata.json shows of a config: how a container starts, and what it was made of.
fn summary(config: &Value, tags: &[String]) -> Value {
    let mut shown = Map::new();
    let mut add = |key: &str, value: &Value| {
        if !value.is_null() {
            shown.insert(key.to_owned(), value.clone());
        }
    };
    if !tags.is_empty() {
        add("tags", &json!(tags));
    }
    for (key, from) in [
        ("created", "created"),
        ("architecture", "architecture"),
        ("os", "os"),
        ("variant", "variant"),
        ("author", "author"),
    ] {
        add(key, &config[from]);
    }
    for (key, from) in [
        ("entrypoint", "Entrypoint"),
        ("cmd", "Cmd"),
        ("env", "Env"),
        ("working_dir", "WorkingDir"),
        ("user", "User"),
        ("exposed_ports", "ExposedPorts"),
        ("volumes", "Volumes"),
        ("stop_signal", "StopSignal"),
        ("labels", "Labels"),
    ] {
        add(key, &config["config"][from]);
    }
    Value::Object(shown)
}
