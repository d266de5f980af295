//! A column through the vsock: clients seal it, the host carries it to the worker in QEMU, which gets its keys from a KMS that demands
//! attestation and seals it again; a reader's own key opens it.
//!
//! QEMU's evidence proves nothing, so this worker is a build for emulators, whose measured configuration names a software NSM outside:
//! its evidence says `dev-software-nsm`.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use sealflow::audit::AuditError;
use sealflow::clock::Clock as _;
use sealflow::flow::enclave::answer::AnswerClaims;
use sealflow::flow::enclave::{ClientBatch, ClientColumn, EnclaveWorker as _, ResealedColumn, ValueKey};
use sealflow::keys::testing::MemoryCatalogue;
use sealflow::policy::{TrustedOwners, VerifiedPolicy, lease, publish, signed};
use sealflow::seal::value;
use sealflow::secret::SecretString;
use sealflow_client::{PrivateKey, RsaBits, RsaPublicJwk, Session};
use sealflow_enclave_host::{
    AttestationVerifier, AuditSink, CredentialSource, EndpointStarter, Supervisor, Terms, of_policy,
};
use sealflow_enclave_protocol::attestation::Trust;
use sealflow_enclave_protocol::message::{Credentials, Proof, ReadAnswer, ReadJob, What};
use sealflow_enclave_protocol::nsm::Measurement;
use sealflow_enclave_worker::config::root;
use sealflow_kms::{AwsKms, KmsConfig, StaticCredentials};
use sealflow_local_kms::KeySpec;
use sealflow_testbed::{Enclave, KEY_ARN, Scratch, Site, measured_key_policy, report};
use serde_json::json;

use crate::machine::{BOOT, Machine, PARENT_CID, PORT, Prepared};
use crate::nsm::{MachineClock, vouch};

const REGULATED: &str = "00000000-0000-4000-8000-0000000000e1";
const ENCLAVE_RSA: &str = "00000000-0000-4000-8000-0000000000e2";
const SERVER_ID: &str = "enclave.test";
const CANARY: &str = "canary-nitro-5f0e";
/// Where the worker finds the software NSM.
const NSM_PORT: u32 = 9_100;
/// Of one batch of a pipeline.
const VALUES: usize = 8_192;
const VALUE_BYTES: usize = 600;

fn arn(id: &str) -> String {
    KEY_ARN.replace("00000000-0000-4000-8000-000000000001", id)
}

fn card(batch: usize, n: usize) -> String {
    format!("\"{CANARY}-{batch}-{n}-{}\"", "x".repeat(VALUE_BYTES))
}

/// KMS, catalogue, policy and evidence for one image.
struct Bench {
    site: Site,
    /// The development root.
    root: Vec<u8>,
    policy: Arc<VerifiedPolicy>,
    catalogue: Arc<MemoryCatalogue>,
    audit: Arc<Lines>,
}

#[derive(Default)]
struct Lines(Mutex<Vec<u8>>);

impl AuditSink for Lines {
    fn keep(&self, line: &[u8]) -> Result<(), AuditError> {
        self.0.lock().unwrap().extend_from_slice(line);
        Ok(())
    }
}

/// Those of `role/pipeline`.
struct Role;

#[async_trait]
impl CredentialSource for Role {
    async fn credentials(&self) -> Option<Credentials> {
        Some(Credentials {
            access_key_id: "TESTPIPELINE".to_owned(),
            secret_access_key: "tests-only-pipeline".to_owned().into(),
            session_token: None,
            expires_ms: None,
        })
    }
}

