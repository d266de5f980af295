//! GHASH (NIST SP 800-38D, section 6.4) of the blocks of one value, as POLYVAL of reversed bytes (RFC 8452, appendix A), whose
//! reduction needs no shifts by one bit (S. Gueron, "A New Interpretation for the GHASH Authenticator of AES-GCM"). Blocks
//! are reversed before they come here.

use super::POWERS;
use super::key::Key;
use super::lanes::{
    Block, Lane, exclusive_or, from_number, load, lower, multiply_high, multiply_low, raise, shuffle, swap, to_number,
    zero,
};

/// Products that are not reduced yet.
#[derive(Clone, Copy)]
pub(super) struct Sum {
    pub(super) low: Lane,
    pub(super) middle: Lane,
    pub(super) high: Lane,
}

with_aes! { inline,
    /// GHASH of these blocks from a state on.
    pub(super) fn absorbed(key: &Key, state: Lane, blocks: &[Block]) -> Lane {
        let mut state = state;
        for blocks in blocks.chunks(POWERS) {
            state = reduced(products(key, state, blocks, 0));
        }
        state
    }

    /// GHASH of these blocks from a state on, times H^after, which is not H^0 if there are no blocks. Not reduced.
    pub(super) fn hashed(key: &Key, state: Lane, blocks: &[Block], after: usize) -> Sum {
        match blocks.len() + after > POWERS {
            true => products(key, absorbed(key, state, blocks), &[], after),
            false => products(key, state, blocks, after),
        }
    }

    /// The same of no more blocks than there are powers for.
    fn products(key: &Key, state: Lane, blocks: &[Block], after: usize) -> Sum {
        let (powers, halves) = powers_from(key, blocks.len() + after);
        let (mut sum, mut before) = (nothing(), state);
        for (block, (power, halves)) in blocks.iter().zip(powers.iter().zip(halves)) {
            sum = added(sum, exclusive_or(reversed(load(block)), before), load(power), load(halves));
            before = zero();
        }
        match blocks.is_empty() {
            true => added(sum, state, load(&powers[0]), load(&halves[0])),
            false => sum,
        }
    }

    /// x · y
    pub(super) fn multiplied(x: Lane, y: Lane) -> Lane {
        reduced(added(nothing(), x, y, halves(y)))
    }

    /// H as POLYVAL wants it: x · H (RFC 8452, appendix A).
    pub(super) fn doubled(h: Lane) -> Lane {
        let h = to_number(h);
        let carry = h >> 127;
        from_number(h << 1 ^ carry ^ carry << 127 ^ carry << 126 ^ carry << 121)
    }

    /// H^n
    pub(super) fn power(key: &Key, n: usize) -> Lane {
        load(&key.powers[POWERS - n])
    }

    /// H^n and all below, and their halves.
    pub(super) fn powers_from(key: &Key, n: usize) -> (&[Block], &[Block]) {
        (&key.powers[POWERS - n..], &key.halves[POWERS - n..])
    }

    /// Both halves added, twice.
    pub(super) fn halves(x: Lane) -> Lane {
        exclusive_or(x, swap(x))
    }

    /// The sum, and x · h: lower, upper and, of the halves, middle product (A. Karatsuba). A fourth multiplication is what GHASH
    /// would wait for.
    pub(super) fn added(sum: Sum, x: Lane, h: Lane, halves_of_h: Lane) -> Sum {
        Sum {
            low: exclusive_or(sum.low, multiply_low(x, h)),
            middle: exclusive_or(sum.middle, multiply_low(halves(x), halves_of_h)),
            high: exclusive_or(sum.high, multiply_high(x, h)),
        }
    }

    /// The sum, and what is reduced already: `reduced` adds the upper products to the result, and to the middle ones first.
    pub(super) fn with_reduced(sum: Sum, x: Lane) -> Sum {
        Sum { low: sum.low, middle: exclusive_or(sum.middle, x), high: exclusive_or(sum.high, x) }
    }

    pub(super) fn nothing() -> Sum {
        let zero = zero();
        Sum { low: zero, middle: zero, high: zero }
    }

    /// Modulo x^128 + x^127 + x^126 + x^121 + 1, times x^-128: the lower 64 bits are made zero twice, and left away.
    pub(super) fn reduced(sum: Sum) -> Lane {
        let modulus = from_number(0xc200_0000_0000_0000);
        let middle = exclusive_or(sum.middle, exclusive_or(sum.low, sum.high));
        let low = exclusive_or(sum.low, raise(middle));
        let high = exclusive_or(sum.high, lower(middle));
        let low = exclusive_or(swap(low), multiply_low(low, modulus));
        let low = exclusive_or(swap(low), multiply_low(low, modulus));
        exclusive_or(low, high)
    }

    /// The bytes from last to first.
    pub(super) fn reversed(x: Lane) -> Lane {
        shuffle(x, backwards())
    }

    /// The order that reverses.
    pub(super) fn backwards() -> Lane {
        load(&[15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0])
    }
}
