//! A version in the making: its tree, its recipes, its content.

use crate::base::digest::Content;
use crate::blob::{OBJECT_MIN, Writer};
use crate::catalog::VersionFacts;
use crate::error::{Error, Result};
use crate::formats::tar::{Entry, EntryKind, Reader, Source};
use crate::ingest::derive;
use crate::tree::recipe::RecipeBuilder;
use crate::tree::{Builder, Make, Meta, Refused};

/// A version in the making.
pub struct Draft {
    pub writer: Writer,
    pub builder: Builder,
    /// The recipe of rootfs.tar, if there is a rootfs.
    pub tar: Option<RecipeBuilder>,
    /// The recipe of the upload, if that is not rootfs.tar, and the recipes that it uses.
    pub more: Vec<RecipeBuilder>,
    /// What unpacking has found out. Sizes and digests of the upload are filled in later.
    pub facts: VersionFacts,
}

impl Draft {
    pub fn new(writer: Writer, builder: Builder) -> Draft {
        Draft { writer, builder, tar: None, more: Vec::new(), facts: VersionFacts::default() }
    }

    /// Adds a file beside rootfs that the next recipe makes.
    pub fn add_made(&mut self, name: &str, recipe: RecipeBuilder) {
        self.more.push(recipe);
        let number = self.more.len() as u32;
        let size = self.more[number as usize - 1].tar_size();
        let make = Make::File { content: Some(Content::Recipe(number)), size, sparse: None };
        self.builder.add_beside(name.as_bytes(), &beside_meta(), make);
    }

    /// Stores a small file, and adds it beside rootfs.
    ///
    /// # Errors
    ///
    /// `Io`.
    pub fn add_small(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let content = if bytes.is_empty() { None } else { Some(self.writer.put(bytes)?) };
        self.builder.add_beside(
            name.as_bytes(),
            &beside_meta(),
            Make::File { content, size: bytes.len() as u64, sparse: None },
        );
        Ok(())
    }

    /// Makes the recipe of rootfs.tar for a rootfs that did not come as one.
    ///
    /// # Errors
    ///
    /// `Corrupt`, `Io`.
    pub fn derive_tar(&mut self) -> Result<()> {
        let (recipe, sha256) = derive::rootfs_tar(&self.builder, &mut self.writer)?;
        self.facts.size = recipe.tar_size();
        self.facts.digest = format!("sha256:{sha256}");
        self.tar = Some(recipe);
        Ok(())
    }
}

/// Owner and mode of the files that imgfs puts beside rootfs.
fn beside_meta() -> Meta {
    Meta { mode: 0o444, mtime: (crate::base::clock::now().div_euclid(1_000_000_000), 0), ..Meta::default() }
}

/// Reads an archive entry by entry. The content of an entry is stored, then `put` places it.
///
/// # Errors
///
/// Those of `Reader::next_entry` and of `put`; `Truncated` within an entry; `Io`.
pub fn entries<S: Source>(
    reader: &mut Reader<S>,
    writer: &mut Writer,
    mut put: impl FnMut(Entry, Option<Content>) -> Result<()>,
) -> Result<()> {
    let mut buffer = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        let content =
            if entry.packed == 0 { None } else { Some(store_content(reader, writer, &entry, &mut buffer)?) };
        put(entry, content)?;
    }
    Ok(())
}

/// Puts an entry into the tree.
///
/// # Errors
///
/// `LeavesRoot` and `BadArchive` for one that has no place there.
pub fn place(builder: &mut Builder, entry: Entry, content: Option<Content>) -> Result<()> {
    builder.check_heaps()?;
    let meta =
        Meta { mode: entry.mode, uid: entry.uid, gid: entry.gid, mtime: entry.mtime, xattrs: entry.xattrs };
    let (major, minor) = entry.device;
    let pieces = entry.sparse.as_ref().map(|map| map.pieces.as_slice());
    let size = entry.sparse.as_ref().map_or(entry.packed, |map| map.size);
    let placed = match entry.kind {
        EntryKind::File => builder.add(&entry.path, &meta, Make::File { content, size, sparse: pieces }),
        EntryKind::Directory => builder.add(&entry.path, &meta, Make::Directory),
        EntryKind::Symlink => builder.add(&entry.path, &meta, Make::Symlink(&entry.link)),
        EntryKind::HardLink => builder.link(&entry.path, &entry.link, &meta),
        EntryKind::CharDevice => builder.add(&entry.path, &meta, Make::CharDevice { major, minor }),
        EntryKind::BlockDevice => builder.add(&entry.path, &meta, Make::BlockDevice { major, minor }),
        EntryKind::Fifo => builder.add(&entry.path, &meta, Make::Fifo),
    };
    placed.map_err(|refused| refusal(entry.at, &entry.path, refused))
}

fn store_content<S: Source>(
    reader: &mut Reader<S>,
    writer: &mut Writer,
    entry: &Entry,
    buffer: &mut Vec<u8>,
) -> Result<Content> {
    let content = if entry.packed >= OBJECT_MIN {
        let mut large = writer.begin_large(entry.packed);
        while reader.read(&mut |bytes| large.write(bytes))? {}
        large.finish()?
    } else {
        let size = entry.packed as usize;
        buffer.clear();
        let mut whole = None;
        while reader.read(&mut |bytes| {
            // Most files arrive in one piece, so they are hashed and stored without another copy.
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

/// The error for an entry that has no place.
pub fn refusal(at: u64, path: &[u8], refused: Refused) -> Error {
    let entry = String::from_utf8_lossy(path).into_owned();
    if refused.leaves {
        Error::LeavesRoot { at, entry, why: refused.why }
    } else {
        Error::BadArchive { at, entry, why: refused.why }
    }
}
