//! The worker's own program, as images for AWS have it: what it shows is what its machine's NSM says, and nobody believes that.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use sealflow::audit::AuditError;
use sealflow::keys::testing::MemoryCatalogue;
use sealflow_enclave_host::{AttestationVerifier, ConnectError, Connection, Side};
use sealflow_enclave_protocol::attestation::Trust;
use sealflow_enclave_protocol::joints::{Believed, NotBelieved, Verifier};
use sealflow_enclave_protocol::measurements::{Measurements, Register};
use sealflow_enclave_protocol::wire::Malformed;
use sealflow_enclave_worker::config::root;
use sealflow_testbed::{Enclave, report};
use serde_json::json;

use crate::machine::{Machine, PORT, Prepared};
use crate::nsm::MachineClock;

const CONFIGURATION: &[u8] = b"owners: [\"kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k\"]\nkms: { keys: [\"arn:aws:kms:eu-central-1:111122223333:key/*\"] }\n";

/// Asks others whether they believe it, and keeps what was shown. Whatever they say, it does not.
#[derive(Debug)]
struct Asking {
    others: Vec<AttestationVerifier>,
    seen: Mutex<Vec<u8>>,
}

impl Verifier for Asking {
    fn verify(&self, evidence: &[u8], nonce: &[u8], user_data: &[u8]) -> Result<Believed, NotBelieved> {
        let contains = |part: &[u8]| evidence.windows(part.len()).any(|window| window == part);
        assert!(contains(nonce) && contains(user_data));
        *self.seen.lock().unwrap() = evidence.to_vec();
        let reasons = self.others.iter().map(|other| {
            let refused = other.verify(evidence, nonce, user_data);
            refused.expect_err("evidence without a signature was believed").reason
        });
        Err(NotBelieved {
            reason: reasons.collect::<Vec<_>>().join("; "),
        })
    }
}

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

#[tokio::test(flavor = "multi_thread")]
async fn the_worker_shows_what_its_machine_measured_and_unsigned_evidence_is_believed_by_nobody() {
    let test = "the_worker_shows_what_its_machine_measured_and_unsigned_evidence_is_believed_by_nobody";
    let Some(prepared) = Prepared::or_skip(test) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let built = prepared.image("sealflow-enclave-worker", CONFIGURATION, folder.path());
    let mut machine = Machine::start(&prepared, folder.path(), &built.path).await;
    let boot = machine.up().await;

    let measured = &built.measurements;
    let image = Measurements::new([(Register::Image, hex::encode(measured.image).parse().unwrap())]).unwrap();
    let pem = std::fs::read_to_string(Enclave::new().root_file()).unwrap();
    let dev = Trust::with_dev_root(&root(Some(&pem), "root").unwrap().unwrap()).unwrap();
    let verifier = |trust| AttestationVerifier::new(trust, vec![image.clone()], Arc::new(MachineClock));
    let asking = Asking {
        others: vec![verifier(Trust::nitro()), verifier(dev)],
        seen: Mutex::default(),
    };
    // Twice: it takes the next host after one that did not believe it.
    let mut last = Vec::new();
    for _ in 0..2 {
        let channel = machine.connect(PORT).await;
        let opened = Connection::open(channel, &asking, Arc::new(MemoryCatalogue::new()), |_| Arc::new(Idle)).await;
        let Err(ConnectError::NotBelieved(error)) = opened else {
            panic!("{opened:?}\n{}", machine.console());
        };
        let seen = asking.seen.lock().unwrap().clone();
        assert_ne!(seen, last, "evidence for another nonce");
        last = seen;
        println!("{error}");
    }
    let contains = |part: &[u8]| last.windows(part.len()).any(|window| window == part);
    for pcr in [Some(measured.image), measured.kernel, measured.application] {
        assert!(contains(&pcr.unwrap()));
    }
    report(&json!({
        "name": "evidence",
        "worker_shows_computed_pcrs": true,
        "unsigned_evidence_is_refused": true,
        "boot_secs": boot.as_secs_f64(),
    }));
}
