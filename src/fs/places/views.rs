//! mkdir .imgfs/views/dc1, ln -s ../../../web .imgfs/views/dc1/, rm: which images a view has.

use crate::error::{Error, Result};
use crate::fs::access::READ;
use crate::fs::names::is_temporary;
use crate::fs::names::text_of;
use crate::fs::node::{Link, NodeId, number_of};
use crate::fs::opened::frozen;
use crate::fs::places::link::deep_target;
use crate::fs::places::{Kind, Place, no_mkdir, no_rmdir, no_unlink};
use crate::fs::rights::{self, Shown};
use crate::fs::{Attr, Caller, DirEntry, ImageFs, stale};
use crate::images::quota::{self, Amount, Payer};
use crate::images::{staging, views};

/// The path from a view's directory to the root of the mount.
const UP: &str = "../../../";

/// What only administrators of the store change.
const HERE: &str = ".imgfs/views";

/// `.imgfs/views`: a directory for each view, whose number is made of its name. In it is a link to each
/// image.
pub struct Views;

fn node_of(name: &str) -> NodeId {
    NodeId::In(Kind::Views, number_of(name))
}

fn names(fs: &ImageFs) -> Vec<String> {
    fs.store.catalog.read().views.keys().cloned().collect()
}

/// The name of the view whose directory this is.
fn named(fs: &ImageFs, number: u64) -> Result<String> {
    names(fs).into_iter().find(|name| number_of(name) == number).ok_or_else(stale)
}

impl Place for Views {
    fn is_there(&self, fs: &ImageFs) -> bool {
        fs.store.catalog.view().is_none()
    }

    fn lookup(&self, fs: &ImageFs, caller: Caller, directory: NodeId, name: &[u8]) -> Result<NodeId> {
        let missing = || Error::NotFound { what: text_of(name) };
        let text = std::str::from_utf8(name).map_err(|_| missing())?;
        if directory.number() == 0 {
            let known = names(fs).iter().any(|view| view == text);
            return if known { Ok(node_of(text)) } else { Err(missing()) };
        }
        let (view, model) = (named(fs, directory.number())?, fs.store.catalog.read());
        let found = views::image_in(&model, &view, text).filter(|image| fs.may(caller, image, READ));
        found.map(|image| NodeId::Link(Link::DeeperImage(image.serial))).ok_or_else(missing)
    }

    fn list(&self, fs: &ImageFs, caller: Caller, directory: NodeId, all: &mut Vec<DirEntry>) -> Result<()> {
        let mut add = |name: &str, node: NodeId, format: u32| all.push(DirEntry::new(name, node, format));
        if directory.number() == 0 {
            names(fs).iter().for_each(|view| add(view, node_of(view), libc::S_IFDIR));
            return Ok(());
        }
        let (view, model) = (named(fs, directory.number())?, fs.store.catalog.read());
        for (name, image) in model.images_of_view(&view).filter(|(_, image)| fs.may(caller, image, READ)) {
            add(name, NodeId::Link(Link::DeeperImage(image.serial)), libc::S_IFLNK);
        }
        Ok(())
    }

    fn path(&self, fs: &ImageFs, directory: NodeId, name: &str) -> String {
        match directory.number() {
            0 => format!("/.imgfs/views/{name}"),
            _ => format!("/.imgfs/views/{}/{name}", named(fs, directory.number()).unwrap_or_default()),
        }
    }

    fn attr(&self, fs: &ImageFs, _node: NodeId, own: Attr) -> Result<Attr> {
        Ok(Attr { mode: libc::S_IFDIR | rights::of_admins(fs, 0o755).mode, ..own })
    }

    fn rights(&self, fs: &ImageFs, _node: NodeId) -> Option<(Shown, u32)> {
        Some((rights::of_admins(fs, 0o755), 7))
    }

    /// `mkdir .imgfs/views/dc1`.
    fn mkdir(
        &self,
        fs: &ImageFs,
        caller: Caller,
        directory: NodeId,
        name: &[u8],
        _mode: u32,
    ) -> Result<NodeId> {
        if directory.number() != 0 {
            return Err(no_mkdir());
        }
        fs.refuse_others(caller, HERE)?;
        views::make(&fs.store, name)?;
        fs.store.journal.log(caller.uid, "view", &text_of(name), "made");
        Ok(node_of(&text_of(name)))
    }

