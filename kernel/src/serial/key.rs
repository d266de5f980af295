//! The key: AES's key schedule (FIPS 197, section 5.2) and the powers of H.

use zeroize::{Zeroize, ZeroizeOnDrop};

use super::ghash::{doubled, halves, multiplied, power, reversed};
use super::lanes::{Block, ROUNDS, from_number, last_round, load, round, start, store, sub_word};
use super::{POWERS, SHORT};
use crate::{KEY_LEN, Kernel};

/// Round keys, and powers of H: H^POWERS … H^1. It exists only where its kernel [is there](super::is_there).
#[derive(ZeroizeOnDrop)]
#[repr(C, align(32))]
pub(crate) struct Key {
    pub(super) powers: [Block; POWERS],
    /// Both halves of each power added, twice: the factor of the middle product.
    pub(super) halves: [Block; POWERS],
    /// What a text of that many whole blocks, or of that many bytes beyond them, adds to a tag by its length: a length is
    /// the sum of both.
    pub(super) lengths_of_blocks: [Block; SHORT / 16 + 1],
    pub(super) lengths_beyond: [Block; 16],
    pub(super) rounds: [Block; 15],
    /// Whose registers are used.
    #[zeroize(skip)]
    pub(super) kernel: Kernel,
}

with_aes! { inline,
    /// The key schedule, and the powers of H = E(0).
    pub(super) fn scheduled(bytes: &[u8; KEY_LEN], kernel: Kernel) -> Box<Key> {
        // Made where it stays: moving it would leave copies that nobody wipes.
        let mut key = Box::new(Key {
            powers: [[0; 16]; POWERS],
            halves: [[0; 16]; POWERS],
            lengths_of_blocks: [[0; 16]; SHORT / 16 + 1],
            lengths_beyond: [[0; 16]; 16],
            rounds: [[0; 16]; 15],
            kernel,
        });
        expand(bytes, &mut key.rounds);
        let mut zero = [0; 16];
        encrypt_one(&key, &mut zero);
        store(&mut key.powers[POWERS - 1], doubled(reversed(load(&zero))));
        zero.zeroize();
        for n in 2..=POWERS {
            // Of those in the middle, so that many can be made at once.
            let next = multiplied(power(&key, n / 2), power(&key, n - n / 2));
            store(&mut key.powers[POWERS - n], next);
        }
        for n in 1..=POWERS {
            let halves = halves(power(&key, n));
            store(&mut key.halves[POWERS - n], halves);
        }
        let h = power(&key, 1);
        let of_length = |len: usize| multiplied(from_number(len as u128 * 8), h);
        for (n, block) in key.lengths_of_blocks.iter_mut().enumerate() {
            store(block, of_length(16 * n));
        }
        for (n, block) in key.lengths_beyond.iter_mut().enumerate() {
            store(block, of_length(n));
        }
        key
    }

    /// The round keys (FIPS 197, section 5.2).
    fn expand(bytes: &[u8; KEY_LEN], rounds: &mut [Block; 15]) {
        let (rounds, _) = rounds.as_flattened_mut().as_chunks_mut::<4>();
        let (words, _) = bytes.as_chunks();
        rounds[..8].copy_from_slice(words);
        // Bytes of a word from its least significant to its most.
        let mut last = u32::from_le_bytes(rounds[7]);
        for n in 8..rounds.len() {
            last = u32::from_le_bytes(rounds[n - 8])
                ^ match n % 8 {
                    // RotWord, and the round constant 2^(n / 8 - 1).
                    0 => sub_word(last.rotate_right(8)) ^ 1 << (n / 8 - 1),
                    4 => sub_word(last),
                    _ => last,
                };
            rounds[n] = last.to_le_bytes();
        }
    }

    pub(super) fn encrypt_one(key: &Key, block: &mut Block) {
        let mut x = start(load(block), load(&key.rounds[0]));
        for key in &key.rounds[ROUNDS] {
            x = round(x, load(key));
        }
        store(block, last_round(x, load(&key.rounds[13]), load(&key.rounds[14])));
    }
}
