//! From a request of somebody who is proved to what they see, and what is written down of it.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use sealflow::acl::Identity;
use sealflow::audit::{Event, Place};
use sealflow::clock::UnixMillis;
use sealflow::flow::enclave::EnclaveError;
use sealflow::flow::hybrid::AnswerKey;
use sealflow::keys::envelope::KEYS_HEADER;
use sealflow::keys::{DomainKeys, OpeningKeys};
use sealflow::pipeline::{
    ColumnDecision, ColumnOutcome, ENCLAVE_ONLY, EnclaveColumns, Format, Header, OpenedValues, Position, ReadError,
    Reader, Reading, Record, SealedText, Timestamp, TransformError,
};
use sealflow::policy::{PolicySource, PolicySourceError, VerifiedPolicy};
use serde_json::value::RawValue;
use zeroize::{Zeroize as _, Zeroizing};

use crate::answer;
use crate::api::{OpenRequest, Sealed, What};
use crate::identity::Presented;
use crate::problem::{Code, Problem};
use crate::worker::{Asking, AsksForCallers, ForCaller, Voucher, has_columns, parted};

/// Datasets whose compiled policies are kept. Beyond that they are compiled at every request.
pub const MOST_READERS: usize = 1_024;
/// As audit lines name where values were found.
pub(crate) const SOURCE: &str = "request";

/// Opens for whom it may: policies, keys, and the readers made of them.
pub struct Opening {
    policies: Arc<dyn PolicySource>,
    keys: OpeningKeys,
    domains: DomainKeys,
    readers: RwLock<HashMap<String, Readers>>,
    worker: Option<Arc<dyn AsksForCallers>>,
}

/// Readers of one dataset.
#[derive(Clone)]
struct Readers {
    /// To whom columns of the enclave are closed.
    alone: Arc<Reader>,
    /// That leaves them to the worker.
    beside_worker: Arc<Reader>,
}

/// Why nothing was read.
#[derive(Debug)]
pub(crate) enum NotRead {
    /// By the service.
    Read(ReadError),
    /// By the enclave worker.
    Worker(EnclaveError),
}

impl NotRead {
    pub(crate) fn is_retryable(&self) -> bool {
        match self {
            Self::Read(error) => error.is_retryable(),
            Self::Worker(error) => error.is_retryable(),
        }
    }
}

impl From<ReadError> for NotRead {
    fn from(error: ReadError) -> Self {
        Self::Read(error)
    }
}

impl From<EnclaveError> for NotRead {
    fn from(error: EnclaveError) -> Self {
        Self::Worker(error)
    }
}

/// Who asks.
#[derive(Clone, Copy)]
pub(crate) struct Who<'a> {
    pub(crate) identity: &'a Identity,
    /// What proved it, for the worker, which proves it again.
    pub(crate) proof: Option<Presented<'a>>,
}

/// What somebody sees, before it is shown.
pub(crate) struct Seen {
    what: Read,
    /// What the enclave worker vouches for.
    voucher: Option<Voucher>,
    /// Of the audit log.
    pub(crate) events: Vec<Event>,
}

enum Read {
    Values(OpenedValues),
    Records(Reading),
}

/// How often values were opened, refused, and did not open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) opened: u64,
    pub(crate) refused: u64,
    pub(crate) failed: u64,
}

impl Opening {
    /// By these policies, with these keys.
    #[must_use]
    pub fn new(policies: Arc<dyn PolicySource>, keys: OpeningKeys, domains: DomainKeys) -> Self {
        Self {
            policies,
            keys,
            domains,
            readers: RwLock::default(),
            worker: None,
        }
    }

    /// The same with a worker, which opens columns of the enclave.
    #[must_use]
    pub fn with_worker(mut self, worker: Option<Arc<dyn AsksForCallers>>) -> Self {
        self.worker = worker;
        self
    }

    /// Whether the worker runs, if there is to be one.
    #[must_use]
    pub fn has_worker(&self) -> bool {
        self.worker.as_ref().is_none_or(|worker| worker.is_ready())
    }

