//! Sections of the service's configuration that are its own: TLS, identity, limits; and what they may not say although
//! their form is right.

use std::time::Duration;

use schemars::JsonSchema;
use sealflow::acl::oidc::{DEFAULT_GROUPS_CLAIM, TrustedIssuer};
use sealflow::acl::sts::{StsEndpoint, StsTrust};
use sealflow::units::{ByteSize, Span};
use serde::Deserialize;

/// The word for `https://sts.amazonaws.com` among regions.
const GLOBAL: &str = "global";
/// Most issuers, and most audiences of one.
const MAX_LISTED: usize = 32;

/// A value that cannot be meant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {message}")]
pub struct ConfigError {
    /// The key, below the section: `oidc[0].jwks_uri`.
    pub path: String,
    /// What is wrong with it.
    pub message: String,
    /// What to do.
    pub help: String,
}

fn wrong<T>(path: impl Into<String>, message: impl Into<String>, help: &str) -> Result<T, ConfigError> {
    Err(ConfigError {
        path: path.into(),
        message: message.into(),
        help: help.to_owned(),
    })
}

/// Who is believed to be whom. At least one of `sts` and `oidc`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct IdentityConfig {
    /// The name of this service, which presigned requests carry as a signed header: best its host name.
    pub server_id: String,
    /// Callers with AWS credentials, who presign a request to STS.
    #[serde(default)]
    pub sts: Option<StsConfig>,
    /// Issuers of tokens.
    #[serde(default)]
    pub oidc: Vec<OidcConfig>,
}

/// Which STS endpoints presigned requests may be for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StsConfig {
    /// Regions, as `eu-central-1`; `global` is `https://sts.amazonaws.com`.
    pub regions: Vec<String>,
    /// Accounts whose roles and users may ask: 12 digits each. Empty: those of every account, who are known to STS and may
    /// still be strangers here.
    pub accounts: Vec<String>,
    /// Other endpoints by their origin (a VPC endpoint, another partition): `https://HOST[:PORT]`, or `http://` on loopback.
    pub endpoints: Vec<String>,
}

/// An issuer of OIDC tokens.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OidcConfig {
    /// Exactly `iss` of its tokens.
    pub issuer: String,
    /// `aud` must be, or hold, one of these.
    pub audiences: Vec<String>,
    /// Where its keys are. Nothing else is looked up: there is no discovery.
    pub jwks_uri: String,
    /// The claim that lists groups.
    #[serde(default = "groups_claim")]
    pub groups_claim: String,
}

fn groups_claim() -> String {
    DEFAULT_GROUPS_CLAIM.to_owned()
}

/// What one caller, and all together, may ask.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// The longest request body.
    pub body: ByteSize,
    /// Most records of one request.
    pub records: u32,
    /// Most single values of one request.
    pub values: u32,
    /// Requests per second and principal, in the long run.
    pub requests_per_second: u32,
    /// Requests that a principal may make at once after a rest.
    pub requests_burst: u32,
    /// Values per second and principal, opened or refused, in the long run.
    pub values_per_second: u32,
    /// Values that a principal may ask for at once after a rest.
    pub values_burst: u32,
    /// Requests that are worked on at once.
    pub in_flight: u32,
    /// Those of one principal among them.
    pub in_flight_per_principal: u32,
    /// Connections at once.
    pub connections: u32,
    /// Those of one peer address (IPv6: /64) among them. Raise it where callers come through one proxy.
    pub connections_per_address: u32,
    /// Requests per second and peer address (IPv6: /64) whose proof fails, in the long run.
    pub unproven_per_second: u32,
    /// Such requests at once after a rest.
    pub unproven_burst: u32,
    /// How long a head may take to arrive, the wait for the next request of a connection included.
    pub head_timeout: Span,
    /// How long a body may take to arrive.
    pub body_timeout: Span,
    /// How long a request may be worked on, its body included.
    pub request_timeout: Span,
    /// How long a connection may take no byte of an answer.
    pub answer_timeout: Span,
    /// How long a connection may take for a whole answer: whoever takes a byte now and then is cut off, too.
    pub whole_answer_timeout: Span,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        let seconds = |seconds| Span(Duration::from_secs(seconds));
        Self {
            body: ByteSize(4 << 20),
            records: 1_000,
            values: 10_000,
            requests_per_second: 20,
            requests_burst: 40,
            values_per_second: 10_000,
            values_burst: 20_000,
            in_flight: 64,
            in_flight_per_principal: 16,
            connections: 512,
            connections_per_address: 64,
            unproven_per_second: 5,
            unproven_burst: 20,
            head_timeout: seconds(10),
            body_timeout: seconds(10),
            request_timeout: seconds(30),
            answer_timeout: seconds(10),
            whole_answer_timeout: seconds(30),
        }
    }
}

