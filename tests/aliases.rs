//! Aliases whose names have slashes: `.imgfs/aliases/centos/6/amd64`.

use crate::common::{IMGFS, Mount, User, may, may_not, shared};

const ANNA: User = (1001, 1001, "");
const BERT: User = (1002, 1002, "");

fn made() -> Mount {
    let m = Mount::new();
    m.ok("cp $S/a.tar centos-6.tar; cp $S/b.tar centos-6.tar; cp $S/c.tar web.tar; ln -s 0 centos-6/@1.0; \
          mkdir -p .imgfs/aliases/centos/6; ln -s ../../../../centos-6 .imgfs/aliases/centos/6/amd64");
    m
}

#[test]
fn an_alias_with_slashes_is_a_link_in_directories() {
    let mut m = made();
    let there = "test $(readlink .imgfs/aliases/centos/6/amd64) = ../../../../centos-6; cmp .imgfs/aliases/centos/6/amd64/1/rootfs.tar $S/b.tar; \
                 test $(ls .imgfs/aliases) = centos; test $(ls .imgfs/aliases/centos) = 6; test $(ls .imgfs/aliases/centos/6) = amd64; \
                 test -d .imgfs/aliases/centos/6/.. -a -L .imgfs/aliases/centos/6/amd64; test \"$(find .imgfs/aliases -type d | sort | tail -1)\" = .imgfs/aliases/centos/6; \
                 test \"$(ls -A | tr '\\n' ' ')\" = 'centos-6 default web '; ls .imgfs | grep -qx aliases";
    m.ok(there);
    assert_eq!(m.json("centos-6")["aliases"][0]["name"], "centos/6/amd64");
    assert_eq!(m.ok(&format!("{IMGFS} ls --store $STORE -H -o name centos/6/amd64")), "centos-6\n");
    m.ok(&format!("{IMGFS} export --store $STORE centos/6/amd64 $S/x.tar; cmp $S/x.tar $S/b.tar; {IMGFS} export --store $STORE centos/6/amd64/@1.0 $S/y.tar; cmp $S/y.tar $S/a.tar; {IMGFS} diff --store $STORE web centos/6/amd64 | grep -q motd"));
    m.ok("setfattr -n user.imgfs.aliases.centos/6/amd64 -v 'CentOS 6' centos-6");
    m.remount();
    m.ok(there);
    assert_eq!(m.json("centos-6")["aliases"][0]["description"], "CentOS 6");
    m.ok("mv centos-6 c6; test $(readlink .imgfs/aliases/centos/6/amd64) = ../../../../c6; cat .imgfs/aliases/centos/6/amd64/metadata.json > /dev/null; mv c6 centos-6");
    m.unmount();
    assert_eq!(m.sh("rm $STORE/catalog.db*").code, 0);
    m.mount();
    m.ok(there);
    m.fsck();
}

#[test]
fn such_an_alias_is_switched_followed_moved_and_dropped() {
    let mut m = made();
    m.ok("cd .imgfs/aliases/centos/6; ln -sfn ../../../../web amd64; test $(readlink amd64) = ../../../../web; cmp amd64/0/rootfs.tar $S/c.tar; test -z \"$(ls | grep Cu)\"");
    for (target, shown) in [
        ("../../../../centos-6/1", "../../../../centos-6/1"),
        ("../../../../centos-6/latest", "../../../../centos-6/latest"),
        ("../../../../centos-6/default", "../../../../centos-6/default"),
        ("../../../../centos-6/@1.0", "../../../../centos-6/@1.0"),
        ("$MNT/web/0", "../../../../web/0"),
        ("web", "../../../../web"),
        ("amd64", "../../../../web"),
        ("../../../centos-6", ""),
        ("../../../../../../centos-6", ""),
    ] {
        let made = format!("cd .imgfs/aliases/centos/6; ln -sfn {target} arm64");
        if shown.is_empty() {
            m.refused(&made, "No such file");
            continue;
        }
        m.ok(&format!("{made}; test $(readlink arm64) = {shown}; test -d arm64/"));
    }
    // BusyBox removes the link before it makes another.
    m.ok("cd .imgfs/aliases/centos/6; rm amd64 arm64; ln -s ../../../../centos-6 amd64; rm $MNT/.imgfs/trash/*");
    m.ok("cd .imgfs/aliases; mkdir -p rhel/el6; mv centos/6/amd64 rhel/el6/x86; test $(readlink rhel/el6/x86) = ../../../../centos-6; test -d centos/6 -a ! -e centos/6/amd64; rmdir -p centos/6; mv rhel/el6/x86 flat; test $(readlink flat) = ../../centos-6; test $(readlink $MNT/flat) = centos-6; mv flat rhel/el6/x86; test ! -L $MNT/flat");
    m.ok("cd .imgfs/aliases; ln -s ../../../../web rhel/el6/arm; mv rhel/el6 rhel/six; test $(ls rhel) = six; test \"$(ls rhel/six | tr '\\n' ' ')\" = 'arm x86 '; mv rhel r; test $(readlink r/six/x86) = ../../../../centos-6");
    m.refused("rmdir .imgfs/aliases/r/six", "busy");
    m.remount();
    m.ok("cd .imgfs/aliases; test $(ls) = r; rm r/six/x86; test $(ls $MNT/.imgfs/trash) = r%2Fsix%2Fx86; mv $MNT/.imgfs/trash/r%2Fsix%2Fx86 $MNT/; test $(readlink r/six/x86) = ../../../../centos-6; test ! -L $MNT/r%2Fsix%2Fx86");
    m.ok("cd .imgfs/aliases; rm r/six/x86; mkdir q; mv $MNT/.imgfs/trash/r%2Fsix%2Fx86 q/y; test $(readlink q/y) = ../../../centos-6; rm q/y; rm $MNT/.imgfs/trash/*; test ! -e q/y; rmdir q; rm -r r; test -z \"$(ls)\"; test \"$(ls $MNT/.imgfs/trash)\" = r%2Fsix%2Farm");
    m.ok("rm -r centos-6 || true; ln -sfn web default; rm -r centos-6; mv .imgfs/trash/* $MNT/; test $(readlink .imgfs/aliases/r/six/arm) = ../../../../web");
    m.fsck();
}

