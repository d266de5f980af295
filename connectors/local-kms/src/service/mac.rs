//! `GenerateMac` and `VerifyMac`: HMAC-SHA-256 (RFC 2104).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::Deserialize;
use serde_json::json;
use sha2::Sha256;

use super::Service;
use super::algorithm::{HMAC, wrong_algorithm, wrong_usage};
use super::wire::{Answer, Base64, answer, parse, refuse_dry_run, refuse_grants};
use crate::blob::Context;
use crate::error::ApiError;
use crate::keys::{Key, Secret};

const MAX_MESSAGE: usize = 4096;
const MAX_MAC: usize = 6144;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct GenerateMac {
    key_id: String,
    mac_algorithm: String,
    message: Base64,
    #[serde(default)]
    grant_tokens: Vec<String>,
    #[serde(default)]
    dry_run: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
struct VerifyMac {
    key_id: String,
    mac_algorithm: String,
    message: Base64,
    mac: Base64,
    #[serde(default)]
    grant_tokens: Vec<String>,
    #[serde(default)]
    dry_run: bool,
}

impl Service {
    pub(super) fn generate_mac(&self, caller: &str, body: &[u8]) -> Result<Answer, ApiError> {
        let request: GenerateMac = parse(body)?;
        refuse_grants(&request.grant_tokens)?;
        check_message(&request.message)?;
        check_algorithm(&request.mac_algorithm)?;
        let key = self.usable_key(&request.key_id, caller, "kms:GenerateMac", &Context::new())?;
        let arn = self.arn(&key.id);
        let mac = mac_of(&key, &arn, &request.mac_algorithm, "GenerateMac")?;
        refuse_dry_run(request.dry_run)?;
        let mac = mac.chain_update(request.message.0.as_slice()).finalize().into_bytes();
        answer(&json!({ "KeyId": arn, "Mac": STANDARD.encode(mac), "MacAlgorithm": HMAC }))
    }

    pub(super) fn verify_mac(&self, caller: &str, body: &[u8]) -> Result<Answer, ApiError> {
        let request: VerifyMac = parse(body)?;
        refuse_grants(&request.grant_tokens)?;
        check_message(&request.message)?;
        check_algorithm(&request.mac_algorithm)?;
        if request.mac.0.is_empty() || request.mac.0.len() > MAX_MAC {
            return Err(ApiError::validation("Mac must have 1 to 6144 bytes"));
        }
        let key = self.usable_key(&request.key_id, caller, "kms:VerifyMac", &Context::new())?;
        let arn = self.arn(&key.id);
        let mac = mac_of(&key, &arn, &request.mac_algorithm, "VerifyMac")?;
        refuse_dry_run(request.dry_run)?;
        // In constant time, and never a part of it.
        let verified = mac
            .chain_update(request.message.0.as_slice())
            .verify_slice(&request.mac.0);
        verified.map_err(|_| ApiError::caller("KMSInvalidMacException", ""))?;
        answer(&json!({ "KeyId": arn, "MacValid": true, "MacAlgorithm": HMAC }))
    }
}

fn check_message(message: &Base64) -> Result<(), ApiError> {
    if message.0.is_empty() || message.0.len() > MAX_MESSAGE {
        return Err(ApiError::validation("Message must have 1 to 4096 bytes"));
    }
    Ok(())
}

fn check_algorithm(algorithm: &str) -> Result<(), ApiError> {
    match algorithm {
        HMAC | "HMAC_SHA_224" | "HMAC_SHA_384" | "HMAC_SHA_512" => Ok(()),
        _ => Err(ApiError::validation("MacAlgorithm is not one of KMS")),
    }
}

fn mac_of(key: &Key, arn: &str, algorithm: &str, operation: &str) -> Result<Hmac<Sha256>, ApiError> {
    match &key.secret {
        Secret::Hmac(material) if algorithm == HMAC => {
            Hmac::new_from_slice(material.bytes()).map_err(|_| ApiError::internal())
        }
        Secret::Hmac(_) => Err(wrong_algorithm(key, algorithm)),
        Secret::Symmetric(_) | Secret::Rsa(_) => Err(wrong_usage(key, arn, operation)),
    }
}