    /// What `who` sees at `now`. `about` is what the events say beside what was decided.
    pub(crate) async fn read(
        &self,
        request: &OpenRequest<'_>,
        who: Who<'_>,
        now: UnixMillis,
        about: &Event,
    ) -> Result<Seen, NotRead> {
        let readers = self.readers(&request.dataset).await?;
        let asking = self.asking(request, who.proof);
        let who = who.identity;
        let purpose = request.purpose.as_deref();
        let seal_to = match &request.seal_to {
            Some(key) => Some(AnswerKey::new(key, &request.dataset).map_err(|_| no_random())?),
            None => None,
        };
        let seal_to = seal_to.as_ref();
        // By this one it is decided what goes to the worker; whoever opens goes by the newest.
        let policy = self.policies.policy(&request.dataset).await.map_err(ReadError::from)?;
        let asking = asking.filter(|_| has_columns(policy.policy()));
        let reader = match asking {
            Some(_) => &readers.beside_worker,
            None => &readers.alone,
        };
        let (what, voucher) = match &request.what {
            What::Values(values) => {
                let (own, others) = match asking {
                    Some(_) => parted(values, policy.policy()),
                    None => (Vec::new(), (0..values.len()).collect()),
                };
                let texts: Vec<SealedText<'_>> = others.iter().map(|n| sealed_text(&values[*n])).collect();
                // Of those that are the worker's none is here, so that none is left as it is.
                let alone = &readers.alone;
                let mut opened = alone.open_values_to(&texts, who, purpose, now, seal_to).await?;
                let voucher = match asking.filter(|_| !own.is_empty()) {
                    Some(asking) => Some(asking.values(&mut opened, values, (own, &others)).await?),
                    None => None,
                };
                (Read::Values(opened), voucher)
            }
            What::Records { json, keys } => {
                let headers: Vec<Header> = keys.iter().map(|keys| keys_header(keys)).collect();
                let records = (0..).zip(json).map(|(n, json)| record(n, json, &headers)).collect();
                let mut reading = reader.read_to(records, who, purpose, now, seal_to).await?;
                let voucher = match asking {
                    Some(asking) => Some(asking.records(&mut reading, keys).await?),
                    None => None,
                };
                (Read::Records(reading), voucher)
            }
        };
        let mut events = match &what {
            Read::Values(opened) => opened.events(about),
            Read::Records(reading) => reading.events(about),
        };
        for event in &mut events {
            event.place = event.place.as_ref().map(in_request);
        }
        Ok(Seen { what, voucher, events })
    }

    /// The worker, if there is one and the request can be handed on: it needs a key, a nonce, and what proves who asks.
    fn asking<'a>(&'a self, request: &'a OpenRequest<'_>, proof: Option<Presented<'a>>) -> Option<Asking<'a>> {
        Some(Asking {
            worker: self.worker.as_deref()?,
            caller: ForCaller {
                proof: proof?,
                seal_to: request.seal_to.as_ref()?,
                nonce: request.nonce.as_ref()?,
            },
            dataset: &request.dataset,
            purpose: request.purpose.as_deref(),
        })
    }

    /// Whether what was seen may still be shown: no newer policy counts by now, and the lease of this one has not ended.
    pub(crate) async fn check_still(&self, seen: &Seen) -> Result<(), ReadError> {
        let policy = seen.policy();
        let dataset = &policy.policy().dataset;
        let newest = self.policies.policy(dataset).await?;
        if newest.policy().sha256 == policy.policy().sha256 && self.policies.holds(policy) {
            return Ok(());
        }
        // A newer policy, or lease, counts by now: by that one it was not decided.
        Err(other_policy(dataset))
    }

    /// The readers of a dataset that has a policy.
    async fn readers(&self, dataset: &str) -> Result<Readers, ReadError> {
        let kept = self
            .readers
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(dataset)
            .cloned();
        if let Some(readers) = kept {
            return Ok(readers);
        }
        // Names without a policy come from callers in any number: nothing is kept of them.
        self.policies.policy(dataset).await?;
        let reader = |enclave| {
            let (policies, keys) = (Arc::clone(&self.policies), self.keys.clone());
            let reader = Reader::new(dataset, Format::Json, policies, keys, self.domains.clone());
            Arc::new(reader.with_enclave_columns(enclave))
        };
        let made = Readers {
            alone: reader(EnclaveColumns::Masked),
            beside_worker: reader(EnclaveColumns::Left),
        };
        let mut readers = self.readers.write().unwrap_or_else(PoisonError::into_inner);
        if readers.len() < MOST_READERS {
            readers.insert(dataset.to_owned(), made.clone());
        }
        Ok(made)
    }

    /// Lets old keys go: about once a second.
    pub async fn tick(&self) {
        self.keys.tick().await;
    }

    /// The keys, for their counters.
    #[must_use]
    pub fn keys(&self) -> &OpeningKeys {
        &self.keys
    }
}

impl std::fmt::Debug for Opening {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opening").finish_non_exhaustive()
    }
}

