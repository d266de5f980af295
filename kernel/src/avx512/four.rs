//! Four short values, each in a lane of its own.

use core::arch::x86_64::*;

use super::POWERS;
use super::bound::{Bound, Cached, begun, known};
use super::ghash::{Sum, added, broadcast, each, everywhere, reduced, reversed};
use super::group::Item;
use super::key::Key;
use super::lanes::{
    Unit, lanes, load, load_blocks, load_four, load_item, load_unit, parts, store, store_some, store_unit, there,
};
use crate::{HEADER, TAG_LEN};

/// What is worked on.
pub(super) struct Work<'a> {
    pub(super) key: &'a Key,
    pub(super) bound: &'a Bound<'a>,
    pub(super) head: Head,
    pub(super) bytes: &'a [u8],
}

/// Four values, of which the last has the most blocks.
pub(super) struct Four<'a> {
    pub(super) items: [&'a Item; 4],
    /// The first encrypts tags, the others are key stream.
    pub(super) units: &'a [Unit],
}

/// What comes before the ciphertext of sealed values, but for the last four bytes of the nonce, which are zero.
#[derive(Clone, Copy)]
pub(super) struct Head {
    /// Bytes 0 to 15.
    pub(super) first: __m128i,
    /// Bytes 15 to 30, in all lanes.
    pub(super) second: __m512i,
    /// The nonce's, then zeros, in all lanes.
    pub(super) nonce: __m512i,
    /// The last four bytes of the nonce of a value numbered 0.
    pub(super) low: u32,
}

