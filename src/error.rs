//! Every way a gesture can fail: the facts, one sentence, one errno and what to do about it.
//!
//! The sentence reads after `imgfs: `, in lower case and without a final stop. `.imgfs/errors` shows it
//! with the remedy beside it.

mod holder;
mod remedy;

use std::io;
use std::path::{Path, PathBuf};

pub use holder::Holder;
pub use remedy::UNPACKED;

pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    // ---- what was copied in
    /// The first bytes are neither a tar header nor a compression imgfs knows.
    #[error("{what} is not a tarball: it begins like {looks}")]
    NotTar { what: String, looks: String },
    /// The bytes break the format they claim.
    #[error("the archive is damaged at byte {at}{}: {why}", entry_suffix(.entry))]
    BadArchive { at: u64, entry: String, why: String },
    /// A disk or file system image that contradicts itself.
    #[error("the {kind} is damaged: {why}")]
    BadImage { kind: &'static str, why: String },
    /// The bytes end before the archive does.
    #[error("the archive is cut off at byte {at}: {why}")]
    Truncated { at: u64, why: String },
    /// The compressed stream fails its own checks.
    #[error("the {codec} data is damaged near byte {at}: {why}")]
    BadCompression { codec: &'static str, at: u64, why: String },
    /// `../x`, or a path through a symlink of the same archive.
    #[error("entry {entry:?} at byte {at} leaves the root: {why}")]
    LeavesRoot { at: u64, entry: String, why: String },
    /// A limit that no real image reaches.
    #[error("{what} is over the limit of {limit}")]
    OverLimit { what: String, limit: String },
    /// The upload differs from what was announced: a digest, a size.
    #[error("{what} should be {wanted}, and is {found}")]
    Mismatch { what: String, wanted: String, found: String },
    /// Another upload has the memory that a large decoder needs.
    #[error(
        "decoding this {codec} stream takes {need} bytes of memory, and another upload that needs so much is under way"
    )]
    DecoderBusy { codec: &'static str, need: u64 },
    /// Something that imgfs understands, but does not support.
    #[error("{what} is not supported")]
    Unsupported { what: String, instead: &'static str },
    /// The writer was killed before it closed the file.
    #[error("the writer of {name} was killed: nothing was published")]
    WriterKilled { name: String },
    /// A write to a part that is already unpacked.
    #[error("{name} was written again at byte {at}, which is already unpacked")]
    WrittenTwice { name: String, at: u64 },

    // ---- names
    #[error("{name:?} cannot be a name here: {why}")]
    BadName { name: String, why: &'static str },
    #[error("the name is {len} bytes long, and 255 is the longest")]
    NameTooLong { len: usize },
    #[error("{name} is taken: {holder}")]
    Taken { name: String, holder: String },
    /// A uuid or a label that only one thing may have.
    #[error("{what} is taken: {holder}")]
    NotUnique { what: String, holder: String },
    #[error("there is no {what}")]
    NotFound { what: String },
    #[error("{prefix} is the beginning of more than one digest: {candidates}")]
    Ambiguous { prefix: String, candidates: String },

    // ---- rules
    #[error("{what} is not empty")]
    NotEmpty { what: String },
    #[error("{what} is the origin of {dependents}")]
    HasDependents { what: String, dependents: String },
    #[error("{image} is the default image, and there are other images")]
    ImageIsDefault { image: String },
    #[error("{image} is the default of the images whose type is {kind}")]
    ImageIsTypeDefault { image: String, kind: String },
    #[error("{image} is the default image of view {view}, which has other images")]
    ImageIsViewDefault { image: String, view: String },
    #[error("{image} belongs to {views}")]
    OfView { image: String, views: String },
    #[error("{image}/{number} is pinned by {image}/default")]
    VersionIsPinned { image: String, number: u32 },
    #[error("{image}/{number} is the only version of {image}")]
    OnlyVersion { image: String, number: u32 },
    #[error("{image} is immutable: user {uid} has made it so")]
    Immutable { image: String, uid: u32 },
    #[error("user {uid} owns {what} and does not let you change it")]
    NotYours { what: String, uid: u32 },
    #[error("{image} is attached to this view, which only shows it")]
    Attached { image: String },
    #[error("it would exceed the quota of {who}: {limit}")]
    OverQuota { who: String, limit: String },
    #[error("{what} is used by {holders}")]
    InUse { what: String, holders: String },
    #[error("{what} never changes")]
    Frozen { what: String },
    /// A tree that is copied entry by entry.
    #[error("{what}: a version is made of one tarball, not of single files and directories")]
    NoTree { what: String },
    #[error("{what} is kept by imgfs: {why}")]
    Managed { what: String, why: &'static str },
    #[error("an upload of {name} is under way")]
    UploadBusy { name: String },
    /// A rename that tools carry out by copying instead.
    #[error("cannot move {what} there; copy it")]
    OtherPlace { what: String },
    #[error("there is no imgfs mount on {}", .point.display())]
    NotMounted { point: PathBuf },
    /// Only for the kernel, which then looks up the name again.
    #[error("the name belongs to something else now")]
    LookAgain,
    #[error("{what}: {why}")]
    Invalid { what: String, why: String },
    #[error("metadata.json: {why}")]
    BadMetadata { why: String },
    #[error("{what} is not a directory")]
    NotDirectory { what: String },
    #[error("{what} is a directory")]
    IsDirectory { what: String },
    #[error("there is no attribute {name}")]
    NoAttribute { name: String },

    // ---- the store
    #[error("the store {} is used by {holder}", .store.display())]
    Locked { store: PathBuf, holder: Box<Holder> },
    #[error("{} has format {found}, and this program knows up to {known}", .store.display())]
    StoreNewer { store: PathBuf, found: u32, known: u32 },
    #[error("{} is not an imgfs store: {why}", .store.display())]
    NotAStore { store: PathBuf, why: String },
    #[error("the format file of the store {} is lost or damaged", .store.display())]
    FormatLost { store: PathBuf },
    /// Stored bytes differ from those that were put in. imgfs never serves them.
    #[error("{what} is damaged: {why}")]
    Corrupt { what: String, why: String },
    #[error("cannot {doing} {}: {source}", .path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    #[error("the store accepts no more changes: {why}")]
    Stopped { why: String },
    #[error("the catalog failed: {0}")]
    Catalog(String),
    /// The same error once more, for a caller that asks again.
    #[error("{sentence}")]
    Again { errno: i32, sentence: String },
    #[error("the daemon of {} ended before it answered", .store.display())]
    Ended { store: PathBuf },
    #[error("the store is stopping")]
    Stopping,
}

fn entry_suffix(entry: &str) -> String {
    if entry.is_empty() { String::new() } else { format!(" (entry {entry:?})") }
}

impl Error {
    /// Wraps a failure of the store's own disk, for `map_err`.
    pub fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::Io { doing, path: path.to_owned(), source }
    }

    /// The errno for the kernel. Each variant has its own arm, so whoever adds an error must choose.
    pub fn errno(&self) -> i32 {
        match self {
            Error::NotTar { .. }
            | Error::BadArchive { .. }
            | Error::BadImage { .. }
            | Error::Truncated { .. }
            | Error::BadCompression { .. }
            | Error::LeavesRoot { .. }
            | Error::BadName { .. }
            | Error::Invalid { .. }
            | Error::BadMetadata { .. } => libc::EINVAL,
            Error::OverLimit { .. } => libc::E2BIG,
            Error::DecoderBusy { .. } => libc::EBUSY,
            Error::Mismatch { .. } => libc::EBADMSG,
            Error::Unsupported { .. } | Error::WrittenTwice { .. } => libc::EOPNOTSUPP,
            Error::WriterKilled { .. } => libc::EINTR,
            Error::NameTooLong { .. } => libc::ENAMETOOLONG,
            Error::Taken { .. } | Error::NotUnique { .. } => libc::EEXIST,
            Error::NotFound { .. } => libc::ENOENT,
            Error::OtherPlace { .. } => libc::EXDEV,
            Error::LookAgain => libc::ESTALE,
            Error::NotMounted { .. } => libc::EINVAL,
            Error::Ambiguous { .. } => libc::ENOTUNIQ,
            Error::ImageIsDefault { .. }
            | Error::ImageIsTypeDefault { .. }
            | Error::ImageIsViewDefault { .. }
            | Error::OfView { .. }
            | Error::VersionIsPinned { .. }
            | Error::OnlyVersion { .. }
            | Error::NotEmpty { .. }
            | Error::HasDependents { .. }
            | Error::InUse { .. }
            | Error::UploadBusy { .. }
            | Error::Locked { .. } => libc::EBUSY,
            Error::Frozen { .. } | Error::Stopped { .. } => libc::EROFS,
            Error::Managed { .. }
            | Error::NoTree { .. }
            | Error::Immutable { .. }
            | Error::Attached { .. } => libc::EPERM,
            Error::NotYours { .. } => libc::EACCES,
            Error::OverQuota { .. } => libc::EDQUOT,
            Error::NotDirectory { .. } => libc::ENOTDIR,
            Error::IsDirectory { .. } => libc::EISDIR,
            Error::NoAttribute { .. } => libc::ENODATA,
            Error::StoreNewer { .. } | Error::NotAStore { .. } | Error::FormatLost { .. } => libc::EINVAL,
            Error::Corrupt { .. } | Error::Catalog(_) => libc::EIO,
            Error::Again { errno, .. } => *errno,
            Error::Stopping | Error::Ended { .. } => libc::ENOTCONN,
            Error::Io { source, .. } => match source.raw_os_error() {
                Some(
                    e @ (libc::ENOSPC
                    | libc::EDQUOT
                    | libc::EROFS
                    | libc::EMFILE
                    | libc::ENFILE
                    | libc::ENOMEM),
                ) => e,
                // A file missing from our store is damage; the user's file does exist.
                _ => libc::EIO,
            },
        }
    }

    /// The errno for a refused mv. With EINVAL, mv would report a directory moved into itself, and with
    /// EEXIST a name that is taken.
    pub fn errno_of_mv(&self) -> i32 {
        match self {
            Error::BadName { .. } => libc::EPERM,
            Error::NotUnique { .. } => libc::ENOTUNIQ,
            other => match other.errno() {
                libc::EINVAL => libc::EBADMSG,
                errno => errno,
            },
        }
    }

    /// Whether the disk was full. The operation may be tried again after the trash was emptied.
    pub fn is_no_space(&self) -> bool {
        matches!(self, Error::Io { source, .. } if source.raw_os_error() == Some(libc::ENOSPC))
    }

    /// Whether stored data is damaged or lost, probably for good.
    pub fn is_damage(&self) -> bool {
        matches!(self, Error::Corrupt { .. } | Error::Io { .. }) && self.errno() == libc::EIO
    }

    /// What the user can do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Error::NotTar { what, looks } => remedy::of_no_tar(what, looks),
            Error::BadArchive { .. } => "make or fetch the archive again, and check it with tar tf",
            Error::BadCompression { .. } => {
                "make or fetch it again: gzip -t, xz -t, zstd -t, lz4 -t, bzip2 -t say whether a copy is whole"
            }
            Error::BadImage { kind: "qcow2", .. } => {
                "look at it with qemu-img check; qemu-img check -r all, or qemu-img convert, may mend it"
            }
            Error::BadImage { .. } => "make or fetch it again, and check it with unsquashfs",
            Error::Truncated { .. } => {
                "copy the whole file; an archive made without end marker goes in as .name, then mv"
            }
            Error::LeavesRoot { .. } => "make the archive with tar -C ROOT -c .",
            Error::OverLimit { what, limit } => remedy::of_limit(what, limit),
            Error::Mismatch { .. } => "fetch it again, or correct what announces it",
            Error::DecoderBusy { .. } => "copy it again when the other upload is done",
            Error::Unsupported { instead, .. } => instead,
            Error::WriterKilled { .. } => "copy it again",
            Error::WrittenTwice { .. } => {
                "write the file from its beginning to its end, or copy it from a local file"
            }
            Error::BadName { .. } => "names are 1 to 255 bytes of UTF-8, not starting with . @ or -",
            Error::NameTooLong { .. } => "use a shorter name",
            Error::Taken { name: what, holder } | Error::NotUnique { what, holder } => {
                remedy::of_taken(what, holder)
            }
            Error::NotFound { what } => remedy::of_missing(what),
            Error::Ambiguous { .. } => "give more digits of the digest",
            Error::ImageIsTypeDefault { .. } => "switch first: ln -sfn ../../OTHER MNT/.imgfs/defaults/TYPE",
            Error::ImageIsViewDefault { .. } => {
                "point its default elsewhere first, where the view is mounted: ln -sfn OTHER default"
            }
            Error::OfView { .. } => "rm its link in .imgfs/views, or mv it to a name that does not bind it",
            Error::ImageIsDefault { .. } => "point default elsewhere first: ln -sfn OTHER default",
            Error::VersionIsPinned { .. } => "point it elsewhere first: ln -sfn latest IMAGE/default",
            Error::OnlyVersion { .. } => "rmdir the image to delete all of it",
            Error::NotEmpty { .. } => "rm -r removes it with all it holds",
            Error::HasDependents { .. } => "delete the versions that were made of it first",
            Error::Immutable { .. } => "chattr -i it first, or setfattr -n user.imgfs.immutable -v false",
            Error::OverQuota { .. } => "delete images or versions, or ask who administers the store for more",
            Error::Attached { .. } => {
                "copy its rootfs.tar in under another name, or change it in the mount of the whole store"
            }
            Error::NotYours { .. } => "ask its owner for chmod or chgrp, or use another name",
            Error::OtherPlace { .. } => "cp it there, and rm it here",
            Error::LookAgain => "do it once more",
            Error::NotMounted { .. } => "findmnt -t fuse.imgfs says where there is one",
            Error::InUse { .. } => {
                "let its users remove their entries of used_by, or set status to deleted: then it goes with the last of them"
            }
            Error::Frozen { .. } => "copy a new tarball into the image: that makes a new version",
            Error::NoTree { .. } => {
                "copy the tree as one tarball: tar -C TREE -c . > MNT/NAME.tar; a tarball goes in as it is"
            }
            Error::Managed { what, why } => remedy::of_managed(what, why),
            Error::UploadBusy { .. } => "wait for it, or copy under another name",
            Error::Invalid { what, why } => remedy::of_invalid(what, why),
            Error::BadMetadata { .. } => {
                "editable: description, type, os, release, architecture, variant, tags, properties, keep_upload, storage, keep_versions, expires_at, expires_unused, status, immutable"
            }
            Error::NotDirectory { .. } | Error::IsDirectory { .. } => "look with ls -l",
            Error::NoAttribute { .. } => "list them with getfattr -d",
            Error::Locked { holder, .. } => remedy::of_locked(holder),
            Error::StoreNewer { .. } => "use a newer imgfs",
            Error::NotAStore { .. } => "give another --store, or an empty directory",
            Error::FormatLost { .. } => "imgfs fsck --repair writes it again, as this program's",
            Error::Stopped { .. } => "look at the disk (dmesg), then unmount and mount again",
            Error::Corrupt { .. } => {
                "copy the same upload in again, which heals it; imgfs fsck says what else is damaged"
            }
            Error::Io { source, .. } => remedy::of_io(source),
            Error::Catalog(_) => "run imgfs fsck",
            Error::Again { .. } => "see the refusal before this one",
            Error::Stopping => "mount it again",
            Error::Ended { .. } => "give the command again: it is done without a mount then",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel ends the session on anything over 511, remembers ENOSYS and retries ESTALE; tools copy on
    /// EXDEV. The last two are meant only where we say so.
    #[test]
    fn no_refusal_uses_an_errno_that_harms_the_mount() {
        let samples = [
            Error::Stopping,
            Error::Catalog("x".into()),
            Error::NameTooLong { len: 300 },
            Error::WriterKilled { name: "x".into() },
            Error::Io {
                doing: "read",
                path: "/x".into(),
                source: io::Error::from_raw_os_error(libc::ESTALE),
            },
            Error::Io {
                doing: "rename",
                path: "/x".into(),
                source: io::Error::from_raw_os_error(libc::EXDEV),
            },
        ];
        for e in samples {
            let n = e.errno();
            assert!(n > 0 && n < 512, "{e}: {n}");
            assert!(![libc::ENOSYS, libc::ESTALE, libc::EXDEV, libc::ENOTEMPTY].contains(&n), "{e}: {n}");
        }
    }
}
