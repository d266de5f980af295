//! Nitro attestation documents: what an enclave says about itself, signed by what it runs on. Parsed, verified and, under a root
//! for development, built; asked for and carried elsewhere.
//!
//! A document is a COSE_Sign1 (RFC 9052), untagged, ES384, over a CBOR map. The rules are those of AWS's "Nitro Enclaves
//! attestation process", section 3; where documents differ from it in practice, `docs/format.md` says how.
//!
//! [`verify`] believes the signature: which root, when, and that the syntax is right in full. [`Document::check`] compares what
//! it says with what somebody [`Expected`]: neither is enough alone.

mod chain;
mod syntax;
mod x509;

#[cfg(feature = "build")]
pub mod build;
#[cfg(test)]
#[cfg(all(feature = "build", feature = "dev-software-nsm"))]
mod tests;

use std::collections::BTreeMap;
use std::fmt;

use aws_lc_rs::signature::{ECDSA_P384_SHA384_FIXED, UnparsedPublicKey};

pub use crate::measurements::{MEASUREMENT_BYTES, Measurement, MeasurementError, Measurements, Register};

/// The longest document that is looked at, in bytes. AWS's have about 4,500.
pub const MAX_DOCUMENT_BYTES: usize = 16 * 1024;
/// How far a document's time may be ahead of ours, in milliseconds.
pub const MAX_SKEW_MS: u64 = 5 * 60 * 1000;

/// The root of AWS's Nitro Enclaves PKI, "G1", published at
/// <https://aws-nitro-enclaves.amazonaws.com/AWS_NitroEnclaves_Root-G1.zip>. Its fingerprint is compared in a test.
const NITRO_ROOT: &[u8] = include_bytes!("nitro-root-g1.der");

/// What an attestation document says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Which machine made it: instance and enclave id on Nitro.
    pub module_id: String,
    /// When it was made, milliseconds since the epoch, by the clock of what made it.
    pub timestamp_ms: u64,
    /// Platform configuration registers: index 0 to 31, 32, 48 or 64 bytes each.
    pub pcrs: BTreeMap<u8, Vec<u8>>,
    /// A public key (`SubjectPublicKeyInfo`, DER) whose private half is in the enclave: 1 to 1,024 bytes.
    pub public_key: Option<Vec<u8>>,
    /// What the enclave added: at most 512 bytes.
    pub user_data: Option<Vec<u8>>,
    /// What whoever asked wants to see again: at most 512 bytes.
    pub nonce: Option<Vec<u8>>,
    /// What kind of root vouches for it. A verified document has that of the root in [`Trust`].
    pub tier: Tier,
}

/// What a document proves at best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// AWS Nitro: hardware and hypervisor vouch for the enclave.
    Nitro,
    /// A process of ours vouches for another: protocol and policy are real, protection from whoever owns the machine is not.
    DevSoftwareNsm,
}

/// The roots that are believed, each with its tier.
#[derive(Clone, Debug)]
pub struct Trust {
    roots: Vec<(Vec<u8>, Tier)>,
}

/// What a verified document must say besides.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// What was asked with. `None` only where evidence is read that nobody asked for, and then `max_age_ms` is what bounds replay.
    pub nonce: Option<&'a [u8]>,
    /// The builds that are allowed: one of them has to match. None allowed means none accepted.
    pub measurements: &'a [Measurements],
    /// Now, milliseconds since the epoch.
    pub now_ms: u64,
    /// The oldest document that counts, in milliseconds.
    pub max_age_ms: u64,
}

/// Why evidence is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AttestationError {
    /// Over [`MAX_DOCUMENT_BYTES`].
    #[error("an attestation document has at most {MAX_DOCUMENT_BYTES} bytes")]
    TooLong,
    /// Not the syntax of an attestation document. It says which part.
    #[error("not an attestation document: {0}")]
    Syntax(&'static str),
    /// Another algorithm than ES384. Emulators sign with none at all.
    #[error(
        "the attestation document is not signed with ES384; what an emulator makes is not signed, and proves nothing"
    )]
    Algorithm,
    /// A root that is not in [`Trust`].
    #[error(
        "the attestation document comes from a root certificate that is not trusted here; a build without `dev-software-nsm` trusts AWS Nitro alone"
    )]
    UnknownRoot,
    /// A certificate's time is over, or has not begun.
    #[error(
        "a certificate of the attestation document is expired or not valid yet: compare the clocks, or ask for a fresh document"
    )]
    Validity,
    /// The chain does not lead from the root to the certificate that signed. It says what is wrong.
    #[error("the certificates of the attestation document are no chain from its root: {0}")]
    Chain(&'static str),
    /// The signature is not that of the certificate's key.
    #[error("the attestation document was changed after it was signed, or signed by somebody else")]
    Signature,
    /// A certificate that cannot be a root.
    #[error("this is no root certificate for attestation documents: {0}")]
    Root(&'static str),
    /// Made longer ago than allowed.
    #[error("the attestation document is {age_ms} ms old, and {max_age_ms} ms are allowed: ask for a fresh one")]
    Stale {
        /// Its age.
        age_ms: u64,
        /// What was allowed.
        max_age_ms: u64,
    },
    /// Made later than now, by more than [`MAX_SKEW_MS`].
    #[error("the attestation document comes from the future: compare the clocks")]
    Future,
    /// Not an answer to this question.
    #[error(
        "the attestation document does not carry the nonce that it was asked with: it answers somebody else, or an earlier question"
    )]
    Nonce,
    /// No measurement of the image.
    #[error("the attestation document says nothing about the image (PCR0)")]
    NotMeasured,
    /// An image that measures zero.
    #[error(
        "the enclave runs in debug mode (PCR0 is zero): the host can read its memory; start it without --debug-mode"
    )]
    DebugMode,
    /// None of the allowed sets.
    #[error("the attestation document's image {image} is not allowed, or another of its measurements is not")]
    Measurements {
        /// The image that it has, in hex.
        image: String,
    },
}

