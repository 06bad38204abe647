//! Every gesture has a defined answer: what 94 ordinary commands send to the mount, and the same with
//! BusyBox.
//!
//! Before each: images `img` (two versions, the default), `other` and `u` (uploaded as `u.tar`), alias
//! `alias`.

use crate::common::Mount;

/// Title, command, exit status, and what must hold afterwards.
type Gesture = (&'static str, &'static str, i32, &'static str);

#[rustfmt::skip]
const GESTURES: &[Gesture] = &[
    (r##"cp a file"##, r##"cp $S/a.tar n.tar"##, 0, r##"cmp $S/a.tar n/0/rootfs.tar"##),
    (r##"cp over an existing file"##, r##"cp $S/a.tar u.tar"##, 0, r##"cmp $S/a.tar u/1/rootfs.tar"##),
    (r##"cp -a a file"##, r##"cp -a $S/a.tar n.tar"##, 0, r##"cmp $S/a.tar n/0/rootfs.tar; test n.tar -ot $S/mark -o ! n.tar -nt $S/a.tar"##),
    (r##"cp -n existing"##, r##"cp -n $S/a.tar u.tar"##, 0, r##"not test -e u/1"##),
    (r##"cp --remove-destination"##, r##"cp --remove-destination $S/a.tar u.tar"##, 0, r##"cmp $S/a.tar u/1/rootfs.tar"##),
    (r##"cp --reflink=always"##, r##"cp --reflink=always $S/a.tar n.tar"##, 1, r##"not test -e n"##),
    (r##"cp inside the mount (copy_file_range)"##, r##"cp u.tar n.tar"##, 0, r##"cmp $S/d.tar n/0/rootfs.tar"##),
    (r##"cp --sparse=always zeros"##, r##"head -c 200000 /dev/zero > $S/z; cp --sparse=always $S/z .z"##, 0, r##"test $(stat -c %s .z) = 200000; rm .z"##),
    (r##"cat >"##, r##"cat $S/a.tar > n.tar"##, 0, r##"cmp $S/a.tar n/0/rootfs.tar"##),
    (r##"bash echo >"##, r##"echo 5m > ctl"##, 0, r##"not test -e ctl; test -e .imgfs/failed/ctl -o -s .imgfs/errors"##),
    (r##"bash echo > existing"##, r##"echo 5m > .ctl; echo 6m > .ctl"##, 0, r##"test $(cat .ctl) = 6m"##),
    (r##"bash echo >>"##, r##"echo 5m > .ctl; echo 6m >> .ctl"##, 0, r##"test "$(cat .ctl)" = "$(printf '5m\n6m')""##),
    (r##"printf | tee"##, r##"echo 5m | tee .ctl"##, 0, r##"test $(cat .ctl) = 5m"##),
    (r##"dd"##, r##"dd if=$S/a.tar of=n.tar bs=64k status=none"##, 0, r##"cmp $S/a.tar n/0/rootfs.tar"##),
    (r##"dd conv=fsync"##, r##"dd if=$S/a.tar of=n.tar bs=64k status=none conv=fsync"##, 0, r##"cmp $S/a.tar n/0/rootfs.tar"##),
    (r##"tar -cf"##, r##"tar -C $S/a -cf n.tar ."##, 0, r##"diff -r $S/a n/0/rootfs"##),
    (r##"tar -czf"##, r##"tar -C $S/a -czf n.tar.gz ."##, 0, r##"diff -r $S/a n/0/rootfs"##),
    (r##"tar -rf (append)"##, r##"tar -C $S -rf u.tar not.tar"##, 0, r##"cmp $S/not.tar u/1/rootfs/not.tar"##),
    (r##"tar -x into a directory"##, r##"mkdir n; tar -C n -xf $S/a.tar"##, 2, r##"test "$(ls -A n)" = "$(printf '.id\nmetadata.json')""##),
    (r##"rsync file"##, r##"rsync $S/a.tar n.tar"##, 0, r##"cmp $S/a.tar n/0/rootfs.tar"##),
    (r##"rsync -a file"##, r##"rsync -a $S/a.tar n.tar"##, 0, r##"cmp $S/a.tar n/0/rootfs.tar"##),
    (r##"rsync --inplace"##, r##"rsync --inplace $S/a.tar n.tar"##, 0, r##"cmp $S/a.tar n/0/rootfs.tar"##),
    (r##"rsync -a dir"##, r##"rsync -a $S/a/ n/"##, 23, r##"not test -e n/0"##),
    (r##"curl -o"##, r##"curl -s -o n.tar file://$S/a.tar"##, 0, r##"cmp $S/a.tar n/0/rootfs.tar"##),
    (r##"wget -O"##, r##"wget -q -O n.tar http://127.0.0.1:1/x"##, 4, r##"not test -e n"##),
    (r##"install -m 644"##, r##"install -m 644 $S/a.tar n.tar"##, 0, r##"cmp $S/a.tar n/0/rootfs.tar; test $(stat -c %a n.tar) = 644"##),
    (r##"mv a file from another filesystem"##, r##"cp $S/a.tar $S/m.tar; mv $S/m.tar n.tar"##, 0, r##"cmp $S/a.tar n/0/rootfs.tar; not test -e $S/m.tar"##),
    (r##"mv a directory from another filesystem"##, r##"cp -a $S/a $S/m; mv $S/m n"##, 1, r##"test -e $S/m/etc/motd; not test -e n/0"##),
    (r##"mv (rename image)"##, r##"mv img jammy"##, 0, r##"test -d jammy/1; test $(readlink alias) = jammy"##),
    (r##"mv version between images"##, r##"mv img/0 other/0"##, 1, r##"test -d img/0; cmp $S/c.tar other/0/rootfs.tar"##),
    (r##"mv -T over existing dir"##, r##"mv -T img other"##, 1, r##"test -d img/1; cmp $S/c.tar other/0/rootfs.tar"##),
    (r##"ln -s new"##, r##"ln -s img link"##, 0, r##"test -d link/1"##),
    (r##"ln -s onto existing link"##, r##"ln -s other default"##, 1, r##"test $(readlink default) = img"##),
    (r##"ln -sf onto link to directory (without -n)"##, r##"ln -sf other default"##, 1, r##"test $(readlink default) = img"##),
    (r##"ln -sfn (switch)"##, r##"ln -sfn other default"##, 0, r##"test $(readlink default) = other"##),
    (r##"ln -sfT (switch)"##, r##"ln -sfT other default"##, 0, r##"test $(readlink default) = other"##),
    (r##"ln --backup -sfn"##, r##"ln --backup=numbered -sfn other default"##, 0, r##"test $(readlink default) = other; test $(readlink default.~1~) = img"##),
    (r##"busybox ln -sfn"##, r##"busybox ln -sfn other default"##, 0, r##"test $(readlink default) = other"##),
    (r##"python os.symlink+os.replace"##, r##"python3 -c "import os;os.symlink('other','.t');os.replace('.t','default')""##, 0, r##"test $(readlink default) = other"##),
    (r##"ln hard"##, r##"ln u.tar v.tar"##, 1, r##"true"##),
    (r##"cp -l (hard link copy)"##, r##"cp -l u.tar v.tar"##, 1, r##"true"##),
    (r##"cp -s (symlink copy)"##, r##"cp -s $MNT/u.tar v.tar"##, 1, r##"true"##),
    (r##"mkfifo"##, r##"mkfifo p"##, 1, r##"true"##),
    (r##"mkdir"##, r##"mkdir n"##, 0, r##"jq -e '.status == "pending"' n/metadata.json"##),
    (r##"mkdir -p img/0"##, r##"mkdir -p n/0"##, 1, r##"test -d n; not test -e n/0"##),
    (r##"rmdir non-empty"##, r##"rmdir other"##, 0, r##"not test -e other"##),
    (r##"rmdir -p img/0"##, r##"cp $S/a.tar other/; rmdir -p other/1"##, 0, r##"not test -e other"##),
    (r##"rmdir refused EBUSY"##, r##"rmdir img"##, 1, r##"test -d img/1"##),
    (r##"rmdir with trailing slash"##, r##"rmdir other/"##, 0, r##"not test -e other"##),
    (r##"rmdir via the default symlink"##, r##"rmdir default"##, 1, r##"test -d img/1"##),
    (r##"rmdir via the default symlink with slash"##, r##"rmdir default/"##, 1, r##"test -d img/1"##),
    (r##"rm -d non-empty"##, r##"rm -d other"##, 1, r##"test -d other/0"##),
    (r##"rm (file) on a directory"##, r##"rm other"##, 1, r##"test -d other/0"##),
    (r##"rm -r"##, r##"rm -r other"##, 0, r##"not test -e other; test -d .imgfs/trash/other/0/rootfs"##),
    (r##"rm -rf"##, r##"rm -rf other"##, 0, r##"not test -e other; test -d .imgfs/trash/other/0/rootfs"##),
    (r##"busybox rm -rf"##, r##"busybox rm -rf other"##, 0, r##"not test -e other; test -d .imgfs/trash/other/0/rootfs"##),
    (r##"find -delete"##, r##"find other -delete"##, 0, r##"not test -e other; test -d .imgfs/trash/other/0/rootfs"##),
    (r##"python shutil.rmtree"##, r##"python3 -c "import shutil;shutil.rmtree('other')""##, 0, r##"not test -e other; test -d .imgfs/trash/other/0/rootfs"##),
    (r##"perl rmtree"##, r##"perl -MFile::Path -e 'rmtree("other")'"##, 0, r##"not test -e other; test -d .imgfs/trash/other/0/rootfs"##),
    (r##"rm default"##, r##"rm default"##, 0, r##"not test -e default; ln -s img default; test $(readlink default) = img"##),
    (r##"unlink default"##, r##"unlink default"##, 0, r##"not test -e default; not rmdir img; test -d img"##),
    (r##"sed -i"##, r##"sed -i 's/"description": ""/"description": "x"/' img/metadata.json"##, 0, r##"jq -e '.description == "x"' img/metadata.json"##),
    (r##"perl -i"##, r##"perl -pi -e 's/"description": ""/"description": "x"/' img/metadata.json"##, 0, r##"jq -e '.description == "x"' img/metadata.json"##),
    (r##"vim -es :wq"##, r##"vim -u NONE -es -c '%s/"description": ""/"description": "x"/' -c wq img/metadata.json"##, 0, r##"jq -e '.description == "x"' img/metadata.json"##),
    (r##"jq > tmp && mv"##, r##"jq '.description="x"' img/metadata.json > img/.t && mv img/.t img/metadata.json"##, 0, r##"jq -e '.description == "x"' img/metadata.json"##),
    (r##"jq > outside && cp"##, r##"jq '.description="x"' img/metadata.json > $S/t.json && cp $S/t.json img/metadata.json"##, 0, r##"jq -e '.description == "x"' img/metadata.json"##),
    (r##"python open().write()"##, r##"python3 -c "import json;json.dump({'description':'x'},open('img/metadata.json','w'))""##, 0, r##"jq -e '.description == "x"' img/metadata.json"##),
    (r##"touch new"##, r##"touch n.tar"##, 0, r##"not test -e n"##),
    (r##"touch existing"##, r##"touch img"##, 0, r##"true"##),
    (r##"truncate -s"##, r##"truncate -s 1M n.tar"##, 0, r##"test -d n/0/rootfs; cmp n.tar n/0/rootfs.tar"##),
    (r##"fallocate"##, r##"fallocate -l 1M n.tar"##, 1, r##"not test -e n"##),
    (r##"chmod o-rx dir"##, r##"chmod o-rx img"##, 0, r##"test $(stat -c %a img) = 750; jq -e '.public == false' img/metadata.json"##),
    (r##"chmod -R"##, r##"chmod -R o-r img"##, 1, r##"test $(stat -c %a img) = 751; diff -r $S/b img/1/rootfs"##),
    (r##"chown dir"##, r##"chown 1000 img"##, 0, r##"test $(stat -c %u img) = 1000"##),
    (r##"chgrp dir"##, r##"chgrp 1000 img"##, 0, r##"test $(stat -c %g img) = 1000"##),
    (r##"setfattr"##, r##"setfattr -n user.imgfs.description -v x img"##, 0, r##"jq -e '.description == "x"' img/metadata.json"##),
    (r##"getfattr -d"##, r##"getfattr -d img"##, 0, r##"getfattr -d img | grep -q user.imgfs.id; getfattr -d img/1 | grep -q user.imgfs.digest; getfattr -n user.imgfs.digest img/1/rootfs/etc/motd | grep -q blake3"##),
    (r##"setfacl -m"##, r##"setfacl -m u:1000:rx img"##, 1, r##"true"##),
    (r##"chattr +i dir"##, r##"chattr +i img || test $(id -u) != 0"##, 0, r##"chattr -i img || test $(id -u) != 0"##),
    (r##"lsattr -d"##, r##"lsattr -d img"##, 0, r##"true"##),
    (r##"ls -l"##, r##"ls -l"##, 0, r##"ls -l | grep -q 'default -> img'"##),
    (r##"gzip in place"##, r##"gzip u.tar"##, 0, r##"not test -e u.tar; not test -e u/1"##),
    (r##"xz -k"##, r##"xz -k -0 u.tar"##, 0, r##"not test -e u/1; test -e u.tar.xz"##),
    (r##"split"##, r##"split -b 100k $S/a.tar part."##, 1, r##"not test -e part"##),
    (r##"cp -r dir"##, r##"cp -r $S/a new"##, 1, r##"not test -e new/0"##),
    (r##"cp -a dir"##, r##"cp -a $S/a new"##, 1, r##"not test -e new/0"##),
    (r##"tar -c of a subtree"##, r##"tar -cf /dev/null img/0/rootfs"##, 0, r##"true"##),
    (r##"diff -r"##, r##"diff -r img/0/rootfs img/1/rootfs"##, 1, r##"true"##),
    (r##"sqlite3 database"##, r##"python3 -c "import sqlite3;c=sqlite3.connect('d.db');c.execute('create table t(a)');c.commit()""##, 1, r##"not test -e d"##),
    (r##"git init"##, r##"git init -q r"##, 1, r##"not test -e r/0"##),
    (r##"mmap write (python)"##, r##"echo hihi > .m; python3 -c "import mmap;f=open('.m','r+b');m=mmap.mmap(f.fileno(),0);m[:2]=b'ho';m.flush()""##, 1, r##"test $(cat .m) = hihi"##),
    (r##"O_TMPFILE + linkat (python)"##, r##"python3 -c "import os;os.open('.',os.O_TMPFILE|os.O_RDWR)""##, 1, r##"true"##),
    (r##"renameat2 EXCHANGE (python ctypes)"##, r##"ln -s other two; python3 -c "import ctypes,sys;sys.exit(-ctypes.CDLL(None).renameat2(-100,b'default',-100,b'two',2))""##, 0, r##"test $(readlink default) = other; test $(readlink two) = img"##),
    (r##"renameat2 NOREPLACE (mv -n)"##, r##"mv -nT img other"##, 0, r##"test -d img/1; cmp $S/c.tar other/0/rootfs.tar"##),
];

#[rustfmt::skip]
const BUSYBOX: &[Gesture] = &[
    (r##"cp"##, r##"busybox cp $S/a.tar n.tar"##, 0, r##"cmp $S/a.tar n/0/rootfs.tar"##),
    (r##"cp over"##, r##"busybox cp $S/a.tar u.tar"##, 0, r##"cmp $S/a.tar u/1/rootfs.tar"##),
    (r##"cat"##, r##"busybox cat $S/a.tar > n.tar"##, 0, r##"cmp $S/a.tar n/0/rootfs.tar"##),
    (r##"dd"##, r##"busybox dd if=$S/a.tar of=n.tar bs=64k 2>/dev/null"##, 0, r##"cmp $S/a.tar n/0/rootfs.tar"##),
    (r##"tee"##, r##"busybox tee n.tar < $S/a.tar > /dev/null"##, 0, r##"cmp $S/a.tar n/0/rootfs.tar"##),
    (r##"tar -cf"##, r##"busybox tar -C $S/a -cf n.tar ."##, 0, r##"diff -r $S/a n/0/rootfs"##),
    (r##"mv in"##, r##"cp $S/a.tar $S/m.tar; busybox mv $S/m.tar n.tar"##, 0, r##"cmp $S/a.tar n/0/rootfs.tar"##),
    (r##"mv image"##, r##"busybox mv img jammy"##, 0, r##"test -d jammy/1"##),
    (r##"ln -s"##, r##"busybox ln -s img link"##, 0, r##"test -d link/1"##),
    (r##"ln -sfn"##, r##"busybox ln -sfn other default"##, 0, r##"test $(readlink default) = other"##),
    (r##"ln -sfn pin"##, r##"busybox ln -sfn 0 img/default"##, 0, r##"test $(readlink img/default) = 0"##),
    (r##"mkdir"##, r##"busybox mkdir n"##, 0, r##"test -d n"##),
    (r##"rmdir"##, r##"busybox rmdir other"##, 0, r##"not test -e other"##),
    (r##"rmdir refused"##, r##"busybox rmdir img"##, 1, r##"test -d img/1"##),
    (r##"rm -r"##, r##"busybox rm -r other"##, 0, r##"not test -e other"##),
    (r##"rm -r version"##, r##"busybox rm -r img/0"##, 0, r##"not test -e img/0; test -d img/1"##),
    (r##"rm alias"##, r##"busybox rm alias"##, 0, r##"not test -e alias"##),
    (r##"sed -i"##, r##"busybox sed -i 's/"description": ""/"description": "x"/' img/metadata.json"##, 0, r##"jq -e '.description == "x"' img/metadata.json"##),
    (r##"touch"##, r##"busybox touch n.tar"##, 0, r##"not test -e n"##),
    (r##"chmod"##, r##"busybox chmod 700 img"##, 0, r##"test $(stat -c %a img) = 700"##),
    (r##"gzip"##, r##"busybox gzip u.tar"##, 0, r##"not test -e u/1"##),
    (r##"ls"##, r##"busybox ls -la"##, 0, r##"true"##),
    (r##"diff"##, r##"busybox diff -r img/0/rootfs img/1/rootfs"##, 1, r##"true"##),
    (r##"not a tar"##, r##"busybox cp $S/not.tar n.tar"##, 1, r##"not test -e n"##),
    (r##"du"##, r##"busybox du -s img"##, 0, r##"true"##),
    (r##"wget"##, r##"busybox wget -q -O n.tar http://127.0.0.1:1/x"##, 1, r##"not test -e n"##),
];

fn perform(gestures: &[Gesture]) {
    let mut wrong = Vec::new();
    for (title, command, code, check) in gestures {
        let m = Mount::new();
        m.ok("cp $S/a.tar img.tar; cp $S/b.tar img/; cp $S/c.tar other.tar; cp $S/d.tar u.tar; ln -s img alias; touch $S/mark");
        let ran = m.sh(command);
        if ran.code != *code {
            wrong.push(format!(
                "{title}: `{command}` ended with {}, not {code}: {}{} {}",
                ran.code,
                ran.out,
                ran.err,
                m.errors()
            ));
            continue;
        }
        let checked = m.sh(&format!("set -e; {check}"));
        if checked.code != 0 {
            wrong.push(format!(
                "{title}: after `{command}`, `{check}` does not hold: {}{} {}",
                ran.err,
                checked.err,
                m.errors()
            ));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), gestures.len(), wrong.join("\n"));
}

#[test]
fn every_gesture_has_its_answer() {
    assert_eq!(GESTURES.len(), 94);
    perform(&GESTURES[..47]);
}

#[test]
fn every_other_gesture_has_its_answer() {
    perform(&GESTURES[47..]);
}

#[test]
fn busybox_gestures_have_theirs() {
    perform(BUSYBOX);
}
