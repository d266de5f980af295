//! The enclave flow: the backend carries what clients sealed to a worker inside a TEE, whole columns at a time, and gets sealed
//! values back. It never holds a plaintext, a session key or a data key.
//!
//! [`EnclaveWorker`] is the joint: the host that runs the worker implements it, and pipelines use it. What the worker does is
//! [`Resealer`]'s.

pub mod answer;
mod reseal;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

pub use reseal::{ColumnIn, Resealer};

use crate::policy::VerifiedPolicy;
use crate::seal::{KeyId, PlainColumn, SealedColumn};

/// Where the key of a value is that a client sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueKey {
    /// Nowhere: the value came in clear, and the policy lets it (`client_sealed: optional`).
    Clear,
    /// In the value itself, wrapped to an RSA key.
    Own,
    /// In the session of that number in [`ClientBatch::sessions`].
    Session(u32),
}

/// Values of one column as clients sealed them.
pub struct ClientColumn {
    /// The label of the column.
    pub label: String,
    /// Whether a plaintext is JSON text; else it is bytes, as in keys and headers.
    pub is_json: bool,
    /// The text of each value: a compact JWE, or what came in clear.
    pub values: PlainColumn,
    /// Where the key of each is.
    pub keys: Vec<ValueKey>,
    /// The canonical row id of each, where the policy binds the column.
    pub rows: Option<PlainColumn>,
}

/// What clients sealed in one batch of records.
#[derive(Debug)]
pub struct ClientBatch {
    /// The policy that the host goes by. The worker goes by its own; it refuses a batch of another version.
    pub policy: Arc<VerifiedPolicy>,
    /// The sessions that values name.
    pub sessions: Vec<String>,
    /// The columns.
    pub columns: Vec<ClientColumn>,
}

/// Why a value was not sealed again. Whatever is wrong with a ciphertext is one reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueRefusal {
    /// What the client sealed does not open as a value of this place.
    CannotOpen,
    /// It opens, and is not one JSON value.
    NotJson,
}

/// A column as the worker sealed it.
pub struct ResealedColumn {
    /// The sealed values; null where one was refused.
    pub values: SealedColumn,
    /// Those that were refused, by their number, ascending.
    pub refused: Vec<(u32, ValueRefusal)>,
    /// The data key that sealed the others.
    pub key: KeyId,
    /// Its envelope, which is in the catalogue.
    pub envelope: Vec<u8>,
}

/// Why the worker did nothing of what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EnclaveError {
    /// It is not there, restarts, or waits for a service: ask again.
    #[error("the enclave worker is waiting: {reason}")]
    Unavailable {
        /// What it said.
        reason: String,
    },
    /// It refuses: its key service refuses it, or it does not believe the policy.
    #[error("the enclave worker refuses: {reason}")]
    Refused {
        /// What it said.
        reason: String,
    },
    /// What it decided cannot be written down here, and so nothing of it is shown.
    #[error("what the enclave worker decides cannot be written down: {reason}")]
    Unrecorded {
        /// What the audit log said.
        reason: String,
    },
    /// It breaks the protocol.
    #[error("the enclave worker gave an answer that cannot be used: {reason}")]
    BadAnswer {
        /// What was wrong.
        reason: String,
    },
}

impl EnclaveError {
    /// Whether the same request can succeed later without anybody changing anything.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}

/// A worker inside a TEE, as the host sees it.
#[async_trait]
pub trait EnclaveWorker: Send + Sync + fmt::Debug {
    /// Opens what clients sealed and seals it again, one answer for each column, in order. Answers of several batches may be under
    /// way at a time.
    ///
    /// # Errors
    /// [`EnclaveError`]; then nothing of the batch may leave.
    async fn reseal(&self, batch: ClientBatch) -> Result<Vec<ResealedColumn>, EnclaveError>;

    /// Whether it is there, attested, and answers.
    fn is_ready(&self) -> bool;
}

impl ClientColumn {
    /// An empty column of that label.
    #[must_use]
    pub fn new(label: &str, is_json: bool, is_bound: bool) -> Self {
        Self {
            label: label.to_owned(),
            is_json,
            values: PlainColumn::with_capacity(0, 0),
            keys: Vec::new(),
            rows: is_bound.then(|| PlainColumn::with_capacity(0, 0)),
        }
    }
}

impl fmt::Debug for ClientColumn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientColumn")
            .field("label", &self.label)
            .field("values", &self.keys.len())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for ResealedColumn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResealedColumn")
            .field("values", &self.values.view().len())
            .field("refused", &self.refused.len())
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}
