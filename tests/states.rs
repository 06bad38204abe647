//! What an image is and to whom it is offered: types, sizes, dates, deprecated, hidden, disabled.

use crate::common::Mount;

#[test]
fn a_disk_is_for_virtual_machines_and_has_a_virtual_size() {
    let mut m = Mount::new();
    m.ok("qemu-img create -q -f qcow2 $S/q.qcow2 7M; cp $S/q.qcow2 vm.qcow2; truncate -s 3M $S/r.img; cp $S/r.img raw.img; cp $S/a.tar web.tar");
    m.ok("(printf '\\0\\0\\0\\0\\0\\0\\0\\0\\254\\313\\272\\365\\2\\0\\0\\0'; head -c 5000 /dev/zero) | gzip > $S/d.zvol.gz; cp $S/d.zvol.gz vol.zvol.gz");
    m.ok("mkdir .z; head -c 4000 /dev/urandom > .z/file; jq -n --arg s $(sha1sum < .z/file | cut -c-40) '{v:2,uuid:\"900cffef-55e3-4e7d-b7ec-ccf439a159e3\",owner:\"86055c40-2547-11e2-8a6b-4bb37edc84ba\",name:\"win\",version:\"1\",type:\"zvol\",os:\"windows\",nic_driver:\"virtio\",disk_driver:\"virtio\",cpu_type:\"host\",image_size:20480,published_at:\"2014-02-03T04:05:06Z\",files:[{sha1:$s,size:4000,compression:\"none\"}]}' > .z/manifest; mv .z win");
    for (image, kind, size) in [
        ("vm", "vm", 7 << 20),
        ("raw", "vm", 3 << 20),
        ("web", "container", 0),
        ("vol", "vm", 0),
        ("win", "vm", 20480_u64 << 20),
    ] {
        assert_eq!(m.json(image)["type"], kind, "{image}");
        assert_eq!(m.json(&format!("{image}/0"))["virtual_size"].as_u64().unwrap_or(0), size, "{image}");
    }
    assert_eq!(m.json("win")["os_type"], "Windows VM");
    m.ok("jq -e '.published_at == \"2014-02-03T04:05:06Z\" and (.created_at | startswith(\"20\")) and .uploaded_at > .published_at' win/0/metadata.json");
    for (os, zone, vm) in [
        ("debian", "Linux Zone", "Linux VM"),
        ("smartos", "SunOS Zone", "SunOS VM"),
        ("freebsd", "null", "BSD VM"),
        ("windows", "null", "Windows VM"),
    ] {
        m.ok(&format!("setfattr -n user.imgfs.os -v {os} web; test \"$(jq -r .os_type web/metadata.json)\" = '{zone}'; setfattr -n user.imgfs.type -v vm web; test \"$(jq -r .os_type web/metadata.json)\" = '{vm}'; setfattr -n user.imgfs.type -v container web"));
    }
    m.remount();
    assert_eq!(m.json("vm/0")["virtual_size"], 7 << 20);
    m.fsck();
}

#[test]
fn dates_of_lxd_are_taken_over() {
    let m = Mount::new();
    m.ok("mkdir -p $S/u/rootfs; echo x > $S/u/rootfs/f; printf 'architecture: x86_64\\ncreation_date: 1458040200\\nexpiry_date: 1893456000\\n' > $S/u/metadata.yaml; tar -C $S/u -cf $S/u.tar metadata.yaml rootfs; cp $S/u.tar new.tar; \
          jq -e '.created_at == \"2016-03-15T11:10:00Z\" and .expiry_date == \"2030-01-01T00:00:00Z\" and .published_at == .uploaded_at' new/0/metadata.json; jq -e '.expires_at == \"2030-01-01T00:00:00Z\"' new/metadata.json");
    // One that is out of date already comes in, and stays.
    m.ok("sed -i s/1893456000/1458040201/ $S/u/metadata.yaml; tar -C $S/u -cf $S/u.tar metadata.yaml rootfs; cp $S/u.tar old.tar; jq -e '.expires_at == null' old/metadata.json; jq -e '.expiry_date' old/0/metadata.json");
    m.fsck();
}

