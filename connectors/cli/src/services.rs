//! Catalogue, KMS, clock and policy, opened from configuration: what every command needs that touches keys.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sealflow::clock::Clock;
use sealflow::flow::direct::DirectSealer;
use sealflow::keys::{Catalogue, ClientKeyService, DomainKeys, OpeningKeys, SealingKeys};
use sealflow::pipeline::{Clients, Format, KeysPlacement, OpenTransform, SealTransform};
use sealflow::policy::catalogue_source::{DEFAULT_MAX_STALE, DEFAULT_REFRESH};
use sealflow::policy::{ClientSealed, FixedPolicies, Pin, PolicySource, VerifiedPolicy};
use sealflow::seal::UsageLimits;
use sealflow_enclave_host::Supervisor;
use sealflow_kms::{AwsKms, KmsConfig};
use sealflow_storage::{CatalogueConfig, Location};

use crate::clock::MachineClock;
use crate::config::PipelineConfig;
use crate::failure::{Failure, Result};
use crate::files;
use crate::remembered::VersionsFile;
use crate::trust;

/// How long unwrapped keys are kept before KMS is asked again.
pub(crate) const OPENED_KEY_AGE: Duration = Duration::from_secs(300);
/// How many unwrapped keys are kept.
pub(crate) const OPENED_KEYS: u64 = 10_000;

/// Where the policy of a dataset comes from.
#[derive(Clone, Debug)]
pub(crate) enum PolicyOrigin {
    /// The newest in the catalogue, signed by one of these owners.
    Signed {
        /// Owner keys.
        owners: Vec<Pin>,
        /// Where the catalogue is: what was seen is remembered of it.
        catalogue: Location,
    },
    /// A lone file that nobody signed: development only.
    Unsigned(PathBuf),
}

impl PolicyOrigin {
    /// What a pipeline file says, unless an unsigned policy is named.
    pub(crate) fn of(config: &PipelineConfig, dev: Option<PathBuf>) -> Result<Self> {
        match dev {
            Some(path) => Ok(Self::Unsigned(path)),
            None if config.trust.owners.is_empty() => Err(Failure::config(
                "trust.owners: names nobody whose policies are believed",
                "add the owner's thumbprint (`sealflow policy keygen` printed it), or use --dev POLICY",
            )),
            None => Ok(Self::Signed {
                owners: config.trust.owners.clone(),
                catalogue: config.catalogue.location.clone(),
            }),
        }
    }
}

/// Everything open.
#[derive(Clone)]
pub(crate) struct Services {
    /// Where envelopes and policies are.
    pub(crate) catalogue: Arc<dyn Catalogue>,
    /// The KMS.
    pub(crate) kms: Arc<dyn ClientKeyService>,
    /// What opens and judges the values of clients.
    pub(crate) clients: Clients,
    /// The worker that alone opens columns of the enclave, if the policy has such.
    pub(crate) enclave: Option<Supervisor>,
    /// All verified policies.
    pub(crate) policies: Arc<dyn PolicySource>,
    /// The dataset's newest.
    pub(crate) policy: Arc<VerifiedPolicy>,
    /// The time.
    pub(crate) clock: Arc<dyn Clock>,
}

/// Opens the catalogue.
pub(crate) async fn open_catalogue(config: &CatalogueConfig) -> Result<Arc<dyn Catalogue>> {
    Ok(config.open().await?)
}

/// A catalogue in a folder, with nothing more to say about it.
pub(crate) fn in_folder(folder: &Path) -> CatalogueConfig {
    CatalogueConfig::from(Location::Folder(folder.to_owned()))
}

/// A client of the KMS.
pub(crate) async fn open_kms(config: &KmsConfig) -> Result<Arc<dyn ClientKeyService>> {
    let client = AwsKms::new(config).await;
    client
        .map(|client| Arc::new(client) as Arc<dyn ClientKeyService>)
        .map_err(|error| {
            Failure::config(
                format_args!("kms.{error}"),
                "correct the `kms` section or option; `sealflow schema pipeline` says what it takes",
            )
        })
}

/// The policy of `dataset`, verified or openly unsigned, and the source that it came from.
pub(crate) async fn open_policy(
    origin: &PolicyOrigin,
    dataset: &str,
    catalogue: &Arc<dyn Catalogue>,
) -> Result<(Arc<dyn PolicySource>, Arc<VerifiedPolicy>)> {
    open_policy_asked_every(DEFAULT_REFRESH, origin, dataset, catalogue).await
}

