//! The process behind a mount: start, background work, end.

pub mod guard;
pub mod socket;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::base::flags::Flags;
use crate::care::repack::What;
use crate::care::{gc, repack, scrub};
use crate::daemon::socket::MountRequest;
use crate::error::Holder;
use crate::error::{Error, Result};
use crate::fs::kernel::attach::Trees;
use crate::fs::kernel::fuse::{Plane, Serving};
use crate::fs::kernel::hidden::Hidden;
use crate::fs::kernel::latency::Latency;
use crate::fs::kernel::mount;
use crate::fs::kernel::{attach, fuse};
use crate::fs::{ImageFs, LASTING, MountPoint, Mounts, start_thread};
use crate::images::{keep, last_use, staging, views};
use crate::store::Store;
use crate::store::settings::{Settings, TreesAs};

/// Between two looks at the trash and at what can be freed.
const TICK: Duration = Duration::from_secs(10);
/// By how much the note of an image's last use may be too old when the daemon ends.
const LAST_USE: Duration = Duration::from_secs(1);
/// Between two looks at what has rested.
const PACK_EVERY: Duration = Duration::from_secs(900);
/// How long open files of others may hold up the end after SIGTERM.
const GRACE: Duration = Duration::from_secs(2);

pub struct Options {
    pub store: PathBuf,
    pub mount: MountRequest,
    pub settings: Settings,
    /// Event loops.
    pub threads: usize,
    /// Whether idle CPUs are kept awake during bursts of requests.
    pub latency: bool,
    /// Whether the kernel may read large files by itself, once they were checked.
    pub passthrough: bool,
    /// Whether each tree is to be a mount of its own.
    pub trees: TreesAs,
}

/// The process: one store, and its mounts.
struct Daemon {
    store: Arc<Store>,
    mounts: Arc<Mounts>,
    /// The file system of the whole store, which cares for all of it, mounted or not; there once `run` has
    /// made it.
    whole: Mutex<Option<Arc<ImageFs>>>,
    threads: usize,
    passthrough: bool,
    latency: Option<Arc<Latency>>,
    served: Mutex<Vec<Served>>,
    next: AtomicU64,
    one_fewer: Condvar,
    stopping: AtomicBool,
}

/// A mount that is served. One may end, with files that were open for long, after another was made in its
/// place.
#[derive(Clone)]
struct Served {
    id: u64,
    point: PathBuf,
    /// None: the whole store.
    view: Option<String>,
}

/// Mounts, calls `ready` with a line for the user, and serves until the mount and all that were made beside
/// it are gone.
///
/// # Errors
///
/// What keeps it from starting, or broke the connection to the kernel.
pub fn run(options: &Options, ready: impl FnOnce(&str)) -> Result<()> {
    crate::base::sys::limit_heaps();
    if let Ok(dir) = std::fs::canonicalize(&options.store) {
        mount::end_dying(&dir, false);
    }
    let point = prepare_point(&options.mount.point)?;
    let store = Store::open(&options.store, options.settings)?;
    let weak = Arc::downgrade(&store);
    store.blobs.when_full(Arc::new(move || {
        weak.upgrade().is_some_and(|store| gc::make_room(&store).unwrap_or(false))
    }));
    staging::prepare(&store.dir)?;
    clean_up(&store.dir);
    let daemon = Arc::new(Daemon {
        whole: Mutex::default(),
        mounts: Arc::default(),
        store,
        threads: options.threads,
        passthrough: options.passthrough,
        latency: if options.latency { Latency::start() } else { None },
        served: Mutex::default(),
        next: AtomicU64::new(0),
        one_fewer: Condvar::new(),
        stopping: AtomicBool::new(false),
    });
    let weak = Arc::downgrade(&daemon);
    let mounter = move |request| weak.upgrade().ok_or(Error::Stopping)?.mount_beside(request);
    let (id, fs) = daemon.file_system(&point, &options.mount)?;
    if options.mount.view.is_some() {
        *daemon.whole.lock() =
            Some(ImageFs::new(daemon.store.clone(), MountPoint::default(), &daemon.mounts));
    }
    socket::listen(daemon.store.clone(), Arc::new(mounter))?;
    let trees = daemon.trees(&fs, &point, options)?;
    if let Err(e) = guard::start(&daemon.store.dir) {
        log::warn!("nobody watches over this daemon: {e}");
    }
    let start = || {
        start_background(&daemon)?;
        start_proving(&daemon)?;
        start_packing(&daemon)?;
        start_scrub(&daemon)?;
        stop_on_signals(&daemon)
    };
    let served = daemon.serve(&fs, id, &point, &options.mount, start, ready);
    // Somebody may be in a tree still.
    fs.trees.get().iter().for_each(|trees| trees.close());
    trees.map(|serving| serving.join());
    drop(fs);
    let mut others = daemon.served.lock();
    while !others.is_empty() {
        daemon.one_fewer.wait(&mut others);
    }
    // Before others can ask for a mount again.
    daemon.stopping.store(true, Ordering::Release);
    drop(others);
    if let Err(e) = last_use::keep(&daemon.store, LAST_USE) {
        log::warn!("cannot note which images were used: {e}");
    }
    clean_up(&daemon.store.dir);
    served
}

