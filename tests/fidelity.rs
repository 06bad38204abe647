//! rootfs/ is what GNU tar extracts as root, rootfs.tar is the upload: types, modes, owners, times, links,
//! devices, xattrs, content. Root only, as the comparison needs real devices and owners.

use crate::common::Mount;

/// Shell functions: `facts` prints all that stat and getfattr know of a tree, a line a path.
const FACTS: &str = r#"
facts() { python3 - "$1" <<'END'
import os, stat, sys, hashlib
root, links = sys.argv[1], {}
def show(path, name):
    s = os.lstat(path)
    kind = stat.S_IFMT(s.st_mode)
    line = [ascii(name), oct(s.st_mode), s.st_uid, s.st_gid, s.st_mtime_ns]
    if kind == stat.S_IFREG:
        h = hashlib.sha256()
        with open(path, 'rb') as f:
            while b := f.read(1 << 20): h.update(b)
        line += [s.st_size, s.st_nlink, h.hexdigest(), ascii(links.setdefault(s.st_ino, name))]
    if kind == stat.S_IFLNK: line += [os.readlink(path), s.st_size, s.st_nlink]
    if kind in (stat.S_IFCHR, stat.S_IFBLK): line += [os.major(s.st_rdev), os.minor(s.st_rdev)]
    if kind == stat.S_IFDIR: line += [s.st_nlink]
    line += [{n: os.getxattr(path, n, follow_symlinks=False) for n in sorted(os.listxattr(path, follow_symlinks=False))}]
    print(*line, sep='\t')
    if kind == stat.S_IFDIR:
        for n in sorted(os.listdir(path)): show(os.path.join(path, n), os.path.join(name, n))
show(root, '.')
END
}
compare() { # ARCHIVE TREE: TREE is what GNU tar extracts of ARCHIVE
  rm -rf $S/x; mkdir $S/x
  tar --xattrs --xattrs-include='*' --numeric-owner -xpf $1 -C $S/x && facts $S/x > $S/want && facts $2 > $S/got && diff $S/want $S/got
}
"#;

fn root() -> bool {
    let root = std::fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0);
    if !root {
        eprintln!("skipped: not root");
    }
    root
}

#[test]
fn every_kind_of_entry_is_as_tar_extracts_it() {
    if !root() {
        return;
    }
    let m = Mount::new();
    m.ok(
        "mkdir -p $S/k/d/e; cd $S/k; echo x > f; chmod 4755 f; ln f hard; ln -s f sym; ln -s /nowhere dangling; mkfifo p
         mknod c c 1 3; mknod b b 8 70; : > empty; echo y > d/u; chown 1234:70000 d/u; chmod 1777 d/e; ln -P sym hardsym
         setfattr -n user.one -v 1 f; setfattr -n user.two -v 0x00ff00 f; setfattr -n trusted.overlay.opaque -v y d
         setfattr -n security.capability -v 0x0100000200200000000000000000000000000000 d/u
         touch -d '2001-02-03 04:05:06.123456789' f; touch -h -d '1969-12-31 23:59:58.25' sym; touch -d '2100-01-01' empty
         touch \"$(printf 'odd \\303\\251\\n\\377')\" 'sp ace'; n=$(head -c 200 /dev/zero | tr '\\0' n); mkdir -p $n/$n; echo deep > $n/$n/$n
         truncate -s 3M sparse; printf a | dd of=sparse bs=1 seek=1000000 conv=notrunc status=none; head -c 3000000 /dev/urandom > big
         touch -d 2002-02-02 d/e d .",
    );
    for (name, options) in [
        ("gnu", "--format=gnu"),
        ("gnusparse", "--format=gnu -S"),
        ("pax", "--format=pax --xattrs --xattrs-include='*'"),
        ("sparse00", "--format=pax -S --sparse-version=0.0"),
        ("sparse01", "--format=pax -S --sparse-version=0.1"),
        ("sparse10", "--format=pax -S --sparse-version=1.0"),
        ("blocking", "--format=gnu -b 1"),
        ("sorted", "--format=pax --sort=name --mtime=@1700000000"),
    ] {
        m.ok(&format!(
            "{FACTS} tar -C $S/k {options} --numeric-owner -cf $S/{name}.tar . && cp $S/{name}.tar {name}.tar &&
             cmp $S/{name}.tar {name}/0/rootfs.tar && compare $S/{name}.tar {name}/0/rootfs"
        ));
    }
    // ustar and V7 cannot hold it all: what they can.
    m.ok("mkdir $S/u; cp -a $S/k/f $S/k/hard $S/k/sym $S/k/d $S/u/; touch -d 2001-02-03 $S/u/f; touch -h -d 2001-02-03 $S/u/sym; chown -hR 5:6 $S/u");
    for format in ["ustar", "v7", "oldgnu"] {
        m.ok(&format!(
            "{FACTS} tar -C $S/u --format={format} --numeric-owner -cf $S/{format}.tar . && cp $S/{format}.tar {format}.tar &&
             compare $S/{format}.tar {format}/0/rootfs"
        ));
    }
    m.ok("busybox tar -C $S/u -cf bb.tar . ; python3 -c \"import tarfile;t=tarfile.open('$S/py.tar','w',format=tarfile.PAX_FORMAT);t.add('$S/u',arcname='r');t.close()\"");
    m.ok(
        "cp $S/py.tar py.tar; cmp $S/py.tar py/0/rootfs.tar; test -f py/0/rootfs/r/f; test -f bb/0/rootfs/f",
    );
    m.fsck();
}

