//! A small generator of pseudo-random numbers: the same seed gives the same numbers for ever, so a seed repeats a failure.

/// splitmix64: every seed is good, and the whole state is one word.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// A generator for this seed.
    pub fn new(seed: u64) -> Self {
        Rng(seed)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// A number below `bound`; 0 for a bound of 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.bits() % bound }
    }

    /// An index below `len`.
    pub fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// True in `percent` of 100 cases.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// One of these; they must not be empty.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.index(items.len())]
    }

    /// A generator of its own, that does not disturb this one later.
    pub fn fork(&mut self) -> Rng {
        Rng::new(self.bits())
    }
}

/// Bytes that depend on `fill` and their place only, so that every extent has content of its own.
pub fn content(fill: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut rng = Rng::new(fill);
    for chunk in bytes.chunks_mut(8) {
        let word = rng.bits().to_le_bytes();
        chunk.copy_from_slice(&word[..chunk.len()]);
    }
    bytes
}
