//! Damaged disks and file systems: what imgfs takes and refuses of them, compared with what their own tools
//! say. IMGFS_SEED=N repeats a run; IMGFS_CASES=N makes more of them than 200.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::common::random::Random;
use crate::common::{Mount, sh};

fn cases() -> usize {
    std::env::var("IMGFS_CASES").ok().and_then(|s| s.parse().ok()).unwrap_or(200)
}

fn have(tools: &[&str]) -> bool {
    let missing: Vec<_> =
        tools.iter().filter(|tool| sh(Path::new("/"), &format!("command -v {tool}")).code != 0).collect();
    if !missing.is_empty() {
        println!("skipped: there is no {missing:?}");
    }
    missing.is_empty()
}

fn be(bytes: &[u8], at: usize, len: usize) -> u64 {
    bytes.get(at..at + len).unwrap_or_default().iter().fold(0, |n, b| n << 8 | u64::from(*b))
}

fn le(bytes: &[u8], at: usize, len: usize) -> u64 {
    bytes.get(at..at + len).unwrap_or_default().iter().rev().fold(0, |n, b| n << 8 | u64::from(*b))
}

/// The files of a directory, by name.
fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(&path).unwrap()))
        .collect();
    found.sort();
    found
}

/// `NAME CODE` lines as a map.
fn codes(text: &str) -> BTreeMap<String, i32> {
    let pair =
        |line: &str| line.split_once(' ').map(|(name, code)| (name.to_owned(), code.trim().parse().unwrap()));
    text.lines().filter_map(pair).collect()
}

/// What imgfs says about each file of `$S/cases`: its name, and the sentence if it was refused.
fn copied(m: &Mount, suffix: &str) -> BTreeMap<String, Option<String>> {
    let names: Vec<_> = files(&m.path("src/cases")).into_iter().map(|(name, _)| name).collect();
    let mut found = BTreeMap::new();
    // `.imgfs/errors` holds a thousand.
    for some in names.chunks(500) {
        let script = format!(
            "for n in {}; do c=0; cp $S/cases/$n $n.{suffix} 2> /dev/null || c=1; echo $n $c; done",
            some.join(" ")
        );
        let (taken, errors) = (codes(&m.ok(&script)), m.errors());
        for (name, code) in taken {
            let path = format!("/{name}.{suffix}");
            let line = errors.lines().find(|line| line.split('\t').nth(3) == Some(&path));
            let sentence = line.map(|line| line.split('\t').nth(4).unwrap_or_default().to_owned());
            assert_eq!(
                sentence.is_some(),
                code != 0,
                "{name}: a refusal leaves a sentence, and only a refusal"
            );
            found.insert(name, sentence);
        }
    }
    found
}

/// `random SEED BYTES`: the same bytes in every run.
const RANDOM: &str = r#"
random() { python3 -c 'import random, sys; sys.stdout.buffer.write(random.Random(int(sys.argv[1])).randbytes(int(sys.argv[2])))' $1 $2; }
"#;

