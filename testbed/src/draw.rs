//! Reproducible draws: the same seed, the same faults.

/// Steele, Lea, Flood: Fast splittable pseudorandom number generators (2014). Reproducible, not secret.
#[derive(Clone, Debug)]
pub struct Draw(u64);

impl Draw {
    /// The draws of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    #[expect(
        clippy::should_implement_trait,
        reason = "draws never end, which an iterator's user would have to handle"
    )]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, 0 if that is 0. (Slightly uneven, which does not matter here.)
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next().checked_rem(bound).unwrap_or(0)
    }
}
