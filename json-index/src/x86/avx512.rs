//! 64 bytes in a register for what each byte is, and then eight words of 64 bits in one for what follows from that.
//!
//! A part of the text is gone through three times: its bytes' classes, as words; from these its tokens, eight words at a
//! time; and what is written of each token. Between the words of a register carries go by the masks that compare them.
//! Numbers are looked at once more, in parts that have some, or literals.

use core::arch::x86_64::*;

use super::memory::{load, load_some, load_words, store, store_positions, store_quarter, store_words};
use crate::scan::{State, Summary, escapes};
use crate::{BLOCK, Group, Room, SCALAR};

/// Words of 64 bits in a register.
const LANES: usize = 8;
/// Blocks of a part.
const PART: usize = 64;

/// A colon has both of these, other operators and white space one.
const OPERATOR: u8 = 1;
const AFTER_NAME: u8 = 2;
/// `. [ \`: what makes a member name worth a look.
const SPECIAL: u8 = 4;
// What has one of these bits in `CLASSES`, for a byte, and in the other two, for those before it, cannot stand so.
const NO_DIGIT: u8 = 16;
const POINT: u8 = 32;
const MINUS: u8 = 64;
const DIGIT: u8 = 128;
const ILL: u8 = NO_DIGIT | POINT | MINUS | DIGIT;

/// What an ASCII byte is.
const CLASSES: [[u8; BLOCK]; 2] = {
    let mut classes = [[0; BLOCK]; 2];
    let mut byte = 0;
    while byte < 128 {
        classes[byte / BLOCK][byte % BLOCK] = class(byte as u8);
        byte += 1;
    }
    classes
};

const fn class(byte: u8) -> u8 {
    match byte {
        b'[' => OPERATOR | SPECIAL | NO_DIGIT,
        b':' => OPERATOR | AFTER_NAME | NO_DIGIT,
        b'{' | b'}' | b']' | b',' => OPERATOR | NO_DIGIT,
        b' ' | b'\t' | b'\n' | b'\r' => AFTER_NAME | NO_DIGIT,
        b'.' => SPECIAL | NO_DIGIT | POINT,
        b'\\' => SPECIAL | NO_DIGIT,
        b'-' => NO_DIGIT | MINUS,
        b'0'..=b'9' => DIGIT,
        _ => NO_DIGIT,
    }
}

/// What an ASCII byte does not let come after it: a point not after a digit, only a digit after a point or a sign, no
/// sign after a digit, no digit after a zero that is the first.
const BEFORE: [[u8; BLOCK]; 2] = {
    let mut before = [[POINT; BLOCK]; 2];
    before[0][b'-' as usize] = NO_DIGIT | POINT;
    before[0][b'.' as usize] = NO_DIGIT | POINT;
    let mut digit = b'0';
    while digit <= b'9' {
        before[0][digit as usize] = MINUS;
        digit += 1;
    }
    before[0][b'0' as usize] = MINUS | DIGIT;
    before
};

/// All, but after what a zero is not the first of a number; after a sign it may be so or not.
const BEFORE_THAT: [[u8; BLOCK]; 2] = {
    let within = b"0123456789.eE+";
    let mut before = [[ILL; BLOCK]; 2];
    let mut n = 0;
    while n < within.len() {
        before[within[n] as usize / BLOCK][within[n] as usize % BLOCK] = ILL & !DIGIT;
        n += 1;
    }
    before
};

/// Places in a register; in two registers, from one and two before the second on.
const FROM_0: [u8; BLOCK] = from(0);
const FROM_63: [u8; BLOCK] = from(63);
const FROM_62: [u8; BLOCK] = from(62);

const fn from(first: u8) -> [u8; BLOCK] {
    let mut places = [0; BLOCK];
    let mut n = 0;
    while n < BLOCK {
        places[n] = first + n as u8;
        n += 1;
    }
    places
}

type Words = [u64; PART];

/// What the bytes of a part are, and what its tokens are: a word for each block. As in [`Classes`](crate::scan::Classes).
#[derive(Default)]
pub(crate) struct Part(Option<Box<Masks>>);

struct Masks {
    quote: Words,
    backslash: Words,
    control: Words,
    operator: Words,
    after_name: Words,
    special: Words,
    number: Words,
    quoted: Words,
    starts: Words,
    scalars: Words,
    words: Words,
}

impl Masks {
    const NONE: Self = {
        let none = [0; PART];
        Self {
            quote: none,
            backslash: none,
            control: none,
            operator: none,
            after_name: none,
            special: none,
            number: none,
            quoted: none,
            starts: none,
            scalars: none,
            words: none,
        }
    };
}

