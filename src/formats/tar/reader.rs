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
use crate::formats::tar::header::Header;
use crate::formats::tar::pax::Extensions;
use crate::formats::tar::sparse::Map;
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
pub enum EntryKind {
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
    pub kind: EntryKind,
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

/// Names that were too long for the header, from entries of GNU's before it.
#[derive(Default)]
pub(super) struct LongNames {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
}

impl LongNames {
    pub(super) fn is_empty(&self) -> bool {
        self.path.is_none() && self.link.is_none()
    }
}

pub struct Reader<S> {
    source: S,
    recipe: RecipeBuilder,
    pub(super) limits: Limits,
    stage: Arc<AtomicU8>,
    pub(super) global: Extensions,
    entries: u64,
    /// Content of the last entry that was not read yet, and its padding.
    pub(super) left: u64,
    pub(super) padding: u64,
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

    pub(super) fn bad<T>(&self, entry: &[u8], why: &str) -> Result<T> {
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
        let mut long = LongNames::default();
        loop {
            self.skip_padding()?;
            let pending = !local.is_empty() || !long.is_empty();
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
                b'L' => long.path = Some(until_zero(self.small(size)?)),
                b'K' => long.link = Some(until_zero(self.small(size)?)),
                b'V' => self.skip(size)?,
                b'M' => {
                    return Err(Error::Unsupported {
                        what: "a volume of a multi-volume archive".into(),
                        instead: "make one archive: tar without --multi-volume",
                    });
                }
                _ => {
                    let entry = self.entry(at, &header, size, &local, long)?;
                    return Ok(Some(entry));
                }
            }
        }
    }

    /// The next block, kept in the recipe. `None` at the end of the bytes, unless something must follow.
    pub(super) fn block(&mut self, must: bool) -> Result<Option<[u8; BLOCK]>> {
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

    pub(super) fn skip_exactly(&mut self, mut len: u64) -> Result<()> {
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

pub(super) fn over(what: &str, limit: u64) -> Error {
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
