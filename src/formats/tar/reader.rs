//! Entry after entry of a tar stream; see mod.rs.
//!
//! ```text
//! Boundary --header--> Inside --content, padding--> Boundary
//!    `------zero block------> Ended (whatever follows is kept, and not read)
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::base::digest::Content;
use crate::error::{Error, Result};
use crate::formats::tar::header::{Header, number};
use crate::formats::tar::pax::{self, Extensions};
use crate::formats::tar::sparse::{self, Map, MapReader};
use crate::formats::tar::{BLOCK, foreign};
use crate::tree::recipe::RecipeBuilder;

/// Where the bytes come from.
pub trait Source {
    /// The bytes at hand; waits for some. Empty at the end only.
    ///
    /// # Errors
    ///
    /// Those of the decoder or the file behind it.
    fn fill(&mut self) -> Result<&[u8]>;
    /// Marks bytes of `fill` as taken.
    fn consume(&mut self, n: usize);
}

impl<S: Source> Source for &mut S {
    fn fill(&mut self) -> Result<&[u8]> {
        (**self).fill()
    }

    fn consume(&mut self, n: usize) {
        (**self).consume(n);
    }
}

/// What no real image meets.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of the unpacked tar.
    pub tar_size: u64,
    /// Entries of the archive.
    pub entries: u64,
    /// Names in a path.
    pub depth: usize,
    /// Bytes of an extended header or a long name.
    pub header: u64,
    /// Bytes of the xattrs of one entry.
    pub xattrs: usize,
    /// Pieces of a sparse file.
    pub pieces: usize,
    /// Bytes of memory that a compressed stream may ask its decoder to keep: zstd's window, xz's dictionary.
    pub window: u64,
    /// Unpacked bytes for each compressed one, of streams that unpack to more than `RATIO_FLOOR`.
    pub ratio: u64,
}

/// Streams that unpack to less are not measured: what they can do is small.
pub const RATIO_FLOOR: u64 = 1 << 30;

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            tar_size: 1 << 42,
            entries: 20_000_000,
            depth: 2048,
            header: 1 << 20,
            xattrs: 1 << 20,
            pieces: 1 << 20,
            window: 1 << 31,
            // Zeros: gzip 1,000, xz 7,000, zstd 32,000.
            ratio: 100_000,
        }
    }
}

/// How far a reader has come; shared, so that a close can ask whether the archive is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Stage {
    /// Nothing was read.
    Begun = 0,
    /// Between two entries.
    Boundary = 1,
    /// Within an entry.
    Inside = 2,
    /// Past the end marker.
    Ended = 3,
}

impl Stage {
    pub fn load(from: &AtomicU8) -> Stage {
        match from.load(Ordering::Acquire) {
            0 => Stage::Begun,
            1 => Stage::Boundary,
            2 => Stage::Inside,
            _ => Stage::Ended,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
}

/// What a header, with all that went before it, says.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Where its header begins in the tar.
    pub at: u64,
    pub kind: Kind,
    pub path: Vec<u8>,
    /// Target of a link.
    pub link: Vec<u8>,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, u32),
    pub device: (u32, u32),
    /// Bytes of content in the archive; not yet read.
    pub packed: u64,
    pub sparse: Option<Map>,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

pub struct Reader<S> {
    source: S,
    recipe: RecipeBuilder,
    limits: Limits,
    stage: Arc<AtomicU8>,
    global: Extensions,
    entries: u64,
    /// Content of the last entry that was not read yet, and its padding.
    left: u64,
    padding: u64,
}

impl<S: Source> Reader<S> {
    /// Begins to read the tar that `source` gives; `stage` is kept up to date.
    ///
    /// # Errors
    ///
    /// `Io` if zstd has no compressor for the recipe.
    pub fn new(source: S, limits: Limits, stage: Arc<AtomicU8>) -> Result<Reader<S>> {
        let recipe = RecipeBuilder::new()?;
        Ok(Reader {
            source,
            recipe,
            limits,
            stage,
            global: Extensions::default(),
            entries: 0,
            left: 0,
            padding: 0,
        })
    }

    /// Where the reader stands in the tar.
    pub fn position(&self) -> u64 {
        self.recipe.tar_size()
    }

