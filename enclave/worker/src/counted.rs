//! The key service, its requests counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use sealflow::keys::{
    ClientKeyService, EncryptionContext, GeneratedKey, GeneratedPair, KeyDescription, KeyService, KeyServiceError,
    PrivateHalf, RsaBits,
};
use sealflow::secret::SecretBytes;
use sealflow_kms::AttestedKms;

/// A key service that counts what it is asked.
#[derive(Debug)]
pub(crate) struct Counted {
    inner: AttestedKms,
    requests: AtomicU64,
}

impl Counted {
    /// Nothing asked yet.
    #[must_use]
    pub(crate) fn new(inner: AttestedKms) -> Self {
        Self {
            inner,
            requests: AtomicU64::new(0),
        }
    }

    /// How often it was asked.
    #[must_use]
    pub(crate) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    fn asked(&self) -> &AttestedKms {
        self.requests.fetch_add(1, Ordering::Relaxed);
        &self.inner
    }
}

#[async_trait]
impl KeyService for Counted {
    async fn generate(
        &self,
        arn: &str,
        len: usize,
        context: &EncryptionContext,
    ) -> Result<GeneratedKey, KeyServiceError> {
        self.asked().generate(arn, len, context).await
    }

    async fn unwrap(
        &self,
        arn: &str,
        wrapped: &[u8],
        context: &EncryptionContext,
    ) -> Result<SecretBytes, KeyServiceError> {
        self.asked().unwrap(arn, wrapped, context).await
    }

    async fn describe(&self, arn: &str) -> Result<KeyDescription, KeyServiceError> {
        self.asked().describe(arn).await
    }

    async fn identity(&self) -> Result<String, KeyServiceError> {
        self.inner.identity().await
    }
}

#[async_trait]
impl ClientKeyService for Counted {
    async fn public_key(&self, arn: &str) -> Result<Vec<u8>, KeyServiceError> {
        self.asked().public_key(arn).await
    }

    async fn decrypt_rsa(&self, arn: &str, ciphertext: &[u8]) -> Result<SecretBytes, KeyServiceError> {
        self.asked().decrypt_rsa(arn, ciphertext).await
    }

    async fn generate_pair(
        &self,
        arn: &str,
        bits: RsaBits,
        context: &EncryptionContext,
    ) -> Result<GeneratedPair, KeyServiceError> {
        self.asked().generate_pair(arn, bits, context).await
    }

    async fn private_half(
        &self,
        arn: &str,
        wrapped: &[u8],
        context: &EncryptionContext,
    ) -> Result<Arc<dyn PrivateHalf>, KeyServiceError> {
        self.asked().private_half(arn, wrapped, context).await
    }

    async fn mac(&self, arn: &str, message: &[u8]) -> Result<[u8; 32], KeyServiceError> {
        self.inner.mac(arn, message).await
    }

    async fn verify_mac(&self, arn: &str, message: &[u8], mac: &[u8; 32]) -> Result<bool, KeyServiceError> {
        self.inner.verify_mac(arn, message, mac).await
    }
}
