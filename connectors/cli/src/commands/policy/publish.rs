//! Publish: a signed policy into the catalogue, where everybody finds the newest.

use std::path::PathBuf;
use std::process::ExitCode;

use sealflow::jose::Thumbprint;
use sealflow::policy::Published;
use sealflow::policy::publish::publish as publish_policy;
use sealflow::policy::signed::verify;

use super::Trusting;
use super::write::sign_file;
use crate::failure::Result;
use crate::files;
use crate::term::say;
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
    #[command(flatten)]
    trusting: Trusting,
}

pub(super) async fn publish(args: &PublishArgs) -> Result<ExitCode> {
    let (jws, signer): (String, Option<Thumbprint>) = match &args.key {
        Some(path) => {
            let key = read_owner_key(path)?;
            (sign_file(&args.file, &key)?, Some(key.thumbprint()))
        }
        None => (files::read_text(&args.file)?.trim().to_owned(), None),
    };
    let trusted = args.trusting.open(signer)?;
    let published = publish_policy(trusted.catalogue.as_ref(), &jws, &trusted.owners).await?;
    let policy = verify(&jws, &trusted.owners)?;
    let policy = policy.policy();
    let how = if published == Published::New {
        "published"
    } else {
        "was there already"
    };
    say(format_args!(
        "policy of {}, version {}: {how}",
        policy.dataset, policy.version
    ));
    Ok(ExitCode::SUCCESS)
}
