//! rootfs.tar of an image that did not come as one: headers are made from the tree, content comes from
//! the blobs.

use sha2::{Digest as _, Sha256};

use crate::base::digest::hex;
use crate::blob::Writer;
use crate::error::Result;
use crate::formats::tar::{BLOCK, NewEntry};
use crate::tree::recipe::RecipeBuilder;
use crate::tree::{Builder, Make};

/// Makes the recipe of a tar of the rootfs. Returns it with its sha256 in hex.
///
/// The same tree gives the same bytes: entries are ordered by name, and nothing depends on the current
/// time.
///
/// # Errors
///
/// `Corrupt`, `Io`.
pub fn rootfs_tar(builder: &Builder, writer: &mut Writer) -> Result<(RecipeBuilder, String)> {
    let mut recipe = RecipeBuilder::new()?;
    let mut hasher = Sha256::new();
    let mut piece = vec![0u8; 1 << 18];
    builder.visit(|name| {
        let path = [b"./", name.path].concat();
        let mut entry = NewEntry {
            typeflag: b'0',
            path: &path,
            link: b"",
            mode: name.meta.mode,
            uid: name.meta.uid,
            gid: name.meta.gid,
            mtime: name.meta.mtime,
            device: (0, 0),
            size: 0,
            sparse: None,
            xattrs: &name.meta.xattrs,
        };
        let (link, directory);
        let mut content = None;
        match (name.first, name.make) {
            (Some(first), _) => {
                link = [b"./", first].concat();
                (entry.typeflag, entry.link) = (b'1', &link);
            }
            (None, Make::File { content: of, size, sparse }) => {
                content = of;
                entry.size = sparse.map_or(size, |pieces| pieces.iter().map(|(_, len)| len).sum());
                entry.sparse = sparse.map(|pieces| (size, pieces));
            }
            (None, Make::Directory) => {
                directory = if name.path.is_empty() { b"./".to_vec() } else { [&path[..], b"/"].concat() };
                (entry.typeflag, entry.path) = (b'5', &directory);
            }
            (None, Make::Symlink(target)) => (entry.typeflag, entry.link) = (b'2', target),
            (None, Make::CharDevice { major, minor }) => {
                (entry.typeflag, entry.device) = (b'3', (major, minor))
            }
            (None, Make::BlockDevice { major, minor }) => {
                (entry.typeflag, entry.device) = (b'4', (major, minor))
            }
            (None, Make::Fifo) => entry.typeflag = b'6',
        }
        let header = entry.header();
        hasher.update(&header);
        recipe.inline(&header)?;
        if let Some(content) = content.filter(|_| entry.size > 0) {
            let mut reader = writer.open(content)?;
            let mut at = 0;
            while at < entry.size {
                let n = reader.read_at(at, &mut piece)?;
                if n == 0 {
                    break;
                }
                hasher.update(&piece[..n]);
                at += n as u64;
            }
            recipe.content(content, entry.size);
            let padding = [0u8; BLOCK];
            let padding = &padding[..(entry.size.next_multiple_of(BLOCK as u64) - entry.size) as usize];
            hasher.update(padding);
            recipe.inline(padding)?;
        }
        Ok(())
    })?;
    let end = [0u8; 2 * BLOCK];
    hasher.update(end);
    recipe.inline(&end)?;
    Ok((recipe, hex(&hasher.finalize())))
}
