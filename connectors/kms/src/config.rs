//! The `kms:` section of a configuration.

use std::time::Duration;

use schemars::JsonSchema;
use sealflow::secret::SecretString;
use sealflow::units::Span;
use serde::Deserialize;

use crate::arn::is_region;

const MAX_ATTEMPTS: u32 = 20;
const MAX_TIMEOUT: Duration = Duration::from_secs(300);

/// How to reach KMS, and as whom. Everything is optional: the default is AWS's own endpoints with the credentials that
/// the AWS command line would use.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct KmsConfig {
    /// The region of STS and of profiles without one. Keys are always asked for in the region that their ARN names.
    pub region: Option<String>,
    /// Another endpoint than AWS's, for example a VPC endpoint or `sealflow kms serve`: `http://` or `https://`.
    pub endpoint: Option<String>,
    /// Another endpoint for STS. Default: `endpoint`, unless that is one of AWS's own names.
    pub sts_endpoint: Option<String>,
    /// The profile in `~/.aws/config` to take credentials from.
    pub profile: Option<String>,
    /// Static credentials, instead of the credential chain (environment, profile, web identity, container, instance).
    pub credentials: Option<StaticCredentials>,
    /// How long one attempt may take.
    pub timeout: Span,
    /// How long making a connection may take; never more than `timeout`.
    pub connect_timeout: Span,
    /// How often a request is tried before it counts as failed, the first time included; with waits that grow and jitter.
    pub attempts: u32,
    /// Uses AWS's FIPS endpoints.
    pub use_fips: bool,
    /// Uses AWS's dual-stack (IPv6) endpoints.
    pub use_dual_stack: bool,
}

/// Credentials that stand in the configuration itself.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StaticCredentials {
    /// The access key id.
    pub access_key_id: String,
    /// Its secret.
    pub secret_access_key: SecretString,
    /// The session token of temporary credentials.
    #[serde(default)]
    pub session_token: Option<SecretString>,
}

impl Default for KmsConfig {
    fn default() -> Self {
        Self {
            region: None,
            endpoint: None,
            sts_endpoint: None,
            profile: None,
            credentials: None,
            timeout: Span(Duration::from_secs(5)),
            connect_timeout: Span(Duration::from_secs(2)),
            attempts: 3,
            use_fips: false,
            use_dual_stack: false,
        }
    }
}

/// Why a `kms:` section cannot be used.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum KmsConfigError {
    /// Not a URL that a KMS could have.
    #[error("{key}: expected http://HOST:PORT or https://HOST:PORT without user, path or query")]
    Endpoint {
        /// `endpoint` or `sts_endpoint`.
        key: &'static str,
    },
    /// Not a region.
    #[error("region: expected lower-case letters, digits and hyphens, such as eu-central-1")]
    Region,
    /// A count or span out of bounds.
    #[error("{key}: expected {expected}")]
    OutOfBounds {
        /// The key.
        key: &'static str,
        /// What would be taken.
        expected: &'static str,
    },
    /// Keys that exclude each other.
    #[error("{keys}: choose one of them")]
    Conflict {
        /// Both keys.
        keys: &'static str,
    },
    /// Credentials that cannot be used.
    #[error("credentials.{key}: is empty")]
    Credentials {
        /// The part that is missing.
        key: &'static str,
    },
}

impl KmsConfig {
    /// Checks everything that can be checked without asking anybody.
    pub fn check(&self) -> Result<(), KmsConfigError> {
        for (key, endpoint) in [("endpoint", &self.endpoint), ("sts_endpoint", &self.sts_endpoint)] {
            if endpoint.as_deref().is_some_and(|url| !is_endpoint(url)) {
                return Err(KmsConfigError::Endpoint { key });
            }
        }
        if self.region.as_deref().is_some_and(|region| !is_region(region)) {
            return Err(KmsConfigError::Region);
        }
        for (key, span) in [("timeout", self.timeout), ("connect_timeout", self.connect_timeout)] {
            if span.0.is_zero() || span.0 > MAX_TIMEOUT {
                return Err(KmsConfigError::OutOfBounds {
                    key,
                    expected: "more than 0ms and at most 5m",
                });
            }
        }
        if self.attempts == 0 || self.attempts > MAX_ATTEMPTS {
            return Err(KmsConfigError::OutOfBounds {
                key: "attempts",
                expected: "1 to 20",
            });
        }
        if self.profile.is_some() && self.credentials.is_some() {
            return Err(KmsConfigError::Conflict {
                keys: "profile, credentials",
            });
        }
        if let Some(credentials) = &self.credentials {
            if credentials.access_key_id.is_empty() {
                return Err(KmsConfigError::Credentials { key: "access_key_id" });
            }
            if credentials.secret_access_key.expose().is_empty() {
                return Err(KmsConfigError::Credentials {
                    key: "secret_access_key",
                });
            }
        }
        Ok(())
    }

