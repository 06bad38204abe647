//! Converts between fuser's types and imgfs's: callers, nodes, attributes, errors.

use std::time::{Duration, SystemTime};

use fuser::{Errno, FileAttr, FileType, INodeNo, ReplyEmpty, ReplyXattr, Request, TimeOrNow};

use crate::base::clock::now;
use crate::error::{Error, Result};
use crate::fs::node::NodeId;
use crate::fs::{Attr, Caller, FOREVER, LASTING};

pub fn errno(e: &Error) -> Errno {
    Errno::from_i32(e.errno())
}

/// The errno for a node whose name was just found. If the node is gone, ESTALE makes the kernel look up
/// the name again, once.
pub fn errno_of_node(e: &Error) -> Errno {
    if matches!(e, Error::NotFound { .. }) { Errno::ESTALE } else { errno(e) }
}

pub fn caller(req: &Request) -> Caller {
    Caller { uid: req.uid(), gid: req.gid(), pid: req.pid() }
}

/// The node that the kernel means by an inode number.
///
/// # Errors
///
/// `NotFound` if the number stands for none.
pub fn node(ino: INodeNo) -> Result<NodeId> {
    NodeId::from_ino(ino.0).ok_or_else(|| Error::NotFound { what: format!("inode {}", ino.0) })
}

pub fn time((seconds, nanoseconds): (i64, u32)) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let base = if seconds < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(whole)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(whole)
    };
    base.and_then(|t| t.checked_add(Duration::from_nanos(nanoseconds.into())))
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

pub fn nanoseconds(time: TimeOrNow) -> i64 {
    match time {
        TimeOrNow::Now => now(),
        TimeOrNow::SpecificTime(t) => {
            let clamp = |d: Duration| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX);
            t.duration_since(SystemTime::UNIX_EPOCH).map_or_else(|before| -clamp(before.duration()), clamp)
        }
    }
}

pub fn file_type(format: u32) -> FileType {
    match format & libc::S_IFMT {
        libc::S_IFDIR => FileType::Directory,
        libc::S_IFLNK => FileType::Symlink,
        libc::S_IFCHR => FileType::CharDevice,
        libc::S_IFBLK => FileType::BlockDevice,
        libc::S_IFIFO => FileType::NamedPipe,
        _ => FileType::RegularFile,
    }
}

pub fn file_attr(attr: &Attr) -> FileAttr {
    let kind = file_type(attr.mode);
    // Blocks are never computed from shared or compressed data, because tools guess holes from them.
    let blocks = match kind {
        FileType::RegularFile | FileType::Directory => attr.data.div_ceil(4096) * 8,
        _ => 0,
    };
    let mtime = time(attr.mtime);
    FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        blocks,
        atime: mtime,
        mtime,
        ctime: time(attr.ctime),
        crtime: mtime,
        kind,
        perm: (attr.mode & 0o7777) as u16,
        nlink: attr.links,
        uid: attr.uid,
        gid: attr.gid,
        rdev: device_number(attr.device),
        blksize: 4096,
        flags: 0,
    }
}

/// FUSE carries 32 bits: 12 for the major and 20 for the minor number, packed as in the kernel's
/// new_encode_dev.
pub fn device_number((major, minor): (u32, u32)) -> u32 {
    minor & 0xff | (major & 0xfff) << 8 | (minor & !0xff) << 12
}

/// How long the kernel may cache a name, or attributes.
pub fn lasting(attr: &Attr, yes: bool) -> Duration {
    match NodeId::from_ino(attr.ino) {
        _ if !yes => Duration::ZERO,
        Some(NodeId::Tree { .. }) => FOREVER,
        _ => LASTING,
    }
}

pub fn answer_empty(reply: ReplyEmpty, result: Result<()>) {
    match result {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(errno(&e)),
    }
}

pub fn answer_xattr(reply: ReplyXattr, size: u32, result: Result<Vec<u8>>) {
    match result {
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(e) => reply.error(errno(&e)),
    }
}

pub const EMPTY: Attr = Attr {
    ino: 0,
    mode: 0,
    links: 0,
    uid: 0,
    gid: 0,
    size: 0,
    data: 0,
    mtime: (0, 0),
    ctime: (0, 0),
    device: (0, 0),
    lasting_name: false,
    lasting: false,
};
