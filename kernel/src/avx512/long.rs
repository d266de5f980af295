//! A long value: four of its own blocks in the lanes.

use core::arch::x86_64::*;

use super::ghash::{added, descending, everywhere, folded, multiplied, nothing, reduced, reversed};
use super::group::Item;
use super::key::{Key, encrypt_one, encrypted};
use super::lanes::{Unit, load_many, load_unit, store_many, store_unit};
use super::{AT_ONCE, POWERS};
use crate::TAG_LEN;

/// Bytes that are hashed between two reductions.
const STRETCH: usize = 16 * POWERS;
/// Bytes that are encrypted at once.
const ROUND: usize = 64 * AT_ONCE;

on_avx512! {
    /// Puts a value's text where it goes, sealed or opened, and makes its tag. Grows `out` as it goes.
    pub(super) fn long<const OPEN: bool>(key: &Key, nonce: __m512i, (state, aad_len): (__m128i, usize), item: &Item, bytes: &[u8], out: &mut Vec<u8>) -> __m128i {
        let (mut to, len) = (item.to as usize, item.len as usize);
        let text = &bytes[item.from as usize..][..len];
        let mut tag_key = Unit([0; 64]);
        let numbers = _mm512_maskz_set1_epi32(0x8888, 1);
        store_unit(&mut tag_key, _mm512_or_si512(nonce, reversed_numbers(numbers)));
        encrypt_one(key, &mut tag_key);
        let mut state = state;
        let mut counter = _mm512_set_epi32(5, 0, 0, 0, 4, 0, 0, 0, 3, 0, 0, 0, 2, 0, 0, 0);
        let end = to + len;
        for stretch in text.chunks(STRETCH) {
            let mut until = to + stretch.len();
            if until == end && !OPEN {
                until += TAG_LEN;
            }
            if out.len() < until {
                out.resize(until, 0);
            }
            let place = &mut out[to..to + stretch.len()];
            to += stretch.len();
            let mut left = stretch.len().div_ceil(16);
            let mut sum = nothing();
            let mut before = _mm512_zextsi128_si512(state);
            let (rounds, rest) = stretch.as_chunks::<ROUND>();
            let (places, place) = place.as_chunks_mut::<ROUND>();
            for (round, place) in rounds.iter().zip(places) {
                let blocks = stream(key, nonce, &mut counter);
                let (given, made) = (round.as_chunks::<64>().0, place.as_chunks_mut::<64>().0);
                for ((given, made), block) in given.iter().zip(made).zip(blocks) {
                    let given = load_many(given);
                    let sum_of = _mm512_xor_si512(given, block);
                    store_many(made, sum_of);
                    let cipher = reversed(if OPEN { given } else { sum_of });
                    sum = added(sum, _mm512_xor_si512(cipher, before), descending(key, left));
                    before = _mm512_setzero_si512();
                    left -= 4;
                }
            }
            if !rest.is_empty() {
                let blocks = stream(key, nonce, &mut counter);
                for ((given, made), block) in rest.chunks(64).zip(place.chunks_mut(64)).zip(blocks) {
                    let there = _bzhi_u64(u64::MAX, given.len() as u32);
                    let given = load_many(given);
                    let sum_of = _mm512_maskz_mov_epi8(there, _mm512_xor_si512(given, block));
                    store_many(made, sum_of);
                    let cipher = reversed(if OPEN { given } else { sum_of });
                    sum = added(sum, _mm512_xor_si512(cipher, before), descending(key, left));
                    before = _mm512_setzero_si512();
                    left = left.saturating_sub(4);
                }
            }
            state = _mm512_castsi512_si128(reduced(folded(sum)));
        }
        let lengths = _mm_set_epi64x(aad_len as i64 * 8, len as i64 * 8);
        let tag = multiplied(_mm_xor_si128(state, lengths), everywhere(key, 1));
        let tag = _mm512_castsi512_si128(reversed(_mm512_zextsi128_si512(tag)));
        _mm_xor_si128(tag, _mm512_castsi512_si128(load_unit(&tag_key)))
    }

    /// The next key stream.
    fn stream(key: &Key, nonce: __m512i, counter: &mut __m512i) -> [__m512i; AT_ONCE] {
        let four = _mm512_maskz_set1_epi32(0x8888, 4);
        let mut blocks = [_mm512_setzero_si512(); AT_ONCE];
        for block in &mut blocks {
            *block = _mm512_or_si512(nonce, reversed_numbers(*counter));
            *counter = _mm512_add_epi32(*counter, four);
        }
        encrypted(key, blocks)
    }

    /// The last four bytes of each block from last to first; the others are zero.
    fn reversed_numbers(x: __m512i) -> __m512i {
        let order = _mm_set_epi8(12, 13, 14, 15, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
        _mm512_shuffle_epi8(x, _mm512_broadcast_i32x4(order))
    }
}
