//! cat .imgfs/config/trash, echo 7d > it, truncate: settings as files.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::fs::names::text_of;
use crate::fs::node::{NodeId, number_of};
use crate::fs::opened::{OpenMode, Opened, frozen};
use crate::fs::places::{Kind, Place};
use crate::fs::rights::{self, Shown};
use crate::fs::{Attr, Caller, DirEntry, Handle, ImageFs, stale};
use crate::images::views;
use crate::store::settings::{self, Settings};

/// The longest text of a setting.
const TEXT_MAX: usize = 256;
/// How long an open waits for the end of a truncation.
const ENDING: Duration = Duration::from_secs(1);

/// A setting that is being written. Each write(2) is judged together with all that was written before
/// it.
pub(in crate::fs) struct Writing {
    text: Vec<u8>,
    /// Whether it was truncated, and nothing was written since. If it ends so, the setting goes back to its
    /// default.
    truncated: bool,
    /// Whether one descriptor was closed already. A shell that redirects closes a copy of it before the
    /// first byte.
    closed: bool,
}

/// What only administrators of the store change.
const HERE: &str = ".imgfs/config";

/// `.imgfs/config`: a file for each setting. A file's number is made of its name.
pub struct Config;

fn node_of(name: &str) -> NodeId {
    NodeId::In(Kind::Config, number_of(name))
}

/// The settings that are shown: those of the store, and the bounds of single users.
fn names(fs: &ImageFs) -> Vec<String> {
    let model = fs.store.catalog.read();
    let own = model.settings.keys().filter_map(|key| key.strip_prefix(settings::CONFIG));
    let mut all: BTreeSet<String> = own.filter(|name| !Settings::is_known(name)).map(str::to_owned).collect();
    // A new bound exists for its maker while that file is open.
    all.extend(fs.handles.read().values().filter_map(|handle| match &**handle {
        Handle::Setting(name, _) if !Settings::is_known(name) => Some(name.clone()),
        _ => None,
    }));
    Settings::names().map(str::to_owned).chain(all).collect()
}

fn named(fs: &ImageFs, number: u64) -> Result<String> {
    names(fs).into_iter().find(|name| number_of(name) == number).ok_or_else(stale)
}

fn text_of_setting(fs: &ImageFs, name: &str) -> Result<String> {
    let own = fs.store.catalog.read().settings.get(&settings::key(name)).cloned();
    match own.filter(|_| !Settings::is_known(name)) {
        Some(text) => Ok(text),
        None if settings::view_of(name).is_some() => Settings::default().text(settings::kind_of(name)),
        // A user without an own bound has the bound for all users.
        None => fs.store.settings().text(settings::kind_of(name)),
    }
}

/// Whether somebody has truncated the setting, and not written anything yet.
fn is_ending(fs: &ImageFs, name: &str) -> bool {
    let ends = |handle: &Arc<Handle>| matches!(&**handle, Handle::Setting(n, writing) if n == name && writing.lock().truncated);
    fs.handles.read().values().any(ends)
}

/// Gives a setting a value; an empty one stands for the default.
fn choose(fs: &ImageFs, caller: Caller, name: &str, value: &str) -> Result<()> {
    fs.store.choose(name, Some(value).filter(|value| !value.is_empty()))?;
    fs.touch_root();
    if name.ends_with("_group") {
        rights::forget(fs);
    }
    fs.store.journal.log(caller.uid, "config", name, if value.is_empty() { "the default" } else { value });
    Ok(())
}

impl Place for Config {
    fn is_there(&self, fs: &ImageFs) -> bool {
        fs.store.catalog.view().is_none()
    }

    fn lookup(&self, fs: &ImageFs, _caller: Caller, _directory: NodeId, name: &[u8]) -> Result<NodeId> {
        let missing = || Error::NotFound { what: format!("setting {}", text_of(name)) };
        let text = std::str::from_utf8(name).map_err(|_| missing())?;
        let name = settings::canonical(text).ok_or_else(missing)?;
        if names(fs).contains(&name) { Ok(node_of(&name)) } else { Err(missing()) }
    }

    fn list(&self, fs: &ImageFs, _caller: Caller, _directory: NodeId, all: &mut Vec<DirEntry>) -> Result<()> {
        all.extend(
            names(fs)
                .into_iter()
                .map(|name| DirEntry::new(settings::shown(&name), node_of(&name), libc::S_IFREG)),
        );
        Ok(())
    }

    fn changes(&self) -> bool {
        false
    }

    fn attr(&self, fs: &ImageFs, node: NodeId, own: Attr) -> Result<Attr> {
        let number = node.number();
        if number == 0 {
            return Ok(Attr { mode: libc::S_IFDIR | rights::of_admins(fs, 0o755).mode, ..own });
        }
        let size = text_of_setting(fs, &named(fs, number)?)?.len() as u64 + 1;
        Ok(Attr {
            mode: libc::S_IFREG | rights::of_admins(fs, 0o644).mode & 0o666,
            links: 1,
            size,
            data: size,
            ..own
        })
    }

    fn rights(&self, fs: &ImageFs, node: NodeId) -> Option<(Shown, u32)> {
        let number = node.number();
        Some(if number == 0 { (rights::of_admins(fs, 0o755), 7) } else { (rights::of_admins(fs, 0o644), 6) })
    }

    /// An open waits for the end of a truncation.
    fn opens_slowly(&self, _node: NodeId) -> bool {
        true
    }