/// As [`open_policy`]; the catalogue is asked for newer versions when `refresh` has passed.
pub(crate) async fn open_policy_asked_every(
    refresh: Duration,
    origin: &PolicyOrigin,
    dataset: &str,
    catalogue: &Arc<dyn Catalogue>,
) -> Result<(Arc<dyn PolicySource>, Arc<VerifiedPolicy>)> {
    match origin {
        PolicyOrigin::Signed {
            owners,
            catalogue: location,
        } => {
            let policies = trust::policies(catalogue, trust::owners(owners)?).with_ages(refresh, DEFAULT_MAX_STALE);
            let policies = trust::remembering(policies, VersionsFile::of(location, owners))?;
            let policy = policies.policy(dataset).await?;
            Ok((policies, policy))
        }
        PolicyOrigin::Unsigned(path) => {
            let policy = Arc::new(read_unsigned(path)?);
            let found = &policy.policy().dataset;
            if found != dataset {
                let message = format!("{}: dataset: is {found}, not {dataset}", path.display());
                return Err(Failure::config(message, "give the policy of this dataset"));
            }
            tracing::warn!(policy = %path.display(), "the policy is not signed: for development only");
            Ok((Arc::new(FixedPolicies::new(vec![Arc::clone(&policy)])), policy))
        }
    }
}

/// Reads a policy file that nobody signed.
pub(crate) fn read_unsigned(path: &Path) -> Result<VerifiedPolicy> {
    let text = files::read_text(path)?;
    VerifiedPolicy::unsigned_for_development(text.as_bytes())
        .map_err(|error| Failure::config(format_args!("{}: {error}", path.display()), error.help()))
}

/// Refuses a policy that this version cannot carry out in full.
pub(crate) fn check_supported(policy: &VerifiedPolicy) -> Result<()> {
    let policy = policy.policy();
    match policy.unsupported().first() {
        None => Ok(()),
        Some(first) => Err(Failure::config(
            format_args!("policy of {}, version {}: {first}", policy.dataset, policy.version),
            &first.help,
        )),
    }
}

impl Services {
    /// On these.
    pub(crate) fn new(
        catalogue: Arc<dyn Catalogue>,
        kms: Arc<dyn ClientKeyService>,
        policies: Arc<dyn PolicySource>,
        policy: Arc<VerifiedPolicy>,
    ) -> Self {
        let clock = clock();
        let clients = Clients::new(Arc::clone(&kms), Arc::clone(&clock), OPENED_KEY_AGE, OPENED_KEYS);
        Self {
            catalogue,
            kms,
            clients,
            enclave: None,
            policies,
            policy,
            clock,
        }
    }

    /// Refuses a policy that this version cannot carry out in full.
    pub(crate) fn check_supported(&self) -> Result<()> {
        check_supported(&self.policy)
    }

    /// Whether the policy has columns whose values count once.
    pub(crate) fn remembers_values(&self) -> bool {
        let columns = &self.policy.policy().columns;
        columns.iter().any(|rule| rule.client_sealed == ClientSealed::Once)
    }

    /// The same services, with another version of the dataset's policy.
    pub(crate) fn with_policy(&self, policy: Arc<VerifiedPolicy>) -> Self {
        Self { policy, ..self.clone() }
    }

    /// Keys to seal with.
    pub(crate) fn sealer(&self) -> DirectSealer {
        let keys = SealingKeys::new(
            self.kms.clone(),
            Arc::clone(&self.catalogue),
            Arc::clone(&self.clock),
            UsageLimits::STANDARD,
        );
        let domains = DomainKeys::new(
            self.kms.clone(),
            Arc::clone(&self.catalogue),
            Arc::clone(&self.policies),
            Arc::clone(&self.clock),
            OPENED_KEY_AGE,
        );
        DirectSealer { keys, domains }
    }

    /// Keys to open with.
    pub(crate) fn opening_keys(&self) -> OpeningKeys {
        OpeningKeys::new(
            self.kms.clone(),
            Arc::clone(&self.catalogue),
            Arc::clone(&self.policies),
            Arc::clone(&self.clock),
            OPENED_KEY_AGE,
            OPENED_KEYS,
        )
    }

    /// A transform that seals.
    pub(crate) fn sealing(
        &self,
        format: Format,
        placement: KeysPlacement,
        sealer: DirectSealer,
    ) -> Result<SealTransform> {
        let transform = SealTransform::new(Arc::clone(&self.policy), format, placement, sealer)?;
        let transform = transform.with_clients(self.clients.clone());
        Ok(match &self.enclave {
            Some(worker) => transform.with_enclave(Arc::new(worker.clone())),
            None => transform,
        })
    }

    /// A transform that opens.
    pub(crate) fn opening(
        &self,
        format: Format,
        placement: KeysPlacement,
        keys: OpeningKeys,
        sealer: DirectSealer,
    ) -> Result<OpenTransform> {
        Ok(OpenTransform::new(
            Arc::clone(&self.policy),
            format,
            placement,
            keys,
            sealer,
        )?)
    }
}

/// The clock that everything goes by.
pub(crate) fn clock() -> Arc<dyn Clock> {
    Arc::new(MachineClock)
}
