//! imgfs mount, imgfs umount.

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::Value;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::base::lock::StoreLock;
use crate::cli::args::{Ground, MountArgs, Parsed, parse_options};
use crate::cli::daemon::{options, serve, start_in_background};
use crate::cli::remount::remount;
use crate::cli::text::bytes;
use crate::daemon::socket::{self, Answer, MountRequest, Request};
use crate::error::{Error, Result};
use crate::fs::kernel::mount;

/// Time between two checks whether a mount is still there.
const LOOK: Duration = Duration::from_millis(200);
/// How long a daemon that does not answer may take to end.
const ENDING: Duration = Duration::from_secs(10);
/// After this time, umount looks for other namespaces that still have the mount.
const KEPT: Duration = Duration::from_secs(2);
/// How long a daemon may take to end after its mount is gone.
const END: Duration = Duration::from_secs(60);

/// Mounts a store, through its daemon if it has one, or changes a mount. Returns once the mount
/// answers. In the foreground, it returns once the mount is gone.
///
/// # Errors
///
/// `Invalid` for bad arguments, or if the daemon of the store refuses. `NotMounted` for a remount of
/// nothing. `Locked`, `Io`; in the foreground, those of `daemon::run`. A daemon in the background
/// reports its errors to the process that started it.
pub fn mount(arguments: &MountArgs) -> Result<ExitCode> {
    let parsed = parse_options(&arguments.options)?;
    if parsed.remount {
        remount(&arguments.point, &parsed)?;
        return Ok(ExitCode::SUCCESS);
    }
    let store = arguments.store.dir()?;
    let ground = arguments.run.ground();
    if ground != Ground::Child && StoreLock::holder(&store).is_some() {
        // The signals are set up before the mount exists, because whoever sees the mount may end this
        // process.
        let signals = if ground == Ground::Front { Some(ending_signals()?) } else { None };
        if let Some(line) = mount_beside(&store, &arguments.point, &parsed)? {
            println!("imgfs: {line}");
            signals.map_or(Ok(()), |signals| stay(&arguments.point, signals))?;
            return Ok(ExitCode::SUCCESS);
        }
    }
    if ground == Ground::Background {
        let point = Some(&*arguments.point);
        return start_in_background("mount", &store, &arguments.options, point).map(ExitCode::from);
    }
    let request = request(&arguments.point, &parsed);
    serve(&options(store, Some(request), parsed), ground)
}

/// The request of `imgfs mount` to a daemon.
fn request(point: &Path, parsed: &Parsed) -> MountRequest {
    MountRequest {
        point: point.to_owned(),
        view: parsed.view.clone(),
        flags: parsed.flags.clone(),
        own_word: parsed.settings.given().next().is_some(),
        trees: parsed.trees,
    }
}

/// Makes one more mount through the daemon that holds the store. Returns its line. `None` if the daemon
/// has the whole store mounted already, or does not answer. Trying to hold the store then gives the
/// error.
fn mount_beside(store: &Path, point: &Path, parsed: &Parsed) -> Result<Option<String>> {
    let point = std::path::absolute(point).map_err(Error::io("find", point))?;
    let request = Request::Mount(request(&point, parsed));
    match socket::ask(store, &request, |_, _| true) {
        Ok(Answer::Document { document }) => {
            // The first stat goes through the daemon, so the mount answers after this. It may fail for a
            // mount of another user that lets nobody else in.
            let _ = std::fs::metadata(&point);
            Ok(Some(document.as_str().unwrap_or_default().to_owned()))
        }
        Ok(Answer::Failed { why }) => {
            Err(Error::Invalid { what: format!("cannot mount on {}", point.display()), why })
        }
        Ok(Answer::Held) => Ok(None),
        _ => {
            // The daemon is ending, or was killed, so the store will be free soon.
            let begun = Instant::now();
            loop {
                match StoreLock::holder(store) {
                    None => return Ok(None),
                    // The daemon may wait long for its disk. Anybody who tries to hold the store meanwhile
                    // waits for the disk too.
                    Some(holder) if holder.dying.is_some() && begun.elapsed() > END => {
                        return Err(holder.refuses(store));
                    }
                    Some(holder) if holder.dying.is_none() && begun.elapsed() > ENDING => return Ok(None),
                    Some(_) => std::thread::sleep(Duration::from_millis(10)),
                }
            }
        }
    }
}

