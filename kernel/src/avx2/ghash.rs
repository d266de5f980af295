//! GHASH (NIST SP 800-38D, section 6.4) of the blocks of one value, as POLYVAL of reversed bytes (RFC 8452, appendix A), whose
//! reduction needs no shifts by one bit (S. Gueron, "A New Interpretation for the GHASH Authenticator of AES-GCM"). Blocks
//! are reversed before they come here.

use core::arch::x86_64::*;

use super::POWERS;
use super::key::Key;
use super::lanes::{Block, load};

/// Products that are not reduced yet.
#[derive(Clone, Copy)]
pub(super) struct Sum {
    pub(super) low: __m128i,
    pub(super) middle: __m128i,
    pub(super) high: __m128i,
}

on_avx2! {
    /// GHASH of these blocks from a state on.
    pub(super) fn absorbed(key: &Key, state: __m128i, blocks: &[Block]) -> __m128i {
        let mut state = state;
        for blocks in blocks.chunks(POWERS) {
            state = reduced(products(key, state, blocks, 0));
        }
        state
    }

    /// GHASH of these blocks from a state on, times H^after, which is not H^0 if there are no blocks. Not reduced.
    pub(super) fn hashed(key: &Key, state: __m128i, blocks: &[Block], after: usize) -> Sum {
        match blocks.len() + after > POWERS {
            true => products(key, absorbed(key, state, blocks), &[], after),
            false => products(key, state, blocks, after),
        }
    }

    /// The same of no more blocks than there are powers for.
    fn products(key: &Key, state: __m128i, blocks: &[Block], after: usize) -> Sum {
        let (powers, halves) = powers_from(key, blocks.len() + after);
        let (mut sum, mut before) = (nothing(), state);
        for (block, (power, halves)) in blocks.iter().zip(powers.iter().zip(halves)) {
            sum = added(sum, _mm_xor_si128(reversed(load(block)), before), load(power), load(halves));
            before = _mm_setzero_si128();
        }
        match blocks.is_empty() {
            true => added(sum, state, load(&powers[0]), load(&halves[0])),
            false => sum,
        }
    }

    /// x · y
    pub(super) fn multiplied(x: __m128i, y: __m128i) -> __m128i {
        reduced(added(nothing(), x, y, halves(y)))
    }

    /// H as POLYVAL wants it: x · H (RFC 8452, appendix A).
    pub(super) fn doubled(h: __m128i) -> __m128i {
        let (low, high) = (_mm_extract_epi64::<0>(h) as u64, _mm_extract_epi64::<1>(h) as u64);
        let (value, carry) = (u128::from(high) << 64 | u128::from(low), u128::from(high >> 63));
        let value = value << 1 ^ carry ^ carry << 127 ^ carry << 126 ^ carry << 121;
        _mm_set_epi64x((value >> 64) as i64, value as i64)
    }

    /// H^n
    pub(super) fn power(key: &Key, n: usize) -> __m128i {
        load(&key.powers[POWERS - n])
    }

    /// H^n and all below, and their halves.
    pub(super) fn powers_from(key: &Key, n: usize) -> (&[Block], &[Block]) {
        (&key.powers[POWERS - n..], &key.halves[POWERS - n..])
    }

    /// Both halves added, twice.
    pub(super) fn halves(x: __m128i) -> __m128i {
        _mm_xor_si128(x, _mm_shuffle_epi32::<0x4e>(x))
    }

    /// The sum, and x · h: lower, upper and, of the halves, middle product (A. Karatsuba). A fourth multiplication is what GHASH
    /// would wait for.
    pub(super) fn added(sum: Sum, x: __m128i, h: __m128i, halves_of_h: __m128i) -> Sum {
        Sum {
            low: _mm_xor_si128(sum.low, _mm_clmulepi64_si128::<0x00>(x, h)),
            middle: _mm_xor_si128(sum.middle, _mm_clmulepi64_si128::<0x00>(halves(x), halves_of_h)),
            high: _mm_xor_si128(sum.high, _mm_clmulepi64_si128::<0x11>(x, h)),
        }
    }

    pub(super) fn nothing() -> Sum {
        let zero = _mm_setzero_si128();
        Sum { low: zero, middle: zero, high: zero }
    }

    /// Modulo x^128 + x^127 + x^126 + x^121 + 1, times x^-128: the lower 64 bits are made zero twice, and left away.
    pub(super) fn reduced(sum: Sum) -> __m128i {
        let modulus = _mm_set1_epi64x(0xc200_0000_0000_0000_u64 as i64);
        let middle = _mm_xor_si128(sum.middle, _mm_xor_si128(sum.low, sum.high));
        let low = _mm_xor_si128(sum.low, _mm_bslli_si128::<8>(middle));
        let high = _mm_xor_si128(sum.high, _mm_bsrli_si128::<8>(middle));
        let low = _mm_xor_si128(_mm_shuffle_epi32::<0x4e>(low), _mm_clmulepi64_si128::<0x00>(low, modulus));
        let low = _mm_xor_si128(_mm_shuffle_epi32::<0x4e>(low), _mm_clmulepi64_si128::<0x00>(low, modulus));
        _mm_xor_si128(low, high)
    }

    /// The bytes from last to first.
    pub(super) fn reversed(x: __m128i) -> __m128i {
        _mm_shuffle_epi8(x, backwards())
    }

    /// The order that reverses.
    pub(super) fn backwards() -> __m128i {
        _mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
    }
}
