//! The process behind a mount: start, background work, end.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::error::{Error, Result};
use crate::fs::attach::Trees;
use crate::fs::fuse::{Plane, Serving};
use crate::fs::latency::Latency;
use crate::fs::mount::{self, Flags};
use crate::fs::{ImageFs, View, attach, fuse, guard, staging, start_thread};
use crate::repack::What;
use crate::settings::Settings;
use crate::store::Store;
use crate::{gc, keep, remote, repack, scrub};

/// Between two looks at the trash and at what can be freed.
const TICK: Duration = Duration::from_secs(10);
/// What was staged under a temporary name and never renamed goes after this.
const STAGED_IDLE: Duration = Duration::from_secs(7 * 24 * 3600);
/// Between two looks at what has rested.
const PACK_EVERY: Duration = Duration::from_secs(900);
/// How long open files of others may hold up the end after SIGTERM.
const GRACE: Duration = Duration::from_secs(2);

pub struct Options {
    pub store: PathBuf,
    pub point: PathBuf,
    pub flags: Flags,
    pub settings: Settings,
    /// Event loops.
    pub threads: usize,
    /// Whether idle CPUs are kept awake during bursts of requests.
    pub latency: bool,
    /// Whether the kernel may read large files by itself, once they were checked.
    pub passthrough: bool,
    /// Whether each tree is to be a mount of its own.
    pub mounted_trees: bool,
}

/// Mounts, calls `ready` with a line for the user, and serves until the mount is gone.
///
/// Errors: what keeps it from starting, or broke the connection to the kernel.
pub fn run(options: &Options, ready: impl FnOnce(&str)) -> Result<()> {
    crate::sys::limit_heaps();
    if let Ok(dir) = std::fs::canonicalize(&options.store) {
        mount::end_dying(&dir);
    }
    let point = prepare_point(&options.point)?;
    let store = Store::open(&options.store, options.settings)?;
    let weak = Arc::downgrade(&store);
    store.blobs.when_full(Arc::new(move || weak.upgrade().is_some_and(|store| gc::make_room(&store).unwrap_or(false))));
    let view = View {
        mount_point: point.display().to_string(),
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        // Without allow_other the kernel does not check permissions at all.
        has_acls: options.flags.allow_other && !options.flags.noacl,
    };
    staging::prepare(&store.dir)?;
    store.mounted_on(&view.mount_point)?;
    clean_up(&store.dir);
    remote::listen(store.clone())?;
    let latency = if options.latency { Latency::start() } else { None };
    let acls = view.has_acls;
    let fs = ImageFs::new(store.clone(), view);
    let serving = |plane| Serving {
        plane,
        threads: options.threads,
        allow_other: options.flags.allow_other,
        acls,
        latency: latency.clone(),
    };
    if options.mounted_trees {
        start_trees(&fs, &point, &options.flags, serving(Plane::Trees))?;
    }
    if let Err(e) = guard::start(&store.dir) {
        log::warn!("nobody watches over this daemon: {e}");
    }
    let fd = mount::mount(&point, &store.dir, &options.flags).inspect_err(|_| clean_up(&store.dir))?;
    let stopping = Arc::new(AtomicBool::new(false));
    start_background(&fs, &stopping)?;
    start_proving(&store, &stopping)?;
    start_packing(&store, &stopping)?;
    start_scrub(&store, &stopping)?;
    stop_on_signals(&store.dir, &point, &stopping)?;
    let line = {
        let model = store.catalog.read();
        let (images, versions) = (model.live_images().count(), model.all_versions().filter(|v| model.is_live(v)).count());
        format!("{} shows {} ({images} images, {versions} versions)", point.display(), store.dir.display())
    };
    let served = fuse::serve(&fs, fd, serving(Plane::All { passthrough: options.passthrough }), || {
        if let Some(mounted) = mount::mounted_on(&point) {
            mount::raise_readahead(&mounted);
        }
        ready(&line);
    });
    stopping.store(true, Ordering::Release);
    clean_up(&store.dir);
    log::info!("unmounted from {}", point.display());
    served.map_err(Error::io("serve", &point))
}

/// Takes away what a daemon leaves in the store beside content: the way to it, and the mount of the trees.
fn clean_up(store: &Path) {
    if let Err(e) = attach::clear(store) {
        log::error!("{e}");
    }
    let _ = std::fs::remove_file(store.join("control"));
}

