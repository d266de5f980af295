//! The joint for keys that clients seal to: RSA and HMAC keys whose secret halves stay in the key service.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

use super::service::{EncryptionContext, KeyService, KeyServiceError};
use crate::secret::SecretBytes;

/// The sizes of RSA keys that clients seal to, in bits of the modulus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RsaBits {
    /// 2048.
    Rsa2048,
    /// 3072.
    Rsa3072,
    /// 4096.
    Rsa4096,
}

impl RsaBits {
    /// All sizes.
    pub const ALL: [Self; 3] = [Self::Rsa2048, Self::Rsa3072, Self::Rsa4096];

    /// Bits of the modulus.
    #[must_use]
    pub fn bits(self) -> usize {
        match self {
            Self::Rsa2048 => 2048,
            Self::Rsa3072 => 3072,
            Self::Rsa4096 => 4096,
        }
    }
}

/// An RSA key pair fresh from the key service, its private half wrapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GeneratedPair {
    /// `SubjectPublicKeyInfo` (RFC 5280, section 4.1.2.7), DER.
    pub public: Vec<u8>,
    /// The private half (PKCS #8, RFC 5208, DER), wrapped by the KMS under `arn`: opens by [`KeyService::unwrap`].
    pub wrapped_private: Vec<u8>,
    /// Full ARN of the symmetric KMS key that wrapped it, as the service returned it.
    pub arn: String,
}

/// The private half of a pair, held in memory. Wiped on drop; `Debug` shows nothing of it.
pub trait PrivateHalf: Send + Sync + fmt::Debug {
    /// The public half that belongs to it, as it follows from the private one: `SubjectPublicKeyInfo`, DER.
    fn public(&self) -> &[u8];

    /// Opens what was sealed to the public half as [`ClientKeyService::decrypt_rsa`] does; `None` for all else, without a
    /// reason. It computes for milliseconds: call it where nobody waits for the thread.
    fn decrypt(&self, ciphertext: &[u8]) -> Option<SecretBytes>;
}

/// What a key service does with keys of clients. The contract, which
/// `conformance::client_key_service` checks, is that of [`KeyService`], and:
///
/// * `decrypt_rsa` opens what anybody sealed with RSAES-OAEP (RFC 8017, section 7.1; SHA-256, MGF1 with SHA-256, empty
///   label) to `public_key` of the same ARN, and fails with [`KeyServiceError::Refused`] for all else;
/// * a key of another kind than a call needs is [`KeyServiceError::KeyUnusable`]; asked to decrypt or unwrap, it may also be
///   [`KeyServiceError::Refused`], since AWS KMS does not always tell the two apart;
/// * private keys of pairs unwrap as data keys do, and never under an RSA key;
/// * `private_half` unwraps with one request and takes only the private key of an RSA key of these sizes: all else that a
///   context opens is [`KeyServiceError::BadAnswer`].
#[async_trait]
pub trait ClientKeyService: KeyService {
    /// The public half of the RSA key `arn` as `SubjectPublicKeyInfo`, DER. Keys for signatures are refused.
    async fn public_key(&self, arn: &str) -> Result<Vec<u8>, KeyServiceError>;

    /// Decrypts with the RSA key `arn` what a client sealed to it: 1 to 190 (RSA-2048), 318 or 446 bytes. Nothing at all,
    /// sealed, counts as not sealed.
    async fn decrypt_rsa(&self, arn: &str, ciphertext: &[u8]) -> Result<SecretBytes, KeyServiceError>;

    /// A new RSA key pair whose private half is wrapped under the symmetric key `arn` and bound to `context`. The private half
    /// in clear never leaves the service.
    async fn generate_pair(
        &self,
        arn: &str,
        bits: RsaBits,
        context: &EncryptionContext,
    ) -> Result<GeneratedPair, KeyServiceError>;

    /// Unwraps the private half of a pair, to hold it in memory. Whether it is that of the public half in the policy, the
    /// caller compares.
    async fn private_half(
        &self,
        arn: &str,
        wrapped: &[u8],
        context: &EncryptionContext,
    ) -> Result<Arc<dyn PrivateHalf>, KeyServiceError>;

    /// HMAC-SHA-256 (RFC 2104) of a message of 1 to 4,096 bytes under the HMAC key `arn`.
    async fn mac(&self, arn: &str, message: &[u8]) -> Result<[u8; 32], KeyServiceError>;

    /// Whether `mac` is that of `message` under the HMAC key `arn`; compared inside the service.
    async fn verify_mac(&self, arn: &str, message: &[u8], mac: &[u8; 32]) -> Result<bool, KeyServiceError>;
}
