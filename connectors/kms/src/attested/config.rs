//! Where the attested client asks, and how patiently. In an enclave all of it is measured.

use std::collections::BTreeSet;
use std::time::Duration;

use http::Uri;
use sealflow::units::Span;
use serde::Deserialize;

use crate::arn::ArnPatterns;

const MAX_ATTEMPTS: u32 = 20;
const MAX_TIMEOUT: Duration = Duration::from_secs(60);

/// How [`AttestedKms`](super::AttestedKms) reaches KMS.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttestedKmsConfig {
    /// The keys that may be asked for.
    pub keys: ArnPatterns,
    /// Another endpoint than AWS's, for all regions: `https://HOST[:PORT]`. For development.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// Uses AWS's FIPS endpoints.
    #[serde(default)]
    pub use_fips: bool,
    /// Uses AWS's dual-stack (IPv6) endpoints.
    #[serde(default)]
    pub use_dual_stack: bool,
    /// How long one attempt may take; default 5 s.
    #[serde(default = "default_timeout")]
    pub timeout: Span,
    /// How often a request is tried before it counts as failed, the first time included; default 3.
    #[serde(default = "default_attempts")]
    pub attempts: u32,
}

fn default_timeout() -> Span {
    Span(Duration::from_secs(5))
}

fn default_attempts() -> u32 {
    3
}

/// Why it cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AttestedKmsConfigError {
    /// Not a URL that TLS begins at.
    #[error("endpoint: expected https://HOST[:PORT] without user, path or query")]
    Endpoint,
    /// A count or span out of bounds.
    #[error("{key}: expected {expected}")]
    OutOfBounds {
        /// The key.
        key: &'static str,
        /// What would be taken.
        expected: &'static str,
    },
}

impl AttestedKmsConfig {
    /// For these keys, all else by default.
    #[must_use]
    pub fn new(keys: ArnPatterns) -> Self {
        Self {
            keys,
            endpoint: None,
            use_fips: false,
            use_dual_stack: false,
            timeout: default_timeout(),
            attempts: default_attempts(),
        }
    }

    /// Checks everything that can be checked without asking anybody.
    ///
    /// # Errors
    /// [`AttestedKmsConfigError`]
    pub fn check(&self) -> Result<(), AttestedKmsConfigError> {
        self.hosts()?;
        if self.timeout.0.is_zero() || self.timeout.0 > MAX_TIMEOUT {
            return Err(AttestedKmsConfigError::OutOfBounds {
                key: "timeout",
                expected: "more than 0ms and at most 1m",
            });
        }
        if self.attempts == 0 || self.attempts > MAX_ATTEMPTS {
            return Err(AttestedKmsConfigError::OutOfBounds {
                key: "attempts",
                expected: "1 to 20",
            });
        }
        Ok(())
    }

    /// The hosts and ports that it asks, and no others: what the client's list and the relay's must hold.
    ///
    /// # Errors
    /// [`AttestedKmsConfigError::Endpoint`]
    pub fn hosts(&self) -> Result<BTreeSet<(String, u16)>, AttestedKmsConfigError> {
        if let Some(endpoint) = &self.endpoint {
            return Ok(BTreeSet::from([
                host_of(endpoint).ok_or(AttestedKmsConfigError::Endpoint)?
            ]));
        }
        let regions = self.keys.regions().into_iter();
        Ok(regions
            .map(|(region, partition)| (self.host(region, partition), 443))
            .collect())
    }

    /// As AWS names it (AWS General Reference, "AWS KMS endpoints and quotas").
    fn host(&self, region: &str, partition: &str) -> String {
        let service = if self.use_fips { "kms-fips" } else { "kms" };
        let suffix = match (self.use_dual_stack, partition) {
            (false, "aws-cn") => "amazonaws.com.cn",
            (false, _) => "amazonaws.com",
            (true, "aws-cn") => "api.amazonwebservices.com.cn",
            (true, _) => "api.aws",
        };
        format!("{service}.{region}.{suffix}")
    }
}

fn host_of(endpoint: &str) -> Option<(String, u16)> {
    let url: Uri = endpoint.parse().ok()?;
    let authority = url.authority()?;
    let is_bare = url.path_and_query().is_none_or(|path| path.as_str() == "/");
    if url.scheme_str() != Some("https") || !is_bare || authority.as_str().contains('@') {
        return None;
    }
    let host = authority.host().to_ascii_lowercase();
    let bare = host
        .strip_prefix('[')
        .and_then(|h| h.strip_suffix(']'))
        .unwrap_or(&host);
    (!bare.is_empty()).then(|| (bare.to_owned(), authority.port_u16().unwrap_or(443)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests

    use super::*;

    fn config(key: &str) -> AttestedKmsConfig {
        AttestedKmsConfig::new(ArnPatterns::parse(&[key]).unwrap())
    }

    fn hosts(config: &AttestedKmsConfig) -> Vec<String> {
        let hosts = config.hosts().unwrap().into_iter();
        hosts.map(|(host, port)| format!("{host}:{port}")).collect()
    }

    #[test]
    fn each_region_has_one_host_and_an_endpoint_stands_for_all() {
        let mut aws = config("arn:aws:kms:eu-central-1:111122223333:key/*");
        assert_eq!(hosts(&aws), ["kms.eu-central-1.amazonaws.com:443"]);
        aws.use_fips = true;
        assert_eq!(hosts(&aws), ["kms-fips.eu-central-1.amazonaws.com:443"]);
        aws.use_dual_stack = true;
        assert_eq!(hosts(&aws), ["kms-fips.eu-central-1.api.aws:443"]);
        let china = config("arn:aws-cn:kms:cn-north-1:111122223333:key/*");
        assert_eq!(hosts(&china), ["kms.cn-north-1.amazonaws.com.cn:443"]);
        aws.endpoint = Some("https://localhost:4599".to_owned());
        assert_eq!(hosts(&aws), ["localhost:4599"]);
        for bad in [
            "http://localhost",
            "https://",
            "localhost:1",
            "https://a@b",
            "https://a/b",
            "https://a?b",
        ] {
            aws.endpoint = Some(bad.to_owned());
            assert_eq!(aws.check(), Err(AttestedKmsConfigError::Endpoint), "{bad}");
        }
    }

    #[test]
    fn sections_with_unknown_keys_or_without_bounds_are_refused() {
        let keys = r#""keys":["arn:aws:kms:eu-central-1:111122223333:key/*"]"#;
        let read = |rest: &str| serde_json::from_str::<AttestedKmsConfig>(&format!("{{{keys}{rest}}}"));
        let plain = read("").unwrap();
        assert_eq!(
            (plain.check(), plain.timeout.0, plain.attempts),
            (Ok(()), Duration::from_secs(5), 3)
        );
        assert!(
            read(r#","endpiont":"https://a""#).is_err() && serde_json::from_str::<AttestedKmsConfig>("{}").is_err()
        );
        for (rest, key) in [(r#","attempts":0"#, "attempts"), (r#","timeout":"0ms""#, "timeout")] {
            let refused = read(rest).unwrap().check();
            assert!(matches!(refused, Err(AttestedKmsConfigError::OutOfBounds { key: k, .. }) if k == key));
        }
    }
}
