//! Lanes and memory: four blocks in a register, out of slices and into them. All that is `unsafe` here is in this file and in the
//! two calls that lead into code for AVX-512.
#![allow(unsafe_code)] // intrinsics that read and write memory, each behind a function that checks its bounds

use core::arch::x86_64::*;

use zeroize::Zeroize;

/// Four blocks.
#[derive(Clone, Copy, Zeroize)]
#[repr(C, align(64))]
pub(super) struct Unit(pub(super) [u8; 64]);

on_avx512! {
    pub(super) fn lanes(a: __m128i, b: __m128i, c: __m128i, d: __m128i) -> __m512i {
        let low = _mm512_inserti32x4::<1>(_mm512_zextsi128_si512(a), b);
        _mm512_inserti32x4::<3>(_mm512_inserti32x4::<2>(low, c), d)
    }

    pub(super) fn parts(x: __m512i) -> [__m128i; 4] {
        [
            _mm512_castsi512_si128(x),
            _mm512_extracti32x4_epi32::<1>(x),
            _mm512_extracti32x4_epi32::<2>(x),
            _mm512_extracti32x4_epi32::<3>(x),
        ]
    }

    pub(super) fn words(x: __m128i) -> [u64; 2] {
        [_mm_extract_epi64::<0>(x) as u64, _mm_extract_epi64::<1>(x) as u64]
    }

    pub(super) fn load(bytes: &[u8; 16]) -> __m128i {
        // SAFETY: 16 bytes are there.
        unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
    }

    /// At most 16 bytes, and zeros.
    pub(super) fn load_some(bytes: &[u8]) -> __m128i {
        let there = _bzhi_u32(0xffff, bytes.len().min(16) as u32) as u16;
        // SAFETY: only bytes of the slice are read.
        unsafe { _mm_maskz_loadu_epi8(there, bytes.as_ptr().cast()) }
    }

    /// At most 64 bytes, and zeros.
    pub(super) fn load_many(bytes: &[u8]) -> __m512i {
        let there = _bzhi_u64(u64::MAX, bytes.len().min(64) as u32);
        // SAFETY: only bytes of the slice are read.
        unsafe { _mm512_maskz_loadu_epi8(there, bytes.as_ptr().cast()) }
    }

    pub(super) fn store_many(bytes: &mut [u8], x: __m512i) {
        let there = _bzhi_u64(u64::MAX, bytes.len().min(64) as u32);
        // SAFETY: only bytes of the slice are written.
        unsafe { _mm512_mask_storeu_epi8(bytes.as_mut_ptr().cast(), there, x) }
    }

    pub(super) fn store(out: &mut [u8], at: usize, x: __m128i) {
        let place = &mut out[at..at + 16];
        // SAFETY: the place has 16 bytes.
        unsafe { _mm_storeu_si128(place.as_mut_ptr().cast(), x) }
    }

    pub(super) fn store_lanes(out: &mut [u8], to: &[u32; 4], at: usize, x: __m512i) {
        let parts = parts(x);
        for lane in 0..4 {
            store(out, to[lane] as usize + at, parts[lane]);
        }
    }

    pub(super) fn load_unit(unit: &Unit) -> __m512i {
        // SAFETY: a unit has 64 bytes, and begins at a multiple of 64.
        unsafe { _mm512_load_si512(unit.0.as_ptr().cast()) }
    }

    pub(super) fn store_unit(unit: &mut Unit, x: __m512i) {
        // SAFETY: a unit has 64 bytes, and begins at a multiple of 64.
        unsafe { _mm512_store_si512(unit.0.as_mut_ptr().cast(), x) }
    }

    pub(super) fn load_words(words: &[[u64; 2]; 4]) -> __m512i {
        // SAFETY: 64 bytes are there.
        unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
    }
}
