//! Where a command's decisions are written down, if anywhere.

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use sealflow::audit::{AuditError, AuditLog, Event};
use sealflow::units::Span;
use sealflow_audit::{AuditConfig, LineSink, To};
use sealflow_kafka::{LineProducer, LineTopic};

use crate::commands::read::TopicUrl;
use crate::config::PipelineConfig;
use crate::failure::{Exit, Failure, Result};
use crate::services::clock;

/// How long brokers are waited for at the start.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where decisions are written down
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Audit")]
pub(crate) struct AuditArgs {
    /// Write every decision to the end of this file, or into the topic kafka://HOST:PORT/TOPIC, before anything is shown
    #[arg(
        long,
        value_name = "FILE|TOPIC",
        env = "SEALFLOW_AUDIT",
        hide_env_values = true,
        requires = "audit_key"
    )]
    audit: Option<Place>,
    /// The private key that signs the log's checkpoints, as `sealflow policy keygen` makes it
    #[arg(long, value_name = "FILE", env = "SEALFLOW_AUDIT_KEY", hide_env_values = true)]
    audit_key: Option<PathBuf>,
    /// The second place of the checkpoints, a file; default: the log's name and `.checkpoints`. Better where whoever can write
    /// the log cannot write
    #[arg(
        long,
        value_name = "FILE",
        env = "SEALFLOW_AUDIT_CHECKPOINTS",
        hide_env_values = true
    )]
    audit_checkpoints: Option<PathBuf>,
}

/// A file, or a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Its path.
    File(PathBuf),
    /// Where it is.
    Topic(TopicUrl),
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        if text.starts_with("kafka:") {
            return text.parse().map(Self::Topic);
        }
        Ok(Self::File(PathBuf::from(text)))
    }
}

/// An audit log, or none.
pub(crate) struct Log(Option<Arc<dyn AuditLog>>);

impl AuditArgs {
    /// Opens it, if there is one. A topic without brokers is on those of the pipeline file, with its properties.
    pub(crate) async fn open(&self, pipeline: Option<&PipelineConfig>) -> Result<Log> {
        let (Some(place), Some(key)) = (&self.audit, &self.audit_key) else {
            return Ok(Log(None));
        };
        let (to, path, topic, beside) = match place {
            Place::File(path) => (To::File, Some(path.clone()), None, path.clone().into_os_string()),
            Place::Topic(url) => {
                let reading = url.reading(pipeline, &[])?;
                let topic = LineTopic {
                    brokers: reading.brokers,
                    topic: reading.topic,
                    properties: reading.properties,
                };
                (To::Topic, None, Some(topic), OsString::from(&url.topic))
            }
        };
        let checkpoints = self.audit_checkpoints.clone().unwrap_or_else(|| {
            let mut name = beside;
            name.push(".checkpoints");
            PathBuf::from(name)
        });
        let config = AuditConfig {
            to,
            path,
            topic: None,
            key: key.clone(),
            checkpoints,
            every: 1_000,
            span: Span(Duration::from_secs(60)),
            name: None,
        };
        open(config, topic).await.map(|log| Log(Some(log)))
    }
}

/// Opens the log of a configuration's `audit:` section.
pub(crate) async fn open_configured(config: AuditConfig) -> Result<Arc<dyn AuditLog>> {
    let topic = config.topic.as_ref().map(|topic| LineTopic {
        brokers: topic.brokers.clone(),
        topic: topic.name.clone(),
        properties: topic.properties.clone().into_iter().collect(),
    });
    open(config, topic).await
}

/// Opens a log. `topic` is where the lines go if it is one.
async fn open(config: AuditConfig, topic: Option<LineTopic>) -> Result<Arc<dyn AuditLog>> {
    let opened = tokio::task::spawn_blocking(move || {
        let sink = match topic {
            Some(topic) => Some(TopicLines::connect(&topic)?),
            None => None,
        };
        config.open_with(clock(), sink).map_err(Failure::from)
    });
    opened.await.map_err(|_| {
        Failure::new(
            Exit::Internal,
            "opening the audit log panicked",
            "please report this bug",
        )
    })?
}

/// A topic as a place for audit lines.
struct TopicLines(LineProducer);

impl TopicLines {
    /// Under a name of its own, as the chain is, so that processes spread over the partitions.
    fn connect(topic: &LineTopic) -> Result<Box<dyn LineSink>> {
        let mut name = [0; 8];
        getrandom::fill(&mut name).map_err(|_| AuditError::NoRandom)?;
        let name: String = name.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Box::new(Self(LineProducer::connect(topic, &name, PATIENCE)?)))
    }
}

impl LineSink for TopicLines {
    fn name(&self) -> String {
        self.0.name()
    }

    fn append(&mut self, lines: &[String]) -> std::result::Result<(), AuditError> {
        self.0.send(lines).map_err(|error| AuditError::Write {
            to: self.0.name(),
            reason: error.to_string(),
        })
    }
}

impl Log {
    /// Writes events down.
    pub(crate) async fn record(&self, events: Vec<Event>) -> Result<()> {
        match &self.0 {
            Some(log) => Ok(log.record(events).await?),
            None => Ok(()),
        }
    }

    /// Ends it with a checkpoint.
    pub(crate) async fn close(&self) -> Result<()> {
        match &self.0 {
            Some(log) => Ok(log.close().await?),
            None => Ok(()),
        }
    }
}

impl From<AuditError> for Failure {
    fn from(error: AuditError) -> Self {
        let exit = match error {
            AuditError::Refused { .. } => Exit::NotPermitted,
            AuditError::NotContinuable { .. } => Exit::Data,
            _ => Exit::Io,
        };
        Self::new(exit, &error, error.help())
    }
}
