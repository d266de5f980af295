//! What a worker trusts: measured with it, so that whoever releases keys to its image knows it too. Nothing of this comes from the
//! host.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sealflow::acl::sts::{StsEndpoint, StsTrust};
use sealflow::policy::{Pin, TrustRuleError, TrustedOwners};
use sealflow::units::Span;
use sealflow_kms::{AttestedKmsConfig, AttestedKmsConfigError};
use serde::Deserialize;

use crate::sandbox::Settings;

/// The longest configuration, in bytes.
pub const MAX_CONFIG: usize = 256 << 10;

/// The measured configuration, as it stands behind the program in its image.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Owners of policies, by pattern of dataset names: `payments*=THUMBPRINT`.
    pub owners: Vec<Pin>,
    /// The key service, and which of its keys may be asked for.
    pub kms: AttestedKmsConfig,
    /// The certificate (PEM) of whoever signs that of `kms.endpoint`, instead of Amazon's. For development.
    pub kms_root: Option<String>,
    /// Who vouches for readers by tokens.
    #[serde(default)]
    pub issuers: Vec<IssuerConfig>,
    /// How readers prove who they are by STS.
    pub sts: Option<StsConfig>,
    /// How the worker closes itself in.
    #[serde(default)]
    pub sandbox: Settings,
    /// For emulators: the software NSM at this port of the parent, `vsock:CID:PORT`, in the place of the enclave's own. Evidence says
    /// `dev-software-nsm`.
    #[cfg(feature = "dev-software-nsm")]
    pub dev_nsm: Option<VsockAddress>,
    /// How often the catalogue is asked for newer policies.
    #[serde(default = "policy_refresh")]
    pub policy_refresh: Span,
    /// How long unwrapped keys are kept before KMS is asked again.
    #[serde(default = "key_age")]
    pub key_age: Span,
    /// How many sessions of clients are kept.
    #[serde(default = "sessions")]
    pub sessions: u64,
}

/// A port of a vsock, as text `vsock:CID:PORT`.
#[cfg(feature = "dev-software-nsm")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct VsockAddress {
    /// Context id.
    pub cid: u32,
    /// Port.
    pub port: u32,
}

#[cfg(feature = "dev-software-nsm")]
impl TryFrom<String> for VsockAddress {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let parts = text.strip_prefix("vsock:").and_then(|rest| rest.split_once(':'));
        let (cid, port) = parts.ok_or("an address is vsock:CID:PORT")?;
        match (cid.parse(), port.parse()) {
            (Ok(cid), Ok(port)) => Ok(Self { cid, port }),
            _ => Err("an address is vsock:CID:PORT"),
        }
    }
}

/// An issuer of OIDC tokens.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IssuerConfig {
    /// `iss`.
    pub issuer: String,
    /// `aud` that tokens must name, one of these.
    pub audiences: Vec<String>,
    /// Where its keys are: `https://…`.
    pub jwks_uri: String,
    /// The claim that lists groups.
    pub groups_claim: Option<String>,
    /// The certificate (PEM) of whoever signs that server's, instead of those of the web.
    pub root: Option<String>,
}

/// Proofs by STS.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StsConfig {
    /// The id that a presigned request must name: requests for another server count nothing here.
    pub server_id: String,
    /// Regions whose STS may be asked.
    #[serde(default)]
    pub regions: Vec<String>,
    /// Other servers that speak STS: `https://HOST[:PORT]`. For development.
    #[serde(default)]
    pub origins: Vec<String>,
    /// The certificate (PEM) of whoever signs those servers', instead of Amazon's.
    pub root: Option<String>,
}

impl StsConfig {
    /// The servers, and the id that they are asked with.
    ///
    /// # Errors
    /// [`ConfigError::Sts`]
    pub fn trust(&self) -> Result<StsTrust, ConfigError> {
        let regions = self.regions.iter().map(|region| StsEndpoint::of_region(region));
        let origins = self.origins.iter().map(|origin| StsEndpoint::of_origin(origin));
        let endpoints: Option<Vec<StsEndpoint>> = regions.chain(origins).collect();
        endpoints
            .filter(|endpoints| {
                let mut all = endpoints.iter();
                !endpoints.is_empty() && all.all(|endpoint| endpoint.origin().starts_with("https://"))
            })
            .and_then(|endpoints| StsTrust::new(endpoints, self.server_id.clone()))
            .ok_or(ConfigError::Sts)
    }
}

fn policy_refresh() -> Span {
    Span(Duration::from_secs(5))
}

fn key_age() -> Span {
    Span(Duration::from_secs(300))
}

fn sessions() -> u64 {
    10_000
}

