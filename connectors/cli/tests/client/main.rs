//! Clients that seal, in languages and libraries that nobody here wrote, against `sealflow seal` and `open`; and our own.
#![allow(clippy::unwrap_used, clippy::panic)]

mod bench;
#[path = "../common/clean.rs"]
mod clean;
mod clients;
mod commands;
#[path = "../common/mod.rs"]
mod common;
mod enclave;
mod form;
mod form_bench;
mod pairs;
mod public_keys;
mod suite;
