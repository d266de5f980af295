//! The KMS client.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use aws_config::{Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::DataKeySpec;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use aws_smithy_types::retry::RetryConfig;
use sealflow::keys::{EncryptionContext, GeneratedKey, KeyDescription, KeyService, KeyServiceError};
use sealflow::secret::SecretBytes;
use sha2::{Digest as _, Sha256};

use crate::answer::{MAX_DATA_KEY, MAX_UNWRAPPED, bad_answer, check_key, pairs, secret};
use crate::arn::region_of_key;
use crate::chain::{AwsChain, ChainConfig};
use crate::config::{KmsConfig, KmsConfigError};
use crate::credentials::{CachedCredentials, are_same, chain_error};
use crate::error::{Request, classify, is_stale_credentials};

/// Where STS is asked when no region is configured: its global endpoint.
const STS_REGION: &str = "us-east-1";

/// A [`KeyService`] that asks AWS KMS, or another endpoint with its protocol.
///
/// Requests go to the region that the key's ARN names, with the full ARN; answers that name another key or have another
/// length are refused. Cloning is not needed: share it behind an `Arc`.
pub struct AwsKms {
    config: SdkConfig,
    endpoint: Option<String>,
    credentials: CachedCredentials,
    sts: aws_sdk_sts::Client,
    /// One client per region, all on one HTTP client.
    clients: Mutex<BTreeMap<String, aws_sdk_kms::Client>>,
    identity: tokio::sync::Mutex<Option<Identity>>,
}

/// The name of the credentials with this access key id.
struct Identity {
    access_key_id: String,
    name: String,
}

impl fmt::Debug for AwsKms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AwsKms")
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

impl AwsKms {
    /// A client by `config`. It reads the AWS configuration (environment, profile files) but asks no server yet.
    ///
    /// The HTTP connections belong to the Tokio runtime that first uses them: make one client per runtime.
    pub async fn new(config: &KmsConfig) -> Result<Self, KmsConfigError> {
        Self::make(config, None).await
    }

    /// The same with credentials of `provider` instead of the chain's or the configuration's.
    pub async fn with_provider(
        config: &KmsConfig,
        provider: impl ProvideCredentials + 'static,
    ) -> Result<Self, KmsConfigError> {
        Self::make(config, Some(SharedCredentialsProvider::new(provider))).await
    }

    async fn make(config: &KmsConfig, provider: Option<SharedCredentialsProvider>) -> Result<Self, KmsConfigError> {
        config.check()?;
        let chain = AwsChain::load_with(&ChainConfig::from(config), provider).await;
        let chain = chain.ok_or(KmsConfigError::Credentials { key: "access_key_id" })?;
        let (sdk, credentials) = (chain.sdk().clone(), chain.cache().clone());
        let sts = sts_client(&sdk, config);
        Ok(Self {
            config: sdk,
            endpoint: config.endpoint.clone(),
            credentials,
            sts,
            clients: Mutex::default(),
            identity: tokio::sync::Mutex::default(),
        })
    }

    /// The client for the region that `arn` names.
    pub(crate) fn client(&self, arn: &str) -> Result<aws_sdk_kms::Client, KeyServiceError> {
        let region = region_of_key(arn).ok_or_else(|| KeyServiceError::KeyUnusable {
            arn: arn.to_owned(),
            code: "NotAKeyArn".to_owned(),
        })?;
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(region) {
            return Ok(client.clone());
        }
        let builder = aws_sdk_kms::config::Builder::from(&self.config).region(Region::new(region.to_owned()));
        let builder = match &self.endpoint {
            Some(endpoint) => builder.endpoint_url(endpoint),
            None => builder,
        };
        let client = aws_sdk_kms::Client::from_conf(builder.build());
        clients.insert(region.to_owned(), client.clone());
        Ok(client)
    }

    /// The region of STS.
    pub(crate) fn region(&self) -> Option<String> {
        self.config.region().map(ToString::to_string)
    }

    pub(crate) async fn current_credentials(&self) -> Result<Credentials, KeyServiceError> {
        self.credentials.get().await.map_err(|e| chain_error(&e))
    }

    /// Sends a request. If the service no longer takes the credentials (an expired token, say) and the chain has others by
    /// now, it is sent once more with those: a process that refreshes its credentials needs no restart, and no pipeline
    /// stops for it.
    pub(crate) async fn send<T, E, F>(&self, about: (Request, &str), send: impl Fn() -> F) -> Result<T, KeyServiceError>
    where
        E: ProvideErrorMetadata,
        F: Future<Output = Result<T, SdkError<E, HttpResponse>>>,
    {
        let (request, arn) = about;
        let used = self.current_credentials().await?;
        let error = match send().await {
            Ok(answer) => return Ok(answer),
            Err(error) => classify(&error, request, arn),
        };
        if !is_stale_credentials(&error) {
            return Err(error);
        }
        self.credentials.forget(&used).await;
        match self.credentials.get().await {
            Ok(fresh) if !are_same(&fresh, &used) => send().await.map_err(|error| classify(&error, request, arn)),
            Ok(_) => Err(error),
            // Sessions end all the time; if only the provider of the next one is away, waiting mends it.
            Err(failed) => match chain_error(&failed) {
                away if away.is_retryable() => Err(away),
                _ => Err(error),
            },
        }
    }
}