/// Disks of every kind that qemu-img makes, each 3 MB of data or less.
const DISKS: &str = r#"
mkdir -p $S/disks $S/cases; cd $S; truncate -s 24M raw; for at in 0 3 9 17; do random $at 200000 | dd of=raw bs=1M seek=$at conv=notrunc status=none; done
seq 200000 | dd of=raw bs=1M seek=20 conv=notrunc status=none
make() { n=$1; shift; qemu-img convert -f raw -O qcow2 "$@" raw disks/$n; }
make plain; make old -o compat=0.10; make small -o cluster_size=512; make four -o cluster_size=4k,refcount_bits=1; make large -o cluster_size=2M,refcount_bits=64
make packed -c; make packedzstd -c -o compression_type=zstd,cluster_size=8k; make sub -o extended_l2=on; make meta -o preallocation=metadata,refcount_bits=8
make snap -o cluster_size=4k; qemu-img snapshot -c one disks/snap; qemu-io -f qcow2 -c 'write -P 7 1M 100k' -c 'write -z 3M 64k' disks/snap > /dev/null; qemu-img snapshot -c two disks/snap; qemu-io -f qcow2 -c 'write -P 9 9M 1M' disks/snap > /dev/null
make bits -o cluster_size=4k; qemu-img bitmap --add disks/bits b0; qemu-img bitmap --add -g 64k disks/bits b1; qemu-io -f qcow2 -c 'write -P 5 2M 300k' disks/bits > /dev/null
make snapold -o compat=0.10,cluster_size=1k; qemu-img snapshot -c one disks/snapold; qemu-io -f qcow2 -c 'write -P 7 1M 100k' disks/snapold > /dev/null
qemu-img create -q -f qcow2 disks/empty 1G; qemu-img create -q -f qcow2 -o cluster_size=64k,lazy_refcounts=on disks/lazy 64M; qemu-io -f qcow2 -c 'write -P 3 1M 1M' disks/lazy > /dev/null
for f in disks/*; do qemu-img check -q -f qcow2 $f || exit 1; done
"#;

/// Where a qcow2 has its tables: name, place, bytes.
fn tables_of(disk: &[u8]) -> Vec<(&'static str, usize, usize)> {
    let cluster = 1usize << be(disk, 20, 4);
    let mut found = vec![("header", 0, 112), ("extensions", 104, 400)];
    let (l1, l1_len) = (be(disk, 40, 8) as usize, be(disk, 36, 4) as usize * 8);
    found.push(("L1", l1, l1_len));
    for n in 0..l1_len / 8 {
        let at = be(disk, l1 + n * 8, 8) & 0x00ff_ffff_ffff_fe00;
        if at != 0 {
            found.push(("L2", at as usize, cluster));
        }
    }
    let (counts, counts_len) = (be(disk, 48, 8) as usize, be(disk, 56, 4) as usize * cluster);
    found.push(("refcount table", counts, counts_len.min(64)));
    for n in 0..counts_len / 8 {
        let at = be(disk, counts + n * 8, 8) as usize;
        if at != 0 {
            found.push(("refcount block", at, cluster.min(2 * disk.len() / cluster)));
        }
    }
    let (snapshots, count) = (be(disk, 64, 8) as usize, be(disk, 60, 4) as usize);
    if count > 0 {
        found.push(("snapshots", snapshots, count * 72));
        let at = be(disk, snapshots, 8) as usize;
        found.push(("L1 of a snapshot", at, be(disk, snapshots + 8, 4) as usize * 8));
    }
    let mut at = 104.max(be(disk, 100, 4) as usize);
    while be(disk, 4, 4) == 3 && be(disk, at, 4) != 0 {
        if be(disk, at, 4) == 0x2385_2875 {
            let directory = be(disk, at + 24, 8) as usize;
            found.push(("bitmaps", directory, be(disk, at + 16, 8) as usize));
            found.push(("table of a bitmap", be(disk, directory, 8) as usize, 16));
        }
        at += 8 + (be(disk, at + 4, 4) as usize).next_multiple_of(8);
    }
    found.retain(|(_, at, len)| *len > 0 && at + len <= disk.len());
    found
}

/// Damages a disk in one way; says which.
fn damage_disk(random: &mut Random, disk: &mut Vec<u8>) -> String {
    let tables = tables_of(disk);
    let (what, at, len) = *random.pick(&tables);
    match random.below(10) {
        0..=2 => {
            let place = at + random.below(len);
            disk[place] ^= 1 << random.below(8);
            format!("a bit at {place} in {what}")
        }
        3 => {
            let place = at + random.below(len);
            disk[place] = random.next() as u8;
            format!("a byte at {place} in {what}")
        }
        4 | 5 => {
            // An entry, or what it would be in the header, gets a number that is at an edge.
            let width = if what == "header" { *random.pick(&[4, 8]) } else { 8 };
            let place = at + random.below(len) / width * width;
            let end = disk.len() as u64;
            let edges = [
                0,
                1,
                u64::MAX,
                end,
                end.next_multiple_of(65536),
                (end / 2) & !0xffff,
                1 << 63 | (end & !511),
                1 << 62,
                65536,
            ];
            let edge = *random.pick(&edges);
            if place + width <= disk.len() {
                disk[place..place + width].copy_from_slice(&edge.to_be_bytes()[8 - width..]);
            }
            format!("{edge:#x} at {place} in {what}")
        }
        6 | 7 => {
            let to = 4 + random.below(disk.len() - 4);
            disk.truncate(to);
            format!("cut at {to}")
        }
        8 => {
            let to = 4 + random.below(disk.len() - 4);
            disk[to..].fill(0);
            format!("zeros from {to} on")
        }
        _ => {
            let place = random.below(disk.len() - 8);
            (0..8).for_each(|n| disk[place + n] = random.next() as u8);
            format!("8 bytes at {place} anywhere")
        }
    }
}

/// `qemu-img info` opens it and `qemu-img check` finds no error in it (0; 3 is lost room): imgfs takes it.
/// Else imgfs refuses it.
#[test]
fn qemu_agrees_about_damaged_qcow2_files() {
    if !have(&["qemu-img", "qemu-io", "python3"]) {
        return;
    }
    let m = Mount::with(&["trash=0"]);
    m.ok(&format!("{RANDOM}{DISKS}"));
    let disks = files(&m.path("src/disks"));
    // Those that are whole are taken.
    m.ok("for f in $S/disks/*; do cp $f ${f##*/}.qcow2; cmp $f ${f##*/}/0/disk.qcow2; done");
    let mut random = Random::seeded(20_261_129);
    let mut damage = BTreeMap::new();
    for n in 0..cases() {
        let (name, disk) = random.pick(&disks).clone();
        let mut disk = disk;
        let how = damage_disk(&mut random, &mut disk);
        let case = format!("d{n:04}");
        std::fs::write(m.path("src/cases").join(&case), disk).unwrap();
        damage.insert(case, format!("{name}: {how}"));
    }
    let judged = codes(&m.ok(
        "cd $S/cases; for f in *; do c=0; qemu-img info -f qcow2 $f > /dev/null 2>&1 || c=100; qemu-img check -f qcow2 $f > ../said-$f 2>&1 || c=$((c + $?)); echo $f $c; done",
    ));
    let here = copied(&m, "qcow2");
    let (mut taken, mut refused, mut stricter, mut wrong) = (0, 0, 0, Vec::new());
    for (case, how) in &damage {
        match (judged[case], &here[case]) {
            (0 | 3, None) => taken += 1,
            (0 | 3, Some(why)) if is_stricter(why) => stricter += 1,
            (0 | 3, Some(why)) => wrong.push(format!("{case} {how}: qemu-img takes it, imgfs says: {why}")),
            (_, Some(_)) => refused += 1,
            (code, None) => {
                let said =
                    std::fs::read_to_string(m.path("src").join(format!("said-{case}"))).unwrap_or_default();
                wrong.push(format!("{case} {how}: imgfs takes it, qemu-img ends with {code}: {said:.300}"));
            }
        }
    }
    println!(
        "qcow2: {taken} taken and {refused} refused by both, {stricter} refused by imgfs alone (see is_stricter)"
    );
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), damage.len(), wrong.join("\n"));
    m.fsck();
}

