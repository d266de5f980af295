//! Enclave keys: what a client seals regulated values to, in a document that it can believe.
//!
//! The host of an enclave could hand out an RSA key of its own, so a client never believes a key alone. It pins the policy's
//! owner, who signs the keys ([`signed`]), or the measurements of the enclave, which commits to them in an attestation document
//! (`attested`, with the feature `attestation`), and so believes them together with their dataset and labels. A document is put into
//! the catalogue under numbers that grow ([`published`]).
//!
//! Nothing here seals: who links clients finds `EnclaveKey` in `sealflow-client`.

#[cfg(feature = "attestation")]
pub mod attested;
pub mod commitment;
pub mod published;
pub mod signed;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::model::{Flow, Policy};
use super::parse::check_name;
use crate::clock::UnixMillis;
use crate::jose::rsa::{RsaKeyError, RsaPublicJwk};
use crate::jose::{JwsError, Thumbprint};
use crate::keys::CatalogueError;

/// The longest document, in bytes.
pub const MAX_DOCUMENT_BYTES: usize = 128 << 10;
/// The longest file or answer with several of them, in bytes.
pub const MAX_DOCUMENTS_BYTES: usize = 1 << 20;
/// The most documents in one file or answer.
pub const MAX_DOCUMENTS: usize = 64;
/// The most keys of a document: the current one first, then those that overlap with it.
pub const MAX_KEYS: usize = 16;
/// The most labels of a document.
pub const MAX_LABELS: usize = 256;
/// The longest label, in bytes.
const MAX_LABEL_BYTES: usize = 1_024;
const MAX_DATASET_BYTES: usize = 128;

/// RSA keys to which the values of some labels of a dataset are sealed. It says nothing of who says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnclaveKeys {
    dataset: String,
    labels: Vec<String>,
    keys: Vec<RsaPublicJwk>,
}

impl EnclaveKeys {
    /// Checks and takes them: 1 to [`MAX_KEYS`] keys, the current one first, and 1 to [`MAX_LABELS`] labels, none of them twice.
    ///
    /// # Errors
    /// [`EnclaveKeysError::BadContent`]
    pub fn new(dataset: &str, labels: Vec<String>, keys: Vec<RsaPublicJwk>) -> Result<Self, EnclaveKeysError> {
        let bad = |what| EnclaveKeysError::BadContent { what };
        check_name(dataset, "dataset", MAX_DATASET_BYTES).map_err(|_| bad("its dataset is no name"))?;
        if !(1..=MAX_LABELS).contains(&labels.len()) {
            return Err(bad("it has no labels, or more than 256"));
        }
        let is_label =
            |label: &String| (1..=MAX_LABEL_BYTES).contains(&label.len()) && !label.chars().any(char::is_control);
        if !labels.iter().all(is_label) {
            return Err(bad(
                "a label is empty, longer than 1,024 bytes, or has control characters",
            ));
        }
        if labels.iter().collect::<BTreeSet<_>>().len() != labels.len() {
            return Err(bad("a label stands there twice"));
        }
        if !(1..=MAX_KEYS).contains(&keys.len()) {
            return Err(bad("it has no keys, or more than 16"));
        }
        let thumbprints: BTreeSet<String> = keys.iter().map(|key| key.thumbprint().to_string()).collect();
        if thumbprints.len() != keys.len() {
            return Err(bad("a key stands there twice"));
        }
        Ok(Self {
            dataset: dataset.to_owned(),
            labels,
            keys,
        })
    }

    /// The dataset.
    #[must_use]
    pub fn dataset(&self) -> &str {
        &self.dataset
    }

    /// The labels whose values are sealed to these keys.
    #[must_use]
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// The keys: the first is the current one.
    #[must_use]
    pub fn keys(&self) -> &[RsaPublicJwk] {
        &self.keys
    }

    fn of_raw(dataset: &str, labels: Vec<String>, keys: Vec<RawKey>) -> Result<Self, EnclaveKeysError> {
        let keys = keys.into_iter().map(RawKey::check).collect::<Result<_, _>>()?;
        Self::new(dataset, labels, keys)
    }

    fn to_raw_keys(&self) -> Vec<RawKey> {
        self.keys.iter().map(RawKey::of).collect()
    }
}

