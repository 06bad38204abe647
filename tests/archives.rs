//! Every kind of archive and compression: rootfs.tar is the input, rootfs/ what GNU tar extracts; or it is
//! refused whole, with an errno and a sentence.

use crate::common::Mount;

/// `same NAME FILE`: copies FILE in as image NAME; rootfs.tar is FILE.tar, rootfs/ is like GNU tar's.
const SAME: &str = r#"
same() { cp $2 $MNT/$1.tar && cmp ${3:-$2} $MNT/$1/0/rootfs.tar && rm -rf $S/x && mkdir $S/x && { tar -xpf ${3:-$2} -C $S/x 2> $S/said || test -n "$4"; } &&
  diff -r --no-dereference $S/x $MNT/$1/0/rootfs; }
"#;

#[test]
fn compressed_streams_of_every_shape_are_taken() {
    let m = Mount::new();
    m.ok(&format!(
        "{SAME} cd $S; head -c 400000 a.tar > 1; tail -c +400001 a.tar > 2; true
         head -c 100000 a.tar > h; tail -c +100001 a.tar > t
         for z in gzip xz bzip2 zstd lz4 lzma; do case $z in lzma) c='xz --format=lzma';; *) c=$z;; esac
           $c -c < a.tar > one.$z; same one-$z one.$z a.tar || exit 1
           case $z in lzma) continue;; esac
           ($c -c < h; $c -c < t) > two.$z; same two-$z two.$z a.tar || exit 1
         done"
    ));
    // Padding behind gzip and xz, as tapes and old tools leave it.
    m.ok(&format!("{SAME} cd $S; (gzip -c a.tar; head -c 512 /dev/zero) > p.gz; same pg p.gz a.tar && (xz -c h; head -c 8 /dev/zero; xz -c t) > p.xz && same px p.xz a.tar"));
    // A frame to skip: before, between, behind.
    m.ok(&format!(
        r"{SAME} cd $S; skip() {{ printf '\x5a\x2a\x4d\x18\x05\x00\x00\x00hello'; }}
         for z in zstd lz4; do
           (test $z = lz4 || skip; $z -c < h; skip; skip; $z -c < t; skip) > skip.$z; same skip-$z skip.$z a.tar || exit 1
         done"
    ));
    // What counts is the content, not the suffix.
    m.ok(
        "cp $S/a.tar.xz wrong.tar.gz; cmp wrong/0/rootfs.tar $S/a.tar; cp $S/a.tar wrong2.tzst; cmp wrong2/0/rootfs.tar $S/a.tar",
    );
    // A window of 2 GiB is decoded, but not where the mount sets a limit.
    m.ok(&format!("{SAME} cd $S; zstd -q --long=31 -c < a.tar > long.zst; same long long.zst a.tar"));
    let small = Mount::with(&["max_window=1M"]);
    small.ok("cp $S/a.tar.zst ok.tar");
    small.refused(
        "zstd -q --long=31 -c < $S/a.tar > $S/long.zst; cp $S/long.zst web.tar.zst",
        "Argument list too long",
    );
    assert!(small.errors().contains("max_window"), "{}", small.errors());
    small.refused("xz -9 -c < $S/a.tar > $S/big.xz; cp $S/big.xz web.tar.xz", "Argument list too long");
    for bad in [
        "(gzip -c $S/a.tar; echo x) > $S/b.gz; cp $S/b.gz b.tar.gz",
        "xz -c $S/a.tar | head -c -5 > b.tar.xz",
        "zstd -q -c $S/a.tar | head -c -2 > b.tar.zst",
        "lz4 -q -c $S/a.tar | head -c -4 > b.tar.lz4",
        "bzip2 -c $S/a.tar | head -c -1 > b.tar.bz2",
        "gzip -c $S/a.tar | python3 -c \"import sys;b=bytearray(sys.stdin.buffer.read());b[-6]^=1;sys.stdout.buffer.write(b)\" | cat > b.tar.gz",
        r"(printf '\x50\x2a\x4d\x18\xff\xff\xff\x7f'; cat $S/a.tar.zst) > b.tar.zst",
    ] {
        m.refused(bad, "Invalid argument");
    }
    // One that was cut off shows until its writer has let go, a moment after close.
    m.ok("for i in $(seq 500); do test -z \"$(ls -d b* 2> /dev/null)\" && exit 0; sleep 0.01; done; ls; exit 1");
    for (magic, name) in [("PK\\x03\\x04", "zip"), ("LZIP", "lzip"), ("\\x1f\\x9d\\x90", "compress")] {
        m.refused(&format!("(printf '{magic}'; head -c 2000 /dev/zero) > b.tar"), "Operation not supported");
        assert!(m.errors().lines().next().unwrap().contains(name), "{}", m.errors());
    }
    m.fsck();
}