/// What qemu-img takes and imgfs refuses, and why:
/// - A disk whose rest lies in another file, or that needs a secret: a store wants all of it. Where the other
///   file is not there, both refuse.
/// - A table that the header names and that ends behind the file: qemu-img reads zeros there, if it is less
///   than a cluster, and so a disk that is empty from there on.
fn is_stricter(why: &str) -> bool {
    ["a backing file", "in another file", "encrypted with AES", "header says"]
        .iter()
        .any(|part| why.contains(part))
}

/// File systems of every kind that mksquashfs makes, small ones.
const TREES: &str = r#"
mkdir -p $S/t/etc $S/t/many $S/trees $S/cases; cd $S/t; seq 3000 > etc/numbers; random 1 300000 > blob; echo x > etc/f; ln etc/f etc/hard; ln -s f etc/l
: > empty; truncate -s 3M sparse; printf x | dd of=sparse bs=1 seek=1500000 conv=notrunc status=none; touch many/name-{1..40}; for i in 1 2 3 4 5 6; do random $i 70$i > many/small-$i; done; mkfifo p
setfattr -n user.key -v value etc/f; setfattr -n user.other -v "$(seq 30)" blob; setfattr -n user.key -v value etc; test $(id -u) != 0 || { mknod c c 1 3; chown 5:70000 etc/f; chown 1000:1000 many; }
make() { n=$1; shift; mksquashfs $S/t $S/trees/$n -quiet -no-progress -noappend -mkfs-time 1000000000 -all-time 1000000000 "$@" > /dev/null; }
make gzip; make xz -comp xz; make zstd -comp zstd -b 16K; make lz4 -comp lz4; make lzma -comp lzma -no-exports; make plain -noI -noD -noF -noX -b 4096; make tables -noI -noX; make nofrag -no-fragments -b 64K; make noxattr -no-xattrs -noI; make always -always-use-fragments -noI
"#;

