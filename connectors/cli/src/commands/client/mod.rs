//! `sealflow client`: what a client does, without a policy and without KMS: sealing before anything leaves, opening what is
//! answered to it.

mod enclave;
mod keygen;
mod open;
mod recipient;
mod seal;

use std::path::Path;
use std::process::ExitCode;

use sealflow_client::RsaPublicJwk;

use crate::failure::{Failure, Result};
use crate::files;

/// Seal values as a client does, and open what is answered to a client
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    Keygen(keygen::Args),
    Seal(Box<seal::Args>),
    Open(open::Args),
}

/// Runs the subcommand.
pub(crate) async fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Keygen(args) => keygen::run(&args),
        Command::Seal(args) => seal::run(&args).await,
        Command::Open(args) => open::run(&args).await,
    }
}

/// The key in a JWK, or the first of a JWK set.
pub(crate) fn read_public_key(path: &Path) -> Result<RsaPublicJwk> {
    let json = files::read_small(path)?;
    let first = serde_json::from_slice::<serde_json::Value>(&json).ok();
    let first = first.and_then(|set| Some(set.get("keys")?.get(0)?.to_string().into_bytes()));
    RsaPublicJwk::from_json(&first.unwrap_or(json)).map_err(|error| {
        Failure::config(
            format_args!("{}: {error}", path.display()),
            "give the public key that `sealflow keys public --jwk` prints, or the service's /.well-known/jwks.json",
        )
    })
}
