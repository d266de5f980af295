//! Numbers: a generator that never changes, and card numbers.

/// SplitMix64 (Steele, Lea, Flood 2014). Written out because sample records must stay the same for ever, which
/// library generators do not promise. Never for keys.
pub(crate) struct SplitMix64(u64);

impl SplitMix64 {
    /// The generator of record `n` of `seed`.
    pub(crate) fn for_record(seed: u64, n: u64) -> Self {
        let mut mixed = Self(seed);
        let start = mixed.next() ^ n.wrapping_mul(0xd134_2543_de82_ef95);
        Self(start)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, which is not 0; the bias does not matter for samples.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// A number from `first` to `last`, both included.
    pub(crate) fn between(&mut self, first: u64, last: u64) -> u64 {
        first + self.below(last - first + 1)
    }

    pub(crate) fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).unwrap_or(0)
    }

    pub(crate) fn pick<'a>(&mut self, words: &[&'a str]) -> &'a str {
        words[self.index(words.len())]
    }
}

/// A card number of `digits` digits that starts with `prefix` and passes the Luhn check.
pub(crate) fn card(prefix: &str, digits: usize, rng: &mut SplitMix64) -> String {
    let mut number = prefix.to_owned();
    while number.len() < digits - 1 {
        number.push(char::from(b'0' + u8::try_from(rng.below(10)).unwrap_or(0)));
    }
    let check = ('0'..='9').find(|check| luhn(&format!("{number}{check}")));
    // One of ten check digits always fits.
    number.push(check.unwrap_or('0'));
    number
}

/// The check of ISO/IEC 7812-1.
pub(crate) fn luhn(number: &str) -> bool {
    let sum: u32 = number
        .bytes()
        .rev()
        .enumerate()
        .map(|(n, digit)| {
            let digit = u32::from(digit - b'0');
            let doubled = if n % 2 == 1 { digit * 2 } else { digit };
            doubled / 10 + doubled % 10
        })
        .sum();
    sum.is_multiple_of(10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn luhn_knows_a_test_card_and_its_misspelling() {
        assert!(luhn("4111111111111111"));
        assert!(!luhn("4111111111111112"));
    }
}
