//! Readers of `default` never see it dangling while it is switched, and always a whole image behind it.
//!
//! Control: an alias that is switched by rm and ln -s does dangle, and the readers must see that.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::common::Mount;
use crate::length;

const READERS: usize = 3;

/// What a reader does with a link to an image: all of it must be there.
fn look(link: &Path) -> std::io::Result<()> {
    let target = fs::read_link(link)?;
    assert!(["web", "db"].iter().any(|name| target == Path::new(name)), "{target:?}");
    let text = fs::read_to_string(link.join("default/metadata.json"))?;
    assert!(text.ends_with("}\n"), "{text:?}");
    let motd = fs::read_to_string(link.join("default/rootfs/etc/motd"))?;
    assert!(["one\n", "b\n"].contains(&motd.as_str()), "{motd:?}");
    Ok(())
}

/// How often readers looked while `switch` was done, and how often in vain.
fn watch(link: &Path, switches: u32, switch: impl Fn(&Path, &str)) -> (u32, u32) {
    let (ended, looked, lost) = (AtomicBool::new(false), AtomicU32::new(0), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for _ in 0..READERS {
            scope.spawn(|| {
                while !ended.load(Ordering::Acquire) {
                    if let Err(e) = look(link) {
                        assert_eq!(e.raw_os_error(), Some(libc::ENOENT), "{e}");
                        lost.fetch_add(1, Ordering::Relaxed);
                    }
                    looked.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for n in 0..switches {
            switch(link, if n % 2 == 0 { "db" } else { "web" });
        }
        ended.store(true, Ordering::Release);
    });
    (looked.into_inner(), lost.into_inner())
}

#[test]
#[ignore = "minutes: scripts/torture.sh"]
fn hands_never_find_default_dangling() {
    let mount = Mount::new();
    mount.ok("cp $S/a.tar web.tar; cp $S/b.tar db.tar; ln -s web alias");
    let switches = length(5_000, 100_000);
    let atomic = |link: &Path, to: &str| {
        let temporary = link.with_file_name(".ln");
        symlink(to, &temporary).unwrap();
        fs::rename(&temporary, link).unwrap();
    };
    let (looked, lost) = watch(&mount.mnt().join("default"), switches, atomic);
    assert_eq!(lost, 0, "of {looked}");
    let in_two_steps = |link: &Path, to: &str| {
        fs::remove_file(link).unwrap();
        symlink(to, link).unwrap();
    };
    let (control, dangling) = watch(&mount.mnt().join("alias"), 500, in_two_steps);
    assert!(dangling > 0, "of {control}");
    println!(
        "{switches} switches, {looked} looks of {READERS} readers, 0 in vain; control: {dangling} of {control} in vain"
    );
    mount.fsck();
}
