//! The AWS chain's credentials as object_store wants them. They are cached and renewed in [`AwsChain`].

use std::sync::Arc;

use async_trait::async_trait;
use object_store::aws::AwsCredential;
use object_store::client::CredentialProvider;
use object_store::{Error, Result};
use sealflow_kms::AwsChain;

use crate::error::NoCredentials;

/// The chain behind a bucket. object_store's own copy of the secret is not wiped, which its type does not allow.
#[derive(Clone, Debug)]
pub(crate) struct ChainCredentials {
    chain: AwsChain,
}

impl ChainCredentials {
    pub(crate) fn new(chain: AwsChain) -> Self {
        Self { chain }
    }

    /// The store no longer takes these credentials.
    pub(crate) async fn forget(&self, access_key_id: &str) {
        self.chain.forget(access_key_id).await;
    }
}

#[async_trait]
impl CredentialProvider for ChainCredentials {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> Result<Arc<AwsCredential>> {
        match self.chain.credentials().await {
            Ok(credentials) => Ok(Arc::new(AwsCredential {
                key_id: credentials.access_key_id().to_owned(),
                secret_key: credentials.secret_access_key().to_owned(),
                token: credentials.session_token().map(ToOwned::to_owned),
            })),
            Err(error) => Err(Error::Generic {
                store: "S3",
                source: Box::new(NoCredentials {
                    reason: error.to_string(),
                    is_retryable: error.is_retryable(),
                }),
            }),
        }
    }
}
