//! ln -s ../../../../web MNT/.imgfs/aliases/centos/6/amd64: aliases whose names have slashes, as directories of links.
//!
//! An alias of one part is a link of the root, too: `jammy` and `.imgfs/aliases/jammy` are the same. A directory is there
//! while an alias is in it; those that mkdir made, until rmdir or the end of the daemon.

use std::collections::BTreeSet;

use crate::base::name::AliasName;
use crate::catalog::{Alias, Model};
use crate::error::{Error, Result};
use crate::fs::names::is_temporary;
use crate::fs::names::text_of;
use crate::fs::node::{Control, NodeId, number_of};
use crate::fs::{Caller, DirEntry, ImageFs, stale};
use crate::images::links::{self, LinkTarget, parents, path_of_target};

/// The way from the directory of aliases to the root.
const UP: &str = "../../";
/// Directories without an alias that are remembered.
const EMPTY_MAX: usize = 4096;

/// Whether this is the directory of aliases, or one in it.
pub(super) fn is_alias_directory(node: NodeId) -> bool {
    matches!(node, NodeId::Control(Control::Aliases) | NodeId::AliasDirectory(_))
}

/// What the link of an alias says: the way up to the root, and what it leads to.
fn text_of_alias(model: &Model, alias: &Alias) -> Option<String> {
    Some(format!("{UP}{}{}", "../".repeat(alias.name.matches('/').count()), path_of_target(model, &links::target_of(alias))?))
}

fn join(directory: &str, name: &str) -> String {
    if directory.is_empty() { name.to_owned() } else { format!("{directory}/{name}") }
}

impl ImageFs {
    /// The directories below `.imgfs/aliases`, by their ways from there.
    fn alias_directories(&self) -> BTreeSet<String> {
        let mut all = self.alias_directories.lock().clone();
        let model = self.store.catalog.read();
        all.extend(model.aliases_in("").flat_map(|(name, _)| parents(name)).map(str::to_owned));
        all
    }

    /// The way from `.imgfs/aliases` to a directory; empty for that itself.
    fn alias_path(&self, node: NodeId) -> Result<String> {
        match node {
            NodeId::Control(Control::Aliases) => Ok(String::new()),
            NodeId::AliasDirectory(number) => {
                self.alias_directories().into_iter().find(|path| number_of(path) == number).ok_or_else(stale)
            }
            _ => Err(stale()),
        }
    }

    /// The name that an alias in a directory has.
    fn alias_named(&self, parent: NodeId, name: &[u8]) -> Result<String> {
        let name = std::str::from_utf8(name).map_err(|_| Error::NotFound { what: text_of(name) })?;
        Ok(join(&self.alias_path(parent)?, name))
    }

    pub(super) fn alias_parent(&self, node: NodeId) -> NodeId {
        let path = self.alias_path(node).unwrap_or_default();
        path.rsplit_once('/').map_or(NodeId::Control(Control::Aliases), |(up, _)| NodeId::AliasDirectory(number_of(up)))
    }

    /// How what is in a directory of aliases is called in messages.
    pub(super) fn alias_shown(&self, parent: NodeId, name: &str) -> String {
        format!("/.imgfs/aliases/{}", join(&self.alias_path(parent).unwrap_or_default(), name))
    }

    pub(super) fn lookup_alias(&self, parent: NodeId, name: &[u8]) -> Result<NodeId> {
        if let Some(staged) = self.staged_link(parent, name) {
            return Ok(staged);
        }
        let full = self.alias_named(parent, name)?;
        if self.alias_directories().contains(&full) {
            return Ok(NodeId::AliasDirectory(number_of(&full)));
        }
        let model = self.store.catalog.read();
        let text = model.alias_named(&full).and_then(|alias| text_of_alias(&model, alias));
        text.map(|text| NodeId::AliasLink(number_of(&text))).ok_or(Error::NotFound { what: full })
    }

    pub(super) fn list_aliases(&self, node: NodeId, all: &mut Vec<DirEntry>) -> Result<()> {
        let path = self.alias_path(node)?;
        let directories = self.alias_directories();
        let here = |full: &str| {
            let rest = if path.is_empty() { full } else { full.strip_prefix(&path)?.strip_prefix('/')? };
            (!rest.contains('/')).then(|| rest.to_owned())
        };
        for full in &directories {
            let node = NodeId::AliasDirectory(number_of(full));
            all.extend(here(full).map(|name| DirEntry { name: name.into_bytes(), node, format: libc::S_IFDIR }));
        }
        let model = self.store.catalog.read();
        for (full, alias) in model.aliases_in(&path).filter(|(full, _)| !directories.contains(*full)) {
            let Some((name, text)) = here(full).zip(text_of_alias(&model, alias)) else { continue };
            let node = NodeId::AliasLink(number_of(&text));
            all.push(DirEntry { name: name.into_bytes(), node, format: libc::S_IFLNK });
        }
        Ok(())
    }

