//! What can be typed.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};

use crate::base::flags::Flags;
use crate::error::{Error, Result};
use crate::store::settings::{Settings, TreesAs};

/// A system-image store that is a filesystem: cp adds an image, ls shows it, ln -sfn switches, rmdir deletes.
#[derive(Parser)]
#[command(name = "imgfs", version, after_help = "Exit status: 0 done, 1 refused or failed, 2 wrong usage.")]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Args, Clone)]
pub struct StoreArg {
    /// Directory of the store [default: /var/lib/imgfs for root, else $XDG_DATA_HOME/imgfs]
    #[arg(long = "store", value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl StoreArg {
    /// Whether the user has said which store is meant.
    pub fn is_given(&self) -> bool {
        self.dir.is_some()
    }

    /// The directory that was given, or the default one of this user. It need not be there.
    ///
    /// # Errors
    ///
    /// `Invalid` if `--store` is not given and neither `XDG_DATA_HOME` nor `HOME` says where it is.
    pub fn dir(&self) -> Result<PathBuf> {
        if let Some(dir) = &self.dir {
            return Ok(dir.clone());
        }
        if rustix::process::geteuid().is_root() {
            return Ok("/var/lib/imgfs".into());
        }
        let data = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from).filter(|p| p.is_absolute());
        let data =
            data.or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".local/share")));
        let missing = || Error::Invalid {
            what: "the default store".into(),
            why: "neither XDG_DATA_HOME nor HOME is set: give --store".into(),
        };
        Ok(data.ok_or_else(missing)?.join("imgfs"))
    }
}

#[derive(Args, Clone)]
pub struct MountArgs {
    #[command(flatten)]
    pub store: StoreArg,
    /// Options: view=NAME, ro, allow_other, noacl, suid, dev, noexec, noatime and their like, remount,
    /// threads=N, latency=auto|off, passthrough=auto|off, trees=auto|mounted|inline; any setting of
    /// .imgfs/config, as trash=24h, admin_group=GROUP, quota=BYTES, max_size=BYTES
    #[arg(short = 'o', value_name = "OPTIONS")]
    pub options: Vec<String>,
    #[command(flatten)]
    pub run: RunArgs,
    /// Where to mount
    #[arg(value_name = "MNT")]
    pub point: PathBuf,
}

/// Where the daemon runs: in the background, if nothing is said.
#[derive(Args, Clone)]
pub struct RunArgs {
    /// Stay in front, log to standard error
    #[arg(short = 'f', long)]
    foreground: bool,
    /// Started by imgfs itself: report on standard output, then go on in the background
    #[arg(long, hide = true)]
    background_child: bool,
}

impl RunArgs {
    /// Where the daemon is to run.
    pub fn ground(&self) -> Ground {
        match (self.foreground, self.background_child) {
            (true, _) => Ground::Front,
            (false, true) => Ground::Child,
            (false, false) => Ground::Background,
        }
    }
}

/// Where a daemon runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ground {
    /// In this process, with its log on standard error.
    Front,
    /// In this process, which was started to go on in the background.
    Child,
    /// In a process of its own.
    Background,
}

#[derive(Args, Clone)]
pub struct DaemonArgs {
    #[command(flatten)]
    pub store: StoreArg,
    /// Options: threads=N, latency=auto|off, passthrough=auto|off, trees=auto|mounted|inline for its mounts;
    /// any setting of .imgfs/config, as trash=24h
    #[arg(short = 'o', value_name = "OPTIONS")]
    pub options: Vec<String>,
    #[command(flatten)]
    pub run: RunArgs,
    /// End the daemon, and wait until it has ended; refused while something is mounted
    #[arg(long, conflicts_with_all = ["options", "foreground"])]
    pub stop: bool,
}

const DAEMON_HELP: &str = "\
The daemon has the store, does what is done in the background (it empties the trash, ends what has expired,
frees space, packs what has rested, looks for damage) and answers status, ls, gc, repack, fsck and diff. imgfs
mount gets a mount from it, and imgfs umount leaves it running. Without this command a daemon begins and ends
with its mounts. It goes on in the background, unless -f is given, and ends on --stop or SIGTERM.

Exit status: 0 it runs, or has ended; 1 refused or failed, 2 wrong usage.";

const LS_HELP: &str = "\
A FILTER is KEY=REGEX, which compares a key of metadata.json, a property, or uuid (of any version), as a whole
unless it has ^ or $; or a WORD: part of a name or an alias, an architecture, a uuid, or at least three digits
that begin a fingerprint or a sha256 of rootfs.tar or of the upload. All filters must match.