#[test]
fn an_alias_is_not_a_directory_of_aliases_too() {
    let m = made();
    m.ok("ln -s web jammy; test $(readlink .imgfs/aliases/jammy) = ../../web; ln -s ../../web .imgfs/aliases/focal; test $(readlink focal) = web; rm .imgfs/aliases/jammy; test ! -L jammy; test \"$(ls .imgfs/aliases | tr '\\n' ' ')\" = 'centos focal '");
    m.refused("ln -s web centos", "File exists");
    m.refused("ln -s ../../../centos-6 .imgfs/aliases/focal/x", "No such file");
    m.ok("not mkdir .imgfs/aliases/focal 2> /dev/null; not mkdir .imgfs/aliases/focal/6 2> /dev/null; not ln -sT ../../web .imgfs/aliases/centos 2> /dev/null; test -d .imgfs/aliases/centos");
    m.ok("cp $S/d.tar centos.tar; test -d centos/0; test -d .imgfs/aliases/centos/6; test $(readlink .imgfs/aliases/centos/6/amd64) = ../../../../centos-6");
    for (bad, why) in [
        ("mkdir .imgfs/aliases/.x", "Invalid argument"),
        ("ln -s ../../../../nothing .imgfs/aliases/centos/6/x", "No such file"),
        ("touch .imgfs/aliases/x", ""),
        ("mv .imgfs/aliases/centos/6/amd64 $MNT/x", ""),
        ("mkdir .imgfs/aliases/$(head -c 254 /dev/zero | tr '\\0' x)", "File name too long"),
    ] {
        m.refused(bad, why);
    }
    m.ok("test -L .imgfs/aliases/centos/6/amd64");
    m.fsck();
}

#[test]
fn in_a_view_they_are_the_views_own() {
    let m = made();
    m.ok(&format!("mkdir $S/mnt2 .imgfs/views/dc1; ln -s ../../../centos-6 .imgfs/views/dc1/; {IMGFS} mount --store $STORE -o view=dc1 $S/mnt2"));
    let seen = m.sh("set -e; cd $S/mnt2; test -z \"$(ls .imgfs/aliases)\"; mkdir -p .imgfs/aliases/c/6; ln -s ../../../../centos-6 .imgfs/aliases/c/6/x; test $(readlink .imgfs/aliases/c/6/x) = ../../../../centos-6; \
         test \"$(ls $MNT/.imgfs/aliases | tr '\\n' ' ')\" = 'centos dc1::c '; test -d $MNT/.imgfs/aliases/dc1::c/6/x/1; rm .imgfs/aliases/c/6/x; test $(ls .imgfs/trash) = c%2F6%2Fx; mv .imgfs/trash/c%2F6%2Fx .; test -L .imgfs/aliases/c/6/x");
    m.ok(&format!("{IMGFS} umount $S/mnt2"));
    assert_eq!(seen.code, 0, "{seen:?} {}", m.errors());
}

#[test]
fn who_may_make_aliases_makes_those_with_slashes() {
    let Some(m) = shared(&[]) else { return };
    m.ok("chmod 1777 $MNT");
    may(
        &m,
        ANNA,
        "umask 022; cp $S/a.tar web.tar; mkdir -p .imgfs/aliases/anna/web; ln -s ../../../../web .imgfs/aliases/anna/web/x",
    );
    may_not(&m, BERT, "ln -s ../../../../web .imgfs/aliases/anna/web/y", "Permission denied");
    may_not(&m, BERT, "rm .imgfs/aliases/anna/web/x", "Operation not permitted");
    may_not(&m, BERT, "mv .imgfs/aliases/anna .imgfs/aliases/bert", "");
    may(&m, BERT, "cat .imgfs/aliases/anna/web/x/0/rootfs/etc/motd; test $(ls .imgfs/aliases) = anna");
    may(&m, ANNA, "mv .imgfs/aliases/anna/web/x .imgfs/aliases/anna/y; rm .imgfs/aliases/anna/y");
}
