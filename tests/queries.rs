//! Which images there are of a kind: `.imgfs/by`, `.imgfs/defaults`, `imgfs ls FILTER`.

use crate::common::{IMGFS, Mount};

fn made(m: &Mount) {
    m.ok("for n in jammy focal disk trixie; do cp $S/a.tar $n.tar; done; \
          set_() { setfattr -n user.imgfs.$2 -v $3 $1; }; \
          set_ jammy os ubuntu; set_ focal os ubuntu; set_ trixie os debian; set_ disk type vm; set_ disk os a/b; \
          set_ jammy architecture amd64; set_ focal architecture arm64; set_ jammy tags web,lts; set_ focal tags .x; set_ jammy properties.user.v cloud");
}

#[test]
fn images_are_found_by_what_they_are() {
    let mut m = Mount::new();
    made(&m);
    assert_eq!(
        m.ok("ls .imgfs/by").split_whitespace().collect::<Vec<_>>(),
        ["arch", "deprecated", "os", "release", "tag", "type", "unused"]
    );
    assert_eq!(
        m.ok("ls .imgfs/by/os").split_whitespace().collect::<Vec<_>>(),
        ["a%2Fb", "debian", "test", "ubuntu"][..]
            .iter()
            .filter(|o| **o != "test")
            .copied()
            .collect::<Vec<_>>()
    );
    m.ok("test \"$(ls .imgfs/by/os/ubuntu)\" = \"$(printf 'focal\\njammy')\"; test $(readlink .imgfs/by/os/ubuntu/jammy) = ../../../../jammy");
    m.ok("cmp .imgfs/by/os/ubuntu/jammy/0/rootfs.tar $S/a.tar; ls .imgfs/by/os/a%2Fb/disk/0 > /dev/null");
    // By each word for an architecture; by each tag.
    m.ok("for a in amd64 x86_64 x86-64; do test -e .imgfs/by/arch/$a/jammy/0 || exit 1; done; test \"$(ls .imgfs/by/arch)\" = \"$(printf 'aarch64\\nx86_64')\"");
    m.ok("test -e .imgfs/by/tag/web/jammy -a -e .imgfs/by/tag/lts/jammy -a -e .imgfs/by/tag/%2Ex/focal; test \"$(ls .imgfs/by/type/vm)\" = disk; test $(ls .imgfs/by/type/container | wc -l) = 3");
    m.ok("not test -e .imgfs/by/os/ubuntu/trixie; not test -e .imgfs/by/os/fedora; not test -e .imgfs/by/colour; find .imgfs/by -follow -maxdepth 3 > /dev/null");
    for change in [
        "mkdir .imgfs/by/os/x",
        "rm .imgfs/by/os/ubuntu/jammy",
        "ln -s ../../../../trixie .imgfs/by/os/ubuntu/trixie",
        "rmdir .imgfs/by/os",
        "touch .imgfs/by/os/x",
        "mv .imgfs/by/os/ubuntu/jammy .imgfs/by/os/debian/",
    ] {
        m.refused(change, "Operation not permitted");
    }
    // Values that no name can hold as they are.
    m.ok("setfattr -n user.imgfs.os -v a%2Fb focal; setfattr -n user.imgfs.architecture -v weird/arch focal; setfattr -n user.imgfs.tags -v $(head -c 5000 /dev/zero | tr '\\0' o),z jammy; \
          test \"$(ls .imgfs/by/os/a%252Fb .imgfs/by/os/a%2Fb | tr '\\n' ' ')\" = '.imgfs/by/os/a%252Fb: focal  .imgfs/by/os/a%2Fb: disk '; test -e .imgfs/by/arch/weird%2Farch/focal; test \"$(ls .imgfs/by/tag | tr '\\n' ' ')\" = '%2Ex z '; \
          setfattr -n user.imgfs.os -v ubuntu focal; setfattr -n user.imgfs.tags -v web,lts jammy");
    m.ok("setfattr -n user.imgfs.os -v debian jammy; mv focal f; test \"$(ls .imgfs/by/os/ubuntu)\" = f; test \"$(readlink .imgfs/by/os/ubuntu/f)\" = ../../../../f; test -e .imgfs/by/os/debian/jammy; rm -r f; not test -e .imgfs/by/os/ubuntu");
    m.ok("setfattr -n user.imgfs.status -v deleted trixie; not test -e .imgfs/by/os/debian/trixie");
    m.remount();
    m.ok("test -e .imgfs/by/os/debian/jammy/0/rootfs/etc/motd");
}

