//! The background work of a daemon's store, whether anything is mounted or not.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::care::repack::What;
use crate::care::{gc, repack, retention, scrub};
use crate::error::Result;
use crate::fs::{Mounts, start_thread};
use crate::images::{keep, staging};
use crate::store::Store;

/// Time between two checks of the trash, and of what can be freed.
const TICK: Duration = Duration::from_secs(10);
/// Time between two checks for content that has rested.
const PACK_EVERY: Duration = Duration::from_secs(900);

/// The background work of one store. It ends once `stopping` is set.
#[derive(Clone)]
pub struct Background {
    pub store: Arc<Store>,
    pub mounts: Arc<Mounts>,
    pub stopping: Arc<AtomicBool>,
}

impl Background {
    /// Starts all of the work, each part in a thread of its own.
    ///
    /// # Errors
    ///
    /// `Io` if a thread cannot be started.
    pub fn start(&self) -> Result<()> {
        self.start_caring()?;
        self.start_proving()?;
        self.start_packing()?;
        self.start_scrub()
    }

    fn goes_on(&self) -> bool {
        !self.stopping.load(Ordering::Acquire)
    }

    /// Purges what is due in the trash, frees space, and drops what nobody needs.
    fn start_caring(&self) -> Result<()> {
        let own = self.clone();
        let work = move || {
            while own.goes_on() {
                if let Err(e) = gc::tick(&own.store) {
                    log::error!("background work: {e}");
                }
                retention::retire(&own.store);
                staging::reap(&own.store);
                for fs in own.mounts.all() {
                    fs.reap();
                }
                std::thread::sleep(TICK);
            }
        };
        start_thread("background", "background work", work)
    }

    /// Finds out which uploads can be made again, one after the other. It gives way to all other work.
    fn start_proving(&self) -> Result<()> {
        let own = self.clone();
        let work = move || {
            let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), 19);
            while own.goes_on() {
                match keep::prove_next(&own.store) {
                    Ok(true) => continue,
                    Ok(false) => {}
                    Err(e) => log::error!("proving uploads: {e}"),
                }
                std::thread::sleep(TICK);
            }
        };
        start_thread("prove", "uploads to prove", work)
    }

    /// Packs what has rested. It gives way to all other work.
    fn start_packing(&self) -> Result<()> {
        let own = self.clone();
        let work = move || {
            let go_on = || own.goes_on() && !own.store.repack_paused.load(Ordering::Acquire);
            let mut next = Instant::now();
            while own.goes_on() {
                std::thread::sleep(TICK);
                if Instant::now() < next || !go_on() || own.store.journal.is_uploading() {
                    continue;
                }
                next = Instant::now() + PACK_EVERY;
                if let Err(e) = repack::run(&own.store, What::Rested, 1, |_, _| go_on()) {
                    log::error!("packing: {e}");
                }
            }
        };
        start_thread("pack", "packing", work)
    }

    /// Checks what is stored, slowly. It gives way to all other work.
    fn start_scrub(&self) -> Result<()> {
        let own = self.clone();
        let work = move || {
            let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), 19);
            while own.goes_on() {
                std::thread::sleep(TICK);
                if !own.store.journal.is_busy() {
                    scrub::step(&own.store);
                }
            }
        };
        start_thread("scrub", "scrubbing", work)
    }
}
