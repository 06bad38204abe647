//! mv MNT/web/.new MNT/web/next, the end of staging: all of it becomes a version, or none; or it goes, after
//! a week.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::fs::staging::{Staging, bad_name, checked_name};
use crate::fs::upload::{Place, waits_to_die};
use crate::fs::{Caller, ImageFs, stale};
use crate::images::staging;
use crate::ingest::{Target, staged};

impl ImageFs {
    /// `mv MNT/.new MNT/web`, `mv MNT/web/.new MNT/web/next`, `mv MNT/.new MNT/web/`: publishes all of it as
    /// one version, or nothing, and gives the version's serial. In its own directory, or out of an image,
    /// another dotted name is only a rename.
    pub(in crate::fs) fn rename_staging(
        &self,
        caller: Caller,
        number: u32,
        to: (Place, &[u8]),
    ) -> Result<Option<u32>> {
        let staging = self.stagings.by_number(number)?;
        let (place, name) = to;
        if let Place::Image(image) = place {
            self.refuse_attached(image)?;
        }
        let name = String::from_utf8(name.to_vec()).map_err(|_| bad_name(name))?;
        let moves_in = place != staging.place() && matches!(place, Place::Image(_));
        if name.starts_with('.') && !moves_in {
            let name = checked_name(name.as_bytes())?;
            if name == ".imgfs" || self.stagings.named(place, &name).is_some() {
                return Err(Error::Taken { name, holder: "there is one already".into() });
            }
            let image = if let Place::Image(serial) = place { Some(serial) } else { None };
            staging.change(|about| (about.name, about.image) = (name, image))?;
            return Ok(None);
        }
        staging.refused.lock().again(&name)?;
        if staging.writers.load(Ordering::Acquire) > 0 {
            return Err(Error::UploadBusy { name: staging.about.lock().name.clone() });
        }
        staging.refuse_publishing()?;
        staging.publishing.store(true, Ordering::Release);
        let published = self.publish_staging(caller, &staging, place, &name, moves_in);
        staging.publishing.store(false, Ordering::Release);
        published.map(Some).inspect_err(|e| staging.refused.lock().note(&name, e))
    }

    fn publish_staging(
        &self,
        caller: Caller,
        staging: &Staging,
        place: Place,
        name: &str,
        moves_in: bool,
    ) -> Result<u32> {
        let target = match place {
            Place::Root => Target::New(self.new_name(caller, name.as_bytes())?),
            // As a file that is copied there would be.
            Place::Image(serial) if name == "next" || moves_in => Target::Image(serial),
            Place::Image(_) => {
                let why = "mv it to IMAGE/next, and it gets the next number";
                return Err(Error::Managed { what: format!("the name {name} in an image"), why });
            }
        };
        let (files, about) = {
            let files: Vec<String> = staging.files.lock().by_name.keys().cloned().collect();
            (files, staging.about.lock().clone())
        };
        let job = self.store.journal.start_job("publish", &about.name, caller.uid);
        let files = files.into_iter().map(|name| staged::File { path: staging.file(&name), name }).collect();
        let order = staged::Order { target, files, expect: about.expect, uid: about.uid, gid: about.gid };
        let name = format!("staged-{}", staging.number);
        let go_on = || !waits_to_die(caller.pid);
        let published = staged::publish(&self.store, &name, order, &go_on)
            .inspect_err(|e| job.end(&format!("refused: {e}")))?;
        self.stagings.remove(staging);
        let what = format!("{}/{}", published.name, published.number);
        let outcome = if published.new { "added" } else { "the newest version already is this" };
        self.store.journal.log(caller.uid, "publish", &what, outcome);
        job.end(&format!("{what}: {outcome}"));
        let version = self.store.catalog.read().version(published.image, published.number).map(|v| v.serial);
        version.ok_or_else(stale)
    }

    /// Drops staging directories that nobody has touched for `idle`.
    pub fn reap_stagings(&self, idle: Duration) {
        let all: Vec<_> = self.stagings.all.lock().values().cloned().collect();
        let trash = Duration::from_secs(self.store.settings().trash_seconds);
        for staging in all.into_iter().filter(|s| staging::idle(&s.path, s.known, trash) > idle) {
            let name = staging.about.lock().name.clone();
            let uid = staging.about.lock().uid;
            self.store.journal.fail(&name, uid, staging::NOT_TOUCHED);
            self.stagings.remove(&staging);
        }
    }
}
