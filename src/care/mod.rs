//! Work that goes on by itself: frees space, packs and checks content, deletes what is due.

pub mod fsck;
pub mod gc;
pub mod repack;
pub mod retention;
pub mod scrub;
