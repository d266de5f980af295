//! A block in two registers; tokens are written one by one.

use core::arch::x86_64::*;

use super::memory::load_halves;
use crate::scan::{Classes, Numbers, Scan, Starts, Summary};
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
            let classes = classes(bytes, &mut numbers);
            let quotes = scan.quotes(text, at, &classes);
            if !room.has(count.max(scan.words)) {
                room.grow(count.max(scan.words));
            }
            let starts = scan.starts(text, at, &classes, quotes, prefix_xor(quotes), &mut room.words);
            write(block, &starts, at, &mut room.positions[count..], &mut room.kinds[count..]);
            count += starts.all.count_ones() as usize;
            at += BLOCK;
        }
        let is_ascii = _mm256_movemask_epi8(any) == 0;
        room.groups.clear();
        let (groups, rest) = room.kinds[..count].as_chunks::<BLOCK>();
        for kinds in groups {
            room.groups.push(group(kinds, u64::MAX));
        }
        if !rest.is_empty() {
            room.groups.push(group(&filled(rest), _bzhi_u64(u64::MAX, rest.len() as u32)));
        }
        scan.state(is_ascii).end(text, room.words.get(..scan.words)?, count)
    }

    fn classes(bytes: [__m256i; 2], numbers: &mut Numbers) -> Classes {
        let [low, high] = bytes;
        let both = |low: __m256i, high: __m256i| mask([low, high]);
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
        let space = both(
            _mm256_cmpeq_epi8(low, _mm256_shuffle_epi8(spaces, low)),
            _mm256_cmpeq_epi8(high, _mm256_shuffle_epi8(spaces, high)),
        );
        let zero = _mm256_set1_epi8(b'0' as i8);
        let digit = at_most([_mm256_sub_epi8(low, zero), _mm256_sub_epi8(high, zero)], 9);
        let minus = equal(bytes, b'-');
        let ill = numbers.ill(digit, equal(bytes, b'0'), point, minus);
        Classes {
            quote: equal(bytes, b'"'),
            backslash,
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
        let at_most = |bytes: __m256i| _mm256_cmpeq_epi8(_mm256_max_epu8(bytes, most), most);
        mask([at_most(bytes[0]), at_most(bytes[1])])
    }

    /// Each bit the sum, without carries, of all up to it.
    fn prefix_xor(x: u64) -> u64 {
        let product = _mm_clmulepi64_si128::<0>(_mm_set_epi64x(0, x as i64), _mm_set1_epi8(-1));
        _mm_cvtsi128_si64(product) as u64
    }

    fn write(block: &[u8; BLOCK], starts: &Starts, at: usize, positions: &mut [u32], kinds: &mut [u8]) {
        let (Some(positions), Some(kinds)) = (positions.first_chunk_mut::<BLOCK>(), kinds.first_chunk_mut::<BLOCK>()) else { return };
        let mut rest = starts.all;
        let count = rest.count_ones() as usize;
        let mut n = 0;
        // Eight at a time, so that how many there are is seldom guessed wrongly. What is too much is written over.
        while n < count {
            for k in n..(n + 8).min(BLOCK) {
                let bit = rest.trailing_zeros();
                // A block is at most 16 MiB from the beginning.
                positions[k] = at as u32 + bit;
                let byte = block[bit as usize % BLOCK];
                kinds[k] = if starts.scalars >> (bit % 64) & 1 == 1 { SCALAR } else { byte };
                rest &= rest.wrapping_sub(1);
            }
            n += 8;
        }
    }

    fn group(kinds: &[u8; BLOCK], there: u64) -> Group {
        let kinds = load_halves(kinds);
        let objects = equal(kinds, b'{');
        let object_ends = equal(kinds, b'}');
        let arrays = equal(kinds, b'[');
        let array_ends = equal(kinds, b']');
        let colons = equal(kinds, b':');
        let commas = equal(kinds, b',');
        let strings = equal(kinds, b'"');
        let others = objects | object_ends | arrays | array_ends | colons | commas | strings;
        Group { objects, object_ends, arrays, array_ends, colons, commas, strings, scalars: there & !others }
    }
}
