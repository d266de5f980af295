//! What a host asks the enclave worker for a reader, and what comes back: nothing of it is in clear. Who reads, the worker proves by
//! itself; the host decides nothing here.

use std::fmt;

use bytes::Bytes;

use super::decisions::{ColumnDecision, ColumnOutcome};
use super::read_values::SealedText;
use super::record::Position;
use crate::flow::enclave::EnclaveError;
use crate::flow::enclave::answer::AnswerClaims;
use crate::jose::Thumbprint;

/// Sealed values or records of one dataset, for the worker.
#[derive(Clone)]
pub struct WorkerQuestion<'a> {
    /// The dataset.
    pub dataset: &'a str,
    /// What the data is read for.
    pub purpose: Option<&'a str>,
    /// Values of `sealflow-keys` headers, for keys whose envelopes are not in the catalogue.
    pub envelopes: Vec<&'a [u8]>,
    /// What is to be opened.
    pub what: ForWorker<'a>,
}

/// What the worker is to open.
#[derive(Clone)]
pub enum ForWorker<'a> {
    /// Single values, each with the label that it has to prove.
    Values(Vec<SealedText<'a>>),
    /// JSON records. The worker looks at columns of the enclave alone; everything else stays, byte for byte.
    Records(Vec<&'a [u8]>),
}

impl ForWorker<'_> {
    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Values(values) => values.len(),
            Self::Records(records) => records.len(),
        }
    }

    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Shows how much is asked: records hold fields in clear too.
impl fmt::Debug for WorkerQuestion<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerQuestion")
            .field("dataset", &self.dataset)
            .field("count", &self.what.len())
            .finish_non_exhaustive()
    }
}

/// The worker's answer.
#[derive(Clone)]
pub struct WorkerAnswer {
    /// Version of the policy that decided.
    pub policy_version: u64,
    /// What was given, in order: JWEs in the place of what was opened, and what the ACL says in the place of what was not. `None` for
    /// records that the worker cannot take apart.
    pub shown: Vec<Option<Bytes>>,
    /// What was decided.
    pub decisions: Vec<WorkerDecision>,
    /// The worker's signature over all that is shown: a JWS of type `sealflow-enclave-answer`.
    pub proof: String,
    /// Thumbprint of the key by which the worker signs, as its evidence binds it.
    pub signer: Thumbprint,
}

/// What the worker decided about values of one label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerDecision {
    /// The label.
    pub label: String,
    /// What became of the values.
    pub outcome: ColumnOutcome,
    /// By which rule, or why not.
    pub because: String,
    /// How many.
    pub count: u64,
}

impl WorkerDecision {
    /// The same about values between two records.
    #[must_use]
    pub fn between(&self, first: &Position, last: &Position) -> ColumnDecision {
        ColumnDecision::new(
            &self.label,
            self.outcome,
            self.because.clone(),
            self.count,
            (first, last),
        )
    }
}

impl WorkerAnswer {
    /// Believes the answer to be the worker's, to this question: of that many values or records of `dataset`, for the reader's key, with
    /// the nonce that was sent.
    ///
    /// # Errors
    /// [`EnclaveError::BadAnswer`]
    pub fn check(&self, count: usize, question: (&str, Thumbprint, &[u8])) -> Result<(), EnclaveError> {
        let shown: Vec<Option<&[u8]>> = self.shown.iter().map(Option::as_deref).collect();
        let claims = AnswerClaims::verify(&self.proof, self.signer, question, &shown);
        match claims {
            Ok(claims) if shown.len() == count && claims.policy_version == self.policy_version => Ok(()),
            _ => Err(EnclaveError::BadAnswer {
                reason: "it is not the worker's to this question".to_owned(),
            }),
        }
    }
}

/// Shows none of it.
impl fmt::Debug for WorkerAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerAnswer")
            .field("shown", &self.shown.len())
            .field("decisions", &self.decisions)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::UnixMillis;
    use crate::jose::{JwsType, PrivateJwk, jws};

    #[test]
    fn an_answer_is_believed_as_it_was_asked_for_and_signed_alone() {
        let (worker, reader) = (PrivateJwk::generate().unwrap(), PrivateJwk::generate().unwrap());
        let to = reader.thumbprint();
        let shown: &[Option<&[u8]>] = &[Some(b"\"eyJ\""), None];
        let claims = AnswerClaims::of("payments", to, b"n", 3, UnixMillis(1_800_000_000_000), shown);
        let answer = WorkerAnswer {
            policy_version: 3,
            shown: shown.iter().map(|shown| shown.map(Bytes::from_static)).collect(),
            decisions: Vec::new(),
            proof: jws::sign(JwsType::EnclaveAnswer, &claims.to_json(), &worker).unwrap(),
            signer: worker.thumbprint(),
        };
        let question = ("payments", to, &b"n"[..]);
        assert_eq!(answer.check(2, question), Ok(()));
        assert!(answer.check(1, question).is_err(), "another count");
        assert!(answer.check(2, ("payments", to, b"m")).is_err(), "another nonce");
        let other = WorkerAnswer {
            policy_version: 4,
            ..answer.clone()
        };
        assert!(other.check(2, question).is_err(), "a version that was not signed");
        let mut edited = answer.clone();
        edited.shown[0] = Some(Bytes::from_static(b"\"eyJ.of.the.host\""));
        assert!(edited.check(2, question).is_err());
        assert!(!format!("{answer:?}").contains("eyJ"));
    }
}
