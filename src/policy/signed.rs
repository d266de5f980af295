//! Policies that may be worked with: verified against their owner's key, or openly unsigned for development.
//!
//! The signature half is on its way; until then only unsigned policies of `--dev` exist.

use super::{DomainType, Policy, PolicyError};
use crate::seal::KeyId;

/// A policy that sealing and opening accept.
#[derive(Clone, Debug)]
pub struct VerifiedPolicy {
    policy: Policy,
}

impl VerifiedPolicy {
    /// Takes a policy without any signature: for development only, where whoever can write the file decides.
    pub fn unsigned_for_development(yaml: &[u8]) -> Result<Self, PolicyError> {
        Ok(Self {
            policy: Policy::parse(yaml)?,
        })
    }

    /// The checked policy.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.policy
    }
}

/// A domain document that sealing and opening accept.
#[derive(Clone, Debug)]
pub struct VerifiedDomain {
    document: DomainDocument,
}

impl VerifiedDomain {
    /// The checked document.
    #[must_use]
    pub fn document(&self) -> &DomainDocument {
        &self.document
    }
}

/// What a domain is: its secret by key id, the type and padding of its values.
#[derive(Clone, Debug, PartialEq)]
pub struct DomainDocument {
    /// Name.
    pub domain: String,
    /// Version, from 1.
    pub version: u64,
    /// Full ARN of the KMS key that wraps the secret.
    pub arn: String,
    /// Id of the secret.
    pub key_id: KeyId,
    /// Type that values are coerced to.
    pub kind: DomainType,
    /// Padding.
    pub pad_to: Option<u32>,
}
