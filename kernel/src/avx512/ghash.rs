//! GHASH (NIST SP 800-38D, section 6.4) in all lanes, as POLYVAL of reversed bytes (RFC 8452, appendix A), whose reduction needs no
//! shifts by one bit (S. Gueron, "A New Interpretation for the GHASH Authenticator of AES-GCM"). Blocks are reversed before
//! they come here. Products take three multiplications (A. Karatsuba): these are what GHASH waits for.

use core::arch::x86_64::*;

use super::POWERS;
use super::key::Key;
use super::lanes::{lanes, load_some, load_words, words};

/// Products that are not reduced yet, of four lanes. The middle one has the two others in it.
#[derive(Clone, Copy)]
pub(super) struct Sum {
    pub(super) low: __m512i,
    pub(super) middle: __m512i,
    pub(super) high: __m512i,
}

/// What is multiplied by: a power of H in each lane, and its halves added.
#[derive(Clone, Copy)]
pub(super) struct Power {
    whole: __m512i,
    halves: __m512i,
}

on_avx512! {
    /// GHASH of these bytes, padded to whole blocks, from a state on.
    pub(super) fn absorbed(key: &Key, state: __m128i, bytes: &[u8]) -> __m128i {
        let mut state = state;
        for block in bytes.chunks(16) {
            let block = _mm512_castsi512_si128(reversed(_mm512_zextsi128_si512(load_some(block))));
            state = multiplied(_mm_xor_si128(state, block), everywhere(key, 1));
        }
        state
    }

    /// Of the first lane.
    pub(super) fn multiplied(x: __m128i, power: Power) -> __m128i {
        _mm512_castsi512_si128(reduced(product(_mm512_zextsi128_si512(x), power)))
    }

    /// H as POLYVAL wants it: x · H (RFC 8452, appendix A).
    pub(super) fn doubled(h: __m128i) -> __m128i {
        let [low, high] = words(h);
        let (value, carry) = (u128::from(high) << 64 | u128::from(low), u128::from(high >> 63));
        let value = value << 1 ^ carry ^ carry << 127 ^ carry << 126 ^ carry << 121;
        _mm_set_epi64x((value >> 64) as i64, value as i64)
    }

    /// H^n in all lanes.
    pub(super) fn everywhere(key: &Key, n: usize) -> Power {
        broadcast(&key.powers[POWERS - n], &key.halves[POWERS - n])
    }

    pub(super) fn broadcast(whole: &[u64; 2], halves: &[u64; 2]) -> Power {
        Power { whole: _mm512_broadcast_i32x4(load_power(whole)), halves: _mm512_broadcast_i32x4(load_power(halves)) }
    }

    /// A power of each lane's own, zero for n = 0.
    pub(super) fn each(key: &Key, n: [usize; 4]) -> Power {
        let power = |lane: usize| load_power(&key.powers[POWERS - n[lane]]);
        of(lanes(power(0), power(1), power(2), power(3)))
    }

    /// H^n, H^(n-1), H^(n-2), H^(n-3), zeros beyond H^1.
    pub(super) fn descending(key: &Key, n: usize) -> Power {
        four(chunk(&key.powers, n), chunk(&key.halves, n))
    }

    pub(super) fn four(whole: &[[u64; 2]; 4], halves: &[[u64; 2]; 4]) -> Power {
        Power { whole: load_words(whole), halves: load_words(halves) }
    }

    pub(super) fn of(whole: __m512i) -> Power {
        Power { whole, halves: halves(whole) }
    }

    /// Both halves of each lane, added, twice.
    pub(super) fn halves(x: __m512i) -> __m512i {
        _mm512_xor_si512(x, _mm512_shuffle_epi32::<0x4e>(x))
    }

    fn load_power(power: &[u64; 2]) -> __m128i {
        _mm_set_epi64x(power[1] as i64, power[0] as i64)
    }

    pub(super) fn product(x: __m512i, power: Power) -> Sum {
        Sum {
            low: _mm512_clmulepi64_epi128::<0x00>(x, power.whole),
            middle: _mm512_clmulepi64_epi128::<0x00>(halves(x), power.halves),
            high: _mm512_clmulepi64_epi128::<0x11>(x, power.whole),
        }
    }

    /// The sum, and x · h.
    pub(super) fn added(sum: Sum, x: __m512i, power: Power) -> Sum {
        let more = product(x, power);
        Sum {
            low: _mm512_xor_si512(sum.low, more.low),
            middle: _mm512_xor_si512(sum.middle, more.middle),
            high: _mm512_xor_si512(sum.high, more.high),
        }
    }

    pub(super) fn nothing() -> Sum {
        let zero = _mm512_setzero_si512();
        Sum { low: zero, middle: zero, high: zero }
    }

    /// The sum of all lanes, in the first.
    pub(super) fn folded(x: __m512i) -> __m512i {
        let half = _mm256_xor_si256(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64::<1>(x));
        _mm512_zextsi128_si512(_mm_xor_si128(_mm256_castsi256_si128(half), _mm256_extracti128_si256::<1>(half)))
    }

    /// Modulo x^128 + x^127 + x^126 + x^121 + 1, times x^-128: the lower 64 bits are made zero twice, and left away.
    pub(super) fn reduced(sum: Sum) -> __m512i {
        let modulus = _mm512_set1_epi64(0xc200_0000_0000_0000_u64 as i64);
        let middle = exclusive_or(sum.middle, sum.low, sum.high);
        let low = _mm512_xor_si512(sum.low, _mm512_bslli_epi128::<8>(middle));
        let high = _mm512_xor_si512(sum.high, _mm512_bsrli_epi128::<8>(middle));
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
}

/// The four powers from H^n on. Whoever asks wants one at least, and the zeros make four of it.
fn chunk(powers: &[[u64; 2]; POWERS + 3], n: usize) -> &[[u64; 2]; 4] {
    powers[POWERS - n..].first_chunk().unwrap_or(&[[0; 2]; 4])
}
