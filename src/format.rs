//! The store on disk: layout, constants, invariants, history.
//!
//! ```text
//! STORE/
//! |-- format        "imgfs 7\n"; a store newer than the program is refused with both numbers
//! |-- lock          held with flock by the one daemon; holds its process id and mount point
//! |-- control       the daemon's socket, for gc, fsck and status beside a mount
//! |-- catalog.db    SQLite: images, versions, aliases, labels, leases, settings. One row each; see catalog/schema.sql
//! |-- catalog.rows  the same rows as text, a line a commit: what a lost catalog.db is made again of; see catalog/copy.rs
//! |               catalog.damaged-N and catalog.format-N are what was put aside and what an older format had
//! |-- blobs         the blob table: where each content lies; made again of the lists in loose/ and packs/
//! |-- loose/        content as it came: HEX.seg segments of small blobs, HEX.obj one large blob each
//! |-- packs/        content at rest: HEX.pack, compressed together and against older versions
//! |-- trees/        ID.tree, one immutable mapped file a version: nodes, names, tar recipe; ID.base, ID.kept, ID.damaged
//! |-- staging/      uploads under way; emptied at start
//! |-- staged/       what users have staged, which stays: ID/about.json and ID/files/ or ID/content; see staging.rs
//! |-- rebuilding    there while a catalog is made again of trees
//! |-- reserve       space set aside: given up for a moment when something is deleted on a full disk
//! |-- damaged       blobs that are known to be damaged, an id a line; only a hint
//! |-- scrub         how far the background's look at everything came; only a hint
//! |-- log           one line a change; log.1 to log.3 are older
//! `-- daemon.log    what the daemon had to say; daemon.log.1 is older
//! ```
//!
//! Integers are little-endian. Digests are BLAKE3 unless a name says sha256.
//!
//! # Blob table
//!
//! Records of 64 bytes; record 0 is the head (`TABLE_MAGIC`), record N the blob with id N. A record of zeros
//! is free; ids are not given out again. `digest[32] size u48 place u8 algorithm u8 offset u64 container u32
//! outline_in u32 lead u32 check u32`; the check is the first 4 bytes of BLAKE3(id, the 60 bytes before).
//!
//! # Segment
//!
//! `SEGMENT_MAGIC`, then blobs. A blob over 64 KiB has its outline (32 bytes for each 64 KiB group, see
//! digest.rs) right before it, and both begin at multiples of 4096 so that runs of zeros can be holes.
//! Outlines of objects of the same upload lie among the blobs. Behind them the list of what was stored: an
//! entry of 68 bytes (id u32, record) a blob, objects of the same upload too; then the footer of 64 bytes:
//! `SEGMENT_END`, count u64, offset of the list u64, zeros, BLAKE3 of the list. The table can be rebuilt from
//! it.
//!
//! # Pack
//!
//! `PACK_MAGIC`, then frames: content of many blobs, back to back, compressed together with zstd. What all
//! frames unpack to, in their order, is the pack's *stream*; a record's offset is one in it. A blob of up to
//! 1 MiB lies in one frame, a larger one in several that follow each other. A frame may need *bases*, bytes
//! of other blobs, that it was compressed against. Behind the frames:
//!
//! - the frames, 56 bytes each: offset in the stream u64, bytes of the stream u64, offset in the file u64,
//!   bytes in the file u32 (0: zeros, and nothing is stored), first base u32, number of bases u32, zeros u32,
//!   the first 16 bytes of BLAKE3 of the bytes in the file;
//! - their bases, 16 bytes each: blob u32, bytes u32, offset in the blob u64;
//! - outlines, 32 bytes a group, of all blobs over 64 KiB;
//! - the list, for a rebuild of the table: id u32, size u64 of each blob, in the order of the stream, in
//!   zstd;
//! - the footer of 128 bytes: `PACK_END`, then as u64: number of frames, of bases, of values of outlines,
//!   offset of the frames' table, bytes of the list; zeros; BLAKE3 of the list; BLAKE3 of the tables of
//!   frames and bases.
//!
//! # Tree
//!
//! See tree/mod.rs; at rest, tree/packed.rs. Some are still packed as `PACKED_TREE_MAGIC_1`, then the tree in
//! zstd.
//!
//! # Invariants
//!
//! 1. Content is durable before the table records that name it, those before the tree, the tree before the
//!    version's row, the row before the name is seen. Deletion runs backwards.
//! 2. A table record without a tree that names it may exist (gc frees it); a tree that names a free record
//!    may not.
//! 3. The content at a record's place has the record's size and digest.
//! 4. Blob ids, version numbers within an image, and the serials of images and versions are never given out
//!    twice.
//! 5. A tree file has the digest in its version's row; its blob references are within the table.
//! 6. Every file in `loose/` and `packs/` is named by a record, every file in `trees/` by a row, or by a tree
//!    whose base it is; others are swept.
//! 7. Replaying a version's recipe gives bytes with the sha256 in its row.
//! 8. `default` of the store names an image that exists, `default` of an image a version that does; labels
//!    and leases are of versions that are there, or in the trash.
//! 9. The check of every row in the catalog matches its columns; catalog.rows says the same.
//! 10. The bases of a frame are blobs that exist, and lie in no frame that has bases itself.
//! 11. The base of a packed tree is there, as `ID.tree` or, once its version is purged, as `ID.base`, and has
//!     none.
//! 12. The format file says which format the store has.
//!
//! # History
//!
//! 1: the first.
//! 2: a version may have files beside its rootfs, and several recipes. Trees of format 1 are read as they
//!    are, so a store of format 1 is taken by writing its new number.
//! 3: content and trees at rest may be packed.
//! 4: trees at rest are packed against others; the catalog has a copy.
//! 5: images have rules, versions labels and leases, aliases descriptions. A program that does not know them
//!    would delete what is leased.
//! 6: the catalog has settings that users choose: defaults of types, configuration; images have ACLs.
//! 7: aliases may follow a link or a label; the trash has links; files are staged as directories are.