on_avx512! {
    /// Of each lane's item: the first number is which value it is, the third how long.
    fn items(four: &[&Item; 4]) -> __m512i {
        lanes(load_item(four[0]), load_item(four[1]), load_item(four[2]), load_item(four[3]))
    }

    /// The last four bytes of the nonces, each the first of its lane.
    fn low(head: &Head, items: __m512i) -> __m512i {
        let order = _mm_set_epi8(-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 1, 2, 3);
        _mm512_shuffle_epi8(_mm512_add_epi32(items, _mm512_set1_epi32(head.low as i32)), _mm512_broadcast_i32x4(order))
    }

    /// Counter blocks of four values: the first unit makes the tags, the others the key stream.
    pub(super) fn counters<const OPEN: bool>(units: &mut [Unit], head: &Head, four: &[&Item; 4], bytes: &[u8]) {
        let mut counter = if OPEN {
            let before = |lane: usize| four[lane].from as usize - 16;
            let nonces = load_blocks(bytes, [before(0), before(1), before(2), before(3)]);
            let order = _mm_set_epi8(-1, -1, -1, -1, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4);
            _mm512_shuffle_epi8(nonces, _mm512_broadcast_i32x4(order))
        } else {
            _mm512_or_si512(head.nonce, _mm512_bslli_epi128::<8>(low(head, items(four))))
        };
        // Big endian, and far from a carry.
        let one = _mm512_maskz_set1_epi32(0x8888, 1 << 24);
        for unit in units {
            counter = _mm512_add_epi32(counter, one);
            store_unit(unit, counter);
        }
    }

    /// Seals four values into their places.
    pub(super) fn seal_four(work: &Work<'_>, four: &Four<'_>, out: &mut [u8], cached: &mut Cached) {
        let (sum, head) = (text::<false>(work, four, out, cached), &work.head);
        let tags = parts(_mm512_xor_si512(reversed(reduced(sum)), load_unit(&four.units[0])));
        let seconds = parts(_mm512_or_si512(head.second, _mm512_bslli_epi128::<12>(low(head, items(&four.items)))));
        for lane in 0..4 {
            let (to, len) = (four.items[lane].to as usize, four.items[lane].len as usize);
            let place = &mut out[to - HEADER..to + len + TAG_LEN];
            store(place, 0, head.first);
            store(place, HEADER - 16, seconds[lane]);
            store(place, HEADER + len, tags[lane]);
        }
    }

    /// Opens four values into their places. Where a tag is wrong, zeros are put there again.
    pub(super) fn open_four(work: &Work<'_>, four: &Four<'_>, out: &mut [u8], opened: &mut [bool], cached: &mut Cached) {
        let sum = text::<true>(work, four, out, cached);
        let tag_at = |lane: usize| (four.items[lane].from + four.items[lane].len) as usize;
        let given = load_blocks(work.bytes, [tag_at(0), tag_at(1), tag_at(2), tag_at(3)]);
        let tags = _mm512_xor_si512(reversed(reduced(sum)), load_unit(&four.units[0]));
        // All bytes of all four at once; what is branched on are the verdicts.
        let wrong = _mm512_cmpneq_epi64_mask(tags, given);
        for (lane, item) in four.items.iter().enumerate() {
            opened[item.number as usize] = wrong >> (2 * lane) & 3 == 0;
        }
        if wrong != 0 {
            for (lane, item) in four.items.iter().enumerate() {
                if wrong >> (2 * lane) & 3 != 0 {
                    out[item.to as usize..][..item.len as usize].fill(0);
                }
            }
        }
    }

    /// Puts the texts of four values where they go, sealed or opened; the products of their GHASH.
    fn text<const OPEN: bool>(work: &Work<'_>, four: &Four<'_>, out: &mut [u8], cached: &mut Cached) -> Sum {
        let blocks = |lane: usize| (four.items[lane].len as usize).div_ceil(16);
        let blocks = [blocks(0), blocks(1), blocks(2), blocks(3)];
        // The length, and nothing else, in each lane.
        let lens = _mm512_maskz_shuffle_epi32::<0x02>(0x1111, items(&four.items));
        let own;
        let begun = match known(work.bound, cached, lens) {
            Some(sum) => (sum, _mm512_setzero_si512()),
            None => {
                own = begun(work.key, work.bound, cached, four, lens, blocks);
                (&own.0, own.1)
            }
        };
        match blocks[0] == blocks[3] {
            true => text_even::<OPEN>(work, four, lens, blocks[3], out, begun),
            false => text_uneven::<OPEN>(work, four, lens, blocks, out, begun),
        }
    }

    /// Of as many blocks.
    fn text_even<const OPEN: bool>(work: &Work<'_>, four: &Four<'_>, lens: __m512i, most: usize, out: &mut [u8], begun: (&Sum, __m512i)) -> Sum {
        let (mut sum, mut before) = (*begun.0, begun.1);
        let items = &four.items;
        let value = |lane: usize| &work.bytes[items[lane].from as usize..][..items[lane].len as usize];
        let (a, b, c, d) = (value(0), value(1), value(2), value(3));
        let to = [items[0].to as usize, items[1].to as usize, items[2].to as usize, items[3].to as usize];
        let stream = &four.units[1..];
        let mut done = 0;
        // The shortest ends these.
        let (first, others) = (a.as_chunks::<16>().0, [b.as_chunks().0, c.as_chunks().0, d.as_chunks().0]);
        let blocks = first.iter().zip(others[0]).zip(others[1]).zip(others[2]);
        let powers = work.key.powers[POWERS - most - 1..].iter().zip(&work.key.halves[POWERS - most - 1..]);
        for ((((a, b), c), d), (unit, (power, halves))) in blocks.zip(stream.iter().zip(powers)) {
            let given = lanes(load(a), load(b), load(c), load(d));
            let made = _mm512_xor_si512(given, load_unit(unit));
            let parts = parts(made);
            for lane in 0..4 {
                store(out, to[lane] + 16 * done, parts[lane]);
            }
            let cipher = reversed(if OPEN { given } else { made });
            sum = added(sum, _mm512_xor_si512(cipher, before), broadcast(power, halves));
            before = _mm512_setzero_si512();
            done += 1;
        }
        if done < most {
            let cipher = last::<OPEN>(work, four, lens, done, out);
            sum = added(sum, _mm512_xor_si512(cipher, before), everywhere(work.key, 2));
        }
        sum
    }

    /// Of different blocks: block j has the power that the length of its own value gives it.
    fn text_uneven<const OPEN: bool>(work: &Work<'_>, four: &Four<'_>, lens: __m512i, blocks: [usize; 4], out: &mut [u8], begun: (&Sum, __m512i)) -> Sum {
        let (mut sum, mut before) = (*begun.0, begun.1);
        let power = |lane: usize, j: usize| (blocks[lane] + 1).saturating_sub(j);
        let powers = |j: usize| each(work.key, [power(0, j), power(1, j), power(2, j), power(3, j)]);
        // The first has the fewest blocks: all of these are whole in each.
        let whole = blocks[0].saturating_sub(1);
        for j in 0..whole {
            let from = |lane: usize| four.items[lane].from as usize + 16 * j;
            let given = load_blocks(work.bytes, [from(0), from(1), from(2), from(3)]);
            let made = _mm512_xor_si512(given, load_unit(&four.units[j + 1]));
            let parts = parts(made);
            for (item, part) in four.items.iter().zip(parts) {
                store(out, item.to as usize + 16 * j, part);
            }
            let cipher = reversed(if OPEN { given } else { made });
            sum = added(sum, _mm512_xor_si512(cipher, before), powers(j));
            before = _mm512_setzero_si512();
        }
        for j in whole..blocks[3] {
            // Beyond a value its block is zero.
            let cipher = tail::<OPEN>(work, four, lens, j, out);
            sum = added(sum, _mm512_xor_si512(cipher, before), powers(j));
            before = _mm512_setzero_si512();
        }
        sum
    }

    /// The last blocks j of four values of as many; the ciphertext, reversed, with zeros beyond.
    fn last<const OPEN: bool>(work: &Work<'_>, four: &Four<'_>, lens: __m512i, j: usize, out: &mut [u8]) -> __m512i {
        let there = there(lens, j);
        let from = |lane: usize| four.items[lane].from as usize + 16 * j;
        let from = [from(0), from(1), from(2), from(3)];
        // Behind what is opened is its tag.
        let given = if OPEN { load_blocks(work.bytes, from) } else { load_four(work.bytes, from) };
        let made = _mm512_maskz_mov_epi8(there, _mm512_xor_si512(given, load_unit(&four.units[j + 1])));
        let parts = parts(made);
        for (item, part) in four.items.iter().zip(parts) {
            let (to, end) = (item.to as usize + 16 * j, (item.to + item.len) as usize);
            match OPEN {
                true => store_some(&mut out[to..end], part),
                // What is written beyond a value is where its tag comes.
                false => store(out, to, part),
            }
        }
        reversed(if OPEN { _mm512_maskz_mov_epi8(there, given) } else { made })
    }
}

apart_on_avx512! {
    /// Blocks j, which are not whole in each value; the ciphertext, reversed, with zeros beyond.
    fn tail<const OPEN: bool>(work: &Work<'_>, four: &Four<'_>, lens: __m512i, j: usize, out: &mut [u8]) -> __m512i {
        let there = there(lens, j);
        let from = |lane: usize| four.items[lane].from as usize + 16 * j;
        let given = load_four(work.bytes, [from(0), from(1), from(2), from(3)]);
        let made = _mm512_maskz_mov_epi8(there, _mm512_xor_si512(given, load_unit(&four.units[j + 1])));
        let parts = parts(made);
        for (item, part) in four.items.iter().zip(parts) {
            let (to, left) = (item.to as usize + 16 * j, (item.len as usize).saturating_sub(16 * j));
            if left > 0 {
                match OPEN {
                    true => store_some(&mut out[to..to + left.min(16)], part),
                    // What is written beyond a value is where its tag comes.
                    false => store(out, to, part),
                }
            }
        }
        reversed(if OPEN { _mm512_maskz_mov_epi8(there, given) } else { made })
    }
}
