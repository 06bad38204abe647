//! metadata.json being written in place: collected, and judged whole at fsync and close.

use crate::error::{Error, Result};
use crate::manifest::METADATA_MAX;

/// A writer's copy of the document.
pub struct Edit {
    pub image: u32,
    text: Vec<u8>,
    /// Whether there is something that was not judged yet.
    dirty: bool,
}

impl Edit {
    pub fn new(image: u32, text: String) -> Edit {
        Edit { image, text: text.into_bytes(), dirty: false }
    }

    pub fn read(&self, offset: u64, len: usize) -> &[u8] {
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(self.text.len());
        &self.text[from..self.text.len().min(from.saturating_add(len))]
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = from.saturating_add(data.len());
        if end > METADATA_MAX {
            return Err(Error::BadMetadata { why: format!("it is over {METADATA_MAX} bytes") });
        }
        if end > self.text.len() {
            self.text.resize(end, 0);
        }
        self.text[from..end].copy_from_slice(data);
        self.dirty = true;
        Ok(())
    }

    pub fn truncate(&mut self, size: u64) -> Result<()> {
        let size = usize::try_from(size).ok().filter(|s| *s <= METADATA_MAX);
        let size = size.ok_or_else(|| Error::BadMetadata { why: format!("it is over {METADATA_MAX} bytes") })?;
        self.dirty |= size != self.text.len() && size > 0;
        self.text.resize(size, 0);
        Ok(())
    }

    pub fn len(&self) -> u64 {
        self.text.len() as u64
    }

    /// The text to judge: none if nothing was written since the last time, or nothing at all (`> file` closes a
    /// duplicate descriptor before its first byte).
    pub fn pending(&self) -> Option<&[u8]> {
        (self.dirty && !self.text.is_empty()).then_some(&self.text)
    }

    /// The text was accepted. Refused, it stays pending, and every further close says so again.
    pub fn accepted(&mut self) {
        self.dirty = false;
    }
}
