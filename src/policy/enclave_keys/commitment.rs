//! How an enclave commits to keys that clients seal to: what evidence is asked for with, and the document that carries both.
//!
//! It verifies nothing, so that the worker that makes such documents links no verifier.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{EnclaveKeys, EnclaveKeysError, MAX_DOCUMENT_BYTES, RawKey};

/// What `user_data` begins with, so that evidence for one purpose is none for another.
pub(super) const PURPOSE: &[u8] = b"sealflow-enclave-keys/1";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Attested {
    pub(super) dataset: String,
    pub(super) labels: Vec<String>,
    pub(super) keys: Vec<RawKey>,
    pub(super) attestation: String,
}

/// What `user_data` is hashed from, as RFC 8785 spells it: members in order, no white space.
#[derive(Serialize)]
struct Committed<'a> {
    dataset: &'a str,
    keys: Vec<String>,
    labels: Vec<&'a str>,
}

/// The `user_data` by which evidence commits to these keys: `sealflow-enclave-keys/1`, and the SHA-256 of
/// `{"dataset":…,"keys":[…],"labels":[…]}` with thumbprints for keys, both lists sorted by their bytes.
///
/// # Errors
/// [`EnclaveKeysError::Malformed`]: never, for keys that could be made.
pub fn user_data(keys: &EnclaveKeys) -> Result<Vec<u8>, EnclaveKeysError> {
    let mut committed = Committed {
        dataset: keys.dataset(),
        keys: keys.keys().iter().map(|key| key.thumbprint().to_string()).collect(),
        labels: keys.labels().iter().map(String::as_str).collect(),
    };
    committed.keys.sort_unstable();
    committed.labels.sort_unstable();
    let json = serde_json::to_vec(&committed).map_err(|_| EnclaveKeysError::Malformed)?;
    Ok([PURPOSE, &Sha256::digest(json)].concat())
}

/// The document of these keys, with evidence that was asked for with their [`user_data`].
///
/// # Errors
/// [`EnclaveKeysError::TooLarge`]
pub fn write(keys: &EnclaveKeys, attestation: &[u8]) -> Result<String, EnclaveKeysError> {
    let document = Attested {
        dataset: keys.dataset.clone(),
        labels: keys.labels.clone(),
        keys: keys.to_raw_keys(),
        attestation: STANDARD.encode(attestation),
    };
    let text = serde_json::to_string(&document).map_err(|_| EnclaveKeysError::Malformed)?;
    if text.len() > MAX_DOCUMENT_BYTES {
        return Err(EnclaveKeysError::TooLarge);
    }
    Ok(text)
}
