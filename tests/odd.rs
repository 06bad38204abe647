//! Odd and hostile input that the tools take, or refuse, in one way: imgfs does the same.

use crate::common::{Mount, sh};

/// `$S/links.py KIND LENGTH OUT`: an archive with a symlink `etc/far` whose target has so many bytes.
const LINKS: &str = r#"
cat > $S/links.py <<'END'
import hashlib, io, json, sys, tarfile
kind, length, out = sys.argv[1], int(sys.argv[2]), sys.argv[3]
target = ('t/' * length)[:length]
def put(t, name, data=b'', **how):
    i = tarfile.TarInfo(name); i.size = len(data); i.mtime = 1000000000
    for key, value in how.items(): setattr(i, key, value)
    t.addfile(i, io.BytesIO(data))
def root(t, prefix):
    put(t, prefix + 'etc', type=tarfile.DIRTYPE, mode=0o755)
    put(t, prefix + 'etc/far', type=tarfile.SYMTYPE, linkname=target)
    put(t, prefix + 'etc/f', b'x')
if kind == 'oci':
    b = io.BytesIO(); t = tarfile.open(fileobj=b, mode='w', format=tarfile.PAX_FORMAT); root(t, ''); t.close(); layer = b.getvalue()
    sha = lambda b: hashlib.sha256(b).hexdigest()
    config = json.dumps({'architecture': 'amd64', 'os': 'linux', 'rootfs': {'type': 'layers', 'diff_ids': ['sha256:' + sha(layer)]}}).encode()
    t = tarfile.open(out, 'w')
    put(t, sha(layer) + '/layer.tar', layer); put(t, sha(config) + '.json', config)
    put(t, 'manifest.json', json.dumps([{'Config': sha(config) + '.json', 'RepoTags': ['x:1'], 'Layers': [sha(layer) + '/layer.tar']}]).encode())
else:
    t = tarfile.open(out, 'w', format={'gnu': tarfile.GNU_FORMAT, 'ustar': tarfile.USTAR_FORMAT}.get(kind, tarfile.PAX_FORMAT))
    if kind == 'lxd': put(t, 'metadata.yaml', b'architecture: x86_64\ncreation_date: 5\n')
    root(t, 'rootfs/' if kind == 'lxd' else '')
t.close()
END
"#;

/// It was accepted, and readlink(2) of it failed with EIO for ever.
#[test]
fn a_symlink_that_no_system_can_read_is_refused_by_its_name() {
    let m = Mount::new();
    m.ok(LINKS);
    for kind in ["gnu", "pax", "lxd", "oci"] {
        m.ok(&format!("python3 $S/links.py {kind} 4095 $S/l.tar; cp $S/l.tar {kind}.tar; test $(readlink {kind}/0/rootfs/etc/far | wc -c) = 4096"));
        for length in [4096, 5000, 70000] {
            m.refused(
                &format!("python3 $S/links.py {kind} {length} $S/l.tar; cp $S/l.tar web.tar"),
                "Invalid argument",
            );
            let said = m.errors().lines().next().unwrap_or_default().to_owned();
            assert!(said.contains("etc/far") && said.contains(&format!("{length} bytes")), "{kind}: {said}");
        }
    }
    for kind in ["ustar", "gnu", "pax", "lxd", "oci"] {
        m.refused(&format!("python3 $S/links.py {kind} 0 $S/l.tar; cp $S/l.tar web.tar"), "Invalid argument");
        let said = m.errors().lines().next().unwrap_or_default().to_owned();
        assert!(said.contains("etc/far") && said.contains("empty"), "{kind}: {said}");
    }
    if sh(&m.mnt(), "command -v mksquashfs").code == 0 {
        // No file system that mksquashfs reads has such a link: its own list of extra files has.
        let make = |length: usize| {
            format!(
                "rm -rf $S/e $S/l.sq; mkdir $S/e; mksquashfs $S/e $S/l.sq -quiet -no-progress -noI -p \"etc d 755 0 0\" -p \"etc/far s 777 0 0 $(head -c {length} /dev/zero | tr '\\0' t)\" > /dev/null; "
            )
        };
        m.ok(&format!(
            "{} cp $S/l.sq sq.squashfs; test $(readlink sq/0/rootfs/etc/far | wc -c) = 4096",
            make(4095)
        ));
        m.refused(&format!("{} cp $S/l.sq web.squashfs", make(5000)), "Invalid argument");
        assert!(m.errors().lines().next().unwrap_or_default().contains("etc/far"), "{}", m.errors());
    } else {
        println!("skipped: there is no mksquashfs");
    }
    assert_eq!(m.ok("ls -d web* 2>/dev/null || true"), "");
    m.fsck();
}

