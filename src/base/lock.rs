//! Only one daemon may have a store. This says which one has it, and where the store is mounted.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use crate::base::process;
use crate::error::{Error, Holder, Result};

/// How long a process may hold the lock that only checks whether it is held; see `holder`.
const LOOKING: Duration = Duration::from_millis(200);
/// How many processes are searched for one that has inherited a lock.
const PROCESSES: usize = 10_000;

/// The lock file. It uses flock, so the lock of a dead holder is free at once.
pub struct StoreLock {
    file: File,
    path: PathBuf,
}

impl StoreLock {
    /// Takes the lock of the store in `dir`.
    ///
    /// # Errors
    ///
    /// `Locked` with the holder's process and mount point.
    pub fn take(dir: &Path) -> Result<StoreLock> {
        let path = dir.join("lock");
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(Error::io("open", &path))?;
        let begun = Instant::now();
        let taken = loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Err(rustix::io::Errno::WOULDBLOCK) if begun.elapsed() < LOOKING => {
                    std::thread::sleep(LOOKING / 50)
                }
                taken => break taken,
            }
        };
        match taken {
            Ok(()) => Ok(StoreLock { file, path }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(Holder::of(&file).refuses(dir)),
            Err(e) => Err(Error::Io { doing: "lock", path, source: e.into() }),
        }
    }

    /// Writes who holds the lock, where the store is mounted, and whether the daemon goes on with nothing
    /// mounted.
    ///
    /// # Errors
    ///
    /// `Io`.
    pub fn describe(&self, mounted: &str, stays: bool) -> Result<()> {
        let stays = if stays { "daemon\n" } else { "" };
        let text = format!("{}\n{mounted}\n{stays}", std::process::id());
        // The text is written first and truncated afterwards, so that a reader always finds a holder.
        let written =
            self.file.write_all_at(text.as_bytes(), 0).and_then(|()| self.file.set_len(text.len() as u64));
        written.map_err(Error::io("write", &self.path))
    }

    /// Whether some process holds the lock now, and which.
    pub fn holder(dir: &Path) -> Option<Holder> {
        let file = File::open(dir.join("lock")).ok()?;
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Err(rustix::io::Errno::WOULDBLOCK) => Some(Holder::of(&file)),
            _ => None,
        }
    }
}

impl Holder {
    /// This process as the holder.
    pub fn ours(mounted: String) -> Holder {
        Holder { pid: std::process::id(), name: "imgfs".into(), mounted, is_imgfs: true, ..Holder::default() }
    }

    /// Whether it is a daemon that answers on its socket.
    pub fn listens(&self) -> bool {
        (self.stays || !self.mounted.is_empty()) && self.dying.is_none()
    }

    /// The refusal that names the holder, and says why it still exists.
    pub fn refuses(mut self, store: &Path) -> Error {
        if !self.mounted.is_empty() && !self.is_mounted_for("self") {
            self.elsewhere =
                self.namespace().or_else(|| Some("it ends, or somebody has a file of that open".into()));
        }
        Error::Locked { store: store.to_owned(), holder: Box::new(self) }
    }

    /// Why a daemon goes on whose mount is gone here: the process that has it in another mount namespace.
    pub fn namespace(&self) -> Option<String> {
        if self.mounted.is_empty() || self.is_mounted_for("self") {
            return None;
        }
        let mut others = process::all().filter(|pid| *pid != self.pid).take(PROCESSES);
        let pid = others.find(|pid| self.is_mounted_for(&pid.to_string()))?;
        Some(format!("process {pid} ({}) has that in a mount namespace of its own", process::name(pid)))
    }

    fn is_mounted_for(&self, process: &str) -> bool {
        let list = fs::read_to_string(Path::new("/proc").join(process).join("mountinfo")).unwrap_or_default();
        let point = escaped(&self.mounted);
        list.lines().any(|line| line.contains(" fuse.imgfs ") && line.split(' ').nth(4) == Some(&point))
    }

    /// The file may have been copied with its store, or a backup script may have locked it. So the kernel
    /// is asked who holds the lock.
    fn of(file: &File) -> Holder {
        let mut text = String::new();
        let mut from = file;
        let _ = from.read_to_string(&mut text);
        let (written, mounted, stays) = parse_lock(&text);
        let pid = locker(file).unwrap_or(written);
        let name = process::name(pid);
        let is_imgfs = pid == written || name == "imgfs";
        let mounted = if is_imgfs { mounted } else { String::new() };
        let stays = stays && is_imgfs;
        Holder { pid, name, mounted, stays, is_imgfs, elsewhere: None, dying: waits_dying(pid) }
    }
}

/// A path with the escapes of mountinfo.
fn escaped(path: &str) -> String {
    path.replace('\\', "\\134").replace(' ', "\\040").replace('\t', "\\011").replace('\n', "\\012")
}