/// Serves the trees on a connection of their own.
fn start_trees(fs: &Arc<ImageFs>, point: &Path, flags: &Flags, serving: Serving) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Err(Error::Invalid { what: "-o trees=mounted".into(), why: "only root may mount them".into() });
    }
    let (place, fd) = attach::prepare(&fs.store.dir, flags)?;
    let (served, path) = (fs.clone(), place.clone());
    let work = move || {
        if let Err(e) = fuse::serve(&served, fd, serving, || {}) {
            log::error!("serving {}: {e}", path.display());
        }
    };
    start_thread("trees", "trees", work)?;
    let trees = Trees::open(&fs.store, point, &place)?;
    let _ = fs.trees.set(trees);
    Ok(())
}

/// The mount point as an absolute path; a dead daemon's mount on it is cleared away.
fn prepare_point(point: &Path) -> Result<PathBuf> {
    if let Some(mounted) = mount::mounted_on(point) {
        if !mount::is_dead(&mounted) {
            return Err(Error::Taken {
                name: mounted.point.display().to_string(),
                holder: format!("{} is mounted there", mounted.source.display()),
            });
        }
        log::warn!("the daemon behind {} is gone: unmounting it", mounted.point.display());
        mount::unmount(&mounted.point, true)?;
    }
    std::fs::canonicalize(point).map_err(Error::io("open", point))
}

/// Ends the trash's time, gives space back, drops what nobody claims.
fn start_background(fs: &Arc<ImageFs>, stopping: &Arc<AtomicBool>) -> Result<()> {
    let (fs, stopping) = (fs.clone(), stopping.clone());
    let work = move || {
        while !stopping.load(Ordering::Acquire) {
            if let Err(e) = gc::tick(&fs.store) {
                log::error!("background work: {e}");
            }
            fs.retire();
            fs.reap_staged(STAGED_IDLE);
            fs.reap_stagings(STAGED_IDLE);
            std::thread::sleep(TICK);
        }
    };
    start_thread("background", "background work", work)
}

/// Finds out which uploads can be made again, one after the other, and gives way to everything else.
fn start_proving(store: &Arc<Store>, stopping: &Arc<AtomicBool>) -> Result<()> {
    let (store, stopping) = (store.clone(), stopping.clone());
    let work = move || {
        let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), 19);
        while !stopping.load(Ordering::Acquire) {
            match keep::prove_next(&store) {
                Ok(true) => continue,
                Ok(false) => {}
                Err(e) => log::error!("proving uploads: {e}"),
            }
            std::thread::sleep(TICK);
        }
    };
    start_thread("prove", "uploads to prove", work)
}

/// Packs what has rested, and gives way to everything else.
fn start_packing(store: &Arc<Store>, stopping: &Arc<AtomicBool>) -> Result<()> {
    let (store, stopping) = (store.clone(), stopping.clone());
    let work = move || {
        let go_on = || !stopping.load(Ordering::Acquire) && !store.repack_paused.load(Ordering::Acquire);
        let mut next = Instant::now();
        while !stopping.load(Ordering::Acquire) {
            std::thread::sleep(TICK);
            if Instant::now() < next || !go_on() || store.journal.running_uploads() > 0 {
                continue;
            }
            next = Instant::now() + PACK_EVERY;
            if let Err(e) = repack::run(&store, What::Rested, 1, |_, _| go_on()) {
                log::error!("packing: {e}");
            }
        }
    };
    start_thread("pack", "packing", work)
}

/// Looks at what is stored, slowly, and gives way to everything else.
fn start_scrub(store: &Arc<Store>, stopping: &Arc<AtomicBool>) -> Result<()> {
    let (store, stopping) = (store.clone(), stopping.clone());
    let work = move || {
        let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), 19);
        while !stopping.load(Ordering::Acquire) {
            std::thread::sleep(TICK);
            if store.journal.running_jobs() == 0 {
                scrub::step(&store);
            }
        }
    };
    start_thread("scrub", "scrubbing", work)
}

/// SIGTERM is an orderly unmount: at once if nothing is open, else after a moment's grace.
fn stop_on_signals(store: &Path, point: &Path, stopping: &Arc<AtomicBool>) -> Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(Error::io("watch", Path::new("signals")))?;
    let (store, point, stopping) = (store.to_owned(), point.to_owned(), stopping.clone());
    let work = move || {
        if let Some(signal) = signals.forever().next() {
            log::info!("signal {signal}: unmounting {}", point.display());
            if mount::unmount(&point, false).is_err()
                && let Err(e) = mount::unmount(&point, true)
            {
                log::error!("{e}");
            }
            std::thread::sleep(GRACE);
            if !stopping.load(Ordering::Acquire) {
                // Detached, but somebody keeps a file open: what was closed is durable, the rest is cut off.
                log::warn!("files are still open: ending without them");
                clean_up(&store);
            }
            std::process::exit(0);
        }
    };
    start_thread("signals", "signals", work)
}