/// Damages a file system in one way; says which.
fn damage_tree(random: &mut Random, image: &mut Vec<u8>) -> String {
    let tables = le(image, 64, 8) as usize;
    let used = le(image, 40, 8) as usize;
    let place = match random.below(4) {
        // Less the magic, without which it is nothing.
        0 => 4 + random.below(92),
        1 | 2 => tables + random.below(used - tables),
        _ => 4 + random.below(used - 4),
    };
    match random.below(8) {
        0..=2 => {
            image[place] ^= 1 << random.below(8);
            format!("a bit at {place}")
        }
        3 => {
            image[place] = random.next() as u8;
            format!("a byte at {place}")
        }
        4 => {
            let edge = *random.pick(&[0u64, 1, u64::MAX, used as u64, u64::from(u32::MAX), 1 << 31]);
            let width = *random.pick(&[2, 4, 8]);
            let place = place.min(image.len() - width);
            image[place..place + width].copy_from_slice(&edge.to_le_bytes()[..width]);
            format!("{edge:#x} in {width} bytes at {place}")
        }
        5 | 6 => {
            let to = 4 + random.below(image.len() - 4);
            image.truncate(to);
            format!("cut at {to}")
        }
        _ => {
            image[place..].fill(0);
            format!("zeros from {place} on")
        }
    }
}

/// What unsquashfs takes and imgfs refuses, and why.
const LENIENT: &[&str] = &[
    // It does not compare how much a block unpacks to with what the file has, and writes what lay in its
    // memory before.
    "a block of a file has another length",
    "a fragment is cut off",
    // It reads a block that is too long over what lies behind in its memory.
    "a block is too long",
    // It takes the lower bits of a number of blocks.
    "a file is too long",
    // It reads names past the end of their directory.
    "a directory is cut off",
    // It makes an empty directory of an empty file whose name says that it is one.
    "a name and its inode are not of one type",
    // It reads xattrs past the end of their table.
    "in the xattrs of an inode",
    // Its lz4 copies from a distance of 0, which the format forbids.
    "0 is not a valid match offset",
];

