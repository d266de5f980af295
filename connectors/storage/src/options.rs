//! How a bucket is reached: the keys that stand beside `s3://…` in a configuration.

use std::time::Duration;

use schemars::JsonSchema;
use sealflow::units::Span;
use sealflow_kms::{ChainConfig, StaticCredentials, is_endpoint, is_region};
use serde::Deserialize;

const MAX_ATTEMPTS: u32 = 20;
const MAX_TIMEOUT: Duration = Duration::from_secs(300);

/// How to reach a bucket, and as whom. Everything is optional: the default is AWS's own endpoint in the region of the AWS
/// configuration, with the credentials that the AWS command line would use.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BucketConfig {
    /// The bucket's region. Default: that of the AWS configuration (`AWS_REGION`, profile).
    pub region: Option<String>,
    /// Another endpoint than AWS's, without the bucket: `https://HOST[:PORT]`. Default: `AWS_ENDPOINT_URL_S3`,
    /// `AWS_ENDPOINT_URL`, then AWS's own.
    pub endpoint: Option<String>,
    /// Takes an endpoint without TLS that is not on loopback: names of objects and what identifies the caller go in clear.
    pub allow_http: bool,
    /// Whether the bucket stands in the path of addresses rather than in their host. Default: with another endpoint than AWS's,
    /// and for buckets with a dot in their name.
    pub path_style: Option<bool>,
    /// The profile in `~/.aws/config` to take credentials from.
    pub profile: Option<String>,
    /// Static credentials, instead of the credential chain (environment, profile, web identity, container, instance).
    pub credentials: Option<StaticCredentials>,
    /// How S3 encrypts what it stores. Default: as the bucket says.
    pub server_side_encryption: Option<ServerSideEncryption>,
    /// How long S3 may take to begin an answer; what is sent adds a second for each MiB.
    pub timeout: Span,
    /// How long making a connection may take; never more than `timeout`.
    pub connect_timeout: Span,
    /// How often a request is tried before it counts as failed, the first time included; with waits that grow and jitter.
    pub attempts: u32,
}

/// What S3 encrypts objects with. They are sealed anyway: this is for those whose buckets demand it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ServerSideEncryption {
    /// Keys of S3 (SSE-S3).
    Aes256 {},
    /// A key of KMS (SSE-KMS).
    Kms {
        /// The key's ARN.
        key: String,
        /// Whether S3 asks KMS for a key per bucket rather than per object. Default: as the bucket says.
        #[serde(default)]
        bucket_key: Option<bool>,
    },
}

impl Default for BucketConfig {
    fn default() -> Self {
        Self {
            region: None,
            endpoint: None,
            allow_http: false,
            path_style: None,
            profile: None,
            credentials: None,
            server_side_encryption: None,
            timeout: Span(Duration::from_secs(5)),
            connect_timeout: Span(Duration::from_secs(2)),
            attempts: 4,
        }
    }
}

/// Why the options of a bucket cannot be used. Messages begin with the key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BucketConfigError {
    /// Not a URL that an object store could have.
    #[error("endpoint: expected https://HOST[:PORT] without user, path, query or bucket")]
    Endpoint,
    /// Without TLS, to another machine.
    #[error("endpoint: http:// to another machine shows who asks and for what")]
    PlainHttp,
    /// Not a region.
    #[error("region: expected lower-case letters, digits and hyphens, such as eu-central-1")]
    Region,
    /// Neither the configuration nor the AWS configuration names one.
    #[error("region: is named neither here nor by the AWS configuration")]
    NoRegion,
    /// A count or span out of bounds.
    #[error("{key}: expected {expected}")]
    OutOfBounds {
        /// The key.
        key: &'static str,
        /// What would be taken.
        expected: &'static str,
    },
    /// Keys that exclude each other.
    #[error("profile, credentials: choose one of them")]
    Conflict,
    /// Credentials that cannot be used.
    #[error("credentials: access_key_id or secret_access_key is empty")]
    Credentials,
    /// Not the ARN of a KMS key.
    #[error("server_side_encryption.kms.key: expected arn:aws:kms:REGION:ACCOUNT:key/ID, or alias/NAME")]
    EncryptionKey,
    /// The system's certificates cannot be read.
    #[error("endpoint: no trusted certificates on this machine")]
    NoCertificates,
}

