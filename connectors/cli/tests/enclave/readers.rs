//! A host that is not honest about readers: it has the worker's channel to itself, and the proofs of readers in its hands.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use sealflow::audit::AuditError;
use sealflow::clock::{Clock, UnixMillis};
use sealflow::flow::enclave::EnclaveError;
use sealflow::flow::enclave::answer::AnswerClaims;
use sealflow_client::attested::{Measurement, Measurements, Trust};
use sealflow_client::{PrivateKey, RsaBits};
use sealflow_enclave_host::channel::Endpoint;
use sealflow_enclave_host::nsm::certificate_of;
use sealflow_enclave_host::{
    AttestationVerifier, AuditSink, Connection, CredentialSource, EndpointStarter, Supervisor, Terms,
};
use sealflow_enclave_protocol::message::{Credentials, Proof, ReadAnswer, ReadJob, What};
use sealflow_storage::{CatalogueConfig, Location};
use sealflow_testbed::Instance;
use serde_json::Value;

use crate::bench::{Bench, SERVER_ID, binary};
use crate::service::{sealed_records, token};

/// The host's own credentials: they may do everything at the KMS that its key policies let a host do.
struct OfHost;

#[async_trait]
impl CredentialSource for OfHost {
    async fn credentials(&self) -> Option<Credentials> {
        Some(Credentials {
            access_key_id: "TESTPIPELINE".to_owned(),
            secret_access_key: "tests-only-pipeline".to_owned().into(),
            session_token: None,
            expires_ms: None,
        })
    }
}

struct Nowhere;

impl AuditSink for Nowhere {
    fn keep(&self, _: &[u8]) -> Result<(), AuditError> {
        Ok(())
    }
}

#[derive(Debug)]
struct Now;

impl Clock for Now {
    fn now(&self) -> UnixMillis {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        UnixMillis(u64::try_from(since.as_millis()).unwrap())
    }
}

/// A host of our making, and the worker's own program behind a socket.
struct Host {
    worker: Supervisor,
    _program: Instance,
}

/// What the worker answers to one job.
struct Answered {
    shown: Vec<Option<Vec<u8>>>,
    proof: String,
    from: Arc<Connection>,
}

impl Host {
    fn start(bench: &Bench) -> Self {
        let socket = bench.site.path().join("worker.sock");
        let root = bench.root.path().to_str().unwrap();
        let image = bench.site.path().join("worker.img");
        let (image, at) = (image.to_str().unwrap(), socket.to_str().unwrap());
        let args = [
            "enclave",
            "run",
            image,
            "--socket",
            at,
            "--dev-root",
            root,
            "--without-namespaces",
        ];
        let command = bench.site.command(binary(), "pipeline", &args);
        let program = Instance::start(command, &bench.site.path().join("worker.log"));
        let until = Instant::now() + Duration::from_secs(60);
        while !socket.exists() {
            assert!(Instant::now() < until, "{}", program.read_log());
            std::thread::sleep(Duration::from_millis(20));
        }
        let trust = Trust::with_dev_root(&certificate_of(bench.root.path()).unwrap()).unwrap();
        let image = Measurements::of_image(Measurement::new(&bench.image).unwrap());
        let allowed = vec![bench.kms_host().parse().unwrap()];
        let catalogue = CatalogueConfig::from(Location::Folder(bench.site.catalogue()));
        let worker = bench.site.block_on(async {
            let terms = Terms {
                verifier: Arc::new(AttestationVerifier::new(trust, vec![image], Arc::new(Now))),
                catalogue: catalogue.open().await.unwrap(),
                allowed,
                credentials: Arc::new(OfHost),
                audit: Arc::new(Nowhere),
            };
            Supervisor::start(
                Arc::new(EndpointStarter::new(Endpoint::Unix { path: socket }, terms)),
                4,
            )
        });
        Self {
            worker,
            _program: program,
        }
    }

    fn ask(&self, bench: &Bench, job: &ReadJob<'_>) -> Result<Answered, EnclaveError> {
        let answered = bench.site.block_on(async {
            self.worker.ready().await;
            self.worker.read(job).await
        });
        let (frame, from) = answered?;
        let answer = ReadAnswer::read(&frame.body).unwrap();
        Ok(Answered {
            shown: answer.shown.iter().map(|shown| shown.map(<[u8]>::to_vec)).collect(),
            proof: answer.proof.to_owned(),
            from,
        })
    }
}

