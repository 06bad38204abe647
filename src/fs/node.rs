//! Inode numbers. A number is computed from what the node is, so nothing has to be counted, remembered
//! or looked up.
//!
//! The bits from 56 on say the kind, the lower bits what the node is of. A symlink's number
//! follows from its target. So a link that `ln -sfn` renamed over another is the same node, for the
//! kernel and for imgfs.

use crate::base::digest::Digest;
use crate::fs::places::kinds::Kind;
use crate::tree::NodeIndex;

/// The root of the mount; FUSE's own number.
pub const ROOT_INO: u64 = 1;

/// `.imgfs/trash`.
pub(super) const TRASH: NodeId = NodeId::In(Kind::Trash, 0);

/// What an inode number stands for. Serials are below 2^28.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NodeId {
    Root,
    Control(Control),
    /// `incarnation` counts deletions. A directory that was removed stays dead for the kernel, even if it
    /// comes back.
    Image {
        serial: u32,
        part: ImagePart,
        incarnation: u8,
    },
    Version {
        serial: u32,
        part: VersionPart,
        incarnation: u8,
    },
    /// A node of a version's tree; `rootfs` is index 0.
    Tree {
        serial: u32,
        index: NodeIndex,
    },
    Link(Link),
    /// An upload, a scratch file, or the receipt of one, by its number since the mount.
    Upload(u64),
    /// The receipt of a version's upload, from the catalog.
    Receipt(u32),
    /// A symlink under a temporary name, by its number since the mount.
    TemporaryLink(u64),
    /// A staging directory, by its number since the mount.
    Staging(u32),
    /// A file in a staging directory.
    Staged {
        directory: u32,
        file: u32,
    },
    /// A user of a version: an entry of its `used_by`.
    Lease(u32),
    /// A directory of `.imgfs` of some kind, or a node in it. The kind gives the number a meaning; 0 is the
    /// directory itself. Below 2^56.
    In(Kind, u64),
    /// What a walker still sees of a directory it has deleted.
    Ghost,
}

macro_rules! numbered {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $number:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($variant),* }

        impl $name {
            fn number(self) -> u64 {
                match self { $($name::$variant => $number),* }
            }

            fn from_number(number: u64) -> Option<$name> {
                match number { $($number => Some($name::$variant),)* _ => None }
            }
        }
    };
}

numbered!(
    /// The files and directories of `.imgfs`.
    Control { Dir = 2, Readme = 3, Status = 4, Errors = 5, Log = 6, Log1 = 13, Log2 = 14, Log3 = 15 }
);
numbered!(ImagePart { Dir = 0, Id = 1, Metadata = 2, Icon = 3 });
numbered!(VersionPart { Dir = 0, Id = 1, Metadata = 2, Tar = 3, UsedBy = 4, Upload = 5, Changes = 6, Manifest = 7 });

/// A symlink, by its target and the directory it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Link {
    /// `web`, in the root.
    Image(u32),
    /// `web/1`, in the root.
    Version(u32),
    /// `1`, in the image.
    Number(u32),
    /// `latest`, in the image with this serial.
    Latest(u32),
    /// `../../web`, in a directory of `.imgfs`.
    DeepImage(u32),
    /// `../../web/1`, in a directory of `.imgfs`.
    DeepVersion(u32),
    /// `../../../web`, in a subdirectory of such a directory.
    DeeperImage(u32),
    /// `../../../../web`, two levels below such a directory.
    DeepestImage(u32),
    /// `web/latest`, in the root.
    ImageLatest(u32),
    /// `web/default`, in the root.
    ImageDefault(u32),
    /// `web/@22.04`, in the root, by the label's serial.
    Label(u32),
    /// In the trash: an alias, a label, or a default (of the store or of an image), by the serials of their
    /// rows.
    TrashedAlias(u32),
    TrashedLabel(u32),
    TrashedDefault(u32),
    TrashedImageDefault(u32),
}

const KIND: u32 = 56;
/// The kinds of fs/places are numbered from here on.
const KINDS: u64 = 16;
/// The range of the numbers that are made of names.
const NAMES: u64 = (1 << 52) - 1;

/// A number for a node that is known only by a name. It is never 0.
pub(super) fn number_of(name: &str) -> u64 {
    let digest = Digest::of(name.as_bytes()).0;
    (u64::from_le_bytes(digest[..8].try_into().expect("eight bytes")) & NAMES).max(1)
}

impl NodeId {
    pub fn ino(self) -> u64 {
        let pack = |kind: u64, payload: u64| kind << KIND | payload;
        match self {
            NodeId::Root => ROOT_INO,
            NodeId::Control(c) => c.number(),
            NodeId::Ghost => 12,
            NodeId::Image { serial, part, incarnation } => {
                pack(1, u64::from(serial) << 12 | u64::from(incarnation) << 4 | part.number())
            }
            NodeId::Version { serial, part, incarnation } => {
                pack(2, u64::from(serial) << 12 | u64::from(incarnation) << 4 | part.number())
            }
            NodeId::Tree { serial, index } => pack(3, u64::from(serial) << 28 | u64::from(index)),
            NodeId::Link(link) => {
                let (which, serial) = match link {
                    Link::Image(s) => (0, s),
                    Link::Version(s) => (1, s),
                    Link::Number(s) => (2, s),
                    Link::Latest(s) => (3, s),
                    Link::DeepImage(s) => (4, s),
                    Link::DeepVersion(s) => (5, s),
                    Link::DeeperImage(s) => (6, s),
                    Link::DeepestImage(s) => (7, s),
                    Link::ImageLatest(s) => (8, s),
                    Link::ImageDefault(s) => (9, s),
                    Link::Label(s) => (10, s),
                    Link::TrashedAlias(s) => (11, s),
                    Link::TrashedLabel(s) => (12, s),
                    Link::TrashedDefault(s) => (13, s),
                    Link::TrashedImageDefault(s) => (14, s),
                };
                pack(4, u64::from(serial) << 4 | which)
            }
            NodeId::Upload(n) => pack(5, n),
            NodeId::Receipt(serial) => pack(6, u64::from(serial)),
            NodeId::TemporaryLink(n) => pack(9, n),
            NodeId::Staging(n) => pack(10, u64::from(n) << 24),
            NodeId::Lease(serial) => pack(11, u64::from(serial)),
            NodeId::In(kind, n) => pack(KINDS + kind.number(), n & ((1 << KIND) - 1)),
            NodeId::Staged { directory, file } => {
                pack(10, u64::from(directory) << 24 | u64::from(file & 0xff_ffff))
            }
        }
    }

