//! The options that say whose policy, which catalogue and which KMS: of a pipeline file, or one by one.

use std::path::PathBuf;
use std::sync::Arc;

use sealflow::jose::Thumbprint;
use sealflow::keys::Catalogue;
use sealflow_kms::KmsConfig;

use crate::config::{self, Environment};
use crate::failure::{Failure, Result};
use crate::overlay::Overlay;
use crate::services::{PolicyOrigin, Services, clock, open_catalogue, open_kms, open_policy, read_unsigned};

/// Policy, catalogue and KMS
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Policy, catalogue and KMS")]
pub(crate) struct Access {
    /// Take dataset, catalogue, owners and KMS from this pipeline file
    #[arg(long, value_name = "FILE", env = "SEALFLOW_PIPELINE", hide_env_values = true)]
    pipeline: Option<PathBuf>,
    /// Dataset whose newest policy in the catalogue counts
    #[arg(long, value_name = "NAME")]
    dataset: Option<String>,
    /// Catalogue of signed policies and key envelopes
    #[arg(long, value_name = "DIR", env = "SEALFLOW_CATALOGUE", hide_env_values = true)]
    catalogue: Option<PathBuf>,
    /// Thumbprint of an owner key whose policies are believed; may be repeated
    #[arg(
        long = "owner",
        value_name = "THUMBPRINT",
        allow_hyphen_values = true,
        env = "SEALFLOW_OWNERS",
        hide_env_values = true,
        value_delimiter = ','
    )]
    owners: Vec<Thumbprint>,
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
    catalogue: Option<PathBuf>,
    origin: PolicyOrigin,
    kms: KmsConfig,
}

impl Access {
    /// Opens everything. `sidecar` is the text and name of a `.sfkeys` file, whose envelopes count as well.
    pub(crate) async fn open(&self, sidecar: Option<(&str, &str)>) -> Result<Services> {
        let resolved = self.resolve()?;
        let base = resolved.catalogue.as_deref().map(open_catalogue).transpose()?;
        let overlay = Overlay::over(base);
        if let Some((text, name)) = sidecar {
            overlay.add_sidecar(text, name)?;
        }
        let catalogue: Arc<dyn Catalogue> = Arc::new(overlay);
        let (policies, policy) = open_policy(&resolved.origin, &resolved.dataset, &catalogue).await?;
        let kms = open_kms(&resolved.kms).await?;
        let services = Services {
            catalogue,
            kms,
            policies,
            policy,
            clock: clock(),
        };
        services.check_supported()?;
        Ok(services)
    }

    fn resolve(&self) -> Result<Resolved> {
        let loaded = match &self.pipeline {
            Some(path) => Some(config::load(path, &Environment::of_process())?),
            None => None,
        };
        let mut kms = loaded.as_ref().map(|config| config.kms.clone()).unwrap_or_default();
        kms.endpoint = self.kms_endpoint.clone().or(kms.endpoint);
        kms.region = self.kms_region.clone().or(kms.region);
        kms.profile = self.kms_profile.clone().or(kms.profile);
        let catalogue = self
            .catalogue
            .clone()
            .or_else(|| loaded.as_ref().map(|config| config.catalogue.folder.clone()));
        if let Some(path) = &self.dev {
            let dataset = read_unsigned(path)?.policy().dataset.clone();
            return Ok(Resolved {
                dataset,
                catalogue,
                origin: PolicyOrigin::Unsigned(path.clone()),
                kms,
            });
        }
        let dataset = self
            .dataset
            .clone()
            .or_else(|| loaded.as_ref().map(|config| config.dataset.clone()));
        let owners = if self.owners.is_empty() {
            loaded.map(|config| config.trust.owners).unwrap_or_default()
        } else {
            self.owners.clone()
        };
        let (Some(dataset), Some(_), false) = (dataset, &catalogue, owners.is_empty()) else {
            return Err(Failure::usage(
                "no policy: dataset, catalogue and owner are all needed",
                "give --pipeline FILE, or --dataset, --catalogue and --owner; for development --dev POLICY",
            ));
        };
        Ok(Resolved {
            dataset,
            catalogue,
            origin: PolicyOrigin::Signed { owners },
            kms,
        })
    }
}
