//! `sealflow enclave`: the worker that alone opens regulated columns.

mod attest;
mod build;
mod dev_root;
mod make_pair;
mod run;

use std::path::PathBuf;
use std::process::ExitCode;

use crate::failure::{Exit, Failure, Result};

/// The worker inside a TEE: build its image, run it, look at what it proves
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    Build(build::Args),
    Run(run::Args),
    Attest(attest::Args),
    Status(attest::StatusArgs),
    MakePair(make_pair::Args),
    DevRoot(dev_root::Args),
    /// The starter of a worker: runs in the worker's namespaces
    #[command(hide = true)]
    Start,
    /// The software NSM: vouches for a worker under a development root
    #[command(hide = true)]
    Nsm {
        /// Folder of the development root
        #[arg(long, value_name = "DIR")]
        root_dir: PathBuf,
    },
}

/// Runs the subcommand.
pub(crate) async fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Build(args) => build::run(&args),
        Command::Run(args) => run::run(args).await,
        Command::Attest(args) => attest::run(args).await,
        Command::Status(args) => attest::status(args).await,
        Command::MakePair(args) => make_pair::run(args).await,
        Command::DevRoot(args) => dev_root::run(&args),
        Command::Start => Ok(sealflow_enclave_host::launch::starter_main()),
        Command::Nsm { root_dir } => nsm(&root_dir),
    }
}

/// Whether the command must run before there is any thread: a starter goes into namespaces, which takes a process with one.
pub(crate) fn before_threads(arguments: &[std::ffi::OsString]) -> Option<ExitCode> {
    let [_, first, second, rest @ ..] = arguments else {
        return None;
    };
    if first != "enclave" {
        return None;
    }
    (second == "start" && rest.is_empty()).then(sealflow_enclave_host::launch::starter_main)
}

#[cfg(feature = "dev-software-nsm")]
fn nsm(root_dir: &std::path::Path) -> Result<ExitCode> {
    sealflow_enclave_host::nsm::main(root_dir)
        .map(|()| ExitCode::SUCCESS)
        .map_err(|error| Failure::new(Exit::Unavailable, error, "it is started by the launcher of a worker"))
}

#[cfg(not(feature = "dev-software-nsm"))]
fn nsm(_: &std::path::Path) -> Result<ExitCode> {
    Err(no_software_nsm())
}

#[cfg(not(feature = "dev-software-nsm"))]
fn no_software_nsm() -> Failure {
    Failure::new(
        Exit::Config,
        "this build has no software NSM",
        "run the worker in a Nitro enclave",
    )
}
