//! imgfs export web/1 FILE.tar.zst: writes the content of a version to one file, compressed as the name
//! says, with progress. Into a directory it writes the upload as it came, under its own name, and its
//! manifest or LXD metadata.

use std::fs::File;
use std::io::{IsTerminal, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use crate::base::lock::StoreLock;
use crate::blob::ReadBuf;
use crate::catalog::Kept;
use crate::cli::args::StoreArg;
use crate::cli::commands::progress_bar;
use crate::cli::text::bytes;
use crate::daemon::socket::{self, Answer, Request};
use crate::error::{Error, Result};
use crate::format;
use crate::formats::compress::Method;
use crate::images::export::RecipeReader;
use crate::images::keep;
use crate::images::targets::find_version;
use crate::store::settings::Settings;
use crate::store::{Store, TreeSlot};
use crate::tree::Tree;

/// How many bytes are read at a time.
const PIECE: usize = 1 << 20;

/// The source: a file of the mount, or a recipe of a store that is not mounted.
enum From {
    /// A file in the mount, or an upload that was made again.
    File(File),
    Recipe {
        store: Arc<Store>,
        slot: Arc<TreeSlot>,
        recipe: u32,
        reader: RecipeReader,
    },
    Kept {
        store: Arc<Store>,
        tree: Arc<Tree>,
        reader: RecipeReader,
    },
}

impl From {
    fn size(&self) -> Result<u64> {
        match self {
            From::File(file) => {
                file.metadata().map(|m| m.len()).map_err(Error::io("read", Path::new("the version")))
            }
            From::Recipe { slot, recipe, .. } => Ok(slot.tree.recipe(*recipe)?.tar_size),
            From::Kept { tree, .. } => Ok(tree.recipe(keep::RECIPE)?.tar_size),
        }
    }

    fn read(&mut self, at: u64, out: &mut Vec<u8>) -> Result<()> {
        out.clear();
        match self {
            From::File(file) => {
                out.resize(PIECE, 0);
                let n = file.read_at(out, at).map_err(Error::io("read", Path::new("the version")))?;
                out.truncate(n);
                Ok(())
            }
            From::Recipe { store, slot, recipe, reader } => {
                reader.read(store, &slot.tree, *recipe, at, PIECE, out)
            }
            From::Kept { store, tree, reader } => reader.read(store, tree, keep::RECIPE, at, PIECE, out),
        }
    }
}

/// What the name of the output file asks for.
struct Wish {
    /// `tar`, `qcow2` and so on.
    kind: String,
    method: Option<Method>,
    /// `zst` and so on, or empty.
    compression: String,
}

fn wish(file: &Path, level: Option<u32>) -> Result<Wish> {
    let name = file.file_name().map(|n| n.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
    let (stem, last) = name.rsplit_once('.').unwrap_or((&name, ""));
    if last == "lz4" {
        return Err(Error::Unsupported {
            what: "writing lz4".into(),
            instead: "name it .tar, .tar.gz, .tar.bz2, .tar.xz or .tar.zst",
        });
    }
    let method = Method::for_suffix(last, level);
    let kind = match (&method, last) {
        (Some(_), "tgz" | "tbz2" | "txz" | "tzst") => "tar",
        (Some(_), _) => stem.rsplit_once('.').map_or("", |(_, kind)| kind),
        (None, kind) => kind,
    };
    let compression = if method.is_some() { last.trim_start_matches('t').to_owned() } else { String::new() };
    Ok(Wish { kind: kind.to_owned(), method, compression })
}

/// The name of the file in a version that fits a wish.
fn meant(names: &[String], wish: &Wish, rootfs: bool) -> Result<String> {
    let has = |name: &str| names.iter().any(|n| n == name).then(|| name.to_owned());
    let found = match wish.kind.as_str() {
        "tar" if rootfs => has("rootfs.tar"),
        "tar" => has("image.tar").or_else(|| has("rootfs.tar")),
        "img" | "raw" => has("disk.raw"),
        kind => names.iter().find(|n| n.rsplit_once('.').is_some_and(|(_, k)| k == kind)).cloned(),
    };
    found.ok_or_else(|| Error::Invalid {
        what: format!("a file of the kind {:?}", wish.kind),
        why: format!("the version has {}", names.join(", ")),
    })
}

/// Writes the content of a version into `file`, compressed as its name says. If `file` is a directory,
/// writes the upload as it came.
///
/// # Errors
///
/// `Invalid` if no store is found, or the version has no such file, or the daemon refuses. `Unsupported` for
/// lz4, or an upload that is not kept as it came. `NotFound`, `Corrupt`, `Stopping`, `Io`. Where no mount has
/// the store, those of `Store::open`.
pub fn export(
    store: &StoreArg,
    version: &str,
    file: &Path,
    level: Option<u32>,
    rootfs: bool,
) -> Result<ExitCode> {
    let dir = store.dir()?;
    let mounted = StoreLock::holder(&dir).map(|holder| holder.mounted).filter(|mounted| !mounted.is_empty());
    if file.is_dir() {
        return export_under_its_name(&dir, mounted.as_deref().map(Path::new), version, file);
    }
    let wish = wish(file, level)?;
    let (from, as_it_came) = match mounted {
        Some(mounted) => from_mount(Path::new(&mounted), version, &wish, level, rootfs)?,
        None => from_store(&dir, version, &wish, level, rootfs)?,
    };
    write_whole(from, version, file, wish.method, as_it_came)
}

/// Writes the upload as it came, under its own name, into a directory. Its manifest goes beside it.
fn export_under_its_name(
    store: &Path,
    mounted: Option<&Path>,
    version: &str,
    directory: &Path,
) -> Result<ExitCode> {
    // A store that is not mounted is held from here to the end.
    let held = match mounted {
        Some(_) => None,
        None => {
            format::check(store)?;
            Some(Store::open(store, Settings::default())?)
        }
    };
    let request = Request::Came { version: version.to_owned() };
    let answer = match &held {
        Some(held) => socket::perform(held, request, |_, _| true)?,
        None => socket::ask(store, &request, |_, _| true)?,
    };
    let Answer::Came { serial, path, name, manifest, metadata } = answer else {
        let Answer::Failed { why } = answer else { return Err(Error::Stopping) };
        return Err(Error::Invalid { what: version.to_owned(), why });
    };
    let path = mounted.unwrap_or(Path::new("")).join(path);
    if let Some(tarball) = metadata {
        let bytes = match &held {
            Some(held) => metadata_tarball(held, serial)?,
            None => {
                let file = path.with_file_name(&tarball);
                std::fs::read(&file).map_err(Error::io("read", &file))?
            }
        };
        write_small(&directory.join(&tarball), &bytes)?;
        eprintln!("imgfs: {} has its metadata", directory.join(&tarball).display());
    }
    let from = match &held {
        Some(held) => as_it_came(held, serial)?,
        None => From::File(File::open(&path).map_err(Error::io("open", &path))?),
    };
    let written = write_whole(from, version, &directory.join(&name), None, true)?;
    if let Some(text) = manifest {
        let path = directory.join(format!("{name}.imgmanifest"));
        write_small(&path, text.as_bytes())?;
        eprintln!("imgfs: {} has its manifest", path.display());
    }
    Ok(written)
}

/// Writes a file under another name, then renames it.
fn write_small(path: &Path, bytes: &[u8]) -> Result<()> {
    let partial = partial_name(path);
    let written = std::fs::write(&partial, bytes).and_then(|()| std::fs::rename(&partial, path));
    written.map_err(Error::io("write", path)).inspect_err(|_| drop(std::fs::remove_file(&partial)))
}

/// The metadata tarball of a split LXD image, from a store that is not mounted.
fn metadata_tarball(store: &Store, serial: u32) -> Result<Vec<u8>> {
    let slot = store.tree(serial)?;
    let mut bytes = Vec::new();
    let Some((_, blob, size)) = keep::metadata_tarball(&slot.tree)? else { return Ok(bytes) };
    let mut buffer = ReadBuf::default();
    while (bytes.len() as u64) < size {
        let piece = store.blobs.read(blob, bytes.len() as u64, PIECE, &mut buffer)?;
        if piece.is_empty() {
            return Err(Error::Corrupt {
                what: "the metadata tarball".into(),
                why: "it is too short".into(),
            });
        }
        bytes.extend_from_slice(piece);
    }
    Ok(bytes)
}

/// The bytes of an upload as it came, from a store that is not mounted.
fn as_it_came(store: &Arc<Store>, serial: u32) -> Result<From> {
    let found = store.catalog.read().versions.get(&serial).cloned();
    let version = found.ok_or_else(|| Error::NotFound { what: "such version any more".into() })?;
    let (store, reader) = (store.clone(), RecipeReader::default());
    match &version.facts.kept {
        Some(Kept::Stored { .. }) => Ok(From::Kept { tree: store.kept(serial)?, store, reader }),
        Some(Kept::Made { method }) => Ok(From::File(keep::remake(&store, serial, method)?)),
        None => {
            Ok(From::Recipe { slot: store.tree(serial)?, recipe: version.facts.as_it_came(), store, reader })
        }
    }
}

/// Writes everything under another name, then renames it. So a reader never sees half a file.
fn write_whole(
    mut from: From,
    version: &str,
    file: &Path,
    method: Option<Method>,
    as_it_came: bool,
) -> Result<ExitCode> {
    let size = from.size()?;
    let bar = if std::io::stderr().is_terminal() {
        progress_bar("export")
    } else {
        indicatif::ProgressBar::hidden()
    };
    bar.set_length(size);
    let partial = partial_name(file);
    let written = write(&mut from, size, method.filter(|_| !as_it_came), &partial, &bar);
    let renamed = written
        .and_then(|n| std::fs::rename(&partial, file).map(|()| n).map_err(Error::io("rename", &partial)));
    bar.finish_and_clear();
    let written = renamed.inspect_err(|_| drop(std::fs::remove_file(&partial)))?;
    let how = if as_it_came { ", as it came" } else { "" };
    eprintln!("imgfs: {} has {version} ({}{how})", file.display(), bytes(written));
    Ok(ExitCode::SUCCESS)
}

fn partial_name(file: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(file.file_name().unwrap_or_default());
    name.push(format!(".{}.part", std::process::id()));
    file.with_file_name(name)
}

fn write(
    from: &mut From,
    size: u64,
    method: Option<Method>,
    path: &Path,
    bar: &indicatif::ProgressBar,
) -> Result<u64> {
    let failed = || Error::io("write", path);
    let out = File::create(path).map_err(failed())?;
    let mut piece = Vec::new();
    let mut at = 0;
    let mut compressor = method.map(|m| m.begin(size, &out)).transpose().map_err(failed())?;
    while at < size {
        from.read(at, &mut piece)?;
        if piece.is_empty() {
            return Err(Error::Corrupt {
                what: "the version".into(),
                why: format!("it ends at byte {at} of {size}"),
            });
        }
        match &mut compressor {
            Some(compressor) => compressor.write_all(&piece),
            None => (&out).write_all(&piece),
        }
        .map_err(failed())?;
        at += piece.len() as u64;
        bar.set_position(at);
    }
    if let Some(compressor) = compressor {
        compressor.finish().map_err(failed())?;
    }
    out.sync_all().map_err(failed())?;
    out.metadata().map(|m| m.len()).map_err(failed())
}

/// Reads through the daemon that has the store open.
fn from_mount(
    mounted: &Path,
    version: &str,
    wish: &Wish,
    level: Option<u32>,
    rootfs: bool,
) -> Result<(From, bool)> {
    let name = version.trim_matches('/');
    // An alias with slashes takes precedence over a version of the same path. Images and versions have an
    // `.id`; directories of aliases have none.
    let deep = mounted.join(".imgfs/aliases").join(name);
    let mut dir = if name.contains('/') && deep.join(".id").exists() { deep } else { mounted.join(name) };
    if dir.join("latest").exists() {
        dir.push("default");
    }
    let listed =
        std::fs::read_dir(&dir).map_err(|_| Error::NotFound { what: format!("version {version}") })?;
    let names: Vec<String> = listed.flatten().filter_map(|e| e.file_name().into_string().ok()).collect();
    let kept = kept_in(&names, wish, level, rootfs);
    let as_it_came = kept.is_some();
    let path = dir.join(match kept {
        Some(kept) => kept,
        None => meant(&names, wish, rootfs)?,
    });
    Ok((From::File(File::open(&path).map_err(Error::io("open", &path))?), as_it_came))
}

/// A kept upload with the same compression as the output file.
fn kept_in(names: &[String], wish: &Wish, level: Option<u32>, rootfs: bool) -> Option<String> {
    let same = |name: &&String| {
        let end = name.rsplit_once('.').map_or("", |(_, end)| end).trim_start_matches('t');
        !wish.compression.is_empty() && end == wish.compression
    };
    names.iter().filter(|_| level.is_none() && !rootfs).find(same).cloned()
}

/// Reads a store that is not mounted.
fn from_store(
    dir: &Path,
    version: &str,
    wish: &Wish,
    level: Option<u32>,
    rootfs: bool,
) -> Result<(From, bool)> {
    format::check(dir)?;
    let store = Store::open(dir, Settings::default())?;
    let found = find_version(&store.catalog.read(), version)?;
    let kept = keep::name(&found).and_then(|name| kept_in(&[name], wish, level, rootfs));
    match (kept, &found.facts.kept) {
        (Some(_), Some(Kept::Stored { .. })) => {
            let tree = store.kept(found.serial)?;
            return Ok((From::Kept { store, tree, reader: RecipeReader::default() }, true));
        }
        (Some(_), Some(Kept::Made { method })) => {
            return Ok((From::File(keep::remake(&store, found.serial, method)?), true));
        }
        _ => {}
    }
    let slot = store.tree(found.serial)?;
    let mut files: Vec<(String, u32)> = Vec::new();
    if slot.tree.has_rootfs() {
        files.push(("rootfs.tar".into(), 0));
    }
    files.extend(slot.tree.made_beside()?);
    let names: Vec<String> = files.iter().map(|(name, _)| name.clone()).collect();
    let name = meant(&names, wish, rootfs)?;
    let recipe = files.iter().find(|(n, _)| *n == name).map_or(0, |(_, recipe)| *recipe);
    Ok((From::Recipe { store, slot, recipe, reader: RecipeReader::default() }, false))
}
