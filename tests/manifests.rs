//! IMGAPI manifests copied into an image by hand, as Danube's esimg and imgadm's directories have them.

use crate::common::{IMGFS, Mount};

const MAKE: &str = r#"
manifest() { # UUID FILE
  jq -n --arg u $1 --arg s $(sha1sum < $2 | cut -c-40) --argjson z $(stat -c %s $2) '{v:2,uuid:$u,owner:"86055c40-2547-11e2-8a6b-4bb37edc84ba",name:"base",version:"1.0.0",type:"zone-dataset",os:"smartos",description:"d",tags:{role:"db",resize:true},homepage:"http://example.com/a",files:[{sha1:$s,size:$z,compression:"gzip"}],requirements:{min_ram:256}}'; }
A=15963d90-61d7-4664-87a6-f56b16492d5a; B=900cffef-55e3-4e7d-b7ec-ccf439a159e3
"#;

fn made() -> Mount {
    let m = Mount::new();
    m.ok(&format!(
        "{MAKE} mkdir $S/$A $S/bad; head -c 5000 /dev/urandom | gzip > $S/$A/file; manifest $A $S/$A/file > $S/$A/manifest; \
         head -c 5000 /dev/urandom | gzip > $S/other.gz"
    ));
    m
}

const WHOLE: &str = "cmp $S/$A/file $A/0/upload-file; gzip -dc $S/$A/file | cmp - $A/0/file; test $(readlink $A/@1.0.0) = 0; \
    jq -e --arg u $A '.uuid == $u and .upload.kept != \"no\"' $A/0/metadata.json; jq -e '.requirements.min_ram == 256' $A/0/manifest; \
    test \"$(ls -A $A | tr '\\n' ' ')\" = '.id 0 @1.0.0 default latest metadata.json '; test -z \"$(ls $STORE/staged)\"";

#[test]
fn danubes_layout_is_published_with_its_manifest_in_either_order() {
    for copy in [
        "cp -r $S/$A $MNT/",
        "mkdir $A; cp $S/$A/manifest $S/$A/file $A/",
        "mkdir $A; cp $S/$A/file $A/; ls $A | grep -qx file; ! test -e $A/0; cp $S/$A/manifest $A/",
        "mkdir $A; cp $S/$A/file $A/; sleep 0.1; cat $S/$A/manifest > $A/manifest",
        // esimg: mkdir, redirection, curl, sha1sum of what it has written.
        "mkdir $A; echo \"$(cat $S/$A/manifest)\" > $A/manifest; cat $S/$A/file > $A/file; sha1sum < $A/file | grep -q $(sha1sum < $S/$A/file | cut -c-40); jq -e .uuid $A/manifest; chmod 644 $A/file",
        "mkdir web; cp $S/$A/manifest web/x.imgmanifest; cp $S/$A/file web/x.zfs.gz; mv web $A; ln -s 0 $A/@1.0.0 2> /dev/null || true; test -e $A/0/x.zfs.gz; rmdir $A; rm -r .imgfs/trash/*; cp -r $S/$A $MNT/",
    ] {
        println!("{copy}");
        let mut m = made();
        m.ok(&format!("{MAKE} {copy}; {WHOLE}"));
        m.kill();
        m.mount();
        m.ok(&format!("{MAKE} {WHOLE}"));
        m.fsck();
    }
}

#[test]
fn what_waits_for_its_other_half_survives() {
    for half in ["file", "manifest"] {
        let other = if half == "file" { "manifest" } else { "file" };
        let mut m = made();
        m.ok(&format!(
            "{MAKE} mkdir $A; cp $S/$A/{half} $A/; jq -e '.staged | length == 1' .imgfs/status.json"
        ));
        m.remount();
        m.kill();
        m.mount();
        m.ok(&format!("{MAKE} cmp $S/$A/{half} $A/{half}; cp $S/$A/{other} $A/; {WHOLE}"));
        m.fsck();
    }
}

#[test]
fn a_manifest_and_its_file_always_match() {
    let m = made();
    m.ok(&format!("{MAKE} mkdir $A; cp $S/$A/manifest $A/"));
    m.refused(&format!("{MAKE} cp $S/other.gz $A/file"), "Bad message");
    m.refused(&format!("{MAKE} cp $S/a.tar $A/"), "Bad message");
    m.ok(&format!("{MAKE} cp $S/$A/file $A/; {WHOLE}; rm -r $A; rm -r .imgfs/trash/*"));
    // The manifest comes second, and is of another file, of another image, or no manifest.
    m.ok(&format!("{MAKE} mkdir $A; cp $S/$A/file $A/; manifest $A $S/other.gz > $S/bad/1; manifest $B $S/$A/file > $S/bad/2; jq 'del(.name)' $S/$A/manifest > $S/bad/3"));
    m.refused(&format!("{MAKE} cp $S/bad/1 $A/manifest"), "Bad message");
    m.refused(&format!("{MAKE} cp $S/bad/2 $A/manifest"), "Bad message");
    m.refused(&format!("{MAKE} cp $S/bad/3 $A/manifest"), "Invalid argument");
    m.ok(&format!("{MAKE} cmp $S/$A/file $A/file; cp $S/$A/manifest $A/; {WHOLE}"));
    m.refused(&format!("{MAKE} cp -r $S/$A $MNT/two"), "");
    m.ok("test ! -e two/0");
    m.fsck();
}

