//! What the benchmark programs share: how to measure, how to report, and the hot paths that are counted.
//!
//! Everything here is used by at least two of the programs in this package; what only one of them needs is
//! beside its `main`.

#![allow(clippy::print_stdout)] // tables on standard output are the product

pub mod engine;
pub mod hot;
pub mod measure;
pub mod report;
pub mod size;
pub mod stats;
pub mod table;

/// Whatever stops a benchmark: it is printed, and the run goes on with the next section.
pub type Error = Box<dyn std::error::Error>;
