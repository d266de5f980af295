//! Enclave images in QEMU's machine `nitro-enclave`, under translation: what its NSM reports is what the build computed, and a column goes
//! through its vsock to the worker and back.
//!
//! Needs what `make test-nitro` prepares, and is skipped by name without it. QEMU's attestation documents carry no signature, so nobody
//! here believes one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)] // tests: they fail loudly

mod column;
mod evidence;
mod machine;
mod measured;
#[path = "../common/nsm.rs"]
mod nsm;
