//! `.imgfs`: the store itself, as files.

use std::collections::HashSet;

use crate::base::changelog::ChangeLog;
use crate::base::json;
use crate::catalog::{Model, Trashed, Version};
use crate::error::{Error, Result};
use crate::fs::access::READ;
use crate::fs::node::{Control, Link, NodeId, number_of};
use crate::fs::stale;
use crate::fs::{Caller, DirEntry, ImageFs};
use crate::images::trash;

const README: &str = include_str!("gestures.txt");

/// The fewest digits of a digest that by-digest takes.
const PREFIX_MIN: usize = 12;

const FILES: &[(&str, Control)] = &[
    ("README", Control::Readme),
    ("status.json", Control::Status),
    ("errors", Control::Errors),
    ("log", Control::Log),
    ("log.1", Control::Log1),
    ("log.2", Control::Log2),
    ("log.3", Control::Log3),
    ("jobs", Control::Jobs),
    ("failed", Control::Failed),
    ("trash", Control::Trash),
    ("by-id", Control::ById),
    ("by-digest", Control::ByDigest),
    ("by-uuid", Control::ByUuid),
    ("by", Control::By),
    ("defaults", Control::Defaults),
    ("aliases", Control::Aliases),
    ("config", Control::Config),
    ("views", Control::Views),
];

fn is_directory(control: Control) -> bool {
    use Control::{Aliases, By, ByDigest, ById, ByUuid, Config, Defaults, Deprecated, Dir, Failed, Jobs, Trash, Unused, Views};
    matches!(
        control,
        Aliases | Dir | Jobs | Failed | Trash | ById | ByDigest | ByUuid | By | Unused | Deprecated | Defaults | Config | Views
    )
}

/// How a directory of `.imgfs` is called, with a slash; `.imgfs` itself by nothing.
pub(super) fn directory_name(control: Control) -> String {
    FILES.iter().find(|(_, c)| *c == control).map(|(name, _)| format!("{name}/")).unwrap_or_default()
}

/// Which log a file shows: 0 for the newest.
pub(super) fn log_number(control: Control) -> Option<u32> {
    [Control::Log, Control::Log1, Control::Log2, Control::Log3].iter().position(|c| *c == control).map(|n| n as u32)
}

fn failed_node(name: &str) -> NodeId {
    NodeId::Failed(number_of(name))
}

impl ImageFs {
    pub(super) fn lookup_in_control(&self, caller: Caller, parent: NodeId, name: &[u8]) -> Result<NodeId> {
        let missing = || Error::NotFound { what: String::from_utf8_lossy(name).into_owned() };
        let name = std::str::from_utf8(name).map_err(|_| missing())?;
        let NodeId::Control(directory) = parent else { return Err(missing()) };
        match directory {
            Control::Dir => {
                let found = FILES.iter().find(|(n, c)| *n == name && self.is_there(*c));
                found.map(|(_, c)| NodeId::Control(*c)).ok_or_else(missing)
            }
            Control::Jobs => {
                let id = name.strip_suffix(".json").and_then(|id| id.parse().ok()).ok_or_else(missing)?;
                self.store.journal.job_text(id).map(|_| NodeId::Job(id)).ok_or_else(missing)
            }
            Control::Failed => self.store.journal.failed_text(name).map(|_| failed_node(name)).ok_or_else(missing),
            Control::Trash => {
                let model = self.store.catalog.read();
                let what = trash::trashed(&model, name).ok_or_else(missing)?;
                self.trashed_node(&model, what).ok_or_else(missing)
            }
            Control::ById => {
                let model = self.store.catalog.read();
                if let Some(image) = model.live_images().find(|i| i.id == name && self.may(caller, i, READ)) {
                    return Ok(NodeId::Link(Link::DeepImage(image.serial)));
                }
                let version = self.shown_to(caller, &model).find(|v| v.id == name).ok_or_else(missing)?;
                Ok(NodeId::Link(Link::DeepVersion(version.serial)))
            }
            Control::ByDigest => self.by_digest(caller, name),
            Control::ByUuid => {
                let model = self.store.catalog.read();
                let version = self.shown_to(caller, &model).find(|v| !name.is_empty() && v.facts.uuid == name);
                Ok(NodeId::Link(Link::DeepVersion(version.ok_or_else(missing)?.serial)))
            }
            _ => Err(Error::NotDirectory { what: name.into() }),
        }
    }

