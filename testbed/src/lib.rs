//! Real servers for the tests and benchmarks: Apache Kafka, alone or as a [`Cluster`], moto, and a whole [`Site`]
//! around a broker; and what breaks them: a fault [`Proxy`], full folders, kills. Only tests and benchmarks link this
//! crate.
//!
//! What cannot be had on a machine is named and counted: [`skip`] writes to the ledger that `make test`
//! prints at its end. A server that is there but does not start is an error, never a skip.

// Only tests link this crate: to panic is its way to say that a test cannot go on.
#![allow(clippy::expect_used, clippy::panic)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod broker;
mod cluster;
mod draw;
mod elect;
mod enclave;
mod full;
mod http_faults;
mod instance;
mod kafka;
mod ministack;
mod moto;
mod process;
mod proxy;
mod site;
mod tally;
mod topics;

use std::fs::OpenOptions;
use std::hash::{BuildHasher as _, RandomState};
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};

pub use cluster::{BROKERS, Cluster};
pub use draw::Draw;
pub use enclave::{Enclave, IMAGE, OTHER_IMAGE, measured_key_policy, spoiled, worker_program};
pub use full::SmallDisk;
pub use http_faults::{HttpFault, HttpProxy, HttpRule, When};
pub use instance::{Instance, peak_memory_kib};
pub use kafka::Kafka;
pub use ministack::Ministack;
pub use moto::{Moto, ask_s3, make_bucket, moto_endpoint};
pub use proxy::{Mode, Proxy};
pub use site::{KEY_ARN, Pipeline, Site};
pub use tally::{Expected, Tally, check_opened, check_sealed};
pub use topics::{Group, Message, Topics};

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// It is not installed here.
    #[error("missing: {0}")]
    Missing(String),
    /// It is installed and does not come up.
    #[error("does not start: {0}")]
    Broken(String),
}

/// Shows numbers of a long test, and appends them to the report that `SEALFLOW_REPORT` names.
///
/// # Panics
/// If the report cannot be written.
pub fn report(numbers: &serde_json::Value) {
    #[allow(clippy::print_stdout)] // tests show it with --nocapture
    {
        println!("{numbers}");
    }
    if let Some(path) = std::env::var_os("SEALFLOW_REPORT") {
        let file = OpenOptions::new().create(true).append(true).open(path);
        let mut file = file.expect("the report is writable");
        writeln!(file, "{numbers}").expect("the report is writable");
    }
}

/// The server, or `None` after having written to the ledger why a test is skipped.
///
/// # Panics
/// If the server is installed and does not start.
pub fn or_skip<T>(test: &str, started: Result<T, StartError>) -> Option<T> {
    match started {
        Ok(server) => Some(server),
        Err(StartError::Missing(reason)) => {
            skip(&format!("{test}: {reason}"));
            None
        }
        Err(error) => panic!("{test}: {error}"),
    }
}

/// Says that a test is skipped: on standard error, and as a line of the file named by `SEALFLOW_SKIPPED`.
pub fn skip(reason: &str) {
    // A test's captured output is lost when it passes, which a skipped one does: write around the capture.
    let _ = std::io::stderr().write_all(format!("skipped: {reason}\n").as_bytes());
    if let Some(ledger) = std::env::var_os("SEALFLOW_SKIPPED") {
        let opened = OpenOptions::new().create(true).append(true).open(&ledger);
        opened
            .and_then(|mut file| file.write_all(format!("{reason}\n").as_bytes()))
            .expect("the ledger of skipped tests is writable");
    }
}

/// A folder that is gone when it is dropped.
#[derive(Debug)]
pub struct Scratch(tempfile::TempDir);

impl Scratch {
    /// A new, empty folder.
    ///
    /// # Panics
    /// If it cannot be made.
    #[must_use]
    pub fn new() -> Self {
        Self(
            tempfile::Builder::new()
                .prefix("sealflow-")
                .tempdir()
                .expect("a temporary folder can be made"),
        )
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

/// A port of the loopback address that was free a moment ago, and is given once by this process. It is below those that
/// systems give to connections, so that none takes it before a server does.
///
/// # Panics
/// If there is none.
#[must_use]
pub fn free_port() -> u16 {
    const PORTS: std::ops::Range<u16> = 12_000..32_000;
    static NEXT: LazyLock<AtomicUsize> =
        LazyLock::new(|| AtomicUsize::new(RandomState::new().hash_one(()) as usize % PORTS.len()));
    let mut ports = PORTS.map(|_| PORTS.start + (NEXT.fetch_add(1, Ordering::Relaxed) % PORTS.len()) as u16);
    let is_free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    ports.find(is_free).expect("a port can be bound")
}

/// `.deps` of the workspace, where `make deps` puts what is not a crate.
#[must_use]
pub fn deps() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../.deps")
}
