//! What is checked of every answer of a KMS, whoever asked.

use std::collections::HashMap;

use aws_sdk_kms::primitives::Blob;
use sealflow::keys::{EncryptionContext, KeyServiceError};
use sealflow::secret::SecretBytes;

/// The most bytes that `GenerateDataKey` makes.
pub(crate) const MAX_DATA_KEY: usize = 1024;

/// The most bytes that are unwrapped: private keys of RSA-4096 pairs (some 2,400 bytes) are longer than data keys. It is
/// what KMS encrypts at most.
pub(crate) const MAX_UNWRAPPED: usize = 4096;

/// The largest `SubjectPublicKeyInfo` of an RSA key of 4,096 bits is some 550 bytes; KMS answers up to 8,192.
pub(crate) const MAX_PUBLIC_KEY: usize = 8192;

/// The most bytes that OAEP with SHA-256 seals to an RSA key of 4,096 bits (RFC 8017, section 7.1.1).
pub(crate) const MAX_SEALED: usize = 446;

pub(crate) fn check_key(answered: Option<&str>, arn: &str) -> Result<(), KeyServiceError> {
    if answered == Some(arn) {
        Ok(())
    } else {
        Err(bad_answer("it names another key than asked for"))
    }
}

pub(crate) fn pairs(context: &EncryptionContext) -> HashMap<String, String> {
    context
        .iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// Takes the bytes over without a copy, to be wiped; the client's own buffers (the JSON text) are not ours to wipe.
pub(crate) fn secret(blob: Blob) -> SecretBytes {
    SecretBytes::new(blob.into_inner())
}

pub(crate) fn bad_answer(reason: &str) -> KeyServiceError {
    KeyServiceError::BadAnswer {
        reason: reason.to_owned(),
    }
}

pub(crate) fn wrong_kind(arn: &str) -> KeyServiceError {
    KeyServiceError::KeyUnusable {
        arn: arn.to_owned(),
        code: "NotAnEncryptionKey".to_owned(),
    }
}
