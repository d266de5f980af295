//! The enclave worker of a pipeline or service: what the configuration says about it, and how it is started and believed.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::UNIX_EPOCH;

use async_trait::async_trait;
use schemars::JsonSchema;
use sealflow::audit::AuditError;
use sealflow::clock::Clock;
use sealflow::keys::Catalogue;
use sealflow::policy::{EnclaveRule, Policy, PolicySource};
use sealflow_audit::SharedLog;
use sealflow_enclave_host::channel::{Endpoint, PARENT_CID};
use sealflow_enclave_host::launch::{Isolation, Launcher, NsmCommand, ProgramCommand};
use sealflow_enclave_host::relay::RelayTarget;
use sealflow_enclave_host::{
    AttestationVerifier, AuditSink, CredentialSource, DEFAULT_DEPTH, EndpointStarter, SoftwareStarter, Starter,
    Supervisor, Terms, of_policy,
};
use sealflow_enclave_protocol::attestation::Trust;
use sealflow_enclave_protocol::measurements::Measurements;
use sealflow_enclave_protocol::message::Credentials;
use sealflow_kms::{AwsChain, ChainConfig, KmsConfig};
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::clock::MachineClock;
use crate::failure::{Exit, Failure, Result};
use crate::services::Services;

/// The enclave worker. Policies with `flow: enclave` need it: it alone gets the keys of such columns.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct EnclaveConfig {
    /// Image of the software tier (`sealflow enclave build`): this process starts the worker. It proves protocol and policy, and
    /// protects nothing from whoever is root on this machine.
    #[serde(default)]
    pub(crate) image: Option<PathBuf>,
    /// Or where a worker runs already: `vsock:CID:PORT` is a port of a Nitro enclave (the worker's is 5005), `unix:PATH` the socket of
    /// `sealflow enclave run`, `hybrid:PATH:PORT` a port of a virtual machine whose emulator maps its vsock to Unix sockets.
    #[serde(default)]
    #[schemars(with = "Option<String>")]
    pub(crate) endpoint: Option<Endpoint>,
    /// Hosts and ports that the worker may reach, `HOST:PORT`: KMS, issuers of tokens, STS. It carries its own TLS; others learn
    /// nothing of what it says.
    pub(crate) relay: Vec<String>,
    /// Folder of the development root of the software NSM: made if it is not there. Evidence says `dev-software-nsm`.
    #[serde(default)]
    pub(crate) dev_root: Option<PathBuf>,
    /// The id that the worker wants in presigned requests (`sts.server_id` of its configuration): for `sealflow read --seal-to`.
    #[serde(default)]
    pub(crate) server_id: Option<String>,
    /// The file of the worker's own audit lines. They are signed by the worker: `sealflow audit verify` reads them. What cannot be
    /// written there is not shown.
    #[serde(default)]
    pub(crate) audit: Option<PathBuf>,
    /// Whether the keys that clients seal to are put into the catalogue each hour, as the worker vouches for them: reading services hand
    /// them out (`enclave_keys`).
    #[serde(default = "yes")]
    pub(crate) publish_keys: bool,
    /// Batches that are under way at a time.
    #[serde(default = "depth")]
    #[schemars(range(min = 1, max = 64))]
    pub(crate) depth: usize,
    /// Whether a worker of the software tier runs where the machine gives it no namespaces.
    #[serde(default)]
    pub(crate) isolation: IsolationConfig,
}

/// Whether a worker needs namespaces of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum IsolationConfig {
    /// It does.
    #[default]
    Required,
    /// It runs without where there are none, and says so.
    IfAvailable,
}

fn yes() -> bool {
    true
}

fn depth() -> usize {
    DEFAULT_DEPTH
}

impl EnclaveConfig {
    /// Resolves paths against the folder of the file.
    pub(crate) fn resolve(&mut self, base: &Path) {
        let paths = [&mut self.image, &mut self.dev_root, &mut self.audit];
        for path in paths.into_iter().flatten() {
            *path = base.join(&*path);
        }
        if let Some(Endpoint::Unix { path } | Endpoint::Hybrid { path, .. }) = &mut self.endpoint {
            *path = base.join(&*path);
        }
    }