use std::fs;
use std::path::Path;

use crate::error::{Error, Result};
use crate::fault;

/// The format this program writes, and the newest it reads.
pub const FORMAT: u32 = 7;

/// Bytes of the reserve: a transaction of the catalog and the rewritten records of a deletion.
pub const RESERVE: u64 = 256 * 1024;
pub const RECORD_LEN: usize = 64;
pub const ROWS_MAGIC: &str = "imgfs rows 1\n";
pub const TABLE_MAGIC: &[u8] = b"imgfs blob table 1\n";
pub const SEGMENT_MAGIC: &[u8; 16] = b"imgfs segment 1\n";
pub const SEGMENT_END: &[u8; 16] = b"imgfs seg list\n\0";
pub const SEGMENT_FOOTER_LEN: usize = 64;
pub const SEGMENT_ENTRY_LEN: usize = 68;
pub const PACK_MAGIC: &[u8; 16] = b"imgfs pack 1\n\0\0\0";
pub const PACK_END: &[u8; 16] = b"imgfs pack end\n\0";
pub const PACK_FOOTER_LEN: usize = 128;
pub const PACKED_TREE_MAGIC: &[u8; 16] = b"imgfs ztree 2\n\0\0";
pub const PACKED_TREE_MAGIC_1: &[u8; 16] = b"imgfs ztree 1\n\0\0";
pub const TREE_MAGIC: &[u8; 16] = b"imgfs tree 2\n\0\0\0";
pub const TREE_MAGIC_1: &[u8; 16] = b"imgfs tree 1\n\0\0\0";

/// Makes the directory of a store, if it does not exist. Only its owner has access, because images may
/// contain files that only root may read.
///
/// # Errors
///
/// `Io`.
pub fn make_dir(dir: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(Error::io("create", dir))
}

/// Makes a directory in an existing one, unless it exists already.
///
/// # Errors
///
/// `Io`.
pub fn make_subdir(dir: &Path) -> Result<()> {
    match fs::create_dir(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(Error::Io { doing: "create", path: dir.to_owned(), source: e })
        }
        _ => Ok(()),
    }
}

/// What a directory can be that is opened as a store.
enum Found {
    /// A store with this format.
    Store(u32),
    /// Nothing, or what a power cut left of the first mount.
    Empty,
}

/// # Errors
///
/// `NotAStore` for what holds other things; `FormatLost` for a store that does not say which; `Io`.
fn look(dir: &Path) -> Result<Found> {
    let path = dir.join("format");
    if !dir.exists() {
        return Ok(Found::Empty);
    }
    // Reading a pipe would block.
    if fs::metadata(&path).is_ok_and(|meta| meta.is_file()) {
        let bytes = fs::read(&path).map_err(Error::io("read", &path))?;
        let number =
            String::from_utf8_lossy(&bytes).trim().strip_prefix("imgfs ").and_then(|n| n.parse().ok());
        if let Some(number) = number.filter(|n| *n > 0) {
            return Ok(Found::Store(number));
        }
    }
    // Other programs may have files with these names, so their content is checked.
    if begins(&dir.join("blobs"), TABLE_MAGIC) || begins(&dir.join("catalog.rows"), ROWS_MAGIC.as_bytes()) {
        return Err(Error::FormatLost { store: dir.to_owned() });
    }
    for entry in fs::read_dir(dir).map_err(Error::io("list", dir))? {
        let name = entry.map_err(Error::io("list", dir))?.file_name();
        // A first mount that was cut off can leave these, and mkfs makes lost+found.
        if !["lock", "daemon.log", "daemon.log.1", "format.new", "lost+found"].iter().any(|own| name == *own)
        {
            return Err(Error::NotAStore {
                store: dir.to_owned(),
                why: "it holds other files and no format file".into(),
            });
        }
    }
    Ok(Found::Empty)
}

