//! `Recipient`: an attestation document that is believed or refused, and plaintext that is sealed to the key in it.

use aws_lc_rs::rsa::PublicEncryptingKey;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sealflow::clock::UnixMillis;
use sealflow_enclave_protocol::attestation::{self, Trust};
use sealflow_enclave_protocol::cms;
use serde::Deserialize;

use super::algorithm::OAEP;
use super::wire::Base64;
use crate::error::ApiError;
use crate::policy::Evidence;

/// How old a document may be, in milliseconds, and how far ahead of this machine's clock.
const MAX_AGE_MS: u64 = 5 * 60 * 1_000;
/// Bits of the key that plaintext is sealed to.
const BITS: std::ops::RangeInclusive<usize> = 2048..=4096;

/// `Recipient` as it comes: AWS's `RecipientInfo`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
pub(super) struct RecipientInfo {
    attestation_document: Option<Base64>,
    key_encryption_algorithm: Option<String>,
}

/// Who gets the plaintext, sealed: proven by a document that was verified.
pub(super) struct Recipient {
    /// What key policies see of the document.
    pub(super) evidence: Evidence,
    /// `SubjectPublicKeyInfo`, DER.
    public_key: Vec<u8>,
}

impl Recipient {
    /// Verifies the document in full, whatever the key's policy asks for. `None` if there is none.
    pub(super) fn believe(
        info: Option<&RecipientInfo>,
        trust: &Trust,
        now: UnixMillis,
    ) -> Result<Option<Self>, ApiError> {
        let Some(info) = info else { return Ok(None) };
        if info.key_encryption_algorithm.as_deref() != Some(OAEP) {
            return Err(refused("KeyEncryptionAlgorithm must be RSAES_OAEP_SHA_256"));
        }
        let Some(bytes) = &info.attestation_document else {
            return Err(refused("there is no AttestationDocument"));
        };
        let document = attestation::verify(&bytes.0, trust, now.0);
        let document =
            document.map_err(|error| refused(&format!("the attestation document is not believed: {error}")))?;
        if now.0.abs_diff(document.timestamp_ms) > MAX_AGE_MS {
            return Err(refused("the attestation document is not of the last five minutes"));
        }
        let registers = document.pcrs.iter();
        let evidence = Evidence::of_registers(registers.map(|(number, bytes)| (*number, bytes.as_slice())));
        if !evidence.names_an_image() {
            return Err(refused(
                "PCR0 of the attestation document is missing or all zeros: the enclave runs in debug mode",
            ));
        }
        let Some(public_key) = document.public_key else {
            return Err(refused("there is no public key in the attestation document"));
        };
        let key = PublicEncryptingKey::from_der(&public_key);
        if !key.is_ok_and(|key| BITS.contains(&key.key_size_bits())) {
            return Err(refused(
                "the public key in the attestation document is no RSA key of 2048 to 4096 bits (SubjectPublicKeyInfo, DER)",
            ));
        }
        Ok(Some(Self { evidence, public_key }))
    }

    /// `CiphertextForRecipient`: CMS EnvelopedData in BER, as base64.
    pub(super) fn seal(&self, plaintext: &[u8]) -> Result<String, ApiError> {
        let sealed = cms::seal(&self.public_key, plaintext).map_err(|_| ApiError::internal())?;
        Ok(STANDARD.encode(sealed))
    }
}

/// For operations that give no plaintext.
pub(super) fn refuse_recipient(info: Option<&RecipientInfo>, operation: &str) -> Result<(), ApiError> {
    match info {
        None => Ok(()),
        Some(_) => Err(ApiError::validation(format!("{operation} takes no Recipient"))),
    }
}

fn refused(reason: &str) -> ApiError {
    ApiError::validation(format!("Recipient: {reason}"))
}
