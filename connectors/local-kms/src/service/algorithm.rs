//! Which algorithm a request may use with which key, and AWS's errors where they do not fit.

use crate::error::ApiError;
use crate::keys::{Key, KeySpec, RsaKey, Secret, Symmetric};

pub(super) const SYMMETRIC: &str = "SYMMETRIC_DEFAULT";
pub(super) const OAEP: &str = "RSAES_OAEP_SHA_256";
pub(super) const HMAC: &str = "HMAC_SHA_256";

/// An encryption algorithm as a request names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Algorithm {
    Symmetric,
    Oaep,
}

impl Algorithm {
    /// AWS's default is the symmetric one, whatever the key is.
    pub(super) fn parse(name: Option<&str>) -> Result<Self, ApiError> {
        match name {
            None | Some(SYMMETRIC) => Ok(Self::Symmetric),
            Some(OAEP) => Ok(Self::Oaep),
            Some("RSAES_OAEP_SHA_1") => Err(ApiError::unsupported(
                "the local KMS does RSAES_OAEP_SHA_256, and not RSAES_OAEP_SHA_1",
            )),
            Some("SM2PKE") => Err(ApiError::unsupported("the local KMS does not do SM2PKE")),
            Some(_) => Err(ApiError::validation("EncryptionAlgorithm is not one of KMS")),
        }
    }

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Symmetric => SYMMETRIC,
            Self::Oaep => OAEP,
        }
    }
}

/// A key and an algorithm that fit.
pub(super) enum Cipher<'a> {
    Symmetric(&'a Symmetric),
    Rsa(&'a RsaKey),
}

impl<'a> Cipher<'a> {
    /// What seals with `key` (its ARN is `arn`) for `operation`.
    pub(super) fn sealing(key: &'a Key, arn: &str, algorithm: Algorithm, operation: &str) -> Result<Self, ApiError> {
        match (&key.secret, algorithm) {
            (Secret::Symmetric(symmetric), Algorithm::Symmetric) => Ok(Self::Symmetric(symmetric)),
            (Secret::Rsa(rsa), Algorithm::Oaep) => Ok(Self::Rsa(rsa)),
            (Secret::Hmac(_), _) => Err(wrong_usage(key, arn, operation)),
            _ => Err(wrong_algorithm(key, algorithm.as_str())),
        }
    }

    /// What opens with `key`. An RSA key without its algorithm opens nothing, and AWS does not say why.
    pub(super) fn opening(key: &'a Key, arn: &str, algorithm: Algorithm, operation: &str) -> Result<Self, ApiError> {
        match (&key.secret, algorithm) {
            (Secret::Rsa(_), Algorithm::Symmetric) => Err(ApiError::invalid_ciphertext()),
            _ => Self::sealing(key, arn, algorithm, operation),
        }
    }
}

/// The materials of a symmetric key; other keys make no data keys.
pub(super) fn symmetric<'a>(key: &'a Key, arn: &str, operation: &str) -> Result<&'a Symmetric, ApiError> {
    match &key.secret {
        Secret::Symmetric(symmetric) => Ok(symmetric),
        Secret::Rsa(_) => Err(wrong_algorithm(key, SYMMETRIC)),
        Secret::Hmac(_) => Err(wrong_usage(key, arn, operation)),
    }
}

/// The key is for something else.
pub(super) fn wrong_usage(key: &Key, arn: &str, operation: &str) -> ApiError {
    let usage = key.secret.spec().usage();
    ApiError::caller(
        "InvalidKeyUsageException",
        format!("{arn} key usage is {usage} which is not valid for {operation}."),
    )
}

/// The key is of another type than the algorithm.
pub(super) fn wrong_algorithm(key: &Key, algorithm: &str) -> ApiError {
    let spec = key.secret.spec().as_str();
    ApiError::caller(
        "InvalidKeyUsageException",
        format!("Algorithm {algorithm} is incompatible with key spec {spec}."),
    )
}

/// The spec and usage of a key to be made: every spec has one usage here, which AWS wants named unless it is symmetric.
pub(super) fn spec_of(spec: Option<&str>, usage: Option<&str>) -> Result<KeySpec, ApiError> {
    let spec: KeySpec = spec.unwrap_or(SYMMETRIC).parse().map_err(|_| {
        let all = KeySpec::ALL.map(KeySpec::as_str).join(", ");
        ApiError::unsupported(format!("the local KMS makes keys of these specs only: {all}"))
    })?;
    match usage {
        None if spec == KeySpec::Symmetric => Ok(spec),
        None => Err(ApiError::validation(
            "You must specify a KeyUsage value for all KMS keys except for symmetric encryption keys.",
        )),
        Some(usage) if usage == spec.usage() => Ok(spec),
        Some("SIGN_VERIFY") if matches!(spec, KeySpec::Rsa(_)) => {
            Err(ApiError::unsupported("the local KMS makes no keys for signatures"))
        }
        Some(usage @ ("ENCRYPT_DECRYPT" | "SIGN_VERIFY" | "GENERATE_VERIFY_MAC" | "KEY_AGREEMENT")) => {
            let spec = spec.as_str();
            Err(ApiError::validation(format!(
                "KeyUsage {usage} is not compatible with KeySpec {spec}"
            )))
        }
        Some(_) => Err(ApiError::validation("KeyUsage is not one of KMS")),
    }
}