#[test]
fn each_state_offers_what_it_says() {
    let mut m = Mount::new();
    m.ok("for i in one two hid dis dep; do cp $S/a.tar $i.tar; done; setfattr -n user.imgfs.os -v x one two hid dis dep 2> /dev/null || for i in one two hid dis dep; do setfattr -n user.imgfs.os -v x $i; done; \
          setfattr -n user.imgfs.status -v hidden hid; setfattr -n user.imgfs.status -v disabled dis; setfattr -n user.imgfs.deprecated -v true dep");
    let states = "test \"$(ls | tr '\\n' ' ')\" = 'default dep dis one two '; test \"$(ls .imgfs/by/os/x | tr '\\n' ' ')\" = 'one two '; test \"$(ls .imgfs/by/deprecated)\" = dep; \
                  jq -e '.status == \"hidden\"' hid/metadata.json; jq -e '.status == \"disabled\"' dis/metadata.json; jq -e '.status == \"active\" and .deprecated' dep/metadata.json; cmp $S/a.tar hid/0/rootfs.tar";
    m.ok(states);
    m.remount();
    m.ok(states);
    // Hidden and deprecated images are used as before; a disabled one takes no new users, and keeps those
    // that it has.
    m.ok("touch hid/0/used_by/a dep/0/used_by/a; rm hid/0/used_by/a");
    m.refused("touch dis/0/used_by/a", "not permitted");
    m.refused("ln -sfn dis default", "not permitted");
    m.refused("setfattr -n user.imgfs.status -v disabled one", "busy");
    m.ok("touch two/0/used_by/app; setfattr -n user.imgfs.status -v disabled two; test -e two/0/used_by/app; cmp $S/a.tar two/0/rootfs.tar; cp $S/b.tar two/; setfattr -n user.imgfs.status -v active two; touch two/1/used_by/b");
    m.refused("setfattr -n user.imgfs.status -v banana two", "Invalid argument");
    m.ok("jq '.status=\"active\"' hid/metadata.json > $S/j; cp $S/j hid/metadata.json; ls | grep -qx hid; setfattr -n user.imgfs.deprecated -v false dep; ls .imgfs/by/os/x | grep -qx dep");
    // None of them goes by itself.
    m.ok("sleep 11; ls one two dis dep");
    m.fsck();
}

#[test]
fn an_image_has_an_icon() {
    let mut m = Mount::new();
    m.ok("printf '\\211PNG\\r\\n\\032\\nrest' > $S/p.png; printf '<?xml?><svg/>' > $S/s.svg; printf '\\377\\330\\377rest' > $S/j.jpg; cp $S/a.tar web.tar; cp $S/p.png web/icon.png; cmp $S/p.png web/icon.png; ls web | grep -qx icon.png");
    m.remount();
    m.ok("cmp $S/p.png web/icon.png; cp $S/s.svg web/icon.svg; not test -e web/icon.png; cmp $S/s.svg web/icon.svg; rsync $S/j.jpg web/icon.jpg; cmp $S/j.jpg web/icon.jpg; mv $S/p.png web/icon.png; test $(stat -c %s web/icon.png) = 12; mv web web2; test -e web2/icon.png");
    for (script, why) in [
        ("cp $S/s.svg web2/icon.png", "Invalid argument"),
        (
            "(printf '\\211PNG\\r\\n\\032\\n'; head -c 140000 /dev/zero) > $S/big; cp $S/big web2/icon.png",
            "too long",
        ),
    ] {
        m.refused(script, why);
    }
    m.ok("test $(stat -c %s web2/icon.png) = 12; rm web2/icon.png; not test -e web2/icon.png; cp $S/j.jpg web2/icon.jpg; rm -r web2; mv .imgfs/trash/web2 .; cmp $S/j.jpg web2/icon.jpg; rm -r web2; rm -r .imgfs/trash/web2; cp $S/a.tar web2.tar; not test -e web2/icon.jpg");
    m.fsck();
}
