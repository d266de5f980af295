//! Suite `0x11`: AES-256-GCM (NIST SP 800-38D) over whole columns, through the `aes-gcm` crate.

use std::fmt;

use aes_gcm::aead::AeadInOut as _;
use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::{Aes256Gcm, KeyInit as _, Nonce, Tag};
use zeroize::Zeroize as _;

use super::aad::{Aad, RowId};
use super::column::{ByteColumn, SealedColumn};
use super::key::{DATA_KEY_LEN, KeyId, derive};
use super::usage::{LimitReached, Usage, UsageLimits, Used};
use super::value::{GCM_HEADER_LEN, GCM_OVERHEAD, NONCE_LEN, SUITE_GCM, TAG_LEN};
use super::{OpenError, SealError};
use crate::secret::SecretBytes;

const CIPHER_INFO: &[u8] = b"sealflow 0x11 v1";

/// What a column is sealed under.
#[derive(Clone, Copy)]
pub struct ColumnContext<'a> {
    /// Dataset.
    pub dataset: &'a str,
    /// Label.
    pub label: &'a str,
    /// Index of the label in the key's envelope.
    pub column: u16,
    /// With `bind_row`: the path, and one canonical row id per value.
    pub rows: Option<(&'a str, ByteColumn<'a>)>,
}

/// A data key that this process generated and may seal with, within its limits.
///
/// Only [`from_generated`](Self::from_generated) makes one; an unwrapped key is an [`OpeningKey`], which
/// cannot seal. It refuses to work in another process than its own (after `fork`).
pub struct SealingKey {
    id: KeyId,
    cipher: Aes256Gcm,
    usage: Usage,
    process: u32,
}

/// A data key that was unwrapped: it opens, it never seals.
pub struct OpeningKey {
    id: KeyId,
    cipher: Aes256Gcm,
}

impl SealingKey {
    /// From key material that a key service has just generated for this process alone.
    pub fn from_generated(secret: &SecretBytes, limits: UsageLimits) -> Result<Self, SealError> {
        Ok(Self {
            id: KeyId::of(secret),
            cipher: cipher(secret)?,
            usage: Usage::new(limits),
            process: std::process::id(),
        })
    }

    /// The key's id.
    #[must_use]
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// What it has sealed so far.
    #[must_use]
    pub fn used(&self) -> Used {
        self.usage.used()
    }

    /// Largest used share of its limits, in percent.
    #[must_use]
    pub fn used_percent(&self) -> u64 {
        self.usage.percent()
    }

    /// Whether it has refused a batch, and so will every other.
    #[must_use]
    pub fn is_exhausted(&self) -> bool {
        self.usage.closed()
    }

    /// Seals every value of `plain`; nulls stay null. Draws the batch's nonce start R itself; value i gets
    /// (R + i) mod 2^96, so that no caller can choose or repeat one.
    pub fn seal(&self, context: &ColumnContext<'_>, plain: ByteColumn<'_>) -> Result<SealedColumn, SealError> {
        let mut start = [0; NONCE_LEN];
        getrandom::fill(&mut start).map_err(|_| SealError::NoRandomness)?;
        self.seal_from(start, context, plain)
    }

    fn seal_from(
        &self,
        start: [u8; NONCE_LEN],
        context: &ColumnContext<'_>,
        plain: ByteColumn<'_>,
    ) -> Result<SealedColumn, SealError> {
        if std::process::id() != self.process {
            return Err(SealError::OtherProcess);
        }
        if context.rows.is_some_and(|(_, ids)| ids.len() != plain.len()) {
            return Err(SealError::RowsMismatch);
        }
        let (values, bytes) = (plain.len(), plain.value_bytes());
        self.usage
            .reserve(values as u64, bytes as u64)
            .map_err(|LimitReached| SealError::LimitReached)?;

        let mut aad = Aad::randomised(self.id, context.dataset, context.label);
        let mut header = [0; GCM_HEADER_LEN];
        header[0] = SUITE_GCM;
        header[1..17].copy_from_slice(self.id.as_bytes());
        header[17..19].copy_from_slice(&context.column.to_be_bytes());
        let mut sealed = SealedColumn::with_capacity(values, bytes + values * GCM_OVERHEAD);
        for (n, value) in plain.iter().enumerate() {
            let Some(value) = value else {
                sealed.push_null()?;
                continue;
            };
            let row = match context.rows {
                None => None,
                Some((path, ids)) => Some(RowId {
                    path,
                    id: ids.get(n).ok_or(SealError::RowsMismatch)?,
                }),
            };
            let nonce = nonce_at(start, n);
            header[19..].copy_from_slice(&nonce);
            self.seal_value(&header, &nonce, aad.of(row), value, &mut sealed)?;
        }
        Ok(sealed)
    }

