//! Key-encryption keys of tables: they wrap the keys of columns and footers as Parquet's key tools do (double wrapping
//! of PKMT1 key material), and say which label a wrapped key is for.

use std::fmt;

#[cfg(feature = "table")]
use aes_gcm::aead::AeadCore;
use aes_gcm::aead::AeadInOut;
#[cfg(feature = "table")]
use aes_gcm::aead::consts::{U12, U16};
#[cfg(feature = "table")]
use aes_gcm::aes::Aes192;
#[cfg(feature = "table")]
use aes_gcm::{Aes128Gcm, AesGcm};
use aes_gcm::{Aes256Gcm, KeyInit, Nonce, Tag};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use super::key::{DATA_KEY_LEN, KeyId, derive};
use super::usage::{LimitReached, Usage, UsageLimits};
use super::value::{NONCE_LEN, TAG_LEN};
use super::{OpenError, SealError};
use crate::secret::SecretBytes;

const KEK_INFO: &[u8] = b"sealflow kek v1";
const KEK_ID_LEN: usize = 16;

/// A key-encryption key that this process generated and may wrap with, within its limits.
pub struct WrappingKey {
    inner: Inner,
    usage: Usage,
    process: u32,
}

/// A key-encryption key that was unwrapped: it unwraps, it never wraps.
pub struct UnwrappingKey(Inner);

struct Inner {
    id: KeyId,
    secret: SecretBytes,
    cipher: Aes256Gcm,
}

/// A wrapped key of a column or footer, with the id of what wrapped it: both as they stand in PKMT1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrappedKey {
    /// `keyEncryptionKeyID`: padded standard base64 of 16 bytes, HKDF of the key-encryption key, dataset and label.
    pub kek_id: String,
    /// `wrappedDEK`: padded standard base64 of nonce ‖ ciphertext ‖ tag, the 16 bytes of the id as additional data.
    pub wrapped: String,
}

impl WrappingKey {
    /// From key material that a key service has just generated for this process alone.
    pub fn from_generated(secret: &SecretBytes, limits: UsageLimits) -> Result<Self, SealError> {
        Ok(Self {
            inner: Inner::new(secret)?,
            usage: Usage::new(limits),
            process: std::process::id(),
        })
    }

    /// Its id, which commits to it.
    #[must_use]
    pub fn id(&self) -> KeyId {
        self.inner.id
    }

    /// Largest used share of its limits, in percent.
    #[must_use]
    pub fn used_percent(&self) -> u64 {
        self.usage.percent()
    }

    /// Whether it has refused to wrap, and so will again.
    #[must_use]
    pub fn is_exhausted(&self) -> bool {
        self.usage.closed()
    }

    /// Wraps the key of a column or footer that is sealed as `label` of `dataset`.
    ///
    /// # Errors
    /// [`SealError`] if its limits are reached, the process was forked, or there are no random numbers.
    pub fn wrap(&self, dataset: &str, label: &str, key: &SecretBytes) -> Result<WrappedKey, SealError> {
        if std::process::id() != self.process {
            return Err(SealError::OtherProcess);
        }
        self.usage
            .reserve(1, key.len() as u64)
            .map_err(|LimitReached| SealError::LimitReached)?;
        let mut nonce = [0; NONCE_LEN];
        getrandom::fill(&mut nonce).map_err(|_| SealError::NoRandomness)?;
        let id = self.inner.kek_id(dataset, label);
        let mut buffer = Zeroizing::new(key.expose().to_vec());
        let tag = self
            .inner
            .cipher
            .encrypt_inout_detached(&Nonce::from(nonce), &id, buffer.as_mut_slice().into())
            .map_err(|_| SealError::TooLarge)?;
        let wrapped = [&nonce[..], &buffer, &tag].concat();
        Ok(WrappedKey {
            kek_id: STANDARD.encode(id),
            wrapped: STANDARD.encode(wrapped),
        })
    }
}

impl UnwrappingKey {
    /// From unwrapped key material, which must be the key `id`.
    pub fn from_unwrapped(secret: &SecretBytes, id: KeyId) -> Result<Self, OpenError> {
        let inner = Inner::new(secret).map_err(|_| OpenError)?;
        let is_same: bool = inner.id.as_bytes().ct_eq(id.as_bytes()).into();
        if is_same { Ok(Self(inner)) } else { Err(OpenError) }
    }

