//! A bucket as an object store that creates and never replaces, and that knows its own objects again after an answer was lost.
//!
//! Every put is conditional (`If-None-Match: *`) and carries a token of its own as metadata. When the answer to a put is lost and
//! its repetition is told that the object is there, the token says whose it is. So every request may be repeated.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, S3ConditionalPut};
use object_store::multipart::MultipartStore as _;
use object_store::path::Path;
use object_store::{
    Attribute, Attributes, BackoffConfig, CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, RetryConfig,
};
use sealflow::clock::UnixMillis;
use sealflow::keys::Put;
use sealflow_kms::AwsChain;

use crate::credentials::ChainCredentials;
use crate::error::{NoAnswer, Refusal, StorageError, find, is_absent, is_stale, meaning};
use crate::location::BucketLocation;
use crate::options::{BucketConfig, BucketConfigError, ServerSideEncryption, check_endpoint};
use crate::requests::Requests;
use crate::transport::Transport;

const STORE: &str = "Bucket";
/// The metadata that holds a put's token: `x-amz-meta-sealflow-put`.
const TOKEN: &str = "sealflow-put";
/// The waits between repetitions, with jitter.
pub(crate) const FIRST_BACKOFF: Duration = Duration::from_millis(100);
pub(crate) const LONGEST_BACKOFF: Duration = Duration::from_secs(5);
/// `2026-01-02T03:04:05`.
const SECONDS: usize = 19;
/// Where S3-compatible stores are asked that care for no region.
const ANY_REGION: &str = "us-east-1";
/// S3's endpoint for a service in this environment, before `AWS_ENDPOINT_URL`.
const ENDPOINT_VARIABLE: &str = "AWS_ENDPOINT_URL_S3";

/// A bucket. Paths are whole keys; [`Place`](crate::Place) puts a prefix in front.
pub(crate) struct Bucket {
    name: String,
    store: AmazonS3,
    requests: Requests,
}

/// The token of one put or upload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Token(String);

impl Token {
    fn new() -> Result<Self> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).map_err(|_| Error::Generic {
            store: STORE,
            source: Box::new(NoAnswer("the operating system gives no random numbers")),
        })?;
        Ok(Self(bytes.iter().map(|byte| format!("{byte:02x}")).collect()))
    }

    fn attributes(&self) -> Attributes {
        Attributes::from_iter([(Attribute::Metadata(TOKEN.into()), self.0.clone())])
    }
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bucket")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}", self.name)
    }
}

impl Bucket {
    /// Reads the AWS configuration; asks no server yet.
    pub(crate) async fn open(location: &BucketLocation, config: &BucketConfig) -> Result<Self, StorageError> {
        config.check()?;
        let chain = AwsChain::load(&config.chain())
            .await
            .ok_or(BucketConfigError::Credentials)?;
        let address = Address::new(location.bucket(), config, &chain)?;
        let credentials = Arc::new(ChainCredentials::new(chain));
        let transport = Transport::new(config.timeout.0, config.connect_timeout.0, Arc::clone(&credentials))?;
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(location.bucket())
            .with_region(&address.region)
            .with_endpoint(&address.endpoint)
            .with_virtual_hosted_style_request(address.is_virtual_host)
            // Whether HTTP is allowed has been decided; and the transport that would ask for it is not used.
            .with_allow_http(true)
            .with_credentials(Arc::clone(&credentials) as _)
            .with_conditional_put(S3ConditionalPut::ETagMatch)
            .with_retry(retries(config))
            .with_http_connector(transport.clone());
        match &config.server_side_encryption {
            None => (),
            Some(ServerSideEncryption::Aes256 {}) => {
                let key: AmazonS3ConfigKey = "aws_server_side_encryption"
                    .parse()
                    .map_err(|error| meaning(&error, &location.to_string()))?;
                builder = builder.with_config(key, "AES256");
            }
            Some(ServerSideEncryption::Kms { key, bucket_key }) => {
                builder = builder.with_sse_kms_encryption(key);
                if let Some(is_enabled) = bucket_key {
                    builder = builder.with_bucket_key(*is_enabled);
                }
            }
        }
        let store = builder
            .build()
            .map_err(|error| meaning(&error, &location.to_string()))?;
        Ok(Self {
            name: location.bucket().to_owned(),
            requests: Requests::new(
                address.of_bucket(location.bucket()),
                address.region,
                transport,
                credentials,
                config.attempts,
            ),
            store,
        })
    }

