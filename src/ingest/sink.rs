//! Where unpacked bytes go.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::formats::tar::RATIO_FLOOR;
use crate::ingest::pipe::Pipe;

/// How many bytes are unpacked at a time.
pub(super) const OUT: usize = 256 * 1024;

/// Where unpacked bytes go. It compares their number with the compressed bytes.
pub(super) struct Sink<'p> {
    pub(super) output: &'p Pipe,
    pub(super) made: u64,
    pub(super) ratio: u64,
}

impl Sink<'_> {
    /// Passes bytes on. `taken` is how many compressed bytes were read so far. False if nobody reads any
    /// more.
    pub(super) fn push(&mut self, bytes: Vec<u8>, taken: u64) -> Result<bool> {
        self.made += bytes.len() as u64;
        if self.made > RATIO_FLOOR && self.made / taken.max(1) > self.ratio {
            let what = "what the compressed stream unpacks to, for each of its bytes,".into();
            return Err(Error::OverLimit { what, limit: format!("{} (mount -o max_ratio=)", self.ratio) });
        }
        Ok(self.output.push(Arc::new(bytes)))
    }
}
