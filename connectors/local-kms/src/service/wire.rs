//! JSON in and out: what the local KMS reads from a request body and how it writes an answer, plaintext wiped on drop.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sealflow::clock::UnixMillis;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use zeroize::Zeroizing;

use crate::blob::Context;
use crate::error::ApiError;

const MAX_CONTEXT: usize = 8192;

/// JSON in which base64 plaintext may stand, wiped on drop.
pub(crate) type Answer = Zeroizing<Vec<u8>>;

/// Base64 in a request; the bytes are wiped on drop.
pub(super) struct Base64(pub(super) Zeroizing<Vec<u8>>);

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        let bytes = STANDARD
            .decode(text.as_bytes())
            .map_err(|_| serde::de::Error::custom("not base64"))?;
        Ok(Self(Zeroizing::new(bytes)))
    }
}

pub(super) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    // The message of serde_json may quote the input where a string was not expected; positions say enough.
    serde_json::from_slice(body).map_err(|e| match e.classify() {
        serde_json::error::Category::Data => ApiError::validation(format!(
            "a member at line {} column {} is unknown to the local KMS, missing or of the wrong type",
            e.line(),
            e.column()
        )),
        _ => ApiError::caller("SerializationException", "the request is not JSON"),
    })
}

pub(super) fn check_context(context: &Context) -> Result<(), ApiError> {
    let size: usize = context.iter().map(|(name, value)| name.len() + value.len()).sum();
    if size > MAX_CONTEXT {
        return Err(ApiError::validation("EncryptionContext is larger than 8,192 bytes"));
    }
    if context.keys().any(String::is_empty) {
        return Err(ApiError::validation("EncryptionContext has an empty name"));
    }
    Ok(())
}

pub(super) fn refuse_grants(tokens: &[String]) -> Result<(), ApiError> {
    if tokens.is_empty() {
        Ok(())
    } else {
        Err(ApiError::unsupported("the local KMS has no grants"))
    }
}

pub(super) fn refuse_dry_run(dry_run: bool) -> Result<(), ApiError> {
    if !dry_run {
        return Ok(());
    }
    let message = "The request would have succeeded, but the DryRun option is set.";
    Err(ApiError::caller("DryRunOperationException", message))
}

pub(super) fn answer(value: &Value) -> Result<Answer, ApiError> {
    serde_json::to_vec(value)
        .map(Zeroizing::new)
        .map_err(|_| ApiError::internal())
}

/// Joins `parts` into one buffer that is allocated once, so that no half-grown copy stays behind.
pub(super) fn concat(parts: &[&str]) -> Answer {
    let mut bytes = Zeroizing::new(Vec::with_capacity(parts.iter().map(|p| p.len()).sum()));
    for part in parts {
        bytes.extend_from_slice(part.as_bytes());
    }
    bytes
}

/// Seconds since 1970, as the JSON protocol writes timestamps.
#[allow(
    clippy::cast_precision_loss,
    reason = "milliseconds of any real date are far below 2^53"
)]
pub(super) fn seconds(time: UnixMillis) -> f64 {
    time.0 as f64 / 1000.0
}