impl Bench {
    /// Of an installation whose KMS believes this root: keys and policy for that image.
    fn new(site: Site, root: Vec<u8>, image: &Measurement) -> Self {
        let measured = measured_key_policy(image);
        for (spec, id) in [
            (KeySpec::Symmetric, REGULATED),
            (KeySpec::Rsa(RsaBits::Rsa2048), ENCLAVE_RSA),
        ] {
            let made = site.kms().create_key_of(spec, Some(id), "tests", Some(&measured));
            site.block_on(made).unwrap();
        }
        let (regulated, enclave, image) = (arn(REGULATED), arn(ENCLAVE_RSA), hex::encode(image));
        let letters = PrivateKey::generate(RsaBits::Rsa2048).unwrap().public().unwrap();
        let yaml = format!(
            r#"
dataset: payments
version: 1
lease: required
keys: {{ regulated: {{ arn: "{regulated}" }} }}
enclave:
  keys: {{ web: {{ arn: "{enclave}" }} }}
  measurements: {{ v1: {{ image: "{image}" }} }}
acls: {{ pii: {{ allow: ["arn:aws:iam::111122223333:role/support"] }} }}
columns:
  - {{ path: card, key: regulated, acl: pii, flow: enclave }}
dead_letters: {{ recipient: {} }}
"#,
            letters.to_json()
        );
        let trusted = TrustedOwners::everywhere(vec![site.owner()]).unwrap();
        let jws = site.sign(&yaml);
        let policy = Arc::new(signed::verify(&jws, &trusted).unwrap());
        // The lease that the site signs is one in a folder; here it goes where the policy goes.
        site.lease(&yaml, Duration::from_secs(3_600));
        let lease_jws = only_file(&site.catalogue().join("leases/payments/0000000001"));
        let catalogue = Arc::new(MemoryCatalogue::new());
        site.block_on(async {
            publish::publish(&*catalogue, &jws, &trusted).await.unwrap();
            let published = lease::publish(&*catalogue, &lease_jws, &policy, &trusted, MachineClock.now());
            published.await.unwrap();
        });
        Self {
            site,
            root,
            policy,
            catalogue,
            audit: Arc::default(),
        }
    }

    /// What the host gives, and believes.
    fn terms(&self) -> Terms {
        let trust = Trust::with_dev_root(&self.root).unwrap();
        let rule = self.policy.policy().enclave.as_ref().unwrap();
        let measurements = rule.measurements.values().map(|measured| of_policy(measured).unwrap());
        let verifier = AttestationVerifier::new(trust, measurements.collect(), Arc::new(MachineClock));
        Terms {
            verifier: Arc::new(verifier),
            catalogue: self.catalogue.clone(),
            allowed: vec![host(&endpoint(&self.site)).parse().unwrap()],
            credentials: Arc::new(Role),
            audit: self.audit.clone(),
        }
    }

    /// A batch as clients seal it.
    fn batch(&self, number: usize) -> ClientBatch {
        let spki = self.site.kms().public_key(&arn(ENCLAVE_RSA)).unwrap();
        let key = RsaPublicJwk::from_spki_der(&spki).unwrap();
        let mut session = Session::begin(&key, "payments").unwrap();
        let mut column = ClientColumn::new("card", true, false);
        for n in 0..VALUES {
            let sealed = session.seal("card", card(number, n).as_bytes()).unwrap();
            column.values.push(sealed.as_bytes()).unwrap();
            column.keys.push(ValueKey::Session(0));
        }
        ClientBatch {
            policy: Arc::clone(&self.policy),
            sessions: vec![session.token().to_owned()],
            columns: vec![column],
        }
    }

    /// These values, opened by the worker for `role/support`, under the reader's own key.
    async fn read(&self, worker: &Supervisor, reader: &PrivateKey, values: &[String]) -> Vec<Vec<u8>> {
        let public = reader.public().unwrap();
        let endpoint = endpoint(&self.site);
        let config = KmsConfig {
            region: Some("eu-central-1".to_owned()),
            credentials: Some(StaticCredentials {
                access_key_id: "TESTSUPPORT".to_owned(),
                secret_access_key: SecretString::new("tests-only-support".to_owned()),
                session_token: None,
            }),
            ..KmsConfig::default()
        };
        let kms = AwsKms::new(&config).await.unwrap();
        let commits_to = Some(public.thumbprint());
        let presigned = kms.presign_identity(Some(&endpoint), SERVER_ID, commits_to, SystemTime::now());
        let presigned = presigned.await.unwrap();
        let (jwk, nonce) = (public.to_json(), [9; 32]);
        let job = ReadJob {
            dataset: "payments",
            purpose: None,
            proof: Proof::Sts(presigned.expose()),
            seal_to: jwk.as_bytes(),
            nonce: &nonce,
            envelopes: vec![],
            what: What::Values(values.iter().map(|value| (Some("card"), value.as_str())).collect()),
        };
        let (frame, connection) = worker.read(&job).await.unwrap();
        let answer = ReadAnswer::read(&frame.body).unwrap();
        let question = ("payments", public.thumbprint(), &nonce[..]);
        let signer = connection.signer().parse().unwrap();
        AnswerClaims::verify(answer.proof, signer, question, &answer.shown).unwrap();
        assert!(!holds_canary(&frame.body));
        let open = |shown: &Option<&[u8]>| {
            let jwe: String = serde_json::from_slice(shown.unwrap()).unwrap();
            reader.open(&jwe).unwrap().expose().to_vec()
        };
        answer.shown.iter().map(open).collect()
    }
}

