//! Host and worker over a channel, in one process: what clients seal goes over and comes back sealed; whatever breaks the protocol ends
//! the connection, and nobody is believed who does not prove what they are.

#![allow(clippy::unwrap_used, clippy::panic)] // tests

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sealflow::acl::oidc::TrustedIssuer;
use sealflow::audit::{AuditError, Verifier};
use sealflow::clock::{Clock, ManualClock, UnixMillis};
use sealflow::flow::direct::DirectSealer;
use sealflow::flow::enclave::answer::AnswerClaims;
use sealflow::flow::enclave::{
    ClientBatch, ClientColumn, EnclaveError, EnclaveWorker as _, Resealer, ValueKey, ValueRefusal,
};
use sealflow::flow::hybrid::ClientKeys;
use sealflow::jose::rsa::RsaPublicJwk;
use sealflow::jose::{PrivateJwk, Thumbprint, base64url};
use sealflow::keys::testing::{MemoryCatalogue, MemoryKms};
use sealflow::keys::{
    Catalogue, ClientKeyService as _, DomainKeys, EncryptionContext, OpeningKeys, RsaBits, SealingKeys,
};
use sealflow::policy::enclave_keys::attested::{self, Measurement, Measurements, Pinned};
use sealflow::policy::signed::sign;
use sealflow::policy::{
    CataloguePolicies, KeyPair, PolicySource, TrustedOwners, VerifiedPolicy, lease, publish, signed,
};
use sealflow::seal::{UsageLimits, value};
use sealflow_client::{PrivateKey, Session};
use sealflow_enclave_host::{
    AttestationVerifier, ConnectError, Connection, Side, StartError, Started, Starter, Supervisor, of_policy,
};
use sealflow_enclave_protocol::attestation::build::DevRoot;
use sealflow_enclave_protocol::attestation::{Document, Tier, Trust};
use sealflow_enclave_protocol::frame::{Frame, Kind};
use sealflow_enclave_protocol::joints::{AttestError, Attester, Claims, Verifier as _};
use sealflow_enclave_protocol::link::{Asker, Outgoing, read_frame, write_frames};
use sealflow_enclave_protocol::message::{
    CatalogueQuestion, Credentials, Hello, HelloAnswer, Outcome, PairAnswer, PairJob, Proof, ReadAnswer, ReadJob, What,
};
use sealflow_enclave_protocol::wire::Malformed;
use sealflow_enclave_worker::catalogue::HostCatalogue;
use sealflow_enclave_worker::identity::{Fetch, Issuer, Prover};
use sealflow_enclave_worker::read::{Audit, Reading};
use sealflow_enclave_worker::serve::{self, Parts, Worker};
use sealflow_enclave_worker::vouch::Vouching;
use tokio::io::{AsyncWriteExt as _, DuplexStream};

const DATA_ARN: &str = "arn:aws:kms:eu-central-1:111122223333:key/33333333-3333-3333-3333-333333333333";
const RSA_ARN: &str = "arn:aws:kms:eu-central-1:111122223333:key/44444444-4444-4444-4444-444444444444";
const PAIR_ARN: &str = "arn:aws:kms:eu-central-1:111122223333:key/55555555-5555-5555-5555-555555555555";
const NOW: UnixMillis = UnixMillis(1_800_000_000_000);
const HOUR: Duration = Duration::from_secs(3_600);

/// A root of its own that vouches for whatever it is told.
#[derive(Debug)]
struct Nsm {
    root: Arc<DevRoot>,
    image: [u8; 48],
    clock: Arc<ManualClock>,
}

impl Attester for Nsm {
    fn attest(&self, claims: &Claims<'_>) -> Result<Vec<u8>, AttestError> {
        let now_ms = self.clock.now().0;
        let document = Document {
            module_id: "dev-software-nsm-test".to_owned(),
            timestamp_ms: now_ms,
            pcrs: BTreeMap::from([(0, self.image.to_vec()), (4, vec![0; 48])]),
            public_key: claims.public_key.map(<[u8]>::to_vec),
            user_data: claims.user_data.map(<[u8]>::to_vec),
            nonce: claims.nonce.map(<[u8]>::to_vec),
            tier: Tier::DevSoftwareNsm,
        };
        let issuer = self.root.issuer(now_ms).map_err(|error| AttestError {
            reason: error.to_string(),
        })?;
        issuer.document(&document).map_err(|error| AttestError {
            reason: error.to_string(),
        })
    }
}

/// Relays nothing, and keeps the worker's audit lines: late, as a disk does, and not at all if that is full.
#[derive(Debug, Default)]
struct HostSide {
    lines: std::sync::Mutex<Vec<String>>,
    is_full: AtomicBool,
}

impl HostSide {
    fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }
}

#[async_trait]
impl Side for HostSide {
    async fn relay(&self, _: &[u8]) -> Result<(), Malformed> {
        Err(Malformed)
    }

    async fn audit(&self, line: &[u8]) -> Result<(), AuditError> {
        tokio::time::sleep(Duration::from_millis(5)).await;
        if self.is_full.load(Ordering::Relaxed) {
            return Err(AuditError::Write {
                to: "enclave.jsonl".to_owned(),
                reason: "no space left on device".to_owned(),
            });
        }
        self.lines
            .lock()
            .unwrap()
            .push(String::from_utf8(line.to_vec()).unwrap());
        Ok(())
    }
}

#[derive(Default)]
struct WorkerSide(std::sync::Mutex<Vec<String>>);

impl serve::Side for WorkerSide {
    fn credentials(&self, credentials: Credentials) {
        self.0.lock().unwrap().push(credentials.access_key_id);
    }

    fn relay(&self, _: &[u8]) -> Result<(), Malformed> {
        Err(Malformed)
    }

    fn kms_requests(&self) -> u64 {
        7
    }
}

