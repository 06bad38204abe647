//! Staging directories: several files that become one version, all or nothing.

use crate::common::Mount;
use crate::common::limit::wait_until;

#[test]
fn a_staging_directory_is_published_by_its_rename() {
    let mut m = Mount::new();
    m.ok("mkdir .new; cp $S/a.tar.xz .new/; ls -A | grep -q .new; ls -A .new; cmp $S/a.tar.xz .new/a.tar.xz; mv .new web; test ! -e .new; cmp $S/a.tar web/0/rootfs.tar");
    m.ok("mkdir web/.next; cp $S/b.tar web/.next/whatever; echo '{\"description\":\"from staging\",\"os\":\"x\",\"id\":\"ignored\"}' > web/.next/metadata.json; mv web/.next web/next; cmp $S/b.tar web/1/rootfs.tar; test ! -e web/next");
    assert_eq!(m.json("web")["description"], "from staging");
    // A new image needs a free name; a number is not given by hand; a dotted name is a rename.
    m.refused("mkdir .n; cp $S/c.tar .n/; mv -T .n web", "");
    m.refused("mkdir web/.n; cp $S/c.tar web/.n/; mv -T web/.n web/7", "Operation not permitted");
    m.ok("mv -T web/.n web/.m; mv -T .n .k; ls -d .k web/.m; mv -T web/.m .l; mkdir web/.m; cp .l/c.tar web/.m/; rm -r .k .l");
    // Nothing, or too much, in it: refused whole, and it stays as it was.
    m.refused("mkdir .e; mv -T .e empty", "Bad message");
    m.refused("cp $S/a.tar $S/b.tar .e/; mv -T .e two", "Bad message");
    m.ok(
        "ls .e | wc -l | grep -q 2; test ! -e two; rm .e/b.tar; mv -T .e one; cmp $S/a.tar one/0/rootfs.tar",
    );
    m.refused("mkdir .e; cp $S/not.tar .e/; mv -T .e two", "Bad message");
    m.refused("cp $S/cut.tar .e/not.tar; mv -T .e two", "Bad message");
    m.refused("mkdir .e/sub", "Operation not supported");
    m.refused("rmdir .e", "busy");
    m.ok("rm -r .e; test ! -e .e");
    // What tools do to files: temporary names, times, modes, appending, truncating, seeking.
    m.ok("mkdir .t; rsync -a $S/a.tar $S/a.tar.gz .t/; cmp $S/a.tar .t/a.tar; test $(stat -c %Y .t/a.tar) = $(stat -c %Y $S/a.tar); rm .t/a.tar.gz; head -c 5000 $S/a.tar > .t/a.tar; tail -c +5001 $S/a.tar >> .t/a.tar; cmp $S/a.tar .t/a.tar; chmod 600 .t/a.tar; printf x | dd of=.t/a.tar bs=1 seek=0 conv=notrunc status=none; truncate -s 10 .t/a.tar; test $(stat -c %s .t/a.tar) = 10; sync .t/a.tar; install -m 640 $S/c.tar .t/a.tar; python3 -c 'import os;os.replace(\".t/a.tar\",\".t/b.tar\")'");
    // It survives the daemon, clean or killed.
    m.remount();
    m.ok("cmp $S/c.tar .t/b.tar; test $(stat -c %a .t) = 700; ls web/.m/c.tar");
    m.kill();
    m.mount();
    m.ok("mv .t three; cmp $S/c.tar three/0/rootfs.tar; rm -r web/.m; test -z \"$(ls $STORE/staged)\"");
    m.fsck();
}