fn begins(path: &Path, magic: &[u8]) -> bool {
    use std::io::Read;
    let mut head = vec![0; magic.len()];
    path.is_file()
        && fs::File::open(path).and_then(|mut file| file.read_exact(&mut head)).is_ok()
        && head == magic
}

/// Checks that `dir` is a store or may become one, before anything is written into it.
///
/// # Errors
///
/// `NotAStore`, `FormatLost`, `Io`.
pub fn refuse_others(dir: &Path) -> Result<()> {
    look(dir).map(drop)
}

/// Checks that `dir` is a store, for callers that do not make one.
///
/// # Errors
///
/// `NotAStore`, `FormatLost`, `Io`.
pub fn check(dir: &Path) -> Result<()> {
    match look(dir)? {
        Found::Store(_) => Ok(()),
        Found::Empty => Err(Error::NotAStore { store: dir.to_owned(), why: "there is no store yet".into() }),
    }
}

/// Writes a format file again that is lost or damaged. Returns whether it was. For fsck --repair. If
/// the catalog has a newer format, its schema is refused later.
///
/// # Errors
///
/// As `check`'s.
pub fn mend(dir: &Path) -> Result<bool> {
    match check(dir) {
        Err(Error::FormatLost { .. }) => write_format(dir).map(|()| true),
        checked => checked.map(|()| false),
    }
}

fn write_format(dir: &Path) -> Result<()> {
    write_durably(&dir.join("format"), format!("imgfs {FORMAT}\n").as_bytes())
}

/// Makes `dir` a store, or checks that it is one this program can read.
///
/// # Errors
///
/// `StoreNewer`; `NotAStore` if it holds other things; `FormatLost`; `Io`.
///
/// A store of an older format is converted to this one. `keep` is called with the old format before
/// anything is changed, and keeps what a return to that format would need.
pub fn open(dir: &Path, keep: impl FnOnce(u32) -> Result<()>) -> Result<()> {
    make_dir(dir)?;
    match look(dir)? {
        Found::Store(found) if found > FORMAT => {
            return Err(Error::StoreNewer { store: dir.to_owned(), found, known: FORMAT });
        }
        Found::Store(FORMAT) => {}
        Found::Store(older) => {
            keep(older)?;
            fault::reached("migrate.kept");
            write_format(dir)?;
        }
        Found::Empty => write_format(dir)?,
    }
    for sub in ["loose", "packs", "trees", "staging"] {
        let sub = dir.join(sub);
        fs::create_dir_all(&sub).map_err(Error::io("create", &sub))?;
    }
    sync_dir(dir)
}

/// Writes a small file so that after a crash it is either complete or absent.
///
/// # Errors
///
/// `Io`.
pub fn write_durably(path: &Path, content: &[u8]) -> Result<()> {
    use std::io::Write;
    let temporary = path.with_extension("new");
    let mut file = fs::File::create(&temporary).map_err(Error::io("create", &temporary))?;
    file.write_all(content).map_err(Error::io("write", &temporary))?;
    file.sync_all().map_err(Error::io("sync", &temporary))?;
    fault::reached("durably.written");
    fs::rename(&temporary, path).map_err(Error::io("rename", &temporary))?;
    fault::reached("durably.renamed");
    sync_dir(path.parent().unwrap_or(Path::new("/")))
}

/// Makes the names in a directory durable.
///
/// # Errors
///
/// `Io`.
pub fn sync_dir(dir: &Path) -> Result<()> {
    fs::File::open(dir).and_then(|d| d.sync_all()).map_err(Error::io("sync", dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A power cut while a store was made left `format.new`, and after that the store was always refused.
    #[test]
    fn a_store_that_was_never_finished_is_made() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("format.new"), "im").unwrap();
        open(dir.path(), |_| Ok(())).unwrap();
        open(dir.path(), |_| Ok(())).unwrap();
        fs::write(dir.path().join("other"), "").unwrap();
        fs::remove_file(dir.path().join("format")).unwrap();
        assert!(matches!(open(dir.path(), |_| Ok(())), Err(Error::NotAStore { .. })));
    }
}
