//! Sealing: groups of values, their headers and counter blocks, ciphertext and tags. The same code for registers of one block
//! and of two, which `super::registers` are.

use core::arch::x86_64::*;

use zeroize::Zeroizing;

use super::long::{CHUNK, added, encrypt, seal_chunks, sum_of, turned};
use super::registers::{Register, WIDTH, exclusive_or, first as first_lane, load as load_lanes, store as store_lanes, zero};
use crate::avx2::ghash::{self, Sum, absorbed, hashed, power, powers_from, reversed};
use crate::avx2::key::Key;
use crate::avx2::lanes::{Block, Stream, load, load_some, ones, store, store_at};
use crate::avx2::{AADS, BLOCKS, HEADER, SHORT};
use crate::values::{Aads, Batch, Values};
use crate::{NONCE_LEN, OVERHEAD, PREFIX_LEN};

/// Bytes that fill all registers.
const FILL: usize = 16 * CHUNK;

/// What is known of a value when its counter blocks are made.
#[derive(Clone, Copy, Default)]
struct Placed {
    from: u32,
    len: u32,
    /// The last four bytes of its nonce.
    low: u32,
    /// Its counter blocks in the group.
    blocks: u32,
    /// Bytes of AAD beyond what all have in whole blocks.
    aad: u32,
}

/// Values whose counter blocks are encrypted at once.
struct Group {
    stream: Zeroizing<Stream>,
    values: [Placed; BLOCKS],
    /// Their AADs, each up to a block's end.
    aads: Vec<u8>,
}

/// How far a group was filled.
struct Gathered {
    /// The next value.
    number: usize,
    count: usize,
    blocks: usize,
    /// What they are long, sealed.
    bytes: usize,
}

/// What is written before each value of a group: constant but for the last four bytes of the nonce.
struct Head {
    first: __m128i,
    /// Bytes 15 to 31, of which the nonce's last four are zero.
    second: __m128i,
    /// The nonce's first eight bytes, and zeros.
    nonce: __m128i,
}

/// What is in all tags.
struct Bound {
    /// GHASH of the AAD that all have, in whole blocks if each has more.
    state: __m128i,
    /// Bytes of that AAD.
    len: usize,
}

/// The sum that values of one length and AAD begin with.
struct Cached {
    len: u32,
    sum: [Register; 3],
}

