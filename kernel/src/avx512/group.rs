//! Which values are taken together: short ones in groups, sorted by their blocks, and cut into fours.

use core::arch::x86_64::*;

use super::lanes::{load_many, store_many};
use super::{GROUP, MOST, blocks};
use crate::OVERHEAD;
use crate::values::Values;

/// Values that are sealed together: of short ones which, where each goes, and its number of blocks; of long ones the first two.
pub(super) struct Group {
    number: [u32; GROUP],
    to: [u32; GROUP],
    pub(super) blocks: [u8; GROUP],
    pub(super) long: [[u32; 2]; GROUP],
}

/// How far a group was filled.
pub(super) struct Gathered {
    /// The next value.
    pub(super) number: usize,
    pub(super) count: usize,
    /// Not zero if lengths differ.
    pub(super) differ: u32,
    /// Long values, which were set aside.
    pub(super) long: usize,
    /// Where the next value goes.
    pub(super) to: usize,
}

/// Four of a group, of which the last has the most blocks: which, where each is, its length, where it goes.
#[derive(Clone, Copy, Default)]
pub(super) struct Four {
    pub(super) number: [u32; 4],
    pub(super) from: [u32; 4],
    pub(super) len: [u32; 4],
    pub(super) to: [u32; 4],
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
            number: [0; GROUP],
            to: [0; GROUP],
            blocks: [0; GROUP],
            long: [[0; 2]; GROUP],
        }
    }

    /// Takes values in, up to `until` or as many as there is room for. `to` is where the first goes.
    #[inline(never)]
    pub(super) fn gather(&mut self, values: &Values<'_>, (number, until): (usize, usize), to: usize) -> Gathered {
        let mut gathered = Gathered {
            number,
            count: 0,
            differ: 0,
            long: 0,
            to,
        };
        let mut first = 0;
        for (n, pair) in (number..until).zip(values.offsets()[number..=until].windows(2)) {
            // Offsets ascend.
            let len = (pair[1] - pair[0]) as u32;
            if !values.is_null(n) {
                if gathered.count == GROUP || gathered.long == GROUP {
                    break;
                }
                if len <= 16 * MOST as u32 {
                    if gathered.count == 0 {
                        first = len;
                    }
                    self.number[gathered.count] = n as u32;
                    self.to[gathered.count] = gathered.to as u32;
                    self.blocks[gathered.count] = blocks(len) as u8;
                    gathered.differ |= len ^ first;
                    gathered.count += 1;
                } else {
                    self.long[gathered.long] = [n as u32, gathered.to as u32];
                    gathered.long += 1;
                }
                gathered.to += len as usize + OVERHEAD;
            }
            gathered.number = n + 1;
        }
        gathered
    }

    #[inline]
    pub(super) fn four(&self, values: &Values<'_>, order: &[u8; GROUP + 64], at: usize) -> Four {
        let mut four = Four {
            number: [0; 4],
            from: [0; 4],
            len: [0; 4],
            to: [0; 4],
        };
        for lane in 0..4 {
            // Never beyond the group.
            let place = usize::from(order[at + lane]) % GROUP;
            let number = self.number[place];
            let pair = &values.offsets()[number as usize..number as usize + 2];
            four.number[lane] = number;
            four.from[lane] = pair[0] as u32;
            four.len[lane] = (pair[1] - pair[0]) as u32;
            four.to[lane] = self.to[place];
        }
        four
    }
}

on_avx512! {
    /// The order in which the values of a group are taken: by their blocks, then three times the last one.
    pub(super) fn sort(blocks: &[u8; GROUP], count: usize, equal: bool, order: &mut [u8; GROUP + 64]) {
        let mut done = 0;
        let most = if equal { 0 } else { MOST as u8 };
        for class in 0..=most {
            for (n, part) in blocks.as_chunks::<64>().0.iter().enumerate() {
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
