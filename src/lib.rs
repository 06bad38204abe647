//! imgfs: a system-image store that is a filesystem.

pub mod blob;
pub mod catalog;
pub mod describe;
pub mod digest;
pub mod error;
pub mod export;
pub mod format;
pub mod fs;
pub mod fsck;
pub mod gc;
pub mod ingest;
pub mod journal;
pub mod manifest;
pub mod name;
pub mod remote;
pub mod status;
pub mod store;
pub mod sys;
pub mod tar;
pub mod tree;
pub mod versions;