    /// Deletes an object; one that is not there is deleted already.
    pub(crate) async fn delete(&self, location: &Path) -> Result<()> {
        self.requests.delete(location).await
    }

    /// Aborts the uploads of keys below `prefix` that were begun before then. Returns how many.
    pub(crate) async fn abort_unfinished(&self, prefix: &str, before: UnixMillis) -> Result<u64> {
        let before = before.to_string();
        let mut aborted = 0;
        for upload in self.requests.uploads_below(prefix).await? {
            // Both RFC 3339 in UTC, to the second: text sorts as time does.
            let is_old = upload.initiated.get(..SECONDS) < before.get(..SECONDS);
            let Ok(location) = Path::parse(&upload.key) else {
                continue;
            };
            if !is_old {
                continue;
            }
            match self.store.abort_multipart(&location, &upload.id).await {
                Ok(()) => aborted += 1,
                Err(error) if is_absent(&error) => (),
                Err(error) => return Err(error),
            }
        }
        Ok(aborted)
    }

    /// Begins an upload in parts.
    pub(crate) async fn begin(&self, location: &Path) -> Result<(Box<dyn MultipartUpload>, Token)> {
        let token = Token::new()?;
        let begin = || {
            let attributes = token.attributes();
            let options = PutMultipartOptions {
                attributes,
                ..PutMultipartOptions::default()
            };
            self.store.put_multipart_opts(location, options)
        };
        let upload = fresh(begin).await?;
        Ok((upload, token))
    }

    /// Completes an upload all of whose parts are there, unless the object is there: [`Put::Exists`] then.
    pub(crate) async fn complete(
        &self,
        location: &Path,
        upload: &mut dyn MultipartUpload,
        token: &Token,
    ) -> Result<Put> {
        let error = match upload.complete().await {
            Ok(_) => return Ok(Put::Created),
            Err(error) => error,
        };
        // There already, or gone because it was completed by a request whose answer was lost, or nobody knows.
        let is_open = is_absent(&error) || is_taken(&error) || is_unclear(&error);
        if !is_open {
            return Err(error);
        }
        match self.whose(location, token).await {
            // Nothing new is known, then.
            Err(_) if is_unclear(&error) => Err(error),
            Err(failed) => Err(failed),
            Ok(Whose::Ours) => Ok(Put::Created),
            Ok(Whose::Others) => Ok(Put::Exists),
            Ok(Whose::Nobodys) if is_absent(&error) => Err(unanswered("the upload is gone: somebody aborted it")),
            Ok(Whose::Nobodys) if is_taken(&error) => Err(unanswered("an object was there, and then was not")),
            Ok(Whose::Nobodys) => Err(error),
        }
    }

    /// Creates an object unless there is one.
    async fn create(&self, location: &Path, payload: PutPayload) -> Result<Put> {
        let token = Token::new()?;
        let put = || {
            let options = PutOptions {
                mode: PutMode::Create,
                attributes: token.attributes(),
                ..PutOptions::default()
            };
            self.store.put_opts(location, payload.clone(), options)
        };
        let error = match fresh(put).await {
            Ok(_) => return Ok(Put::Created),
            Err(error) => error,
        };
        if !is_taken(&error) && !is_unclear(&error) {
            return Err(error);
        }
        match self.whose(location, &token).await {
            // Nothing new is known, then.
            Err(_) if is_unclear(&error) => Err(error),
            Err(failed) => Err(failed),
            Ok(Whose::Ours) => Ok(Put::Created),
            // Even if there was no answer: ours was not, and will not be, created.
            Ok(Whose::Others) => Ok(Put::Exists),
            Ok(Whose::Nobodys) if is_taken(&error) => Err(unanswered("an object was there, and then was not")),
            Ok(Whose::Nobodys) => Err(error),
        }
    }