    fn targets(&self) -> Result<Vec<RelayTarget>> {
        let target = |(n, text): (usize, &String)| {
            text.parse().map_err(|error: sealflow_enclave_host::relay::NotATarget| {
                Failure::config(
                    format_args!("enclave.relay[{n}]: {error}"),
                    "write for example kms.eu-central-1.amazonaws.com:443",
                )
            })
        };
        self.relay.iter().enumerate().map(target).collect()
    }

    /// The roots that are believed.
    pub(crate) fn trust(&self) -> Result<Trust> {
        let Some(folder) = &self.dev_root else {
            return Ok(Trust::nitro());
        };
        with_dev_root(folder)
    }
}

#[cfg(feature = "dev-software-nsm")]
fn with_dev_root(folder: &Path) -> Result<Trust> {
    use sealflow_enclave_host::nsm::{Root, certificate_of};
    let made = Root::load_or_make(folder, MachineClock.now().0);
    let certificate = made.and_then(|_| certificate_of(folder)).map_err(|error| {
        Failure::config(
            format_args!("enclave.dev_root: {error}"),
            "name a folder that this process may write",
        )
    })?;
    let trust = Trust::with_dev_root(&certificate);
    trust.map_err(|error| {
        Failure::config(
            format_args!("enclave.dev_root: {error}"),
            "remove the folder, and it is made again",
        )
    })
}

#[cfg(not(feature = "dev-software-nsm"))]
fn with_dev_root(_: &Path) -> Result<Trust> {
    Err(Failure::config(
        "enclave.dev_root: this build believes no development root",
        "remove it, and run the worker in a Nitro enclave",
    ))
}

/// Starts the worker of a pipeline or service whose policy has enclave columns; `None` where neither wants one.
pub(crate) async fn start(
    config: Option<&EnclaveConfig>,
    kms: &KmsConfig,
    services: &Services,
) -> Result<Option<Supervisor>> {
    let policy = services.policy.policy();
    let (config, rule) = match (config, &policy.enclave) {
        (Some(config), Some(rule)) => (config, rule),
        (None, Some(_)) => {
            return Err(Failure::config(
                format_args!(
                    "enclave: the policy of {} has columns with flow: enclave, and no worker is configured",
                    policy.dataset
                ),
                "add `enclave: { image: FILE, relay: [HOST:PORT] }`",
            ));
        }
        (_, None) => return Ok(None),
    };
    let shared = (&services.catalogue, &services.clock);
    let starter = starter(config, measurements(policy, rule)?, kms, shared).await?;
    say_clear(policy);
    Ok(Some(Supervisor::start(starter, config.depth)))
}

/// Starts the worker of a service that opens for readers of these datasets.
pub(crate) async fn start_for_service(
    (config, datasets): (&EnclaveConfig, &[String]),
    kms: &KmsConfig,
    policies: &dyn PolicySource,
    shared: (&Arc<dyn Catalogue>, &Arc<dyn Clock>),
) -> Result<Supervisor> {
    let measurements = measurements_of(datasets, policies).await?;
    let starter = starter(config, measurements, kms, shared).await?;
    Ok(Supervisor::start(starter, config.depth))
}

/// The images that the policies of these datasets allow.
pub(crate) async fn measurements_of(datasets: &[String], policies: &dyn PolicySource) -> Result<Vec<Measurements>> {
    let mut all = Vec::new();
    for (n, dataset) in datasets.iter().enumerate() {
        let policy = policies.policy(dataset).await?;
        let policy = policy.policy();
        let Some(rule) = &policy.enclave else {
            return Err(Failure::config(
                format_args!("enclave.datasets[{n}]: the policy of {dataset} names no image of an enclave"),
                "name datasets with columns of the enclave",
            ));
        };
        all.extend(measurements(policy, rule)?);
    }
    Ok(all)
}

