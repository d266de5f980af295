//! Whose credentials: the AWS chain (environment, profile, web identity, container, instance) or static ones, with our HTTP
//! client and one cache. For every client of AWS in Sealflow, of KMS and of buckets alike.

use std::fmt;
use std::time::Duration;

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_smithy_http_client::tls::Provider;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use aws_smithy_types::retry::RetryConfig;
use aws_smithy_types::timeout::TimeoutConfig;
use sealflow::keys::KeyServiceError;

use crate::config::{KmsConfig, StaticCredentials};
use crate::credentials::{CachedCredentials, chain_error};

/// The first wait before another attempt is up to this long, then twice as long each time.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);

/// What a configuration says about credentials, and how patiently they are fetched.
#[derive(Clone, Debug)]
pub struct ChainConfig {
    /// The region, instead of the chain's.
    pub region: Option<String>,
    /// The profile in `~/.aws/config`, instead of the chain's.
    pub profile: Option<String>,
    /// Credentials, instead of the chain's.
    pub credentials: Option<StaticCredentials>,
    /// How long one attempt may take.
    pub timeout: Duration,
    /// How long making a connection may take.
    pub connect_timeout: Duration,
    /// How often a request is tried, the first time included; 1 or more.
    pub attempts: u32,
    /// Whether AWS's FIPS endpoints are used.
    pub use_fips: bool,
    /// Whether AWS's dual-stack endpoints are used.
    pub use_dual_stack: bool,
}

impl From<&KmsConfig> for ChainConfig {
    fn from(config: &KmsConfig) -> Self {
        Self {
            region: config.region.clone(),
            profile: config.profile.clone(),
            credentials: config.credentials.clone(),
            timeout: config.timeout.0,
            connect_timeout: config.connect_timeout.0,
            attempts: config.attempts,
            use_fips: config.use_fips,
            use_dual_stack: config.use_dual_stack,
        }
    }
}

/// The chain, loaded: it has read environment and profile files, and asked no server yet.
#[derive(Clone)]
pub struct AwsChain {
    config: SdkConfig,
    credentials: CachedCredentials,
}

/// Credentials print nothing of themselves.
impl fmt::Debug for AwsChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AwsChain").finish_non_exhaustive()
    }
}

impl AwsChain {
    /// Reads the AWS configuration. `None` if there is no chain at all, which the features of this build rule out.
    pub async fn load(config: &ChainConfig) -> Option<Self> {
        Self::load_with(config, None).await
    }

    /// The same with credentials of `provider` instead.
    pub(crate) async fn load_with(config: &ChainConfig, provider: Option<SharedCredentialsProvider>) -> Option<Self> {
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .http_client(http_client())
            .retry_config(retries(config))
            .timeout_config(timeouts(config))
            .use_fips(config.use_fips)
            .use_dual_stack(config.use_dual_stack);
        if let Some(region) = &config.region {
            loader = loader.region(Region::new(region.clone()));
        }
        if let Some(profile) = &config.profile {
            loader = loader.profile_name(profile);
        }
        if let Some(fixed) = &config.credentials {
            let token = fixed.session_token.as_ref().map(|t| t.expose().to_owned());
            let secret = fixed.secret_access_key.expose();
            let credentials = Credentials::new(&fixed.access_key_id, secret, token, None, "sealflow configuration");
            loader = loader.credentials_provider(SharedCredentialsProvider::new(credentials));
        }
        if let Some(provider) = provider {
            loader = loader.credentials_provider(provider);
        }
        let sdk = loader.load().await;
        let credentials = CachedCredentials::new(sdk.credentials_provider()?);
        // Clients ask our cache at every request, so that they and whoever names the identity mean the same credentials.
        let config = sdk
            .into_builder()
            .credentials_provider(SharedCredentialsProvider::new(credentials.clone()))
            .identity_cache(aws_config::identity::IdentityCache::no_cache())
            .build();
        Some(Self { config, credentials })
    }

    /// The region of the configuration, or of the chain.
    #[must_use]
    pub fn region(&self) -> Option<String> {
        self.config.region().map(ToString::to_string)
    }

    /// The endpoint for every service that environment (`AWS_ENDPOINT_URL`) or profile name, if they do.
    #[must_use]
    pub fn endpoint(&self) -> Option<&str> {
        self.config.endpoint_url()
    }

    /// The credentials to use now: from the cache until they age, then asked for once for all callers.
    ///
    /// # Errors
    /// [`KeyServiceError::Unavailable`] if their provider is away, [`KeyServiceError::NoCredentials`] if there are none.
    pub async fn credentials(&self) -> Result<Credentials, KeyServiceError> {
        self.credentials.get().await.map_err(|error| chain_error(&error))
    }

    /// Forgets the credentials of this access key id, because a service no longer takes them: the next caller asks their
    /// provider again. Others that were renewed meanwhile stay.
    pub async fn forget(&self, access_key_id: &str) {
        self.credentials.forget_key(access_key_id).await;
    }

    pub(crate) fn sdk(&self) -> &SdkConfig {
        &self.config
    }

    pub(crate) fn cache(&self) -> &CachedCredentials {
        &self.credentials
    }
}

/// HTTPS by rustls on aws-lc; made once for each [`AwsChain`] and shared by all clients on it.
fn http_client() -> SharedHttpClient {
    aws_smithy_http_client::Builder::new()
        .tls_provider(Provider::Rustls(CryptoMode::AwsLc))
        .build_https()
}

fn retries(config: &ChainConfig) -> RetryConfig {
    RetryConfig::standard()
        .with_max_attempts(config.attempts)
        .with_initial_backoff(FIRST_BACKOFF)
        .with_max_backoff(LONGEST_BACKOFF)
}

fn timeouts(config: &ChainConfig) -> TimeoutConfig {
    let attempt = config.timeout;
    // All attempts and the longest waits between them.
    let waits = LONGEST_BACKOFF.min(FIRST_BACKOFF * (1 << config.attempts.min(6))) * config.attempts.saturating_sub(1);
    TimeoutConfig::builder()
        .connect_timeout(config.connect_timeout.min(attempt))
        .operation_attempt_timeout(attempt)
        .operation_timeout(attempt * config.attempts + waits)
        .build()
}
