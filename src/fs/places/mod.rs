//! The kinds of directory in `.imgfs`: each is one file here, and one line in kinds.rs.
//!
//! A kind answers for its directory, for those in it, and for the files and links that are its own. What it
//! does not answer is refused.

pub(super) mod kinds;

use crate::error::{Error, Result};
use crate::fs::acl::Shown;
use crate::fs::node::{Control, NodeId};
use crate::fs::opened::{OpenMode, Opened, frozen};
use crate::fs::{Attr, Caller, DirEntry, Handle, ImageFs};
use kinds::with_kinds;
pub use kinds::{ALL, Kind};

/// A name in a directory.
pub(super) type Named = (NodeId, Vec<u8>);

macro_rules! places {
    ($($module:ident :: $kind:ident = $name:literal),* $(,)?) => {
        $(pub(super) mod $module;)*

        impl Kind {
            /// What a directory of this kind does.
            pub(super) fn place(self) -> &'static dyn Place {
                match self { $(Kind::$kind => &$module::$kind),* }
            }
        }
    };
}

with_kinds!(places);

/// What can be done with a kind of directory. `number` says which of its nodes is meant: 0 is the directory
/// in `.imgfs` itself, and the kind makes up the others.
pub(super) trait Place: Sync {
    fn kind(&self) -> Kind;

    /// Whether it is shown; some are not in a view.
    fn is_there(&self, _fs: &ImageFs) -> bool {
        true
    }

    /// What a name in a directory leads to.
    fn lookup(&self, fs: &ImageFs, caller: Caller, directory: u64, name: &[u8]) -> Result<NodeId>;

    /// Adds what is in a directory.
    fn list(&self, fs: &ImageFs, caller: Caller, directory: u64, all: &mut Vec<DirEntry>) -> Result<()>;

    /// Whether a name may lead elsewhere while somebody lists the directory.
    fn changes(&self) -> bool {
        true
    }

    fn parent(&self, _fs: &ImageFs, number: u64) -> NodeId {
        if number == 0 { NodeId::Control(Control::Dir) } else { NodeId::In(self.kind(), 0) }
    }

    /// How what is in a directory is called in messages.
    fn path(&self, _fs: &ImageFs, _directory: u64, name: &str) -> String {
        format!("/.imgfs/{}/{name}", self.kind().name())
    }

    /// What stat shows. `own` has the inode, the owner and the time that a directory of imgfs has.
    fn attr(&self, _fs: &ImageFs, _number: u64, own: Attr) -> Result<Attr> {
        Ok(Attr { mode: libc::S_IFDIR | 0o755, ..own })
    }

    /// The text of a file, as it is now.
    fn text(&self, _fs: &ImageFs, _number: u64) -> Result<String> {
        Err(Error::IsDirectory { what: format!(".imgfs/{}", self.kind().name()) })
    }

    /// The rights that its ACL shows, and the most that it may give; nothing if it has none.
    fn rights(&self, _fs: &ImageFs, _number: u64) -> Option<(Shown, u32)> {
        None
    }

    /// Whether an open may wait for something.
    fn opens_slowly(&self) -> bool {
        false
    }

    fn open(&self, fs: &ImageFs, _caller: Caller, number: u64, mode: OpenMode) -> Result<Opened> {
        if mode.writes {
            return Err(frozen(NodeId::In(self.kind(), number)));
        }
        Ok(Opened::Direct(fs.open_handle(Handle::Text(self.text(fs, number)?.into_bytes()))))
    }

    fn readlink(&self, _fs: &ImageFs, _number: u64) -> Result<Vec<u8>> {
        Err(Error::Invalid { what: "this path".into(), why: "it is not a symlink".into() })
    }

    /// `touch`, `cp`. Gives the file and its handle.
    fn create(&self, _fs: &ImageFs, _caller: Caller, directory: u64, _name: &[u8]) -> Result<(NodeId, u64)> {
        Err(frozen(NodeId::In(self.kind(), directory)))
    }

    fn mkdir(&self, _fs: &ImageFs, _caller: Caller, _directory: u64, _name: &[u8]) -> Result<NodeId> {
        Err(no_mkdir())
    }

    fn rmdir(&self, _fs: &ImageFs, _caller: Caller, _number: u64) -> Result<()> {
        Err(no_rmdir())
    }

    fn unlink(&self, _fs: &ImageFs, _caller: Caller, _directory: u64, _name: &[u8]) -> Result<()> {
        Err(no_unlink())
    }

    /// `ln -s`, and the first half of `ln -sfn`.
    fn symlink(
        &self,
        _fs: &ImageFs,
        _caller: Caller,
        directory: u64,
        _name: &[u8],
        _target: &[u8],
    ) -> Result<NodeId> {
        Err(frozen(NodeId::In(self.kind(), directory)))
    }

    /// The second half of `ln -sfn`: the name leads to `target` from now on.
    fn switch(
        &self,
        _fs: &ImageFs,
        _caller: Caller,
        directory: u64,
        _name: &[u8],
        _target: &[u8],
    ) -> Result<()> {
        Err(frozen(NodeId::In(self.kind(), directory)))
    }

    /// `mv` of one of its nodes.
    fn rename(&self, _fs: &ImageFs, _caller: Caller, number: u64, _from: &Named, _to: &Named) -> Result<()> {
        Err(frozen(NodeId::In(self.kind(), number)))
    }

    /// `truncate`.
    fn truncate(&self, _fs: &ImageFs, _caller: Caller, number: u64, _size: u64) -> Result<()> {
        Err(frozen(NodeId::In(self.kind(), number)))
    }
}

/// What stat shows of a file whose text is for one user alone.
fn private_text(uid: u32, text: &str, own: Attr) -> Attr {
    let size = text.len() as u64;
    Attr { mode: libc::S_IFREG | 0o400, links: 1, uid, size, data: size, ..own }
}

/// The refusals of `.imgfs`, also for where a kind answers in some of its directories alone.
pub(super) fn no_mkdir() -> Error {
    Error::Managed { what: ".imgfs".into(), why: "its directories are made by imgfs" }
}

pub(super) fn no_rmdir() -> Error {
    Error::Managed { what: ".imgfs".into(), why: "its directories stay" }
}

pub(super) fn no_unlink() -> Error {
    Error::Managed { what: "this file".into(), why: "it shows the store, and stays" }
}
