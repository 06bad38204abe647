//! What each gesture does, and how each refusal looks, in a few lines each. The rows of docs/gestures.md and
//! docs/refusals.md name these tests and others.

use crate::common::Mount;

fn with_two() -> Mount {
    let m = Mount::new();
    m.ok("cp $S/a.tar web.tar; cp $S/b.tar web/; cp $S/c.tar db.tar");
    m
}

// ---- gestures

#[test]
fn a_file_copied_into_the_root_is_an_image_named_by_the_file() {
    let m = Mount::new();
    for name in [
        "a.tar",
        "b.tar.gz",
        "c.tgz",
        "d.tar.xz",
        "e.TXZ",
        "bionic:android11:amd64.tar",
        "sp ace.tar",
        "f.x.tar",
    ] {
        m.ok(&format!("cp $S/a.tar './{name}'"));
    }
    assert_eq!(m.ok("ls"), "a\nb\nbionic:android11:amd64\nc\nd\ndefault\ne\nf.x\nsp ace\n");
}

#[test]
fn a_file_copied_into_an_image_is_its_next_version_whatever_it_is_called() {
    let m = with_two();
    m.ok("cp $S/d.tar web/anything; tar c -C $S/c . | zstd -q > web/a.tar.zst; cp $S/a.tar.bz2 default/");
    assert_eq!(m.json("web")["latest_version"], 4);
}

#[test]
fn the_same_bytes_again_are_a_success_without_a_new_version() {
    let m = with_two();
    m.ok("cp $S/b.tar web.tar; cp $S/b.tar web/");
    assert_eq!(m.json("web")["latest_version"], 1);
}

#[test]
fn a_dotted_or_foreign_name_is_published_by_its_rename() {
    let m = Mount::new();
    m.ok("cp $S/a.tar .t; not test -e t; mv .t web.tar; test -d web/0; cp $S/b.tar web/.t; mv web/.t web/next; test -d web/1");
    m.refused("cp $S/cut.tar .t; mv .t web.tar", "cannot move");
    m.ok("rm .t; test -d web/1 -a ! -e web/2");
}

#[test]
fn mkdir_makes_an_image_to_be_filled() {
    let m = Mount::new();
    m.ok("mkdir web; cp $S/a.tar web/");
    let fresh = Mount::new();
    fresh.ok("mkdir web");
    assert_eq!(
        (fresh.json("web")["status"].clone(), m.json("web")["status"].clone()),
        ("pending".into(), "active".into())
    );
}

#[test]
fn a_staging_directory_is_published_by_mv() {
    let m = with_two();
    m.ok("mkdir web/.new; cp $S/b.tar web/.new/; mv web/.new web/next; cmp $S/b.tar web/1/rootfs.tar");
    m.ok("mkdir .new; cp $S/c.tar .new/; mv .new other; cmp $S/c.tar other/0/rootfs.tar");
}

#[test]
fn ln_sfn_on_default_switches_the_default_image() {
    let m = with_two();
    m.ok("ln -sfn db default; test $(readlink default) = db");
    assert_eq!(
        (m.json("db")["is_default"].clone(), m.json("web")["is_default"].clone()),
        (true.into(), false.into())
    );
}

#[test]
fn ln_sfn_inside_an_image_pins_and_follows() {
    let m = with_two();
    m.ok("ln -sfn 0 web/default; test $(cat web/default/rootfs/etc/motd) = one; ln -sfn latest web/default; test $(cat web/default/rootfs/etc/motd) = b");
}

#[test]
fn rm_of_default_hides_the_link_and_protects_what_it_led_to() {
    let m = with_two();
    m.ok("ln -sfn 0 web/default; rm default web/default; not test -L default; not test -L web/default");
    m.refused("rmdir web", "Device or resource busy");
    m.refused("rmdir web/0", "Device or resource busy");
    m.ok("ln -s db default; ln -s latest web/default; rmdir web/0; rmdir web");
}

