//! The imgfs program; see lib.rs for the code map.

fn main() -> std::process::ExitCode {
    imgfs::fault::arm();
    imgfs::cli::main(std::env::args_os().collect())
}
