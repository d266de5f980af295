//! Which values are taken together: short ones in groups, sorted by their blocks, and cut into fours.

use core::arch::x86_64::*;

use super::lanes::{load_many, load_offsets, store, store_items, store_many};
use super::{GROUP, LARGE, MOST};
use crate::values::Values;
use crate::{HEADER, OVERHEAD};

/// A value: which it is, where its text is and how long, where its text goes.
#[derive(Clone, Copy, Default)]
#[repr(C, align(16))]
pub(super) struct Item {
    pub(super) number: u32,
    pub(super) from: u32,
    pub(super) len: u32,
    pub(super) to: u32,
}

/// Values that are taken together.
pub(super) struct Group {
    pub(super) short: [Item; GROUP],
    /// Blocks of each short one.
    blocks: [u8; GROUP],
    pub(super) long: [Item; GROUP],
    /// Which short one comes when.
    order: [u8; GROUP + 64],
}

/// How far a group was filled.
pub(super) struct Gathered {
    /// The next value.
    pub(super) number: usize,
    pub(super) short: usize,
    pub(super) long: usize,
    /// Whether short ones differ in length.
    pub(super) differ: bool,
    /// Where the group ends in the output; the last one, if it is large, reaches beyond.
    pub(super) to: usize,
    /// Where the next value goes.
    pub(super) next: usize,
}

/// 0, 1, 2 … 63
const COUNT: [u8; 64] = {
    let mut count = [0; 64];
    let mut n = 0;
    while n < 64 {
        count[n] = n as u8;
        n += 1;
    }
    count
};

impl Group {
    pub(super) fn new() -> Self {
        Self {
            short: [Item::default(); GROUP],
            blocks: [0; GROUP],
            long: [Item::default(); GROUP],
            order: [0; GROUP + 64],
        }
    }

    /// A short one, by when it comes.
    #[inline]
    pub(super) fn at(&self, place: usize) -> &Item {
        // Never beyond the group.
        &self.short[usize::from(self.order[place]) % GROUP]
    }

    /// Four from there on, of which the last has the most blocks.
    #[inline]
    pub(super) fn four(&self, place: usize) -> [&Item; 4] {
        [
            self.at(place),
            self.at(place + 1),
            self.at(place + 2),
            self.at(place + 3),
        ]
    }
}

on_avx512! {
    /// Takes values in, up to `until` or as many as there is room for. `to` is where the first goes.
    pub(super) fn gather<const OPEN: bool>(group: &mut Group, values: &Values<'_>, (number, until): (usize, usize), to: usize) -> Gathered {
        let mut so_far = Gathered { number, short: 0, long: 0, differ: false, to, next: to };
        while so_far.number < until {
            let many = so_far.number + 16 <= until;
            if so_far.short + if many { 16 } else { 1 } > GROUP || so_far.long == GROUP {
                break;
            }
            if many && take_many::<OPEN>(group, values, &mut so_far) {
                continue;
            }
            let last = until.min(so_far.number + 16);
            if take_each::<OPEN>(group, values, &mut so_far, last) {
                return so_far;
            }
        }
        so_far.to = so_far.next;
        so_far
    }

    /// Takes in the next 16, unless one of them is long, a null with bytes, or not as sealed values are.
    fn take_many<const OPEN: bool>(group: &mut Group, values: &Values<'_>, so_far: &mut Gathered) -> bool {
        let Some(offsets) = values.offsets()[so_far.number..].first_chunk::<17>() else { return false };
        let valid = values.valid(so_far.number);
        let (begin, end) = (load_offsets(offsets), load_offsets(&offsets[1..]));
        let mut len = _mm512_sub_epi32(end, begin);
        if _mm512_mask_test_epi32_mask(!valid, len, len) != 0 {
            return false;
        }
        if OPEN {
            // What is too short becomes as large as none is.
            len = _mm512_sub_epi32(len, _mm512_set1_epi32(OVERHEAD as i32));
        }
        if _mm512_mask_cmpgt_epu32_mask(valid, len, _mm512_set1_epi32(16 * MOST as i32)) != 0 {
            return false;
        }
        let (count, short) = (valid.count_ones() as usize, so_far.short);
        let place = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
        let number = _mm512_add_epi32(place, _mm512_set1_epi32(so_far.number as u32 as i32));
        let len = _mm512_maskz_compress_epi32(valid, len);
        let (number, begin) = (_mm512_maskz_compress_epi32(valid, number), _mm512_maskz_compress_epi32(valid, begin));
        let blocks = _mm512_srli_epi32::<4>(_mm512_add_epi32(len, _mm512_set1_epi32(15)));
        store(&mut group.blocks, short, _mm512_cvtepi32_epi8(blocks));
        // What is taken lies without gaps, and so does where it goes: but for what sealing adds.
        let grown = _mm512_mullo_epi32(place, _mm512_set1_epi32(OVERHEAD as i32));
        let from_first = _mm512_sub_epi32(begin, _mm512_set1_epi32(offsets[0]));
        let next = _mm512_set1_epi32(so_far.next as u32 as i32);
        let header = _mm512_set1_epi32(HEADER as i32);
        let (from, to) = match OPEN {
            true => (_mm512_add_epi32(begin, header), _mm512_sub_epi32(_mm512_add_epi32(next, from_first), grown)),
            false => (begin, _mm512_add_epi32(_mm512_add_epi32(next, from_first), _mm512_add_epi32(grown, header))),
        };
        store_items(&mut group.short[short..short + 16], number, from, len, to);
        if count > 0 {
            let first = _mm512_set1_epi32(group.short[0].len as i32);
            so_far.differ |= _mm512_mask_cmpneq_epi32_mask(_bzhi_u32(0xffff, count as u32) as u16, len, first) != 0;
        }
        let bytes = (offsets[16] - offsets[0]) as usize;
        so_far.next += if OPEN { bytes - OVERHEAD * count } else { bytes + OVERHEAD * count };
        so_far.short += count;
        so_far.number += 16;
        true
    }
}

