//! mount(2) and umount(2): directly as root, and through fusermount3 as a user.
//!
//! imgfs opens the descriptor itself and hands it to fuser. fuser's own teardown may unmount a path a
//! second time, after somebody else did, and so hit another file system.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, UnmountFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use crate::base::flags::Flags;
use crate::base::lock::StoreLock;
use crate::error::{Error, Result};

/// How long a daemon may take to end once its connections are ended. Then: how long it may take to
/// answer before imgfs checks it again.
const ENDING: Duration = Duration::from_secs(10);
const ASKING: Duration = Duration::from_millis(200);

/// How long imgfs retries to unmount what is in use.
const BUSY: Duration = Duration::from_millis(300);

/// The type that df and findmnt show.
const FS_TYPE: &str = "fuse.imgfs";

/// Mounts on `point`. The returned descriptor must be served at once.
///
/// # Errors
///
/// `Io` with what mount(2) said; `Invalid` with what fusermount3 said.
pub fn mount(point: &Path, source: &Path, flags: &Flags) -> Result<OwnedFd> {
    let meta = fs::metadata(point).map_err(Error::io("stat", point))?;
    if !meta.is_dir() {
        return Err(Error::NotDirectory { what: point.display().to_string() });
    }
    // The source is a name for df and mount. A comma would begin another option.
    let source = source.display().to_string().replace(',', "\\,");
    if rustix::process::geteuid().is_root() {
        mount_directly(point, &source, flags, meta.mode())
    } else {
        mount_by_helper(point, &source, flags)
    }
}

fn mount_directly(point: &Path, source: &str, flags: &Flags, mode: u32) -> Result<OwnedFd> {
    let device = Path::new("/dev/fuse");
    let fd = File::options().read(true).write(true).open(device).map_err(Error::io("open", device))?;
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let mut options =
        format!("fd={},rootmode={:o},user_id={uid},group_id={gid}", fd.as_raw_fd(), mode & libc::S_IFMT);
    if flags.allow_other {
        // With allow_other the kernel checks permissions. On a mount for one user, all belongs to that user.
        options.push_str(",allow_other,default_permissions");
    }
    let options = std::ffi::CString::new(options).expect("numbers and words");
    let source = std::ffi::CString::new(source)
        .map_err(|_| Error::Invalid { what: source.into(), why: "it has a zero byte".into() })?;
    rustix::mount::mount(&source, point, FS_TYPE, flags.bits(), Some(options.as_c_str()))
        .map_err(|e| Error::Io { doing: "mount on", path: point.to_owned(), source: e.into() })?;
    Ok(fd.into())
}

/// Makes a read-only mount of directories that no path leads to. Only root can do this. Returns the
/// mount, and the descriptor that must be served.
///
/// # Errors
///
/// `Io` with what the kernel said.
pub fn mount_nowhere(source: &Path, flags: &Flags) -> Result<(OwnedFd, OwnedFd)> {
    let device = Path::new("/dev/fuse");
    let fd = File::options().read(true).write(true).open(device).map_err(Error::io("open", device))?;
    let make = || {
        let fs = rustix::mount::fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
        let set = |key: &str, value: &str| rustix::mount::fsconfig_set_string(&fs, key, value);
        set("source", &source.display().to_string().replace(',', "\\,"))?;
        set("subtype", "imgfs")?;
        set("fd", &fd.as_raw_fd().to_string())?;
        set("rootmode", &format!("{:o}", libc::S_IFDIR))?;
        set("user_id", &rustix::process::geteuid().as_raw().to_string())?;
        set("group_id", &rustix::process::getegid().as_raw().to_string())?;
        if flags.allow_other {
            rustix::mount::fsconfig_set_flag(&fs, "allow_other")?;
            rustix::mount::fsconfig_set_flag(&fs, "default_permissions")?;
        }
        rustix::mount::fsconfig_set_flag(&fs, "ro")?;
        rustix::mount::fsconfig_create(&fs)?;
        let attributes = flags.read_only().attributes();
        rustix::mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
    };
    let mount = make().map_err(|e: rustix::io::Errno| Error::io("mount", source)(e.into()))?;
    Ok((mount, fd.into()))
}

/// Options of mount(8) about access times, which fusermount3 refuses.
const ABOUT_TIMES: [&str; 4] = ["nodiratime", "relatime", "strictatime", "lazytime"];

