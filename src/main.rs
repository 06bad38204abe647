//! The imgfs program; see lib.rs for the code map.

fn main() {}
