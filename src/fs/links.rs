//! Journey 3, ln -sfn and mv: links are made, switched and renamed; images are renamed, and come back from
//! the trash.

use std::sync::Arc;
use std::time::Duration;

use crate::base::name::{AliasName, ImageName, Promise, promise_of};
use crate::catalog::{Named, Trashed};
use crate::error::{Error, Result};
use crate::fault;
use crate::fs::gone::Gone;
use crate::fs::names::label_of;
use crate::fs::names::{is_temporary, text_of};
use crate::fs::node::{ImagePart, Link, NodeId, VersionPart};
use crate::fs::opened::frozen;
use crate::fs::places::aliases::{alias_log, is_directory, name_of_restored};
use crate::fs::places::trash::TRASH;
use crate::fs::stale;
use crate::fs::upload::Place;
use crate::fs::{Caller, ImageFs, Kernel, Reply, within};
use crate::images::links::{self, LinkTarget};
use crate::images::versions;
use crate::images::{labels, trash};

/// Staged links that are remembered; a link is renamed at once or never.
const STAGED_LINKS: usize = 256;

/// How long a deletion waits for the kernel to forget a name. Only who removes and renames at once waits for
/// all of it.
pub(super) const FORGETTING: Duration = Duration::from_millis(100);
/// How long a renaming waits for it to forget what symlinks lead to, which nobody else can hold up.
const READING_AGAIN: Duration = Duration::from_secs(1);

/// A symlink under a temporary name, as GNU `ln -sfn` makes one before it renames it over the real name.
pub(super) struct StagedLink {
    number: u64,
    parent: NodeId,
    name: Vec<u8>,
    text: Vec<u8>,
    owner: (u32, u32),
}

impl ImageFs {
    /// An image has another name: the kernel, which remembers what symlinks lead to, is to read those to it
    /// again.
    fn forget_links_to(&self, image: u32) {
        let (versions, labels) = {
            let model = self.store.catalog.read();
            let versions: Vec<u32> =
                model.all_versions().filter(|v| v.image == image).map(|v| v.serial).collect();
            let labels: Vec<u32> =
                model.labels.values().filter(|l| l.image == image).map(|l| l.serial).collect();
            (versions, labels)
        };
        let of_version = |serial| [Link::Version(serial), Link::DeepVersion(serial)];
        let of_label = |serial| [Link::Label(serial), Link::TrashedLabel(serial)];
        let links =
            versions.into_iter().flat_map(of_version).chain(labels.into_iter().flat_map(of_label)).chain([
                Link::Image(image),
                Link::DeepImage(image),
                Link::DeeperImage(image),
                Link::DeepestImage(image),
                Link::ImageLatest(image),
                Link::ImageDefault(image),
                Link::TrashedDefault(image),
                Link::TrashedImageDefault(image),
            ]);
        let links: Vec<u64> = links.map(|link| NodeId::Link(link).ino()).collect();
        for fs in self.mounts.all() {
            let links = links.clone();
            fs.tell_soon(READING_AGAIN, move |kernel| {
                links.into_iter().for_each(|ino| kernel.forget_content(ino))
            });
        }
    }

    pub(super) fn staged_link(&self, parent: NodeId, name: &[u8]) -> Option<NodeId> {
        let staged = self.staged_links.lock();
        staged.iter().find(|l| l.parent == parent && l.name == name).map(|l| NodeId::StagedLink(l.number))
    }

    pub(super) fn take_staged_link(&self, parent: NodeId, name: &[u8]) -> Option<Vec<u8>> {
        let mut staged = self.staged_links.lock();
        let at = staged.iter().position(|l| l.parent == parent && l.name == name)?;
        Some(staged.remove(at).text)
    }

    pub(super) fn staged_target(&self, number: u64) -> Result<Vec<u8>> {
        self.staged_links.lock().iter().find(|l| l.number == number).map(|l| l.text.clone()).ok_or_else(stale)
    }

    pub(super) fn staged_owner(&self, number: u64) -> (u32, u32) {
        let own = (self.mount.uid, self.mount.gid);
        self.staged_links.lock().iter().find(|l| l.number == number).map_or(own, |l| l.owner)
    }

    /// `default` of the store is the root's owner's, as the sticky bit has it.
    pub(super) fn refuse_default(&self, caller: Caller) -> Result<()> {
        let root = self.root();
        if root.mode & libc::S_ISVTX == 0 || caller.uid == root.uid || self.is_admin(caller) {
            return Ok(());
        }
        Err(Error::NotYours { what: "default".into(), uid: root.uid })
    }

