//! The bytes of one sealed value, and its text form (`docs/format.md`, "Sealed values").

use sealflow_kernel::{base64url_len, read_base64url, write_base64url};

use super::key::KeyId;

/// Suite byte of AES-256-GCM.
pub const SUITE_GCM: u8 = 0x11;
/// Suite byte of AES-256-SIV.
pub const SUITE_SIV: u8 = 0x12;
/// Bytes of a GCM nonce.
pub const NONCE_LEN: usize = 12;
/// Bytes of a GCM tag and of a synthetic IV.
pub const TAG_LEN: usize = 16;
/// `suite ‖ key id ‖ column ‖ nonce`
pub(crate) const GCM_HEADER_LEN: usize = 1 + KeyId::LEN + 2 + NONCE_LEN;
/// What suite `0x11` adds to a plaintext encoding, in bytes.
pub const GCM_OVERHEAD: usize = GCM_HEADER_LEN + TAG_LEN;
/// What suite `0x12` adds to a plaintext encoding, in bytes.
pub const SIV_OVERHEAD: usize = 1 + KeyId::LEN + TAG_LEN;
/// How the text form starts.
pub const TEXT_PREFIX: &str = "sf1.";

/// A sealed value taken apart; nothing about it is proven until it was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SealedValue<'a> {
    /// Suite `0x11`: `suite(1) ‖ key id(16) ‖ column(2, big endian) ‖ nonce(12) ‖ ciphertext(n) ‖ tag(16)`.
    Randomised {
        /// The data key.
        key: KeyId,
        /// Index into the labels of the key's envelope.
        column: u16,
        /// GCM nonce.
        nonce: &'a [u8; NONCE_LEN],
        /// Ciphertext, as long as the plaintext encoding.
        ciphertext: &'a [u8],
        /// GCM tag.
        tag: &'a [u8; TAG_LEN],
    },
    /// Suite `0x12`: `suite(1) ‖ key id(16) ‖ synthetic IV(16) ‖ ciphertext(n)`.
    Deterministic {
        /// The domain secret.
        key: KeyId,
        /// Synthetic IV, which is the tag.
        iv: &'a [u8; TAG_LEN],
        /// Ciphertext, as long as the plaintext encoding.
        ciphertext: &'a [u8],
    },
}

/// Bytes or text that are no sealed value.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("not a sealed value")]
pub struct NotSealed;

impl<'a> SealedValue<'a> {
    /// Takes the binary form apart.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, NotSealed> {
        let (suite, rest) = bytes.split_first().ok_or(NotSealed)?;
        let (key, rest) = rest.split_first_chunk().ok_or(NotSealed)?;
        let key = KeyId::from_bytes(*key);
        match *suite {
            SUITE_GCM => {
                let (column, rest) = rest.split_first_chunk().ok_or(NotSealed)?;
                let (nonce, rest) = rest.split_first_chunk().ok_or(NotSealed)?;
                let (ciphertext, tag) = rest.split_last_chunk().ok_or(NotSealed)?;
                Ok(Self::Randomised {
                    key,
                    column: u16::from_be_bytes(*column),
                    nonce,
                    ciphertext,
                    tag,
                })
            }
            SUITE_SIV => {
                let (iv, ciphertext) = rest.split_first_chunk().ok_or(NotSealed)?;
                Ok(Self::Deterministic { key, iv, ciphertext })
            }
            _ => Err(NotSealed),
        }
    }

    /// The key that it names.
    #[must_use]
    pub fn key(&self) -> KeyId {
        match self {
            Self::Randomised { key, .. } | Self::Deterministic { key, .. } => *key,
        }
    }
}

/// Length of the text form of `len` bytes.
#[must_use]
pub fn text_len(len: usize) -> usize {
    TEXT_PREFIX.len() + base64url_len(len)
}

/// Appends the text form (`sf1.` + base64url without padding, RFC 4648 section 5) of a sealed value to `out`.
#[inline]
pub fn write_text(sealed: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(TEXT_PREFIX.as_bytes());
    write_base64url(sealed, out);
}

/// Appends the bytes behind a text form to `out`, or nothing. Only the canonical spelling is taken.
#[inline]
pub fn read_text(text: &[u8], out: &mut Vec<u8>) -> Result<(), NotSealed> {
    let encoded = text.strip_prefix(TEXT_PREFIX.as_bytes()).ok_or(NotSealed)?;
    read_base64url(encoded, out).map_err(|_| NotSealed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn values_that_are_too_short_or_of_an_unknown_suite_are_no_sealed_values() {
        assert!(SealedValue::parse(&[]).is_err());
        assert!(SealedValue::parse(&[SUITE_GCM; GCM_OVERHEAD - 1]).is_err());
        assert!(SealedValue::parse(&[SUITE_GCM; GCM_OVERHEAD]).is_ok());
        assert!(SealedValue::parse(&[SUITE_SIV; SIV_OVERHEAD - 1]).is_err());
        assert!(SealedValue::parse(&[SUITE_SIV; SIV_OVERHEAD]).is_ok());
        assert!(SealedValue::parse(&[0x10; 64]).is_err());
    }

    #[test]
    fn only_the_canonical_text_is_read() {
        for text in ["sf1.QQ==", "sf1.QR", "SF1.QQ", "sf2.QQ", "sf1.Q+", "sf1.Q Q", "sf1.Q"] {
            assert!(read_text(text.as_bytes(), &mut Vec::new()).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn text_comes_back_as_it_was(bytes: Vec<u8>) {
            let (mut text, mut back) = (Vec::new(), Vec::new());
            write_text(&bytes, &mut text);
            prop_assert_eq!(text.len(), text_len(bytes.len()));
            prop_assert_eq!(read_text(&text, &mut back), Ok(()));
            prop_assert_eq!(back, bytes);
        }

        #[test]
        fn any_bytes_can_be_parsed_without_panic(bytes: Vec<u8>) {
            let _ = SealedValue::parse(&bytes);
            let _ = read_text(&bytes, &mut Vec::new());
        }
    }
}