impl Daemon {
    /// The file system of a mount that is to be made.
    ///
    /// # Errors
    ///
    /// `NotFound` for a view that is not there; `Locked` for the whole store once more; `Stopping`.
    fn file_system(&self, point: &Path, request: &MountRequest) -> Result<(u64, Arc<ImageFs>)> {
        let flags = &request.flags;
        let mount = MountPoint {
            path: point.display().to_string(),
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            // Without allow_other the kernel does not check permissions at all.
            has_acls: flags.allow_other && !flags.noacl,
        };
        let _held = self.mounts.views.lock();
        let mut served = self.served.lock();
        if self.stopping.load(Ordering::Acquire) {
            return Err(Error::Stopping);
        }
        let fs = match &request.view {
            Some(view) => {
                views::find(&self.store.catalog.read(), view)?;
                ImageFs::new(self.store.through(view), mount, &self.mounts)
            }
            None => {
                if let Some(other) = served.iter().find(|other| other.view.is_none()) {
                    let mounted = other.point.display().to_string();
                    return Err(Error::Locked {
                        store: self.store.dir.clone(),
                        holder: Box::new(Holder::ours(mounted)),
                    });
                }
                let fs = ImageFs::new(self.store.clone(), mount, &self.mounts);
                *self.whole.lock() = Some(fs.clone());
                fs
            }
        };
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        served.push(Served { id, point: point.to_owned(), view: request.view.clone() });
        drop(served);
        if self.mounts.are_several() {
            // What the others' kernels were told before holds no longer.
            std::thread::sleep(LASTING);
        }
        self.say_where()?;
        Ok((id, fs))
    }

    /// Writes into the lock where the store is mounted; after the last, where it was: who waits for its end
    /// looks there.
    fn say_where(&self) -> Result<()> {
        let point = self.served.lock().first().map(|first| first.point.display().to_string());
        point.map_or(Ok(()), |point| self.store.mounted_on(&point))
    }

    fn serving(&self, plane: Plane, flags: &Flags) -> Serving {
        Serving {
            plane,
            threads: self.threads,
            allow_other: flags.allow_other,
            acls: flags.allow_other && !flags.noacl,
            latency: self.latency.clone(),
        }
    }

    /// Trees as mounts of their own, as far as that is wished and can be had; the thread that serves them.
    fn trees(&self, fs: &Arc<ImageFs>, point: &Path, options: &Options) -> Result<Option<JoinHandle<()>>> {
        let flags = &options.mount.flags;
        if options.trees == TreesAs::Inline {
            return Ok(None);
        }
        match start_trees(fs, point, flags, self.serving(Plane::Trees, flags)) {
            Err(e) if options.trees == TreesAs::Auto => {
                log::info!("trees are no mounts of their own: {e}");
                Ok(None)
            }
            started => started.map(Some),
        }
    }

