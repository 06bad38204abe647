//! Random reads of what an upload has stored so far.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use crate::blob::{ContentReader, PieceReader};
use crate::error::{Error, Result};

/// Stored content that can be read again at random.
pub trait Stored {
    fn size(&self) -> u64;

    /// Fills `out` from `at` on. Bytes past the end are zeros.
    ///
    /// # Errors
    ///
    /// Those of the store.
    fn read_at(&mut self, at: u64, out: &mut [u8]) -> Result<()>;
}

impl Stored for ContentReader {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&mut self, at: u64, out: &mut [u8]) -> Result<()> {
        let n = ContentReader::read_at(self, at, out)?;
        out[n..].fill(0);
        Ok(())
    }
}

impl Stored for PieceReader {
    fn size(&self) -> u64 {
        PieceReader::size(self)
    }

    fn read_at(&mut self, at: u64, out: &mut [u8]) -> Result<()> {
        let failed = |e| Error::io("read", Path::new("the upload"))(e);
        self.seek(SeekFrom::Start(at)).map_err(failed)?;
        let mut have = 0;
        while have < out.len() {
            match self.read(&mut out[have..]).map_err(failed)? {
                0 => break,
                n => have += n,
            }
        }
        out[have..].fill(0);
        Ok(())
    }
}
