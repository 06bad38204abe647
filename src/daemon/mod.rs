//! The process that has a store open: its start, its mounts, its end. It may go on with nothing
//! mounted.

mod background;
pub mod guard;
pub mod socket;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::base::flags::Flags;
use crate::care::gc;
use crate::daemon::background::Background;
use crate::daemon::socket::{Host, MountRequest};
use crate::error::Holder;
use crate::error::{Error, Result};
use crate::fs::kernel::attach::Trees;
use crate::fs::kernel::fuse::{Plane, Serving};
use crate::fs::kernel::hidden::Hidden;
use crate::fs::kernel::latency::Latency;
use crate::fs::kernel::mount;
use crate::fs::kernel::{attach, fuse};
use crate::fs::{ImageFs, LASTING, MountPoint, Mounts, start_thread};
use crate::images::{last_use, staging, views};
use crate::store::Store;
use crate::store::settings::{Settings, TreesAs};

/// How old the saved last use of an image may be when the daemon ends.
const LAST_USE: Duration = Duration::from_secs(1);
/// How long files that others have open may delay the end after SIGTERM.
const GRACE: Duration = Duration::from_secs(2);

pub struct Options {
    pub store: PathBuf,
    /// The first mount; the daemon ends with its last mount. With `None` it starts without a mount, and
    /// goes on until it is told to end.
    pub mount: Option<MountRequest>,
    pub settings: Settings,
    /// The number of event loops.
    pub threads: usize,
    /// Whether idle CPUs are kept awake during bursts of requests.
    pub latency: bool,
    /// Whether the kernel may read large files directly, once they were checked.
    pub passthrough: bool,
    /// Whether each tree is a mount of its own, if a mount does not say.
    pub trees: TreesAs,
}

/// The daemon: one store, and its mounts.
struct Daemon {
    store: Arc<Store>,
    mounts: Arc<Mounts>,
    threads: usize,
    passthrough: bool,
    latency: Option<Arc<Latency>>,
    trees: TreesAs,
    served: Mutex<AllServed>,
    next: AtomicU64,
    /// Signalled when a mount is gone, or when the daemon no longer has to stay.
    one_fewer: Condvar,
    stopping: Arc<AtomicBool>,
}

/// What keeps the daemon running.
struct AllServed {
    mounts: Vec<Served>,
    /// Whether it goes on with nothing mounted.
    stays: bool,
}

/// A mount that is served. If its files stay open for long, it may end after another mount was made in
/// its place.
#[derive(Clone)]
struct Served {
    id: u64,
    point: PathBuf,
    /// `None` for the whole store.
    view: Option<String>,
}

/// A mount that is about to be made.
struct NewMount {
    id: u64,
    fs: Arc<ImageFs>,
    point: PathBuf,
    request: MountRequest,
}

/// Mounts, if there is a first mount, and calls `ready` with a line for the user. Then serves until
/// that mount and all later ones are gone. Without a first mount, it serves until it is told to end.
///
/// # Errors
///
/// Errors that prevented its start, or broke the connection to the kernel.
pub fn run(options: &Options, ready: impl FnOnce(&str)) -> Result<()> {
    crate::base::sys::limit_heaps();
    if let Ok(dir) = std::fs::canonicalize(&options.store) {
        mount::end_dying(&dir, false);
    }
    let request = options.mount.clone();
    let first = request.map(|request| prepare_point(&request.point).map(|point| (point, request)));
    let first = first.transpose()?;
    let daemon = Daemon::open(options)?;
    let first = first.map(|(point, request)| daemon.new_mount(point, request)).transpose()?;
    socket::listen(daemon.store.clone(), Arc::new(Asked(Arc::downgrade(&daemon))))?;
    if let Err(e) = guard::start(&daemon.store.dir) {
        log::warn!("nobody watches over this daemon: {e}");
    }
    let start = || {
        let (store, mounts) = (daemon.store.clone(), daemon.mounts.clone());
        Background { store, mounts, stopping: daemon.stopping.clone() }.start()?;
        stop_on_signals(&daemon)
    };
    let served = match first {
        Some(first) => daemon.serve(first, start, ready),
        None => daemon.say_where().and_then(|()| start()).map(|()| ready(&daemon.holds())),
    };
    let mut others = daemon.served.lock();
    others.stays &= served.is_ok();
    while others.stays || !others.mounts.is_empty() {
        daemon.one_fewer.wait(&mut others);
    }
    // This comes before others can ask for a mount again.
    daemon.stopping.store(true, Ordering::Release);
    drop(others);
    if let Err(e) = last_use::keep(&daemon.store, LAST_USE) {
        log::warn!("cannot note which images were used: {e}");
    }
    clean_up(&daemon.store.dir);
    served
}

/// Answers requests over the daemon's socket, as long as the daemon exists.
struct Asked(Weak<Daemon>);

