//! imgfs ls --mount MNT: lists images as a mount shows them, for users who may not open the store.
//!
//! The kernel asks the daemon for each file on behalf of the user who lists. Files that this user may
//! not read are left out.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::cli::args::LsArgs;
use crate::cli::commands::{perform, unexpected};
use crate::daemon::socket::{Answer, Request};
use crate::error::{Error, Result};
use crate::fs::kernel::mount::{mounted_on, mounts};

/// The documents of the images that show, from the store or from a mount of it.
///
/// # Errors
///
/// `NotMounted`; `Invalid` where several mounts might be meant; what the store or its daemon fails with.
pub fn images(args: &LsArgs) -> Result<Vec<Value>> {
    if let Some(point) = chosen_mount(args)? {
        return read(&point);
    }
    match perform(&args.store, Request::List, "ls")? {
        Answer::Document { document: Value::Array(images) } => Ok(images),
        _ => Err(unexpected()),
    }
}

/// The mount to read. `None` if the store can be opened, or if opening it will give the error.
fn chosen_mount(args: &LsArgs) -> Result<Option<PathBuf>> {
    if let Some(point) = &args.mount {
        let mounted = mounted_on(point).filter(|mounted| is_whole_mount(&mounted.point));
        return mounted
            .map(|_| Some(point.clone()))
            .ok_or_else(|| Error::NotMounted { point: point.clone() });
    }
    let dir = args.store.dir()?;
    if mounted_on(&dir).is_some_and(|mounted| is_whole_mount(&mounted.point)) {
        return Ok(Some(dir));
    }
    let found: Vec<PathBuf> = match fs::File::open(dir.join("lock")).map_err(|e| e.kind()) {
        Err(ErrorKind::PermissionDenied) => {
            let real = fs::canonicalize(&dir).unwrap_or_else(|_| dir.clone());
            let of_it = |source: &Path| source == dir || source == real;
            readable(|source| of_it(source))
        }
        // Nobody has named a store, and this user has none.
        Err(ErrorKind::NotFound) if !args.store.is_given() => readable(|_| true),
        _ => return Ok(None),
    };
    // A mount of the whole store shows more than one of a view.
    let whole: Vec<&PathBuf> = found.iter().filter(|point| point.join(".imgfs/views").exists()).collect();
    match (whole.as_slice(), found.as_slice()) {
        ([one], _) => Ok(Some((*one).clone())),
        ([], [one]) => Ok(Some(one.clone())),
        (_, []) => Ok(None),
        (_, several) => {
            let points: Vec<String> = several.iter().map(|point| point.display().to_string()).collect();
            let why = format!("say which with --mount: {}", points.join(", "));
            Err(Error::Invalid { what: "there is more than one mount to look at".into(), why })
        }
    }
}

/// The mounts of some stores that let this user in.
fn readable(of: impl Fn(&Path) -> bool) -> Vec<PathBuf> {
    let mut points: Vec<PathBuf> = mounts().into_iter().filter(|m| of(&m.source)).map(|m| m.point).collect();
    points.sort();
    points.dedup();
    // A tree that is mounted inside a mount does not count, whatever is in it.
    let outer = points.clone();
    points.retain(|point| {
        !outer.iter().any(|other| other != point && point.starts_with(other)) && is_whole_mount(point)
    });
    points
}

fn is_whole_mount(point: &Path) -> bool {
    point.join(".imgfs/status.json").exists() && fs::read_dir(point).is_ok()
}

/// Reads what a mount shows, in the form of `describe::listed`.
fn read(point: &Path) -> Result<Vec<Value>> {
    let listed = fs::read_dir(point).map_err(Error::io("list", point))?;
    let names = listed.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let mut names: Vec<String> = names.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    let digests = digests(point);
    let mut images = Vec::new();
    for name in names.iter().filter(|name| !name.starts_with('.')) {
        // The image is private, or was deleted meanwhile.
        let Ok(text) = fs::read(point.join(name).join("metadata.json")) else { continue };
        let Ok(mut image) = serde_json::from_slice::<Value>(&text) else { continue };
        for version in image["versions"].as_array_mut().into_iter().flatten() {
            let path = format!("{name}/{}", version["number"]);
            let holders = fs::read_dir(point.join(&path).join("used_by")).into_iter().flatten().flatten();
            let mut holders: Vec<String> =
                holders.filter_map(|entry| entry.file_name().into_string().ok()).collect();
            holders.sort();
            version["used_by"] = holders.into();
            version["sha256"] = digests.get(&path).into_iter().flatten().cloned().map(Value::from).collect();
        }
        images.push(image);
    }
    Ok(images)
}

/// The sha256s of each version, by its path in the mount.
fn digests(point: &Path) -> HashMap<String, BTreeSet<String>> {
    let mut all: HashMap<String, BTreeSet<String>> = HashMap::new();
    for entry in fs::read_dir(point.join(".imgfs/by-digest")).into_iter().flatten().flatten() {
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        let path = target.to_string_lossy().trim_start_matches("../").to_owned();
        all.entry(path).or_default().extend(entry.file_name().into_string());
    }
    all
}
