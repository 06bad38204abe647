//! cat .imgfs/config/trash, echo 7d > it, truncate: settings as files.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::error::{Error, Result};
use crate::fs::names::text_of;
use crate::fs::node::{NodeId, number_of};
use crate::fs::{Attr, Caller, DirEntry, Handle, ImageFs, stale};
use crate::images::views;
use crate::store::settings::{self, Settings};

/// The longest text of a setting.
const TEXT_MAX: usize = 256;
/// How long a look waits for the end of a truncation.
const ENDING: Duration = Duration::from_secs(1);

/// A setting being written: each write(2) is judged with all that was written before it.
pub(super) struct Writing {
    text: Vec<u8>,
    /// Nothing was written since it was truncated: at its end it goes back to its default.
    truncated: bool,
    /// A shell that redirects closes a copy of the descriptor before the first byte.
    closed: bool,
}

/// What only who administers the store changes.
const HERE: &str = ".imgfs/config";

impl ImageFs {
    /// The settings that are shown: those of all, and those that users have.
    fn setting_names(&self) -> Vec<String> {
        let model = self.store.catalog.read();
        let own =
            model.settings.keys().filter_map(|key| key.strip_prefix(settings::CONFIG)).filter(|name| !Settings::is_known(name));
        let mut all: BTreeSet<String> = own.map(str::to_owned).collect();
        // One that is being made is there for its maker.
        all.extend(self.handles.read().values().filter_map(|handle| match &**handle {
            Handle::Setting(name, _) if !Settings::is_known(name) => Some(name.clone()),
            _ => None,
        }));
        Settings::names().map(str::to_owned).chain(all).collect()
    }

    fn setting_named(&self, node: NodeId) -> Result<String> {
        self.setting_names().into_iter().find(|name| NodeId::Setting(number_of(name)) == node).ok_or_else(stale)
    }

    fn setting_text(&self, name: &str) -> Result<String> {
        let own = self.store.catalog.read().settings.get(&settings::key(name)).cloned();
        match own.filter(|_| !Settings::is_known(name)) {
            Some(text) => Ok(text),
            None if settings::view_of(name).is_some() => Settings::default().text(settings::kind_of(name)),
            // A user who has none is bound as all are.
            None => self.store.settings().text(settings::kind_of(name)),
        }
    }

    pub(super) fn lookup_setting(&self, name: &[u8]) -> Result<NodeId> {
        let missing = || Error::NotFound { what: format!("setting {}", text_of(name)) };
        let text = std::str::from_utf8(name).map_err(|_| missing())?;
        let name = settings::canonical(text).ok_or_else(missing)?;
        if self.setting_names().contains(&name) { Ok(NodeId::Setting(number_of(&name))) } else { Err(missing()) }
    }

    pub(super) fn list_settings(&self, all: &mut Vec<DirEntry>) {
        all.extend(self.setting_names().into_iter().map(|name| DirEntry {
            node: NodeId::Setting(number_of(&name)),
            name: settings::shown(&name).into_bytes(),
            format: libc::S_IFREG,
        }));
    }

    pub(super) fn setting_attr(&self, node: NodeId, own: Attr) -> Result<Attr> {
        let size = self.setting_text(&self.setting_named(node)?)?.len() as u64 + 1;
        Ok(Attr { mode: libc::S_IFREG | self.admin_rights(0o644).mode & 0o666, size, data: size, ..own })
    }

    pub(super) fn open_setting(&self, caller: Caller, node: NodeId, writes: bool, truncates: bool) -> Result<u64> {
        let name = self.setting_named(node)?;
        let begun = Instant::now();
        while !writes && self.is_ending(&name) && begun.elapsed() < ENDING {
            std::thread::sleep(Duration::from_millis(1));
        }
        let text = format!("{}\n", self.setting_text(&name)?).into_bytes();
        if !writes {
            return Ok(self.open_handle(Handle::Text(text)));
        }
        self.refuse_others(caller, HERE)?;
        let text = if truncates { Vec::new() } else { text };
        Ok(self.open_handle(Handle::Setting(name, Mutex::new(Writing { text, truncated: truncates, closed: false }))))
    }