/// unsquashfs ends well: imgfs takes it. It ends badly: imgfs refuses it. Where it only complains, either is
/// right.
#[test]
fn unsquashfs_agrees_about_damaged_squashfs_files() {
    if !have(&["mksquashfs", "unsquashfs", "python3"]) {
        return;
    }
    let m = Mount::with(&["trash=0"]);
    m.ok(&format!("{RANDOM}{TREES}"));
    let trees = files(&m.path("src/trees"));
    m.ok("for f in $S/trees/*; do n=${f##*/}; cp $f $n.squashfs; cmp $f $n/0/rootfs.squashfs; cmp $S/t/blob $n/0/rootfs/blob; done");
    let mut random = Random::seeded(20_261_129);
    let (mut damage, mut lzo) = (BTreeMap::new(), BTreeSet::new());
    for n in 0..cases() {
        let (name, mut image) = random.pick(&trees).clone();
        let how = damage_tree(&mut random, &mut image);
        let case = format!("s{n:04}");
        if le(&image, 20, 2) == 3 {
            lzo.insert(case.clone());
        }
        std::fs::write(m.path("src/cases").join(&case), image).unwrap();
        damage.insert(case, format!("{name}: {how}"));
    }
    // What it makes is bounded, in bytes and in time.
    let judged = codes(&m.ok(
        "cd $S/cases; mkdir ../out; for f in *; do c=0; (ulimit -f 65536; timeout 5 unsquashfs -q -n -d ../out/$f $f > /dev/null 2> ../said-$f) || c=$?; rm -rf ../out/$f; echo $f $c; done 2> /dev/null",
    ));
    let here = copied(&m, "squashfs");
    let (mut taken, mut refused, mut warned, mut stricter, mut unjudged, mut unread) = (0, 0, 0, 0, 0, 0);
    let mut wrong = Vec::new();
    for (case, how) in &damage {
        let said = std::fs::read_to_string(m.path("src").join(format!("said-{case}"))).unwrap_or_default();
        match (judged[case], &here[case]) {
            (0, None) => taken += 1,
            (0, Some(_)) if !said.is_empty() => warned += 1,
            (0, Some(why)) if LENIENT.iter().any(|part| why.contains(part)) => stricter += 1,
            (0, Some(why)) => wrong.push(format!("{case} {how}: unsquashfs takes it, imgfs says: {why}")),
            // Its own end by a signal, and by our bounds.
            (code, _) if code >= 124 => unjudged += 1,
            (_, Some(_)) => refused += 1,
            // imgfs keeps what lzo has packed, and cannot look into it.
            (_, None) if lzo.contains(case) => unread += 1,
            (code, None) => {
                wrong.push(format!("{case} {how}: imgfs takes it, unsquashfs ends with {code}: {said:.400}"))
            }
        }
    }
    println!(
        "squashfs: {taken} taken and {refused} refused by both, {warned} refused where unsquashfs warns, {stricter} by imgfs alone (see LENIENT), {unread} of lzo not read, {unjudged} that killed unsquashfs"
    );
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), damage.len(), wrong.join("\n"));
    m.fsck();
}