/// Another policy than the one by which it was decided.
pub(crate) fn other_policy(dataset: &str) -> ReadError {
    ReadError::Policy(PolicySourceError::Unavailable {
        what: format!("policy of dataset {dataset}"),
        reason: "another one counts since the request began".to_owned(),
    })
}

fn no_random() -> ReadError {
    ReadError::Service(TransformError::Retry {
        reason: "the operating system gives no random numbers".to_owned(),
    })
}

fn sealed_text<'a>(value: &'a Sealed<'_>) -> SealedText<'a> {
    SealedText {
        label: value.label.as_deref(),
        text: &value.value,
    }
}

fn keys_header(value: &[u8]) -> Header {
    Header {
        name: KEYS_HEADER.into(),
        value: Some(Bytes::copy_from_slice(value)),
    }
}

fn record(n: i64, json: &str, headers: &[Header]) -> Record {
    Record {
        position: Position {
            topic: Arc::from(SOURCE),
            partition: 0,
            offset: n,
        },
        timestamp: Timestamp::None,
        key: None,
        value: Some(Bytes::copy_from_slice(json.as_bytes())),
        headers: headers.iter().cloned().collect(),
    }
}

/// A request has no partitions; its values and records are numbered from 0.
fn in_request(place: &Place) -> Place {
    Place {
        source: SOURCE.to_owned(),
        partition: None,
        first: place.first,
        last: place.last,
    }
}

impl Seen {
    fn policy(&self) -> &VerifiedPolicy {
        match &self.what {
            Read::Values(opened) => &opened.policy,
            Read::Records(reading) => &reading.policy,
        }
    }

    /// Version of the policy that decided.
    pub(crate) fn version(&self) -> u64 {
        self.policy().policy().version
    }

    fn decisions(&self) -> &[ColumnDecision] {
        match &self.what {
            Read::Values(opened) => &opened.decisions,
            Read::Records(reading) => &reading.decisions,
        }
    }

    pub(crate) fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for decision in self.decisions() {
            let counted = match decision.outcome {
                ColumnOutcome::Opened => &mut counts.opened,
                ColumnOutcome::Refused => &mut counts.refused,
                ColumnOutcome::Failed(_) => &mut counts.failed,
            };
            *counted += decision.count;
        }
        counts
    }

    /// The answer. Its bytes, and what was opened for it, are wiped when they are dropped.
    pub(crate) fn into_json(mut self) -> Result<Bytes, Problem> {
        let written = self.write();
        self.wipe();
        written.map(Bytes::from_owner)
    }

    fn write(&self) -> Result<Zeroizing<Vec<u8>>, Problem> {
        let policy = self.policy().policy();
        let (mut values, mut records, mut withheld) = (None, None, None);
        let mut length = 512;
        match &self.what {
            Read::Values(opened) => {
                let mut shown = Vec::with_capacity(opened.values.len());
                for value in &opened.values {
                    length += value.len() + 1;
                    shown.push(json(value)?);
                }
                values = Some(shown);
            }
            Read::Records(reading) => {
                let (mut shown, mut not_shown) = (Vec::with_capacity(reading.records.len()), Vec::new());
                for (index, record) in (0..).zip(&reading.records) {
                    match record {
                        Ok(record) => {
                            let value = record.value.as_deref().unwrap_or_default();
                            length += value.len() + 1;
                            let text = std::str::from_utf8(value).map_err(|_| internal())?;
                            shown.push(Some(json(text)?));
                        }
                        Err(why) => {
                            length += 64;
                            shown.push(None);
                            not_shown.push(answer::Withheld { index, code: why.code });
                        }
                    }
                }
                (records, withheld) = (Some(shown), Some(not_shown));
            }
        }
        let mut decisions = Vec::with_capacity(self.decisions().len());
        for decision in self.decisions() {
            // Spelled as JSON, a character takes six bytes at most.
            length += 6 * (decision.label.len() + decision.because.len()) + 128;
            decisions.push(decided(decision));
        }
        let enclave = self.voucher.as_ref().map(|voucher| answer::Enclave {
            indexes: &voucher.indexes,
            proof: &voucher.proof,
            evidence: STANDARD.encode(&voucher.evidence),
        });
        if let Some(enclave) = &enclave {
            length += enclave.proof.len() + enclave.evidence.len() + 24 * enclave.indexes.len() + 128;
        }
        let opened = answer::Opened {
            dataset: &policy.dataset,
            policy_version: policy.version,
            values,
            records,
            withheld,
            decisions,
            enclave,
        };
        // Long enough: a vector that grows leaves a copy behind that nobody wipes.
        let mut bytes = Zeroizing::new(Vec::with_capacity(length));
        serde_json::to_writer(&mut *bytes, &opened).map_err(|_| internal())?;
        Ok(bytes)
    }

    /// Takes what was opened out of memory, as far as it is ours alone.
    fn wipe(&mut self) {
        match &mut self.what {
            Read::Values(opened) => opened.values.iter_mut().for_each(zeroize::Zeroize::zeroize),
            Read::Records(reading) => {
                for record in reading.records.iter_mut().flatten() {
                    if let Some(Ok(mut value)) = record.value.take().map(Bytes::try_into_mut) {
                        value.as_mut().zeroize();
                    }
                }
            }
        }
    }
}