/// Why a configuration is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// Not text, or longer than any.
    #[error("the measured configuration is no text of at most {MAX_CONFIG} bytes")]
    NotText,
    /// Not as it should be.
    #[error("the measured configuration: {0}")]
    Yaml(String),
    /// Owners that make no sense.
    #[error("the measured configuration: owners: {0}")]
    Owners(#[from] TrustRuleError),
    /// Where KMS is asked.
    #[error("the measured configuration: kms: {0}")]
    Kms(#[from] AttestedKmsConfigError),
    /// Not one certificate in PEM.
    #[error("the measured configuration: {0} is not one certificate in PEM")]
    Root(&'static str),
    /// No server, or none that speaks TLS.
    #[error("the measured configuration: sts: name regions, or origins that begin with https://, and a server_id")]
    Sts,
}

impl Config {
    /// Reads and checks it.
    ///
    /// # Errors
    /// [`ConfigError`]
    pub fn parse(yaml: &[u8]) -> Result<Self, ConfigError> {
        let text = std::str::from_utf8(yaml).ok().filter(|text| text.len() <= MAX_CONFIG);
        let text = text.ok_or(ConfigError::NotText)?;
        let config: Self =
            sealflow::policy::yaml::from_yaml(text).map_err(|error| ConfigError::Yaml(error.to_string()))?;
        config.owners()?;
        config.kms.check()?;
        root(config.kms_root.as_deref(), "kms_root")?;
        if let Some(sts) = &config.sts {
            sts.trust()?;
            root(sts.root.as_deref(), "sts.root")?;
        }
        for issuer in &config.issuers {
            root(issuer.root.as_deref(), "issuers[].root")?;
        }
        Ok(config)
    }

    /// The owners whose policies count.
    ///
    /// # Errors
    /// [`TrustRuleError`]
    pub fn owners(&self) -> Result<TrustedOwners, TrustRuleError> {
        TrustedOwners::pinned(&self.owners)
    }
}

/// The certificate in a PEM text, as DER.
///
/// # Errors
/// [`ConfigError::Root`]
pub fn root(pem: Option<&str>, key: &'static str) -> Result<Option<Vec<u8>>, ConfigError> {
    let Some(pem) = pem else { return Ok(None) };
    let body = pem.trim().strip_prefix("-----BEGIN CERTIFICATE-----");
    let body = body.and_then(|rest| rest.strip_suffix("-----END CERTIFICATE-----"));
    let text: String = body.ok_or(ConfigError::Root(key))?.split_ascii_whitespace().collect();
    STANDARD.decode(text).map(Some).map_err(|_| ConfigError::Root(key))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // tests

    use super::*;

    const KEYS: &str = "arn:aws:kms:eu-central-1:111122223333:key/*";
    const OWNER: &str = "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k";

    #[test]
    fn a_configuration_names_owners_and_keys_and_nothing_else() {
        let yaml = format!(
            "owners: [\"payments*={OWNER}\"]\nkms: {{ keys: [\"arn:aws:kms:eu-central-1:111122223333:key/*\"] }}\n"
        );
        let config = Config::parse(yaml.as_bytes()).unwrap();
        assert_eq!((config.sessions, config.policy_refresh.0.as_secs()), (10_000, 5));
        for bad in [
            "owners: []\nkms: { keys: [x] }\n".to_owned(),
            format!("owners: [\"{OWNER}\"]\nkms: {{ keys: [] }}\n"),
            format!("owners: [\"{OWNER}\"]\nkms: {{ keys: [\"{KEYS}\"] }}\nhost: evil\n"),
            format!("owners: [\"{OWNER}\"]\nkms: {{ keys: [\"{KEYS}\"], endpoint: \"http://127.0.0.1:1\" }}\n"),
            format!("owners: [\"{OWNER}\"]\nkms: {{ keys: [\"{KEYS}\"] }}\nkms_root: x\n"),
            format!("owners: [\"{OWNER}\"]\nkms: {{ keys: [\"{KEYS}\"] }}\nsts: {{ server_id: s }}\n"),
            format!(
                "owners: [\"{OWNER}\"]\nkms: {{ keys: [\"{KEYS}\"] }}\nsts: {{ server_id: s, origins: [\"http://a\"] }}\n"
            ),
            "x".repeat(MAX_CONFIG + 1),
        ] {
            assert!(
                Config::parse(bad.as_bytes()).is_err(),
                "{}",
                bad.chars().take(300).collect::<String>()
            );
        }
        assert_eq!(Config::parse(&[0xff]).unwrap_err(), ConfigError::NotText);
    }

    #[cfg(feature = "dev-software-nsm")]
    #[test]
    fn a_build_for_emulators_takes_the_address_of_an_nsm() {
        let with = |address: &str| {
            let yaml = format!("owners: [\"{OWNER}\"]\nkms: {{ keys: [\"{KEYS}\"] }}\ndev_nsm: \"{address}\"\n");
            Config::parse(yaml.as_bytes()).map(|config| config.dev_nsm)
        };
        assert_eq!(with("vsock:2:9100"), Ok(Some(VsockAddress { cid: 2, port: 9_100 })));
        for bad in ["", "vsock:2", "2:9100", "vsock:2:9100:1", "unix:/run/nsm"] {
            assert!(with(bad).is_err(), "{bad}");
        }
    }
}