    fn seal_value(
        &self,
        header: &[u8; GCM_HEADER_LEN],
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        value: &[u8],
        sealed: &mut SealedColumn,
    ) -> Result<(), SealError> {
        let mut failed = false;
        sealed.push_with(|out| {
            out.extend_from_slice(header);
            let start = out.len();
            out.resize(start + value.len(), 0);
            // Lengths are equal by construction, so the buffer is always made.
            let tag = InOutBuf::new(value, &mut out[start..]).ok().and_then(|buffer| {
                self.cipher
                    .encrypt_inout_detached(&Nonce::from(*nonce), aad, buffer)
                    .ok()
            });
            match tag {
                Some(tag) => out.extend_from_slice(&tag),
                None => failed = true,
            }
        })?;
        if failed { Err(SealError::TooLarge) } else { Ok(()) }
    }
}

impl OpeningKey {
    /// From unwrapped key material; `expected` is the id that the sealed value names.
    pub fn from_unwrapped(secret: &SecretBytes, expected: KeyId) -> Result<Self, OpenError> {
        if KeyId::of(secret) != expected {
            return Err(OpenError);
        }
        Ok(Self {
            id: expected,
            cipher: cipher(secret).map_err(|_| OpenError)?,
        })
    }

    /// The key's id.
    #[must_use]
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// An opener for values of (`dataset`, `label`).
    #[must_use]
    pub fn opener(&self, dataset: &str, label: &str) -> RandomisedOpener<'_> {
        RandomisedOpener {
            key: self,
            aad: Aad::randomised(self.id, dataset, label),
        }
    }
}

/// Opens values of one (key, dataset, label): what it opens is proven to have been sealed as that.
pub struct RandomisedOpener<'k> {
    key: &'k OpeningKey,
    aad: Aad,
}

impl RandomisedOpener<'_> {
    /// Appends the plaintext encoding to `out`, or nothing at all on failure.
    pub fn open(
        &mut self,
        nonce: &[u8; NONCE_LEN],
        ciphertext: &[u8],
        tag: &[u8; TAG_LEN],
        row: Option<RowId<'_>>,
        out: &mut Vec<u8>,
    ) -> Result<(), OpenError> {
        let start = out.len();
        out.resize(start + ciphertext.len(), 0);
        let aad = self.aad.of(row);
        let opened = InOutBuf::new(ciphertext, &mut out[start..]).ok().and_then(|buffer| {
            self.key
                .cipher
                .decrypt_inout_detached(&Nonce::from(*nonce), aad, buffer, &Tag::from(*tag))
                .ok()
        });
        if opened.is_none() {
            out[start..].zeroize();
            out.truncate(start);
            return Err(OpenError);
        }
        Ok(())
    }
}

impl fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealingKey")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for OpeningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpeningKey")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// The GCM key schedule of a data key; `aes-gcm` wipes it on drop.
fn cipher(secret: &SecretBytes) -> Result<Aes256Gcm, SealError> {
    if secret.len() != DATA_KEY_LEN {
        return Err(SealError::KeyLength);
    }
    let key = derive::<32>(secret, CIPHER_INFO);
    Aes256Gcm::new_from_slice(&*key).map_err(|_| SealError::KeyLength)
}

/// (R + n) mod 2^96, big endian.
fn nonce_at(start: [u8; NONCE_LEN], n: usize) -> [u8; NONCE_LEN] {
    let mut wide = [0; 16];
    wide[4..].copy_from_slice(&start);
    let sum = u128::from_be_bytes(wide).wrapping_add(n as u128).to_be_bytes();
    let mut nonce = [0; NONCE_LEN];
    nonce.copy_from_slice(&sum[4..]);
    nonce
}
