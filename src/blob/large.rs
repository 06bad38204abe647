//! Journey 1, cp in, of a large file: nothing is written while it equals a blob of the same size.

use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::Arc;

use crate::base::digest::{BlobId, Content, GROUP, GroupHasher, Outline};
use crate::base::sys;
use crate::blob::buffer::ReadBuf;
use crate::blob::container::Place;
use crate::blob::table::Record;
use crate::blob::writer::{WRITEBACK, Writer, in_room, lead_of, write_with_holes};
use crate::error::{Error, Result};

/// Content over 1 MiB that arrives in pieces.
///
/// ```text
/// Begun --first group, a blob of this size begins alike--> Matching --a group differs--> Writing
///   `----------no such blob------------------------------------------------------------^
/// ```
/// Nothing is written while it matches, because most of an update is content that the store has.
pub struct Large<'w> {
    writer: &'w mut Writer,
    size: u64,
    taken: u64,
    /// The bytes so far of a group that does not come in one piece.
    group: Vec<u8>,
    hasher: GroupHasher,
    state: State,
}

enum State {
    Begun,
    Matching { id: BlobId, outline: Arc<Outline>, groups: usize },
    Writing { file: File, path: PathBuf, staged: u32, flushed: u64 },
}

impl Writer {
    /// Begins content of `size` bytes, at least `OBJECT_MIN`.
    pub fn begin_large(&mut self, size: u64) -> Large<'_> {
        Large::begin(self, size)
    }
}

impl<'w> Large<'w> {
    fn begin(writer: &'w mut Writer, size: u64) -> Large<'w> {
        Large {
            writer,
            size,
            taken: 0,
            group: Vec::new(),
            hasher: GroupHasher::default(),
            state: State::Begun,
        }
    }

    /// Takes the next bytes, at most `size` in all.
    ///
    /// # Errors
    ///
    /// `Io`; `Corrupt` if the blob that it equalled so far is damaged.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            if self.group.is_empty() && bytes.len() >= GROUP {
                let (group, rest) = bytes.split_at(GROUP);
                self.push(group)?;
                bytes = rest;
                continue;
            }
            let take = bytes.len().min(GROUP - self.group.len());
            self.group.extend_from_slice(&bytes[..take]);
            bytes = &bytes[take..];
            if self.group.len() == GROUP {
                let group = std::mem::take(&mut self.group);
                self.push(&group)?;
                self.group = group;
                self.group.clear();
            }
        }
        Ok(())
    }

    fn push(&mut self, group: &[u8]) -> Result<()> {
        let cv = self.hasher.push(group);
        if let State::Begun = self.state {
            self.state = self.compare(lead_of(&cv))?;
        }
        if let State::Matching { id, outline, groups } = &mut self.state {
            if outline.0.get(*groups) == Some(&cv) {
                *groups += 1;
            } else {
                let (id, groups) = (*id, *groups);
                self.state = self.begin_object()?;
                self.copy_matched(id, groups)?;
            }
        }
        if let State::Writing { file, path, flushed, .. } = &mut self.state {
            write_with_holes(file, path, group, self.taken, self.writer.store.room.get())?;
            let end = self.taken + group.len() as u64;
            if end - *flushed >= WRITEBACK {
                sys::start_writeback(file, *flushed, end - *flushed);
                *flushed = end;
            }
        }
        self.taken += group.len() as u64;
        Ok(())
    }

    fn compare(&mut self, lead: u32) -> Result<State> {
        let store = self.writer.store.clone();
        let candidate = {
            let table = store.table.read();
            let found = table.by_lead(self.size, lead).filter(|(id, _)| !store.is_damaged(*id));
            if let Some((id, _)) = found {
                self.writer.pins.add([id]);
            }
            found
        };
        if let Some((id, record)) = candidate {
            match store.outline(id, &record) {
                Ok(outline) => return Ok(State::Matching { id, outline, groups: 0 }),
                // The matching blob is damaged, so the content is stored again.
                Err(e) => log::error!("{e}"),
            }
        }
        self.begin_object()
    }

    fn begin_object(&mut self) -> Result<State> {
        let staged = self.writer.objects;
        self.writer.objects += 1;
        let path = self.writer.object_path(staged);
        let create =
            || File::options().write(true).create_new(true).open(&path).map_err(Error::io("create", &path));
        let file = in_room(self.writer.store.room.get(), create)?;
        Ok(State::Writing { file, path, staged, flushed: 0 })
    }

    /// Copies the first groups from the blob that they equal.
    fn copy_matched(&mut self, id: BlobId, groups: usize) -> Result<()> {
        let State::Writing { file, path, .. } = &self.state else { return Ok(()) };
        let mut buf = ReadBuf::default();
        for group in 0..groups as u64 {
            let at = group * GROUP as u64;
            let bytes = self.writer.store.read(id, at, GROUP, &mut buf)?;
            write_with_holes(file, path, bytes, at, None)?;
        }
        Ok(())
    }

    /// Ends the content.
    ///
    /// # Errors
    ///
    /// `Io`; `Invalid` if there was no content; `Corrupt` if the blob that it equalled so far is damaged.
    pub fn finish(mut self) -> Result<Content> {
        if !self.group.is_empty() {
            let group = std::mem::take(&mut self.group);
            self.push(&group)?;
        }
        let (digest, outline) = self.hasher.finish();
        match self.state {
            State::Begun => {
                Err(Error::Invalid { what: "a large blob".into(), why: "it has no content".into() })
            }
            State::Matching { id, .. } => Ok(Content::Known(id)),
            State::Writing { file, path, staged, .. } => {
                if let Some(known) = self.writer.known(&digest) {
                    fs::remove_file(&path).map_err(Error::io("remove", &path))?;
                    return Ok(known);
                }
                file.set_len(self.size).map_err(Error::io("write", &path))?;
                let offset = self.writer.segment()?.append_outline(&outline)?;
                let lead = lead_of(&outline.0[0]);
                let record = Record {
                    digest,
                    size: self.size,
                    place: Place::Object,
                    offset,
                    container: 0,
                    outline_in: 0,
                    lead,
                };
                Ok(self.writer.add_fresh(record, Some(staged)))
            }
        }
    }
}
