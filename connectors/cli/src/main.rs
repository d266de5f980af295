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

/// Batches are some megabytes each, and gone a moment later. glibc gives what is free back to the system when it is more than
/// twice the largest block of up to 32 MiB that it has ever got from there and given back: this is one, so that the memory of a
/// batch is there for the next without page faults. Other libraries do not mind.
const KEPT: usize = 16 << 20;

fn main() -> std::process::ExitCode {
    drop(std::hint::black_box(Vec::<u8>::with_capacity(KEPT)));
    let arguments: Vec<_> = std::env::args_os().collect();
    if let Some(ended) = commands::enclave::before_threads(&arguments) {
        return ended;
    }
    log::install_panic_hook();
    #[cfg(feature = "failpoints")]
    let _failpoints = sealflow_kafka::failpoints::of_environment();
    cli::main()
}
