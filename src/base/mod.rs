//! Code that knows no store: names, times, digests, locks, system calls.

pub mod acl;
pub mod clock;
pub mod delta;
pub mod digest;
pub mod document;
pub mod expected;
pub mod flags;
pub mod journal;
pub mod json;
pub mod lock;
pub mod logfile;
pub mod name;
pub mod process;
pub mod sys;
pub mod writable;
