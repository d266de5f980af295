//! Starts the enclave worker, carries its bytes, and believes nothing that it has not attested.
//!
//! A [`Supervisor`] keeps a worker running by a [`Starter`], and is the `EnclaveWorker` of pipelines. What a worker is asked, and asks,
//! goes through a [`Connection`]: it may read the catalogue and put envelopes of its keys there, and have bytes relayed. [`launch`]
//! starts one in the software tier; [`mod@build`] makes images for both tiers.

pub mod build;
mod catalogue;
pub mod channel;
mod connection;
pub mod cpio;
pub mod eif;
mod exchange;
pub mod launch;
#[cfg(feature = "dev-software-nsm")]
pub mod nsm;
pub mod relay;
mod starters;
mod supervisor;
mod verifier;

pub use connection::{ConnectError, Connection, Side};
pub use starters::{AuditSink, CredentialSource, EndpointStarter, SoftwareStarter, Terms};
pub use supervisor::{Cause, DEFAULT_DEPTH, Known, StartError, Started, Starter, Supervisor};
pub use verifier::{AttestationVerifier, of_policy};

/// Into the ledger of skipped tests, as the testbed does it; that crate would bring Kafka's client along.
#[cfg(test)]
fn skip(reason: &str) {
    use std::io::Write;

    let _ = std::io::stderr().write_all(format!("skipped: {reason}\n").as_bytes());
    if let Some(ledger) = std::env::var_os("SEALFLOW_SKIPPED") {
        let mut file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(ledger)
            .unwrap();
        file.write_all(format!("{reason}\n").as_bytes()).unwrap();
    }
}
