//! ln -s ../../../../web MNT/.imgfs/aliases/centos/6/amd64: aliases whose names have slashes, shown as
//! directories of links.
//!
//! An alias of one part is also a link in the root: `jammy` and `.imgfs/aliases/jammy` are the same
//! alias. A directory exists while an alias is in it. One that mkdir made exists until rmdir, or until
//! the daemon ends.

use std::collections::BTreeSet;

use crate::base::name::AliasName;
use crate::catalog::{Alias, Model};
use crate::error::{Error, Result};
use crate::fs::names::is_temporary;
use crate::fs::names::text_of;
use crate::fs::node::{Control, NodeId, number_of};
use crate::fs::places::link::{self, alias_log};
use crate::fs::places::{Kind, Named, Place, no_rmdir};
use crate::fs::rights;
use crate::fs::{Attr, Caller, DirEntry, ImageFs, stale};
use crate::images::links::{self, parents};
use crate::images::targets::{self, LinkTarget, path_of_target};

/// The path from the directory of aliases to the root.
const UP: &str = "../../";
/// How many directories without an alias are remembered.
const EMPTY_MAX: usize = 4096;

/// `.imgfs/aliases`: directories and links. A directory's number is made of its path from there, a
/// link's of its text.
pub struct Aliases;

/// The bit of a node's number that tells a link from a directory.
const LINK: u64 = 1;

fn directory_at(path: &str) -> NodeId {
    NodeId::In(Kind::Aliases, if path.is_empty() { 0 } else { number_of(path) << 1 })
}

fn link_saying(text: &str) -> NodeId {
    NodeId::In(Kind::Aliases, number_of(text) << 1 | LINK)
}

/// Whether this is the directory of aliases, or one in it.
pub(in crate::fs) fn is_directory(node: NodeId) -> bool {
    matches!(node, NodeId::In(Kind::Aliases, number) if number & LINK == 0)
}

/// The text of an alias's link: the path up to the root, and the target of the alias.
fn text_of_alias(model: &Model, alias: &Alias) -> Option<String> {
    Some(format!(
        "{UP}{}{}",
        "../".repeat(alias.name.matches('/').count()),
        path_of_target(model, &targets::target_of_alias(alias))?
    ))
}

fn join(directory: &str, name: &str) -> String {
    if directory.is_empty() { name.to_owned() } else { format!("{directory}/{name}") }
}

/// The directories below `.imgfs/aliases`, by their paths from there.
fn directories(fs: &ImageFs) -> BTreeSet<String> {
    let mut all = fs.alias_directories.lock().clone();
    let model = fs.store.catalog.read();
    all.extend(model.aliases_in("").flat_map(|(name, _)| parents(name)).map(str::to_owned));
    all
}

/// The path from `.imgfs/aliases` to a directory; empty for `.imgfs/aliases` itself.
fn path_of(fs: &ImageFs, directory: u64) -> Result<String> {
    match directory {
        0 => Ok(String::new()),
        _ => directories(fs).into_iter().find(|path| number_of(path) << 1 == directory).ok_or_else(stale),
    }
}

/// The full name of an alias in a directory.
fn name_in(fs: &ImageFs, directory: u64, name: &[u8]) -> Result<String> {
    let name = std::str::from_utf8(name).map_err(|_| Error::NotFound { what: text_of(name) })?;
    Ok(join(&path_of(fs, directory)?, name))
}

/// The full name of an alias, where the directory may be of another kind.
fn name_at(fs: &ImageFs, at: &Named) -> Result<String> {
    let NodeId::In(Kind::Aliases, directory) = at.0 else { return Err(stale()) };
    name_in(fs, directory, &at.1)
}

/// The text of a link, and the image that it leads to. The number is made of the text, so any alias
/// with that text will do.
fn link_with(fs: &ImageFs, number: u64) -> Result<(String, u32)> {
    let model = fs.store.catalog.read();
    let mut all =
        model.aliases_in("").filter_map(|(_, alias)| Some((text_of_alias(&model, alias)?, alias.image)));
    all.find(|(text, _)| number_of(text) << 1 | LINK == number).ok_or_else(stale)
}