#[test]
fn a_manifest_is_attached_to_the_version_whose_upload_it_announces() {
    let m = made();
    m.ok(&format!("{MAKE} cp $S/b.tar web.tar; cp $S/a.tar web/; manifest $A $S/b.tar | jq '.files[0].compression=\"none\"' > $S/m; cp $S/m web/x.imgmanifest; jq -e --arg u $A '.uuid == $u' web/0/metadata.json; test ! -e web/1/manifest; jq -e '.version == \"1.0.0\"' web/0/manifest; test $(readlink web/@1.0.0) = 0; test ! -e web/2; test -z \"$(ls $STORE/staged)\""));
    // A compressed upload that is not kept cannot be given back: the manifest waits for its file.
    m.ok(&format!("{MAKE} cp $S/a.tar.gz db.tar.gz; manifest $B $S/a.tar.gz > $S/m; cp $S/m db/manifest; test ! -e db/0/manifest; jq -e '.staged | length == 1' .imgfs/status.json; rm db/manifest"));
    m.ok(&format!("{MAKE} setfattr -n user.imgfs.keep_upload -v always db; cp $S/b.tar.zst db/ 2> /dev/null || cp $S/a.tar.xz db/; cp $S/c.tar db/; zstd -qc $S/c.tar > $S/c.zst; cp $S/c.tar db/; gzip -c $S/d.tar > $S/d.tar.gz; cp $S/d.tar.gz db/; manifest $B $S/d.tar.gz > $S/m; cp $S/m db/manifest; n=$(readlink db/latest); jq -e --arg u $B '.uuid == $u' db/$n/metadata.json; cmp $S/d.tar.gz db/$n/d.tar.gz"));
    m.fsck();
}

#[test]
fn an_announced_upload_is_kept_and_goes_out_again() {
    let m = made();
    m.ok(&format!("{MAKE} echo never > .imgfs/config/keep_upload; cp -r $S/$A $MNT/; bzip2 -c $S/a.tar > $S/p.tar.bz2; mkdir .s; cp $S/p.tar.bz2 .s/; manifest $B $S/p.tar.bz2 > .s/x.imgmanifest; mv .s web; cmp $S/p.tar.bz2 web/0/p.tar.bz2"));
    m.ok(&format!("{MAKE} for i in $(seq 300); do jq -e '.upload.kept == \"made again\"' web/0/metadata.json > /dev/null && break; sleep 0.1; done; jq -e '.upload.kept == \"made again\"' web/0/metadata.json; cmp $S/p.tar.bz2 web/0/p.tar.bz2"));
    m.ok(&format!("{MAKE} mkdir $S/out; {IMGFS} export --store $STORE web $S/out/; cmp $S/p.tar.bz2 $S/out/p.tar.bz2; jq -e --arg u $B '.uuid == $u' $S/out/p.tar.bz2.imgmanifest; {IMGFS} export --store $STORE $A $S/out; cmp $S/$A/file $S/out/file"));
    // keep_upload in a metadata.json that comes with a version holds for that.
    m.ok("mkdir .k; cp $S/a.tar.xz .k/; echo '{\"keep_upload\":\"always\"}' > .k/metadata.json; mv .k kept; cmp $S/a.tar.xz kept/0/a.tar.xz");
    m.fsck();
}

#[test]
fn what_imgapi_lets_one_edit_is_edited_and_the_manifest_shows_it() {
    let mut m = made();
    m.ok(&format!("{MAKE} cp -r $S/$A $MNT/; mv $A web; jq -e '.owner and .homepage == \"http://example.com/a\" and .resize == true and .requirements.min_ram == 256' web/metadata.json"));
    m.ok("jq '.homepage=\"https://example.org/\" | .resize=false | .deploy=true | .requirements={\"min_ram\":512} | .channels=[\"dev\"] | .acl=[\"86055c40-2547-11e2-8a6b-4bb37edc84ba\"] | .description=\"new\"' web/metadata.json > web/.m; mv web/.m web/metadata.json; setfattr -n user.imgfs.billing_tags -v '[\"small\"]' web; chmod 700 web");
    let edited = "jq -e '.homepage == \"https://example.org/\" and .tags.resize == false and .tags.deploy and .tags.role == \"db\" and .requirements.min_ram == 512 and .channels == [\"dev\"] and .description == \"new\" and .public == false and .billing_tags == [\"small\"] and (.acl | length) == 1' web/0/manifest";
    m.ok(edited);
    m.remount();
    m.ok(edited);
    for bad in [
        ".homepage=\"ftp://x\"",
        ".resize=\"yes\"",
        ".requirements={\"min_ram\":\"x\"}",
        ".acl=[\"me\"]",
        ".owner=\"900cffef-55e3-4e7d-b7ec-ccf439a159e3\"",
    ] {
        m.refused(
            &format!("jq '{bad}' web/metadata.json > $S/j; cp $S/j web/metadata.json"),
            "Invalid argument",
        );
    }
    m.ok("jq '.homepage=null' web/metadata.json > $S/j; cp $S/j web/metadata.json; jq -e '.homepage == \"http://example.com/a\"' web/metadata.json web/0/manifest");
    m.fsck();
}
