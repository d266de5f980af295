//! The one joint that other key services implement: data keys made and unwrapped by a KMS.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use async_trait::async_trait;

use crate::secret::SecretBytes;

/// What `sealflow:purpose` says of the private halves of clients' pairs.
pub const CLIENT_PAIR_PURPOSE: &str = "client-key-pair";

/// The encryption context of a wrapped key: clear names and values that the KMS authenticates and logs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EncryptionContext(BTreeMap<String, String>);

impl EncryptionContext {
    /// The context of a data key: `{sealflow:dataset, sealflow:key, sealflow:acl}`.
    #[must_use]
    pub fn for_data_key(dataset: &str, key: &str, acl: &str) -> Self {
        let pairs = [
            ("sealflow:dataset", dataset),
            ("sealflow:key", key),
            ("sealflow:acl", acl),
        ];
        Self(pairs.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect())
    }

    /// The context of a domain secret: `{sealflow:domain}`.
    #[must_use]
    pub fn for_domain(domain: &str) -> Self {
        Self(BTreeMap::from([("sealflow:domain".to_owned(), domain.to_owned())]))
    }

    /// The context of the private half of a pair that clients of a dataset seal to: `{sealflow:dataset, sealflow:purpose}`.
    #[must_use]
    pub fn for_client_pair(dataset: &str) -> Self {
        let pairs = [("sealflow:dataset", dataset), ("sealflow:purpose", CLIENT_PAIR_PURPOSE)];
        Self(pairs.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect())
    }

    /// Name and value of each entry, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(k, v)| (k.as_str(), v.as_str()))
    }
}

/// A data key fresh from the KMS.
#[derive(Debug)]
pub struct GeneratedKey {
    /// The key itself, `len` bytes.
    pub plaintext: SecretBytes,
    /// The same key, wrapped by the KMS under `arn`.
    pub wrapped: Vec<u8>,
    /// Full ARN of the KMS key that wrapped it, as the service returned it.
    pub arn: String,
}

/// What `validate` and `keys` show of a KMS key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyDescription {
    /// Full ARN.
    pub arn: String,
    /// Whether it can be used now.
    pub enabled: bool,
    /// The service's own word for its state, for example `PendingDeletion`.
    pub state: String,
}

/// Generates and unwraps data keys. The contract, which [`conformance`](crate::keys::conformance) checks:
///
/// * `unwrap` returns exactly what `generate` returned as plaintext, given the same ARN and context, and
///   fails with [`KeyServiceError::Refused`] for any other context, and for any other key or bytes with that or
///   [`KeyServiceError::NotPermitted`];
/// * every error says whether a later try can succeed ([`KeyServiceError::is_retryable`]);
/// * implementations retry on their own (bounded, with jitter) before they report
///   [`KeyServiceError::Unavailable`], and bound each call in time;
/// * no error, log line or `Debug` output holds key material, credentials or wrapped bytes.
#[async_trait]
pub trait KeyService: Send + Sync + fmt::Debug {
    /// A new key of `len` bytes (32 for data keys, 64 for domain secrets), wrapped under `arn` and bound to
    /// `context`.
    async fn generate(
        &self,
        arn: &str,
        len: usize,
        context: &EncryptionContext,
    ) -> Result<GeneratedKey, KeyServiceError>;

    /// Unwraps `wrapped`. The service must insist on the key named by `arn`.
    async fn unwrap(
        &self,
        arn: &str,
        wrapped: &[u8],
        context: &EncryptionContext,
    ) -> Result<SecretBytes, KeyServiceError>;

    /// Whether the key exists and is usable by this identity.
    async fn describe(&self, arn: &str) -> Result<KeyDescription, KeyServiceError>;

    /// A name for the credentials in use, stable while they mean the same principal: opened keys are cached
    /// per identity, so that one caller never profits from another's rights. Never a secret itself.
    async fn identity(&self) -> Result<String, KeyServiceError>;
}

/// What only an operator's tool asks of a KMS. Kept apart from [`KeyService`], so that no pipeline can come to it.
#[async_trait]
pub trait KeyAdmin: KeyService {
    /// Wraps the key in `wrapped`, which is under `from`, anew under `to`, inside the KMS: no plaintext leaves it. Both
    /// sides have the same `context`. The answer opens by [`unwrap`](KeyService::unwrap) under `to`.
    async fn rewrap(
        &self,
        from: &str,
        wrapped: &[u8],
        to: &str,
        context: &EncryptionContext,
    ) -> Result<Vec<u8>, KeyServiceError>;

    /// Gives the KMS key `arn` new key material now. Its ARN stays, and what it wrapped before still opens.
    ///
    /// Rotations are counted and few, so implementations send this once and never repeat it on their own: when the
    /// answer is lost, that is [`KeyServiceError::Unclear`].
    async fn rotate(&self, arn: &str) -> Result<(), KeyServiceError>;
}

/// Why a key service did not deliver, by meaning.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeyServiceError {
    /// The caller may not use the key (key policy, IAM), or the credentials are refused.
    #[error("not permitted to use KMS key {arn} ({code})")]
    NotPermitted {
        /// The key that was asked for.
        arn: String,
        /// The service's error code, for example `AccessDeniedException`.
        code: String,
    },
    /// The service does not accept these wrapped bytes under this key and context.
    #[error("KMS refused the wrapped key under {arn} ({code})")]
    Refused {
        /// The key that was asked for.
        arn: String,
        /// The service's error code, for example `InvalidCiphertextException`.
        code: String,
    },
    /// The key does not exist, is disabled, or waits for its deletion.
    #[error("KMS key {arn} cannot be used now ({code})")]
    KeyUnusable {
        /// The key that was asked for.
        arn: String,
        /// The service's error code, for example `DisabledException`.
        code: String,
    },
    /// Throttled: try again, not before `retry_after` if it is given.
    #[error("KMS is throttling requests")]
    Throttled {
        /// How long the service asks to wait.
        retry_after: Option<Duration>,
    },
    /// No answer, a time-out or a server error.
    #[error("KMS cannot be reached: {reason}")]
    Unavailable {
        /// What happened, without secrets.
        reason: String,
    },
    /// The credential chain yields nothing.
    #[error("no credentials for KMS: {reason}")]
    NoCredentials {
        /// What happened, without secrets.
        reason: String,
    },
    /// The answer to a rotation was lost. Not retryable: to ask again could rotate twice.
    #[error("KMS key {arn} may have been rotated, the answer was lost: {reason}; look at ListKeyRotations first")]
    Unclear {
        /// The key that was to be rotated.
        arn: String,
        /// What happened, without secrets.
        reason: String,
    },
    /// An answer that breaks the protocol: wrong length, another key than asked for.
    #[error("KMS gave an answer that cannot be used: {reason}")]
    BadAnswer {
        /// What was wrong, without secrets.
        reason: String,
    },
}

impl KeyServiceError {
    /// Whether the same request can succeed later without anybody changing anything.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Throttled { .. } | Self::Unavailable { .. })
    }
}
