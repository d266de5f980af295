//! The RSA keys that clients seal to: in KMS, or pairs whose private half KMS has wrapped.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};

use super::arn::check_key_arn;
use super::key_path::KeyPath;
use super::problem::{Found, Problem};
use super::raw::RawKeyPair;

/// The longest wrapped private half, in bytes: what KMS unwraps.
const MAX_WRAPPED: usize = 6_144;
/// What evidence of a pair begins with, so that evidence for one purpose is none for another.
const PURPOSE: &[u8] = b"sealflow-enclave-pair/1";
/// Moduli of 2048, 3072 and 4096 bits, in bytes.
const MODULI: [u16; 3] = [256, 384, 512];
/// `rsaEncryption` with its NULL (RFC 3279, section 2.3.1), DER.
const ALGORITHM: [u8; 15] = [
    0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00,
];
/// The exponent 65537, DER.
const EXPONENT: [u8; 5] = [0x02, 0x03, 0x01, 0x00, 0x01];

/// An RSA key that clients seal to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RsaKey {
    /// Its private half never leaves KMS, which is asked once for each session.
    InKms {
        /// Full ARN of the RSA key.
        arn: String,
    },
    /// Its private half is wrapped by KMS, which is asked for it once; who holds it opens sessions by itself.
    Pair(KeyPair),
}

impl RsaKey {
    /// Full ARN of the KMS key that is needed: the RSA key itself, or the symmetric one that wrapped the private half.
    #[must_use]
    pub fn arn(&self) -> &str {
        match self {
            Self::InKms { arn } => arn,
            Self::Pair(pair) => &pair.arn,
        }
    }
}

/// A key pair that KMS made (`GenerateDataKeyPairWithoutPlaintext`; for enclaves `GenerateDataKeyPair`, asked by a worker).
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyPair {
    /// Full ARN of the symmetric KMS key that wrapped the private half.
    pub arn: String,
    /// The dataset that it was made for, as the encryption context of the wrapped half has it.
    pub dataset: String,
    /// The public half: `SubjectPublicKeyInfo` (RFC 5280, section 4.1.2.7), DER.
    pub public: Vec<u8>,
    /// The private half (PKCS #8, RFC 5208), wrapped.
    pub wrapped: Vec<u8>,
    digest: [u8; 32],
}

impl KeyPair {
    /// A pair as the policy writes it.
    pub(super) fn new(raw: &RawKeyPair, dataset: &str, at: &KeyPath) -> Result<Self, Found> {
        check_key_arn(&raw.arn).map_err(|error| Problem::BadArn(error).at(&at.key("arn")))?;
        let public = STANDARD.decode(&raw.public).ok().filter(|der| is_rsa_public(der));
        let public = public.ok_or_else(|| Problem::BadPairPublic.at(&at.key("public")))?;
        let wrapped = STANDARD.decode(&raw.wrapped).ok();
        let wrapped = wrapped.filter(|wrapped| (1..=MAX_WRAPPED).contains(&wrapped.len()));
        let wrapped = wrapped.ok_or_else(|| Problem::BadPairWrapped.at(&at.key("wrapped")))?;
        Ok(Self::of(&raw.arn, dataset, public, wrapped))
    }

    fn of(arn: &str, dataset: &str, public: Vec<u8>, wrapped: Vec<u8>) -> Self {
        let mut hash = Sha256::new();
        for part in [arn.as_bytes(), dataset.as_bytes(), &public, &wrapped] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        Self {
            arn: arn.to_owned(),
            dataset: dataset.to_owned(),
            public,
            wrapped,
            digest: hash.finalize().into(),
        }
    }

    /// A pair as a key service made it for a dataset; `None` for what no policy takes.
    #[must_use]
    pub fn made(arn: &str, dataset: &str, public: Vec<u8>, wrapped: Vec<u8>) -> Option<Self> {
        let is_one = check_key_arn(arn).is_ok() && is_rsa_public(&public) && (1..=MAX_WRAPPED).contains(&wrapped.len());
        is_one.then(|| Self::of(arn, dataset, public, wrapped))
    }

    /// The `user_data` by which an enclave says that it had this pair made, and that nobody saw its private half:
    /// `sealflow-enclave-pair/1`, and the [digest](Self::digest).
    #[must_use]
    pub fn user_data(&self) -> Vec<u8> {
        [PURPOSE, &self.digest[..]].concat()
    }

    /// SHA-256 of everything that it consists of: pairs that differ in anything are two.
    #[must_use]
    pub fn digest(&self) -> &[u8; 32] {
        &self.digest
    }
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyPair")
            .field("arn", &self.arn)
            .field("dataset", &self.dataset)
            .finish_non_exhaustive()
    }
}

/// Whether `der` is the `SubjectPublicKeyInfo` of an RSA key of 2048, 3072 or 4096 bits with the exponent 65537. DER has one
/// spelling, so that all but the modulus is known.
fn is_rsa_public(der: &[u8]) -> bool {
    MODULI.iter().any(|bytes| {
        let long = |tag: u8, length: u16| [&[tag, 0x82][..], &length.to_be_bytes()].concat();
        let before = [
            long(0x30, bytes + 34),
            ALGORITHM.to_vec(),
            long(0x03, bytes + 15),
            vec![0],
            long(0x30, bytes + 10),
            long(0x02, bytes + 1),
            vec![0],
        ]
        .concat();
        let modulus = der.strip_prefix(&*before).and_then(|rest| rest.strip_suffix(&EXPONENT));
        modulus.is_some_and(|modulus| {
            let (first, last) = (modulus.first().unwrap_or(&0), modulus.last().unwrap_or(&0));
            modulus.len() == usize::from(*bytes) && first & 0x80 != 0 && last & 1 == 1
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::testing::MemoryKms;
    use crate::keys::{ClientKeyService as _, EncryptionContext, RsaBits};

    #[tokio::test]
    async fn a_public_half_is_one_rsa_key_in_canonical_der() {
        let (kms, context) = (MemoryKms::new(), EncryptionContext::for_client_pair("payments"));
        for bits in RsaBits::ALL {
            let der = kms.generate_pair("arn", bits, &context).await.unwrap().public;
            assert!(is_rsa_public(&der), "{bits:?}");
            assert!(!is_rsa_public(&der[..der.len() - 1]));
            assert!(!is_rsa_public(&[&der[..], &[0]].concat()));
            // Lengths, algorithm, the sign and the first bit of the modulus, its last bit, the exponent.
            for (at, flip) in [
                (0, 1),
                (3, 1),
                (6, 1),
                (20, 1),
                (22, 1),
                (32, 1),
                (33, 0x80),
                (der.len() - 6, 1),
                (der.len() - 1, 2),
            ] {
                let mut edited = der.clone();
                edited[at] ^= flip;
                assert!(!is_rsa_public(&edited), "{bits:?} {at}");
            }
        }
        assert!(!is_rsa_public(&[]));
    }
}