    /// An alias belongs to the image that it leads to: who may not change that, makes, moves and drops none
    /// of it.
    pub(super) fn put_alias(
        &self,
        caller: Caller,
        name: &AliasName,
        to: LinkTarget,
        text: &[u8],
    ) -> Result<()> {
        {
            let model = self.store.catalog.read();
            self.refuse_change(caller, model.images.get(&to.image))?;
        }
        self.refuse_alias_change(caller, name.as_str())?;
        self.refuse_staged(name.as_str(), None)?;
        links::put_alias(&self.store, name, to)?;
        self.store.journal.log(caller.uid, "alias", &alias_log(name.as_str()), &text_of(text));
        Ok(())
    }

    /// Refuses to change an alias to an image that this user may not change, or one of a view.
    pub(super) fn refuse_alias_change(&self, caller: Caller, name: &str) -> Result<()> {
        self.refuse_binding(caller, name)?;
        let model = self.store.catalog.read();
        match model.named(name) {
            Some(Named::Alias(old)) => {
                self.refuse_change(caller, model.aliases.get(&old).and_then(|a| model.images.get(&a.image)))
            }
            _ => Ok(()),
        }
    }

    /// `ln -s web MNT/jammy`, and the first half of `ln -sfn`.
    ///
    /// # Errors
    ///
    /// `NotFound` for a target that is not there; `BadName`, `NameTooLong`, `Taken`, `NotUnique`,
    /// `NotDirectory` for the name. `NotYours`, `Immutable`, `Attached`, `OfView`, `Invalid`. `Managed`,
    /// `Frozen` where there can be no such link. Those of `lookup` and `Catalog::commit`.
    pub fn symlink(&self, caller: Caller, parent: NodeId, name: &[u8], target: &[u8]) -> Result<NodeId> {
        let made = self.symlink_inner(caller, parent, name, target);
        made.map_err(|e| {
            self.note_refused_in(caller, parent);
            self.refused(caller, "ln -s", &self.path_in(parent, name), e)
        })
    }

    pub(super) fn symlink_inner(
        &self,
        caller: Caller,
        parent: NodeId,
        name: &[u8],
        target: &[u8],
    ) -> Result<NodeId> {
        if let NodeId::Version { serial, part: VersionPart::UsedBy, .. } = parent {
            return self.link_lease(caller, serial, name, target);
        }
        if let NodeId::In(kind, directory) = parent {
            return kind.place().symlink(self, caller, directory, name, target);
        }
        let place = self.place_of(parent)?;
        let target_text =
            std::str::from_utf8(target).map_err(|_| Error::NotFound { what: text_of(target) })?;
        let mount_point = &self.mount.path;
        match place {
            Place::Root => {
                let to = links::resolve_root_link(&self.store.catalog.read(), target_text, mount_point)?;
                if is_temporary(name) {
                    return Ok(self.stage_link(caller, parent, name, target));
                }
                if name == b"default" {
                    self.switch_default(caller, to)?;
                } else {
                    let name = AliasName::from(&ImageName::parse(name)?);
                    if self.store.catalog.read().named(name.as_str()).is_some() {
                        return Err(Error::Taken {
                            name: name.as_str().into(),
                            holder: "there is one already".into(),
                        });
                    }
                    self.put_alias(caller, &name, to, target)?;
                }
                self.root_has_changed();
            }
            Place::Image(serial) => {
                let to = links::resolve_inner_link(&self.store.catalog.read(), serial, target_text)?;
                if is_temporary(name) {
                    return Ok(self.stage_link(caller, parent, name, target));
                }
                match name {
                    b"default" => self.pin(caller, serial, to)?,
                    b"latest" => {
                        return Err(Error::Managed {
                            what: "latest".into(),
                            why: "it names the newest version",
                        });
                    }
                    _ if let Some(label) = label_of(name) => self.label(caller, serial, label, to, false)?,
                    // `ln -s 1 default` without -n falls into the image.
                    _ => {
                        return Err(Error::NotFound {
                            what: format!("link {} in an image; use ln -sfn", text_of(name)),
                        });
                    }
                }
            }
        }
        self.lookup(caller, parent, name)
    }

