//! What an operator's tool asks of AWS KMS: `ReEncrypt` and `RotateKeyOnDemand`.

use async_trait::async_trait;
use aws_sdk_kms::primitives::Blob;
use aws_smithy_types::retry::RetryConfig;
use sealflow::keys::{EncryptionContext, KeyAdmin, KeyServiceError};

use crate::answer::{bad_answer, check_key, pairs};
use crate::client::AwsKms;
use crate::error::Request;

#[async_trait]
impl KeyAdmin for AwsKms {
    /// Goes to the region of `to`; the source key must be in the same region, which KMS checks.
    async fn rewrap(
        &self,
        from: &str,
        wrapped: &[u8],
        to: &str,
        context: &EncryptionContext,
    ) -> Result<Vec<u8>, KeyServiceError> {
        let request = self
            .client(to)?
            .re_encrypt()
            .source_key_id(from)
            .destination_key_id(to)
            .ciphertext_blob(Blob::new(wrapped))
            .set_source_encryption_context(Some(pairs(context)))
            .set_destination_encryption_context(Some(pairs(context)));
        // Which of the two keys a refusal is about stands in KMS's sentence, which we do not pass on.
        let answer = self.send((Request::Rewrap, from), || request.clone().send()).await?;
        check_key(answer.key_id.as_deref(), to)?;
        check_key(answer.source_key_id.as_deref(), from)?;
        let blob = answer.ciphertext_blob.map(Blob::into_inner).unwrap_or_default();
        if blob.is_empty() {
            return Err(bad_answer("an empty wrapped key"));
        }
        Ok(blob)
    }

    async fn rotate(&self, arn: &str) -> Result<(), KeyServiceError> {
        let request = self.client(arn)?.rotate_key_on_demand().key_id(arn);
        // A repeated request would spend a second of the key's 25 rotations, if only the first one's answer was lost.
        let once = aws_sdk_kms::config::Builder::new().retry_config(RetryConfig::disabled());
        let send = || request.clone().customize().config_override(once.clone()).send();
        self.send((Request::Rotate, arn), send).await.map(drop)
    }
}
