//! Readers and writers of formats that others have defined, and of imgfs's metadata.json. None of them
//! uses a store.

pub mod compress;
pub mod imgapi;
pub mod metadata;
pub mod tar;