/// The labels whose values clients seal for the enclave, by a policy: sorted, with former names of columns that were renamed, under
/// which clients seal that do not know yet.
#[must_use]
pub fn labels(policy: &Policy) -> Vec<String> {
    let columns = policy.columns.iter();
    let labels = columns.filter(|rule| rule.flow == Flow::Enclave && rule.hint.is_none());
    let current: BTreeSet<String> = labels.map(|rule| rule.label.clone()).collect();
    let former = policy.previous.labels.iter();
    let former = former
        .filter(|(_, now)| current.contains(*now))
        .map(|(old, _)| old.clone());
    let all: BTreeSet<String> = former.chain(current.iter().cloned()).collect();
    all.into_iter().collect()
}

/// Enclave keys that somebody vouches for who is pinned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedEnclaveKeys {
    keys: EnclaveKeys,
    evidence: Evidence,
    issued: UnixMillis,
    expires: UnixMillis,
    text: String,
}

/// Who vouches for enclave keys.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Evidence {
    /// The pinned owner of the policy, by a signature.
    Owner(Thumbprint),
    /// An enclave with pinned measurements, by an attestation document.
    Measured {
        /// Its image, SHA-384 in 96 hexadecimal digits.
        image: String,
        /// What vouches for the measurement: `nitro`, `dev-software-nsm`.
        tier: &'static str,
    },
}

impl VerifiedEnclaveKeys {
    /// The keys.
    #[must_use]
    pub fn keys(&self) -> &EnclaveKeys {
        &self.keys
    }

    /// Who vouches for them.
    #[must_use]
    pub fn evidence(&self) -> &Evidence {
        &self.evidence
    }

    /// When the document was made. Of two that verify the later one counts; a client remembers the latest that it has seen.
    #[must_use]
    pub fn issued(&self) -> UnixMillis {
        self.issued
    }

    /// The first moment at which nothing is sealed to these keys any more.
    #[must_use]
    pub fn expires(&self) -> UnixMillis {
        self.expires
    }

    /// The document as it was given.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The same, if it is of this dataset and not older than one that was seen before.
    ///
    /// # Errors
    /// [`EnclaveKeysError::OtherDataset`], [`EnclaveKeysError::Older`]
    pub fn check(self, dataset: &str, seen: Option<UnixMillis>) -> Result<Self, EnclaveKeysError> {
        if self.keys.dataset != dataset {
            return Err(EnclaveKeysError::OtherDataset {
                expected: dataset.to_owned(),
                found: self.keys.dataset,
            });
        }
        if let Some(seen) = seen.filter(|seen| self.issued < *seen) {
            return Err(EnclaveKeysError::Older {
                issued: self.issued,
                seen,
            });
        }
        Ok(self)
    }
}