/// These were published as files that nothing can read.
#[test]
fn what_only_begins_like_a_disk_is_refused() {
    if !have(&["qemu-img", "mksquashfs", "python3"]) {
        return;
    }
    let m = Mount::new();
    let refused = |script: &str, name: &str, errno: &str, part: &str| {
        m.refused(&format!("{script} > $S/x; cp $S/x {name}"), errno);
        let said = m.errors().lines().next().unwrap_or_default().to_owned();
        assert!(said.contains(part), "{script}: {said}");
    };
    for zeros in [3, 100, 600, 40_000, 3_000_000] {
        refused(
            &format!("{{ printf hsqs; head -c {zeros} /dev/zero; }}"),
            "x.squashfs",
            "Invalid argument",
            "",
        );
        refused(
            &format!("{{ printf 'QFI\\xfb'; head -c {zeros} /dev/zero; }}"),
            "x.qcow2",
            "Invalid argument",
            "",
        );
        refused(
            &format!("{{ printf 'QFI\\xfb'; head -c {zeros} /dev/zero; }}"),
            "x.img",
            "Invalid argument",
            if zeros > 512 { "qcow2" } else { "" },
        );
    }
    // `set AT BYTES`: a disk with other bytes in its header.
    m.ok(r"qemu-img create -q -f qcow2 $S/disk 64M; truncate -s 1M $S/disk; printf '\0\0\0\1' > $S/one
           cat > $S/set.py <<'END'
import sys
d = bytearray(open(sys.argv[1], 'rb').read())
for at, value in zip(sys.argv[2::2], sys.argv[3::2]): d[int(at):int(at) + len(value) // 2] = bytes.fromhex(value)
sys.stdout.buffer.write(d)
END");
    for (change, errno, part) in [
        ("4 00000001", "Operation not supported", "version 1"),
        ("4 00000004", "Invalid argument", "its version is 4"),
        ("20 00000008", "Invalid argument", "2^8"),
        ("20 00000016", "Invalid argument", ""),
        ("36 ffffffff", "Invalid argument", ""),
        ("36 00400001", "Invalid argument", ""),
        ("24 7fffffffffffffff", "Invalid argument", "too small"),
        ("40 0000010000000000", "Invalid argument", ""),
        ("48 0000000000000200", "Invalid argument", "reference counts"),
        ("56 000000ff", "Invalid argument", ""),
        ("60 ffffffff", "Invalid argument", "snapshots"),
        ("60 00010000 64 0000000000010000", "Invalid argument", ""),
        ("72 0000000000000020", "Operation not supported", "features that are not known"),
        ("72 0000000000000004", "Operation not supported", "another file"),
        ("8 0000000000000200 16 00000004", "Operation not supported", "backing file"),
        ("32 00000001", "Operation not supported", "AES"),
        ("32 00000002", "Invalid argument", "encrypted"),
        ("100 00000010", "Invalid argument", "its header has 16 bytes"),
        ("100 00100000", "Invalid argument", "its header has"),
    ] {
        refused(&format!("python3 $S/set.py $S/disk {change}"), "x.qcow2", errno, part);
        assert!(
            part != "backing file" || m.errors().lines().next().unwrap().contains("qemu-img convert"),
            "{}",
            m.errors()
        );
    }
    m.ok("python3 $S/set.py $S/disk > $S/x; cp $S/x d.qcow2; cmp $S/x d/0/disk.qcow2");
    // In an image of LXD, too, and in one that comes in two files.
    m.ok("mkdir $S/v $S/sq; printf 'architecture: x86_64\\ncreation_date: 5\\n' > $S/v/metadata.yaml; seq 9999 > $S/sq/f; mksquashfs $S/sq $S/f.squashfs -quiet -no-progress > /dev/null");
    m.ok("cp $S/disk $S/v/rootfs.img; tar -C $S/v -cf lxd.tar metadata.yaml rootfs.img; rm $S/v/rootfs.img; cp $S/f.squashfs $S/v/rootfs.squashfs; tar -C $S/v -cf lxdsq.tar metadata.yaml rootfs.squashfs");
    m.ok("cmp lxd/0/disk.qcow2 $S/disk; cmp lxdsq/0/rootfs.squashfs $S/f.squashfs");
    m.refused("rm $S/v/rootfs.squashfs; head -c 300000 $S/disk > $S/v/rootfs.img; python3 $S/set.py $S/v/rootfs.img 40 0000010000000000 > $S/y; cp $S/y $S/v/rootfs.img; tar -C $S/v -cf $S/v.tar metadata.yaml rootfs.img; cp $S/v.tar x.tar", "Invalid argument");
    m.refused("rm $S/v/rootfs.img; head -c 4000 $S/f.squashfs > $S/v/rootfs.squashfs; tar -C $S/v -cf $S/v.tar metadata.yaml rootfs.squashfs; cp $S/v.tar x.tar", "Invalid argument");
    m.refused(
        "mkdir .s; tar -C $S/v -cf .s/meta.tar metadata.yaml; head -c 4000 $S/f.squashfs > .s/rootfs.squashfs; mv .s split",
        "",
    );
    assert_eq!(m.ok("ls -d x* split 2> /dev/null || true"), "");
    m.fsck();
}