    async fn whose(&self, location: &Path, token: &Token) -> Result<Whose> {
        let head = || {
            let options = GetOptions {
                head: true,
                ..GetOptions::default()
            };
            self.store.get_opts(location, options)
        };
        match fresh(head).await {
            Ok(found) => {
                let tag = found.attributes.get(&Attribute::Metadata(TOKEN.into()));
                let is_ours = tag.is_some_and(|tag| tag.as_ref() == token.0);
                Ok(if is_ours { Whose::Ours } else { Whose::Others })
            }
            Err(error) if is_absent(&error) => Ok(Whose::Nobodys),
            Err(error) => Err(error),
        }
    }
}

enum Whose {
    Ours,
    Others,
    Nobodys,
}

#[async_trait]
impl ObjectStore for Bucket {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        if opts.mode != PutMode::Create || !opts.attributes.is_empty() {
            return Err(refused("put with another mode than Create"));
        }
        match self.create(location, payload).await? {
            Put::Created => Ok(PutResult {
                e_tag: None,
                version: None,
            }),
            Put::Exists => Err(Error::AlreadyExists {
                path: location.to_string(),
                source: "an object is there".into(),
            }),
        }
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Err(refused("multipart upload other than by a place's writer"))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        fresh(|| self.store.get_opts(location, options.clone())).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.store.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.store.list(prefix)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.store.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        fresh(|| self.store.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        Err(refused("copy"))
    }
}

/// Sends a request, and once more if the store no longer takes the credentials: the transport has made the chain forget them.
pub(crate) async fn fresh<T, F: Future<Output = Result<T>>>(send: impl Fn() -> F) -> Result<T> {
    match send().await {
        Err(error) if find::<Refusal>(&error).is_some_and(is_stale) => send().await,
        answer => answer,
    }
}

fn is_taken(error: &Error) -> bool {
    matches!(
        error,
        Error::AlreadyExists { .. } | Error::Precondition { .. } | Error::NotModified { .. }
    )
}

/// Whether what was asked may have been done all the same.
fn is_unclear(error: &Error) -> bool {
    !is_absent(error) && !is_taken(error) && meaning(error, "").is_retryable()
}

fn unanswered(why: &'static str) -> Error {
    Error::Generic {
        store: STORE,
        source: Box::new(NoAnswer(why)),
    }
}

fn refused(operation: &str) -> Error {
    Error::NotImplemented {
        operation: operation.to_owned(),
        implementer: STORE.to_owned(),
    }
}

fn retries(config: &BucketConfig) -> RetryConfig {
    let attempts = config.attempts;
    RetryConfig {
        backoff: BackoffConfig {
            init_backoff: FIRST_BACKOFF,
            max_backoff: LONGEST_BACKOFF,
            base: 2.0,
        },
        max_retries: usize::try_from(attempts.saturating_sub(1)).unwrap_or(usize::MAX),
        // Signatures count for fifteen minutes; the number of attempts is what bounds.
        retry_timeout: Duration::from_secs(10 * 60),
    }
}

/// Where requests go.
struct Address {
    region: String,
    /// As object_store takes it: with the bucket in its host, if `is_virtual_host`.
    endpoint: String,
    is_virtual_host: bool,
}

