//! A copy that exits 0 is there, and one that was refused leaves nothing: each gesture with GNU and BusyBox
//! tools, then an umount and a kill -9.

use crate::common::Mount;

/// What cp, mv and so on are, by whose they are.
const TOOLS: [(&str, &str); 2] = [
    ("GNU", ""),
    (
        "BusyBox",
        "for tool in cp mv rm mkdir tar; do eval \"$tool() { busybox $tool \\\"\\$@\\\"; }\"; done; ",
    ),
];

/// Looks at the mount as it is, after an umount, and after a kill -9.
#[track_caller]
fn always(m: &mut Mount, look: &str) {
    m.ok(look);
    m.remount();
    m.ok(look);
    m.kill();
    m.mount();
    m.ok(look);
    m.fsck();
}

#[test]
fn a_whole_archive_is_published_under_any_name() {
    for (whose, tools) in TOOLS {
        println!("{whose}");
        let mut m = Mount::new();
        m.ok(&format!(
            "{tools} cp $S/a.tar noext; cp $S/a.tar.gz x.tar.gz.1; xz --format=lzma -c $S/a.tar > $S/l.tar.lzma; \
             cp $S/l.tar.lzma lz.tar.lzma; cp $S/l.tar.lzma tlz.tlz; cp $S/a.tar.zst p.tar.pzstd; cp $S/a.tar.gz services.gz; \
             cp $S/b.tar b.weird; install -m 644 $S/c.tar inst"
        ));
        let same = "for i in noext x lz tlz p services; do cmp $S/a.tar $i/0/rootfs.tar || exit 1; done; \
                    cmp $S/b.tar b.weird/0/rootfs.tar; cmp $S/c.tar inst/0/rootfs.tar; test $(ls | wc -l) = 9; \
                    test $(stat -c %a inst) = 755; jq -e '.staged == []' .imgfs/status.json";
        always(&mut m, same);
    }
}

#[test]
fn a_qcow2_is_one_whatever_it_is_called() {
    let mut m = Mount::new();
    m.ok("qemu-img create -q -f qcow2 $S/q 1M; cp $S/q disk.vmdk");
    always(&mut m, "cmp $S/q disk/0/disk.qcow2; test $(ls | wc -l) = 2");
}

#[test]
fn what_imgfs_cannot_take_is_refused_with_what_to_do() {
    for (whose, tools) in TOOLS {
        println!("{whose}");
        let mut m = Mount::new();
        let first = |m: &Mount| m.errors().lines().next().unwrap_or_default().to_owned();
        m.ok("qemu-img create -q -f vmdk $S/v.vmdk 1M; mkdir $S/o; echo x > $S/o/m.ovf; cp $S/v.vmdk $S/o/; tar -C $S/o -cf $S/o.ova m.ovf v.vmdk");
        for (file, name, remedy) in [
            ("v.vmdk", "disk.vmdk", "qemu-img convert"),
            ("v.vmdk", "disk", "qemu-img convert"),
            ("o.ova", "box.ova", "qemu-img convert"),
            ("o.ova", "box.tar", "qemu-img convert"),
        ] {
            m.refused(&format!("{tools} cp $S/{file} {name}"), "");
            assert!(first(&m).contains(remedy), "{name}: {}", first(&m));
        }
        m.ok("echo text > $S/README; gzip -c $S/README > $S/services.gz");
        for name in ["README", "services.gz", "services", "web.tar"] {
            m.refused(&format!("{tools} cp $S/services.gz {name}"), "");
            m.refused(&format!("{tools} cp $S/README {name}"), "");
        }
        always(&mut m, "test -z \"$(ls -A)\"; jq -e '.jobs_running == 0' .imgfs/status.json");
    }
}

