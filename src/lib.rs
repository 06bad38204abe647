//! imgfs: a system-image store that is a filesystem.
#![doc = include_str!("../docs/ARCHITECTURE.md")]

pub mod base;
pub mod blob;
pub mod care;
pub mod catalog;
pub mod cli;
pub mod daemon;
pub mod error;
pub mod fault;
pub mod format;
pub mod formats;
pub mod fs;
pub mod images;
pub mod ingest;
pub mod store;
pub mod tree;
