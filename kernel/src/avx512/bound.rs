//! What values are bound to: GHASH of their AAD, once for all of them or for each its own.

use core::arch::x86_64::*;

use super::ghash::{Sum, absorbed, added, each, everywhere, nothing, product, reversed};
use super::group::Group;
use super::key::Key;
use super::lanes::{lanes, load, load_four, load_sizes, there};
use super::{GROUP, MOST, POWERS};
use crate::values::Aads;

/// The AAD of a batch.
pub(super) struct Bound {
    /// GHASH of all of it, or of the whole blocks that all begin with.
    state: __m128i,
    /// Bytes that are in there.
    len: usize,
    own: Option<Own>,
}

/// What of their AAD values have for themselves.
struct Own {
    /// What comes after the whole blocks that all begin with.
    rest: [u8; 16],
    rest_len: usize,
    /// What follows that, of one value after another, between blocks of zeros.
    bytes: Vec<u8>,
    /// Where each would begin if the rest were in front of it, and how long it would be.
    from: [usize; GROUP + 4],
    len: [u64; GROUP + 4],
}

/// What fours of one length, and of AADs of one length, begin with: the products of their length blocks and of what all AADs begin
/// with.
pub(super) struct Cached {
    len: u32,
    own_len: u64,
    sum: Sum,
}

