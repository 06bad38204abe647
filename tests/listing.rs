//! What `imgfs ls` and the directories of `.imgfs` show of images: by uuid, by fingerprint, in columns.

mod common;

use common::{IMGFS, Mount, User, may, shared};

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
    may(&m, ANNA, &format!("test $(ls .imgfs/by-uuid) = {B}; not test -L .imgfs/by-uuid/{A}; test -d .imgfs/by-uuid/{B}/rootfs"));
}

#[test]
fn the_beginning_of_a_fingerprint_finds_an_image() {
    let m = Mount::new();
    m.ok("cp $S/a.tar.gz web.tar.gz; cp $S/b.tar other.tar");
    for file in ["$S/a.tar.gz", "$S/a.tar"] {
        let found = m.ok(&format!("{IMGFS} ls --store $STORE --json $(sha256sum < {file} | cut -c-9) | jq -r '.[].name'"));
        assert_eq!(found, "web\n", "{file}");
        let found = m.ok(&format!("{IMGFS} ls --store $STORE --json $(sha256sum < {file} | cut -c-3) | jq -r '.[].name'"));
        assert!(found.contains("web\n"), "{file}: {found}");
    }
}
