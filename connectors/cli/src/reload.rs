//! Takes newer policies in while a pipeline runs: looks for them, and puts the transform that they make in the
//! place of the old one, between two batches.

use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use sealflow::pipeline::{Outcome, Record, StopKind, Transform, TransformError};
use sealflow::policy::{PolicySource, VerifiedPolicy};

use crate::failure::{Failure, Result};
use crate::metrics::Metrics;

/// Makes the transform of a policy, or says why it cannot be carried out.
type Make = Box<dyn Fn(Arc<VerifiedPolicy>) -> Result<Arc<dyn Transform>> + Send + Sync>;

/// The transform of the newest policy.
pub(crate) struct Reloading {
    current: RwLock<Arc<dyn Transform>>,
    version: Mutex<u64>,
    /// Once a newest policy cannot be used, nothing goes on under an older one.
    failed: Mutex<Option<Failure>>,
    make: Make,
    metrics: Arc<Metrics>,
}

impl Reloading {
    /// Starts with the transform of `policy`.
    pub(crate) fn new(policy: Arc<VerifiedPolicy>, metrics: Arc<Metrics>, make: Make) -> Result<Self> {
        let version = policy.policy().version;
        metrics.policy_version(version);
        Ok(Self {
            current: RwLock::new(make(policy)?),
            version: Mutex::new(version),
            failed: Mutex::default(),
            make,
            metrics,
        })
    }

    /// Looks for a newer policy every `interval`, for ever. Returns when the newest one cannot be used: whatever
    /// the reason, no batch is transformed any more.
    pub(crate) async fn follow(&self, policies: &dyn PolicySource, dataset: &str, interval: Duration) -> Failure {
        let mut away = false;
        loop {
            tokio::time::sleep(interval).await;
            let failure = match policies.policy(dataset).await {
                Ok(policy) => {
                    away = false;
                    match self.take(policy) {
                        Ok(()) => continue,
                        Err(failure) => failure,
                    }
                }
                // Whoever can take the catalogue away cannot change the policy by it.
                Err(error) if error.is_retryable() => {
                    if !away {
                        tracing::warn!(error = %error, "the catalogue is away: the policy in use stays");
                    }
                    away = true;
                    continue;
                }
                Err(error) => Failure::from(error),
            };
            tracing::error!(error = failure.message, "the newest policy cannot be used");
            *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure.clone());
            return failure;
        }
    }

    fn take(&self, policy: Arc<VerifiedPolicy>) -> Result<()> {
        let mut version = self.version.lock().unwrap_or_else(PoisonError::into_inner);
        let new = policy.policy().version;
        if new == *version {
            return Ok(());
        }
        let columns = policy.policy().columns.len();
        let transform = (self.make)(policy)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = transform;
        tracing::info!(from = *version, to = new, columns, "policy in use");
        *version = new;
        self.metrics.policy_version(new);
        Ok(())
    }

    fn transform(&self) -> Result<Arc<dyn Transform>, TransformError> {
        if let Some(failure) = &*self.failed.lock().unwrap_or_else(PoisonError::into_inner) {
            return Err(TransformError::Stop {
                kind: StopKind::Config,
                reason: failure.message.clone(),
                help: failure.help.clone(),
            });
        }
        Ok(Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

#[async_trait]
impl Transform for Reloading {
    async fn apply(&self, records: Vec<Record>) -> Result<Vec<Outcome>, TransformError> {
        self.transform()?.apply(records).await
    }

    async fn refuse(&self, records: Vec<Record>, code: &'static str) -> Result<Vec<Outcome>, TransformError> {
        self.transform()?.refuse(records, code).await
    }
}
