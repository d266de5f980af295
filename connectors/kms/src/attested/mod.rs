//! The KMS client of a program that proves what it is: every secret is released to its attested key alone, over TLS that ends
//! in it, and only keys that its measured configuration allows are asked for. Who carries the bytes learns nothing, and cannot
//! answer in the place of KMS.

mod client_keys;
mod config;
mod handed;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use aws_sdk_kms::config::{BehaviorVersion, IdentityCache, Region};
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::{DataKeySpec, KeyEncryptionMechanism, RecipientInfo};
use aws_smithy_async::rt::sleep::TokioSleep;
use aws_smithy_async::time::TimeSource;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use aws_smithy_types::retry::RetryConfig;
use aws_smithy_types::timeout::TimeoutConfig;
use sealflow::clock::Clock;
use sealflow::keys::{EncryptionContext, GeneratedKey, KeyDescription, KeyService, KeyServiceError};
use sealflow::secret::SecretBytes;
use sealflow_enclave_protocol::joints::KeyReleaser;

use crate::answer::{MAX_DATA_KEY, MAX_UNWRAPPED, bad_answer, check_key, pairs, secret};
use crate::arn::{ArnPatterns, region_of_key};
use crate::error::{Request, classify, is_stale_credentials};
use crate::https::HttpsClient;

pub use config::{AttestedKmsConfig, AttestedKmsConfigError};
pub use handed::{Handed, HandedCredentials};

/// The first wait before another attempt is up to this long, then twice as long each time.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);

/// The most bytes of a `CiphertextForRecipient` (AWS KMS API Reference: 6,144).
const MAX_RELEASED: usize = 6144;

/// Who we are in caches: the credentials are the host's, and never mean another principal than this program.
const IDENTITY: &str = "attested";

/// A [`KeyService`] that takes secrets only as `CiphertextForRecipient`.
///
/// Requests name a full key ARN that the configuration allows and an encryption context, and go to the region of the ARN.
/// An answer with a plaintext is refused, and so is one that names another key. Dates of requests follow the given clock, and
/// what the service says about its own time is not believed.
pub struct AttestedKms {
    keys: ArnPatterns,
    credentials: HandedCredentials,
    releaser: Arc<dyn KeyReleaser>,
    /// By region; all that the configuration allows.
    clients: BTreeMap<String, aws_sdk_kms::Client>,
}

impl fmt::Debug for AttestedKms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AttestedKms")
            .field("keys", &self.keys.to_string())
            .finish_non_exhaustive()
    }
}

/// The time of requests.
#[derive(Debug)]
struct GivenTime(Arc<dyn Clock>);

impl TimeSource for GivenTime {
    fn now(&self) -> SystemTime {
        let now = Duration::from_millis(self.0.now().0);
        SystemTime::UNIX_EPOCH
            .checked_add(now)
            .unwrap_or(SystemTime::UNIX_EPOCH)
    }
}

