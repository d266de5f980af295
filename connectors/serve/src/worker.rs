//! Columns of the enclave: a request's values on their way to the worker, and what the worker answers in their places. Who asks, the
//! worker proves by itself, from the same proof; this service can neither open these values nor choose to whom they are sealed.

use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;
use sealflow::flow::enclave::EnclaveError;
use sealflow::jose::rsa::RsaPublicJwk;
use sealflow::pipeline::{
    ForWorker, OpenedValues, Position, Reading, SealedText, Withheld, WorkerAnswer, WorkerQuestion,
};
use sealflow::policy::{Flow, Policy};

use crate::api::{Nonce, Sealed};
use crate::identity::Presented;
use crate::open::{NotRead, SOURCE, other_policy};

/// Code of a record that the worker cannot take apart.
const NOT_BY_WORKER: &str = "enclave-withheld";

/// The enclave worker.
#[async_trait]
pub trait AsksForCallers: Send + Sync + fmt::Debug {
    /// What it answers, believed as it is signed, and evidence of the key that signed it, with the caller's nonce.
    ///
    /// # Errors
    /// [`EnclaveError`]
    async fn ask(&self, question: &WorkerQuestion<'_>, caller: ForCaller<'_>) -> Result<Vouched, EnclaveError>;

    /// Whether it is there, attested, and answers.
    fn is_ready(&self) -> bool;
}

/// For whom the worker is asked.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct ForCaller<'a> {
    /// What proves who asks, as it came.
    pub proof: Presented<'a>,
    /// The key that the answer is sealed to.
    pub seal_to: &'a RsaPublicJwk,
    /// What answer and evidence repeat.
    pub nonce: &'a Nonce,
}

/// An answer, and what proves to the caller whose it is.
#[derive(Clone, Debug)]
pub struct Vouched {
    /// The answer.
    pub answer: WorkerAnswer,
    /// An attestation document that binds the key which signed it.
    pub evidence: Vec<u8>,
}

/// What the worker vouches for in an answer.
#[derive(Debug)]
pub(crate) struct Voucher {
    /// Numbers of the values or records of the request.
    pub(crate) indexes: Vec<usize>,
    pub(crate) proof: String,
    pub(crate) evidence: Vec<u8>,
}

/// The worker, and for whom it is asked.
#[derive(Clone, Copy)]
pub(crate) struct Asking<'a> {
    pub(crate) worker: &'a dyn AsksForCallers,
    pub(crate) caller: ForCaller<'a>,
    pub(crate) dataset: &'a str,
    pub(crate) purpose: Option<&'a str>,
}

