//! imgfs: a system-image store that is a filesystem.
//!
//! # The four journeys
//!
//! 1. cp in: `fs/upload/` takes the bytes (`fs/staging.rs` several files). `ingest/` compares them with the
//!    newest version (`same.rs`) or unpacks them (`unpack.rs`, `formats/tar/`, `tree/build/`,
//!    `blob/writer.rs`), and publishes a version (`publish.rs`, `catalog/`). Later `care/repack.rs` moves its
//!    content into packs (`blob/repack.rs`).
//! 2. ls and cat: `fs/browse.rs` answers from the catalog's model and from mapped trees (`tree/file.rs`).
//!    Content comes checked from `blob/read.rs`, and out of packs through `blob/pack.rs`. The kernel reads
//!    large files that were checked before by itself (`fs/kernel/passthrough.rs`), and mounted trees without
//!    a message (`fs/kernel/attach.rs`). `rootfs.tar` is made from the recipe (`images/export.rs`,
//!    `tree/recipe.rs`).
//! 3. ln -sfn: `fs/links.rs` keeps GNU ln's temporary link; its rename is `images/links.rs`, `set_default` or
//!    `pin`.
//! 4. rmdir: `fs/change.rs`, then `images/versions.rs` moves the image or version into the trash.
//!    `images/trash.rs` and `care/gc.rs` give the space back. `fs/ghost.rs` is for rm -r.
//!
//! When a disk is bad, a read that fails notes it (`blob/damage.rs`), `care/scrub.rs` and `care/fsck.rs` look
//! for more, and the next copy in heals it (`blob/writer.rs`, `images/heal.rs`). A sync that fails ends all
//! writing (`base/writable.rs`).
//!
//! # The folders, from the ground up
//!
//! | folder | what is in it |
//! |---|---|
//! | (none) | `error`: every failure, its errno and its remedy. `format`: the store on the disk. `fault`: where tests end the process |
//! | `base` | what knows no store: names, times, digests, locks, the log; `sys` has the only unsafe code |
//! | `tree` | one file a version: its names, owners, modes, and the recipe of its tar |
//! | `formats` | readers and writers of tar, IMGAPI manifests, metadata.json |
//! | `blob` | content, kept once |
//! | `catalog` | names and facts, in SQLite and in memory; `lens.rs` shows a view and changes nothing else |
//! | `store` | blobs, catalog and trees together; settings |
//! | `images` | what can be done to images: one gesture, one function, one transaction |
//! | `ingest` | an upload becomes a version; `kinds/` has the kinds of image |
//! | `care` | what goes on by itself: gc, repack, scrub, fsck, retention |
//! | `fs` | the mount: requests from the kernel, answered from the store; `kernel/` speaks with it |
//! | `daemon` | the process behind a mount; commands that come beside it |
//! | `cli` | the command line |
//!
//! No folder uses one below it in this table, and no files use one another in a circle: tests/layers.rs holds
//! that.

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
