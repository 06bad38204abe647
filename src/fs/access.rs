//! chmod, chown, chgrp, setfacl: permission checks that the kernel does not make. They concern names
//! that lead to an image from elsewhere, and texts that say something about an image.
//!
//! With `allow_other` the kernel checks every path by the modes along it (`default_permissions`). imgfs
//! checks the rest: an upload into the root that is the next version of somebody's image, `by-id`,
//! `by-digest`, receipts, aliases, `errors` and `log`. Root and the owner of the mount may do
//! everything.

use std::collections::{HashMap, HashSet};

use crate::base::clock::parse_time;
use crate::base::name::{AliasName, ImageName, OF_VIEW, bound_name};
use crate::catalog::{Image, Model, Root, Version};
use crate::error::{Error, Result};
use crate::fs::upload::Destination;
use crate::fs::{Caller, ImageFs, stale};
use crate::images::rules::{By, refuse_immutable};
use crate::ingest::Target;

/// Mode bits, in the place that they have for others.
pub(super) const READ: u32 = 4;
pub(super) const WRITE: u32 = 2;

impl ImageFs {
    /// Describes the caller to rules about permissions.
    pub(super) fn by(&self, caller: Caller) -> By {
        By { uid: caller.uid, is_admin: self.is_admin(caller) }
    }

    pub(super) fn is_admin(&self, caller: Caller) -> bool {
        caller.uid == 0
            || caller.uid == self.mount.uid
            || self.store.settings().admin_group.is_some_and(|gid| is_in_group(caller, gid))
    }

    /// The owner and mode of the mount's root.
    pub(super) fn root(&self) -> Root {
        let own = Root { uid: self.mount.uid, gid: self.mount.gid, mode: 0o755, acl: None };
        self.store.catalog.read().root.clone().unwrap_or(own)
    }