/// Numbers of the values that name a column of the enclave, and of all others.
pub(crate) fn parted(values: &[Sealed<'_>], policy: &Policy) -> (Vec<usize>, Vec<usize>) {
    let is_of_enclave = |label: &str| {
        let label = policy.previous.labels.get(label).map_or(label, String::as_str);
        let mut rules = policy.columns.iter();
        rules.any(|rule| rule.label == label && rule.flow == Flow::Enclave)
    };
    (0..values.len()).partition(|n| values[*n].label.as_deref().is_some_and(is_of_enclave))
}

/// Whether records of the dataset may hold values that only the enclave opens.
pub(crate) fn has_columns(policy: &Policy) -> bool {
    policy.columns.iter().any(|rule| rule.flow == Flow::Enclave)
}

impl Asking<'_> {
    async fn ask(&self, what: ForWorker<'_>, envelopes: Vec<&[u8]>, policy_version: u64) -> Result<Vouched, NotRead> {
        let question = WorkerQuestion {
            dataset: self.dataset,
            purpose: self.purpose,
            envelopes,
            what,
        };
        let vouched = self.worker.ask(&question, self.caller).await?;
        if vouched.answer.shown.len() != question.what.len() {
            return Err(NotRead::Worker(EnclaveError::BadAnswer {
                reason: "it shows something else than was asked for".to_owned(),
            }));
        }
        // What is shown is by one policy.
        match vouched.answer.policy_version == policy_version {
            true => Ok(vouched),
            false => Err(NotRead::Read(other_policy(self.dataset))),
        }
    }

    /// Puts the worker's answers into those of the service, whose values are `others` of the request.
    pub(crate) async fn values(
        &self,
        opened: &mut OpenedValues,
        values: &[Sealed<'_>],
        (own, others): (Vec<usize>, &[usize]),
    ) -> Result<Voucher, NotRead> {
        let texts = own.iter().map(|n| SealedText {
            label: values[*n].label.as_deref(),
            text: &values[*n].value,
        });
        let version = opened.policy.policy().version;
        let vouched = self
            .ask(ForWorker::Values(texts.collect()), Vec::new(), version)
            .await?;
        let mut shown = vec![String::new(); values.len()];
        for (n, text) in others.iter().zip(opened.values.drain(..)) {
            shown[*n] = text;
        }
        for (n, bytes) in own.iter().zip(&vouched.answer.shown) {
            let text = bytes.as_deref().unwrap_or(b"null");
            let text = std::str::from_utf8(text).map_err(|_| no_json())?;
            text.clone_into(&mut shown[*n]);
        }
        opened.values = shown;
        for decision in &mut opened.decisions {
            decision.first = numbered(others, &decision.first);
            decision.last = numbered(others, &decision.last);
        }
        decide(&mut opened.decisions, &vouched.answer, &own);
        Ok(vouched.by(own))
    }

    /// Puts what the worker makes of the records in their places. The service has opened its own columns before: what the worker signs
    /// is what is shown.
    pub(crate) async fn records(&self, reading: &mut Reading, keys: &[Vec<u8>]) -> Result<Voucher, NotRead> {
        let shown = reading.records.iter().enumerate();
        let own: Vec<usize> = shown.filter(|(_, record)| record.is_ok()).map(|(n, _)| n).collect();
        let records = reading.records.iter().flatten();
        let json: Vec<Bytes> = records.filter_map(|record| record.value.clone()).collect();
        let json = json.iter().map(AsRef::as_ref).collect();
        let envelopes = keys.iter().map(Vec::as_slice).collect();
        let version = reading.policy.policy().version;
        let vouched = self.ask(ForWorker::Records(json), envelopes, version).await?;
        for (n, bytes) in own.iter().zip(&vouched.answer.shown) {
            let record = &mut reading.records[*n];
            match (bytes, record) {
                (Some(bytes), Ok(record)) => record.value = Some(bytes.clone()),
                (_, record) => *record = Err(Withheld::new(position(*n), NOT_BY_WORKER)),
            }
        }
        decide(&mut reading.decisions, &vouched.answer, &own);
        Ok(vouched.by(own))
    }
}

impl Vouched {
    fn by(self, indexes: Vec<usize>) -> Voucher {
        Voucher {
            indexes,
            proof: self.answer.proof,
            evidence: self.evidence,
        }
    }
}

fn decide(decisions: &mut Vec<sealflow::pipeline::ColumnDecision>, answer: &WorkerAnswer, own: &[usize]) {
    if let (Some(first), Some(last)) = (own.first(), own.last()) {
        let (first, last) = (position(*first), position(*last));
        decisions.extend(answer.decisions.iter().map(|decision| decision.between(&first, &last)));
    }
}

/// The place in the request of what was counted without the worker's values.
fn numbered(others: &[usize], at: &Position) -> Position {
    let n = usize::try_from(at.offset).ok().and_then(|n| others.get(n)).copied();
    Position {
        offset: n.and_then(|n| i64::try_from(n).ok()).unwrap_or(at.offset),
        ..at.clone()
    }
}

fn position(n: usize) -> Position {
    Position {
        topic: SOURCE.into(),
        partition: 0,
        offset: i64::try_from(n).unwrap_or(i64::MAX),
    }
}

fn no_json() -> NotRead {
    NotRead::Worker(EnclaveError::BadAnswer {
        reason: "what it shows is no JSON".to_owned(),
    })
}

#[cfg(test)]
#[path = "worker_tests.rs"]
mod tests;
