//! What the mount shows. Each kind of directory is one file here, with the files and links that are its
//! own.
//!
//! Every request goes to the place of its node. A request that a place does not implement is refused.
//! kinds.rs lists the kinds of directory in `.imgfs`; the other places are the arms of `NodeId::place`.

mod at_label;
pub(super) mod changes;
pub(super) mod dot_imgfs;
mod ghost;
pub(super) mod icon;
pub(super) mod image;
pub(super) mod kinds;
pub(super) mod link;
pub(super) mod made;
pub(super) mod metadata;
mod root;
pub(super) mod staging;
pub(super) mod tree;
pub(super) mod used_by;
pub(super) mod version;
mod written;

use crate::base::acl::Acl;
use crate::catalog::Model;
use crate::error::{Error, Result};
use crate::fs::names::no_directory;
use crate::fs::node::{Control, NodeId, VersionPart};
use crate::fs::opened::{OpenMode, Opened, frozen};
use crate::fs::rights::Shown;
use crate::fs::{Attr, Caller, DirEntry, ImageFs, SetAttr};
use kinds::with_kinds;
pub use kinds::{ALL, Kind};

/// The prefix of imgfs's own extended attributes.
pub(super) const PREFIX: &str = "user.imgfs.";

/// Extended attributes: names and values.
pub(super) type Attributes = Vec<(String, Vec<u8>)>;

/// An attribute of imgfs's own.
fn named(name: &str, value: String) -> (String, Vec<u8>) {
    (format!("{PREFIX}{name}"), value.into_bytes())
}

/// A name in a directory.
pub(super) type Named = (NodeId, Vec<u8>);

macro_rules! kinds_of_place {
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

with_kinds!(kinds_of_place);

impl NodeId {
    /// The place that answers for a node.
    pub(super) fn place(self) -> &'static dyn Place {
        match self {
            NodeId::Root => &root::Root,
            NodeId::Control(_) => &dot_imgfs::DotImgfs,
            NodeId::In(kind, _) => kind.place(),
            NodeId::Image { .. } => &image::Image,
            NodeId::Version { part: VersionPart::UsedBy, .. } | NodeId::Lease(_) => &used_by::UsedBy,
            NodeId::Version { .. } => &version::Version,
            NodeId::Tree { .. } => &tree::Tree,
            NodeId::Staging(_) | NodeId::Staged { .. } => &staging::StagingDirectory,
            NodeId::Upload(_) | NodeId::Receipt(_) => &written::Written,
            NodeId::Link(_) | NodeId::TemporaryLink(_) => &link::Links,
            NodeId::Ghost => &ghost::Ghost,
        }
    }

    /// The number of a node in `.imgfs` within its kind. 0 is the directory in `.imgfs` itself. The kind
    /// defines what other numbers mean.
    fn number(self) -> u64 {
        if let NodeId::In(_, number) = self { number } else { 0 }
    }
}

/// What can be done with the nodes of a place.
pub(super) trait Place: Sync {
    /// Whether `.imgfs` shows this directory. A view hides some of them.
    fn is_there(&self, _fs: &ImageFs) -> bool {
        true
    }

    /// What a name in a directory leads to.
    fn lookup(&self, _fs: &ImageFs, _caller: Caller, _directory: NodeId, _name: &[u8]) -> Result<NodeId> {
        Err(no_directory())
    }

    /// Adds what is in a directory.
    fn list(
        &self,
        _fs: &ImageFs,
        _caller: Caller,
        _directory: NodeId,
        _all: &mut Vec<DirEntry>,
    ) -> Result<()> {
        Err(no_directory())
    }

    /// Whether a name may come to lead elsewhere while somebody lists the directory.
    fn changes(&self) -> bool {
        true
    }

    /// The directory that a directory is in.
    fn parent(&self, _fs: &ImageFs, node: NodeId) -> NodeId {
        match node {
            NodeId::In(_, 0) => NodeId::Control(Control::Dir),
            NodeId::In(kind, _) => NodeId::In(kind, 0),
            _ => NodeId::Root,
        }
    }

    /// The path of a name in a directory, for messages.
    fn path(&self, _fs: &ImageFs, directory: NodeId, name: &str) -> String {
        match directory {
            NodeId::In(kind, _) => format!("/.imgfs/{}/{name}", kind.name()),
            _ => format!("/.imgfs/{name}"),
        }
    }

    /// The serial of the image that a node belongs to.
    fn image(&self, _model: &Model, _node: NodeId) -> Option<u32> {
        None
    }

    /// What stat shows. `own` has the inode, owner and time of a directory of imgfs itself.
    fn attr(&self, _fs: &ImageFs, _node: NodeId, own: Attr) -> Result<Attr> {
        Ok(Attr { mode: libc::S_IFDIR | 0o755, ..own })
    }

    /// `chmod`, `chown`, `touch`.
    fn set(&self, _fs: &ImageFs, _caller: Caller, _node: NodeId, changes: &SetAttr) -> Result<()> {
        if changes.are_rights() {
            let why = "its owner and mode follow the mount's";
            return Err(Error::Managed { what: "this file".into(), why });
        }
        Ok(())
    }

    /// `truncate`.
    fn truncate(&self, _fs: &ImageFs, _caller: Caller, node: NodeId, _size: u64) -> Result<()> {
        Err(frozen(node))
    }

