//! What is no tar: which format it is, in words.

use crate::error::Error;

/// Why something that begins so, and is called `what`, is no tar: unknown, or known and not taken.
pub fn not_a_tar(what: String, head: &[u8]) -> Error {
    if let Some((_, kind)) = DISKS.iter().find(|(magic, _)| head.starts_with(magic)) {
        let instead = "convert it, and copy the result: qemu-img convert -O qcow2 FILE disk.qcow2";
        return Error::Unsupported { what: format!("{what}: {kind}"), instead };
    }
    match KNOWN.iter().find(|(magic, _)| head.starts_with(magic)) {
        Some((_, kind)) => Error::Unsupported { what: format!("{what}: {kind}"), instead: "unpack it, and copy a tarball" },
        None => Error::NotTar { what, looks: looks_like(head) },
    }
}

/// Disk images that are not taken. Source: qemu, block/vmdk.c, vdi.c, vhdx.h, vpc.c.
const DISKS: &[(&[u8], &str)] = &[
    (b"KDMV", "a VMDK disk"),
    (b"COWD", "a VMDK disk"),
    (b"# Disk DescriptorFile", "the description of a VMDK disk"),
    (b"<<< ", "a VDI disk"),
    (b"vhdxfile", "a VHDX disk"),
    (b"conectix", "a VHD disk"),
];

/// Formats that hold files and are not taken.
const KNOWN: &[(&[u8], &str)] = &[
    (b"PK\x03\x04", "a zip archive"),
    (b"LZIP", "lzip data"),
    (b"\x1f\x9d", "data of compress (.Z)"),
    (b"\x89LZO", "lzop data"),
    (b"Rar!", "a rar archive"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"!<arch>", "a Debian package or ar archive"),
    (b"070701", "a cpio archive"),
];

/// A few words for the beginning of something that nobody knows.
fn looks_like(bytes: &[u8]) -> String {
    const SEEN: &[(&[u8], &str)] = &[
        (b"\x7fELF", "a program (ELF)"),
        (b"%PDF", "a PDF"),
        (b"\x89PNG", "a picture"),
        (b"#!", "a script"),
        (b"<", "HTML or XML"),
        (b"{", "JSON"),
    ];
    if let Some((_, what)) = SEEN.iter().find(|(magic, _)| bytes.starts_with(magic)) {
        return (*what).into();
    }
    let head = &bytes[..bytes.len().min(16)];
    if head.iter().all(|b| b.is_ascii_graphic() || b.is_ascii_whitespace()) {
        return format!("text ({:?})", String::from_utf8_lossy(head));
    }
    format!("unknown data ({})", crate::digest::hex(&head[..head.len().min(8)]))
}
