//! libFuzzer's loop around `targets::archive`.
#![no_main]
#[path = "../targets.rs"]
#[allow(dead_code)]
mod targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::archive(&targets::repaired(data)));
