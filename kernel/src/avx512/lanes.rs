//! Lanes and memory: four blocks in a register, out of slices and into them. All that is `unsafe` here is in this file and in the
//! calls that lead into code for AVX-512.
#![allow(unsafe_code)] // intrinsics that read and write memory, each behind a function that checks its bounds

use core::arch::x86_64::*;

use zeroize::{Zeroize, zeroize_bytes};

use super::group::Item;
use super::key::Round;

/// Four blocks.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Unit(pub(super) [u8; 64]);

impl Zeroize for Unit {
    fn zeroize(&mut self) {
        // Not byte by byte, as arrays are.
        zeroize_bytes(&mut self.0);
    }
}

/// Asks for lines of memory that are read soon, from there on.
#[inline]
pub(super) fn prefetch(bytes: &[u8], at: usize, lines: usize) {
    for n in 0..lines {
        let line = bytes.as_ptr().wrapping_add(at + 64 * n);
        // SAFETY: nothing is read, wherever it is, and every processor of this architecture has the instruction.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) }
    }
}

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

    /// The 16 bytes from there on, which are there.
    pub(super) fn load_block(bytes: &[u8], at: usize) -> __m128i {
        let place = &bytes[at..at + 16];
        // SAFETY: the place has 16 bytes.
        unsafe { _mm_loadu_si128(place.as_ptr().cast()) }
    }

    pub(super) fn load_blocks(bytes: &[u8], at: [usize; 4]) -> __m512i {
        lanes(load_block(bytes, at[0]), load_block(bytes, at[1]), load_block(bytes, at[2]), load_block(bytes, at[3]))
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

    /// At most 64 bytes, and those of `rest` in the places behind them.
    pub(super) fn load_many_over(rest: __m512i, bytes: &[u8]) -> __m512i {
        let there = _bzhi_u64(u64::MAX, bytes.len().min(64) as u32);
        // SAFETY: only bytes of the slice are read.
        unsafe { _mm512_mask_loadu_epi8(rest, there, bytes.as_ptr().cast()) }
    }

    pub(super) fn store_many(bytes: &mut [u8], x: __m512i) {
        let there = _bzhi_u64(u64::MAX, bytes.len().min(64) as u32);
        // SAFETY: only bytes of the slice are written.
        unsafe { _mm512_mask_storeu_epi8(bytes.as_mut_ptr().cast(), there, x) }
    }

    /// Writes these from `at` on, over what is there and beyond the end: what was not there becomes part of `out` when it is written.
    /// `out` has the capacity.
    pub(super) fn put(out: &mut Vec<u8>, at: usize, blocks: &Round) {
        let end = at + 64 * blocks.len();
        assert!(at <= out.len() && end <= out.capacity());
        for (n, block) in blocks.iter().enumerate() {
            // SAFETY: it ends within the capacity.
            unsafe { _mm512_storeu_si512(out.as_mut_ptr().add(at + 64 * n).cast(), *block) }
        }
        // SAFETY: the capacity is as large, and all up to `at` and from there to the end has been written.
        unsafe { out.set_len(end.max(out.len())) }
    }

    /// The same of the first `len` bytes of four blocks.
    pub(super) fn put_some(out: &mut Vec<u8>, at: usize, x: __m512i, len: usize) {
        let len = len.min(64);
        let end = at + len;
        assert!(at <= out.len() && end <= out.capacity());
        // SAFETY: only so many bytes are written, which end within the capacity.
        unsafe { _mm512_mask_storeu_epi8(out.as_mut_ptr().add(at).cast(), _bzhi_u64(u64::MAX, len as u32), x) }
        // SAFETY: the capacity is as large, and all up to `at` and from there to the end has been written.
        unsafe { out.set_len(end.max(out.len())) }
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

    /// A number in each lane, then zeros.
    pub(super) fn numbers([a, b, c, d]: [u32; 4]) -> __m512i {
        let number = |x: u32| _mm_cvtsi32_si128(x as i32);
        lanes(number(a), number(b), number(c), number(d))
    }

    pub(super) fn load_words(words: &[[u64; 2]; 4]) -> __m512i {
        // SAFETY: 64 bytes are there.
        unsafe { _mm512_loadu_si512(words.as_ptr().cast()) }
    }
}
