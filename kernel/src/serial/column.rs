//! Columns: groups of values, their headers and counter blocks, texts and tags. The same code for registers of one block
//! and of two, which `super::registers` are.

use zeroize::Zeroizing;

use super::long::{CHUNK, added, encrypt, folded, text_chunks, turned};
use super::registers::{
    WIDTH, and as and_lanes, exclusive_or as exclusive_or_lanes, first, load as load_lanes, ones as ones_of_lanes,
    select as select_lanes, store as store_lanes,
};
use crate::serial::ghash::{self, Sum, absorbed, hashed, multiplied, nothing, power, powers_from, reduced, reversed};
use crate::serial::key::Key;
use crate::serial::lanes::{
    Block, Lane, Stream, and, exclusive_or, from_number, is_zero, load, load_at, load_some, ones, or, store, store_at,
    store_some, with_word, zero,
};
use crate::serial::{AADS, BLOCKS, LARGE, SHORT, Start};
use crate::values::{Aads, ROW_LEN, Values};
use crate::{HEADER, NONCE_LEN, OVERHEAD};

/// Bytes that fill all registers.
const FILL: usize = 16 * CHUNK;
/// Most counter blocks of a value in its group.
const MOST: usize = SHORT / 16 + 1;

/// A value of a group.
#[derive(Clone, Copy, Default)]
struct Placed {
    number: u32,
    /// Where its text is, and how long.
    from: u32,
    len: u32,
    /// Where it goes.
    to: u32,
    /// Its counter blocks in the group.
    blocks: u32,
    /// Bytes of AAD beyond what all have in whole blocks, and where they are.
    aad: u32,
    aad_at: u32,
}

/// Values whose counter blocks are encrypted at once.
struct Group {
    stream: Zeroizing<Stream>,
    values: [Placed; BLOCKS],
    /// The same by their blocks, if these differ: then what is branched on is mostly as it was for the value before.
    sorted: [Placed; BLOCKS],
    /// Their AADs, each with zeros up to a block's end.
    aads: Vec<u8>,
}

/// How far a group was filled.
struct Gathered {
    /// The next value.
    number: usize,
    count: usize,
    /// Whether they differ in their blocks, and none is long: long ones are better read as they come.
    uneven: bool,
    blocks: usize,
    /// Bytes of output.
    bytes: usize,
}

/// What is written before each value of a group: constant but for the last four bytes of the nonce.
struct Head {
    first: Lane,
    /// Bytes 15 to 31, of which the nonce's last four are zero.
    second: Lane,
    /// The nonce's first eight bytes, and zeros.
    nonce: Lane,
    /// The last four bytes of the nonce of a value numbered 0.
    low: u32,
}

/// What is in all tags.
struct Bound {
    /// GHASH of the AAD that all have, in whole blocks if each has more.
    state: Lane,
    /// Bytes of that AAD.
    len: usize,
}

/// The sums that values of one AAD begin with.
struct Cached {
    /// With that many counter blocks: without the lengths of their texts.
    blocks: u32,
    begun: Sum,
    /// With that length.
    len: u32,
    sum: Sum,
}

/// What is worked on.
struct Work<'a> {
    key: &'a Key,
    stream: &'a [Block],
    aads: &'a [u8],
    head: Head,
    bound: &'a Bound,
    bytes: &'a [u8],
}

