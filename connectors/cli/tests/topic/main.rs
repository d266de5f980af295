//! The `sealflow` binary on a real broker: exactly once under kills (G3), no plaintext anywhere (G1), closed
//! when there is no key (G2).
//!
//! `SEALFLOW_E2E_RECORDS` and `SEALFLOW_E2E_KILLS` make the first test longer; `make soak` does so.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)] // tests

mod auditing;
#[path = "../common/clean.rs"]
mod clean;
mod dlq;
mod exactly_once;
#[cfg(feature = "failpoints")]
mod failpoints;
mod hybrid;
mod leaks;
mod leases;
mod once;
mod reading;
mod recipient;
mod refusals;
mod reload;
mod rewrap;
mod starts;
mod support;
mod versions;
mod watched;
mod who;
