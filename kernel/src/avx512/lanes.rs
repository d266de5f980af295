//! Lanes and memory: four blocks in a register, out of slices and into them. All that is `unsafe` here is in this file and in the
//! two calls that lead into code for AVX-512.
#![allow(unsafe_code)] // intrinsics that read and write memory, each behind a function that checks its bounds

use core::arch::x86_64::*;

use zeroize::Zeroize;

use super::group::Item;

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

    /// The 16 bytes from there on; zeros for those that are not there.
    pub(super) fn load_at(bytes: &[u8], at: usize) -> __m128i {
        match bytes.get(at..).and_then(|rest| rest.first_chunk()) {
            Some(block) => load(block),
            None => load_some(bytes.get(at..).unwrap_or_default()),
        }
    }

    pub(super) fn load_four(bytes: &[u8], at: [usize; 4]) -> __m512i {
        lanes(load_at(bytes, at[0]), load_at(bytes, at[1]), load_at(bytes, at[2]), load_at(bytes, at[3]))
    }

    /// Which bytes of block j of each lane are there, of as many as the lane's first 16 bits say.
    pub(super) fn there(lens: __m512i, j: usize) -> u64 {
        let left = _mm512_subs_epu16(lens, _mm512_set1_epi16(16 * j as i16));
        let left = _mm512_min_epu16(left, _mm512_set1_epi16(16));
        let count = _mm_set_epi8(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
        _mm512_cmplt_epu8_mask(_mm512_broadcast_i32x4(count), _mm512_shuffle_epi8(left, _mm512_setzero_si512()))
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

    /// At most 16 bytes.
    pub(super) fn store_some(bytes: &mut [u8], x: __m128i) {
        let there = _bzhi_u32(0xffff, bytes.len().min(16) as u32) as u16;
        // SAFETY: only bytes of the slice are written.
        unsafe { _mm_mask_storeu_epi8(bytes.as_mut_ptr().cast(), there, x) }
    }

    pub(super) fn load_item(item: &Item) -> __m128i {
        // SAFETY: an item has 16 bytes, all of numbers, and begins at a multiple of 16.
        unsafe { _mm_load_si128(core::ptr::from_ref(item).cast()) }
    }

    /// Asks for these bytes, which are read soon, but not in their order.
    pub(super) fn prefetch(bytes: &[u8]) {
        for line in bytes.chunks(64) {
            // SAFETY: reads nothing.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) }
        }
    }

    /// 16 offsets.
    pub(super) fn load_offsets(offsets: &[i32]) -> __m512i {
        let offsets = &offsets[..16];
        // SAFETY: 16 numbers are there.
        unsafe { _mm512_loadu_epi32(offsets.as_ptr()) }
    }

    /// 16 items, given number by number.
    pub(super) fn store_items(items: &mut [Item], number: __m512i, from: __m512i, len: __m512i, to: __m512i) {
        // Item 4i + k is in lane k of register i.
        let order = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
        let apart = |x: __m512i| _mm512_permutexvar_epi32(order, x);
        let (number, from, len, to) = (apart(number), apart(from), apart(len), apart(to));
        let (a, b) = (_mm512_unpacklo_epi32(number, from), _mm512_unpackhi_epi32(number, from));
        let (c, d) = (_mm512_unpacklo_epi32(len, to), _mm512_unpackhi_epi32(len, to));
        let fours = [
            _mm512_unpacklo_epi64(a, c),
            _mm512_unpackhi_epi64(a, c),
            _mm512_unpacklo_epi64(b, d),
            _mm512_unpackhi_epi64(b, d),
        ];
        for (items, four) in items.as_chunks_mut::<4>().0.iter_mut().zip(fours) {
            // SAFETY: four items have 64 bytes, all of numbers.
            unsafe { _mm512_storeu_si512(items.as_mut_ptr().cast(), four) }
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

    pub(super) fn load_sizes(sizes: &[u64; 4]) -> __m256i {
        // SAFETY: 32 bytes are there.
        unsafe { _mm256_loadu_si256(sizes.as_ptr().cast()) }
    }

    pub(super) fn load_words(words: &[[u64; 2]; 4]) -> __m512i {
        // SAFETY: 64 bytes are there.
        unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
    }
}
