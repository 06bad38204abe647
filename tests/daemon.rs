//! imgfs daemon: a store whose daemon runs with nothing mounted.

use std::path::Path;
use std::process::Command;

use crate::common::limit::{self, wait_until, wait_until_free};
use crate::common::{IMGFS, Mount, Ran, as_root, sh};

/// A store that was mounted once, and whose daemon runs without a mount.
struct Unmounted(Mount);

impl Unmounted {
    /// `script` prepares the store in a mount; `$H` is a file to hold leases with.
    fn after(script: &str) -> Unmounted {
        let mut m = Mount::new();
        m.ok(&format!("H=$S/holder; touch $H; {script}"));
        m.unmount();
        Unmounted(m)
    }

    fn start(&self, options: &str) {
        let ran = self.sh(&format!("$I daemon --store $STORE {options}"));
        assert!(ran.code == 0 && ran.out.contains("nothing is mounted"), "{ran:?}");
    }

    /// Beside the mount, not in it; `$I` is imgfs.
    #[track_caller]
    fn sh(&self, script: &str) -> Ran {
        let m = &self.0;
        let (store, src, mnt) = (m.path("store"), m.path("src"), m.mnt());
        let words =
            [("I", format!("{IMGFS}")), ("STORE", show(&store)), ("S", show(&src)), ("MNT", show(&mnt))];
        let words: String = words.iter().map(|(name, value)| format!("{name}={value}; ")).collect();
        sh(m.dir.path(), &format!("{words}H=$S/holder; {script}"))
    }

    #[track_caller]
    fn ok(&self, script: &str) -> String {
        let ran = self.sh(&format!("set -eE; trap 'echo \"failed: $BASH_COMMAND\" >&2' ERR; {script}"));
        let log = std::fs::read_to_string(self.0.path("store/daemon.log")).unwrap_or_default();
        assert_eq!(ran.code, 0, "`{script}`: {ran:?}\n{log}");
        ran.out
    }

    #[track_caller]
    fn refused(&self, script: &str, sentence: &str, remedy: &str) {
        let ran = self.sh(script);
        let says = |text: &str| ran.err.contains(text);
        assert!(ran.code == 1 && says(sentence) && says(remedy), "{script}: {ran:?}");
    }

    fn is(&self, script: &str) -> bool {
        self.sh(script).code == 0
    }
}

impl Drop for Unmounted {
    fn drop(&mut self) {
        self.sh("umount -l $MNT $MNT 2> /dev/null; $I daemon --store $STORE --stop");
    }
}

fn show(path: &Path) -> String {
    path.display().to_string()
}