#[test]
fn ln_s_makes_an_alias_and_rm_drops_it() {
    let m = with_two();
    m.ok("ln -s web jammy; test -d jammy/0; rm jammy; not test -e jammy; test -d web");
    m.ok("ln -s 1 web/@1.0; test -d web/@1.0/rootfs; rm web/@1.0; not test -e web/@1.0");
}

#[test]
fn mv_renames_an_image_and_everything_follows() {
    let m = with_two();
    m.ok("id=$(cat web/.id); ln -s web jammy; mv web www; test $(readlink default) = www -a $(readlink jammy) = www -a $(cat www/.id) = $id");
}

#[test]
fn rmdir_and_rm_r_delete_versions_and_images() {
    let m = with_two();
    m.ok(
        "rmdir web/0; rm -r db; ls -A .imgfs/trash > $S/t; test \"$(cat $S/t | tr '\\n' ' ')\" = 'db web.0 '",
    );
    m.ok("rm -r web; test \"$(ls)\" = ''");
}

#[test]
fn editing_metadata_changes_the_editable_keys() {
    let m = with_two();
    m.ok("sed -i 's/\"variant\": \"\"/\"variant\": \"slim\"/' web/metadata.json");
    assert_eq!(m.json("web")["variant"], "slim");
}

#[test]
fn chmod_and_chown_say_who_may_see_and_change_an_image() {
    let mut m = with_two();
    m.ok("chmod 750 web; chown 5:6 web");
    m.remount();
    assert_eq!(m.ok("stat -c '%a %u %g' web"), "750 5 6\n");
    assert_eq!(m.json("web")["public"], false);
}

#[test]
fn extended_attributes_show_digest_bytes_and_id() {
    let m = with_two();
    let all = m.ok("getfattr -d web web/0");
    for key in ["user.imgfs.id", "user.imgfs.digest", "user.imgfs.unique_bytes", "user.imgfs.stored_bytes"] {
        assert!(all.contains(key), "{all}");
    }
}

#[test]
fn df_counts_what_the_trash_holds_as_free() {
    let m = Mount::new();
    m.ok("head -c 40M /dev/urandom > $S/a/big; tar -C $S/a -cf big.tar .; sync");
    // Against the disk's own: others write to it meanwhile.
    let free = || {
        m.ok("df -k --output=avail . $STORE | tail -2")
            .split_whitespace()
            .map(|n| n.parse::<i64>().unwrap())
            .collect()
    };
    let before: Vec<i64> = free();
    m.ok("rmdir big");
    let after: Vec<i64> = free();
    assert!(after[0] - after[1] - (before[0] - before[1]) > 30_000, "{before:?} and then {after:?} KiB");
}

// ---- stories of the systems that imgfs replaces

/// Anbox: add, default, show; update; delete a version, never the last; delete the default only when another
/// is.
#[test]
fn anbox_stories_run_as_they_are_told() {
    let m = Mount::new();
    for tool in ["", "busybox "] {
        m.ok(&format!("cp $S/a.tar.xz $S/anbox-lxd-bionic_1.7_amd64.tar.xz; {tool}cp $S/anbox-lxd-bionic_1.7_amd64.tar.xz bionic.tar.xz; test $(readlink default) = bionic; test -d bionic/0"));
        let meta = m.json("bionic");
        let version = &meta["versions"][0];
        assert!(
            meta["id"].as_str().is_some_and(|id| id.len() == 20)
                && meta["status"] == "active"
                && meta["is_default"] == true
        );
        assert!(
            version["size"].as_u64() > Some(0)
                && version["created_at"].as_str().is_some_and(|t| t.ends_with('Z'))
        );
        m.ok(&format!("{tool}cp $S/b.tar bionic.tar; test -d bionic/1; {tool}rmdir bionic/0"));
        m.refused(&format!("{tool}rmdir bionic/1"), "Device or resource busy");
        m.ok(&format!("{tool}cp $S/c.tar nougat.tar"));
        m.refused(&format!("{tool}rmdir bionic"), "Device or resource busy");
        m.ok(&format!(
            "{tool}ln -sfn nougat default; {tool}rmdir bionic; {tool}rmdir nougat; not test -e default; not test -e nougat"
        ));
    }
}