    /// Unwraps a key, if it is one of `label` of `dataset`.
    ///
    /// # Errors
    /// [`OpenError`] if it was wrapped for another label or dataset, or changed.
    pub fn unwrap(&self, dataset: &str, label: &str, key: &WrappedKey) -> Result<SecretBytes, OpenError> {
        let id = self.0.kek_id(dataset, label);
        if key.kek_id != STANDARD.encode(id) {
            return Err(OpenError);
        }
        let bytes = STANDARD.decode(&key.wrapped).map_err(|_| OpenError)?;
        let (nonce, rest) = bytes.split_first_chunk::<NONCE_LEN>().ok_or(OpenError)?;
        let (ciphertext, tag) = rest.split_last_chunk::<TAG_LEN>().ok_or(OpenError)?;
        let mut buffer = Zeroizing::new(ciphertext.to_vec());
        self.0
            .cipher
            .decrypt_inout_detached(
                &Nonce::from(*nonce),
                &id,
                buffer.as_mut_slice().into(),
                &Tag::from(*tag),
            )
            .map_err(|_| OpenError)?;
        Ok(SecretBytes::new(std::mem::take(&mut *buffer)))
    }
}

/// Unwraps a key as Parquet's key tools do, in files of others: under a key-encryption key of 128, 192 or 256 bits, with
/// the bytes of its id as additional data, and with nothing that says what the key is for.
///
/// # Errors
/// [`OpenError`] if it was wrapped under another key, or changed.
#[cfg(feature = "table")]
pub(crate) fn unwrap_foreign(kek: &SecretBytes, key: &WrappedKey) -> Result<SecretBytes, OpenError> {
    let id = STANDARD.decode(&key.kek_id).map_err(|_| OpenError)?;
    let bytes = STANDARD.decode(&key.wrapped).map_err(|_| OpenError)?;
    match kek.len() {
        16 => open_with::<Aes128Gcm>(kek, &id, &bytes),
        24 => open_with::<AesGcm<Aes192, U12>>(kek, &id, &bytes),
        32 => open_with::<Aes256Gcm>(kek, &id, &bytes),
        _ => Err(OpenError),
    }
}

#[cfg(feature = "table")]
fn open_with<C: KeyInit + AeadInOut + AeadCore<NonceSize = U12, TagSize = U16>>(
    kek: &SecretBytes,
    id: &[u8],
    bytes: &[u8],
) -> Result<SecretBytes, OpenError> {
    let cipher = C::new_from_slice(kek.expose()).map_err(|_| OpenError)?;
    let (nonce, rest) = bytes.split_first_chunk::<NONCE_LEN>().ok_or(OpenError)?;
    let (ciphertext, tag) = rest.split_last_chunk::<TAG_LEN>().ok_or(OpenError)?;
    let mut buffer = Zeroizing::new(ciphertext.to_vec());
    cipher
        .decrypt_inout_detached(&Nonce::from(*nonce), id, buffer.as_mut_slice().into(), &Tag::from(*tag))
        .map_err(|_| OpenError)?;
    Ok(SecretBytes::new(std::mem::take(&mut *buffer)))
}

impl Inner {
    fn new(secret: &SecretBytes) -> Result<Self, SealError> {
        if secret.len() != DATA_KEY_LEN {
            return Err(SealError::KeyLength);
        }
        Ok(Self {
            id: KeyId::of(secret),
            secret: SecretBytes::new(secret.expose().to_vec()),
            cipher: Aes256Gcm::new_from_slice(secret.expose()).map_err(|_| SealError::KeyLength)?,
        })
    }

    /// HKDF-SHA-256(key, info `sealflow kek v1` ‖ lp(dataset) ‖ lp(label), 16).
    fn kek_id(&self, dataset: &str, label: &str) -> [u8; KEK_ID_LEN] {
        let mut info = KEK_INFO.to_vec();
        for part in [dataset, label] {
            // Datasets and labels are far below 4 GiB: a policy checks them.
            info.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_le_bytes());
            info.extend_from_slice(part.as_bytes());
        }
        *derive(&self.secret, &info)
    }
}