impl Address {
    fn new(bucket: &str, config: &BucketConfig, chain: &AwsChain) -> Result<Self, BucketConfigError> {
        let variable = std::env::var(ENDPOINT_VARIABLE).ok().filter(|url| !url.is_empty());
        let chains = variable.or_else(|| chain.endpoint().map(ToOwned::to_owned));
        Self::of(bucket, config, chain.region(), chains)
    }

    /// `region` and `endpoint` are the chain's.
    fn of(
        bucket: &str,
        config: &BucketConfig,
        region: Option<String>,
        endpoint: Option<String>,
    ) -> Result<Self, BucketConfigError> {
        let endpoint = config.endpoint.clone().or(endpoint);
        let region = config.region.clone().or(region);
        let region = match (region, &endpoint) {
            (Some(region), _) => region,
            (None, Some(_)) => ANY_REGION.to_owned(),
            (None, None) => return Err(BucketConfigError::NoRegion),
        };
        if !sealflow_kms::is_region(&region) {
            return Err(BucketConfigError::Region);
        }
        // A dot in the host's first label is not covered by the certificate.
        let is_path_style = config.path_style.unwrap_or(endpoint.is_some() || bucket.contains('.'));
        let base = match endpoint {
            Some(endpoint) => endpoint.trim_end_matches('/').to_owned(),
            None if region.starts_with("cn-") => format!("https://s3.{region}.amazonaws.com.cn"),
            None => format!("https://s3.{region}.amazonaws.com"),
        };
        check_endpoint(&base, config.allow_http)?;
        let endpoint = match base.split_once("://") {
            Some((scheme, host)) if !is_path_style => format!("{scheme}://{bucket}.{host}"),
            _ => base,
        };
        Ok(Self {
            region,
            endpoint,
            is_virtual_host: !is_path_style,
        })
    }

    /// The URL that stands for the bucket itself.
    fn of_bucket(&self, bucket: &str) -> String {
        if self.is_virtual_host {
            self.endpoint.clone()
        } else {
            format!("{}/{bucket}", self.endpoint)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(
        config: &BucketConfig,
        region: Option<&str>,
        endpoint: Option<&str>,
    ) -> Result<String, BucketConfigError> {
        let owned = |text: Option<&str>| text.map(ToOwned::to_owned);
        let address = Address::of("bucket", config, owned(region), owned(endpoint))?;
        Ok(format!("{} {}", address.region, address.of_bucket("bucket")))
    }

    #[test]
    fn a_bucket_is_asked_where_configuration_says_and_else_the_chain() {
        let default = BucketConfig::default();
        assert_eq!(address(&default, None, None), Err(BucketConfigError::NoRegion));
        let asked = |config: &BucketConfig, region, endpoint| address(config, region, endpoint).unwrap();
        assert_eq!(
            asked(&default, Some("eu-central-1"), None),
            "eu-central-1 https://bucket.s3.eu-central-1.amazonaws.com"
        );
        assert_eq!(
            asked(&default, Some("cn-north-1"), None),
            "cn-north-1 https://bucket.s3.cn-north-1.amazonaws.com.cn"
        );
        assert_eq!(
            asked(&default, None, Some("http://127.0.0.1:9000/")),
            "us-east-1 http://127.0.0.1:9000/bucket"
        );
        // What the environment says is held to the same rule.
        assert_eq!(
            address(&default, None, Some("http://minio:9000")),
            Err(BucketConfigError::PlainHttp)
        );
        let own = BucketConfig {
            region: Some("eu-west-1".to_owned()),
            endpoint: Some("https://s3.example".to_owned()),
            path_style: Some(false),
            ..BucketConfig::default()
        };
        assert_eq!(
            asked(&own, Some("eu-central-1"), Some("http://minio:9000")),
            "eu-west-1 https://bucket.s3.example"
        );
        let dotted = Address::of("a.b", &default, Some("eu-central-1".to_owned()), None).unwrap();
        assert_eq!(dotted.of_bucket("a.b"), "https://s3.eu-central-1.amazonaws.com/a.b");
    }
}
