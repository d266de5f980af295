//! The joints between the enclave flow and a kind of TEE.

use std::fmt;

use zeroize::Zeroizing;

/// What a program wants to have bound into evidence about itself. Bounds are those of Nitro's attestation documents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Claims<'a> {
    /// A public key (`SubjectPublicKeyInfo`, DER) whose private half only it has: at most 1,024 bytes.
    pub public_key: Option<&'a [u8]>,
    /// At most 512 bytes of its own.
    pub user_data: Option<&'a [u8]>,
    /// What whoever asks wants to see again: at most 512 bytes.
    pub nonce: Option<&'a [u8]>,
}

/// Makes evidence about the program that asks: `/dev/nsm` on Nitro, the software NSM in development.
pub trait Attester: Send + Sync + fmt::Debug {
    /// An attestation document about this program, now, with these claims.
    ///
    /// # Errors
    /// [`AttestError`]
    fn attest(&self, claims: &Claims<'_>) -> Result<Vec<u8>, AttestError>;
}

/// Why there is no evidence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no attestation document can be had: {reason}")]
pub struct AttestError {
    /// What happened.
    pub reason: String,
}

/// Believes evidence, or does not: the roots, measurements and times that count are its own.
pub trait Verifier: Send + Sync + fmt::Debug {
    /// Who made the evidence, if it is fresh (it repeats `nonce`), binds this `user_data`, and is of a program that may be believed.
    ///
    /// # Errors
    /// [`NotBelieved`]
    fn verify(&self, evidence: &[u8], nonce: &[u8], user_data: &[u8]) -> Result<Believed, NotBelieved>;
}

/// What evidence proves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Believed {
    /// The kind of TEE: `nitro`, or `dev-software-nsm`, which proves protocol and policy but nothing against the machine's root.
    pub tier: String,
    /// Measurement of the image, as hexadecimal digits.
    pub image: String,
}

/// Evidence that is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the enclave worker does not prove what it is: {reason}")]
pub struct NotBelieved {
    /// What is wrong with it.
    pub reason: String,
}

/// What a key service needs to release keys to this program alone, and how the program takes them.
///
/// On Nitro: an attestation document with an ephemeral RSA key as `Recipient`, and the CMS of `CiphertextForRecipient`.
pub trait KeyReleaser: Send + Sync + fmt::Debug {
    /// Evidence that binds the key to which secrets are released. Fresh enough for a key service that looks at its time.
    ///
    /// # Errors
    /// [`AttestError`]
    fn evidence(&self) -> Result<Vec<u8>, AttestError>;

    /// Opens what a key service released.
    ///
    /// # Errors
    /// [`ReleaseError`], without a reason.
    fn open(&self, released: &[u8]) -> Result<Zeroizing<Vec<u8>>, ReleaseError>;
}

/// What a key service released does not open. It does not say what is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("what the key service released does not open")]
pub struct ReleaseError;