    /// What a link says, and the image that it leads to. Its number is made of what it says: of two aliases that say the
    /// same, either will do.
    pub(super) fn alias_link(&self, number: u64) -> Result<(String, u32)> {
        let model = self.store.catalog.read();
        let mut all = model.aliases_in("").filter_map(|(_, alias)| Some((text_of_alias(&model, alias)?, alias.image)));
        all.find(|(text, _)| number_of(text) == number).ok_or_else(stale)
    }

    /// `mkdir -p .imgfs/aliases/centos/6`.
    pub(super) fn make_alias_directory(&self, parent: NodeId, name: &[u8]) -> Result<NodeId> {
        let full = self.alias_named(parent, name)?;
        // What is in it has a longer name.
        AliasName::parse(format!("{full}/x").as_bytes())?;
        links::refuse_alias_path(&self.store.catalog.read(), &full)?;
        if self.lookup_alias(parent, name).is_ok() {
            return Err(Error::Taken { name: full, holder: "there is one already".into() });
        }
        let mut made = self.alias_directories.lock();
        if made.len() >= EMPTY_MAX {
            let limit = format!("{EMPTY_MAX} directories of aliases");
            return Err(Error::OverLimit { what: "what was made without an alias in it".into(), limit });
        }
        let number = number_of(&full);
        made.insert(full);
        Ok(NodeId::AliasDirectory(number))
    }

    /// `rmdir`: of an empty one.
    pub(super) fn remove_alias_directory(&self, node: NodeId) -> Result<()> {
        let path = self.alias_path(node)?;
        let below = format!("{path}/");
        if self.alias_directories().iter().any(|other| other.starts_with(&below))
            || self.store.catalog.read().aliases_in(&path).next().is_some()
        {
            return Err(Error::NotEmpty { what: format!(".imgfs/aliases/{path}") });
        }
        self.alias_directories.lock().remove(&path);
        Ok(())
    }

    /// The directories of a name stay when its alias goes: BusyBox's ln -sfn removes it before it makes another.
    fn keep_directories(&self, name: &str) {
        let mut made = self.alias_directories.lock();
        for parent in parents(name) {
            if made.len() < EMPTY_MAX {
                made.insert(parent.to_owned());
            }
        }
    }

    /// What a link in a directory of aliases is to lead to: a way up to the root, and down again, to another alias, too; or
    /// an absolute path into the mount. A bare name is taken for what was meant.
    fn alias_target(&self, parent: NodeId, target: &[u8]) -> Result<LinkTarget> {
        let missing = || Error::NotFound { what: format!("{} to link to", text_of(target)) };
        let text = std::str::from_utf8(target).map_err(|_| missing())?;
        let model = self.store.catalog.read();
        if text.starts_with('/') {
            return links::resolve_root_link(&model, text, &self.mount.path);
        }
        let path = self.alias_path(parent)?;
        let mut at: Vec<&str> = [".imgfs", "aliases"].into_iter().chain(path.split('/').filter(|p| !p.is_empty())).collect();
        for part in text.split('/').filter(|part| !part.is_empty() && *part != ".") {
            if part == ".." {
                at.pop().ok_or_else(missing)?;
            } else {
                at.push(part);
            }
        }
        match at.as_slice() {
            [".imgfs", "aliases", name @ ..] => match model.alias_named(&name.join("/")) {
                Some(alias) => Ok(links::target_of(alias)),
                None if !text.starts_with("..") => links::resolve_root_link(&model, text, ""),
                None => Err(missing()),
            },
            [".imgfs", ..] => Err(missing()),
            inside => links::resolve_root_link(&model, &inside.join("/"), ""),
        }
    }

    /// `ln -s`, and the first half of `ln -sfn`.
    pub(super) fn link_alias(&self, caller: Caller, parent: NodeId, name: &[u8], target: &[u8]) -> Result<NodeId> {
        let to = self.alias_target(parent, target)?;
        if is_temporary(name) {
            return Ok(self.stage_link(caller, parent, name, target));
        }
        let full = self.alias_named(parent, name)?;
        if self.store.catalog.read().alias_named(&full).is_some() {
            return Err(Error::Taken { name: full, holder: "there is one already".into() });
        }
        self.put_alias(caller, &AliasName::parse(full.as_bytes())?, to, target)?;
        self.root_has_changed();
        self.lookup_alias(parent, name)
    }