    /// Mounts, and serves until that is gone. `start` is what else begins once it is mounted.
    fn serve(
        &self,
        fs: &Arc<ImageFs>,
        id: u64,
        point: &Path,
        request: &MountRequest,
        start: impl FnOnce() -> Result<()>,
        ready: impl FnOnce(&str),
    ) -> Result<()> {
        let mounted =
            mount::mount(point, &self.store.dir, &request.flags).and_then(|fd| start().map(|()| fd));
        let served = mounted.and_then(|fd| {
            let line = {
                let model = fs.store.catalog.read();
                let (images, versions) =
                    (model.live_images().count(), model.all_versions().filter(|v| model.is_live(v)).count());
                let what = request.view.as_ref().map_or(String::new(), |view| format!("view {view} of "));
                format!(
                    "{} shows {what}{} ({images} images, {versions} versions)",
                    point.display(),
                    self.store.dir.display()
                )
            };
            let serving = self.serving(Plane::All { passthrough: self.passthrough }, &request.flags);
            let served = fuse::serve(fs, fd, serving, || {
                if let Some(mounted) = mount::mounted_on(point) {
                    mount::raise_readahead(&mounted.device);
                }
                ready(&line);
            });
            fs.note_unfinished();
            log::info!("unmounted from {}", point.display());
            served.map_err(Error::io("serve", point))
        });
        self.forget(id);
        served
    }

    /// A mount is gone.
    fn forget(&self, id: u64) {
        self.served.lock().retain(|other| other.id != id);
        if let Err(e) = self.say_where() {
            log::error!("{e}");
        }
        self.one_fewer.notify_all();
    }

    /// One more mount, in a thread of its own; gives a line for the user once it can be used.
    fn mount_beside(self: &Arc<Daemon>, request: MountRequest) -> Result<String> {
        let point = prepare_point(&request.point)?;
        let (id, fs) = self.file_system(&point, &request)?;
        if request.own_word {
            self.forget(id);
            let why =
                "the store is mounted already, and how it behaves is its daemon's: see .imgfs/config".into();
            return Err(Error::Invalid { what: "a setting for one more mount".into(), why });
        }
        let (tell, told) = mpsc::sync_channel(1);
        let daemon = self.clone();
        let work = move || {
            let ready = |line: &str| tell.send(Ok(line.to_owned())).unwrap_or_default();
            if let Err(e) = daemon.serve(&fs, id, &point, &request, || Ok(()), ready) {
                log::error!("{e}");
                let _ = tell.try_send(Err(e));
            }
        };
        start_thread("mount", "one more mount", work).inspect_err(|_| self.forget(id))?;
        told.recv().unwrap_or(Err(Error::Stopping))
    }
}

/// Takes away what a daemon leaves in the store beside content: the way to it, and what older ones mounted
/// there.
fn clean_up(store: &Path) {
    if let Err(e) = attach::clear(store) {
        log::error!("{e}");
    }
    let _ = std::fs::remove_file(store.join("control"));
}

/// Serves the trees on a connection of their own.
fn start_trees(fs: &Arc<ImageFs>, point: &Path, flags: &Flags, serving: Serving) -> Result<JoinHandle<()>> {
    if !rustix::process::geteuid().is_root() {
        return Err(Error::Invalid {
            what: "-o trees=mounted".into(),
            why: "only root may mount them".into(),
        });
    }
    let (mount, fd) = mount::mount_nowhere(&fs.store.dir, flags)?;
    let served = fs.clone();
    let work = move || {
        if let Err(e) = fuse::serve(&served, fd, serving, || {}) {
            log::error!("serving trees: {e}");
        }
    };
    let thread = std::thread::Builder::new().name("trees".into()).spawn(work);
    let thread = thread.map_err(Error::io("start a thread for", Path::new("trees")))?;
    let device = rustix::fs::fstat(&mount)
        .map(|stat| (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev)));
    if let Ok((major, minor)) = device {
        mount::raise_readahead(&format!("{major}:{minor}"));
    }
    // For tests.
    let hidden = Hidden::new(mount, std::env::var_os("IMGFS_OLD_KERNEL").is_some())?;
    let _ = fs.trees.set(Trees::open(&fs.store, &fs.mounts, point, hidden, flags)?);
    Ok(thread)
}

