//! mkdir .imgfs/views/dc1, ln -s ../../../web .imgfs/views/dc1/, rm: which images a view has.

use crate::error::{Error, Result};
use crate::fs::access::READ;
use crate::fs::names::is_temporary;
use crate::fs::names::text_of;
use crate::fs::node::{Control, Link, NodeId, number_of};
use crate::fs::{Caller, DirEntry, ImageFs, stale};
use crate::images::quota::{self, Amount, Payer};
use crate::images::{staging, views};

/// The way from a view's directory to the root of the mount.
const UP: &str = "../../../";

/// What only who administers the store changes.
const HERE: &str = ".imgfs/views";

impl ImageFs {
    fn view_names(&self) -> Vec<String> {
        self.store.catalog.read().views.keys().cloned().collect()
    }

    /// The name of the view whose directory this is.
    pub(super) fn view_named(&self, node: NodeId) -> Result<String> {
        self.view_names().into_iter().find(|name| NodeId::View(number_of(name)) == node).ok_or_else(stale)
    }

    pub(super) fn lookup_view(&self, caller: Caller, parent: NodeId, name: &[u8]) -> Result<NodeId> {
        let missing = || Error::NotFound { what: text_of(name) };
        let text = std::str::from_utf8(name).map_err(|_| missing())?;
        if parent == NodeId::Control(Control::Views) {
            let known = self.view_names().iter().any(|view| view == text);
            return if known { Ok(NodeId::View(number_of(text))) } else { Err(missing()) };
        }
        if let Some(staged) = self.staged_link(parent, name) {
            return Ok(staged);
        }
        let (view, model) = (self.view_named(parent)?, self.store.catalog.read());
        let found = views::image_in(&model, &view, text).filter(|image| self.may(caller, image, READ));
        found.map(|image| NodeId::Link(Link::DeeperImage(image.serial))).ok_or_else(missing)
    }

    pub(super) fn list_views(&self, caller: Caller, node: NodeId, all: &mut Vec<DirEntry>) -> Result<()> {
        let mut add = |name: &str, node: NodeId, format: u32| all.push(DirEntry { name: name.as_bytes().to_vec(), node, format });
        if node == NodeId::Control(Control::Views) {
            self.view_names().iter().for_each(|view| add(view, NodeId::View(number_of(view)), libc::S_IFDIR));
            return Ok(());
        }
        let (view, model) = (self.view_named(node)?, self.store.catalog.read());
        for (name, image) in model.images_of_view(&view).filter(|(_, image)| self.may(caller, image, READ)) {
            add(name, NodeId::Link(Link::DeeperImage(image.serial)), libc::S_IFLNK);
        }
        Ok(())
    }

    /// `mkdir .imgfs/views/dc1`.
    pub(super) fn make_view(&self, caller: Caller, name: &[u8]) -> Result<NodeId> {
        self.refuse_others(caller, HERE)?;
        views::make(&self.store, name)?;
        self.store.journal.log(caller.uid, "view", &text_of(name), "made");
        Ok(NodeId::View(number_of(&text_of(name))))
    }

    /// `rmdir`: not while it is mounted.
    pub(super) fn remove_view(&self, caller: Caller, node: NodeId) -> Result<()> {
        self.refuse_others(caller, HERE)?;
        let name = self.view_named(node)?;
        let _held = self.mounts.views.lock();
        if let Some(mounted) = self.mounts.all().iter().find(|fs| fs.store.catalog.view() == Some(&name)) {
            let holders = format!("a mount on {}", mounted.mount.path);
            return Err(Error::InUse { what: format!("view {name}"), holders });
        }
        views::remove(&self.store, &name)?;
        self.store.journal.forget_view(&name);
        self.mounts.forget_view(&name);
        staging::forget_view(&self.store.dir, &name);
        self.store.journal.log(caller.uid, "view", &name, "gone");
        Ok(())
    }

    /// `ln -s`, and the first half of `ln -sf`.
    pub(super) fn link_into_view(&self, caller: Caller, parent: NodeId, name: &[u8], target: &[u8]) -> Result<NodeId> {
        if is_temporary(name) {
            self.deep_target(UP, target)?;
            return Ok(self.stage_link(caller, parent, name, target));
        }
        self.attach_to_view(caller, parent, name, target)?;
        self.lookup_view(caller, parent, name)
    }

    pub(super) fn attach_to_view(&self, caller: Caller, parent: NodeId, name: &[u8], target: &[u8]) -> Result<()> {
        self.refuse_others(caller, HERE)?;
        let (view, image) = (self.view_named(parent)?, self.deep_target(UP, target)?);
        views::attach(&self.store, &view, &text_of(name), image)?;
        self.store.journal.log(caller.uid, "attach", &text_of(name), &format!("to view {view}"));
        Ok(())
    }

    /// `rm`.
    pub(super) fn unlink_from_view(&self, caller: Caller, parent: NodeId, name: &[u8]) -> Result<()> {
        if self.take_staged_link(parent, name).is_some() {
            return Ok(());
        }
        self.lookup_view(caller, parent, name)?;
        self.refuse_others(caller, HERE)?;
        let view = self.view_named(parent)?;
        views::detach(&self.store, &view, &text_of(name))?;
        self.store.journal.log(caller.uid, "detach", &text_of(name), &format!("from view {view}"));
        Ok(())
    }

    /// `status.json` of a view: what it has, and nothing of the rest of the store.
    pub(super) fn view_status(&self, view: &str) -> Result<serde_json::Value> {
        let (bound, used) = self.view_use(view)?;
        let model = self.store.catalog.read();
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

    /// What `df` shows of a view that has a quota: that, and what is left of it. Else there is the disk's, which all share.
    pub(super) fn view_space(&self, view: &str) -> Result<Option<(u64, u64, u64)>> {
        let (bound, used) = self.view_use(view)?;
        let files = self.store.catalog.read().all_versions().map(|v| v.facts.counts.files).sum();
        Ok((bound.bytes > 0).then(|| (bound.bytes, bound.bytes.saturating_sub(used), files)))
    }

    /// What a view may have, and the bytes that it has.
    fn view_use(&self, view: &str) -> Result<(Amount, u64)> {
        let payer = Payer::View(view.to_owned());
        let bound = payer.bound(&self.store, &self.store.whole().catalog.read());
        Ok((bound, quota::used(&self.store, &payer, &[])?))
    }
}
