//! What values are bound to: GHASH of their AAD, once for all of them or for each its own.

use core::arch::x86_64::*;

use super::four::Four;
use super::ghash::{Sum, absorbed, added, broadcast, each, everywhere, nothing, product, reversed};
use super::key::Key;
use super::lanes::{lanes, load, numbers, there};
use super::{MOST, POWERS};
use crate::values::{Aads, ROW_LEN, Values};

/// The AAD of a batch.
pub(super) struct Bound<'a> {
    /// GHASH of all of it, or of the whole blocks that all begin with.
    state: __m128i,
    /// Bytes that are in there.
    len: usize,
    own: Option<Own<'a>>,
}

/// What of their AAD values have for themselves: the rest of what all begin with, the length of a row, the row.
struct Own<'a> {
    rest_len: usize,
    /// The first two blocks.
    fronts: [Front; 2],
    rows: Values<'a>,
}

/// What comes before rows in a block.
#[derive(Clone, Copy)]
struct Front {
    /// What all begin with, and zeros.
    rest: [u8; 16],
    /// Which byte is which of the row's length; none where the upper bit is set.
    places: [u8; 16],
    /// Bytes before the row, in each block of a register.
    before_row: u64,
}

/// What fours of one length, and of AADs of one length, begin with: the products of their length blocks and of what all AADs begin
/// with.
pub(super) struct Cached {
    len: u32,
    own_len: u32,
    sum: Sum,
}

on_avx512! {
    pub(super) fn nothing_cached() -> Cached {
        Cached { len: u32::MAX, own_len: 0, sum: nothing() }
    }

    pub(super) fn bound<'a>(key: &Key, aads: &Aads<'a>) -> Bound<'a> {
        let zero = _mm_setzero_si128();
        match aads {
            Aads::Same(aad) => Bound { state: absorbed(key, zero, aad), len: aad.len(), own: None },
            Aads::Each { fixed, rows } => {
                let (whole, rest) = fixed.as_chunks::<16>();
                let whole = whole.as_flattened();
                let own = Own { rest_len: rest.len(), fronts: [front(rest, 0), front(rest, 1)], rows: *rows };
                Bound { state: absorbed(key, zero, whole), len: whole.len(), own: Some(own) }
            }
        }
    }

    /// What comes before rows in block j, behind the rest of what all begin with.
    fn front(rest: &[u8], j: usize) -> Front {
        let (mut both, mut places) = ([0; 32], [0x80; 32]);
        both[..rest.len()].copy_from_slice(rest);
        places[rest.len()..rest.len() + ROW_LEN].copy_from_slice(&[0, 1, 2, 3]);
        let (mut front, before_row) = (Front { rest: [0; 16], places: [0; 16], before_row: 0 }, rest.len() + ROW_LEN);
        front.rest.copy_from_slice(&both[16 * j..16 * j + 16]);
        front.places.copy_from_slice(&places[16 * j..16 * j + 16]);
        front.before_row = repeated(before_row.saturating_sub(16 * j));
        front
    }

    /// What values of these lengths begin with, if it is known and they are bound to nothing of their own.
    pub(super) fn known<'a>(bound: &Bound<'_>, cached: &'a Cached, lens: __m512i) -> Option<&'a Sum> {
        let alike = all(lens, _mm512_set1_epi32(cached.len as i32));
        (alike && bound.own.is_none()).then_some(&cached.sum)
    }

    /// The products of what four values are bound to and of their lengths, and what is to be added to their first blocks. `lens`
    /// has the length in each lane, `blocks` are the values'.
    pub(super) fn begun(key: &Key, bound: &Bound<'_>, cached: &mut Cached, four: &Four<'_>, lens: __m512i, blocks: [usize; 4]) -> (Sum, __m512i) {
        if let Some(own) = &bound.own {
            return begun_own(key, bound, own, cached, four, lens, blocks);
        }
        if are_alike(lens) {
            return (begun_alike(key, bound, cached, lens, (four.items[0].len, 0)), _mm512_setzero_si512());
        }
        ended(key, _mm512_broadcast_i32x4(bound.state), lens, aad_lens(bound), blocks, nothing())
    }

    /// Whether the first numbers of all lanes are those.
    fn all(x: __m512i, wanted: __m512i) -> bool {
        _mm512_mask_cmpneq_epi32_mask(0x1111, x, wanted) == 0
    }

    fn are_alike(x: __m512i) -> bool {
        all(x, _mm512_shuffle_i32x4::<0>(x, x))
    }
}