impl BucketConfigError {
    /// What to do about it.
    #[must_use]
    pub fn help(&self) -> &'static str {
        match self {
            Self::PlainHttp => "use https://, or set `allow_http: true` if the network in between is yours",
            Self::NoRegion => "set `region`, or AWS_REGION",
            Self::NoCertificates => "install the system's CA certificates",
            _ => "`sealflow schema pipeline` says what this key takes",
        }
    }
}

impl BucketConfig {
    /// Checks everything that can be checked without asking anybody.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self) -> Result<(), BucketConfigError> {
        if let Some(endpoint) = &self.endpoint {
            check_endpoint(endpoint, self.allow_http)?;
        }
        if self.region.as_deref().is_some_and(|region| !is_region(region)) {
            return Err(BucketConfigError::Region);
        }
        for (key, span) in [("timeout", self.timeout), ("connect_timeout", self.connect_timeout)] {
            if span.0.is_zero() || span.0 > MAX_TIMEOUT {
                let expected = "more than 0ms and at most 5m";
                return Err(BucketConfigError::OutOfBounds { key, expected });
            }
        }
        if self.attempts == 0 || self.attempts > MAX_ATTEMPTS {
            return Err(BucketConfigError::OutOfBounds {
                key: "attempts",
                expected: "1 to 20",
            });
        }
        if self.profile.is_some() && self.credentials.is_some() {
            return Err(BucketConfigError::Conflict);
        }
        if let Some(credentials) = &self.credentials
            && (credentials.access_key_id.is_empty() || credentials.secret_access_key.expose().is_empty())
        {
            return Err(BucketConfigError::Credentials);
        }
        if let Some(ServerSideEncryption::Kms { key, .. }) = &self.server_side_encryption
            && !is_key_arn(key)
        {
            return Err(BucketConfigError::EncryptionKey);
        }
        Ok(())
    }

    /// What the credential chain takes from it.
    pub(crate) fn chain(&self) -> ChainConfig {
        ChainConfig {
            region: self.region.clone(),
            profile: self.profile.clone(),
            credentials: self.credentials.clone(),
            timeout: self.timeout.0,
            connect_timeout: self.connect_timeout.0,
            attempts: self.attempts,
            use_fips: false,
            use_dual_stack: false,
        }
    }
}

/// Wherever the endpoint comes from: without TLS only to this machine, unless that was asked for.
pub(crate) fn check_endpoint(endpoint: &str, allow_http: bool) -> Result<(), BucketConfigError> {
    if !is_endpoint(endpoint) {
        return Err(BucketConfigError::Endpoint);
    }
    if endpoint.starts_with("http://") && !allow_http && !is_loopback(endpoint) {
        return Err(BucketConfigError::PlainHttp);
    }
    Ok(())
}