/// An issuer of tokens, and what is fetched from it.
#[derive(Debug)]
struct TestIssuer(Ed25519KeyPair);

const ISSUER: &str = "https://login.example.com";

impl TestIssuer {
    fn trusted(&self) -> TrustedIssuer {
        TrustedIssuer::new(ISSUER, vec!["sealflow".to_owned()])
    }

    /// A token of `subject` for that audience, which commits to the key of that thumbprint.
    fn token(&self, subject: &str, audience: &str, nonce: &str) -> String {
        let seconds = NOW.0 / 1_000;
        let part = |json: &str| base64url(json.as_bytes());
        let header = part(r#"{"alg":"EdDSA","typ":"JWT"}"#);
        let claims = part(&format!(
            r#"{{"iss":"{ISSUER}","sub":"{subject}","aud":"{audience}","iat":{seconds},"exp":{},"nonce":"{nonce}"}}"#,
            seconds + 600
        ));
        let signed = format!("{header}.{claims}");
        let signature = base64url(self.0.sign(signed.as_bytes()).as_ref());
        format!("{signed}.{signature}")
    }
}

#[async_trait]
impl Fetch for TestIssuer {
    async fn get(&self, url: &str, _: &[(&'static str, &str)], _: usize) -> Option<(u16, Vec<u8>)> {
        assert_eq!(url, "https://issuer/jwks");
        let x = base64url(self.0.public_key().as_ref());
        let keys = format!(r#"{{"keys":[{{"kty":"OKP","crv":"Ed25519","x":"{x}"}}]}}"#);
        Some((200, keys.into_bytes()))
    }
}

/// A dataset with a signed policy in a catalogue, the keys, and a root that vouches for workers.
struct Bench {
    issuer: Arc<TestIssuer>,
    kms: Arc<MemoryKms>,
    catalogue: Arc<MemoryCatalogue>,
    clock: Arc<ManualClock>,
    owner: PrivateJwk,
    root: Arc<DevRoot>,
    policy: Arc<VerifiedPolicy>,
}

fn yaml(version: u32, image: &[u8; 48]) -> String {
    let image: String = image.iter().map(|byte| format!("{byte:02x}")).collect();
    format!(
        "dataset: payments\nversion: {version}\nlease: required\nkeys: {{ regulated: {{ arn: \"{DATA_ARN}\" }} }}\nenclave: {{ keys: {{ web: {{ arn: \"{RSA_ARN}\" }} }}, measurements: {{ v1: {{ image: \"{image}\" }} }} }}\nacls: {{ a: {{ allow: [\"oidc:https://login.example.com#sub=ann\"] }} }}\ncolumns:\n  - {{ path: card, key: regulated, acl: a, flow: enclave }}\n  - {{ path: iban, key: regulated, acl: a, flow: enclave, client_sealed: optional, bind_row: id }}\n"
    )
}

const IMAGE: [u8; 48] = [0xa1; 48];

impl Bench {
    async fn new() -> Self {
        let (kms, catalogue) = (Arc::new(MemoryKms::new()), Arc::new(MemoryCatalogue::new()));
        kms.create_rsa_key(RSA_ARN, RsaBits::Rsa2048).unwrap();
        let (owner, clock) = (PrivateJwk::generate().unwrap(), Arc::new(ManualClock::at(NOW)));
        let trusted = TrustedOwners::everywhere(vec![owner.thumbprint()]).unwrap();
        let jws = sign(yaml(1, &IMAGE).as_bytes(), &owner).unwrap();
        let policy = Arc::new(signed::verify(&jws, &trusted).unwrap());
        publish::publish(&*catalogue, &jws, &trusted).await.unwrap();
        let bench = Self {
            issuer: Arc::new(TestIssuer(Ed25519KeyPair::generate().unwrap())),
            kms,
            catalogue,
            clock,
            root: Arc::new(DevRoot::generate(NOW.0).unwrap()),
            owner,
            policy,
        };
        bench.lease(HOUR).await;
        bench
    }

    fn trusted(&self) -> TrustedOwners {
        TrustedOwners::everywhere(vec![self.owner.thumbprint()]).unwrap()
    }

    async fn lease(&self, span: Duration) {
        let jws = lease::sign(&self.policy, self.clock.now(), span, &self.owner).unwrap();
        let published = lease::publish(&*self.catalogue, &jws, &self.policy, &self.trusted(), self.clock.now()).await;
        published.unwrap();
    }

    /// A worker at the other end of the channel that comes back. It believes these owners.
    fn worker(&self, owners: TrustedOwners, image: [u8; 48]) -> (DuplexStream, Arc<WorkerSide>) {
        let (host, ours) = tokio::io::duplex(1 << 16);
        let (from, to) = tokio::io::split(ours);
        let (out, queue) = Outgoing::new();
        let asker = Asker::new(out.clone());
        let catalogue = Arc::new(HostCatalogue::new(asker.clone()));
        let policies =
            CataloguePolicies::new(catalogue.clone(), owners, self.clock.clone()).with_ages(Duration::ZERO, HOUR);
        let policies = Arc::new(policies);
        let (age, clock) = (Duration::from_secs(300), self.clock.clone());
        let sealer = DirectSealer {
            keys: SealingKeys::new(
                self.kms.clone(),
                catalogue.clone(),
                clock.clone(),
                UsageLimits::STANDARD,
            ),
            domains: DomainKeys::new(self.kms.clone(), catalogue, policies.clone(), clock.clone(), age),
        };
        let side = Arc::new(WorkerSide::default());
        let signer = Arc::new(PrivateJwk::generate().unwrap());
        let window = Arc::new(HostCatalogue::new(asker.clone()));
        let keys = OpeningKeys::new(self.kms.clone(), window, policies.clone(), clock.clone(), age, 100);
        let jwks = "https://issuer/jwks".to_owned();
        let prover = Prover {
            issuers: vec![Issuer::new(self.issuer.trusted(), jwks, self.issuer.clone())],
            sts: None,
            clock: clock.clone(),
        };
        let sources: Arc<dyn PolicySource> = policies.clone();
        let services: (Arc<dyn PolicySource>, _, _) = (policies.clone(), keys, sealer.domains.clone());
        let clients = ClientKeys::new(self.kms.clone(), clock.clone(), age, 100);
        let worker = Worker::new(Parts {
            resealer: Resealer::new(policies, clients, sealer),
            reading: Reading::new(services, prover, signer.clone(), clock.clone()),
            vouching: Vouching::new(sources.clone(), self.kms.clone(), Arc::new(self.vouching(image))),
            audit: Audit::start(&signer, &*clock).unwrap().0,
            attester: Arc::new(self.vouching(image)),
            signer,
            clock,
            side: side.clone(),
            asker,
            out,
        });
        tokio::spawn(write_frames(queue, to));
        tokio::spawn(worker.serve(from));
        (host, side)
    }

    fn vouching(&self, image: [u8; 48]) -> Nsm {
        Nsm {
            root: self.root.clone(),
            image,
            clock: self.clock.clone(),
        }
    }

    fn verifier(&self) -> AttestationVerifier {
        let trust = Trust::with_dev_root(self.root.certificate()).unwrap();
        let rule = self.policy.policy().enclave.as_ref().unwrap();
        let measurements = rule.measurements.values().map(|measured| of_policy(measured).unwrap());
        AttestationVerifier::new(trust, measurements.collect(), self.clock.clone())
    }

    async fn connected(&self, channel: DuplexStream) -> Result<Connection, ConnectError> {
        self.connected_with(channel, Arc::default()).await
    }

    async fn connected_with(&self, channel: DuplexStream, side: Arc<HostSide>) -> Result<Connection, ConnectError> {
        let catalogue: Arc<dyn Catalogue> = self.catalogue.clone();
        Connection::open(channel, &self.verifier(), catalogue, |_| side).await
    }

    async fn session(&self) -> Session {
        let key = RsaPublicJwk::from_spki_der(&self.kms.public_key(RSA_ARN).await.unwrap()).unwrap();
        Session::begin(&key, "payments").unwrap()
    }

    /// A batch of cards under that session.
    fn batch(&self, session: &Session, cards: &[String]) -> ClientBatch {
        let mut column = ClientColumn::new("card", true, false);
        for card in cards {
            column.values.push(card.as_bytes()).unwrap();
            column.keys.push(ValueKey::Session(0));
        }
        ClientBatch {
            policy: self.policy.clone(),
            sessions: vec![session.token().to_owned()],
            columns: vec![column],
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_go_over_and_come_back_sealed_each_value_in_its_place() {
    let bench = Bench::new().await;
    let (channel, side) = bench.worker(bench.trusted(), IMAGE);
    let connection = bench.connected(channel).await.unwrap();
    assert_eq!(connection.believed().tier, "dev-software-nsm");
    let mut session = bench.session().await;
    let mut cards: Vec<String> = (0..20_000)
        .map(|n| session.seal("card", n.to_string().as_bytes()).unwrap())
        .collect();
    cards[7] = session.seal("iban", b"1").unwrap();
    cards[19_999] = "eyJ.not.a.jwe.x".to_owned();
    let sealed = connection.reseal(&bench.batch(&session, &cards)).await.unwrap();
    let [column] = sealed.as_slice() else {
        panic!("one column")
    };
    let refused = [(7, ValueRefusal::CannotOpen), (19_999, ValueRefusal::CannotOpen)];
    assert_eq!(column.refused, refused);
    let values = column.values.view();
    assert_eq!((values.len(), values.iter().flatten().count()), (20_000, 19_998));
    assert!(values.get(7).is_none() && values.get(8).unwrap()[0] == 0x11);
    // The envelope is in the catalogue before anything comes back.
    let stored = bench.catalogue.list(&format!("keys/{}", column.key)).await.unwrap();
    assert_eq!(
        bench.catalogue.get(&stored[0]).await.unwrap().as_ref(),
        Some(&column.envelope)
    );
    assert_eq!((bench.kms.decrypt_rsa_calls(), bench.kms.generate_calls()), (1, 1));

    // A bound column: values in clear and sealed ones, rows for all.
    let mut column = ClientColumn::new("iban", true, true);
    column.values.push(br#""DE89""#).unwrap();
    column.keys.push(ValueKey::Clear);
    column.rows.as_mut().unwrap().push(b"\x06o-7").unwrap();
    let batch = ClientBatch {
        policy: bench.policy.clone(),
        sessions: vec![],
        columns: vec![column],
    };
    assert_eq!(connection.reseal(&batch).await.unwrap()[0].refused, []);
    let status = connection.status().await.unwrap();
    assert_eq!(
        (status.values, status.refused, status.kms_requests, status.now_ms),
        (19_999, 2, 7, NOW.0)
    );
    let credentials = Credentials {
        access_key_id: "AKIA".to_owned(),
        secret_access_key: "s".to_owned().into(),
        session_token: None,
        expires_ms: None,
    };
    connection.credentials(&credentials).await.unwrap();
    connection.status().await.unwrap();
    assert_eq!(*side.0.lock().unwrap(), ["AKIA"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_are_under_way_side_by_side() {
    let bench = Bench::new().await;
    let (channel, _) = bench.worker(bench.trusted(), IMAGE);
    let connection = Arc::new(bench.connected(channel).await.unwrap());
    bench.kms.set_delay(Duration::from_millis(50));
    let mut running = Vec::new();
    for n in 0..8 {
        // Each with a session of its own, which takes a call.
        let mut session = bench.session().await;
        let cards = [session.seal("card", n.to_string().as_bytes()).unwrap()];
        let (connection, batch) = (connection.clone(), bench.batch(&session, &cards));
        running.push(tokio::spawn(async move { connection.reseal(&batch).await }));
    }
    for run in running {
        assert_eq!(run.await.unwrap().unwrap()[0].refused, []);
    }
    assert!(bench.kms.peak_in_flight() > 2, "{}", bench.kms.peak_in_flight());
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_believed_who_does_not_prove_what_they_are() {
    let bench = Bench::new().await;
    let reason = |answer: Result<Connection, ConnectError>| match answer {
        Err(ConnectError::NotBelieved(error)) => error.reason,
        other => panic!("{other:?}"),
    };
    // Another image, debug mode, another root, evidence of an hour ago.
    let (channel, _) = bench.worker(bench.trusted(), [0xb2; 48]);
    assert!(reason(bench.connected(channel).await).contains("measure"));
    let (channel, _) = bench.worker(bench.trusted(), [0; 48]);
    assert!(reason(bench.connected(channel).await).contains("debug"));
    let other = Bench {
        root: Arc::new(DevRoot::generate(NOW.0).unwrap()),
        ..Bench::new().await
    };
    let (channel, _) = other.worker(bench.trusted(), IMAGE);
    assert!(reason(bench.connected(channel).await).contains("root"));
    // A man in the middle who answers with evidence that another asked for, or signs with a key of his own.
    for is_replayed in [true, false] {
        let (channel, mut theirs) = tokio::io::duplex(1 << 16);
        let attester = Nsm {
            root: bench.root.clone(),
            image: IMAGE,
            clock: bench.clock.clone(),
        };
        tokio::spawn(async move {
            let asked = read_frame(&mut theirs).await.unwrap().unwrap();
            let hello = Hello::read(&asked.body).unwrap();
            let nonce = if is_replayed { [9; 32] } else { hello.nonce };
            let signer = if is_replayed { "own" } else { "theirs" };
            let user_data = sealflow_enclave_protocol::message::signer_user_data("own");
            let claims = Claims {
                public_key: None,
                user_data: Some(&user_data),
                nonce: Some(&nonce),
            };
            let answer = HelloAnswer {
                evidence: attester.attest(&claims).unwrap(),
                signer: signer.to_owned(),
                version: "1".to_owned(),
            };
            let frame = Frame::new(Kind::Answer, asked.sequence, answer.to_body());
            theirs.write_all(&frame.header().unwrap()).await.unwrap();
            theirs.write_all(&frame.body).await.unwrap();
            read_frame(&mut theirs).await.ok()
        });
        let why = reason(bench.connected(channel).await);
        assert!(why.contains(if is_replayed { "nonce" } else { "bind" }), "{why}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_not_believed_yet_writes_nothing_to_the_catalogue_and_to_the_log() {
    let bench = Bench::new().await;
    let put = CatalogueQuestion::PutIfAbsent("keys/payments/forged".to_owned(), vec![1]);
    for frame in [
        Frame::new(Kind::Catalogue, 1, put.to_body()),
        Frame::new(Kind::Audit, 0, b"a line of somebody's".to_vec()),
    ] {
        let (channel, mut theirs) = tokio::io::duplex(1 << 16);
        let side = Arc::new(HostSide::default());
        let peer = tokio::spawn(async move {
            read_frame(&mut theirs).await.unwrap().unwrap();
            theirs.write_all(&frame.header().unwrap()).await.unwrap();
            theirs.write_all(&frame.body).await.unwrap();
            // An answer, or that it is hung up on.
            let _ = tokio::time::timeout(Duration::from_millis(500), read_frame(&mut theirs)).await;
        });
        assert!(bench.connected_with(channel, side.clone()).await.is_err());
        peer.await.unwrap();
        assert_eq!(bench.catalogue.get("keys/payments/forged").await.unwrap(), None);
        assert!(side.lines().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_goes_by_its_own_owners_and_by_policies_that_are_leased() {
    let bench = Bench::new().await;
    let mut session = bench.session().await;
    let cards = [session.seal("card", b"1").unwrap()];
    let batch = |policy: &Arc<VerifiedPolicy>| ClientBatch {
        policy: policy.clone(),
        ..bench.batch(&session, &cards)
    };
    // Of another owner than the measured ones: the host would like it to open by a policy of its own.
    let stranger = TrustedOwners::everywhere(vec![PrivateJwk::generate().unwrap().thumbprint()]).unwrap();
    let (channel, _) = bench.worker(stranger, IMAGE);
    let connection = bench.connected(channel).await.unwrap();
    let error = connection.reseal(&batch(&bench.policy)).await.unwrap_err();
    assert!(matches!(error, EnclaveError::Refused { .. }), "{error}");
    // The host goes by another version than counts.
    let (channel, _) = bench.worker(bench.trusted(), IMAGE);
    let connection = bench.connected(channel).await.unwrap();
    let jws = sign(yaml(2, &IMAGE).as_bytes(), &bench.owner).unwrap();
    let newer = Arc::new(signed::verify(&jws, &bench.trusted()).unwrap());
    let error = connection.reseal(&batch(&newer)).await.unwrap_err();
    assert!(matches!(error, EnclaveError::Unavailable { .. }), "{error}");
    assert!(connection.reseal(&batch(&bench.policy)).await.is_ok());
    // Its lease ends, by the worker's own time.
    bench.clock.advance(HOUR);
    let error = connection.reseal(&batch(&bench.policy)).await.unwrap_err();
    assert!(error.to_string().contains("lease"), "{error}");
    bench.lease(HOUR).await;
    assert!(connection.reseal(&batch(&bench.policy)).await.is_ok());
    // What is in the catalogue instead of the policy's newest version: nothing older counts any more.
    publish::publish(&*bench.catalogue, &jws, &bench.trusted())
        .await
        .unwrap();
    let error = connection.reseal(&batch(&bench.policy)).await.unwrap_err();
    assert!(!matches!(error, EnclaveError::BadAnswer { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_breaks_the_protocol_ends_the_connection_and_a_replayed_question_is_none() {
    let bench = Bench::new().await;
    let hello = || Frame::new(Kind::Hello, 5, Hello { nonce: [1; 32] }.to_body());
    let bytes = |frame: &Frame| [&frame.header().unwrap()[..], &frame.body].concat();
    let long = |len: u32| {
        let mut header = bytes(&hello());
        header[..4].copy_from_slice(&len.to_le_bytes());
        header
    };
    let bad: Vec<(&str, Vec<u8>)> = vec![
        (
            "an answer that nobody asked for",
            bytes(&Frame::new(Kind::CatalogueAnswer, 77, vec![1])),
        ),
        ("a question of a worker's", bytes(&Frame::new(Kind::Audit, 1, vec![]))),
        (
            "a relayed message that is none",
            bytes(&Frame::new(Kind::Relay, 0, vec![1, 2, 3])),
        ),
        (
            "credentials that are none",
            bytes(&Frame::new(Kind::Credentials, 0, vec![9])),
        ),
        ("a frame that is too long", long(u32::MAX)),
        ("a frame that is too short", long(3)),
        ("a question played again", [bytes(&hello()), bytes(&hello())].concat()),
        ("no frame", b"GET / HTTP/1.1\r\nhost: worker\r\n\r\n".to_vec()),
    ];
    for (what, bytes) in bad {
        let (mut channel, _) = bench.worker(bench.trusted(), IMAGE);
        channel.write_all(&bytes).await.unwrap();
        let mut answers = 0;
        let ended = tokio::time::timeout(Duration::from_secs(10), async {
            while let Ok(Some(_)) = read_frame(&mut channel).await {
                answers += 1;
            }
        });
        ended.await.unwrap_or_else(|_| panic!("{what}: the worker goes on"));
        assert!(answers <= 1, "{what}");
    }
    // A question that is no question of its kind is answered, without a reason, and the worker goes on.
    let (channel, _) = bench.worker(bench.trusted(), IMAGE);
    let connection = bench.connected(channel).await.unwrap();
    let mut session = bench.session().await;
    let cards = [session.seal("card", b"1").unwrap()];
    let mut wrong = bench.batch(&session, &cards);
    wrong.columns[0].label = "unknown".to_owned();
    assert!(matches!(
        connection.reseal(&wrong).await,
        Err(EnclaveError::Refused { .. })
    ));
    wrong.columns[0].label = "card".to_owned();
    wrong.columns[0].keys[0] = ValueKey::Session(3);
    assert!(matches!(
        connection.reseal(&wrong).await,
        Err(EnclaveError::BadAnswer { .. })
    ));
    assert!(connection.reseal(&bench.batch(&session, &cards)).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_is_proved_inside_and_answered_under_the_key_that_the_proof_commits_to() {
    let bench = Bench::new().await;
    let (channel, _) = bench.worker(bench.trusted(), IMAGE);
    let side = Arc::new(HostSide::default());
    let connection = bench.connected_with(channel, side.clone()).await.unwrap();
    let mut session = bench.session().await;
    let cards = [session.seal("card", br#""4111111111111111""#).unwrap()];
    let sealed = connection.reseal(&bench.batch(&session, &cards)).await.unwrap();
    let mut text = Vec::new();
    value::write_text(sealed[0].values.view().get(0).unwrap(), &mut text);
    let text = String::from_utf8(text).unwrap();
    let record = format!(r#"{{"id":"o-7","card":"{text}"}}"#);

    let reader = PrivateKey::generate(RsaBits::Rsa2048).unwrap();
    let (public, hosts) = (
        reader.public().unwrap(),
        PrivateKey::generate(RsaBits::Rsa2048).unwrap().public().unwrap(),
    );
    let thumbprint = public.thumbprint().to_string();
    let token = bench.issuer.token("ann", "sealflow", &thumbprint);
    let signer: Thumbprint = connection.signer().parse().unwrap();
    let ask = async |token: &str, key: &RsaPublicJwk, what: What<'_>| {
        let json = key.to_json();
        let job = ReadJob {
            dataset: "payments",
            purpose: None,
            proof: Proof::Oidc(token),
            seal_to: json.as_bytes(),
            nonce: b"nonce-1",
            envelopes: vec![],
            what,
        };
        connection.read(&job).await
    };
    for what in [
        What::Values(vec![(Some("card"), text.as_str())]),
        What::Records(vec![record.as_bytes()]),
    ] {
        let frame = ask(&token, &public, what).await.unwrap();
        let answer = ReadAnswer::read(&frame.body).unwrap();
        assert_eq!((answer.policy_version, answer.decisions[0].count), (1, 1));
        let question = ("payments", public.thumbprint(), &b"nonce-1"[..]);
        AnswerClaims::verify(answer.proof, signer, question, &answer.shown).unwrap();
        assert!(
            AnswerClaims::verify(
                answer.proof,
                signer,
                ("payments", public.thumbprint(), b"nonce-2"),
                &answer.shown
            )
            .is_err()
        );
        let shown: serde_json::Value = serde_json::from_slice(answer.shown[0].unwrap()).unwrap();
        let jwe = shown.get("card").unwrap_or(&shown).as_str().unwrap().to_owned();
        assert!(!String::from_utf8_lossy(&frame.body).contains("4111"));
        assert_eq!(reader.open(&jwe).unwrap().expose(), br#""4111111111111111""#);
    }
    // The host puts its own key in; a token for another audience; somebody whom the ACL does not name.
    let values = || What::Values(vec![(Some("card"), text.as_str())]);
    let refused = async |token: &str, key: &RsaPublicJwk| match ask(token, key, values()).await {
        Err(EnclaveError::Refused { reason }) => reason,
        other => panic!("{other:?}"),
    };
    assert!(refused(&token, &hosts).await.contains("commit"));
    let without = bench.issuer.token("ann", "sealflow", "");
    assert!(refused(&without, &public).await.contains("commit"));
    let elsewhere = bench.issuer.token("ann", "other-service", &thumbprint);
    assert!(refused(&elsewhere, &public).await.contains("audience"));
    let forged = TestIssuer(Ed25519KeyPair::generate().unwrap()).token("ann", "sealflow", &thumbprint);
    refused(&forged, &public).await;
    let bob = bench.issuer.token("bob", "sealflow", &thumbprint);
    let frame = ask(&bob, &public, values()).await.unwrap();
    let answer = ReadAnswer::read(&frame.body).unwrap();
    assert_eq!(
        (answer.shown[0], answer.decisions[0].outcome),
        (Some(&b"null"[..]), Outcome::Refused)
    );
    // Its lines tell the same, under the key that its evidence binds.
    let lines = side.lines();
    let decisions = |verdict: &str| {
        lines
            .iter()
            .filter(|line| line.contains(&format!("\"decision\":\"{verdict}\"")))
            .count()
    };
    assert_eq!((decisions("allowed"), decisions("refused")), (2, 5), "{lines:#?}");
    assert!(!lines.iter().any(|line| line.contains("4111") || line.contains(&token)));
}

/// A sealed value, a reader's key, and a token of `ann` that commits to it.
async fn readable(bench: &Bench, connection: &Connection) -> (String, RsaPublicJwk, String) {
    let mut session = bench.session().await;
    let cards = [session.seal("card", br#""4111111111111111""#).unwrap()];
    let sealed = connection.reseal(&bench.batch(&session, &cards)).await.unwrap();
    let mut text = Vec::new();
    value::write_text(sealed[0].values.view().get(0).unwrap(), &mut text);
    let public = PrivateKey::generate(RsaBits::Rsa2048).unwrap().public().unwrap();
    let token = bench.issuer.token("ann", "sealflow", &public.thumbprint().to_string());
    (String::from_utf8(text).unwrap(), public, token)
}

fn read_job<'a>(text: &'a str, key: &'a str, token: &'a str) -> ReadJob<'a> {
    ReadJob {
        dataset: "payments",
        purpose: None,
        proof: Proof::Oidc(token),
        seal_to: key.as_bytes(),
        nonce: b"nonce-1",
        envelopes: vec![],
        what: What::Values(vec![(Some("card"), text)]),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_comes_after_its_lines_and_the_lines_of_many_readers_are_one_chain() {
    let bench = Bench::new().await;
    let (channel, _) = bench.worker(bench.trusted(), IMAGE);
    let side = Arc::new(HostSide::default());
    let connection = Arc::new(bench.connected_with(channel, side.clone()).await.unwrap());
    let signer: Thumbprint = connection.signer().parse().unwrap();
    let (text, key, token) = readable(&bench, &connection).await;
    let before = side.lines().len();
    connection.read(&read_job(&text, &key.to_json(), &token)).await.unwrap();
    // The decision and the checkpoint behind it, however late they are written.
    let kept = side.lines();
    assert_eq!(kept.len() - before, 2, "{kept:#?}");
    let mut reading = Vec::new();
    for _ in 0..16 {
        let (connection, text, key, token) = (connection.clone(), text.clone(), key.to_json(), token.clone());
        reading.push(tokio::spawn(async move {
            connection.read(&read_job(&text, &key, &token)).await.map(drop)
        }));
    }
    for read in reading {
        read.await.unwrap().unwrap();
    }
    let mut verifier = Verifier::new([signer], true);
    side.lines().iter().for_each(|line| verifier.line(line.as_bytes()));
    let report = verifier.finish();
    assert!(report.is_whole(), "{:?}", report.breaks);
    assert_eq!((report.lines, report.decisions, report.chains.len()), (34, 17, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decision_that_is_not_written_down_ends_the_worker_and_its_answer_is_not_handed_on() {
    let bench = Bench::new().await;
    let (channel, _) = bench.worker(bench.trusted(), IMAGE);
    let side = Arc::new(HostSide::default());
    let connection = bench.connected_with(channel, side.clone()).await.unwrap();
    let (text, key, token) = readable(&bench, &connection).await;
    assert!(connection.read(&read_job(&text, &key.to_json(), &token)).await.is_ok());
    side.is_full.store(true, Ordering::Relaxed);
    let unrecorded = |answer: Result<Frame, EnclaveError>| match answer {
        Err(error @ EnclaveError::Unrecorded { .. }) => {
            assert!(
                error.to_string().contains("no space left") && !error.is_retryable(),
                "{error}"
            );
        }
        other => panic!("{other:?}"),
    };
    unrecorded(connection.read(&read_job(&text, &key.to_json(), &token)).await);
    connection.ended().await;
    // It is gone for everything else too, and says why; also once there is room again.
    side.is_full.store(false, Ordering::Relaxed);
    unrecorded(connection.read(&read_job(&text, &key.to_json(), &token)).await);
    assert!(matches!(
        connection.status().await,
        Err(EnclaveError::Unrecorded { .. })
    ));
    assert!(connection.unrecorded().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn while_decisions_cannot_be_written_down_batches_fail_at_once_and_then_a_new_worker_goes_on() {
    let bench = Arc::new(Bench::new().await);
    let side = Arc::new(HostSide::default());
    let starter = Arc::new(InProcess {
        bench: bench.clone(),
        starts: AtomicUsize::new(0),
        fail_first: 0,
        kill: tokio::sync::broadcast::channel(4).0,
        side: side.clone(),
    });
    let supervisor = Supervisor::start(starter, 4);
    supervisor.ready().await;
    let mut session = bench.session().await;
    let cards = [session.seal("card", b"1").unwrap()];
    assert!(supervisor.reseal(bench.batch(&session, &cards)).await.is_ok());
    let key = PrivateKey::generate(RsaBits::Rsa2048)
        .unwrap()
        .public()
        .unwrap()
        .to_json();
    side.is_full.store(true, Ordering::Relaxed);
    // Refused readers are written down as well.
    let read = supervisor.read(&read_job("sf1.x", &key, "a.b.c")).await;
    assert!(matches!(read, Err(EnclaveError::Unrecorded { .. })), "{read:?}");
    // No batch waits for a worker that cannot come, and the next one that does is taken.
    let until = tokio::time::Instant::now() + Duration::from_secs(20);
    side.is_full.store(false, Ordering::Relaxed);
    while let Err(error) = supervisor.reseal(bench.batch(&session, &cards)).await {
        assert!(tokio::time::Instant::now() < until, "{error}");
        let is_told = matches!(
            error,
            EnclaveError::Unrecorded { .. } | EnclaveError::Unavailable { .. }
        );
        assert!(is_told, "{error}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(supervisor.known().unwrap().starts, 2);
}

fn pinned(bench: &Bench, image: [u8; 48]) -> Pinned {
    Pinned {
        trust: Trust::with_dev_root(bench.root.certificate()).unwrap(),
        measurements: vec![Measurements::of_image(Measurement::new(&image).unwrap())],
        nonce: None,
        max_age: HOUR,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_worker_vouches_for_the_keys_and_labels_of_the_signed_policy_and_for_nothing_else() {
    let bench = Bench::new().await;
    let (channel, _) = bench.worker(bench.trusted(), IMAGE);
    let connection = bench.connected(channel).await.unwrap();
    let text = connection.client_keys("payments").await.unwrap();
    let verified = attested::verify(&text, &pinned(&bench, IMAGE), NOW)
        .unwrap()
        .check("payments", None)
        .unwrap();
    let key = RsaPublicJwk::from_spki_der(&bench.kms.public_key(RSA_ARN).await.unwrap()).unwrap();
    assert_eq!(
        (verified.keys().keys(), verified.keys().labels()),
        (&[key][..], &["card".to_owned(), "iban".to_owned()][..])
    );
    // Of another image; with a key of the host's own in it.
    assert!(attested::verify(&text, &pinned(&bench, [0xb2; 48]), NOW).is_err());
    let own = PrivateKey::generate(RsaBits::Rsa2048).unwrap().public().unwrap();
    let document: serde_json::Value = serde_json::from_str(&text).unwrap();
    let mut hosts = document.clone();
    hosts["keys"] = serde_json::from_str::<serde_json::Value>(&format!("[{}]", own.to_published_json())).unwrap();
    assert!(attested::verify(&hosts.to_string(), &pinned(&bench, IMAGE), NOW).is_err());
    // The host chooses the dataset, and there must be a policy of a measured owner for it.
    assert!(matches!(
        connection.client_keys("refunds").await,
        Err(EnclaveError::Refused { .. })
    ));
    let stranger = TrustedOwners::everywhere(vec![PrivateJwk::generate().unwrap().thumbprint()]).unwrap();
    let (channel, _) = bench.worker(stranger, IMAGE);
    let other = bench.connected(channel).await.unwrap();
    assert!(matches!(
        other.client_keys("payments").await,
        Err(EnclaveError::Refused { .. })
    ));
    // It counts no more when its lease has ended.
    bench.clock.advance(HOUR);
    let error = connection.client_keys("payments").await.unwrap_err();
    assert!(error.to_string().contains("lease"), "{error}");
}

/// The next version of the policy, whose clients seal to that pair.
async fn with_pair(bench: &Bench, version: u32, pair: &KeyPair) -> Arc<VerifiedPolicy> {
    let (public, wrapped) = (STANDARD.encode(&pair.public), STANDARD.encode(&pair.wrapped));
    let yaml = yaml(version, &IMAGE).replace(
        &format!("{{ arn: \"{RSA_ARN}\" }}"),
        &format!(
            "{{ pair: {{ arn: \"{}\", public: \"{public}\", wrapped: \"{wrapped}\" }} }}",
            pair.arn
        ),
    );
    assert!(yaml.contains("pair:"));
    let jws = sign(yaml.as_bytes(), &bench.owner).unwrap();
    let policy = Arc::new(signed::verify(&jws, &bench.trusted()).unwrap());
    publish::publish(&*bench.catalogue, &jws, &bench.trusted())
        .await
        .unwrap();
    let lease = lease::sign(&policy, bench.clock.now(), HOUR, &bench.owner).unwrap();
    let published = lease::publish(&*bench.catalogue, &lease, &policy, &bench.trusted(), bench.clock.now()).await;
    published.unwrap();
    policy
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pair_that_the_worker_had_made_is_proved_and_opens_and_what_the_host_made_of_it_does_not() {
    let bench = Bench::new().await;
    let (channel, _) = bench.worker(bench.trusted(), IMAGE);
    let connection = bench.connected(channel).await.unwrap();
    let job = |dataset, bits| PairJob {
        dataset,
        arn: PAIR_ARN,
        bits,
        nonce: [3; 32],
    };
    // For datasets that measured owners give an enclave, of sizes that there are.
    for bad in [job("refunds", 2_048), job("payments", 1_024)] {
        assert!(
            matches!(connection.make_pair(&bad).await, Err(EnclaveError::Refused { .. })),
            "{bad:?}"
        );
    }
    let frame = connection.make_pair(&job("payments", 2_048)).await.unwrap();
    let answer = PairAnswer::read(&frame.body).unwrap();
    let made = |wrapped: &[u8]| KeyPair::made(PAIR_ARN, "payments", answer.public.to_vec(), wrapped.to_vec()).unwrap();
    let pair = made(answer.wrapped);
    let believes = |nonce: [u8; 32], pair: &KeyPair| {
        bench
            .verifier()
            .verify(answer.evidence, &nonce, &pair.user_data())
            .is_ok()
    };
    assert!(believes([3; 32], &pair));
    // Evidence of another question; a blob that the host had made, in the place of the worker's; the pair of another dataset.
    assert!(!believes([4; 32], &pair));
    let context = EncryptionContext::for_client_pair("payments");
    let hosts = bench
        .kms
        .generate_pair(PAIR_ARN, RsaBits::Rsa2048, &context)
        .await
        .unwrap();
    assert!(!believes([3; 32], &made(&hosts.wrapped_private)));
    let elsewhere = KeyPair::made(PAIR_ARN, "refunds", answer.public.to_vec(), answer.wrapped.to_vec()).unwrap();
    assert!(!believes([3; 32], &elsewhere));
    // Evidence for keys is none for pairs.
    let text = connection.client_keys("payments").await.unwrap();
    let keys: serde_json::Value = serde_json::from_str(&text).unwrap();
    let evidence = STANDARD.decode(keys["attestation"].as_str().unwrap()).unwrap();
    assert!(bench.verifier().verify(&evidence, &[3; 32], &pair.user_data()).is_err());

    // The owner puts it into the policy: the worker vouches for it, and opens what is sealed to it, without a request each.
    let policy = with_pair(&bench, 2, &pair).await;
    let text = connection.client_keys("payments").await.unwrap();
    let verified = attested::verify(&text, &pinned(&bench, IMAGE), NOW).unwrap();
    let public = RsaPublicJwk::from_spki_der(&pair.public).unwrap();
    assert_eq!(verified.keys().keys(), std::slice::from_ref(&public));
    let before = bench.kms.decrypt_rsa_calls();
    for n in 0..4 {
        let mut session = Session::begin(&public, "payments").unwrap();
        let cards = [session.seal("card", n.to_string().as_bytes()).unwrap()];
        let batch = ClientBatch {
            policy: policy.clone(),
            ..bench.batch(&session, &cards)
        };
        assert_eq!(connection.reseal(&batch).await.unwrap()[0].refused, []);
    }
    assert_eq!(bench.kms.decrypt_rsa_calls(), before);

    // A policy with the host's blob behind the worker's public half: nothing is opened, and nothing vouched for.
    let policy = with_pair(&bench, 3, &made(&hosts.wrapped_private)).await;
    let mut session = Session::begin(&public, "payments").unwrap();
    let cards = [session.seal("card", b"1").unwrap()];
    let batch = ClientBatch {
        policy,
        ..bench.batch(&session, &cards)
    };
    assert!(connection.reseal(&batch).await.is_err());
    let error = connection.client_keys("payments").await.unwrap_err();
    assert!(
        matches!(&error, EnclaveError::Refused { reason } if reason.contains("public half")),
        "{error}"
    );
}

/// Starts workers in this process; the first ones end at once.
#[derive(Debug)]
struct InProcess {
    bench: Arc<Bench>,
    starts: AtomicUsize,
    fail_first: usize,
    kill: tokio::sync::broadcast::Sender<()>,
    side: Arc<HostSide>,
}

impl std::fmt::Debug for Bench {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Bench")
    }
}

#[async_trait]
impl Starter for InProcess {
    async fn start(&self) -> Result<Started, StartError> {
        let n = self.starts.fetch_add(1, Ordering::Relaxed);
        if n < self.fail_first {
            return Err(StartError::Launch("no such image".to_owned()));
        }
        let (mut theirs, _) = self.bench.worker(self.bench.trusted(), IMAGE);
        let (channel, mut ours) = tokio::io::duplex(1 << 16);
        let mut kill = self.kill.subscribe();
        tokio::spawn(async move {
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut ours, &mut theirs) => {}
                _ = kill.recv() => {}
            }
        });
        Ok(Started {
            connection: self.bench.connected_with(channel, self.side.clone()).await?,
            process: Box::new(()),
        })
    }

    async fn credentials(&self) -> Option<Credentials> {
        None
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_ends_is_started_again_and_no_batch_is_answered_wrongly() {
    let bench = Arc::new(Bench::new().await);
    let (kill, _) = tokio::sync::broadcast::channel(4);
    let starter = Arc::new(InProcess {
        bench: bench.clone(),
        starts: AtomicUsize::new(0),
        fail_first: 2,
        kill: kill.clone(),
        side: Arc::default(),
    });
    let supervisor = Supervisor::start(starter.clone(), 4);
    assert!(!supervisor.is_ready() && supervisor.known().is_err());
    let mut session = bench.session().await;
    let cards: Vec<String> = (0..2_000)
        .map(|n| session.seal("card", n.to_string().as_bytes()).unwrap())
        .collect();
    // It waits for the first worker.
    assert!(supervisor.reseal(bench.batch(&session, &cards)).await.is_ok());
    assert_eq!(
        (
            supervisor.known().unwrap().starts,
            starter.starts.load(Ordering::Relaxed)
        ),
        (1, 3)
    );
    let (mut good, mut kills) = (0, 0);
    let until = tokio::time::Instant::now() + Duration::from_secs(120);
    while good < 40 {
        assert!(tokio::time::Instant::now() < until, "{good} after {kills} kills");
        if good >= kills * 8 + 3 {
            kills += 1;
            let _ = kill.send(());
        }
        match supervisor.reseal(bench.batch(&session, &cards)).await {
            Ok(sealed) => {
                assert_eq!((sealed[0].values.view().len(), sealed[0].refused.len()), (2_000, 0));
                good += 1;
            }
            Err(error) => {
                assert!(error.is_retryable(), "{error}");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
    assert!(supervisor.known().unwrap().starts >= 5);
}
