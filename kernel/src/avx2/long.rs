//! Many blocks at a time: AES of counter blocks, and AES and GHASH of long values. The same code for registers of one block
//! and of two, which `super::registers` are.

use core::arch::x86_64::*;

use super::registers::{
    Register, WIDTH, add, all, count, exclusive_or, first, folded, last_round, load, multiply, round, shuffle,
    store, swap, zero,
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
        for blocks in chunks_mut(many.as_flattened_mut()) {
            let start = all(load_block(&key.rounds[0]));
            let mut text = [zero(); AT_ONCE];
            for (text, block) in text.iter_mut().zip(&*blocks) {
                *text = exclusive_or(load(block), start);
            }
            rounds(&mut text, &key.rounds[1..14]);
            let last = all(load_block(&key.rounds[14]));
            for (text, block) in text.iter().zip(blocks) {
                store(block, last_round(*text, last));
            }
        }
    }

    /// Seals as much of a value as fills all registers, and leaves the rest; GHASH after it. The nonce has zeros after it.
    pub(super) fn seal_chunks(key: &Key, nonce: __m128i, value: &[u8], out: &mut [u8], state: __m128i) -> __m128i {
        let (mut state, mut counter) = (state, counter(nonce));
                let mut before = None;
        for (value, out) in chunks(value).iter().zip(chunks_mut(out)) {
            let mut text = begun(key, &mut counter);
            match before {
                // While it is encrypted, what came before is hashed.
                Some(before) => state = rounds_and_hash(key, &mut text, before, state),
                None => rounds(&mut text, &key.rounds[1..14]),
            }
            end(key, &text, value, out);
            before = Some(&*out);
        }
        match before {
            Some(before) => hash(key, before, state),
            None => state,
        }
    }

    /// The first counter blocks of a value's key stream, their last words in the order of this machine.
    fn counter(nonce: __m128i) -> Register {
        add(all(_mm_or_si128(nonce, _mm_set_epi32(2, 0, 0, 0))), count())
    }

    /// The next counter blocks, with the first round key.
    fn begun(key: &Key, counter: &mut Register) -> [Register; AT_ONCE] {
        let order = all(_mm_set_epi8(12, 13, 14, 15, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0));
        let (start, step) = (all(load_block(&key.rounds[0])), all(_mm_set_epi32(WIDTH as i32, 0, 0, 0)));
        let mut text = [zero(); AT_ONCE];
        for text in &mut text {
            *text = exclusive_or(shuffle(*counter, order), start);
            *counter = add(*counter, step);
        }
        text
    }

    fn one_round(text: &mut [Register; AT_ONCE], key: Register) {
        for text in text {
            *text = round(*text, key);
        }
    }

    fn rounds(text: &mut [Register; AT_ONCE], keys: &[Block]) {
        for key in keys {
            one_round(text, all(load_block(key)));
        }
    }

    /// The last round, and the sum with the value.
    fn end(key: &Key, text: &[Register; AT_ONCE], value: &Chunk, out: &mut Chunk) {
        let last = all(load_block(&key.rounds[14]));
        for ((text, value), out) in text.iter().zip(value).zip(out) {
            store(out, exclusive_or(last_round(*text, last), load(value)));
        }
    }

    /// All rounds but the last, and GHASH of other blocks meanwhile.
    fn rounds_and_hash(key: &Key, text: &mut [Register; AT_ONCE], hashed: &Chunk, state: __m128i) -> __m128i {
        let (powers, halves) = powers(key);
        let mut sum = begun_sum(key, hashed, state);
        for n in 0..13 {
            one_round(text, all(load_block(&key.rounds[n + 1])));
            if n > 0 && n < AT_ONCE {
                sum = added(sum, turned(load(&hashed[n])), load(&powers[n]), load(&halves[n]));
            }
        }
        sum_of(sum)
    }

    fn hash(key: &Key, hashed: &Chunk, state: __m128i) -> __m128i {
        let (powers, halves) = powers(key);
        let mut sum = begun_sum(key, hashed, state);
        for n in 1..AT_ONCE {
            sum = added(sum, turned(load(&hashed[n])), load(&powers[n]), load(&halves[n]));
        }
        sum_of(sum)
    }

    /// The products of the first blocks, with GHASH of all before them.
    fn begun_sum(key: &Key, hashed: &Chunk, state: __m128i) -> [Register; 3] {
        let (powers, halves) = powers(key);
        let x = exclusive_or(turned(load(&hashed[0])), first(state));
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

    pub(super) fn sum_of([low, middle, high]: [Register; 3]) -> __m128i {
        reduced(Sum { low: folded(low), middle: folded(middle), high: folded(high) })
    }
}

/// What fills all registers, again and again.
fn chunks(bytes: &[u8]) -> &[Chunk] {
    bytes.as_chunks().0.as_chunks().0
}

fn chunks_mut(bytes: &mut [u8]) -> &mut [Chunk] {
    bytes.as_chunks_mut().0.as_chunks_mut().0
}
