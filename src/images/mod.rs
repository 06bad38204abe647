//! Changes of images. Each gesture is one function and one transaction.

pub mod describe;
pub mod diff;
pub mod export;
pub mod heal;
pub mod icons;
pub mod identity;
pub mod keep;
pub mod labels;
pub mod last_use;
pub mod leases;
pub mod links;
pub mod manifests;
pub mod query;
pub mod quota;
pub mod rules;
pub mod staging;
pub mod status;
pub mod targets;
pub mod trash;
pub mod versions;
pub mod views;
