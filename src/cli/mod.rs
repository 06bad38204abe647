//! The command line, for what files cannot express.

#[macro_use]
mod print;

mod args;
mod commands;
mod daemon;
mod export;
mod ls;
mod man;
mod mounting;
mod remount;
mod text;
mod through;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

pub use args::Cli;
use args::Command;

use crate::daemon::guard;
use crate::error::Result;

/// Runs the program on its arguments.
pub fn main(mut arguments: Vec<OsString>) -> ExitCode {
    if args::called_by_mount(&arguments) {
        arguments = args::from_mount(arguments);
    } else if args::called_by_umount(&arguments) {
        arguments = args::from_umount(arguments);
    }
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(e) => e.exit(),
    };
    match run(cli.command) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("imgfs: {e}");
            eprintln!("imgfs: {}", e.remedy());
            ExitCode::from(1)
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Mount(options) => mounting::mount(&options),
        Command::Umount { point, lazy } => mounting::umount(&point, lazy),
        Command::Daemon(options) => daemon::daemon(&options),
        Command::Guard { daemon, store } => guard::run(&store, daemon).map(|()| ExitCode::SUCCESS),
        Command::Status { store, json } => commands::status(&store, json),
        Command::Ls(args) => ls::ls(&args),
        Command::Diff { store, json, old, new } => commands::diff(&store, json, old, new),
        Command::Fsck { store, repair, json } => commands::fsck(&store, repair, json),
        Command::Export { store, level, rootfs, version, file } => {
            export::export(&store, &version, &file, level, rootfs)
        }
        Command::Gc { store, trash } => commands::gc(&store, trash),
        Command::Repack { store, pause, resume } => commands::repack(&store, pause, resume),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "imgfs", &mut script);
            print!("{}", String::from_utf8_lossy(&script));
            Ok(ExitCode::SUCCESS)
        }
        Command::Man { section } => {
            print!("{}", man::page(section)?);
            Ok(ExitCode::SUCCESS)
        }
    }
}
