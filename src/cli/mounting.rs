//! imgfs mount, imgfs umount.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::base::lock::StoreLock;
use crate::base::logfile::LongFile;
use crate::base::sys;
use crate::cli::args::{MountArgs, Parsed, parse_options};
use crate::cli::remount::remount;
use crate::cli::text::bytes;
use crate::daemon;
use crate::daemon::socket::{self, Answer, MountRequest, Request};
use crate::error::{Error, Result};
use crate::format;
use crate::fs::kernel::mount;
use crate::store::settings::TreesAs;

/// Between two looks whether a mount is still there.
const LOOK: Duration = Duration::from_millis(200);
/// Bytes of daemon.log after which it goes on in a new one.
const LONG_LOG: u64 = 256 << 10;
/// How long a daemon that does not answer may take to end.
const ENDING: Duration = Duration::from_secs(10);
/// After what time it is looked for who else has a mount that was unmounted here.
const KEPT: Duration = Duration::from_secs(2);
/// How long a daemon may take to end after its mount is gone.
const END: Duration = Duration::from_secs(60);

/// Mounts a store, by its daemon if it has one, or changes a mount. Returns once the mount answers; in front,
/// once it is gone.
///
/// # Errors
///
/// `Invalid` for what was given, or a refusal of the daemon that has the store. `NotMounted` for a remount of
/// nothing. `Locked`, `Io`; in front, those of `daemon::run`. A daemon in the background reports its own to
/// who started it.
pub fn mount(arguments: &MountArgs) -> Result<ExitCode> {
    let parsed = parse_options(&arguments.options)?;
    if parsed.remount {
        remount(&arguments.point, &parsed)?;
        return Ok(ExitCode::SUCCESS);
    }
    let store = arguments.store.dir()?;
    if !arguments.background_child && StoreLock::holder(&store).is_some() {
        // Before the mount is there: whoever sees it may end this.
        let signals = if arguments.foreground { Some(ending_signals()?) } else { None };
        if let Some(line) = mount_beside(&store, &arguments.point, &parsed)? {
            println!("imgfs: {line}");
            signals.map_or(Ok(()), |signals| stay(&arguments.point, signals))?;
            return Ok(ExitCode::SUCCESS);
        }
    }
    if !arguments.foreground && !arguments.background_child {
        return start_in_background(arguments, &store);
    }
    let options = daemon::Options {
        store,
        mount: MountRequest {
            point: arguments.point.clone(),
            view: parsed.view,
            flags: parsed.flags,
            own_word: false,
        },
        settings: parsed.settings,
        threads: parsed.threads,
        latency: parsed.latency,
        passthrough: parsed.passthrough,
        trees: parsed.trees,
    };
    if arguments.foreground {
        start_log(None);
        daemon::run(&options, |line| println!("imgfs: {line}"))?;
        return Ok(ExitCode::SUCCESS);
    }
    // A session of its own: a ^C at the terminal is not meant for it.
    let _ = rustix::process::setsid();
    let report = |line: &str| {
        println!("{line}");
        let _ = std::io::stdout().flush();
        // The parent waits for the end of this.
        if let Ok(null) = File::options().write(true).open("/dev/null") {
            let _ = rustix::stdio::dup2_stdout(&null);
        }
    };
    // A mount that is refused leaves nothing, no log either.
    let may_begin =
        || daemon::prepare_point(&options.mount.point).and_then(|_| format::refuse_others(&options.store));
    if let Err(e) = may_begin() {
        report(&format!("error {e}\n{}", e.remedy()));
        return Ok(ExitCode::from(1));
    }
    start_log(Some(&options.store));
    match daemon::run(&options, |line| report(&format!("ok {line}"))) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(e) => {
            log::error!("{e}");
            report(&format!("error {e}\n{}", e.remedy()));
            Ok(ExitCode::from(1))
        }
    }
}

