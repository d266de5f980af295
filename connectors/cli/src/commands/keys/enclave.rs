//! `keys enclave`: the owner signs what clients seal enclave columns to.

use std::path::PathBuf;
use std::process::ExitCode;

use sealflow::jose::rsa::RsaPublicJwk;
use sealflow::jose::{PrivateJwk, Thumbprint};
use sealflow::policy::enclave_keys::{labels, published, signed};
use sealflow::policy::{EnclaveKeys, TrustedOwners};
use sealflow::units::Span;

use super::{Kms, public};
use crate::commands::client::read_public_key;
use crate::commands::policy::Trusting;
use crate::failure::{Failure, Result};
use crate::files::{self, Access};
use crate::services::clock;
use crate::term::{note, say};
use crate::trust::read_owner_key;

/// Sign the public keys that clients seal enclave columns to
///
/// Clients believe them because the policy's owner signed them, whoever serves them. Keys and labels are those of `enclave:` and of the
/// columns with `flow: enclave` in the dataset's newest policy: public halves of pairs are in it, KMS is asked for the others. Run it
/// where the owner key is, before the document ends and whenever keys or columns change: clients take the newest.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Dataset whose newest policy names keys and columns
    #[arg(value_name = "DATASET")]
    dataset: Option<String>,
    /// Sign with this owner key
    #[arg(long, value_name = "FILE", env = "SEALFLOW_OWNER_KEY", hide_env_values = true)]
    key: PathBuf,
    /// How long clients may seal to these keys: up to 400d
    #[arg(long = "for", value_name = "SPAN", default_value = "90d")]
    span: Span,
    /// Sign this public key (a JWK) instead of the policy's, the current one first; may be repeated
    #[arg(long = "jwk", value_name = "FILE")]
    jwks: Vec<PathBuf>,
    /// Write the document here
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Put the document into the catalogue, where reading services find it (`enclave_keys`)
    #[arg(long)]
    publish: bool,
    #[command(flatten)]
    trusting: Trusting,
    #[command(flatten)]
    kms: Kms,
}

pub(super) async fn run(args: &Args) -> Result<ExitCode> {
    let owner = read_owner_key(&args.key)?;
    let trusted = args.trusting.open(None).await?;
    let dataset = trusted.dataset(args.dataset.as_ref())?;
    let policies = trusted.policies_to_look_at()?;
    let policy = policies.policy(&dataset).await?;
    check_owner(&trusted.owners, &dataset, &owner)?;
    let policy = policy.policy();
    let Some(rule) = &policy.enclave else {
        return Err(Failure::config(
            format_args!("the policy of {dataset} has no keys of an enclave"),
            "add `enclave: { keys: { NAME: … }, measurements: { … } }` to the policy",
        ));
    };
    let mut keys: Vec<RsaPublicJwk> = Vec::new();
    for path in &args.jwks {
        keys.push(read_public_key(path)?);
    }
    if args.jwks.is_empty() {
        // Current keys alone: what is before them opens what was sealed, and nobody seals to it any more.
        let kms = args.kms.open(trusted.kms).await?;
        for key in rule.client.keys.values() {
            keys.push(public::public_key(&kms, &key.key).await?);
        }
    }
    let content = EnclaveKeys::new(&dataset, labels(policy), keys)?;
    let now = clock().now();
    let jws = signed::sign(&content, now, args.span.0, &owner)?;
    let document = signed::verify(&jws, &trusted.owners, now)?;
    if let Some(path) = &args.out {
        files::write_new(path, format!("{jws}\n").as_bytes(), Access::Shared, false)?;
    }
    if args.publish {
        let number = published::publish(trusted.catalogue.as_ref(), &document).await?;
        note(format_args!(
            "published the enclave keys of {dataset} as number {number}"
        ));
    }
    if args.out.is_none() && !args.publish {
        say(&jws);
    }
    let names: Vec<String> = content.keys().iter().map(|key| key.thumbprint().to_string()).collect();
    note(format_args!(
        "signed by owner {}: keys {} for {}, until {}",
        owner.thumbprint(),
        names.join(", "),
        content.labels().join(", "),
        document.expires()
    ));
    Ok(ExitCode::SUCCESS)
}

/// Whoever signs has to be pinned where the document is read; here first.
fn check_owner(trusted: &TrustedOwners, dataset: &str, owner: &PrivateJwk) -> Result<()> {
    let signer: Thumbprint = owner.thumbprint();
    if trusted.is_owner(dataset, &signer) {
        return Ok(());
    }
    Err(Failure::config(
        format_args!("key {signer} is no pinned owner of {dataset}: no client would believe it"),
        "sign with the key that signs the policy",
    ))
}
