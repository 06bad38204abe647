//! When images go by themselves: how their time is written, and how long nobody has used them.

use crate::common::limit::wait_until;
use crate::common::{Mount, as_root};

#[test]
fn the_day_that_was_written_reads_back() {
    let mut m = Mount::new();
    m.ok("cp $S/a.tar web.tar");
    for (text, shown) in [
        ("2197-01-31", "2197-01-31T23:59:59.999999999Z"),
        ("'2197-01-31 10:00'", "2197-01-31T10:00:00Z"),
        ("'2197-01-31 10:00:30'", "2197-01-31T10:00:30Z"),
        ("7180531200", "2197-07-17T00:00:00Z"),
        ("@7180531200", "2197-07-17T00:00:00Z"),
        ("2197-01-31T12:00:00+02:00", "2197-01-31T10:00:00Z"),
    ] {
        m.ok(&format!("setfattr -n user.imgfs.expires_at -v {text} web"));
        assert_eq!(m.json("web")["expires_at"], shown, "{text}");
        // What reads back may be written again.
        m.ok("v=$(getfattr --only-values -n user.imgfs.expires_at web); setfattr -n user.imgfs.expires_at -v $v web");
        assert_eq!(m.json("web")["expires_at"], shown, "{text}");
    }
    m.ok("jq '.expires_at=7180531200' web/metadata.json > web/.m; mv web/.m web/metadata.json");
    assert_eq!(m.json("web")["expires_at"], "2197-07-17T00:00:00Z");
    for (text, unit) in [
        ("+2 weeks", "2 weeks"),
        ("+30 minutes", "30 minutes"),
        ("+6 months", "6 months"),
        ("+1 year", "1 year"),
    ] {
        m.ok(&format!(
            "setfattr -n user.imgfs.expires_at -v '{text}' web; t=$(date -u -d $(jq -r .expires_at web/metadata.json) +%s); \
             w=$(date -u -d '+{unit}' +%s); test $((t - w)) -ge -172800 -a $((t - w)) -le 172800"
        ));
    }
    for bad in ["soon", "20270131", "31.01.2027", "'+2 moons'", "2027-02-30"] {
        m.refused(&format!("setfattr -n user.imgfs.expires_at -v {bad} web"), "Invalid argument");
        assert!(m.errors().contains("2027-01-31 10:00") && m.errors().contains("+2 weeks"), "{}", m.errors());
    }
    m.ok("setfattr -n user.imgfs.expires_at -v 2197-01-31 web");
    m.remount();
    assert_eq!(m.json("web")["expires_at"], "2197-01-31T23:59:59.999999999Z");
}

fn is(m: &Mount, script: &str) -> bool {
    m.sh(script).code == 0
}

#[test]
fn what_nobody_uses_goes_after_its_time() {
    let mut m = Mount::new();
    m.ok("for n in o idle leased edited; do cp $S/a.tar $n.tar; done; touch leased/0/used_by/app; for n in o idle leased; do setfattr -n user.imgfs.expires_unused -v 3s $n; done; setfattr -n user.imgfs.expires_unused -v 10d edited");
    assert_eq!(
        (m.json("edited")["expires_unused"].as_str(), m.json("idle")["expires_unused"].as_str()),
        (Some("10d"), Some("3s"))
    );
    assert!(m.json("edited")["last_used_at"].is_null());
    wait_until("the end of what nobody uses", || is(&m, "test ! -e idle"));
    m.ok("test -e o -a -e leased -a -e edited; ls .imgfs/trash | grep -qx idle; grep -l 'expires_unused' .imgfs/jobs/*");
    // The lease counted until it ended; the default stays.
    m.ok("rm leased/0/used_by/app; test -e leased; test -n \"$(jq -r '.last_used_at // empty' leased/metadata.json)\"");
    wait_until("the end of what is leased no more", || is(&m, "test ! -e leased"));
    m.ok("test -e o; mv .imgfs/trash/leased .; setfattr -x user.imgfs.expires_unused leased; mv .imgfs/trash/idle .; setfattr -x user.imgfs.expires_unused idle; test -e idle/0");
    for bad in ["0", "soon", "-1d", "10 fortnights"] {
        m.refused(&format!("setfattr -n user.imgfs.expires_unused -v '{bad}' edited"), "Invalid argument");
    }
    // An edit that was begun before a use is none of that.
    m.ok("jq '.description=\"x\"' edited/metadata.json > $S/e; cat edited/0/rootfs/etc/motd > /dev/null; cat $S/e > edited/metadata.json");
    m.remount();
    assert!(m.json("edited")["last_used_at"].is_string() && m.json("edited")["expires_unused"] == "10d");
    m.fsck();
}

#[test]
fn an_open_file_is_a_use() {
    for mounted in [false, true] {
        if mounted && !as_root() {
            continue;
        }
        let m = Mount::with(if mounted { &["trees=mounted"] } else { &[] });
        m.ok("for n in o read idle; do cp $S/a.tar $n.tar; done; for n in read idle; do setfattr -n user.imgfs.expires_unused -v 15s $n; done");
        wait_until("the end of what nobody reads", || {
            m.ok("cat read/0/rootfs/etc/motd > /dev/null; test -e read");
            is(&m, "test ! -e idle")
        });
        m.ok("test -e read; ls .imgfs/trash | grep -qx idle");
        if mounted {
            // Who stands in a mounted tree is seen only there.
            m.ok("cd read/0/rootfs/etc; sleep 28; cat motd > /dev/null; test -e $MNT/read");
        }
    }
}