// ---- refusals

#[test]
fn what_is_no_tarball_or_no_name_is_einval() {
    let m = with_two();
    let before = m.ok("ls -AR .");
    for script in [
        "cp $S/not.tar x.tar",
        "cp $S/cut.tar x.tar",
        "cp $S/not.tar web/",
        "cp $S/a.tar ./-x.tar",
        "cp $S/a.tar @x.tar",
        "mkdir default.tar latest 2>&1 >&2; mkdir @x",
    ] {
        m.refused(script, "");
    }
    m.ok("rmdir default.tar 2>/dev/null; true");
    assert_eq!(m.ok("ls -AR ."), before);
    let sentence = m.errors();
    assert!(
        sentence.contains("at byte") && sentence.contains("is not a tarball: it begins like text"),
        "{sentence}"
    );
}

#[test]
fn names_over_255_bytes_are_too_long() {
    let m = Mount::new();
    let name = "n".repeat(256);
    let ran = m.sh(&format!("mkdir {name}"));
    assert!(ran.err.contains("File name too long"), "{ran:?}");
    m.ok(&format!("mkdir {}", "n".repeat(255)));
}

#[test]
fn bombs_over_the_limits_are_too_big() {
    let m = Mount::with(&["max_size=1000000,max_entries=4"]);
    m.refused(
        "head -c 3000000 /dev/zero > $S/a/z; tar -C $S/a -c . | zstd -q > z.tar.zst",
        "Argument list too long",
    );
    m.refused(
        "mkdir -p $S/e/1/2/3/4/5; tar -C $S/e -cf $S/e.tar .; cp $S/e.tar e.tar",
        "Argument list too long",
    );
    assert_eq!(m.ok("ls -A"), "");
}

