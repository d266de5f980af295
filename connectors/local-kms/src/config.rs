//! The configuration of the local KMS.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use schemars::JsonSchema;
use sealflow::secret::SecretString;
use sealflow_tls::TlsConfig;
use serde::Deserialize;

use crate::vault::Unlock;

/// What a local KMS listens on, where its keys are, and who may call it.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ServerConfig {
    /// Address and port; port 0 takes a free one. Default: `127.0.0.1:0`.
    #[serde(default = "default_listen")]
    pub listen: SocketAddr,
    /// Allows an address other than loopback. Without `tls`, keys would cross the network in clear.
    #[serde(default)]
    pub allow_remote: bool,
    /// The region of all keys, and of the signatures that are taken.
    #[serde(default = "default_region")]
    pub region: String,
    /// The account of all keys: 12 digits.
    #[serde(default = "default_account")]
    pub account: String,
    /// Where keys are kept; without it they are in memory and gone at the end.
    #[serde(default)]
    pub folder: Option<PathBuf>,
    /// A passphrase that the keys in the folder are wrapped under.
    #[serde(default)]
    pub passphrase: Option<SecretString>,
    /// A master-key file of mode 0600 that the keys in the folder are wrapped under, when there is no passphrase.
    /// Default: `master.key` in the folder.
    #[serde(default)]
    pub master_key_file: Option<PathBuf>,
    /// Who may call: access keys, and the principals that they stand for.
    pub principals: Vec<Principal>,
    /// Speak TLS (1.2 and 1.3), with this certificate. Without it, HTTP in clear.
    #[serde(default)]
    pub tls: Option<TlsConfig>,
    /// A root certificate (PEM) of attestation documents for development, believed beside AWS's own. Whoever has its key is
    /// believed to be any enclave.
    #[serde(default)]
    pub attestation_root: Option<PathBuf>,
    /// The most connections at a time; more wait.
    #[serde(default = "default_connections")]
    pub max_connections: usize,
}

/// An access key and the principal that it stands for.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Principal {
    /// The access key id.
    pub access_key_id: String,
    /// Its secret.
    pub secret_access_key: SecretString,
    /// The session token that must come with it, for temporary credentials.
    #[serde(default)]
    pub session_token: Option<SecretString>,
    /// The IAM or STS ARN that key policies see.
    pub arn: String,
}

fn default_listen() -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0)
}

fn default_region() -> String {
    "eu-central-1".to_owned()
}

fn default_account() -> String {
    "111122223333".to_owned()
}

fn default_connections() -> usize {
    256
}

/// Why a configuration cannot be used.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConfigError {
    /// An address that others can reach.
    #[error("listen: {0} is not a loopback address; the local KMS is for development (set allow_remote to insist)")]
    NotLoopback(SocketAddr),
    /// The account is not one.
    #[error("account: expected 12 digits")]
    Account,
    /// The region is not one.
    #[error("region: expected lower-case letters, digits and hyphens")]
    Region,
    /// Nobody could call.
    #[error("principals: expected at least one access key")]
    NoPrincipals,
    /// Two principals with one access key id.
    #[error("principals[{0}].access_key_id: is there twice")]
    DuplicateKey(usize),
    /// An access key id that a signature cannot name.
    #[error("principals[{0}].access_key_id: expected letters and digits")]
    AccessKeyId(usize),
    /// An ARN that is no principal.
    #[error(
        "principals[{0}].arn: expected arn:aws:iam::ACCOUNT:user/NAME, …:role/NAME or arn:aws:sts::ACCOUNT:assumed-role/NAME/SESSION"
    )]
    PrincipalArn(usize),
    /// Ways to wrap keys that exclude each other, or keys that are in memory.
    #[error("{0}")]
    Unlock(&'static str),
    /// A development root, in a build for real use.
    #[error("attestation_root: this build believes AWS's attestation root alone (it is without dev-software-nsm)")]
    DevelopmentRoot,
    /// No connection could be made.
    #[error("max_connections: expected at least 1")]
    NoConnections,
}

impl ServerConfig {
    /// A server on a free loopback port with its keys in memory.
    #[must_use]
    pub fn in_memory(principals: Vec<Principal>) -> Self {
        Self {
            listen: default_listen(),
            allow_remote: false,
            region: default_region(),
            account: default_account(),
            folder: None,
            passphrase: None,
            master_key_file: None,
            principals,
            tls: None,
            attestation_root: None,
            max_connections: default_connections(),
        }
    }

    /// Checks everything that can be checked without touching the machine.
    pub fn check(&self) -> Result<(), ConfigError> {
        if !self.listen.ip().is_loopback() && !self.allow_remote {
            return Err(ConfigError::NotLoopback(self.listen));
        }
        if self.account.len() != 12 || !self.account.bytes().all(|b| b.is_ascii_digit()) {
            return Err(ConfigError::Account);
        }
        let is_region = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if self.region.is_empty() || self.region.len() > 32 || !self.region.bytes().all(is_region) {
            return Err(ConfigError::Region);
        }
        if self.principals.is_empty() {
            return Err(ConfigError::NoPrincipals);
        }
        for (index, principal) in self.principals.iter().enumerate() {
            let id = &principal.access_key_id;
            if id.is_empty() || id.len() > 128 || !id.bytes().all(|b| b.is_ascii_alphanumeric()) {
                return Err(ConfigError::AccessKeyId(index));
            }
            if self.principals[..index].iter().any(|p| p.access_key_id == *id) {
                return Err(ConfigError::DuplicateKey(index));
            }
            if !is_principal_arn(&principal.arn) {
                return Err(ConfigError::PrincipalArn(index));
            }
        }
        if self.attestation_root.is_some() && !cfg!(feature = "dev-software-nsm") {
            return Err(ConfigError::DevelopmentRoot);
        }
        if self.max_connections == 0 {
            return Err(ConfigError::NoConnections);
        }
        self.unlock().map(|_| ())
    }

