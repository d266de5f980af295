//! Registers and memory: blocks out of slices and into them. All that is `unsafe` here is in this file and in the calls that
//! lead into code for AVX2 and VAES.
#![allow(unsafe_code)] // intrinsics that read and write memory, each behind a function that checks its bounds

use core::arch::x86_64::*;

use zeroize::Zeroize;

use super::BLOCKS;

/// A block.
pub(super) type Block = [u8; 16];

/// Counter blocks, and then the key stream.
#[derive(Zeroize)]
#[repr(C, align(64))]
pub(super) struct Stream(pub(super) [Block; BLOCKS]);

/// As many bytes of ones as of zeros: from byte 16 - n on there are n ones.
static ONES: [u8; 32] = {
    let mut ones = [0; 32];
    let mut n = 0;
    while n < 16 {
        ones[n] = 0xff;
        n += 1;
    }
    ones
};

on_avx2! {
    pub(super) fn load(bytes: &Block) -> __m128i {
        // SAFETY: 16 bytes are there.
        unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
    }

    pub(super) fn load_two(bytes: &[u8; 32]) -> __m256i {
        // SAFETY: 32 bytes are there.
        unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
    }

    /// The first `len` bytes of these, at most 16, and zeros. What comes after them is read with them if it can be: it
    /// saves going byte by byte.
    pub(super) fn load_some(bytes: &[u8], len: usize) -> __m128i {
        if let Some(block) = bytes.first_chunk() {
            return _mm_and_si128(load(block), ones(len));
        }
        let mut whole = 0;
        for byte in bytes.iter().take(len).rev() {
            whole = whole << 8 | u128::from(*byte);
        }
        _mm_set_epi64x((whole >> 64) as i64, whole as i64)
    }

    /// Ones in the first `len` bytes.
    pub(super) fn ones(len: usize) -> __m128i {
        load(ONES[16 - len.min(16)..].first_chunk().unwrap_or(&[0; 16]))
    }

    pub(super) fn store(bytes: &mut Block, x: __m128i) {
        // SAFETY: 16 bytes are there.
        unsafe { _mm_storeu_si128(bytes.as_mut_ptr().cast(), x) }
    }

    pub(super) fn store_two(bytes: &mut [u8; 32], x: __m256i) {
        // SAFETY: 32 bytes are there.
        unsafe { _mm256_storeu_si256(bytes.as_mut_ptr().cast(), x) }
    }

    pub(super) fn load_at(bytes: &[u8], at: usize) -> __m128i {
        load(bytes[at..].first_chunk().unwrap_or(&[0; 16]))
    }

    /// Stores the first `len` bytes, at most 16. What comes after them is written as it was if it can be: it saves going
    /// byte by byte.
    pub(super) fn store_some(out: &mut [u8], x: __m128i, len: usize) {
        if let Some(block) = out.first_chunk_mut() {
            let x = _mm_blendv_epi8(load(block), x, ones(len));
            return store(block, x);
        }
        let (low, high) = (_mm_cvtsi128_si64(x) as u64, _mm_extract_epi64::<1>(x) as u64);
        let whole = u128::from(high) << 64 | u128::from(low);
        for (n, byte) in out.iter_mut().take(len).enumerate() {
            *byte = (whole >> (8 * n)) as u8;
        }
    }

    pub(super) fn store_at(out: &mut [u8], at: usize, x: __m128i) {
        let place = &mut out[at..at + 16];
        // SAFETY: the place has 16 bytes.
        unsafe { _mm_storeu_si128(place.as_mut_ptr().cast(), x) }
    }
}