on_these! {
    pub(in crate::serial) fn column<const OPEN: bool>(
        key: &Key,
        start: &Start,
        aads: &Aads<'_>,
        values: &Values<'_>,
        out: &mut Vec<u8>,
        opened: &mut [bool],
    ) {
        let mut group = Group {
            stream: Zeroizing::new(Stream([[0; 16]; BLOCKS])),
            values: [Placed::default(); BLOCKS],
            sorted: [Placed::default(); BLOCKS],
            aads: Vec::new(),
        };
        let bound = bound(key, aads, &mut group.aads);
        let mut cached = Cached { blocks: u32::MAX, begun: nothing(), len: u32::MAX, sum: nothing() };
        let mut number = 0;
        while number < values.len() {
            // A group has one upper part of the nonce: it ends where the lower one begins anew.
            let nonce = start.nonce.wrapping_add(number as u128);
            let head = head(start, nonce, number as u32);
            let room = (u32::MAX - nonce as u32) as usize;
            let until = values.len().min(number.saturating_add(room).saturating_add(1));
            let gathered = gather::<OPEN>(&mut group, values, (number, until), aads);
            number = gathered.number;
            if gathered.uneven {
                sort(&mut group, gathered.count);
            }
            let placed = &if gathered.uneven { &group.sorted } else { &group.values }[..gathered.count];
            counters::<OPEN>(&mut group.stream.0, placed, &head, values.bytes());
            encrypt(key, &mut group.stream.0[..gathered.blocks.next_multiple_of(CHUNK)]);
            // Zeros first: what is sealed never stands in the output as plaintext, whatever goes wrong. It also brings the
            // lines into the cache.
            let to = out.len();
            out.resize(to + gathered.bytes, 0);
            let work = Work { key, stream: &group.stream.0, aads: &group.aads, head, bound: &bound, bytes: values.bytes() };
            finish::<OPEN>(&work, placed, &mut out[to..], opened, &mut cached);
        }
    }

    /// What comes before the values of a group, of which that is the first, and its nonce.
    fn head(start: &Start, nonce: u128, number: u32) -> Head {
        let (mut first, mut second) = ([0; 16], [0; 16]);
        first.copy_from_slice(&start.prefix[..16]);
        second[..4].copy_from_slice(&start.prefix[15..]);
        let upper = ((nonce >> 32) as u64).to_be_bytes();
        second[4..12].copy_from_slice(&upper);
        Head {
            first: load(&first),
            second: load(&second),
            nonce: from_number(u128::from(u64::from_le_bytes(upper))),
            low: (nonce as u32).wrapping_sub(number),
        }
    }

    /// The last four bytes of a nonce.
    fn low(head: &Head, number: u32) -> u32 {
        head.low.wrapping_add(number).to_be()
    }

    /// The nonce of a value, given before its text if that is sealed; and zeros.
    fn nonce<const OPEN: bool>(placed: &Placed, head: &Head, bytes: &[u8]) -> Lane {
        match OPEN {
            true => with_word::<3>(load_at(bytes, placed.from as usize - NONCE_LEN), 0),
            false => with_word::<2>(head.nonce, low(head, placed.number)),
        }
    }

    fn bound(key: &Key, aads: &Aads<'_>, scratch: &mut Vec<u8>) -> Bound {
        let aad = match aads {
            Aads::Same(aad) => aad,
            Aads::Each { fixed, .. } => fixed.as_chunks::<16>().0.as_flattened(),
        };
        scratch.extend_from_slice(aad);
        pad(scratch);
        Bound { state: absorbed(key, zero(), scratch.as_chunks().0), len: aad.len() }
    }

    /// The sum, and what the length of the AAD adds.
    fn with_aad_length(key: &Key, bound: &Bound, sum: Sum, placed: &Placed) -> Sum {
        let len = bound.len as u64 + u64::from(placed.aad);
        let (powers, halves) = powers_from(key, 1);
        ghash::added(sum, from_number(u128::from(len * 8) << 64), load(&powers[0]), load(&halves[0]))
    }

    /// Seals or opens so many bytes of the text with the key stream there; the sum after their ciphertext.
    fn text<const OPEN: bool>(key: &Key, stream: &[Block], text: &[u8], len: usize, out: &mut [u8], sum: Sum) -> Sum {
        let mut sum = sum;
        let (powers, halves) = powers_from(key, stream.len() + 1);
        let (lanes, whole) = (len / (16 * WIDTH), len / 16);
        let mut many = [first(sum.low), first(sum.middle), first(sum.high)];
        let (texts, outs) = (&text.as_chunks().0[..lanes], &mut out.as_chunks_mut().0[..lanes]);
        let streams = &stream.as_flattened().as_chunks().0[..lanes];
        let factors = (&powers.as_flattened().as_chunks().0[..lanes], &halves.as_flattened().as_chunks().0[..lanes]);
        let factors = factors.0.iter().zip(factors.1);
        for (((text, out), stream), (power, halves)) in texts.iter().zip(outs).zip(streams).zip(factors) {
            let given = load_lanes(text);
            let made = exclusive_or_lanes(given, load_lanes(stream));
            store_lanes(out, made);
            many = added(many, turned(if OPEN { given } else { made }), load_lanes(power), load_lanes(halves));
        }
        let mut n = lanes * WIDTH;
        if WIDTH > 1
            && n + WIDTH == stream.len()
            && let (Some(given), Some(out)) = (text[16 * n..].first_chunk(), out[16 * n..].first_chunk_mut())
            && let (Some(stream), Some(power), Some(halves)) = (
                stream.as_flattened()[16 * n..].first_chunk(),
                powers.as_flattened()[16 * n..].first_chunk(),
                halves.as_flattened()[16 * n..].first_chunk(),
            )
        {
            let (given, ones) = (load_lanes(given), ones_of_lanes(len - 16 * n));
            let made = exclusive_or_lanes(given, load_lanes(stream));
            let cipher = and_lanes(if OPEN { given } else { made }, ones);
            // What is written beyond a sealed value is where its tag comes.
            store_lanes(out, if OPEN { select_lanes(ones, made, load_lanes(out)) } else { cipher });
            many = added(many, turned(cipher), load_lanes(power), load_lanes(halves));
            n += WIDTH;
        }
        if n > 0 {
            sum = folded(many);
        }
        if n < whole {
            let given = load_at(text, 16 * n);
            let made = exclusive_or(given, load(&stream[n]));
            store_at(out, 16 * n, made);
            sum = ghash::added(sum, reversed(if OPEN { given } else { made }), load(&powers[n]), load(&halves[n]));
            n += 1;
        }
        if n < stream.len() {
            let left = len - 16 * n;
            let given = load_some(&text[16 * n..], left);
            let made = and(exclusive_or(given, load(&stream[n])), ones(left));
            match OPEN {
                true => store_some(&mut out[16 * n..], made, left),
                // What is written beyond the value is where its tag comes.
                false => store_at(out, 16 * n, made),
            }
            sum = ghash::added(sum, reversed(if OPEN { given } else { made }), load(&powers[n]), load(&halves[n]));
        }
        sum
    }

    /// What the length of a text adds to its tag.
    fn of_length(key: &Key, len: usize) -> Lane {
        match key.lengths_of_blocks.get(len / 16) {
            Some(blocks) => exclusive_or(load(blocks), load(&key.lengths_beyond[len % 16])),
            None => multiplied(from_number(len as u128 * 8), power(key, 1)),
        }
    }
}