fn is_loopback(endpoint: &str) -> bool {
    let authority = endpoint
        .split_once("://")
        .map_or("", |(_, rest)| rest)
        .trim_end_matches('/');
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

/// `arn:PARTITION:kms:REGION:ACCOUNT:key/ID` or `…:alias/NAME`. It becomes a header, so nothing else is let through.
fn is_key_arn(arn: &str) -> bool {
    let parts: Vec<&str> = arn.splitn(6, ':').collect();
    let ["arn", partition, "kms", region, account, resource] = parts[..] else {
        return false;
    };
    let is_word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'/');
    let name = resource
        .strip_prefix("key/")
        .or_else(|| resource.strip_prefix("alias/"));
    partition.starts_with("aws")
        && is_region(region)
        && account.len() == 12
        && account.bytes().all(|b| b.is_ascii_digit())
        && name.is_some_and(|name| !name.is_empty() && name.len() <= 256 && name.bytes().all(is_word))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "arn:aws:kms:eu-central-1:111122223333:key/6a1f1a6e-0000-4000-8000-000000000001";

    fn check(change: impl FnOnce(&mut BucketConfig)) -> Result<(), BucketConfigError> {
        let mut config = BucketConfig::default();
        change(&mut config);
        config.check()
    }

    #[test]
    fn plain_http_goes_to_this_machine_only_unless_it_is_allowed() {
        for good in [
            "http://127.0.0.1:9000",
            "http://[::1]:9000",
            "http://localhost",
            "https://minio.internal:9000/",
        ] {
            assert_eq!(check(|c| c.endpoint = Some(good.to_owned())), Ok(()), "{good}");
        }
        for bad in [
            "http://minio:9000",
            "http://127.0.0.1.evil.example",
            "http://10.0.0.1",
            "http://localhost.evil.example",
        ] {
            let refused = check(|c| c.endpoint = Some(bad.to_owned()));
            assert_eq!(refused, Err(BucketConfigError::PlainHttp), "{bad}");
            let allowed = check(|c| {
                c.endpoint = Some(bad.to_owned());
                c.allow_http = true;
            });
            assert_eq!(allowed, Ok(()), "{bad}");
        }
        for bad in [
            "minio:9000",
            "https://me@minio",
            "https://minio/bucket",
            "https://minio?x",
            "ftp://minio",
        ] {
            let refused = check(|c| c.endpoint = Some(bad.to_owned()));
            assert_eq!(refused, Err(BucketConfigError::Endpoint), "{bad}");
        }
    }

    #[test]
    fn bad_options_are_named() {
        assert_eq!(check(|_| {}), Ok(()));
        assert_eq!(
            check(|c| c.region = Some("EU".to_owned())),
            Err(BucketConfigError::Region)
        );
        let out_of_bounds = |key| move |e: BucketConfigError| e.to_string().starts_with(key);
        assert!(check(|c| c.attempts = 0).is_err_and(out_of_bounds("attempts")));
        assert!(check(|c| c.timeout = Span(Duration::ZERO)).is_err_and(out_of_bounds("timeout")));
        let encrypted = |key: &str| {
            let key = key.to_owned();
            check(|c| c.server_side_encryption = Some(ServerSideEncryption::Kms { key, bucket_key: None }))
        };
        assert_eq!(encrypted(KEY), Ok(()));
        for bad in [
            "",
            "alias/a",
            "arn:aws:kms:eu-central-1:111122223333:key/",
            "arn:aws:s3:::a",
            "arn:aws:kms:eu-central-1:111122223333:key/a\r\nx: y",
        ] {
            assert_eq!(encrypted(bad), Err(BucketConfigError::EncryptionKey), "{bad}");
        }
    }

    #[test]
    fn unknown_keys_are_refused_and_secrets_redacted() {
        let text = format!(
            r#"{{"region":"eu-central-1","timeout":"3s","server_side_encryption":{{"kms":{{"key":"{KEY}","bucket_key":true}}}},
            "credentials":{{"access_key_id":"AKIA","secret_access_key":"hunter2"}}}}"#
        );
        let config: BucketConfig = serde_json::from_str(&text).unwrap();
        assert_eq!(config.check(), Ok(()));
        assert!(!format!("{config:?}").contains("hunter2"));
        let sse: BucketConfig = serde_json::from_str(r#"{"server_side_encryption":{"aes256":{}}}"#).unwrap();
        assert_eq!(sse.server_side_encryption, Some(ServerSideEncryption::Aes256 {}));
        for bad in [
            r#"{"regoin":"eu-central-1"}"#,
            r#"{"server_side_encryption":{"kms":{"kye":"a"}}}"#,
            r#"{"server_side_encryption":{"aes256":{"key":"a"}}}"#,
            r#"{"server_side_encryption":"none"}"#,
        ] {
            assert!(serde_json::from_str::<BucketConfig>(bad).is_err(), "{bad}");
        }
        let both = BucketConfig {
            profile: Some("dev".to_owned()),
            ..config
        };
        assert_eq!(both.check(), Err(BucketConfigError::Conflict));
    }
}
