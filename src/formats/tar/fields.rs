//! What a header and the records before it say of an entry: its name, kind, owner, times and content.

use crate::error::Result;
use crate::formats::tar::BLOCK;
use crate::formats::tar::header::{Header, number};
use crate::formats::tar::pax::{self, Extensions};
use crate::formats::tar::reader::{Entry, EntryKind, LongNames, Reader, Source, over};
use crate::formats::tar::sparse::{self, Map, MapReader};

impl<S: Source> Reader<S> {
    /// The entry of a header at `at`; `size` is what the header itself says. Its content is to be read next.
    ///
    /// # Errors
    ///
    /// `BadArchive`, `Truncated`, `OverLimit`, and what the source fails with.
    pub(super) fn entry(
        &mut self,
        at: u64,
        header: &Header<'_>,
        size: u64,
        local: &Extensions,
        long: LongNames,
    ) -> Result<Entry> {
        let all = local.over(&self.global);
        let (path, link) = names(header, &all, long);
        if path.split(|b| *b == b'/').filter(|n| !n.is_empty()).count() > self.limits.depth {
            return Err(over("the depth of a path", self.limits.depth as u64));
        }
        let size = match all.get("size") {
            Some(text) => match pax::decimal(text) {
                Some(size) => size,
                None => return self.bad(&path, "a size that is no number"),
            },
            None => size,
        };
        let kind = kind_of(header, &path);
        let size = if has_content(header, kind, &all) { size } else { 0 };
        let uid = self.owner(header, &path, all.get("uid"), (108, "uid"))?;
        let gid = self.owner(header, &path, all.get("gid"), (116, "gid"))?;
        let mtime = self.mtime(header, &path, &all)?;
        // A symlink has no mode of its own.
        let mode = match kind {
            EntryKind::Symlink => 0o777,
            _ => (self.unsigned(header, 100, 8, "mode")? & 0o7777) as u32,
        };
        let device = match kind {
            EntryKind::CharDevice | EntryKind::BlockDevice => self.device(header, &path)?,
            _ => (0, 0),
        };
        let xattrs = self.xattrs(&path, &all)?;
        self.left = size;
        self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
        let sparse = if kind == EntryKind::File { self.sparse_map(header, &path, &all)? } else { None };
        if kind == EntryKind::Directory && self.left > 0 {
            // A GNU incremental dump lists the directory here.
            let len = self.left;
            self.left = 0;
            self.skip_exactly(len)?;
        }
        if self.position().saturating_add(self.left) > self.limits.tar_size {
            return Err(over("the size of the unpacked archive", self.limits.tar_size));
        }
        if sparse.as_ref().is_some_and(|map| map.size > i64::MAX.cast_unsigned()) {
            return self.bad(&path, "a sparse file that is too large");
        }
        Ok(Entry { at, kind, path, link, mode, uid, gid, mtime, device, packed: self.left, sparse, xattrs })
    }

    /// A user or group, from a record or from the header's field at `field.0`.
    fn owner(
        &self,
        header: &Header<'_>,
        path: &[u8],
        record: Option<&[u8]>,
        field: (usize, &str),
    ) -> Result<u32> {
        let (at, what) = field;
        let id = match record {
            Some(text) => match pax::decimal(text).and_then(|n| u32::try_from(n).ok()) {
                Some(id) => id,
                None => return self.bad(path, &format!("a {what} that is no number")),
            },
            None => u32::try_from(self.unsigned(header, at, 8, what)?)
                .or_else(|_| self.bad(path, &format!("a {what} that is too large")))?,
        };
        // -1 is what chown(2) takes for "leave it", and nobody's id.
        Ok(if id == u32::MAX { 0 } else { id })
    }

    fn mtime(&self, header: &Header<'_>, path: &[u8], all: &Extensions) -> Result<(i64, u32)> {
        match all.get("mtime") {
            Some(text) => match pax::time(text) {
                Some(time) => Ok(time),
                None => self.bad(path, "a time that is no number"),
            },
            None => match number(header.field(136, 12)) {
                Ok(seconds) => Ok((seconds, 0)),
                Err(why) => self.bad(path, &format!("in the time, {why}")),
            },
        }
    }

    /// Major and minor number.
    fn device(&self, header: &Header<'_>, path: &[u8]) -> Result<(u32, u32)> {
        let major = self.unsigned(header, 329, 8, "device number")?;
        let minor = self.unsigned(header, 337, 8, "device number")?;
        match (u32::try_from(major), u32::try_from(minor)) {
            (Ok(major), Ok(minor)) if major < 1 << 12 && minor < 1 << 20 => Ok((major, minor)),
            _ => self.bad(path, "a device number that is too large"),
        }
    }

