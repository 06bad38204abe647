//! A real mount of a throw-away store, and real tools to use it with.

#![allow(dead_code, reason = "each program of tests uses a part of this")]

pub mod limit;
pub mod random;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use limit::wait_until;

/// The program under test: for `Command`, and in scripts.
pub const IMGFS: Program = Program(env!("CARGO_BIN_EXE_imgfs"));

/// Bash for the beginning of a mount namespace of a test's own: the mounts of other tests, which run beside it,
/// leave that namespace. It would keep their daemons.
pub const WITHOUT_OTHERS: &str = "while read -r _ point _; do case $point in */imgfs-test-*) \
    case $point/ in \"$MNT\"*) ;; *) umount -l $point 2> /dev/null;; esac;; esac; done < /proc/self/mounts; ";

pub struct Program(&'static str);

impl AsRef<std::ffi::OsStr> for Program {
    fn as_ref(&self) -> &std::ffi::OsStr {
        self.0.as_ref()
    }
}

impl AsRef<Path> for Program {
    fn as_ref(&self) -> &Path {
        self.0.as_ref()
    }
}

/// A path without blanks, which scripts have unquoted: where it has some, a link to it.
impl std::fmt::Display for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        static LINK: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
        if !self.0.contains(' ') {
            return f.write_str(self.0);
        }
        let link = LINK.get_or_init(|| {
            let dir = tempfile::Builder::new().prefix("imgfs-program-").tempdir().unwrap().keep();
            std::fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
            std::os::unix::fs::symlink(self.0, dir.join("imgfs")).unwrap();
            dir.join("imgfs")
        });
        write!(f, "{}", link.display())
    }
}

/// A mounted store in a temporary directory: `mnt`, `store`, and `src` with archives to copy in.
pub struct Mount {
    pub dir: tempfile::TempDir,
    mounted: bool,
    options: Vec<String>,
    _watch: limit::Watch,
}