never_inlined! {
    /// Takes values in, up to `until` or as many as there is room for.
    fn gather<const OPEN: bool>(group: &mut Group, values: &Values<'_>, (number, until): (usize, usize), aads: &Aads<'_>) -> Gathered {
        let mut gathered = Gathered { number, count: 0, uneven: false, blocks: 0, bytes: 0 };
        let (mut first, mut differ, mut longest) = (None, 0, 0);
        let mut places = group.values.iter_mut();
        group.aads.clear();
        for (n, pair) in (number..until).zip(values.offsets()[number..=until].windows(2)) {
            gathered.number = n + 1;
            // Offsets ascend.
            let (mut from, mut len) = (pair[0] as u32, (pair[1] - pair[0]) as u32);
            // What is too short to be a sealed value is none.
            if values.is_null(n) || (OPEN && (len as usize) < OVERHEAD) {
                continue;
            }
            if OPEN {
                (from, len) = (from + HEADER as u32, len - OVERHEAD as u32);
            }
            let blocks = rest(len as usize).div_ceil(16) + 1;
            if gathered.blocks + blocks > BLOCKS || gathered.bytes > LARGE || group.aads.len() > AADS {
                gathered.number = n;
                break;
            }
            // Each takes a block at least: there are as many of these.
            let Some(placed) = places.next() else { break };
            let (aad_at, mut aad) = (group.aads.len() as u32, 0);
            if let Aads::Each { fixed, rows } = aads {
                aad = own_aad(fixed, rows.row(n), &mut group.aads);
            }
            *placed = Placed { number: n as u32, from, len, to: gathered.bytes as u32, blocks: blocks as u32, aad, aad_at };
            differ |= blocks ^ *first.get_or_insert(blocks);
            longest = longest.max(len as usize);
            gathered.blocks += blocks;
            gathered.bytes += len as usize + if OPEN { 0 } else { OVERHEAD };
        }
        gathered.uneven = differ != 0 && longest <= SHORT;
        gathered.count = BLOCKS - places.len();
        gathered
    }

    /// Sorts a group by its values' blocks.
    fn sort(group: &mut Group, count: usize) {
        let mut ends = [0_u32; MOST + 2];
        let class = |placed: &Placed| placed.blocks as usize % (MOST + 1);
        for placed in &group.values[..count] {
            ends[class(placed) + 1] += 1;
        }
        for n in 1..ends.len() {
            ends[n] += ends[n - 1];
        }
        for placed in &group.values[..count] {
            let end = &mut ends[class(placed)];
            group.sorted[*end as usize % BLOCKS] = *placed;
            *end += 1;
        }
    }

    /// The counter blocks of all.
    fn counters<const OPEN: bool>(stream: &mut [Block], placed: &[Placed], head: &Head, bytes: &[u8]) {
        let mut stream = stream;
        for placed in placed {
            let own;
            (own, stream) = stream.split_at_mut(placed.blocks as usize);
            let nonce = nonce::<OPEN>(placed, head, bytes);
            for (block, number) in own.iter_mut().zip(&NUMBERS) {
                store(block, or(nonce, load(number)));
            }
            if placed.len as usize > SHORT {
                for (n, block) in (placed.len as usize / FILL * CHUNK + 2..).zip(&mut own[1..]) {
                    store(block, with_word::<3>(nonce, (n as u32).to_be()));
                }
            }
        }
    }

    /// Writes a group: headers, ciphertexts and tags, or plaintexts. Where a tag is wrong, zeros are put there again.
    fn finish<const OPEN: bool>(work: &Work<'_>, placed: &[Placed], out: &mut [u8], opened: &mut [bool], cached: &mut Cached) {
        let Work { key, stream, aads, head, bound, bytes } = work;
        let before = if OPEN { 0 } else { HEADER };
        let mut stream = *stream;
        for placed in placed {
            let len = placed.len as usize;
            let own;
            (own, stream) = stream.split_at(placed.blocks as usize);
            let Some((mask, own)) = own.split_first() else { break };
            let given = &bytes[placed.from as usize..];
            let out = &mut out[placed.to as usize..];
            let mut done = 0;
            // What is cached is of values without an AAD of their own.
            if placed.len != cached.len || !aads.is_empty() {
                let same = aads.is_empty() && len <= SHORT;
                if !same || placed.blocks != cached.blocks {
                    cached.blocks = if same { placed.blocks } else { u32::MAX };
                    let aad = &aads[placed.aad_at as usize..][..(placed.aad as usize).next_multiple_of(16)];
                    let (mut aad, mut state) = (aad.as_chunks().0, bound.state);
                    if len > SHORT {
                        done = len - rest(len);
                        state = long::<OPEN>(work, placed, aad, &given[..len], &mut out[before..before + len]);
                        aad = &[];
                    }
                    cached.begun = with_aad_length(key, bound, hashed(key, state, aad, placed.blocks as usize), placed);
                }
                cached.len = if same { placed.len } else { u32::MAX };
                cached.sum = ghash::with_reduced(cached.begun, of_length(key, len));
            }
            let sum = text::<OPEN>(key, own, &given[done..], len - done, &mut out[before + done..], cached.sum);
            let tag = exclusive_or(reversed(reduced(sum)), load(mask));
            if OPEN {
                let wrong = exclusive_or(tag, load_at(given, len));
                // All bytes at once; what is branched on is the verdict.
                let is_right = is_zero(wrong);
                opened[placed.number as usize] = is_right;
                if !is_right {
                    out[..len].fill(0);
                }
            } else {
                store_at(out, 0, head.first);
                store_at(out, HEADER - 16, with_word::<3>(head.second, low(head, placed.number)));
                store_at(out, HEADER + len, tag);
            }
        }
    }

    /// Seals or opens the chunks of a long text; GHASH after them.
    fn long<const OPEN: bool>(work: &Work<'_>, placed: &Placed, aad: &[Block], text: &[u8], out: &mut [u8]) -> Lane {
        let nonce = nonce::<OPEN>(placed, &work.head, work.bytes);
        let state = absorbed(work.key, work.bound.state, aad);
        text_chunks::<OPEN>(work.key, nonce, text, out, state)
    }
}

/// 1, 2, 3 … at the ends of blocks: J0 is block 1, the key stream begins with block 2.
static NUMBERS: [Block; MOST] = {
    let mut numbers = [[0; 16]; MOST];
    let mut n = 0;
    while n < numbers.len() {
        numbers[n][15] = n as u8 + 1;
        n += 1;
    }
    numbers
};

/// Bytes of a text whose key stream is its group's.
#[inline]
fn rest(len: usize) -> usize {
    if len <= SHORT { len } else { len % FILL }
}

/// The AAD of a value beyond what all have in whole blocks, and zeros up to a block's end. How long it is.
#[inline]
fn own_aad(fixed: &[u8], (row_len, row): ([u8; ROW_LEN], &[u8]), own: &mut Vec<u8>) -> u32 {
    let from = own.len();
    own.extend_from_slice(fixed.as_chunks::<16>().1);
    own.extend_from_slice(&row_len);
    own.extend_from_slice(row);
    let len = own.len() - from;
    pad(own);
    len as u32
}

/// Zeros up to a block's end.
#[inline]
fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(16), 0);
}
