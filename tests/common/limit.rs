//! No test waits for ever: what a test begins ends within a limit, or the test fails and prints what each
//! process did.

use std::fmt::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};

/// Longer than any script of a test takes on a slow, busy machine. `IMGFS_TEST_LIMIT` gives another number of
/// seconds.
pub fn limit() -> Duration {
    let given = std::env::var("IMGFS_TEST_LIMIT")
        .ok()
        .map(|text| text.parse().expect("IMGFS_TEST_LIMIT is a number"));
    Duration::from_secs(given.unwrap_or(120))
}

/// Between two looks at what is waited for.
const LOOK: Duration = Duration::from_millis(5);
/// What is printed of one process at most.
const THREADS: usize = 12;
const FILES: usize = 24;

/// Runs a command to its end, and to the end of all that writes to its output. Its processes are a group of
/// their own.
///
/// Panics after the limit, with what the group and the daemons of `dir` were doing; then the group is dead.
#[track_caller]
pub fn output(command: Command, dir: &Path) -> std::io::Result<Output> {
    output_within(limit(), command, dir)
}

#[track_caller]
pub fn output_within(time: Duration, mut command: Command, dir: &Path) -> std::io::Result<Output> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let text = format!("{command:?}");
    let (begin, begun) = channel();
    let (tell, told) = channel();
    // Already to begin may take for ever: a child changes its directory, to one that a daemon shows.
    std::thread::spawn(move || {
        let child = command.spawn();
        let _ = begin.send(child.as_ref().map(Child::id).unwrap_or_default());
        let _ = tell.send(child.and_then(Child::wait_with_output));
    });
    match told.recv_timeout(time) {
        Ok(ended) => ended,
        Err(_) => {
            let group = begun.try_recv().unwrap_or_default();
            let report = format!("did not end within {time:?}: {text}\n{}", doing(dir, group));
            end_all(group);
            fail(&report);
            Err(std::io::Error::new(std::io::ErrorKind::TimedOut, report))
        }
    }
}

/// Waits for a child's end.
#[track_caller]
pub fn wait(child: &mut Child, dir: &Path) -> ExitStatus {
    let group = child.id();
    let ended = wait_for("a child's end", limit(), || match child.try_wait().unwrap() {
        Some(status) => Ok(status),
        None => Err(String::new()),
    });
    ended.unwrap_or_else(|why| panic!("{why}\n{}", doing(dir, group)))
}

/// Waits until something is so.
#[track_caller]
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    wait_until_seen(what, || if is_so() { Ok(()) } else { Err(String::new()) });
}

/// Waits until `look` gives something. What it saw instead is printed after the limit.
#[track_caller]
pub fn wait_until_seen<T>(what: &str, look: impl FnMut() -> Result<T, String>) -> T {
    match wait_for(what, limit(), look) {
        Ok(seen) => seen,
        Err(why) => panic!("{why}"),
    }
}

fn wait_for<T>(what: &str, time: Duration, mut look: impl FnMut() -> Result<T, String>) -> Result<T, String> {
    let begun = Instant::now();
    loop {
        match look() {
            Ok(seen) => return Ok(seen),
            Err(saw) if begun.elapsed() > time => {
                return Err(format!("waited {time:?} for {what} in vain: {saw}"));
            }
            Err(_) => std::thread::sleep(LOOK),
        }
    }
}

/// Waits until nobody holds a store, and gives how long that took. Of who holds it for longer than a second
/// it prints what it does: a killed daemon ends only when the disk, and the kernel, have answered its last
/// calls.
#[track_caller]
pub fn wait_until_free(store: &Path) -> Duration {
    let (begun, lock) = (Instant::now(), store.join("lock"));
    let mut said = false;
    wait_until_seen("a store that nobody holds", || {
        let Ok(file) = std::fs::File::options().read(true).write(true).open(&lock) else { return Ok(()) };
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            return Ok(());
        }
        let inode = format!(":{} ", file.metadata().map_or(0, |meta| meta.ino()));
        let locks = std::fs::read_to_string("/proc/locks").unwrap_or_default();
        let held: Vec<&str> = locks.lines().filter(|line| line.contains(&inode)).collect();
        let said_to = std::fs::read_to_string(&lock).unwrap_or_default();
        if begun.elapsed() < if said { limit() } else { Duration::from_secs(1) } {
            return Err(String::new());
        }
        let pid =
            held.first().and_then(|line| line.split_whitespace().nth(4)?.parse().ok()).unwrap_or_default();
        let report = format!("{held:?}, the file says {said_to:?}\n{}", doing(store, pid));
        if !said {
            println!("{} is held for {:?}: {report}", store.display(), begun.elapsed());
            said = true;
        }
        Err(report)
    });
    begun.elapsed()
}

/// Ends a call of the test's own to a daemon that never answers: after `time` it prints what all processes
/// do, and kills the daemons of `dir`, so that the call fails.
pub struct Watch(Option<Sender<()>>);

impl Watch {
    pub fn new(dir: &Path, time: Duration) -> Watch {
        let (alive, listen) = channel::<()>();
        let dir = dir.to_owned();
        std::thread::spawn(move || {
            if listen.recv_timeout(time) == Err(RecvTimeoutError::Timeout) {
                eprintln!(
                    "the test in {} has not gone on for {time:?}:\n{}",
                    dir.display(),
                    doing(&dir, std::process::id())
                );
                daemons(&dir).into_iter().for_each(kill);
            }
        });
        Watch(Some(alive))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.0 = None;
    }
}

