//! A worker that hosts connect to, as in an enclave, over a Unix socket in the place of the vsock: each host has a worker of its own, and
//! leaves nothing behind.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "common/nsm.rs"]
mod nsm;

use std::io::Write as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use nsm::{MachineClock, vouch};
use sealflow::audit::AuditError;
use sealflow::keys::testing::MemoryCatalogue;
use sealflow_enclave_host::{AttestationVerifier, ConnectError, Connection, Side};
use sealflow_enclave_protocol::attestation::Trust;
use sealflow_enclave_protocol::measurements::{Measurements, Register};
use sealflow_enclave_protocol::wire::Malformed;
use sealflow_enclave_worker::config::{Config, root};
use sealflow_enclave_worker::hosts::{MOST_HOSTS, serve};
use sealflow_enclave_worker::nsm::{Nsm, SoftwareNsm};
use sealflow_testbed::{Enclave, IMAGE, Scratch};
use tokio::runtime::Runtime;

const CONFIG: &str = "owners: [\"kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k\"]\nkms: { keys: [\"arn:aws:kms:eu-central-1:111122223333:key/*\"] }\n";
const PATIENCE: Duration = Duration::from_secs(60);

/// A host that relays nothing.
struct Idle;

#[async_trait]
impl Side for Idle {
    async fn relay(&self, _: &[u8]) -> Result<(), Malformed> {
        Err(Malformed)
    }

    async fn audit(&self, _: &[u8]) -> Result<(), AuditError> {
        Ok(())
    }
}

struct Bench {
    folder: Scratch,
    listener: UnixListener,
    /// Of the worker.
    runtime: Arc<Runtime>,
    enclave: Arc<Enclave>,
}

impl Bench {
    fn new() -> Self {
        let folder = Scratch::new();
        let listener = UnixListener::bind(folder.path().join("worker")).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build();
        let bench = Self {
            folder,
            listener,
            runtime: Arc::new(runtime.unwrap()),
            enclave: Arc::new(Enclave::new()),
        };
        let (ours, theirs) = UnixStream::pair().unwrap();
        vouch(theirs, Arc::clone(&bench.enclave), IMAGE);
        let nsm = Nsm::Software(SoftwareNsm::new(ours).unwrap());
        let (listener, runtime) = (bench.listener.try_clone().unwrap(), Arc::clone(&bench.runtime));
        let config = Config::parse(CONFIG.as_bytes()).unwrap();
        std::thread::spawn(move || serve(&listener, &runtime, config, nsm).unwrap_err());
        bench
    }

    /// A host that connects, and believes what it is shown.
    async fn host(&self) -> Result<Connection, ConnectError> {
        let channel = tokio::net::UnixStream::connect(self.folder.path().join("worker")).await?;
        let pem = std::fs::read_to_string(self.enclave.root_file()).unwrap();
        let trust = Trust::with_dev_root(&root(Some(&pem), "root").unwrap().unwrap()).unwrap();
        let image = Measurements::new([(Register::Image, hex::encode(IMAGE).parse().unwrap())]).unwrap();
        let verifier = AttestationVerifier::new(trust, vec![image], Arc::new(MachineClock));
        Connection::open(channel, &verifier, Arc::new(MemoryCatalogue::new()), |_| Arc::new(Idle)).await
    }

    /// Waits until the worker has nothing more to do.
    async fn until_idle(&self) {
        let started = Instant::now();
        while self.runtime.metrics().num_alive_tasks() > 0 {
            let left = self.runtime.metrics().num_alive_tasks();
            assert!(started.elapsed() < PATIENCE, "{left} tasks are left behind");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test]
async fn hosts_side_by_side_have_workers_of_their_own_and_leave_nothing_behind() {
    let bench = Bench::new();
    let (first, second) = tokio::join!(bench.host(), bench.host());
    let (first, second) = (first.unwrap(), second.unwrap());
    assert_ne!(first.signer(), second.signer());
    assert!(first.status().await.is_ok() && second.status().await.is_ok());
    drop(first);
    second.status().await.unwrap();
    // One that hangs up before it has said anything, and one that says nonsense.
    let socket = bench.folder.path().join("worker");
    drop(UnixStream::connect(&socket).unwrap());
    UnixStream::connect(&socket).unwrap().write_all(&[0xff; 64]).unwrap();
    let third = bench.host().await.unwrap();
    assert_ne!(third.signer(), second.signer());
    third.status().await.unwrap();
    drop((second, third));
    bench.until_idle().await;
    bench.host().await.unwrap().status().await.unwrap();
}

#[tokio::test]
async fn one_host_too_many_is_hung_up_on_and_a_place_that_is_left_is_taken_again() {
    let bench = Bench::new();
    let mut hosts = Vec::new();
    for _ in 0..MOST_HOSTS {
        hosts.push(bench.host().await.unwrap());
    }
    let error = bench.host().await.unwrap_err();
    assert!(
        matches!(error, ConnectError::Gone | ConnectError::Channel(_)),
        "{error}"
    );
    for host in &hosts {
        host.status().await.unwrap();
    }
    drop(hosts);
    bench.until_idle().await;
    bench.host().await.unwrap().status().await.unwrap();
}
