//! Registers and memory: the intrinsics that read or write it, each behind a function whose types bound it.
#![allow(unsafe_code)] // see above

use core::arch::x86_64::*;

use crate::BLOCK;

/// Every line of the cache that the text is in, but perhaps its last.
pub(crate) fn prefetch(text: &[u8]) {
    for at in (0..text.len()).step_by(BLOCK) {
        let line = text.as_ptr().wrapping_add(at);
        // SAFETY: every x86-64 processor has SSE, and a prefetch reads nothing and faults never.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) }
    }
}

on_avx512! {
    pub(super) fn load(bytes: &[u8; BLOCK]) -> __m512i {
        // SAFETY: 64 bytes are there.
        unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
    }

    /// At most 64 bytes, and spaces.
    pub(super) fn load_some(bytes: &[u8]) -> __m512i {
        let there = _bzhi_u64(u64::MAX, bytes.len().min(BLOCK) as u32);
        // SAFETY: only bytes of the slice are read.
        unsafe { _mm512_mask_loadu_epi8(_mm512_set1_epi8(b' ' as i8), there, bytes.as_ptr().cast()) }
    }

    /// Those words, and zeros.
    pub(super) fn load_words(words: &[u64; 8], lanes: u8) -> __m512i {
        // SAFETY: 64 bytes are there.
        unsafe { _mm512_maskz_loadu_epi64(lanes, words.as_ptr().cast()) }
    }

    pub(super) fn store(bytes: &mut [u8; BLOCK], x: __m512i) {
        // SAFETY: 64 bytes are there.
        unsafe { _mm512_storeu_si512(bytes.as_mut_ptr().cast(), x) }
    }

    /// The first 16 bytes.
    pub(super) fn store_quarter(bytes: &mut [u8; BLOCK], x: __m512i) {
        // SAFETY: 16 bytes are there.
        unsafe { _mm_storeu_si128(bytes.as_mut_ptr().cast(), _mm512_castsi512_si128(x)) }
    }

    pub(super) fn store_words(words: &mut [u64; 8], x: __m512i) {
        // SAFETY: 64 bytes are there.
        unsafe { _mm512_storeu_si512(words.as_mut_ptr().cast(), x) }
    }

    pub(super) fn store_positions(positions: &mut [u32; 16], x: __m512i) {
        // SAFETY: 64 bytes are there.
        unsafe { _mm512_storeu_si512(positions.as_mut_ptr().cast(), x) }
    }
}

on_avx2! {
    pub(super) fn load_halves(bytes: &[u8; BLOCK]) -> [__m256i; 2] {
        let (low, high) = bytes.split_at(BLOCK / 2);
        // SAFETY: 32 bytes are in each half.
        unsafe { [_mm256_loadu_si256(low.as_ptr().cast()), _mm256_loadu_si256(high.as_ptr().cast())] }
    }
}