#[test]
fn what_was_announced_must_hold() {
    let m = Mount::new();
    let sums = "sum=$(sha256sum < $S/a.tar.gz | cut -c-64); bad=$(echo $sum | tr 0-9a-f a-f0-9)";
    for (make, wrong) in [
        ("echo \"$sum  a.tar.gz\" > .s/a.tar.gz.sha256", "echo \"$bad  a.tar.gz\" > .s/a.tar.gz.sha256"),
        ("echo $sum > .s/a.tar.gz.sha256", "echo $bad > .s/a.tar.gz.sha256"),
        ("(cd $S; sha256sum a.tar.gz b.tar) > .s/SHA256SUMS", "echo \"$bad *a.tar.gz\" > .s/SHA256SUMS"),
        (
            "setfattr -n user.imgfs.expect -v sha256:$sum .s/a.tar.gz; getfattr -d .s/a.tar.gz | grep -q $sum",
            "setfattr -n user.imgfs.expect -v sha256:$bad .s/a.tar.gz",
        ),
        (
            "sha1sum < $S/a.tar.gz | cut -c-40 > .s/a.tar.gz.sha1",
            "setfattr -n user.imgfs.expect -v sha1:${bad:0:40} .s/a.tar.gz",
        ),
    ] {
        m.refused(&format!("{sums}; mkdir .s; cp $S/a.tar.gz .s/; {wrong}; mv .s web"), "Bad message");
        m.ok(&format!(
            "test ! -e web; rm -r .s; {sums}; mkdir .s; cp $S/a.tar.gz .s/; {make}; mv .s web; rm -r web; rm -r .imgfs/trash/web*"
        ));
    }
    m.refused(
        "mkdir .s; cp $S/a.tar .s/; setfattr -n user.imgfs.expect -v banana .s/a.tar",
        "Invalid argument",
    );
    m.refused("echo banana > .s/SHA256SUMS; mv .s web", "Bad message");
    m.ok("rm -r .s");
    // Of an upload under a dotted name, too; what is announced needs no end marker.
    m.ok(&format!(
        "{sums}; cp $S/a.tar.gz .x; setfattr -n user.imgfs.expect -v $sum .x; mv .x web.tar.gz; ls web/0"
    ));
    m.refused(
        &format!("{sums}; cp $S/b.tar .x; setfattr -n user.imgfs.expect -v $sum .x; mv .x web.tar.gz"),
        "Bad message",
    );
    m.ok("test ! -e web/1; rm -f .x");
    m.fsck();
}

const SPLIT: &str = "
  mkdir -p $S/r/etc $S/t/templates; echo hi > $S/r/etc/motd; echo tpl > $S/t/templates/x.tpl
  printf 'architecture: aarch64\\ncreation_date: 1458040200\\nproperties: {os: tiny, release: two}\\n' > $S/t/metadata.yaml
  tar -C $S/t -cJf $S/meta.tar.xz metadata.yaml templates; tar -C $S/r -czf $S/root.tar.gz .
";

#[test]
fn a_split_lxd_image_is_two_files() {
    let m = Mount::new();
    m.ok(&format!("{SPLIT} mkdir .s; cp $S/root.tar.gz $S/meta.tar.xz .s/; mv .s tiny"));
    assert_eq!(
        m.ok("ls tiny/0").split_whitespace().collect::<Vec<_>>(),
        [
            "meta.tar.xz",
            "metadata.json",
            "metadata.yaml",
            "root.tar.gz",
            "rootfs",
            "rootfs.tar",
            "templates",
            "used_by"
        ]
    );
    m.ok("cmp $S/meta.tar.xz tiny/0/meta.tar.xz; diff -r $S/r tiny/0/rootfs; gzip -dc $S/root.tar.gz | cmp - tiny/0/rootfs.tar; diff -r $S/t/templates tiny/0/templates");
    m.ok("fp=$(cat $S/meta.tar.xz $S/root.tar.gz | sha256sum | cut -c-64); test $(jq -r .fingerprint tiny/0/metadata.json) = $fp; test .imgfs/by-digest/${fp:0:12} -ef tiny/0");
    let version = m.json("tiny/0");
    assert_eq!(
        (&version["format"], &version["architecture"], &version["properties"]["release"]),
        (&"lxd".into(), &"aarch64".into(), &"two".into())
    );
    m.ok("command -v mksquashfs > /dev/null || exit 0; mksquashfs $S/r $S/root.squashfs -quiet -no-progress; mkdir tiny/.s; cp $S/root.squashfs $S/meta.tar.xz tiny/.s/; mv tiny/.s tiny/next; cmp $S/root.squashfs tiny/1/rootfs.squashfs; diff -r $S/r tiny/1/rootfs; cmp $S/meta.tar.xz tiny/1/meta.tar.xz; ls tiny/1/templates/x.tpl");
    m.ok("command -v qemu-img > /dev/null || exit 0; qemu-img create -q -f qcow2 $S/rootfs.img 10M; mkdir .v; cp $S/rootfs.img $S/meta.tar.xz .v/; mv .v vm; qemu-img check vm/0/disk.qcow2");
    m.refused("mkdir .s; cp $S/meta.tar.xz .s/; mv .s half", "Bad message");
    m.refused("cp $S/meta.tar.xz .s/other.tar.xz; mv .s half", "Bad message");
    m.ok("rm -r .s; test ! -e half");
    m.fsck();
}

