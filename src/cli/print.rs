//! `imgfs ls | head`: output that nobody reads is dropped.
//!
//! Rust ignores SIGPIPE, and the standard macros panic when a reader has gone. These macros have the
//! same names, so that no command can forget to use them. A reader that has gone does not want a
//! message. The command still does its work, and its exit status says how that went,
//! also under `set -o pipefail`.

macro_rules! print {
    ($($text:tt)*) => {{
        let _ = std::io::Write::write_fmt(&mut std::io::stdout(), format_args!($($text)*));
    }};
}

macro_rules! println {
    ($format:literal $($text:tt)*) => { print!("{}\n", format_args!($format $($text)*)) };
}

macro_rules! eprintln {
    ($format:literal $($text:tt)*) => {{
        let _ = std::io::Write::write_fmt(
            &mut std::io::stderr(),
            format_args!("{}\n", format_args!($format $($text)*)),
        );
    }};
}
