//! Lease: the owner's word that the newest version still counts.

use std::path::PathBuf;
use std::process::ExitCode;

use sealflow::policy::Lease;
use sealflow::policy::lease::{self, LeaseError};
use sealflow::units::Span;

use super::Trusting;
use crate::failure::{Failure, Result};
use crate::services::clock;
use crate::term::{note, say};
use crate::trust::read_owner_key;

/// Sign a lease for the newest policy of a dataset, and put it into the catalogue
///
/// A policy that says `lease: required` counts only while a lease of its version holds, so run this more often than the
/// leases end, from a place that pipelines and readers cannot reach. To revoke what the newest version gives: publish another
/// version, or sign no more leases.
#[derive(Debug, clap::Args)]
pub(crate) struct LeaseArgs {
    /// The dataset
    #[arg(value_name = "DATASET")]
    dataset: Option<String>,
    /// Sign with this key: the owner's, or one whose thumbprint is among the policy's `lease_keys`
    #[arg(long, value_name = "FILE", env = "SEALFLOW_LEASE_KEY", hide_env_values = true)]
    key: PathBuf,
    /// How long it holds: up to 24h
    #[arg(long = "for", value_name = "SPAN", default_value = "12h")]
    span: Span,
    #[command(flatten)]
    trusting: Trusting,
}

pub(super) async fn lease(args: &LeaseArgs) -> Result<ExitCode> {
    let key = read_owner_key(&args.key)?;
    let trusted = args.trusting.open(None).await?;
    let dataset = trusted.dataset(args.dataset.as_ref())?;
    // What an owner has not signed is not leased, whoever put it into the catalogue.
    let source = trusted.policies_to_look_at()?;
    let policy = source.policy(&dataset).await?;
    let now = clock().now();
    let jws = lease::sign(&policy, now, args.span.0, &key)?;
    let lease = lease::publish(trusted.catalogue.as_ref(), &jws, &policy, &trusted.owners, now).await?;
    let version = policy.policy().version;
    say(format_args!(
        "lease of {dataset}, version {version}: until {}",
        lease.expires
    ));
    if policy.policy().lease != Lease::Required {
        note("note: this version does not say `lease: required`, so it counts without a lease too");
    }
    Ok(ExitCode::SUCCESS)
}

impl From<LeaseError> for Failure {
    fn from(error: LeaseError) -> Self {
        let help = error.help();
        match error {
            LeaseError::Catalogue(error) => error.into(),
            LeaseError::BadSpan { .. } => Self::usage(error, help),
            error => Self::config(error, help),
        }
    }
}