#[test]
fn a_bomb_is_refused_by_its_ratio() {
    let m = Mount::with(&["max_ratio=100"]);
    // 2 GiB of zeros in one file: 200 to 1 with gzip -1.
    m.refused(
        "truncate -s 2G $S/zeros; (cd $S && tar -cf - zeros | gzip -1 > bomb.gz); cp $S/bomb.gz bomb.tar.gz",
        "Argument list too long",
    );
    assert!(m.errors().contains("max_ratio"), "{}", m.errors());
    assert_eq!(m.ok("ls"), "");
    m.fsck();
}

#[test]
fn archives_of_odd_writers_are_what_tar_extracts() {
    let m = Mount::new();
    m.ok(r#"cat > $S/make.py <<'END'
import sys, os, struct
out = sys.argv[1]
def block(name, flag=b'0', size=0, link=b'', magic=b'ustar\x0000', mode=0o644, prefix=b'', mtime=b'07346545000\0', uid=b'0000000\0', extra={}):
    h = bytearray(512)
    def put(at, b): h[at:at+len(b)] = b
    put(0, name[:100]); put(100, b'%07o\0' % mode); put(108, uid); put(116, uid)
    put(124, b'%011o\0' % size if size < 8**11 else b'\x80' + size.to_bytes(11, 'big')); put(136, mtime)
    put(148, b' ' * 8); put(156, flag); put(157, link[:100]); put(257, magic); put(345, prefix)
    for at, b in extra.items(): put(at, b)
    put(148, b'%06o\0 ' % sum(h)); return bytes(h)
def pad(b): return b + b'\0' * (-len(b) % 512)
def rec(k, v):
    body = b' ' + k + b'=' + v + b'\n'; n = len(body) + 1
    while len(b'%d' % n) + len(body) != n: n += 1
    return b'%d' % n + body
def pax(flag, *kv):
    data = b''.join(rec(k, v) for k, v in kv); return block(b'pax', flag, len(data)) + pad(data)
def long(flag, v): v += b'\0'; return block(b'././@LongLink', flag, len(v), magic=b'ustar  \0') + pad(v)
END = b'\0' * 1024
F = lambda name, data=b'data\n', **k: block(name, size=len(data), **k) + pad(data)
cases = {
 'v7': F(b'a/b', magic=b'') + block(b'd/', b'\0', magic=b'', mode=0o755),
 'solaris': pax(b'X', (b'path', b'long/name/of/solaris')) + F(b'short'),
 'contiguous': block(b'c', b'7', 5) + pad(b'data\n'),
 'star': F(b'p', magic=b'ustar\x0000', prefix=b'dir\0', extra={476: b'07346545000 ', 488: b'07346545000 ', 508: b'tar\0'}),
 'global': pax(b'g', (b'mtime', b'1000000000.25'), (b'comment', b'x')) + F(b'one') + pax(b'x', (b'mtime', b'')) + F(b'two') + pax(b'g', (b'mtime', b'')) + F(b'three'),
 'bigid': pax(b'x', (b'uid', b'3000000000'), (b'gid', b'2097152')) + F(b'big'),
 'b256': block(b'f', size=5, uid=b'\x80\0\0\0\0\x20\0\1', mtime=b'\xff' * 11 + b'\xf0') + pad(b'data\n'),
 'charset': pax(b'x', (b'hdrcharset', b'BINARY'), (b'path', b'b\xff\xfe')) + F(b'x'),
 'delete': pax(b'x', (b'path', b'')) + F(b'kept'),
 'bothlong': long(b'L', b'n' * 120) + long(b'K', b't' * 200) + block(b'n' * 100, b'2', link=b't' * 100, magic=b'ustar  \0'),
 'name255': long(b'L', b'n' * 255) + F(b'n' * 100),
 'volume': block(b'my label', b'V', magic=b'ustar  \0') + F(b'f'),
 'dumpdir': block(b'inc/', b'D', 12, mode=0o755, magic=b'ustar  \0') + pad(b'Yfile\0Nold\0\0') + F(b'inc/file'),
 'slashes': F(b'x//y///z') + F(b'./p/./q') + block(b'dir//', b'5', mode=0o755),
 'type': block(b'odd', b'Q', 5) + pad(b'data\n'),
 'size0': block(b'link', b'2', 0, link=b'f') + F(b'f'),
 'hardsize': F(b'f') + block(b'h', b'1', 5, link=b'f') + F(b'g'),
}
for name, data in cases.items():
    for suffix, end in (('', END), ('-one', b'\0' * 512), ('-blocked', END + b'\0' * (-(len(data) + 1024) % 10240))):
        open(f'{out}/{name}{suffix}.tar', 'wb').write(data + end)
# Absent end, and an empty archive of one block.
open(out + '/noend.tar', 'wb').write(F(b'f'))
open(out + '/emptyone.tar', 'wb').write(b'\0' * 512)
open(out + '/deep.tar', 'wb').write(long(b'L', b'/'.join([b'd' * 99] * 45) + b'/f') + F(b'x') + END)
open(out + '/binaryname.tar', 'wb').write(F(bytes(range(1, 47)) + bytes(range(48, 90))) + F(bytes(range(128, 220))) + END)
END
python3 $S/make.py $S"#);
    for name in [
        "v7",
        "solaris",
        "contiguous",
        "star",
        "global",
        "bigid",
        "b256",
        "charset",
        "bothlong",
        "name255",
        "volume",
        "dumpdir",
        "slashes",
        "type",
        "size0",
        "hardsize",
    ] {
        for suffix in ["", "-one", "-blocked"] {
            // GNU tar 1.34 takes the deletion of a time, as POSIX has it, for a damaged one, and goes on.
            let complains = if name == "global" { "complains" } else { "" };
            m.ok(&format!(
                "{SAME} same {name}{suffix} $S/{name}{suffix}.tar $S/{name}{suffix}.tar {complains}"
            ));
        }
    }
    m.ok("test $(stat -c %u bigid/0/rootfs/big) = 3000000000; test $(stat -c %Y b256/0/rootfs/f) = -16");
    m.ok(
        "test \"$(stat -c %.2Y global/0/rootfs/one)\" = 1000000000.25; test $(stat -c %Y global/0/rootfs/two) = $((07346545000))",
    );
    // An empty path deletes the record before it; GNU tar takes it for a name.
    m.ok("cp $S/delete.tar delete.tar; cmp $S/delete.tar delete/0/rootfs.tar; test \"$(ls delete/0/rootfs)\" = kept");
    // 4,500 bytes of path: more than one call may name, reached step by step.
    m.ok("cp $S/deep.tar deep.tar; cmp $S/deep.tar deep/0/rootfs.tar; cd deep/0/rootfs; for i in $(seq 45); do cd -P d*; done; test \"$(cat f)\" = data");
    m.ok("cp $S/binaryname.tar bin.tar; tar -tf $S/binaryname.tar | wc -l; test $(ls bin/0/rootfs | wc -c) -gt 100");
    // The end marker says that a plain archive is whole; a rename says it, too.
    m.refused("cp $S/noend.tar noend.tar", "Invalid argument");
    m.ok("cp $S/noend.tar .n; mv .n noend.tar; cmp $S/noend.tar noend/0/rootfs.tar; gzip -c $S/noend.tar > zipped.tar.gz; cat zipped/0/rootfs/f");
    m.ok("cp $S/emptyone.tar emptyone.tar; cmp $S/emptyone.tar emptyone/0/rootfs.tar");
    m.ok(&format!(
        "{SAME} cd $S; cp a.tar app.tar; tar -A -f app.tar b.tar; same app app.tar; cat a.tar b.tar > ab.tar; same ab ab.tar"
    ));
    m.ok(&format!(
        "{SAME} cd $S; for b in 1 2 3 7 20 64 127; do tar -b $b -C a -cf b$b.tar . || exit 1; same b$b b$b.tar || exit 1; done"
    ));
    m.ok(&format!("{SAME} cd $S; for t in a v7 dumpdir; do (cat $t.tar; head -c 5000 /dev/urandom) > g.tar; same garbage-$t g.tar || exit 1; done"));
    m.fsck();
}

#[test]
fn xattrs_and_acls_of_star_and_libarchive_are_kept() {
    let m = Mount::new();
    m.ok("mkdir $S/r; echo x > $S/r/f; setfacl -m u:70:r,g:80:rw $S/r/f; setfattr -n user.k -v v $S/r/f
          tar --acls --xattrs --numeric-owner -C $S/r -cf star.tar . && getfacl -nc star/0/rootfs/f > $S/got; getfacl -nc $S/r/f > $S/want; diff $S/want $S/got
          test \"$(getfattr --only-values -n user.k star/0/rootfs/f)\" = v; ls -l star/0/rootfs/f | grep -q '^-rw-rw-r--+'");
}

#[test]
fn numbers_names_and_sizes_that_lie_are_refused() {
    let m = Mount::new();
    m.ok(r#"cat > $S/lies.py <<'END'
import sys
out = sys.argv[1]
def block(name=b'f', flag=b'0', link=b'', extra={}, fix=True):
    h = bytearray(512)
    def put(at, b): h[at:at+len(b)] = b
    put(0, name); put(100, b'0000644\0'); put(108, b'0000000\0'); put(116, b'0000000\0'); put(124, b'00000000005\0')
    put(136, b'00000000000\0'); put(148, b' ' * 8); put(156, flag); put(157, link); put(257, b'ustar\x0000')
    for at, b in extra.items(): put(at, b)
    if fix: put(148, b'%06o\0 ' % sum(h))
    return bytes(h)
def pad(b): return b + b'\0' * (-len(b) % 512)
def pax(text, flag=b'x'): return block(b'p', flag, extra={124: b'%011o\0' % len(text)}) + pad(text)
def rec(text):
    n = len(text) + 3
    while len(b'%d' % n) + len(text) + 2 != n: n += 1
    return b'%d %s\n' % (n, text)
def sparse(*lines): return pax(b''.join(rec(b'GNU.sparse.' + l) for l in lines))
D, END = pad(b'data\n'), b'\0' * 1024
F = block() + D
cases = {
 'size-negative': block(extra={124: b'\xff' * 12}) + D, 'size-huge': block(extra={124: b'\x80' + b'\xff' * 11}) + D,
 'size-garbage': block(extra={124: b'0000000x005\0'}) + D,
 'mode-garbage': block(extra={100: b'98765\0\0\0'}) + D, 'uid-negative': block(extra={108: b'\xff' * 8}) + D,
 'checksum': F + block(b'g', extra={148: b'0000001\0'}, fix=False) + D,
 'device': block(flag=b'3', extra={124: b'00000000000\0', 329: b'\x80\0\0\1\0\0\0\0'}),
 'pax-zero': pax(b'0 a=b\n') + F, 'pax-long': pax(b'99999999 a=b\n') + F, 'pax-noeq': pax(b'6 abc\n') + F,
 'pax-negative': pax(b'-5 a=b\n') + F, 'pax-size': pax(rec(b'size=banana')) + F, 'pax-time': pax(rec(b'mtime=1e9')) + F,
 'pax-lonely': pax(rec(b'path=xy')), 'global-path': pax(rec(b'path=x'), b'g') + F,
 'name-long': pax(rec(b'path=' + b'n' * 257)) + F, 'dotdot': block(b'a/../../b') + D, 'nul': pax(rec(b'path=a\0b/')) + F,
 'hard-out': block(flag=b'1', link=b'../x', extra={124: b'0' * 11 + b'\0'}), 'hard-none': block(flag=b'1', link=b'none', extra={124: b'0' * 11 + b'\0'}),
 'sparse-overlap': sparse(b'major=0', b'minor=1', b'size=9', b'map=0,3,1,2') + F,
 'sparse-sum': sparse(b'size=999', b'map=0,3,9,99') + F,
 'sparse-size': sparse(b'size=2', b'map=0,5') + F,
 'sparse-huge': sparse(b'size=18446744073709551615', b'map=0,5') + F,
}
for name, data in cases.items(): open(f'{out}/lie-{name}.tar', 'wb').write(data + END)
open(out + '/big-size.tar', 'wb').write(block(extra={124: b'\x80\0\0\0\x0f' + b'\xff' * 7}) + D)
open(out + '/big-pax.tar', 'wb').write(block(b'p', b'x', extra={124: b'%011o\0' % (1 << 30)}) + b'x' * 4096)
open(out + '/big-long.tar', 'wb').write(block(b'p', b'L', extra={124: b'%011o\0' % (1 << 30)}) + b'x' * 4096)
open(out + '/big-depth.tar', 'wb').write(pax(b'6011 path=' + b'a/' * 3000 + b'\n') + F + END)
v = b'SCHILY.xattr.user.x=' + b'v' * 70000; n = len(v) + 7
open(out + '/big-xattr.tar', 'wb').write(pax(b'%d %s\n' % (n, v)) + F + END)
open(out + '/big-sparse.tar', 'wb').write(sparse(b'major=1', b'minor=0', b'realsize=1') + block(extra={124: b'%011o\0' % 1024}) + pad(b'99999999\n') + b'1\n' * 256 + END)
END
python3 $S/lies.py $S"#);
    for file in m.ok("cd $S; ls lie-*.tar").lines() {
        m.refused(&format!("cp $S/{file} web.tar"), "Invalid argument");
    }
    for file in m.ok("cd $S; ls big-*.tar").lines() {
        let ran = m.refused(&format!("cp $S/{file} web.tar"), "Argument list too long");
        assert!(m.errors().lines().next().unwrap().contains("over the limit"), "{file}: {}", ran.err);
    }
    assert_eq!(m.ok("ls -A; find .imgfs/by-id .imgfs/trash -mindepth 1"), "", "nothing is left");
    m.ok("test -z \"$(ls $STORE/staging $STORE/trees | grep -v :)\"");
    m.fsck();
}

#[test]
fn limits_of_the_mount_are_kept() {
    let m = Mount::with(&["max_entries=20,max_depth=6,max_size=1M"]);
    m.ok("mkdir -p $S/e; touch $S/e/$(seq -s ' e/' 1 25 | sed 's/^/ /;s/ e.*//'); cd $S/e; for i in $(seq 25); do : > $i; done; tar -C $S/e -cf $S/e.tar .");
    m.refused("cp $S/e.tar web.tar", "Argument list too long");
    m.refused("mkdir -p $S/d/1/2/3/4/5/6/7; tar -C $S/d -cf web.tar .", "");
    m.refused(
        "head -c 2000000 /dev/zero > $S/z; tar -C $S -cf $S/z.tar z; cp $S/z.tar web.tar",
        "Argument list too long",
    );
    m.ok("cp $S/a.tar web.tar");
    assert!(m.errors().lines().all(|l| l.contains("limit")), "{}", m.errors());
}