Columns: uuid name version number os release arch type published pub id status fingerprint short_fingerprint
size used_by clones immutable default public description aliases alias tags created expires uploaded project
versions latest. As lxc has them: l (shortest alias) L (all) f (12 digits) F (fingerprint) p d a t s u e.
What is a version's is that of the version that default leads to; used_by and clones count all versions.

Who may not open the store sees what a mount of it (-o allow_other) shows: --mount MNT; else that of the whole
store, or the only one there is. Without --store and without a store of your own, the mounts of all stores count.

Exit status: 0 some image matched, 1 none did or it failed, 2 wrong usage.";

#[derive(Args)]
pub struct LsArgs {
    #[command(flatten)]
    pub store: StoreArg,
    /// Read what this mount shows you, not the store
    #[arg(long, value_name = "MNT", conflicts_with = "dir")]
    pub mount: Option<PathBuf>,
    /// The documents, as JSON
    #[arg(long)]
    pub json: bool,
    /// Columns: names with commas between them, or lxc's letters
    #[arg(short = 'o', visible_short_alias = 'c', long, value_name = "COLUMNS")]
    pub columns: Option<String>,
    /// Sort by these columns, from the last on with a - before it [default: name]
    #[arg(short, long, value_name = "KEY,-KEY", allow_hyphen_values = true)]
    pub sort: Option<String>,
    /// For programs: no headings, a tab between columns, sizes in bytes
    #[arg(short = 'H', long = "no-header")]
    pub bare: bool,
    #[arg(value_name = "FILTER")]
    pub filters: Vec<String>,
}

#[derive(Subcommand)]
pub enum Command {
    /// Mount a store; returns when the mount answers
    #[command(after_help = "Exit status: 0 mounted, 1 refused or failed, 2 wrong usage.")]
    Mount(MountArgs),
    /// Unmount; a daemon that began with its mounts ends with the last, and that is waited for
    #[command(
        after_help = "Exit status: 0 unmounted, 1 refused (something is open there) or failed, 2 wrong usage."
    )]
    Umount {
        /// Detach at once, even if files are open
        #[arg(short, long)]
        lazy: bool,
        #[arg(value_name = "MNT")]
        point: PathBuf,
    },
    /// Start the daemon of a store with nothing mounted; returns when it answers
    #[command(after_help = DAEMON_HELP)]
    Daemon(DaemonArgs),
    /// Watch over a daemon; each starts one
    #[command(hide = true)]
    Guard {
        #[arg(long)]
        daemon: u32,
        #[arg(long)]
        store: PathBuf,
    },
    /// Show what a store holds and what it costs
    #[command(after_help = "Exit status: 0 shown, 1 failed, 2 wrong usage.")]
    Status {
        #[command(flatten)]
        store: StoreArg,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// List images, and find them by what they are
    #[command(after_help = LS_HELP)]
    Ls(LsArgs),
    /// Show what differs between two versions: IMAGE/NUMBER, IMAGE/@LABEL, IMAGE or an alias
    #[command(
        after_help = "A line is: added, removed or modified; bytes before and after; path. No content is read.\n\
        Exit status: 0 shown, 1 failed, 2 wrong usage."
    )]
    Diff {
        #[command(flatten)]
        store: StoreArg,
        /// As JSON
        #[arg(long)]
        json: bool,
        #[arg(value_name = "OLD")]
        old: String,
        #[arg(value_name = "NEW")]
        new: String,
    },
    /// Check every invariant of the store
    #[command(
        after_help = "Exit status: 0 nothing wrong (any more), 1 could not check, 2 wrong usage, 4 damage was found (and is left)."
    )]
    Fsck {
        #[command(flatten)]
        store: StoreArg,
        /// Put back what another copy in the store can give, and put the rest aside
        #[arg(long)]
        repair: bool,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Write what a version holds into a file, compressed as its name says
    #[command(
        after_help = "FILE ends in .tar, .qcow2, .raw, .squashfs and so on, or that and .gz, .bz2, .xz or .zst.\n\
        What came compressed so, and was kept (keep_upload), is written bit for bit.\n\
        Exit status: 0 written, 1 failed, 2 wrong usage."
    )]
    Export {
        #[command(flatten)]
        store: StoreArg,
        /// How hard to compress
        #[arg(short, long)]
        level: Option<u32>,
        /// The rootfs alone, of an LXD or OCI image
        #[arg(long)]
        rootfs: bool,
        /// IMAGE, or IMAGE/VERSION
        #[arg(value_name = "VERSION")]
        version: String,
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Give back the space that nothing needs
    #[command(after_help = "Exit status: 0 done, 1 failed, 2 wrong usage.")]
    Gc {
        #[command(flatten)]
        store: StoreArg,
        /// Empty the trash first
        #[arg(long)]
        trash: bool,
    },
    /// Make the store small: pack what is loose
    #[command(
        after_help = "All content is compressed, together and against older versions, but that of images whose storage is\n\
        fast. It can be interrupted: what is packed stays so. A daemon does the same in the background with what\n\
        has not been used for a while.\n\
        Exit status: 0 done, 1 failed, 2 wrong usage."
    )]
    Repack {
        #[command(flatten)]
        store: StoreArg,
        /// Stop the background's packing, until --resume or the daemon's end
        #[arg(long, conflicts_with = "resume")]
        pause: bool,
        /// Let the background go on
        #[arg(long)]
        resume: bool,
    },
    /// Print a completion script
    Completions { shell: clap_complete::Shell },
    /// Print a man page: 1 for the commands, 7 for what a mount shows, 8 for mounting
    Man {
        #[arg(value_name = "SECTION", default_value = "1", value_parser = section)]
        section: u8,
    },
}

