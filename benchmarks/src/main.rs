//! Measures Sealflow against its peers, on the same work in one run, and reports ratios.
//!
//! `sealflow-benchmarks [SECTION…]`: without a name all of them. A table goes to standard output, and JSON
//! lines to the file named by `SEALFLOW_REPORT`.

#![allow(clippy::print_stdout)] // its output is its product

mod allocations;
mod bytes;
mod copier;
mod enclave;
mod hybrid;
mod instructions;
mod kernel;
mod kroxylicious;
mod latency;
mod process;
mod startup;
mod sweep;
mod tables;
mod timing;
mod tink;
mod topic;
mod transform;
mod values;

use std::process::ExitCode;

use sealflow_benchmarks::Error;

type Section = fn() -> Result<(), Error>;

/// All sections in the order in which they run: name, and the function in the file of that name.
/// A new one is a file and a line here.
const SECTIONS: &[(&str, Section)] = &[
    ("instructions", instructions::run),
    ("allocations", allocations::run),
    ("values", values::run),
    ("kernel", kernel::run),
    ("timing", timing::run),
    ("tink", tink::run),
    ("transform", transform::run),
    ("sweep", sweep::run),
    ("hybrid", hybrid::run),
    ("enclave", enclave::run),
    ("topic", topic::run),
    ("latency", latency::run),
    ("startup", startup::run),
    ("bytes", bytes::run),
    ("tables", tables::run),
    ("kroxylicious", kroxylicious::run),
];

fn main() -> ExitCode {
    let names: Vec<String> = std::env::args().skip(1).collect();
    if let [name, rest @ ..] = names.as_slice()
        && name == "copier"
    {
        return match copier::run(rest) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                println!("error: {error}");
                ExitCode::FAILURE
            }
        };
    }
    // As the command does, for all sides: memory of a batch is there for the next.
    drop(std::hint::black_box(Vec::<u8>::with_capacity(16 << 20)));
    let known = |name: &String| SECTIONS.iter().any(|(section, _)| section == name);
    if let Some(unknown) = names.iter().find(|name| !known(name)) {
        let all: Vec<&str> = SECTIONS.iter().map(|(section, _)| *section).collect();
        let all = all.join(", ");
        println!("error: there is no benchmark {unknown}\n help: one of {all}");
        return ExitCode::from(64);
    }
    let mut failed = Vec::new();
    for (name, run) in SECTIONS.iter().copied() {
        if names.is_empty() || names.iter().any(|given| given == name) {
            println!("\n== {name}");
            if let Err(error) = run() {
                println!("error: {name}: {error}");
                failed.push(name);
            }
        }
    }
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("\nfailed: {}", failed.join(", "));
    ExitCode::FAILURE
}