/// The mount point as an absolute path; a dead daemon's mount on it is cleared away.
///
/// # Errors
///
/// `Taken` if a store is mounted there; `Io` if there is no such path. `Io`, `Invalid` if a dead mount cannot
/// be cleared away.
pub fn prepare_point(point: &Path) -> Result<PathBuf> {
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
    let real = std::fs::canonicalize(point).map_err(Error::io("open", point))?;
    match mount::mounted_on(&real) {
        // It was a symlink to it.
        Some(mounted) => {
            let holder = format!("{} is mounted there", mounted.source.display());
            Err(Error::Taken { name: mounted.point.display().to_string(), holder })
        }
        None => Ok(real),
    }
}

/// Ends the trash's time, gives space back, drops what nobody claims.
fn start_background(daemon: &Arc<Daemon>) -> Result<()> {
    let daemon = daemon.clone();
    let work = move || {
        while !daemon.stopping.load(Ordering::Acquire) {
            if let Err(e) = gc::tick(&daemon.store) {
                log::error!("background work: {e}");
            }
            let whole = daemon.whole.lock().clone();
            whole.iter().for_each(|fs| fs.retire());
            drop(whole);
            for fs in daemon.mounts.all() {
                fs.reap();
            }
            std::thread::sleep(TICK);
        }
    };
    start_thread("background", "background work", work)
}

/// Finds out which uploads can be made again, one after the other, and gives way to everything else.
fn start_proving(daemon: &Arc<Daemon>) -> Result<()> {
    let daemon = daemon.clone();
    let work = move || {
        let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), 19);
        while !daemon.stopping.load(Ordering::Acquire) {
            match keep::prove_next(&daemon.store) {
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
fn start_packing(daemon: &Arc<Daemon>) -> Result<()> {
    let daemon = daemon.clone();
    let work = move || {
        let go_on = || {
            !daemon.stopping.load(Ordering::Acquire) && !daemon.store.repack_paused.load(Ordering::Acquire)
        };
        let mut next = Instant::now();
        while !daemon.stopping.load(Ordering::Acquire) {
            std::thread::sleep(TICK);
            if Instant::now() < next || !go_on() || daemon.store.journal.is_uploading() {
                continue;
            }
            next = Instant::now() + PACK_EVERY;
            if let Err(e) = repack::run(&daemon.store, What::Rested, 1, |_, _| go_on()) {
                log::error!("packing: {e}");
            }
        }
    };
    start_thread("pack", "packing", work)
}

/// Looks at what is stored, slowly, and gives way to everything else.
fn start_scrub(daemon: &Arc<Daemon>) -> Result<()> {
    let daemon = daemon.clone();
    let work = move || {
        let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), 19);
        while !daemon.stopping.load(Ordering::Acquire) {
            std::thread::sleep(TICK);
            if !daemon.store.journal.is_busy() {
                scrub::step(&daemon.store);
            }
        }
    };
    start_thread("scrub", "scrubbing", work)
}

/// SIGTERM is an orderly unmount: at once if nothing is open, else after a moment's grace.
fn stop_on_signals(daemon: &Arc<Daemon>) -> Result<()> {
    let mut signals =
        Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(Error::io("watch", Path::new("signals")))?;
    let daemon = daemon.clone();
    let work = move || {
        if let Some(signal) = signals.forever().next() {
            let points: Vec<PathBuf> = daemon.served.lock().iter().map(|one| one.point.clone()).collect();
            for point in points {
                log::info!("signal {signal}: unmounting {}", point.display());
                if mount::unmount(&point, false).is_err()
                    && let Err(e) = mount::unmount(&point, true)
                {
                    log::error!("{e}");
                }
            }
            std::thread::sleep(GRACE);
            if !daemon.stopping.load(Ordering::Acquire) {
                // Detached, but somebody keeps a file open: what was closed is durable, the rest is cut off.
                log::warn!("files are still open: ending without them");
                clean_up(&daemon.store.dir);
            }
            std::process::exit(0);
        }
    };
    start_thread("signals", "signals", work)
}
