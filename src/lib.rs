//! imgfs: a system-image store that is a filesystem.
//!
//! # The four journeys
//!
//! 1. cp in: `fs/upload/` takes the bytes (`fs/staging.rs` several files), `ingest/` compares them with the newest
//!    version (`same.rs`) or unpacks them (`tar/`, `tree/build/`, `blob/writer.rs`) and publishes a version
//!    (`ingest/publish.rs`, `catalog/`). Later `repack.rs` moves its content into packs (`blob/repack.rs`).
//! 2. ls and cat: `fs/browse.rs` answers from the catalog's model and from mapped trees (`tree/file.rs`); content
//!    comes checked from `blob/read.rs`, out of packs through `blob/pack.rs`, large and checked before past imgfs
//!    (`fs/passthrough.rs`), or without a message from a mount of the tree (`fs/attach.rs`); `rootfs.tar` from the
//!    recipe (`export.rs`, `tree/recipe.rs`).
//! 3. ln -sfn: `fs/change.rs` stages GNU ln's temporary link, its rename is `links::set_default` or `pin`.
//! 4. rmdir: `fs/change.rs`, `versions::delete_version` or `delete_image` into the trash; `trash::purge` and
//!    `gc.rs` give the space back. rm -r is `fs/ghost.rs`.
//!
//! When a disk is bad: a read that fails notes it (`blob/damage.rs`), `scrub.rs` and `fsck.rs` look for more, and the
//! next copy in heals it (`blob/writer.rs`, `heal.rs`). A sync that fails ends all writing (`writable.rs`).
//!
//! # The map, from the ground up
//!
//! Leaves: `error` (every failure, its errno and remedy), `name`, `digest`, `manifest`, `imgapi`, `format`
//! (the store on disk, its invariants), `lock`, `writable`, `process` (others, as /proc shows them), `progress`, `fault` (where tests end the
//! process), `journal` (errors, jobs; `changelog`), `settings` (.imgfs/config), `acl`, `flags` (words of
//! mount(8)), `tar` (archives as streams), `tree` (one file a version), `sys` (the only unsafe code),
//! `compress` (how a stream was made), `delta` (bytes compressed against others). Then `blob` (content, once)
//! and `catalog` (names, in SQLite and in memory), which do not know each other; `store` holds both (`adopt`:
//! trees whose rows are lost). Verbs: `rules` (what gestures ask first; chattr), `last_use`, `leases`,
//! `labels`, `icons`, `manifests` (of IMGAPI), `retention`, `ingest` (`unpack.rs` says which kind of image
//! came: `lxd.rs`, `oci.rs`, `payload.rs`, `squashfs.rs`), `describe`, `diff` (web/2/changes), `query`
//! (by/os/ubuntu), `quota`, `export`, `keep`, `links` (aliases, defaults), `versions`, `views` (which images
//! a view has; `catalog/lens.rs` shows and changes no others), `trash`, `gc`, `repack`, `heal`, `scrub`,
//! `fsck`, `status`, `staging` (what waits to be published), `remote` (commands beside a mount). In `fs`,
//! which is the mount, `browse` answers ls, `upload/` takes files, `staging` directories, `edit`
//! metadata.json and icons, `links` symlinks and renames; `attach` and `hidden` mount trees, `aliases` and
//! `at_label` resolve names, `shells`, `ghost` and `moved` are for tools that do in steps what imgfs does at
//! once. `cli` is the command line. Nobody imports upward; a test holds that.

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