    /// What shows an entry of the trash.
    fn trashed_node(&self, model: &Model, what: Trashed) -> Option<NodeId> {
        Some(match what {
            Trashed::Image(serial) => self.image_node(serial),
            Trashed::Version(serial) => self.version_node(serial),
            Trashed::Alias(serial) => NodeId::Link(Link::TrashedAlias(serial)),
            Trashed::Label(serial) => NodeId::Link(Link::TrashedLabel(serial)),
            Trashed::Default => NodeId::Link(Link::TrashedDefault(model.default_image?)),
            Trashed::ImageDefault(serial) => NodeId::Link(Link::TrashedImageDefault(serial)),
        })
    }

    /// The live versions of images that this user may read.
    fn shown_to<'m>(&self, caller: Caller, model: &'m Model) -> impl Iterator<Item = &'m Version> {
        let images: HashSet<u32> = model.live_images().filter(|i| self.may(caller, i, READ)).map(|i| i.serial).collect();
        model.all_versions().filter(move |v| v.trashed_at.is_none() && images.contains(&v.image))
    }

    /// Any prefix of 12 digits or more of a sha256 of rootfs.tar or upload, if one content has it.
    fn by_digest(&self, caller: Caller, prefix: &str) -> Result<NodeId> {
        let missing = || Error::NotFound { what: format!("version with digest {prefix}") };
        let prefix = prefix.strip_prefix("sha256:").unwrap_or(prefix);
        if prefix.len() < PREFIX_MIN || !prefix.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(missing());
        }
        let model = self.store.catalog.read();
        let mut found: Vec<(&str, u32)> = Vec::new();
        for version in self.shown_to(caller, &model) {
            for digest in version.facts.sha256s() {
                if digest.starts_with(prefix) {
                    found.push((digest, version.serial));
                }
            }
        }
        found.sort_unstable();
        let (first, serial) = *found.first().ok_or_else(missing)?;
        if found.iter().any(|(digest, _)| *digest != first) {
            let candidates = found.iter().map(|(d, _)| &d[..d.len().min(16)]).collect::<Vec<_>>().join(", ");
            return Err(Error::Ambiguous { prefix: prefix.into(), candidates });
        }
        Ok(NodeId::Link(Link::DeepVersion(serial)))
    }

    pub(super) fn list_control(&self, caller: Caller, node: NodeId, all: &mut Vec<DirEntry>) -> Result<()> {
        let NodeId::Control(directory) = node else { return Err(stale()) };
        let (dir, file, link) = (libc::S_IFDIR, libc::S_IFREG, libc::S_IFLNK);
        let mut add = |name: &str, node: NodeId, format: u32| all.push(DirEntry { name: name.as_bytes().to_vec(), node, format });
        match directory {
            Control::Dir => {
                for (name, control) in FILES.iter().filter(|(_, c)| self.is_there(*c)) {
                    add(name, NodeId::Control(*control), if is_directory(*control) { dir } else { file });
                }
            }
            Control::Jobs => {
                for id in self.store.journal.job_ids() {
                    add(&format!("{id}.json"), NodeId::Job(id), file);
                }
            }
            Control::Failed => {
                for name in self.store.journal.failed_names() {
                    add(&name, failed_node(&name), file);
                }
            }
            Control::Trash => {
                let model = self.store.catalog.read();
                for (name, _, what) in model.trash() {
                    let format = if matches!(what, Trashed::Image(_) | Trashed::Version(_)) { dir } else { link };
                    if let Some(node) = self.trashed_node(&model, what) {
                        add(&name, node, format);
                    }
                }
            }
            Control::ById => {
                let model = self.store.catalog.read();
                for image in model.live_images().filter(|i| self.may(caller, i, READ)) {
                    add(&image.id, NodeId::Link(Link::DeepImage(image.serial)), link);
                }
                for version in self.shown_to(caller, &model) {
                    add(&version.id, NodeId::Link(Link::DeepVersion(version.serial)), link);
                }
            }
            Control::ByUuid => {
                let model = self.store.catalog.read();
                for version in self.shown_to(caller, &model).filter(|v| !v.facts.uuid.is_empty()) {
                    add(&version.facts.uuid, NodeId::Link(Link::DeepVersion(version.serial)), link);
                }
            }
            Control::ByDigest => {
                let model = self.store.catalog.read();
                let mut seen = std::collections::BTreeMap::new();
                for version in self.shown_to(caller, &model) {
                    for digest in version.facts.sha256s() {
                        seen.entry(digest.to_owned()).or_insert(version.serial);
                    }
                }
                for (digest, serial) in seen {
                    add(&digest, NodeId::Link(Link::DeepVersion(serial)), link);
                }
            }
            _ => return Err(Error::NotDirectory { what: "it".into() }),
        }
        Ok(())
    }

    fn is_there(&self, control: Control) -> bool {
        let in_view = self.store.catalog.view().is_some();
        if in_view && matches!(control, Control::Config | Control::Views) {
            return false;
        }
        log_number(control).is_none_or(|n| self.store.journal.has_log(n))
    }

    /// Type bits and size of a file or directory of `.imgfs`, for whom it may show less than others.
    pub(super) fn control_shape(&self, caller: Caller, node: NodeId) -> Result<(u32, u64)> {
        match node {
            NodeId::Control(control) if is_directory(control) => Ok((libc::S_IFDIR, 4096)),
            NodeId::Control(control) if let (Some(n), Some(log)) = (log_number(control), self.log_for(caller)) => {
                Ok((libc::S_IFREG, log.len(n)))
            }
            _ => Ok((libc::S_IFREG, self.control_text(caller, node)?.len() as u64)),
        }
    }

    /// Reads on in a log, which may have grown: tail -f.
    pub(super) fn read_log(&self, caller: Caller, n: u32, offset: u64, len: usize, out: &mut Vec<u8>) -> Result<()> {
        if let Some(log) = self.log_for(caller) {
            return log.read(n, offset, len, out);
        }
        let text = self.log_text(caller, n)?.into_bytes();
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(text.len());
        out.extend_from_slice(&text[from..text.len().min(from.saturating_add(len))]);
        Ok(())
    }

    fn log_text(&self, caller: Caller, n: u32) -> Result<String> {
        Ok(self.heard_by(caller, self.store.journal.log_text(n)?))
    }

    /// The log itself, for who may know all of it.
    fn log_for(&self, caller: Caller) -> Option<&ChangeLog> {
        self.store.journal.whole_log().filter(|_| self.is_admin(caller))
    }

    /// The content of a file of `.imgfs`, as it is now.
    pub(super) fn control_text(&self, caller: Caller, node: NodeId) -> Result<String> {
        match node {
            NodeId::Control(Control::Readme) => Ok(README.into()),
            NodeId::Control(Control::Status) => self.status_text(),
            NodeId::Control(Control::Errors) => Ok(self.heard_by(caller, self.store.journal.errors_text())),
            NodeId::Control(control) if let Some(n) = log_number(control) => self.log_text(caller, n),
            NodeId::Job(_) | NodeId::Failed(_) => Ok(self.told_text(node)?.1),
            _ => Err(Error::IsDirectory { what: "it".into() }),
        }
    }

    /// A job or a failed upload: whose it is, and what there is to say.
    pub(super) fn told_text(&self, node: NodeId) -> Result<(u32, String)> {
        let journal = &self.store.journal;
        let told = match node {
            NodeId::Job(id) => journal.job_text(id),
            _ => {
                let name = journal.failed_names().into_iter().find(|n| failed_node(n) == node);
                name.and_then(|n| journal.failed_text(&n))
            }
        };
        told.ok_or_else(stale)
    }

    fn status_text(&self) -> Result<String> {
        let mut status = match self.store.catalog.view() {
            Some(view) => self.view_status(view)?,
            None => crate::images::status::status(&self.store)?,
        };
        status["uptime_seconds"] = self.started.elapsed().as_secs().into();
        status["uploads"] = self.uploads.count().into();
        status["mount_point"] = self.mount.path.clone().into();
        Ok(json::pretty(&status))
    }

    /// Total and free space, in bytes, and files. What the trash holds counts as free: it is emptied when space is needed.
    pub fn space(&self) -> Result<(u64, u64, u64)> {
        if let Some(space) = self.store.catalog.view().map(|view| self.view_space(view)).transpose()?.flatten() {
            return Ok(space);
        }
        let stat = rustix::fs::statvfs(&self.store.dir).map_err(|e| Error::Io {
            doing: "stat",
            path: self.store.dir.clone(),
            source: e.into(),
        })?;
        // Without what is kept for root, which df would show as used.
        let total = (stat.f_blocks - stat.f_bfree.saturating_sub(stat.f_bavail)) * stat.f_frsize;
        let free = stat.f_bavail * stat.f_frsize + self.store.trash_bytes();
        Ok((total, free.min(total), self.store.blobs.id_bound().into()))
    }
}
