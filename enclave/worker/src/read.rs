//! Reading inside the worker: who reads is proved here, the ACL of the signed policy is held against that here, and what is opened
//! leaves sealed to the reader's own key, under a signature that repeats the reader's nonce.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use sealflow::audit::{Event, InstanceId, Journal, Sealing, Verdict};
use sealflow::clock::Clock;
use sealflow::flow::enclave::answer::AnswerClaims;
use sealflow::flow::hybrid::AnswerKey;
use sealflow::jose::rsa::RsaPublicJwk;
use sealflow::jose::{JwsType, PrivateJwk, jws};
use sealflow::keys::envelope::KEYS_HEADER;
use sealflow::keys::{DomainKeys, OpeningKeys};
use sealflow::pipeline::{
    ColumnDecision, ColumnOutcome, EnclaveColumns, Format, Header, Position, ReadError, Reader, Record, SealedText,
    Timestamp,
};
use sealflow::policy::PolicySource;
use sealflow_enclave_protocol::message::{Decision, Failure, FailureKind, Outcome, ReadAnswer, ReadJob, What};
use zeroize::Zeroizing;

use crate::identity::{Proven, Prover, refused};

/// Datasets whose compiled policies are kept.
const MOST_READERS: usize = 64;

/// Opens for readers.
pub struct Reading {
    policies: Arc<dyn PolicySource>,
    keys: OpeningKeys,
    domains: DomainKeys,
    prover: Prover,
    signer: Arc<PrivateJwk>,
    clock: Arc<dyn Clock>,
    readers: Mutex<HashMap<String, Arc<Reader>>>,
}

/// What is answered, and what is written down of it.
pub struct Read {
    /// The body of the answer.
    pub body: Zeroizing<Vec<u8>>,
    /// The decisions.
    pub events: Vec<Event>,
}

impl Reading {
    /// By these policies, with these keys.
    #[must_use]
    pub fn new(
        (policies, keys, domains): (Arc<dyn PolicySource>, OpeningKeys, DomainKeys),
        prover: Prover,
        signer: Arc<PrivateJwk>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            policies,
            keys,
            domains,
            prover,
            signer,
            clock,
            readers: Mutex::default(),
        }
    }

    /// Opens what a proved reader may see.
    ///
    /// # Errors
    /// [`Failure`], and what is to be written down of it.
    pub async fn read(&self, job: &ReadJob<'_>) -> Result<Read, (Failure, Vec<Event>)> {
        let refused = |failure: Failure| {
            let mut event = Event::new(self.clock.now(), Verdict::Refused, failure.reason.clone());
            event.dataset = Some(job.dataset.to_owned());
            (failure, vec![event])
        };
        let (proven, key) = self.proven(job).await.map_err(refused)?;
        self.opened(job, &proven, &key).await.map_err(|failure| {
            let (failure, mut events) = refused(failure);
            events[0].principal = Some(proven.identity.to_string());
            events[0].proof = Some(proven.proof);
            (failure, events)
        })
    }

    /// Who reads, and the key that their proof commits to.
    async fn proven(&self, job: &ReadJob<'_>) -> Result<(Proven, RsaPublicJwk), Failure> {
        let key = RsaPublicJwk::from_json(job.seal_to).map_err(refused)?;
        let proven = self.prover.prove(&job.proof).await?;
        if proven.commits_to != Some(key.thumbprint()) {
            // The host could have put its own key into the request.
            return Err(refused(
                "what proves who reads does not commit to the key that the answer is to be sealed to",
            ));
        }
        Ok((proven, key))
    }

    async fn opened(&self, job: &ReadJob<'_>, proven: &Proven, key: &RsaPublicJwk) -> Result<Read, Failure> {
        let reader = self.reader(job.dataset).await?;
        let seal_to = AnswerKey::new(key, job.dataset).map_err(|_| unavailable("there are no random numbers"))?;
        let now = self.clock.now();
        let about = Event {
            principal: Some(proven.identity.to_string()),
            proof: Some(proven.proof),
            purpose: job.purpose.map(str::to_owned),
            ..Event::new(now, Verdict::Refused, "")
        };
        let (who, purpose) = (&proven.identity, job.purpose);
        let (shown, decisions, policy, events) = match &job.what {
            What::Values(values) => {
                let texts: Vec<SealedText<'_>> = values
                    .iter()
                    .map(|(label, text)| SealedText { label: *label, text })
                    .collect();
                let headers = headers(&job.envelopes);
                let opened = reader
                    .open_values_with(&texts, &headers, who, purpose, now, Some(&seal_to))
                    .await;
                let opened = opened.map_err(|error| unread(&error))?;
                let events = opened.events(&about);
                let shown: Vec<Option<Bytes>> = opened.values.into_iter().map(|text| Some(Bytes::from(text))).collect();
                (shown, opened.decisions, opened.policy, events)
            }
            What::Records(records) => {
                let headers = headers(&job.envelopes);
                let records = (0..).zip(records).map(|(n, json)| record(n, json, &headers)).collect();
                let reading = reader.read_to(records, who, purpose, now, Some(&seal_to)).await;
                let reading = reading.map_err(|error| unread(&error))?;
                let events = reading.events(&about);
                let shown = reading
                    .records
                    .iter()
                    .map(|record| record.as_ref().ok().and_then(|record| record.value.clone()));
                (shown.collect(), reading.decisions, reading.policy, events)
            }
        };
        // While keys were fetched the policy, its lease or the proof may have ended.
        if !self.policies.holds(&policy) {
            return Err(unavailable("the lease of the policy ended meanwhile"));
        }
        if self.clock.now() >= proven.expires {
            return Err(refused("what proves who reads ended meanwhile"));
        }
        let borrowed: Vec<Option<&[u8]>> = shown.iter().map(Option::as_deref).collect();
        let claims = AnswerClaims::of(
            job.dataset,
            key.thumbprint(),
            job.nonce,
            policy.policy().version,
            now,
            &borrowed,
        );
        let proof = jws::sign(JwsType::EnclaveAnswer, &claims.to_json(), &self.signer);
        let proof = proof.map_err(|_| unavailable("the answer cannot be signed"))?;
        let answer = ReadAnswer {
            policy_version: policy.policy().version,
            shown: borrowed,
            decisions: decisions.iter().map(decision).collect(),
            proof: &proof,
        };
        Ok(Read {
            body: answer.to_body(),
            events,
        })
    }

    /// The reader of a dataset that has a policy.
    async fn reader(&self, dataset: &str) -> Result<Arc<Reader>, Failure> {
        let readers = || self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reader) = readers().get(dataset) {
            return Ok(Arc::clone(reader));
        }
        // Names without a policy come from the host in any number: nothing is kept of them.
        let policy = self.policies.policy(dataset).await;
        policy.map_err(|error| unread(&ReadError::Policy(error)))?;
        let reader = Reader::new(
            dataset,
            Format::Json,
            Arc::clone(&self.policies),
            self.keys.clone(),
            self.domains.clone(),
        );
        let reader = Arc::new(reader.with_enclave_columns(EnclaveColumns::Only));
        let mut readers = readers();
        if readers.len() < MOST_READERS {
            readers.insert(dataset.to_owned(), Arc::clone(&reader));
        }
        Ok(reader)
    }
}

