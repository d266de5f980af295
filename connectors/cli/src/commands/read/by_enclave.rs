//! Columns of the enclave, for a reader: the worker proves who reads, decides, and seals what it opens to the reader's key; this process
//! carries it, and looks at the worker's signature.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use sealflow::flow::enclave::EnclaveError;
use sealflow::flow::enclave::answer::AnswerClaims;
use sealflow::jose::Thumbprint;
use sealflow::jose::rsa::RsaPublicJwk;
use sealflow::keys::KEYS_HEADER;
use sealflow::pipeline::dead_letter::CANNOT_OPEN;
use sealflow::pipeline::{ColumnDecision, ColumnOutcome, Position, Record};
use sealflow_enclave_host::Supervisor;
use sealflow_enclave_protocol::message::{Outcome, Proof, ReadAnswer, ReadJob, What};
use sealflow_kms::{AwsKms, KmsConfig};

use crate::config::PipelineConfig;
use crate::enclave;
use crate::failure::{Exit, Failure, Result};
use crate::services::Services;

/// How long a worker that is being started, or waits for a service, is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
const BETWEEN_TRIES: Duration = Duration::from_secs(1);

/// The worker, and whose credentials prove who reads.
pub(super) struct ByEnclave {
    worker: Supervisor,
    kms: AwsKms,
    sts_endpoint: Option<String>,
    server_id: String,
    reader: RsaPublicJwk,
    dataset: String,
}

impl ByEnclave {
    /// Starts the worker of that pipeline file, if the policy has columns for it and the answer is to be sealed.
    pub(super) async fn start(
        config: Option<&PipelineConfig>,
        kms: &KmsConfig,
        services: &Services,
        reader: Option<&RsaPublicJwk>,
    ) -> Result<Option<Self>> {
        let (Some(reader), Some(section)) = (reader, config.and_then(|config| config.enclave.as_ref())) else {
            return Ok(None);
        };
        let Some(worker) = enclave::start(Some(section), kms, services).await? else {
            return Ok(None);
        };
        let Some(server_id) = section.server_id.clone() else {
            return Err(Failure::config(
                "enclave.server_id: the worker has to be shown who reads, by a request that names it",
                "write the `sts.server_id` of the worker's configuration",
            ));
        };
        let client = AwsKms::new(kms)
            .await
            .map_err(|error| Failure::config(format_args!("kms.{error}"), "correct the `kms` section"))?;
        let endpoint = kms
            .sts_endpoint
            .as_deref()
            .map(|endpoint| endpoint.trim_end_matches('/').to_owned());
        Ok(Some(Self {
            worker,
            kms: client,
            sts_endpoint: endpoint,
            server_id,
            reader: reader.clone(),
            dataset: services.policy.policy().dataset.clone(),
        }))
    }

    /// The records with what the worker put in the places of its columns, and what it decided.
    pub(super) async fn open(
        &self,
        mut records: Vec<Record>,
        purpose: Option<&str>,
    ) -> Result<(Vec<Record>, Vec<ColumnDecision>)> {
        let mut partitions: BTreeMap<(String, i32), Vec<usize>> = BTreeMap::new();
        for (n, record) in records.iter().enumerate().filter(|(_, record)| record.value.is_some()) {
            let at = &record.position;
            partitions
                .entry((at.topic.to_string(), at.partition))
                .or_default()
                .push(n);
        }
        let mut decisions = Vec::new();
        for numbers in partitions.into_values() {
            decisions.extend(self.open_some(&mut records, &numbers, purpose).await?);
        }
        Ok((records, decisions))
    }

