//! Odd and hostile input that the tools take, or refuse, in one way: imgfs does the same.

mod common;

use common::{Mount, sh};

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
            m.refused(&format!("python3 $S/links.py {kind} {length} $S/l.tar; cp $S/l.tar web.tar"), "Invalid argument");
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
        m.ok(&format!("{} cp $S/l.sq sq.squashfs; test $(readlink sq/0/rootfs/etc/far | wc -c) = 4096", make(4095)));
        m.refused(&format!("{} cp $S/l.sq web.squashfs", make(5000)), "Invalid argument");
        assert!(m.errors().lines().next().unwrap_or_default().contains("etc/far"), "{}", m.errors());
    } else {
        println!("skipped: there is no mksquashfs");
    }
    assert_eq!(m.ok("ls -d web* 2>/dev/null || true"), "");
    m.fsck();
}