#[test]
fn what_is_staged_survives_and_reads_back() {
    for (whose, tools) in TOOLS {
        println!("{whose}");
        let mut m = Mount::new();
        m.ok(&format!(
            "{tools} cp $S/a.tar .web.tar; gzip -c $S/b.tar > .b; cp $S/not.tar notes.part; \
             cp $S/c.tar db.tar; cp $S/d.tar db/.next; for e in part partial tmp temp crdownload download filepart aria2 swp; do \
             cp $S/a.tar e.tar.$e; done; cp $S/a.tar e.tar~; chmod 640 .web.tar; touch -d 2020-02-02 .web.tar; : > .empty"
        ));
        always(
            &mut m,
            "cmp $S/a.tar .web.tar; gzip -dc .b | cmp - $S/b.tar; cmp $S/not.tar notes.part; cmp $S/d.tar db/.next; \
             for e in part partial tmp temp crdownload download filepart aria2 swp; do cmp $S/a.tar e.tar.$e || exit 1; done; \
             cmp $S/a.tar e.tar~; test \"$(stat -c '%a %y' .web.tar | cut -c-14)\" = '640 2020-02-02'; test -e .empty; \
             test $(jq '.staged | length' .imgfs/status.json) = 15; \
             jq -e '.staged[] | select(.path == \"/db/.next\") | .bytes > 1000 and .kind == \"file\"' .imgfs/status.json",
        );
        m.ok(&format!(
            "{tools} mv .web.tar web.tar; mv .b web/; mv db/.next db/x.tar; mv e.tar.part e.tar; rm e.tar.* e.tar~ notes.part .empty; \
             cmp $S/a.tar web/0/rootfs.tar; cmp $S/b.tar web/1/rootfs.tar; cmp $S/d.tar db/1/rootfs.tar; cmp $S/a.tar e/0/rootfs.tar"
        ));
        always(
            &mut m,
            "test \"$(ls -A | tr '\\n' ' ')\" = 'db default e web '; test -z \"$(ls $STORE/staged)\"",
        );
    }
}

#[test]
fn a_staged_file_is_one_to_write_in_any_order() {
    let mut m = Mount::new();
    m.ok("head -c 5000 $S/a.tar > .x; tail -c +5001 $S/a.tar >> .x; cmp $S/a.tar .x; \
          (head -c 100 $S/b.tar | dd of=.x bs=100 conv=notrunc status=none; cp $S/a.tar $S/m.tar; \
          head -c 100 $S/b.tar | dd of=$S/m.tar bs=100 conv=notrunc status=none); cmp $S/m.tar .x; \
          truncate -s 700 .x; cmp <(head -c 700 $S/m.tar) .x; cp $S/c.tar .x; mv .x .y; cp $S/a.tar .x; mv .x .y; cmp $S/a.tar .y");
    always(&mut m, "cmp $S/a.tar .y; test $(ls -A | wc -l) = 1; test $(ls $STORE/staged | wc -l) = 1");
    // A refused rename leaves it as it is; it may be mended, and tried again.
    m.ok("cp $S/cut.tar .cut");
    m.refused("mv .cut cut.tar", "Bad message");
    m.ok("cmp $S/cut.tar .cut; cp $S/b.tar .cut; mv .cut cut.tar; cmp $S/b.tar cut/0/rootfs.tar");
    m.fsck();
}

#[test]
fn an_umount_names_what_is_still_staged() {
    let mut m = Mount::new();
    m.ok("cp $S/a.tar .web.tar; mkdir .dir; cp $S/b.tar .dir/");
    let output =
        std::process::Command::new(crate::common::IMGFS).arg("umount").arg(m.mnt()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("/.web.tar (") && said.contains("/.dir ("), "{said}");
    m.mount();
    m.ok("rm .web.tar; rm -r .dir");
}