/// The process that has locked a file. Source: proc(5), locks and fdinfo.
fn locker(file: &File) -> Option<u32> {
    let meta = file.metadata().ok()?;
    let device =
        format!("{:02x}:{:02x}:{}", rustix::fs::major(meta.dev()), rustix::fs::minor(meta.dev()), meta.ino());
    let locks = fs::read_to_string("/proc/locks").ok()?;
    // Some file systems report other device numbers for files than the lists have.
    let (held, inode) = (|| locks.lines().filter_map(parse_flock), format!(":{}", meta.ino()));
    let pid = held().find(|(_, of)| *of == device).or_else(|| held().find(|(_, of)| of.ends_with(&inode)))?.0;
    // The lock belongs to the open file. A child still holds it when the process that took it is gone.
    if Path::new("/proc").join(pid.to_string()).exists() { Some(pid) } else { heir(&device) }
}

/// The process and the file (`MAJOR:MINOR:INODE`) in a line of /proc/locks, or in a `lock:` line of
/// fdinfo.
fn parse_flock(line: &str) -> Option<(u32, String)> {
    let mut words = line.split_whitespace().skip_while(|word| *word != "FLOCK").skip(1);
    // Processes that wait for a lock are listed too.
    let kind = words.nth(1)?;
    if kind != "WRITE" || line.contains("->") {
        return None;
    }
    Some((words.next()?.parse().ok()?, words.next()?.to_owned()))
}

/// A process that has inherited a lock.
fn heir(device: &str) -> Option<u32> {
    let holds = |pid: &u32| {
        let files = fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten().flatten();
        let mut texts = files.filter_map(|file| fs::read_to_string(file.path()).ok());
        texts.any(|text| text.lines().any(|line| parse_flock(line).is_some_and(|(_, of)| of == device)))
    };
    process::all().take(PROCESSES).find(holds)
}

/// What a process waits for, if its first thread has ended while others have not. Source: proc(5), stat
/// and wchan.
fn waits_dying(pid: u32) -> Option<String> {
    let directory = Path::new("/proc").join(pid.to_string());
    if !matches!(process::state(&directory), Some('Z' | 'X')) {
        return None;
    }
    let threads =
        fs::read_dir(directory.join("task")).into_iter().flatten().flatten().map(|task| task.path());
    let stuck = threads
        .filter(|task| process::state(task) == Some('D'))
        .find_map(|task| fs::read_to_string(task.join("wchan")).ok());
    Some(stuck.filter(|place| place != "0").unwrap_or_else(|| "it does not say where".into()))
}

/// The process, where it has mounted the store, and whether it goes on without a mount.
fn parse_lock(text: &str) -> (u32, String, bool) {
    let mut lines = text.lines();
    let pid = lines.next().and_then(|line| line.trim().parse().ok()).unwrap_or(0);
    (pid, lines.next().unwrap_or_default().to_owned(), lines.next() == Some("daemon"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Right after an umount, the guard of the old daemon checked whether that daemon still held the lock.
    /// A command that came at that moment was told that the daemon was still there.
    #[test]
    fn who_looks_at_the_lock_does_not_keep_it_from_being_taken() {
        let dir = tempfile::tempdir().unwrap();
        let lock = StoreLock::take(dir.path()).unwrap();
        assert!(matches!(StoreLock::take(dir.path()), Err(Error::Locked { .. })));
        drop(lock);
        let looks = File::open(dir.path().join("lock")).unwrap();
        flock(&looks, FlockOperation::NonBlockingLockShared).unwrap();
        let ends = std::thread::spawn(move || {
            std::thread::sleep(LOOKING / 4);
            drop(looks);
        });
        StoreLock::take(dir.path()).unwrap();
        ends.join().unwrap();
    }

    #[test]
    fn a_holder_is_found_in_the_kernels_lists() {
        let line = "12: FLOCK  ADVISORY  WRITE 3874 fe:00:10141700 0 EOF";
        assert_eq!(parse_flock(line), Some((3874, "fe:00:10141700".into())));
        assert_eq!(parse_flock(&format!("lock:\t{line}")), parse_flock(line));
        for other in [
            "12: -> FLOCK  ADVISORY  WRITE 9 fe:00:1 0 EOF",
            "1: POSIX  ADVISORY  WRITE 9 fe:00:1 0 EOF",
            "",
            "FLOCK",
        ] {
            assert_eq!(parse_flock(other), None);
        }
    }

    /// After a daemon was killed, its store named a holder that was long gone: the process that had last
    /// written its number into the file.
    #[test]
    fn the_holder_is_who_has_the_lock_and_not_who_wrote_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let lock = StoreLock::take(dir.path()).unwrap();
        lock.describe("", true).unwrap();
        let holder = StoreLock::holder(dir.path()).unwrap();
        assert!(holder.stays && holder.listens() && holder.mounted.is_empty());
        lock.describe("/a mount", false).unwrap();
        let holder = StoreLock::holder(dir.path()).unwrap();
        assert_eq!((holder.pid, holder.mounted.as_str()), (std::process::id(), "/a mount"));
        assert!(!holder.stays && holder.listens());
        lock.file.write_all_at(b"999999999\n/elsewhere\n", 0).unwrap();
        let Err(Error::Locked { holder, .. }) = StoreLock::take(dir.path()) else { panic!("it was taken") };
        assert_eq!((holder.pid, holder.is_imgfs, holder.mounted.as_str()), (std::process::id(), false, ""));
        assert!(holder.to_string().starts_with(&format!("process {} (", std::process::id())), "{holder}");
    }
}