    pub(super) fn stage_link(&self, caller: Caller, parent: NodeId, name: &[u8], text: &[u8]) -> NodeId {
        let mut staged = self.staged_links.lock();
        staged.retain(|l| !(l.parent == parent && l.name == name));
        if staged.len() >= STAGED_LINKS {
            staged.remove(0);
        }
        let number = self.next_handle.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        staged.push(StagedLink {
            number,
            parent,
            name: name.to_vec(),
            text: text.to_vec(),
            owner: (caller.uid, caller.gid),
        });
        NodeId::StagedLink(number)
    }

    pub(super) fn switch_default(&self, caller: Caller, to: LinkTarget) -> Result<()> {
        self.refuse_default(caller)?;
        links::set_default(&self.store, to)?;
        let model = self.store.catalog.read();
        let name = model
            .default_image
            .and_then(|i| model.images.get(&i))
            .map_or("?", |i| i.name.as_str())
            .to_owned();
        drop(model);
        self.store.journal.log(caller.uid, "default", &name, "is the default image");
        Ok(())
    }

    pub(super) fn pin(&self, caller: Caller, image: u32, to: Option<u32>) -> Result<()> {
        links::pin(&self.store, image, to)?;
        let name = self.store.catalog.read().images.get(&image).map(|i| i.name.clone()).unwrap_or_default();
        self.store.journal.log(caller.uid, "pin", &name, &to.map_or("latest".into(), |n| n.to_string()));
        Ok(())
    }

    /// `ln -s 1 web/@22.04.5`; of `latest` it is a label of the version that is so now.
    fn label(&self, caller: Caller, image: u32, label: &str, to: Option<u32>, moves: bool) -> Result<()> {
        let number =
            to.or_else(|| self.store.catalog.read().latest(image).map(|v| v.number)).ok_or_else(stale)?;
        labels::put(&self.store, image, label, number, moves)?;
        let name = self.store.catalog.read().images.get(&image).map(|i| i.name.clone()).unwrap_or_default();
        self.store.journal.log(caller.uid, "label", &format!("{name}/@{label}"), &number.to_string());
        Ok(())
    }

    /// `mv`, and the second half of `ln -sfn`, rsync and editors.
    pub fn rename(
        self: &Arc<Self>,
        caller: Caller,
        from: (NodeId, Vec<u8>),
        to: (NodeId, Vec<u8>),
        flags: u32,
        reply: Reply<()>,
    ) {
        // It may publish an upload, which takes as long as that takes.
        let upload =
            self.place_of(from.0).ok().and_then(|place| self.uploads.named(place, &text_of(&from.1)));
        let path = self.path_in(from.0, &from.1);
        if let Ok(NodeId::Staging(number)) = self.lookup(caller, from.0, &from.1) {
            return self.offload(reply, move |fs| {
                // The end of a file in it may come after its close.
                let publish = |place| fs.once_closed(|| fs.rename_staging(caller, number, (place, &to.1)));
                let renamed = fs.place_of(to.0).and_then(publish);
                let published = renamed.map_err(|e| fs.refused_mv(caller, &path, &e))?;
                // The kernel moved the directory to its new name: what is there now is a version, or an
                // image.
                match published {
                    Some(serial) if to.0 != NodeId::Root => {
                        fs.has_moved(caller, &to, fs.version_node(serial))
                    }
                    _ => fs.forget_later(to.0.ino(), to.1.clone()),
                }
                fs.root_has_changed();
                Ok(())
            });
        }
        if let Some(upload) = upload {
            return self.offload(reply, move |fs| {
                let why =
                    "it is unpacked already, and not moved into a directory (rsync: without --delay-updates)";
                let place = match to.0 {
                    NodeId::Staging(_) => Err(Error::Managed { what: text_of(&from.1), why }),
                    _ => fs.place_of(to.0),
                };
                let renamed = place.and_then(|place| {
                    fs.check_upload_target(caller, to.0, &to.1)?;
                    if let Place::Image(image) = place {
                        fs.refuse_attached(image)?;
                    } else if let Promise::Upload(_) = promise_of(&text_of(&to.1)) {
                        fs.refuse_foreign(caller, &fs.target_named(&text_of(&to.1), Some(upload.number))?.0)?;
                    }
                    fs.rename_upload(caller, &upload, place, &text_of(&to.1))
                });
                // The kernel now shows the upload under the new name: let it look again.
                if renamed.is_ok() {
                    fs.forget_later(to.0.ino(), to.1.clone());
                }
                renamed.map_err(|e| {
                    fs.note_refused_in(caller, to.0);
                    fs.refused_mv(caller, &path, &e)
                })
            });
        }
        // It waits for the kernel, which may wait for an answer to something else.
        self.offload(reply, move |fs| {
            // ln renames what it has made, and says of EINVAL what it means.
            let by_ln = fs.staged_link(from.0, &from.1).is_some();
            fs.rename_inner(caller, &from, &to, flags).map_err(|e| match e {
                e if by_ln => fs.refused(caller, "ln", &path, e),
                e => fs.refused_mv(caller, &path, &e),
            })
        });
    }

