//! rm -r: what a walker still sees of a directory that it has deleted. The directory is empty, and
//! every removal in it succeeds.

use crate::error::Result;
use crate::fs::names::not_found;
use crate::fs::node::NodeId;
use crate::fs::places::Place;
use crate::fs::{Attr, Caller, DirEntry, ImageFs, SetAttr};

/// A directory that is gone for all other processes.
pub struct Ghost;

impl Place for Ghost {
    fn lookup(&self, _fs: &ImageFs, _caller: Caller, _directory: NodeId, name: &[u8]) -> Result<NodeId> {
        Err(not_found(name))
    }

    fn list(
        &self,
        _fs: &ImageFs,
        _caller: Caller,
        _directory: NodeId,
        _all: &mut Vec<DirEntry>,
    ) -> Result<()> {
        Ok(())
    }

    fn attr(&self, _fs: &ImageFs, _node: NodeId, own: Attr) -> Result<Attr> {
        Ok(Attr { mode: libc::S_IFDIR | 0o555, ..own })
    }

    fn set(&self, _fs: &ImageFs, _caller: Caller, _node: NodeId, _changes: &SetAttr) -> Result<()> {
        Ok(())
    }

    fn rmdir(&self, _fs: &ImageFs, _caller: Caller, _node: NodeId, _parent: NodeId) -> Result<()> {
        Ok(())
    }

    fn unlink(&self, _fs: &ImageFs, _caller: Caller, _directory: NodeId, _name: &[u8]) -> Result<()> {
        Ok(())
    }
}
