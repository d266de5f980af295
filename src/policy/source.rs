//! Where the newest verified policies come from: a catalogue that is read again now and then, or a fixed set.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

use super::{VerifiedDomain, VerifiedPolicy};
use crate::seal::KeyId;

/// Gives the newest verified policy of a dataset, and the documents of a domain.
#[async_trait]
pub trait PolicySource: Send + Sync + fmt::Debug {
    /// The newest policy of `dataset`.
    async fn policy(&self, dataset: &str) -> Result<Arc<VerifiedPolicy>, PolicySourceError>;

    /// The newest document of the domain `name`, or with `key` the one that names that key id.
    async fn domain(&self, name: &str, key: Option<KeyId>) -> Result<Arc<VerifiedDomain>, PolicySourceError>;

    /// Whether `policy`, which this source gave, may still be worked by at this moment: it needs no lease, or its lease has
    /// not ended. Asks nobody, so it is for every batch. If not, [`policy`](Self::policy) gives one that may, or says why
    /// there is none.
    fn holds(&self, policy: &VerifiedPolicy) -> bool;

    /// Why the last answer about `dataset` may be older than what is there: the last look failed, and the policy that
    /// was in use was given once more.
    fn overdue(&self, _dataset: &str) -> Option<PolicySourceError> {
        None
    }
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
        /// What to do about it.
        help: String,
    },
    /// It is there, or may be, but the catalogue does not let this process read it. That says nothing about the
    /// document: not retryable, since somebody has to change an ownership or mode, but no reason to distrust it either.
    #[error("{what} cannot be read: the catalogue refuses access to {path}")]
    NotPermitted {
        /// What was looked for, by name.
        what: String,
        /// The object of the catalogue.
        path: String,
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

    /// Whether a policy that is in use may go on to be: the answer says nothing about the newest one. Whoever can bring
    /// this about cannot change a policy by it, only hold a newer one back.
    #[must_use]
    pub fn leaves_the_policy_in_use(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::NotPermitted { .. })
    }
}

/// A fixed set of policies, without domains: for `--dev`, `--offline` and tests.
#[derive(Debug, Default)]
pub struct FixedPolicies(Vec<Arc<VerifiedPolicy>>);

impl FixedPolicies {
    /// Exactly these policies.
    #[must_use]
    pub fn new(policies: Vec<Arc<VerifiedPolicy>>) -> Self {
        Self(policies)
    }
}

#[async_trait]
impl PolicySource for FixedPolicies {
    async fn policy(&self, dataset: &str) -> Result<Arc<VerifiedPolicy>, PolicySourceError> {
        let policy = self.0.iter().find(|policy| policy.policy().dataset == dataset);
        policy.cloned().ok_or_else(|| PolicySourceError::Missing {
            what: format!("policy of dataset {dataset}"),
        })
    }

    /// Nobody leases them.
    fn holds(&self, _: &VerifiedPolicy) -> bool {
        true
    }

    async fn domain(&self, name: &str, _: Option<KeyId>) -> Result<Arc<VerifiedDomain>, PolicySourceError> {
        Err(PolicySourceError::Missing {
            what: format!("document of domain {name}"),
        })
    }
}
