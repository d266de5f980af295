//! `keys client`: the HMAC key of one client, for whoever hands it to that client.

use std::path::PathBuf;
use std::process::ExitCode;

use sealflow::flow::hybrid::client_secret;
use sealflow::jose::{base64url, is_client_name};
use zeroize::Zeroizing;

use super::Kms;
use crate::commands::policy::Trusting;
use crate::failure::{Failure, Result};
use crate::files;
use crate::term::note;

/// Write the HMAC key by which one client proves that it sealed a value
///
/// KMS derives it from the client's name, the dataset, and the HMAC key of `client.mac` in the dataset's newest policy: the same
/// key each time, and nowhere stored. It is a secret, a JWK for HS256 in a file that only you can read: bring it to that client
/// and to nobody else. To end it, add the client's name to `client.mac.revoked`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The client's name, its `kid`: 1 to 64 of A-Z a-z 0-9 . _ -
    #[arg(value_name = "CLIENT")]
    client: String,
    /// Dataset whose newest policy names the HMAC key
    #[arg(long, value_name = "DATASET")]
    dataset: Option<String>,
    /// Where the key goes; a file that is there is not overwritten
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    trusting: Trusting,
    #[command(flatten)]
    kms: Kms,
}

pub(super) async fn run(args: &Args) -> Result<ExitCode> {
    if !is_client_name(&args.client) {
        return Err(Failure::usage(
            format_args!("{:?} cannot name a client", args.client),
            "write 1 to 64 of A-Z a-z 0-9 . _ -",
        ));
    }
    let trusted = args.trusting.open(None).await?;
    let dataset = trusted.dataset(args.dataset.as_ref())?;
    let policies = trusted.policies_to_look_at()?;
    let policy = policies.policy(&dataset).await?;
    let rule = policy.policy().client.as_ref().and_then(|client| client.mac.as_ref());
    let Some(rule) = rule else {
        return Err(Failure::config(
            format_args!("the policy of {dataset} has no HMAC key of clients"),
            "add `client: { mac: { arn: … } }` to the policy",
        ));
    };
    if rule.revoked.contains(&args.client) {
        return Err(Failure::config(
            format_args!("the policy of {dataset} has revoked the client {}", args.client),
            "give it another name, or take it out of client.mac.revoked",
        ));
    }
    let kms = args.kms.open(trusted.kms).await?;
    let secret = client_secret(&kms, rule, &dataset, &args.client).await?;
    let k = Zeroizing::new(base64url(&*secret));
    let parts = [
        r#"{"alg":"HS256","k":""#,
        &k,
        r#"","kid":""#,
        &args.client,
        r#"","kty":"oct","use":"sig"}"#,
        "\n",
    ];
    let jwk = Zeroizing::new(parts.concat());
    files::write_new(&args.out, jwk.as_bytes(), files::Access::Private, false)?;
    note(format_args!(
        "wrote the key of client {} for {dataset} to {}: a secret, for that client alone",
        args.client,
        args.out.display()
    ));
    Ok(ExitCode::SUCCESS)
}
