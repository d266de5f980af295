//! Checkpoints: signed statements of how far a chain had come, which also lie elsewhere.
//!
//! Hashes alone find what was changed in the middle of a log. Whoever can write the log could compute them all again,
//! or cut its end off; what the audit key signed, and what lies where they cannot write, stays.

use serde::{Deserialize, Serialize};

use super::line::{InstanceId, LineHash, moment};
use crate::clock::UnixMillis;
use crate::jose::{JwsError, JwsType, PrivateJwk, SelfSigned, Thumbprint, jws};

/// The longest checkpoint as JWS, in bytes. Ours have about 800.
pub const MAX_CHECKPOINT_BYTES: usize = 2_048;

/// That the chain had this line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The chain.
    pub instance: InstanceId,
    /// Number of the line.
    pub seq: u64,
    /// Its hash, and by that of every line before it.
    pub hash: LineHash,
    /// When it was signed.
    pub at: UnixMillis,
}

/// What is signed, as JSON.
#[derive(PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Claims {
    instance: String,
    seq: u64,
    sha256: String,
    at: String,
}

/// Why a text is no checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// Over [`MAX_CHECKPOINT_BYTES`].
    #[error("longer than {MAX_CHECKPOINT_BYTES} bytes")]
    TooLong,
    /// No JWS of ours, or one that was changed.
    #[error(transparent)]
    Jws(#[from] JwsError),
    /// Signed, but not the claims of a checkpoint.
    #[error("the claims of the checkpoint are malformed")]
    Malformed,
}

impl Checkpoint {
    /// Signs it.
    ///
    /// # Errors
    /// [`JwsError`]
    pub fn sign(&self, key: &PrivateJwk) -> Result<String, JwsError> {
        let claims = Claims {
            instance: self.instance.to_string(),
            seq: self.seq,
            sha256: self.hash.to_string(),
            at: moment(self.at),
        };
        // Strings and a number: writing them to memory cannot fail.
        let payload = serde_json::to_vec(&claims).unwrap_or_default();
        jws::sign(JwsType::Audit, &payload, key)
    }

    /// Reads a checkpoint and says who signed it, which says nothing until that key is one that the reader trusts.
    ///
    /// # Errors
    /// [`CheckpointError`]
    pub fn verify(jws: &str) -> Result<(Self, Thumbprint), CheckpointError> {
        if jws.len() > MAX_CHECKPOINT_BYTES {
            return Err(CheckpointError::TooLong);
        }
        let signed = SelfSigned::verify(jws, JwsType::Audit)?;
        let signer = signed.signer();
        let claims: Claims = serde_json::from_slice(&signed.into_payload()).map_err(|_| CheckpointError::Malformed)?;
        let malformed = |_| CheckpointError::Malformed;
        let checkpoint = Self {
            instance: claims.instance.parse().map_err(malformed)?,
            seq: claims.seq,
            hash: claims.sha256.parse().map_err(malformed)?,
            at: claims.at.parse().map_err(|_| CheckpointError::Malformed)?,
        };
        Ok((checkpoint, signer))
    }
}