/// Why enclave keys are not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EnclaveKeysError {
    /// A key, or a set of them, of which nobody says whose it is.
    #[error("a bare JWK, which nobody vouches for")]
    BareKey,
    /// Over [`MAX_DOCUMENT_BYTES`], or over [`MAX_DOCUMENTS_BYTES`] for several.
    #[error("longer than a document of enclave keys may be")]
    TooLarge,
    /// Not the JSON that it should be: a member missing, unknown, twice or of another type.
    #[error("not a document of enclave keys: a member is missing, unknown, repeated or of another type")]
    Malformed,
    /// No JWS of ours, or one that was changed.
    #[error(transparent)]
    Jws(#[from] JwsError),
    /// Signed, but by somebody who is not pinned.
    #[error("signed by key {signer}, which is no pinned owner of {dataset}")]
    NotAnOwner {
        /// The dataset.
        dataset: String,
        /// Thumbprint of the key.
        signer: Thumbprint,
    },
    /// The evidence is not believed, or is that of another enclave.
    #[cfg(feature = "attestation")]
    #[error(transparent)]
    Attestation(#[from] attested::AttestationError),
    /// Evidence of the right enclave, which says nothing of these keys.
    #[error("the attestation document commits to other keys, labels or another dataset")]
    OtherContent,
    /// Dataset, labels or keys are none that can be.
    #[error("the document of enclave keys is refused: {what}")]
    BadContent {
        /// What is wrong.
        what: &'static str,
    },
    /// A key that cannot be sealed to.
    #[error("a key in the document of enclave keys is refused: {0}")]
    BadKey(RsaKeyError),
    /// Longer than [`signed::MAX_SPAN`], or over before it begins.
    #[error("enclave keys for {seconds} seconds, which is not between 1 second and 400 days")]
    BadSpan {
        /// From `iat` to `exp`.
        seconds: i128,
    },
    /// Over.
    #[error("the enclave keys ended at {at}")]
    Expired {
        /// When.
        at: UnixMillis,
    },
    /// Not begun: a clock is wrong.
    #[error("the enclave keys begin at {at}, in the future")]
    NotYet {
        /// When.
        at: UnixMillis,
    },
    /// A document of another dataset.
    #[error("the enclave keys are those of {found}, not of {expected}")]
    OtherDataset {
        /// What was asked for.
        expected: String,
        /// What it names.
        found: String,
    },
    /// A document that was made before one that was seen.
    #[error("the enclave keys are of {issued}, and newer ones of {seen} have been seen here")]
    Older {
        /// When this one was made.
        issued: UnixMillis,
        /// When the other was.
        seen: UnixMillis,
    },
    /// A document of a kind by which nobody was pinned.
    #[error("the document is of another kind than what is pinned: owners sign, measurements attest")]
    OtherKind,
    /// There is no document at all.
    #[error("there are no enclave keys in it")]
    None,
    /// Nobody can publish any more: the last number is taken.
    #[error("the catalogue has no number left for enclave keys of {dataset}")]
    Full {
        /// The dataset.
        dataset: String,
    },
    /// The catalogue did not answer.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
}

impl EnclaveKeysError {
    /// Whether the same can succeed later without anybody changing anything.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Catalogue(error) if error.is_retryable())
    }

    /// What to do about it.
    #[must_use]
    pub fn help(&self) -> &'static str {
        match self {
            Self::BareKey => {
                "whoever serves a bare key could serve their own: give a document that the policy's owner signed \
                 (`sealflow keys enclave`), or the service's /.well-known/enclave-keys"
            }
            Self::NotAnOwner { .. } => {
                "ask the policy's owner for their thumbprint, not who serves the document; pin it only if it is this one"
            }
            Self::Expired { .. } => "fetch the newest; if there is none, the owner signs one: `sealflow keys enclave`",
            Self::NotYet { .. } => "set the clocks of this machine and of the signer",
            Self::BadSpan { .. } => "sign for 400 days or less",
            Self::OtherDataset { .. } => "give the enclave keys of the dataset that you seal for",
            #[cfg(feature = "attestation")]
            Self::Attestation(_) => {
                "fetch the newest; what to pin is what whoever built the image says, not who serves it"
            }
            Self::OtherKind => {
                "give a document of the kind that is pinned: --owner for signed ones, --measurement for attested ones"
            }
            Self::Older { .. } => "fetch the newest; who serves an old one may hold a newer one back",
            Self::Full { .. } => "find out who put that number there, and remove it",
            Self::Catalogue(_) => "check that the catalogue exists and can be read and written",
            _ => "`sealflow keys enclave` writes such documents; find out who changed this one",
        }
    }
}

/// A document, by its form. Nobody has verified it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Document<'a> {
    /// A JWS: [`signed::verify`].
    Signed(&'a str),
    /// JSON with an attestation document: `attested::verify`.
    Attested(&'a str),
}

/// A key in a document: exactly the members of [`RsaPublicJwk::to_published_json`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawKey {
    alg: String,
    e: String,
    kid: String,
    kty: String,
    n: String,
    #[serde(rename = "use")]
    usage: String,
}

impl RawKey {
    fn of(key: &RsaPublicJwk) -> Self {
        // It has these members: it writes them itself.
        serde_json::from_str(&key.to_published_json()).unwrap_or_else(|_| Self {
            alg: String::new(),
            e: String::new(),
            kid: String::new(),
            kty: String::new(),
            n: String::new(),
            usage: String::new(),
        })
    }

