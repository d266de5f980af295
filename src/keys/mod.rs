//! Data keys: where they come from, how long they live, and the envelopes that carry them.

pub mod catalogue;
mod client_keys;
#[cfg(any(test, feature = "testing"))]
pub mod conformance;
mod domains;
mod doubt;
pub mod envelope;
mod opening;
pub mod rewrap;
mod sealing;
pub mod service;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use catalogue::{Catalogue, CatalogueError, MAX_OBJECT, Put, check_path};
pub use client_keys::{ClientKeyService, GeneratedPair, PrivateHalf, RsaBits};
pub use domains::{Domain, DomainError, DomainKeys, create_domain_secret};
#[cfg(feature = "flow")]
pub(crate) use doubt::Doubt;
pub use envelope::{Envelope, EnvelopeError, KEYS_HEADER, LabelEntry};
pub use opening::{OpenKeyError, OpenedKey, OpeningKeys, UnwrappedMaterial, governing};
pub use sealing::{ActiveKey, CacheCounters, KeyMaterial, KeySpec, SealingKeys};
pub use service::{
    CLIENT_PAIR_PURPOSE, EncryptionContext, GeneratedKey, KeyAdmin, KeyDescription, KeyService, KeyServiceError,
};

use crate::seal::{KeyId, SealError};

/// Why there is no data key to seal with.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyError {
    /// The key service did not deliver.
    #[error(transparent)]
    Service(#[from] KeyServiceError),
    /// The envelope could not be written down, so the key must not be used.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    /// The envelope would be too large: too many labels share one key and ACL.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// The key service wrapped under another key than the policy names.
    #[error("the key service did not answer with the key {asked}")]
    OtherKey {
        /// The ARN that was asked for.
        asked: String,
    },
    /// The catalogue already has an envelope of this fresh key.
    #[error("the catalogue already knows the fresh data key {key}")]
    NotExclusive {
        /// The key.
        key: KeyId,
    },
    /// The key material cannot be used.
    #[error(transparent)]
    Material(#[from] SealError),
}

impl KeyError {
    /// Whether the same request can succeed later without anybody changing anything.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Service(error) => error.is_retryable(),
            Self::Catalogue(error) => error.is_retryable(),
            _ => false,
        }
    }
}

/// Where the `n`th envelope of a data key lies in the catalogue.
#[must_use]
pub fn envelope_path(key: KeyId, n: u32) -> String {
    format!("keys/{key}/{n}")
}
