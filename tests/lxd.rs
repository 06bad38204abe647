//! A real LXD daemon imports what imgfs exports. `scripts/setup.sh judges` installs one.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::{IMGFS, Mount, WITHOUT_OTHERS};

/// A daemon of this test alone.
struct Lxd(Child);

impl Lxd {
    /// None, with a word, where there is none that runs.
    fn start(dir: &Path) -> Option<Lxd> {
        if !crate::common::as_root() {
            eprintln!("skipped: lxd needs root");
            return None;
        }
        std::fs::create_dir(dir.join("lxd")).unwrap();
        let log = std::fs::File::create(dir.join("lxd.log")).unwrap();
        // What it mounts goes with it.
        let mut command = Command::new("unshare");
        command
            .args(["-m", "--propagation", "private", "bash", "-c"])
            .arg(format!("{WITHOUT_OTHERS} exec lxd"))
            .env("MNT", dir)
            .env("LXD_DIR", dir.join("lxd"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        if !["lxd", "lxc"].iter().all(|tool| Command::new(tool).arg("--version").output().is_ok()) {
            eprintln!("skipped: there is no lxd and lxc (scripts/setup.sh judges)");
            return None;
        }
        let lxd = Lxd(command.spawn().unwrap());
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(60) {
            let asked = Command::new("timeout")
                .args(["10", "lxc", "query", "/1.0"])
                .env("LXD_DIR", dir.join("lxd"))
                .output();
            if asked.is_ok_and(|output| output.status.success()) {
                return Some(lxd);
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        let said = std::fs::read_to_string(dir.join("lxd.log")).unwrap_or_default();
        eprintln!("skipped: lxd does not answer here: {}", said.lines().last().unwrap_or_default());
        None
    }
}

impl Drop for Lxd {
    fn drop(&mut self) {
        crate::common::limit::kill(self.0.id());
        let _ = self.0.wait();
    }
}

const MAKE: &str = r#"
cd $S; mkdir meta uni; printf 'architecture: x86_64\ncreation_date: 1458040200\nproperties:\n  os: test\n' > meta/metadata.yaml
tar -C meta -cJf meta.tar.xz metadata.yaml; tar -C a -cJf rootfs.tar.xz .; mksquashfs a rootfs.squashfs -quiet -no-progress > /dev/null; qemu-img create -q -f qcow2 rootfs.img 1M
cp -a a uni/rootfs; cp meta/metadata.yaml uni/; tar -C uni -cJf uni.tar.xz metadata.yaml rootfs; tar -C uni -cf plain.tar rootfs metadata.yaml; tar -C uni -c . | zstd -q > dot.tar.zst
head -c 3000000 /dev/urandom > uni/rootfs/more; tar -C uni -cf - . | python3 -c 'import lzma, sys; sys.stdout.buffer.write(lzma.compress(sys.stdin.buffer.read(), preset=4))' > odd.tar.xz
"#;

/// Forms of an image: its name, and the files that are it.
const FORMS: &[(&str, &[&str])] = &[
    ("uni", &["uni.tar.xz"]),
    ("plain", &["plain.tar"]),
    ("dot", &["dot.tar.zst"]),
    ("odd", &["odd.tar.xz"]),
    ("split", &["meta.tar.xz", "rootfs.tar.xz"]),
    ("squashfs", &["meta.tar.xz", "rootfs.squashfs"]),
    ("vm", &["meta.tar.xz", "rootfs.img"]),
];

fn made() -> Mount {
    let m = Mount::new();
    m.ok(MAKE);
    for (name, files) in FORMS {
        match files {
            [one] => m.ok(&format!("cp $S/{one} {name}.{}", one.split_once('.').unwrap().1)),
            two => m.ok(&format!("mkdir .s; cp $S/{} $S/{} .s/; mv .s {name}", two[0], two[1])),
        };
    }
    m
}

/// Exports each form into `out/NAME`, and compares it with what came.
fn export(m: &Mount, out: &str) {
    for (name, files) in FORMS {
        m.ok(&format!("cd $S; mkdir -p {out}/{name}; {IMGFS} export --store $STORE {name} {out}/{name}/"));
        let came =
            m.ok(&format!("cd $S/{out}/{name}; cat $(ls -d meta.tar.xz 2> /dev/null) $(ls | grep -vx meta.tar.xz) | sha256sum"));
        let went = m.ok(&format!("cd $S; cat {} | sha256sum", files.join(" ")));
        assert_eq!(came, went, "{name}");
    }
}

/// Nobody has set anything: an LXD image is known by the digest of what came.
#[test]
fn an_lxd_image_goes_out_as_it_came() {
    let mut m = made();
    export(&m, "mounted");
    // What is no LXD image is not kept, though it begins like one; nor where somebody says so.
    m.ok("test $(jq -r .upload.kept uni/0/metadata.json) != no; mkdir $S/like; cp -a $S/a $S/like/rootfs; tar -C $S/like -cJf like.tar.xz rootfs; test $(jq -r .upload.kept like/0/metadata.json) = no");
    m.ok("cp $S/a.tar.xz other.tar.xz; test $(jq -r .upload.kept other/0/metadata.json) = no");
    m.ok("mkdir never; setfattr -n user.imgfs.keep_upload -v never never; cp $S/uni.tar.xz never/; test $(jq -r .upload.kept never/0/metadata.json) = no");
    m.unmount();
    export(&m, "unmounted");
    m.mount();
    m.fsck();
}

#[test]
fn a_real_lxd_imports_what_imgfs_exports_under_the_same_fingerprint() {
    let dir = tempfile::tempdir().unwrap();
    let Some(_lxd) = Lxd::start(dir.path()) else { return };
    let m = made();
    export(&m, "out");
    for (name, files) in FORMS {
        let image = if files.len() == 2 { files.join(" ") } else { "*".to_owned() };
        let lxc = format!("export LXD_DIR={}/lxd", dir.path().display());
        m.ok(&format!("{lxc}; cd $S/out/{name}; lxc image import {image} --alias {name} > ../said"));
        let theirs = m.ok(&format!("{lxc}; lxc image info {name} | sed -n 's/^Fingerprint: //p'"));
        let ours = m.ok(&format!("jq -r .fingerprint {name}/0/metadata.json"));
        assert_eq!(theirs, ours, "{name}");
        assert_eq!(theirs.trim().len(), 64, "{name}");
    }
}
