//! The enclave flow whole: a real broker, a development KMS that demands attestation, the worker's own program in its sandbox under the
//! software NSM. What it proves is in `docs/threat-model.md`, "The enclave's software tier".

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stderr)] // tests

mod audit;
mod bench;
mod by_hand;
#[path = "../common/certificate.rs"]
mod certificate;
#[path = "../common/clean.rs"]
mod clean;
mod dev_root;
mod endpoint;
mod flow;
mod hostile;
#[allow(dead_code, reason = "the tests of the reading service use the rest")]
#[path = "../common/issuer.rs"]
mod issuer;
mod keys;
mod memory;
mod readers;
mod service;
mod tables;
