//! Lanes of x86: AES-NI, PCLMULQDQ, and what AVX has for registers of 128 bits.
#![allow(unsafe_code)] // intrinsics that read and write memory, each behind a function that is given as much

use core::arch::x86_64::*;
use core::ops::Range;

pub(in crate::serial) use core::arch::x86_64::{
    __m128i as Lane, _mm_add_epi32 as add, _mm_aesenc_si128 as round, _mm_and_si128 as and, _mm_or_si128 as or,
    _mm_setzero_si128 as zero, _mm_shuffle_epi8 as shuffle, _mm_xor_si128 as exclusive_or,
};

use super::Block;

/// The keys of those rounds that are `round`, which adds its key at its end: the first was added before.
pub(in crate::serial) const ROUNDS: Range<usize> = 1..14;

with_aes! { inline,
    pub(in crate::serial) fn load(bytes: &Block) -> Lane {
        // SAFETY: 16 bytes are there.
        unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
    }

    pub(in crate::serial) fn load_two(bytes: &[u8; 32]) -> __m256i {
        // SAFETY: 32 bytes are there.
        unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
    }

    pub(in crate::serial) fn store(bytes: &mut Block, x: Lane) {
        // SAFETY: 16 bytes are there.
        unsafe { _mm_storeu_si128(bytes.as_mut_ptr().cast(), x) }
    }

    pub(in crate::serial) fn store_two(bytes: &mut [u8; 32], x: __m256i) {
        // SAFETY: 32 bytes are there.
        unsafe { _mm256_storeu_si256(bytes.as_mut_ptr().cast(), x) }
    }

    // ---- AES

    /// What is done before the rounds, with the first key.
    pub(in crate::serial) fn start(x: Lane, first: Lane) -> Lane {
        exclusive_or(x, first)
    }

    /// The last round, with the last two keys.
    pub(in crate::serial) fn last_round(x: Lane, _: Lane, last: Lane) -> Lane {
        _mm_aesenclast_si128(x, last)
    }

    /// SubWord (FIPS 197, section 5.2). ShiftRows changes nothing where all columns are the same.
    pub(in crate::serial) fn sub_word(word: u32) -> u32 {
        let substituted = _mm_aesenclast_si128(_mm_set1_epi32(word as i32), zero());
        _mm_cvtsi128_si32(substituted) as u32
    }

    // ---- Carry-less multiplication

    /// The product of the lower halves.
    pub(in crate::serial) fn multiply_low(x: Lane, y: Lane) -> Lane {
        _mm_clmulepi64_si128::<0x00>(x, y)
    }

    /// The product of the upper halves.
    pub(in crate::serial) fn multiply_high(x: Lane, y: Lane) -> Lane {
        _mm_clmulepi64_si128::<0x11>(x, y)
    }

    // ---- Halves, words and bits

    /// Lower and upper half, each in the other's place.
    pub(in crate::serial) fn swap(x: Lane) -> Lane {
        _mm_shuffle_epi32::<0x4e>(x)
    }

    /// The lower half in the upper's place, and zeros.
    pub(in crate::serial) fn raise(x: Lane) -> Lane {
        _mm_bslli_si128::<8>(x)
    }

    /// The upper half in the lower's place, and zeros.
    pub(in crate::serial) fn lower(x: Lane) -> Lane {
        _mm_bsrli_si128::<8>(x)
    }

    /// With that for its word N.
    pub(in crate::serial) fn with_word<const N: i32>(x: Lane, word: u32) -> Lane {
        _mm_insert_epi32::<N>(x, word as i32)
    }

    /// The bits of `x` where the mask has ones, those of `y` where it has zeros. All bits of a byte of the mask are the same.
    pub(in crate::serial) fn select(mask: Lane, x: Lane, y: Lane) -> Lane {
        _mm_blendv_epi8(y, x, mask)
    }

    pub(in crate::serial) fn is_zero(x: Lane) -> bool {
        _mm_test_all_zeros(x, x) == 1
    }

    pub(in crate::serial) fn from_number(x: u128) -> Lane {
        _mm_set_epi64x((x >> 64) as i64, x as i64)
    }

    pub(in crate::serial) fn to_number(x: Lane) -> u128 {
        let (low, high) = (_mm_cvtsi128_si64(x) as u64, _mm_extract_epi64::<1>(x) as u64);
        u128::from(high) << 64 | u128::from(low)
    }
}