#[test]
fn an_imgapi_manifest_announces_its_file() {
    let m = Mount::new();
    let make = r#"
manifest() { # UUID FILE [ORIGIN]
  jq -n --arg u $1 --arg s $(sha1sum < $2 | cut -c-40) --argjson z $(stat -c %s $2) --arg o "$3" '{v:2,uuid:$u,owner:"86055c40-2547-11e2-8a6b-4bb37edc84ba",name:"base",version:"1.0.0",type:"zone-dataset",os:"smartos",description:"d",tags:{role:"db"},files:[{sha1:$s,size:$z,compression:"gzip"}],requirements:{networks:[{name:"net0",description:"public"}]}} + (if $o == "" then {} else {origin:$o} end)'; }
A=15963d90-61d7-4664-87a6-f56b16492d5a; B=900cffef-55e3-4e7d-b7ec-ccf439a159e3
"#;
    m.ok(
        "head -c 5000 /dev/urandom | gzip > $S/base.zfs.gz; head -c 6000 /dev/urandom | gzip > $S/inc.zfs.gz",
    );
    m.ok(&format!("{make} mkdir .i; cp $S/base.zfs.gz .i/; manifest $A $S/base.zfs.gz > .i/base.imgmanifest; mv .i base; gzip -dc $S/base.zfs.gz | cmp - base/0/file; jq -e '.requirements.networks[0].name == \"net0\"' base/0/manifest"));
    let version = m.json("base/0");
    assert_eq!(
        (&version["uuid"], &version["properties"]["role"], &version["properties"]["version"]),
        (&"15963d90-61d7-4664-87a6-f56b16492d5a".into(), &"db".into(), &"1.0.0".into())
    );
    // The same uuid again, another file than announced, an origin that is not there: refused.
    m.refused(
        &format!(
            "{make} mkdir .i; cp $S/inc.zfs.gz .i/; manifest $A $S/inc.zfs.gz > .i/x.imgmanifest; mv .i again"
        ),
        "Name not unique",
    );
    m.refused(&format!("{make} manifest $B $S/base.zfs.gz > .i/x.imgmanifest; mv .i again"), "Bad message");
    m.refused(
        &format!("{make} manifest $B $S/inc.zfs.gz 00000000-61d7-4664-87a6-f56b16492d5a > .i/x.imgmanifest; mv .i again"),
        "No such file",
    );
    m.refused(
        &format!(
            "{make} manifest $B $S/inc.zfs.gz | jq 'del(.name) + {{foo:1}}' > .i/x.imgmanifest; mv .i again"
        ),
        "Bad message",
    );
    let errors = m.errors();
    assert!(
        errors.lines().next().unwrap().contains("name") && errors.lines().next().unwrap().contains("foo"),
        "{errors}"
    );
    // A delta keeps what it is over.
    m.ok(&format!("{make} manifest $B $S/inc.zfs.gz $A > .i/x.imgmanifest; mv .i inc; jq -e '.origin' inc/0/metadata.json; ln -sfn inc default"));
    m.refused("rmdir base", "busy");
    assert!(m.errors().lines().next().unwrap().contains("inc/0"), "{}", m.errors());
    m.ok("cp $S/a.tar base/; ln -sfn 1 base/default");
    m.refused("rmdir base/0", "busy");
    m.ok("ln -sfn base default; rmdir inc; rmdir base/0");
    // v1, as it came from an old image server.
    m.ok(&format!("{make} mkdir .o; cp $S/base.zfs.gz .o/; manifest $A $S/base.zfs.gz | jq '{{uuid:\"1fc068b0-13b0-11e2-9f4e-2f3f6a96d9bc\",name,version,description,published_at:\"2011-04-11T08:45:00Z\",creator_uuid:\"86055c40-2547-11e2-8a6b-4bb37edc84ba\",creator_name:\"sdc\",urn:\"a:b:c:1\",type,os,files:[.files[0]|{{sha1,size,path:\"x.zfs.gz\"}}]}}' > .o/x.dsmanifest; mv .o old; jq -e '.v == 2' old/0/manifest"));
    m.fsck();
}

