//! A key service that counts and times its requests, around any other.

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use sealflow::keys::{
    ClientKeyService, EncryptionContext, GeneratedKey, GeneratedPair, KeyDescription, KeyService, KeyServiceError,
    PrivateHalf, RsaBits,
};
use sealflow::secret::SecretBytes;

use crate::kms_metrics::{KmsMetrics, KmsOperation};

/// Counts every request to the inner service as `sealflow_kms_requests_total` and times it.
pub(crate) struct Metered {
    inner: Arc<dyn ClientKeyService>,
    metrics: Arc<KmsMetrics>,
}

impl Metered {
    /// Wraps `inner`.
    pub(crate) fn new(inner: Arc<dyn ClientKeyService>, metrics: Arc<KmsMetrics>) -> Self {
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
        self.metrics.request(operation, outcome, start.elapsed());
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
        // Asked for with every key that is looked up, and nearly always answered from memory: no request.
        self.inner.identity().await
    }
}

#[async_trait]
impl ClientKeyService for Metered {
    async fn public_key(&self, arn: &str) -> Result<Vec<u8>, KeyServiceError> {
        self.count(KmsOperation::GetPublicKey, self.inner.public_key(arn)).await
    }

    async fn decrypt_rsa(&self, arn: &str, ciphertext: &[u8]) -> Result<SecretBytes, KeyServiceError> {
        self.count(KmsOperation::Decrypt, self.inner.decrypt_rsa(arn, ciphertext))
            .await
    }

    async fn generate_pair(
        &self,
        arn: &str,
        bits: RsaBits,
        context: &EncryptionContext,
    ) -> Result<GeneratedPair, KeyServiceError> {
        self.count(
            KmsOperation::GenerateDataKeyPair,
            self.inner.generate_pair(arn, bits, context),
        )
        .await
    }

    async fn private_half(
        &self,
        arn: &str,
        wrapped: &[u8],
        context: &EncryptionContext,
    ) -> Result<Arc<dyn PrivateHalf>, KeyServiceError> {
        // What is decrypted with it is no request.
        self.count(KmsOperation::Decrypt, self.inner.private_half(arn, wrapped, context))
            .await
    }

    async fn mac(&self, arn: &str, message: &[u8]) -> Result<[u8; 32], KeyServiceError> {
        self.count(KmsOperation::GenerateMac, self.inner.mac(arn, message))
            .await
    }

    async fn verify_mac(&self, arn: &str, message: &[u8], mac: &[u8; 32]) -> Result<bool, KeyServiceError> {
        self.count(KmsOperation::VerifyMac, self.inner.verify_mac(arn, message, mac))
            .await
    }
}

#[cfg(test)]
mod tests {
    use sealflow::keys::testing::MemoryKms;

    use super::*;
    use crate::kms_metrics::KMS_OUTCOMES;
    use crate::metrics::Metrics;

    #[tokio::test]
    async fn requests_are_counted_by_how_they_ended() {
        let (kms, metrics) = (Arc::new(MemoryKms::new()), Arc::new(Metrics::new("p")));
        let metered = Metered::new(kms.clone(), Arc::clone(&metrics.kms));
        let arn = "arn:aws:kms:eu-central-1:111122223333:key/1";
        let context = EncryptionContext::for_domain("d");
        let key = metered.generate(arn, 32, &context).await.unwrap();
        assert_eq!(
            metered.unwrap(arn, &key.wrapped, &context).await.unwrap(),
            key.plaintext
        );
        assert!(
            metered
                .unwrap(arn, &key.wrapped, &EncryptionContext::for_domain("other"))
                .await
                .is_err()
        );
        assert!(metered.identity().await.is_ok());
        let pair = metered.generate_pair(arn, RsaBits::Rsa2048, &context).await.unwrap();
        let half = metered
            .private_half(arn, &pair.wrapped_private, &context)
            .await
            .unwrap();
        assert_eq!(half.public(), pair.public);
        assert!(half.decrypt(b"nothing").is_none());
        kms.fail_with(Some(KeyServiceError::Throttled { retry_after: None }));
        assert!(metered.generate(arn, 32, &context).await.is_err());
        let errors = [
            KeyServiceError::NotPermitted {
                arn: arn.into(),
                code: "test".into(),
            },
            KeyServiceError::KeyUnusable {
                arn: arn.into(),
                code: "test".into(),
            },
            KeyServiceError::Unavailable { reason: "test".into() },
            KeyServiceError::NoCredentials { reason: "test".into() },
            KeyServiceError::BadAnswer { reason: "test".into() },
        ];
        for error in errors {
            kms.fail_with(Some(error));
            assert!(metered.describe(arn).await.is_err());
        }
        let text = metrics.encode();
        for (operation, outcome) in [
            ("GenerateDataKey", "ok"),
            ("GenerateDataKeyPair", "ok"),
            ("Decrypt", "refused"),
            ("GenerateDataKey", "throttled"),
            ("DescribeKey", "key_unusable"),
            ("DescribeKey", "unavailable"),
            ("DescribeKey", "other"),
        ] {
            let line = format!("sealflow_kms_requests_total{{operation=\"{operation}\",outcome=\"{outcome}\"}} 1\n");
            assert!(text.contains(&line), "{line}{text}");
        }
        assert!(text.contains("{operation=\"Decrypt\",outcome=\"ok\"} 2\n"), "{text}");
        assert!(
            text.contains("{operation=\"DescribeKey\",outcome=\"not_permitted\"} 2\n"),
            "{text}"
        );
        let series = text.matches("sealflow_kms_requests_total{").count();
        assert_eq!(
            series,
            7 * KMS_OUTCOMES.len(),
            "no outcome that was not there at zero: {text}"
        );
    }
}