/// What makes workers, and believes them.
pub(crate) async fn starter(
    config: &EnclaveConfig,
    measurements: Vec<Measurements>,
    kms: &KmsConfig,
    (catalogue, clock): (&Arc<dyn Catalogue>, &Arc<dyn Clock>),
) -> Result<Arc<dyn Starter>> {
    let terms = Terms {
        verifier: Arc::new(AttestationVerifier::new(
            config.trust()?,
            measurements,
            Arc::clone(clock),
        )),
        catalogue: Arc::clone(catalogue),
        allowed: config.targets()?,
        credentials: Arc::new(Chain(AwsChain::load(&ChainConfig::from(kms)).await)),
        audit: Arc::new(AuditFile::open(config.audit.as_deref())?),
    };
    match (&config.image, &config.endpoint) {
        (Some(image), None) => {
            let launcher = launcher(config, image)?;
            tracing::warn!(
                image = %launcher.measurement(),
                "the enclave worker runs in the software tier (dev-software-nsm): it protects nothing from root on this machine"
            );
            Ok(Arc::new(SoftwareStarter::new(launcher, terms)))
        }
        (None, Some(endpoint)) => {
            check(endpoint)?;
            Ok(Arc::new(EndpointStarter::new(endpoint.clone(), terms)))
        }
        _ => Err(Failure::config(
            "enclave: either image or endpoint is needed, and not both",
            "name an image to start, or the endpoint of a worker that runs: endpoint: \"vsock:16:5005\"",
        )),
    }
}

/// Refuses what can never be connected to; whoever is just not there yet is tried again.
fn check(endpoint: &Endpoint) -> Result<()> {
    let Endpoint::Vsock { cid, .. } = endpoint else {
        return Ok(());
    };
    if !cfg!(feature = "nitro") {
        return Err(Failure::config(
            format_args!("enclave.endpoint: {endpoint} needs a build with the feature `nitro`, and this is none"),
            "build the command with it, or name a worker at unix:PATH",
        ));
    }
    // The hypervisor, this machine, the parent, and any of them: none is an enclave.
    if *cid <= PARENT_CID || *cid == u32::MAX {
        return Err(Failure::config(
            format_args!("enclave.endpoint: {endpoint} is no enclave: context ids of enclaves are above 3"),
            "`nitro-cli describe-enclaves` shows the EnclaveCID",
        ));
    }
    Ok(())
}

/// A launcher of this image.
pub(crate) fn launcher(config: &EnclaveConfig, image: &Path) -> Result<Launcher> {
    let Some(root) = &config.dev_root else {
        return Err(Failure::config(
            "enclave.dev_root: an image of the software tier needs a development root",
            "name a folder for it: it is made, and evidence says dev-software-nsm",
        ));
    };
    let own = std::env::current_exe();
    let own = own.map_err(|error| {
        Failure::new(
            Exit::Internal,
            format_args!("this program is nowhere: {error}"),
            "report this bug",
        )
    })?;
    let nsm: NsmCommand = ProgramCommand {
        program: own,
        arguments: vec!["enclave".into(), "nsm".into(), "--root-dir".into(), root.clone().into()],
    };
    let launcher = Launcher::new(image, nsm);
    let launcher = launcher.map_err(|error| {
        Failure::config(
            format_args!("enclave.image: {error}"),
            "`sealflow enclave build` makes images",
        )
    })?;
    Ok(launcher.with_isolation(match config.isolation {
        IsolationConfig::Required => Isolation::Required,
        IsolationConfig::IfAvailable => Isolation::IfAvailable,
    }))
}

/// The images that the policy allows.
pub(crate) fn measurements(policy: &Policy, rule: &EnclaveRule) -> Result<Vec<Measurements>> {
    let all: Option<Vec<Measurements>> = rule.measurements.values().map(of_policy).collect();
    all.ok_or_else(|| {
        let message = format!("the measurements in the policy of {} make no sense", policy.dataset);
        Failure::config(message, "take the digits from `sealflow enclave build`")
    })
}

