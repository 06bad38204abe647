//! A small generator with a printed seed (SplitMix64).

#![allow(dead_code, reason = "each program of tests uses a part of this")]

pub struct Random(u64);

impl Random {
    /// `IMGFS_SEED` makes a run again.
    pub fn seeded(usual: u64) -> Random {
        let seed = std::env::var("IMGFS_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(usual);
        println!("IMGFS_SEED={seed}");
        Random(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }
}
