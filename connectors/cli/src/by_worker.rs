//! A reader's question on its way to the enclave worker, and the answer: believed only as the worker has signed it.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use sealflow::flow::enclave::{EnclaveError, EnclaveWorker as _};
use sealflow::jose::rsa::RsaPublicJwk;
use sealflow::pipeline::dead_letter::CANNOT_OPEN;
use sealflow::pipeline::{ColumnOutcome, ForWorker, WorkerAnswer, WorkerDecision, WorkerQuestion};
use sealflow_enclave_host::{Connection, Supervisor};
use sealflow_enclave_protocol::message::{Decision, Outcome, Proof, ReadAnswer, ReadJob, What};
use sealflow_serve::identity::Presented;
use sealflow_serve::{AsksForCallers, ForCaller, Vouched};

use crate::failure::{Exit, Failure};

/// The exit code of what a worker did not do.
pub(crate) fn exit_of(error: &EnclaveError) -> Exit {
    match error {
        EnclaveError::Refused { .. } | EnclaveError::BadAnswer { .. } => Exit::NotPermitted,
        EnclaveError::Unrecorded { .. } => Exit::Io,
        _ => Exit::Unavailable,
    }
}

/// The same as a command's failure. `refused` says what to do where the worker said no.
pub(crate) fn failure(error: &EnclaveError, refused: &str) -> Failure {
    let help = match error {
        EnclaveError::Refused { .. } => refused,
        EnclaveError::Unrecorded { .. } => "make room on the disk of `enclave.audit`, or name another file",
        EnclaveError::BadAnswer { .. } => "look at the log of the worker",
        _ => "try again; the log says what the worker waits for",
    };
    Failure::new(exit_of(error), error, help)
}

/// Who asks: what proves it, the key that it commits to, and what the answer repeats.
#[derive(Clone, Copy)]
pub(crate) struct WhoAsks<'a> {
    pub(crate) proof: &'a Proof<'a>,
    pub(crate) seal_to: &'a RsaPublicJwk,
    pub(crate) nonce: &'a [u8],
}

/// What the worker answers, and the connection that it came by.
pub(crate) async fn ask(
    worker: &Supervisor,
    question: &WorkerQuestion<'_>,
    who: WhoAsks<'_>,
) -> Result<(WorkerAnswer, Arc<Connection>), EnclaveError> {
    let jwk = who.seal_to.to_json();
    let job = ReadJob {
        dataset: question.dataset,
        purpose: question.purpose,
        proof: who.proof.clone(),
        seal_to: jwk.as_bytes(),
        nonce: who.nonce,
        envelopes: question.envelopes.clone(),
        what: match &question.what {
            ForWorker::Values(values) => What::Values(values.iter().map(|value| (value.label, value.text)).collect()),
            ForWorker::Records(records) => What::Records(records.clone()),
        },
    };
    let (frame, connection) = worker.read(&job).await?;
    let answer = ReadAnswer::read(&frame.body).map_err(|_| no_answer())?;
    let answer = WorkerAnswer {
        policy_version: answer.policy_version,
        shown: answer
            .shown
            .iter()
            .map(|shown| shown.map(Bytes::copy_from_slice))
            .collect(),
        decisions: answer.decisions.into_iter().map(decision).collect(),
        proof: answer.proof.to_owned(),
        signer: connection.signer().parse().map_err(|_| no_answer())?,
    };
    let asked = (question.dataset, who.seal_to.thumbprint(), who.nonce);
    answer.check(question.what.len(), asked)?;
    Ok((answer, connection))
}

fn decision(decision: Decision) -> WorkerDecision {
    WorkerDecision {
        label: decision.label,
        outcome: match decision.outcome {
            Outcome::Opened => ColumnOutcome::Opened,
            Outcome::Refused => ColumnOutcome::Refused,
            Outcome::Failed => ColumnOutcome::Failed(CANNOT_OPEN),
        },
        because: decision.because,
        count: decision.count,
    }
}

fn no_answer() -> EnclaveError {
    EnclaveError::BadAnswer {
        reason: "not an answer of this protocol".to_owned(),
    }
}

/// The worker of a reading service.
#[derive(Debug)]
pub(crate) struct ForCallers(pub(crate) Supervisor);

#[async_trait]
impl AsksForCallers for ForCallers {
    async fn ask(&self, question: &WorkerQuestion<'_>, caller: ForCaller<'_>) -> Result<Vouched, EnclaveError> {
        let proof = match caller.proof {
            Presented::Token(token) => Proof::Oidc(token),
            Presented::Request(request) => Proof::Sts(request),
        };
        let who = WhoAsks {
            proof: &proof,
            seal_to: caller.seal_to,
            nonce: caller.nonce,
        };
        let (answer, connection) = ask(&self.0, question, who).await?;
        Ok(Vouched {
            answer,
            evidence: connection.evidence(*caller.nonce).await?,
        })
    }

    fn is_ready(&self) -> bool {
        self.0.is_ready()
    }
}