    /// The live versions of images that this user may read.
    pub(super) fn shown_to<'m>(&self, caller: Caller, model: &'m Model) -> impl Iterator<Item = &'m Version> {
        let images: HashSet<u32> =
            model.live_images().filter(|i| self.may(caller, i, READ)).map(|i| i.serial).collect();
        model.all_versions().filter(move |v| v.trashed_at.is_none() && images.contains(&v.image))
    }

    /// Whether the mode of an image lets this user read it, or change it.
    pub(super) fn may(&self, caller: Caller, image: &Image, want: u32) -> bool {
        if self.is_admin(caller) {
            return true;
        }
        if image.uid == caller.uid {
            return image.mode >> 6 & want == want;
        }
        match &image.rules.acl {
            Some(acl) => acl.rights(image.mode, caller.uid, image.gid, |gid| is_in_group(caller, gid), want),
            None if is_in_group(caller, image.gid) => image.mode >> 3 & want == want,
            None => image.mode & want == want,
        }
    }

    /// Refuses an upload into the root if this user may not change its image, or may not create it.
    pub(super) fn refuse_foreign(&self, caller: Caller, target: &Target) -> Result<()> {
        let model = self.store.catalog.read();
        match (target.image(&model), target) {
            (None, Target::Named(name) | Target::New(name)) => {
                drop(model);
                self.refuse_binding(caller, name.as_str())
            }
            (image, _) => self.refuse_change(caller, image),
        }
    }

    /// Checks a name that something in the root is to get.
    ///
    /// # Errors
    ///
    /// `BadName`, `NameTooLong`; `NotYours` for one that would bind it to a view; `Taken` by an
    /// upload.
    pub(super) fn new_name(&self, caller: Caller, name: &[u8]) -> Result<ImageName> {
        let name = ImageName::parse(name)?;
        self.refuse_binding(caller, name.as_str())?;
        self.refuse_staged(name.as_str(), None)?;
        Ok(name)
    }

    /// Refuses a name in the root that another upload than `but` has, because both would show.
    ///
    /// # Errors
    ///
    /// `Taken`.
    pub(super) fn refuse_staged(&self, name: &str, but: Option<u64>) -> Result<()> {
        let shown = self.uploads.named(Destination::Root, name).filter(|upload| upload.is_under_way());
        if shown.is_some_and(|upload| Some(upload.number) != but) {
            return Err(Error::Taken {
                name: name.to_owned(),
                holder: "it is an upload under way, or staged".into(),
            });
        }
        Ok(())
    }

    /// Refuses a user who does not administer the store.
    ///
    /// # Errors
    ///
    /// `NotYours`.
    pub(super) fn refuse_others(&self, caller: Caller, what: &str) -> Result<()> {
        let refusal = || Error::NotYours { what: what.into(), uid: self.mount.uid };
        if self.is_admin(caller) { Ok(()) } else { Err(refusal()) }
    }

    /// Lets only administrators of the store change what is bound to a view, and checks the name that it
    /// has there.
    ///
    /// # Errors
    ///
    /// `NotYours`, `BadName`.
    pub(super) fn refuse_binding(&self, caller: Caller, name: &str) -> Result<()> {
        match self.store.catalog.read().bound(name) {
            Some((view, shown)) => {
                self.refuse_others(caller, &format!("view {view}"))?;
                // The name that the view shows.
                AliasName::parse(shown.as_bytes())?;
                if shown.contains(OF_VIEW) {
                    let why = "`::` stands between a view and the name of what is bound to it";
                    return Err(Error::BadName { name: name.into(), why });
                }
                Ok(())
            }
            None if name.contains(OF_VIEW) => {
                let why = "`::` stands between a view and the name of what is bound to it, and there is no such view";
                Err(Error::BadName { name: name.into(), why })
            }
            None => Ok(()),
        }
    }

    /// Protects the default of the store as a sticky bit does: only the owner of the root may change it.
    pub(super) fn refuse_default(&self, caller: Caller) -> Result<()> {
        let root = self.root();
        if root.mode & libc::S_ISVTX == 0 || caller.uid == root.uid || self.is_admin(caller) {
            return Ok(());
        }
        Err(Error::NotYours { what: "default".into(), uid: root.uid })
    }

    /// Refuses early what the commit would refuse in a view.
    pub(super) fn refuse_attached(&self, image: u32) -> Result<()> {
        let model = self.store.catalog.read();
        model.images.get(&image).map_or(Ok(()), |image| model.refuse_attached(image))
    }

    /// Refuses to edit what an image has beside its versions: metadata.json and its icon.
    pub(super) fn refuse_edit(&self, image: u32) -> Result<()> {
        self.refuse_attached(image)?;
        refuse_immutable(self.store.catalog.read().live_image(image).ok_or_else(stale)?)
    }

    /// Refuses a change by a user whom the mode of the image does not permit it.
    pub(super) fn refuse_change(&self, caller: Caller, image: Option<&Image>) -> Result<()> {
        match image.filter(|image| !self.may(caller, image, WRITE)) {
            Some(image) => Err(Error::NotYours { what: image.name.clone(), uid: image.uid }),
            None => Ok(()),
        }
    }

    /// Refuses to restore or to purge an entry of the trash: a version of this image, or the whole image.
    /// In a sticky root only the owner of an image could have deleted it, so only the owner may do this.
    pub(super) fn refuse_trashed(&self, caller: Caller, image: u32, version: bool) -> Result<()> {
        let (root, model) = (self.root(), self.store.catalog.read());
        let Some(image) = model.images.get(&image) else { return Ok(()) };
        if !version && root.mode & libc::S_ISVTX != 0 && image.uid != caller.uid && !self.is_admin(caller) {
            return Err(Error::NotYours { what: image.name.clone(), uid: image.uid });
        }
        self.refuse_change(caller, Some(image))
    }

    /// Keeps the lines that this user may know. The fields of a line are a time, a user, a gesture and a
    /// path. A user may know own gestures, and those on readable images since they have had their names.
    pub(super) fn heard_by(&self, caller: Caller, text: String) -> String {
        if self.is_admin(caller) {
            return text;
        }
        let model = self.store.catalog.read();
        // Since when a readable image has had this name. Each name is looked up once.
        let mut known: HashMap<String, Option<i64>> = HashMap::new();
        let mut heard = String::new();
        for line in text.split_inclusive('\n') {
            let fields: Vec<&str> = line.split('\t').take(4).collect();
            let [at, uid, _, path] = fields[..] else { continue };
            let own = uid.parse() == Ok(caller.uid);
            // The path is `web/1` or `dc1::web/1`, or `dc1::/web/1` for a gesture in a view.
            let (view, path) = path.split_once("::/").unwrap_or(("", path));
            let shown = path.trim_start_matches('/').split('/').next().unwrap_or_default();
            let name = if view.is_empty() { shown.to_owned() } else { bound_name(view, shown) };
            let since = known.entry(name.clone()).or_insert_with(|| {
                let image = model.image_named(&name).filter(|image| self.may(caller, image, READ))?;
                Some(image.rules.named_at.unwrap_or(image.created_at))
            });
            if own || since.is_some_and(|since| parse_time(at).is_some_and(|at| at >= since)) {
                heard.push_str(line);
            }
        }
        heard
    }
}

/// Whether the caller is in the group. For a process in another namespace only its first group is
/// known.
fn is_in_group(caller: Caller, gid: u32) -> bool {
    if caller.gid == gid {
        return true;
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", caller.pid)).unwrap_or_default();
    let groups = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap_or_default();
    caller.pid != 0 && groups.split_whitespace().any(|group| group.parse() == Ok(gid))
}