#[async_trait]
impl KeyService for AwsKms {
    async fn generate(
        &self,
        arn: &str,
        len: usize,
        context: &EncryptionContext,
    ) -> Result<GeneratedKey, KeyServiceError> {
        let client = self.client(arn)?;
        let request = client
            .generate_data_key()
            .key_id(arn)
            .set_encryption_context(Some(pairs(context)));
        let request = match len {
            32 => request.key_spec(DataKeySpec::Aes256),
            1..=MAX_DATA_KEY => request.number_of_bytes(i32::try_from(len).unwrap_or(i32::MAX)),
            _ => return Err(bad_answer("a data key has 1 to 1,024 bytes")),
        };
        let answer = self.send((Request::Generate, arn), || request.clone().send()).await?;
        let plaintext = answer.plaintext.map(secret).ok_or_else(|| bad_answer("no plaintext"))?;
        let wrapped = answer
            .ciphertext_blob
            .map(Blob::into_inner)
            .ok_or_else(|| bad_answer("no wrapped key"))?;
        check_key(answer.key_id.as_deref(), arn)?;
        if plaintext.len() != len {
            return Err(bad_answer("a key of another length than asked for"));
        }
        if wrapped.is_empty() {
            return Err(bad_answer("an empty wrapped key"));
        }
        Ok(GeneratedKey {
            plaintext,
            wrapped,
            arn: arn.to_owned(),
        })
    }

    async fn unwrap(
        &self,
        arn: &str,
        wrapped: &[u8],
        context: &EncryptionContext,
    ) -> Result<SecretBytes, KeyServiceError> {
        let client = self.client(arn)?;
        let blob = Blob::new(wrapped);
        let request = client
            .decrypt()
            .key_id(arn)
            .ciphertext_blob(blob)
            .set_encryption_context(Some(pairs(context)));
        let answer = self.send((Request::Unwrap, arn), || request.clone().send()).await?;
        let plaintext = answer.plaintext.map(secret).ok_or_else(|| bad_answer("no plaintext"))?;
        check_key(answer.key_id.as_deref(), arn)?;
        if plaintext.is_empty() || plaintext.len() > MAX_UNWRAPPED {
            return Err(bad_answer("a key of a length that no wrapped key has"));
        }
        Ok(plaintext)
    }

    async fn describe(&self, arn: &str) -> Result<KeyDescription, KeyServiceError> {
        let client = self.client(arn)?;
        let request = client.describe_key().key_id(arn);
        let answer = self.send((Request::Describe, arn), || request.clone().send()).await?;
        let metadata = answer.key_metadata.ok_or_else(|| bad_answer("no key metadata"))?;
        check_key(metadata.arn.as_deref(), arn)?;
        let state = metadata
            .key_state
            .map_or_else(|| "unknown".to_owned(), |state| state.as_str().to_owned());
        Ok(KeyDescription {
            arn: arn.to_owned(),
            enabled: metadata.enabled,
            state,
        })
    }

    /// The caller's ARN as STS tells it; where STS cannot be asked, a hash of the access key id. Asked once for each
    /// access key id.
    async fn identity(&self) -> Result<String, KeyServiceError> {
        let access_key_id = self.current_credentials().await?.access_key_id().to_owned();
        // Held while STS is asked: the others wait for the same answer.
        let mut identity = self.identity.lock().await;
        if let Some(known) = identity.as_ref().filter(|i| i.access_key_id == access_key_id) {
            return Ok(known.name.clone());
        }
        let name = match self.sts.get_caller_identity().send().await {
            Ok(answer) => answer.arn,
            Err(_) => {
                tracing::info!("STS does not say who we are; opened keys are cached by access key");
                None
            }
        };
        let name = name
            .filter(|arn| !arn.is_empty())
            .unwrap_or_else(|| hashed(&access_key_id));
        *identity = Some(Identity {
            access_key_id,
            name: name.clone(),
        });
        Ok(name)
    }
}

fn sts_client(sdk: &SdkConfig, config: &KmsConfig) -> aws_sdk_sts::Client {
    let region = sdk.region().cloned().unwrap_or(Region::from_static(STS_REGION));
    // One try: the name only sharpens a cache, and a hash stands in for it.
    let mut builder = aws_sdk_sts::config::Builder::from(sdk)
        .region(region)
        .retry_config(RetryConfig::standard().with_max_attempts(1));
    if let Some(endpoint) = config.sts_endpoint() {
        builder = builder.endpoint_url(endpoint);
    }
    aws_sdk_sts::Client::from_conf(builder.build())
}

fn hashed(access_key_id: &str) -> String {
    let digest = Sha256::new()
        .chain_update(b"sealflow identity v1")
        .chain_update(access_key_id)
        .finalize();
    let hex: String = digest.iter().take(16).map(|b| format!("{b:02x}")).collect();
    format!("access-key:{hex}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_without_sts_does_not_show_the_access_key() {
        let name = hashed("AKIAIOSFODNN7EXAMPLE");
        assert!(!name.contains("AKIA"));
        assert_eq!(name, hashed("AKIAIOSFODNN7EXAMPLE"));
        assert_ne!(name, hashed("AKIAIOSFODNN7EXAMPLF"));
    }
}