    /// Those of one partition.
    async fn open_some(
        &self,
        records: &mut [Record],
        numbers: &[usize],
        purpose: Option<&str>,
    ) -> Result<Vec<ColumnDecision>> {
        let commits_to = Some(self.reader.thumbprint());
        let presigned = self.kms.presign_identity(
            self.sts_endpoint.as_deref(),
            &self.server_id,
            commits_to,
            SystemTime::now(),
        );
        let presigned = presigned.await.map_err(|error| {
            let help = error.help();
            Failure::new(Exit::NotPermitted, error, help)
        })?;
        let mut nonce = [0; 32];
        getrandom::fill(&mut nonce)
            .map_err(|_| Failure::new(Exit::Internal, "there are no random numbers", "try again"))?;
        let jwk = self.reader.to_json();
        let mut envelopes: Vec<&[u8]> = Vec::new();
        for number in numbers {
            let headers = records[*number]
                .headers
                .iter()
                .filter(|header| header.name == KEYS_HEADER);
            envelopes.extend(headers.filter_map(|header| header.value.as_deref()));
        }
        envelopes.sort_unstable();
        envelopes.dedup();
        let values = numbers
            .iter()
            .map(|number| records[*number].value.as_deref().unwrap_or_default());
        let job = ReadJob {
            dataset: &self.dataset,
            purpose,
            proof: Proof::Sts(presigned.expose()),
            seal_to: jwk.as_bytes(),
            nonce: &nonce,
            envelopes,
            what: What::Records(values.collect()),
        };
        let (frame, worker) = self.asked(&job).await?;
        let not_its = || {
            Failure::new(
                Exit::NotPermitted,
                "the answer is not the enclave worker's to this question",
                "look at the log of the worker",
            )
        };
        let answer = ReadAnswer::read(&frame.body).map_err(|_| not_its())?;
        let signer: Thumbprint = worker.signer().parse().map_err(|_| not_its())?;
        let question = (self.dataset.as_str(), self.reader.thumbprint(), &nonce[..]);
        if answer.shown.len() != numbers.len() {
            return Err(not_its());
        }
        AnswerClaims::verify(answer.proof, signer, question, &answer.shown).map_err(|_| not_its())?;
        let shown: Vec<Option<bytes::Bytes>> = answer
            .shown
            .iter()
            .map(|shown| shown.map(bytes::Bytes::copy_from_slice))
            .collect();
        let ends = |records: &[Record]| -> Option<(Position, Position)> {
            let (first, last) = (numbers.first()?, numbers.last()?);
            Some((records[*first].position.clone(), records[*last].position.clone()))
        };
        let mut decisions = Vec::new();
        if let Some((first, last)) = ends(records) {
            decisions.extend(answer.decisions.iter().map(|decision| {
                let outcome = match decision.outcome {
                    Outcome::Opened => ColumnOutcome::Opened,
                    Outcome::Refused => ColumnOutcome::Refused,
                    Outcome::Failed => ColumnOutcome::Failed(CANNOT_OPEN),
                };
                ColumnDecision::new(
                    &decision.label,
                    outcome,
                    decision.because.clone(),
                    decision.count,
                    (&first, &last),
                )
            }));
        }
        for (number, shown) in numbers.iter().zip(shown) {
            // A record that the worker cannot take apart is withheld by the reader behind this too.
            if let Some(shown) = shown {
                records[*number].value = Some(shown);
            }
        }
        Ok(decisions)
    }

    /// As soon as the worker answers.
    async fn asked(
        &self,
        job: &ReadJob<'_>,
    ) -> Result<(
        sealflow_enclave_protocol::frame::Frame,
        std::sync::Arc<sealflow_enclave_host::Connection>,
    )> {
        let started = tokio::time::Instant::now();
        loop {
            match self.worker.read(job).await {
                Ok(answered) => return Ok(answered),
                Err(error) if error.is_retryable() && started.elapsed() < PATIENCE => {
                    tracing::warn!(%error, "waiting for the enclave worker");
                    tokio::time::sleep(BETWEEN_TRIES).await;
                }
                Err(error @ EnclaveError::Refused { .. }) => {
                    return Err(Failure::new(
                        Exit::NotPermitted,
                        error,
                        "`sealflow acl why` says what somebody may open",
                    ));
                }
                Err(error) => {
                    return Err(Failure::new(
                        Exit::Unavailable,
                        error,
                        "try again; the log says what the worker waits for",
                    ));
                }
            }
        }
    }
}
