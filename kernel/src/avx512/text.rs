//! Base64url: 48 bytes become 64 letters. Each three bytes are spread over the four bytes of a lane, each byte of it takes the six
//! bits that are its own, and the alphabet, which fills a register, is looked up.

use core::arch::x86_64::*;

use super::is_there;
use super::lanes::{load_many, put_some};

/// Bytes that fill a register as letters.
const BYTES: usize = 48;
const ALPHABET: [u8; 64] = *b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// Of each three bytes the second, first, third, second: as a number of 32 bits, lowest byte first, what the four sextets are cut from.
const SPREAD: [u8; 64] = {
    let mut spread = [0; 64];
    let mut n = 0;
    while n < 16 {
        let first = 3 * n as u8;
        spread[4 * n] = first + 1;
        spread[4 * n + 1] = first;
        spread[4 * n + 2] = first + 2;
        spread[4 * n + 3] = first + 1;
        n += 1;
    }
    spread
};

/// Where in 64 bits, of two such numbers, each of eight sextets begins.
const SHIFTS: i64 = i64::from_le_bytes([10, 4, 22, 16, 42, 36, 54, 48]);

/// Appends the base64url of `bytes` to `out`, which has the room. For processors of which `is_there` is true.
#[allow(unsafe_code)] // the way into code for AVX-512
pub(crate) fn write_base64url(bytes: &[u8], out: &mut Vec<u8>) {
    debug_assert!(is_there());
    // SAFETY: `Kernel::of_machine`, by which alone one comes here, takes this kernel only where `is_there`.
    unsafe { write(bytes, out) }
}

on_avx512! {
    fn write(bytes: &[u8], out: &mut Vec<u8>) {
        let (spread, alphabet) = (load_many(&SPREAD), load_many(&ALPHABET));
        for bytes in bytes.chunks(BYTES) {
            let spread = _mm512_permutexvar_epi8(spread, load_many(bytes));
            // Bits above the sixth are not looked at.
            let sextets = _mm512_multishift_epi64_epi8(_mm512_set1_epi64(SHIFTS), spread);
            let letters = _mm512_permutexvar_epi8(sextets, alphabet);
            let at = out.len();
            put_some(out, at, letters, crate::base64url_len(bytes.len()));
        }
    }
}
