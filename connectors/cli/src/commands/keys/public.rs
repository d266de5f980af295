//! `keys public`: the public halves of the RSA keys that clients seal to.

use std::process::ExitCode;

use sealflow::jose::rsa::{RsaPublicJwk, to_jwks};
use sealflow::keys::{ClientKeyService, KeyServiceError};
use sealflow::policy::{ClientRule, RsaKey};

use super::Kms;
use crate::commands::policy::Trusting;
use crate::failure::{Exit, Failure, Result};
use crate::term::say;

/// Print the public keys that clients seal to
///
/// They are those of `client:` in the dataset's newest policy: asked of KMS, or of pairs as the policy has them. Their names
/// (`kid`) are RFC 7638 thumbprints.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Dataset whose newest policy names the keys
    #[arg(value_name = "DATASET")]
    dataset: Option<String>,
    /// The key of this name; needed where there are several and one is to be printed
    #[arg(long = "key", value_name = "NAME")]
    name: Option<String>,
    /// All as a JWK set, the current keys first, then those before them (the default)
    #[arg(long, group = "form")]
    jwks: bool,
    /// One as a JWK
    #[arg(long, group = "form")]
    jwk: bool,
    /// One as PEM
    #[arg(long, group = "form")]
    pem: bool,
    #[command(flatten)]
    trusting: Trusting,
    #[command(flatten)]
    kms: Kms,
}

pub(super) async fn run(args: &Args) -> Result<ExitCode> {
    let trusted = args.trusting.open(None).await?;
    let dataset = trusted.dataset(args.dataset.as_ref())?;
    let policies = trusted.policies_to_look_at()?;
    let policy = policies.policy(&dataset).await?;
    let Some(rule) = &policy.policy().client else {
        return Err(Failure::config(
            format_args!("the policy of {dataset} has no keys that clients seal to"),
            "add `client: { keys: { NAME: { arn: … } } }` to the policy",
        ));
    };
    // Asked for no pair, and opened all the same: what is wrong with it is said early.
    let kms = args.kms.open(trusted.kms).await?;
    if args.jwk || args.pem {
        let one = one(rule, args.name.as_deref())?;
        let (arn, key) = (one.arn(), public_key(&kms, one).await?);
        if args.jwk {
            say(key.to_published_json());
        } else {
            let pem = key.to_pem().map_err(|error| unusable(arn, &error))?;
            say(pem.trim_end());
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut keys = Vec::new();
    match &args.name {
        Some(name) => keys.push(public_key(&kms, one(rule, Some(name))?).await?),
        None => {
            for (n, key) in rule.rsa_keys().enumerate() {
                match spki(&kms, key).await {
                    // A previous key that is gone is missed by nobody.
                    Err(error) if n >= rule.keys.len() && !error.is_retryable() => {}
                    _ => keys.push(public_key(&kms, key).await?),
                }
            }
        }
    }
    say(to_jwks(&keys));
    Ok(ExitCode::SUCCESS)
}

/// The current key of that name, or the only one.
fn one<'a>(rule: &'a ClientRule, name: Option<&str>) -> Result<&'a RsaKey> {
    let known = || rule.keys.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    let mut all = rule.keys.values();
    let key = match (name, all.next(), all.next()) {
        (Some(name), ..) => rule.keys.get(name),
        (None, Some(only), None) => Some(only),
        (None, ..) => None,
    };
    let key = key.ok_or_else(|| match name {
        Some(name) => Failure::usage(
            format_args!("there is no client key {name}"),
            format_args!("there are {}", known()),
        ),
        None => Failure::usage(
            "there are several client keys",
            format_args!("choose one with --key: {}", known()),
        ),
    })?;
    Ok(&key.key)
}

/// The public half, which of a pair is in the policy.
async fn spki(kms: &dyn ClientKeyService, key: &RsaKey) -> Result<Vec<u8>, KeyServiceError> {
    match key {
        RsaKey::Pair(pair) => Ok(pair.public.clone()),
        _ => kms.public_key(key.arn()).await,
    }
}

pub(super) async fn public_key(kms: &dyn ClientKeyService, key: &RsaKey) -> Result<RsaPublicJwk> {
    let der = spki(kms, key).await?;
    RsaPublicJwk::from_spki_der(&der).map_err(|error| unusable(key.arn(), &error))
}

fn unusable(arn: &str, error: &sealflow::jose::rsa::RsaKeyError) -> Failure {
    Failure::new(
        Exit::Unavailable,
        format_args!("KMS gave no usable public key of {arn}: {error}"),
        "name an RSA key of 2048 to 4096 bits for ENCRYPT_DECRYPT in the policy",
    )
}
