//! Suite `0x11`, the other way: whole columns by our kernel, single values by the `aes-gcm` crate.

use std::fmt;

use aes_gcm::aead::AeadInOut as _;
use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::{Aes256Gcm, KeyInit as _, Nonce, Tag};
use sealflow_kernel::{Cipher, PREFIX_LEN, SealedBatch, Values};
use zeroize::Zeroize as _;

use super::OpenError;
use super::aad::{Aad, RowId};
use super::column::ByteColumn;
use super::key::KeyId;
use super::randomised::{ColumnContext, cipher_key, prefix_of};
use super::value::{GCM_OVERHEAD, NONCE_LEN, TAG_LEN};
use super::wiped::Wiped;
use crate::secret::SecretBytes;

/// A data key that was unwrapped: it opens, it never seals.
pub struct OpeningKey {
    id: KeyId,
    columns: Cipher,
    values: Aes256Gcm,
}

/// Plaintext encodings of a column, as far as its values opened. Wiped on drop.
pub struct OpenedColumn {
    bytes: Wiped,
    /// Where each value begins, and the last one ends.
    places: Vec<usize>,
    opened: Vec<bool>,
}

impl OpeningKey {
    /// From unwrapped key material; `expected` is the id that the sealed value names.
    pub fn from_unwrapped(secret: &SecretBytes, expected: KeyId) -> Result<Self, OpenError> {
        if KeyId::of(secret) != expected {
            return Err(OpenError);
        }
        let cipher_key = cipher_key(secret).map_err(|_| OpenError)?;
        Ok(Self {
            id: expected,
            columns: Cipher::new(&cipher_key),
            values: Aes256Gcm::new_from_slice(&*cipher_key).map_err(|_| OpenError)?,
        })
    }

    /// The key's id.
    #[must_use]
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// Opens every value of `sealed`. One that was not sealed as that, or is of another suite, key or column, does not open and
    /// leaves the others as they are.
    pub fn open(&self, context: &ColumnContext<'_>, sealed: ByteColumn<'_>) -> Result<OpenedColumn, OpenError> {
        if context.rows.is_some_and(|(_, ids)| ids.len() != sealed.len()) {
            return Err(OpenError);
        }
        let mut aad = Aad::randomised(self.id, context.dataset, context.label);
        let (validity, offsets, bytes) = sealed.parts();
        let values = Values::new(validity, offsets, bytes).ok_or(OpenError)?;
        let aads = aad.of_column(context.rows).ok_or(OpenError)?;
        let mut places = Vec::with_capacity(sealed.len() + 1);
        let mut end = 0;
        places.push(end);
        for value in sealed.iter() {
            end += value.map_or(0, |value| value.len().saturating_sub(GCM_OVERHEAD));
            places.push(end);
        }
        let mut column = OpenedColumn {
            bytes: Wiped::with_capacity(end),
            places,
            opened: Vec::with_capacity(sealed.len()),
        };
        self.columns
            .open(&SealedBatch { aads, values }, &mut column.bytes, &mut column.opened)
            .map_err(|_| OpenError)?;
        // The tag says nothing about the prefix, but through what the AAD has of it.
        let prefix = prefix_of(self.id, context.column);
        for (value, opened) in sealed.iter().zip(&mut column.opened) {
            let is_ours = |value: &[u8]| value.first_chunk::<PREFIX_LEN>() == Some(&prefix);
            *opened &= value.is_some_and(is_ours);
        }
        Ok(column)
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
        open_value(&self.key.values, nonce, self.aad.of(row), ciphertext, tag, out)
    }
}

pub(super) fn open_value(
    cipher: &Aes256Gcm,
    nonce: &[u8; NONCE_LEN],
    aad: &[u8],
    ciphertext: &[u8],
    tag: &[u8; TAG_LEN],
    out: &mut Vec<u8>,
) -> Result<(), OpenError> {
    let start = out.len();
    out.resize(start + ciphertext.len(), 0);
    let opened = InOutBuf::new(ciphertext, &mut out[start..]).ok().and_then(|buffer| {
        cipher
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

impl OpenedColumn {
    /// Value `n`, or `None` if it did not open.
    #[must_use]
    pub fn get(&self, n: usize) -> Option<&[u8]> {
        let opened = self.opened.get(n).copied().unwrap_or(false);
        opened.then(|| &self.bytes[self.places[n]..self.places[n + 1]])
    }
}

impl fmt::Debug for OpeningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpeningKey")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for OpenedColumn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenedColumn")
            .field("values", &self.opened.len())
            .finish_non_exhaustive()
    }
}
