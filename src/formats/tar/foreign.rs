//! What is no tar: which format it is, in words.

use crate::error::Error;

/// Why something that begins so, and is called `what`, is no tar: unknown, or known and not taken.
pub fn not_a_tar(what: String, head: &[u8]) -> Error {
    match KNOWN.iter().find(|(magic, ..)| head.starts_with(magic)) {
        Some((_, kind, instead)) => Error::Unsupported { what: format!("{what}: {kind}"), instead },
        None => Error::NotTar { what, looks: looks_like(head) },
    }
}

/// Formats that hold files and are not taken: how they begin, what they are, what makes them something that
/// is taken.
const KNOWN: &[(&[u8], &str, &str)] = &[
    (b"PK\x03\x04", "a zip archive", "unzip x.zip -d DIR, then tar -C DIR -cf x.tar ."),
    (b"LZIP", "lzip data", "lzip -d x.tar.lz, and copy the x.tar"),
    (b"\x1f\x9d", "data of compress (.Z)", "uncompress x.tar.Z, and copy the x.tar"),
    (b"\x89LZO", "lzop data", "lzop -d x.tar.lzo, and copy the x.tar"),
    (b"Rar!", "a rar archive", "unrar x x.rar DIR/, then tar -C DIR -cf x.tar ."),
    (b"7z\xbc\xaf", "a 7z archive", "7z x -oDIR x.7z, then tar -C DIR -cf x.tar ."),
    (b"!<arch>", "a Debian package or ar archive", "dpkg-deb --fsys-tarfile x.deb > x.tar"),
    (b"070701", "a cpio archive", "cpio -idD DIR < x.cpio, then tar -C DIR -cf x.tar ."),
    (b"KDMV", "a VMDK disk", CONVERT),
    (b"COWD", "a VMDK disk", CONVERT),
    (b"# Disk DescriptorFile", "the description of a VMDK disk", CONVERT),
    (b"vhdxfile", "a VHDX disk", CONVERT),
    (b"conectix", "a VHD disk", CONVERT),
    (b"<<< Oracle VM VirtualBox Disk Image", "a VDI disk", CONVERT),
];

/// What makes a qcow2 of another disk.
const CONVERT: &str = "qemu-img convert -O qcow2 DISK x.qcow2, and copy that";

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
    format!("unknown data ({})", crate::base::digest::hex(&head[..head.len().min(8)]))
}
