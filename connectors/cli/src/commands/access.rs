//! The options that say whose policy, which catalogue and which KMS: of a pipeline file, or one by one.

use std::path::PathBuf;
use std::sync::Arc;

use sealflow::keys::{Catalogue, ClientKeyService};
use sealflow::policy::Pin;
use sealflow_kms::KmsConfig;
use sealflow_storage::{CatalogueConfig, Location};

use crate::config::{self, Environment, PipelineConfig};
use crate::failure::{Failure, Result};
use crate::overlay::Overlay;
use crate::place_arg::PlaceParser;
use crate::services::{PolicyOrigin, Services, open_catalogue, open_kms, open_policy, read_unsigned};

/// Policy, catalogue and KMS
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Policy, catalogue and KMS")]
pub(crate) struct Access {
    /// Take dataset, catalogue, owners and KMS from this pipeline file
    #[arg(long, value_name = "FILE", env = "SEALFLOW_PIPELINE", hide_env_values = true)]
    pipeline: Option<PathBuf>,
    /// Dataset whose newest policy in the catalogue counts
    #[arg(long, value_name = "NAME")]
    dataset: Option<String>,
    /// Catalogue of signed policies and key envelopes: a folder, or s3://BUCKET/PREFIX
    #[arg(long, value_name = "PLACE", value_parser = PlaceParser, env = "SEALFLOW_CATALOGUE", hide_env_values = true)]
    catalogue: Option<Location>,
    /// Thumbprint of an owner key whose policies are believed, also as PATTERN=THUMBPRINT for some datasets; may be repeated
    #[arg(
        long = "owner",
        value_name = "THUMBPRINT",
        allow_hyphen_values = true,
        env = "SEALFLOW_OWNERS",
        hide_env_values = true,
        value_delimiter = ','
    )]
    owners: Vec<Pin>,
    /// Use this policy file although nobody signed it: for development only
    #[arg(long, value_name = "POLICY", conflicts_with_all = ["dataset", "owners"])]
    dev: Option<PathBuf>,
    /// Another KMS endpoint than AWS's, for example a local KMS
    #[arg(long, value_name = "URL", env = "SEALFLOW_KMS_ENDPOINT", hide_env_values = true)]
    kms_endpoint: Option<String>,
    /// AWS region of STS and profiles; keys are asked for in the region of their ARN
    #[arg(long, value_name = "REGION")]
    kms_region: Option<String>,
    /// Profile of the AWS configuration to take credentials from
    #[arg(long, value_name = "NAME")]
    kms_profile: Option<String>,
}

/// The options put together, nothing opened yet.
struct Resolved {
    dataset: String,
    catalogue: Option<CatalogueConfig>,
    origin: PolicyOrigin,
}

impl Access {
    /// Opens everything. `sidecar` is the text and name of a `.sfkeys` file, whose envelopes count as well.
    pub(crate) async fn open(&self, sidecar: Option<(&str, &str)>) -> Result<Services> {
        self.open_with(self.loaded()?.as_ref(), sidecar).await
    }

    /// The pipeline file, if there is one.
    pub(crate) fn loaded(&self) -> Result<Option<PipelineConfig>> {
        let path = self.pipeline.as_ref();
        path.map(|path| config::load(path, &Environment::of_process()))
            .transpose()
    }

    /// Whether the policy is one that nobody signed.
    pub(crate) fn is_unsigned(&self) -> bool {
        self.dev.is_some()
    }

    /// The dataset that is asked for.
    pub(crate) fn dataset(&self, loaded: Option<&PipelineConfig>) -> Option<String> {
        self.dataset
            .clone()
            .or_else(|| loaded.map(|config| config.dataset.clone()))
    }

    /// As [`Access::open`], with the pipeline file that was loaded before.
    pub(crate) async fn open_with(
        &self,
        loaded: Option<&PipelineConfig>,
        sidecar: Option<(&str, &str)>,
    ) -> Result<Services> {
        self.open_on(self.kms(loaded).await?, loaded, sidecar).await
    }

    /// The KMS alone, which knows whose the credentials are.
    pub(crate) async fn kms(&self, loaded: Option<&PipelineConfig>) -> Result<Arc<dyn ClientKeyService>> {
        open_kms(&self.kms_config(loaded)).await
    }

    /// As [`Access::open_with`], on a KMS that was opened before.
    pub(crate) async fn open_on(
        &self,
        kms: Arc<dyn ClientKeyService>,
        loaded: Option<&PipelineConfig>,
        sidecar: Option<(&str, &str)>,
    ) -> Result<Services> {
        let resolved = self.resolve(loaded)?;
        let base = match &resolved.catalogue {
            Some(config) => Some(open_catalogue(config).await?),
            None => None,
        };
        let overlay = Overlay::over(base);
        if let Some((text, name)) = sidecar {
            overlay.add_sidecar(text, name)?;
        }
        let catalogue: Arc<dyn Catalogue> = Arc::new(overlay);
        let (policies, policy) = open_policy(&resolved.origin, &resolved.dataset, &catalogue).await?;
        let services = Services::new(catalogue, kms, policies, policy);
        services.check_supported()?;
        Ok(services)
    }

    /// The owners whose policies are believed.
    pub(crate) fn owners(&self, loaded: Option<&PipelineConfig>) -> Vec<Pin> {
        if self.owners.is_empty() {
            loaded.map(|config| config.trust.owners.clone()).unwrap_or_default()
        } else {
            self.owners.clone()
        }
    }

    /// The same options; the dataset is `name` unless they name one.
    pub(crate) fn of_dataset(&self, name: &str) -> Self {
        let mut access = self.clone();
        if access.dataset.is_none() && access.dev.is_none() {
            access.dataset = Some(name.to_owned());
        }
        access
    }

    /// The region where keys are that are named without one.
    pub(crate) fn kms_region(&self, loaded: Option<&PipelineConfig>) -> Option<String> {
        let variable = |name| std::env::var(name).ok().filter(|region| !region.is_empty());
        let configured = self.kms_config(loaded).region;
        configured.or_else(|| variable("AWS_REGION").or_else(|| variable("AWS_DEFAULT_REGION")))
    }

    pub(crate) fn kms_config(&self, loaded: Option<&PipelineConfig>) -> KmsConfig {
        let mut kms = loaded.map(|config| config.kms.clone()).unwrap_or_default();
        kms.endpoint = self.kms_endpoint.clone().or(kms.endpoint);
        kms.region = self.kms_region.clone().or(kms.region);
        kms.profile = self.kms_profile.clone().or(kms.profile);
        kms
    }

    fn resolve(&self, loaded: Option<&PipelineConfig>) -> Result<Resolved> {
        let catalogue = match &self.catalogue {
            Some(location) => Some(CatalogueConfig::from(location.clone())),
            None => loaded.map(|config| config.catalogue.clone()),
        };
        if let Some(path) = &self.dev {
            let dataset = read_unsigned(path)?.policy().dataset.clone();
            return Ok(Resolved {
                dataset,
                catalogue,
                origin: PolicyOrigin::Unsigned(path.clone()),
            });
        }
        let dataset = self.dataset(loaded);
        let owners = self.owners(loaded);
        let (Some(dataset), Some(place), false) = (dataset, catalogue.clone(), owners.is_empty()) else {
            return Err(Failure::usage(
                "no policy: dataset, catalogue and owner are all needed",
                "give --pipeline FILE, or --dataset, --catalogue and --owner; for development --dev POLICY",
            ));
        };
        Ok(Resolved {
            dataset,
            catalogue,
            origin: PolicyOrigin::Signed {
                owners,
                catalogue: place.location,
            },
        })
    }
}