impl Host for Asked {
    fn mount(&self, request: MountRequest) -> Result<String> {
        self.0.upgrade().ok_or(Error::Stopping)?.mount_beside(request)
    }

    fn stop(&self) -> Result<()> {
        self.0.upgrade().map_or(Ok(()), |daemon| daemon.stop())
    }
}

impl Daemon {
    fn open(options: &Options) -> Result<Arc<Daemon>> {
        let store = Store::open(&options.store, options.settings)?;
        let weak = Arc::downgrade(&store);
        store.blobs.when_full(Arc::new(move || {
            weak.upgrade().is_some_and(|store| gc::make_room(&store).unwrap_or(false))
        }));
        staging::prepare(&store.dir)?;
        clean_up(&store.dir);
        Ok(Arc::new(Daemon {
            mounts: Arc::default(),
            store,
            threads: options.threads,
            passthrough: options.passthrough,
            latency: if options.latency { Latency::start() } else { None },
            trees: options.trees,
            served: Mutex::new(AllServed { mounts: Vec::new(), stays: options.mount.is_none() }),
            next: AtomicU64::new(0),
            one_fewer: Condvar::new(),
            stopping: Arc::default(),
        }))
    }

    /// The file system of a mount that is about to be made.
    ///
    /// # Errors
    ///
    /// `NotFound` for a view that is not there; `Locked` for the whole store once more; `Stopping`; `Io`.
    fn new_mount(&self, point: PathBuf, request: MountRequest) -> Result<NewMount> {
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
                if let Some(other) = served.mounts.iter().find(|other| other.view.is_none()) {
                    let mounted = other.point.display().to_string();
                    return Err(Error::Locked {
                        store: self.store.dir.clone(),
                        holder: Box::new(Holder::ours(mounted)),
                    });
                }
                ImageFs::new(self.store.clone(), mount, &self.mounts)
            }
        };
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        served.mounts.push(Served { id, point: point.clone(), view: request.view.clone() });
        drop(served);
        if self.mounts.are_several() {
            // Answers that kernels have cached for the other mounts have expired after this time.
            std::thread::sleep(LASTING);
        }
        self.say_where().inspect_err(|_| self.forget(id))?;
        Ok(NewMount { id, fs, point, request })
    }

    /// Refuses settings in a mount that is not the daemon's first. They are the daemon's own. Beside other
    /// mounts it also refuses `trees=mounted`.
    fn refuse_own_word(&self, new: &NewMount) -> Result<()> {
        let is_only = self.served.lock().mounts.iter().all(|other| other.id == new.id);
        let (what, why) = match (new.request.own_word, is_only) {
            (true, true) => (
                "a setting for this mount",
                "the store has a daemon already, whose it is: see .imgfs/config and imgfs daemon -o",
            ),
            (own_word, false) if own_word || new.request.trees == TreesAs::Mounted => (
                "a setting for one more mount",
                "the store is mounted already, and how it behaves is its daemon's: see .imgfs/config",
            ),
            _ => return Ok(()),
        };
        Err(Error::Invalid { what: what.into(), why: why.into() })
    }

    /// Writes into the lock file where the store is mounted. When a daemon ends with its last mount, the
    /// path of that mount stays there, because whoever waits for the daemon's end reads it.
    fn say_where(&self) -> Result<()> {
        let served = self.served.lock();
        match served.mounts.first() {
            Some(first) => self.store.describe(&first.point.display().to_string(), served.stays),
            None if served.stays => self.store.describe("", true),
            None => Ok(()),
        }
    }

    /// A line for the user about what the daemon has.
    fn holds(&self) -> String {
        let dir = self.store.dir.display();
        let shown = shown(&self.store);
        format!("{dir} has a daemon, process {}, and nothing is mounted ({shown})", std::process::id())
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

    /// Mounts trees as mounts of their own, if that is wanted and possible. Returns the thread that serves
    /// them.
    ///
    /// # Errors
    ///
    /// With `trees=mounted`, the error that prevents it.
    fn trees(&self, new: &NewMount) -> Result<Option<JoinHandle<()>>> {
        let flags = &new.request.flags;
        let trees = if new.request.trees == TreesAs::Auto { self.trees } else { new.request.trees };
        let is_only = self.served.lock().mounts.iter().all(|other| other.id == new.id);
        if trees == TreesAs::Inline || !is_only {
            return Ok(None);
        }
        match start_trees(&new.fs, &new.point, flags, self.serving(Plane::Trees, flags)) {
            Err(e) if trees == TreesAs::Auto => {
                log::info!("trees are no mounts of their own: {e}");
                Ok(None)
            }
            started => started.map(Some),
        }
    }

    /// Mounts, and serves until the mount is gone. `start` is called once it is mounted.
    fn serve(
        &self,
        new: NewMount,
        start: impl FnOnce() -> Result<()>,
        ready: impl FnOnce(&str),
    ) -> Result<()> {
        let trees = match self.trees(&new) {
            Ok(trees) => trees,
            Err(e) => {
                self.forget(new.id);
                return Err(e);
            }
        };
        let served = self.serve_mount(&new, start, ready);
        new.fs.has_ended();
        self.forget(new.id);
        // Somebody may still be in a tree.
        new.fs.trees.get().iter().for_each(|trees| trees.close());
        trees.map(|serving| serving.join());
        served
    }

    fn serve_mount(
        &self,
        new: &NewMount,
        start: impl FnOnce() -> Result<()>,
        ready: impl FnOnce(&str),
    ) -> Result<()> {
        let NewMount { fs, point, request, .. } = new;
        let fd = mount::mount(point, &self.store.dir, &request.flags)?;
        start()?;
        let what = request.view.as_ref().map_or(String::new(), |view| format!("view {view} of "));
        let line =
            format!("{} shows {what}{} ({})", point.display(), self.store.dir.display(), shown(&fs.store));
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
    }

    /// Notes that a mount is gone.
    fn forget(&self, id: u64) {
        self.served.lock().mounts.retain(|other| other.id != id);
        if let Err(e) = self.say_where() {
            log::error!("{e}");
        }
        self.one_fewer.notify_all();
    }

    /// Makes one more mount, in a thread of its own. Returns a line for the user once the mount works.
    fn mount_beside(self: &Arc<Daemon>, request: MountRequest) -> Result<String> {
        let point = prepare_point(&request.point)?;
        let new = self.new_mount(point, request)?;
        let id = new.id;
        self.refuse_own_word(&new).inspect_err(|_| self.forget(id))?;
        let (tell, told) = mpsc::sync_channel(1);
        let daemon = self.clone();
        let work = move || {
            let ready = |line: &str| tell.send(Ok(line.to_owned())).unwrap_or_default();
            if let Err(e) = daemon.serve(new, || Ok(()), ready) {
                log::error!("{e}");
                let _ = tell.try_send(Err(e));
            }
        };
        start_thread("mount", "one more mount", work).inspect_err(|_| self.forget(id))?;
        told.recv().unwrap_or(Err(Error::Stopping))
    }

    /// Ends the daemon.
    ///
    /// # Errors
    ///
    /// `Locked` while something is mounted.
    fn stop(&self) -> Result<()> {
        let mut served = self.served.lock();
        if let Some(one) = served.mounts.first() {
            let holder = Box::new(Holder::ours(one.point.display().to_string()));
            return Err(Error::Locked { store: self.store.dir.clone(), holder });
        }
        log::info!("ending: it was asked for");
        self.end(&mut served);
        Ok(())
    }

    /// From now on only its mounts keep the daemon running.
    fn end(&self, served: &mut AllServed) {
        served.stays = false;
        self.one_fewer.notify_all();
    }
}

