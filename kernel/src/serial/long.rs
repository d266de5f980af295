//! Many blocks at a time: AES of counter blocks, and AES and GHASH of long values. The same code for registers of one block
//! and of two, which `super::registers` are.

use super::registers::{
    Register, WIDTH, add, all, count, exclusive_or, first, fold, last_round, load, multiply_high, multiply_low, round,
    shuffle, start, store, swap, zero,
};
use crate::serial::ghash::{Sum, backwards, powers_from, reduced};
use crate::serial::key::{Key, encrypt_one};
use crate::serial::lanes::{Block, Lane, ROUNDS, from_number, load as load_block, with_word};

/// Registers that are encrypted at once: enough to hide how long a round takes.
const AT_ONCE: usize = 8;
/// Blocks that are encrypted at once.
pub(super) const CHUNK: usize = AT_ONCE * WIDTH;

/// What fills the registers.
type Chunk = [[u8; 16 * WIDTH]; AT_ONCE];

on_these! {
    pub(super) fn encrypt(key: &Key, blocks: &mut [Block]) {
        let whole = blocks.len() - blocks.len() % CHUNK;
        let (many, few) = blocks.split_at_mut(whole);
        // None stays a counter that anybody can compute.
        for block in few {
            encrypt_one(key, block);
        }
        for chunk in chunks_mut(many.as_flattened_mut()) {
            let first = all(load_block(&key.rounds[0]));
            let mut blocks = [zero(); AT_ONCE];
            for (block, from) in blocks.iter_mut().zip(&*chunk) {
                *block = start(load(from), first);
            }
            rounds(key, &mut blocks);
            let last = last_keys(key);
            for (block, to) in blocks.iter().zip(chunk) {
                store(to, last_round(*block, last.0, last.1));
            }
        }
    }

    /// Seals or opens as much of a text as fills all registers, and leaves the rest; GHASH after it. The nonce has zeros
    /// after it.
    pub(super) fn text_chunks<const OPEN: bool>(key: &Key, nonce: Lane, text: &[u8], out: &mut [u8], state: Lane) -> Lane {
        let (mut state, mut counter) = (state, counter(nonce));
        let mut before = None;
        for (text, out) in chunks(text).iter().zip(chunks_mut(out)) {
            let mut blocks = begun(key, &mut counter);
            // While these are encrypted, other ciphertext is hashed: this one, or what was made before.
            match if OPEN { Some(text) } else { before } {
                Some(cipher) => state = rounds_and_hash(key, &mut blocks, cipher, state),
                None => rounds(key, &mut blocks),
            }
            end(key, &blocks, text, out);
            before = Some(&*out);
        }
        match before {
            Some(cipher) if !OPEN => hash(key, cipher, state),
            _ => state,
        }
    }

    // ---- AES

    /// The first counter blocks of a value's key stream, their last words in the order of this machine.
    fn counter(nonce: Lane) -> Register {
        add(all(with_word::<3>(nonce, 2)), count())
    }

    /// The next counter blocks, as the rounds take them.
    fn begun(key: &Key, counter: &mut Register) -> [Register; AT_ONCE] {
        let order = all(load_block(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 15, 14, 13, 12]));
        let (first, step) = (all(load_block(&key.rounds[0])), all(from_number((WIDTH as u128) << 96)));
        let mut blocks = [zero(); AT_ONCE];
        for block in &mut blocks {
            *block = start(shuffle(*counter, order), first);
            *counter = add(*counter, step);
        }
        blocks
    }

    fn one_round(blocks: &mut [Register; AT_ONCE], key: Register) {
        for block in blocks {
            *block = round(*block, key);
        }
    }

    /// All rounds but the last.
    fn rounds(key: &Key, blocks: &mut [Register; AT_ONCE]) {
        for key in &key.rounds[ROUNDS] {
            one_round(blocks, all(load_block(key)));
        }
    }

    /// What the last round takes.
    fn last_keys(key: &Key) -> (Register, Register) {
        (all(load_block(&key.rounds[13])), all(load_block(&key.rounds[14])))
    }

    /// The last round, and the sum with the text.
    fn end(key: &Key, blocks: &[Register; AT_ONCE], text: &Chunk, out: &mut Chunk) {
        let last = last_keys(key);
        for ((block, text), out) in blocks.iter().zip(text).zip(out) {
            store(out, exclusive_or(last_round(*block, last.0, last.1), load(text)));
        }
    }

    /// The same, and GHASH of other blocks meanwhile.
    fn rounds_and_hash(key: &Key, blocks: &mut [Register; AT_ONCE], cipher: &Chunk, state: Lane) -> Lane {
        let (powers, halves) = powers(key);
        let mut sum = begun_sum(key, cipher, state);
        for (n, key) in key.rounds[ROUNDS].iter().enumerate() {
            one_round(blocks, all(load_block(key)));
            if n > 0 && n < AT_ONCE {
                sum = added(sum, turned(load(&cipher[n])), load(&powers[n]), load(&halves[n]));
            }
        }
        reduced(folded(sum))
    }

    // ---- GHASH

    fn hash(key: &Key, cipher: &Chunk, state: Lane) -> Lane {
        let (powers, halves) = powers(key);
        let mut sum = begun_sum(key, cipher, state);
        for n in 1..AT_ONCE {
            sum = added(sum, turned(load(&cipher[n])), load(&powers[n]), load(&halves[n]));
        }
        reduced(folded(sum))
    }

    /// The products of the first blocks, with GHASH of all before them.
    fn begun_sum(key: &Key, cipher: &Chunk, state: Lane) -> [Register; 3] {
        let (powers, halves) = powers(key);
        let x = exclusive_or(turned(load(&cipher[0])), first(state));
        added([zero(); 3], x, load(&powers[0]), load(&halves[0]))
    }

    /// H^CHUNK … H^1, and their halves.
    fn powers(key: &Key) -> (&Chunk, &Chunk) {
        let (powers, halves) = powers_from(key, CHUNK);
        (&chunks(powers.as_flattened())[0], &chunks(halves.as_flattened())[0])
    }

    /// The bytes of each block from last to first.
    pub(super) fn turned(x: Register) -> Register {
        shuffle(x, all(backwards()))
    }

    /// Lower, middle and upper products of all lanes, and those of x · h.
    pub(super) fn added([low, middle, high]: [Register; 3], x: Register, h: Register, halves: Register) -> [Register; 3] {
        [
            exclusive_or(low, multiply_low(x, h)),
            exclusive_or(middle, multiply_low(exclusive_or(x, swap(x)), halves)),
            exclusive_or(high, multiply_high(x, h)),
        ]
    }

    /// The sums of all lanes.
    pub(super) fn folded([low, middle, high]: [Register; 3]) -> Sum {
        Sum { low: fold(low), middle: fold(middle), high: fold(high) }
    }
}

/// What fills all registers, again and again.
fn chunks(bytes: &[u8]) -> &[Chunk] {
    bytes.as_chunks().0.as_chunks().0
}

fn chunks_mut(bytes: &mut [u8]) -> &mut [Chunk] {
    bytes.as_chunks_mut().0.as_chunks_mut().0
}
