//! The `sealflow` command: reads arguments and configuration, wires core and connectors together, says what
//! happened. It seals nothing itself.

mod admin;
mod audit;
mod by_worker;
mod cli;
mod clock;
mod commands;
mod config;
mod enclave;
mod enclave_keys;
mod explain;
mod failure;
mod files;
mod http;
mod kms_metrics;
mod landing;
mod log;
mod metered;
mod metrics;
mod overlay;
mod place_arg;
mod redact;
mod reload;
mod remembered;
mod service_status;
mod services;
mod signals;
mod status;
mod telemetry;
mod term;
mod trust;
mod while_it_counts;

/// Batches are some megabytes each, and gone a moment later: this one keeps what it has got from the system.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    if let Some(ended) = commands::enclave::before_threads(&arguments) {
        return ended;
    }
    log::install_panic_hook();
    #[cfg(feature = "failpoints")]
    let _failpoints = sealflow_kafka::failpoints::of_environment();
    cli::main()
}
