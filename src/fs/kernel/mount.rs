//! mount(2) and umount(2): as root directly, as a user through fusermount3.
//!
//! The descriptor is ours and handed to fuser: its own teardown unmounts a path again after somebody else
//! did, and may hit another file system.

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

/// How long a daemon may take to end once its connections are ended, and to answer before it is looked at
/// again.
const ENDING: Duration = Duration::from_secs(10);
const ASKING: Duration = Duration::from_millis(200);

/// How long what is in use is tried again.
const BUSY: Duration = Duration::from_millis(300);

/// The type that df and findmnt show.
const FS_TYPE: &str = "fuse.imgfs";

/// Mounts on `point`; the descriptor is to be served at once.
///
/// # Errors
///
/// `Io` with what mount(2) said; `Invalid` with what fusermount3 said.
pub fn mount(point: &Path, source: &Path, flags: &Flags) -> Result<OwnedFd> {
    let meta = fs::metadata(point).map_err(Error::io("stat", point))?;
    if !meta.is_dir() {
        return Err(Error::NotDirectory { what: point.display().to_string() });
    }
    // A name, for df and mount: commas would begin another option.
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
        // For others the kernel checks permissions. A mount of one user is all that user's.
        options.push_str(",allow_other,default_permissions");
    }
    let options = std::ffi::CString::new(options).expect("numbers and words");
    let source = std::ffi::CString::new(source)
        .map_err(|_| Error::Invalid { what: source.into(), why: "it has a zero byte".into() })?;
    rustix::mount::mount(&source, point, FS_TYPE, flags.bits(), Some(options.as_c_str()))
        .map_err(|e| Error::Io { doing: "mount on", path: point.to_owned(), source: e.into() })?;
    Ok(fd.into())
}

/// Makes a read-only mount of directories that no path leads to, as root; gives it, and the descriptor that
/// is to be served.
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

/// Words of mount(8) about access times that fusermount3 refuses.
const ABOUT_TIMES: [&str; 4] = ["nodiratime", "relatime", "strictatime", "lazytime"];

fn mount_by_helper(point: &Path, source: &str, flags: &Flags) -> Result<OwnedFd> {
    let failed = |why: String| Error::Invalid { what: format!("cannot mount on {}", point.display()), why };
    let (ours, theirs) = UnixStream::pair().map_err(|e| failed(e.to_string()))?;
    let mut options = format!("fsname={source},subtype=imgfs,nosuid,nodev");
    if flags.allow_other {
        options.push_str(",allow_other,default_permissions");
    }
    // An ordinary user gets no others. What is said about times that imgfs does not keep, the helper does not
    // know.
    for word in
        flags.words().filter(|word| !["nosuid", "nodev"].contains(word) && !ABOUT_TIMES.contains(word))
    {
        options.push(',');
        options.push_str(word);
    }
    // The helper finds its end of the pair under this number.
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

/// Unmounts, with the trees that are mounted in it. `lazy` detaches at once and lets the users of open files
/// finish.
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
        // For a moment a tree may still be mounting, or a process that has just ended be inside.
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

/// Changes what the kernel keeps of a mount that is there, and of the trees in it, which stay read-only.
///
/// # Errors
///
/// `Io`: only root may.
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

/// Gives a tree the flags of the mount that it is in; it stays read-only.
fn set_flags_of_tree(tree: &Path, flags: &Flags) -> Result<()> {
    let bits = flags.read_only().bits() | MountFlags::BIND;
    rustix::mount::mount_remount(tree, bits, c"").map_err(|e| Error::io("remount", tree)(e.into()))
}

/// Gives a tree that was just mounted the flags that a remount has given to the mount around it. `begun`: its
/// own.
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
    /// What is mounted: for imgfs the store's directory.
    pub source: PathBuf,
    /// `MAJOR:MINOR` of the file system.
    pub device: String,
    pub flags: Flags,
}

impl Mounted {
    /// The number of its connection to the kernel: the minor one of its device.
    fn connection(&self) -> &str {
        self.device.rsplit(':').next().unwrap_or_default()
    }
}

/// The imgfs mounts there are, newest last. Source: proc(5), mountinfo.
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

/// Octal escapes stand for blanks and backslashes.
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

/// The imgfs mount on `point`, if there is one; found in the list, so that a dead daemon's mount does not
/// hang us.
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

/// Ends the connections of a daemon that was killed and cannot end: one of its threads tells the kernel to
/// forget a name, and waits for a directory that is locked by somebody who waits for the daemon; or it waits
/// for a disk, and all who had asked something of the daemon wait with it. Then waits a while for its end.
/// Says whether there was one.
///
/// `detached`: connections are ended, too, whose mounts were detached or are in another mount namespace. Only
/// for the guard when it sees the daemon end: later the number of one that is gone may be that of somebody
/// else's file system.
pub fn end_dying(store: &Path, detached: bool) -> bool {
    let dying = || StoreLock::holder(store).filter(|holder| holder.dying.is_some());
    let Some(holder) = dying() else { return false };
    log::warn!("{} is used by {holder}: ending its connections", store.display());
    let is_mounted = |number: &str| mounts().iter().any(|m| m.source == store && m.connection() == number);
    // The next daemon of the store may be there meanwhile, with the same number. Not while the first has the
    // lock.
    let is_still = || dying().is_some_and(|now| now.pid == holder.pid);
    for mounted in mounts().into_iter().rev().filter(|m| m.source == store) {
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

/// Opens what ends a connection when it is written to; once open it ends no other that gets the same number.
fn open_abort(number: &str) -> Option<OwnedFd> {
    let file = Path::new(number).join("abort");
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let seen = rustix::fs::open(Path::new("/sys/fs/fuse/connections").join(&file), flags, Mode::empty());
    seen.or_else(|_| rustix::fs::openat(connections()?, &file, flags, Mode::empty())).ok()
}

/// The list of connections where nobody has mounted it, as in most containers: on a mount that none else
/// sees.
fn connections() -> rustix::io::Result<OwnedFd> {
    let list = rustix::mount::fsopen("fusectl", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_create(&list)?;
    rustix::mount::fsmount(&list, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
}

/// The connections that a process still has open. Linux 6.16 and newer say it. Asked thread by thread: the
/// first, which has ended, has none.
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

/// Whether the daemon behind a mount is gone. Asked with statfs: a stat may be answered from the kernel's
/// memory.
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
            // The second is for what was under way when it ended.
            Ok(answer) => return matches!(answer, Err(Errno::NOTCONN | Errno::CONNABORTED)),
            Err(RecvTimeoutError::Disconnected) => return false,
            // It is busy, or dying.
            Err(RecvTimeoutError::Timeout) => drop(end_dying(&mounted.source, false)),
        }
    }
}

/// Lets the kernel read ahead a megabyte; its default caps reads at 128 KiB. Root only, and only a saving.
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