#[test]
fn entries_again_and_in_odd_orders_are_as_tar_extracts_them() {
    if !root() {
        return;
    }
    let m = Mount::new();
    m.ok("cat > $S/make.py <<'END'
import io, sys, tarfile
def add(t, name, kind=tarfile.REGTYPE, data=b'', link='', mode=0o644):
    i = tarfile.TarInfo(name); i.type = kind; i.size = len(data); i.linkname = link; i.mode = mode; i.mtime = 1000000000
    t.addfile(i, io.BytesIO(data))
R, D, S, L = tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
cases = {
  'twice': [('a', R, b'1'), ('a', R, b'22')],
  'kinds': [('a', R, b'1'), ('a', D, b'', '', 0o755), ('a/b', R, b'x'), ('c', S, b'', 'a'), ('c', R, b'y')],
  'filefirst': [('d', D, b'', '', 0o755), ('d/e/f', R, b'x'), ('d/e', D, b'', '', 0o711)],
  'through': [('usr', D, b'', '', 0o755), ('usr/bin', D, b'', '', 0o755), ('bin', S, b'', 'usr/bin'), ('bin/sh', R, b'x')],
  'linklink': [('a', R, b'1'), ('b', L, b'', 'a'), ('c', L, b'', 'b'), ('a', R, b'new')],
  'dotslash': [('./', D, b'', '', 0o700), ('./x', R, b'1'), ('y//z', R, b'2')],
  'absolute': [('/etc/x', R, b'1'), ('/etc/y', L, b'', '/etc/x')],
  'empty': [],
}
for name, entries in cases.items():
    with tarfile.open(sys.argv[1] + '/' + name + '.tar', 'w', format=tarfile.GNU_FORMAT) as t:
        for e in entries: add(t, *e)
END
python3 $S/make.py $S");
    for name in ["twice", "kinds", "linklink", "through", "dotslash", "absolute", "empty"] {
        // Implied directories get the time of extraction in tar: only content is compared.
        m.ok(&format!(
            "cp $S/{name}.tar {name}.tar; cmp $S/{name}.tar {name}/0/rootfs.tar; mkdir $S/x
             tar --numeric-owner -xpf $S/{name}.tar -C $S/x 2>/dev/null; diff -r $S/x {name}/0/rootfs; rm -rf $S/x"
        ));
    }
    m.ok("cp $S/filefirst.tar ff.tar; test $(stat -c %a ff/0/rootfs/d/e) = 711; test $(cat ff/0/rootfs/d/e/f) = x");
    m.ok("cat $S/twice.tar $S/kinds.tar > $S/cat.tar; cp $S/cat.tar cat.tar; cmp $S/cat.tar cat/0/rootfs.tar; test \"$(ls cat/0/rootfs)\" = a");
    m.ok("(cat $S/twice.tar; echo garbage) > $S/garbage.tar; cp $S/garbage.tar garbage.tar; cmp $S/garbage.tar garbage/0/rootfs.tar");
    m.fsck();
}

#[test]
fn archives_that_leave_the_root_are_refused_whole() {
    let m = Mount::new();
    m.ok("cat > $S/evil.py <<'END'
import sys, tarfile
def make(name, entries):
    with tarfile.open(sys.argv[1] + '/' + name + '.tar', 'w', format=tarfile.GNU_FORMAT) as t:
        for n, kind, link in entries:
            i = tarfile.TarInfo(n); i.type = kind; i.linkname = link; t.addfile(i)
R, D, S, L = tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
make('dotdot', [('../x', R, '')])
make('inner', [('a/../../x', R, '')])
make('absolute', [('l', S, '/etc'), ('l/passwd', R, '')])
make('upward', [('l', S, '../..'), ('l/x', R, '')])
make('chain', [('a', S, 'b'), ('b', S, '..'), ('a/x', R, '')])
make('hardout', [('h', L, '../../etc/passwd')])
make('hardnone', [('h', L, 'gone')])
make('harddir', [('d', D, ''), ('h', L, 'd')])
make('loop', [('l', S, 'l'), ('l/x', R, '')])
END
python3 $S/evil.py $S");
    for name in ["dotdot", "inner", "absolute", "upward", "chain", "hardout", "hardnone", "harddir", "loop"] {
        m.refused(&format!("cp $S/{name}.tar {name}.tar"), "Invalid argument");
    }
    assert_eq!(m.ok("ls -A"), "");
    assert!(m.errors().contains("leaves the root"));
}

#[test]
fn a_real_debian_image_is_kept_exactly() {
    if !root() {
        return;
    }
    let corpus = std::env::var("IMGFS_CORPUS").unwrap_or_default();
    if !std::path::Path::new(&corpus).join("web-v1.tar").exists() {
        eprintln!("skipped: no Debian images; make them with scripts/corpus.sh DIR and set IMGFS_CORPUS=DIR");
        return;
    }
    let m = Mount::new();
    m.ok(&format!("cp {corpus}/web-v0.tar web.tar; xz -T0 -0 -c {corpus}/web-v1.tar > web/v1.tar.xz"));
    for n in 0..2 {
        m.ok(&format!("{FACTS} cmp {corpus}/web-v{n}.tar web/{n}/rootfs.tar && compare {corpus}/web-v{n}.tar web/{n}/rootfs"));
    }
    let (first, second) = (m.json("web/0"), m.json("web/1"));
    assert_eq!((&first["os"], &first["release"]), (&"debian".into(), &"bookworm".into()));
    let (unique, logical) =
        (second["unique_bytes"].as_u64().unwrap(), first["logical_bytes"].as_u64().unwrap());
    assert!(unique < logical / 4, "versions share their content: {unique} of {logical}");
    m.ok("chroot web/default/rootfs /bin/true; tar c -C web/0/rootfs . | cat | wc -c; rmdir web/0");
    m.fsck();
}