/// Keeps the directories of a name when its alias goes. BusyBox's ln -sfn removes the alias before it
/// makes the new one.
fn keep_directories(fs: &ImageFs, name: &str) {
    let mut made = fs.alias_directories.lock();
    for parent in parents(name) {
        if made.len() < EMPTY_MAX {
            made.insert(parent.to_owned());
        }
    }
}

/// What a link in a directory of aliases leads to. The text is a path up to the root and down again,
/// perhaps to another alias, or an absolute path into the mount. A bare name also works.
fn target(fs: &ImageFs, directory: u64, target: &[u8]) -> Result<LinkTarget> {
    let missing = || Error::NotFound { what: format!("{} to link to", text_of(target)) };
    let text = std::str::from_utf8(target).map_err(|_| missing())?;
    let model = fs.store.catalog.read();
    if text.starts_with('/') {
        return targets::resolve_root_link(&model, text, &fs.mount.path);
    }
    let path = path_of(fs, directory)?;
    let mut at: Vec<&str> =
        [".imgfs", "aliases"].into_iter().chain(path.split('/').filter(|p| !p.is_empty())).collect();
    for part in text.split('/').filter(|part| !part.is_empty() && *part != ".") {
        if part == ".." {
            at.pop().ok_or_else(missing)?;
        } else {
            at.push(part);
        }
    }
    match at.as_slice() {
        [".imgfs", "aliases", name @ ..] => match model.alias_named(&name.join("/")) {
            Some(alias) => Ok(targets::target_of_alias(alias)),
            None if !text.starts_with("..") => targets::resolve_root_link(&model, text, ""),
            None => Err(missing()),
        },
        [".imgfs", ..] => Err(missing()),
        inside => targets::resolve_root_link(&model, &inside.join("/"), ""),
    }
}

impl Place for Aliases {
    fn lookup(&self, fs: &ImageFs, _caller: Caller, directory: NodeId, name: &[u8]) -> Result<NodeId> {
        let full = name_in(fs, directory.number(), name)?;
        if directories(fs).contains(&full) {
            return Ok(directory_at(&full));
        }
        let model = fs.store.catalog.read();
        let text = model.alias_named(&full).and_then(|alias| text_of_alias(&model, alias));
        text.map(|text| link_saying(&text)).ok_or(Error::NotFound { what: full })
    }

    fn list(&self, fs: &ImageFs, _caller: Caller, directory: NodeId, all: &mut Vec<DirEntry>) -> Result<()> {
        let path = path_of(fs, directory.number())?;
        let directories = directories(fs);
        let here = |full: &str| {
            let rest = if path.is_empty() { full } else { full.strip_prefix(&path)?.strip_prefix('/')? };
            (!rest.contains('/')).then(|| rest.to_owned())
        };
        for full in &directories {
            let node = directory_at(full);
            all.extend(here(full).map(|name| DirEntry::new(name, node, libc::S_IFDIR)));
        }
        let model = fs.store.catalog.read();
        for (full, alias) in model.aliases_in(&path).filter(|(full, _)| !directories.contains(*full)) {
            let Some((name, text)) = here(full).zip(text_of_alias(&model, alias)) else { continue };
            let node = link_saying(&text);
            all.push(DirEntry::new(name, node, libc::S_IFLNK));
        }
        Ok(())
    }

    fn parent(&self, fs: &ImageFs, node: NodeId) -> NodeId {
        let number = node.number();
        if number == 0 {
            return NodeId::Control(Control::Dir);
        }
        let path = path_of(fs, number).unwrap_or_default();
        path.rsplit_once('/').map_or(NodeId::In(Kind::Aliases, 0), |(up, _)| directory_at(up))
    }

    fn path(&self, fs: &ImageFs, directory: NodeId, name: &str) -> String {
        format!("/.imgfs/aliases/{}", join(&path_of(fs, directory.number()).unwrap_or_default(), name))
    }

