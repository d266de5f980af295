//! Where the newest verified policies come from: a catalogue that is read again now and then, or a fixed set.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

use super::{TrustedOwners, VerifiedDomain, VerifiedPolicy, publish};
use crate::clock::{Clock, UnixMillis};
use crate::keys::Catalogue;
use crate::seal::KeyId;

/// Gives the newest verified policy of a dataset, and the documents of a domain.
#[async_trait]
pub trait PolicySource: Send + Sync + fmt::Debug {
    /// The newest policy of `dataset`.
    async fn policy(&self, dataset: &str) -> Result<Arc<VerifiedPolicy>, PolicySourceError>;

    /// The newest document of the domain `name`, or with `key` the one that names that key id.
    async fn domain(&self, name: &str, key: Option<KeyId>) -> Result<Arc<VerifiedDomain>, PolicySourceError>;
}

/// Why there is no verified policy or domain document.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum PolicySourceError {
    /// There is none.
    #[error("no {what}")]
    Missing {
        /// What was looked for, by name.
        what: String,
    },
    /// There is one, but it cannot be believed.
    #[error("{what} cannot be used: {reason}")]
    Untrusted {
        /// What was looked for, by name.
        what: String,
        /// Why it is refused.
        reason: String,
    },
    /// The catalogue did not answer.
    #[error("{what} cannot be fetched: {reason}")]
    Unavailable {
        /// What was looked for, by name.
        what: String,
        /// What happened.
        reason: String,
    },
}

impl PolicySourceError {
    /// Whether the same request can succeed later without anybody changing anything.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}
