//! What a worker's signature over an answer says: whose answer it is, to which question, and what was shown.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::clock::UnixMillis;
use crate::jose::{JwsType, SelfSigned, Thumbprint, base64url};

/// The claims of a JWS of type `sealflow-enclave-answer`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AnswerClaims {
    /// The dataset.
    pub dataset: String,
    /// Thumbprint of the reader's key.
    pub seal_to: String,
    /// The reader's nonce, base64url.
    pub nonce: String,
    /// Version of the policy that decided.
    pub policy_version: u64,
    /// When, seconds since 1970, by the worker's attested time.
    pub iat: u64,
    /// SHA-256 of everything that is shown, base64url: for each value or record a byte 1, its length (u32 little-endian) and itself, or
    /// a byte 0 for one of which nothing is shown.
    pub sha256: String,
}

/// An answer that is not the worker's to this question. It does not say what is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the answer is not the enclave's to this question")]
pub struct NotItsAnswer;

impl AnswerClaims {
    /// About what is shown.
    #[must_use]
    pub fn of(
        dataset: &str,
        seal_to: Thumbprint,
        nonce: &[u8],
        policy_version: u64,
        now: UnixMillis,
        shown: &[Option<&[u8]>],
    ) -> Self {
        Self {
            dataset: dataset.to_owned(),
            seal_to: seal_to.to_string(),
            nonce: base64url(nonce),
            policy_version,
            iat: now.0 / 1_000,
            sha256: base64url(&of_shown(shown)),
        }
    }

    /// As JSON: what is signed.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        // Texts and numbers: nothing that could fail.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Believes an answer: signed by the worker whose key has that thumbprint (which evidence binds), to this question, with exactly
    /// this shown.
    ///
    /// # Errors
    /// [`NotItsAnswer`]
    pub fn verify(
        proof: &str,
        signer: Thumbprint,
        (dataset, seal_to, nonce): (&str, Thumbprint, &[u8]),
        shown: &[Option<&[u8]>],
    ) -> Result<Self, NotItsAnswer> {
        let signed = SelfSigned::verify(proof, JwsType::EnclaveAnswer).map_err(|_| NotItsAnswer)?;
        if signed.signer() != signer {
            return Err(NotItsAnswer);
        }
        let claims: Self = serde_json::from_slice(&signed.into_payload()).map_err(|_| NotItsAnswer)?;
        let is_its = claims.dataset == dataset
            && claims.seal_to == seal_to.to_string()
            && claims.nonce == base64url(nonce)
            && claims.sha256 == base64url(&of_shown(shown));
        if is_its { Ok(claims) } else { Err(NotItsAnswer) }
    }
}

fn of_shown(shown: &[Option<&[u8]>]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for shown in shown {
        match shown {
            None => hash.update([0]),
            Some(bytes) => {
                hash.update([1]);
                hash.update(u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
                hash.update(bytes);
            }
        }
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jose::{PrivateJwk, jws};

    #[test]
    fn an_answer_counts_for_its_question_and_what_it_shows_alone() {
        let (worker, other) = (PrivateJwk::generate().unwrap(), PrivateJwk::generate().unwrap());
        let reader = other.thumbprint();
        let shown: &[Option<&[u8]>] = &[Some(b"\"eyJ\""), None, Some(b"null")];
        let claims = AnswerClaims::of("payments", reader, b"n-1", 3, UnixMillis(1_800_000_000_000), shown);
        let proof = jws::sign(JwsType::EnclaveAnswer, &claims.to_json(), &worker).unwrap();
        let question = ("payments", reader, &b"n-1"[..]);
        assert_eq!(
            AnswerClaims::verify(&proof, worker.thumbprint(), question, shown),
            Ok(claims.clone())
        );
        let bad =
            |signer, question, shown: &[Option<&[u8]>]| AnswerClaims::verify(&proof, signer, question, shown).is_err();
        assert!(bad(other.thumbprint(), question, shown), "of another worker");
        assert!(bad(worker.thumbprint(), ("refunds", reader, b"n-1"), shown));
        assert!(
            bad(worker.thumbprint(), ("payments", worker.thumbprint(), b"n-1"), shown),
            "to another reader"
        );
        assert!(
            bad(worker.thumbprint(), ("payments", reader, b"n-2"), shown),
            "played again"
        );
        assert!(bad(
            worker.thumbprint(),
            question,
            &[Some(b"\"eyJ\""), Some(b""), Some(b"null")]
        ));
        assert!(bad(worker.thumbprint(), question, &[Some(b"\"eyJ\"null"), None]));
        let as_lease = jws::sign(JwsType::Lease, &claims.to_json(), &worker).unwrap();
        assert!(AnswerClaims::verify(&as_lease, worker.thumbprint(), question, shown).is_err());
    }
}
