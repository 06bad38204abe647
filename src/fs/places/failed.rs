//! cat .imgfs/failed/web.tar: why an upload was refused.

use crate::error::{Error, Result};
use crate::fs::names::text_of;
use crate::fs::node::{NodeId, number_of};
use crate::fs::places::{Kind, Place, private_text};
use crate::fs::{Attr, Caller, DirEntry, ImageFs, stale};

/// `.imgfs/failed`: a file for each upload that was refused. Its number is made of its name.
pub struct Failed;

fn node_of(name: &str) -> NodeId {
    NodeId::In(Kind::Failed, number_of(name))
}

/// The user who began the upload, and the text of the file.
fn told(fs: &ImageFs, number: u64) -> Result<(u32, String)> {
    let name = fs.store.journal.failed_names().into_iter().find(|name| number_of(name) == number);
    name.and_then(|name| fs.store.journal.failed_text(&name)).ok_or_else(stale)
}

impl Place for Failed {
    fn lookup(&self, fs: &ImageFs, _caller: Caller, _directory: NodeId, name: &[u8]) -> Result<NodeId> {
        let missing = || Error::NotFound { what: text_of(name) };
        let name = std::str::from_utf8(name).map_err(|_| missing())?;
        fs.store.journal.failed_text(name).map(|_| node_of(name)).ok_or_else(missing)
    }

    fn list(&self, fs: &ImageFs, _caller: Caller, _directory: NodeId, all: &mut Vec<DirEntry>) -> Result<()> {
        all.extend(fs.store.journal.failed_names().into_iter().map(|name| {
            let node = node_of(&name);
            DirEntry::new(name, node, libc::S_IFREG)
        }));
        Ok(())
    }

    fn changes(&self) -> bool {
        false
    }

    /// Only the user who began the upload may read its file.
    fn attr(&self, fs: &ImageFs, node: NodeId, own: Attr) -> Result<Attr> {
        let number = node.number();
        if number == 0 {
            return Ok(Attr { mode: libc::S_IFDIR | 0o755, ..own });
        }
        let (uid, text) = told(fs, number)?;
        Ok(private_text(uid, &text, own))
    }

    fn text(&self, fs: &ImageFs, node: NodeId) -> Result<String> {
        let number = node.number();
        if number == 0 {
            return Err(Error::IsDirectory { what: ".imgfs/failed".into() });
        }
        Ok(told(fs, number)?.1)
    }

    fn unlink(&self, fs: &ImageFs, _caller: Caller, _directory: NodeId, name: &[u8]) -> Result<()> {
        let known = fs.store.journal.forget_failed(&text_of(name));
        if known { Ok(()) } else { Err(Error::NotFound { what: text_of(name) }) }
    }
}
