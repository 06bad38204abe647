//! The buffer that reads fill.

/// A buffer that reads reuse. Holds the bytes last read.
#[derive(Default)]
pub struct ReadBuf {
    pub(super) data: Vec<u8>,
    pub(super) start: usize,
    pub(super) end: usize,
}

impl ReadBuf {
    pub fn bytes(&self) -> &[u8] {
        &self.data[self.start..self.end]
    }
}
