//! Readers and writers of formats that others have defined, and of our metadata.json. None of them touches a
//! store.

pub mod compress;
pub mod imgapi;
pub mod metadata;
pub mod tar;