    /// `rmdir` of a view, which must not be mounted.
    fn rmdir(&self, fs: &ImageFs, caller: Caller, node: NodeId, _parent: NodeId) -> Result<()> {
        let number = node.number();
        if number == 0 {
            return Err(no_rmdir());
        }
        fs.refuse_others(caller, HERE)?;
        let name = named(fs, number)?;
        let _held = fs.mounts.views.lock();
        if let Some(mounted) = fs.mounts.all().iter().find(|fs| fs.store.catalog.view() == Some(&name)) {
            let holders = format!("a mount on {}", mounted.mount.path);
            return Err(Error::InUse { what: format!("view {name}"), holders });
        }
        views::remove(&fs.store, &name)?;
        fs.store.journal.forget_view(&name);
        fs.mounts.forget_view(&name);
        staging::forget_view(&fs.store.dir, &name);
        fs.store.journal.log(caller.uid, "view", &name, "gone");
        Ok(())
    }

    fn symlink(
        &self,
        fs: &ImageFs,
        caller: Caller,
        directory: NodeId,
        name: &[u8],
        target: &[u8],
    ) -> Result<NodeId> {
        if directory.number() == 0 {
            return Err(frozen(directory));
        }
        if is_temporary(name) {
            deep_target(fs, UP, target)?;
            return Ok(fs.temporary_links.put(caller, directory, name, target));
        }
        self.switch(fs, caller, directory, name, target)?;
        self.lookup(fs, caller, directory, name)
    }

    /// Attaches the image to the view.
    fn switch(
        &self,
        fs: &ImageFs,
        caller: Caller,
        directory: NodeId,
        name: &[u8],
        target: &[u8],
    ) -> Result<()> {
        fs.refuse_others(caller, HERE)?;
        let (view, image) = (named(fs, directory.number())?, deep_target(fs, UP, target)?);
        views::attach(&fs.store, &view, &text_of(name), image)?;
        fs.store.journal.log(caller.uid, "attach", &text_of(name), &format!("to view {view}"));
        Ok(())
    }

    /// `rm` detaches the image from the view.
    fn unlink(&self, fs: &ImageFs, caller: Caller, directory: NodeId, name: &[u8]) -> Result<()> {
        if directory.number() == 0 {
            return Err(no_unlink());
        }
        self.lookup(fs, caller, directory, name)?;
        fs.refuse_others(caller, HERE)?;
        let view = named(fs, directory.number())?;
        views::detach(&fs.store, &view, &text_of(name))?;
        fs.store.journal.log(caller.uid, "detach", &text_of(name), &format!("from view {view}"));
        Ok(())
    }
}

/// `status.json` of a view. It says nothing about the rest of the store.
pub(in crate::fs) fn status(fs: &ImageFs, view: &str) -> Result<serde_json::Value> {
    let (bound, used) = usage(fs, view)?;
    let model = fs.store.catalog.read();
    let (live, trashed): (Vec<_>, Vec<_>) = model.all_versions().partition(|v| model.is_live(v));
    Ok(serde_json::json!({
        "program": concat!("imgfs ", env!("CARGO_PKG_VERSION")),
        "view": view,
        "images": model.live_images().count(),
        "images_attached": model.attached.len(),
        "versions": live.len(),
        "versions_in_trash": trashed.len(),
        "tar_bytes": live.iter().map(|v| v.facts.size).sum::<u64>(),
        "logical_bytes": live.iter().map(|v| v.facts.counts.logical_bytes).sum::<u64>(),
        "quota_bytes": bound.bytes,
        "quota_images": bound.images,
        "used_bytes": used,
    }))
}

/// What `df` shows of a view with a quota: the quota, and what is left of it. `None` without a quota;
/// then df shows the disk, which all views share.
pub(in crate::fs) fn space(fs: &ImageFs, view: &str) -> Result<Option<(u64, u64, u64)>> {
    let (bound, used) = usage(fs, view)?;
    let files = fs.store.catalog.read().all_versions().map(|v| v.facts.counts.files).sum();
    Ok((bound.bytes > 0).then(|| (bound.bytes, bound.bytes.saturating_sub(used), files)))
}

/// The quota of a view, and the bytes that it uses.
fn usage(fs: &ImageFs, view: &str) -> Result<(Amount, u64)> {
    let payer = Payer::View(view.to_owned());
    let bound = payer.bound(&fs.store, &fs.store.whole().catalog.read());
    Ok((bound, quota::used(&fs.store, &payer, &[])?))
}