    /// The text of a file, as it is now.
    fn text(&self, _fs: &ImageFs, node: NodeId) -> Result<String> {
        let what = if let NodeId::In(kind, _) = node {
            format!(".imgfs/{}", kind.name())
        } else {
            "this path".into()
        };
        Err(Error::IsDirectory { what })
    }

    /// Whether an open may wait for something.
    fn opens_slowly(&self, _node: NodeId) -> bool {
        false
    }

    fn open(&self, fs: &ImageFs, _caller: Caller, node: NodeId, mode: OpenMode) -> Result<Opened> {
        if mode.writes {
            return Err(frozen(node));
        }
        Ok(fs.opened_text(self.text(fs, node)?))
    }

    fn readlink(&self, _fs: &ImageFs, _node: NodeId) -> Result<Vec<u8>> {
        Err(no_symlink())
    }

    /// `touch`, `cp`. Returns the file and its handle.
    fn create(
        &self,
        _fs: &ImageFs,
        _caller: Caller,
        directory: NodeId,
        _name: &[u8],
        _mode: u32,
    ) -> Result<(NodeId, u64)> {
        Err(frozen(directory))
    }

    fn mkdir(
        &self,
        _fs: &ImageFs,
        _caller: Caller,
        directory: NodeId,
        _name: &[u8],
        _mode: u32,
    ) -> Result<NodeId> {
        match directory {
            NodeId::Control(_) | NodeId::In(..) => Err(no_mkdir()),
            _ => Err(frozen(directory)),
        }
    }

    /// `rmdir` of a directory in `parent`.
    fn rmdir(&self, _fs: &ImageFs, _caller: Caller, node: NodeId, _parent: NodeId) -> Result<()> {
        match node {
            NodeId::In(..) => Err(no_rmdir()),
            _ => Err(no_directory()),
        }
    }

    fn unlink(&self, _fs: &ImageFs, _caller: Caller, _directory: NodeId, _name: &[u8]) -> Result<()> {
        Err(no_unlink())
    }

    /// `ln -s`, and the first half of `ln -sfn`.
    fn symlink(
        &self,
        _fs: &ImageFs,
        _caller: Caller,
        directory: NodeId,
        _name: &[u8],
        _target: &[u8],
    ) -> Result<NodeId> {
        Err(frozen(directory))
    }

    /// The second half of `ln -sfn`: makes the name lead to `target`.
    fn switch(
        &self,
        _fs: &ImageFs,
        _caller: Caller,
        directory: NodeId,
        _name: &[u8],
        _target: &[u8],
    ) -> Result<()> {
        Err(frozen(directory))
    }

    /// `mv` of a node of this place.
    fn rename(&self, _fs: &ImageFs, _caller: Caller, node: NodeId, _from: &Named, _to: &Named) -> Result<()> {
        Err(frozen(node))
    }

    /// The rights that its ACL shows, and the most rights that the ACL may give. `None` if it has no ACL.
    fn rights(&self, _fs: &ImageFs, _node: NodeId) -> Option<(Shown, u32)> {
        None
    }

    /// `setfacl`: sets the ACL, and the mode bits that came with it.
    fn set_acl(
        &self,
        _fs: &ImageFs,
        _caller: Caller,
        _node: NodeId,
        _acl: Option<Acl>,
        _bits: Option<u32>,
    ) -> Result<()> {
        Err(Error::Unsupported {
            what: "an ACL here".into(),
            instead: "images have them, and the root of the mount",
        })
    }

    /// The extended attributes of a node, in two lists. getfattr -d lists the first. The second can be read
    /// only by name, so that cp -a and rsync -X do not copy it.
    fn attributes(&self, _fs: &ImageFs, _node: NodeId) -> Result<(Attributes, Attributes)> {
        Ok((Attributes::new(), Attributes::new()))
    }

    /// `setfattr -n user.imgfs.KEY`, or `setfattr -x` if there is no value.
    fn set_attribute(
        &self,
        _fs: &ImageFs,
        _caller: Caller,
        _node: NodeId,
        key: &str,
        value: Option<&str>,
    ) -> Result<()> {
        refuse_attribute(key, value)
    }
}

/// What stat shows of a file whose text only one user may read.
fn private_text(uid: u32, text: &str, own: Attr) -> Attr {
    let size = text.len() as u64;
    Attr { mode: libc::S_IFREG | 0o400, links: 1, uid, size, data: size, ..own }
}

/// Refuses to set an attribute that cannot be set, or to clear one that is not there.
fn refuse_attribute(key: &str, value: Option<&str>) -> Result<()> {
    match value {
        Some(_) => Err(no_attribute(key)),
        None => Err(Error::NoAttribute { name: key.into() }),
    }
}

/// Refuses an attribute that cannot be set.
pub(super) fn no_attribute(key: &str) -> Error {
    Error::Unsupported {
        what: format!("the attribute {key}"),
        instead: "images take user.imgfs.KEY for the editable keys of metadata.json",
    }
}

fn no_symlink() -> Error {
    Error::Invalid { what: "this path".into(), why: "it is not a symlink".into() }
}

/// The refusals of `.imgfs`. A kind also uses them if only some of its directories allow a request.
fn no_mkdir() -> Error {
    Error::Managed { what: ".imgfs".into(), why: "its directories are made by imgfs" }
}

fn no_rmdir() -> Error {
    Error::Managed { what: ".imgfs".into(), why: "its directories stay" }
}

fn no_unlink() -> Error {
    Error::Managed { what: "this file".into(), why: "it shows the store, and stays" }
}
