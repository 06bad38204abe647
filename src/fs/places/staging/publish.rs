//! mv MNT/web/.new MNT/web/next, the end of staging: all of it becomes one version, or nothing does.
//! After a week without use it is dropped.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::fs::places::staging::{Staging, bad_name, checked_name};
use crate::fs::upload::{Destination, waits_to_die};
use crate::fs::{Caller, ImageFs, stale};
use crate::images::staging;
use crate::ingest::{Target, staged};

/// `mv MNT/.new MNT/web`, `mv MNT/web/.new MNT/web/next`, `mv MNT/.new MNT/web/`: publishes all of it
/// as one version, or nothing, and returns the version's serial. A dotted name in the same directory,
/// or outside of images, is only a rename.
pub(in crate::fs) fn rename(
    fs: &ImageFs,
    caller: Caller,
    number: u32,
    to: (Destination, &[u8]),
) -> Result<Option<u32>> {
    let staging = fs.stagings.by_number(number)?;
    let (place, name) = to;
    if let Destination::Image(image) = place {
        fs.refuse_attached(image)?;
    }
    let name = String::from_utf8(name.to_vec()).map_err(|_| bad_name(name))?;
    let moves_in = place != staging.place() && matches!(place, Destination::Image(_));
    if name.starts_with('.') && !moves_in {
        let name = checked_name(name.as_bytes())?;
        if name == ".imgfs" || fs.stagings.named(place, &name).is_some() {
            return Err(Error::Taken { name, holder: "there is one already".into() });
        }
        let image = if let Destination::Image(serial) = place { Some(serial) } else { None };
        staging.change(|about| (about.name, about.image) = (name, image))?;
        return Ok(None);
    }
    staging.refused.lock().again(&name)?;
    if staging.writers.load(Ordering::Acquire) > 0 {
        return Err(Error::UploadBusy { name: staging.about.lock().name.clone() });
    }
    staging.refuse_publishing()?;
    staging.publishing.store(true, Ordering::Release);
    let published = publish(fs, caller, &staging, place, &name, moves_in);
    staging.publishing.store(false, Ordering::Release);
    published.map(Some).inspect_err(|e| staging.refused.lock().note(&name, e))
}

fn publish(
    fs: &ImageFs,
    caller: Caller,
    staging: &Staging,
    place: Destination,
    name: &str,
    moves_in: bool,
) -> Result<u32> {
    let target = match place {
        Destination::Root => Target::New(fs.new_name(caller, name.as_bytes())?),
        // The rules are those for a file that is copied there.
        Destination::Image(serial) if name == "next" || moves_in => Target::Image(serial),
        Destination::Image(_) => {
            let why = "mv it to IMAGE/next, and it gets the next number";
            return Err(Error::Managed { what: format!("the name {name} in an image"), why });
        }
    };
    let (files, about) = {
        let files: Vec<String> = staging.files.lock().by_name.keys().cloned().collect();
        (files, staging.about.lock().clone())
    };
    let job = fs.store.journal.start_job("publish", &about.name, caller.uid);
    let files = files.into_iter().map(|name| staged::File { path: staging.file(&name), name }).collect();
    let order = staged::Order { target, files, expect: about.expect, uid: about.uid, gid: about.gid };
    let name = format!("staged-{}", staging.number);
    let go_on = || !waits_to_die(caller.pid);
    let published = staged::publish(&fs.store, &name, order, &go_on)
        .inspect_err(|e| job.end(&format!("refused: {e}")))?;
    fs.stagings.remove(staging);
    let what = format!("{}/{}", published.name, published.number);
    let outcome = if published.new { "added" } else { "the newest version already is this" };
    fs.store.journal.log(caller.uid, "publish", &what, outcome);
    job.end(&format!("{what}: {outcome}"));
    let version = fs.store.catalog.read().version(published.image, published.number).map(|v| v.serial);
    version.ok_or_else(stale)
}

/// Drops staging directories that nobody has touched for `idle`.
pub(in crate::fs) fn reap(fs: &ImageFs, idle: Duration) {
    let all: Vec<_> = fs.stagings.all.lock().values().cloned().collect();
    let trash = Duration::from_secs(fs.store.settings().trash_seconds);
    for staging in all.into_iter().filter(|s| staging::idle(&s.path, s.known, trash) > idle) {
        let name = staging.about.lock().name.clone();
        let uid = staging.about.lock().uid;
        fs.store.journal.fail(&name, uid, staging::NOT_TOUCHED);
        fs.stagings.remove(&staging);
    }
}
