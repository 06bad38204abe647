//! imgfs: a system-image store that is a filesystem.

pub mod blob;
pub mod digest;
pub mod error;
pub mod format;
pub mod name;
pub mod sys;
pub mod tar;
pub mod tree;
