//! Moves loose content: out of segments that are mostly gaps, and out of packs if an image must be
//! fast.

use std::fs::{self, File};
use std::path::PathBuf;

use crate::base::digest::{BlobId, CV_LEN, GROUP};
use crate::blob::buffer::ReadBuf;
use crate::blob::container::Place;
use crate::blob::table::Record;
use crate::blob::writer::{Segment, write_with_holes};
use crate::blob::{BlobStore, OBJECT_MIN};
use crate::error::{Error, Result};
use crate::fault;

/// How many bytes of content are moved at once.
const PORTION: u64 = 256 << 20;

impl BlobStore {
    /// Copies what is in use in a segment to a new one, points the records there, and drops the old one.
    pub(super) fn compact(&self, old: u32, next_container: &mut u32) -> Result<()> {
        let here: Vec<(BlobId, Record)> = {
            let table = self.table.read();
            let lives_here = |r: &Record| match r.place {
                Place::Segment => r.container == old,
                Place::Object => r.outline_in == old,
                Place::Pack => false,
            };
            table.records().filter(|(_, r)| lives_here(r)).collect()
        };
        self.move_loose(here, next_container)?;
        fault::reached("compact.moved");
        self.containers.lock().remove(&old);
        self.backend.delete(&Place::Segment.key(old))
    }

    /// Moves blobs out of packs. `go_on` gets the bytes moved and returns whether to go on. The caller pins
    /// the blobs.
    ///
    /// # Errors
    ///
    /// `Corrupt` for what cannot be read, `Io`.
    pub fn loosen(&self, ids: &[BlobId], go_on: &dyn Fn(u64) -> bool) -> Result<()> {
        let mut portion = Vec::new();
        let mut bytes = 0;
        for (n, &id) in ids.iter().enumerate() {
            if let Ok(record) = self.record(id)
                && record.place == Place::Pack
            {
                bytes += record.size;
                portion.push((id, record));
            }
            if bytes >= PORTION || (n + 1 == ids.len() && bytes > 0) {
                self.move_loose(std::mem::take(&mut portion), &mut self.seal.lock())?;
                if !go_on(std::mem::take(&mut bytes)) {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Writes content to a new segment, or large blobs from packs to objects, and points the records there.
    /// For existing objects only the outline moves.
    fn move_loose(&self, blobs: Vec<(BlobId, Record)>, next_container: &mut u32) -> Result<()> {
        let number = *next_container;
        *next_container += 1;
        let staged = self.staging.join(format!("compact-{number:08x}"));
        let _ = fs::remove_file(&staged);
        let mut segment = Segment::create(staged, None)?;
        let mut moved: Vec<(BlobId, Record)> = Vec::new();
        let mut objects: Vec<(PathBuf, u32)> = Vec::new();
        let mut buf = ReadBuf::default();
        for (id, mut record) in blobs {
            let outline = if record.size > GROUP as u64 { Some(self.outline(id, &record)?) } else { None };
            match &outline {
                Some(outline) if record.size >= OBJECT_MIN => {
                    if record.place == Place::Pack {
                        record.container = *next_container;
                        *next_container += 1;
                        objects.push((self.write_object(id, &record)?, record.container));
                        record.place = Place::Object;
                    }
                    record.outline_in = number;
                    record.offset = segment.append_outline(outline)?;
                }
                _ => {
                    let len = usize::try_from(record.size).expect("smaller than OBJECT_MIN");
                    let content = self.read(id, 0, len, &mut buf)?;
                    if let Some(outline) = &outline {
                        segment.pad_to_page(outline.0.len() * CV_LEN)?;
                        segment.append_outline(outline)?;
                    }
                    record.offset = segment.append(content)?;
                    (record.place, record.container, record.outline_in) = (Place::Segment, number, 0);
                }
            }
            moved.push((id, record));
        }
        segment.finish(&moved)?;
        self.backend.put(&segment.path, &Place::Segment.key(number))?;
        for (staged, number) in objects {
            self.backend.put(&staged, &Place::Object.key(number))?;
        }
        self.backend.sync(Place::Segment.shelf())?;
        fault::reached("compact.named");
        let changes: Vec<_> = moved.into_iter().map(|(id, record)| (id, Some(record))).collect();
        self.move_records(&changes)
    }

    /// Writes a blob durably to a file of its own in staging.
    fn write_object(&self, id: BlobId, record: &Record) -> Result<PathBuf> {
        let path = self.staging.join(format!("compact-{:08x}.object", record.container));
        let file = File::create(&path).map_err(Error::io("create", &path))?;
        self.each_piece(id, record.size, &mut ReadBuf::default(), |at, bytes| {
            write_with_holes(&file, &path, bytes, at, None)
        })?;
        file.set_len(record.size).and_then(|()| file.sync_data()).map_err(Error::io("write", &path))?;
        Ok(path)
    }
}
