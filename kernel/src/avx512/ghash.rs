//! GHASH (NIST SP 800-38D, section 6.4) in all lanes, as POLYVAL of reversed bytes (RFC 8452, appendix A), whose reduction needs no
//! shifts by one bit (S. Gueron, "A New Interpretation for the GHASH Authenticator of AES-GCM"). Blocks are reversed before
//! they come here.

use core::arch::x86_64::*;

use super::POWERS;
use super::key::Key;
use super::lanes::{load_some, load_words, words};

/// Products that are not reduced yet, of four lanes.
#[derive(Clone, Copy)]
pub(super) struct Sum {
    low: __m512i,
    middle: __m512i,
    high: __m512i,
}

on_avx512! {
    /// GHASH of these bytes, padded to whole blocks, from a state on.
    pub(super) fn absorbed(key: &Key, state: __m128i, bytes: &[u8]) -> __m128i {
        let mut state = state;
        for block in bytes.chunks(16) {
            let block = _mm512_castsi512_si128(reversed(_mm512_zextsi128_si512(load_some(block))));
            state = multiplied(key, _mm_xor_si128(state, block));
        }
        state
    }

    /// x · H
    pub(super) fn multiplied(key: &Key, x: __m128i) -> __m128i {
        let h = _mm512_zextsi128_si512(power(key, 1));
        _mm512_castsi512_si128(reduced(product(_mm512_zextsi128_si512(x), h)))
    }

    /// H as POLYVAL wants it: x · H (RFC 8452, appendix A).
    pub(super) fn doubled(h: __m128i) -> __m128i {
        let [low, high] = words(h);
        let (value, carry) = (u128::from(high) << 64 | u128::from(low), u128::from(high >> 63));
        let value = value << 1 ^ carry ^ carry << 127 ^ carry << 126 ^ carry << 121;
        _mm_set_epi64x((value >> 64) as i64, value as i64)
    }

    /// H^n, zero for n = 0.
    pub(super) fn power(key: &Key, n: usize) -> __m128i {
        load_power(&key.powers[POWERS - n])
    }

    /// H^n and all below.
    pub(super) fn powers_from(key: &Key, n: usize) -> &[[u64; 2]] {
        &key.powers[POWERS - n..]
    }

    pub(super) fn load_power(power: &[u64; 2]) -> __m128i {
        _mm_set_epi64x(power[1] as i64, power[0] as i64)
    }

    /// H^n, H^(n-1), H^(n-2), H^(n-3), zeros beyond H^1.
    pub(super) fn powers(key: &Key, n: usize) -> __m512i {
        // Whoever asks wants one at least, and the zeros make four of it.
        load_words(key.powers[POWERS - n..].first_chunk().unwrap_or(&[[0; 2]; 4]))
    }

    pub(super) fn product(x: __m512i, h: __m512i) -> Sum {
        Sum {
            low: _mm512_clmulepi64_epi128::<0x00>(x, h),
            middle: _mm512_xor_si512(_mm512_clmulepi64_epi128::<0x01>(x, h), _mm512_clmulepi64_epi128::<0x10>(x, h)),
            high: _mm512_clmulepi64_epi128::<0x11>(x, h),
        }
    }

    /// The sum, and x · h.
    pub(super) fn added(sum: Sum, x: __m512i, h: __m512i) -> Sum {
        let (one, other) = (_mm512_clmulepi64_epi128::<0x01>(x, h), _mm512_clmulepi64_epi128::<0x10>(x, h));
        Sum {
            low: _mm512_xor_si512(sum.low, _mm512_clmulepi64_epi128::<0x00>(x, h)),
            middle: exclusive_or(sum.middle, one, other),
            high: _mm512_xor_si512(sum.high, _mm512_clmulepi64_epi128::<0x11>(x, h)),
        }
    }

    pub(super) fn nothing() -> Sum {
        let zero = _mm512_setzero_si512();
        Sum { low: zero, middle: zero, high: zero }
    }

    /// The sums of all lanes, in the first.
    pub(super) fn folded(sum: Sum) -> Sum {
        let fold = |x: __m512i| {
            let half = _mm256_xor_si256(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64::<1>(x));
            _mm512_zextsi128_si512(_mm_xor_si128(_mm256_castsi256_si128(half), _mm256_extracti128_si256::<1>(half)))
        };
        Sum { low: fold(sum.low), middle: fold(sum.middle), high: fold(sum.high) }
    }

    /// Modulo x^128 + x^127 + x^126 + x^121 + 1, times x^-128: the lower 64 bits are made zero twice, and left away.
    pub(super) fn reduced(sum: Sum) -> __m512i {
        let modulus = _mm512_set1_epi64(0xc200_0000_0000_0000_u64 as i64);
        let low = _mm512_xor_si512(sum.low, _mm512_bslli_epi128::<8>(sum.middle));
        let high = _mm512_xor_si512(sum.high, _mm512_bsrli_epi128::<8>(sum.middle));
        let low = _mm512_xor_si512(_mm512_shuffle_epi32::<0x4e>(low), _mm512_clmulepi64_epi128::<0x00>(low, modulus));
        exclusive_or(_mm512_shuffle_epi32::<0x4e>(low), _mm512_clmulepi64_epi128::<0x00>(low, modulus), high)
    }

    pub(super) fn exclusive_or(a: __m512i, b: __m512i, c: __m512i) -> __m512i {
        _mm512_ternarylogic_epi64::<0x96>(a, b, c)
    }

    /// The bytes of each block from last to first.
    pub(super) fn reversed(x: __m512i) -> __m512i {
        let order = _mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        _mm512_shuffle_epi8(x, _mm512_broadcast_i32x4(order))
    }

    pub(super) fn all(x: __m128i) -> __m512i {
        _mm512_broadcast_i32x4(x)
    }
}
