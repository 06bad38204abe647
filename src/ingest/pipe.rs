//! A bounded queue of blocks between two threads of an upload.
//!
//! A full pipe does not block the writer of the mount: it takes the block, and the write is answered
//! once there is room again. `settle` waits until the reader has taken everything and wants more.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use crate::error::{Error, Result};
use crate::formats::tar::Source;

/// Bytes that pass between threads without being copied.
pub type Block = Arc<Vec<u8>>;

/// Called when a full pipe has room again.
pub type OnRoom = Box<dyn FnOnce() + Send>;

pub struct Pipe {
    /// immutable: bytes from which on the writer should wait
    capacity: usize,
    state: Mutex<State>,
    /// Signalled on every change that a waiting thread may need to see.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    blocks: VecDeque<Block>,
    bytes: usize,
    /// No more blocks will come.
    ended: bool,
    /// The reader is gone.
    abandoned: bool,
    /// The reader has taken everything, and waits.
    waiting: bool,
    on_room: Vec<OnRoom>,
}

impl Pipe {
    pub fn new(capacity: usize) -> Arc<Pipe> {
        Arc::new(Pipe { capacity, state: Mutex::default(), changed: Condvar::new() })
    }

    /// Puts a block in, then waits while the pipe is too full. False if the reader is gone.
    pub fn push(&self, block: Block) -> bool {
        let mut state = self.state.lock();
        while state.bytes >= self.capacity && !state.abandoned {
            self.changed.wait(&mut state);
        }
        self.add(&mut state, block)
    }

    /// Puts a block in without waiting. `on_room` is called as soon as there is room, which may be at once.
    pub fn push_deferred(&self, block: Block, on_room: OnRoom) {
        let mut state = self.state.lock();
        let full = state.bytes >= self.capacity && !state.abandoned;
        self.add(&mut state, block);
        if full {
            state.on_room.push(on_room);
        } else {
            drop(state);
            on_room();
        }
    }

    fn add(&self, state: &mut State, block: Block) -> bool {
        if state.abandoned {
            return false;
        }
        state.bytes += block.len();
        state.blocks.push_back(block);
        state.waiting = false;
        self.changed.notify_all();
        true
    }

    /// Ends the pipe: no more blocks will come.
    pub fn end(&self) {
        self.state.lock().ended = true;
        self.changed.notify_all();
    }

    /// Waits until the reader has taken everything and waits for more, or is gone.
    pub fn settle(&self) {
        let mut state = self.state.lock();
        while !(state.abandoned || state.waiting && state.blocks.is_empty()) {
            self.changed.wait(&mut state);
        }
    }
}

/// The reading end. Once it is dropped, everything that is written is discarded.
pub struct PipeReader {
    pipe: Arc<Pipe>,
    block: Block,
    at: usize,
    /// Bytes taken so far.
    pub taken: u64,
}

impl PipeReader {
    pub fn new(pipe: &Arc<Pipe>) -> PipeReader {
        PipeReader { pipe: pipe.clone(), block: Block::default(), at: 0, taken: 0 }
    }

    /// The next whole block, for readers that take everything. `None` at the end.
    pub fn next_block(&mut self) -> Option<Block> {
        self.refill(true);
        if self.at == self.block.len() {
            return None;
        }
        self.at = self.block.len();
        Some(self.block.clone())
    }

    /// The bytes at hand, without waiting. `None` if there are none now, but more may come.
    pub fn fill_now(&mut self) -> Option<&[u8]> {
        if !self.refill(false) { None } else { Some(&self.block[self.at..]) }
    }

    /// At least `n` bytes from the current position on, or all bytes up to the end. `idle` is called before
    /// every wait, with the number of bytes at hand.
    pub fn peek(&mut self, n: usize, mut idle: impl FnMut(usize)) -> &[u8] {
        let mut joined: Option<Vec<u8>> = None;
        loop {
            let have = joined.as_ref().map_or(self.block.len() - self.at, Vec::len);
            if have >= n {
                break;
            }
            let held = joined.take().unwrap_or_else(|| self.block[self.at..].to_vec());
            (self.block, self.at) = (Block::default(), 0);
            if !self.refill(false) {
                idle(held.len());
                self.refill(true);
            }
            let fresh = &self.block[self.at..];
            if fresh.is_empty() {
                joined = Some(held);
                break;
            }
            joined = Some([&held[..], fresh].concat());
        }
        if let Some(joined) = joined {
            (self.block, self.at) = (Arc::new(joined), 0);
        }
        &self.block[self.at..]
    }

    /// Gets a block if none is at hand. False if there is none now, but more may come.
    fn refill(&mut self, wait: bool) -> bool {
        while self.at == self.block.len() {
            // The old block is freed before the wait, because it may have a megabyte.
            (self.block, self.at) = (Block::default(), 0);
            let mut state = self.pipe.state.lock();
            loop {
                if let Some(block) = state.blocks.pop_front() {
                    state.bytes -= block.len();
                    self.block = block;
                    break;
                }
                if state.ended {
                    return true;
                }
                if !wait {
                    return false;
                }
                state.waiting = true;
                self.pipe.changed.notify_all();
                self.pipe.changed.wait(&mut state);
            }
            if state.bytes < self.pipe.capacity {
                let ready = std::mem::take(&mut state.on_room);
                drop(state);
                self.pipe.changed.notify_all();
                ready.into_iter().for_each(|f| f());
            }
        }
        true
    }
}

impl Source for PipeReader {
    fn fill(&mut self) -> Result<&[u8]> {
        self.refill(true);
        Ok(&self.block[self.at..])
    }

    fn consume(&mut self, n: usize) {
        self.at += n;
        self.taken += n as u64;
    }
}

impl std::io::Read for PipeReader {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let bytes = self.fill().map_err(|e: Error| std::io::Error::other(e.to_string()))?;
        let n = bytes.len().min(out.len());
        out[..n].copy_from_slice(&bytes[..n]);
        self.consume(n);
        Ok(n)
    }
}

impl Drop for PipeReader {
    fn drop(&mut self) {
        let mut state = self.pipe.state.lock();
        state.abandoned = true;
        state.blocks.clear();
        let ready = std::mem::take(&mut state.on_room);
        drop(state);
        self.pipe.changed.notify_all();
        ready.into_iter().for_each(|f| f());
    }
}