on_these! {
    /// Seals into `out`, which has exactly the room.
    pub(in crate::avx2) fn sealed(key: &Key, batch: &mut Batch<'_>, out: &mut [u8]) {
        let values = batch.values;
        let mut group = Group {
            stream: Zeroizing::new(Stream([[0; 16]; BLOCKS])),
            values: [Placed::default(); BLOCKS],
            aads: Vec::new(),
        };
        let bound = bound(key, &batch.aads, &mut group.aads);
        let mut cached = Cached { len: u32::MAX, sum: [zero(); 3] };
        let start = first(batch.start);
        let mut out = out;
        let mut number = 0;
        while number < values.len() {
            // A group has one upper part of the nonce: it ends where the lower one begins anew.
            let nonce = start.wrapping_add(number as u128);
            let head = head(&batch.prefix, (nonce >> 32) as u64);
            let room = (u32::MAX - nonce as u32) as usize;
            let until = values.len().min(number.saturating_add(room).saturating_add(1));
            let gathered = gather(&mut group, &values, (number, until), &head, start as u32, &mut batch.aads);
            number = gathered.number;
            encrypt(key, &mut group.stream.0[..gathered.blocks.next_multiple_of(CHUNK)]);
            let bytes;
            (bytes, out) = out.split_at_mut(gathered.bytes);
            finish(key, &group, gathered.count, &head, &bound, values.bytes(), bytes, &mut cached);
        }
    }

    fn head(prefix: &[u8; PREFIX_LEN], upper: u64) -> Head {
        let (mut first, mut second) = ([0; 16], [0; 16]);
        first.copy_from_slice(&prefix[..16]);
        second[..PREFIX_LEN - 15].copy_from_slice(&prefix[15..]);
        let nonce = _mm_set_epi64x(0, upper.to_be() as i64);
        Head { first: load(&first), second: _mm_or_si128(load(&second), _mm_slli_si128::<4>(nonce)), nonce }
    }

    // ---- what values begin with

    fn bound(key: &Key, aads: &Aads<'_>, scratch: &mut Vec<u8>) -> Bound {
        let aad = match aads {
            Aads::Same(aad) => aad,
            Aads::Each { fixed, .. } => fixed.as_chunks::<16>().0.as_flattened(),
        };
        scratch.extend_from_slice(aad);
        pad(scratch);
        Bound { state: absorbed(key, _mm_setzero_si128(), scratch.as_chunks().0), len: aad.len() }
    }

    fn lanes_of(sum: Sum) -> [Register; 3] {
        [first_lane(sum.low), first_lane(sum.middle), first_lane(sum.high)]
    }

    // ---- ciphertext

    /// Seals so many bytes of the text with the key stream there; the sum after them.
    fn seal_rest(key: &Key, stream: &[Block], text: &[u8], len: usize, out: &mut [u8], sum: [Register; 3]) -> [Register; 3] {
        let mut sum = sum;
        let (powers, halves) = powers_from(key, stream.len() + 1);
        let (lanes, whole) = (len / (16 * WIDTH), len / 16);
        let (texts, outs) = (&text.as_chunks().0[..lanes], &mut out.as_chunks_mut().0[..lanes]);
        let streams = &stream.as_flattened().as_chunks().0[..lanes];
        let factors = (&powers.as_flattened().as_chunks().0[..lanes], &halves.as_flattened().as_chunks().0[..lanes]);
        let factors = factors.0.iter().zip(factors.1);
        for (((text, out), stream), (power, halves)) in texts.iter().zip(outs).zip(streams).zip(factors) {
            let cipher = exclusive_or(load_lanes(text), load_lanes(stream));
            store_lanes(out, cipher);
            sum = added(sum, turned(cipher), load_lanes(power), load_lanes(halves));
        }
        for n in lanes * WIDTH..stream.len() {
            let text = load_some(&text[16 * n..], len - 16 * n);
            let mut cipher = _mm_xor_si128(text, load(&stream[n]));
            if n == whole {
                cipher = _mm_and_si128(cipher, ones(len - 16 * n));
            }
            // What is written beyond the value is where its tag comes.
            store_at(out, 16 * n, cipher);
            sum = added(sum, first_lane(reversed(cipher)), first_lane(load(&powers[n])), first_lane(load(&halves[n])));
        }
        sum
    }
}