#[test]
fn a_writer_that_is_killed_stages_nothing() {
    let mut m = Mount::new();
    m.ok("mkfifo $S/f; cat $S/f > .x & sleep 0.2; exec 7> $S/f; head -c 9000 $S/a.tar >&7; sleep 0.3; kill -9 $!; wait $! 2> /dev/null || true; exec 7>&-; sleep 0.3");
    always(&mut m, "test -z \"$(ls -A)\"; test -z \"$(find $STORE/staged $STORE/staging -mindepth 1)\"");
}

#[test]
fn what_nobody_renamed_for_a_week_goes() {
    let m = Mount::with(&["trash=5s"]);
    m.ok("cp $S/a.tar .old; cp $S/a.tar .new; for d in $STORE/staged/*; do grep -q '\"name\":\".old\"' $d/about.json || continue; touch -d '8 days ago' $d/about.json $d/content; done");
    let begun = std::time::Instant::now();
    while m.sh("test -e .old").code == 0 {
        assert!(begun.elapsed().as_secs() < 60, "it is still there");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    m.ok("cmp $S/a.tar .new; grep -q 'long time' .imgfs/failed/.old; test $(ls $STORE/staged | wc -l) = 1");
}

#[test]
fn a_refused_tree_leaves_no_shell_of_an_image() {
    for (whose, tools) in TOOLS {
        println!("{whose}");
        let mut m = Mount::new();
        m.ok("mkdir -p $S/t/.hid $S/empty $S/mix; echo x > $S/t/.hid/f; mkdir -p $S/t/etc $S/t/usr; echo x > $S/t/etc/motd; echo x > $S/t/README; cp $S/b.tar $S/t/README $S/mix/");
        for copy in
            ["cp -r $S/t $MNT/", "cp -a $S/t $MNT/", "cp -a $S/t/etc $MNT/new", "tar xf $S/a.tar -C $MNT"]
        {
            m.refused(&format!("{tools} {copy}"), "");
            m.ok("test -z \"$(ls)\"");
        }
        assert!(m.errors().contains("tar -C TREE -c . > MNT/NAME.tar"), "{}", m.errors());
        m.sh("rm -rf .??*");
        always(&mut m, "test -z \"$(ls -A)\"");
        // Beside what is refused, what is an image goes in; a mkdir is an image to be filled.
        m.refused(&format!("{tools} cp -r $S/mix $MNT/"), "");
        m.ok(&format!("{tools} cp -r $S/empty $MNT/; mkdir later"));
        m.refused(&format!("{tools} cp $S/t/README later/"), "");
        always(
            &mut m,
            "cmp $S/b.tar mix/0/rootfs.tar; test \"$(ls | tr '\\n' ' ')\" = 'default empty later mix '; test -z \"$(ls later | grep -v metadata.json)\"",
        );
    }
}

/// The kernel says that a file is closed a moment after close(2) has returned, or later, if a child has it, too.
/// Until then the image of a mkdir in which nothing was taken stayed, and for good.
#[test]
fn a_shell_of_an_image_goes_while_somebody_has_a_refused_file_open() {
    let m = Mount::new();
    let maker = "import os, time
os.mkdir('t')
fd = os.open('t/README', os.O_WRONLY | os.O_CREAT)
os.write(fd, b'no archive\\n')
try:
    os.close(os.dup(fd))
except OSError as e:
    print(e.strerror, flush=True)
if os.fork() == 0:
    os.dup2(os.open('/dev/null', os.O_WRONLY), 1)
    time.sleep(3)";
    let ran = m.sh(&format!("python3 -c \"{maker}\" 2> /dev/null; ls"));
    assert_eq!(ran.out, "Invalid argument\n", "{ran:?}");
    m.ok("test -z \"$(ls)\"");
}

#[test]
fn rsync_brings_the_archives_and_fails_with_the_rest() {
    let mut m = Mount::new();
    m.ok("mkdir $S/dd; cp $S/a.tar $S/dd/; gzip -c $S/b.tar > $S/dd/b.tar.gz; echo text > $S/dd/README");
    let ran = m.sh("rsync -a $S/dd/ $MNT/");
    assert!(ran.code == 23 && ran.err.contains("README"), "{ran:?}");
    always(
        &mut m,
        "test \"$(ls -A | tr '\\n' ' ')\" = 'a b default '; cmp $S/a.tar a/0/rootfs.tar; cmp $S/b.tar b/0/rootfs.tar",
    );
    // A whole directory of the kind is an image, or nothing.
    m.ok("mkdir $S/n; echo text > $S/n/README");
    assert_ne!(m.sh("rsync -a $S/n $MNT/").code, 0);
    m.ok("test \"$(ls | tr '\\n' ' ')\" = 'a b default '");
}

#[test]
fn a_move_into_an_image_publishes() {
    for (whose, tools) in TOOLS {
        println!("{whose}");
        let mut m = Mount::new();
        m.ok(&format!("{tools} cp $S/a.tar web.tar; mkdir .s; cp $S/b.tar .s/; mv .s web; test ! -e .s; cp $S/c.tar .f; mv .f web/; test ! -e .f; mkdir .s; cp $S/d.tar .s/; cp $S/a.tar .g; mv .s .g web/"));
        let same = "cmp $S/b.tar web/1/rootfs.tar; cmp $S/c.tar web/2/rootfs.tar; cmp $S/d.tar web/3/rootfs.tar; cmp $S/a.tar web/4/rootfs.tar; test \"$(ls -A web | tr '\\n' ' ')\" = '.id 0 1 2 3 4 default latest metadata.json '; test $(ls -A | wc -l) = 2";
        always(&mut m, same);
        // In one directory a dotted name is a name.
        m.ok(&format!("{tools} mkdir web/.n; cp $S/b.tar web/.n/; mv web/.n web/.o; cp $S/b.tar web/.p; mv web/.p web/.q; mkdir .r; mv .r .t"));
        always(&mut m, "ls web/.o/b.tar web/.q; ls -d .t; test ! -e web/5");
        m.ok(&format!("{tools} mv web/.q .q; cmp $S/b.tar .q; rm -r .q .t web/.o"));
    }
}

#[test]
fn a_chmod_of_the_receipt_reaches_the_image_it_made() {
    for (whose, tools) in TOOLS {
        println!("{whose}");
        let mut m = Mount::new();
        m.ok(&format!(
            "{tools} umask 022; install -m 644 $S/a.tar.gz $MNT/i.tar.gz; install -m 600 $S/a.tar.gz $MNT/j.tar.gz; \
             install -m 644 $S/a.tar $MNT/k; install -m 600 $S/a.tar $MNT/l; chmod 600 $S/b.tar; cp -p $S/b.tar p.tar; \
             chmod 644 $S/c.tar; cp -p $S/c.tar q.tar; (umask 077; cp $S/c.tar r.tar); chmod 644 r.tar; rsync -p $S/c.tar s.tar"
        ));
        let modes =
            "test \"$(stat -c %a i j k l p q r s | tr '\\n' ' ')\" = '755 700 755 700 700 755 755 755 '";
        always(&mut m, modes);
        // An image that was there keeps its mode, and so does one whose mode somebody has chosen.
        m.ok(&format!("{tools} mkdir -m 700 own; install -m 644 $S/a.tar own.tar; install -m 644 $S/b.tar i.tar.gz; chmod 711 k; chmod 600 i.tar.gz; chmod 750 j; chmod 644 j.tar.gz"));
        always(&mut m, "test \"$(stat -c %a own i j k | tr '\\n' ' ')\" = '700 755 750 711 '");
    }
}

#[test]
fn a_new_metadata_json_is_moved_in() {
    for (whose, tools) in TOOLS {
        println!("{whose}");
        let mut m = Mount::new();
        m.ok(&format!("{tools} cp $S/a.tar web.tar; echo '{{\"description\":\"moved\"}}' > $S/n.json; mv $S/n.json web/metadata.json; test ! -e $S/n.json"));
        always(&mut m, "jq -e '.description == \"moved\"' web/metadata.json");
        m.ok("echo '{\"id\":\"mine\"}' > $S/n.json");
        m.refused(&format!("{tools} mv -f $S/n.json web/metadata.json"), "");
        m.ok(&format!("{tools} test -e $S/n.json; rm web/metadata.json; ls web | grep -q metadata.json; rm -f web/metadata.json; cp $S/a.tar web.tar"));
        always(&mut m, "jq -e '.description == \"moved\"' web/metadata.json; test ! -e web/1");
        m.ok("setfattr -n user.imgfs.immutable -v true web");
        m.refused(&format!("{tools} rm -f web/metadata.json"), "not permitted");
        m.ok("setfattr -n user.imgfs.immutable -v false web");
    }
}

/// cp has looked, another upload begins, cp creates with O_EXCL.
#[test]
fn a_second_upload_under_the_same_name_is_told_that_it_is_busy() {
    let m = Mount::new();
    m.ok("export MNT S; python3 - <<'E'
import errno, os, subprocess, time
path, source = os.environ['MNT'] + '/up.tar', os.environ['S'] + '/a.tar'
for place in [path, os.path.join(os.environ['MNT'], 'web', 'up')]:
    os.makedirs(os.path.dirname(place), exist_ok=True)
    try: os.stat(place); raise SystemExit('it is there')
    except FileNotFoundError: pass
    writer = subprocess.Popen(['sh', '-c', 'cat > ' + place], stdin=subprocess.PIPE)
    writer.stdin.write(open(source, 'rb').read()[:20000]); writer.stdin.flush()
    while subprocess.call(['test', '-s', place]): time.sleep(0.01)
    for flags in [os.O_EXCL, 0]:
        try: os.open(place, os.O_CREAT | os.O_WRONLY | flags); raise SystemExit('it was opened')
        except OSError as e: assert e.errno == errno.EBUSY, e
    writer.stdin.write(open(source, 'rb').read()[20000:]); writer.stdin.close(); assert writer.wait() == 0
E");
    m.ok("cmp $S/a.tar up/0/rootfs.tar; cmp $S/a.tar web/0/rootfs.tar");
}

/// mv speaks of a directory moved into itself for EINVAL, of what it cannot overwrite for EEXIST.
#[test]
fn a_refused_mv_does_not_speak_nonsense() {
    for (whose, tools) in TOOLS {
        println!("{whose}");
        let m = Mount::new();
        m.ok("python3 -c 'import sys,zipfile; zipfile.ZipFile(sys.argv[1], \"w\").write(sys.argv[2])' $S/z.zip $S/a.tar; cp $S/a.tar x_1.0_amd64.tar; cp $S/b.tar .b; cp $S/not.tar .n; cp $S/cut.tar .c; cp $S/z.zip .z; mkdir .s .e; cp $S/not.tar .s/");
        for (mv, words) in [
            ("mv .n web.tar", "Bad message"),
            ("mv .n web", "Bad message"),
            ("mv .n x/", "Bad message"),
            ("mv .c web.tar", "Bad message"),
            ("mv .s web", "Bad message"),
            ("mv .s x/", "Bad message"),
            ("mv .e web", "Bad message"),
            ("mv .z web.tar", "not supported"),
            ("mv .b x_1.0_amd64.tar", "not unique"),
        ] {
            let ran = m.refused(&format!("{tools} {mv}"), words);
            assert!(!ran.err.contains("itself") && !ran.err.contains("overwrite"), "{mv}: {}", ran.err);
        }
        let ran = m.refused(&format!("{tools} mv .b ./@web"), "");
        assert!(!ran.err.contains("itself"), "{}", ran.err);
        m.ok("cmp $S/b.tar .b; cmp $S/not.tar .n; test $(ls | wc -l) = 2");
    }
}
