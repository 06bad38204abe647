//! Short waits during bursts of requests: a halted virtual CPU takes 80 us to wake, a polling one 8.
//!
//! While more than `BURST` requests come within `WINDOW`, imgfs asks the kernel (PM-QoS) to keep idle
//! CPUs awake. This ends `WINDOW` after the burst. It needs root; without the right, nothing happens.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// How many requests within `WINDOW` make a burst.
const BURST: u64 = 64;
const WINDOW: Duration = Duration::from_millis(50);
const DEVICE: &str = "/dev/cpu_dma_latency";

pub struct Latency {
    started: Instant,
    requests: AtomicU64,
    /// In milliseconds since `started`: when the last multiple of `BURST` came, and how long to keep the
    /// CPUs awake.
    marked: AtomicU64,
    hold_until: AtomicU64,
    holding: AtomicBool,
    wanted: Mutex<bool>,
    wake: Condvar,
}

impl Latency {
    /// Starts the thread that holds the request. `None` if this process may not make one.
    pub fn start() -> Option<Arc<Latency>> {
        open().ok()?;
        let latency = Arc::new(Latency {
            started: Instant::now(),
            requests: AtomicU64::new(0),
            marked: AtomicU64::new(0),
            hold_until: AtomicU64::new(0),
            holding: AtomicBool::new(false),
            wanted: Mutex::new(false),
            wake: Condvar::new(),
        });
        let holder = latency.clone();
        std::thread::Builder::new().name("latency".into()).spawn(move || holder.hold()).ok()?;
        Some(latency)
    }

    /// Counts a request.
    pub fn count(&self) {
        if !(self.requests.fetch_add(1, Ordering::Relaxed) + 1).is_multiple_of(BURST) {
            return;
        }
        let now = self.now();
        let last = self.marked.swap(now, Ordering::Relaxed);
        if now - last.min(now) > WINDOW.as_millis() as u64 {
            return;
        }
        self.hold_until.store(now + WINDOW.as_millis() as u64, Ordering::Relaxed);
        if !self.holding.swap(true, Ordering::AcqRel) {
            *self.wanted.lock() = true;
            self.wake.notify_one();
        }
    }

    fn now(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    fn hold(&self) {
        loop {
            {
                let mut wanted = self.wanted.lock();
                while !*wanted {
                    self.wake.wait(&mut wanted);
                }
                *wanted = false;
            }
            // The request holds as long as the file is open.
            let held = open();
            while self.now() < self.hold_until.load(Ordering::Relaxed) {
                std::thread::sleep(WINDOW / 2);
            }
            drop(held);
            self.holding.store(false, Ordering::Release);
        }
    }
}

fn open() -> std::io::Result<File> {
    let mut file = OpenOptions::new().write(true).open(DEVICE)?;
    file.write_all(&0i32.to_ne_bytes())?;
    Ok(file)
}