/// One more mount by the daemon that holds the store; gives its line. None: it has the whole store mounted
/// already, or does not answer, as who tries to hold the store will be told.
fn mount_beside(store: &Path, point: &Path, parsed: &Parsed) -> Result<Option<String>> {
    let point = std::path::absolute(point).map_err(Error::io("find", point))?;
    let own_word = parsed.settings.given().next().is_some() || parsed.trees == TreesAs::Mounted;
    let request = MountRequest {
        point: point.clone(),
        view: parsed.view.clone(),
        flags: parsed.flags.clone(),
        own_word,
    };
    match socket::ask(store, &Request::Mount(request), |_, _| true) {
        Ok(Answer::Document { document }) => {
            // Answers now: the first stat goes through the daemon. It may be of a user who lets nobody else
            // in.
            let _ = std::fs::metadata(&point);
            Ok(Some(document.as_str().unwrap_or_default().to_owned()))
        }
        Ok(Answer::Failed { why }) => {
            Err(Error::Invalid { what: format!("cannot mount on {}", point.display()), why })
        }
        Ok(Answer::Held) => Ok(None),
        _ => {
            // It is ending, or was killed: then the store is free soon.
            let begun = Instant::now();
            loop {
                match StoreLock::holder(store) {
                    None => return Ok(None),
                    // Its disk may be long in answering. Whoever tries to hold the store meanwhile waits for
                    // the disk, too.
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

/// Stays until a mount that another process serves is gone; a signal ends it.
fn stay(point: &Path, mut signals: Signals) -> Result<()> {
    while let Some(mounted) = mount::mounted_on(point) {
        if signals.pending().next().is_some() && mount::unmount(&mounted.point, false).is_err() {
            mount::unmount(&mounted.point, true)?;
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// Logs to a file in the store, or to standard error.
fn start_log(store: Option<&Path>) {
    let mut builder = env_logger::Builder::new();
    builder.filter_level(log::LevelFilter::Info).parse_env("IMGFS_LOG");
    builder.format(|out, record| {
        writeln!(
            out,
            "{} {} {}",
            crate::base::clock::time_text(crate::base::clock::now()),
            record.level().as_str().to_lowercase(),
            record.args()
        )
    });
    let file = store.and_then(|dir| {
        crate::format::make_dir(dir).ok()?;
        LongFile::open(dir.join("daemon.log"), LONG_LOG, 1).ok()
    });
    if let Some(file) = file {
        builder.target(env_logger::Target::Pipe(Box::new(file)));
    }
    builder.init();
}

/// Starts the daemon and waits for its first line.
fn start_in_background(arguments: &MountArgs, store: &Path) -> Result<ExitCode> {
    sys::keep_inherited_files();
    let program = std::env::current_exe().map_err(Error::io("find", Path::new("imgfs")))?;
    let absolute = |path: &Path| std::path::absolute(path).map_err(Error::io("find", path));
    let mut command = Command::new(&program);
    command.args(["mount", "--background-child", "--store"]).arg(absolute(store)?);
    for options in &arguments.options {
        command.args(["-o", options]);
    }
    command.arg("--").arg(absolute(&arguments.point)?);
    let mut child = command
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(Error::io("start", &program))?;
    let stdout = child.stdout.take().expect("it was piped");
    let lines: Vec<String> = BufReader::new(stdout).lines().map_while(std::result::Result::ok).collect();
    match lines.first().and_then(|line| line.split_once(' ')) {
        Some(("ok", line)) => {
            // Answers now: the first stat goes through the daemon.
            std::fs::metadata(&arguments.point).map_err(Error::io("stat", &arguments.point))?;
            println!("imgfs: {line}");
            Ok(ExitCode::SUCCESS)
        }
        Some(("error", line)) => {
            eprintln!("imgfs: {line}");
            lines.iter().skip(1).for_each(|remedy| eprintln!("imgfs: {remedy}"));
            Ok(ExitCode::from(1))
        }
        _ => {
            eprintln!(
                "imgfs: the daemon ended before it was ready: see {}",
                store.join("daemon.log").display()
            );
            Ok(ExitCode::from(1))
        }
    }
}

/// Unmounts, and waits until the daemon has ended, for a minute at most.
///
/// # Errors
///
/// `NotMounted`; `Io`, `Invalid` if it cannot be unmounted. One that is in use is no error, but exit code 1.
pub fn umount(point: &Path, lazy: bool) -> Result<ExitCode> {
    let mounted = mount::mounted_on(point).ok_or_else(|| Error::NotMounted { point: point.to_owned() })?;
    let dead = mount::is_dead(&mounted);
    let staged = if dead { Vec::new() } else { staged_in(&mounted.source) };
    match mount::unmount(&mounted.point, lazy || dead) {
        // Somebody else was first.
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
    // Whoever mounts or copies the store next shall find it free.
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

/// What is staged in a store that is mounted: until when it is kept, and its path and size. Nothing if its
/// daemon does not answer.
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