/// A panic inside a panic would hide the first.
#[track_caller]
fn fail(report: &str) {
    if std::thread::panicking() {
        eprintln!("{report}");
    } else {
        panic!("{report}");
    }
}

/// Whether a process has ended: it is gone, or nobody has fetched its status yet.
pub fn has_ended(pid: u32) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    tasks == 0 || (tasks == 1 && Process::read(pid).is_none_or(|p| p.state == 'Z'))
}

/// The processes that serve a store below `dir`.
fn daemons(dir: &Path) -> Vec<u32> {
    let below = top(dir).display().to_string();
    let serves = |p: &Process| p.command.contains("imgfs mount") && p.command.contains(&below);
    processes().into_iter().filter(serves).map(|p| p.pid).collect()
}

/// Kills a process; of a daemon the guard frees the callers then.
/// Kills the daemons of a test's directory that are stopped. Whether there were any.
pub fn kill_stopped_daemons(dir: &Path) -> bool {
    let stat = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let stopped: Vec<u32> = daemons(dir).into_iter().filter(|pid| stat(*pid).contains(") T ")).collect();
    stopped.iter().for_each(|pid| kill(*pid));
    !stopped.is_empty()
}

pub fn kill(pid: u32) {
    if let Some(pid) = Pid::from_raw(pid.cast_signed()) {
        let _ = kill_process(pid, Signal::KILL);
    }
}

fn end_all(group: u32) {
    let all = processes();
    for p in all.iter().filter(|p| group != 0 && p.is_of(group, &all)) {
        kill(p.pid);
    }
}

/// What the processes of a group, their children, and all that name the test's directory are doing.
fn doing(dir: &Path, group: u32) -> String {
    let below = top(dir);
    let (all, mut out) = (processes(), String::new());
    let near = |p: &&Process| {
        p.is_of(group, &all)
            || p.command.contains(&below.display().to_string())
            || p.link("cwd").starts_with(&below)
    };
    for p in all.iter().filter(near) {
        p.describe(&below, &mut out);
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts
        .lines()
        .filter(|line| line.contains(&*below.to_string_lossy()))
        .for_each(|line| writeln!(out, "{line}").unwrap());
    out
}

/// The temporary directory that a path lies in.
fn top(dir: &Path) -> PathBuf {
    let temporary = |path: &&Path| path.parent() == Some(&std::env::temp_dir());
    dir.ancestors().find(temporary).unwrap_or(dir).to_owned()
}

/// A process as proc(5) shows it.
struct Process {
    pid: u32,
    name: String,
    state: char,
    parent: u32,
    group: u32,
    command: String,
}

fn processes() -> Vec<Process> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| Process::read(entry.file_name().to_str()?.parse().ok()?)).collect()
}

impl Process {
    fn read(pid: u32) -> Option<Process> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (before, rest) = stat.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split(' ').collect();
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        Some(Process {
            pid,
            name: before.split_once('(')?.1.to_owned(),
            state: fields.first()?.chars().next()?,
            parent: fields.get(1)?.parse().ok()?,
            group: fields.get(2)?.parse().ok()?,
            command: String::from_utf8_lossy(&command).replace('\0', " "),
        })
    }

    /// Whether it is in the group, or a descendant of its leader.
    fn is_of(&self, group: u32, all: &[Process]) -> bool {
        let mut at = Some(self);
        for _ in 0..64 {
            match at {
                Some(p) if p.group == group || p.pid == group => return true,
                Some(p) => at = all.iter().find(|other| other.pid == p.parent),
                None => return false,
            }
        }
        false
    }

    fn link(&self, name: &str) -> PathBuf {
        std::fs::read_link(format!("/proc/{}/{name}", self.pid)).unwrap_or_default()
    }

    /// Its threads, each with where it waits in the kernel, and the files that it has open in the test's
    /// directory.
    fn describe(&self, below: &Path, out: &mut String) {
        let command: String = self.command.chars().take(300).collect();
        let _ = writeln!(
            out,
            "process {} ({}) {} of {}: {command}",
            self.pid, self.name, self.state, self.parent
        );
        let mut said = Vec::new();
        for task in list(&format!("/proc/{}/task", self.pid)) {
            let read =
                |name: &str| std::fs::read_to_string(task.join(name)).unwrap_or_default().trim().to_owned();
            let state =
                read("stat").rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()).unwrap_or('?');
            let stack = read("stack")
                .lines()
                .filter_map(|l| l.split_whitespace().nth(1))
                .collect::<Vec<_>>()
                .join(" < ");
            let call: String = read("syscall").split(' ').next().unwrap_or_default().to_owned();
            let does = format!("{state} in call {call}, waits in {}: {stack}", read("wchan"));
            if !said.contains(&does) && said.len() < THREADS {
                let _ = writeln!(
                    out,
                    "  {} {}: {does}",
                    task.file_name().unwrap_or_default().display(),
                    read("comm")
                );
                said.push(does);
            }
        }
        let open =
            list(&format!("/proc/{}/fd", self.pid)).into_iter().filter_map(|fd| std::fs::read_link(fd).ok());
        let mut open: Vec<PathBuf> =
            open.filter(|path| path.starts_with(below) || path == Path::new("/dev/fuse")).collect();
        open.dedup();
        open.iter().take(FILES).for_each(|path| writeln!(out, "  has {}", path.display()).unwrap());
    }
}

fn list(dir: &str) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> =
        std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    all.sort();
    all
}
