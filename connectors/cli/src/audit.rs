//! Where a command's decisions are written down, if anywhere.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sealflow::audit::{AuditError, AuditLog, Event};
use sealflow::units::Span;
use sealflow_audit::{AuditConfig, To};

use crate::failure::{Exit, Failure, Result};
use crate::services::clock;

/// Where decisions are written down
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Audit")]
pub(crate) struct AuditArgs {
    /// Write every decision to the end of this file before anything is shown
    #[arg(
        long,
        value_name = "FILE",
        env = "SEALFLOW_AUDIT",
        hide_env_values = true,
        requires = "audit_key"
    )]
    audit: Option<PathBuf>,
    /// The private key that signs the log's checkpoints, as `sealflow policy keygen` makes it
    #[arg(long, value_name = "FILE", env = "SEALFLOW_AUDIT_KEY", hide_env_values = true)]
    audit_key: Option<PathBuf>,
    /// The second place of the checkpoints; default: the log's name and `.checkpoints`. Better where whoever can write the
    /// log cannot write
    #[arg(
        long,
        value_name = "FILE",
        env = "SEALFLOW_AUDIT_CHECKPOINTS",
        hide_env_values = true
    )]
    audit_checkpoints: Option<PathBuf>,
}

/// An audit log, or none.
pub(crate) struct Log(Option<Arc<dyn AuditLog>>);

impl AuditArgs {
    /// Opens it, if there is one.
    pub(crate) fn open(&self) -> Result<Log> {
        let (Some(path), Some(key)) = (&self.audit, &self.audit_key) else {
            return Ok(Log(None));
        };
        let beside = || {
            let mut name = path.clone().into_os_string();
            name.push(".checkpoints");
            PathBuf::from(name)
        };
        let config = AuditConfig {
            to: To::File,
            path: Some(path.clone()),
            key: key.clone(),
            checkpoints: self.audit_checkpoints.clone().unwrap_or_else(beside),
            every: 1_000,
            span: Span(Duration::from_secs(60)),
            name: None,
        };
        Ok(Log(Some(config.open(clock())?)))
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
