//! A transform that works only while the policy that it was made of counts: for files and pipes, which take no newer one in.

use std::sync::Arc;

use async_trait::async_trait;
use sealflow::pipeline::{Outcome, Record, StopKind, Transform, TransformError};
use sealflow::policy::{PolicySource, VerifiedPolicy};

use crate::failure::{Exit, Failure, Result};
use crate::services::Services;

/// Asks before every batch whether the policy's lease still holds.
pub(crate) struct WhileItCounts<T> {
    inner: T,
    policy: Arc<VerifiedPolicy>,
    policies: Arc<dyn PolicySource>,
}

impl<T> WhileItCounts<T> {
    /// `inner` was made of the policy of `services`.
    pub(crate) fn new(inner: T, services: &Services) -> Self {
        Self {
            inner,
            policy: Arc::clone(&services.policy),
            policies: Arc::clone(&services.policies),
        }
    }

    async fn check(&self) -> Result<()> {
        if self.policies.holds(&self.policy) {
            return Ok(());
        }
        let in_use = self.policy.policy();
        let newest = self.policies.policy(&in_use.dataset).await?;
        let newest = newest.policy().version;
        if newest == in_use.version {
            return Ok(());
        }
        let (dataset, version) = (&in_use.dataset, in_use.version);
        Err(Failure::config(
            format_args!("the lease of {dataset}, version {version}, has ended, and version {newest} counts now"),
            "start again: the newest version is taken at the start",
        ))
    }
}

#[async_trait]
impl<T: Transform> Transform for WhileItCounts<T> {
    async fn apply(&self, records: &[Record]) -> Result<Vec<Outcome>, TransformError> {
        self.check().await.map_err(stop)?;
        self.inner.apply(records).await
    }

    async fn refuse(&self, records: &[Record], code: &'static str) -> Result<Vec<Outcome>, TransformError> {
        self.check().await.map_err(stop)?;
        self.inner.refuse(records, code).await
    }
}

/// A failure as transforms tell it.
pub(crate) fn stop(failure: Failure) -> TransformError {
    let kind = match failure.exit {
        Exit::NotPermitted => StopKind::NotPermitted,
        Exit::Unavailable => StopKind::Unavailable,
        _ => StopKind::Config,
    };
    TransformError::Stop {
        kind,
        reason: failure.message,
        help: failure.help,
    }
}
