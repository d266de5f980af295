//! The model of a pipeline file. What each section may say is up to the connector that it configures.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use schemars::JsonSchema;
use sealflow::pipeline::{self, BatchLimits, KeysPlacement, OutputLimits};
use sealflow::policy::Pin;
use sealflow::units::Span;
use sealflow_audit::AuditConfig;
use sealflow_kafka::{DeadLetters, KafkaConfig, KafkaSource, KafkaTarget, ReplayMemory};
use sealflow_kms::KmsConfig;
use sealflow_storage::CatalogueConfig;
use serde::Deserialize;

use super::secrets::SecretsConfig;
use super::table::TableTarget;
use crate::enclave::EnclaveConfig;
use crate::telemetry::TelemetryConfig;

/// A pipeline: where records come from, what happens to them, where they go.
#[derive(Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Sealflow pipeline")]
pub(crate) struct PipelineConfig {
    /// Name of the pipeline, `[A-Za-z0-9_-]{1,100}`: part of its transactional id, so never two pipelines of one name.
    pub(crate) name: String,
    /// Whether values are sealed or opened.
    #[serde(default)]
    pub(crate) mode: Mode,
    /// The dataset whose policy counts.
    pub(crate) dataset: String,
    /// What a record's value is.
    #[serde(default)]
    pub(crate) format: Format,
    /// Where key envelopes travel.
    #[serde(default)]
    pub(crate) keys: KeysPlacement,
    /// Where records come from.
    pub(crate) source: Source,
    /// Where they go.
    pub(crate) target: Target,
    /// Where signed policies and key envelopes are kept.
    pub(crate) catalogue: CatalogueConfig,
    /// Whose policies are believed. Only `--dev` goes without.
    #[serde(default)]
    pub(crate) trust: Trust,
    /// How often the catalogue is asked for a newer policy, which is taken in between two batches.
    #[serde(default = "policy_refresh")]
    pub(crate) policy_refresh: Span,
    /// The KMS. Without this section: the AWS credential chain and its region.
    #[serde(default)]
    pub(crate) kms: KmsConfig,
    /// The worker that alone opens columns with `flow: enclave`.
    #[serde(default)]
    pub(crate) enclave: Option<EnclaveConfig>,
    /// Where records go that cannot be sealed (sealed whole; needs `dead_letters` in the policy).
    #[serde(default)]
    pub(crate) dead_letters: Option<DeadLetters>,
    /// Where it is remembered which values of clients were taken: for columns with `client_sealed: once`.
    #[serde(default)]
    pub(crate) replay_memory: Option<ReplayMemory>,
    /// Where refused values of clients are written down, before anything of their batch leaves.
    #[serde(default)]
    pub(crate) audit: Option<AuditConfig>,
    /// When a batch is closed.
    #[serde(default)]
    pub(crate) batch: BatchLimits,
    /// How large records and batches may become.
    #[serde(default)]
    pub(crate) output: OutputLimits,
    /// Threads, each with its own consumer and producer.
    #[serde(default = "one")]
    pub(crate) threads: u16,
    /// Stable name of this process among those that run this pipeline (a StatefulSet's ordinal): two at once fence each other.
    #[serde(default = "instance")]
    pub(crate) instance: String,
    /// The admin port.
    #[serde(default)]
    pub(crate) admin: Admin,
    /// Where traces go.
    #[serde(default)]
    pub(crate) telemetry: TelemetryConfig,
    /// Where `SECRET[backend.NAME]` is looked up.
    #[serde(default)]
    #[allow(dead_code)] // read from the tree, before placeholders are filled and this model exists
    secrets: SecretsConfig,
}

impl PipelineConfig {
    /// What it says about Kafka.
    pub(crate) fn kafka(&self) -> KafkaConfig {
        let (source, dead_letters) = (self.source.kafka.clone(), self.dead_letters.clone());
        match &self.target.kafka {
            Some(target) => KafkaConfig {
                source,
                target: target.clone(),
                dead_letters,
            },
            None => KafkaConfig::of_landing(source, dead_letters),
        }
    }
}

/// Configuration may hold secrets, so `Debug` shows its name only.
impl fmt::Debug for PipelineConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PipelineConfig")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Which way values go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    /// Clear to sealed.
    #[default]
    Seal,
    /// Sealed to clear: recreates plaintext at the target.
    Open,
}

/// What a record's value is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Format {
    /// One JSON document.
    #[default]
    Json,
    /// JSON documents, one a line.
    Ndjson,
    /// JSON behind a schema registry's five bytes.
    JsonSr,
    /// Not taken yet; known so that the message can say so.
    #[schemars(skip)]
    Avro,
    /// Not taken yet; known so that the message can say so.
    #[schemars(skip)]
    Protobuf,
}

impl Format {
    /// As the core knows it; `None` for formats that are refused.
    pub(crate) fn core(self) -> Option<pipeline::Format> {
        match self {
            Self::Json => Some(pipeline::Format::Json),
            Self::Ndjson => Some(pipeline::Format::Ndjson),
            Self::JsonSr => Some(pipeline::Format::JsonSr),
            Self::Avro | Self::Protobuf => None,
        }
    }
}

/// Where records come from.
#[derive(Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Source {
    /// Topics of a Kafka cluster.
    pub(crate) kafka: KafkaSource,
}

/// Where records go.
#[derive(Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Target {
    /// Topics of the same Kafka cluster.
    #[serde(default)]
    pub(crate) kafka: Option<KafkaTarget>,
    /// Files of encrypted Parquet. Either this or `kafka`.
    #[serde(default)]
    pub(crate) table: Option<TableTarget>,
}

/// Whose policies are believed.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Trust {
    /// Thumbprints (RFC 7638) of the owner keys whose signatures count: alone for everything, or as `PATTERN=THUMBPRINT` for
    /// datasets (`payments*`) and domains (`domain:customers`) of matching names.
    #[serde(default)]
    pub(crate) owners: Vec<Pin>,
}

/// The admin port.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Admin {
    /// Address and port; `null` for none.
    #[schemars(with = "Option<String>")]
    pub(crate) listen: Option<SocketAddr>,
}

impl Default for Admin {
    fn default() -> Self {
        Self {
            listen: Some(SocketAddr::from(([127, 0, 0, 1], 9464))),
        }
    }
}

fn policy_refresh() -> Span {
    Span(Duration::from_secs(30))
}

fn one() -> u16 {
    1
}

fn instance() -> String {
    "0".to_owned()
}