    fn set(&self, stage: Stage) {
        self.stage.store(stage as u8, Ordering::Release);
    }

    fn bad<T>(&self, entry: &[u8], why: &str) -> Result<T> {
        Err(Error::BadArchive {
            at: self.position(),
            entry: String::from_utf8_lossy(entry).into_owned(),
            why: why.into(),
        })
    }

    /// The next entry; `None` at the end of the archive. The content of the one before must have been taken.
    ///
    /// # Errors
    ///
    /// `BadArchive`, `Truncated`, `NotTar`, `OverLimit`, `Unsupported`, and what the source fails
    /// with.
    pub fn next_entry(&mut self) -> Result<Option<Entry>> {
        let mut local = Extensions::default();
        let (mut long_path, mut long_link): (Option<Vec<u8>>, Option<Vec<u8>>) = (None, None);
        loop {
            self.skip_padding()?;
            let pending = !local.is_empty() || long_path.is_some() || long_link.is_some();
            if !pending && Stage::load(&self.stage) != Stage::Begun {
                self.set(Stage::Boundary);
            }
            let at = self.position();
            let Some(block) = self.block(pending)? else { return Ok(None) };
            if block.iter().all(|b| *b == 0) {
                if pending {
                    return self.bad(b"", "it ends after an extended header");
                }
                self.set(Stage::Ended);
                self.drain()?;
                return Ok(None);
            }
            let header = Header(&block);
            if !header.checksum_holds() {
                if at == 0 {
                    return Err(foreign::not_a_tar("the upload".into(), &block));
                }
                return self.bad(b"", "the checksum of a header is wrong");
            }
            self.set(Stage::Inside);
            self.entries += 1;
            if self.entries > self.limits.entries {
                return Err(over("the number of entries", self.limits.entries));
            }
            let flag = header.typeflag();
            let size = self.unsigned(&header, 124, 12, "size")?;
            match flag {
                b'x' | b'X' => {
                    let data = self.small(size)?;
                    // Of several, the last one counts alone.
                    local = Extensions::default();
                    if let Err(why) = local.take(&data) {
                        return self.bad(b"", why);
                    }
                }
                b'g' => {
                    let data = self.small(size)?;
                    let mut global = std::mem::take(&mut self.global);
                    let taken = global.take(&data);
                    self.global = global;
                    if let Err(why) = taken {
                        return self.bad(b"", why);
                    }
                    if ["path", "linkpath", "size"]
                        .iter()
                        .any(|key| self.global.get(key).is_some_and(|v| !v.is_empty()))
                    {
                        return self.bad(b"", "a global header gives one path or size to all entries");
                    }
                }
                b'L' => long_path = Some(until_zero(self.small(size)?)),
                b'K' => long_link = Some(until_zero(self.small(size)?)),
                b'V' => self.skip(size)?,
                b'M' => {
                    return Err(Error::Unsupported {
                        what: "a volume of a multi-volume archive".into(),
                        instead: "make one archive: tar without --multi-volume",
                    });
                }
                _ => {
                    let entry = self.entry(at, &header, size, &local, long_path, long_link)?;
                    return Ok(Some(entry));
                }
            }
        }
    }

