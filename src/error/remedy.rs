//! Remedies for errors that many gestures can cause. Each is chosen by what the error is about.

use crate::error::Holder;

/// What to do about something that does not exist. `what` is as in the sentence.
pub(super) fn of_missing(what: &str) -> &'static str {
    if what.starts_with("setting ") {
        "ls .imgfs/config shows the settings; quota.USER and view.VIEW.quota bound one user and one view"
    } else if what.ends_with(" to link to") {
        "make the target first, or check its name with ls; ln -sfn A B, with -n, switches a link"
    } else if what.starts_with("link ") {
        "switch a link with ln -sfn, with -n: without it, ln goes into the directory that the link leads to"
    } else if what.starts_with("version ") {
        "ls IMAGE shows its versions, ls .imgfs/trash those that were deleted"
    } else if what.starts_with("view ") || what.ends_with(" in this view") || what.contains(" in view ") {
        "ls .imgfs/views shows the views, and ls of one what is in it"
    } else if what.starts_with("type of images") {
        "ls .imgfs/defaults shows the types"
    } else if what.starts_with("origin ") {
        "copy the origin in first, or take the origin out of the manifest"
    } else {
        "check the name with ls"
    }
}

/// The name in errors for the unpacked content of a compressed upload.
pub const UNPACKED: &str = "what it unpacks to";

/// What to do about a file that is not a tarball, by its name and by what it looks like.
pub(super) fn of_no_tar(name: &str, looks: &str) -> &'static str {
    const SUMS: &[&str] = &[".sha256", ".sha512", ".sha1", ".md5", ".asc", ".sig", "SUMS"];
    if SUMS.iter().any(|end| name.ends_with(end)) {
        "leave a checksum out; one that is to be checked goes with its file: mkdir .new, cp both into it, mv .new NAME"
    } else if name == UNPACKED {
        "compress the tarball of it, not the file itself: tar -C ROOT -czf x.tar.gz ."
    } else if looks.starts_with("JSON") {
        "a manifest goes with its file: mkdir .new, cp both into it, mv .new NAME"
    } else if looks.starts_with("HTML") {
        "this is a web page: download the file itself"
    } else if looks.starts_with("text") {
        "copy the archive, not a text about it; a text in an image goes into its tarball: tar -C ROOT -cf x.tar ."
    } else if looks.starts_with("a program") || looks.starts_with("a script") {
        "put it into a tarball: tar -C ROOT -cf x.tar ."
    } else {
        "copy a tarball (plain, gzip, bzip2, xz, zstd, lz4); a disk without a partition table needs a name with .img or .raw"
    }
}

/// What to do about a name or a file that imgfs manages. `why` is as in the sentence.
pub(super) fn of_managed(what: &str, why: &str) -> &'static str {
    if what.starts_with("the number ") || what == "what an image holds" {
        "cp x.tar IMAGE/ makes the next version, and gives it its number"
    } else if what == "latest" {
        "cp a newer tarball in, and latest follows; to use another version: ln -sfn N IMAGE/default"
    } else if what == "metadata.json" {
        "edit it, or setfattr -n user.imgfs.KEY -v VALUE IMAGE; rmdir IMAGE deletes the image"
    } else if what == "a hard link" {
        "ln -s IMAGE ALIAS makes an alias; cp --reflink=never copies a file out"
    } else if what == "a device, pipe or socket" {
        "put it into the tarball of a root: tar --numeric-owner -C ROOT -cf x.tar ."
    } else if what.starts_with("the setting ") {
        "truncate -s 0 .imgfs/config/NAME sets it back, in the mount of the whole store"
    } else if why.contains("renamed within the root") {
        "mv OLD NEW, where there is no NEW yet; a version comes by cp x.tar IMAGE/"
    } else if why.contains("receipt") {
        "rm it, or let it be: it is not listed, and takes no room"
    } else if why.contains("ln -sfn") {
        "ln -sfn TARGET LINK changes where it leads"
    } else if what.starts_with("a version's place") {
        "ln -s N IMAGE/@LABEL names a version; to have it elsewhere, cp its rootfs.tar there"
    } else if what.starts_with("an image whose status") {
        "setfattr -n user.imgfs.status -v active IMAGE brings it back"
    } else {
        "see .imgfs/README for the gestures"
    }
}

/// What to do about a name that is taken. `holder` is as in the sentence.
pub(super) fn of_taken(name: &str, holder: &str) -> &'static str {
    if holder.contains("the label of version") {
        "rm IMAGE/@LABEL first, or copy it under another name"
    } else if holder.contains("uuid") {
        "take the uuid out of the manifest, or delete the version that has it"
    } else if holder.contains("architecture") || name.contains("architecture") {
        "copy it under another name: an image has one architecture"
    } else if holder.contains("alias") {
        "rm the alias first, or choose another name"
    } else if holder.contains("upload") {
        "wait until the upload is done, or choose another name"
    } else {
        "choose another name, or remove the holder first"
    }
}

/// What to do about input that contradicts itself. `what` is as in the sentence.
pub(super) fn of_invalid(what: &str, why: &str) -> &'static str {
    if what == "the LXD image" {
        "export it again (lxc image export), or copy its rootfs as a tarball"
    } else if what == "the image archive" {
        "save it again: docker save, podman save, skopeo copy"
    } else if what == "the staging directory" {
        "ls -l it, rm what does not belong there, and mv it again"
    } else if what.starts_with("-o remount,") {
        "echo VALUE > .imgfs/config/NAME changes a setting; anything else: umount, then mount with that option"
    } else if what.starts_with("-o ") {
        "imgfs mount --help names the options, and docs/options.md says what each is for"
    } else if why.contains("it takes ") {
        "write one value: echo 7d > .imgfs/config/trash; truncate -s 0 sets it back to the default"
    } else {
        "see .imgfs/README for the gestures"
    }
}

/// What to do about something over a limit. `limit` is as in the sentence.
pub(super) fn of_limit(what: &str, limit: &str) -> &'static str {
    if what.ends_with(" of the qcow2") {
        "make it of larger clusters, or without snapshots: qemu-img convert -O qcow2 -o cluster_size=64k OLD NEW"
    } else if limit.contains("max_ratio") {
        "if the file is not a decompression bomb, raise the limit: echo N > .imgfs/config/max_ratio, or mount -o max_ratio=N"
    } else if limit.contains("max_window") || what.contains("memory to decode") {
        "compress it with a smaller window (zstd without --long, xz -6), or raise .imgfs/config/max_window"
    } else {
        "if the file is good, raise the limit: ls .imgfs/config/max_*, and docs/options.md"
    }
}

/// What to do about the process that holds a store.
pub(super) fn of_locked(holder: &Holder) -> &'static str {
    match holder {
        _ if holder.dying.is_some() => "wait: it ends when its disk answers; see dmesg",
        _ if holder.elsewhere.is_some() => "end that; lsns -t mnt lists mount namespaces",
        _ if !holder.is_imgfs => "wait for that process to end, or end it",
        _ if holder.stays && holder.mounted.is_empty() => {
            "imgfs mount gets a mount from it; imgfs daemon --stop ends it"
        }
        _ if holder.mounted.is_empty() => "wait for that command to end",
        _ => "imgfs umount it first",
    }
}

/// What to do about a disk that failed.
pub(super) fn of_io(source: &std::io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::ENOSPC) => "delete images and run imgfs gc --trash, or give the store more room",
        Some(libc::EROFS) => {
            "to read a store on a disk that cannot be written, lay an overlay over it: docs/reliability.md says how"
        }
        _ => "look at the disk, then run imgfs fsck",
    }
}