fn mount_by_helper(point: &Path, source: &str, flags: &Flags) -> Result<OwnedFd> {
    let failed = |why: String| Error::Invalid { what: format!("cannot mount on {}", point.display()), why };
    let (ours, theirs) = UnixStream::pair().map_err(|e| failed(e.to_string()))?;
    let mut options = format!("fsname={source},subtype=imgfs,nosuid,nodev");
    if flags.allow_other {
        options.push_str(",allow_other,default_permissions");
    }
    // A user's mount always has nosuid and nodev. imgfs keeps no access times, and the helper does not
    // know those options, so they are left out.
    for word in
        flags.words().filter(|word| !["nosuid", "nodev"].contains(word) && !ABOUT_TIMES.contains(word))
    {
        options.push(',');
        options.push_str(word);
    }
    // The helper gets the number of its end of the pair, so that end must stay open across exec.
    rustix::io::fcntl_setfd(&theirs, rustix::io::FdFlags::empty()).map_err(|e| failed(e.to_string()))?;
    let helper = Command::new("fusermount3")
        .args(["-o", &options, "--"])
        .arg(point)
        .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| failed(format!("fusermount3 (package fuse3): {e}")))?;
    drop(theirs);
    let fd = receive_fd(&ours);
    let output = helper.wait_with_output().map_err(|e| failed(e.to_string()))?;
    match fd {
        Some(fd) if output.status.success() => Ok(fd),
        _ => Err(failed(String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; "))),
    }
}

fn receive_fd(socket: &UnixStream) -> Option<OwnedFd> {
    let mut byte = [0u8; 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::CMSG_CLOEXEC).ok()?;
    ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    })
}