    /// An alias belongs to the owner of its image, and a directory to the owner of the root.
    fn attr(&self, fs: &ImageFs, node: NodeId, own: Attr) -> Result<Attr> {
        let number = node.number();
        if number & LINK == 0 {
            let root = fs.root();
            return Ok(Attr {
                mode: libc::S_IFDIR | rights::of_root(fs).mode,
                uid: root.uid,
                gid: root.gid,
                ..own
            });
        }
        let (text, image) = link_with(fs, number)?;
        let model = fs.store.catalog.read();
        let (uid, gid) = model.images.get(&image).map_or((own.uid, own.gid), |i| (i.uid, i.gid));
        let size = text.len() as u64;
        Ok(Attr { mode: libc::S_IFLNK | 0o777, links: 1, uid, gid, size, data: size, ..own })
    }

    fn readlink(&self, fs: &ImageFs, node: NodeId) -> Result<Vec<u8>> {
        let number = node.number();
        Ok(link_with(fs, number)?.0.into_bytes())
    }

    /// `mkdir -p .imgfs/aliases/centos/6`.
    fn mkdir(
        &self,
        fs: &ImageFs,
        caller: Caller,
        directory: NodeId,
        name: &[u8],
        _mode: u32,
    ) -> Result<NodeId> {
        let full = name_in(fs, directory.number(), name)?;
        // An alias in this directory has a longer name, and that name must be valid too.
        AliasName::parse(format!("{full}/x").as_bytes())?;
        links::refuse_alias_path(&fs.store.catalog.read(), &full)?;
        if self.lookup(fs, caller, directory, name).is_ok() {
            return Err(Error::Taken { name: full, holder: "there is one already".into() });
        }
        let mut made = fs.alias_directories.lock();
        if made.len() >= EMPTY_MAX {
            let limit = format!("{EMPTY_MAX} directories of aliases");
            return Err(Error::OverLimit { what: "what was made without an alias in it".into(), limit });
        }
        let node = directory_at(&full);
        made.insert(full);
        Ok(node)
    }

    /// `rmdir` of an empty directory.
    fn rmdir(&self, fs: &ImageFs, _caller: Caller, node: NodeId, _parent: NodeId) -> Result<()> {
        let number = node.number();
        if number == 0 {
            return Err(no_rmdir());
        }
        let path = path_of(fs, number)?;
        let below = format!("{path}/");
        if directories(fs).iter().any(|other| other.starts_with(&below))
            || fs.store.catalog.read().aliases_in(&path).next().is_some()
        {
            return Err(Error::NotEmpty { what: format!(".imgfs/aliases/{path}") });
        }
        fs.alias_directories.lock().remove(&path);
        Ok(())
    }

    /// `ln -s`, and the first half of `ln -sfn`.
    fn symlink(
        &self,
        fs: &ImageFs,
        caller: Caller,
        directory: NodeId,
        name: &[u8],
        text: &[u8],
    ) -> Result<NodeId> {
        let to = target(fs, directory.number(), text)?;
        if is_temporary(name) {
            return Ok(fs.temporary_links.put(caller, directory, name, text));
        }
        let full = name_in(fs, directory.number(), name)?;
        if fs.store.catalog.read().alias_named(&full).is_some() {
            return Err(Error::Taken { name: full, holder: "there is one already".into() });
        }
        link::put_alias(fs, caller, &AliasName::parse(full.as_bytes())?, to, text)?;
        fs.root_has_changed();
        self.lookup(fs, caller, directory, name)
    }

    /// The second half of `ln -sfn`.
    fn switch(
        &self,
        fs: &ImageFs,
        caller: Caller,
        directory: NodeId,
        name: &[u8],
        text: &[u8],
    ) -> Result<()> {
        let to = target(fs, directory.number(), text)?;
        if is_temporary(name) {
            fs.temporary_links.put(caller, directory, name, text);
            return Ok(());
        }
        let full = name_in(fs, directory.number(), name)?;
        link::put_alias(fs, caller, &AliasName::parse(full.as_bytes())?, to, text)
    }

