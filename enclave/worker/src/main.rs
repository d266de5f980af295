//! The enclave worker. It is started by a launcher, or boots a Nitro enclave; nobody runs it by hand.

use std::io::Write as _;
use std::process::ExitCode;

use sealflow_enclave_worker::assemble::{self, RunError};
use sealflow_enclave_worker::config::Config;
use sealflow_enclave_worker::nsm::Nsm;
use sealflow_enclave_worker::{configuration, descriptors, sandbox};

/// Threads that open and seal.
const THREADS: usize = 4;

fn main() -> ExitCode {
    // What a panic says can quote a value, and standard error ends in the host's log: it says where, and no more.
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map_or_else(String::new, ToString::to_string);
        let _ = writeln!(std::io::stderr(), "error: the worker panicked at {place}");
    }));
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // To the launcher, which logs it. Nobody is left to tell if it is gone.
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::from(70)
        }
    }
}

/// Everything that needs files comes first; then the worker closes itself in, and only then does it read what the host says.
fn run() -> Result<(), Box<dyn std::error::Error>> {
    let descriptors = descriptors::take()?;
    let config = Config::parse(&configuration::own()?)?;
    let nsm = Nsm::find(Some(descriptors.nsm))?;
    let closed_in = sandbox::enter(&config.sandbox, nsm.platform())?;
    let _ = writeln!(
        std::io::stderr(),
        "enclave worker: {}, memory locked: {}, landlock: {:?}, namespaces: {}",
        nsm.tier(),
        closed_in.memory_locked,
        closed_in.landlock,
        closed_in.namespaces
    );
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .enable_all()
        .build()
        .map_err(RunError::from)?;
    runtime.block_on(assemble::run(descriptors.channel, &config, nsm))?;
    Ok(())
}
