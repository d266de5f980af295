//! The text form of bytes: base64url without padding (RFC 4648, section 5), as the crate `base64-simd` writes it, and by AVX-512
//! where that is there. Sealed values are short, and what a call takes apart from its bytes is most of what it takes.

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
        }
    }

    proptest! {
        #[test]
        fn text_is_that_of_the_library(bytes: Vec<u8>) {
            let mut out = Vec::new();
            write_base64url(&bytes, &mut out);
            prop_assert_eq!(out, URL_SAFE_NO_PAD.encode_to_string(&bytes).into_bytes());
        }
    }
}