/// Says which columns the backend may see all the same.
fn say_clear(policy: &Policy) {
    use sealflow::policy::{ClientSealed, Flow};
    let optional = |rule: &&sealflow::policy::ColumnRule| {
        rule.flow == Flow::Enclave && rule.client_sealed == ClientSealed::Optional
    };
    for rule in policy.columns.iter().filter(optional) {
        tracing::warn!(
            column = %rule.path,
            "values in clear are sealed by the enclave, but this host has seen them: client_sealed: optional"
        );
    }
}

/// The credentials of the AWS chain, or of the configuration.
struct Chain(Option<AwsChain>);

#[async_trait]
impl CredentialSource for Chain {
    async fn credentials(&self) -> Option<Credentials> {
        let credentials = match self.0.as_ref()?.credentials().await {
            Ok(credentials) => credentials,
            Err(error) => {
                tracing::warn!(%error, "there are no credentials for the enclave worker");
                return None;
            }
        };
        let millis = |at: std::time::SystemTime| {
            at.duration_since(UNIX_EPOCH)
                .ok()
                .and_then(|since| u64::try_from(since.as_millis()).ok())
        };
        Some(Credentials {
            access_key_id: credentials.access_key_id().to_owned(),
            secret_access_key: Zeroizing::new(credentials.secret_access_key().to_owned()),
            session_token: credentials
                .session_token()
                .map(|token| Zeroizing::new(token.to_owned())),
            expires_ms: credentials.expiry().and_then(millis),
        })
    }
}

/// A file of the worker's audit lines, or nothing.
struct AuditFile(Option<Mutex<SharedLog>>);

impl AuditFile {
    fn open(path: Option<&Path>) -> Result<Self> {
        let Some(path) = path else {
            tracing::warn!("enclave.audit names no file: what the enclave worker decides is written down nowhere");
            return Ok(Self(None));
        };
        let log = SharedLog::open(path).map_err(|error| {
            let failure = Failure::from(error);
            Failure {
                message: format!("enclave.audit: {}", failure.message),
                ..failure
            }
        })?;
        Ok(Self(Some(Mutex::new(log))))
    }
}

impl AuditSink for AuditFile {
    fn keep(&self, line: &[u8]) -> std::result::Result<(), AuditError> {
        let Some(log) = &self.0 else { return Ok(()) };
        log.lock().unwrap_or_else(PoisonError::into_inner).append(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: &str) -> std::result::Result<EnclaveConfig, String> {
        serde_json::from_str(json).map_err(|error| error.to_string())
    }

    #[test]
    fn an_endpoint_is_one_of_three_kinds() {
        for endpoint in ["vsock:16:5005", "unix:/run/worker", "hybrid:/run/vm:5005"] {
            let config = config(&format!(r#"{{"relay": [], "endpoint": "{endpoint}"}}"#)).unwrap();
            let endpoint = config.endpoint.unwrap();
            assert!(check(&endpoint).is_ok(), "{endpoint}");
        }
        let error = config(r#"{"relay": [], "endpoint": "tcp:localhost:5005"}"#).unwrap_err();
        assert!(error.contains("unix:PATH, vsock:CID:PORT, hybrid:PATH:PORT"), "{error}");
        assert!(config(r#"{"relay": [], "socket": "/run/worker"}"#).is_err());
    }

    #[test]
    fn what_can_be_no_enclave_is_refused_before_anybody_waits_for_it() {
        for cid in [0, 1, 2, 3, u32::MAX] {
            let failure = check(&Endpoint::Vsock { cid, port: 5_005 }).unwrap_err();
            assert!(failure.to_string().contains("is no enclave"), "{failure}");
        }
        assert!(check(&Endpoint::Vsock { cid: 4, port: 5_005 }).is_ok());
    }
}
