//! What the kernel says about other processes. Source: proc(5), proc_pid_stat(5).

use std::fs;
use std::path::Path;

/// The processes that /proc shows.
pub fn all() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// A field of a `stat` file. They are counted from the state, which is 0. The name before it may hold
/// anything, but ends at the last parenthesis.
pub fn field(stat: &str, n: usize) -> Option<&str> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(n)
}

fn field_of(pid: u32, n: usize) -> Option<u64> {
    field(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?, n)?.parse().ok()
}

/// The state of a process or a thread, whose directory in /proc is given: `R`, `S`, `D`, `Z` and so on.
pub fn state(directory: &Path) -> Option<char> {
    field(&fs::read_to_string(directory.join("stat")).ok()?, 0)?.chars().next()
}

/// Whether a process no longer exists, or is a zombie.
pub fn has_ended(pid: u32) -> bool {
    matches!(state(&Path::new("/proc").join(pid.to_string())), None | Some('Z' | 'X'))
}

/// The process that started this one.
pub fn parent(pid: u32) -> Option<u32> {
    field_of(pid, 1)?.try_into().ok()
}

/// When a process or a thread was started, in clock ticks since boot.
pub fn born(pid: u32) -> Option<u64> {
    field_of(pid, 19)
}

/// The name of a process or a thread: its program's name, up to 15 bytes. Empty if it is not visible.
pub fn name(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().to_owned()
}

/// The process (thread group) of a thread. Requests carry the number of the thread.
pub fn of_thread(thread: u32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{thread}/status")).unwrap_or_default();
    status.lines().find_map(|l| l.strip_prefix("Tgid:")?.trim().parse().ok()).unwrap_or(thread)
}
