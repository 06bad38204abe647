//! The kinds of image that can be copied in, apart from a plain tarball.

pub mod lxd;
pub mod oci;
pub mod payload;
pub mod qcow2;
pub mod squashfs;