fn json(text: &str) -> Result<&RawValue, Problem> {
    serde_json::from_str(text).map_err(|_| internal())
}

fn decided(decision: &ColumnDecision) -> answer::Decision<'_> {
    let (outcome, code) = match decision.outcome {
        ColumnOutcome::Opened => (answer::Outcome::Opened, None),
        ColumnOutcome::Refused => (answer::Outcome::Refused, None),
        ColumnOutcome::Failed(code) => (answer::Outcome::Failed, Some(code)),
    };
    answer::Decision {
        label: &decision.label,
        outcome,
        code,
        // Why a value did not open may name keys of the KMS and other datasets: that is for the service's log.
        because: match decision.outcome {
            ColumnOutcome::Failed(ENCLAVE_ONLY) => {
                "only the enclave opens values of this column: ask with `seal_to` and `nonce`, of a service that has a worker"
            }
            ColumnOutcome::Failed(_) => "the value does not open; the service's operator finds more in the audit log",
            _ => &decision.because,
        },
        count: decision.count,
    }
}

pub(crate) fn internal() -> Problem {
    Problem::new(
        Code::Internal,
        "a bug of this service",
        "report it with the time of the request",
    )
}

/// Why nothing was read, for the caller. What the operator has to mend is in the log.
pub(crate) fn unread(error: &NotRead) -> Problem {
    let error = match error {
        NotRead::Read(error) => error,
        NotRead::Worker(error) => return by_worker(error),
    };
    match error {
        ReadError::Policy(PolicySourceError::Missing { .. }) => {
            let help = "check the dataset's name; its owner publishes the policy";
            Problem::new(Code::PolicyMissing, "there is no policy of that dataset", help)
        }
        ReadError::Policy(error @ PolicySourceError::Untrusted { help, .. }) => {
            Problem::new(Code::PolicyUnusable, error.to_string(), help)
        }
        ReadError::Policy(error @ PolicySourceError::NotPermitted { .. }) => {
            tracing::warn!(%error, "a policy cannot be read");
            let help = "the service's operator has to let it read the catalogue";
            Problem::new(Code::PolicyUnusable, "the policy cannot be read by this service", help)
        }
        ReadError::Service(TransformError::Stop { reason, help, .. }) => {
            tracing::warn!(reason, help, "nothing can be opened");
            let detail =
                "a key service or the catalogue refuses this service, or the policy asks for what it cannot do";
            Problem::new(
                Code::ServiceUnusable,
                detail,
                "the service's operator finds the reason in its log",
            )
        }
        ReadError::Policy(error) => {
            tracing::warn!(%error, "a policy cannot be fetched");
            Problem::new(
                Code::PolicyUnavailable,
                "the policy cannot be fetched at the moment",
                "try again",
            )
            .retry_after(1)
        }
        error => {
            tracing::warn!(%error, "a service is away");
            let detail = "the key service or the catalogue does not answer at the moment";
            Problem::new(Code::ServiceUnavailable, detail, "try again").retry_after(1)
        }
    }
}

/// What the worker said is for the operator: it may name keys.
fn by_worker(error: &EnclaveError) -> Problem {
    tracing::warn!(%error, "the enclave worker opens nothing");
    match error {
        EnclaveError::Unavailable { .. } | EnclaveError::Unrecorded { .. } => {
            let detail = "the enclave worker does not answer at the moment, or waits for a service";
            Problem::new(Code::EnclaveUnavailable, detail, "try again").retry_after(1)
        }
        EnclaveError::Refused { .. } => Problem::new(
            Code::EnclaveRefused,
            "the enclave does not take the proof of who asks, or refuses what is asked",
            "the proof has to commit to `seal_to`, and to name the audience or server id that is measured with the enclave; the \
             service's operator finds the reason in its log",
        ),
        _ => Problem::new(
            Code::EnclaveUnusable,
            "the enclave's answer is not one to this question",
            "the service's operator finds the reason in its log",
        ),
    }
}