/// Four zero bytes behind the end were refused: the close did not see that the stream was whole.
#[test]
fn padding_behind_a_stream_is_what_its_own_tool_takes() {
    let m = Mount::new();
    m.ok("cd $S; head -c 100000 a.tar > h; tail -c +100001 a.tar > t; for z in xz gzip bzip2 zstd lz4; do $z -qc h > h.$z; $z -qc t > t.$z; done");
    let mut cases = 0;
    for codec in ["xz", "gzip", "bzip2", "zstd", "lz4"] {
        for zeros in [1, 2, 3, 4, 5, 8, 12, 511, 512, 4096, 300_000] {
            // Between two streams, behind the last one, and both.
            for (between, behind) in [(zeros, 0), (0, zeros), (zeros, 4)] {
                m.ok(&format!(
                    "cd $S; (cat h.{codec}; head -c {between} /dev/zero; cat t.{codec}; head -c {behind} /dev/zero) > p.tar"
                ));
                let tool = m.sh(&format!("cd $S; {codec} -dc < p.tar 2> said | cmp - a.tar")).code == 0;
                let here = m.sh("cp $S/p.tar p.tar");
                // gzip and bzip2 call what follows zeros garbage and leave it out, so that the archive would
                // be cut.
                let taken = tool || (["gzip", "bzip2"].contains(&codec) && between > 0);
                assert_eq!(here.code == 0, taken, "{codec} {between} {behind}: {here:?}\n{}", m.errors());
                if taken {
                    m.ok("cmp $S/a.tar p/latest/rootfs.tar; rm -r p");
                } else {
                    assert!(here.err.contains("Invalid argument"), "{codec} {between} {behind}: {here:?}");
                }
                cases += 1;
            }
        }
    }
    println!("{cases} kinds of padding");
    // Zeros before the first stream are no padding.
    m.refused(
        "cd $S; (head -c 4 /dev/zero; cat h.xz t.xz) > p.tar.xz; cp p.tar.xz $MNT/p.tar.xz",
        "Invalid argument",
    );
    m.fsck();
}

/// `lz4 -dc` is the judge of every order of two or three parts.
#[test]
fn lz4_frames_of_all_kinds_follow_each_other_as_lz4_takes_them() {
    let m = Mount::new();
    m.ok(r"cd $S; (echo no tar; cat a.tar a.tar a.tar) > part; lz4 -qc part > normal; lz4 -qlc part > legacy; lz4 -qcB4 -BX --content-size part > small; lz4 -qcBD --no-frame-crc part > linked
           printf '\x5a\x2a\x4d\x18\x05\x00\x00\x00hello' > skip; printf '\x02\x21\x4c\x18' > empty; : | lz4 -qc > nothing
           printf garbage! > garbage; printf 'xy' > two; head -c 4 /dev/zero > zeros; head -c -3 legacy > cut; head -c -3 normal > cutnormal
           (cat legacy; printf '\x00\x00\x00\x00') > nosize; head -c 9000000 /dev/zero | lz4 -qlc > long");
    let parts = ["normal", "legacy", "small", "linked", "skip", "empty", "nothing", "long"];
    let ends = ["garbage", "two", "zeros", "cut", "cutnormal", "nosize"];
    let mut cases: Vec<Vec<&str>> = Vec::new();
    for a in parts {
        cases.extend(ends.iter().chain(&parts).map(|b| vec![a, b]));
        cases.extend(parts.iter().map(|b| vec![a, b, "legacy"]));
        cases.extend(parts.iter().map(|b| vec![a, b, "normal"]));
    }
    let (mut taken, mut refused) = (0, 0);
    for case in &cases {
        let files = case.join(" ");
        m.ok(&format!("cd $S; cat {files} > x.lz4"));
        // Any bytes are an image under this name: what is compared is the stream alone.
        let tool = m.sh("cd $S; lz4 -dc < x.lz4 > want 2> said; c=$?; test $c = 0 && test -s want").code == 0;
        let here = m.sh("cp $S/x.lz4 x.img.lz4 && cmp $S/want x/latest/disk.raw && rm -r x");
        assert_eq!(here.code == 0, tool, "{files}: {here:?}\n{}", m.errors());
        (taken, refused) = if tool { (taken + 1, refused) } else { (taken, refused + 1) };
    }
    println!("lz4 and imgfs agree: {taken} taken, {refused} refused");
    m.ok("lz4 -qlc $S/a.tar > $S/l; cp $S/l legacy.tar.lz4; cmp legacy/0/rootfs.tar $S/a.tar; cp $S/l legacy.tar.lz4; test ! -e legacy/1");
    m.fsck();
}