#[test]
fn unused_images_are_those_that_nobody_needs() {
    let m = Mount::new();
    made(&m);
    // jammy is default, disk is the only vm.
    m.ok("test \"$(ls .imgfs/by/unused)\" = \"$(printf 'focal\\ntrixie')\"; touch focal/0/used_by/app; test \"$(ls .imgfs/by/unused)\" = trixie; \
          ln -s /nowhere trixie/0/used_by/gone; test \"$(ls .imgfs/by/unused)\" = trixie; rm focal/0/used_by/app; ln -sfn focal default; ls .imgfs/by/unused | tr '\\n' ' ' | grep -qx 'jammy trixie '");
    m.ok("rm trixie/0/used_by/gone; for i in .imgfs/by/unused/*; do rm -r $(readlink -f $i); done; test -z \"$(ls .imgfs/by/unused)\"; test \"$(ls)\" = \"$(printf 'default\\ndisk\\nfocal')\"");
}

#[test]
fn each_type_has_a_default() {
    let mut m = Mount::new();
    m.ok("test -z \"$(ls .imgfs/defaults)\"; for n in a b v w; do cp $S/a.tar $n.tar; done; setfattr -n user.imgfs.type -v vm v; setfattr -n user.imgfs.type -v vm w");
    // The first of each type.
    m.ok("test \"$(readlink .imgfs/defaults/container .imgfs/defaults/vm)\" = \"$(printf '../../a\\n../../v')\"; cmp .imgfs/defaults/vm/0/rootfs.tar $S/a.tar");
    m.refused("rm -r v", "busy");
    assert!(m.errors().contains("v is the default of the images whose type is vm"), "{}", m.errors());
    m.ok("ln -sfn ../../w .imgfs/defaults/vm; test $(readlink .imgfs/defaults/vm) = ../../w; rm -r v; rmdir w; ls | tr '\\n' ' ' | grep -qx 'a b default '; not test -e .imgfs/defaults/vm");
    m.ok("mv .imgfs/trash/v .; mv .imgfs/trash/w .; test $(readlink .imgfs/defaults/vm) = ../../w; ln -sfn $MNT/v .imgfs/defaults/vm; rmdir w; mv .imgfs/trash/w .");
    m.remount();
    m.ok("test $(readlink .imgfs/defaults/vm) = ../../v; mv v x; test $(readlink .imgfs/defaults/vm) = ../../x");
    // The store's default is that of its type, until another is chosen.
    m.ok("ln -sfn b default; test $(readlink .imgfs/defaults/container) = ../../b; rmdir a; mv .imgfs/trash/a .; ln -sfn ../../a .imgfs/defaults/container; test $(readlink default) = b");
    m.refused("rmdir a", "busy");
    m.refused("rmdir b", "busy");
    m.refused("ln -sfn ../../a .imgfs/defaults/vm", "Invalid argument");
    m.refused("ln -sfn ../../nothing .imgfs/defaults/vm", "No such file");
    m.refused("ln -sfn ../../a .imgfs/defaults/jail", "No such file");
    m.refused("setfattr -n user.imgfs.status -v deleted x", "busy");
    m.ok("rm .imgfs/defaults/vm; not test -e .imgfs/defaults/vm; ln -s ../../w .imgfs/defaults/vm; test -z \"$(ls .imgfs/defaults | grep Cu)\"");
    for loss in ["catalog.db*", "blobs"] {
        m.unmount();
        assert_eq!(m.sh(&format!("rm $STORE/{loss}")).code, 0);
        m.mount();
        m.ok("test \"$(readlink .imgfs/defaults/container .imgfs/defaults/vm)\" = \"$(printf '../../a\\n../../w')\"");
    }
    m.fsck();
}

#[test]
fn ls_filters_as_lxd_does() {
    let m = Mount::new();
    made(&m);
    for (filters, found) in [
        ("os=ubuntu", "focal jammy "),
        ("os=ub", ""),
        ("os=^ub", "focal jammy "),
        ("'os=ubuntu|debian' amd64", "jammy "),
        ("tag=lts", "jammy "),
        ("arch=arm64", "focal "),
        ("u.v=cl.*", "jammy "),
        ("type=vm", "disk "),
        ("ja", "jammy "),
        ("is_default=true", "jammy "),
    ] {
        let ran =
            m.sh(&format!("{IMGFS} ls --store $STORE --json {filters} | jq -r '.[].name' | tr '\\n' ' '"));
        assert_eq!(ran.out, found, "{filters}: {ran:?}");
        assert_eq!(
            m.sh(&format!("{IMGFS} ls --store $STORE {filters}")).code,
            i32::from(found.is_empty()),
            "{filters}"
        );
    }
}