never_inlined! {
    /// Takes values in, up to `until` or as many as there is room for, and makes their counter blocks. `low`: the last four
    /// bytes of value 0's nonce.
    fn gather(
        group: &mut Group,
        values: &Values<'_>,
        (number, until): (usize, usize),
        head: &Head,
        low: u32,
        aads: &mut Aads<'_>,
    ) -> Gathered {
        let (mut next, mut used, mut bytes) = (number, 0, 0);
        let mut stream = &mut group.stream.0[..];
        let mut placed = group.values.iter_mut();
        group.aads.clear();
        for (n, pair) in (number..until).zip(values.offsets()[number..=until].windows(2)) {
            if !values.is_null(n) {
                // Offsets ascend.
                let (from, len) = (pair[0] as u32, (pair[1] - pair[0]) as u32);
                let rest = rest(len as usize);
                let blocks = rest.div_ceil(16) + 1;
                let Some((own, others)) = stream.split_at_mut_checked(blocks) else { break };
                let Some(placed) = placed.next() else { break };
                let low = low.wrapping_add(n as u32).swap_bytes();
                let nonce = _mm_insert_epi32::<2>(head.nonce, low as i32);
                for (block, number) in own.iter_mut().zip(&NUMBERS) {
                    store(block, _mm_or_si128(nonce, load(number)));
                }
                if len as usize > SHORT {
                    for (n, block) in (len as usize / FILL * CHUNK + 2..).zip(&mut own[1..]) {
                        store(block, _mm_insert_epi32::<3>(nonce, (n as u32).swap_bytes() as i32));
                    }
                }
                *placed = Placed { from, len, low, blocks: blocks as u32, aad: 0 };
                used += blocks;
                bytes += len as usize + OVERHEAD;
                stream = others;
                if let Aads::Each { fixed, write } = aads {
                    placed.aad = own_aad(fixed, write, n, &mut group.aads);
                    if group.aads.len() > AADS {
                        next = n + 1;
                        break;
                    }
                }
            }
            next = n + 1;
        }
        Gathered { number: next, count: BLOCKS - placed.len(), blocks: used, bytes }
    }

    /// Writes headers, ciphertexts and tags of a group.
    fn finish(key: &Key, group: &Group, count: usize, head: &Head, bound: &Bound, bytes: &[u8], out: &mut [u8], cached: &mut Cached) {
        let mut out = out;
        let mut stream = &group.stream.0[..];
        let mut aads = &*group.aads;
        for placed in &group.values[..count] {
            let len = placed.len as usize;
            let (place, others) = out.split_at_mut(len + OVERHEAD);
            let (own, more) = stream.split_at(placed.blocks as usize);
            let Some((mask, own)) = own.split_first() else { break };
            let text = &bytes[placed.from as usize..];
            store_at(place, 0, head.first);
            store_at(place, HEADER - 16, _mm_insert_epi32::<3>(head.second, placed.low as i32));
            let mut done = 0;
            if placed.len != cached.len {
                let aad;
                (aad, aads) = aads.split_at((placed.aad as usize).next_multiple_of(16));
                done = len - rest(len);
                cached.sum = begin(key, head, bound, aad, text, placed, place);
                let again = group.aads.is_empty() && done == 0;
                cached.len = if again { placed.len } else { u32::MAX };
            }
            let sum = seal_rest(key, own, &text[done..], len - done, &mut place[HEADER + done..], cached.sum);
            let tag = _mm_xor_si128(reversed(sum_of(sum)), load(mask));
            store_at(place, HEADER + len, tag);
            (out, stream) = (others, more);
        }
    }

    /// What the AAD, the lengths and the chunks of a long value add; these are sealed.
    fn begin(key: &Key, head: &Head, bound: &Bound, aad: &[u8], text: &[u8], placed: &Placed, place: &mut [u8]) -> [Register; 3] {
        let (mut state, mut aad, len) = (bound.state, aad.as_chunks().0, placed.len as usize);
        if len > SHORT {
            state = absorbed(key, state, aad);
            aad = &[];
            let nonce = _mm_insert_epi32::<2>(head.nonce, placed.low as i32);
            state = seal_chunks(key, nonce, &text[..len], &mut place[HEADER..], state);
        }
        let sum = hashed(key, state, aad, placed.blocks as usize);
        let aad = bound.len + placed.aad as usize;
        let lengths = _mm_set_epi64x(aad as i64 * 8, len as i64 * 8);
        lanes_of(ghash::added(sum, lengths, power(key, 1)))
    }
}

/// 1, 2, 3 … at the ends of blocks: J0 is block 1, the key stream begins with block 2.
static NUMBERS: [Block; SHORT / 16 + 1] = {
    let mut numbers = [[0; 16]; SHORT / 16 + 1];
    let mut n = 0;
    while n < numbers.len() {
        numbers[n][15] = n as u8 + 1;
        n += 1;
    }
    numbers
};

/// Bytes of a value whose key stream is its group's.
#[inline]
fn rest(len: usize) -> usize {
    if len <= SHORT { len } else { len % FILL }
}

/// The AAD of value n beyond what all have in whole blocks, and zeros up to a block's end. How long it is.
#[inline]
fn own_aad(fixed: &[u8], write: &mut dyn FnMut(usize, &mut Vec<u8>), n: usize, own: &mut Vec<u8>) -> u32 {
    let from = own.len();
    own.extend_from_slice(fixed.as_chunks::<16>().1);
    write(n, own);
    let len = own.len().saturating_sub(from);
    pad(own);
    len as u32
}

/// Zeros up to a block's end.
#[inline]
fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(16), 0);
}

fn first(start: [u8; NONCE_LEN]) -> u128 {
    let mut wide = [0; 16];
    wide[4..].copy_from_slice(&start);
    u128::from_be_bytes(wide)
}
