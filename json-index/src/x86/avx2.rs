//! A block in two registers; tokens are written one by one.

use core::arch::x86_64::*;

use super::memory::load_halves;
use crate::scan::{Classes, Numbers, Scan, Summary};
use crate::{BLOCK, Group, Room, SCALAR, filled};

on_avx2! {
    pub(super) fn index(text: &[u8], room: &mut Room) -> Option<Summary> {
        let (mut scan, mut numbers) = (Scan::default(), Numbers::default());
        let mut any = _mm256_setzero_si256();
        let (blocks, rest) = text.as_chunks::<BLOCK>();
        let last = filled(rest);
        let (mut count, mut at) = (0, 0);
        while at < text.len() {
            let block = blocks.get(at / BLOCK).unwrap_or(&last);
            let bytes = load_halves(block);
            any = _mm256_or_si256(any, _mm256_or_si256(bytes[0], bytes[1]));
            // Whatever branches comes first: words that lived through a branch would be taken apart into bytes.
            if !room.has(count.max(scan.words)) {
                room.grow(count.max(scan.words));
            }
            let backslash = equal(bytes, b'\\');
            let quotes = scan.quotes(text, at, equal(bytes, b'"'), backslash);
            let classes = classes(bytes, &mut numbers);
            let starts = scan.starts(at, &classes, quotes, prefix_xor(quotes), &mut room.words);
            write(block, starts.all, at, &mut room.positions[count..], &mut room.kinds[count..])?;
            count += starts.all.count_ones() as usize;
            at += BLOCK;
        }
        let is_ascii = _mm256_movemask_epi8(any) == 0;
        room.groups.clear();
        let (groups, rest) = room.kinds[..count].as_chunks_mut::<BLOCK>();
        for kinds in groups {
            room.groups.push(group(kinds, u64::MAX));
        }
        if !rest.is_empty() {
            let mut kinds = filled(rest);
            room.groups.push(group(&mut kinds, _bzhi_u64(u64::MAX, rest.len() as u32)));
            rest.copy_from_slice(&kinds[..rest.len()]);
        }
        scan.state(is_ascii).end(text, room, scan.words, count)
    }

    fn classes(bytes: [__m256i; 2], numbers: &mut Numbers) -> Classes {
        let [low, high] = bytes;
        let backslash = equal(bytes, b'\\');
        let point = equal(bytes, b'.');
        let colon = equal(bytes, b':');
        // `[` and `{`, `]` and `}` differ in bit 5.
        let lower = _mm256_set1_epi8(0x20);
        let braces = [_mm256_or_si256(low, lower), _mm256_or_si256(high, lower)];
        // White space is where a byte is what the table has for its lower four bits.
        let spaces = _mm256_setr_epi8(
            32, -1, -1, -1, -1, -1, -1, -1, -1, 9, 10, -1, -1, 13, -1, -1, 32, -1, -1, -1, -1, -1, -1, -1, -1, 9, 10, -1, -1, 13, -1, -1,
        );
        let space = mask([
            _mm256_cmpeq_epi8(low, _mm256_shuffle_epi8(spaces, low)),
            _mm256_cmpeq_epi8(high, _mm256_shuffle_epi8(spaces, high)),
        ]);
        let zero = _mm256_set1_epi8(b'0' as i8);
        let digit = at_most([_mm256_sub_epi8(low, zero), _mm256_sub_epi8(high, zero)], 9);
        let minus = equal(bytes, b'-');
        let ill = numbers.ill(digit, equal(bytes, b'0'), point, minus);
        Classes {
            control: at_most(bytes, 0x1f),
            operator: equal(braces, b'{') | equal(braces, b'}') | colon | equal(bytes, b','),
            space,
            after_name: colon | space,
            special: backslash | point | equal(bytes, b'['),
            number: digit | point | minus,
            ill,
        }
    }

    fn mask(bytes: [__m256i; 2]) -> u64 {
        let (low, high) = (_mm256_movemask_epi8(bytes[0]) as u32, _mm256_movemask_epi8(bytes[1]) as u32);
        u64::from(low) | u64::from(high) << 32
    }

    fn equal(bytes: [__m256i; 2], byte: u8) -> u64 {
        let byte = _mm256_set1_epi8(byte as i8);
        mask([_mm256_cmpeq_epi8(bytes[0], byte), _mm256_cmpeq_epi8(bytes[1], byte)])
    }

    fn at_most(bytes: [__m256i; 2], most: u8) -> u64 {
        let most = _mm256_set1_epi8(most as i8);
        // Saturating subtraction leaves nothing of what is at most that.
        let none = _mm256_setzero_si256();
        let (low, high) = (_mm256_subs_epu8(bytes[0], most), _mm256_subs_epu8(bytes[1], most));
        mask([_mm256_cmpeq_epi8(low, none), _mm256_cmpeq_epi8(high, none)])
    }

    /// Each bit the sum, without carries, of all up to it.
    fn prefix_xor(x: u64) -> u64 {
        let product = _mm_clmulepi64_si128::<0>(_mm_set_epi64x(0, x as i64), _mm_set1_epi8(-1));
        _mm_cvtsi128_si64(product) as u64
    }

    /// Writes the tokens of a block, numbers and literals by their first byte. `None`: there is no room.
    fn write(block: &[u8; BLOCK], starts: u64, at: usize, positions: &mut [u32], kinds: &mut [u8]) -> Option<()> {
        let (positions, kinds) = (positions.first_chunk_mut::<BLOCK>()?, kinds.first_chunk_mut::<BLOCK>()?);
        let (positions, kinds) = (positions.as_chunks_mut::<8>().0, kinds.as_chunks_mut::<8>().0);
        let mut rest = starts;
        // Eight at a time, so that how many there are is seldom guessed wrongly. What is too much is written over.
        for (positions, kinds) in positions.iter_mut().zip(kinds) {
            if rest == 0 {
                break;
            }
            for (position, kind) in positions.iter_mut().zip(kinds) {
                let bit = rest.trailing_zeros();
                // A block is at most 4 MiB from the beginning.
                *position = at as u32 + bit;
                *kind = block[bit as usize % BLOCK];
                rest &= rest.wrapping_sub(1);
            }
        }
        Some(())
    }

    /// The tokens of a group; the kinds of numbers and literals become one.
    fn group(kinds: &mut [u8; BLOCK], there: u64) -> Group {
        let bytes = load_halves(kinds);
        let objects = equal(bytes, b'{');
        let object_ends = equal(bytes, b'}');
        let arrays = equal(bytes, b'[');
        let array_ends = equal(bytes, b']');
        let colons = equal(bytes, b':');
        let commas = equal(bytes, b',');
        let strings = equal(bytes, b'"');
        let others = objects | object_ends | arrays | array_ends | colons | commas | strings;
        let scalars = there & !others;
        let mut rest = scalars;
        while rest != 0 {
            kinds[rest.trailing_zeros() as usize % BLOCK] = SCALAR;
            rest &= rest - 1;
        }
        Group { objects, object_ends, arrays, array_ends, colons, commas, strings, scalars }
    }
}
