//! Key ids of files of other tools. Their writers cannot name a column's key by its ARN, which has colons in it, so they
//! name it as AWS does within an account and a region: by the id alone.

use std::sync::Arc;

use async_trait::async_trait;
use sealflow::keys::{EncryptionContext, GeneratedKey, KeyDescription, KeyService, KeyServiceError};
use sealflow::secret::SecretBytes;

/// A KMS that takes ids of keys of one account and region for their ARNs.
#[derive(Debug)]
pub(super) struct NamedKeys {
    kms: Arc<dyn KeyService>,
    /// All of an ARN but the id.
    start: String,
}

impl NamedKeys {
    /// Of the caller's own account, as AWS has it; `None` if the caller is nobody of AWS.
    pub(super) fn of_caller(kms: Arc<dyn KeyService>, caller: &str, region: &str) -> Option<Self> {
        let parts: Vec<&str> = caller.splitn(6, ':').collect();
        let ["arn", partition, _, _, account, _] = parts[..] else {
            return None;
        };
        let start = format!("arn:{partition}:kms:{region}:{account}:key/");
        Some(Self { kms, start })
    }

    fn arn(&self, key: &str) -> String {
        let is_id = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if is_id {
            format!("{}{key}", self.start)
        } else {
            key.to_owned()
        }
    }
}

#[async_trait]
impl KeyService for NamedKeys {
    async fn generate(
        &self,
        arn: &str,
        len: usize,
        context: &EncryptionContext,
    ) -> Result<GeneratedKey, KeyServiceError> {
        self.kms.generate(&self.arn(arn), len, context).await
    }

    async fn unwrap(
        &self,
        arn: &str,
        wrapped: &[u8],
        context: &EncryptionContext,
    ) -> Result<SecretBytes, KeyServiceError> {
        self.kms.unwrap(&self.arn(arn), wrapped, context).await
    }

    async fn describe(&self, arn: &str) -> Result<KeyDescription, KeyServiceError> {
        self.kms.describe(&self.arn(arn)).await
    }

    async fn identity(&self) -> Result<String, KeyServiceError> {
        self.kms.identity().await
    }
}

#[cfg(test)]
mod tests {
    use sealflow::keys::testing::MemoryKms;

    use super::*;

    #[test]
    fn an_id_is_a_key_of_the_callers_account_and_everything_else_is_left_as_it_is() {
        let kms = || Arc::new(MemoryKms::new());
        let named = NamedKeys::of_caller(kms(), "arn:aws-cn:iam::111122223333:role/a", "cn-north-1").unwrap();
        assert_eq!(named.arn("0a-1B"), "arn:aws-cn:kms:cn-north-1:111122223333:key/0a-1B");
        for other in ["arn:aws:kms:eu-central-1:444455556666:key/1", "alias/a", "my key", ""] {
            assert_eq!(named.arn(other), other);
        }
        assert!(NamedKeys::of_caller(kms(), "oidc:https://idp.example#sub=x", "eu-central-1").is_none());
    }
}
