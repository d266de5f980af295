//! A key service that counts and times its requests, around any other.

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use sealflow::keys::{EncryptionContext, GeneratedKey, KeyDescription, KeyService, KeyServiceError};
use sealflow::secret::SecretBytes;

use crate::metrics::{KmsOperation, Metrics};

/// Counts every request to the inner service as `sealflow_kms_requests_total` and times it.
pub(crate) struct Metered {
    inner: Arc<dyn KeyService>,
    metrics: Arc<Metrics>,
}

impl Metered {
    /// Wraps `inner`.
    pub(crate) fn new(inner: Arc<dyn KeyService>, metrics: Arc<Metrics>) -> Self {
        Self { inner, metrics }
    }

    async fn count<T>(
        &self,
        operation: KmsOperation,
        request: impl Future<Output = Result<T, KeyServiceError>>,
    ) -> Result<T, KeyServiceError> {
        let start = Instant::now();
        let answer = request.await;
        let outcome = answer.as_ref().map_or_else(outcome, |_| "ok");
        self.metrics.kms_request(operation, outcome, start.elapsed());
        answer
    }
}

fn outcome(error: &KeyServiceError) -> &'static str {
    match error {
        KeyServiceError::NotPermitted { .. } | KeyServiceError::NoCredentials { .. } => "not_permitted",
        KeyServiceError::Refused { .. } => "refused",
        KeyServiceError::KeyUnusable { .. } => "key_unusable",
        KeyServiceError::Throttled { .. } => "throttled",
        KeyServiceError::Unavailable { .. } => "unavailable",
        _ => "other",
    }
}

impl std::fmt::Debug for Metered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Metered").field(&self.inner).finish()
    }
}

#[async_trait]
impl KeyService for Metered {
    async fn generate(
        &self,
        arn: &str,
        len: usize,
        context: &EncryptionContext,
    ) -> Result<GeneratedKey, KeyServiceError> {
        self.count(KmsOperation::GenerateDataKey, self.inner.generate(arn, len, context))
            .await
    }

    async fn unwrap(
        &self,
        arn: &str,
        wrapped: &[u8],
        context: &EncryptionContext,
    ) -> Result<SecretBytes, KeyServiceError> {
        self.count(KmsOperation::Decrypt, self.inner.unwrap(arn, wrapped, context))
            .await
    }

    async fn describe(&self, arn: &str) -> Result<KeyDescription, KeyServiceError> {
        self.count(KmsOperation::DescribeKey, self.inner.describe(arn)).await
    }

    async fn identity(&self) -> Result<String, KeyServiceError> {
        self.count(KmsOperation::GetCallerIdentity, self.inner.identity()).await
    }
}
