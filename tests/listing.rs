//! What `imgfs ls` and the directories of `.imgfs` show of images: by uuid, by fingerprint, in columns.

use crate::common::{IMGFS, Mount, User, may, shared};

const A: &str = "15963d90-61d7-4664-87a6-f56b16492d5a";
const B: &str = "900cffef-55e3-4e7d-b7ec-ccf439a159e3";
const ANNA: User = (1001, 1001, "");

/// Makes of an archive a new version that has a uuid and a version string.
fn announced(m: &Mount, image: &str, archive: &str, uuid: &str, version: &str) {
    m.ok(&format!(
        "mkdir $MNT/.m; cp $S/{archive} .m/; jq -n --arg s $(sha1sum < $S/{archive} | cut -c-40) --argjson z $(stat -c %s $S/{archive}) \
         '{{v:2,uuid:\"{uuid}\",owner:\"86055c40-2547-11e2-8a6b-4bb37edc84ba\",name:\"{image}\",version:\"{version}\",type:\"zone-dataset\",\
         os:\"smartos\",published_at:\"2014-02-0{z}T10:00:00Z\",files:[{{sha1:$s,size:$z,compression:\"none\"}}]}}' > .m/x.imgmanifest; mv .m {image}",
        z = version.len()
    ));
}

/// `imgfs ls` of the store: what it prints.
fn ls(m: &Mount, arguments: &str) -> String {
    m.ok(&format!("{IMGFS} ls --store $STORE {arguments}"))
}

#[test]
fn versions_are_found_by_their_uuid() {
    let mut m = Mount::new();
    m.ok("cp $S/d.tar other.tar");
    announced(&m, "web", "a.tar", A, "1.0.0");
    announced(&m, "web", "b.tar", B, "2.0");
    let links = format!(
        "test \"$(ls .imgfs/by-uuid)\" = \"$(printf '{A}\\n{B}')\"; test $(readlink .imgfs/by-uuid/{A}) = ../../web/0; \
         test $(readlink .imgfs/by-uuid/{B}) = ../../web/1; cmp .imgfs/by-uuid/{B}/rootfs.tar $S/b.tar; ls .imgfs | grep -qx by-uuid"
    );
    m.ok(&links);
    m.remount();
    m.ok(&links);
    m.ok("mv web www; not test -e .imgfs/by-uuid/none");
    assert_eq!(m.ok(&format!("readlink .imgfs/by-uuid/{B}")), "../../www/1\n");
    m.refused(&format!("rm .imgfs/by-uuid/{A}"), "Operation not permitted");
    for word in [format!("uuid={A}"), format!("uuid={B}"), A.to_owned(), B.to_owned()] {
        assert_eq!(ls(&m, &format!("--json {word} | jq -r '.[].name'")), "www\n", "{word}");
    }
    assert_eq!(m.sh(&format!("{IMGFS} ls --store $STORE uuid=x")).code, 1);
    m.ok(&format!("rmdir www/0; not test -e .imgfs/by-uuid/{A}; test $(ls .imgfs/by-uuid) = {B}"));
}

#[test]
fn uuids_of_private_images_show_to_nobody_else() {
    let Some(m) = shared(&[]) else { return };
    announced(&m, "web", "a.tar", A, "1.0.0");
    announced(&m, "open", "b.tar", B, "2.0");
    m.ok("chmod 700 web; chmod 755 open");
    may(
        &m,
        ANNA,
        &format!(
            "test $(ls .imgfs/by-uuid) = {B}; not test -L .imgfs/by-uuid/{A}; test -d .imgfs/by-uuid/{B}/rootfs"
        ),
    );
}

#[test]
fn the_beginning_of_a_fingerprint_finds_an_image() {
    let m = Mount::new();
    m.ok("cp $S/a.tar.gz web.tar.gz; cp $S/b.tar other.tar");
    for file in ["$S/a.tar.gz", "$S/a.tar"] {
        let found = m.ok(&format!(
            "{IMGFS} ls --store $STORE --json $(sha256sum < {file} | cut -c-9) | jq -r '.[].name'"
        ));
        assert_eq!(found, "web\n", "{file}");
        let found = m.ok(&format!(
            "{IMGFS} ls --store $STORE --json $(sha256sum < {file} | cut -c-3) | jq -r '.[].name'"
        ));
        assert!(found.contains("web\n"), "{file}: {found}");
    }
}

