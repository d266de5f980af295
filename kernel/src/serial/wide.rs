//! Registers of two blocks: VAES and VPCLMULQDQ, of 256 bits.

macro_rules! on_these {
    ($($code:tt)*) => { with_features! { inline, "avx2,aes,pclmulqdq,vaes,vpclmulqdq", $($code)* } };
}

macro_rules! never_inlined {
    ($($code:tt)*) => { with_features! { inline(never), "avx2,aes,pclmulqdq,vaes,vpclmulqdq", $($code)* } };
}

/// What the two say with these registers.
mod registers {
    pub(super) use core::arch::x86_64::{
        __m256i as Register, _mm256_add_epi32 as add, _mm256_aesenc_epi128 as round, _mm256_and_si256 as and,
        _mm256_setzero_si256 as zero, _mm256_shuffle_epi8 as shuffle, _mm256_xor_si256 as exclusive_or,
    };

    use core::arch::x86_64::*;

    use crate::serial::lanes::ones_and_zeros;
    pub(super) use crate::serial::lanes::{load_two as load, store_two as store};

    /// Blocks of a register.
    pub(super) const WIDTH: usize = 2;

    on_these! {
        pub(in crate::serial) fn all(x: __m128i) -> Register {
            _mm256_broadcastsi128_si256(x)
        }

        /// 0, 1, … in the last words of the blocks.
        pub(in crate::serial) fn count() -> Register {
            _mm256_set_epi32(1, 0, 0, 0, 0, 0, 0, 0)
        }

        /// The block in the first lane, nothing in the others.
        pub(in crate::serial) fn first(x: __m128i) -> Register {
            _mm256_zextsi128_si256(x)
        }

        pub(in crate::serial) fn fold(x: Register) -> __m128i {
            _mm_xor_si128(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x))
        }

        /// Ones in the first `len` bytes.
        pub(in crate::serial) fn ones(len: usize) -> Register {
            load(ones_and_zeros(len))
        }

        /// The bits of `x` where the mask has ones, those of `y` where it has zeros. All bits of a byte of the mask are the
        /// same.
        pub(in crate::serial) fn select(mask: Register, x: Register, y: Register) -> Register {
            _mm256_blendv_epi8(y, x, mask)
        }

        pub(in crate::serial) fn start(x: Register, first: Register) -> Register {
            exclusive_or(x, first)
        }

        pub(in crate::serial) fn last_round(x: Register, _: Register, last: Register) -> Register {
            _mm256_aesenclast_epi128(x, last)
        }

        pub(in crate::serial) fn multiply_low(x: Register, y: Register) -> Register {
            _mm256_clmulepi64_epi128::<0x00>(x, y)
        }

        pub(in crate::serial) fn multiply_high(x: Register, y: Register) -> Register {
            _mm256_clmulepi64_epi128::<0x11>(x, y)
        }

        pub(in crate::serial) fn swap(x: Register) -> Register {
            _mm256_shuffle_epi32::<0x4e>(x)
        }
    }
}

#[path = "column.rs"]
#[allow(clippy::duplicate_mod)] // the same code for other registers
mod column;
#[path = "long.rs"]
#[allow(clippy::duplicate_mod)] // the same code for other registers
mod long;
pub(super) use column::column;
