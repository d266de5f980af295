//! The fault bench: `sealflow` on three brokers (three replicas, two in sync), with a fault proxy of ours before
//! every broker and the KMS: G3, G7 and G8 with real failures.
//!
//! `make test` runs the short pass. `soak.rs` is the long one: `SEALFLOW_FAULT_RECORDS` turns it on, and
//! `make soak` sets it. `SEALFLOW_FAULT_SEED` seeds everything that is drawn.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)] // tests

mod bench;
mod brokers;
mod hostile;
mod services;
mod soak;
mod stalled;
mod supervisor;