    pub fn from_ino(ino: u64) -> Option<NodeId> {
        let payload = ino & ((1 << KIND) - 1);
        let serial_at = |shift: u32| u32::try_from(payload >> shift).ok();
        let incarnation = (payload >> 4 & 0xff) as u8;
        Some(match ino >> KIND {
            0 if ino == ROOT_INO => NodeId::Root,
            0 if ino == 12 => NodeId::Ghost,
            0 => NodeId::Control(Control::from_number(ino)?),
            1 => NodeId::Image {
                serial: serial_at(12)?,
                part: ImagePart::from_number(payload & 15)?,
                incarnation,
            },
            2 => NodeId::Version {
                serial: serial_at(12)?,
                part: VersionPart::from_number(payload & 15)?,
                incarnation,
            },
            3 => NodeId::Tree { serial: serial_at(28)?, index: (payload & ((1 << 28) - 1)) as NodeIndex },
            4 => {
                let serial = serial_at(4)?;
                NodeId::Link(match payload & 15 {
                    0 => Link::Image(serial),
                    1 => Link::Version(serial),
                    2 => Link::Number(serial),
                    3 => Link::Latest(serial),
                    4 => Link::DeepImage(serial),
                    5 => Link::DeepVersion(serial),
                    6 => Link::DeeperImage(serial),
                    7 => Link::DeepestImage(serial),
                    8 => Link::ImageLatest(serial),
                    9 => Link::ImageDefault(serial),
                    10 => Link::Label(serial),
                    11 => Link::TrashedAlias(serial),
                    12 => Link::TrashedLabel(serial),
                    13 => Link::TrashedDefault(serial),
                    14 => Link::TrashedImageDefault(serial),
                    _ => return None,
                })
            }
            5 => NodeId::Upload(payload),
            6 => NodeId::Receipt(serial_at(0)?),
            9 => NodeId::TemporaryLink(payload),
            10 => match (serial_at(24)?, (payload & 0xff_ffff) as u32) {
                (directory, 0) => NodeId::Staging(directory),
                (directory, file) => NodeId::Staged { directory, file },
            },
            11 => NodeId::Lease(serial_at(0)?),
            kind => NodeId::In(Kind::from_number(kind.checked_sub(KINDS)?)?, payload),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::places::kinds::ALL;

    #[test]
    fn every_node_has_a_number_of_its_own() {
        let mut nodes = vec![NodeId::Root, NodeId::Ghost];
        nodes.extend((2..24).filter_map(Control::from_number).map(NodeId::Control));
        for serial in [1, 77, (1 << 28) - 1] {
            for incarnation in [0, 255] {
                nodes.extend((0..4).filter_map(ImagePart::from_number).map(|part| NodeId::Image {
                    serial,
                    part,
                    incarnation,
                }));
                nodes.extend((0..8).filter_map(VersionPart::from_number).map(|part| NodeId::Version {
                    serial,
                    part,
                    incarnation,
                }));
            }
            nodes.extend([0, 5, (1 << 28) - 1].map(|index| NodeId::Tree { serial, index }));
            nodes
                .extend([Link::Image(serial), Link::Version(serial), Link::Number(serial)].map(NodeId::Link));
            nodes.extend(
                [Link::Latest(serial), Link::DeepImage(serial), Link::DeepVersion(serial)].map(NodeId::Link),
            );
            nodes.extend([NodeId::Receipt(serial), NodeId::Lease(serial), NodeId::Upload(serial.into())]);
            nodes.extend([NodeId::Staging(serial), NodeId::Staged { directory: serial, file: 7 }]);
            nodes.extend([Link::DeeperImage(serial), Link::DeepestImage(serial)].map(NodeId::Link));
            nodes.extend(
                [Link::ImageLatest(serial), Link::ImageDefault(serial), Link::Label(serial)]
                    .map(NodeId::Link),
            );
            nodes.extend([Link::TrashedAlias(serial), Link::TrashedLabel(serial)].map(NodeId::Link));
            nodes.extend([Link::TrashedDefault(serial), Link::TrashedImageDefault(serial)].map(NodeId::Link));
            nodes.extend(ALL.iter().flat_map(|(_, kind)| {
                [serial.into(), u64::from(serial) << 28].map(|n| NodeId::In(*kind, n))
            }));
            nodes.extend([NodeId::TemporaryLink(serial.into())]);
        }
        let mut seen = std::collections::HashSet::new();
        for node in nodes {
            assert!(seen.insert(node.ino()), "{node:?}");
            assert_eq!(NodeId::from_ino(node.ino()), Some(node));
        }
    }
}