#[test]
fn what_nobody_touched_for_a_week_goes() {
    // Nothing goes sooner than the trash would; after a jump of the clock, that is what counts.
    let m = Mount::with(&["trash=5s"]);
    m.ok("mkdir .old .new; cp $S/a.tar .old/; cp $S/a.tar .new/; for d in $STORE/staged/*; do grep -q '\"name\":\".old\"' $d/about.json || continue; touch -d '8 days ago' $d/about.json $d/files/* $d/files; done");
    wait_until("the end of what is a week old", || m.sh("test -e .old").code != 0);
    m.ok("ls .new/a.tar; grep -q 'long time' .imgfs/failed/.old");
}

#[test]
fn staging_is_its_makers_alone() {
    let root = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata("/proc/self").unwrap()) == 0;
    if !root {
        eprintln!("skipped: not root");
        return;
    }
    let m = Mount::with(&["allow_other"]);
    m.ok("chmod 755 $MNT/..; mkdir .s; echo secret > .s/f");
    let ran = m.sh("setpriv --reuid 65534 --regid 65534 --clear-groups cat .s/f");
    assert!(ran.code != 0 && ran.err.contains("Permission denied"), "{ran:?}");
    assert!(m.sh("mkdir .s").err.contains("File exists"));
}

/// Half an image was published, and the rest of the writes went into nothing.
#[test]
fn what_is_still_written_is_not_published() {
    let m = Mount::new();
    m.ok("mkdir .w; exec 7> .w/x.img; head -c 100000 /dev/urandom >&7; mv -T .w web 2> $S/said && exit 1; grep -q busy $S/said; head -c 50000 /dev/urandom >&7; exec 7>&-; mv -T .w web; test $(stat -c %s web/0/disk.raw) = 150000");
    m.fsck();
}

#[test]
fn the_same_image_with_other_metadata_is_not_the_same() {
    let m = Mount::new();
    m.ok("cp $S/a.tar web.tar; mkdir web/.n; cp $S/a.tar web/.n/; echo '{\"description\":\"NEW\"}' > web/.n/metadata.json; mv web/.n web/next; test ! -e web/1; jq -e '.description == \"NEW\"' web/metadata.json");
    m.ok(&format!("{SPLIT} mkdir .s; cp $S/root.tar.gz $S/meta.tar.xz .s/; mv .s tiny; echo more >> $S/t/templates/x.tpl; tar -C $S/t -cJf $S/meta.tar.xz metadata.yaml templates; mkdir tiny/.s; cp $S/root.tar.gz $S/meta.tar.xz tiny/.s/; mv tiny/.s tiny/next; grep -q more tiny/1/templates/x.tpl; mkdir tiny/.s; cp $S/root.tar.gz $S/meta.tar.xz tiny/.s/; mv tiny/.s tiny/next; test ! -e tiny/2"));
    m.fsck();
}

#[test]
fn names_in_a_staging_directory_hide_nothing_of_the_version() {
    let m = Mount::new();
    m.ok(&format!("{SPLIT} for name in rootfs rootfs.tar disk.qcow2 templates used_by; do mkdir .s; cp $S/meta.tar.xz .s/$name; cp $S/root.tar.gz .s/; mv .s i-$name; cmp $S/meta.tar.xz i-$name/0/metadata-$name; diff -r $S/r i-$name/0/rootfs || exit 1; done"));
    assert!(m.sh("mkdir .s; cp $S/a.tar .s/.id").code != 0);
    assert!(m.sh("mv -T .s .imgfs").code != 0);
    m.ok("rm -r .s; test ! -e .s");
}

#[test]
fn every_announcement_is_checked_and_names_a_file() {
    let m = Mount::new();
    m.ok("mkdir .s; cp $S/a.tar .s/; sha256sum < $S/a.tar | cut -c-64 > .s/a.tar.sha256; echo 0123456789012345678901234567890123456789 > .s/a.tar.sha1");
    m.refused("mv -T .s web", "Bad message");
    m.ok("rm .s/a.tar.sha1; echo '{}' > .s/metadata.json; echo \"$(sha256sum < $S/b.tar | cut -c-64)  metadata.json\" > .s/SHA256SUMS");
    m.refused("mv -T .s web", "Bad message");
    m.ok("rm .s/metadata.json .s/SHA256SUMS; mv .s/a.tar.sha256 .s/b.tar.sha256");
    m.refused("mv -T .s web", "Bad message");
    m.ok("rm .s/b.tar.sha256; (echo '# a comment'; cd $S; sha256sum ./a.tar b.tar) > .s/SHA256SUMS; mv -T .s web; cmp $S/a.tar web/0/rootfs.tar");
    // A file that is removed takes what was expected of it along.
    m.ok("mkdir .s; cp $S/a.tar .s/x.tar; setfattr -n user.imgfs.expect -v sha256:$(sha256sum < $S/a.tar | cut -c-64) .s/x.tar; rm .s/x.tar; cp $S/b.tar .s/x.tar; mv -T .s two; cmp $S/b.tar two/0/rootfs.tar");
}

