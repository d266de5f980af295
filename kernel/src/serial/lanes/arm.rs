//! Lanes of 64-bit Arm: Neon, with AES and PMULL of the Cryptographic Extension.
#![allow(unsafe_code)] // intrinsics that read and write memory, each behind a function that is given as much

use core::arch::aarch64::*;
use core::ops::Range;

pub(in crate::serial) use core::arch::aarch64::{
    uint8x16_t as Lane, vandq_u8 as and, vbslq_u8 as select, veorq_u8 as exclusive_or, vorrq_u8 as or,
    vqtbl1q_u8 as shuffle,
};

use super::Block;

/// The keys of those rounds that are `round`, which adds its key at its beginning.
pub(in crate::serial) const ROUNDS: Range<usize> = 0..13;

with_aes! { inline,
    pub(in crate::serial) fn load(bytes: &Block) -> Lane {
        // SAFETY: 16 bytes are there.
        unsafe { vld1q_u8(bytes.as_ptr()) }
    }

    pub(in crate::serial) fn store(bytes: &mut Block, x: Lane) {
        // SAFETY: 16 bytes are there.
        unsafe { vst1q_u8(bytes.as_mut_ptr(), x) }
    }

    // ---- AES

    /// What is done before the rounds, with the first key: nothing.
    pub(in crate::serial) fn start(x: Lane, _: Lane) -> Lane {
        x
    }

    pub(in crate::serial) fn round(x: Lane, key: Lane) -> Lane {
        vaesmcq_u8(vaeseq_u8(x, key))
    }

    /// The last round, with the last two keys.
    pub(in crate::serial) fn last_round(x: Lane, last_but_one: Lane, last: Lane) -> Lane {
        exclusive_or(vaeseq_u8(x, last_but_one), last)
    }

    /// SubWord (FIPS 197, section 5.2). ShiftRows changes nothing where all columns are the same.
    pub(in crate::serial) fn sub_word(word: u32) -> u32 {
        let substituted = vaeseq_u8(vreinterpretq_u8_u32(vdupq_n_u32(word)), zero());
        vgetq_lane_u32::<0>(vreinterpretq_u32_u8(substituted))
    }

    // ---- Carry-less multiplication

    /// The product of the lower halves.
    pub(in crate::serial) fn multiply_low(x: Lane, y: Lane) -> Lane {
        let (x, y) = (vreinterpretq_u64_u8(x), vreinterpretq_u64_u8(y));
        vreinterpretq_u8_p128(vmull_p64(vgetq_lane_u64::<0>(x), vgetq_lane_u64::<0>(y)))
    }

    /// The product of the upper halves.
    pub(in crate::serial) fn multiply_high(x: Lane, y: Lane) -> Lane {
        vreinterpretq_u8_p128(vmull_high_p64(vreinterpretq_p64_u8(x), vreinterpretq_p64_u8(y)))
    }

    // ---- Halves, words and bits

    pub(in crate::serial) fn zero() -> Lane {
        vdupq_n_u8(0)
    }

    /// The sums of the words.
    pub(in crate::serial) fn add(x: Lane, y: Lane) -> Lane {
        vreinterpretq_u8_u32(vaddq_u32(vreinterpretq_u32_u8(x), vreinterpretq_u32_u8(y)))
    }

    /// Lower and upper half, each in the other's place.
    pub(in crate::serial) fn swap(x: Lane) -> Lane {
        vextq_u8::<8>(x, x)
    }

    /// The lower half in the upper's place, and zeros.
    pub(in crate::serial) fn raise(x: Lane) -> Lane {
        vextq_u8::<8>(zero(), x)
    }

    /// The upper half in the lower's place, and zeros.
    pub(in crate::serial) fn lower(x: Lane) -> Lane {
        vextq_u8::<8>(x, zero())
    }

    /// With that for its word N.
    pub(in crate::serial) fn with_word<const N: i32>(x: Lane, word: u32) -> Lane {
        vreinterpretq_u8_u32(vsetq_lane_u32::<N>(word, vreinterpretq_u32_u8(x)))
    }

    pub(in crate::serial) fn is_zero(x: Lane) -> bool {
        vmaxvq_u32(vreinterpretq_u32_u8(x)) == 0
    }

    pub(in crate::serial) fn from_number(x: u128) -> Lane {
        vreinterpretq_u8_p128(x)
    }

    pub(in crate::serial) fn to_number(x: Lane) -> u128 {
        vreinterpretq_p128_u8(x)
    }
}
