//! The model of a service file (`sealflow serve`), and what it may not say although its form is right.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use schemars::JsonSchema;
use sealflow::policy::{KeyPath, TrustedOwners};
use sealflow::units::Span;
use sealflow_audit::AuditConfig;
use sealflow_kms::KmsConfig;
use sealflow_serve::{ConfigError, IdentityConfig, LimitsConfig, TlsConfig};
use sealflow_storage::CatalogueConfig;
use serde::Deserialize;

use super::check::{self, Wrong, wrong};
use super::pipeline::{Admin, Trust};
use super::secrets::SecretsConfig;
use crate::enclave::EnclaveConfig;

/// A reading service: who may ask, whose policies count, where every decision is written down.
#[derive(Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Sealflow reading service")]
pub(crate) struct ServiceConfig {
    /// Name of the service, `[A-Za-z0-9_-]{1,100}`.
    pub(crate) name: String,
    /// Address and port. Beyond loopback it needs `tls`.
    #[serde(default = "listen")]
    #[schemars(with = "String")]
    pub(crate) listen: SocketAddr,
    /// The certificate.
    #[serde(default)]
    pub(crate) tls: Option<TlsConfig>,
    /// Where signed policies and key envelopes are kept.
    pub(crate) catalogue: CatalogueConfig,
    /// Whose policies are believed.
    pub(crate) trust: Trust,
    /// The KMS. Without this section: the AWS credential chain and its region.
    #[serde(default)]
    pub(crate) kms: KmsConfig,
    /// Who is believed to be whom.
    pub(crate) identity: IdentityConfig,
    /// What callers may ask.
    #[serde(default)]
    pub(crate) limits: LimitsConfig,
    /// Datasets whose clients find here what they seal to: `GET /.well-known/jwks.json`, for everybody. Empty: none.
    #[serde(default)]
    pub(crate) client_keys: Vec<String>,
    /// Datasets whose clients find here what they seal enclave columns to: `GET /.well-known/enclave-keys`, for everybody. Empty: none.
    #[serde(default)]
    pub(crate) enclave_keys: Vec<String>,
    /// The worker that alone opens columns with `flow: enclave`, and seals them to the caller's key.
    #[serde(default)]
    pub(crate) enclave: Option<ServiceEnclave>,
    /// Certificate of a development root (DER, `dev-root.der` of its folder), whose enclaves' keys are handed out too. For development.
    #[serde(default)]
    pub(crate) enclave_dev_root: Option<PathBuf>,
    /// Where every decision is written down. There is no service without.
    pub(crate) audit: AuditConfig,
    /// How long a policy counts before the catalogue is asked for a newer one: what is revoked is refused after this.
    #[serde(default = "policy_refresh")]
    pub(crate) policy_refresh: Span,
    /// The admin port.
    #[serde(default)]
    pub(crate) admin: Admin,
    /// Where `SECRET[backend.NAME]` is looked up.
    #[serde(default)]
    #[allow(dead_code)] // read from the tree, before placeholders are filled and this model exists
    secrets: SecretsConfig,
}

/// The enclave worker of a service.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ServiceEnclave {
    /// Datasets whose policies say which images of the worker are believed.
    #[schemars(length(min = 1))]
    pub(crate) datasets: Vec<String>,
    /// How it is started.
    pub(crate) worker: EnclaveConfig,
}

fn listen() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 8443))
}

fn policy_refresh() -> Span {
    Span(Duration::from_secs(30))
}

impl ServiceConfig {
    /// Checks what needs no file and no network. The first thing wrong is reported.
    pub(super) fn check(&self) -> Result<(), Wrong> {
        let root = KeyPath::root();
        check::name(&root.key("name"), &self.name)?;
        if self.tls.is_none() && !self.listen.ip().is_loopback() {
            let help =
                "add `tls: { certificate: …, key: … }`, or listen on 127.0.0.1 behind what ends TLS on this machine";
            return wrong(&root.key("tls"), "is missing, and `listen` is not on loopback", help);
        }
        if let Err(error) = TrustedOwners::pinned(&self.trust.owners) {
            return wrong(&root.key("trust").key("owners"), error.to_string(), error.help());
        }
        check::catalogue(&self.catalogue)?;
        check::kms(&self.kms)?;
        self.identity.check().map_err(|error| below("identity", error))?;
        self.limits.check().map_err(|error| below("limits", error))?;
        if let Some(enclave) = &self.enclave {
            enclave.check(&root.key("enclave"), &self.identity.server_id)?;
        }
        if self.policy_refresh.0 < Duration::from_millis(100) {
            return wrong(&root.key("policy_refresh"), "less than 100ms", "30s is usual");
        }
        Ok(())
    }

    /// Resolves paths against the folder of the file.
    pub(super) fn resolve(&mut self, base: &Path) {
        self.catalogue.resolve(base);
        if let Some(enclave) = &mut self.enclave {
            enclave.worker.resolve(base);
        }
        let mut paths: Vec<&mut PathBuf> = vec![&mut self.audit.key, &mut self.audit.checkpoints];
        paths.extend(&mut self.audit.path);
        paths.extend(&mut self.enclave_dev_root);
        if let Some(tls) = &mut self.tls {
            paths.extend([&mut tls.certificate, &mut tls.key]);
        }
        for path in paths {
            *path = base.join(&*path);
        }
    }
}

impl ServiceEnclave {
    fn check(&self, at: &KeyPath, server_id: &str) -> Result<(), Wrong> {
        if self.datasets.is_empty() {
            let help = "name the datasets whose policies have columns of the enclave";
            return wrong(&at.key("datasets"), "is empty", help);
        }
        match &self.worker.server_id {
            Some(id) if id != server_id => wrong(
                &at.key("worker").key("server_id"),
                "is not that of `identity.server_id`",
                "callers show one proof to both: have one id in the worker's configuration and here, and leave this out",
            ),
            _ => Ok(()),
        }
    }
}

fn below(section: &str, error: ConfigError) -> Wrong {
    Wrong {
        path: format!("{section}.{}", error.path),
        message: error.message,
        help: error.help,
    }
}

/// Configuration may hold secrets, so `Debug` shows its name only.
impl fmt::Debug for ServiceConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceConfig")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}
