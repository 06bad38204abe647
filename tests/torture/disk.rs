//! A disk in memory that remembers every write and every flush: a file served over FUSE by the test itself,
//! below a loop device. What it remembers makes the disk of any moment, and of any power cut.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner,
    OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, Session,
    SessionACL, WriteFlags,
};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

const PAGE: usize = 4096;
const ROOT: INodeNo = INodeNo(1);
const FILE: INodeNo = INodeNo(2);

/// What the disk was asked to do.
#[derive(Clone)]
pub enum Event {
    Write { at: usize, bytes: Vec<u8> },
    Flush,
}

/// Pages that were written, by number. The others are zeros.
#[derive(Clone, Default)]
pub struct Pages(HashMap<usize, Box<[u8; PAGE]>>);

impl Pages {
    pub fn write(&mut self, under: &Pages, mut at: usize, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (number, from) = (at / PAGE, at % PAGE);
            let take = bytes.len().min(PAGE - from);
            let fresh = || under.0.get(&number).cloned().unwrap_or_else(|| Box::new([0; PAGE]));
            self.0.entry(number).or_insert_with(fresh)[from..from + take].copy_from_slice(&bytes[..take]);
            (at, bytes) = (at + take, &bytes[take..]);
        }
    }
}

#[derive(Default)]
struct Content {
    base: Pages,
    /// What was written since the base was set.
    over: Pages,
    events: Vec<Event>,
}

pub struct Disk {
    content: Arc<Mutex<Content>>,
    /// Where the file is.
    served: PathBuf,
    /// /dev/loopN
    pub device: String,
}

impl Disk {
    /// A disk of zeros; `dir/disk` is made for the file. `sector`: bytes that are written whole or not at
    /// all.
    pub fn new(dir: &Path, size: usize, sector: usize) -> Disk {
        let served = dir.join("disk");
        std::fs::create_dir(&served).unwrap();
        let fd = File::options().read(true).write(true).open("/dev/fuse").unwrap();
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", fd.as_raw_fd());
        let options = std::ffi::CString::new(options).unwrap();
        mount("imgfs-test-disk", &served, "fuse", MountFlags::NOSUID | MountFlags::NODEV, options.as_c_str())
            .unwrap();
        let content = Arc::new(Mutex::new(Content::default()));
        let mut disk = Disk { content: content.clone(), served, device: String::new() };
        let session =
            Session::from_fd(Server { size, content }, fd.into(), SessionACL::Owner, Config::default())
                .unwrap();
        std::thread::spawn(move || session.run());
        let output = Command::new("losetup")
            .args(["--find", "--show", "--sector-size", &sector.to_string()])
            .arg(disk.served.join("disk"))
            .output()
            .unwrap();
        assert!(output.status.success(), "losetup: {}", String::from_utf8_lossy(&output.stderr));
        disk.device = String::from_utf8(output.stdout).unwrap().trim().to_owned();
        disk
    }

    /// How many events there were since it was set.
    pub fn position(&self) -> usize {
        self.content.lock().unwrap().events.len()
    }

    /// Makes it this disk: pages over pages.
    pub fn set(&self, base: Option<Pages>, over: Pages) {
        let mut content = self.content.lock().unwrap();
        if let Some(base) = base {
            content.base = base;
        }
        (content.over, content.events) = (over, Vec::new());
    }

    /// Makes something of the base while nothing uses the disk.
    pub fn with_base<T>(&self, work: impl FnOnce(&mut Pages) -> T) -> T {
        work(&mut self.content.lock().unwrap().base)
    }

    /// Takes what was written since it was set: the events, and all of it as pages.
    pub fn take(&self) -> (Vec<Event>, Pages) {
        let mut content = self.content.lock().unwrap();
        (std::mem::take(&mut content.events), std::mem::take(&mut content.over))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if !self.device.is_empty() {
            let _ = Command::new("losetup").args(["-d", &self.device]).status();
        }
        let _ = unmount(&self.served, UnmountFlags::DETACH);
    }
}

struct Server {
    size: usize,
    content: Arc<Mutex<Content>>,
}

impl Server {
    fn attr(&self, ino: INodeNo) -> FileAttr {
        let (kind, perm) =
            if ino == ROOT { (FileType::Directory, 0o700) } else { (FileType::RegularFile, 0o600) };
        let at = SystemTime::UNIX_EPOCH;
        FileAttr {
            ino,
            size: self.size as u64,
            blocks: self.size as u64 / 512,
            atime: at,
            mtime: at,
            ctime: at,
            crtime: at,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

const LONG: Duration = Duration::from_secs(1 << 20);

impl Filesystem for Server {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == "disk" {
            reply.entry(&LONG, &self.attr(FILE), Generation(0))
        } else {
            reply.error(Errno::ENOENT)
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&LONG, &self.attr(ino));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // The kernel keeps no page of it: from one moment to the next it is another disk.
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        at: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let at = usize::try_from(at).unwrap().min(self.size);
        let end = (at + size as usize).min(self.size);
        let (content, mut bytes) = (self.content.lock().unwrap(), Vec::with_capacity(end - at));
        while at + bytes.len() < end {
            let (number, from) = ((at + bytes.len()) / PAGE, (at + bytes.len()) % PAGE);
            let take = (end - at - bytes.len()).min(PAGE - from);
            match content.over.0.get(&number).or_else(|| content.base.0.get(&number)) {
                Some(page) => bytes.extend_from_slice(&page[from..from + take]),
                None => bytes.resize(bytes.len() + take, 0),
            }
        }
        reply.data(&bytes);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        at: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let at = usize::try_from(at).unwrap();
        let mut content = self.content.lock().unwrap();
        let Content { base, over, events } = &mut *content;
        over.write(base, at, data);
        events.push(Event::Write { at, bytes: data.to_vec() });
        reply.written(u32::try_from(data.len()).unwrap());
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.content.lock().unwrap().events.push(Event::Flush);
        reply.ok();
    }
}
