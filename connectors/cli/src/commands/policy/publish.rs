//! Publish: a signed policy into the catalogue, where everybody finds the newest.

use std::path::PathBuf;
use std::process::ExitCode;

use sealflow::jose::PrivateJwk;
use sealflow::policy::publish::publish as publish_policy;
use sealflow::policy::signed::verify;
use sealflow::policy::{Lease, Published, lease};
use sealflow::units::Span;

use super::Trusting;
use super::write::sign_file;
use crate::failure::Result;
use crate::files;
use crate::services::clock;
use crate::term::{note, say};
use crate::trust::read_owner_key;

/// Put a signed policy into the catalogue
///
/// With --key a policy file (YAML) is signed on the way. Versions only grow, and a version never changes.
#[derive(Debug, clap::Args)]
pub(crate) struct PublishArgs {
    /// The signed policy (JWS), or with --key the policy (YAML)
    #[arg(
        value_name = "FILE",
        default_value = "policy.jws",
        default_value_if("key", clap::builder::ArgPredicate::IsPresent, "policy.yaml")
    )]
    file: PathBuf,
    /// Sign with this owner key first
    #[arg(long, value_name = "FILE", env = "SEALFLOW_OWNER_KEY", hide_env_values = true)]
    key: Option<PathBuf>,
    /// Also sign a lease of that length (up to 24h) and put it there first, so that no pipeline finds the policy without one
    #[arg(long, value_name = "SPAN", requires = "key")]
    lease: Option<Span>,
    #[command(flatten)]
    trusting: Trusting,
}

pub(super) async fn publish(args: &PublishArgs) -> Result<ExitCode> {
    let key = args.key.as_deref().map(read_owner_key).transpose()?;
    let jws = match &key {
        Some(key) => sign_file(&args.file, key)?,
        None => files::read_text(&args.file)?.trim().to_owned(),
    };
    let trusted = args.trusting.open(key.as_ref().map(PrivateJwk::thumbprint)).await?;
    let policy = verify(&jws, &trusted.owners)?;
    let (catalogue, now) = (trusted.catalogue.as_ref(), clock().now());
    if let (Some(key), Some(span)) = (&key, args.lease) {
        let signed = lease::sign(&policy, now, span.0, key)?;
        lease::publish(catalogue, &signed, &policy, &trusted.owners, now).await?;
    }
    let published = publish_policy(catalogue, &jws, &trusted.owners).await?;
    let document = policy.policy();
    let how = if published == Published::New {
        "published"
    } else {
        "was there already"
    };
    say(format_args!(
        "policy of {}, version {}: {how}",
        document.dataset, document.version
    ));
    if document.lease == Lease::Required {
        match lease::newest(catalogue, &policy, &trusted.owners, now).await {
            Ok(lease) => say(format_args!("lease until {}", lease.expires)),
            Err(error) => note(format_args!(
                "note: pipelines and readers stop: {error}; sign one with `sealflow policy lease`"
            )),
        }
    }
    Ok(ExitCode::SUCCESS)
}
