//! Four values side by side, in the four 128-bit lanes of AVX-512 registers: AES by VAES, GHASH by VPCLMULQDQ.
//!
//! *Short values* (up to [`MOST`] blocks) are taken in groups, sorted by their number of blocks, and cut into fours. Unit j of
//! a four holds counter block j of each of its values, so that one multiplication hashes block j of all four, with the
//! power of H that is left to come, and one reduction ends them all. *Long values* have four of their own blocks in the
//! lanes.
//!
//! Sealing and opening are one code: what is hashed is what is written, or what is read. What is opened stands in the output
//! while its tag is made, and is zeros again before anything else is done if that is wrong.
//!
//! What is branched on are lengths and nulls, which the sealed column shows anyway; never a byte of a value, of the key
//! or of the key stream.

/// Functions for processors of which [`is_there`] is true.
macro_rules! on_avx512 {
    ($($code:tt)*) => { with_features! { inline, $($code)* } };
}

/// The same, which stay functions of their own, so that others keep their registers.
macro_rules! apart_on_avx512 {
    ($($code:tt)*) => { with_features! { inline(never), $($code)* } };
}

macro_rules! with_features {
    ($inline:meta, $($(#[$more:meta])* $visible:vis fn $name:ident $(<$lifetime:lifetime>)? $(<const $constant:ident: $kind:ty>)? ($($given:tt)*) $(-> $result:ty)? $body:block)*) => {
        $($(#[$more])*
        #[$inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vbmi2,vaes,vpclmulqdq,aes,bmi2")]
        $visible fn $name $(<$lifetime>)? $(<const $constant: $kind>)? ($($given)*) $(-> $result)? $body)*
    };
}

mod bound;
mod four;
mod ghash;
mod group;
mod key;
mod lanes;
mod long;
mod text;

use core::arch::x86_64::*;

use zeroize::Zeroizing;

use bound::{Cached, begun_one, bound, nothing_cached};
use four::{Four, Head, Work, counters, open_four, seal_four};
use group::{Group, Item, gather, sort};
pub(crate) use key::Key;
use key::{encrypt, scheduled};
use lanes::{Unit, load_at, prefetch, put_some, store, words};
use long::long;
pub(crate) use text::{read_base64url, write_base64url};

use crate::values::{Aads, Batch, SealedBatch, Values};
use crate::{HEADER, KEY_LEN, NONCE_LEN, PREFIX_LEN, TAG_LEN};

/// Most blocks of a value that shares registers with others.
const MOST: usize = 16;
/// Most values of a group.
const GROUP: usize = 256;
/// Bytes of a value that ends its group, so that its place is written when it comes.
const LARGE: u32 = 4_096;
/// Room for the counter blocks of some fours.
const UNITS: usize = 128;
/// Units that are encrypted at once: enough to hide how long a round takes.
const AT_ONCE: usize = 8;
/// Most lines of memory that are asked for with a four: as many as four of the longest short values have.
const LINES: usize = 20;
/// Highest power of H that is kept.
const POWERS: usize = 8 * AT_ONCE;

/// Whether this processor has all that is used here.
pub(crate) fn is_there() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vbmi")
        && is_x86_feature_detected!("avx512vbmi2")
        && is_x86_feature_detected!("vaes")
        && is_x86_feature_detected!("vpclmulqdq")
        && is_x86_feature_detected!("aes")
        && is_x86_feature_detected!("bmi2")
}

/// What comes before sealed values: nothing to write when opening.
#[derive(Clone, Copy)]
struct Start {
    prefix: [u8; PREFIX_LEN],
    nonce: u128,
}

/// What is written.
struct Made<'a> {
    out: &'a mut [u8],
    opened: &'a mut [bool],
}

/// What is read next, and how many lines of it are asked for with each four.
struct Ahead {
    at: usize,
    lines: usize,
}

impl Key {
    /// `None` where the processor cannot.
    #[allow(unsafe_code)] // the way into code for AVX-512
    pub(crate) fn new(key: &[u8; KEY_LEN]) -> Option<Box<Self>> {
        // SAFETY: what the functions are compiled for is there.
        is_there().then(|| unsafe { scheduled(key) })
    }

    /// Appends the sealed values to `out`, which has the room.
    #[allow(unsafe_code)] // the way into code for AVX-512
    pub(crate) fn seal(&self, batch: &Batch<'_>, out: &mut Vec<u8>) {
        let start = Start {
            prefix: batch.prefix,
            nonce: first(batch.start),
        };
        // SAFETY: a `Key` exists only where what the functions are compiled for is there.
        unsafe { column::<false>(self, start, &batch.aads, &batch.values, out, &mut []) }
    }

    /// Appends the plaintexts to `out`, which has the room, and says in `opened`, where all is false, what did open.
    #[allow(unsafe_code)] // the way into code for AVX-512
    pub(crate) fn open(&self, batch: &SealedBatch<'_>, out: &mut Vec<u8>, opened: &mut [bool]) {
        let start = Start {
            prefix: [0; PREFIX_LEN],
            nonce: 0,
        };
        // SAFETY: a `Key` exists only where what the functions are compiled for is there.
        unsafe { column::<true>(self, start, &batch.aads, &batch.values, out, opened) }
    }
}

on_avx512! {
    fn column<const OPEN: bool>(key: &Key, start: Start, aads: &Aads<'_>, values: &Values<'_>, out: &mut Vec<u8>, opened: &mut [bool]) {
        let bound = bound(key, aads);
        let mut cached = nothing_cached();
        let mut units = Zeroizing::new([Unit([0; 64]); UNITS]);
        let mut group = Group::new();
        let (mut number, mut to) = (0, out.len());
        while number < values.len() {
            // A group has one upper part of the nonce: it ends where the lower one begins anew.
            let nonce = after(start.nonce, number);
            let head = head(&start.prefix, nonce, number as u32);
            let room = (u32::MAX - nonce as u32) as usize;
            let until = values.len().min(number.saturating_add(room).saturating_add(1));
            let begin = number;
            let gathered = gather::<OPEN>(&mut group, values, (number, until), to);
            (number, to) = (gathered.number, gathered.next);
            // Zeros first: what is sealed never stands in the output as plaintext, whatever goes wrong. It also brings the lines
            // into the cache.
            out.resize(gathered.to, 0);
            sort(&mut group, gathered.short, !gathered.differ);
            // What the next group reads is asked for line by line while this one is worked on.
            let (begin, end) = (values.offsets()[begin] as usize, values.offsets()[number] as usize);
            let lines = (end - begin).div_ceil(64 * gathered.short.div_ceil(4).max(1));
            let mut ahead = Ahead { at: end, lines: lines.min(LINES) };
            let mut from = 0;
            while from < gathered.short {
                let until = streams::<OPEN>(key, &head, &group, (from, gathered.short), values.bytes(), &mut units);
                let work = Work { key, bound: &bound, head, bytes: values.bytes() };
                let made = Made { out, opened };
                fours::<OPEN>(&work, &group, (from, until), &units, made, &mut cached, &mut ahead);
                from = until;
            }
            for item in &group.long[..gathered.long] {
                let begun = begun_one(key, &bound, item.number as usize);
                match OPEN {
                    true => open_long(key, begun, item, values.bytes(), out, opened),
                    false => seal_long(key, &head, after(start.nonce, item.number as usize), begun, item, values.bytes(), out),
                }
            }
        }
    }
}

// Functions of their own, so that each has the registers for itself.
apart_on_avx512! {
    /// The key stream of as many fours as there is room for; where they end.
    fn streams<const OPEN: bool>(key: &Key, head: &Head, group: &Group, (from, count): (usize, usize), bytes: &[u8], units: &mut [Unit; UNITS]) -> usize {
        let (mut until, mut used) = (from, 0);
        while until < count {
            let four = group.four(until);
            let wanted = four[3].len.div_ceil(16) as usize + 1;
            if used + wanted > UNITS {
                break;
            }
            counters::<OPEN>(&mut units[used..used + wanted], head, &four, bytes);
            (until, used) = (until + 4, used + wanted);
        }
        encrypt(key, &mut units[..used.next_multiple_of(AT_ONCE)]);
        until
    }

    /// Seals or opens the fours that the key stream is for.
    fn fours<const OPEN: bool>(work: &Work<'_>, group: &Group, (from, until): (usize, usize), units: &[Unit; UNITS], made: Made<'_>, cached: &mut Cached, ahead: &mut Ahead) {
        let Made { out, opened } = made;
        let mut at = 0;
        for place in (from..until).step_by(4) {
            let items = group.four(place);
            let wanted = items[3].len.div_ceil(16) as usize + 1;
            let four = Four { items, units: &units[at..at + wanted] };
            prefetch(work.bytes, ahead.at, ahead.lines);
            match OPEN {
                true => open_four(work, &four, out, opened, cached),
                false => seal_four(work, &four, out, cached),
            }
            ahead.at += 64 * ahead.lines;
            at += wanted;
        }
    }
}

on_avx512! {
    fn seal_long(key: &Key, head: &Head, nonce: u128, begun: (__m128i, usize), item: &Item, bytes: &[u8], out: &mut Vec<u8>) {
        let (to, low) = (item.to as usize, (nonce as u32).to_be());
        out.resize(out.len().max(to), 0);
        write_head(head, low, &mut out[to - HEADER..to]);
        let nonce = _mm512_mask_set1_epi32(head.nonce, 0x4444, low as i32);
        let tag = long::<false>(key, nonce, begun, item, bytes, out);
        put_some(out, to + item.len as usize, _mm512_zextsi128_si512(tag), TAG_LEN);
    }

    /// Where the tag is wrong, zeros are put there again.
    fn open_long(key: &Key, begun: (__m128i, usize), item: &Item, bytes: &[u8], out: &mut Vec<u8>, opened: &mut [bool]) {
        let (from, len, to) = (item.from as usize, item.len as usize, item.to as usize);
        let tag = long::<true>(key, given_nonce(bytes, from), begun, item, bytes, out);
        // All bytes at once; what is branched on is the verdict.
        let differ = words(_mm_xor_si128(tag, load_at(bytes, from + len)));
        let is_right = differ[0] | differ[1] == 0;
        opened[item.number as usize] = is_right;
        if !is_right {
            out[to..to + len].fill(0);
        }
    }

    /// What comes before the values of a group, of which that is the first, and its nonce.
    fn head(prefix: &[u8; PREFIX_LEN], nonce: u128, number: u32) -> Head {
        let mut whole = [0; HEADER];
        whole[..PREFIX_LEN].copy_from_slice(prefix);
        whole[PREFIX_LEN..].copy_from_slice(&nonce.to_be_bytes()[4..]);
        whole[HEADER - 4..].fill(0);
        let second = load_at(&whole, HEADER - 16);
        let nonce_only = load_at(&whole, PREFIX_LEN);
        Head {
            first: load_at(&whole, 0),
            second: _mm512_broadcast_i32x4(second),
            nonce: _mm512_broadcast_i32x4(nonce_only),
            low: (nonce as u32).wrapping_sub(number),
        }
    }

    fn write_head(head: &Head, low: u32, out: &mut [u8]) {
        store(out, 0, head.first);
        store(out, HEADER - 16, _mm_insert_epi32::<3>(_mm512_castsi512_si128(head.second), low as i32));
    }

    /// The nonce in front of a sealed text, in all lanes, then zeros.
    fn given_nonce(bytes: &[u8], from: usize) -> __m512i {
        _mm512_broadcast_i32x4(_mm_bsrli_si128::<4>(load_at(bytes, from - 16)))
    }
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
