//! Registers of one block: AES-NI and PCLMULQDQ.

macro_rules! on_these {
    ($($code:tt)*) => { with_features! { inline, "avx2,aes,pclmulqdq", $($code)* } };
}

macro_rules! never_inlined {
    ($($code:tt)*) => { with_features! { inline(never), "avx2,aes,pclmulqdq", $($code)* } };
}

/// What the two say with these registers.
mod registers {
    pub(super) use core::arch::x86_64::{
        __m128i as Register, _mm_add_epi32 as add, _mm_aesenc_si128 as round, _mm_aesenclast_si128 as last_round,
        _mm_clmulepi64_si128 as multiply, _mm_setzero_si128 as zero, _mm_shuffle_epi8 as shuffle,
        _mm_shuffle_epi32 as swap, _mm_xor_si128 as exclusive_or,
    };

    use core::arch::x86_64::*;

    pub(super) use crate::avx2::lanes::{load, store};

    /// Blocks of a register.
    pub(super) const WIDTH: usize = 1;

    on_avx2! {
        pub(in crate::avx2) fn all(x: __m128i) -> Register {
            x
        }

        /// 0, 1, …
        pub(in crate::avx2) fn count() -> Register {
            zero()
        }

        /// The block in the first lane, nothing in the others.
        pub(in crate::avx2) fn first(x: __m128i) -> Register {
            x
        }

        pub(in crate::avx2) fn fold(x: Register) -> __m128i {
            x
        }
    }
}

#[path = "column.rs"]
mod column;
#[path = "long.rs"]
mod long;
pub(super) use column::column;