impl Tier {
    /// Its name, as it stands in status, logs and stored metadata.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nitro => "nitro",
            Self::DevSoftwareNsm => "dev-software-nsm",
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Trust {
    /// AWS's root alone.
    #[must_use]
    pub fn nitro() -> Self {
        Self {
            roots: vec![(NITRO_ROOT.to_vec(), Tier::Nitro)],
        }
    }

    /// AWS's root, and one for development (DER). Only builds with the feature `dev-software-nsm` have this.
    ///
    /// # Errors
    /// [`AttestationError::Root`]: the certificate is none of a P-384 authority.
    #[cfg(feature = "dev-software-nsm")]
    pub fn with_dev_root(certificate: &[u8]) -> Result<Self, AttestationError> {
        Self::nitro().and_dev_root(certificate)
    }

    /// One more root for development (DER). Only builds with the feature `dev-software-nsm` have this.
    ///
    /// # Errors
    /// [`AttestationError::Root`]: the certificate is none of a P-384 authority.
    #[cfg(feature = "dev-software-nsm")]
    pub fn and_dev_root(mut self, certificate: &[u8]) -> Result<Self, AttestationError> {
        chain::check_root(certificate)?;
        self.roots.push((certificate.to_vec(), Tier::DevSoftwareNsm));
        Ok(self)
    }

    /// The tier of exactly this certificate.
    fn tier_of(&self, certificate: &[u8]) -> Option<Tier> {
        let found = self.roots.iter().find(|(root, _)| root == certificate)?;
        Some(found.1)
    }
}

/// Believes a document: its syntax in full, its chain to a trusted root at `now_ms`, its signature.
///
/// It says nothing about *which* enclave that is, and when it was asked: [`Document::check`] does. Revocation lists are not
/// looked at; the certificate that signs lives for three hours.
///
/// # Errors
/// [`AttestationError`]
pub fn verify(document: &[u8], trust: &Trust, now_ms: u64) -> Result<Document, AttestationError> {
    if document.len() > MAX_DOCUMENT_BYTES {
        return Err(AttestationError::TooLong);
    }
    let signed = syntax::signed(document)?;
    let payload = syntax::payload(signed.payload)?;
    // The root comes first: `payload` made sure that there is one.
    let (root, intermediates) = payload
        .bundle
        .split_first()
        .ok_or(AttestationError::Syntax("`cabundle` is empty"))?;
    let tier = trust.tier_of(root).ok_or(AttestationError::UnknownRoot)?;
    let key = chain::verify(payload.certificate, intermediates, root, now_ms)?;
    UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, key)
        .verify(&syntax::to_be_signed(signed.payload), signed.signature)
        .map_err(|_| AttestationError::Signature)?;
    Ok(payload.document(tier))
}

impl Document {
    /// Compares a verified document with what is expected, and gives the set of measurements that it has.
    ///
    /// # Errors
    /// [`AttestationError::Future`], [`AttestationError::Stale`], [`AttestationError::Nonce`], [`AttestationError::NotMeasured`],
    /// [`AttestationError::DebugMode`], [`AttestationError::Measurements`]
    pub fn check<'m>(&self, expected: &Expected<'m>) -> Result<&'m Measurements, AttestationError> {
        if self.timestamp_ms > expected.now_ms.saturating_add(MAX_SKEW_MS) {
            return Err(AttestationError::Future);
        }
        let age_ms = expected.now_ms.saturating_sub(self.timestamp_ms);
        if age_ms > expected.max_age_ms {
            return Err(AttestationError::Stale {
                age_ms,
                max_age_ms: expected.max_age_ms,
            });
        }
        if expected.nonce.is_some_and(|nonce| self.nonce.as_deref() != Some(nonce)) {
            return Err(AttestationError::Nonce);
        }
        let image = self
            .pcrs
            .get(&Register::Image.pcr())
            .ok_or(AttestationError::NotMeasured)?;
        if image.iter().all(|byte| *byte == 0) {
            return Err(AttestationError::DebugMode);
        }
        let allowed = expected.measurements.iter().find(|set| self.has(set));
        allowed.ok_or_else(|| AttestationError::Measurements {
            image: image.iter().map(|byte| format!("{byte:02x}")).collect(),
        })
    }

    /// Whether every measurement of a set is there. One that is missing does not match, and none in a set is zero.
    fn has(&self, set: &Measurements) -> bool {
        set.iter().all(|(register, measurement)| {
            self.pcrs
                .get(&register.pcr())
                .is_some_and(|pcr| pcr.as_slice() == measurement.as_bytes())
        })
    }
}
