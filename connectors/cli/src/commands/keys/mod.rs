//! `sealflow keys`: data keys and the KMS keys that they depend on. No data key is ever shown, wrapped or not.

mod client;
mod enclave;
mod list;
mod pair;
mod public;
mod rewrap;
mod rotate;
mod usage;

use std::process::ExitCode;

pub(crate) use pair::Bits;
use sealflow_kms::{AwsKms, KmsConfig};

use crate::failure::{Failure, Result};

/// Show data keys and KMS keys, rotate and move them; never a data key itself
///
/// Each data key lies in the catalogue as an envelope: wrapped by KMS, with dataset, policy key, ACL and labels.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// List all data keys, newest first
    List(list::ListArgs),
    /// Show one data key
    Show(list::ShowArgs),
    /// Show which KMS keys are used by what, and which could be deleted
    Usage(usage::Args),
    Pair(pair::Args),
    /// Print the public keys that clients seal to
    Public(public::Args),
    /// Write the HMAC key by which one client proves that it sealed a value
    Client(client::Args),
    Enclave(enclave::Args),
    /// Give the KMS keys of a policy new key material, now
    Rotate(rotate::Args),
    /// Wrap data keys anew under the KMS key that the policy names now
    Rewrap(rewrap::Args),
}

/// Runs the subcommand.
pub(crate) async fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::List(args) => list::list(&args).await,
        Command::Show(args) => list::show(&args).await,
        Command::Pair(args) => pair::run(&args).await,
        Command::Public(args) => public::run(&args).await,
        Command::Client(args) => client::run(&args).await,
        Command::Enclave(args) => enclave::run(&args).await,
        Command::Usage(args) => usage::run(&args).await,
        Command::Rotate(args) => rotate::run(&args).await,
        Command::Rewrap(args) => rewrap::run(&args).await,
    }
}

/// KMS
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "KMS")]
struct Kms {
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

impl Kms {
    /// A client by these options over those of the pipeline file.
    async fn open(&self, of_pipeline: KmsConfig) -> Result<AwsKms> {
        let config = KmsConfig {
            endpoint: self.kms_endpoint.clone().or(of_pipeline.endpoint),
            region: self.kms_region.clone().or(of_pipeline.region),
            profile: self.kms_profile.clone().or(of_pipeline.profile),
            ..of_pipeline
        };
        AwsKms::new(&config).await.map_err(|error| {
            let help = "correct the `kms` section or option; `sealflow schema pipeline` says what it takes";
            Failure::config(format_args!("kms.{error}"), help)
        })
    }
}