    /// Notes a refusal of mv, and gives it the number that mv has words for.
    fn refused_mv(&self, caller: Caller, path: &str, e: &Error) -> Error {
        self.note_refusal(caller, "mv", path, e);
        Error::Again { errno: e.errno_of_mv(), sentence: e.to_string() }
    }

    pub(super) fn check_upload_target(&self, caller: Caller, parent: NodeId, name: &[u8]) -> Result<()> {
        match self.lookup(caller, parent, name) {
            Ok(NodeId::Image { part: ImagePart::Dir, .. } | NodeId::Version { .. }) => {
                Err(Error::IsDirectory { what: text_of(name) })
            }
            Ok(NodeId::Link(_)) => Err(Error::Taken { name: text_of(name), holder: "it is a link".into() }),
            _ => Ok(()),
        }
    }

    pub(super) fn rename_inner(
        &self,
        caller: Caller,
        from: &(NodeId, Vec<u8>),
        to: &(NodeId, Vec<u8>),
        flags: u32,
    ) -> Result<()> {
        if flags & libc::RENAME_WHITEOUT != 0 {
            return Err(Error::Unsupported {
                what: "a whiteout".into(),
                instead: "rename it without that flag",
            });
        }
        if flags & libc::RENAME_EXCHANGE != 0 {
            return self.exchange(caller, from, to);
        }
        fault::reached("rename.begun");
        let node = self.lookup(caller, from.0, &from.1)?;
        // Of what has the name now, not of what had it when this was sent.
        if self.gone.is_mistaken(caller.pid, from.0, &from.1) {
            return Err(Error::LookAgain);
        }
        if let NodeId::Staging(directory) = from.0 {
            return self.rename_staged((directory, &from.1), (to.0, &to.1));
        }
        if from.0 == TRASH {
            return self.restore(caller, node, to);
        }
        match node {
            NodeId::StagedLink(_) => self.rename_staged_link(caller, from, to),
            NodeId::Image { serial, part: ImagePart::Dir, .. } => match to.0 {
                NodeId::Root => {
                    let name = self.new_name(caller, &to.1)?;
                    self.refuse_binding(caller, &text_of(&from.1))?;
                    versions::rename_image(&self.store, serial, &name)?;
                    self.forget_links_to(serial);
                    self.root_has_changed();
                    self.store.journal.log(caller.uid, "rename", &text_of(&from.1), name.as_str());
                    Ok(())
                }
                _ => Err(Error::Managed {
                    what: text_of(&from.1),
                    why: "an image can only be renamed within the root",
                }),
            },
            NodeId::Version { part: VersionPart::Dir, .. } => {
                Err(Error::Managed { what: "a version's place".into(), why: "versions do not move" })
            }
            NodeId::Link(link) => self.rename_link(caller, from, to, link),
            NodeId::In(kind, number) => kind.place().rename(self, caller, number, from, to),
            NodeId::Receipt(_) => {
                Err(Error::Managed { what: text_of(&from.1), why: "it is the receipt of an upload" })
            }
            NodeId::Image { part: ImagePart::Metadata, .. } => {
                Err(Error::Managed { what: "metadata.json".into(), why: "it stays where it is" })
            }
            other => Err(frozen(other)),
        }
    }

