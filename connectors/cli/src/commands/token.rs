//! `sealflow token`: proves to a reading service whose AWS credentials these are.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use sealflow_kms::{AwsKms, KmsConfig, PresignError};

use crate::commands::client::read_public_key;
use crate::failure::{Exit, Failure, Result};
use crate::term::say;

/// Make the Authorization header that proves your AWS identity to a reading service
///
/// Presigns a request to AWS STS (GetCallerIdentity) for that service alone, and sends it nowhere. It counts for five
/// minutes; whoever has it can show it to that service until then, so keep it out of command lines and logs:
/// `curl -H @<(sealflow token --server-id ID) …`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The service's `identity.server_id`, as its operator names it
    #[arg(long, value_name = "ID")]
    server_id: String,
    /// Region whose STS the service lists; default: that of the AWS configuration
    #[arg(long, value_name = "REGION")]
    region: Option<String>,
    /// Another STS endpoint, by its origin, if the service lists it
    #[arg(long, value_name = "URL")]
    sts_endpoint: Option<String>,
    /// Profile of the AWS configuration to take credentials from
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,
    /// The public key (JWK) that answers are to be sealed to: the request commits to it
    #[arg(long, value_name = "FILE")]
    seal_to: Option<PathBuf>,
}

/// Runs the subcommand.
pub(crate) async fn run(args: Args) -> Result<ExitCode> {
    let config = KmsConfig {
        region: args.region,
        profile: args.profile,
        ..KmsConfig::default()
    };
    let kms = AwsKms::new(&config)
        .await
        .map_err(|error| Failure::usage(error, "see `sealflow token --help`"))?;
    let seal_to = match &args.seal_to {
        Some(path) => Some(read_public_key(path)?.thumbprint()),
        None => None,
    };
    let presigned = kms.presign_identity(
        args.sts_endpoint.as_deref(),
        &args.server_id,
        seal_to,
        SystemTime::now(),
    );
    let presigned = presigned.await.map_err(|error| match error {
        PresignError::Credentials(error) => Failure::from(error),
        PresignError::Internal => Failure::new(Exit::Internal, error, "report this with the version of sealflow"),
        error => {
            let help = error.help();
            Failure::usage(error, help)
        }
    })?;
    say(format_args!("Authorization: Sealflow-STS {}", presigned.expose()));
    Ok(ExitCode::SUCCESS)
}