#[test]
fn a_host_that_puts_its_own_key_into_a_readers_request_gets_nothing() {
    let Some(bench) = Bench::new("swapped") else { return };
    let records = sealed_records(&bench);
    let record: Value = serde_json::from_str(&records[0]).unwrap();
    let (card, email) = (record["card"].as_str().unwrap(), record["email"].as_str().unwrap());
    let host = Host::start(&bench);
    let reader = PrivateKey::generate(RsaBits::Rsa2048).unwrap();
    let own = PrivateKey::generate(RsaBits::Rsa2048).unwrap();
    let jwk = |key: &PrivateKey| key.public().unwrap().to_json().into_bytes();
    let proof = |role: &str, server: &str, key: Option<&PrivateKey>| {
        let header = token(&bench, role, server, key);
        header.strip_prefix("Sealflow-STS ").unwrap().to_owned()
    };
    let (to_reader, to_host) = (jwk(&reader), jwk(&own));
    let of_reader = proof("support", SERVER_ID, Some(&reader));
    let job =
        |proof: &str, seal_to: &[u8], values: &[(Option<&'static str>, &str)]| -> Result<Answered, EnclaveError> {
            let job = ReadJob {
                dataset: "payments",
                purpose: None,
                proof: Proof::Sts(proof),
                seal_to,
                nonce: b"a nonce of the reader's",
                envelopes: Vec::new(),
                what: What::Values(values.to_vec()),
            };
            host.ask(&bench, &job)
        };
    let refused = |answered: Result<Answered, EnclaveError>| match answered {
        Err(EnclaveError::Refused { reason }) => reason,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it was answered"),
    };

    // What an honest host is answered: the reader's key opens it, the host's does not.
    let honest = job(&of_reader, &to_reader, &[(Some("card"), card), (None, card)]).unwrap();
    for shown in &honest.shown {
        let jwe: String = serde_json::from_slice(shown.as_ref().unwrap()).unwrap();
        assert_eq!(reader.open(&jwe).unwrap().expose(), b"\"canary-service-77ab-0\"");
        assert!(own.open(&jwe).is_err());
    }
    // The reader knows whose answer it is, and to which question.
    let signer = honest.from.signer().parse().unwrap();
    let shown: Vec<Option<&[u8]>> = honest.shown.iter().map(Option::as_deref).collect();
    let thumbprint = reader.public().unwrap().thumbprint();
    let verify = |nonce: &[u8], shown: &[Option<&[u8]>]| {
        AnswerClaims::verify(&honest.proof, signer, ("payments", thumbprint, nonce), shown).is_ok()
    };
    assert!(verify(b"a nonce of the reader's", &shown));
    assert!(!verify(b"another nonce", &shown));
    assert!(!verify(b"a nonce of the reader's", &shown[..1]));

    // Its own key in the place of the reader's; a proof that commits to none, or that is for another server.
    let swapped = refused(job(&of_reader, &to_host, &[(Some("card"), card)]));
    assert!(swapped.contains("does not commit to the key"), "{swapped}");
    let uncommitted = proof("support", SERVER_ID, None);
    for key in [&to_reader, &to_host] {
        let reason = refused(job(&uncommitted, key, &[(Some("card"), card)]));
        assert!(reason.contains("does not commit to the key"), "{reason}");
    }
    let elsewhere = proof("support", "other.test", Some(&reader));
    refused(job(&elsewhere, &to_reader, &[(Some("card"), card)]));
    refused(job("not.a.proof", &to_reader, &[(Some("card"), card)]));
    // As itself it may ask, and the ACL says no; nor does it learn anything by calling the value another column's, or the other way
    // round: the worker opens columns of the enclave, and no others.
    let of_host = proof("pipeline", SERVER_ID, Some(&own));
    let asked = job(
        &of_host,
        &to_host,
        &[(Some("card"), card), (Some("email"), card), (None, card)],
    )
    .unwrap();
    assert!(asked.shown.iter().all(|shown| shown.as_deref() == Some(b"null")));
    let moved = job(
        &of_reader,
        &to_reader,
        &[(Some("email"), card), (Some("card"), email), (None, email)],
    )
    .unwrap();
    assert!(moved.shown.iter().all(|shown| shown.as_deref() == Some(b"null")));
}