/// Parses the section of a man page, if there is such a section.
fn section(text: &str) -> std::result::Result<u8, &'static str> {
    text.parse().ok().filter(|n| [1, 7, 8].contains(n)).ok_or("there are 1, 7 and 8")
}

/// The options in `-o`.
pub struct Parsed {
    pub flags: Flags,
    /// The options of mount(8) among them, in their order.
    pub words: Vec<String>,
    /// Whether to change an existing mount.
    pub remount: bool,
    pub settings: Settings,
    pub threads: usize,
    pub latency: bool,
    pub passthrough: bool,
    pub trees: TreesAs,
    /// The view to mount. `None` for the whole store.
    pub view: Option<String>,
}

/// Parses `-o`. Unknown options are refused. Options of fstab and mount(8) that mean nothing here are
/// skipped.
///
/// # Errors
///
/// `Invalid` for an unknown option, or a value that the option does not take.
pub fn parse_options(lists: &[String]) -> Result<Parsed> {
    let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    let mut parsed = Parsed {
        flags: Flags::default(),
        words: Vec::new(),
        remount: false,
        settings: Settings::default(),
        threads: cores.clamp(2, 4),
        latency: true,
        passthrough: true,
        trees: TreesAs::Auto,
        view: None,
    };
    let options = || lists.iter().flat_map(|list| list.split(',')).filter(|o| !o.is_empty());
    parsed.remount = options().any(|option| option == "remount");
    for option in options() {
        let (key, value) = option.split_once('=').map_or((option, None), |(k, v)| (k, Some(v)));
        let bad = |why: &str| Error::Invalid { what: format!("-o {option}"), why: why.into() };
        let number = || {
            value
                .and_then(|v| v.parse::<u64>().ok())
                .filter(|n| *n > 0)
                .ok_or_else(|| bad("it takes a number"))
        };
        // True for the first of two words, false for the second.
        let either = |first: &str, second: &str| match value {
            Some(v) if v == first => Ok(true),
            Some(v) if v == second => Ok(false),
            _ => Err(bad(&format!("it takes {first} or {second}"))),
        };
        match key {
            "allow_other" => parsed.flags.allow_other = true,
            "noacl" => parsed.flags.noacl = true,
            "acl" => parsed.flags.noacl = false,
            "remount" => {}
            "view" => {
                parsed.view = Some(
                    value.filter(|v| !v.is_empty()).ok_or_else(|| bad("it takes the name of a view"))?.into(),
                )
            }
            "threads" => parsed.threads = number()?.min(64) as usize,
            "latency" => parsed.latency = either("auto", "off")?,
            "passthrough" => parsed.passthrough = either("auto", "off")?,
            "trees" => {
                parsed.trees = match value {
                    Some("auto") => TreesAs::Auto,
                    Some("mounted") => TreesAs::Mounted,
                    Some("inline") => TreesAs::Inline,
                    _ => return Err(bad("it takes auto, mounted or inline")),
                }
            }
            _ if Settings::is_known(key) => {
                parsed.settings.give(key, value.unwrap_or_default()).map_err(|e| bad(&e.to_string()))?
            }
            _ if value.is_none() && parsed.flags.hear(key) => parsed.words.push(key.to_owned()),
            "defaults" | "auto" | "noauto" | "user" | "users" | "nouser" | "owner" | "group" | "nofail"
            | "_netdev" | "silent" | "loud" => {}
            // On a remount, mount(8) repeats these options of the existing mount.
            "user_id" | "group_id" | "default_permissions" | "fsname" | "subtype" if parsed.remount => {}
            _ if key.starts_with("x-") || key == "comment" => {}
            _ => return Err(bad("there is no such option")),
        }
    }
    Ok(parsed)
}

