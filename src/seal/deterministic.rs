//! Suite `0x12`: AES-256-SIV (RFC 5297), deterministic, for columns that are joined across datasets.

use std::fmt;

use aes_siv::aead::inout::InOutBuf;
use aes_siv::siv::Aes256Siv;
use aes_siv::{KeyInit as _, Tag};
use zeroize::{Zeroize as _, Zeroizing};

use super::aad::Aad;
use super::column::{ByteColumn, SealedColumn};
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
            let mut failed = false;
            sealed.push_with(|out| {
                out.push(SUITE_SIV);
                out.extend_from_slice(self.id.as_bytes());
                let iv = out.len();
                out.resize(iv + TAG_LEN + value.len(), 0);
                // Lengths are equal by construction, so the buffer is always made.
                let tag = InOutBuf::new(value, &mut out[iv + TAG_LEN..])
                    .ok()
                    .and_then(|buffer| siv.encrypt_inout_detached([aad], buffer).ok());
                match tag {
                    Some(tag) => out[iv..iv + TAG_LEN].copy_from_slice(&tag),
                    None => failed = true,
                }
            })?;
            if failed {
                return Err(SealError::TooLarge);
            }
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
        let start = out.len();
        out.resize(start + ciphertext.len(), 0);
        let aad = self.aad.of(None);
        let opened = InOutBuf::new(ciphertext, &mut out[start..])
            .ok()
            .and_then(|buffer| self.siv.decrypt_inout_detached([aad], buffer, &Tag::from(*iv)).ok());
        if opened.is_none() {
            out[start..].zeroize();
            out.truncate(start);
            return Err(OpenError);
        }
        Ok(())
    }
}

impl fmt::Debug for DomainKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DomainKey")
            .field("id", &self.id)
            .field("domain", &self.domain)
            .finish_non_exhaustive()
    }
}
