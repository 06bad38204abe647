//! ls MNT/web@1.0: a version by its image and its label, as imgadm prints them. Such a name resolves,
//! but is never listed.

use crate::fs::access::READ;
use crate::fs::node::{Link, NodeId};
use crate::fs::{Caller, ImageFs};
use crate::images::targets;

/// What `web@1.0` leads to if nothing else has the name. A caller that is about to create this name
/// must not find it taken, so it gets nothing. A caller that may not read the image gets nothing
/// either.
pub(in crate::fs) fn at_label(fs: &ImageFs, caller: Caller, name: &str) -> Option<NodeId> {
    let model = fs.store.catalog.read();
    let label = targets::at_label(&model, name)?;
    let image = model.live_image(label.image).filter(|image| fs.may(caller, image, READ))?;
    let version = model.version(image.serial, label.number)?.serial;
    drop(model);
    (!creates(caller.pid)).then_some(NodeId::Link(Link::Version(version)))
}

/// Whether a thread that waits for an answer to a lookup is in a call that creates or renames
/// something. If imgfs may not read that, it assumes not, and the name resolves.
/// Source: proc_pid_syscall(5).
fn creates(pid: u32) -> bool {
    let text = std::fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
    let mut words = text.split_whitespace();
    let Some(call) = words.next().and_then(|word| word.parse::<libc::c_long>().ok()) else { return false };
    let argument = |n: usize| {
        let word = words.clone().nth(n).and_then(|word| word.strip_prefix("0x"));
        word.and_then(|word| u64::from_str_radix(word, 16).ok()).unwrap_or(0)
    };
    let for_creation = |flags: u64| flags & libc::O_CREAT.unsigned_abs() as u64 != 0;
    match call {
        libc::SYS_mkdirat
        | libc::SYS_symlinkat
        | libc::SYS_renameat2
        | libc::SYS_mknodat
        | libc::SYS_linkat => true,
        libc::SYS_openat => for_creation(argument(2)),
        _ => is_old_call(call) || (opens_by_old_call(call) && for_creation(argument(1))),
    }
}

/// The calls without a directory argument, which only older processor architectures have.
#[cfg(target_arch = "x86_64")]
fn is_old_call(call: libc::c_long) -> bool {
    matches!(
        call,
        libc::SYS_mkdir
            | libc::SYS_symlink
            | libc::SYS_rename
            | libc::SYS_renameat
            | libc::SYS_mknod
            | libc::SYS_link
            | libc::SYS_creat
    )
}

#[cfg(target_arch = "x86_64")]
fn opens_by_old_call(call: libc::c_long) -> bool {
    call == libc::SYS_open
}

#[cfg(not(target_arch = "x86_64"))]
fn is_old_call(_: libc::c_long) -> bool {
    false
}

#[cfg(not(target_arch = "x86_64"))]
fn opens_by_old_call(_: libc::c_long) -> bool {
    false
}
