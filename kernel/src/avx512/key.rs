//! The key: AES's key schedule (FIPS 197, section 5.2) and the powers of H, and AES of many blocks.

use core::arch::x86_64::*;

use zeroize::ZeroizeOnDrop;

use super::ghash::{doubled, halves, multiplied, of, reversed};
use super::lanes::{Unit, load, load_unit, store_unit, words};
use super::{AT_ONCE, POWERS};
use crate::KEY_LEN;

/// Blocks that are encrypted at once.
pub(super) type Round = [__m512i; AT_ONCE];

/// Round keys, each in all lanes, and powers of H: H^POWERS … H^1, then zeros; and the halves of each added, twice. It exists
/// only where [`is_there`](super::is_there) is true.
#[derive(ZeroizeOnDrop)]
pub(crate) struct Key {
    pub(super) rounds: [Unit; 15],
    pub(super) powers: [[u64; 2]; POWERS + 3],
    pub(super) halves: [[u64; 2]; POWERS + 3],
}

on_avx512! {
    /// The key schedule (FIPS 197, section 5.2), and the powers of H = E(0).
    pub(super) fn scheduled(bytes: &[u8; KEY_LEN]) -> Box<Key> {
        let (parts, _) = bytes.as_chunks::<16>();
        let (mut even, mut odd) = (load(&parts[0]), load(&parts[1]));
        // Made where it stays: moving it would leave copies that nobody wipes.
        let mut key = Box::new(Key { rounds: [Unit([0; 64]); 15], powers: [[0; 2]; POWERS + 3], halves: [[0; 2]; POWERS + 3] });
        let put = |key: &mut Key, n: usize, round: __m128i| store_unit(&mut key.rounds[n], _mm512_broadcast_i32x4(round));
        put(&mut key, 0, even);
        put(&mut key, 1, odd);
        for n in 1..8 {
            // RotWord and SubWord of the last word, and the round constant 2^(n - 1).
            let word = _mm_shuffle_epi32::<0xff>(_mm_aeskeygenassist_si128::<0>(odd));
            even = _mm_xor_si128(spread(even), _mm_xor_si128(word, _mm_set1_epi32(1 << (n - 1))));
            put(&mut key, 2 * n, even);
            if n < 7 {
                // SubWord alone.
                let word = _mm_shuffle_epi32::<0xaa>(_mm_aeskeygenassist_si128::<0>(even));
                odd = _mm_xor_si128(spread(odd), word);
                put(&mut key, 2 * n + 1, odd);
            }
        }
        let h = doubled(_mm512_castsi512_si128(reversed(encrypted_one(&key, _mm512_setzero_si512()))));
        let once = of(_mm512_zextsi128_si512(h));
        let mut power = h;
        for n in 1..=POWERS {
            key.powers[POWERS - n] = words(power);
            key.halves[POWERS - n] = words(_mm512_castsi512_si128(halves(_mm512_zextsi128_si512(power))));
            power = multiplied(power, once);
        }
        key
    }

    pub(super) fn encrypt(key: &Key, units: &mut [Unit]) {
        let (many, few) = units.as_chunks_mut::<AT_ONCE>();
        // None stays a counter that anybody can compute.
        for unit in few {
            let block = encrypted_one(key, load_unit(unit));
            store_unit(unit, block);
        }
        for units in many {
            let mut blocks = [_mm512_setzero_si512(); AT_ONCE];
            for (block, unit) in blocks.iter_mut().zip(&*units) {
                *block = load_unit(unit);
            }
            let blocks = encrypted(key, blocks);
            for (block, unit) in blocks.iter().zip(units) {
                store_unit(unit, *block);
            }
        }
    }

    fn encrypted(key: &Key, blocks: Round) -> Round {
        let mut blocks = blocks;
        for block in &mut blocks {
            *block = with_key(*block, key, 0);
        }
        rounds(key, &mut blocks);
        ended(key, &blocks)
    }

    /// A block and that round key, added.
    pub(super) fn with_key(block: __m512i, key: &Key, n: usize) -> __m512i {
        _mm512_xor_si512(block, load_unit(&key.rounds[n]))
    }

    /// All rounds but the last.
    pub(super) fn rounds(key: &Key, blocks: &mut Round) {
        for round in &key.rounds[1..14] {
            one_round(blocks, round);
        }
    }

    pub(super) fn one_round(blocks: &mut Round, round: &Unit) {
        let round = load_unit(round);
        for block in blocks {
            *block = _mm512_aesenc_epi128(*block, round);
        }
    }

    /// After the last round.
    pub(super) fn ended(key: &Key, blocks: &Round) -> Round {
        let (mut blocks, last) = (*blocks, load_unit(&key.rounds[14]));
        for block in &mut blocks {
            *block = _mm512_aesenclast_epi128(*block, last);
        }
        blocks
    }

    pub(super) fn encrypted_one(key: &Key, block: __m512i) -> __m512i {
        let mut block = _mm512_xor_si512(block, load_unit(&key.rounds[0]));
        for round in &key.rounds[1..14] {
            block = _mm512_aesenc_epi128(block, load_unit(round));
        }
        _mm512_aesenclast_epi128(block, load_unit(&key.rounds[14]))
    }

    /// Each word of a round key with all words before it added.
    pub(super) fn spread(words: __m128i) -> __m128i {
        let words = _mm_xor_si128(words, _mm_slli_si128::<4>(words));
        _mm_xor_si128(words, _mm_slli_si128::<8>(words))
    }
}