    /// Whether somebody has truncated the setting, and not written anything yet.
    fn is_ending(&self, name: &str) -> bool {
        let ends =
            |handle: &Arc<Handle>| matches!(&**handle, Handle::Setting(n, writing) if n == name && writing.lock().truncated);
        self.handles.read().values().any(ends)
    }

    /// `echo 10G > .imgfs/config/quota.alice`: a bound of one user's.
    pub(super) fn create_setting(&self, caller: Caller, name: &[u8]) -> Result<(NodeId, u64)> {
        self.refuse_others(caller, HERE)?;
        let missing = || Error::NotFound { what: format!("setting {}", text_of(name)) };
        let name = std::str::from_utf8(name).ok().and_then(settings::canonical).ok_or_else(missing)?;
        if let Some(view) = settings::view_of(&name) {
            views::find(&self.store.catalog.read(), view)?;
        }
        let writing = Writing { text: Vec::new(), truncated: false, closed: false };
        let node = NodeId::Setting(number_of(&name));
        Ok((node, self.open_handle(Handle::Setting(name, Mutex::new(writing)))))
    }

    /// `write(2)`: the whole of what was written must be a value.
    pub fn write_setting(&self, caller: Caller, fh: u64, offset: u64, data: &[u8]) -> Result<u32> {
        let handle = self.handle(fh)?;
        let Handle::Setting(name, writing) = &*handle else { return Err(stale()) };
        let refused = |e| self.refused(caller, "write", &format!(".imgfs/config/{name}"), e);
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
        // A shorter value over a longer one is that value.
        text.truncate(text.iter().position(|b| *b == b'\n').filter(|at| *at >= from).map_or(text.len(), |at| at + 1));
        let value = String::from_utf8_lossy(&text).trim().to_owned();
        self.choose_setting(caller, name, &value).map_err(refused)?;
        writing.text = text;
        Ok(data.len() as u32)
    }

    /// Nothing is the default.
    fn choose_setting(&self, caller: Caller, name: &str, value: &str) -> Result<()> {
        self.store.choose(name, Some(value).filter(|value| !value.is_empty()))?;
        self.touch_root();
        if name.ends_with("_group") {
            self.forget_rights();
        }
        self.store.journal.log(caller.uid, "config", name, if value.is_empty() { "the default" } else { value });
        Ok(())
    }

    /// `truncate -s 0`; `: > FILE` at its end.
    pub(super) fn truncate_setting(&self, caller: Caller, node: NodeId, size: u64) -> Result<()> {
        self.refuse_others(caller, HERE)?;
        if size > 0 {
            return Err(Error::Invalid { what: "a setting".into(), why: "write its value, or truncate it to nothing".into() });
        }
        self.choose_setting(caller, &self.setting_named(node)?, "")
    }

    /// `close(2)`: the second without a byte is the end of `: > FILE`, which is to hold when the shell goes on.
    pub fn flush_setting(&self, caller: Caller, fh: u64) -> Result<()> {
        let handle = self.handle(fh)?;
        let Handle::Setting(name, writing) = &*handle else { return Ok(()) };
        let mut writing = writing.lock();
        if writing.truncated && std::mem::replace(&mut writing.closed, true) {
            self.choose_setting(caller, name, "")?;
            writing.truncated = false;
        }
        Ok(())
    }

    /// The last close: what was truncated, and not written again, is as nobody had chosen it.
    pub fn release_setting(&self, caller: Caller, fh: u64) {
        let handle = self.handle(fh);
        if let Ok(Handle::Setting(name, writing)) = handle.as_deref()
            && writing.lock().truncated
            && let Err(e) = self.choose_setting(caller, name, "")
        {
            self.refused(caller, "truncate", &format!(".imgfs/config/{name}"), e);
        }
        self.close_directory(fh);
    }

    /// `rm`: a user's own bound goes.
    pub(super) fn unlink_setting(&self, caller: Caller, name: &[u8]) -> Result<()> {
        let name = self.setting_named(self.lookup_setting(name)?)?;
        self.refuse_others(caller, HERE)?;
        if Settings::is_known(&name) {
            return Err(Error::Managed { what: format!("the setting {name}"), why: "truncate it: then it is as by default" });
        }
        self.choose_setting(caller, &name, "")
    }
}
