//! Registers and memory: blocks out of slices and into them; and what is done with a lane, which is a block in a register, by
//! the instructions of each machine. All that is `unsafe` here is in `x86`, in `arm` and in the calls that lead into code for
//! their instructions.

use zeroize::Zeroize;

use super::BLOCKS;

#[cfg(target_arch = "aarch64")]
mod arm;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(target_arch = "aarch64")]
pub(super) use arm::*;
#[cfg(target_arch = "x86_64")]
pub(super) use x86::*;

/// A block.
pub(super) type Block = [u8; 16];

/// Counter blocks, and then the key stream.
#[derive(Zeroize)]
#[repr(C, align(64))]
pub(super) struct Stream(pub(super) [Block; BLOCKS]);

/// As many bytes of ones as of zeros: from byte 32 - n on there are n ones.
static ONES: [u8; 64] = {
    let mut ones = [0; 64];
    let mut n = 0;
    while n < 32 {
        ones[n] = 0xff;
        n += 1;
    }
    ones
};

/// Ones in the first `len` bytes, at most as many as there are, and zeros.
#[inline]
pub(super) fn ones_and_zeros<const N: usize>(len: usize) -> &'static [u8; N] {
    ONES[32 - len.min(N).min(32)..].first_chunk().unwrap_or(&[0; N])
}

with_aes! { inline,
    /// The first `len` bytes of these, at most 16, and zeros. What comes after them is read with them if it can be: it
    /// saves going byte by byte.
    pub(super) fn load_some(bytes: &[u8], len: usize) -> Lane {
        if let Some(block) = bytes.first_chunk() {
            return and(load(block), ones(len));
        }
        let mut whole = 0;
        for byte in bytes.iter().take(len).rev() {
            whole = whole << 8 | u128::from(*byte);
        }
        from_number(whole)
    }

    /// Ones in the first `len` bytes.
    pub(super) fn ones(len: usize) -> Lane {
        load(ones_and_zeros(len))
    }

    pub(super) fn load_at(bytes: &[u8], at: usize) -> Lane {
        load(bytes[at..].first_chunk().unwrap_or(&[0; 16]))
    }

    /// Stores the first `len` bytes, at most 16. What comes after them is written as it was if it can be: it saves going
    /// byte by byte.
    pub(super) fn store_some(out: &mut [u8], x: Lane, len: usize) {
        if let Some(block) = out.first_chunk_mut() {
            let before = load(block);
            return store(block, select(ones(len), x, before));
        }
        let whole = to_number(x);
        for (n, byte) in out.iter_mut().take(len).enumerate() {
            *byte = (whole >> (8 * n)) as u8;
        }
    }

    pub(super) fn store_at(out: &mut [u8], at: usize, x: Lane) {
        if let [place] = out[at..at + 16].as_chunks_mut().0 {
            store(place, x);
        }
    }
}
