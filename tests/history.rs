//! What changed, and who did it: `changes`, `imgfs diff`, `.imgfs/log`.

use crate::common::{IMGFS, Mount, sh};

/// An image of two versions that differ in every way, and one more.
fn made(m: &Mount) {
    m.ok("mkdir $S/r; cd $S/r; mkdir etc dir; echo one > etc/motd; echo gone > etc/gone; echo same > etc/same; ln -s a link; \
         echo file > kind; mkfifo pipe; truncate -s 1M sparse; echo x >> sparse; chmod 644 etc/same; tar -C . -cf ../1.tar .; \
         echo three > etc/motd; rm etc/gone; echo new > etc/new; ln -sfn bb link; rm kind; mkdir kind; echo in > kind/in; \
         chmod 600 etc/same; mkdir dir/deep; setfattr -n user.x -v y dir; tar -C . --xattrs -cf ../2.tar .; \
         touch -d @5 etc/motd dir; tar -C . --xattrs -cf ../3.tar .; cd $MNT; \
         cp $S/1.tar web.tar; cp $S/2.tar web.tar; cp $S/3.tar web.tar");
}

const CHANGED: &str = "modified\t0\t0\trootfs/dir
added\t-\t0\trootfs/dir/deep
removed\t5\t-\trootfs/etc/gone
modified\t4\t6\trootfs/etc/motd
added\t-\t4\trootfs/etc/new
modified\t5\t5\trootfs/etc/same
removed\t5\t-\trootfs/kind
added\t-\t0\trootfs/kind
added\t-\t3\trootfs/kind/in
modified\t1\t2\trootfs/link
";

#[test]
fn changes_says_what_a_version_changed() {
    let mut m = Mount::new();
    made(&m);
    m.ok("not test -e web/0/changes; test $(ls web/0 web/1 web/2 | grep -cx changes) = 2");
    assert_eq!(m.ok("cat web/1/changes"), CHANGED);
    // Each path says which one it is.
    let names = ["a\nb", "a\\nb"].map(std::ffi::OsString::from);
    let bad = [b"bad\xff", b"bad\xfe"].map(|name| std::os::unix::ffi::OsStringExt::from_vec(name.to_vec()));
    std::fs::create_dir(m.path("src/odd")).unwrap();
    names
        .iter()
        .chain(&bad)
        .for_each(|name: &std::ffi::OsString| std::fs::write(m.path("src/odd").join(name), "").unwrap());
    m.ok("tar -C $S/odd -cf $S/odd.tar .; mkdir odd; cp $S/1.tar odd/; cp $S/odd.tar odd/");
    let odd = m.ok("grep added odd/1/changes | cut -f 4 | sort; rm -r odd");
    assert_eq!(odd, "rootfs/a\\\\nb\nrootfs/a\\nb\nrootfs/bad\\xfe\nrootfs/bad\\xff\n");
    assert_eq!(m.ok("stat -c %s web/1/changes").trim(), CHANGED.len().to_string());
    // Times alone are no change, and there is nothing to read then.
    assert_eq!(m.ok("cat web/2/changes; stat -c %s web/2/changes"), "0\n");
    m.refused("echo x > web/1/changes", "Read-only file system");
    // Against the newest older one that is there; and it goes, and comes back, with it.
    m.ok("rmdir web/1");
    assert_eq!(m.ok("cat web/2/changes"), CHANGED);
    m.ok("mv .imgfs/trash/web.1 web/; test ! -s web/2/changes; rmdir web/0; not test -e web/1/changes; ls -l web/* > /dev/null");
    m.remount();
    m.ok("rm -r web/1; not test -e web/2/changes; rm -r web; ls .imgfs/trash | grep -qx web");
    m.fsck();
}

#[test]
fn diff_compares_any_two_versions() {
    let mut m = Mount::new();
    made(&m);
    m.ok("cp $S/1.tar other.tar; ln -s other jammy; ln -s 1 web/@2.0");
    let diff = |m: &Mount, words: &str| m.ok(&format!("{IMGFS} diff --store $STORE {words}"));
    assert_eq!(diff(&m, "web/0 web/1"), CHANGED);
    assert_eq!(diff(&m, "jammy web/@2.0"), CHANGED);
    assert_eq!(diff(&m, "web/1 web/2") + &diff(&m, "other web/0"), "");
    let back = diff(&m, "web other");
    assert!(
        back.contains("added\t-\t5\trootfs/etc/gone\n") && back.contains("removed\t4\t-\trootfs/etc/new\n"),
        "{back}"
    );
    let json: serde_json::Value = serde_json::from_str(&diff(&m, "--json web/0 web/1")).unwrap();
    assert_eq!(
        json[2],
        serde_json::json!({"change": "removed", "path": "rootfs/etc/gone", "before": 5, "after": null})
    );
    let wrong = m.sh(&format!("{IMGFS} diff --store $STORE web/0 web/7"));
    assert!(wrong.code == 1 && wrong.err.contains("there is no version web/7"), "{wrong:?}");
    // Of a store that is not mounted, too.
    m.unmount();
    let ran = sh(&m.path("."), &format!("{IMGFS} diff --store store web/0 web"));
    assert_eq!((ran.code, ran.out.as_str()), (0, CHANGED));
}

#[test]
fn files_beside_rootfs_are_compared_too() {
    let m = Mount::new();
    m.ok("mkdir -p $S/l/rootfs $S/l/templates; cd $S/l; printf 'architecture: x86_64\ncreation_date: 1' > metadata.yaml; echo x > templates/gone; echo a > rootfs/f; \
          tar -cf ../1.tar *; printf 'architecture: aarch64\ncreation_date: 1' > metadata.yaml; rm templates/gone; tar -cf ../2.tar *; cd $MNT; \
          cp $S/1.tar web.tar; cp $S/2.tar web.tar");
    let changes = m.ok("cat web/1/changes");
    assert!(
        changes.contains("modified\t37\t38\tmetadata.yaml\n")
            && changes.contains("removed\t2\t-\ttemplates/gone\n"),
        "{changes}"
    );
    assert!(!changes.contains("rootfs"), "{changes}");
}

#[test]
fn the_log_is_followed_as_it_grows() {
    let mut m = Mount::new();
    m.ok("cp $S/a.tar web.tar");
    m.ok("timeout 20 tail -n 1 -s 0.1 -f .imgfs/log > $S/seen & for i in $(seq 100); do test -s $S/seen && break; sleep 0.05; done; \
          ln -s web alias; mkdir new; rmdir new; for i in $(seq 100); do grep -q delete $S/seen && break; sleep 0.1; done; kill %1");
    let seen = m.ok("cut -f 3- $S/seen");
    assert_eq!(
        seen.lines().skip(1).collect::<Vec<_>>(),
        ["alias\talias\tweb", "mkdir\tnew\tmade", "delete\tnew\tin the trash"]
    );
    let before = m.ok("cat .imgfs/log");
    m.remount();
    m.kill();
    m.mount();
    assert!(m.ok("cat .imgfs/log").starts_with(&before));
    assert_eq!(m.ok("stat -c %s .imgfs/log").trim(), m.ok("cat .imgfs/log").len().to_string());
    m.ok("not test -e .imgfs/log.1; head -c 1100000 /dev/zero | tr '\\0' '\\n' >> $STORE/log");
    m.remount();
    m.ok("mkdir x; test $(wc -l < .imgfs/log) = 1; test $(wc -c < .imgfs/log.1) -gt 1100000; ls .imgfs | grep -x log.1");
}