impl fmt::Debug for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reading").finish_non_exhaustive()
    }
}

fn headers(envelopes: &[&[u8]]) -> Vec<Header> {
    let header = |value: &&[u8]| Header {
        name: KEYS_HEADER.into(),
        value: Some(Bytes::copy_from_slice(value)),
    };
    envelopes.iter().map(header).collect()
}

fn record(n: i64, json: &[u8], headers: &[Header]) -> Record {
    Record {
        position: Position {
            topic: Arc::from("request"),
            partition: 0,
            offset: n,
        },
        timestamp: Timestamp::None,
        key: None,
        value: Some(Bytes::copy_from_slice(json)),
        headers: headers.iter().cloned().collect(),
    }
}

fn decision(decision: &ColumnDecision) -> Decision {
    Decision {
        label: decision.label.clone(),
        outcome: match decision.outcome {
            ColumnOutcome::Opened => Outcome::Opened,
            ColumnOutcome::Refused => Outcome::Refused,
            ColumnOutcome::Failed(_) => Outcome::Failed,
        },
        because: match decision.outcome {
            // One reason for whatever is wrong with a ciphertext.
            ColumnOutcome::Failed(code) => code.to_owned(),
            _ => decision.because.clone(),
        },
        count: decision.count,
    }
}

fn unread(error: &ReadError) -> Failure {
    Failure {
        kind: match error.is_retryable() {
            true => FailureKind::Unavailable,
            false => FailureKind::Refused,
        },
        reason: error.to_string(),
    }
}

fn unavailable(reason: &str) -> Failure {
    Failure {
        kind: FailureKind::Unavailable,
        reason: reason.to_owned(),
    }
}

/// The worker's own audit log: a chain whose checkpoints its attested key signs. The host keeps the lines, and can lose them; it cannot
/// change one, or leave one out between others, without a trace.
#[derive(Debug)]
pub struct Audit(Mutex<Journal>);

impl Audit {
    /// A new chain, and its first lines.
    ///
    /// # Errors
    /// [`Failure`]
    pub fn start(signer: &Arc<PrivateJwk>, clock: &dyn Clock) -> Result<(Self, Vec<String>), Failure> {
        let sealing = Sealing {
            key: Arc::clone(signer),
            every: u64::MAX,
            span: Duration::MAX,
        };
        let instance = InstanceId::random().map_err(|_| unavailable("there are no random numbers"))?;
        let started = Journal::start(instance, Some("enclave".to_owned()), sealing, clock.now());
        let (journal, lines) = started.map_err(|_| unsigned())?;
        Ok((Self(Mutex::new(journal)), lines.lines))
    }

    /// The lines of these decisions, a checkpoint behind them.
    ///
    /// # Errors
    /// [`Failure`]: then nothing is answered.
    pub fn lines(&self, events: Vec<Event>, clock: &dyn Clock) -> Result<Vec<String>, Failure> {
        let mut journal = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = clock.now();
        let mut lines = journal.append(events, now).map_err(|_| unsigned())?.lines;
        lines.extend(journal.end(now).map_err(|_| unsigned())?.lines);
        Ok(lines)
    }
}

fn unsigned() -> Failure {
    unavailable("its audit log cannot be signed")
}