impl IdentityConfig {
    /// Checks everything that needs nobody else.
    ///
    /// # Errors
    /// [`ConfigError`], its path below `identity`.
    pub fn check(&self) -> Result<(), ConfigError> {
        if StsTrust::new(Vec::new(), self.server_id.as_str()).is_none() {
            let help = "1 to 128 visible ASCII characters; best the host name that callers use";
            return wrong("server_id", "not a name that can stand in a header", help);
        }
        if self.sts.is_none() && self.oidc.is_empty() {
            let help = "add `sts: { regions: [eu-central-1] }` or an entry of `oidc`";
            return wrong("sts", "nobody could prove who they are", help);
        }
        self.endpoints()?;
        if self.oidc.len() > MAX_LISTED {
            return wrong(
                "oidc",
                format!("more than {MAX_LISTED} issuers"),
                "run a second service",
            );
        }
        for (n, oidc) in self.oidc.iter().enumerate() {
            let at = |key: &str| format!("oidc[{n}].{key}");
            if oidc.issuer.is_empty() {
                return wrong(at("issuer"), "is empty", "write exactly `iss` of the issuer's tokens");
            }
            if self.oidc[..n].iter().any(|other| other.issuer == oidc.issuer) {
                return wrong(at("issuer"), "stands twice", "put the audiences of both into one entry");
            }
            let is_good = !oidc.audiences.is_empty()
                && oidc.audiences.len() <= MAX_LISTED
                && oidc.audiences.iter().all(|audience| !audience.is_empty());
            if !is_good {
                let help = "name the audience that the issuer gives tokens for this service, best the server_id";
                return wrong(at("audiences"), "names nothing, or too much", help);
            }
            if !is_fetched_safely(&oidc.jwks_uri) {
                let help = "https://HOST/PATH without user, or http:// on loopback (127.0.0.1, [::1])";
                return wrong(at("jwks_uri"), "not where keys are fetched from", help);
            }
            if oidc.groups_claim.is_empty() {
                return wrong(at("groups_claim"), "is empty", "remove it for `groups`");
            }
        }
        Ok(())
    }

    /// What presigned requests are checked by; `None` if none are taken.
    pub(crate) fn sts_trust(&self) -> Result<Option<StsTrust>, ConfigError> {
        let Some(endpoints) = self.endpoints()? else {
            return Ok(None);
        };
        Ok(StsTrust::new(endpoints, self.server_id.as_str()))
    }

    /// Accounts that are served; empty for all.
    pub(crate) fn sts_accounts(&self) -> Vec<String> {
        self.sts.as_ref().map(|sts| sts.accounts.clone()).unwrap_or_default()
    }

    fn endpoints(&self) -> Result<Option<Vec<StsEndpoint>>, ConfigError> {
        let Some(sts) = &self.sts else { return Ok(None) };
        let mut endpoints = Vec::new();
        for (n, region) in sts.regions.iter().enumerate() {
            let endpoint = match region.as_str() {
                GLOBAL => Some(StsEndpoint::Global),
                region => StsEndpoint::of_region(region),
            };
            match endpoint {
                Some(endpoint) => endpoints.push(endpoint),
                None => {
                    let help = "write a region's name as eu-central-1, or global";
                    return wrong(format!("sts.regions[{n}]"), "not a region", help);
                }
            }
        }
        for (n, origin) in sts.endpoints.iter().enumerate() {
            match StsEndpoint::of_origin(origin) {
                Some(endpoint) => endpoints.push(endpoint),
                None => {
                    let help =
                        "https://HOST[:PORT] in small letters without a slash at the end; http:// on loopback only";
                    return wrong(format!("sts.endpoints[{n}]"), "not the origin of an endpoint", help);
                }
            }
        }
        for (n, account) in sts.accounts.iter().enumerate() {
            if account.len() != 12 || !account.bytes().all(|b| b.is_ascii_digit()) {
                let help = "write its 12 digits, in quotes";
                return wrong(format!("sts.accounts[{n}]"), "not the number of an account", help);
            }
        }
        if endpoints.is_empty() {
            let help = "list the regions whose STS callers may sign for, or remove `sts`";
            return wrong("sts.regions", "no endpoint is listed", help);
        }
        Ok(Some(endpoints))
    }
}

impl OidcConfig {
    /// As the core checks its tokens.
    pub(crate) fn trusted(&self) -> TrustedIssuer {
        TrustedIssuer::new(self.issuer.as_str(), self.audiences.clone()).with_groups_claim(self.groups_claim.as_str())
    }
}

/// `https://`, or `http://` to an address of loopback; no user, no fragment.
fn is_fetched_safely(uri: &str) -> bool {
    let Ok(uri) = uri.parse::<hyper::Uri>() else {
        return false;
    };
    let (Some(host), Some(authority)) = (uri.host(), uri.authority()) else {
        return false;
    };
    let is_loopback = || {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        host.parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
    };
    let is_taken = match uri.scheme_str() {
        Some("https") => true,
        Some("http") => is_loopback(),
        _ => false,
    };
    is_taken && !authority.as_str().contains('@') && !host.is_empty()
}

