//! Answers: what a reader may see, sealed to the reader's own RSA key.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use zeroize::Zeroizing;

use crate::jose::Thumbprint;
use crate::jose::jwe::{ContentKey, JweError, JweHeader};
use crate::jose::rsa::RsaPublicJwk;

/// Values that are sealed under one content key: each draws a nonce of 96 random bits.
const MAX_VALUES: u64 = 1 << 20;

/// Seals answers of one dataset to one reader. Every answer is a JWE of its own that any library opens; all have the same content
/// key, so that the RSA operation is done once here, and once by a reader who remembers the wrapped key.
pub struct AnswerKey {
    key: ContentKey,
    encrypted_key: Vec<u8>,
    reader: Thumbprint,
    dataset: String,
    sealed: AtomicU64,
}

impl AnswerKey {
    /// A fresh key, wrapped to the reader's.
    ///
    /// # Errors
    /// [`JweError`] if the operating system gives no random numbers.
    pub fn new(reader: &RsaPublicJwk, dataset: &str) -> Result<Self, JweError> {
        let mut key = Zeroizing::new([0; 32]);
        getrandom::fill(key.as_mut_slice()).map_err(|_| JweError)?;
        Ok(Self {
            encrypted_key: reader.wrap(&key).map_err(|_| JweError)?,
            key: ContentKey::new(&key),
            reader: reader.thumbprint(),
            dataset: dataset.to_owned(),
            sealed: AtomicU64::new(0),
        })
    }

    /// The name of the reader's key.
    #[must_use]
    pub fn reader(&self) -> Thumbprint {
        self.reader
    }

    /// The JWE of a value of `label`; its header says dataset and label (`sf_dataset`, `sf_label`), which a reader compares.
    ///
    /// # Errors
    /// [`JweError`] after 2^20 values, or if the operating system gives no random numbers.
    pub fn seal(&self, label: &str, json: &[u8]) -> Result<String, JweError> {
        self.seal_in_row(label, None, json)
    }

    /// As [`AnswerKey::seal`], with `sf_row` in the header too; the bytes need not be JSON.
    pub(crate) fn seal_in_row(&self, label: &str, row: Option<&str>, bytes: &[u8]) -> Result<String, JweError> {
        if self.sealed.fetch_add(1, Ordering::Relaxed) >= MAX_VALUES {
            return Err(JweError);
        }
        let mut header = JweHeader::wrapped(&self.reader);
        header.dataset = Some(self.dataset.clone());
        header.label = Some(label.to_owned());
        header.row = row.map(str::to_owned);
        self.key.seal(&header.to_part(), &self.encrypted_key, bytes)
    }
}

impl fmt::Debug for AnswerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AnswerKey")
            .field("reader", &self.reader)
            .field("dataset", &self.dataset)
            .finish_non_exhaustive()
    }
}