    /// The second half of `ln -sfn`.
    pub(super) fn switch_alias(&self, caller: Caller, parent: NodeId, name: &[u8], target: &[u8]) -> Result<()> {
        let to = self.alias_target(parent, target)?;
        if is_temporary(name) {
            self.stage_link(caller, parent, name, target);
            return Ok(());
        }
        let full = self.alias_named(parent, name)?;
        self.put_alias(caller, &AliasName::parse(full.as_bytes())?, to, target)
    }

    /// `rm`: into the trash.
    pub(super) fn unlink_alias(&self, caller: Caller, parent: NodeId, name: &[u8]) -> Result<()> {
        if self.take_staged_link(parent, name).is_some() {
            return Ok(());
        }
        if let NodeId::AliasDirectory(_) = self.lookup_alias(parent, name)? {
            return Err(Error::IsDirectory { what: text_of(name) });
        }
        let full = self.alias_named(parent, name)?;
        let serial = self.store.catalog.read().alias_named(&full).map(|alias| alias.serial).ok_or_else(stale)?;
        self.refuse_alias_change(caller, &full)?;
        links::drop_alias(&self.store, serial)?;
        self.keep_directories(&full);
        self.root_has_changed();
        self.store.journal.log(caller.uid, "unalias", &alias_log(&full), "dropped");
        Ok(())
    }

    /// `mv` within `.imgfs/aliases`: of an alias, or of a directory with all that is in it.
    pub(super) fn rename_deep_alias(
        &self,
        caller: Caller,
        from: &(NodeId, Vec<u8>),
        to: &(NodeId, Vec<u8>),
        directory: bool,
    ) -> Result<()> {
        if !is_alias_directory(to.0) {
            return Err(Error::Managed { what: text_of(&from.1), why: "an alias in .imgfs/aliases moves within that" });
        }
        let (old, new) = (self.alias_named(from.0, &from.1)?, self.alias_named(to.0, &to.1)?);
        for name in [&old, &new] {
            self.refuse_alias_change(caller, name)?;
        }
        if directory {
            AliasName::parse(format!("{new}/x").as_bytes())?;
            let within: Vec<String> = self.store.catalog.read().aliases_in(&old).map(|(name, _)| name.to_owned()).collect();
            within.iter().try_for_each(|name| self.refuse_alias_change(caller, name))?;
            if self.alias_directories().iter().any(|other| other.starts_with(&format!("{new}/"))) {
                return Err(Error::NotEmpty { what: format!(".imgfs/aliases/{new}") });
            }
            links::rename_alias_directory(&self.store, &old, &new)?;
            let below = format!("{old}/");
            let mut made = self.alias_directories.lock();
            let moved = |path: &String| match path.strip_prefix(&below) {
                Some(rest) => format!("{new}/{rest}"),
                None if *path == old => new.clone(),
                None => path.clone(),
            };
            *made = made.iter().map(moved).chain([new.clone()]).collect();
            drop(made);
        } else {
            let serial = self.store.catalog.read().alias_named(&old).map(|alias| alias.serial).ok_or_else(stale)?;
            let name = AliasName::parse(new.as_bytes())?;
            if !name.as_str().contains('/') {
                self.refuse_staged(name.as_str(), None)?;
            }
            links::rename_alias(&self.store, serial, Some(&name))?;
        }
        self.keep_directories(&old);
        self.root_has_changed();
        self.store.journal.log(caller.uid, "rename", &alias_log(&old), &alias_log(&new));
        Ok(())
    }

    /// The name under which an alias comes back from the trash: that which it had, if it had slashes and the gesture says
    /// no other.
    pub(super) fn name_of_restored(&self, caller: Caller, serial: u32, to: &(NodeId, Vec<u8>)) -> Result<AliasName> {
        let own = {
            let model = self.store.catalog.read();
            let alias = model.aliases.get(&serial).ok_or_else(stale)?;
            let entry = alias.trashed.as_ref().map(|trash| trash.name.clone());
            (alias.name.contains('/') && entry.is_some_and(|entry| entry.as_bytes() == to.1)).then(|| alias.name.clone())
        };
        let name = match own {
            Some(name) => name,
            None if is_alias_directory(to.0) => self.alias_named(to.0, &to.1)?,
            None => return Ok((&self.new_name(caller, &to.1)?).into()),
        };
        self.refuse_binding(caller, &name)?;
        AliasName::parse(name.as_bytes())
    }
}

/// How the log calls an alias: with slashes its first part is no image's name.
pub(super) fn alias_log(name: &str) -> String {
    if name.contains('/') { format!(".imgfs/aliases/{name}") } else { name.to_owned() }
}