apart_on_avx512! {
    /// As [`begun`], of values with rows.
    fn begun_own(key: &Key, bound: &Bound<'_>, own: &Own<'_>, cached: &mut Cached, four: &Four<'_>, lens: __m512i, blocks: [usize; 4]) -> (Sum, __m512i) {
        let zero = _mm512_setzero_si512();
        let row = |lane: usize| own.rows.place(four.items[lane].number as usize);
        let ((a, a_len), (b, b_len), (c, c_len), (d, d_len)) = (row(0), row(1), row(2), row(3));
        let row_lens = numbers([a_len, b_len, c_len, d_len]);
        let own_lens = _mm512_maskz_add_epi32(0x1111, row_lens, _mm512_set1_epi32(own_len(own, 0) as i32));
        let all_lens = _mm512_add_epi64(aad_lens(bound), _mm512_bslli_epi128::<8>(own_lens));
        // Blocks are read from before the rows on, and to beyond them.
        let before_row = own_len(own, 0) as usize;
        let longest = a_len.max(b_len).max(c_len).max(d_len);
        let most = own_len(own, longest).div_ceil(16) as usize;
        let bytes = own.rows.bytes();
        if a.min(b).min(c).min(d) < before_row || a.max(b).max(c).max(d) + 16 * most > bytes.len() || most + MOST + 1 > POWERS {
            let state = |lane: usize| absorbed_own(key, bound.state, own, four.items[lane].number as usize);
            return ended(key, lanes(state(0), state(1), state(2), state(3)), lens, all_lens, blocks, nothing());
        }
        let rows_are_alike = are_alike(row_lens);
        let are_alike = rows_are_alike && are_alike(lens);
        let (mut sum, mut before) = match are_alike {
            true => (begun_alike(key, bound, cached, lens, (four.items[0].len, own_len(own, a_len))), zero),
            false => (nothing(), _mm512_broadcast_i32x4(bound.state)),
        };
        let text = |from: usize| bytes[from - before_row..][..16 * most].as_chunks::<16>().0;
        let texts = text(a).iter().zip(text(b)).zip(text(c)).zip(text(d));
        if rows_are_alike && blocks[0] == blocks[3] {
            let first = POWERS - (blocks[0] + most + 1);
            let powers = key.powers[first..].iter().zip(&key.halves[first..]);
            for (j, ((((a, b), c), d), (power, halves))) in texts.zip(powers).enumerate() {
                let x = own_blocks(own, lanes(load(a), load(b), load(c), load(d)), own_lens, row_lens, j);
                sum = added(sum, _mm512_xor_si512(x, before), broadcast(power, halves));
                before = zero;
            }
        } else {
            let end = |lane: usize, len: u32| blocks[lane] + own_len(own, len).div_ceil(16) as usize + 1;
            let (a_end, b_end, c_end, d_end) = (end(0, a_len), end(1, b_len), end(2, c_len), end(3, d_len));
            for (j, (((a, b), c), d)) in texts.enumerate() {
                let x = own_blocks(own, lanes(load(a), load(b), load(c), load(d)), own_lens, row_lens, j);
                let powers = [a_end.saturating_sub(j), b_end.saturating_sub(j), c_end.saturating_sub(j), d_end.saturating_sub(j)];
                sum = added(sum, _mm512_xor_si512(x, before), each(key, powers));
                before = zero;
            }
        }
        match are_alike {
            true => (sum, zero),
            false => ended(key, zero, lens, all_lens, blocks, sum),
        }
    }
}

on_avx512! {
    /// Blocks j of what values have for themselves, reversed. Beyond its end a lane's block is zero.
    fn own_blocks(own: &Own<'_>, text: __m512i, own_lens: __m512i, row_lens: __m512i, j: usize) -> __m512i {
        let mut x = _mm512_maskz_mov_epi8(there(own_lens, j), text);
        if let Some(front) = own.fronts.get(j) {
            let places = _mm512_broadcast_i32x4(load(&front.places));
            x = _mm512_mask_shuffle_epi8(x, front.before_row, row_lens, places);
            x = _mm512_or_si512(x, _mm512_broadcast_i32x4(load(&front.rest)));
        }
        reversed(x)
    }

    /// As many bytes of each block.
    fn repeated(bytes: usize) -> u64 {
        u64::from(_bzhi_u32(0xffff, bytes.min(16) as u32)) * 0x0001_0001_0001_0001
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
    fn begun_alike(key: &Key, bound: &Bound<'_>, cached: &mut Cached, lens: __m512i, (len, own_len): (u32, u32)) -> Sum {
        if cached.len != len || cached.own_len != own_len {
            let aad_lens = _mm512_add_epi64(aad_lens(bound), _mm512_maskz_set1_epi64(0xaa, i64::from(own_len)));
            let sum = product(_mm512_slli_epi64::<3>(_mm512_or_si512(aad_lens, lens)), everywhere(key, 1));
            let blocks = len.div_ceil(16) as usize + own_len.div_ceil(16) as usize;
            let sum = added(sum, _mm512_broadcast_i32x4(bound.state), everywhere(key, blocks + 1));
            *cached = Cached { len, own_len, sum };
        }
        cached.sum
    }

    /// Of what all AADs begin with, where lengths of AADs stand in their blocks.
    fn aad_lens(bound: &Bound<'_>) -> __m512i {
        _mm512_maskz_set1_epi64(0xaa, bound.len as i64)
    }

    /// GHASH after what one value has for itself.
    fn absorbed_own(key: &Key, state: __m128i, own: &Own<'_>, number: usize) -> __m128i {
        let (row_len, row) = own.rows.row(number);
        let mut aad = own.fronts[0].rest[..own.rest_len].to_vec();
        aad.extend_from_slice(&row_len);
        aad.extend_from_slice(row);
        absorbed(key, state, &aad)
    }

    /// GHASH after one value's AAD, and how long that is.
    pub(super) fn begun_one(key: &Key, bound: &Bound<'_>, number: usize) -> (__m128i, usize) {
        let Some(own) = &bound.own else { return (bound.state, bound.len) };
        let (_, row_len) = own.rows.place(number);
        (absorbed_own(key, bound.state, own, number), bound.len + own_len(own, row_len) as usize)
    }
}

/// Bytes of AAD that a value with a row of this length has for itself.
fn own_len(own: &Own<'_>, row_len: u32) -> u32 {
    (own.rest_len + ROW_LEN) as u32 + row_len
}