    /// What opens the folder, if there is one.
    pub(crate) fn unlock(&self) -> Result<Option<(PathBuf, Unlock)>, ConfigError> {
        match (&self.folder, &self.passphrase, &self.master_key_file) {
            (None, None, None) => Ok(None),
            (None, _, _) => Err(ConfigError::Unlock(
                "passphrase, master_key_file: there is no folder to open with them",
            )),
            (Some(_), Some(_), Some(_)) => Err(ConfigError::Unlock("passphrase, master_key_file: choose one of them")),
            (Some(_), Some(passphrase), None) if passphrase.expose().is_empty() => {
                Err(ConfigError::Unlock("passphrase: is empty"))
            }
            (Some(folder), Some(passphrase), None) => {
                Ok(Some((folder.clone(), Unlock::Passphrase(passphrase.clone()))))
            }
            (Some(folder), None, Some(path)) => Ok(Some((folder.clone(), Unlock::KeyFileAt(path.clone())))),
            (Some(folder), None, None) => Ok(Some((folder.clone(), Unlock::KeyFile))),
        }
    }
}

fn is_principal_arn(arn: &str) -> bool {
    let parts: Vec<&str> = arn.splitn(6, ':').collect();
    let ["arn", partition, service, "", account, resource] = parts[..] else {
        return false;
    };
    let is_account = account.len() == 12 && account.bytes().all(|b| b.is_ascii_digit());
    let is_resource = match service {
        "iam" => resource == "root" || resource.starts_with("user/") || resource.starts_with("role/"),
        "sts" => resource.starts_with("assumed-role/"),
        _ => false,
    };
    let is_plain = arn.len() <= 2048 && arn.bytes().all(|b| b.is_ascii_graphic() && !b"*?<>&\"'".contains(&b));
    partition.starts_with("aws") && is_account && is_resource && is_plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn principal(id: &str, arn: &str) -> Principal {
        let secret_access_key = SecretString::new("hunter2hunter2".to_owned());
        Principal {
            access_key_id: id.to_owned(),
            secret_access_key,
            session_token: None,
            arn: arn.to_owned(),
        }
    }

    fn config() -> ServerConfig {
        ServerConfig::in_memory(vec![principal("AKIALOCAL", "arn:aws:iam::111122223333:user/dev")])
    }

    #[test]
    fn only_loopback_is_listened_on_unless_it_is_insisted() {
        let mut open = config();
        open.listen = SocketAddr::from(([0, 0, 0, 0], 4599));
        assert_eq!(open.check(), Err(ConfigError::NotLoopback(open.listen)));
        open.allow_remote = true;
        assert_eq!(open.check(), Ok(()));
    }

    #[test]
    fn bad_configurations_are_named() {
        let with = |change: fn(&mut ServerConfig)| {
            let mut config = config();
            change(&mut config);
            config.check()
        };
        assert_eq!(with(|_| {}), Ok(()));
        assert_eq!(with(|c| c.account = "12".to_owned()), Err(ConfigError::Account));
        assert_eq!(with(|c| c.region = "EU West".to_owned()), Err(ConfigError::Region));
        assert_eq!(with(|c| c.principals.clear()), Err(ConfigError::NoPrincipals));
        assert_eq!(
            with(|c| c.principals.push(c.principals[0].clone())),
            Err(ConfigError::DuplicateKey(1))
        );
        assert_eq!(
            with(|c| c.principals[0].access_key_id = "a/b".to_owned()),
            Err(ConfigError::AccessKeyId(0))
        );
        assert_eq!(
            with(|c| c.principals[0].arn = "me".to_owned()),
            Err(ConfigError::PrincipalArn(0))
        );
        assert!(matches!(
            with(|c| c.master_key_file = Some("x".into())),
            Err(ConfigError::Unlock(_))
        ));
        assert_eq!(with(|c| c.max_connections = 0), Err(ConfigError::NoConnections));
    }

    #[test]
    fn a_development_root_is_for_builds_that_say_so() {
        let believing = ServerConfig {
            attestation_root: Some("root.pem".into()),
            ..config()
        };
        let expected = if cfg!(feature = "dev-software-nsm") {
            Ok(())
        } else {
            Err(ConfigError::DevelopmentRoot)
        };
        assert_eq!(believing.check(), expected);
    }

    #[test]
    fn debug_shows_no_secret() {
        assert!(!format!("{:?}", config()).contains("hunter2"));
    }

    #[test]
    fn unknown_keys_are_refused() {
        let text = r#"{"principals":[],"region":"eu-central-1","colour":"red"}"#;
        assert!(serde_json::from_str::<ServerConfig>(text).is_err());
    }
}
