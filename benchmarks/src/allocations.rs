//! Allocations and peak bytes of the hot paths, by the program whose allocator counts, against the bounds that
//! are checked in.

use std::process::Command;

use sealflow_benchmarks::Error;

use crate::instructions::sibling;

pub(crate) fn run() -> Result<(), Error> {
    // It inherits standard output and the report.
    let status = Command::new(sibling("sealflow-bench-allocations")?).status()?;
    if status.success() {
        Ok(())
    } else {
        Err("a hot path is beyond its bound in benchmarks/allocations.json".into())
    }
}
