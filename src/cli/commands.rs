//! imgfs status, diff, fsck, gc, repack: on a store, mounted or not.

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::base::lock::StoreLock;
use crate::care::fsck::Repaired;
use crate::cli::args::StoreArg;
use crate::cli::text::bytes;
use crate::daemon::socket::{self, Answer, Request};
use crate::error::{Error, Result};
use crate::format;
use crate::images::diff::{self, Difference};
use crate::store::Store;
use crate::store::settings::Settings;

/// How long a daemon may take to start or to end.
const ENDING: Duration = Duration::from_secs(2);

/// Carries out a request, through the daemon that holds the store, or in this process.
pub(super) fn perform(store: &StoreArg, request: Request, what: &'static str) -> Result<Answer> {
    let dir = store.dir()?;
    let mended = matches!(request, Request::Fsck { repair: true }) && format::mend(&dir)?;
    if mended {
        eprintln!("imgfs: the format file is there again");
    }
    let bar = progress_bar(what);
    let progress = |done: u64, total: u64| {
        bar.set_length(total);
        bar.set_position(done);
        true
    };
    let looks_only = matches!(request, Request::Status | Request::List);
    // The store may be held by a starting mount or another command, which do not answer requests, or by a
    // killed daemon.
    let answer = loop {
        match StoreLock::holder(&dir) {
            None => {
                format::check(&dir)?;
                break socket::perform(&*open(&dir)?, request, progress)?;
            }
            Some(holder) if !holder.listens() => {
                if soon(|| StoreLock::holder(&dir).is_none_or(|now| now.listens())) {
                    continue;
                }
                return Err(holder.refuses(&dir));
            }
            Some(_) => {}
        }
        match socket::ask(&dir, &request, progress) {
            // The daemon ended before it answered. A quick request is then carried out here. A long one is
            // not, because whoever ended the daemon wanted to end that too.
            Err(Error::Io { .. } | Error::Stopping) if soon(|| StoreLock::holder(&dir).is_none()) => {
                if !looks_only {
                    return Err(Error::Ended { store: dir });
                }
            }
            answer => break answer?,
        }
    };
    bar.finish_and_clear();
    match answer {
        Answer::Failed { why } => Err(Error::Invalid { what: what.into(), why }),
        answer => Ok(answer),
    }
}

/// Waits a moment for something that should happen soon. False if it does not happen.
fn soon(is: impl Fn() -> bool) -> bool {
    (0..100).any(|_| {
        std::thread::sleep(ENDING / 100);
        is()
    })
}

fn open(dir: &Path) -> Result<std::sync::Arc<Store>> {
    Store::open(dir, Settings::default())
}

pub fn progress_bar(what: &'static str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{msg} {bar:40} {bytes}/{total_bytes} {eta}")
        .expect("a constant template");
    ProgressBar::no_length().with_message(what).with_style(style)
}

pub(super) fn unexpected() -> Error {
    Error::Invalid { what: "the daemon's answer".into(), why: "it answers another question".into() }
}

