//! Base64url: 48 bytes become 64 letters. Each three bytes are spread over the four bytes of a lane, each byte of it takes the six
//! bits that are its own, and the alphabet, which fills a register, is looked up. Back, the letter is looked up in two registers, and
//! four sextets are multiplied and added into three bytes (W. Muła and D. Lemire, "Base64 encoding and decoding at almost the speed
//! of a memory copy", 2020).

use core::arch::x86_64::*;

use super::is_there;
use super::lanes::{load_many, load_many_over, put_some};
use crate::text::{NotBase64url, bytes_len};

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

/// In the place of what is no letter.
const NO_LETTER: u8 = 0x80;
/// The sextet of each ASCII character.
const SEXTETS: [u8; 128] = {
    let mut sextets = [NO_LETTER; 128];
    let mut n = 0;
    while n < ALPHABET.len() {
        sextets[ALPHABET[n] as usize] = n as u8;
        n += 1;
    }
    sextets
};

/// The three bytes of each number of 32 bits, highest first.
const PACKED: [u8; 64] = {
    let mut packed = [0; 64];
    let mut n = 0;
    while n < BYTES {
        packed[n] = (n / 3 * 4 + 2 - n % 3) as u8;
        n += 1;
    }
    packed
};

/// Appends the base64url of `bytes` to `out`, which has the room. For processors of which `is_there` is true.
#[allow(unsafe_code)] // the way into code for AVX-512
pub(crate) fn write_base64url(bytes: &[u8], out: &mut Vec<u8>) {
    debug_assert!(is_there());
    // SAFETY: `Kernel::of_machine`, by which alone one comes here, takes this kernel only where `is_there`.
    unsafe { write(bytes, out) }
}

/// Appends the bytes behind `text` to `out`, which has the room, or nothing. For processors of which `is_there` is true.
#[allow(unsafe_code)] // the way into code for AVX-512
pub(crate) fn read_base64url(text: &[u8], out: &mut Vec<u8>) -> Result<(), NotBase64url> {
    debug_assert!(is_there());
    // Bits of the last letter that are of no byte.
    let unused = match text.len() % 4 {
        0 => 0,
        2 => 0x0f,
        3 => 0x03,
        _ => return Err(NotBase64url),
    };
    let last = text.last().map_or(0, |letter| SEXTETS[usize::from(letter & 0x7f)]);
    let from = out.len();
    // SAFETY: `Kernel::of_machine`, by which alone one comes here, takes this kernel only where `is_there`.
    if unsafe { read(text, out) } && last & unused == 0 {
        return Ok(());
    }
    out.truncate(from);
    Err(NotBase64url)
}

on_avx512! {
    /// Whether all were letters.
    fn read(text: &[u8], out: &mut Vec<u8>) -> bool {
        let (low, high, packed) = (load_many(&SEXTETS), load_many(&SEXTETS[64..]), load_many(&PACKED));
        // Behind the text, the letter of no bits.
        let none = _mm512_set1_epi8(ALPHABET[0] as i8);
        let mut wrong = _mm512_setzero_si512();
        for text in text.chunks(64) {
            let letters = load_many_over(none, text);
            let sextets = _mm512_permutex2var_epi8(low, letters, high);
            // The highest bit is no letter's, and of none beyond ASCII.
            wrong = _mm512_or_si512(wrong, _mm512_or_si512(sextets, letters));
            let pairs = _mm512_maddubs_epi16(sextets, _mm512_set1_epi32(0x0140_0140));
            let fours = _mm512_madd_epi16(pairs, _mm512_set1_epi32(0x0001_1000));
            let at = out.len();
            put_some(out, at, _mm512_permutexvar_epi8(packed, fours), bytes_len(text.len()));
        }
        _mm512_movepi8_mask(wrong) == 0
    }

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
