//! Every kind of image that is no plain tar of a rootfs: LXD and Incus, OCI and docker, disks and file
//! systems.

use crate::common::Mount;

const LXD: &str = r#"
lxd() { rm -rf $S/l; mkdir -p $S/l/rootfs/etc $S/l/rootfs/bin $S/l/templates; echo hi > $S/l/rootfs/etc/motd; ln $S/l/rootfs/etc/motd $S/l/rootfs/etc/hard
  ln -s /etc/motd $S/l/rootfs/etc/abs; ln -s ../templates $S/l/rootfs/out; touch -d 2001-02-03T04:05:06.5 $S/l/rootfs/etc/motd; echo '{{ x }}' > $S/l/templates/h.tpl
  printf 'architecture: x86_64\ncreation_date: 1458040200\nproperties:\n  architecture: amd64\n  description: Tiny\n  os: tiny\n  release: one\n  serial: 7\n' > $S/l/metadata.yaml; }
"#;

#[test]
fn a_unified_lxd_image_shows_its_parts_and_comes_back_bit_for_bit() {
    let m = Mount::new();
    m.ok(&format!(
        "{LXD} lxd; tar -C $S/l --numeric-owner -cJf $S/u.tar.xz metadata.yaml templates rootfs; cp $S/u.tar.xz tiny.tar.xz"
    ));
    assert_eq!(
        m.ok("ls tiny/0").split_whitespace().collect::<Vec<_>>(),
        [
            "image.tar",
            "metadata.json",
            "metadata.yaml",
            "rootfs",
            "rootfs.tar",
            "templates",
            "tiny.tar.xz",
            "used_by"
        ]
    );
    m.ok("xz -dc $S/u.tar.xz | cmp - tiny/0/image.tar; cmp $S/l/metadata.yaml tiny/0/metadata.yaml; diff -r $S/l/templates tiny/0/templates");
    m.ok("diff -r --no-dereference $S/l/rootfs tiny/0/rootfs; mkdir $S/x; tar -xpf tiny/0/rootfs.tar -C $S/x; diff -r --no-dereference $S/x $S/l/rootfs");
    m.ok("test $S/x/etc/motd -ef $S/x/etc/hard; test $(stat -c %Y $S/x/etc/motd) = $(stat -c %Y $S/l/rootfs/etc/motd); test $(stat -c %h tiny/0/rootfs/etc/motd) = 2");
    m.ok("test $(sha256sum < tiny/0/rootfs.tar | cut -c-64) = $(jq -r .digest tiny/0/metadata.json | cut -c8-); test $(stat -c %s tiny/0/rootfs.tar) = $(jq .size tiny/0/metadata.json)");
    m.ok("fp=$(sha256sum < $S/u.tar.xz | cut -c-64); test $(jq -r .fingerprint tiny/0/metadata.json) = $fp; test .imgfs/by-digest/$fp -ef tiny/0; test .imgfs/by-digest/$(sha256sum < tiny/0/image.tar | cut -c-20) -ef tiny/0");
    let image = m.json("tiny");
    assert_eq!(image["properties"]["serial"], "7");
    assert_eq!(
        (&image["os"], &image["release"], &image["architecture"], &image["description"]),
        (&"tiny".into(), &"one".into(), &"x86_64".into(), &"Tiny".into())
    );
    // The same again is the same; the receipt reads back what came; a plain one, too.
    m.ok("cp $S/u.tar.xz tiny.tar.xz; test ! -e tiny/1; xz -dk $S/u.tar.xz; cp $S/u.tar two.tar; cmp $S/u.tar two.tar; cmp $S/u.tar two/0/image.tar");
    m.ok("chroot tiny/0/rootfs /bin/true 2>/dev/null || true; rm -r two/0 2>/dev/null || true; cp $S/u.tar.xz x.tar.xz; rm -r x; test ! -e x; ls .imgfs/trash/x/0/templates");
    m.fsck();
    m.ok("touch $S/l/rootfs/etc/new; tar -C $S/l -cf - metadata.yaml templates rootfs | cat > tiny/next.tar; ls tiny/1/rootfs/etc/new");
    m.fsck();
}