/// Prints what a store holds and what that costs, as lines or as JSON.
///
/// # Errors
///
/// `Invalid` if no store is found, or the daemon refuses, or its answer makes no sense. `Locked`, `Stopping`,
/// `Io`. Where nobody holds the store, those of `Store::open` and `socket::perform`.
pub fn status(store: &StoreArg, json: bool) -> Result<ExitCode> {
    let Answer::Document { document } = perform(store, Request::Status, "status")? else {
        return Err(unexpected());
    };
    if json {
        println!("{document:#}");
        return Ok(ExitCode::SUCCESS);
    }
    let number = |key: &str| document[key].as_u64().unwrap_or(0);
    println!("store       {}", document["store"].as_str().unwrap_or("?"));
    match StoreLock::holder(&store.dir()?) {
        Some(holder) if holder.mounted.is_empty() => {
            println!("daemon      process {}, nothing is mounted", holder.pid);
        }
        Some(holder) => println!("mounted     {} (process {})", holder.mounted, holder.pid),
        None => {}
    }
    println!(
        "images      {} with {} versions, {} in the trash",
        number("images"),
        number("versions"),
        number("versions_in_trash")
    );
    println!("tarballs    {}", bytes(number("tar_bytes")));
    println!("unique      {}", bytes(number("unique_bytes")));
    println!("on disk     {} ({}x less)", bytes(number("stored_bytes")), document["dedup_ratio"]);
    println!("trash       {}", bytes(number("trash_bytes")));
    if document["health"] != "ok" {
        println!(
            "damaged     {} blobs, {} trees: see imgfs fsck",
            number("damaged_blobs"),
            number("damaged_trees")
        );
    }
    if let Some(why) = document["read_only"].as_str() {
        println!("read-only   {why}");
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints what differs between two versions, as lines or as JSON.
///
/// # Errors
///
/// Those of `status`; `Ended` if the daemon ends before it answers.
pub fn diff(store: &StoreArg, json: bool, old: String, new: String) -> Result<ExitCode> {
    let Answer::Document { document } = perform(store, Request::Diff { old, new }, "diff")? else {
        return Err(unexpected());
    };
    if json {
        println!("{document:#}");
    } else {
        let found: Vec<Difference> = serde_json::from_value(document).map_err(|_| unexpected())?;
        print!("{}", diff::text(&found));
    }
    Ok(ExitCode::SUCCESS)
}

/// Checks the store, and repairs it if asked. Prints what was done and what is wrong. The exit code is
/// 4 if damage is left.
///
/// # Errors
///
/// Those of `status`; `Ended` if the daemon ends before it answers.
pub fn fsck(store: &StoreArg, repair: bool, json: bool) -> Result<ExitCode> {
    let Answer::Checked(Repaired { done, left: findings }) =
        perform(store, Request::Fsck { repair }, "fsck")?
    else {
        return Err(unexpected());
    };
    if json {
        println!("{:#}", serde_json::to_value(&findings).expect("plain structs"));
        done.iter().for_each(|line| eprintln!("{line}"));
    } else {
        done.iter().for_each(|line| println!("{line}"));
        for finding in &findings {
            println!("invariant {}: {}", finding.invariant, finding.what);
        }
        println!(
            "{}",
            if findings.is_empty() { "clean".into() } else { format!("{} problems", findings.len()) }
        );
    }
    Ok(if findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(4) })
}

/// Frees space that nothing needs. With `trash`, empties the trash first.
///
/// # Errors
///
/// Those of `status`; `Ended` if the daemon ends before it answers.
pub fn gc(store: &StoreArg, trash: bool) -> Result<ExitCode> {
    let Answer::Swept { purged, blobs, bytes: freed } = perform(store, Request::Gc { trash }, "gc")? else {
        return Err(unexpected());
    };
    println!("removed {blobs} blobs, {}; {purged} entries of the trash are gone", bytes(freed));
    Ok(ExitCode::SUCCESS)
}

/// Packs what is loose, or stops the background packing, or lets it go on.
///
/// # Errors
///
/// Those of `status`; `Ended` if the daemon ends before it answers. `Invalid` for a pause or its end if the
/// store has no daemon.
pub fn repack(store: &StoreArg, pause: bool, resume: bool) -> Result<ExitCode> {
    if pause || resume {
        if StoreLock::holder(&store.dir()?).is_none() {
            let why = "the store has no daemon: nothing runs in the background".into();
            return Err(Error::Invalid { what: "--pause or --resume".into(), why });
        }
        let Answer::Done = perform(store, Request::Pause { pause }, "repack")? else {
            return Err(unexpected());
        };
        return Ok(ExitCode::SUCCESS);
    }
    let Answer::Repacked { before, after, blobs, bytes: moved } = perform(store, Request::Repack, "repack")?
    else {
        return Err(unexpected());
    };
    println!("moved {blobs} blobs, {}; on disk {}, before {}", bytes(moved), bytes(after), bytes(before));
    Ok(ExitCode::SUCCESS)
}
