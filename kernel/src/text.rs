//! The text form of bytes: base64url without padding (RFC 4648, section 5), as the crate `base64-simd` writes and reads it, and by
//! AVX-512 where that is there. Sealed values are short, and what a call takes apart from its bytes is most of what it takes.

use base64_simd::URL_SAFE_NO_PAD;

use crate::Kernel;

/// Appends the base64url of `bytes`, without padding, to `out`.
#[inline]
pub fn write_base64url(bytes: &[u8], out: &mut Vec<u8>) {
    // By itself the library asks for exactly as much as it writes: a buffer for many would be moved for each.
    out.reserve(base64url_len(bytes.len()));
    match Kernel::of_machine() {
        #[cfg(target_arch = "x86_64")]
        Kernel::Avx512 => crate::avx512::write_base64url(bytes, out),
        _ => URL_SAFE_NO_PAD.encode_append(bytes, out),
    }
}

/// What is no base64url without padding, or is not spelled as [`write_base64url`] spells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotBase64url;

/// Appends the bytes whose base64url without padding `text` is to `out`, or nothing.
///
/// # Errors
/// [`NotBase64url`] for letters outside its alphabet, a length that no bytes have, and bits set behind the last byte.
#[inline]
pub fn read_base64url(text: &[u8], out: &mut Vec<u8>) -> Result<(), NotBase64url> {
    out.reserve(bytes_len(text.len()));
    match Kernel::of_machine() {
        #[cfg(target_arch = "x86_64")]
        Kernel::Avx512 => crate::avx512::read_base64url(text, out),
        _ => {
            let decoded = URL_SAFE_NO_PAD.decode_append(text, out);
            decoded.map(drop).map_err(|_| NotBase64url)
        }
    }
}

/// Bytes behind `letters` letters of base64url.
pub(crate) const fn bytes_len(letters: usize) -> usize {
    letters / 4 * 3 + letters % 4 * 3 / 4
}

/// Bytes of the base64url of `len` bytes.
#[must_use]
pub const fn base64url_len(len: usize) -> usize {
    len / 3 * 4 + (len % 3 * 4).div_ceil(3)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn text_of_every_length_is_that_of_the_library() {
        let bytes: Vec<u8> = (0..1_000_u32).map(|n| (n * 167 / 8) as u8).collect();
        for len in 0..=bytes.len() {
            let (bytes, mut out) = (&bytes[..len], b"before".to_vec());
            write_base64url(bytes, &mut out);
            let expected = URL_SAFE_NO_PAD.encode_to_string(bytes);
            assert_eq!(out, [b"before", expected.as_bytes()].concat(), "{} bytes", bytes.len());
            assert_eq!(expected.len(), base64url_len(bytes.len()));
            assert_eq!(read(expected.as_bytes()), Some(bytes.to_vec()));
            assert_eq!(bytes_len(expected.len()), bytes.len());
        }
    }

    /// What is read, which is appended, or nothing is.
    fn read(text: &[u8]) -> Option<Vec<u8>> {
        let mut out = b"before".to_vec();
        let read = read_base64url(text, &mut out);
        assert!(out.starts_with(b"before") && (read.is_ok() || out.len() == 6));
        read.ok().map(|()| out.split_off(6))
    }

    fn read_by_library(text: &[u8]) -> Option<Vec<u8>> {
        URL_SAFE_NO_PAD.decode_to_vec(text).ok()
    }

    #[test]
    fn every_byte_at_every_place_is_read_or_refused_as_by_the_library() {
        for len in (0..9).chain(61..73).chain(125..133) {
            let text: Vec<u8> = (0..len).map(|n| b"Az09-_kQ"[n % 8]).collect();
            assert_eq!(read(&text), read_by_library(&text), "{len}");
            for at in 0..len {
                for byte in 0..=255 {
                    let mut text = text.clone();
                    text[at] = byte;
                    assert_eq!(read(&text), read_by_library(&text), "{byte} at {at} of {len}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn text_is_that_of_the_library(bytes: Vec<u8>) {
            let mut out = Vec::new();
            write_base64url(&bytes, &mut out);
            prop_assert_eq!(out, URL_SAFE_NO_PAD.encode_to_string(&bytes).into_bytes());
        }

        #[test]
        fn letters_are_read_as_by_the_library(text in "[A-Za-z0-9_-]{0,300}") {
            prop_assert_eq!(read(text.as_bytes()), read_by_library(text.as_bytes()));
        }
    }
}
