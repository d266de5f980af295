//! Which values are taken together: short ones in groups, sorted by their blocks, and cut into fours.

use core::arch::x86_64::*;

use super::lanes::{load_many, store_item, store_many};
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
        }
    }

    /// Four of a group, of which the last has the most blocks.
    #[inline]
    pub(super) fn four(&self, order: &[u8; GROUP + 64], at: usize) -> [&Item; 4] {
        let order = &order[at..at + 4];
        // Never beyond the group.
        let item = |lane: usize| &self.short[usize::from(order[lane]) % GROUP];
        [item(0), item(1), item(2), item(3)]
    }
}

on_avx512! {
    /// Takes values in, up to `until` or as many as there is room for. `to` is where the first goes.
    pub(super) fn gather<const OPEN: bool>(group: &mut Group, values: &Values<'_>, (number, until): (usize, usize), to: usize) -> Gathered {
        let (mut short, mut long, mut differ, mut first) = (0, 0, 0, 0);
        let (mut number, mut next) = (number, to);
        let mut large = 0;
        for pair in values.offsets()[number..=until].windows(2) {
            // Offsets ascend.
            let (mut from, mut len) = (pair[0] as u32, (pair[1] - pair[0]) as u32);
            let mut left_out = values.is_null(number);
            let mut at = next;
            if OPEN {
                left_out |= len < OVERHEAD as u32;
                len = len.wrapping_sub(OVERHEAD as u32);
                from = from.wrapping_add(HEADER as u32);
            } else {
                at += HEADER;
            }
            if left_out {
                number += 1;
                continue;
            }
            if short == GROUP || long == GROUP || large != 0 {
                break;
            }
            let item = _mm_set_epi32(at as i32, len as i32, from as i32, number as i32);
            if len <= 16 * MOST as u32 {
                if short == 0 {
                    first = len;
                }
                differ |= len ^ first;
                store_item(&mut group.short[short], item);
                group.blocks[short] = len.div_ceil(16) as u8;
                short += 1;
            } else {
                store_item(&mut group.long[long], item);
                long += 1;
                if len >= LARGE {
                    large = len as usize;
                }
            }
            next += len as usize + if OPEN { 0 } else { OVERHEAD };
            number += 1;
        }
        let to = match (large, OPEN) {
            (0, _) => next,
            (large, true) => next - large,
            (large, false) => next - large - OVERHEAD,
        };
        Gathered { number, short, long, differ: differ != 0, to, next }
    }

    /// The order in which the values of a group are taken: by their blocks, then three times the last one.
    pub(super) fn sort(group: &Group, count: usize, equal: bool, order: &mut [u8; GROUP + 64]) {
        let mut done = 0;
        let most = if equal { 0 } else { MOST as u8 };
        for class in 0..=most {
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
