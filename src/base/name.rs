//! Names as users type them: images, version numbers, and what a file name says about an upload.

use std::fmt;

use crate::error::{Error, Result};

/// The longest name, in bytes; Linux's NAME_MAX.
pub const NAME_MAX: usize = 255;

/// The endings of archives, in lower or upper case. Some also name a compression.
const ARCHIVE_SUFFIXES: &[&str] = &[".tar", ".tgz", ".txz", ".tlz", ".tbz2", ".tbz", ".tzst", ".ova"];

/// The endings of disks, file system images and streams of zfs. The content decides which it is: a
/// qcow2 may have the name disk.vmdk.
const PAYLOAD_SUFFIXES: &[&str] = &[
    ".qcow2",
    ".img",
    ".raw",
    ".squashfs",
    ".sqfs",
    ".sqsh",
    ".erofs",
    ".iso",
    ".zfs",
    ".zvol",
    ".vmdk",
    ".vdi",
    ".vhd",
    ".vhdx",
];

/// The endings of compressed files.
const COMPRESSED_SUFFIXES: &[&str] = &[".gz", ".bz2", ".xz", ".zst", ".zstd", ".pzstd", ".lz4", ".lzma"];

/// The endings of unfinished files, as browsers, wget, rsync, curl, FileZilla, aria2 and vim use them.
const TEMPORARY_SUFFIXES: &[&str] =
    &[".part", ".partial", ".tmp", ".temp", ".crdownload", ".download", ".filepart", ".aria2", ".swp", "~"];

/// The name of an image, an alias or a root-level link: valid by construction.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageName(String);

