//! The key: AES's key schedule (FIPS 197, section 5.2) and the powers of H.

use core::arch::x86_64::*;

use zeroize::{Zeroize, ZeroizeOnDrop};

use super::POWERS;
use super::ghash::{doubled, halves, multiplied, power, reversed};
use super::lanes::{Block, load, store};
use crate::KEY_LEN;

/// Round keys, and powers of H: H^POWERS … H^1. It exists only where [`is_there`](super::is_there) is true, and is wide only
/// where [`is_wide`](super::is_wide) is.
#[derive(ZeroizeOnDrop)]
#[repr(C, align(32))]
pub(crate) struct Key {
    pub(super) powers: [Block; POWERS],
    /// Both halves of each power added, twice: the factor of the middle product.
    pub(super) halves: [Block; POWERS],
    pub(super) rounds: [Block; 15],
    /// Whether VAES and VPCLMULQDQ are used.
    pub(super) wide: bool,
}

on_avx2! {
    /// The key schedule (FIPS 197, section 5.2), and the powers of H = E(0).
    pub(super) fn scheduled(bytes: &[u8; KEY_LEN], wide: bool) -> Box<Key> {
        let (key_halves, _) = bytes.as_chunks::<16>();
        let (mut even, mut odd) = (load(&key_halves[0]), load(&key_halves[1]));
        // Made where it stays: moving it would leave copies that nobody wipes.
        let mut key = Box::new(Key { powers: [[0; 16]; POWERS], halves: [[0; 16]; POWERS], rounds: [[0; 16]; 15], wide });
        store(&mut key.rounds[0], even);
        store(&mut key.rounds[1], odd);
        for n in 1..8 {
            // RotWord and SubWord of the last word, and the round constant 2^(n - 1).
            let word = _mm_shuffle_epi32::<0xff>(_mm_aeskeygenassist_si128::<0>(odd));
            even = _mm_xor_si128(spread(even), _mm_xor_si128(word, _mm_set1_epi32(1 << (n - 1))));
            store(&mut key.rounds[2 * n], even);
            if n < 7 {
                // SubWord alone.
                let word = _mm_shuffle_epi32::<0xaa>(_mm_aeskeygenassist_si128::<0>(even));
                odd = _mm_xor_si128(spread(odd), word);
                store(&mut key.rounds[2 * n + 1], odd);
            }
        }
        let mut zero = [0; 16];
        encrypt_one(&key, &mut zero);
        store(&mut key.powers[POWERS - 1], doubled(reversed(load(&zero))));
        zero.zeroize();
        for n in 2..=POWERS {
            let next = multiplied(power(&key, n - 1), power(&key, 1));
            store(&mut key.powers[POWERS - n], next);
        }
        for n in 1..=POWERS {
            let halves = halves(power(&key, n));
            store(&mut key.halves[POWERS - n], halves);
        }
        key
    }

    pub(super) fn encrypt_one(key: &Key, block: &mut Block) {
        let mut x = _mm_xor_si128(load(block), load(&key.rounds[0]));
        for round in &key.rounds[1..14] {
            x = _mm_aesenc_si128(x, load(round));
        }
        store(block, _mm_aesenclast_si128(x, load(&key.rounds[14])));
    }

    /// Each word of a round key with all words before it added.
    pub(super) fn spread(words: __m128i) -> __m128i {
        let words = _mm_xor_si128(words, _mm_slli_si128::<4>(words));
        _mm_xor_si128(words, _mm_slli_si128::<8>(words))
    }
}
