//! The tests of real mounts with real tools, one file a subject. They are one program: linking each alone took
//! longer than most of them run. `cargo test --test mounts gestures::` runs those of one file.

mod common;

mod aliases;
mod archives;
mod config;
mod daemon;
mod damage;
mod expiry;
mod export;
mod fidelity;
mod formats;
mod gestures;
mod history;
mod holder;
mod images;
mod judges_disk;
mod kept;
mod lens;
mod limits;
mod listing;
mod lxd;
mod manifests;
mod odd;
mod pipes;
mod promise;
mod queries;
mod remedies;
mod repack;
mod rescue;
mod roles;
mod rules;
mod semantics;
mod staging;
mod states;
mod traces;
mod trees;
mod users;
mod views;
