//! Four values side by side, in the four 128-bit lanes of AVX-512 registers: AES by VAES, GHASH by VPCLMULQDQ.
//!
//! *Short values* (up to [`MOST`] blocks) are taken in groups, sorted by their number of blocks, and cut into fours. Unit j of
//! a four holds counter block j of each of its values, so that one multiplication hashes block j of all four, with the
//! power of H that is left to come, and one reduction ends them all. *Long values* have four of their own blocks in the
//! lanes.
//!
//! What is branched on are lengths and nulls, which the sealed column shows anyway; never a byte of a value, of the key
//! or of the key stream.

/// Functions for processors of which [`is_there`] is true.
macro_rules! on_avx512 {
    ($($(#[$more:meta])* $visible:vis fn $name:ident($($given:tt)*) $(-> $result:ty)? $body:block)*) => {
        $($(#[$more])*
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi2,vaes,vpclmulqdq,aes,bmi2")]
        $visible fn $name($($given)*) $(-> $result)? $body)*
    };
}

mod ghash;
mod group;
mod key;
mod lanes;

use core::arch::x86_64::*;

use zeroize::Zeroizing;

use ghash::{
    Sum, absorbed, added, all, folded, load_power, multiplied, nothing, power, powers, powers_from, product, reduced,
    reversed,
};
use group::{Four, Group, sort};
pub(crate) use key::Key;
use key::{encrypt, encrypt_one, scheduled};
use lanes::{Unit, lanes, load, load_many, load_some, load_unit, parts, store, store_lanes, store_many, store_unit};

use crate::values::{Aads, Batch, SealedBatch};
use crate::{HEADER, KEY_LEN, NONCE_LEN, OVERHEAD, PREFIX_LEN};

/// Most blocks of a value that shares registers with others.
const MOST: usize = 16;
/// Most values of a group.
const GROUP: usize = 256;
/// Room for the counter blocks of some fours.
const UNITS: usize = 128;
/// Units that are encrypted at once: enough to hide how long a round takes.
const AT_ONCE: usize = 8;
/// Highest power of H that is kept: a long value is reduced once in so many blocks.
const POWERS: usize = 4 * AT_ONCE;

/// Whether this processor has all that is used here.
pub(crate) fn is_there() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vbmi2")
        && is_x86_feature_detected!("vaes")
        && is_x86_feature_detected!("vpclmulqdq")
        && is_x86_feature_detected!("aes")
        && is_x86_feature_detected!("bmi2")
}

/// What the values of a four have in them before their ciphertext.
#[derive(Clone, Copy)]
struct Bound {
    /// GHASH of the AAD.
    state: __m512i,
    /// Bits of AAD of each.
    bits: [u64; 4],
}

/// What is written before each value of a group: constant but for the last four bytes of the nonce.
#[derive(Clone, Copy)]
struct Head {
    first: [u8; 16],
    /// Bytes 15 to 31 as they lie in memory, of which the nonce's last four are zero.
    second: u128,
    /// The nonce's first eight bytes in front of eight zeros, in all lanes.
    base: __m512i,
}

/// The sum that fours of one length and AAD begin with.
struct Cached {
    len: u32,
    sum: Sum,
}

impl Key {
    /// `None` where the processor cannot.
    #[allow(unsafe_code)] // the way into code for AVX-512
    pub(crate) fn new(key: &[u8; KEY_LEN]) -> Option<Box<Self>> {
        // SAFETY: what the functions are compiled for is there.
        is_there().then(|| unsafe { scheduled(key) })
    }

    /// Seals into `out`, which has exactly the room.
    #[allow(unsafe_code)] // the way into code for AVX-512
    pub(crate) fn seal(&self, batch: &mut Batch<'_>, out: &mut [u8]) {
        // SAFETY: a `Key` exists only where what the functions are compiled for is there.
        unsafe { sealed(self, batch, out) }
    }

    /// By the portable kernel, until there is one here.
    pub(crate) fn open(&self, batch: &mut SealedBatch<'_>, out: &mut [u8], opened: &mut [bool]) {
        crate::portable::Key::new(&self.key()).open(batch, out, opened);
    }
}

on_avx512! {
    /// Seals into `out`, which has exactly the room.
    fn sealed(key: &Key, batch: &mut Batch<'_>, out: &mut [u8]) {
        let values = batch.values;
        let (mut same, mut fixed) = (None, _mm_setzero_si128());
        match &batch.aads {
            Aads::Same(aad) => {
                let state = absorbed(key, _mm_setzero_si128(), aad);
                same = Some(Bound { state: _mm512_broadcast_i32x4(state), bits: [bits(aad.len()); 4] });
            }
            Aads::Each { fixed: aad, .. } => fixed = absorbed(key, _mm_setzero_si128(), aad.as_chunks::<16>().0.as_flattened()),
        }
        let mut own: [Vec<u8>; 4] = Default::default();
        let mut cached = Cached { len: u32::MAX, sum: nothing() };
        let mut units = Zeroizing::new([Unit([0; 64]); UNITS]);
        let mut group = Group::new();
        let mut order = [0_u8; GROUP + 64];
        let mut fours = [Four::default(); GROUP / 4];
        let start = first(batch.start);
        let (mut number, mut to) = (0, 0);
        while number < values.len() {
            // A group has one upper part of the nonce: it ends where the lower one begins anew.
            let nonce = after(start, number);
            let head = head(&batch.prefix, (nonce >> 32) as u64);
            let room = (u32::MAX - nonce as u32) as usize;
            let until = values.len().min(number.saturating_add(room).saturating_add(1));
            let base = number as u32;
            let gathered = group.gather(&values, (number, until), to);
            (number, to) = (gathered.number, gathered.to);
            let (count, differ) = (gathered.count, gathered.differ);
            for [n, to] in &group.long[..gathered.long] {
                let (n, to) = (*n as usize, *to as usize);
                let value = values.get(n).unwrap_or_default();
                let low = (after(start, n) as u32).to_be();
                let bound = match same {
                    Some(bound) => bound,
                    None => bound(key, fixed, &mut batch.aads, &[n as u32; 4], 1, &mut own),
                };
                seal_long(key, &head, low, &bound, value, &mut out[to..to + value.len() + OVERHEAD], &mut units);
            }
            sort(&group.blocks, count, differ == 0, &mut order);
            let low = nonce as u32;
            let low = |four: &Four, lane: usize| low.wrapping_add(four.number[lane].wrapping_sub(base)).to_be();
            let mut from = 0;
            while from < count {
                // Counters of as many fours as there is room for.
                let (mut until, mut used) = (from, 0);
                while until < count {
                    let four = group.four(&values, &order, until);
                    fours[until / 4] = four;
                    let wanted = blocks(four.len[3]) + 1;
                    if used + wanted > UNITS {
                        break;
                    }
                    let low = [low(&four, 0), low(&four, 1), low(&four, 2), low(&four, 3)];
                    counters(&mut units[used..used + wanted], &head, low);
                    (until, used) = (until + 4, used + wanted);
                }
                encrypt(key, &mut units[..used.next_multiple_of(AT_ONCE)]);
                let mut at = 0;
                while from < until {
                    let (four, live) = (&fours[from / 4], (count - from).min(4));
                    let wanted = blocks(four.len[3]) + 1;
                    let (bound, cached) = match same {
                        Some(bound) => (bound, Some(&mut cached)),
                        None => (bound(key, fixed, &mut batch.aads, &four.number, live, &mut own), None),
                    };
                    let sum = seal_four(key, &units[at..at + wanted], four, &bound, values.bytes(), out, cached);
                    let tags = parts(_mm512_xor_si512(reversed(reduced(sum)), load_unit(&units[at])));
                    for (lane, tag) in tags.into_iter().enumerate().take(live) {
                        let to = four.to[lane] as usize;
                        write_head(&head, low(four, lane), &mut out[to..to + HEADER]);
                        store(out, to + HEADER + four.len[lane] as usize, tag);
                    }
                    (from, at) = (from + 4, at + wanted);
                }
            }
        }
    }

    /// What four values are bound to, each to its own. Lanes beyond `live` are as the last that lives.
    fn bound(key: &Key, fixed: __m128i, aads: &mut Aads<'_>, numbers: &[u32; 4], live: usize, own: &mut [Vec<u8>; 4]) -> Bound {
        let mut bits_of = [0; 4];
        for lane in 0..4 {
            own[lane].clear();
            if let Aads::Each { fixed, write } = aads {
                own[lane].extend_from_slice(fixed.as_chunks::<16>().1);
                if lane < live {
                    write(numbers[lane] as usize, &mut own[lane]);
                }
                bits_of[lane] = bits(fixed.len() - fixed.len() % 16 + own[lane].len());
            }
        }
        let (mut most, mut least) = (0, usize::MAX);
        for own in &*own {
            most = most.max(own.len().div_ceil(16));
            least = least.min(own.len());
        }
        if most > POWERS || least == 0 {
            let state = |lane: usize| absorbed(key, fixed, &own[lane]);
            return Bound { state: lanes(state(0), state(1), state(2), state(3)), bits: bits_of };
        }
        let mut sum = nothing();
        let mut before = _mm512_broadcast_i32x4(fixed);
        for j in 0..most {
            let block = |lane: usize| load_some(own[lane].get(16 * j..).unwrap_or_default());
            let power = |lane: usize| power(key, own[lane].len().div_ceil(16).saturating_sub(j));
            let x = _mm512_xor_si512(reversed(lanes(block(0), block(1), block(2), block(3))), before);
            sum = added(sum, x, lanes(power(0), power(1), power(2), power(3)));
            before = _mm512_setzero_si512();
        }
        Bound { state: reduced(sum), bits: bits_of }
    }

    // ---- short values

    /// Counter blocks of four values: the first unit makes the tags, the others the key stream.
    fn counters(units: &mut [Unit], head: &Head, low: [u32; 4]) {
        let low = _mm_set_epi32(low[3] as i32, low[2] as i32, low[1] as i32, low[0] as i32);
        let nonces = _mm512_mask_expand_epi32(head.base, 0x4444, _mm512_castsi128_si512(low));
        for (j, unit) in units.iter_mut().enumerate() {
            store_unit(unit, _mm512_mask_set1_epi32(nonces, 0x8888, (j as u32 + 1).to_be() as i32));
        }
    }

    /// Writes the ciphertexts of four values; the products of their GHASH.
    fn seal_four(key: &Key, units: &[Unit], four: &Four, bound: &Bound, bytes: &[u8], out: &mut [u8], cached: Option<&mut Cached>) -> Sum {
        let len = four.len[3];
        let most = blocks(len);
        if blocks(four.len[0]) != most {
            return seal_uneven(key, units, four, bound, bytes, out);
        }
        let begin = || added(product(lengths(bound, four), all(power(key, 1))), bound.state, all(power(key, most + 1)));
        let equal = four.len[0] == len && four.len[1] == len && four.len[2] == len;
        let sum = match cached {
            Some(cached) if equal => {
                if cached.len != len {
                    *cached = Cached { len, sum: begin() };
                }
                cached.sum
            }
            _ => begin(),
        };
        seal_even(key, units, four, most, bytes, out, sum)
    }

    /// Four values of as many blocks.
    fn seal_even(key: &Key, units: &[Unit], four: &Four, most: usize, bytes: &[u8], out: &mut [u8], sum: Sum) -> Sum {
        let mut sum = sum;
        let value = |lane: usize| &bytes[four.from[lane] as usize..][..four.len[lane] as usize];
        let (a, b, c, d) = (value(0), value(1), value(2), value(3));
        let (to, stream) = (&four.to, &units[1..]);
        let mut done = 0;
        // The shortest ends these.
        let (first, others) = (a.as_chunks::<16>().0, [b.as_chunks().0, c.as_chunks().0, d.as_chunks().0]);
        let blocks = first.iter().zip(others[0]).zip(others[1]).zip(others[2]);
        let ahead = stream.iter().zip(powers_from(key, most + 1));
        for ((((a, b), c), d), (unit, power)) in blocks.zip(ahead) {
            let cipher = _mm512_xor_si512(lanes(load(a), load(b), load(c), load(d)), load_unit(unit));
            store_lanes(out, to, HEADER + 16 * done, cipher);
            sum = added(sum, reversed(cipher), all(load_power(power)));
            done += 1;
        }
        if done < most {
            let tails = [&a[16 * done..], &b[16 * done..], &c[16 * done..], &d[16 * done..]];
            let cipher = sealed_tails(tails, &stream[done]);
            // What is written beyond a value is where its tag comes.
            store_lanes(out, to, HEADER + 16 * done, cipher);
            sum = added(sum, reversed(cipher), all(power(key, 2)));
        }
        sum
    }

    /// Four values of different blocks: block j has the power that the length of its own value gives it.
    fn seal_uneven(key: &Key, units: &[Unit], four: &Four, bound: &Bound, bytes: &[u8], out: &mut [u8]) -> Sum {
        let value = |lane: usize| &bytes[four.from[lane] as usize..][..four.len[lane] as usize];
        let plain = [value(0), value(1), value(2), value(3)];
        let count = |lane: usize| blocks(four.len[lane]);
        let count = [count(0), count(1), count(2), count(3)];
        let power_at = |lane: usize, j: usize| power(key, (count[lane] + 1).saturating_sub(j));
        let powers_at = |j: usize| lanes(power_at(0, j), power_at(1, j), power_at(2, j), power_at(3, j));
        let mut empty = 0;
        for (lane, count) in count.iter().enumerate() {
            empty |= u16::from(*count == 0) * (0xf << (4 * lane));
        }
        let lengths = lengths(bound, four);
        let mut sum = product(_mm512_mask_xor_epi32(lengths, empty, lengths, bound.state), all(power(key, 1)));
        let mut before = _mm512_maskz_mov_epi32(!empty, bound.state);
        // The first has the fewest blocks: all of these are whole in each.
        let whole = count[0].saturating_sub(1);
        for j in 0..whole {
            let block = |lane: usize| load(chunk(plain[lane], j));
            let cipher = _mm512_xor_si512(lanes(block(0), block(1), block(2), block(3)), load_unit(&units[j + 1]));
            store_lanes(out, &four.to, HEADER + 16 * j, cipher);
            sum = added(sum, _mm512_xor_si512(reversed(cipher), before), powers_at(j));
            before = _mm512_setzero_si512();
        }
        for j in whole..count[3] {
            let tail = |lane: usize| plain[lane].get(16 * j..).unwrap_or_default();
            let cipher = sealed_tails([tail(0), tail(1), tail(2), tail(3)], &units[j + 1]);
            let parts = parts(cipher);
            for lane in 0..4 {
                if j < count[lane] {
                    // What is written beyond a value is where its tag comes.
                    store(out, four.to[lane] as usize + HEADER + 16 * j, parts[lane]);
                }
            }
            // Beyond a value its block is zero.
            sum = added(sum, _mm512_xor_si512(reversed(cipher), before), powers_at(j));
            before = _mm512_setzero_si512();
        }
        sum
    }

    /// What is left of four values, at most a block of each, sealed; zeros beyond.
    fn sealed_tails(tails: [&[u8]; 4], unit: &Unit) -> __m512i {
        let bits = |lane: usize| u64::from(_bzhi_u32(0xffff, tails[lane].len().min(16) as u32));
        let there = bits(0) | bits(1) << 16 | bits(2) << 32 | bits(3) << 48;
        let text = lanes(load_some(tails[0]), load_some(tails[1]), load_some(tails[2]), load_some(tails[3]));
        _mm512_maskz_mov_epi8(there, _mm512_xor_si512(text, load_unit(unit)))
    }

    /// The blocks that end GHASH, reversed: bits of AAD, bits of ciphertext.
    fn lengths(bound: &Bound, four: &Four) -> __m512i {
        let (aad, text) = (|lane: usize| bound.bits[lane] as i64, |lane: usize| i64::from(four.len[lane]) * 8);
        _mm512_set_epi64(aad(3), text(3), aad(2), text(2), aad(1), text(1), aad(0), text(0))
    }

    // ---- long values

    /// Seals one value into its place. Of `bound`, the first lane counts.
    fn seal_long(key: &Key, head: &Head, low: u32, bound: &Bound, value: &[u8], out: &mut [u8], units: &mut [Unit; UNITS]) {
        write_head(head, low, &mut out[..HEADER]);
        let nonce = _mm512_mask_set1_epi32(head.base, 0x4444, low as i32);
        let (units, first) = units.split_at_mut(AT_ONCE);
        store_unit(&mut first[0], _mm512_mask_set1_epi32(nonce, 0x8888, 1_u32.to_be() as i32));
        encrypt_one(key, &mut first[0]);
        let mut state = _mm512_castsi512_si128(bound.state);
        let mut counter = _mm_set_epi32(5, 4, 3, 2);
        for (n, chunk) in value.chunks(64 * AT_ONCE).enumerate() {
            for unit in units.iter_mut() {
                let counters = _mm512_castsi128_si512(_mm_shuffle_epi8(counter, _mm_set_epi8(12, 13, 14, 15, 8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3)));
                store_unit(unit, _mm512_mask_expand_epi32(nonce, 0x8888, counters));
                counter = _mm_add_epi32(counter, _mm_set1_epi32(4));
            }
            encrypt(key, units);
            let out = &mut out[HEADER + n * 64 * AT_ONCE..];
            let count = chunk.len().div_ceil(16);
            let mut sum = nothing();
            let mut before = _mm512_zextsi128_si512(state);
            for (k, text) in chunk.chunks(64).enumerate() {
                let there = _bzhi_u64(u64::MAX, text.len() as u32);
                let cipher = _mm512_maskz_mov_epi8(there, _mm512_xor_si512(load_many(text), load_unit(&units[k])));
                store_many(&mut out[64 * k..][..text.len()], cipher);
                sum = added(sum, _mm512_xor_si512(reversed(cipher), before), powers(key, count - 4 * k));
                before = _mm512_setzero_si512();
            }
            state = _mm512_castsi512_si128(reduced(folded(sum)));
        }
        let lengths = _mm_set_epi64x(bound.bits[0] as i64, value.len() as i64 * 8);
        let tag = multiplied(key, _mm_xor_si128(state, lengths));
        let tag = _mm_xor_si128(_mm512_castsi512_si128(reversed(_mm512_zextsi128_si512(tag))), _mm512_castsi512_si128(load_unit(&first[0])));
        store(out, HEADER + value.len(), tag);
    }

    // ---- the header

    fn head(prefix: &[u8; PREFIX_LEN], upper: u64) -> Head {
        let mut whole = [0; HEADER];
        whole[..PREFIX_LEN].copy_from_slice(prefix);
        whole[PREFIX_LEN..PREFIX_LEN + 8].copy_from_slice(&upper.to_be_bytes());
        let (mut first, mut second) = ([0; 16], [0; 16]);
        first.copy_from_slice(&whole[..16]);
        second.copy_from_slice(&whole[HEADER - 16..]);
        let second = u128::from_ne_bytes(second);
        let base = _mm512_broadcast_i32x4(_mm_set_epi64x(0, upper.to_be() as i64));
        Head { first, second, base }
    }

    fn write_head(head: &Head, low: u32, out: &mut [u8]) {
        let second = (head.second | u128::from(low) << 96).to_ne_bytes();
        let (begin, _) = out.split_at_mut(16);
        begin.copy_from_slice(&head.first);
        out[HEADER - 16..].copy_from_slice(&second);
    }
}

/// Whole block j of a value; whoever asks has counted them.
#[inline]
fn chunk(value: &[u8], j: usize) -> &[u8; 16] {
    value[16 * j..].first_chunk().unwrap_or(&[0; 16])
}

/// Blocks that a value begins.
fn blocks(len: u32) -> usize {
    (len as usize).div_ceil(16)
}

fn bits(len: usize) -> u64 {
    len as u64 * 8
}

fn first(start: [u8; NONCE_LEN]) -> u128 {
    let mut wide = [0; 16];
    wide[4..].copy_from_slice(&start);
    u128::from_be_bytes(wide)
}

/// The nonce of a value.
fn after(start: u128, number: usize) -> u128 {
    start.wrapping_add(number as u128) & (u128::MAX >> 32)
}