/// Whether mount(8) runs this program, by the name that it looks for: `mount -t fuse.imgfs STORE MNT`.
pub fn called_by_mount(arguments: &[OsString]) -> bool {
    called_as(arguments, &["mount.fuse.imgfs", "mount.imgfs"])
}

/// Whether umount(8) runs this program. umount(8) alone would call a mount busy if trees are mounted in
/// it.
pub fn called_by_umount(arguments: &[OsString]) -> bool {
    called_as(arguments, &["umount.fuse.imgfs", "umount.imgfs"])
}

fn called_as(arguments: &[OsString], names: &[&str]) -> bool {
    let name = arguments.first().map(Path::new).and_then(Path::file_name);
    name.is_some_and(|n| names.iter().any(|known| n == *known))
}

/// `umount.fuse.imgfs MNT [-flnrv] [-N NAMESPACE] [-t TYPE]` as a command line of imgfs.
pub fn from_umount(arguments: Vec<OsString>) -> Vec<OsString> {
    let mut ours: Vec<OsString> = vec!["imgfs".into(), "umount".into()];
    let mut rest = arguments.into_iter().skip(1);
    while let Some(argument) = rest.next() {
        match argument.to_str() {
            Some("-N" | "-t") => drop(rest.next()),
            Some(flags) if flags.starts_with('-') => {
                ours.extend(flags.contains('l').then(|| "--lazy".into()))
            }
            _ => ours.push(argument),
        }
    }
    ours
}

/// `mount.fuse.imgfs STORE MNT [-sfnv] [-o OPTIONS]` as a command line of imgfs.
pub fn from_mount(arguments: Vec<OsString>) -> Vec<OsString> {
    let mut ours: Vec<OsString> = vec!["imgfs".into(), "mount".into()];
    let mut plain: Vec<OsString> = Vec::new();
    let mut rest = arguments.into_iter().skip(1);
    while let Some(argument) = rest.next() {
        match argument.to_str() {
            Some("-o") => {
                ours.push("-o".into());
                ours.extend(rest.next());
            }
            // These mean sloppy, fake, no mtab, and verbose. imgfs ignores them.
            Some(flag) if flag.starts_with('-') => {}
            _ => plain.push(argument),
        }
    }
    let mut plain = plain.into_iter();
    if let Some(store) = plain.next().filter(|s| s != "none" && s != "imgfs") {
        ours.push("--store".into());
        ours.push(store);
    }
    ours.extend(plain);
    ours
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn options_of_mount_and_fstab_are_understood() {
        let parsed =
            parse_options(&["rw,allow_other,trash=7d".into(), "max_size=5G,x-systemd.automount".into()])
                .unwrap();
        assert!(parsed.flags.allow_other);
        assert_eq!(parsed.flags.bits(), Flags::default().bits());
        assert_eq!((parsed.settings.trash_seconds, parsed.settings.limits.tar_size), (7 * 86400, 5 << 30));
        for bad in [
            "trash=soon",
            "trash",
            "threads=0",
            "max_size=-1",
            "max_size=1X",
            "max_window=99999999999T",
            "magic",
        ] {
            assert!(parse_options(&[bad.into()]).is_err(), "{bad}");
        }
    }

    #[test]
    fn mount_calls_become_our_own() {
        let words = |list: &[&str]| list.iter().map(OsString::from).collect::<Vec<_>>();
        let called = words(&["/sbin/mount.fuse.imgfs", "/srv/store", "/mnt", "-n", "-o", "rw,allow_other"]);
        assert!(called_by_mount(&called));
        assert!(!called_by_umount(&called));
        let undone = words(&["umount.fuse.imgfs", "/mnt", "-vl"]);
        assert!(called_by_umount(&undone));
        assert_eq!(from_umount(undone), words(&["imgfs", "umount", "/mnt", "--lazy"]));
        assert_eq!(
            from_mount(called),
            words(&["imgfs", "mount", "-o", "rw,allow_other", "--store", "/srv/store", "/mnt"])
        );
    }
}