#[test]
fn a_version_is_called_by_its_image_and_label() {
    let mut m = Mount::new();
    m.ok("cp $S/a.tar web.tar; cp $S/b.tar web.tar; cp $S/c.tar other.tar; ln -s 1 web/@1.0; ln -s web prod");
    let there = "test $(readlink web@1.0) = web/1; cmp web@1.0/rootfs.tar $S/b.tar; test $(readlink prod@1.0) = web/1; \
                 not grep -q web@1.0 <(ls -a); not test -L web@2; not test -L other@1.0; not test -L @1.0; not test -L web@";
    m.ok(there);
    m.ok(&format!("{IMGFS} export --store $STORE web@1.0 $S/x.tar; cmp $S/x.tar $S/b.tar; {IMGFS} diff --store $STORE web/0 web@1.0 | grep -q etc/motd"));
    assert_eq!(m.sh(&format!("{IMGFS} export --store $STORE web@2 $S/y.tar")).code, 1);
    m.refused("rm web@1.0", "Operation not permitted");
    m.ok("ln -s web@1.0 follows; test $(readlink follows) = web/@1.0; ln -sfn 0 web/@1.0; test $(readlink web@1.0) = web/0; ln -sfn 1 web/@1.0");
    m.remount();
    m.ok(there);
    m.ok("rm web/@1.0; not test -L web@1.0; ln -s 1 web/@1.0");
}

#[test]
fn a_name_that_a_label_resolves_is_free_for_images_and_aliases() {
    let m = Mount::new();
    m.ok("cp $S/a.tar web.tar; cp $S/b.tar web.tar; for l in 1 2 3 4 5 6; do ln -s 1 web/@$l; done; test -L web@1; cp $S/c.tar web@1.tar; test -d web@1/0; cmp web@1/0/rootfs.tar $S/c.tar; ls | grep -qx web@1");
    m.ok("ln -sfn web web@2; test $(readlink web@2) = web; ls | grep -qx web@2; rm web@2; test $(readlink web@2) = web/1");
    if crate::common::as_root() {
        // By the call that the caller is in.
        m.ok("mkdir web@3; test -d web@3; not test -L web@3; ln -sT web web@4; test $(readlink web@4) = web; cp $S/c.tar o.tar; mv -T o web@5; test -d web@5/0; cat $S/d.tar > web@6; cmp web@6/0/rootfs.tar $S/d.tar");
    }
    m.fsck();
}

#[test]
fn labels_of_private_images_show_to_nobody_else() {
    let Some(m) = shared(&[]) else { return };
    m.ok("for n in web open; do cp $S/a.tar $n.tar; ln -s 0 $n/@1; done; chmod 700 web; chmod 755 open");
    may(&m, ANNA, "test -d open@1/rootfs; not test -L web@1");
}

#[test]
fn columns_are_chosen_by_name_and_by_letter() {
    let m = Mount::new();
    m.ok("cp $S/d.tar plain.tar; sleep 0.01");
    announced(&m, "web", "a.tar", A, "1.0.0");
    announced(&m, "web", "b.tar", B, "2.0");
    m.ok("ln -s web jammy; ln -s web lts; touch web/0/used_by/app web/1/used_by/vm; setfattr -n user.imgfs.tags -v x,y web; chmod 700 plain; setfattr -x user.imgfs.os plain; setfattr -n user.imgfs.immutable -v true plain; setfattr -n user.imgfs.description -v 'a b' web");
    let id = m.ok("cat web/.id");
    let digest = m.ok("sha256sum < $S/b.tar | cut -c-64");
    let (id, digest) = (id.trim(), digest.trim());
    let size = m.ok("stat -c %s $S/b.tar");
    assert_eq!(
        ls(&m, "-H -o uuid,name,version,os,type,status,used_by,immutable,default,size"),
        format!(
            "-\tplain\t0\t-\tcontainer\tactive\t-\tyes\tyes\t{}\n{B}\tweb\t2.0\tsmartos\tcontainer\tactive\tapp,vm\t-\t-\t{}\n",
            m.ok("stat -c %s $S/d.tar").trim(),
            size.trim()
        )
    );
    assert_eq!(
        ls(&m, "-H -o id,fingerprint,short_fingerprint,clones,tags,aliases,versions,latest,description web"),
        format!("{id}\t{digest}\t{}\t2\tx,y\tjammy,lts\t2\t1\ta b\n", &digest[..12])
    );
    let letters = ls(&m, "-H -c lLfFpdatse web");
    assert_eq!(
        letters.trim_end(),
        format!(
            "lts (1 more)\tjammy,lts\t{}\t{digest}\tyes\ta b\t-\tcontainer\t{}\tdefault",
            &digest[..12],
            size.trim()
        )
    );
    assert_eq!(ls(&m, "-c lf").lines().next(), Some("ALIAS         FINGERPRINT"));
    let usual = ls(&m, "");
    assert!(usual.starts_with("NAME   DEFAULT  VERSIONS  LATEST  SIZE"), "{usual}");
    // Sorted on request, else by name.
    for (sort, order) in [
        ("", "plain web"),
        ("-s -name", "web plain"),
        ("-s published", "plain web"),
        ("-s -uploaded,name", "web plain"),
        ("-s clones,name", "plain web"),
    ] {
        assert_eq!(
            ls(&m, &format!("-H -o name {sort}")).split_whitespace().collect::<Vec<_>>().join(" "),
            order,
            "{sort}"
        );
    }
    assert_eq!(ls(&m, "--json -s -name | jq -r '.[].name'"), "web\nplain\n");
    for bad in ["-o name,colour", "-o ''", "-s colour", "-c lx"] {
        let ran = m.sh(&format!("{IMGFS} ls --store $STORE {bad}"));
        assert!(ran.code == 1 && ran.err.contains("short_fingerprint"), "{bad}: {ran:?}");
    }
}

