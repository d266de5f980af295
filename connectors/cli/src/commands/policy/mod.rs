//! `sealflow policy`: written by people, signed by its owner, published in the catalogue.

mod diff;
mod domain;
mod lease;
mod publish;
mod render;
mod show;
mod write;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use sealflow::jose::Thumbprint;
use sealflow::keys::Catalogue;
use sealflow::policy::{Pin, PolicySource, TrustedOwners};
use sealflow_kms::KmsConfig;
use sealflow_storage::{CatalogueConfig, Location};

use crate::config::{self, Environment};
use crate::failure::{Failure, Result};
use crate::place_arg::PlaceParser;
use crate::remembered::VersionsFile;
use crate::services::open_catalogue;
use crate::trust;

/// Write, check, sign and publish policies
///
/// A policy says which fields of a dataset are sealed, under which key, for whom. Its owner signs it; pipelines and
/// readers pin the owner's key and take the newest version from the catalogue.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Make an owner key; prints its thumbprint, which pipelines pin
    Keygen(write::KeygenArgs),
    /// Write a policy to start from
    Init(write::InitArgs),
    /// Check a policy file
    Check(write::CheckArgs),
    /// Sign a policy file with the owner key
    Sign(write::SignArgs),
    /// Verify a signed policy against pinned owners
    Verify(write::VerifyArgs),
    /// Put a signed policy into the catalogue
    Publish(publish::PublishArgs),
    /// Sign a lease: the newest version still counts
    Lease(lease::LeaseArgs),
    /// Show the newest policy of a dataset
    Show(show::ShowArgs),
    /// Show all versions of a dataset's policy
    History(show::HistoryArgs),
    /// Show what changes between two policies, and who gains or loses which column
    Diff(diff::Args),
    /// Render keys, key policies and IAM policies that match a policy, as Terraform
    Render(render::Args),
    /// Domains: deterministic columns that can be joined
    #[command(subcommand)]
    Domain(domain::Command),
}

/// Runs the subcommand.
pub(crate) async fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Keygen(args) => write::keygen(&args),
        Command::Init(args) => write::init(&args),
        Command::Check(args) => write::check(&args),
        Command::Sign(args) => write::sign(&args),
        Command::Verify(args) => write::verify(&args),
        Command::Publish(args) => publish::publish(&args).await,
        Command::Lease(args) => lease::lease(&args).await,
        Command::Show(args) => show::show(&args).await,
        Command::History(args) => show::history(&args).await,
        Command::Diff(args) => diff::run(&args).await,
        Command::Render(args) => render::run(&args).await,
        Command::Domain(command) => domain::run(command).await,
    }
}

/// Catalogue and owners
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Catalogue and owners")]
pub(in crate::commands) struct Trusting {
    /// Take catalogue, owners and dataset from this pipeline file
    #[arg(long, value_name = "FILE", env = "SEALFLOW_PIPELINE", hide_env_values = true)]
    pub(in crate::commands) pipeline: Option<PathBuf>,
    /// Catalogue of signed policies: a folder, or s3://BUCKET/PREFIX
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
}

/// What [`Trusting`] comes to.
pub(in crate::commands) struct Trusted {
    pub(in crate::commands) catalogue: Arc<dyn Catalogue>,
    pub(in crate::commands) owners: TrustedOwners,
    /// What this machine has seen of the catalogue.
    seen: Option<VersionsFile>,
    /// Of the pipeline file.
    dataset: Option<String>,
    /// Of the pipeline file, or the default.
    pub(in crate::commands) kms: KmsConfig,
}

/// The options put together, nothing opened yet.
struct Resolved {
    catalogue: CatalogueConfig,
    owners: Vec<Pin>,
    dataset: Option<String>,
    kms: KmsConfig,
}

impl Trusting {
    /// The pinned owners alone, for which no catalogue is needed if they are given.
    pub(in crate::commands) fn pinned(&self) -> Result<TrustedOwners> {
        if self.owners.is_empty() {
            trust::owners(&self.resolve(None)?.owners)
        } else {
            trust::owners(&self.owners)
        }
    }

    /// Whether a catalogue is named.
    pub(in crate::commands) fn has_catalogue(&self) -> bool {
        self.catalogue.is_some() || self.pipeline.is_some()
    }

    /// `also` is believed as well: the key that signs right now.
    pub(in crate::commands) async fn open(&self, also: Option<Thumbprint>) -> Result<Trusted> {
        let resolved = self.resolve(also)?;
        Ok(Trusted {
            catalogue: open_catalogue(&resolved.catalogue).await?,
            seen: VersionsFile::of(&resolved.catalogue.location, &resolved.owners),
            owners: trust::owners(&resolved.owners)?,
            dataset: resolved.dataset,
            kms: resolved.kms,
        })
    }

    fn resolve(&self, also: Option<Thumbprint>) -> Result<Resolved> {
        let loaded = match &self.pipeline {
            Some(path) => Some(config::load(path, &Environment::of_process())?),
            None => None,
        };
        let catalogue = match &self.catalogue {
            Some(location) => Some(CatalogueConfig::from(location.clone())),
            None => loaded.as_ref().map(|config| config.catalogue.clone()),
        };
        let catalogue =
            catalogue.ok_or_else(|| Failure::usage("no catalogue", "give --catalogue PLACE or --pipeline FILE"))?;
        let mut owners = self.owners.clone();
        if owners.is_empty() {
            owners.extend(loaded.iter().flat_map(|config| config.trust.owners.iter().cloned()));
        }
        owners.extend(also.map(Pin::from));
        if owners.is_empty() {
            return Err(Failure::usage(
                "no owner to believe",
                "give --owner THUMBPRINT or --pipeline FILE",
            ));
        }
        let (dataset, kms) = loaded.map_or((None, KmsConfig::default()), |config| {
            (Some(config.dataset), config.kms)
        });
        Ok(Resolved {
            catalogue,
            owners,
            dataset,
            kms,
        })
    }
}

impl Trusted {
    /// The newest policies, to show what they say or to keep their keys: those that need a lease are given without one too.
    pub(in crate::commands) fn policies_to_look_at(&self) -> Result<Arc<dyn PolicySource>> {
        let policies = trust::policies(&self.catalogue, self.owners.clone()).without_leases();
        trust::remembering(policies, self.seen.clone())
    }

    pub(in crate::commands) fn dataset(&self, given: Option<&String>) -> Result<String> {
        given
            .or(self.dataset.as_ref())
            .cloned()
            .ok_or_else(|| Failure::usage("no dataset", "name it, or give --pipeline FILE"))
    }
}
