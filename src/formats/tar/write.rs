//! Headers of a tar that imgfs makes itself: rootfs.tar of what came as an LXD image, an OCI archive, a
//! squashfs.
//!
//! Source: POSIX pax; GNU tar manual, "Storing Sparse Files", version 1.0.

use crate::formats::tar::BLOCK;
use crate::formats::tar::pax::gnu_encode;

/// One entry to write.
pub struct NewEntry<'e> {
    /// As in the header: `0` file, `1` hard link, `2` symlink, `3` `4` devices, `5` directory, `6` fifo.
    pub typeflag: u8,
    pub path: &'e [u8],
    pub link: &'e [u8],
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, u32),
    pub device: (u32, u32),
    /// Bytes of content that follow.
    pub size: u64,
    /// Whole size and pieces of a sparse file.
    pub sparse: Option<(u64, &'e [(u64, u64)])>,
    pub xattrs: &'e [(Vec<u8>, Vec<u8>)],
}

impl NewEntry<'_> {
    /// All bytes that stand before the content: an extended header where the plain one does not hold it all,
    /// the header, the map of a sparse file.
    pub fn header(&self) -> Vec<u8> {
        let mut records = Vec::new();
        let map = self.sparse.map(|(real, pieces)| {
            for (key, value) in
                [("GNU.sparse.major", 1), ("GNU.sparse.minor", 0), ("GNU.sparse.realsize", real)]
            {
                record(&mut records, key.as_bytes(), value.to_string().as_bytes());
            }
            record(&mut records, b"GNU.sparse.name", self.path);
            let mut map = format!("{}\n", pieces.len());
            pieces.iter().for_each(|(offset, len)| map.push_str(&format!("{offset}\n{len}\n")));
            let mut map = map.into_bytes();
            map.resize(map.len().next_multiple_of(BLOCK), 0);
            map
        });
        let size = self.size + map.as_ref().map_or(0, |m| m.len() as u64);
        if self.path.len() > 100 && self.sparse.is_none() {
            record(&mut records, b"path", self.path);
        }
        if self.link.len() > 100 {
            record(&mut records, b"linkpath", self.link);
        }
        for (key, value, digits) in
            [("uid", u64::from(self.uid), 7), ("gid", u64::from(self.gid), 7), ("size", size, 11)]
        {
            if value >= 1 << (3 * digits) {
                record(&mut records, key.as_bytes(), value.to_string().as_bytes());
            }
        }
        let (seconds, nanos) = self.mtime;
        if nanos != 0 || !(0..1 << 33).contains(&seconds) {
            record(&mut records, b"mtime", time(seconds, nanos).as_bytes());
        }
        for (name, value) in self.xattrs {
            record(&mut records, &[b"SCHILY.xattr.", &gnu_encode(name)[..]].concat(), value);
        }
        let mut out = Vec::new();
        if !records.is_empty() {
            out.extend_from_slice(&block(&Block {
                typeflag: b'x',
                path: b"././@PaxHeader",
                size: records.len() as u64,
                ..Block::default()
            }));
            records.resize(records.len().next_multiple_of(BLOCK), 0);
            out.append(&mut records);
        }
        out.extend_from_slice(&block(&Block {
            typeflag: self.typeflag,
            path: self.path,
            link: self.link,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            mtime: seconds,
            device: self.device,
            size,
        }));
        out.extend(map.into_iter().flatten());
        out
    }
}

#[derive(Default)]
struct Block<'b> {
    typeflag: u8,
    path: &'b [u8],
    link: &'b [u8],
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: i64,
    device: (u32, u32),
    size: u64,
}

fn block(of: &Block<'_>) -> [u8; BLOCK] {
    let mut block = [0u8; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &of.path[..of.path.len().min(100)]);
    put(157, &of.link[..of.link.len().min(100)]);
    put(156, &[of.typeflag]);
    put(257, b"ustar\x0000");
    // What does not fit stands in the extended header.
    let (uid, gid) = (u64::from(of.uid), u64::from(of.gid));
    let mtime = u64::try_from(of.mtime).unwrap_or(0);
    let (major, minor) = of.device;
    for (at, digits, value) in [
        (100, 7, u64::from(of.mode)),
        (108, 7, uid),
        (116, 7, gid),
        (124, 11, of.size),
        (136, 11, mtime),
        (329, 7, u64::from(major)),
        (337, 7, u64::from(minor)),
    ] {
        let value = if value < 1 << (3 * digits) { value } else { 0 };
        put(at, format!("{value:0digits$o}").as_bytes());
    }
    put(148, b"        ");
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// `LENGTH KEY=VALUE\n`, where the length counts itself.
fn record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let body = key.len() + value.len() + 3;
    let mut len = body + 1;
    while len != body + len.to_string().len() {
        len = body + len.to_string().len();
    }
    out.extend_from_slice(len.to_string().as_bytes());
    for part in [b" ", key, b"=", value, b"\n"] {
        out.extend_from_slice(part);
    }
}

/// Decimal seconds with a fraction; nanoseconds count forward, the text counts from zero.
fn time(seconds: i64, nanos: u32) -> String {
    let total = i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
    let (sign, total) = if total < 0 { ("-", -total) } else { ("", total) };
    let text = format!("{sign}{}.{:09}", total / 1_000_000_000, total % 1_000_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_records_are_what_the_reader_takes() {
        for (seconds, nanos) in [(0, 0), (-1, 750_000_000), (-2, 1), (5, 250_000_000), (1 << 40, 7), (-7, 0)]
        {
            assert_eq!(
                crate::formats::tar::pax::time(time(seconds, nanos).as_bytes()),
                Some((seconds, nanos))
            );
        }
        let mut out = Vec::new();
        record(&mut out, b"path", &[b'x'; 90]);
        record(&mut out, b"a", b"");
        let mut read = crate::formats::tar::pax::Extensions::default();
        read.take(&out).unwrap();
        assert_eq!(read.get("path").map(<[u8]>::len), Some(90));
    }
}