impl ImageName {
    /// Checks the rule for names.
    ///
    /// # Errors
    ///
    /// `NameTooLong`, `BadName`.
    pub fn parse(name: &[u8]) -> Result<ImageName> {
        let bad = |why| Error::BadName { name: String::from_utf8_lossy(name).into_owned(), why };
        if name.len() > NAME_MAX {
            return Err(Error::NameTooLong { len: name.len() });
        }
        let text = std::str::from_utf8(name).map_err(|_| bad("it is not UTF-8"))?;
        if text.is_empty() {
            return Err(bad("it is empty"));
        }
        if text.starts_with(['.', '@', '-']) {
            return Err(bad("it starts with . @ or -"));
        }
        if text.contains('/') || text.chars().any(char::is_control) {
            return Err(bad("it has a slash or a control character"));
        }
        if text == "default" || text == "latest" {
            return Err(bad("the word is reserved for a link"));
        }
        Ok(ImageName(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of an alias. It is like an image's name, or has several parts with slashes between them, as
/// `centos/6/amd64`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AliasName(String);

impl AliasName {
    /// Checks each part. If there are several, all but the first may have any file name: LXD has
    /// `ubuntu/22.04/default`.
    ///
    /// # Errors
    ///
    /// `NameTooLong`, `BadName`.
    pub fn parse(name: &[u8]) -> Result<AliasName> {
        let Some(at) = name.iter().position(|byte| *byte == b'/') else {
            return Ok((&ImageName::parse(name)?).into());
        };
        let bad = |why| Error::BadName { name: String::from_utf8_lossy(name).into_owned(), why };
        if name.len() > NAME_MAX {
            return Err(Error::NameTooLong { len: name.len() });
        }
        ImageName::parse(&name[..at])?;
        let text = std::str::from_utf8(name).map_err(|_| bad("it is not UTF-8"))?;
        if text.split('/').any(|part| part.is_empty() || part.starts_with('.'))
            || text.chars().any(char::is_control)
        {
            return Err(bad("a part of it is empty, starts with a dot or has a control character"));
        }
        Ok(AliasName(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&ImageName> for AliasName {
    fn from(name: &ImageName) -> AliasName {
        AliasName(name.0.clone())
    }
}

impl From<&AliasName> for AliasName {
    fn from(name: &AliasName) -> AliasName {
        name.clone()
    }
}

/// Separates the name of a view from the name of something bound to it. Anbox uses names with a single
/// colon: `bionic:android11:amd64`.
pub const OF_VIEW: &str = "::";

/// The name in the store of something bound to a view: `dc1::web`.
pub fn bound_name(view: &str, name: &str) -> String {
    format!("{view}{OF_VIEW}{name}")
}

/// Parses a version number in the form of its directory's name: decimal, no sign, no leading zero.
pub fn parse_number(name: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(name).ok()?;
    if text.is_empty()
        || !text.bytes().all(|b| b.is_ascii_digit())
        || (text.len() > 1 && text.starts_with('0'))
    {
        return None;
    }
    text.parse().ok()
}

/// What a new file's name says about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise<'n> {
    /// An upload for the image with this name. The name is the file's name without all endings that say how
    /// an image is packed. Inside an image the name means nothing.
    Upload(&'n str),
    /// A temporary name: the file is staged until a rename gives it another one.
    Staged,
}

/// Reads a new file's name. `web.tar.xz` and `web` are uploads for `web`; `.web.tar.xz.Ab12` and
/// `web.tar.part` are staged.
pub fn promise_of(name: &str) -> Promise<'_> {
    if name.starts_with('.') || strip(name, TEMPORARY_SUFFIXES).is_some() {
        return Promise::Staged;
    }
    Promise::Upload(image_stem(name))
}

/// The image that a file name means: `web` for `web.tar.xz`, `web.qcow2`, `web.img.zst`, `web.tar.gz.1` and
/// `web`.
pub fn image_stem(name: &str) -> &str {
    let name = unrotated(name);
    strip_packing(name).unwrap_or(name)
}

/// `web.tar.gz` for `web.tar.gz.1`: logrotate and savelog add such numbers to older files. A number
/// alone means nothing.
fn unrotated(name: &str) -> &str {
    let is_number =
        |number: &str| (1..=3).contains(&number.len()) && number.bytes().all(|b| b.is_ascii_digit());
    let rotated =
        name.rsplit_once('.').filter(|(rest, number)| is_number(number) && strip_packing(rest).is_some());
    rotated.map_or(name, |(rest, _)| rest)
}

/// A name without the endings of its compression, and of the archive or disk in it. `None` if it has no
/// such ending.
fn strip_packing(name: &str) -> Option<&str> {
    let unpacked = strip(name, COMPRESSED_SUFFIXES);
    let inner = unpacked.unwrap_or(name);
    strip(inner, ARCHIVE_SUFFIXES).or_else(|| strip(inner, PAYLOAD_SUFFIXES)).or(unpacked)
}

/// What a file's name says about the version in it, as in `anbox-lxd-bionic_1.7_amd64.tar.xz`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VersionTag {
    /// The version string, which becomes a label.
    pub label: Option<String>,
    pub architecture: Option<&'static str>,
}

/// Reads NAME_VERSION_ARCH, if the architecture is known. Returns the name, and what the rest says.
/// Source: systemd.v(7), for the form; the words are those of all systems, see `architecture`.
pub fn parse_tag(stem: &str) -> Option<(&str, VersionTag)> {
    // `x86_64` itself has an underscore.
    let ends = stem.match_indices('_').map(|(at, _)| at).rev().take(2);
    let (rest, arch) = ends.into_iter().find_map(|at| Some((&stem[..at], architecture(&stem[at + 1..])?)))?;
    let (name, version) = rest.rsplit_once('_')?;
    let good = !name.is_empty() && !version.is_empty() && version.bytes().any(|b| b.is_ascii_digit());
    good.then(|| (name, VersionTag { label: Some(version.to_owned()), architecture: Some(arch) }))
}

/// Whether a name says that its bytes are a disk image, whatever they look like. This includes rsync's
/// `.vm.img.gz.Ab12Cd`.
pub fn means_raw_disk(name: &str) -> bool {
    if let Some(temporary) = name.strip_prefix('.') {
        return temporary
            .split('.')
            .skip(1)
            .any(|part| part.eq_ignore_ascii_case("img") || part.eq_ignore_ascii_case("raw"));
    }
    let name = unrotated(name);
    strip(strip(name, COMPRESSED_SUFFIXES).unwrap_or(name), &[".img", ".raw"]).is_some()
}

/// Whether a name says that its stream is a zfs volume, which is a disk.
pub fn means_volume(name: &str) -> bool {
    let name = unrotated(name);
    strip(strip(name, COMPRESSED_SUFFIXES).unwrap_or(name), &[".zvol"]).is_some()
}

fn strip<'n>(name: &'n str, suffixes: &[&str]) -> Option<&'n str> {
    suffixes.iter().find_map(|suffix| {
        let at = name.len().checked_sub(suffix.len())?;
        let tail = name.get(at..)?;
        (at > 0 && tail.eq_ignore_ascii_case(suffix)).then(|| &name[..at])
    })
}

/// Whether GNU `ln -sf` made this name: `Cu` and six letters or digits. ln renames it over the real
/// name at once. Source: coreutils 9.1, lib/force-link.c.
pub fn is_ln_temporary(name: &str) -> bool {
    name.len() == 8 && name.starts_with("Cu") && name.bytes().all(|b| b.is_ascii_alphanumeric())
}

/// The spelling of an architecture that imgfs uses, which is that of uname(1) and LXD, for all
/// spellings in use.
pub fn architecture(word: &str) -> Option<&'static str> {
    const KNOWN: &[(&str, &[&str])] = &[
        ("x86_64", &["amd64", "x86-64", "generic_64"]),
        ("i686", &["i386", "i586", "386", "x86", "generic_32"]),
        ("aarch64", &["arm64"]),
        ("armv7l", &["armhf", "armv7", "armhfp"]),
        ("armv6l", &["armel", "arm", "armv6"]),
        ("ppc64le", &["ppc64el", "powerpc64le", "ppc64-le"]),
        ("ppc64", &["powerpc64"]),
        ("ppc", &["powerpc"]),
        ("s390x", &[]),
        ("riscv64", &[]),
        ("riscv32", &[]),
        ("loongarch64", &["loong64"]),
        ("mips64el", &["mips64le", "mips64-le"]),
        ("mipsel", &["mipsle", "mips-le"]),
        ("mips64", &[]),
        ("mips", &[]),
    ];
    let lower = word.to_ascii_lowercase();
    KNOWN
        .iter()
        .find(|(name, others)| *name == lower || others.contains(&lower.as_str()))
        .map(|(name, _)| *name)
}

/// Whether a file of this name in a version would conflict with one of imgfs's own.
pub fn is_part_of_version(name: &str) -> bool {
    let ours = [
        "changes",
        "metadata.json",
        "metadata.yaml",
        "rootfs",
        "rootfs.tar",
        "image.tar",
        "used_by",
        "templates",
        "manifest",
        "file",
    ];
    ours.contains(&name)
        || [".", "disk.", "image.iso", "rootfs.squashfs", "rootfs.erofs", "rootfs.zfs"]
            .iter()
            .any(|p| name.starts_with(p))
}

/// A new id: 20 characters of `0-9a-v`, 100 random bits, safe in URLs and file names.
///
/// # Errors
///
/// `Io` if the kernel gives no random bytes.
pub fn new_id() -> Result<String> {
    const ALPHABET: &[u8; 32] = b"0123456789abcdefghijklmnopqrstuv";
    let mut random = [0u8; 20];
    crate::base::sys::random(&mut random)?;
    Ok(random.iter().map(|b| char::from(ALPHABET[usize::from(b & 31)])).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_contract() {
        for good in
            ["web", "bionic:android11:amd64", "a b", "ü", "0", "x.tar", "a%2Fb", "default.~1~", "Default"]
        {
            assert!(ImageName::parse(good.as_bytes()).is_ok(), "{good}");
        }
        for bad in ["", ".x", "@x", "-x", "default", "latest", "a/b", "a\nb", "a\u{7f}b", "a\u{85}b"] {
            assert!(ImageName::parse(bad.as_bytes()).is_err(), "{bad:?}");
        }
        assert!(ImageName::parse(b"\xff").is_err());
        assert!(ImageName::parse(&[b'a'; 255]).is_ok());
        assert_eq!(ImageName::parse(&[b'a'; 256]).unwrap_err().errno(), libc::ENAMETOOLONG);
    }

    #[test]
    fn a_file_name_says_which_image_it_means() {
        for (name, image) in [
            ("web.tar.xz", "web"),
            ("web.TGZ", "web"),
            ("a.b.tar", "a.b"),
            ("web", "web"),
            ("é.tar", "é"),
            ("vm.qcow2", "vm"),
            ("disk.vmdk", "disk"),
            ("box.ova", "box"),
            ("image_name.zfs.gz", "image_name"),
            ("web.tar.lzma", "web"),
            ("web.tlz", "web"),
            ("web.tar.pzstd", "web"),
            ("web.tar.gz.1", "web"),
            ("web.img.zst.12", "web"),
            ("notes.gz", "notes"),
            // A number, or a suffix alone, is a name.
            ("web.1", "web.1"),
            ("debian-12.7", "debian-12.7"),
            ("tar", "tar"),
        ] {
            assert_eq!(promise_of(name), Promise::Upload(image), "{name}");
        }
        for staged in
            [".web.tar.xz.x1", ".x", "web.tar.xz.part", "web.tar~", "web.tar.aria2", "W.TMP", "a.crdownload"]
        {
            assert_eq!(promise_of(staged), Promise::Staged, "{staged}");
        }
        assert!(
            means_raw_disk("a.img.xz")
                && means_raw_disk("a.RAW")
                && means_raw_disk("a.img.gz.1")
                && means_raw_disk(".a.img.gz.Ab12Cd")
                && !means_raw_disk("a.iso")
        );
    }

    #[test]
    fn a_file_name_says_which_build_it_is() {
        let read = |stem| {
            parse_tag(stem).map(|(name, b)| {
                (name.to_owned(), b.label.unwrap_or_default(), b.architecture.unwrap_or_default())
            })
        };
        let is = |name: &str, version: &str, arch| Some((name.to_owned(), version.to_owned(), arch));
        assert_eq!(read("anbox-lxd-bionic_1.7_amd64"), is("anbox-lxd-bionic", "1.7", "x86_64"));
        assert_eq!(read("a_b_20200304_x86_64"), is("a_b", "20200304", "x86_64"));
        assert_eq!(read("debian-12-standard_12.7-1_arm64"), is("debian-12-standard", "12.7-1", "aarch64"));
        assert_eq!(read("web_1.0"), None);
        assert_eq!(read("web_amd64"), None);
        assert_eq!(read("my_web_amd64"), None);
        assert_eq!(read("_1_amd64"), None);
    }

    #[test]
    fn version_numbers_have_one_spelling() {
        assert_eq!(parse_number(b"0"), Some(0));
        assert_eq!(parse_number(b"17"), Some(17));
        for bad in [&b""[..], b"01", b"+1", b"-1", b"1a", b"99999999999"] {
            assert_eq!(parse_number(bad), None);
        }
    }
}
