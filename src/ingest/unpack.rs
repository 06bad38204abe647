//! The middle of an ingest: tar entries become nodes of a tree, their content blobs.

use crate::blob::{OBJECT_MIN, Writer};
use crate::error::{Error, Result};
use crate::ingest::pipe::PipeReader;
use crate::tar::{Entry, Kind, Reader};
use crate::tree::{Builder, Make, Meta, Refused};

/// Reads the archive to its end.
///
/// Errors: those of the reader and the writer; `LeavesRoot` and `BadArchive` for entries that have no place.
pub fn unpack(reader: &mut Reader<PipeReader>, writer: &mut Writer) -> Result<Builder> {
    let mut builder = Builder::new();
    let mut buffer = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        let content = if entry.packed == 0 { None } else { Some(store_content(reader, writer, &entry, &mut buffer)?) };
        let meta = Meta { mode: entry.mode, uid: entry.uid, gid: entry.gid, mtime: entry.mtime, xattrs: entry.xattrs };
        let (major, minor) = entry.device;
        let pieces = entry.sparse.as_ref().map(|map| map.pieces.as_slice());
        let size = entry.sparse.as_ref().map_or(entry.packed, |map| map.size);
        let placed = match entry.kind {
            Kind::File => builder.add(&entry.path, &meta, Make::File { content, size, sparse: pieces }),
            Kind::Directory => builder.add(&entry.path, &meta, Make::Directory),
            Kind::Symlink => builder.add(&entry.path, &meta, Make::Symlink(&entry.link)),
            Kind::HardLink => builder.link(&entry.path, &entry.link, &meta),
            Kind::CharDevice => builder.add(&entry.path, &meta, Make::CharDevice { major, minor }),
            Kind::BlockDevice => builder.add(&entry.path, &meta, Make::BlockDevice { major, minor }),
            Kind::Fifo => builder.add(&entry.path, &meta, Make::Fifo),
        };
        placed.map_err(|refused| refusal(entry.at, &entry.path, refused))?;
    }
    Ok(builder)
}

fn store_content(
    reader: &mut Reader<PipeReader>,
    writer: &mut Writer,
    entry: &Entry,
    buffer: &mut Vec<u8>,
) -> Result<crate::digest::Content> {
    let content = if entry.packed >= OBJECT_MIN {
        let mut large = writer.begin_large(entry.packed);
        while reader.read(&mut |bytes| large.write(bytes))? {}
        large.finish()?
    } else {
        let size = entry.packed as usize;
        buffer.clear();
        let mut whole = None;
        while reader.read(&mut |bytes| {
            // Most files arrive in one piece: hash and store them from where they lie.
            if bytes.len() == size {
                whole = Some(writer.put(bytes)?);
            } else {
                buffer.extend_from_slice(bytes);
            }
            Ok(())
        })? {}
        match whole {
            Some(content) => content,
            None => writer.put(buffer)?,
        }
    };
    reader.content(content, entry.packed);
    Ok(content)
}

fn refusal(at: u64, path: &[u8], refused: Refused) -> Error {
    let entry = String::from_utf8_lossy(path).into_owned();
    if refused.leaves {
        Error::LeavesRoot { at, entry, why: refused.why }
    } else {
        Error::BadArchive { at, entry, why: refused.why }
    }
}