    /// `rm` moves the alias into the trash.
    fn unlink(&self, fs: &ImageFs, caller: Caller, directory: NodeId, name: &[u8]) -> Result<()> {
        if is_directory(self.lookup(fs, caller, directory, name)?) {
            return Err(Error::IsDirectory { what: text_of(name) });
        }
        let full = name_in(fs, directory.number(), name)?;
        let serial =
            fs.store.catalog.read().alias_named(&full).map(|alias| alias.serial).ok_or_else(stale)?;
        link::refuse_alias_change(fs, caller, &full)?;
        links::drop_alias(&fs.store, serial)?;
        keep_directories(fs, &full);
        fs.root_has_changed();
        fs.store.journal.log(caller.uid, "unalias", &alias_log(&full), "dropped");
        Ok(())
    }

    /// `mv` within `.imgfs/aliases`, of an alias or of a directory with all that is in it.
    fn rename(&self, fs: &ImageFs, caller: Caller, node: NodeId, from: &Named, to: &Named) -> Result<()> {
        let number = node.number();
        if !is_directory(to.0) {
            return Err(Error::Managed {
                what: text_of(&from.1),
                why: "an alias in .imgfs/aliases moves within that",
            });
        }
        let (old, new) = (name_at(fs, from)?, name_at(fs, to)?);
        for name in [&old, &new] {
            link::refuse_alias_change(fs, caller, name)?;
        }
        if number & LINK == 0 {
            AliasName::parse(format!("{new}/x").as_bytes())?;
            let within: Vec<String> =
                fs.store.catalog.read().aliases_in(&old).map(|(name, _)| name.to_owned()).collect();
            within.iter().try_for_each(|name| link::refuse_alias_change(fs, caller, name))?;
            if directories(fs).iter().any(|other| other.starts_with(&format!("{new}/"))) {
                return Err(Error::NotEmpty { what: format!(".imgfs/aliases/{new}") });
            }
            links::rename_alias_directory(&fs.store, &old, &new)?;
            let below = format!("{old}/");
            let mut made = fs.alias_directories.lock();
            let moved = |path: &String| match path.strip_prefix(&below) {
                Some(rest) => format!("{new}/{rest}"),
                None if *path == old => new.clone(),
                None => path.clone(),
            };
            *made = made.iter().map(moved).chain([new.clone()]).collect();
            drop(made);
        } else {
            let serial =
                fs.store.catalog.read().alias_named(&old).map(|alias| alias.serial).ok_or_else(stale)?;
            let name = AliasName::parse(new.as_bytes())?;
            if !name.as_str().contains('/') {
                fs.refuse_staged(name.as_str(), None)?;
            }
            links::rename_alias(&fs.store, serial, Some(&name))?;
        }
        keep_directories(fs, &old);
        fs.root_has_changed();
        fs.store.journal.log(caller.uid, "rename", &alias_log(&old), &alias_log(&new));
        Ok(())
    }
}

/// The name under which an alias comes back from the trash. It is the old name if that has slashes and
/// the gesture gives no other.
pub(in crate::fs) fn name_of_restored(
    fs: &ImageFs,
    caller: Caller,
    serial: u32,
    to: &Named,
) -> Result<AliasName> {
    let own = {
        let model = fs.store.catalog.read();
        let alias = model.aliases.get(&serial).ok_or_else(stale)?;
        let entry = alias.trashed.as_ref().map(|trash| trash.name.clone());
        (alias.name.contains('/') && entry.is_some_and(|entry| entry.as_bytes() == to.1))
            .then(|| alias.name.clone())
    };
    let name = match own {
        Some(name) => name,
        None if is_directory(to.0) => name_at(fs, to)?,
        None => return Ok((&fs.new_name(caller, &to.1)?).into()),
    };
    fs.refuse_binding(caller, &name)?;
    AliasName::parse(name.as_bytes())
}
