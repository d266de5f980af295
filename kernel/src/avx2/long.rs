//! Many blocks at a time: AES of counter blocks, and AES and GHASH of long values. The same code for registers of one block
//! and of two, which `super::registers` are.

use core::arch::x86_64::*;

use super::registers::{
    Register, WIDTH, add, all, count, exclusive_or, first, fold, last_round, load, multiply, round, shuffle, store,
    swap, zero,
};
use crate::avx2::ghash::{Sum, backwards, powers_from, reduced};
use crate::avx2::key::{Key, encrypt_one};
use crate::avx2::lanes::{Block, load as load_block};

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
            let start = all(load_block(&key.rounds[0]));
            let mut blocks = [zero(); AT_ONCE];
            for (block, from) in blocks.iter_mut().zip(&*chunk) {
                *block = exclusive_or(load(from), start);
            }
            rounds(&mut blocks, &key.rounds[1..14]);
            let last = all(load_block(&key.rounds[14]));
            for (block, to) in blocks.iter().zip(chunk) {
                store(to, last_round(*block, last));
            }
        }
    }

    /// Seals or opens as much of a text as fills all registers, and leaves the rest; GHASH after it. The nonce has zeros
    /// after it.
    pub(super) fn text_chunks<const OPEN: bool>(key: &Key, nonce: __m128i, text: &[u8], out: &mut [u8], state: __m128i) -> __m128i {
        let (mut state, mut counter) = (state, counter(nonce));
        let mut before = None;
        for (text, out) in chunks(text).iter().zip(chunks_mut(out)) {
            let mut blocks = begun(key, &mut counter);
            // While these are encrypted, other ciphertext is hashed: this one, or what was made before.
            match if OPEN { Some(text) } else { before } {
                Some(cipher) => state = rounds_and_hash(key, &mut blocks, cipher, state),
                None => rounds(&mut blocks, &key.rounds[1..14]),
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
    fn counter(nonce: __m128i) -> Register {
        add(all(_mm_or_si128(nonce, _mm_set_epi32(2, 0, 0, 0))), count())
    }

    /// The next counter blocks, with the first round key.
    fn begun(key: &Key, counter: &mut Register) -> [Register; AT_ONCE] {
        let order = all(_mm_set_epi8(12, 13, 14, 15, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0));
        let (start, step) = (all(load_block(&key.rounds[0])), all(_mm_set_epi32(WIDTH as i32, 0, 0, 0)));
        let mut blocks = [zero(); AT_ONCE];
        for block in &mut blocks {
            *block = exclusive_or(shuffle(*counter, order), start);
            *counter = add(*counter, step);
        }
        blocks
    }

    fn one_round(blocks: &mut [Register; AT_ONCE], key: Register) {
        for block in blocks {
            *block = round(*block, key);
        }
    }

    fn rounds(blocks: &mut [Register; AT_ONCE], keys: &[Block]) {
        for key in keys {
            one_round(blocks, all(load_block(key)));
        }
    }

    /// The last round, and the sum with the text.
    fn end(key: &Key, blocks: &[Register; AT_ONCE], text: &Chunk, out: &mut Chunk) {
        let last = all(load_block(&key.rounds[14]));
        for ((block, text), out) in blocks.iter().zip(text).zip(out) {
            store(out, exclusive_or(last_round(*block, last), load(text)));
        }
    }

    /// All rounds but the last, and GHASH of other blocks meanwhile.
    fn rounds_and_hash(key: &Key, blocks: &mut [Register; AT_ONCE], cipher: &Chunk, state: __m128i) -> __m128i {
        let (powers, halves) = powers(key);
        let mut sum = begun_sum(key, cipher, state);
        for n in 0..13 {
            one_round(blocks, all(load_block(&key.rounds[n + 1])));
            if n > 0 && n < AT_ONCE {
                sum = added(sum, turned(load(&cipher[n])), load(&powers[n]), load(&halves[n]));
            }
        }
        reduced(folded(sum))
    }

    // ---- GHASH

    fn hash(key: &Key, cipher: &Chunk, state: __m128i) -> __m128i {
        let (powers, halves) = powers(key);
        let mut sum = begun_sum(key, cipher, state);
        for n in 1..AT_ONCE {
            sum = added(sum, turned(load(&cipher[n])), load(&powers[n]), load(&halves[n]));
        }
        reduced(folded(sum))
    }

    /// The products of the first blocks, with GHASH of all before them.
    fn begun_sum(key: &Key, cipher: &Chunk, state: __m128i) -> [Register; 3] {
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
            exclusive_or(low, multiply::<0x00>(x, h)),
            exclusive_or(middle, multiply::<0x00>(exclusive_or(x, swap::<0x4e>(x)), halves)),
            exclusive_or(high, multiply::<0x11>(x, h)),
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
