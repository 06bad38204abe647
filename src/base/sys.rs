//! The only unsafe code: calls for which no library has a wrapper. Each has the reason why it is sound.

#![allow(unsafe_code, reason = "its place")]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

use memmap2::Mmap;
use rustix::fs::FallocateFlags;

use crate::error::{Error, Result};

/// Maps one of imgfs's files for reading.
///
/// The mapped files are a store's trees, or what they unpack to, and its blob table. They are written
/// once, or appended to by the process that holds the store's lock. They never become shorter while
/// they are mapped.
///
/// # Errors
///
/// `Io`.
pub fn map(file: &File, path: &Path) -> Result<Mmap> {
    // SAFETY: a mapped file must not shrink or change under its readers. Trees are never written after their
    // rename; table records are only rewritten under the table's write lock; neither is ever truncated.
    unsafe { Mmap::map(file) }.map_err(Error::io("map", path))
}

/// Asks the kernel to start writing a range to the disk, so that the later sync has little left to do.
/// This is only a hint: if the write fails, the later sync fails too.
pub fn start_writeback(file: &File, offset: u64, len: u64) {
    let (Ok(offset), Ok(len)) = (i64::try_from(offset), i64::try_from(len)) else { return };
    // SAFETY: takes a descriptor that `file` keeps open and two numbers; touches no memory of ours.
    unsafe { libc::sync_file_range(file.as_raw_fd(), offset, len, libc::SYNC_FILE_RANGE_WRITE) };
}

/// Stops programs that this one starts from inheriting files that its own parent left open (`flock 9`,
/// a pipe). A daemon would otherwise hold them open, and locked, as long as it runs.
pub fn keep_inherited_files() {
    // SAFETY: marks descriptors, by number; closes none, and touches no memory of ours.
    unsafe { libc::close_range(3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC.cast_signed()) };
}

/// Gives this thread a mount namespace, a root and a working directory of its own.
///
/// # Errors
///
/// The kernel's.
pub fn leave_mount_namespace() -> rustix::io::Result<()> {
    // SAFETY: takes a number, and shares no less memory and no fewer descriptors with the other threads.
    match unsafe { libc::unshare(libc::CLONE_NEWNS) } {
        0 => Ok(()),
        _ => Err(rustix::io::Errno::from_io_error(&std::io::Error::last_os_error())
            .unwrap_or(rustix::io::Errno::IO)),
    }
}

/// Returns memory that the allocator holds to the system. Without this, an ingest leaves tens of
/// megabytes.
pub fn trim_memory() {
    // SAFETY: glibc's malloc_trim takes a number and may be called at any time from any thread.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0)
    };
}

/// Limits how many heaps the allocator makes for threads, because each upload starts several threads.
pub fn limit_heaps() {
    // SAFETY: glibc's mallopt takes two numbers; called once, before threads are started.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2)
    };
}

/// Fills `out` with random bytes from the kernel.
///
/// # Errors
///
/// `Io`.
pub fn random(out: &mut [u8]) -> Result<()> {
    use std::io::Read;
    let path = Path::new("/dev/urandom");
    File::open(path).and_then(|mut f| f.read_exact(out)).map_err(Error::io("read", path))
}

/// Whether a path exists, as far as this user may look. `None` if that cannot be told, or not soon.
pub fn is_there_for(uid: u32, gid: u32, path: &Path) -> Option<bool> {
    let (tell, told) = std::sync::mpsc::sync_channel(1);
    let path = path.to_owned();
    let look = move || {
        // SAFETY: calls that take numbers and concern this thread alone, which ends with this function. Where
        // they are refused, the thread looks as the daemon's own user, who is no other.
        unsafe {
            libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>());
            libc::setfsgid(gid);
            libc::setfsuid(uid);
        }
        let there = match std::fs::metadata(&path) {
            Ok(_) => Some(true),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Some(false),
            Err(_) => None,
        };
        tell.send(there).unwrap_or_default();
    };
    // A file system of the user's own may never answer.
    std::thread::Builder::new().name("look".into()).spawn(look).ok()?;
    told.recv_timeout(std::time::Duration::from_secs(1)).ok()?
}

/// Returns a range of a file to the disk. It then reads as zeros.
///
/// # Errors
///
/// `Io`.
pub fn punch(file: &File, path: &Path, from: u64, len: u64) -> Result<()> {
    match rustix::fs::fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, from, len) {
        // On a file system without holes the space stays used until the file is deleted.
        Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
        Err(e) => Err(Error::Io { doing: "punch", path: path.to_owned(), source: e.into() }),
    }
}