impl LimitsConfig {
    /// Checks that each limit lets something through and bounds something.
    ///
    /// # Errors
    /// [`ConfigError`], its path below `limits`.
    pub fn check(&self) -> Result<(), ConfigError> {
        let counts = [
            ("body", self.body.0, 64 << 20),
            ("records", self.records.into(), 100_000),
            ("values", self.values.into(), 1_000_000),
            ("requests_per_second", self.requests_per_second.into(), 1_000_000),
            ("requests_burst", self.requests_burst.into(), 1_000_000),
            ("values_per_second", self.values_per_second.into(), 1_000_000_000),
            ("values_burst", self.values_burst.into(), 1_000_000_000),
            ("in_flight", self.in_flight.into(), 10_000),
            ("in_flight_per_principal", self.in_flight_per_principal.into(), 10_000),
            ("connections", self.connections.into(), 100_000),
            ("connections_per_address", self.connections_per_address.into(), 100_000),
            ("unproven_per_second", self.unproven_per_second.into(), 10_000),
            ("unproven_burst", self.unproven_burst.into(), 10_000),
        ];
        for (key, value, most) in counts {
            if !(1..=most).contains(&value) {
                let help = "choose a value in that range, or remove the key for the default";
                return wrong(key, format!("must be between 1 and {most}"), help);
            }
        }
        let spans = [
            ("head_timeout", self.head_timeout),
            ("body_timeout", self.body_timeout),
            ("request_timeout", self.request_timeout),
            ("answer_timeout", self.answer_timeout),
            ("whole_answer_timeout", self.whole_answer_timeout),
        ];
        for (key, span) in spans {
            if span.0.is_zero() || span.0 > Duration::from_secs(600) {
                return wrong(key, "must be between 1ms and 10m", "seconds are usual: 10s");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn identity(json: &str) -> Result<(), String> {
        let config: IdentityConfig = serde_json::from_str(json).map_err(|error| error.to_string())?;
        config.check().map_err(|error| error.path)
    }

    #[test]
    fn whoever_could_not_be_proved_or_looked_up_safely_is_refused_at_the_start() {
        let issuer = |uri: &str, more: &str| {
            format!(
                r#"{{"server_id":"a","oidc":[{{"issuer":"https://i","audiences":["a"],"jwks_uri":"{uri}"{more}}}]}}"#
            )
        };
        for uri in [
            "https://i/keys",
            "https://i:8443/keys?x=1",
            "http://127.0.0.1:1/",
            "http://[::1]:1/k",
        ] {
            assert_eq!(identity(&issuer(uri, "")), Ok(()), "{uri}");
        }
        for uri in [
            "http://i/keys",
            "ftp://i/k",
            "/keys",
            "i",
            "",
            "https://user@i/k",
            "http://127.0.0.1.example.com/",
        ] {
            assert_eq!(identity(&issuer(uri, "")), Err("oidc[0].jwks_uri".to_owned()), "{uri}");
        }
        assert!(identity(&issuer("https://i/k", r#","discovery":true"#)).is_err());
        let sts = |section: &str| identity(&format!(r#"{{"server_id":"read.example.com","sts":{section}}}"#));
        assert_eq!(sts(r#"{"regions":["eu-central-1","global"]}"#), Ok(()));
        assert_eq!(sts(r#"{"endpoints":["http://127.0.0.1:5000"]}"#), Ok(()));
        assert_eq!(sts(r#"{"regions":["global"],"accounts":["111122223333"]}"#), Ok(()));
        assert_eq!(
            sts(r#"{"regions":["global"],"accounts":["11112222333"]}"#),
            Err("sts.accounts[0]".to_owned())
        );
        assert_eq!(sts("{}"), Err("sts.regions".to_owned()));
        assert_eq!(sts(r#"{"regions":["EU"]}"#), Err("sts.regions[0]".to_owned()));
        assert_eq!(
            sts(r#"{"endpoints":["http://sts.example.com"]}"#),
            Err("sts.endpoints[0]".to_owned())
        );
        assert_eq!(identity(r#"{"server_id":"a"}"#), Err("sts".to_owned()));
        assert_eq!(
            identity(r#"{"server_id":"a b","sts":{"regions":["global"]}}"#),
            Err("server_id".to_owned())
        );
    }

    #[test]
    fn a_limit_that_lets_nothing_through_or_bounds_nothing_is_refused() {
        assert_eq!(LimitsConfig::default().check(), Ok(()));
        let check = |json: &str| {
            let limits: LimitsConfig = serde_json::from_str(json).unwrap();
            limits.check().map_err(|error| error.path)
        };
        for (json, path) in [
            (r#"{"records":0}"#, "records"),
            (r#"{"body":"1GiB"}"#, "body"),
            (r#"{"head_timeout":"0s"}"#, "head_timeout"),
            (r#"{"whole_answer_timeout":"1h"}"#, "whole_answer_timeout"),
            (r#"{"unproven_burst":0}"#, "unproven_burst"),
        ] {
            assert_eq!(check(json), Err(path.to_owned()));
        }
        assert!(serde_json::from_str::<LimitsConfig>(r#"{"record":1}"#).is_err());
    }
}
