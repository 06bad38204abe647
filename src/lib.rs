//! imgfs: a system-image store that is a filesystem.

pub mod blob;
pub mod catalog;
pub mod digest;
pub mod error;
pub mod format;
pub mod journal;
pub mod manifest;
pub mod name;
pub mod store;
pub mod sys;
pub mod tar;
pub mod tree;
