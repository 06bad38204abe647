//! imgfs daemon, and what it shares with imgfs mount: running in the foreground or background, the log,
//! the first line.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use crate::base::lock::StoreLock;
use crate::base::logfile::LongFile;
use crate::base::sys;
use crate::cli::args::{DaemonArgs, Ground, Parsed, parse_options};
use crate::daemon::socket::{self, Answer, MountRequest, Request};
use crate::daemon::{self, Options};
use crate::error::{Error, Result};
use crate::format;

/// When daemon.log has this many bytes, the daemon starts a new one.
const LONG_LOG: u64 = 256 << 10;
/// How long a daemon may take to end after it was told to.
const END: Duration = Duration::from_secs(60);

/// Starts the daemon of a store with nothing mounted, or ends it. Returns once the daemon answers, or
/// has ended. In the foreground, it returns once the daemon has ended.
///
/// # Errors
///
/// `Invalid` for bad arguments, or if there is no daemon to end. `Locked` for a store that is in use.
/// `Io`; in the foreground, those of `daemon::run`. A daemon in the background reports its errors to
/// the process that started it.
pub fn daemon(arguments: &DaemonArgs) -> Result<ExitCode> {
    let store = arguments.store.dir()?;
    if arguments.stop {
        return stop(&store);
    }
    let parsed = parse_options(&arguments.options)?;
    refuse_mount_words(&parsed)?;
    match arguments.run.ground() {
        Ground::Background => {
            start_in_background("daemon", &store, &arguments.options, None).map(ExitCode::from)
        }
        ground => serve(&options(store, None, parsed), ground),
    }
}

/// Refuses options that belong to a single mount. They must be given to imgfs mount.
fn refuse_mount_words(parsed: &Parsed) -> Result<()> {
    let of_mount = parsed.view.is_some() || parsed.remount || !parsed.words.is_empty();
    if of_mount || parsed.flags.allow_other || parsed.flags.noacl {
        let why = "it is about one mount: give it to imgfs mount, which gets its mount from the daemon";
        return Err(Error::Invalid { what: "-o of the daemon".into(), why: why.into() });
    }
    Ok(())
}

/// Ends the daemon of a store, and waits until it has ended.
fn stop(store: &Path) -> Result<ExitCode> {
    let holder = || StoreLock::holder(store);
    let Some(holds) = holder() else {
        let why = format!("no daemon has {}", store.display());
        return Err(Error::Invalid { what: "--stop".into(), why });
    };
    if !holds.listens() {
        return Err(holds.refuses(store));
    }
    match socket::ask(store, &Request::Stop, |_, _| true) {
        Ok(Answer::Held) => return Err(holder().unwrap_or(holds).refuses(store)),
        Ok(Answer::Failed { why }) => return Err(Error::Invalid { what: "--stop".into(), why }),
        // If there is no answer, the daemon is ending, or was killed.
        _ => {}
    }
    let begun = Instant::now();
    while let Some(now) = holder().filter(|now| now.pid == holds.pid) {
        if begun.elapsed() > END {
            return Err(now.refuses(store));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(ExitCode::SUCCESS)
}

/// The options with which a daemon is started.
pub fn options(store: std::path::PathBuf, mount: Option<MountRequest>, parsed: Parsed) -> Options {
    Options {
        store,
        mount,
        settings: parsed.settings,
        threads: parsed.threads,
        latency: parsed.latency,
        passthrough: parsed.passthrough,
        trees: parsed.trees,
    }
}

/// Runs as the daemon, until the daemon ends.
///
/// # Errors
///
/// Those of `daemon::run`, in the foreground. In the background they are reported to the process that
/// started it.
pub fn serve(options: &Options, ground: Ground) -> Result<ExitCode> {
    if ground == Ground::Front {
        start_log(None);
        daemon::run(options, |line| println!("imgfs: {line}"))?;
        return Ok(ExitCode::SUCCESS);
    }
    // The daemon gets a session of its own, so that ^C at the terminal does not reach it.
    let _ = rustix::process::setsid();
    let report = |line: &str| {
        println!("{line}");
        let _ = std::io::stdout().flush();
        // The parent reads until this end is closed.
        if let Ok(null) = File::options().write(true).open("/dev/null") {
            let _ = rustix::stdio::dup2_stdout(&null);
        }
    };
    // A daemon that is refused must leave nothing behind, not even a log.
    let may_begin = || {
        options.mount.iter().try_for_each(|mount| daemon::prepare_point(&mount.point).map(drop))?;
        format::refuse_others(&options.store)
    };
    if let Err(e) = may_begin() {
        report(&format!("error {e}\n{}", e.remedy()));
        return Ok(ExitCode::from(1));
    }
    start_log(Some(&options.store));
    match daemon::run(options, |line| report(&format!("ok {line}"))) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(e) => {
            log::error!("{e}");
            report(&format!("error {e}\n{}", e.remedy()));
            Ok(ExitCode::from(1))
        }
    }
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

/// Starts the daemon by running one of imgfs's commands, and waits for its first line. Returns the exit
/// code.
///
/// # Errors
///
/// `Io` if it cannot be started, or its mount does not answer.
pub fn start_in_background(
    command: &str,
    store: &Path,
    options: &[String],
    point: Option<&Path>,
) -> Result<u8> {
    sys::keep_inherited_files();
    let program = std::env::current_exe().map_err(Error::io("find", Path::new("imgfs")))?;
    let absolute = |path: &Path| std::path::absolute(path).map_err(Error::io("find", path));
    let mut words: Vec<OsString> = [command, "--background-child", "--store"].map(OsString::from).into();
    words.push(absolute(store)?.into());
    options.iter().for_each(|options| words.extend(["-o".into(), options.into()]));
    if let Some(point) = point {
        words.extend(["--".into(), absolute(point)?.into()]);
    }
    let mut child = Command::new(&program)
        .args(words)
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
            if let Some(point) = point {
                // The first stat goes through the daemon, so the mount answers after this.
                std::fs::metadata(point).map_err(Error::io("stat", point))?;
            }
            println!("imgfs: {line}");
            Ok(0)
        }
        Some(("error", line)) => {
            eprintln!("imgfs: {line}");
            lines.iter().skip(1).for_each(|remedy| eprintln!("imgfs: {remedy}"));
            Ok(1)
        }
        _ => {
            let log = store.join("daemon.log");
            eprintln!("imgfs: the daemon ended before it was ready: see {}", log.display());
            Ok(1)
        }
    }
}