    pub(super) fn rename_staged_link(
        &self,
        caller: Caller,
        from: &(NodeId, Vec<u8>),
        to: &(NodeId, Vec<u8>),
    ) -> Result<()> {
        if from.0 != to.0 {
            return Err(Error::Managed {
                what: text_of(&from.1),
                why: "a link is renamed within its directory",
            });
        }
        let text = self.take_staged_link(from.0, &from.1).ok_or_else(stale)?;
        let target = String::from_utf8(text.clone()).map_err(|_| stale())?;
        let result = match from.0 {
            NodeId::In(kind, directory) => kind.place().switch(self, caller, directory, &to.1, &text),
            NodeId::Root => {
                let link = links::resolve_root_link(&self.store.catalog.read(), &target, &self.mount.path);
                link.and_then(|link| {
                    if to.1 == b"default" {
                        self.switch_default(caller, link)
                    } else if is_temporary(&to.1) {
                        self.stage_link(caller, from.0, &to.1, &text);
                        Ok(())
                    } else {
                        self.put_alias(caller, &(&ImageName::parse(&to.1)?).into(), link, &text)
                    }
                })
            }
            NodeId::Image { serial, .. } => {
                let link = links::resolve_inner_link(&self.store.catalog.read(), serial, &target);
                link.and_then(|number| match to.1.as_slice() {
                    b"default" => self.pin(caller, serial, number),
                    b"latest" => {
                        Err(Error::Managed { what: "latest".into(), why: "it names the newest version" })
                    }
                    other if let Some(label) = label_of(other) => {
                        self.label(caller, serial, label, number, true)
                    }
                    _ => Err(Error::NotFound { what: format!("link {} in an image", text_of(&to.1)) }),
                })
            }
            _ => Err(stale()),
        };
        if result.is_err() {
            // As before: the tool removes its temporary link itself.
            self.stage_link(caller, from.0, &from.1, &text);
        }
        self.root_has_changed();
        result
    }

    pub(super) fn rename_link(
        &self,
        caller: Caller,
        from: &(NodeId, Vec<u8>),
        to: &(NodeId, Vec<u8>),
        link: Link,
    ) -> Result<()> {
        if let (NodeId::Image { serial, .. }, Some(old), Some(new)) =
            (from.0, label_of(&from.1), label_of(&to.1))
            && from.0 == to.0
        {
            labels::rename(&self.store, serial, old, new)?;
            self.store.journal.log(caller.uid, "label", &self.path_in(from.0, &from.1), new);
            return Ok(());
        }
        if (from.0, to.0) != (NodeId::Root, NodeId::Root) {
            return Err(Error::Managed { what: text_of(&from.1), why: "it is changed with ln -sfn" });
        }
        let target = self.new_name(caller, &to.1);
        if from.1 == b"default" {
            // ln --backup puts the old link aside.
            let Link::Image(_) = link else { return Err(stale()) };
            self.refuse_default(caller)?;
            return links::default_to_alias(&self.store, &target?);
        }
        let Some(Named::Alias(serial)) = self.store.catalog.read().named(&text_of(&from.1)) else {
            return Err(stale());
        };
        self.refuse_binding(caller, &text_of(&from.1))?;
        let name = if to.1 == b"default" { None } else { Some(target?) };
        if name.is_none() {
            self.refuse_default(caller)?;
        }
        links::rename_alias(&self.store, serial, name.as_ref())?;
        self.store.journal.log(caller.uid, "rename", &text_of(&from.1), &text_of(&to.1));
        self.root_has_changed();
        Ok(())
    }

    /// RENAME_EXCHANGE: two links of the root swap what they lead to, at once.
    pub(super) fn exchange(
        &self,
        caller: Caller,
        from: &(NodeId, Vec<u8>),
        to: &(NodeId, Vec<u8>),
    ) -> Result<()> {
        let links = [from, to].map(|(parent, name)| match (parent, self.lookup(caller, *parent, name)) {
            (NodeId::Root, Ok(NodeId::Link(_))) => Ok(text_of(name)),
            _ => Err(Error::Managed { what: text_of(name), why: "only links of the root can be exchanged" }),
        });
        let [first, second] = links;
        let (first, second) = (first?, second?);
        for name in [&first, &second] {
            self.refuse_alias_change(caller, name)?;
        }
        if [&first, &second].iter().any(|name| *name == "default") {
            self.refuse_default(caller)?;
        }
        links::exchange_links(&self.store, &first, &second)
    }

