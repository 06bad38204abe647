//! The options in `-o` about the mount itself, with the names of mount(8).

use std::collections::BTreeSet;

use rustix::mount::{MountAttrFlags, MountFlags};
use serde::{Deserialize, Serialize};

/// The options of mount(8) that the kernel keeps for every mount: the one that sets a flag, and the one
/// that clears it.
///
/// Source: mount(8), FILESYSTEM-INDEPENDENT MOUNT OPTIONS; mount(2).
const WORDS: &[(&str, &str, MountFlags)] = &[
    ("ro", "rw", MountFlags::RDONLY),
    ("nosuid", "suid", MountFlags::NOSUID),
    ("nodev", "dev", MountFlags::NODEV),
    ("noexec", "exec", MountFlags::NOEXEC),
    ("sync", "async", MountFlags::SYNCHRONOUS),
    ("dirsync", "nodirsync", MountFlags::DIRSYNC),
    ("noatime", "atime", MountFlags::NOATIME),
    ("nodiratime", "diratime", MountFlags::NODIRATIME),
    ("relatime", "norelatime", MountFlags::RELATIME),
    ("strictatime", "nostrictatime", MountFlags::STRICTATIME),
    ("lazytime", "nolazytime", MountFlags::LAZYTIME),
    ("nosymfollow", "symfollow", MountFlags::NOSYMFOLLOW),
];

/// Only one of these can be set.
const ATIME: [&str; 3] = ["noatime", "relatime", "strictatime"];

/// The options in `-o` about the mount itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flags {
    pub allow_other: bool,
    /// Without ACLs, the mode alone decides.
    pub noacl: bool,
    /// The options that set a flag.
    set: BTreeSet<String>,
}

impl Default for Flags {
    fn default() -> Flags {
        Flags { allow_other: false, noacl: false, set: ["nodev", "nosuid"].map(String::from).into() }
    }
}

impl Flags {
    /// The flags of an existing mount.
    ///
    /// `options` are those of the mount and of its file system, as mountinfo lists them.
    pub fn shown(options: &str) -> Flags {
        let mut flags = Flags { set: BTreeSet::new(), ..Flags::default() };
        for word in options.split(',') {
            // A mount is read-only if either of the two says so, so `rw` clears nothing here.
            let known = word != "rw" && flags.hear(word);
            flags.allow_other |= !known && word == "allow_other";
        }
        flags
    }

    /// Applies an option of mount(8). False if it is no such option.
    pub fn hear(&mut self, word: &str) -> bool {
        let Some((on, ..)) = WORDS.iter().find(|(on, off, _)| [*on, *off].contains(&word)) else {
            return false;
        };
        if *on != word {
            self.set.remove(*on);
            return true;
        }
        if ATIME.contains(&word) {
            self.set.retain(|other| !ATIME.contains(&other.as_str()));
        }
        self.set.insert(word.to_owned());
        true
    }

    pub fn bits(&self) -> MountFlags {
        let set = WORDS.iter().filter(|(on, ..)| self.set.contains(*on));
        set.fold(MountFlags::empty(), |bits, (.., flag)| bits | *flag)
    }

    /// The flags for fsmount(2).
    pub fn attributes(&self) -> MountAttrFlags {
        const ATTRIBUTES: &[(&str, MountAttrFlags)] = &[
            ("ro", MountAttrFlags::MOUNT_ATTR_RDONLY),
            ("nosuid", MountAttrFlags::MOUNT_ATTR_NOSUID),
            ("nodev", MountAttrFlags::MOUNT_ATTR_NODEV),
            ("noexec", MountAttrFlags::MOUNT_ATTR_NOEXEC),
            ("noatime", MountAttrFlags::MOUNT_ATTR_NOATIME),
            ("nodiratime", MountAttrFlags::MOUNT_ATTR_NODIRATIME),
            ("strictatime", MountAttrFlags::MOUNT_ATTR_STRICTATIME),
            ("nosymfollow", MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW),
        ];
        let set = ATTRIBUTES.iter().filter(|(word, _)| self.set.contains(*word));
        set.fold(MountAttrFlags::empty(), |bits, (_, flag)| bits | *flag)
    }

    /// These flags, made read-only.
    pub fn read_only(&self) -> Flags {
        let mut flags = self.clone();
        flags.hear("ro");
        flags
    }

    /// The options that set these flags.
    pub fn words(&self) -> impl Iterator<Item = &str> {
        self.set.iter().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_holds() {
        let mut flags = Flags::default();
        for word in ["ro", "noatime", "rw", "dev", "strictatime", "ro"] {
            assert!(flags.hear(word), "{word}");
        }
        assert!(!flags.hear("trash"));
        assert_eq!(flags.words().collect::<Vec<_>>(), ["nosuid", "ro", "strictatime"]);
        assert_eq!(
            Flags::shown("ro,nosuid,noatime,rw,user_id=0").words().collect::<Vec<_>>(),
            ["noatime", "nosuid", "ro"]
        );
    }
}