/// Unmounts, with the trees that are mounted in it. `lazy` detaches at once, and users of open files
/// can finish.
///
/// # Errors
///
/// EBUSY as `Io` while files are open.
pub fn unmount(point: &Path, lazy: bool) -> Result<()> {
    if lazy {
        return unmount_one(point, true);
    }
    let begun = Instant::now();
    loop {
        let below = mounts().into_iter().rev().filter(|m| m.point != point && m.point.starts_with(point));
        let trees = below.into_iter().map(|tree| unmount_one(&tree.point, false)).find(is_busy);
        let done = trees.unwrap_or_else(|| unmount_one(point, false));
        // For a moment a tree may still be mounting, or a process that has just ended may still be inside.
        if !is_busy(&done) || begun.elapsed() > BUSY {
            return done;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn is_busy(done: &Result<()>) -> bool {
    matches!(done, Err(Error::Io { source, .. }) if source.raw_os_error() == Some(libc::EBUSY))
}

fn unmount_one(point: &Path, lazy: bool) -> Result<()> {
    if rustix::process::geteuid().is_root() {
        let flags = if lazy { UnmountFlags::DETACH } else { UnmountFlags::empty() };
        return rustix::mount::unmount(point, flags | UnmountFlags::NOFOLLOW).map_err(|e| Error::Io {
            doing: "unmount",
            path: point.to_owned(),
            source: e.into(),
        });
    }
    let mut command = Command::new("fusermount3");
    command.arg(if lazy { "-uz" } else { "-u" }).arg("--").arg(point).process_group(0);
    let output =
        command.output().map_err(|e| Error::Invalid { what: "fusermount3".into(), why: e.to_string() })?;
    if output.status.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if why.contains("busy") {
        let source = std::io::Error::from_raw_os_error(libc::EBUSY);
        return Err(Error::Io { doing: "unmount", path: point.to_owned(), source });
    }
    Err(Error::Invalid { what: format!("cannot unmount {}", point.display()), why })
}

/// Changes the flags of an existing mount, and of the trees in it. The trees stay read-only.
///
/// # Errors
///
/// `Io`: only root may do this.
pub fn remount(mounted: &Mounted, flags: &Flags) -> Result<()> {
    let remounted = rustix::mount::mount_remount(&mounted.point, flags.bits(), c"");
    remounted.map_err(|e| Error::io("remount", &mounted.point)(e.into()))?;
    let trees =
        mounts().into_iter().filter(|m| m.point != mounted.point && m.point.starts_with(&mounted.point));
    for tree in trees {
        set_flags_of_tree(&tree.point, flags)?;
    }
    Ok(())
}

/// Gives a tree the flags of the mount that it is in. The tree stays read-only.
fn set_flags_of_tree(tree: &Path, flags: &Flags) -> Result<()> {
    let bits = flags.read_only().bits() | MountFlags::BIND;
    rustix::mount::mount_remount(tree, bits, c"").map_err(|e| Error::io("remount", tree)(e.into()))
}

/// Gives a newly mounted tree the flags that a remount has given to the mount around it. `begun` are
/// the tree's own flags.
///
/// # Errors
///
/// `Io`.
pub fn follow(point: &Path, tree: &Path, begun: &Flags) -> Result<()> {
    match mounted_on(point).map(|mounted| mounted.flags) {
        Some(around) if around.read_only().attributes() != begun.read_only().attributes() => {
            set_flags_of_tree(tree, &around)
        }
        _ => Ok(()),
    }
}

/// A mount as the kernel lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mounted {
    pub point: PathBuf,
    /// The source of the mount. For imgfs this is the store's directory.
    pub source: PathBuf,
    /// `MAJOR:MINOR` of the file system.
    pub device: String,
    pub flags: Flags,
}

impl Mounted {
    /// The number of its connection to the kernel, which is the minor number of its device.
    fn connection(&self) -> &str {
        self.device.rsplit(':').next().unwrap_or_default()
    }
}

/// The existing imgfs mounts, newest last. Source: proc(5), mountinfo.
pub fn mounts() -> Vec<Mounted> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    text.lines().filter_map(parse_mount).collect()
}

fn parse_mount(line: &str) -> Option<Mounted> {
    let (left, right) = line.split_once(" - ")?;
    let mut right = right.split(' ');
    if right.next()? != FS_TYPE {
        return None;
    }
    let mut left = left.split(' ').skip(2);
    let device = left.next()?.to_owned();
    let point = unescape(left.nth(1)?);
    let source = unescape(&right.next()?.replace("\\,", ","));
    let options = format!("{},{}", left.next()?, right.next().unwrap_or_default());
    Some(Mounted { point, source, device, flags: Flags::shown(&options) })
}

/// Replaces octal escapes, which stand for blanks and backslashes.
fn unescape(text: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let (bytes, mut out, mut at) = (text.as_bytes(), Vec::new(), 0);
    while at < bytes.len() {
        let code = (bytes[at] == b'\\').then(|| bytes.get(at + 1..at + 4)).flatten();
        match code.and_then(|c| u8::from_str_radix(std::str::from_utf8(c).ok()?, 8).ok()) {
            Some(byte) => {
                out.push(byte);
                at += 4;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(out))
}

/// The imgfs mount on `point`, if there is one. The path is looked for in the list, because a stat
/// would hang on a dead daemon's mount.
pub fn mounted_on(point: &Path) -> Option<Mounted> {
    let absolute = std::path::absolute(point).ok()?;
    let parent = absolute.parent().and_then(|p| fs::canonicalize(p).ok());
    let resolved = parent.zip(absolute.file_name()).map_or(absolute.clone(), |(p, n)| p.join(n));
    let found = mounts().into_iter().rev().find(|m| m.point == resolved || m.point == absolute);
    let through_link = || fs::symlink_metadata(&absolute).is_ok_and(|meta| meta.is_symlink());
    match found {
        None if through_link() => {
            let real = fs::canonicalize(&absolute).ok()?;
            mounts().into_iter().rev().find(|m| m.point == real)
        }
        found => found,
    }
}

/// Ends the connections of a daemon that was killed and cannot end, then waits a while for its end.
/// Returns whether there was such a daemon. One reason: a thread of it tells the kernel to forget a
/// name, and waits for a directory lock, whose holder waits for the daemon. Another: it waits for a
/// disk, and all processes that had sent it requests wait with it.
///
/// `detached` also ends connections whose mounts were detached, or are in another mount namespace. Only
/// the guard may ask for this, when it sees the daemon end. Later another file system may have the
/// number of a connection that is gone.
pub fn end_dying(store: &Path, detached: bool) -> bool {
    let dying = || StoreLock::holder(store).filter(|holder| holder.dying.is_some());
    let Some(holder) = dying() else { return false };
    log::warn!("{} is used by {holder}: ending its connections", store.display());
    let is_mounted = |number: &str| mounts().iter().any(|m| m.source == store && m.connection() == number);
    // Meanwhile the next daemon of the store may have a connection with the same number. It cannot start
    // while the first one holds the lock.
    let is_still = || dying().is_some_and(|now| now.pid == holder.pid);
    for mounted in mounts().into_iter().rev().filter(|m| m.source == store) {
        // The abort file is opened first and checked afterwards: it cannot change its connection any more.
        if let Some(abort) = open_abort(mounted.connection())
            && is_mounted(mounted.connection())
            && is_still()
        {
            let _ = rustix::io::write(abort, b"1");
        }
    }
    for number in if detached { served_by(holder.pid) } else { BTreeSet::new() } {
        let is_anothers = || mounts().iter().any(|m| m.source != store && m.connection() == number);
        if let Some(abort) = open_abort(&number)
            && !is_anothers()
            && is_still()
        {
            let _ = rustix::io::write(abort, b"1");
        }
    }
    let begun = Instant::now();
    while is_still() && begun.elapsed() < ENDING {
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}

/// Opens the file that ends a connection when it is written to. Once open, it never ends a later
/// connection with the same number.
fn open_abort(number: &str) -> Option<OwnedFd> {
    let file = Path::new(number).join("abort");
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let seen = rustix::fs::open(Path::new("/sys/fs/fuse/connections").join(&file), flags, Mode::empty());
    seen.or_else(|_| rustix::fs::openat(connections()?, &file, flags, Mode::empty())).ok()
}

/// The list of connections on a private mount, for systems where nobody has mounted it, as in most
/// containers.
fn connections() -> rustix::io::Result<OwnedFd> {
    let list = rustix::mount::fsopen("fusectl", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_create(&list)?;
    rustix::mount::fsmount(&list, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
}

/// The connections that a process still has open. Linux 6.16 and newer report them. Each thread is
/// asked, because the first thread has ended and has none.
fn served_by(pid: u32) -> BTreeSet<String> {
    let list = |path: PathBuf| fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let threads = list(PathBuf::from(format!("/proc/{pid}/task")));
    let files = threads
        .flat_map(|thread| list(thread.join("fdinfo")))
        .filter_map(|file| fs::read_to_string(file).ok());
    let number = |text: String| {
        Some(text.lines().find_map(|line| line.strip_prefix("fuse_connection:"))?.trim().to_owned())
    };
    files.filter_map(number).collect()
}

/// Whether the daemon behind a mount is gone. This uses statfs, because the kernel may answer a stat
/// from its cache.
pub fn is_dead(mounted: &Mounted) -> bool {
    use rustix::io::Errno;
    end_dying(&mounted.source, false);
    let (tell, told) = std::sync::mpsc::sync_channel(1);
    let point = mounted.point.clone();
    let ask = move || tell.send(rustix::fs::statvfs(&point)).unwrap_or_default();
    if std::thread::Builder::new().name("ask".into()).spawn(ask).is_err() {
        return false;
    }
    loop {
        match told.recv_timeout(ASKING) {
            // The second error is for requests that were under way when the daemon ended.
            Ok(answer) => return matches!(answer, Err(Errno::NOTCONN | Errno::CONNABORTED)),
            Err(RecvTimeoutError::Disconnected) => return false,
            // The daemon is busy, or dying.
            Err(RecvTimeoutError::Timeout) => drop(end_dying(&mounted.source, false)),
        }
    }
}

/// Lets the kernel read ahead a megabyte, because its default caps reads at 128 KiB. Only root can do
/// this, and it only saves time.
pub fn raise_readahead(device: &str) {
    let path = format!("/sys/class/bdi/{device}/read_ahead_kb");
    if let Err(e) = fs::write(&path, "1024") {
        log::debug!("cannot set {path}: {e}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_lines_are_read_with_their_escapes() {
        let line = r"40 25 0:53 / /tmp/a\040b rw,nosuid,nodev,relatime shared:1 - fuse.imgfs /var/lib/imgfs rw,user_id=0";
        let mounted = parse_mount(line).unwrap();
        assert_eq!((mounted.point, mounted.source), ("/tmp/a b".into(), "/var/lib/imgfs".into()));
        assert_eq!(mounted.device, "0:53");
        assert_eq!(parse_mount("1 2 0:1 / /x rw - ext4 /dev/sda rw"), None);
    }
}