    /// Where STS is asked who we are; `None` is AWS's own.
    pub(crate) fn sts_endpoint(&self) -> Option<&str> {
        let shared = self.endpoint.as_deref().filter(|url| !host(url).is_some_and(is_amazon));
        self.sts_endpoint.as_deref().or(shared)
    }
}

/// Whether `url` is `http://HOST[:PORT]` or `https://HOST[:PORT]`, without user, path or query.
#[must_use]
pub fn is_endpoint(url: &str) -> bool {
    let authority = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    let authority = authority.map(|a| a.strip_suffix('/').unwrap_or(a));
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b'[' | b']' | b'_');
    authority.is_some_and(|a| !a.is_empty() && a.bytes().all(plain))
}

fn host(url: &str) -> Option<&str> {
    let authority = url.split_once("://")?.1.trim_end_matches('/');
    Some(authority.split(':').next().unwrap_or(authority))
}

fn is_amazon(host: &str) -> bool {
    [".amazonaws.com", ".amazonaws.com.cn", ".api.aws"]
        .iter()
        .any(|suffix| host.ends_with(suffix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(change: impl FnOnce(&mut KmsConfig)) -> Result<(), KmsConfigError> {
        let mut config = KmsConfig::default();
        change(&mut config);
        config.check()
    }

    #[test]
    fn bad_sections_are_named() {
        assert_eq!(check(|_| {}), Ok(()));
        for url in ["http://127.0.0.1:4599", "https://kms.example/", "http://[::1]:80"] {
            assert_eq!(check(|c| c.endpoint = Some(url.to_owned())), Ok(()), "{url}");
        }
        for url in [
            "",
            "localhost:4599",
            "ftp://a",
            "http://",
            "http://me@a",
            "http://a/b",
            "http://a?b",
        ] {
            let refused = check(|c| c.endpoint = Some(url.to_owned()));
            assert_eq!(refused, Err(KmsConfigError::Endpoint { key: "endpoint" }), "{url}");
        }
        assert_eq!(check(|c| c.region = Some("EU".to_owned())), Err(KmsConfigError::Region));
        assert!(matches!(
            check(|c| c.attempts = 0),
            Err(KmsConfigError::OutOfBounds { key: "attempts", .. })
        ));
        let zero = check(|c| c.timeout = Span(Duration::ZERO));
        assert!(matches!(zero, Err(KmsConfigError::OutOfBounds { key: "timeout", .. })));
    }

    #[test]
    fn unknown_keys_are_refused_and_secrets_redacted() {
        assert!(serde_json::from_str::<KmsConfig>(r#"{"regoin":"eu-central-1"}"#).is_err());
        let text = r#"{"timeout":"3s","credentials":{"access_key_id":"AKIA","secret_access_key":"hunter2","session_token":"hunter3"}}"#;
        let config: KmsConfig = serde_json::from_str(text).unwrap();
        assert_eq!((config.timeout.0, config.attempts), (Duration::from_secs(3), 3));
        assert!(!format!("{config:?}").contains("hunter"));
        let both = KmsConfig {
            profile: Some("dev".to_owned()),
            ..config
        };
        assert!(matches!(both.check(), Err(KmsConfigError::Conflict { .. })));
    }

    #[test]
    fn sts_is_asked_at_our_endpoint_but_not_at_a_vpc_endpoint_of_kms() {
        let with = |endpoint: &str| KmsConfig {
            endpoint: Some(endpoint.to_owned()),
            ..KmsConfig::default()
        };
        assert_eq!(
            with("http://127.0.0.1:4599").sts_endpoint(),
            Some("http://127.0.0.1:4599")
        );
        assert_eq!(
            with("https://vpce-1.kms.eu-central-1.vpce.amazonaws.com").sts_endpoint(),
            None
        );
        let explicit = KmsConfig {
            sts_endpoint: Some("http://a".to_owned()),
            ..with("http://127.0.0.1:4599")
        };
        assert_eq!(explicit.sts_endpoint(), Some("http://a"));
        assert_eq!(KmsConfig::default().sts_endpoint(), None);
    }
}