/// A summary of what shows, for the user.
fn shown(store: &Store) -> String {
    let model = store.catalog.read();
    let versions = model.all_versions().filter(|v| model.is_live(v)).count();
    format!("{} images, {versions} versions", model.live_images().count())
}

/// Removes what a daemon leaves in the store apart from content: its socket, and mounts that older
/// daemons left there.
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
    // The variable is for tests.
    let hidden = Hidden::new(mount, std::env::var_os("IMGFS_OLD_KERNEL").is_some())?;
    let _ = fs.trees.set(Trees::open(&fs.store, &fs.mounts, point, hidden, flags)?);
    Ok(thread)
}

/// The mount point as an absolute path. Removes a dead daemon's mount from it.
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
        // The path was a symlink to a mount point.
        Some(mounted) => {
            let holder = format!("{} is mounted there", mounted.source.display());
            Err(Error::Taken { name: mounted.point.display().to_string(), holder })
        }
        None => Ok(real),
    }
}

/// SIGTERM unmounts in an orderly way: at once if nothing is open, else after a short grace period.
fn stop_on_signals(daemon: &Arc<Daemon>) -> Result<()> {
    let mut signals =
        Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(Error::io("watch", Path::new("signals")))?;
    let daemon = daemon.clone();
    let work = move || {
        if let Some(signal) = signals.forever().next() {
            let points: Vec<PathBuf> = {
                let mut served = daemon.served.lock();
                daemon.end(&mut served);
                served.mounts.iter().map(|one| one.point.clone()).collect()
            };
            log::info!("signal {signal}: ending");
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
                // The mount is detached, but somebody keeps a file open. Closed files are durable; the rest
                // is cut off.
                log::warn!("files are still open: ending without them");
                clean_up(&daemon.store.dir);
            }
            std::process::exit(0);
        }
    };
    start_thread("signals", "signals", work)
}