#[test]
fn what_lxd_refuses_is_refused() {
    let m = Mount::new();
    m.ok(&format!("{LXD} lxd; cd $S/l; echo 'architecture: x86_64' > nodate; echo 'creation_date: 5' > noarch; printf 'architecture: z80\ncreation_date: 5\n' > badarch; printf 'a: [' > notyaml; head -c 1100000 /dev/zero | tr '\\0' '#' > big
      for n in nodate noarch badarch notyaml big; do cp $n metadata.yaml; tar -cf $S/$n.tar metadata.yaml rootfs || exit 1; done; rm metadata.yaml; ln -s /etc/hostname metadata.yaml; tar -cf $S/link.tar metadata.yaml rootfs"));
    m.ok(&format!("{LXD} lxd; cd $S/l; tar -cf $S/noroot.tar metadata.yaml templates; tar -cf $S/dup.tar metadata.yaml rootfs ./metadata.yaml metadata.yaml"));
    for name in ["nodate", "noarch", "badarch", "notyaml", "big", "link", "noroot", "dup"] {
        m.refused(&format!("cp $S/{name}.tar web.tar"), "Invalid argument");
        assert!(m.errors().lines().next().unwrap().contains("LXD"), "{name}: {}", m.errors());
    }
    // What stands for a disk, or for templates, must be that: a link would lead a host to its own files.
    m.ok("cd $S/l; mkdir -p ../v; printf 'architecture: x86_64\\ncreation_date: 5\\n' > ../v/metadata.yaml; cd ../v; ln -s /etc/passwd rootfs.img; tar -cf $S/vlink.tar metadata.yaml rootfs.img; rm rootfs.img; echo hello > rootfs.img; tar -cf $S/vtext.tar metadata.yaml rootfs.img; mkdir rootfs; ln -s /etc templates; tar -cf $S/vtpl.tar metadata.yaml templates rootfs; tar -cf $S/vok.tar metadata.yaml rootfs");
    for name in ["vlink", "vtext", "vtpl"] {
        m.refused(&format!("cp $S/{name}.tar web.tar"), "Invalid argument");
    }
    // Properties are text, as they stand there.
    m.ok("cd $S/v; printf 'architecture: x86_64\\ncreation_date: 5\\nproperties: {release: 22.10, serial: 012, on: yes}\\n' > metadata.yaml; tar -cf $MNT/text.tar metadata.yaml rootfs; cd $MNT; jq -e '.properties == {release: \"22.10\", serial: \"012\", on: \"yes\"}' text/0/metadata.json");
    // Other files beside it: a rootfs that happens to have a metadata.yaml.
    m.ok("cd $S/l; mkdir usr; tar -cf $S/plain.tar usr rootfs metadata.yaml; cd $MNT; cp $S/plain.tar plain.tar; test -d plain/0/rootfs/rootfs; test ! -e plain/0/image.tar");
    m.fsck();
}

/// `layer NAME`: $S/NAME as a layer; `image`: the layers a, b, c as an OCI layout, gzip, zstd and plain.
const OCI: &str = r#"
cat > $S/oci.py <<'END'
import hashlib, io, json, sys, tarfile, gzip, subprocess
out, kind = sys.argv[1], sys.argv[2]
def layer(entries):
    b = io.BytesIO(); t = tarfile.open(fileobj=b, mode='w', format=tarfile.PAX_FORMAT)
    for e in entries:
        name, typ, data = (e + (b'',))[:3] if len(e) == 2 else e
        i = tarfile.TarInfo(name); i.mtime = 1000000000; i.mode = 0o755 if typ == 'd' else 0o644
        i.type = {'f': tarfile.REGTYPE, 'd': tarfile.DIRTYPE, 'l': tarfile.SYMTYPE, 'h': tarfile.LNKTYPE}[typ]
        if typ in 'lh': i.linkname = data
        if typ == 'f': i.size = len(data)
        t.addfile(i, io.BytesIO(data) if typ == 'f' else None)
    t.close(); return b.getvalue()
big = bytes(range(256)) * 8000
layers = [
  layer([('etc','d'),('etc/a','f',b'a\n'),('etc/b','f',b'b\n'),('lib','d'),('lib/x','f',b'x\n'),('lib/sub','d'),('lib/sub/y','f',b'y\n'),('usr','d'),('usr/bin','d'),('bin','l','/usr/bin'),('big','f',big),('full','d'),('full/f','f',b'1'),('h1','f',b'link'),('gone','d'),('gone/x','f',b'')]),
  layer([('etc/.wh.a','f',b''),('bin/tool','f',b'tool\n'),('lib/new','f',b'new\n'),('lib/.wh..wh..opq','f',b''),('lib/sub','d'),('lib/sub/z','f',b'z\n'),('h2','h','h1'),('.wh.gone','f',b''),('full','f',b'now a file')]),
  layer([('etc/a','f',b'again\n'),('gone','d'),('gone/new','f',b'n'),('.wh.h1','f',b''),('.wh..wh.aufs','f',b'')]),
]
sha = lambda b: hashlib.sha256(b).hexdigest()
config = {'architecture': 'amd64', 'os': 'linux', 'created': '2020-01-01T00:00:00Z', 'config': {'Entrypoint': ['/bin/tool'], 'Env': ['A=b'], 'Labels': {'l': 'v'}},
  'rootfs': {'type': 'layers', 'diff_ids': ['sha256:' + sha(l) for l in layers]}}
t = tarfile.open(out, 'w')
def add(name, data):
    i = tarfile.TarInfo(name); i.size = len(data); t.addfile(i, io.BytesIO(data))
if kind.startswith('docker'):
    names = []
    if kind == 'docker-twice': layers = layers[:2] + layers[1:]; config['rootfs']['diff_ids'] = ['sha256:' + sha(l) for l in layers]
    c = json.dumps(config).encode()
    for n, l in enumerate(layers):
        if kind == 'docker-damaged' and n == 1: l = l.replace(b'tool\n', b'tolo\n')
        name = sha(l) + '/layer.tar'; names.append(name); add(name, l)
    add(sha(c) + '.json', c)
    one = {'Config': sha(c) + '.json', 'RepoTags': ['tiny:1'], 'Layers': names}
    add('manifest.json', json.dumps([one, dict(one, RepoTags=['other:2'])] if kind == 'docker-two' else [one]).encode())
else:
    pack = {'oci-gzip': lambda b: gzip.compress(b, mtime=0), 'oci-zstd': lambda b: subprocess.run(['zstd', '-c'], input=b, capture_output=True).stdout}.get(kind, lambda b: b)
    blobs = [pack(l) for l in layers]
    c = json.dumps(config).encode()
    d = lambda b, m='x': {'mediaType': m, 'digest': 'sha256:' + sha(b), 'size': len(b)}
    manifest = json.dumps({'schemaVersion': 2, 'config': d(c), 'layers': [d(b) for b in blobs]}).encode()
    add('oci-layout', b'{"imageLayoutVersion":"1.0.0"}')
    for b in blobs + [c, manifest]: add('blobs/sha256/' + sha(b), b if kind != 'oci-damaged' or b not in blobs[1:2] else b[:700] + b'?' + b[701:])
    add('index.json', json.dumps({'schemaVersion': 2, 'manifests': [dict(d(manifest), annotations={'org.opencontainers.image.ref.name': 'tiny:1'})]}).encode())
t.close()
END
oci() { python3 $S/oci.py $S/$1.tar $1; }
"#;

#[test]
fn layers_are_put_over_each_other_as_a_container_sees_them() {
    let m = Mount::new();
    for kind in ["oci", "oci-gzip", "oci-zstd", "docker"] {
        m.ok(&format!(
            "{OCI} oci {kind}; cp $S/{kind}.tar {kind}.tar; cmp $S/{kind}.tar {kind}/0/image.tar; cmp $S/{kind}.tar {kind}.tar"
        ));
        let found = m.ok(&format!(
            "cd {kind}/0/rootfs; find . -type f -printf '%P ' | tr ' ' '\\n' | sort | tr '\\n' ' '"
        ));
        assert_eq!(found.trim(), "big etc/a etc/b full gone/new h2 lib/new lib/sub/z usr/bin/tool", "{kind}");
        m.ok(&format!("cd {kind}/0/rootfs; test $(cat etc/a) = again; test $(cat h2) = link; test $(stat -c %h h2) = 1; test $(readlink bin) = /usr/bin; test \"$(cat full)\" = 'now a file'"));
        m.ok(&format!(
            "mkdir -p $S/x; tar -xpf {kind}/0/rootfs.tar -C $S/x; diff -r --no-dereference $S/x {kind}/0/rootfs; rm -rf $S/x"
        ));
        let version = m.json(&format!("{kind}/0"));
        assert_eq!(version["config"]["entrypoint"][0], "/bin/tool");
        assert_eq!(
            (&version["config"]["tags"][0], &version["properties"]["l"], &version["architecture"]),
            (&"tiny:1".into(), &"v".into(), &"x86_64".into())
        );
        m.ok(&format!(
            "test $(sha256sum < {kind}/0/rootfs.tar | cut -c-64) = $(jq -r .digest {kind}/0/metadata.json | cut -c8-)"
        ));
    }
    // What lies unpacked in an archive is stored once: as the files.
    let stored = m.json("docker/0")["stored_bytes"].as_u64().unwrap();
    assert!(stored < 100_000, "{stored} bytes for an archive whose content is known");
    m.fsck();
    m.ok(&format!("{OCI} oci docker-twice; cp $S/docker-twice.tar twice.tar; cmp $S/docker-twice.tar twice/0/image.tar; diff -r --no-dereference docker/0/rootfs twice/0/rootfs"));
    for kind in ["oci-damaged", "docker-damaged"] {
        m.refused(&format!("{OCI} oci {kind}; cp $S/{kind}.tar x.tar"), "Bad message");
    }
    m.refused(&format!("{OCI} oci docker-two; cp $S/docker-two.tar x.tar"), "Operation not supported");
    assert!(m.errors().contains("tiny:1, other:2"), "{}", m.errors());
    // One manifest under two tags is one image; under a thousand others they are not read.
    let index = |change: &str| {
        format!(
            "{OCI} oci oci; rm -rf $S/o; mkdir $S/o; tar -C $S/o -xf $S/oci.tar; jq '{change}' $S/o/index.json > $S/i; mv $S/i $S/o/index.json; tar -C $S/o -cf $S/many.tar ."
        )
    };
    m.ok(&index(r#".manifests += [.manifests[0] | .annotations["org.opencontainers.image.ref.name"] = "tiny:latest"]"#));
    m.ok(
        "cp $S/many.tar tags.tar; jq -e '.config.tags == [\"tiny:1\", \"tiny:latest\"]' tags/0/metadata.json",
    );
    m.ok(&index(r#".manifests += [range(1000) as $i | .manifests[0] | .digest = "sha256:" + ("0" * 64)]"#));
    m.refused("cp $S/many.tar x.tar", "Operation not supported");
    m.ok(&format!("{OCI} sed -i \"s/'zstd', '-c'/'zstd', '-c', '--long=31'/\" $S/oci.py; oci oci-zstd"));
    m.refused("cp $S/oci-zstd.tar x.tar", "Argument list too long");
    m.refused("rm -rf $S/o; mkdir $S/o; echo '[{\"Config\":\"c.json\",\"Layers\":[\"l\"]}]' > $S/o/manifest.json; tar -C $S/o -cf $S/o.tar manifest.json; cp $S/o.tar x.tar", "Invalid argument");
    assert_eq!(m.ok("ls -d x* 2>/dev/null || true"), "");
}

#[test]
fn disk_images_are_kept_whole_and_share_what_is_the_same() {
    let m = Mount::new();
    m.ok("truncate -s 50M $S/d.img; head -c 3000000 /dev/urandom | dd of=$S/d.img bs=1M seek=7 conv=notrunc status=none; cp $S/d.img vm.img; cmp $S/d.img vm/0/disk.raw; test ! -e vm/0/rootfs; test ! -e vm/0/rootfs.tar");
    m.ok("test $(du -k vm/0/disk.raw | cut -f1) -lt 4000; test $(stat -c %s vm/0/disk.raw) = 52428800; cmp $S/d.img vm.img; test $(jq -r .format vm/0/metadata.json) = raw; test $(jq -r .type vm/metadata.json) = vm");
    m.ok("cp --sparse=always vm/0/disk.raw $S/back; cmp $S/back $S/d.img; for at in 0 7340031 7340033 9999999 52428000; do cmp <(dd if=$S/d.img bs=1 skip=$at count=3000 status=none) <(dd if=vm/0/disk.raw bs=1 skip=$at count=3000 status=none) || exit 1; done");
    // The next version differs in one place: that is what it costs.
    m.ok("printf change | dd of=$S/d.img bs=1 seek=8000000 conv=notrunc status=none; zstd -q -c $S/d.img > vm/b.img.zst; cmp $S/d.img vm/1/disk.raw");
    assert!(m.json("vm/1")["unique_bytes"].as_u64().unwrap() <= 65536);
    m.ok("cp $S/d.img vm.img; test ! -e vm/2; gzip -c $S/d.img > vm.raw.gz; test ! -e vm/2");
    // Unknown bytes are an image only where the name says so.
    m.refused("{ printf x; head -c 99999 /dev/urandom; } > $S/r; cp $S/r web.tar", "Invalid argument");
    m.refused("cp $S/r vm/r", "Invalid argument");
    m.ok("rsync $S/r $MNT/sync.img; cmp $S/r sync/0/disk.raw; gzip -c $S/r > $S/r.img.gz; rsync $S/r.img.gz $MNT/; cmp $S/r r/0/disk.raw; cp $S/r .t; mv .t moved.raw; cmp $S/r moved/0/disk.raw; rm -r moved r sync");
    m.ok("cp $S/r rnd.raw; cmp $S/r rnd/0/disk.raw; cp $S/r vm/r.img; cmp $S/r vm/2/disk.raw");
    m.refused(": > $S/e; echo x | gzip > $S/e.gz; cp $S/e.gz web.tar.gz", "Invalid argument");
    m.ok("rm -r rnd; mv .imgfs/trash/rnd . && cmp $S/r rnd/0/disk.raw");
    m.fsck();
    m.ok("rmdir vm/0");
}

#[test]
fn formats_are_known_by_their_magic_and_a_cut_is_noticed() {
    let m = Mount::new();
    let make = r"cat > $S/fake.py <<'END'
import struct, sys
out = sys.argv[1]
def put(b, at, data): b[at:at+len(data)] = data
zfs = bytearray(20000); put(zfs, 8, struct.pack('<Q', 0x2F5bacbac)); open(out + '/z.zfs', 'wb').write(zfs)
iso = bytearray(80 * 2048); put(iso, 32768, b'\x01CD001\x01'); put(iso, 32768 + 80, struct.pack('<I', 80)); open(out + '/c.iso', 'wb').write(iso)
erofs = bytearray(3 * 4096); put(erofs, 1024, struct.pack('<I', 0xE0F5E1E2)); erofs[1024 + 12] = 12; put(erofs, 1024 + 36, struct.pack('<I', 3)); open(out + '/e.erofs', 'wb').write(erofs)
gpt = bytearray(100 * 512); put(gpt, 510, b'\x55\xaa'); put(gpt, 512, b'EFI PART'); put(gpt, 512 + 32, struct.pack('<Q', 99)); open(out + '/g.disk', 'wb').write(gpt)
END
python3 $S/fake.py $S";
    m.ok(make);
    for (file, name) in
        [("z.zfs", "rootfs.zfs"), ("c.iso", "image.iso"), ("e.erofs", "rootfs.erofs"), ("g.disk", "disk.raw")]
    {
        m.ok(&format!(
            "cp $S/{file} x.tar; cmp $S/{file} x/latest/{name}; bzip2 -c $S/{file} > y.tar.bz2; cmp $S/{file} y/latest/{name}"
        ));
        if file != "z.zfs" {
            m.refused(&format!("head -c -1000 $S/{file} > $S/cut; cp $S/cut cut.tar"), "Invalid argument");
            m.refused(
                &format!("head -c -1000 $S/{file} | gzip > $S/cut.gz; cp $S/cut.gz cut.tar"),
                "Invalid argument",
            );
        }
    }
    m.fsck();
}

fn have(tool: &str) -> bool {
    let found = crate::common::sh(std::path::Path::new("/"), &format!("command -v {tool}")).code == 0;
    if !found {
        eprintln!("skipped: there is no {tool}");
    }
    found
}

#[test]
fn a_qcow2_is_checked_and_backed_from_the_mount() {
    if !have("qemu-img") {
        return;
    }
    let m = Mount::new();
    m.ok("truncate -s 200M $S/d.raw; head -c 20000000 /dev/urandom | dd of=$S/d.raw bs=1M seek=50 conv=notrunc status=none; qemu-img convert -f raw -O qcow2 $S/d.raw $S/d.qcow2; cp $S/d.qcow2 vm.qcow2; cmp $S/d.qcow2 vm/0/disk.qcow2");
    m.ok("qemu-img check vm/0/disk.qcow2; qemu-img compare vm/0/disk.qcow2 $S/d.raw; qemu-img create -q -f qcow2 -F qcow2 -b $MNT/vm/0/disk.qcow2 $S/over.qcow2; qemu-img compare $S/over.qcow2 $S/d.raw");
    m.refused("head -c 40000 $S/d.qcow2 > $S/cut.qcow2; cp $S/cut.qcow2 cut.qcow2", "Invalid argument");
    m.fsck();
}

#[test]
fn a_squashfs_shows_its_rootfs() {
    if !have("mksquashfs") {
        return;
    }
    let m = Mount::new();
    m.ok("mkdir -p $S/q/etc; cd $S/q; echo x > etc/f; ln -s f etc/l; mkfifo p; head -c 3000000 /dev/urandom > big; : > empty; ln big hard; setfattr -n user.k -v v etc/f; truncate -s 300M sparse; printf x | dd of=sparse bs=1 seek=200000000 conv=notrunc status=none; mkdir many; touch many/{1..700}; seq 100000 > numbers; chmod 4755 etc/f; touch -d 2001-02-03 etc/f; test $(id -u) != 0 || { mknod c c 1 3; mknod b b 8 70000; chown 5:70000 etc/f; chmod 4755 etc/f; }");
    for comp in ["gzip", "xz", "zstd", "lz4"] {
        m.ok(&format!("cd $S; mksquashfs q {comp}.squashfs -comp {comp} -noappend -quiet -no-progress; cd $MNT; cp $S/{comp}.squashfs {comp}.squashfs; cmp $S/{comp}.squashfs {comp}/0/rootfs.squashfs"));
        m.ok(&format!("diff -r --no-dereference --exclude=p --exclude=c --exclude=b --exclude=sparse $S/q {comp}/0/rootfs; test $(stat -c %s {comp}/0/rootfs/sparse) = 314572800; test $(tail -c +200000001 {comp}/0/rootfs/sparse | head -c 1) = x; test $(du -k {comp}/0/rootfs/sparse | cut -f1) -lt 2000; test $(stat -c %h {comp}/0/rootfs/hard) = 2; test {comp}/0/rootfs/hard -ef {comp}/0/rootfs/big; test $(getfattr --only-values -n user.k {comp}/0/rootfs/etc/f) = v; test $(stat -c %a%Y {comp}/0/rootfs/etc/f) = $(stat -c %a%Y $S/q/etc/f); test -p {comp}/0/rootfs/p"));
        m.ok(&format!("test $(id -u) != 0 || test $(stat -c %t:%T {comp}/0/rootfs/b) = $(stat -c %t:%T $S/q/b); tar -tf {comp}/0/rootfs.tar | grep ./etc/f; test $(sha256sum < {comp}/0/rootfs.tar | cut -c-64) = $(jq -r .digest {comp}/0/metadata.json | cut -c8-)"));
    }
    // Deeper than a stack; and every kind of damage is an error, never the end of the daemon.
    m.ok("p=$S/deep; for i in $(seq 900); do p=$p/d; done; mkdir -p $p; echo x > $p/f; mksquashfs $S/deep $S/deep.squashfs -quiet -no-progress; cp $S/deep.squashfs deep.squashfs; find deep/0/rootfs -name f | wc -l | grep -qx 1; rm -r $S/deep");
    m.ok("cat > $S/flip.py <<'END'
import random, sys
random.seed(7); data = open(sys.argv[1], 'rb').read(); tables = len(data) - min(3000, len(data))
for n in range(60):
    b = bytearray(data)
    for _ in range(random.choice([1, 1, 3])): b[random.choice([random.randrange(96), random.randrange(tables, len(b))])] = random.randrange(256)
    open('%s/flip%d' % (sys.argv[2], n), 'wb').write(b)
END
mkdir $S/flips; mksquashfs $S/q/many $S/small.squashfs -quiet -no-progress -noI -noId; python3 $S/flip.py $S/small.squashfs $S/flips; for f in $S/flips/*; do cp $f flip.squashfs 2>/dev/null || true; ls > /dev/null; done");
    m.refused("head -c -5000 $S/gzip.squashfs > $S/cut; cp $S/cut cut.squashfs", "Invalid argument");
    m.refused("cp $S/gzip.squashfs $S/bad; head -c 3000 /dev/urandom | dd of=$S/bad bs=1 seek=$(($(stat -c %s $S/bad) - 4000)) conv=notrunc status=none; cp $S/bad bad.squashfs", "Invalid argument");
    m.fsck();
}