#[test]
fn background_work_goes_on_with_nothing_mounted() {
    // What is due by its own rules is held by a lease until the mount is gone.
    let u = Unmounted::after(
        "for n in o kept past gone; do cp $S/a.tar $n.tar; done; cp $S/b.tar past/; cp $S/d.tar old.tar; rmdir old
         for n in past/0 past/1 gone/0; do ln -s $H $n/used_by/holder; done
         setfattr -n user.imgfs.expires_at -v 2020-01-01 past; setfattr -n user.imgfs.status -v deleted gone
         cp $S/b.tar kept/; setfattr -n user.imgfs.keep_versions -v 1 kept; ln -s $H kept/0/used_by/holder; cp $S/c.tar kept/
         cp $S/a.tar .week-old.tar; mkdir .young; cp $S/a.tar .young/rootfs.tar",
    );
    u.ok("rm -f $H $STORE/scrub; touch -d '8 days ago' $STORE/trees/*.tree; test -z \"$(ls $STORE/packs)\"
          $I ls --store $STORE -H -o name | sort | tr '\\n' ' ' | grep -q '^gone kept o past $'");
    u.start("-o trash=1s");
    let pid = u.0.daemon();
    let out = u.ok("$I status --store $STORE");
    assert!(out.contains(&format!("daemon      process {pid}, nothing is mounted")), "{out}");
    wait_until("the end of what is due", || u.ok("$I ls --store $STORE -H -o name | sort") == "kept\no\n");
    wait_until("the end of the trash", || u.is("$I status --store $STORE | grep -q ', 0 in the trash$'"));
    wait_until("a pack", || u.is("ls $STORE/packs | grep -q pack$"));
    let scrub = || u.ok("$I status --store $STORE --json | jq -r '.scrub.ended_at // \"\"'");
    wait_until("the end of a look at everything", || scrub().starts_with("20"));
    let threads = u.ok(&format!("cat /proc/{pid}/task/*/comm"));
    for name in ["background", "prove", "pack", "scrub"] {
        assert!(threads.lines().any(|line| line == name), "{threads}");
    }
    u.ok("log=$STORE/log; for n in past gone; do grep -q \"delete.*$n.*in the trash\" $log; done
          test $($I ls --store $STORE --json kept | jq '.[0].versions | length') = 1
          $I daemon --store $STORE --stop; test ! -e $STORE/control; $I fsck --store $STORE; $I mount --store $STORE $MNT
          cmp $S/c.tar $MNT/kept/latest/rootfs.tar; test -e $MNT/.week-old.tar -a -e $MNT/.young; $I umount $MNT");
}

/// What is staged goes after a week without a mount, too; what a mount shows is that mount's to drop.
#[test]
fn what_is_staged_goes_after_a_week_with_nothing_mounted() {
    let u = Unmounted::after(
        "mkdir .imgfs/views/dc1; cp $S/a.tar .file.tar; mkdir .dir; cp $S/a.tar .dir/rootfs.tar; cp $S/b.tar .young.tar",
    );
    u.ok("for d in $STORE/staged/*; do grep -q young $d/about.json || find $d -exec touch -d '8 days ago' {} +; done
          test $(ls $STORE/staged | wc -l) = 3");
    u.start("-o trash=1s");
    wait_until("the end of what is staged", || u.ok("ls $STORE/staged | wc -l").trim() == "1");
    u.ok("$I mount --store $STORE $MNT; test -e $MNT/.young.tar -a ! -e $MNT/.file.tar -a ! -e $MNT/.dir
          cat $MNT/.imgfs/failed/.file.tar | grep -q renamed; cat $MNT/.imgfs/failed/.dir | grep -q touched
          mv $MNT/.young.tar $MNT/young; test -e $MNT/young/0; $I umount $MNT");
}

#[test]
fn mounts_come_from_the_daemon_and_go_without_it() {
    let u = Unmounted::after(
        "cp $S/a.tar web.tar; cp $S/b.tar web/; cp $S/c.tar .staged.tar; mkdir .imgfs/views/dc1",
    );
    u.start("");
    let pid = u.0.daemon();
    for _ in 0..3 {
        u.ok("$I mount --store $STORE $MNT; cmp $S/a.tar $MNT/web/0/rootfs.tar; test -e $MNT/.staged.tar; cat $MNT/web/1/rootfs/etc/motd
              cp $S/d.tar $MNT/; rmdir $MNT/d; mkdir -p $S/view; $I mount --store $STORE -o view=dc1 $S/view; cp $S/a.tar $S/view/mine.tar
              $I status --store $STORE | grep -q \"^mounted *$MNT (process\"; $I umount $S/view; $I umount $MNT; not mountpoint -q $MNT");
        let out = u.ok("$I status --store $STORE; $I umount $MNT 2>&1 || true");
        assert!(out.contains("nothing is mounted") && out.contains("no imgfs mount on"), "{out}");
        assert_eq!(u.0.daemon(), pid);
        u.ok("$I mount --store $STORE -o view=dc1 $S/view; rmdir $S/view/mine; $I umount $S/view");
    }
    if as_root() {
        u.ok("$I mount --store $STORE $MNT; ls $MNT/web/0 > /dev/null; ls $MNT/web/0/rootfs/etc; grep -q \" $MNT/web/0/rootfs \" /proc/self/mountinfo; $I umount $MNT
              $I mount --store $STORE -o trees=mounted $MNT; $I umount $MNT; $I mount --store $STORE -o trees=inline $MNT; ls $MNT/web/0/rootfs/etc
              not grep -q \" $MNT/web/0/rootfs \" /proc/self/mountinfo; $I umount $MNT");
    }
    // An upload that a mount has cut off is gone with it.
    u.ok("$I mount --store $STORE $MNT; mkfifo $S/fifo; (exec 5> $MNT/half.tar; head -c 99999 $S/b.tar >&5; echo > $S/fifo; exec sleep 60) & writer=$!
          read < $S/fifo; test -e $MNT/half.tar; $I umount --lazy $MNT; kill $writer; wait $writer || true");
    wait_until("the end of the mount", || u.is("$I status --store $STORE | grep -q 'nothing is mounted'"));
    u.ok("$I mount --store $STORE $MNT; test ! -e $MNT/half.tar; cp $S/b.tar $MNT/half.tar; cmp $S/b.tar $MNT/half/0/rootfs.tar
          $I mount -f --store $STORE -o view=dc1 $S/view & front=$!; until mountpoint -q $S/view; do sleep 0.01; done
          kill $front; wait $front; not mountpoint -q $S/view; mountpoint -q $MNT; $I umount $MNT");
    assert_eq!(u.0.daemon(), pid);
    u.ok("$I daemon --store $STORE --stop; $I fsck --store $STORE");
}

#[test]
fn commands_work_beside_a_daemon_without_mounts_or_say_what_does() {
    let u = Unmounted::after("cp $S/a.tar web.tar; cp $S/b.tar web/; cp $S/d.tar old.tar; rmdir old");
    u.start("");
    let (pid, store) = (u.0.daemon(), show(&u.0.path("store")));
    u.ok("$I ls --store $STORE | grep -q web; $I diff --store $STORE web/0 web/1 | grep -q etc/motd; $I fsck --store $STORE | grep -q clean
          $I gc --store $STORE --trash | grep -q '1 entries'; $I repack --store $STORE --pause; $I repack --store $STORE --resume
          $I repack --store $STORE | grep -q moved; $I fsck --store $STORE");
    let holder =
        format!("{store} is used by process {pid} (imgfs), the store's daemon, with nothing mounted");
    let remedy = "imgfs mount gets a mount from it; imgfs daemon --stop ends it";
    u.refused("$I daemon --store $STORE", &holder, remedy);
    u.refused("$I daemon -f --store $STORE", &holder, remedy);
    u.refused("$I export --store $STORE web/0 $S/out.tar", &holder, remedy);
    u.refused("$I export --store $STORE web/0 $S", &holder, remedy);
    u.refused("$I mount --store $STORE -o trash=1h $MNT", "the store has a daemon already", "");
    u.refused("$I mount --store $STORE -o view=none $MNT", "none", "");
    for words in ["ro", "allow_other", "view=dc1", "remount"] {
        u.refused(&format!("$I daemon --store $STORE -o {words}"), "it is about one mount", "");
    }
    // It goes on as it was.
    u.ok("not mountpoint -q $MNT; $I mount --store $STORE $MNT; $I export --store $STORE web/0 $S/out.tar; cmp $S/a.tar $S/out.tar; mkdir -p $S/m2");
    let mounted = format!("{store} is used by process {pid} (imgfs), mounted on {}", show(&u.0.mnt()));
    u.refused("$I mount --store $STORE $S/m2", &mounted, "imgfs umount it first");
    u.refused("$I daemon --store $STORE", &mounted, "imgfs umount it first");
    u.refused("$I daemon --store $STORE --stop", &mounted, "imgfs umount it first");
    u.ok("test -e $MNT/web; $I umount $MNT; $I daemon --store $STORE --stop");
    u.refused("$I daemon --store $STORE --stop", "no daemon has", "");
    u.refused("$I repack --store $STORE --pause", "nothing runs in the background", "");
    // A daemon that began with its mount ends with it, and not before.
    u.ok("$I mount --store $STORE $MNT");
    u.refused("$I daemon --store $STORE --stop", ", mounted on", "imgfs umount it first");
    u.refused("$I daemon --store $STORE", ", mounted on", "imgfs umount it first");
    u.ok("$I umount $MNT; $I gc --store $STORE");
}

#[test]
fn a_daemon_that_ends_leaves_nothing_and_one_that_was_killed_is_replaced() {
    let u = Unmounted::after("cp $S/a.tar web.tar");
    let store = u.0.path("store");
    let gone = |u: &Unmounted| {
        u.ok("test ! -e $STORE/control; test -z \"$(ls $STORE/staging)\"; not mountpoint -q $MNT")
    };
    u.start("");
    u.ok(&format!("kill {}", u.0.daemon()));
    wait_until_free(&store);
    gone(&u);
    // Its mounts go first.
    u.start("");
    u.ok(&format!("$I mount --store $STORE $MNT; kill {}", u.0.daemon()));
    wait_until_free(&store);
    gone(&u);
    u.ok("(exec $I daemon -f --store $STORE > $S/line 2> $S/log) & until grep -q 'nothing is mounted' $S/line; do sleep 0.01; done
          $I status --store $STORE | grep -q nothing; kill $!; wait $!; grep -q 'signal 15: ending' $S/log");
    gone(&u);
    for mounts in [false, true] {
        u.start("");
        if mounts {
            u.ok("$I mount --store $STORE $MNT");
        }
        let pid = u.0.daemon();
        limit::kill(pid);
        wait_until("the daemon's end", || limit::has_ended(pid));
        u.start("");
        assert_ne!(u.0.daemon(), pid);
        u.ok("$I mount --store $STORE $MNT; cmp $S/a.tar $MNT/web/0/rootfs.tar; $I umount $MNT; $I daemon --store $STORE --stop");
        gone(&u);
    }
    // A directory that is no store is left alone.
    u.ok("mkdir $S/other; echo x > $S/other/f; not $I daemon --store $S/other 2> $S/err; grep -q 'not' $S/err; test \"$(ls $S/other)\" = f
          $I daemon --store $S/new; test -d $S/new/trees; $I daemon --store $S/new --stop");
    u.ok("$I fsck --store $STORE");
}

/// The store's work told only the mount of the whole store, and made one if there was none. A view that is
/// mounted alone is told now, and its kernel forgets the name.
#[test]
fn a_view_that_is_mounted_alone_is_told_what_goes_by_itself() {
    let mut m = Mount::new();
    m.ok("touch $S/holder; mkdir .imgfs/views/dc1");
    m.unmount();
    let mut command = Command::new(IMGFS);
    command.args(["mount", "-o", "view=dc1", "--store"]).arg(m.path("store")).arg(m.mnt());
    assert!(limit::output(command, m.dir.path()).unwrap().status.success());
    m.ok("for n in o web; do cp $S/a.tar $n.tar; done; ln -s $S/holder web/0/used_by/h; setfattr -n user.imgfs.expires_at -v 2020-01-01 web; rm $S/holder");
    wait_until("the end of what has expired", || m.sh("test ! -e web").code == 0);
    m.ok("ls .imgfs/trash | grep -qx web; not stat web; mkdir web; rmdir web; ls | not grep -qx web");
    m.ok(&format!("cd /; {IMGFS} umount $MNT"));
    m.mount();
    m.ok("grep 'dc1:/\\?web.*expires_at\\|delete.*web' .imgfs/log");
}

#[test]
fn an_ordinary_user_has_a_daemon_of_an_own_store() {
    let root = rustix::process::geteuid().is_root();
    if root && sh(Path::new("/"), "getent passwd 1000").code != 0 {
        return println!("skipped: user 1000 has no name, which fusermount3 asks for");
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(IMGFS, dir.path().join("imgfs")).unwrap();
    let prepared = sh(
        dir.path(),
        "[ $(id -u) != 0 ] || chmod 666 /dev/fuse; chmod 755 imgfs; mkdir mnt r; echo x > r/f; tar -C r -cf a.tar .
         [ $(id -u) != 0 ] || chown -R 1000:1000 .; chmod 755 .",
    );
    assert_eq!(prepared.code, 0, "{prepared:?}");
    let script = "./imgfs daemon | grep -q 'nothing is mounted'; test $(stat -c %a .local/share/imgfs) = 700
        ./imgfs mount mnt; cp a.tar mnt/web.tar; cmp a.tar mnt/web/0/rootfs.tar; test $(stat -c %u mnt/web) = $(id -u); ./imgfs umount mnt
        ./imgfs status | grep -q 'nothing is mounted'; ./imgfs ls | grep -q web; not ./imgfs daemon 2> err; grep -q 'with nothing mounted' err
        ./imgfs mount mnt; not ./imgfs daemon --stop 2> err; grep -q 'umount it first' err; fusermount3 -u mnt
        for n in $(seq 500); do ./imgfs status | grep -q 'nothing is mounted' && break; sleep 0.01; done
        ./imgfs daemon --stop; test ! -e .local/share/imgfs/control; ./imgfs fsck";
    crate::common::write_script(&dir.path().join("script"), &format!("{}{script}", crate::common::NOT));
    let as_user = if root { "setpriv --reuid 1000 --regid 1000 --clear-groups " } else { "" };
    let ran = sh(dir.path(), &format!("{as_user}env HOME=$PWD bash -o pipefail -e script"));
    let _ = sh(dir.path(), "umount -l mnt 2> /dev/null");
    assert_eq!(ran.code, 0, "{ran:?}");
}
