//! The enclave worker. It is started by a launcher, or boots a Nitro enclave; nobody runs it by hand.
//!
//! Without arguments, it serves the host whose channel the launcher passed, and ends with it. With `--configuration FILE`, as images
//! for Nitro start it, it serves whoever connects to the enclave's vsock.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use sealflow_enclave_worker::assemble::{self, RunError};
use sealflow_enclave_worker::config::Config;
use sealflow_enclave_worker::nsm::Nsm;
#[cfg(feature = "nitro")]
use sealflow_enclave_worker::sandbox::Platform;
use sealflow_enclave_worker::sandbox::Sandbox;
use sealflow_enclave_worker::serve::Room;
use sealflow_enclave_worker::{configuration, descriptors, panics, sandbox};
use tokio::runtime::Runtime;

/// Threads that open and seal.
const THREADS: usize = 4;

fn main() -> ExitCode {
    panics::say_place_only();
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // To the launcher, which logs it. Nobody is left to tell if it is gone.
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::from(70)
        }
    }
}

type Ran = Result<(), Box<dyn std::error::Error>>;

fn run() -> Ran {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    match arguments.as_slice() {
        [] => launched(),
        [option, file] if option == "--configuration" => booted(Path::new(file)),
        _ => Err("the enclave worker takes no arguments, or --configuration FILE in a Nitro enclave".into()),
    }
}

/// Everything that needs files comes first; then the worker closes itself in, and only then does it read what the host says.
fn launched() -> Ran {
    let descriptors = descriptors::take()?;
    let config = Config::parse(&configuration::own()?)?;
    let nsm = Nsm::find(Some(descriptors.nsm))?;
    tell(&nsm, &sandbox::enter(&config.sandbox, nsm.platform())?);
    let running = assemble::run(descriptors.channel, &config, Arc::new(nsm), Room::default());
    runtime()?.block_on(running)?;
    Ok(())
}

/// The same in an enclave, where it listens before it closes itself in.
#[cfg(feature = "nitro")]
fn booted(configuration: &Path) -> Ran {
    let config = Config::parse(&configuration::beside(configuration)?)?;
    let nsm = Nsm::of_enclave(&config)?;
    let listener = sealflow_enclave_worker::hosts::bind().map_err(RunError::from)?;
    tell(&nsm, &sandbox::enter(&config.sandbox, Platform::Nitro)?);
    sealflow_enclave_worker::hosts::serve(&listener, &runtime()?, config, nsm)?;
    Ok(())
}

#[cfg(not(feature = "nitro"))]
fn booted(_: &Path) -> Ran {
    Err(sealflow_enclave_worker::nsm::NsmError::NotBuilt.into())
}

fn runtime() -> Result<Runtime, RunError> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    Ok(builder.worker_threads(THREADS).enable_all().build()?)
}

/// Once, how it is closed in.
fn tell(nsm: &Nsm, closed_in: &Sandbox) {
    let _ = writeln!(
        std::io::stderr(),
        "enclave worker: {}, memory locked: {}, landlock: {:?}, namespaces: {}",
        nsm.tier(),
        closed_in.memory_locked,
        closed_in.landlock,
        closed_in.namespaces
    );
}
