//! Counts the allocations and the peak of bytes of every hot path, and fails where one exceeds its bound:
//! `allocations [BOUNDS.json]`, by default `benchmarks/allocations.json` as it was when this was built.
//!
//! Counts do not vary from run to run, so `make test` runs this as well.

#![allow(clippy::print_stdout)] // its output is its product

use std::collections::BTreeMap;
use std::process::ExitCode;

use sealflow_benchmarks::hot::{ITEMS, PATHS};
use sealflow_benchmarks::{Error, report};
use serde::Deserialize;

const BOUNDS: &str = include_str!("../../allocations.json");

/// What one run of a path may take.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Bound {
    /// Allocations and reallocations.
    allocations: u64,
    /// The most bytes that it holds at once, beyond what it held before.
    peak_bytes: u64,
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<bool, Error> {
    let given = std::env::args().nth(1).map(std::fs::read_to_string).transpose()?;
    let bounds: BTreeMap<String, Bound> = serde_json::from_str(given.as_deref().unwrap_or(BOUNDS))?;
    let mut within = true;
    for (name, prepare) in PATHS.iter().copied() {
        let mut path = prepare()?;
        // What is kept from run to run is not counted.
        path();
        let counted = allocation_counter::measure(&mut path);
        let items = ITEMS as f64;
        let show = |what, unit, number: f64| report::figure("allocations", what, name, unit, report::exactly(number));
        show("allocations", "per item", counted.count_total as f64 / items)?;
        show("peak memory", "bytes per item", counted.bytes_max as f64 / items)?;
        let Some(bound) = bounds.get(name) else {
            println!("error: {name} has no bound in benchmarks/allocations.json");
            within = false;
            continue;
        };
        if counted.count_total > bound.allocations || counted.bytes_max > bound.peak_bytes {
            println!(
                "error: {name}: {} allocations (bound {}), peak of {} bytes (bound {}) for {ITEMS} items",
                counted.count_total, bound.allocations, counted.bytes_max, bound.peak_bytes
            );
            within = false;
        }
    }
    Ok(within)
}