/// What a user sees of a mount, with arguments for `imgfs ls`.
fn seen_by(m: &Mount, who: User, arguments: &str) -> crate::common::Ran {
    crate::common::by(m, who, &format!("cd /; HOME=/nonexistent XDG_DATA_HOME= $S/imgfs ls {arguments}"))
}

#[test]
fn an_ordinary_user_lists_what_a_shared_mount_shows() {
    let Some(m) = shared(&[]) else { return };
    m.ok(&format!("cp {IMGFS} $S/imgfs; chmod 755 $S $S/imgfs; chmod 700 $STORE; cp $S/a.tar pub.tar; chmod 755 pub; cp $S/b.tar private.tar; chmod 700 private; ln -s pub jammy; touch pub/0/used_by/app"));
    announced(&m, "web", "c.tar", A, "1.0.0");
    m.ok("chmod 755 web");
    let store = m.path("store").display().to_string();
    let mnt = m.mnt().display().to_string();
    for source in [format!("--store {store}"), format!("--mount {mnt}"), format!("--store {mnt}")] {
        let ran = seen_by(&m, ANNA, &format!("{source} -H -o name,uuid,used_by,aliases"));
        assert_eq!(
            (ran.code, ran.out.as_str()),
            (0, format!("pub\t-\tapp\tjammy\nweb\t{A}\t-\t-\n").as_str()),
            "{source}: {ran:?}"
        );
    }
    let digest = m.ok("sha256sum < $S/a.tar | cut -c-10");
    for word in [digest.trim(), "jammy", "name=pub"] {
        let ran = seen_by(&m, ANNA, &format!("--store {store} --json {word}"));
        assert!(
            ran.code == 0 && ran.out.contains("\"name\": \"pub\"") && !ran.out.contains("private"),
            "{word}: {ran:?}"
        );
    }
    // The owner of an image sees it; root sees all through the mount, too.
    m.ok("chown 1001 private");
    assert_eq!(seen_by(&m, ANNA, &format!("--store {store} -H -o name")).out, "private\npub\nweb\n");
    m.ok(&format!("test \"$({IMGFS} ls --mount $MNT --json | jq -S .)\" = \"$({IMGFS} ls --store $STORE --json | jq -S .)\""));
    // Neither a mount nor a store.
    let ran = seen_by(&m, ANNA, "--mount /tmp");
    assert!(ran.code == 1 && ran.err.contains("no imgfs mount on /tmp"), "{ran:?}");
    assert_eq!(seen_by(&m, ANNA, &format!("--mount {mnt} --store {store}")).code, 2);
    assert_ne!(seen_by(&m, ANNA, "--store /nonexistent/store").code, 0);
    let elsewhere = seen_by(&m, ANNA, "-H -o name");
    // Other tests' mounts may be there, too: then it asks which.
    assert!(elsewhere.out == "private\npub\nweb\n" || elsewhere.err.contains("--mount"), "{elsewhere:?}");
}
