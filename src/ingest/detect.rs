//! Finds out which system an image holds, from its own files.

use crate::blob::ReadBuf;
use crate::store::Store;
use crate::tree::{Bytes, NodeKind, Tree};

#[derive(Debug, Default, PartialEq, Eq)]
pub struct System {
    pub os: String,
    pub release: String,
    pub architecture: String,
}

/// Programs whose header gives the machine. Any image that can start has one of them.
const PROGRAMS: &[&str] = &[
    "bin/sh",
    "usr/bin/env",
    "sbin/init",
    "usr/lib/systemd/systemd",
    "bin/busybox",
    "system/bin/sh",
    "bin/ls",
    "usr/bin/bash",
];

/// Looks into a tree. What it cannot find out stays empty.
pub fn detect(store: &Store, tree: &Tree) -> System {
    let mut system = System::default();
    let release =
        ["etc/os-release", "usr/lib/os-release"].iter().find_map(|path| read_head(store, tree, path, 65536));
    if let Some(text) = release {
        let text = String::from_utf8_lossy(&text).into_owned();
        system.os = value_of(&text, "ID");
        system.release = [value_of(&text, "VERSION_CODENAME"), value_of(&text, "VERSION_ID")]
            .into_iter()
            .find(|v| !v.is_empty())
            .unwrap_or_default();
    }
    if let Some(machine) = PROGRAMS.iter().find_map(|path| machine_of(&read_head(store, tree, path, 64)?)) {
        system.architecture = machine.into();
    }
    system
}

fn read_head(store: &Store, tree: &Tree, path: &str, len: usize) -> Option<Vec<u8>> {
    let node = tree.node(tree.find(path)?).ok()?;
    let NodeKind::File(Bytes::Blob(blob)) = node.kind else { return None };
    let mut buf = ReadBuf::default();
    store.blobs.read(blob, 0, len, &mut buf).ok().map(<[u8]>::to_vec)
}

/// A value of os-release, which is shell syntax. Source: os-release(5).
fn value_of(text: &str, key: &str) -> String {
    let line = text.lines().rev().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='));
    let value = line.unwrap_or_default().trim();
    let quoted = ['"', '\''].iter().find_map(|q| value.strip_prefix(*q)?.strip_suffix(*q));
    quoted.unwrap_or(value).chars().filter(|c| *c != '\\' && !c.is_control()).collect()
}

/// The machine in an ELF header, as uname(1) and LXD name it. Source: elf(5).
fn machine_of(head: &[u8]) -> Option<&'static str> {
    let head = head.strip_prefix(b"\x7fELF")?;
    let (class, order) = (*head.first()?, *head.get(1)?);
    let raw = [*head.get(14)?, *head.get(15)?];
    let little = order == 1;
    let machine = if little { u16::from_le_bytes(raw) } else { u16::from_be_bytes(raw) };
    Some(match (machine, class, little) {
        (62, 2, _) => "x86_64",
        (62, 1, _) => "x32",
        (3, ..) => "i686",
        (183, ..) => "aarch64",
        (40, ..) => "armv7l",
        (243, 2, _) => "riscv64",
        (243, 1, _) => "riscv32",
        (21, _, true) => "ppc64le",
        (21, _, false) => "ppc64",
        (22, ..) => "s390x",
        (258, ..) => "loongarch64",
        (8, 2, true) => "mips64el",
        (8, 1, true) => "mipsel",
        (8, 2, false) => "mips64",
        (8, 1, false) => "mips",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn os_release_is_read_as_the_shell_would() {
        let text = "ID=\"debian\"\n#ID=x\nVERSION_CODENAME=bookworm\nEMPTY=\n";
        assert_eq!(value_of(text, "ID"), "debian");
        assert_eq!(value_of(text, "VERSION_CODENAME"), "bookworm");
        assert_eq!(value_of(text, "VERSION_ID"), "");
    }

    #[test]
    fn machines_have_the_names_that_uname_gives() {
        let mut head = [0u8; 20];
        head[..6].copy_from_slice(b"\x7fELF\x02\x01");
        head[18] = 62;
        assert_eq!(machine_of(&head), Some("x86_64"));
        head[18] = 183;
        assert_eq!(machine_of(&head), Some("aarch64"));
        assert_eq!(machine_of(b"#!/bin/sh"), None);
        assert_eq!(machine_of(b"\x7fELF\x02"), None);
    }
}
