//! Measures Sealflow against its peers, on the same work in one run, and reports ratios.
//!
//! `sealflow-benchmarks [values] [topic] [bytes]`: without a name all of them. Numbers go to standard output
//! as a table, and as JSON lines to the file named by `SEALFLOW_REPORT`.

#![allow(clippy::print_stdout)] // its output is its product

mod bytes;
mod copier;
mod measure;
mod process;
mod topic;
mod values;

use std::process::ExitCode;

type Error = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    let names: Vec<String> = std::env::args().skip(1).collect();
    if let [name, rest @ ..] = names.as_slice()
        && name == "copier"
    {
        return ended(copier::run(rest));
    }
    let wanted = |name: &str| names.is_empty() || names.iter().any(|given| given == name);
    for (name, measure) in [
        ("values", values::run as fn() -> Result<(), Error>),
        ("topic", topic::run),
        ("bytes", bytes::run),
    ] {
        if wanted(name) {
            println!("\n== {name}");
            if let Err(error) = measure() {
                println!("error: {name}: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}

fn ended(result: Result<(), Error>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