impl AttestedKms {
    /// A client by `config`, which asks nobody yet. `https` is one of [`AttestedKmsConfig::hosts`].
    ///
    /// # Errors
    /// [`AttestedKmsConfigError`]
    pub fn new(
        config: &AttestedKmsConfig,
        https: &HttpsClient,
        credentials: HandedCredentials,
        releaser: Arc<dyn KeyReleaser>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, AttestedKmsConfigError> {
        config.check()?;
        let mut base = aws_sdk_kms::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .http_client(https.clone())
            .sleep_impl(TokioSleep::new())
            .time_source(GivenTime(clock))
            .disable_clock_skew_correction(true)
            .credentials_provider(credentials.clone())
            .identity_cache(IdentityCache::no_cache())
            .retry_config(retries(config))
            .timeout_config(timeouts(config))
            .use_fips(config.use_fips)
            .use_dual_stack(config.use_dual_stack);
        if let Some(endpoint) = &config.endpoint {
            base = base.endpoint_url(endpoint);
        }
        let mut clients = BTreeMap::new();
        for (region, _) in config.keys.regions() {
            let of_region = base.clone().region(Region::new(region.to_owned())).build();
            clients.insert(region.to_owned(), aws_sdk_kms::Client::from_conf(of_region));
        }
        Ok(Self {
            keys: config.keys.clone(),
            credentials,
            releaser,
            clients,
        })
    }

    /// `len` random bytes, 1 to 1,024, of the KMS of that region: `GenerateRandom`.
    ///
    /// # Errors
    /// [`KeyServiceError`]; a region of no allowed key is [`KeyServiceError::NotPermitted`].
    pub async fn random(&self, region: &str, len: usize) -> Result<SecretBytes, KeyServiceError> {
        let client = self.clients.get(region).ok_or_else(|| not_allowed(region))?;
        if !(1..=MAX_DATA_KEY).contains(&len) {
            return Err(bad_answer("random bytes are 1 to 1,024"));
        }
        let request = client
            .generate_random()
            .number_of_bytes(i32::try_from(len).unwrap_or(i32::MAX))
            .recipient(self.recipient()?);
        let answer = self
            .send((Request::Generate, region), || request.clone().send())
            .await?;
        let random = self.released(answer.plaintext, answer.ciphertext_for_recipient)?;
        exactly(random, len)
    }

    /// The client for the key `arn`, if it may be asked for.
    fn client(&self, arn: &str) -> Result<&aws_sdk_kms::Client, KeyServiceError> {
        let client = region_of_key(arn).and_then(|region| self.clients.get(region));
        match client {
            Some(client) if self.keys.allows(arn) => Ok(client),
            _ => Err(not_allowed(arn)),
        }
    }

    /// To whom secrets are released.
    fn recipient(&self) -> Result<RecipientInfo, KeyServiceError> {
        let document = self.releaser.evidence().map_err(|error| KeyServiceError::Unavailable {
            reason: error.to_string(),
        })?;
        Ok(RecipientInfo::builder()
            .key_encryption_algorithm(KeyEncryptionMechanism::RsaesOaepSha256)
            .attestation_document(Blob::new(document))
            .build())
    }

    /// Sends a request. If the service no longer takes the credentials and others have been handed in by now, once more with
    /// those; while others may come, that is [`KeyServiceError::Unavailable`].
    async fn send<T, E, F>(&self, about: (Request, &str), send: impl Fn() -> F) -> Result<T, KeyServiceError>
    where
        E: ProvideErrorMetadata,
        F: Future<Output = Result<T, SdkError<E, HttpResponse>>>,
    {
        let (request, arn) = about;
        let used = self.credentials.get()?;
        let error = match send().await {
            Ok(answer) => return Ok(answer),
            Err(error) => classify(&error, request, arn),
        };
        if !is_stale_credentials(&error) {
            return Err(error);
        }
        self.credentials.refuse(&used);
        match self.credentials.get() {
            Ok(_) => send().await.map_err(|error| classify(&error, request, arn)),
            Err(away) if away.is_retryable() => Err(away),
            Err(_) => Err(error),
        }
    }

    /// What was released to our key. A plaintext beside or instead of it is never used: it was no secret on its way.
    fn released(&self, plaintext: Option<Blob>, released: Option<Blob>) -> Result<SecretBytes, KeyServiceError> {
        // Taken over, to be wiped.
        let plaintext = plaintext.map(secret);
        if plaintext.is_some_and(|plaintext| !plaintext.is_empty()) {
            tracing::error!(
                "the key service answered with a plaintext, although it was asked to release to an attested key"
            );
            return Err(bad_answer(
                "a plaintext, not released to the attested key alone: it takes no attestation, or does not keep to it",
            ));
        }
        let released = released.map(Blob::into_inner).unwrap_or_default();
        if released.is_empty() || released.len() > MAX_RELEASED {
            return Err(bad_answer("nothing that is released to the attested key"));
        }
        let mut opened = self
            .releaser
            .open(&released)
            .map_err(|_| bad_answer("what it released does not open"))?;
        Ok(SecretBytes::new(std::mem::take(&mut *opened)))
    }
}

#[async_trait]
impl KeyService for AttestedKms {
    async fn generate(
        &self,
        arn: &str,
        len: usize,
        context: &EncryptionContext,
    ) -> Result<GeneratedKey, KeyServiceError> {
        let client = self.client(arn)?;
        check_context(arn, context)?;
        let request = client
            .generate_data_key()
            .key_id(arn)
            .set_encryption_context(Some(pairs(context)));
        let request = match len {
            32 => request.key_spec(DataKeySpec::Aes256),
            1..=MAX_DATA_KEY => request.number_of_bytes(i32::try_from(len).unwrap_or(i32::MAX)),
            _ => return Err(bad_answer("a data key has 1 to 1,024 bytes")),
        };
        let request = request.recipient(self.recipient()?);
        let answer = self.send((Request::Generate, arn), || request.clone().send()).await?;
        check_key(answer.key_id.as_deref(), arn)?;
        let plaintext = self.released(answer.plaintext, answer.ciphertext_for_recipient)?;
        let wrapped = answer.ciphertext_blob.map(Blob::into_inner).unwrap_or_default();
        if wrapped.is_empty() {
            return Err(bad_answer("an empty wrapped key"));
        }
        Ok(GeneratedKey {
            plaintext: exactly(plaintext, len)?,
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
        check_context(arn, context)?;
        let request = client
            .decrypt()
            .key_id(arn)
            .ciphertext_blob(Blob::new(wrapped))
            .set_encryption_context(Some(pairs(context)))
            .recipient(self.recipient()?);
        let answer = self.send((Request::Unwrap, arn), || request.clone().send()).await?;
        check_key(answer.key_id.as_deref(), arn)?;
        let plaintext = self.released(answer.plaintext, answer.ciphertext_for_recipient)?;
        if plaintext.is_empty() || plaintext.len() > MAX_UNWRAPPED {
            return Err(bad_answer("a key of a length that no wrapped key has"));
        }
        Ok(plaintext)
    }

    async fn describe(&self, arn: &str) -> Result<KeyDescription, KeyServiceError> {
        let request = self.client(arn)?.describe_key().key_id(arn);
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

    /// Always the same: keys are released to this program, whoever lends it credentials.
    async fn identity(&self) -> Result<String, KeyServiceError> {
        Ok(IDENTITY.to_owned())
    }
}

fn not_allowed(arn: &str) -> KeyServiceError {
    KeyServiceError::NotPermitted {
        arn: arn.to_owned(),
        code: "NotInConfiguration".to_owned(),
    }
}

/// Without a context a wrapped key would open wherever it was carried to.
fn check_context(arn: &str, context: &EncryptionContext) -> Result<(), KeyServiceError> {
    if context.iter().next().is_some() {
        return Ok(());
    }
    Err(KeyServiceError::Refused {
        arn: arn.to_owned(),
        code: "NoEncryptionContext".to_owned(),
    })
}

fn exactly(bytes: SecretBytes, len: usize) -> Result<SecretBytes, KeyServiceError> {
    if bytes.len() == len {
        Ok(bytes)
    } else {
        Err(bad_answer("a key of another length than asked for"))
    }
}

fn retries(config: &AttestedKmsConfig) -> RetryConfig {
    RetryConfig::standard()
        .with_max_attempts(config.attempts)
        .with_initial_backoff(FIRST_BACKOFF)
        .with_max_backoff(LONGEST_BACKOFF)
}

fn timeouts(config: &AttestedKmsConfig) -> TimeoutConfig {
    let attempt = config.timeout.0;
    // All attempts and the longest waits between them.
    let waits = LONGEST_BACKOFF.min(FIRST_BACKOFF * (1 << config.attempts.min(6))) * config.attempts.saturating_sub(1);
    TimeoutConfig::builder()
        .operation_attempt_timeout(attempt)
        .operation_timeout(attempt * config.attempts + waits)
        .build()
}