    /// The key, if every member says what it must; `kid` is its thumbprint.
    fn check(self) -> Result<RsaPublicJwk, EnclaveKeysError> {
        let json = serde_json::to_vec(&self).map_err(|_| EnclaveKeysError::Malformed)?;
        let key = RsaPublicJwk::from_json(&json).map_err(EnclaveKeysError::BadKey)?;
        if Self::of(&key) != self {
            return Err(EnclaveKeysError::BadContent {
                what: "the kid of a key is not its thumbprint",
            });
        }
        Ok(key)
    }
}

/// An answer of the reading service.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Answer<'a> {
    #[serde(borrow)]
    documents: Vec<&'a serde_json::value::RawValue>,
}

/// The documents in a file: one, or the answer of `/.well-known/enclave-keys`, in its order. They are not verified.
///
/// # Errors
/// [`EnclaveKeysError::BareKey`] for what is only a key; [`EnclaveKeysError::Malformed`], [`EnclaveKeysError::TooLarge`],
/// [`EnclaveKeysError::None`]
pub fn documents(text: &str) -> Result<Vec<Document<'_>>, EnclaveKeysError> {
    if text.len() > MAX_DOCUMENTS_BYTES {
        return Err(EnclaveKeysError::TooLarge);
    }
    let text = text.trim_ascii();
    if !text.starts_with('{') {
        return document(text).map(|one| vec![one]);
    }
    let Ok(answer) = serde_json::from_str::<Answer<'_>>(text) else {
        return document(text).map(|one| vec![one]);
    };
    if answer.documents.len() > MAX_DOCUMENTS {
        return Err(EnclaveKeysError::TooLarge);
    }
    if answer.documents.is_empty() {
        return Err(EnclaveKeysError::None);
    }
    let mut documents = Vec::with_capacity(answer.documents.len());
    for raw in answer.documents {
        let raw = raw.get();
        // A JWS has nothing that JSON would escape.
        let inner = raw.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
        documents.push(document(inner.unwrap_or(raw))?);
    }
    Ok(documents)
}

/// One document, by its form.
///
/// # Errors
/// As for [`documents`].
pub fn document(text: &str) -> Result<Document<'_>, EnclaveKeysError> {
    if text.len() > MAX_DOCUMENT_BYTES {
        return Err(EnclaveKeysError::TooLarge);
    }
    let text = text.trim_ascii();
    if text.starts_with('{') {
        let json = serde_json::from_str::<serde_json::Value>(text).map_err(|_| EnclaveKeysError::Malformed)?;
        let has = |name| json.get(name).is_some();
        return match (has("attestation"), has("kty") || has("keys")) {
            (true, _) => Ok(Document::Attested(text)),
            (false, true) => Err(EnclaveKeysError::BareKey),
            (false, false) => Err(EnclaveKeysError::Malformed),
        };
    }
    Ok(Document::Signed(text))
}

/// When a document holds: from its beginning, with five minutes of grace for clocks that differ, until its end, with none.
fn check_now(issued: UnixMillis, expires: UnixMillis, now: UnixMillis) -> Result<(), EnclaveKeysError> {
    if now >= expires {
        return Err(EnclaveKeysError::Expired { at: expires });
    }
    if issued > now.plus(super::lease::MAX_SKEW) {
        return Err(EnclaveKeysError::NotYet { at: issued });
    }
    Ok(())
}

#[cfg(test)]
mod testing {
    #![allow(clippy::unwrap_used)] // tests

    use std::time::Duration;

    use super::*;

    pub(super) const DAY: Duration = Duration::from_secs(86_400);
    pub(super) const NOW: UnixMillis = UnixMillis(1_767_225_600_000);

    /// RFC 7638, section 3.1.
    const RFC_N: &str = "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw";

    pub(super) fn key() -> RsaPublicJwk {
        RsaPublicJwk::from_json(format!(r#"{{"kty":"RSA","n":"{RFC_N}","e":"AQAB"}}"#).as_bytes()).unwrap()
    }

    /// One key for three labels.
    pub(super) fn keys(dataset: &str) -> EnclaveKeys {
        let labels = ["card", "cards[*].number", "\"a b\".c"].map(str::to_owned).to_vec();
        EnclaveKeys::new(dataset, labels, vec![key()]).unwrap()
    }
}
