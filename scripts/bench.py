"""The measurements behind bench.sh: imgfs and its peers in turns. What comes out is in bench_report.py.

Every sample is the wall time of one command in seconds. Peers of a row run in the same round, one after the other.
"""

import argparse
import io
import json
import os
import random
import shutil
import subprocess
import tarfile
import tempfile
import time
from pathlib import Path

import bench_report

FIVE = ["web-v0", "web-v1", "web-v2", "web-v3", "trixie-v0"]
BIG = "usr/lib/x86_64-linux-gnu/libLLVM-14.so.1"


def sh(script, **more):
    return subprocess.run(["bash", "-ec", script], check=True, stdout=subprocess.PIPE, text=True, **more).stdout


class Bench:
    def __init__(self, options):
        self.imgfs, self.corpus, self.rounds = options.imgfs, Path(options.corpus), options.rounds
        self.work = Path(tempfile.mkdtemp(prefix="imgfs-bench-"))
        self.images, self.store = self.work / "images", self.work / "store"
        self.images.mkdir()
        self.samples, self.facts, self.mounts = {}, {}, []
        os.environ.update(BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK="yes", BORG_BASE_DIR=str(self.work / "borg-home"),
                          RESTIC_PASSWORD="bench", RESTIC_CACHE_DIR=str(self.work / "restic-home"))

    # -- what is measured with ------------------------------------------------------------------------------------

    def time(self, name, script):
        """Runs a script and keeps how long it took under `name`."""
        begun = time.perf_counter()
        sh(script)
        self.samples.setdefault(name, []).append(time.perf_counter() - begun)

    def mount(self, options="trash=0"):
        sh(f"{self.imgfs} mount --store {self.store} -o {options} {self.images}")

    def unmount(self):
        sh(f"{self.imgfs} umount {self.images}")

    def remount(self):
        self.unmount()
        self.mount()

    def memory(self, key):
        pid = (self.store / "lock").read_text().split()[0]
        status = Path(f"/proc/{pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith(key)).split()[1]) // 1024

    def stored(self):
        """Bytes that the store takes on the disk."""
        return int(sh(f"sync; du -sk {self.store}").split()[0]) * 1024

    def empty(self):
        """Deletes every image and gives the space back."""
        names = [p.name for p in self.images.iterdir() if p.is_dir() and not p.is_symlink()]
        (self.images / "none").mkdir()
        sh(f"cd {self.images}; ln -sfn none default; for i in {' '.join(names)}; do rmdir $i; done; rmdir none")
        sh(f"{self.imgfs} gc --trash --store {self.store}; sync")

    def fresh(self):
        """A new, empty store."""
        self.unmount()
        shutil.rmtree(self.store)
        self.mount()

    def close(self):
        subprocess.run([self.imgfs, "umount", "--lazy", self.images], stderr=subprocess.DEVNULL)
        for point in self.mounts:
            subprocess.run(["umount", "-l", point], stderr=subprocess.DEVNULL)
        shutil.rmtree(self.work, ignore_errors=True)

    # -- sections -------------------------------------------------------------------------------------------------

    def ingest(self):
        """cp in: against tar, the decoders, and what other stores take to import the same tarball."""
        tar, c, i, w = self.corpus / "web-v3.tar", self.corpus, self.images, self.work
        for suffix, make in [("xz", "xz -T2 -2"), ("zst", "zstd -q -3"), ("gz", "gzip -6")]:
            if not (c / f"web-v3.tar.{suffix}").exists():
                sh(f"{make} -c {tar} > {tar}.{suffix}")
        for _ in range(self.rounds):
            sh(f"cat {c}/web-v*.tar {tar}.* > /dev/null; sync")
            self.time("tar xf and sync", f"mkdir {w}/x; tar xf {tar} -C {w}/x; sync -f {w}/x")
            sh(f"rm -rf {w}/x; sync; cat {tar} > /dev/null")
            self.time("cp first", f"cp {tar} {i}/web.tar")
            self.time("cp same", f"cp {tar} {i}/web.tar")
            self.time("cp other", f"cp {c}/web-v2.tar {i}/web.tar")
            self.time("cp shared", f"cp {tar} {i}/web.tar")
            self.empty()
            for suffix, bare in [("xz", "xz -T2 -dc"), ("zst", "zstd -qdc"), ("gz", "gzip -dc")]:
                self.time(f"bare {suffix}", f"{bare} {tar}.{suffix} > /dev/null")
                self.time(f"cp {suffix}", f"cp {tar}.{suffix} {i}/z.tar.{suffix}")
                self.empty()
            self.time("cp twenty", f"for n in $(seq 20); do cp {c}/web-v0.tar {i}/a$n.tar & done; wait")
            self.empty()
        self.facts["ingest peak MiB"] = self.memory("VmHWM")
        # Those that take no tarball get the unpacked tree, those that take no devices get none.
        sh(f"mkdir {w}/x; tar xf {tar} -C {w}/x; find {w}/x -type c -delete")
        for _ in range(min(self.rounds, 2)):
            sh(f"borg init -e none {w}/borg; restic init -q -r {w}/restic; ostree init --repo={w}/ostree --mode=archive")
            sh(f"tar c -C {w}/x . | cat > /dev/null; cat {tar} > /dev/null; sync")
            self.time("borg import-tar", f"borg import-tar -C zstd,3 {w}/borg::a {tar}; sync")
            self.time("sqfstar -comp zstd", f"sqfstar -comp zstd -quiet -no-progress {w}/a.sqfs < {tar}; sync")
            self.time("restic backup", f"restic backup -q -r {w}/restic {w}/x; sync")
            self.time("casync make", f"cd {w}; casync make --store=casync a.caidx x; sync")
            self.time("ostree commit", f"ostree commit --repo={w}/ostree -b a --tree=dir={w}/x; sync")
            sh(f"rm -rf {w}/borg {w}/restic {w}/ostree {w}/casync {w}/a.caidx {w}/a.sqfs")
        sh(f"rm -rf {w}/x")

    def space(self):
        """Bytes on the disk after each version, and after a repack; against one image, chunk stores, tarballs."""
        c, w = self.corpus, self.work
        # What an update costs: packed without it, and with it.
        self.fresh()
        packed = []
        for version in [0, 1]:
            sh(f"cp {c}/web-v{version}.tar {self.images}/web.tar; {self.imgfs} repack --store {self.store}")
            packed.append(self.stored())
        self.facts["web-v1 after web-v0, bytes"] = packed[1] - packed[0]
        sizes = {}
        for storage in ["auto", "small"]:
            self.fresh()
            after = []
            for name in FIVE:
                image = name.split("-")[0]
                sh(f"cp {c}/{name}.tar {self.images}/{image}.tar; setfattr -n user.imgfs.storage -v {storage} {self.images}/{image}")
                after.append(self.stored())
            if storage == "auto":
                self.facts["loose after each version, bytes"] = dict(zip(FIVE, after))
                sizes["imgfs, loose"] = after[-1]
            begun = time.perf_counter()
            sh(f"{self.imgfs} repack --store {self.store}")
            self.facts[f"repack {storage}, seconds"] = round(time.perf_counter() - begun, 1)
            self.facts[f"repack {storage} peak MiB"] = self.memory("VmHWM")
            sizes[f"imgfs repacked, {storage}"] = self.stored()
        self.fresh()
        for name in FIVE:
            sh(f"mkdir -p {w}/all/{name}; tar xf {c}/{name}.tar -C {w}/all/{name}")
        sh(f"mksquashfs {w}/all {w}/all.sqfs -comp zstd -quiet -no-progress")
        sizes["one squashfs of all, zstd"] = (w / "all.sqfs").stat().st_size
        sh(f"borg init -e none {w}/borg; for n in {' '.join(FIVE)}; do borg import-tar -C zstd,3 {w}/borg::$n {c}/$n.tar; done")
        sizes["borg, zstd"] = int(sh(f"du -sk {w}/borg").split()[0]) * 1024
        sh(f"cd {w}; for n in {' '.join(FIVE)}; do casync make --store=casync $n.caidx all/$n; done")
        sizes["casync"] = int(sh(f"du -sk --apparent-size {w}/casync").split()[0]) * 1024
        sizes["five .tar.xz"] = sum(int(sh(f"xz -T2 -6 -c {c}/{n}.tar | wc -c")) for n in FIVE)
        sh(f"restic init -q -r {w}/restic; for n in {' '.join(FIVE)}; do restic backup -q -r {w}/restic {w}/all/$n; done")
        sizes["restic"] = int(sh(f"du -sk {w}/restic").split()[0]) * 1024
        sh(f"find {w}/all -type c -delete; ostree init --repo={w}/ostree --mode=archive")
        sh(f"for n in {' '.join(FIVE)}; do ostree commit --repo={w}/ostree -b $n --tree=dir={w}/all/$n; done")
        sizes["ostree, without devices"] = int(sh(f"du -sk {w}/ostree").split()[0]) * 1024
        sh(f"rm -rf {w}/all {w}/all.sqfs {w}/borg {w}/casync {w}/*.caidx {w}/restic {w}/ostree")
        self.facts["stored, bytes"] = sizes

    def read(self):
        """find, du, tar, grep, cp, one large file: a tree of web-v3, loose and packed, beside file systems."""
        c, w, i = self.corpus, self.work, self.images
        self.fresh()
        sh(f"mkdir {w}/x; tar xf {c}/web-v3.tar -C {w}/x; sync")
        sh(f"mksquashfs {w}/x {w}/x.sqfs -comp zstd -Xcompression-level 3 -quiet -no-progress; mkfs.erofs -zlz4hc {w}/x.erofs {w}/x > /dev/null 2>&1")
        sh(f"cp {c}/web-v3.tar {i}/packed.tar; {self.imgfs} repack --store {self.store}")
        # Packed content alone in one store, loose content alone in another, and once more with trees inline.
        packed = self.work / "packed-store"
        self.unmount()
        self.store.rename(packed)
        self.mount()
        sh(f"cp {c}/web-v3.tar {i}/loose.tar")
        other, third, copy = w / "packed", w / "trees", w / "copy-store"
        other.mkdir()
        third.mkdir()
        self.unmount()
        sh(f"cp -a {self.store} {copy}")
        peers = {
            "imgfs": (f"{self.imgfs} mount --store {self.store} -o trash=0 {i}", str(i), f"{i}/loose/0/rootfs", self.store),
            "imgfs trees=inline": (f"{self.imgfs} mount --store {copy} -o trash=0,trees=inline {third}", str(third), f"{third}/loose/0/rootfs", copy),
            "imgfs packed": (f"{self.imgfs} mount --store {packed} -o trash=0 {other}", str(other), f"{other}/packed/0/rootfs", packed),
        }
        for name, make in [("squashfs", "mount -t squashfs -o loop,ro {} {}"), ("erofs", "mount -t erofs -o loop,ro {} {}"), ("squashfuse", "squashfuse_ll {} {}")]:
            point = self.work / name
            point.mkdir()
            image = f"{w}/x.erofs" if name == "erofs" else f"{w}/x.sqfs"
            peers[name] = (make.format(image, point), str(point), str(point), image)
        peers["ext4"] = (":", None, f"{w}/x", None)
        self.mounts += [p[1] for p in peers.values() if p[1]]

        def attach(name):
            # The daemon greets the kernel, the user reads the first directory: what everybody does first.
            sh(f"{peers[name][0]} > /dev/null; ls {peers[name][2]} > /dev/null")

        def detach(name):
            if peers[name][1]:
                sh(f"{self.imgfs + ' ' if 'imgfs' in name else ''}umount {peers[name][1]}")

        ops = {
            "find -ls": "find {0} -ls > /dev/null",
            "du -s": "du -s {0} > /dev/null",
            "tar c | cat": "tar c -C {0} . | cat > /dev/null",
            "grep -r": "grep -r nosuchthing {0}/usr/share > /dev/null || true",
            "cp -a": f"cp -a {{0}}/usr/share {w}/copy",
            "large file": "dd if={0}/" + BIG + " of=/dev/null bs=1M status=none",
            "chroot true": "chroot {0} /bin/true",
        }
        for _ in range(self.rounds):
            for name in peers:
                for op in ["find -ls", "tar c | cat", "grep -r", "large file", "chroot true"]:
                    if not peers[name][1]:
                        continue
                    if peers[name][3]:
                        sh(f"find {peers[name][3]} -type f -exec cat {{}} + > /dev/null")
                    attach(name)
                    self.time(f"cold {op}: {name}", ops[op].format(peers[name][2]))
                    detach(name)
                sh("sync; echo 3 > /proc/sys/vm/drop_caches")
                attach(name)
                self.time(f"disk cold tar c | cat: {name}", ops["tar c | cat"].format(peers[name][2]))
                detach(name)
        for name in peers:
            attach(name)
            sh(";".join(ops[op].format(peers[name][2]) for op in ["find -ls", "tar c | cat", "large file"]))
        for state in ["warm", "busy"]:
            spin = subprocess.Popen(["bash", "-c", "while :; do :; done"]) if state == "busy" else None
            for _ in range(self.rounds):
                for op in ops if state == "warm" else ["find -ls", "du -s", "tar c | cat"]:
                    for name in peers:
                        self.time(f"{state} {op}: {name}", ops[op].format(peers[name][2]))
                        sh(f"rm -rf {w}/copy")
            if spin:
                spin.kill()
                spin.wait()
        for name in peers:
            sh(f"cat {peers[name][2]}/{BIG} > /dev/null")
        for _ in range(self.rounds):
            for name in peers:
                self.random_reads(f"warm random 4 KiB: {name}", f"{peers[name][2]}/{BIG}")
        for _ in range(self.rounds):
            for name in ["imgfs", "imgfs packed"]:
                detach(name)
                attach(name)
                image = Path(peers[name][2]).parent
                self.time(f"cold rootfs.tar: {name}", f"cat {image}/rootfs.tar > /dev/null")
                self.random_reads(f"warm rootfs.tar, random 4 KiB: {name}", f"{image}/rootfs.tar")
            self.time("cold rootfs.tar: ext4", f"cat {c}/web-v3.tar > /dev/null")
        for name in peers:
            detach(name)
        sh(f"rm -rf {w}/x {w}/x.sqfs {w}/x.erofs {packed} {copy}")
        self.mount()
        self.fresh()

    def random_reads(self, name, path, count=5000):
        file, places = os.open(path, os.O_RDONLY), random.Random(7)
        blocks = os.fstat(file).st_size // 4096
        begun = time.perf_counter()
        for _ in range(count):
            os.pread(file, 4096, places.randrange(blocks) * 4096)
        self.samples.setdefault(name, []).append((time.perf_counter() - begun) / count)
        os.close(file)

    def ends(self):
        """rmdir, gc, mount: the figures that have bounds of their own, with many versions."""
        c, i, w = self.corpus, self.images, self.work
        self.fresh()
        sh(f"for n in $(seq 25); do for v in 0 1; do cp {c}/web-v$v.tar {i}/web.tar; done; done")
        for n in range(48):
            begun = time.perf_counter()
            os.rmdir(i / "web" / str(n))
            self.samples.setdefault("rmdir", []).append(time.perf_counter() - begun)
        self.fresh()
        # 100 versions of 100,000 files that share all but one: in the tar, a byte of its content changes.
        tar = w / "many.tar"
        with tarfile.open(tar, "w", format=tarfile.GNU_FORMAT) as out:
            for n in range(100_000):
                entry = tarfile.TarInfo(f"{n // 1000}/{n % 1000}")
                entry.size = 6
                out.addfile(entry, io.BytesIO(b"%06d" % n))
        for n in range(100):
            with open(tar, "r+b") as out:
                out.seek(512)
                out.write(b"v%05d" % n)
            sh(f"cp {tar} {i}/many.tar")
        tar.unlink()
        for _ in range(self.rounds):
            self.time("gc, 100 versions of 100,000 files", f"{self.imgfs} gc --store {self.store}")
        sh(f"mkdir {w}/t; for n in $(seq 1000); do echo $n > {w}/t/n; tar c -C {w}/t n > {i}/small$((n % 100)).tar; done; rm -r {w}/t")
        for _ in range(self.rounds):
            self.unmount()
            self.time("mount, 1,100 versions", f"{self.imgfs} mount --store {self.store} -o trash=0 {i}")
            self.time("ls -l, 101 images", f"ls -l {i} > /dev/null")
        time.sleep(11)
        self.facts["idle MiB, 1,100 versions"] = self.memory("VmRSS")
        self.fresh()

    def scale(self):
        """How things grow: 10,000 versions, a tree of a million files, a file of 20 GB."""
        i, w = self.images, self.work
        self.fresh()
        sh(f"mkdir {w}/t")
        for n in range(10):
            begun = time.perf_counter()
            sh(f"for n in $(seq 1000); do echo {n} $n > {w}/t/n; tar c -C {w}/t n > {i}/image$n.tar; done")
            self.facts[f"1,000 ingests with {n},000 versions, seconds"] = round(time.perf_counter() - begun, 1)
        for _ in range(self.rounds):
            self.unmount()
            self.time("mount, 10,000 versions", f"{self.imgfs} mount --store {self.store} -o trash=0 {i}")
            self.time("ls, 1,000 images", f"ls {i} > /dev/null")
            self.time("ls -l, 1,000 images", f"ls -l {i} > /dev/null")
            self.time("gc, 10,000 versions", f"{self.imgfs} gc --store {self.store}")
        time.sleep(11)
        self.facts["idle MiB, 10,000 versions"] = self.memory("VmRSS")
        self.fresh()
        sh(f"rm -r {w}/t; mkdir {w}/t; cd {w}/t; for d in $(seq 1000); do mkdir $d; (cd $d; seq -f %04g 0 999 | xargs touch); done; tar c . > {w}/million.tar; rm -r {w}/t")
        self.time("cp, 1,000,000 files", f"cp {w}/million.tar {i}/million.tar")
        self.time("find, 1,000,000 files", f"find {i}/million/0/rootfs > /dev/null")
        self.facts["peak MiB, 1,000,000 files"] = self.memory("VmHWM")
        self.time("rmdir, 1,000,000 files", f"rmdir {i}/million")
        sh(f"rm {w}/million.tar")
        self.fresh()
        sh(f"mkdir {w}/t; openssl enc -aes-128-ctr -pass pass:x -nosalt -pbkdf2 < /dev/zero 2> /dev/null | head -c 20000000000 > {w}/t/large")
        self.time("tar | cp, a file of 20 GB", f"tar c -C {w}/t large > {i}/large.tar")
        self.facts["peak MiB, a file of 20 GB"] = self.memory("VmHWM")
        self.time("cat, a file of 20 GB", f"cat {i}/large/0/rootfs/large > /dev/null")
        self.time("rmdir, a file of 20 GB", f"rmdir {i}/large")
        sh(f"rm -r {w}/t")
        self.fresh()


def main():
    here = Path(__file__).resolve().parent
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "imgfs-corpus"
    parser = argparse.ArgumentParser(prog="bench.sh", description="Measures imgfs beside what people use instead.")
    parser.add_argument("--imgfs", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=5, help="samples of each (5)")
    parser.add_argument("--corpus", default=cache, help=f"where the images are, or are made ({cache})")
    parser.add_argument("--out", type=Path, help="where bench.json, bench.md and the charts go (only printed)")
    parser.add_argument("--record", action="store_true", help="puts the figures into docs/bench.json, README and docs/")
    sections = ["ingest", "space", "read", "ends", "scale"]
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(sections) + " (all but scale)")
    options = parser.parse_args()
    for section in options.sections:
        if section not in sections:
            parser.error(f"there is no section {section}: {', '.join(sections)}")
    subprocess.run([here / "corpus.sh", options.corpus, *FIVE], check=True)
    bench = Bench(options)
    try:
        bench.mount()
        for section in options.sections or sections[:-1]:
            print(f"-- {section}", flush=True)
            getattr(bench, section)()
        report = bench_report.Report(bench.samples, bench.facts)
        print("\n" + report.all())
        if options.out:
            options.out.mkdir(parents=True, exist_ok=True)
            found = {"samples": bench.samples, "facts": bench.facts}
            (options.out / "bench.json").write_text(json.dumps(found, indent=1) + "\n")
            (options.out / "bench.md").write_text(report.all())
            for name, chart in report.charts().items():
                (options.out / f"{name}.svg").write_text(chart)
        if options.record:
            bench_report.record(here.parent, bench.samples, bench.facts)
    finally:
        bench.close()


if __name__ == "__main__":
    main()
