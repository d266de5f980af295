//! Data keys and what is derived from them: key ids that commit, cipher keys, usage limits.

use std::fmt;
use std::str::FromStr;

use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::secret::SecretBytes;

/// Bytes of a data key.
pub const DATA_KEY_LEN: usize = 32;
/// Bytes of a domain secret.
pub const DOMAIN_SECRET_LEN: usize = 64;

const KEY_ID_INFO: &[u8] = b"sealflow key id v1";

/// Names a data key or domain secret and commits to it: the first 16 bytes of
/// HKDF-SHA-256(key, info `sealflow key id v1`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId([u8; 16]);

impl KeyId {
    /// Bytes of a key id.
    pub const LEN: usize = 16;

    /// The id of `secret`.
    #[must_use]
    pub fn of(secret: &SecretBytes) -> Self {
        Self(*derive::<16>(secret, KEY_ID_INFO))
    }

    /// An id as it was read; it proves nothing until a key recomputes it.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The 16 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for KeyId {
    /// 32 lower-case hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({self})")
    }
}

/// A text that is not 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
#[error("a key id is 32 hexadecimal digits")]
pub struct KeyIdError;

impl FromStr for KeyId {
    type Err = KeyIdError;

    fn from_str(text: &str) -> Result<Self, KeyIdError> {
        if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            return Err(KeyIdError);
        }
        let mut bytes = [0; 16];
        for (n, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * n..2 * n + 2], 16).map_err(|_| KeyIdError)?;
        }
        Ok(Self(bytes))
    }
}

/// HKDF-SHA-256 (RFC 5869) with empty salt: `N` bytes for `info`.
pub(crate) fn derive<const N: usize>(secret: &SecretBytes, info: &[u8]) -> Zeroizing<[u8; N]> {
    let mut out = Zeroizing::new([0; N]);
    // HKDF-SHA-256 yields up to 8,160 bytes; every N here is a small constant, so `expand` cannot fail. Were
    // it to, an all-zero key would be the worst of answers, so this stops instead.
    #[allow(clippy::expect_used)]
    Hkdf::<Sha256>::new(None, secret.expose())
        .expand(info, &mut *out)
        .expect("length is a small constant");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_id_prints_as_it_parses_and_nothing_else_parses() {
        let id = KeyId::of(&SecretBytes::new(vec![7; 32]));
        assert_eq!(id.to_string().parse(), Ok(id));
        for text in [
            "",
            "00",
            "G0000000000000000000000000000000",
            "AA000000000000000000000000000000",
        ] {
            assert_eq!(text.parse::<KeyId>(), Err(KeyIdError));
        }
    }

    #[test]
    fn another_key_has_another_id() {
        assert_ne!(
            KeyId::of(&SecretBytes::new(vec![7; 32])),
            KeyId::of(&SecretBytes::new(vec![8; 32]))
        );
    }
}