/// What a script did.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Mount {
    /// Mounts with default options.
    pub fn new() -> Mount {
        Mount::with(&[])
    }

    pub fn with(options: &[&str]) -> Mount {
        assert!(Path::new("/dev/fuse").exists(), "these tests need /dev/fuse");
        let dir = tempfile::Builder::new().prefix("imgfs-test-").tempdir().unwrap();
        for sub in ["mnt", "src"] {
            std::fs::create_dir(dir.path().join(sub)).unwrap();
        }
        // The long forms of torture hold a mount for days.
        let time =
            if std::env::var_os("IMGFS_TORTURE").is_none() { limit::limit() * 10 } else { Duration::MAX };
        let mut options: Vec<String> = options.iter().map(|o| (*o).to_owned()).collect();
        // The whole suite in another mode: inline, mounted or auto.
        if let Ok(trees) = std::env::var("IMGFS_TEST_TREES")
            && !options.iter().any(|o| o.contains("trees="))
        {
            options.push(format!("trees={trees}"));
        }
        let mut mount = Mount { _watch: limit::Watch::new(dir.path(), time), dir, mounted: false, options };
        mount.make_archives();
        mount.mount();
        mount
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn mnt(&self) -> PathBuf {
        self.path("mnt")
    }

    pub fn mount(&mut self) {
        let mut command = Command::new(IMGFS);
        command.arg("mount").arg("--store").arg(self.path("store"));
        for option in &self.options {
            command.args(["-o", option]);
        }
        command.arg(self.mnt());
        let output = limit::output(command, self.dir.path()).unwrap();
        assert!(output.status.success(), "mount: {}", String::from_utf8_lossy(&output.stderr));
        self.mounted = true;
    }

    pub fn unmount(&mut self) {
        let output = self.imgfs(&["umount"], &self.mnt()).unwrap();
        assert!(output.status.success(), "umount: {}", String::from_utf8_lossy(&output.stderr));
        self.mounted = false;
    }

    pub fn remount(&mut self) {
        self.unmount();
        self.mount();
    }

    /// The daemon's process.
    pub fn daemon(&self) -> u32 {
        let text = std::fs::read_to_string(self.path("store/lock")).unwrap();
        text.lines().next().unwrap().parse().unwrap()
    }

    /// Kills the daemon as a crash would.
    pub fn kill(&mut self) {
        let daemon = self.daemon();
        limit::kill(daemon);
        wait_until("the daemon's end", || limit::has_ended(daemon));
        self.mounted = false;
    }

    /// Runs an imgfs command whose last argument is a path.
    fn imgfs(&self, arguments: &[&str], path: &Path) -> std::io::Result<Output> {
        let mut command = Command::new(IMGFS);
        command.args(arguments).arg(path);
        limit::output(command, self.dir.path())
    }

    /// `a.tar`, `b.tar`, `c.tar`, `d.tar`: small roots (one file differs); `a.tar.gz` and so on; `not.tar`,
    /// `cut.tar`. Made once, copied for each mount.
    fn make_archives(&self) {
        static MADE: std::sync::OnceLock<tempfile::TempDir> = std::sync::OnceLock::new();
        let made = MADE.get_or_init(|| {
            let dir = tempfile::tempdir().unwrap();
            let script = "
                mkdir -p a/etc a/bin; echo one > a/etc/motd; ln a/etc/motd a/etc/hard; ln -s motd a/etc/l
                head -c 300000 /dev/urandom > a/bin/tool; echo 'ID=test' > a/etc/os-release
                for n in a b c d; do [ $n = a ] || { cp -a a $n; echo $n > $n/etc/motd; }; tar -C $n -cf $n.tar .; done
                gzip -k a.tar; xz -k a.tar; bzip2 -k a.tar; zstd -q -k a.tar; lz4 -q a.tar a.tar.lz4
                echo 'this is a text that goes on for a while and is no tarball' > not.tar
                head -c 100000 a.tar > cut.tar
            ";
            let ran = sh(dir.path(), script);
            assert_eq!(ran.code, 0, "{ran:?}");
            dir
        });
        let ran = sh(self.dir.path(), &format!("cp -a {}/. src/", made.path().display()));
        assert_eq!(ran.code, 0, "{ran:?}");
    }

    /// Runs a script in the mount; `$S` is the directory of archives, `$MNT` the mount.
    #[track_caller]
    pub fn sh(&self, script: &str) -> Ran {
        sh(
            &self.mnt(),
            &format!(
                "S={}; MNT={}; STORE={}; {script}",
                self.path("src").display(),
                self.mnt().display(),
                self.path("store").display()
            ),
        )
    }

    /// Runs a script of which each command must succeed; gives its output.
    #[track_caller]
    pub fn ok(&self, script: &str) -> String {
        let ran = self.sh(&format!("set -eE; trap 'echo \"failed: $BASH_COMMAND\" >&2' ERR; {script}"));
        assert_eq!(ran.code, 0, "`{script}`: {}{}\nerrors: {}", ran.out, ran.err, self.errors());
        ran.out
    }

    /// Runs a script that must fail with a message that has `wanted` in it, and leave a line in
    /// `.imgfs/errors`.
    #[track_caller]
    pub fn refused(&self, script: &str, wanted: &str) -> Ran {
        let before = self.errors();
        let ran = self.sh(script);
        assert_ne!(ran.code, 0, "`{script}` succeeded");
        assert!(
            ran.err.contains(wanted),
            "`{script}` said {:?}, not {wanted:?}\nerrors: {}",
            ran.err,
            self.errors()
        );
        assert_ne!(self.errors(), before, "`{script}` left no sentence");
        ran
    }

    /// `.imgfs/errors`.
    pub fn errors(&self) -> String {
        std::fs::read_to_string(self.mnt().join(".imgfs/errors")).unwrap_or_default()
    }

    /// metadata.json below the mount.
    pub fn json(&self, path: &str) -> serde_json::Value {
        let text = std::fs::read_to_string(self.mnt().join(path).join("metadata.json")).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    /// Checks the store's invariants.
    #[track_caller]
    pub fn fsck(&self) {
        let output = self.imgfs(&["fsck", "--store"], &self.path("store")).unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "fsck: {text}{}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // A daemon that a test has stopped, before it failed, would hold up what follows for ever.
        if limit::kill_stopped_daemons(self.dir.path()) {
            let _ = Command::new("umount").arg("-l").arg(self.mnt()).output();
            return;
        }
        if self.mounted {
            if self.imgfs(&["umount"], &self.mnt()).is_ok_and(|o| !o.status.success()) {
                let _ = self.imgfs(&["umount", "--lazy"], &self.mnt());
            }
        } else {
            let mut command = Command::new("umount");
            command.arg("-l").arg(self.mnt());
            let _ = limit::output(command, self.dir.path());
        }
    }
}

/// What must fail: `bash -e` does not mind what `!` has turned round. And what a script makes has the usual
/// mode, whatever the umask of who runs the tests is; the daemon has that.
pub const NOT: &str = "umask 022; not() { ! \"$@\"; }; export -f not; ";

/// Runs a script in a directory, within the limit. In a mount whose daemon is just being killed it may not
/// even begin.
#[track_caller]
pub fn sh(dir: &Path, script: &str) -> Ran {
    let mut command = Command::new("bash");
    command.args(["-o", "pipefail", "-c", &format!("{NOT}{script}")]).current_dir(dir).env("LC_ALL", "C");
    let Output { status, stdout, stderr } = match limit::output(command, dir) {
        Ok(output) => output,
        Err(e) => return Ran { code: 126, out: String::new(), err: e.to_string() },
    };
    Ran {
        code: status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&stdout).into_owned(),
        err: String::from_utf8_lossy(&stderr).into_owned(),
    }
}

/// User, group, further groups.
pub type User = (u32, u32, &'static str);

/// Whether we are root; if not, a line that says that something is skipped.
pub fn as_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("skipped: not root");
    }
    root
}

/// A mount that other users are let into. None, and a line that says so, if we are not root.
pub fn shared(options: &[&str]) -> Option<Mount> {
    if !as_root() {
        return None;
    }
    let m = Mount::with(&[&["allow_other"], options].concat());
    m.ok("chmod 755 $MNT/.. $S; chmod 644 $S/*.tar");
    Some(m)
}

/// Runs a script in the mount as somebody.
#[track_caller]
pub fn by(m: &Mount, (uid, gid, groups): User, script: &str) -> Ran {
    let groups = if groups.is_empty() { "--clear-groups".to_owned() } else { format!("--groups {groups}") };
    let inner = format!("{NOT}S={}; MNT={}; set -e; {script}", m.path("src").display(), m.mnt().display());
    write_script(&m.path("script"), &inner);
    sh(
        &m.mnt(),
        &format!(
            "setpriv --reuid {uid} --regid {gid} {groups} bash -o pipefail {}",
            m.path("script").display()
        ),
    )
}

/// A script that others may read, whatever the umask is.
pub fn write_script(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
}

#[track_caller]
pub fn may(m: &Mount, who: User, script: &str) -> String {
    let ran = by(m, who, script);
    assert_eq!(ran.code, 0, "{who:?} {script}: {ran:?}\n{}", m.errors());
    ran.out
}

#[track_caller]
pub fn may_not(m: &Mount, who: User, script: &str, why: &str) {
    let ran = by(m, who, script);
    assert!(ran.code != 0 && ran.err.contains(why), "{who:?} {script}: {ran:?}\n{}", m.errors());
}