on_avx512! {
    pub(super) fn nothing_cached() -> Cached {
        Cached { len: u32::MAX, own_len: 0, sum: nothing() }
    }

    /// What these begin with, if it is known and they are bound to nothing of their own.
    pub(super) fn known(bound: &Bound, cached: &Cached, len: [u32; 4]) -> Option<Sum> {
        let alike = len[0] == cached.len && len[1] == cached.len && len[2] == cached.len && len[3] == cached.len;
        (alike && bound.own.is_none()).then_some(cached.sum)
    }

    pub(super) fn bound(key: &Key, aads: &Aads<'_>) -> Bound {
        let zero = _mm_setzero_si128();
        match aads {
            Aads::Same(aad) => Bound { state: absorbed(key, zero, aad), len: aad.len(), own: None },
            Aads::Each { fixed, .. } => {
                let (whole, rest) = fixed.as_chunks::<16>();
                let whole = whole.as_flattened();
                let mut own = Own { rest: [0; 16], rest_len: rest.len(), bytes: Vec::new(), from: [0; GROUP + 4], len: [0; GROUP + 4] };
                own.rest[..rest.len()].copy_from_slice(rest);
                Bound { state: absorbed(key, zero, whole), len: whole.len(), own: Some(own) }
            }
        }
    }

    /// Asks for the AADs of values of a group, of `from` to `until` as far as they are fewer than `count`.
    pub(super) fn ask(bound: &mut Bound, aads: &mut Aads<'_>, group: &Group, order: &[u8; GROUP + 64], (from, until, count): (usize, usize, usize)) {
        let (Some(own), Aads::Each { write, .. }) = (&mut bound.own, aads) else { return };
        own.bytes.clear();
        own.bytes.extend_from_slice(&[0; 16]);
        let places = own.from.iter_mut().zip(&mut own.len);
        for ((at, len), order) in places.zip(&order[from..until.min(count)]) {
            let item = &group.short[usize::from(*order) % GROUP];
            let begin = own.bytes.len();
            write(item.number as usize, &mut own.bytes);
            *at = begin - own.rest_len;
            *len = own.bytes.len().saturating_sub(*at) as u64;
        }
        own.bytes.extend_from_slice(&[0; 16]);
        // Lanes beyond the last value are as that.
        for beyond in count.max(from + 1)..until {
            let at = beyond - from;
            (own.from[at], own.len[at]) = (own.from[at - 1], own.len[at - 1]);
        }
    }

    /// The products of what four values are bound to and of their lengths, and what is to be added to their first blocks: `at` is the
    /// first's place among those that were asked for, `lens` has the length in each lane, `blocks` are the values'.
    pub(super) fn begun(key: &Key, bound: &Bound, cached: &mut Cached, at: usize, lens: __m512i, len: [u32; 4]) -> (Sum, __m512i) {
        let blocks = |lane: usize| (len[lane] as usize).div_ceil(16);
        let blocks = [blocks(0), blocks(1), blocks(2), blocks(3)];
        let alike = len[0] == len[3] && len[1] == len[3] && len[2] == len[3];
        let Some(own) = &bound.own else {
            return match alike {
                true => (begun_alike(key, bound, cached, lens, len[3], 0), _mm512_setzero_si512()),
                false => ended(key, _mm512_broadcast_i32x4(bound.state), lens, aad_lens(bound), blocks, nothing()),
            };
        };
        let own_len: &[u64; 4] = own.len[at..].first_chunk().unwrap_or(&[0; 4]);
        let from: &[usize; 4] = own.from[at..].first_chunk().unwrap_or(&[0; 4]);
        let count = |lane: usize| (own_len[lane] as usize).div_ceil(16);
        let count = [count(0), count(1), count(2), count(3)];
        let most = count[0].max(count[1]).max(count[2]).max(count[3]);
        let least = count[0].min(count[1]).min(count[2]).min(count[3]);
        let own_lens = _mm512_castsi256_si512(load_sizes(own_len));
        let all_lens = _mm512_add_epi64(aad_lens(bound), _mm512_maskz_expand_epi64(0xaa, own_lens));
        if least == 0 || most + MOST + 1 > POWERS {
            let state = |lane: usize| absorbed_own(key, bound.state, own, from[lane], own_len[lane] as usize);
            return ended(key, lanes(state(0), state(1), state(2), state(3)), lens, all_lens, blocks, nothing());
        }
        let alike = alike && own_len[0] == own_len[3] && own_len[1] == own_len[3] && own_len[2] == own_len[3];
        let mut sum = match alike {
            true => begun_alike(key, bound, cached, lens, len[3], own_len[3]),
            false => nothing(),
        };
        let own_lens = _mm512_maskz_expand_epi64(0x55, own_lens);
        let mut before = match alike {
            true => _mm512_setzero_si512(),
            false => _mm512_broadcast_i32x4(bound.state),
        };
        let even = most == least && blocks[0] == blocks[3];
        for j in 0..most {
            let mut x = load_four(&own.bytes, [from[0] + 16 * j, from[1] + 16 * j, from[2] + 16 * j, from[3] + 16 * j]);
            if j == 0 {
                let rest = _bzhi_u64(u64::MAX, own.rest_len as u32) & 0xffff;
                x = _mm512_mask_mov_epi8(x, rest * 0x0001_0001_0001_0001, _mm512_broadcast_i32x4(load(&own.rest)));
            }
            // Beyond its AAD a lane's block is zero.
            x = reversed(_mm512_maskz_mov_epi8(there(own_lens, j), x));
            let power = |lane: usize| (blocks[lane] + 1 + count[lane]).saturating_sub(j);
            let power = match even {
                true => everywhere(key, power(0)),
                false => each(key, [power(0), power(1), power(2), power(3)]),
            };
            sum = added(sum, _mm512_xor_si512(x, before), power);
            before = _mm512_setzero_si512();
        }
        match alike {
            true => (sum, before),
            false => ended(key, before, lens, all_lens, blocks, sum),
        }
    }

    /// With the block of lengths; what comes before a value that has no block is added to that.
    fn ended(key: &Key, before: __m512i, lens: __m512i, aad_lens: __m512i, blocks: [usize; 4], sum: Sum) -> (Sum, __m512i) {
        let mut before = before;
        // Bits of AAD, bits of ciphertext, reversed.
        let mut lengths = _mm512_slli_epi64::<3>(_mm512_or_si512(aad_lens, lens));
        // The first has the fewest.
        if blocks[0] == 0 {
            let mut empty = 0;
            for (lane, count) in blocks.iter().enumerate() {
                empty |= u16::from(*count == 0) * (0xf << (4 * lane));
            }
            lengths = _mm512_mask_xor_epi32(lengths, empty, lengths, before);
            before = _mm512_maskz_mov_epi32(!empty, before);
        }
        (added(sum, lengths, everywhere(key, 1)), before)
    }

    /// The products of four values of one length, with AADs of one length.
    fn begun_alike(key: &Key, bound: &Bound, cached: &mut Cached, lens: __m512i, len: u32, own_len: u64) -> Sum {
        if cached.len != len || cached.own_len != own_len {
            let aad_lens = _mm512_add_epi64(aad_lens(bound), _mm512_maskz_set1_epi64(0xaa, own_len as i64));
            let sum = product(_mm512_slli_epi64::<3>(_mm512_or_si512(aad_lens, lens)), everywhere(key, 1));
            let blocks = len.div_ceil(16) as usize + own_len.div_ceil(16) as usize;
            let sum = added(sum, _mm512_broadcast_i32x4(bound.state), everywhere(key, blocks + 1));
            *cached = Cached { len, own_len, sum };
        }
        cached.sum
    }

    /// Of what all AADs begin with, where lengths of AADs stand in their blocks.
    fn aad_lens(bound: &Bound) -> __m512i {
        _mm512_maskz_set1_epi64(0xaa, bound.len as i64)
    }

    /// GHASH after one value's AAD.
    fn absorbed_own(key: &Key, state: __m128i, own: &Own, from: usize, len: usize) -> __m128i {
        let mut aad = own.rest[..own.rest_len].to_vec();
        aad.extend_from_slice(&own.bytes[from + own.rest_len..from + len]);
        absorbed(key, state, &aad)
    }

    /// GHASH after one value's AAD, and how long that is. The value is asked for.
    pub(super) fn begun_one(key: &Key, bound: &mut Bound, aads: &mut Aads<'_>, number: usize) -> (__m128i, usize) {
        let (Some(own), Aads::Each { write, .. }) = (&mut bound.own, aads) else { return (bound.state, bound.len) };
        own.bytes.clear();
        own.bytes.extend_from_slice(&own.rest[..own.rest_len]);
        write(number, &mut own.bytes);
        (absorbed(key, bound.state, &own.bytes), bound.len + own.bytes.len())
    }
}