/// Takes values in one by one, up to `until`; whether one ends the group.
fn take_each<const OPEN: bool>(group: &mut Group, values: &Values<'_>, so_far: &mut Gathered, until: usize) -> bool {
    for pair in values.offsets()[so_far.number..=until].windows(2) {
        if so_far.short == GROUP || so_far.long == GROUP {
            return false;
        }
        let number = so_far.number;
        so_far.number += 1;
        // Offsets ascend.
        let (mut from, mut len, mut to) = (pair[0] as u32, (pair[1] - pair[0]) as u32, so_far.next);
        if values.is_null(number) || OPEN && len < OVERHEAD as u32 {
            continue;
        }
        match OPEN {
            true => (from, len) = (from + HEADER as u32, len - OVERHEAD as u32),
            false => to += HEADER,
        }
        let item = Item {
            number: number as u32,
            from,
            len,
            to: to as u32,
        };
        let before = so_far.next;
        so_far.next += len as usize + if OPEN { 0 } else { OVERHEAD };
        if len <= 16 * MOST as u32 {
            group.short[so_far.short] = item;
            group.blocks[so_far.short] = len.div_ceil(16) as u8;
            so_far.differ |= len != group.short[0].len;
            so_far.short += 1;
            continue;
        }
        group.long[so_far.long] = item;
        so_far.long += 1;
        if len >= LARGE {
            so_far.to = before;
            return true;
        }
    }
    false
}

on_avx512! {
    /// The order in which the values of a group are taken: by their blocks, then three times the last one.
    pub(super) fn sort(group: &mut Group, count: usize, equal: bool) {
        let order = &mut group.order;
        let mut done = 0;
        let most = if equal { 0 } else { MOST as u8 };
        for class in 0..=most {
            if done == count {
                break;
            }
            for (n, part) in group.blocks.as_chunks::<64>().0.iter().enumerate() {
                let there = _bzhi_u64(u64::MAX, count.saturating_sub(64 * n).min(64) as u32);
                let of_class = match equal {
                    true => there,
                    false => _mm512_mask_cmpeq_epi8_mask(there, load_many(part), _mm512_set1_epi8(class as i8)),
                };
                let numbers = _mm512_add_epi8(_mm512_set1_epi8((64 * n) as u8 as i8), load_many(&COUNT));
                store_many(&mut order[done..done + 64], _mm512_maskz_compress_epi8(of_class, numbers));
                done += of_class.count_ones() as usize;
            }
        }
        if let Some(last) = done.checked_sub(1) {
            let last = order[last];
            order[done..done + 3].fill(last);
        }
    }
}