impl fmt::Debug for WrappingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WrappingKey")
            .field("id", &self.inner.id)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for UnwrappingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnwrappingKey")
            .field("id", &self.0.id)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(byte: u8) -> SecretBytes {
        SecretBytes::new(vec![byte; 32])
    }

    fn keys(byte: u8) -> (WrappingKey, UnwrappingKey) {
        let wrapping = WrappingKey::from_generated(&secret(byte), UsageLimits::STANDARD).unwrap();
        let unwrapping = UnwrappingKey::from_unwrapped(&secret(byte), wrapping.id()).unwrap();
        (wrapping, unwrapping)
    }

    #[test]
    fn a_wrapped_key_comes_back_for_its_label_and_for_no_other() {
        let (wrapping, unwrapping) = keys(7);
        let wrapped = wrapping.wrap("payments", "card", &secret(9)).unwrap();
        assert_eq!(unwrapping.unwrap("payments", "card", &wrapped), Ok(secret(9)));
        for (dataset, label) in [("payments", "email"), ("orders", "card"), ("paymentscard", "")] {
            assert_eq!(unwrapping.unwrap(dataset, label, &wrapped), Err(OpenError));
        }
        assert_eq!(keys(8).1.unwrap("payments", "card", &wrapped), Err(OpenError));
        // The id of another label with this ciphertext: the additional data says no.
        let other = wrapping.wrap("payments", "email", &secret(9)).unwrap();
        let forged = WrappedKey {
            kek_id: other.kek_id,
            ..wrapped
        };
        assert_eq!(unwrapping.unwrap("payments", "email", &forged), Err(OpenError));
    }

    #[test]
    fn what_was_changed_or_cut_does_not_come_back() {
        let (wrapping, unwrapping) = keys(7);
        let wrapped = wrapping.wrap("payments", "card", &secret(9)).unwrap();
        let bytes = STANDARD.decode(&wrapped.wrapped).unwrap();
        for n in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[n] ^= 1;
            let forged = WrappedKey {
                wrapped: STANDARD.encode(&bytes),
                ..wrapped.clone()
            };
            assert_eq!(unwrapping.unwrap("payments", "card", &forged), Err(OpenError), "{n}");
            let cut = WrappedKey {
                wrapped: STANDARD.encode(&bytes[..n]),
                ..wrapped.clone()
            };
            assert_eq!(unwrapping.unwrap("payments", "card", &cut), Err(OpenError), "{n}");
        }
    }

    #[cfg(feature = "table")]
    #[test]
    fn keys_of_others_come_back_under_keys_of_every_length_that_aes_has() {
        fn wrapped<C: KeyInit + AeadInOut + AeadCore<NonceSize = U12, TagSize = U16>>(kek: &[u8]) -> WrappedKey {
            let mut buffer = secret(9).expose().to_vec();
            let cipher = C::new_from_slice(kek).unwrap();
            let tag = cipher.encrypt_inout_detached(&Nonce::from([5; 12]), b"id", buffer.as_mut_slice().into());
            let wrapped = [&[5; 12][..], &buffer, &tag.unwrap()].concat();
            WrappedKey {
                kek_id: STANDARD.encode(b"id"),
                wrapped: STANDARD.encode(wrapped),
            }
        }
        let keks = [16, 24, 32].map(|length| SecretBytes::new(vec![7; length]));
        let all = [
            wrapped::<Aes128Gcm>(&[7; 16]),
            wrapped::<AesGcm<Aes192, U12>>(&[7; 24]),
            wrapped::<Aes256Gcm>(&[7; 32]),
        ];
        for (n, kek) in keks.iter().enumerate() {
            for (m, key) in all.iter().enumerate() {
                let expected = if n == m { Ok(secret(9)) } else { Err(OpenError) };
                assert_eq!(unwrap_foreign(kek, key), expected, "{n} {m}");
            }
            let other = WrappedKey {
                kek_id: STANDARD.encode(b"ie"),
                ..all[n].clone()
            };
            assert_eq!(unwrap_foreign(kek, &other), Err(OpenError));
        }
        assert_eq!(unwrap_foreign(&SecretBytes::new(vec![7; 20]), &all[0]), Err(OpenError));
    }

    #[test]
    fn limits_hold_and_debug_shows_no_key() {
        let limits = UsageLimits {
            batches: 2,
            ..UsageLimits::STANDARD
        };
        let wrapping = WrappingKey::from_generated(&secret(7), limits).unwrap();
        wrapping.wrap("a", "b", &secret(1)).unwrap();
        wrapping.wrap("a", "b", &secret(1)).unwrap();
        assert_eq!(wrapping.wrap("a", "b", &secret(1)), Err(SealError::LimitReached));
        assert!(wrapping.is_exhausted());
        assert!(UnwrappingKey::from_unwrapped(&secret(7), KeyId::of(&secret(8))).is_err());
        let text = format!("{wrapping:?} {:?}", keys(7).1);
        assert!(
            !text.contains("7, 7") && text.contains(&wrapping.id().to_string()),
            "{text}"
        );
    }
}