    /// `mv .imgfs/trash/web MNT/`, `mv .imgfs/trash/web.1 MNT/web/`: undo.
    pub(super) fn restore(&self, caller: Caller, node: NodeId, to: &(NodeId, Vec<u8>)) -> Result<()> {
        match (node, to.0) {
            (NodeId::Image { serial, .. }, NodeId::Root) => {
                self.refuse_trashed(caller, serial, false)?;
                trash::restore_image(&self.store, serial, &self.new_name(caller, &to.1)?)?;
                self.forget_links_to(serial);
            }
            // Into the root it goes home, too: `mv .imgfs/trash/* MNT/`.
            (NodeId::Version { serial, .. }, NodeId::Root | NodeId::Image { part: ImagePart::Dir, .. }) => {
                let image = match to.0 {
                    NodeId::Image { serial: image, .. } => image,
                    _ => trash::home_of(&self.store.catalog.read(), serial)?,
                };
                self.refuse_trashed(caller, image, true)?;
                trash::restore_version(&self.store, serial, image)?;
                // It shows under its number, not under the name it was moved to.
                self.has_moved(caller, to, self.version_node(serial));
            }
            (NodeId::Link(link @ Link::TrashedAlias(_)), directory) if is_directory(directory) => {
                self.restore_link(caller, link, to)?;
                self.has_moved(caller, to, node);
            }
            (NodeId::Link(link), NodeId::Root | NodeId::Image { part: ImagePart::Dir, .. }) => {
                self.restore_link(caller, link, to)?;
                self.has_moved(caller, to, node);
            }
            (NodeId::Image { .. }, _) => {
                return Err(Error::Managed {
                    what: "an image".into(),
                    why: "it comes back into the root of the mount",
                });
            }
            _ => {
                return Err(Error::Managed { what: "a version".into(), why: "it comes back into its image" });
            }
        }
        self.root_has_changed();
        self.store.journal.log(caller.uid, "restore", &text_of(&to.1), "back from the trash");
        Ok(())
    }

    /// A link comes back: an alias into the root, under the name that it is moved to; the others to where
    /// they were.
    fn restore_link(&self, caller: Caller, link: Link, to: &(NodeId, Vec<u8>)) -> Result<()> {
        match link {
            Link::TrashedAlias(serial) => {
                if to.0 != NodeId::Root && !is_directory(to.0) {
                    return Err(Error::Managed {
                        what: "an alias".into(),
                        why: "it comes back into the root of the mount",
                    });
                }
                self.refuse_link(caller, Trashed::Alias(serial))?;
                trash::restore_alias(&self.store, serial, &name_of_restored(self, caller, serial, to)?)
            }
            Link::TrashedLabel(serial) => {
                self.refuse_link(caller, Trashed::Label(serial))?;
                trash::restore_label(&self.store, serial)
            }
            Link::TrashedImageDefault(serial) => {
                self.refuse_link(caller, Trashed::ImageDefault(serial))?;
                trash::restore_default(&self.store, Some(serial))
            }
            Link::TrashedDefault(_) => {
                self.refuse_default(caller)?;
                trash::restore_default(&self.store, None)
            }
            _ => Err(stale()),
        }
    }

    /// What was moved shows elsewhere: the mover may look at the name that it gave, and the kernel is to
    /// forget it.
    pub(super) fn has_moved(&self, caller: Caller, to: &(NodeId, Vec<u8>), leads_to: NodeId) {
        self.moved.note(caller.pid, to.0, &to.1, leads_to);
        self.forget_later(to.0.ino(), to.1.clone());
    }

    /// Tells the kernel about a name that is no more before the answer, but waits only so long: it locks the
    /// directory of the name, and who holds that (`mv web www`, `rmdir web`) may wait for the directory that
    /// the current call has locked.
    pub(super) fn forget_soon(&self, gone: Gone) {
        self.tell_soon(FORGETTING, move |kernel| kernel.forget_name(gone.name.parent, &gone.name.name));
    }

    /// Tells the kernel something before the answer, but waits only so long.
    pub(super) fn tell_soon(&self, time: Duration, tell: impl FnOnce(&dyn Kernel) + Send + 'static) {
        if let Some(kernel) = self.kernel.read().clone() {
            within("forget", time, move || tell(&*kernel));
        }
    }

    /// Tells the kernel about a name whose directory the current call has locked: after the answer.
    pub(super) fn forget_later(&self, parent: u64, name: Vec<u8>) {
        if let Some(kernel) = self.kernel.read().clone() {
            let _ = std::thread::Builder::new()
                .name("forget".into())
                .spawn(move || kernel.forget_name(parent, &name));
        }
    }
}
