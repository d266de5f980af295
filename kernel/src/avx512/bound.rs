//! What values are bound to: GHASH of their AAD, once for all of them or for each its own.

use core::arch::x86_64::*;

use super::ghash::{Sum, absorbed, added, each, everywhere, nothing, product, reversed};
use super::group::Group;
use super::key::Key;
use super::lanes::{lanes, load_four, load_sizes, there};
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
    bytes: Vec<u8>,
    /// Where each begins, and how long it is.
    from: [usize; GROUP + 4],
    len: [u64; GROUP + 4],
}

on_avx512! {
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

    /// Asks for the AAD of some values of a group.
    pub(super) fn ask(bound: &mut Bound, aads: &mut Aads<'_>, group: &Group, order: &[u8; GROUP + 64], (from, until, count): (usize, usize, usize)) {
        let (Some(own), Aads::Each { write, .. }) = (&mut bound.own, aads) else { return };
        own.bytes.clear();
        let (mut begin, mut len) = (0, 0);
        for at in from..until {
            if at < count {
                let item = &group.short[usize::from(order[at]) % GROUP];
                begin = own.bytes.len();
                own.bytes.extend_from_slice(&own.rest);
                own.bytes.truncate(begin + own.rest_len);
                write(item.number as usize, &mut own.bytes);
                len = own.bytes.len().saturating_sub(begin);
            }
            // Lanes beyond the last value are as that.
            (own.from[at - from], own.len[at - from]) = (begin, len as u64);
        }
        // The last can be read in whole blocks, too.
        own.bytes.extend_from_slice(&[0; 16]);
    }

    /// The products of four values' AAD and lengths, and what is to be added to their first blocks: `at` is the first's place among
    /// those that were asked for, `lens` has the length in each lane, `blocks` are the values'.
    pub(super) fn begun(key: &Key, bound: &Bound, at: usize, lens: __m512i, blocks: [usize; 4]) -> (Sum, __m512i) {
        let (mut sum, mut before) = (nothing(), _mm512_broadcast_i32x4(bound.state));
        let mut aad_lens = _mm512_maskz_set1_epi64(0xaa, bound.len as i64);
        if let Some(own) = &bound.own {
            let len: &[u64; 4] = own.len[at..].first_chunk().unwrap_or(&[0; 4]);
            let own_lens = load_sizes(len);
            aad_lens = _mm512_add_epi64(aad_lens, _mm512_maskz_expand_epi64(0xaa, _mm512_castsi256_si512(own_lens)));
            let count = |lane: usize| (len[lane] as usize).div_ceil(16);
            let count = [count(0), count(1), count(2), count(3)];
            let most = count[0].max(count[1]).max(count[2]).max(count[3]);
            let least = count[0].min(count[1]).min(count[2]).min(count[3]);
            let from = |lane: usize| own.from[at + lane];
            if least == 0 || most + MOST + 1 > POWERS {
                let state = |lane: usize| absorbed(key, bound.state, &own.bytes[from(lane)..][..len[lane] as usize]);
                before = lanes(state(0), state(1), state(2), state(3));
            } else {
                let own_lens = _mm512_maskz_expand_epi64(0x55, _mm512_castsi256_si512(own_lens));
                let equal = most == least && blocks[0] == blocks[3];
                for j in 0..most {
                    let from = |lane: usize| from(lane) + 16 * j;
                    let x = load_four(&own.bytes, [from(0), from(1), from(2), from(3)]);
                    let x = reversed(_mm512_maskz_mov_epi8(there(own_lens, j), x));
                    let power = |lane: usize| (blocks[lane] + 1 + count[lane]).saturating_sub(j);
                    // Beyond its AAD a lane's block is zero.
                    let power = match equal {
                        true => everywhere(key, power(0)),
                        false => each(key, [power(0), power(1), power(2), power(3)]),
                    };
                    sum = added(sum, _mm512_xor_si512(x, before), power);
                    before = _mm512_setzero_si512();
                }
            }
        }
        // Bits of AAD, bits of ciphertext, reversed.
        let mut lengths = _mm512_slli_epi64::<3>(_mm512_or_si512(aad_lens, lens));
        let mut empty = 0;
        for (lane, count) in blocks.iter().enumerate() {
            empty |= u16::from(*count == 0) * (0xf << (4 * lane));
        }
        if empty != 0 {
            lengths = _mm512_mask_xor_epi32(lengths, empty, lengths, before);
            before = _mm512_maskz_mov_epi32(!empty, before);
        }
        (added(sum, lengths, everywhere(key, 1)), before)
    }

    /// The products of four values of one length and AAD.
    pub(super) fn begun_alike(key: &Key, bound: &Bound, lens: __m512i, blocks: usize) -> Sum {
        let lengths = _mm512_or_si512(_mm512_maskz_set1_epi64(0xaa, bound.len as i64), lens);
        let sum = product(_mm512_slli_epi64::<3>(lengths), everywhere(key, 1));
        added(sum, _mm512_broadcast_i32x4(bound.state), everywhere(key, blocks + 1))
    }

    /// GHASH after one value's AAD, and how long that is. The value is asked for.
    pub(super) fn begun_one(key: &Key, bound: &mut Bound, aads: &mut Aads<'_>, number: usize) -> (__m128i, usize) {
        let (Some(own), Aads::Each { write, .. }) = (&mut bound.own, aads) else { return (bound.state, bound.len) };
        own.bytes.clear();
        own.bytes.extend_from_slice(&own.rest[..own.rest_len]);
        write(number, &mut own.bytes);
        (absorbed(key, bound.state, &own.bytes), bound.len + own.bytes.len())
    }

    pub(super) fn is_same(bound: &Bound) -> bool {
        bound.own.is_none()
    }
}
