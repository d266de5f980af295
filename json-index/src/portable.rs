//! The kernel for every processor, in safe code: eight bytes at a time, by a table and a transposition of bits.

use crate::scan::{Classes, Numbers, Scan, Summary};
use crate::{BLOCK, Group, Room, SCALAR, filled};

/// What a byte is, a bit for each.
const CLASSES: [u16; 256] = {
    let mut classes = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        classes[byte] = class(byte as u8);
        byte += 1;
    }
    classes
};

const fn class(byte: u8) -> u16 {
    let is = [
        byte == b'"',
        byte == b'\\',
        byte < 0x20,
        matches!(byte, b'{' | b'}' | b'[' | b']' | b':' | b','),
        matches!(byte, b' ' | b'\t' | b'\n' | b'\r'),
        matches!(byte, b':' | b' ' | b'\t' | b'\n' | b'\r'),
        matches!(byte, b'.' | b'[' | b'\\'),
        byte.is_ascii_digit(),
        byte == b'0',
        byte == b'.',
        byte == b'-',
        byte >= 0x80,
    ];
    let (mut bits, mut n) = (0, 0);
    while n < is.len() {
        bits |= (is[n] as u16) << n;
        n += 1;
    }
    bits
}

pub(crate) fn index(text: &[u8], room: &mut Room) -> Option<Summary> {
    let mut scan = Scan::default();
    let (mut numbers, mut is_ascii) = (Numbers::default(), true);
    let mut count = 0;
    let (blocks, rest) = text.as_chunks::<BLOCK>();
    let last = filled(rest);
    let last = (!rest.is_empty()).then_some(&last);
    for (n, block) in blocks.iter().chain(last).enumerate() {
        let at = n * BLOCK;
        let (classes, [quote, backslash, wide]) = classes(block, &mut numbers);
        is_ascii &= wide == 0;
        let quotes = scan.quotes(text, at, quote, backslash);
        if !room.has(count.max(scan.words)) {
            room.grow(count.max(scan.words));
        }
        let starts = scan.starts(at, &classes, quotes, prefix_xor(quotes), &mut room.words);
        let mut rest = starts.all;
        while rest != 0 {
            let bit = rest.trailing_zeros() as usize;
            let is_scalar = starts.scalars >> bit & 1 == 1;
            // A block is at most 4 MiB from the beginning.
            room.positions[count] = (at + bit) as u32;
            room.kinds[count] = if is_scalar { SCALAR } else { block[bit] };
            count += 1;
            rest &= rest - 1;
        }
    }
    room.groups.clear();
    room.groups.extend(room.kinds[..count].chunks(BLOCK).map(group));
    scan.state(is_ascii).end(text, room, scan.words, count)
}

fn group(kinds: &[u8]) -> Group {
    let mut group = Group::default();
    for (n, kind) in kinds.iter().enumerate() {
        let of_kind = match kind {
            b'{' => &mut group.objects,
            b'}' => &mut group.object_ends,
            b'[' => &mut group.arrays,
            b']' => &mut group.array_ends,
            b':' => &mut group.colons,
            b',' => &mut group.commas,
            b'"' => &mut group.strings,
            _ => &mut group.scalars,
        };
        *of_kind |= 1 << n;
    }
    group
}

fn classes(block: &[u8; BLOCK], numbers: &mut Numbers) -> (Classes, [u64; 3]) {
    let mut words = [0_u64; 16];
    for (n, eight) in block.as_chunks::<8>().0.iter().enumerate() {
        let (mut low, mut high) = (0, 0);
        for (place, byte) in eight.iter().enumerate() {
            let class = CLASSES[usize::from(*byte)];
            low |= u64::from(class & 0xff) << (8 * place);
            high |= u64::from(class >> 8) << (8 * place);
        }
        let (low, high) = (transposed(low), transposed(high));
        for bit in 0..8 {
            words[bit] |= (low >> (8 * bit) & 0xff) << (8 * n);
            words[8 + bit] |= (high >> (8 * bit) & 0xff) << (8 * n);
        }
    }
    let [.., digit, zero, point, minus, wide, _, _, _, _] = words;
    let ill = numbers.ill(digit, zero, point, minus);
    let classes = Classes {
        control: words[2],
        operator: words[3],
        space: words[4],
        after_name: words[5],
        special: words[6],
        number: digit | point | minus,
        ill,
    };
    (classes, [words[0], words[1], wide])
}

/// Bit i of byte j becomes bit j of byte i. Hacker's Delight, 7-3.
fn transposed(mut x: u64) -> u64 {
    for (shift, mask) in [
        (7, 0x00aa_00aa_00aa_00aa),
        (14, 0x0000_cccc_0000_cccc),
        (28, 0xf0f0_f0f0),
    ] {
        let swapped = (x ^ (x >> shift)) & mask;
        x ^= swapped ^ (swapped << shift);
    }
    x
}

/// Each bit the sum, without carries, of all up to it.
fn prefix_xor(mut x: u64) -> u64 {
    for shift in [1, 2, 4, 8, 16, 32] {
        x ^= x << shift;
    }
    x
}
