//! `sealflow enclave build`: the image of a worker, and what will be measured of it.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::ValueEnum;
use sealflow_enclave_host::build::{Boot, BuildRequest, BuildTier, build};

use crate::failure::{Exit, Failure, Result};
use crate::term::{OutputFormat, say, say_json};

/// Make the image of a worker, and print what will be measured of it
///
/// The configuration is measured with the program: owners of policies, keys, issuers. The same input is the same image, byte for byte.
/// Put the digits into the policy (`enclave.measurements`) and, by `sealflow policy render`, into key policies.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The worker's configuration (YAML)
    #[arg(value_name = "CONFIG")]
    config: PathBuf,
    /// The worker's program: a static ELF file, as `scripts/build_enclave_worker.sh` makes it
    #[arg(long, value_name = "FILE")]
    worker: PathBuf,
    /// The image to write
    #[arg(short, long, value_name = "FILE")]
    out: PathBuf,
    /// Where it will run
    #[arg(long, value_enum, default_value_t)]
    tier: Tier,
    /// For Nitro: folder of kernel, init and driver, as `aws-nitro-enclaves-cli-devel` installs them
    #[arg(long, value_name = "DIR", required_if_eq("tier", "nitro"))]
    blobs: Option<PathBuf>,
    /// For Nitro: another first program than the `init` of the blobs, for example `sealflow-enclave-init`
    #[arg(long, value_name = "FILE", requires = "blobs")]
    init: Option<PathBuf>,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    output: OutputFormat,
}

/// Where an image will run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Tier {
    /// As a process: for development
    #[default]
    Software,
    /// As a Nitro enclave
    Nitro,
}

/// Runs the subcommand.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let failed = |error: &dyn std::fmt::Display| {
        Failure::new(Exit::Data, error, "`sealflow help enclave build` says what it takes")
    };
    let tier = match (args.tier, &args.blobs) {
        (Tier::Nitro, Some(blobs)) => {
            let mut boot = Boot::from_blobs(blobs).map_err(|error| failed(&error))?;
            if let Some(init) = &args.init {
                boot.init.clone_from(init);
            }
            BuildTier::Nitro(boot)
        }
        _ => BuildTier::Software,
    };
    let request = BuildRequest {
        worker: args.worker.clone(),
        configuration: args.config.clone(),
        output: args.out.clone(),
        tier,
    };
    let built = build(&request).map_err(|error| failed(&error))?;
    match args.output {
        OutputFormat::Json => say_json(&built),
        OutputFormat::Text => say(built.measurements.to_string()),
    }
    Ok(ExitCode::SUCCESS)
}