#[test]
fn a_uuid_stays_one_and_an_origin_stays() {
    let m = Mount::new();
    m.ok(r#"cat > $S/man.sh <<'END'
put() { # NAME UUID [ORIGIN]
  head -c 3000 /dev/urandom | gzip > $S/$1.zfs.gz; mkdir .$1; cp $S/$1.zfs.gz .$1/
  jq -n --arg u $2 --arg s $(sha1sum < $S/$1.zfs.gz | cut -c-40) --argjson z $(stat -c %s $S/$1.zfs.gz) --arg o "$3" '{v:2,uuid:$u,name:"base",version:"1",type:"zone-dataset",os:"smartos",files:[{sha1:$s,size:$z,compression:"gzip"}]} + (if $o == "" then {} else {origin:$o} end)' > .$1/x.imgmanifest; mv -T .$1 $1; }
A=15963d90-61d7-4664-87a6-f56b16492d5a; B=900cffef-55e3-4e7d-b7ec-ccf439a159e3
END
. $S/man.sh; put base $A; put inc $B $A; cp $S/a.tar other.tar; ln -sfn other default; rm -r inc; rm -r base"#);
    // Restoring the delta without its origin, or a uuid that is taken, is refused.
    m.refused("mv .imgfs/trash/inc .", "No such file");
    m.ok(". $S/man.sh; put again $A");
    m.refused("mv .imgfs/trash/base .", "Name not unique");
    m.ok("mv .imgfs/trash/inc .; jq -e .origin inc/0/metadata.json");
    m.fsck();
}

/// The end of a file comes after its close has returned: once in a while mv was told EBUSY.
#[test]
fn a_staging_directory_is_published_right_after_its_last_close() {
    let m = Mount::new();
    m.ok("(exec 7> $S/pipe; mkdir .s; cp $S/a.tar .s/a.tar; exec 8>> .s/a.tar; (sleep 0.3; exec 8>&-) & exec 8>&-; mv .s web); cmp $S/a.tar web/0/rootfs.tar; wait");
}

/// Only what one system call can do is a rename: mv copies a file out of a staging directory, and rsync is
/// told why it cannot move one in.
#[test]
fn a_file_is_moved_out_of_a_staging_directory_by_copying() {
    let m = Mount::new();
    m.ok("mkdir .s; cp $S/a.tar .s/x.tar; mv .s/x.tar web.tar; cmp $S/a.tar web/0/rootfs.tar; rmdir .s");
    m.refused("rsync --delay-updates $S/b.tar .", "Operation not permitted");
    assert!(m.errors().contains("rsync: without --delay-updates"), "{}", m.errors());
    m.ok("rm -r .~tmp~; test \"$(ls -A)\" = $'default\\nweb'; rsync -I $S/b.tar web.tar; cmp $S/b.tar web/1/rootfs.tar");
    m.fsck();
}

/// It held the root of the mount, and nobody could end it.
#[test]
fn a_publishing_ends_with_its_mv() {
    let m = Mount::new();
    m.ok("mkdir .h; cp $S/a.tar .h/x.tar");
    m.refused("truncate -s 5T .h/x.tar", "");
    m.ok("truncate -s 3T .h/x.tar");
    assert_eq!(m.sh("timeout -k 30 2 mv .h huge").code, 124);
    m.ok("timeout 20 ls; not test -e huge; cp $S/a.tar .h/x.tar; mv .h huge; cmp $S/a.tar huge/0/rootfs.tar");
    m.fsck();
}

#[test]
fn what_is_published_is_not_changed_meanwhile() {
    let m = Mount::new();
    m.ok("mkdir .h; cp $S/a.tar .h/x.tar; truncate -s 3T .h/x.tar");
    let ran =
        m.sh("timeout -k 30 8 mv .h huge & sleep 3; timeout 2 truncate -s 100 .h/x.tar; echo $?; wait; stat -c %s .h/x.tar");
    assert!(ran.out.ends_with("\n3298534883328\n") && !ran.out.starts_with('0'), "{ran:?}");
}