#[test]
fn a_full_disk_is_said_and_the_space_given_back() {
    if !std::fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0) {
        eprintln!("skipped: not root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let small = dir.path().join("small");
    std::fs::create_dir(&small).unwrap();
    let ran = crate::common::sh(
        dir.path(),
        "mount -t tmpfs -o size=12m imgfs-test small && mkdir small/store mnt src",
    );
    assert_eq!(ran.code, 0, "{ran:?}");
    let ran = crate::common::sh(
        dir.path(),
        &format!(
            "set -e; I={}; $I mount --store small/store mnt; mkdir r
             head -c 5M /dev/urandom > r/f; tar -C r -cf a.tar .; head -c 5M /dev/urandom > r/f; tar -C r -cf b.tar .; head -c 50M /dev/urandom > r/f; tar -C r -cf c.tar .
             cp a.tar mnt/a.tar; not cp c.tar mnt/c.tar 2> err; grep -q 'No space left' err; cmp a.tar mnt/a/0/rootfs.tar; test ! -e mnt/c
             cp b.tar mnt/b.tar
             # What the trash holds makes room by itself.
             ln -sfn b mnt/default; rmdir mnt/a; test -e mnt/.imgfs/trash/a; head -c 4M /dev/urandom > r/f; tar -C r -cf d.tar .; cp d.tar mnt/d.tar
             cmp d.tar mnt/d/0/rootfs.tar; test ! -e mnt/.imgfs/trash/a; cmp b.tar mnt/b/0/rootfs.tar
             $I umount mnt; $I fsck --store small/store",
            crate::common::IMGFS
        ),
    );
    let _ = crate::common::sh(dir.path(), "umount -l mnt 2>/dev/null; umount -l small");
    assert_eq!(ran.code, 0, "{ran:?}");
}

#[test]
fn inside_a_version_everything_is_read_only() {
    // Into a tree that is a mount of its own the kernel lets nobody write, and says so alone: see trees.rs.
    let m = Mount::with(&["trees=inline"]);
    m.ok("cp $S/a.tar web.tar; cp $S/b.tar web/; cp $S/c.tar db.tar");
    m.refused("touch web/0/x", "Read-only file system");
    m.refused("rm web/0/rootfs/etc/motd", "Read-only file system");
    m.refused("echo > web/0/rootfs/etc/motd", "Read-only file system");
}

#[test]
fn the_default_image_the_pinned_and_the_only_version_stay() {
    let m = with_two();
    m.refused("rmdir web", "Device or resource busy");
    m.ok("ln -sfn 1 web/default");
    m.refused("rmdir web/1", "Device or resource busy");
    m.refused("rmdir db/0", "Device or resource busy");
    m.ok("rmdir web/0; ln -sfn db default; rmdir web; rmdir db");
}

#[test]
fn what_imgfs_keeps_is_not_permitted() {
    let m = with_two();
    for script in [
        "mkdir web/7",
        "ln -sfn 0 web/latest",
        "rm web/latest",
        "ln web/metadata.json web/m",
        "mv web/0 web/5",
        "mv web/0 db/",
        "mkfifo p",
    ] {
        m.refused(script, "Operation not permitted");
    }
}

#[test]
fn a_name_that_is_taken() {
    let m = with_two();
    m.ok("ln -s web jammy");
    m.refused("mv -T web db", "File exists");
    m.refused("cp $S/a.tar jammy.tar", "File exists");
    assert_ne!(m.sh("mkdir web").code, 0);
}

/// Two uploads whose sha256 begin with the same twelve digits, found by trying: gzip files of one tarball, which
/// differ in the name that they carry.
#[test]
fn a_digest_that_begins_two_is_not_unique() {
    let m = Mount::new();
    m.ok("for n in 0140f6db 015c0d4d; do (printf '\\x1f\\x8b\\x08\\x08\\0\\0\\0\\0\\0\\x03%s\\0' $n; base64 -d <<< S2OgPTAAAjMTEzANBOg0FraZoYExg4IBHdzGUFpcklgEtJJhFIyCUTAKRhYAAGMJXX0ABgAA) > $n.tar.gz; done; test -d 0140f6db/0 -a -d 015c0d4d/0");
    let ran = m.sh("ls .imgfs/by-digest/aa9c9bd4c160");
    assert!(ran.code != 0 && ran.err.contains("Name not unique"), "{ran:?}");
    m.ok("rm -r 0140f6db 2> /dev/null || rm -r 015c0d4d; test -d .imgfs/by-digest/aa9c9bd4c160/rootfs");
}

#[test]
fn links_to_what_is_not_there() {
    let m = with_two();
    m.refused("ln -s nothing x", "No such file or directory");
    m.refused("ln -s db default", "No such file or directory");
    m.refused("ln -sfn 9 web/default", "No such file or directory");
}

/// It shadowed the image after a remount.
#[test]
fn an_alias_that_comes_back_from_the_trash_does_not_take_the_place_of_an_image() {
    let mut m = Mount::new();
    m.ok("cp $S/a.tar other.tar; cp $S/a.tar web.tar; ln -s web lts; rm -r web; cp $S/b.tar lts.tar; mv .imgfs/trash/web .");
    for _ in 0..2 {
        m.ok("cmp lts/0/rootfs.tar $S/b.tar; ! test -L lts; ! grep -q lts web/metadata.json; cmp web/0/rootfs.tar $S/a.tar");
        m.remount();
    }
    // Where the name is free again, it is the alias.
    m.ok("mv lts old; test $(readlink lts) = web");
    m.remount();
    m.ok("test $(readlink lts) = web; rm lts; ! test -e lts; test -d old/0");
}