    fn open(&self, fs: &ImageFs, caller: Caller, node: NodeId, mode: OpenMode) -> Result<Opened> {
        let number = node.number();
        if number == 0 {
            return Err(Error::IsDirectory { what: HERE.into() });
        }
        let name = named(fs, number)?;
        let begun = Instant::now();
        while !mode.writes && is_ending(fs, &name) && begun.elapsed() < ENDING {
            std::thread::sleep(Duration::from_millis(1));
        }
        let text = format!("{}\n", text_of_setting(fs, &name)?).into_bytes();
        if !mode.writes {
            return Ok(Opened::Direct(fs.open_handle(Handle::Text(text))));
        }
        fs.refuse_others(caller, HERE)?;
        let text = if mode.truncates { Vec::new() } else { text };
        let writing = Writing { text, truncated: mode.truncates, closed: false };
        Ok(Opened::Direct(fs.open_handle(Handle::Setting(name, Mutex::new(writing)))))
    }

    /// `echo 10G > .imgfs/config/quota.alice` sets a bound for one user.
    fn create(
        &self,
        fs: &ImageFs,
        caller: Caller,
        _directory: NodeId,
        name: &[u8],
        _mode: u32,
    ) -> Result<(NodeId, u64)> {
        fs.refuse_others(caller, HERE)?;
        let missing = || Error::NotFound { what: format!("setting {}", text_of(name)) };
        let name = std::str::from_utf8(name).ok().and_then(settings::canonical).ok_or_else(missing)?;
        if let Some(view) = settings::view_of(&name) {
            views::find(&fs.store.catalog.read(), view)?;
        }
        let (node, writing) = (node_of(&name), Writing { text: Vec::new(), truncated: false, closed: false });
        Ok((node, fs.open_handle(Handle::Setting(name, Mutex::new(writing)))))
    }

    /// `rm` removes a user's own bound.
    fn unlink(&self, fs: &ImageFs, caller: Caller, directory: NodeId, name: &[u8]) -> Result<()> {
        let NodeId::In(_, number) = self.lookup(fs, caller, directory, name)? else { return Err(stale()) };
        let name = named(fs, number)?;
        fs.refuse_others(caller, HERE)?;
        if Settings::is_known(&name) {
            return Err(Error::Managed {
                what: format!("the setting {name}"),
                why: "truncate it: then it is as by default",
            });
        }
        choose(fs, caller, &name, "")
    }

    /// `truncate -s 0`, and `: > FILE` when it is closed.
    fn truncate(&self, fs: &ImageFs, caller: Caller, node: NodeId, size: u64) -> Result<()> {
        let number = node.number();
        if number == 0 {
            return Err(frozen(node));
        }
        fs.refuse_others(caller, HERE)?;
        if size > 0 {
            return Err(Error::Invalid {
                what: "a setting".into(),
                why: "write its value, or truncate it to nothing".into(),
            });
        }
        choose(fs, caller, &named(fs, number)?, "")
    }
}

/// `write(2)`: all that was written so far must be a valid value.
///
/// # Errors
///
/// `Invalid` for a text that is too long or no value of the setting, or if the handle is not open.
/// `NotFound` if it is of something else; those of `Catalog::commit`.
pub(in crate::fs) fn write(fs: &ImageFs, caller: Caller, fh: u64, offset: u64, data: &[u8]) -> Result<u32> {
    let handle = fs.handle(fh)?;
    let Handle::Setting(name, writing) = &*handle else { return Err(stale()) };
    let refused = |e| fs.refused(caller, "write", &format!(".imgfs/config/{name}"), e);
    let mut writing = writing.lock();
    writing.truncated = false;
    let from = usize::try_from(offset).unwrap_or(usize::MAX);
    let end = from.saturating_add(data.len());
    if end > TEXT_MAX {
        let why = format!("it is over {TEXT_MAX} bytes");
        return Err(refused(Error::Invalid { what: "the text".into(), why }));
    }
    let mut text = writing.text.clone();
    text.resize(text.len().max(end), b' ');
    text[from..end].copy_from_slice(data);
    // If a shorter value overwrites a longer one, its newline ends the value.
    text.truncate(
        text.iter().position(|b| *b == b'\n').filter(|at| *at >= from).map_or(text.len(), |at| at + 1),
    );
    let value = String::from_utf8_lossy(&text).trim().to_owned();
    choose(fs, caller, name, &value).map_err(refused)?;
    writing.text = text;
    Ok(data.len() as u32)
}

/// `close(2)`. The second close without a byte ends `: > FILE`. That must take effect before the shell
/// goes on.
///
/// # Errors
///
/// `Invalid` if the handle is not open; those of `Catalog::commit`.
pub(in crate::fs) fn flush(fs: &ImageFs, caller: Caller, fh: u64) -> Result<()> {
    let handle = fs.handle(fh)?;
    let Handle::Setting(name, writing) = &*handle else { return Ok(()) };
    let mut writing = writing.lock();
    if writing.truncated && std::mem::replace(&mut writing.closed, true) {
        choose(fs, caller, name, "")?;
        writing.truncated = false;
    }
    Ok(())
}

/// The last close. A setting that was truncated and not written again goes back to its default.
pub(in crate::fs) fn release(fs: &ImageFs, caller: Caller, fh: u64) {
    let handle = fs.handle(fh);
    if let Ok(Handle::Setting(name, writing)) = handle.as_deref()
        && writing.lock().truncated
        && let Err(e) = choose(fs, caller, name, "")
    {
        fs.refused(caller, "truncate", &format!(".imgfs/config/{name}"), e);
    }
    fs.close_handle(fh);
}