fn only_file(folder: &Path) -> String {
    let entry = std::fs::read_dir(folder).unwrap().next().unwrap().unwrap();
    std::fs::read_to_string(entry.path()).unwrap()
}

fn endpoint(site: &Site) -> String {
    site.kms().endpoint().trim_end_matches('/').to_owned()
}

fn host(endpoint: &str) -> String {
    endpoint.trim_start_matches("https://").to_owned()
}

fn holds_canary(bytes: &[u8]) -> bool {
    bytes.windows(CANARY.len()).any(|window| window == CANARY.as_bytes())
}

/// What is measured with the worker. Its sandbox is required in full: nothing of it is said here.
fn configuration(site: &Site) -> String {
    let authority = site.authority().replace('\n', "\\n");
    let endpoint = endpoint(site);
    format!(
        "owners: [\"payments={}\"]\nkms: {{ keys: [\"{}\"], endpoint: \"{endpoint}\", timeout: 30s }}\nkms_root: \"{authority}\"\nsts: {{ server_id: {SERVER_ID}, origins: [\"{endpoint}\"], root: \"{authority}\" }}\ndev_nsm: \"vsock:{PARENT_CID}:{NSM_PORT}\"\n",
        site.owner(),
        arn("*"),
    )
}

/// The worker's connection to its NSM, which comes before it listens.
fn asks_for_nsm(listener: &UnixListener, machine: &mut Machine) -> UnixStream {
    listener.set_nonblocking(true).unwrap();
    let began = Instant::now();
    loop {
        if let Ok((worker, _)) = listener.accept() {
            return worker;
        }
        assert!(machine.runs() && began.elapsed() < BOOT, "{}", machine.console());
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The column of a batch, as soon as the worker has its keys, and the bytes that clients sealed.
async fn sealed(bench: &Bench, worker: &Supervisor, number: usize) -> (ResealedColumn, usize) {
    let began = Instant::now();
    loop {
        let batch = bench.batch(number);
        let bytes = batch.columns[0].values.byte_len();
        match worker.reseal(batch).await {
            Ok(mut columns) => return (columns.remove(0), bytes),
            Err(error) if error.is_retryable() && began.elapsed() < BOOT => {
                println!("waiting: {error}");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_column_goes_through_the_vsock_to_a_worker_in_qemu_and_a_reader_opens_it() {
    let test = "a_column_goes_through_the_vsock_to_a_worker_in_qemu_and_a_reader_opens_it";
    let Some(prepared) = Prepared::or_skip(test) else {
        return;
    };
    let (folder, enclave) = (Scratch::new(), Arc::new(Enclave::new()));
    let pem = std::fs::read_to_string(enclave.root_file()).unwrap();
    let root = root(Some(&pem), "root").unwrap().unwrap();
    let site = Site::for_enclave("localhost:1", &root);
    let built = prepared.image(
        "sealflow-enclave-worker-dev",
        configuration(&site).as_bytes(),
        folder.path(),
    );
    let image = built.measurements.image;
    let bench = Bench::new(site, root, &image);
    let nsm_listener = UnixListener::bind(folder.path().join(format!("vm_{NSM_PORT}"))).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();

    let mut machine = runtime.block_on(Machine::start(&prepared, folder.path(), &built.path));
    let boot = runtime.block_on(machine.up());
    vouch(asks_for_nsm(&nsm_listener, &mut machine), enclave, image);
    // Listens as soon as it is closed in.
    drop(runtime.block_on(machine.connect(PORT)));

    // Two hosts at a time, the first with two batches at a time.
    let host = || {
        let _inside = runtime.enter();
        Supervisor::start(Arc::new(EndpointStarter::new(machine.endpoint(PORT), bench.terms())), 2)
    };
    let (first, second) = (host(), host());
    let (columns, client_bytes, secs) = runtime.block_on(async {
        for worker in [&first, &second] {
            tokio::time::timeout(BOOT, worker.ready()).await.unwrap();
        }
        let began = Instant::now();
        let of = |number, worker| sealed(&bench, worker, number);
        let (one, two, three) = tokio::join!(of(0, &first), of(1, &first), of(2, &second));
        let bytes = one.1 + two.1 + three.1;
        ([one.0, two.0, three.0], bytes, began.elapsed().as_secs_f64())
    });
    for worker in [&first, &second] {
        let known = worker.known().unwrap();
        assert_eq!(
            (known.tier.as_str(), &known.image),
            ("dev-software-nsm", &hex::encode(image))
        );
    }
    // Two workers in one process: each has a data key of its own.
    assert!(columns[0].key == columns[1].key && columns[0].key != columns[2].key);
    for column in &columns {
        let values = column.values.view();
        assert!(column.refused.is_empty());
        assert_eq!((values.len(), values.iter().flatten().count()), (VALUES, VALUES));
        assert!(
            values
                .iter()
                .flatten()
                .all(|value| value[0] == 0x11 && !holds_canary(value))
        );
    }

    // A reader's own key opens the answer, value by value; by way of the other host too, whose worker has not sealed it.
    let reader = PrivateKey::generate(RsaBits::Rsa2048).unwrap();
    let mut opened = 0;
    for (number, worker) in [(0, &first), (1, &second), (2, &first)] {
        let places: Vec<usize> = (0..VALUES).step_by(64).chain([VALUES - 1]).collect();
        let text = |n: &usize| {
            let mut text = Vec::new();
            value::write_text(columns[number].values.view().get(*n).unwrap(), &mut text);
            String::from_utf8(text).unwrap()
        };
        let values: Vec<String> = places.iter().map(text).collect();
        let shown = runtime.block_on(bench.read(worker, &reader, &values));
        assert_eq!(shown.len(), places.len());
        for (n, shown) in places.iter().zip(&shown) {
            assert_eq!(shown, card(number, *n).as_bytes());
            opened += 1;
        }
    }
    assert!(!holds_canary(&bench.audit.0.lock().unwrap()));
    let (first_status, second_status) = runtime.block_on(async { (first.status().await, second.status().await) });
    assert_eq!(first_status.unwrap().values, 2 * VALUES as u64);
    assert_eq!(second_status.unwrap().values, VALUES as u64);

    // After both hosts are gone the enclave takes the next one, whose worker is a new one.
    drop((first, second));
    let third = host();
    let status = runtime.block_on(async {
        tokio::time::timeout(BOOT, third.ready()).await.unwrap();
        third.status().await.unwrap()
    });
    assert_eq!((status.values, status.kms_requests), (0, 0));
    assert!(machine.runs(), "{}", machine.console());
    assert!(!holds_canary(machine.console().as_bytes()));

    report(&json!({
        "name": "column",
        "tier": "dev-software-nsm",
        "boot_secs": boot.as_secs_f64(),
        "hosts_at_a_time": 2,
        "batches_at_a_time": 3,
        "values_sealed": 3 * VALUES,
        "values_opened_by_the_reader": opened,
        "bytes_of_clients_through_vsock": client_bytes,
        "bytes_sealed_back": columns.iter().map(|column| column.values.view().value_bytes()).sum::<usize>(),
        "secs": secs,
    }));
}
