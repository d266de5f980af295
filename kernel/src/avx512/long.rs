//! A long value: four of its own blocks in each register, and rounds of eight registers. While one round is encrypted,
//! another is hashed.

use core::arch::x86_64::*;
use core::hint::black_box;

use super::ghash::{added, descending, everywhere, folded, four, nothing, reduced, reversed};
use super::group::Item;
use super::key::{Key, Round, encrypted_one, ended, one_round, rounds, with_key};
use super::lanes::{load_many, put, put_some};
use super::{AT_ONCE, POWERS};

/// Bytes of a round.
const ROUND: usize = 64 * AT_ONCE;

on_avx512! {
    /// Puts a value's text where it goes, sealed or opened, and makes its tag. `out` has the room, and grows where the text
    /// goes beyond its end.
    pub(super) fn long<const OPEN: bool>(key: &Key, nonce: __m512i, (state, aad_len): (__m128i, usize), item: &Item, bytes: &[u8], out: &mut Vec<u8>) -> __m128i {
        let (to, len) = (item.to as usize, item.len as usize);
        let text = &bytes[item.from as usize..][..len];
        let tag_key = encrypted_one(key, _mm512_or_si512(nonce, reversed_numbers(_mm512_maskz_set1_epi32(0x8888, 1))));
        let mut counter = _mm512_set_epi32(5, 0, 0, 0, 4, 0, 0, 0, 3, 0, 0, 0, 2, 0, 0, 0);
        let (mut state, mut at) = (_mm512_zextsi128_si512(state), to);
        let (whole, rest) = text.as_chunks::<ROUND>();
        for text in whole {
            let mut blocks = counters(key, nonce, &mut counter);
            // While these are encrypted, other ciphertext is hashed: this one, or what was made before.
            match if OPEN { Some(text) } else { out[to..at].last_chunk() } {
                Some(cipher) => state = rounds_and_hash::<OPEN>(key, &mut blocks, cipher, state),
                None => rounds(key, &mut blocks),
            }
            put(out, at, &with_text(key, &blocks, text));
            at += ROUND;
        }
        if let Some(cipher) = out[to..at].last_chunk() && !OPEN {
            state = hash(key, cipher, state);
        }
        // What does not fill a round, and the lengths.
        let mut left = rest.len().div_ceil(16) + 1;
        let mut sum = nothing();
        if !rest.is_empty() {
            let mut blocks = counters(key, nonce, &mut counter);
            rounds(key, &mut blocks);
            for (text, block) in rest.chunks(64).zip(ended(key, &blocks)) {
                let there = _bzhi_u64(u64::MAX, text.len() as u32);
                let given = load_many(text);
                let made = _mm512_maskz_mov_epi8(there, _mm512_xor_si512(given, block));
                put_some(out, at, made, text.len());
                at += text.len();
                let cipher = reversed(if OPEN { given } else { made });
                sum = added(sum, _mm512_xor_si512(cipher, state), descending(key, left));
                state = _mm512_setzero_si512();
                left = left.saturating_sub(4);
            }
        }
        let lengths = _mm512_zextsi128_si512(_mm_set_epi64x(aad_len as i64 * 8, len as i64 * 8));
        sum = added(sum, _mm512_xor_si512(lengths, state), everywhere(key, 1));
        let tag = reversed(folded(reduced(sum)));
        _mm512_castsi512_si128(_mm512_xor_si512(tag, tag_key))
    }

    /// All rounds but the last, and GHASH of other blocks meanwhile. One for sealing and one for opening, so that each has one caller
    /// and is compiled into it.
    fn rounds_and_hash<const OPEN: bool>(key: &Key, blocks: &mut Round, cipher: &[u8; ROUND], state: __m512i) -> __m512i {
        let (mut sum, mut before) = (nothing(), state);
        let (powers, halves) = (&key.powers[POWERS - 4 * AT_ONCE..], &key.halves[POWERS - 4 * AT_ONCE..]);
        let powers = powers.as_chunks::<4>().0.as_chunks::<2>().0.iter().zip(halves.as_chunks::<4>().0.as_chunks::<2>().0);
        let ciphers = cipher.as_chunks::<64>().0.as_chunks::<2>().0.iter().zip(powers);
        // What the compiler knows nothing of stays a loop: unrolled, all AES would come behind all GHASH.
        for (keys, (cipher, (powers, halves))) in black_box(key.rounds[1..13].as_chunks::<3>().0).iter().zip(ciphers) {
            one_round(blocks, &keys[0]);
            sum = added(sum, _mm512_xor_si512(reversed(load_many(&cipher[0])), before), four(&powers[0], &halves[0]));
            before = _mm512_setzero_si512();
            one_round(blocks, &keys[1]);
            sum = added(sum, reversed(load_many(&cipher[1])), four(&powers[1], &halves[1]));
            one_round(blocks, &keys[2]);
        }
        one_round(blocks, &key.rounds[13]);
        folded(reduced(sum))
    }

    fn hash(key: &Key, cipher: &[u8; ROUND], state: __m512i) -> __m512i {
        let (mut sum, mut before, mut left) = (nothing(), state, 4 * AT_ONCE);
        for cipher in cipher.as_chunks::<64>().0 {
            sum = added(sum, _mm512_xor_si512(reversed(load_many(cipher)), before), descending(key, left));
            before = _mm512_setzero_si512();
            left -= 4;
        }
        folded(reduced(sum))
    }

    /// The last round, and the sum with a text.
    fn with_text(key: &Key, blocks: &Round, text: &[u8; ROUND]) -> Round {
        let mut made = ended(key, blocks);
        for (made, text) in made.iter_mut().zip(text.as_chunks::<64>().0) {
            *made = _mm512_xor_si512(*made, load_many(text));
        }
        made
    }

    /// The next counter blocks, with the first round key.
    fn counters(key: &Key, nonce: __m512i, counter: &mut __m512i) -> Round {
        let four = _mm512_maskz_set1_epi32(0x8888, 4);
        let nonce = with_key(nonce, key, 0);
        let mut blocks = [nonce; AT_ONCE];
        for block in &mut blocks {
            *block = _mm512_xor_si512(*block, reversed_numbers(*counter));
            *counter = _mm512_add_epi32(*counter, four);
        }
        blocks
    }

    /// The last four bytes of each block from last to first; the others are zero.
    fn reversed_numbers(x: __m512i) -> __m512i {
        let order = _mm_set_epi8(12, 13, 14, 15, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
        _mm512_shuffle_epi8(x, _mm512_broadcast_i32x4(order))
    }
}
