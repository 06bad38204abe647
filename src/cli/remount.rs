//! mount -o remount,ro: changes the options of an existing mount.

use std::fs;
use std::path::Path;

use crate::base::flags::Flags;
use crate::cli::args::Parsed;
use crate::error::{Error, Result};
use crate::fs::kernel::mount::{self, Mounted};
use crate::store::settings::Settings;

/// Changes the flags that the kernel keeps of the mount on `point`. Only they can change. All other
/// given options must be as they are, because mount(8) repeats those of fstab and of the mount.
///
/// # Errors
///
/// `NotMounted`; `Invalid` for what cannot change; `Io`: only root may.
pub fn remount(point: &Path, parsed: &Parsed) -> Result<()> {
    let mounted = mount::mounted_on(point).ok_or_else(|| Error::NotMounted { point: point.to_owned() })?;
    if parsed.flags.allow_other && !mounted.flags.allow_other {
        return Err(cannot_change("allow_other"));
    }
    settings_hold(&mounted, &parsed.settings)?;
    let mut flags: Flags = mounted.flags.clone();
    for word in &parsed.words {
        flags.hear(word);
    }
    mount::remount(&mounted, &flags)
}

/// Refuses settings that differ from the current ones. Repeating them is allowed.
fn settings_hold(mounted: &Mounted, settings: &Settings) -> Result<()> {
    for name in settings.given() {
        let file = mounted.point.join(".imgfs/config").join(name);
        let now = fs::read_to_string(&file).map_err(Error::io("read", &file))?;
        if now.trim() != settings.text(name)?.trim() {
            return Err(cannot_change(name));
        }
    }
    Ok(())
}

fn cannot_change(option: &str) -> Error {
    Error::Invalid {
        what: format!("-o remount,{option}"),
        why: "a remount changes ro, noexec, noatime and their like alone".into(),
    }
}
