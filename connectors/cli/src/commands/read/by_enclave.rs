//! Columns of the enclave, for a reader: the worker proves who reads, decides, and seals what it opens to the reader's key; this process
//! carries it, and looks at the worker's signature.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use sealflow::flow::enclave::EnclaveError;
use sealflow::jose::rsa::RsaPublicJwk;
use sealflow::keys::KEYS_HEADER;
use sealflow::pipeline::{ColumnDecision, ForWorker, Record, WorkerAnswer, WorkerQuestion};
use sealflow::table::AsksWorker;
use sealflow_enclave_host::Supervisor;
use sealflow_enclave_protocol::message::Proof;
use sealflow_kms::{AwsKms, KmsConfig};

use crate::by_worker::{self, WhoAsks, ask};
use crate::config::PipelineConfig;
use crate::enclave;
use crate::failure::{Failure, Result};
use crate::services::Services;

/// How long a worker that is being started, or waits for a service, is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
const BETWEEN_TRIES: Duration = Duration::from_secs(1);

/// The worker, and whose credentials prove who reads.
pub(in crate::commands) struct ByEnclave {
    worker: Supervisor,
    kms: AwsKms,
    sts_endpoint: Option<String>,
    server_id: String,
    reader: RsaPublicJwk,
    dataset: String,
}

impl ByEnclave {
    /// Starts the worker of that pipeline file, if the policy has columns for it and the answer is to be sealed.
    pub(in crate::commands) async fn start(
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
        let question = WorkerQuestion {
            dataset: &self.dataset,
            purpose,
            envelopes,
            what: ForWorker::Records(values.collect()),
        };
        let answer = self
            .ask(&question)
            .await
            .map_err(|error| by_worker::failure(&error, "`sealflow acl why` says what somebody may open"))?;
        let mut decisions = Vec::new();
        if let (Some(first), Some(last)) = (numbers.first(), numbers.last()) {
            let (first, last) = (&records[*first].position, &records[*last].position);
            decisions.extend(answer.decisions.iter().map(|decision| decision.between(first, last)));
        }
        for (number, shown) in numbers.iter().zip(answer.shown) {
            // A record that the worker cannot take apart is withheld by the reader behind this too.
            if let Some(shown) = shown {
                records[*number].value = Some(shown);
            }
        }
        Ok(decisions)
    }

    /// Once, with a fresh proof and nonce.
    async fn ask_once(&self, question: &WorkerQuestion<'_>) -> std::result::Result<WorkerAnswer, EnclaveError> {
        let refused = |reason: String| EnclaveError::Refused { reason };
        let presigned = self.kms.presign_identity(
            self.sts_endpoint.as_deref(),
            &self.server_id,
            Some(self.reader.thumbprint()),
            SystemTime::now(),
        );
        let presigned = presigned
            .await
            .map_err(|error| refused(format!("nothing to show it who reads: {error}")))?;
        let mut nonce = [0; 32];
        getrandom::fill(&mut nonce).map_err(|_| refused("there are no random numbers".to_owned()))?;
        let who = WhoAsks {
            proof: &Proof::Sts(presigned.expose()),
            seal_to: &self.reader,
            nonce: &nonce,
        };
        ask(&self.worker, question, who).await.map(|(answer, _)| answer)
    }
}

#[async_trait]
impl AsksWorker for ByEnclave {
    /// As soon as the worker answers.
    async fn ask(&self, question: &WorkerQuestion<'_>) -> std::result::Result<WorkerAnswer, EnclaveError> {
        let started = tokio::time::Instant::now();
        loop {
            match self.ask_once(question).await {
                Err(error) if error.is_retryable() && started.elapsed() < PATIENCE => {
                    tracing::warn!(%error, "waiting for the enclave worker");
                    tokio::time::sleep(BETWEEN_TRIES).await;
                }
                answered => return answered,
            }
        }
    }
}

impl fmt::Debug for ByEnclave {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ByEnclave")
            .field("dataset", &self.dataset)
            .finish_non_exhaustive()
    }
}