/// What one register of words hands to the next.
struct Carries {
    /// All bits.
    in_string: u8,
    special: u8,
    special_ends: __m512i,
    scalars: __m512i,
    others: __m512i,
    /// Where something was wrong.
    faults: __m512i,
    /// Where a member name may end that has a special byte in it.
    special_names: __m512i,
}

on_avx512! {
    pub(super) fn index(text: &[u8], room: &mut Room) -> Option<Summary> {
        let mut part = std::mem::take(&mut room.part);
        let masks = part.0.get_or_insert_with(|| Box::new(Masks::NONE));
        let none = _mm512_setzero_si512();
        let mut carries = Carries {
            in_string: 0,
            special: 0,
            special_ends: none,
            scalars: none,
            others: none,
            faults: none,
            special_names: none,
        };
        let (mut count, mut words, mut escaped, mut not_ascii) = (0, 0, 0, 0);
        // What stands ill in numbers, but for digits after a zero that is not the first; and whether the last block before has one.
        let (mut ill, mut before_has) = (0, 0);
        for (n, bytes) in text.chunks(PART * BLOCK).enumerate() {
            let at = n * PART * BLOCK;
            let (blocks, rest) = bytes.as_chunks::<BLOCK>();
            let all = bytes.len().div_ceil(BLOCK);
            let mut backslashes = 0;
            for n in 0..all {
                let block = match blocks.get(n) {
                    Some(block) => load(block),
                    None => load_some(rest),
                };
                let (backslash, other) = classify(masks, n, block);
                backslashes |= backslash;
                not_ascii |= other;
            }
            if backslashes | escaped != 0 {
                let (carry, fault) = unescape(text, at, all, masks, escaped);
                escaped = carry;
                carries.faults = _mm512_or_si512(carries.faults, _mm512_set1_epi64(fault as i64));
            }
            let (mut with_scalars, mut with_words) = (0, 0);
            for from in (0..all).step_by(LANES) {
                let (scalars, words) = tokens(from, all - from, masks, &mut carries);
                with_scalars |= u64::from(scalars) << from;
                with_words |= u64::from(words) << from;
            }
            // What comes after a number shows whether it may end there.
            let has_numbers = with_scalars | before_has != 0;
            before_has = with_scalars >> (PART - 1);
            if has_numbers {
                let mut last = match at {
                    0 => _mm512_set1_epi8(b' ' as i8),
                    _ => block_at(text, at - BLOCK),
                };
                for n in 0..all {
                    let block = match blocks.get(n) {
                        Some(block) => load(block),
                        None => load_some(rest),
                    };
                    ill |= ill_numbers(last, block) & !masks.quoted[n];
                    last = block;
                }
            }
            if room.kinds.len() < count.max(words) + PART * BLOCK {
                room.grow(count.max(words));
            }
            while with_words != 0 {
                let n = with_words.trailing_zeros() as usize;
                with_words &= with_words - 1;
                words += write_words(masks.words[n], at + n * BLOCK, &mut room.words[words..])?;
            }
            for n in 0..all {
                let block = match blocks.get(n) {
                    Some(block) => load(block),
                    None => load_some(rest),
                };
                let at = at + n * BLOCK;
                count += write(block, masks.starts[n], masks.scalars[n], at, &mut room.positions[count..], &mut room.kinds[count..])?;
            }
        }
        room.part = part;
        groups(&room.kinds[..count], &mut room.groups);
        let state = State {
            is_wrong: escaped != 0 || carries.in_string != 0 || _mm512_test_epi64_mask(carries.faults, carries.faults) != 0,
            is_ill: ill != 0,
            special_names: _mm512_test_epi64_mask(carries.special_names, carries.special_names) != 0,
            is_ascii: not_ascii == 0,
        };
        state.end(text, room, words, count)
    }

    /// Writes what the bytes of block `n` of the part are. Which are backslashes, and which not ASCII, is what is told.
    fn classify(masks: &mut Masks, n: usize, bytes: __m512i) -> (u64, u64) {
        let not_ascii = _mm512_movepi8_mask(bytes);
        let class = _mm512_maskz_mov_epi8(!not_ascii, looked_up(&CLASSES, bytes));
        let backslash = equal(bytes, b'\\');
        let n = n % PART;
        masks.quote[n] = equal(bytes, b'"');
        masks.backslash[n] = backslash;
        masks.control[n] = _mm512_cmplt_epu8_mask(bytes, _mm512_set1_epi8(0x20));
        masks.operator[n] = has(class, OPERATOR);
        masks.after_name[n] = has(class, AFTER_NAME);
        masks.special[n] = has(class, SPECIAL);
        masks.number[n] = has(class, DIGIT | POINT | MINUS);
        (backslash, not_ascii)
    }

    /// What of a block's bytes would stand ill in a number; `last` is the block before. What is not ASCII is in none: what it is
    /// taken for does not matter.
    fn ill_numbers(last: __m512i, bytes: __m512i) -> u64 {
        let class = looked_up(&CLASSES, bytes);
        let before = looked_up(&BEFORE, _mm512_permutex2var_epi8(last, load(&FROM_63), bytes));
        let before_that = looked_up(&BEFORE_THAT, _mm512_permutex2var_epi8(last, load(&FROM_62), bytes));
        // a and b and c.
        has(_mm512_ternarylogic_epi64::<0x80>(class, before, before_that), ILL)
    }

    /// 64 bytes from there on; what is not there is spaces.
    fn block_at(text: &[u8], at: usize) -> __m512i {
        let rest = text.get(at..).unwrap_or_default();
        match rest.first_chunk() {
            Some(block) => load(block),
            None => load_some(rest),
        }
    }

    /// By the lower seven bits.
    fn looked_up(table: &[[u8; BLOCK]; 2], bytes: __m512i) -> __m512i {
        _mm512_permutex2var_epi8(load(&table[0]), bytes, load(&table[1]))
    }

    fn equal(bytes: __m512i, byte: u8) -> u64 {
        _mm512_cmpeq_epi8_mask(bytes, _mm512_set1_epi8(byte as i8))
    }

    fn has(classes: __m512i, class: u8) -> u64 {
        _mm512_test_epi8_mask(classes, _mm512_set1_epi8(class as i8))
    }

    /// The tokens of the words from `from` on, of which `there` are of the part; in which of them are numbers or literals, and in
    /// which letters come in these.
    fn tokens(from: usize, there: usize, masks: &mut Masks, carries: &mut Carries) -> (u8, u8) {
        let lanes = _bzhi_u32(0xff, there.min(LANES) as u32) as u8;
        let all = _mm512_set1_epi8(-1);
        let quotes = words(&masks.quote, from, lanes);
        let operators = words(&masks.operator, from, lanes);
        // Operators and white space.
        let after_names = words(&masks.after_name, from, lanes);

        // From an opening quote up to what is before the closing one: the prefix sum without carries.
        let even = _mm512_clmulepi64_epi128::<0x00>(quotes, all);
        let odd = _mm512_clmulepi64_epi128::<0x01>(quotes, all);
        let in_quotes = _mm512_unpacklo_epi64(even, odd);
        let mut odd_until = _mm512_movepi64_mask(in_quotes);
        odd_until ^= odd_until << 1;
        odd_until ^= odd_until << 2;
        odd_until ^= odd_until << 4;
        odd_until ^= carries.in_string;
        let odd_before = odd_until << 1 | carries.in_string & 1;
        carries.in_string = ((odd_until as i8) >> 7) as u8;
        let strings = _mm512_mask_xor_epi64(in_quotes, odd_before, in_quotes, all);

        let quoted = _mm512_or_si512(strings, quotes);
        // Neither a nor b nor c.
        let scalars = _mm512_maskz_ternarylogic_epi64::<0x01>(lanes, quoted, operators, after_names);
        let first = _mm512_andnot_si512(before(scalars, &mut carries.scalars), scalars);
        let others = _mm512_andnot_si512(words(&masks.number, from, lanes), scalars);
        let first_others = _mm512_andnot_si512(before(others, &mut carries.others), others);

        // A special byte carries to where its string or number ends, and past others that come after it.
        let within = _mm512_or_si512(strings, scalars);
        let special = _mm512_and_si512(words(&masks.special, from, lanes), within);
        let sum = _mm512_add_epi64(within, special);
        let over = _mm512_cmplt_epu64_mask(sum, within);
        let full = _mm512_cmpeq_epi64_mask(sum, all);
        let carried = (u16::from(over) << 1 | u16::from(carries.special)) + u16::from(full);
        carries.special = (carried >> 8) as u8;
        let sum = _mm512_mask_sub_epi64(sum, carried as u8 ^ full, sum, all);
        // a and b and not c.
        let special_ends = _mm512_ternarylogic_epi64::<0x40>(sum, quotes, strings);
        let after = before(special_ends, &mut carries.special_ends);
        carries.special_names = _mm512_or_si512(carries.special_names, _mm512_and_si512(after, after_names));

        let control = _mm512_and_si512(words(&masks.control, from, lanes), strings);
        // a and b and c: a second point.
        let second = _mm512_ternarylogic_epi64::<0x80>(sum, special, scalars);
        carries.faults = _mm512_or_si512(carries.faults, _mm512_or_si512(control, second));

        let opening = _mm512_and_si512(quotes, strings);
        // (a and not b) or c.
        let starts = _mm512_ternarylogic_epi64::<0xba>(operators, strings, _mm512_or_si512(opening, first));
        set_words(&mut masks.starts, from, starts);
        set_words(&mut masks.scalars, from, first);
        set_words(&mut masks.words, from, first_others);
        set_words(&mut masks.quoted, from, quoted);
        (_mm512_test_epi64_mask(scalars, scalars), _mm512_test_epi64_mask(first_others, first_others))
    }

    fn words(words: &Words, from: usize, lanes: u8) -> __m512i {
        let (eights, _) = words.as_chunks::<LANES>();
        load_words(&eights[from / LANES % (PART / LANES)], lanes)
    }

    fn set_words(words: &mut Words, from: usize, x: __m512i) {
        let (eights, _) = words.as_chunks_mut::<LANES>();
        store_words(&mut eights[from / LANES % (PART / LANES)], x);
    }

    /// The byte before is.
    fn before(x: __m512i, carry: &mut __m512i) -> __m512i {
        let words_before = _mm512_alignr_epi64::<7>(x, *carry);
        *carry = x;
        _mm512_shldi_epi64::<1>(x, words_before)
    }

    /// Writes where others than digits, points and signs begin; how many. `None`: there is no room.
    fn write_words(starts: u64, at: usize, words: &mut [u32]) -> Option<usize> {
        // No two begin side by side: 32 at most.
        let ([first, second], _) = words.first_chunk_mut::<32>()?.as_chunks_mut::<16>() else { return None };
        let places = _mm512_maskz_compress_epi8(starts, load(&FROM_0));
        store_positions(first, positions(_mm512_castsi512_si128(places), at));
        let count = starts.count_ones() as usize;
        if count > 16 {
            store_positions(second, positions(_mm512_extracti32x4_epi32::<1>(places), at));
        }
        Some(count)
    }

    /// Writes the tokens of a block; how many. `None`: there is no room.
    fn write(bytes: __m512i, starts: u64, scalars: u64, at: usize, positions_to: &mut [u32], kinds_to: &mut [u8]) -> Option<usize> {
        let count = starts.count_ones() as usize;
        let kinds = _mm512_maskz_compress_epi8(starts, _mm512_mask_mov_epi8(bytes, scalars, _mm512_set1_epi8(SCALAR as i8)));
        let places = _mm512_maskz_compress_epi8(starts, load(&FROM_0));
        let (to, kinds_to) = (positions_to.first_chunk_mut::<BLOCK>()?, kinds_to.first_chunk_mut::<BLOCK>()?);
        let ([first, second, third, fourth], _) = to.as_chunks_mut::<16>() else { return None };
        store_positions(first, positions(_mm512_castsi512_si128(places), at));
        if count <= 16 {
            store_quarter(kinds_to, kinds);
            return Some(count);
        }
        store(kinds_to, kinds);
        store_positions(second, positions(_mm512_extracti32x4_epi32::<1>(places), at));
        if count > 32 {
            store_positions(third, positions(_mm512_extracti32x4_epi32::<2>(places), at));
            store_positions(fourth, positions(_mm512_extracti32x4_epi32::<3>(places), at));
        }
        Some(count)
    }

    /// Places in the block at `at` as places in the text.
    fn positions(places: __m128i, at: usize) -> __m512i {
        // A block is at most 4 MiB from the beginning.
        _mm512_add_epi32(_mm512_cvtepu8_epi32(places), _mm512_set1_epi32(at as i32))
    }

    fn groups(kinds: &[u8], groups: &mut Vec<Group>) {
        groups.clear();
        groups.resize(kinds.len().div_ceil(BLOCK), Group::default());
        for (kinds, group) in kinds.chunks(BLOCK).zip(groups) {
            *group = group_of(kinds);
        }
    }

    fn group_of(kinds: &[u8]) -> Group {
        let bytes = match kinds.first_chunk() {
            Some(kinds) => load(kinds),
            None => load_some(kinds),
        };
        Group {
            objects: equal(bytes, b'{'),
            object_ends: equal(bytes, b'}'),
            arrays: equal(bytes, b'['),
            array_ends: equal(bytes, b']'),
            colons: equal(bytes, b':'),
            commas: equal(bytes, b','),
            strings: equal(bytes, b'"'),
            scalars: equal(bytes, SCALAR),
        }
    }
}

/// Takes quotes that are escaped from the quotes of a part; whether the next begins escaped, and whether an escape is not
/// right.
#[inline(never)]
fn unescape(text: &[u8], at: usize, all: usize, masks: &mut Masks, mut escaped: u64) -> (u64, u64) {
    let mut faults = 0;
    for (n, (quotes, backslash)) in masks.quote.iter_mut().zip(&masks.backslash).take(all).enumerate() {
        if backslash | escaped != 0 {
            let (bytes, carry, fault) = escapes(text, at + n * BLOCK, *backslash, escaped);
            *quotes &= !bytes;
            escaped = carry;
            faults |= fault;
        }
    }
    (escaped, faults)
}
