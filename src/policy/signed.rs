//! Policies and domain documents that may be worked with: signed by an owner whose key is pinned, or openly
//! unsigned for development.

use super::domain::DomainDocument;
use super::trust::TrustedOwners;
use super::{Policy, PolicyError};
use crate::jose::{JwsError, JwsType, PrivateJwk, SelfSigned, Thumbprint, jws};

/// The key that a policy's owner signs with.
pub type OwnerKey = PrivateJwk;

/// Why a document is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TrustError {
    /// No JWS of ours, or one that was changed.
    #[error(transparent)]
    Jws(#[from] JwsError),
    /// The signature holds; the document does not.
    #[error(transparent)]
    Document(#[from] PolicyError),
    /// Signed, but by somebody who is not pinned.
    #[error("signed by key {signer}, which is no pinned owner{}", .of.as_ref().map_or(String::new(), |of| format!(" of {of}")))]
    NotPinned {
        /// Dataset or `domain:NAME`; `None` if the key is pinned for nothing, so that nothing was read.
        of: Option<String>,
        /// Thumbprint of the key.
        signer: Thumbprint,
    },
    /// A version below one that was seen: a replay.
    #[error("version {version} of {name} is older than version {highest}, which was seen before")]
    OlderThanSeen {
        /// Dataset or `domain:NAME`.
        name: String,
        /// Its version.
        version: u64,
        /// The highest version seen.
        highest: u64,
    },
    /// Another document of a version that was seen.
    #[error("version {version} of {name} is not the one of that version that was seen before")]
    TwoOfOneVersion {
        /// Dataset or `domain:NAME`.
        name: String,
        /// Its version.
        version: u64,
    },
}

impl TrustError {
    /// What to do about it.
    #[must_use]
    pub fn help(&self) -> String {
        match self {
            Self::Jws(JwsError::OtherType { expected, .. }) => format!("name a signed document of type {expected}"),
            Self::Jws(JwsError::TooLarge) => "shorten the document".to_owned(),
            Self::Jws(_) => {
                "fetch it again from its owner; the owner signs anew with `sealflow policy sign`, nobody edits a signed document"
                    .to_owned()
            }
            Self::Document(error) => error.help(),
            Self::NotPinned { signer, .. } => format!(
                "ask the owner, over another channel, whether {signer} is their key; if it is, add it to trust.owners, \
                 if not, somebody else wrote this document"
            ),
            Self::OlderThanSeen { .. } => {
                "find out who put the old version back; to return to it, its owner signs it again with a higher version".to_owned()
            }
            Self::TwoOfOneVersion { .. } => "the owner signs the change again with a higher version".to_owned(),
        }
    }
}

/// Checks the policy and signs it: the JWS that is published.
///
/// # Errors
/// [`TrustError::Document`] for a policy that does not check, [`TrustError::Jws`] for one that is too large.
pub fn sign(yaml: &[u8], key: &OwnerKey) -> Result<String, TrustError> {
    Policy::parse(yaml)?;
    Ok(jws::sign(JwsType::Policy, yaml, key)?)
}

/// Believes a policy if an owner pinned for its dataset signed it.
///
/// Nothing is parsed before the signer is known to be pinned for something.
///
/// # Errors
/// [`TrustError`]
pub fn verify(jws: &str, trusted: &TrustedOwners) -> Result<VerifiedPolicy, TrustError> {
    let (yaml, signer) = signed_by_anybody_known(jws, JwsType::Policy, trusted)?;
    let policy = Policy::parse(&yaml)?;
    if !trusted.is_owner(&policy.dataset, &signer) {
        return Err(TrustError::NotPinned {
            of: Some(policy.dataset),
            signer,
        });
    }
    Ok(VerifiedPolicy {
        policy,
        yaml,
        signature: Some(Signature {
            jws: jws.to_owned(),
            signer,
        }),
    })
}

/// Checks the domain document and signs it.
///
/// # Errors
/// As [`sign`].
pub fn sign_domain(yaml: &[u8], key: &OwnerKey) -> Result<String, TrustError> {
    DomainDocument::parse(yaml)?;
    Ok(jws::sign(JwsType::Domain, yaml, key)?)
}

/// Believes a domain document if an owner pinned for `domain:NAME` signed it.
///
/// # Errors
/// [`TrustError`]
pub fn verify_domain(jws: &str, trusted: &TrustedOwners) -> Result<VerifiedDomain, TrustError> {
    let (yaml, signer) = signed_by_anybody_known(jws, JwsType::Domain, trusted)?;
    let document = DomainDocument::parse(&yaml)?;
    if !trusted.is_domain_owner(&document.domain, &signer) {
        return Err(TrustError::NotPinned {
            of: Some(format!("domain:{}", document.domain)),
            signer,
        });
    }
    Ok(VerifiedDomain {
        document,
        signature: Some(Signature {
            jws: jws.to_owned(),
            signer,
        }),
    })
}

fn signed_by_anybody_known(
    jws: &str,
    typ: JwsType,
    trusted: &TrustedOwners,
) -> Result<(Vec<u8>, Thumbprint), TrustError> {
    let signed = SelfSigned::verify(jws, typ)?;
    let signer = signed.signer();
    if !trusted.knows(&signer) {
        return Err(TrustError::NotPinned { of: None, signer });
    }
    Ok((signed.into_payload(), signer))
}

#[derive(Clone, Debug)]
struct Signature {
    jws: String,
    signer: Thumbprint,
}

/// A policy that sealing and opening accept: made only by [`verify`], or by
/// [`unsigned_for_development`](Self::unsigned_for_development).
#[derive(Clone, Debug)]
pub struct VerifiedPolicy {
    policy: Policy,
    yaml: Vec<u8>,
    signature: Option<Signature>,
}

impl VerifiedPolicy {
    /// Takes a policy without any signature: for development only, where whoever can write the file decides.
    ///
    /// # Errors
    /// [`PolicyError`]
    pub fn unsigned_for_development(yaml: &[u8]) -> Result<Self, PolicyError> {
        Ok(Self {
            policy: Policy::parse(yaml)?,
            yaml: yaml.to_vec(),
            signature: None,
        })
    }

    /// The checked policy.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The YAML as its owner wrote and signed it.
    #[must_use]
    pub fn yaml(&self) -> &[u8] {
        &self.yaml
    }

    /// The JWS; `None` for an unsigned policy.
    #[must_use]
    pub fn jws(&self) -> Option<&str> {
        self.signature.as_ref().map(|signature| signature.jws.as_str())
    }

    /// Thumbprint of the owner who signed; `None` for an unsigned policy.
    #[must_use]
    pub fn owner(&self) -> Option<Thumbprint> {
        self.signature.as_ref().map(|signature| signature.signer)
    }
}

/// A domain document that sealing and opening accept.
#[derive(Clone, Debug)]
pub struct VerifiedDomain {
    document: DomainDocument,
    signature: Option<Signature>,
}

impl VerifiedDomain {
    /// Takes a document without any signature: for development only, where whoever can write the file decides.
    ///
    /// # Errors
    /// [`PolicyError`]
    pub fn unsigned_for_development(yaml: &[u8]) -> Result<Self, PolicyError> {
        Ok(Self {
            document: DomainDocument::parse(yaml)?,
            signature: None,
        })
    }

    /// The checked document.
    #[must_use]
    pub fn document(&self) -> &DomainDocument {
        &self.document
    }

    /// The JWS; `None` for an unsigned document.
    #[must_use]
    pub fn jws(&self) -> Option<&str> {
        self.signature.as_ref().map(|signature| signature.jws.as_str())
    }

    /// Thumbprint of the owner who signed; `None` for an unsigned document.
    #[must_use]
    pub fn owner(&self) -> Option<Thumbprint> {
        self.signature.as_ref().map(|signature| signature.signer)
    }
}

#[cfg(test)]
mod tests {
    use super::super::trust::TrustRule;
    use super::*;

    const POLICY: &str = "dataset: payments\nversion: 1\ncolumns: [{ path: customer, domain: customers }]\n";
    const DOMAIN: &str = "domain: customers\nversion: 1\nkey: { arn: \"arn:aws:kms:eu-central-1:111122223333:key/a\" }\n\
                          key_id: 00112233445566778899aabbccddeeff\ntype: utf8\nacl: {}\n";

    fn trusted(dataset: &str, key: &OwnerKey) -> TrustedOwners {
        TrustedOwners::new(vec![TrustRule {
            dataset: dataset.to_owned(),
            owners: vec![key.thumbprint()],
        }])
        .unwrap()
    }

    #[test]
    fn a_policy_signed_by_a_pinned_owner_is_believed() {
        let key = OwnerKey::generate().unwrap();
        let jws = sign(POLICY.as_bytes(), &key).unwrap();
        let verified = verify(&jws, &trusted("payments*", &key)).unwrap();
        assert_eq!(verified.policy(), &Policy::parse(POLICY.as_bytes()).unwrap());
        assert_eq!(
            (verified.jws(), verified.owner()),
            (Some(jws.as_str()), Some(key.thumbprint()))
        );
        assert_eq!(verified.yaml(), POLICY.as_bytes());
    }

    #[test]
    fn an_unpinned_owner_is_named_with_what_to_do() {
        let (key, other) = (OwnerKey::generate().unwrap(), OwnerKey::generate().unwrap());
        let jws = sign(POLICY.as_bytes(), &key).unwrap();
        let error = verify(&jws, &trusted("*", &other)).unwrap_err();
        assert_eq!(
            error,
            TrustError::NotPinned {
                of: None,
                signer: key.thumbprint()
            }
        );
        assert!(error.to_string().contains(&key.thumbprint().to_string()), "{error}");
        let help = error.help();
        assert!(
            help.contains(&key.thumbprint().to_string()) && help.contains("trust.owners"),
            "{help}"
        );
    }

    #[test]
    fn an_owner_of_another_dataset_is_not_believed() {
        let key = OwnerKey::generate().unwrap();
        let jws = sign(POLICY.as_bytes(), &key).unwrap();
        let error = verify(&jws, &trusted("web*", &key)).unwrap_err();
        assert_eq!(
            error,
            TrustError::NotPinned {
                of: Some("payments".to_owned()),
                signer: key.thumbprint()
            }
        );
        // Owning a dataset is not owning the domain of the same name.
        let domain = sign_domain(DOMAIN.as_bytes(), &key).unwrap();
        let error = verify_domain(&domain, &trusted("customers", &key)).unwrap_err();
        assert_eq!(
            error,
            TrustError::NotPinned {
                of: Some("domain:customers".to_owned()),
                signer: key.thumbprint()
            }
        );
        assert!(verify_domain(&domain, &trusted("domain:*", &key)).is_ok());
    }

    #[test]
    fn a_policy_is_not_taken_for_a_domain_nor_the_other_way() {
        let key = OwnerKey::generate().unwrap();
        let all = trusted("*", &key);
        let policy = sign(POLICY.as_bytes(), &key).unwrap();
        let domain = sign_domain(DOMAIN.as_bytes(), &key).unwrap();
        let other = |error: TrustError| matches!(error, TrustError::Jws(JwsError::OtherType { .. }));
        assert!(other(verify_domain(&policy, &all).unwrap_err()));
        assert!(other(verify(&domain, &all).unwrap_err()));
    }

    #[test]
    fn an_edited_policy_is_refused_wherever_it_is_edited() {
        let key = OwnerKey::generate().unwrap();
        let all = trusted("*", &key);
        let jws = sign(POLICY.as_bytes(), &key).unwrap();
        for at in 0..jws.len() {
            let mut edited = jws.clone().into_bytes();
            edited[at] = if edited[at] == b'A' { b'B' } else { b'A' };
            assert!(
                verify(std::str::from_utf8(&edited).unwrap(), &all).is_err(),
                "byte {at}"
            );
        }
    }

    #[test]
    fn what_does_not_check_is_not_signed() {
        let key = OwnerKey::generate().unwrap();
        let error = sign(b"dataset: payments", &key).unwrap_err();
        assert!(matches!(error, TrustError::Document(_)), "{error}");
    }

    #[test]
    fn an_unsigned_policy_says_so() {
        let policy = VerifiedPolicy::unsigned_for_development(POLICY.as_bytes()).unwrap();
        assert_eq!((policy.jws(), policy.owner()), (None, None));
    }
}
