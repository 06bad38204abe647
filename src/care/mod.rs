//! What goes on by itself: space comes back, content is packed and checked, what is due is deleted.

pub mod fsck;
pub mod gc;
pub mod repack;
pub mod retention;
pub mod scrub;
