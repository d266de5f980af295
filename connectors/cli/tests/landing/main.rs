//! `sealflow run` from a real broker into encrypted Parquet, in folders and in moto's S3 behind a proxy that makes it fail:
//! every (partition, offset) in a file exactly once (G3), no plaintext anywhere (G1).
//!
//! `SEALFLOW_LANDING_RECORDS` and `SEALFLOW_LANDING_KILLS` make the first test longer, `SEALFLOW_LANDING_SEED` draws it;
//! `make soak` does so.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)] // tests

mod bench;
mod changes;
mod exactly_once;
#[cfg(feature = "failpoints")]
mod failpoints;