fn ending_signals() -> Result<Signals> {
    Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(Error::io("watch", Path::new("signals")))
}

/// Waits until a mount that another process serves is gone. A signal unmounts it.
fn stay(point: &Path, mut signals: Signals) -> Result<()> {
    while let Some(mounted) = mount::mounted_on(point) {
        if signals.pending().next().is_some() && mount::unmount(&mounted.point, false).is_err() {
            mount::unmount(&mounted.point, true)?;
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// Unmounts. If the daemon ends with its mounts, waits until it has ended, for at most a minute.
///
/// # Errors
///
/// `NotMounted`; `Io`, `Invalid` if it cannot be unmounted. A mount in use is not an error, but gives
/// exit code 1.
pub fn umount(point: &Path, lazy: bool) -> Result<ExitCode> {
    let mounted = mount::mounted_on(point).ok_or_else(|| Error::NotMounted { point: point.to_owned() })?;
    let dead = mount::is_dead(&mounted);
    let staged = if dead { Vec::new() } else { staged_in(&mounted.source) };
    match mount::unmount(&mounted.point, lazy || dead) {
        // Somebody else has unmounted it first.
        Err(_)
            if dead && mount::mounted_on(&mounted.point).is_none_or(|now| now.device != mounted.device) => {}
        Err(Error::Io { source, .. }) if source.raw_os_error() == Some(libc::EBUSY) => {
            let point = mounted.point.display();
            eprintln!(
                "imgfs: {point} is in use: somebody works there or has a file open (fuser -vm {point})"
            );
            eprintln!("imgfs: end that, or detach it with imgfs umount --lazy {point}");
            return Ok(ExitCode::from(1));
        }
        other => other?,
    }
    for what in staged {
        eprintln!("imgfs: still staged, and kept until {what}");
    }
    if dead || lazy {
        if let Some(holder) = StoreLock::holder(&mounted.source).filter(|holder| holder.dying.is_some()) {
            eprintln!("imgfs: unmounted; the store is still used by {holder}");
        }
        return Ok(ExitCode::SUCCESS);
    }
    // The next command that mounts or copies the store must find it free.
    let begun = Instant::now();
    let daemon =
        || StoreLock::holder(&mounted.source).filter(|holder| Path::new(&holder.mounted) == mounted.point);
    while let Some(mut holder) = daemon() {
        let why = if holder.dying.is_none() && begun.elapsed() > KEPT { holder.namespace() } else { None };
        if why.is_some() || begun.elapsed() > END {
            holder.elsewhere = why;
            eprintln!("imgfs: unmounted; the store is still used by {holder}");
            return Ok(ExitCode::from(1));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(ExitCode::SUCCESS)
}

/// What is staged in a mounted store: until when it is kept, its path and size. Empty if the daemon
/// does not answer.
fn staged_in(store: &Path) -> Vec<String> {
    let Ok(Answer::Document { document }) = socket::ask(store, &Request::Staged, |_, _| true) else {
        return Vec::new();
    };
    let all = document.as_array().cloned().unwrap_or_default();
    let text = |entry: &Value, key: &str| entry[key].as_str().unwrap_or_default().to_owned();
    let day = |entry: &Value| text(entry, "goes_at").chars().take(10).collect::<String>();
    all.iter()
        .map(|entry| {
            format!(
                "{}: {} ({})",
                day(entry),
                text(entry, "path"),
                bytes(entry["bytes"].as_u64().unwrap_or(0))
            )
        })
        .collect()
}
