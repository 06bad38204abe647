//! metadata.json, or the text of a lease, while somebody writes it in place. imgfs collects it, and
//! judges all of it at fsync and close.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::fs::removal::moved::Recent;
use crate::images::icons::ICON_MAX;

/// How long a process that has removed metadata.json may create it again.
const REPLACING: Duration = Duration::from_secs(10);

/// A writer's copy of the document.
pub struct Edit {
    text: Vec<u8>,
    /// The longest text allowed, in bytes.
    most: usize,
    /// Whether some of the text has not been judged yet.
    dirty: bool,
}

impl Edit {
    pub fn new(text: String, most: usize) -> Edit {
        Edit { text: text.into_bytes(), most, dirty: false }
    }

    pub fn read(&self, offset: u64, len: usize) -> &[u8] {
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(self.text.len());
        &self.text[from..self.text.len().min(from.saturating_add(len))]
    }

    /// Writes bytes at `offset`. Zeros fill a gap before them.
    ///
    /// # Errors
    ///
    /// `Invalid` if the text gets too long, `OverLimit` if it is an icon; then all of it is dropped.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = from.saturating_add(data.len());
        if end > self.most {
            // What came before is only a part of the document, and must not count at the close.
            self.text.clear();
            return Err(self.too_long());
        }
        if end > self.text.len() {
            self.text.resize(end, 0);
        }
        self.text[from..end].copy_from_slice(data);
        self.dirty = true;
        Ok(())
    }

    /// Truncates the text to `size` bytes, or extends it with zeros. Emptying it is not a change to judge.
    ///
    /// # Errors
    ///
    /// `Invalid` if that is too long, `OverLimit` for an icon.
    pub fn truncate(&mut self, size: u64) -> Result<()> {
        let size = usize::try_from(size).ok().filter(|s| *s <= self.most).ok_or_else(|| self.too_long())?;
        self.dirty |= size != self.text.len() && size > 0;
        self.text.resize(size, 0);
        Ok(())
    }

    fn too_long(&self) -> Error {
        match self.most {
            ICON_MAX => {
                Error::OverLimit { what: "the size of an icon".into(), limit: format!("{ICON_MAX} bytes") }
            }
            most => Error::Invalid { what: "the text".into(), why: format!("it is over {most} bytes") },
        }
    }

    pub fn len(&self) -> u64 {
        self.text.len() as u64
    }

    /// The text to judge. There is none if nothing was written since the last judgement. There is also none
    /// for an empty text: `> file` closes a duplicate descriptor before the first byte.
    pub fn pending(&self) -> Option<&[u8]> {
        (self.dirty && !self.text.is_empty()).then_some(&self.text)
    }

    /// Notes that the text was accepted. A refused text stays pending, so every later close refuses it
    /// again.
    pub fn accepted(&mut self) {
        self.dirty = false;
    }
}

/// `mv /tmp/new.json MNT/web/metadata.json` removes the old file, then creates the new one. Between the
/// two the name is gone for that process. For all others the document stays as it is.
pub(super) struct Replacing(Recent<(u32, u32), ()>);

impl Default for Replacing {
    fn default() -> Replacing {
        Replacing(Recent::new(REPLACING, 4096))
    }
}

impl Replacing {
    /// Notes that the process has removed metadata.json of an image.
    pub(super) fn begin(&self, pid: u32, image: u32) {
        self.0.note((pid, image), ());
    }

    /// Whether the document is removed for this process.
    pub(super) fn is_removed(&self, pid: u32, image: u32) -> bool {
        self.0.find(|key| *key == (pid, image)).is_some()
    }

    pub(super) fn end(&self, pid: u32, image: u32) {
        self.0.forget(|key| *key == (pid, image));
    }
}