    fn entry(
        &mut self,
        at: u64,
        header: &Header<'_>,
        size: u64,
        local: &Extensions,
        long_path: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Entry> {
        let all = local.over(&self.global);
        let path = match (all.get("GNU.sparse.name"), all.get("path"), long_path) {
            (Some(name), _, _) => name.to_vec(),
            (None, Some(path), _) => path.to_vec(),
            (None, None, Some(path)) => path,
            (None, None, None) => header.path(),
        };
        let link = match (all.get("linkpath"), long_link) {
            (Some(link), _) => link.to_vec(),
            (None, Some(link)) => link,
            (None, None) => header.text(157, 100).to_vec(),
        };
        if path.split(|b| *b == b'/').filter(|n| !n.is_empty()).count() > self.limits.depth {
            return Err(over("the depth of a path", self.limits.depth as u64));
        }
        let mut size = match all.get("size") {
            Some(text) => match pax::decimal(text) {
                Some(size) => size,
                None => return self.bad(&path, "a size that is no number"),
            },
            None => size,
        };
        let kind = match header.typeflag() {
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharDevice,
            b'4' => Kind::BlockDevice,
            b'5' | b'D' => Kind::Directory,
            b'6' => Kind::Fifo,
            // V7 has no type for directories, only a slash.
            0 | b'0' | b'7' if path.ends_with(b"/") => Kind::Directory,
            // Contiguous files, sparse ones, and types nobody knows are files, as POSIX says.
            _ => Kind::File,
        };
        let has_content = match kind {
            Kind::File => true,
            // Old writers put the target's size there. A pax record counts: `pax -o linkdata` brings content.
            Kind::HardLink => all.get("size").is_some(),
            // Only a GNU incremental dump lists what the directory holds.
            Kind::Directory => header.typeflag() == b'D',
            _ => false,
        };
        if !has_content {
            size = 0;
        }
        let id = |reader: &Self, key: &str, field: usize, what: &str| match all.get(key) {
            Some(text) => match pax::decimal(text).and_then(|n| u32::try_from(n).ok()) {
                Some(id) => Ok(id),
                None => reader.bad(&path, &format!("a {what} that is no number")),
            },
            None => u32::try_from(reader.unsigned(header, field, 8, what)?)
                .or_else(|_| reader.bad(&path, &format!("a {what} that is too large"))),
        };
        // -1 is what chown(2) takes for "leave it", and nobody's id.
        let owned = |id: u32| if id == u32::MAX { 0 } else { id };
        let (uid, gid) = (owned(id(self, "uid", 108, "uid")?), owned(id(self, "gid", 116, "gid")?));
        let mtime = match all.get("mtime") {
            Some(text) => match pax::time(text) {
                Some(time) => time,
                None => return self.bad(&path, "a time that is no number"),
            },
            None => match number(header.field(136, 12)) {
                Ok(seconds) => (seconds, 0),
                Err(why) => return self.bad(&path, &format!("in the time, {why}")),
            },
        };
        // A symlink has no mode of its own.
        let mode = if kind == Kind::Symlink {
            0o777
        } else {
            (self.unsigned(header, 100, 8, "mode")? & 0o7777) as u32
        };
        let device = if matches!(kind, Kind::CharDevice | Kind::BlockDevice) {
            let major = self.unsigned(header, 329, 8, "device number")?;
            let minor = self.unsigned(header, 337, 8, "device number")?;
            match (u32::try_from(major), u32::try_from(minor)) {
                (Ok(major), Ok(minor)) if major < 1 << 12 && minor < 1 << 20 => (major, minor),
                _ => return self.bad(&path, "a device number that is too large"),
            }
        } else {
            (0, 0)
        };
        let xattrs = self.xattrs(&path, &all)?;
        self.left = size;
        self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
        let sparse = if kind == Kind::File { self.sparse_map(header, &path, &all)? } else { None };
        if kind == Kind::Directory && self.left > 0 {
            // A GNU incremental dump lists the directory here.
            let len = self.left;
            self.left = 0;
            self.skip_exactly(len)?;
        }
        if self.position().saturating_add(self.left) > self.limits.tar_size {
            return Err(over("the size of the unpacked archive", self.limits.tar_size));
        }
        if let Some(map) = &sparse
            && map.size > i64::MAX.cast_unsigned()
        {
            return self.bad(&path, "a sparse file that is too large");
        }
        Ok(Entry { at, kind, path, link, mode, uid, gid, mtime, device, packed: self.left, sparse, xattrs })
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

    fn unsigned(&self, header: &Header<'_>, at: usize, len: usize, what: &str) -> Result<u64> {
        match number(header.field(at, len)) {
            Ok(value) => {
                u64::try_from(value).or_else(|_| self.bad(&header.path(), &format!("a negative {what}")))
            }
            Err(why) => self.bad(&header.path(), &format!("in the {what}, {why}")),
        }
    }

    /// The next block, kept in the recipe. `None` at the end of the bytes, unless something must follow.
    fn block(&mut self, must: bool) -> Result<Option<[u8; BLOCK]>> {
        let mut block = [0u8; BLOCK];
        let mut have = 0;
        while have < BLOCK {
            let bytes = self.source.fill()?;
            if bytes.is_empty() {
                if have == 0 && !must {
                    return Ok(None);
                }
                return Err(Error::Truncated {
                    at: self.position() + have as u64,
                    why: "it ends within a header".into(),
                });
            }
            let take = bytes.len().min(BLOCK - have);
            block[have..have + take].copy_from_slice(&bytes[..take]);
            self.source.consume(take);
            have += take;
            if Stage::load(&self.stage) == Stage::Boundary {
                self.set(Stage::Inside);
            }
        }
        self.recipe.inline(&block)?;
        Ok(Some(block))
    }

    /// The content of a header that extends the next one.
    fn small(&mut self, size: u64) -> Result<Vec<u8>> {
        if size > self.limits.header {
            return Err(over("the size of an extended header", self.limits.header));
        }
        let mut data = Vec::new();
        let mut blocks = size.div_ceil(BLOCK as u64);
        while blocks > 0 {
            let block = self.block(true)?.expect("block(true) gives one or fails");
            data.extend_from_slice(&block);
            blocks -= 1;
        }
        data.truncate(size as usize);
        Ok(data)
    }

    fn skip(&mut self, size: u64) -> Result<()> {
        let padded = size.checked_next_multiple_of(BLOCK as u64);
        match padded {
            Some(len) => self.skip_exactly(len),
            None => self.bad(b"", "a size that is too large"),
        }
    }

    fn skip_padding(&mut self) -> Result<()> {
        debug_assert_eq!(self.left, 0);
        let len = std::mem::take(&mut self.padding);
        self.skip_exactly(len)
    }

    fn skip_exactly(&mut self, mut len: u64) -> Result<()> {
        while len > 0 {
            let bytes = self.source.fill()?;
            if bytes.is_empty() {
                return Err(Error::Truncated { at: self.position(), why: "it ends within an entry".into() });
            }
            let take = usize::try_from(len).unwrap_or(usize::MAX).min(bytes.len());
            self.recipe.inline(&bytes[..take])?;
            self.source.consume(take);
            len -= take as u64;
        }
        Ok(())
    }

    /// Takes all that follows the end marker into the recipe.
    fn drain(&mut self) -> Result<()> {
        loop {
            let bytes = self.source.fill()?;
            if bytes.is_empty() {
                return Ok(());
            }
            let n = bytes.len();
            let nothing_yet = self.entries == 0 && bytes.iter().any(|b| *b != 0);
            self.recipe.inline(bytes)?;
            self.source.consume(n);
            if nothing_yet {
                return self
                    .bad(b"", "it begins with an end marker, and more follows: was its beginning written?");
            }
            if self.position() > self.limits.tar_size {
                return Err(over("the size of the unpacked archive", self.limits.tar_size));
            }
        }
    }

    /// Gives the next bytes of the last entry's content to `take`; false when there are none left.
    /// The caller names the whole content with `content` once it is stored.
    ///
    /// # Errors
    ///
    /// `Truncated` if the bytes end before the content does; those of the source and of `take`.
    pub fn read(&mut self, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<bool> {
        if self.left == 0 {
            return Ok(false);
        }
        let bytes = self.source.fill()?;
        if bytes.is_empty() {
            return Err(Error::Truncated { at: self.position(), why: "it ends within a file".into() });
        }
        let n = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
        take(&bytes[..n])?;
        self.source.consume(n);
        self.left -= n as u64;
        Ok(true)
    }

    /// Says which content the last entry's bytes became.
    pub fn content(&mut self, content: Content, len: u64) {
        self.recipe.content(content, len);
    }

    /// The recipe of all that was read.
    pub fn into_recipe(self) -> RecipeBuilder {
        self.recipe
    }
}

fn over(what: &str, limit: u64) -> Error {
    Error::OverLimit { what: what.into(), limit: limit.to_string() }
}

fn until_zero(mut text: Vec<u8>) -> Vec<u8> {
    if let Some(end) = text.iter().position(|b| *b == 0) {
        text.truncate(end);
    }
    text
}

/// Whether these bytes, at least a block, can begin a tar.
pub fn begins_a_tar(bytes: &[u8]) -> bool {
    bytes
        .first_chunk::<BLOCK>()
        .is_some_and(|block| block.iter().all(|b| *b == 0) || Header(block).checksum_holds())
}
