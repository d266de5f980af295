//! `sealflow enclave attest` and `status`: what the worker of a pipeline proves, and how it is.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use sealflow_enclave_host::{Cause, Supervisor};
use serde::Serialize;

use crate::commands::run::services;
use crate::config::{self, Environment, PipelineConfig};
use crate::failure::{Exit, Failure, Result};
use crate::metrics::Metrics;
use crate::services::Services;
use crate::term::{OutputFormat, say, say_json};

/// How long a worker may take to be ready.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a start that has not succeeded is looked at.
const BETWEEN_LOOKS: Duration = Duration::from_millis(50);

/// Start or reach the worker of a pipeline, and print what it proves
///
/// The evidence is asked for with a fresh nonce, verified to its root, and compared with the measurements that the policy
/// allows. Ends with 77 if it is not believed.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The pipeline file
    #[arg(value_name = "PIPELINE", env = "SEALFLOW_PIPELINE", hide_env_values = true)]
    pipeline: PathBuf,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    output: OutputFormat,
}

/// Start or reach the worker of a pipeline, and print how it is
#[derive(Debug, clap::Args)]
pub(crate) struct StatusArgs {
    /// The pipeline file
    #[arg(value_name = "PIPELINE", env = "SEALFLOW_PIPELINE", hide_env_values = true)]
    pipeline: PathBuf,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    output: OutputFormat,
}

#[derive(Serialize)]
pub(super) struct Proved {
    tier: String,
    image: String,
    /// Of the worker.
    pub(super) version: String,
}

#[derive(Serialize)]
struct How {
    #[serde(flatten)]
    proved: Proved,
    now: String,
    kms_requests: u64,
    values: u64,
    refused: u64,
    memory_bytes: u64,
}

/// Runs `attest`.
pub(crate) async fn run(args: Args) -> Result<ExitCode> {
    let (_, proved) = ready(&args.pipeline).await?;
    match args.output {
        OutputFormat::Json => say_json(&proved),
        OutputFormat::Text => say(format_args!(
            "tier     {}\nimage    {}\nversion  {}",
            proved.tier, proved.image, proved.version
        )),
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs `status`.
pub(crate) async fn status(args: StatusArgs) -> Result<ExitCode> {
    let (worker, proved) = ready(&args.pipeline).await?;
    let status = worker.status().await;
    let status = status.map_err(|error| Failure::new(Exit::Unavailable, error, "look at the log of the worker"))?;
    let how = How {
        proved,
        now: sealflow::clock::UnixMillis(status.now_ms).to_string(),
        kms_requests: status.kms_requests,
        values: status.values,
        refused: status.refused,
        memory_bytes: status.memory,
    };
    match args.output {
        OutputFormat::Json => say_json(&how),
        OutputFormat::Text => say(format_args!(
            "tier     {}\nimage    {}\ntime     {}\nvalues   {} sealed, {} refused\nKMS      {} requests\nmemory   {} bytes",
            how.proved.tier, how.proved.image, how.now, how.values, how.refused, how.kms_requests, how.memory_bytes
        )),
    }
    Ok(ExitCode::SUCCESS)
}

async fn ready(pipeline: &std::path::Path) -> Result<(Supervisor, Proved)> {
    let config = config::load(pipeline, &Environment::of_process())?;
    let (_, worker, proved) = started(&config).await?;
    Ok((worker, proved))
}

/// What a pipeline has open, and its worker, which is believed.
pub(super) async fn started(config: &PipelineConfig) -> Result<(Services, Supervisor, Proved)> {
    let metrics = std::sync::Arc::new(Metrics::new(&config.name));
    let services = services(config, None, &metrics).await?;
    let Some(worker) = services.enclave.clone() else {
        return Err(Failure::config(
            format_args!("the policy of {} has no columns with flow: enclave", config.dataset),
            "there is nothing to attest",
        ));
    };
    // One start that fails says enough: whoever asks wants to know why.
    let settled = async {
        tokio::select! {
            () = worker.ready() => {}
            () = failed(&worker) => {}
        }
    };
    let waited = tokio::time::timeout(PATIENCE, settled).await;
    match worker.known() {
        Ok(known) if waited.is_ok() => {
            let proved = Proved {
                tier: known.tier,
                image: known.image,
                version: known.version,
            };
            Ok((services, worker, proved))
        }
        Ok(_) => Err(Failure::new(
            Exit::Unavailable,
            "the enclave worker is not ready",
            "try again",
        )),
        Err(reason) => {
            let (exit, help) = match worker.cause() {
                Some(Cause::NotBelieved) => (
                    Exit::NotPermitted,
                    "compare `sealflow enclave build` with the measurements in the policy",
                ),
                Some(Cause::Unrecorded) => (
                    Exit::Io,
                    "make room on the disk of `enclave.audit`, or name another file",
                ),
                _ => (
                    Exit::Unavailable,
                    "the log says what it does not start for; is `enclave.endpoint` right?",
                ),
            };
            Err(Failure::new(exit, reason, help))
        }
    }
}

async fn failed(worker: &Supervisor) {
    while worker.why_not().is_none() {
        tokio::time::sleep(BETWEEN_LOOKS).await;
    }
}