    fn sparse_map(&mut self, header: &Header<'_>, path: &[u8], all: &Extensions) -> Result<Option<Map>> {
        let limit = self.limits.pieces;
        let too_many = || over("the number of pieces of a sparse file", limit as u64);
        let refuse = |reader: &Self, why: &str| match why {
            sparse::TOO_MANY => Err(too_many()),
            why => reader.bad::<Option<Map>>(path, why),
        };
        let old = if header.typeflag() == b'S' { sparse::Old::of(header.style()) } else { None };
        let map = if let Some(old) = old {
            let mut pieces = Vec::new();
            let size = match old.size(header) {
                Ok(size) => size,
                Err(why) => return refuse(self, why),
            };
            if let Err(why) = sparse::old_pieces(header.field(old.pieces_at, 96), &mut pieces) {
                return refuse(self, why);
            }
            let mut more = header.0[old.more_at] != 0;
            while more {
                // Not part of the size in the header.
                let Some(block) = self.block(true)? else {
                    return refuse(self, "a sparse map that is cut off");
                };
                if let Err(why) = sparse::old_pieces(&block[..504], &mut pieces) {
                    return refuse(self, why);
                }
                if pieces.len() > limit {
                    return Err(too_many());
                }
                more = block[504] != 0;
            }
            Some(Map { pieces, size })
        } else if all.get("GNU.sparse.major") == Some(b"1") && all.get("GNU.sparse.minor") == Some(b"0") {
            let Some(size) = all.get("GNU.sparse.realsize").and_then(pax::decimal) else {
                return refuse(self, "a sparse file without its size");
            };
            let mut reader = MapReader::default();
            loop {
                if self.left < BLOCK as u64 {
                    return refuse(self, "a sparse map that is cut off");
                }
                let Some(block) = self.block(true)? else {
                    return refuse(self, "a sparse map that is cut off");
                };
                self.left -= BLOCK as u64;
                match reader.take(&block, limit) {
                    Ok(true) => break,
                    Ok(false) => {}
                    Err(why) => return refuse(self, why),
                }
            }
            Some(Map { pieces: reader.pieces(), size })
        } else {
            match sparse::from_records(all, limit) {
                Ok(map) => map,
                Err(why) => return refuse(self, why),
            }
        };
        match map.map(|m| m.check(self.left)).transpose() {
            Ok(map) => Ok(map),
            Err(why) => refuse(self, why),
        }
    }

    fn xattrs(&self, path: &[u8], all: &Extensions) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let found = match pax::xattrs(all) {
            Ok(found) => found,
            Err(why) => return self.bad(path, why),
        };
        let mut bytes = 0;
        for (name, value) in &found {
            if name.is_empty() || name.len() > 255 || name.contains(&0) {
                return self.bad(path, "an xattr with an impossible name");
            }
            bytes += name.len() + value.len();
            if value.len() > 65536 || bytes > self.limits.xattrs {
                return Err(over("the size of the xattrs of an entry", self.limits.xattrs as u64));
            }
        }
        Ok(found.into_iter().collect())
    }

    pub(super) fn unsigned(&self, header: &Header<'_>, at: usize, len: usize, what: &str) -> Result<u64> {
        match number(header.field(at, len)) {
            Ok(value) => {
                u64::try_from(value).or_else(|_| self.bad(&header.path(), &format!("a negative {what}")))
            }
            Err(why) => self.bad(&header.path(), &format!("in the {what}, {why}")),
        }
    }
}

/// The path, and the target of a link.
fn names(header: &Header<'_>, all: &Extensions, long: LongNames) -> (Vec<u8>, Vec<u8>) {
    let path = match (all.get("GNU.sparse.name"), all.get("path"), long.path) {
        (Some(name), _, _) => name.to_vec(),
        (None, Some(path), _) => path.to_vec(),
        (None, None, Some(path)) => path,
        (None, None, None) => header.path(),
    };
    let link = match (all.get("linkpath"), long.link) {
        (Some(link), _) => link.to_vec(),
        (None, Some(link)) => link,
        (None, None) => header.text(157, 100).to_vec(),
    };
    (path, link)
}

fn kind_of(header: &Header<'_>, path: &[u8]) -> EntryKind {
    match header.typeflag() {
        b'1' => EntryKind::HardLink,
        b'2' => EntryKind::Symlink,
        b'3' => EntryKind::CharDevice,
        b'4' => EntryKind::BlockDevice,
        b'5' | b'D' => EntryKind::Directory,
        b'6' => EntryKind::Fifo,
        // V7 has no type for directories, only a slash.
        0 | b'0' | b'7' if path.ends_with(b"/") => EntryKind::Directory,
        // Contiguous files, sparse ones, and types nobody knows are files, as POSIX says.
        _ => EntryKind::File,
    }
}

fn has_content(header: &Header<'_>, kind: EntryKind, all: &Extensions) -> bool {
    match kind {
        EntryKind::File => true,
        // Old writers put the target's size there. A pax record counts: `pax -o linkdata` brings content.
        EntryKind::HardLink => all.get("size").is_some(),
        // Only a GNU incremental dump lists what the directory holds.
        EntryKind::Directory => header.typeflag() == b'D',
        _ => false,
    }
}
