//! A dataset, its keys, and workers in this process at the other end of a channel.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use sealflow::acl::oidc::TrustedIssuer;
use sealflow::audit::AuditError;
use sealflow::clock::{Clock as _, ManualClock, UnixMillis};
use sealflow::flow::direct::DirectSealer;
use sealflow::flow::enclave::{ClientBatch, ClientColumn, Resealer, ValueKey};
use sealflow::flow::hybrid::ClientKeys;
use sealflow::jose::rsa::RsaPublicJwk;
use sealflow::jose::{PrivateJwk, base64url};
use sealflow::keys::testing::{MemoryCatalogue, MemoryKms};
use sealflow::keys::{Catalogue, ClientKeyService as _, DomainKeys, OpeningKeys, RsaBits, SealingKeys};
use sealflow::policy::signed::sign;
use sealflow::policy::{CataloguePolicies, PolicySource, TrustedOwners, VerifiedPolicy, lease, publish, signed};
use sealflow::seal::UsageLimits;
use sealflow_client::Session;
use sealflow_enclave_host::{AttestationVerifier, ConnectError, Connection, Side, of_policy};
use sealflow_enclave_protocol::attestation::build::DevRoot;
use sealflow_enclave_protocol::attestation::{Document, Tier, Trust};
use sealflow_enclave_protocol::joints::{AttestError, Attester, Claims};
use sealflow_enclave_protocol::link::{Asker, Outgoing, write_frames};
use sealflow_enclave_protocol::message::Credentials;
use sealflow_enclave_protocol::wire::Malformed;
use sealflow_enclave_worker::catalogue::HostCatalogue;
use sealflow_enclave_worker::identity::{Fetch, Issuer, Prover};
use sealflow_enclave_worker::read::{Audit, Reading};
use sealflow_enclave_worker::serve::{self, Parts, Worker};
use sealflow_enclave_worker::vouch::Vouching;
use tokio::io::DuplexStream;

pub(crate) const DATA_ARN: &str = "arn:aws:kms:eu-central-1:111122223333:key/33333333-3333-3333-3333-333333333333";
pub(crate) const RSA_ARN: &str = "arn:aws:kms:eu-central-1:111122223333:key/44444444-4444-4444-4444-444444444444";
pub(crate) const PAIR_ARN: &str = "arn:aws:kms:eu-central-1:111122223333:key/55555555-5555-5555-5555-555555555555";
pub(crate) const NOW: UnixMillis = UnixMillis(1_800_000_000_000);
pub(crate) const HOUR: Duration = Duration::from_secs(3_600);

/// Asked for evidence with this nonce, a worker panics.
pub(crate) const PANICS: [u8; 32] = [0xdd; 32];

/// A root of its own that vouches for whatever it is told.
#[derive(Debug)]
pub(crate) struct Nsm {
    pub(crate) root: Arc<DevRoot>,
    pub(crate) image: [u8; 48],
    pub(crate) clock: Arc<ManualClock>,
}

impl Attester for Nsm {
    fn attest(&self, claims: &Claims<'_>) -> Result<Vec<u8>, AttestError> {
        assert_ne!(claims.nonce, Some(&PANICS[..]), "as a test wants it");
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
pub(crate) struct HostSide {
    pub(crate) lines: std::sync::Mutex<Vec<String>>,
    pub(crate) is_full: AtomicBool,
}

impl HostSide {
    pub(crate) fn lines(&self) -> Vec<String> {
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
pub(crate) struct WorkerSide(pub(crate) std::sync::Mutex<Vec<String>>);

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
pub(crate) struct TestIssuer(pub(crate) Ed25519KeyPair);

pub(crate) const ISSUER: &str = "https://login.example.com";

impl TestIssuer {
    pub(crate) fn trusted(&self) -> TrustedIssuer {
        TrustedIssuer::new(ISSUER, vec!["sealflow".to_owned()])
    }

    /// A token of `subject` for that audience, which commits to the key of that thumbprint.
    pub(crate) fn token(&self, subject: &str, audience: &str, nonce: &str) -> String {
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
pub(crate) struct Bench {
    pub(crate) issuer: Arc<TestIssuer>,
    pub(crate) kms: Arc<MemoryKms>,
    pub(crate) catalogue: Arc<MemoryCatalogue>,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) owner: PrivateJwk,
    pub(crate) root: Arc<DevRoot>,
    pub(crate) policy: Arc<VerifiedPolicy>,
}

pub(crate) fn yaml(version: u32, image: &[u8; 48]) -> String {
    let image: String = image.iter().map(|byte| format!("{byte:02x}")).collect();
    format!(
        "dataset: payments\nversion: {version}\nlease: required\nkeys: {{ regulated: {{ arn: \"{DATA_ARN}\" }} }}\nenclave: {{ keys: {{ web: {{ arn: \"{RSA_ARN}\" }} }}, measurements: {{ v1: {{ image: \"{image}\" }} }} }}\nacls: {{ a: {{ allow: [\"oidc:https://login.example.com#sub=ann\"] }} }}\ncolumns:\n  - {{ path: card, key: regulated, acl: a, flow: enclave }}\n  - {{ path: iban, key: regulated, acl: a, flow: enclave, client_sealed: optional, bind_row: id }}\n"
    )
}

pub(crate) const IMAGE: [u8; 48] = [0xa1; 48];

impl Bench {
    pub(crate) async fn new() -> Self {
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

    pub(crate) fn trusted(&self) -> TrustedOwners {
        TrustedOwners::everywhere(vec![self.owner.thumbprint()]).unwrap()
    }

    pub(crate) async fn lease(&self, span: Duration) {
        let jws = lease::sign(&self.policy, self.clock.now(), span, &self.owner).unwrap();
        let published = lease::publish(&*self.catalogue, &jws, &self.policy, &self.trusted(), self.clock.now()).await;
        published.unwrap();
    }

    /// A worker at the other end of the channel that comes back. It believes these owners.
    pub(crate) fn worker(&self, owners: TrustedOwners, image: [u8; 48]) -> (DuplexStream, Arc<WorkerSide>) {
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

    pub(crate) fn vouching(&self, image: [u8; 48]) -> Nsm {
        Nsm {
            root: self.root.clone(),
            image,
            clock: self.clock.clone(),
        }
    }

    pub(crate) fn verifier(&self) -> AttestationVerifier {
        let trust = Trust::with_dev_root(self.root.certificate()).unwrap();
        let rule = self.policy.policy().enclave.as_ref().unwrap();
        let measurements = rule.measurements.values().map(|measured| of_policy(measured).unwrap());
        AttestationVerifier::new(trust, measurements.collect(), self.clock.clone())
    }

    pub(crate) async fn connected(&self, channel: DuplexStream) -> Result<Connection, ConnectError> {
        self.connected_with(channel, Arc::default()).await
    }

    pub(crate) async fn connected_with(
        &self,
        channel: DuplexStream,
        side: Arc<HostSide>,
    ) -> Result<Connection, ConnectError> {
        let catalogue: Arc<dyn Catalogue> = self.catalogue.clone();
        Connection::open(channel, &self.verifier(), catalogue, |_| side).await
    }

    pub(crate) async fn session(&self) -> Session {
        let key = RsaPublicJwk::from_spki_der(&self.kms.public_key(RSA_ARN).await.unwrap()).unwrap();
        Session::begin(&key, "payments").unwrap()
    }

    /// A batch of cards under that session.
    pub(crate) fn batch(&self, session: &Session, cards: &[String]) -> ClientBatch {
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
