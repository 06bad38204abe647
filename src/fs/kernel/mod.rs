//! The kernel's side of a mount: requests and replies, mount(2), what the kernel knows.

pub mod attach;
pub mod fuse;
mod held;
pub mod hidden;
pub mod latency;
pub mod mount;
mod passthrough;
mod sent_back;
