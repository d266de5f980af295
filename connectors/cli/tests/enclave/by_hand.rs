//! A host whose every step is the test's: the worker's own program, a catalogue that says what it is told to, jobs as they are wanted.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use sealflow::audit::AuditError;
use sealflow::clock::{Clock, UnixMillis};
use sealflow::flow::enclave::{ClientBatch, ClientColumn, EnclaveError, ResealedColumn, ValueKey};
use sealflow::jose::rsa::RsaPublicJwk;
use sealflow::keys::Catalogue as _;
use sealflow::keys::testing::MemoryCatalogue;
use sealflow::policy::{TrustedOwners, VerifiedPolicy, signed};
use sealflow::seal::value::write_text;
use sealflow::secret::SecretString;
use sealflow_client::{PrivateKey, RsaBits, Session};
use sealflow_enclave_host::channel::Endpoint;
use sealflow_enclave_host::launch::{Isolation, Launcher, ProgramCommand};
use sealflow_enclave_host::nsm::certificate_of;
use sealflow_enclave_host::{
    AttestationVerifier, AuditSink, CredentialSource, EndpointStarter, SoftwareStarter, StartError, Started, Starter,
    Terms,
};
use sealflow_enclave_protocol::attestation::Trust;
use sealflow_enclave_protocol::measurements::{Measurements, Register};
use sealflow_enclave_protocol::message::{Credentials, Decision, Outcome, Proof, ReadAnswer, ReadJob, What};
use sealflow_kms::{AwsKms, KmsConfig, StaticCredentials};
use sealflow_testbed::Instance;

use crate::bench::{Bench, SERVER_ID, binary};

/// A host, and the worker that it has started.
pub(crate) struct Host {
    pub(crate) catalogue: Arc<MemoryCatalogue>,
    worker: Started,
    /// What started the worker, where that was another program.
    _program: Option<Instance>,
}

/// What came of a read of one value.
pub(crate) struct Shown {
    /// What is shown in the place of the value.
    pub(crate) text: String,
    pub(crate) outcomes: Vec<(String, Outcome)>,
}

/// What the worker answers to one job.
pub(crate) struct Answered {
    pub(crate) shown: Vec<Option<Vec<u8>>>,
    pub(crate) proof: String,
    pub(crate) outcomes: Vec<(String, Outcome)>,
}

impl Host {
    /// A worker of that image, over a catalogue with the bench's policy and lease.
    pub(crate) fn start(bench: &Bench, image: &str) -> Result<Self, StartError> {
        let catalogue = Arc::new(MemoryCatalogue::new());
        let terms = terms(bench, &catalogue, &[]);
        let root: std::ffi::OsString = bench.root.path().into();
        let nsm = ProgramCommand {
            program: binary().to_owned(),
            arguments: vec!["enclave".into(), "nsm".into(), "--root-dir".into(), root],
        };
        let starter = ProgramCommand {
            program: binary().to_owned(),
            arguments: vec!["enclave".into(), "start".into()],
        };
        let launcher = Launcher::new(&bench.site.path().join(image), nsm).unwrap();
        let launcher = launcher.with_starter(starter).with_isolation(Isolation::IfAvailable);
        Self::of(bench, &SoftwareStarter::new(launcher, terms), catalogue, None)
    }

    /// The same behind the socket of `sealflow enclave run`. `relay` are further servers that the worker may reach.
    pub(crate) fn behind_socket(bench: &Bench, relay: &[String]) -> Self {
        let (socket, program) = bench.run_worker();
        let catalogue = Arc::new(MemoryCatalogue::new());
        let terms = terms(bench, &catalogue, relay);
        let starter = EndpointStarter::new(Endpoint::Unix { path: socket }, terms);
        Self::of(bench, &starter, catalogue, Some(program)).unwrap()
    }

    fn of(
        bench: &Bench,
        starter: &dyn Starter,
        catalogue: Arc<MemoryCatalogue>,
        program: Option<Instance>,
    ) -> Result<Self, StartError> {
        copy(bench, &catalogue);
        let worker = bench.site.block_on(async {
            let worker = starter.start().await?;
            let credentials = starter.credentials().await.unwrap();
            worker.connection.credentials(&credentials).await.unwrap();
            Ok::<_, StartError>(worker)
        })?;
        Ok(Self {
            catalogue,
            worker,
            _program: program,
        })
    }

    /// The key that the worker signs its answers with.
    pub(crate) fn signer(&self) -> &str {
        self.worker.connection.signer()
    }

    /// Has a job of reading done.
    pub(crate) fn ask(&self, bench: &Bench, job: &ReadJob<'_>) -> Result<Answered, EnclaveError> {
        let frame = bench.site.block_on(self.worker.connection.read(job))?;
        let answer = ReadAnswer::read(&frame.body).unwrap();
        let outcome = |decision: &Decision| (decision.label.clone(), decision.outcome);
        Ok(Answered {
            shown: answer.shown.iter().map(|shown| shown.map(<[u8]>::to_vec)).collect(),
            proof: answer.proof.to_owned(),
            outcomes: answer.decisions.iter().map(outcome).collect(),
        })
    }

    /// Has cards sealed again that this session sealed.
    pub(crate) fn reseal(
        &self,
        bench: &Bench,
        yaml: &str,
        session: &mut Session,
        cards: &[&str],
    ) -> Result<ResealedColumn, EnclaveError> {
        let mut column = ClientColumn::new("card", true, false);
        for card in cards {
            let sealed = session.seal("card", format!("\"{card}\"").as_bytes()).unwrap();
            column.values.push(sealed.as_bytes()).unwrap();
            column.keys.push(ValueKey::Session(0));
        }
        let batch = ClientBatch {
            policy: verified(bench, yaml),
            sessions: vec![session.token().to_owned()],
            columns: vec![column],
        };
        let columns = bench.site.block_on(self.worker.connection.reseal(&batch))?;
        Ok(columns.into_iter().next().unwrap())
    }

    /// Has one value opened for a reader, whose proof is of a request for `server` that commits to the first key, while the job names
    /// the second.
    pub(crate) fn read_as(
        &self,
        bench: &Bench,
        (role, server): (&str, &str),
        (proved, sealed_to): (&RsaPublicJwk, &RsaPublicJwk),
        (envelope, text): (&[u8], &str),
    ) -> Result<Shown, EnclaveError> {
        let endpoint = bench.endpoint();
        let request = bench.site.block_on(async {
            let kms = AwsKms::new(&config(bench, role)).await.unwrap();
            let endpoint = Some(endpoint.trim_end_matches('/'));
            let presigned = kms.presign_identity(endpoint, server, Some(proved.thumbprint()), SystemTime::now());
            presigned.await.unwrap()
        });
        let jwk = sealed_to.to_json();
        let job = ReadJob {
            dataset: "payments",
            purpose: None,
            proof: Proof::Sts(request.expose()),
            seal_to: jwk.as_bytes(),
            nonce: b"the reader's own nonce",
            envelopes: vec![envelope],
            what: What::Values(vec![(Some("card"), text)]),
        };
        let answered = self.ask(bench, &job)?;
        Ok(Shown {
            text: String::from_utf8(answered.shown[0].clone().unwrap()).unwrap(),
            outcomes: answered.outcomes,
        })
    }

    /// The same for a reader who asks for what is theirs.
    pub(crate) fn read(
        &self,
        bench: &Bench,
        role: &str,
        reader: &RsaPublicJwk,
        what: (&[u8], &str),
    ) -> Result<Shown, EnclaveError> {
        self.read_as(bench, (role, SERVER_ID), (reader, reader), what)
    }
}

/// On what this host works with a worker.
fn terms(bench: &Bench, catalogue: &Arc<MemoryCatalogue>, relay: &[String]) -> Terms {
    let measured: [u8; 48] = bench.image;
    let digits = hex::encode(measured).parse().unwrap();
    let measurements = Measurements::new(vec![(Register::Image, digits)]).unwrap();
    let trust = Trust::with_dev_root(&certificate_of(bench.root.path()).unwrap()).unwrap();
    let mut allowed = vec![bench.kms_host()];
    allowed.extend_from_slice(relay);
    Terms {
        verifier: Arc::new(AttestationVerifier::new(trust, vec![measurements], Arc::new(Machine))),
        catalogue: Arc::clone(catalogue) as _,
        allowed: allowed.iter().map(|host| host.parse().unwrap()).collect(),
        credentials: Arc::new(Pipeline),
        audit: Arc::new(Nowhere),
    }
}

/// The policies and leases of the bench's catalogue, as they are now.
pub(crate) fn copy(bench: &Bench, catalogue: &MemoryCatalogue) {
    let root = bench.site.catalogue();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
            catalogue.overwrite(&name, &std::fs::read(&path).unwrap());
        }
    }
}

/// Everything below that folder of the catalogue is gone.
pub(crate) fn forget(bench: &Bench, catalogue: &MemoryCatalogue, folder: &str) {
    for name in bench.site.block_on(catalogue.list(folder)).unwrap() {
        catalogue.remove(&name);
    }
}

pub(crate) fn verified(bench: &Bench, yaml: &str) -> Arc<VerifiedPolicy> {
    let trusted = TrustedOwners::everywhere(vec![bench.site.owner()]).unwrap();
    Arc::new(signed::verify(&bench.site.sign(yaml), &trusted).unwrap())
}

/// The text form of the first value.
pub(crate) fn text(column: &sealflow::seal::SealedColumn) -> String {
    let mut text = Vec::new();
    write_text(column.view().iter().next().unwrap().unwrap(), &mut text);
    String::from_utf8(text).unwrap()
}

/// A header with that envelope alone.
pub(crate) fn header(envelope: &[u8]) -> Vec<u8> {
    sealflow::keys::envelope::write_header([envelope].into_iter())
}

/// A reader's key.
pub(crate) fn reader() -> (PrivateKey, RsaPublicJwk) {
    let key = PrivateKey::generate(RsaBits::Rsa2048).unwrap();
    let public = RsaPublicJwk::from_json(key.public().unwrap().to_json().as_bytes()).unwrap();
    (key, public)
}

/// How the KMS is reached as that role, from this process.
pub(crate) fn config(bench: &Bench, role: &str) -> KmsConfig {
    KmsConfig {
        region: Some("eu-central-1".to_owned()),
        endpoint: Some(bench.endpoint()),
        credentials: Some(StaticCredentials {
            access_key_id: format!("TEST{}", role.to_uppercase()),
            secret_access_key: SecretString::new(format!("tests-only-{role}")),
            session_token: None,
        }),
        ..KmsConfig::default()
    }
}

/// AWS's client, as that role.
pub(crate) fn kms(bench: &Bench, role: &str) -> aws_sdk_kms::Client {
    use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore, rustls_provider::CryptoMode};
    let trusted = TrustStore::empty().with_pem_certificate(bench.site.authority().into_bytes());
    let tls = TlsContext::builder().with_trust_store(trusted).build().unwrap();
    let http = aws_smithy_http_client::Builder::new().tls_provider(Provider::Rustls(CryptoMode::AwsLc));
    let (id, secret) = (format!("TEST{}", role.to_uppercase()), format!("tests-only-{role}"));
    let config = aws_sdk_kms::Config::builder()
        .behavior_version(aws_sdk_kms::config::BehaviorVersion::latest())
        .region(aws_sdk_kms::config::Region::new("eu-central-1"))
        .credentials_provider(aws_sdk_kms::config::Credentials::new(id, secret, None, None, "test"))
        .endpoint_url(bench.endpoint())
        .http_client(http.tls_context(tls).build_https());
    aws_sdk_kms::Client::from_conf(config.build())
}

/// The host's own credentials: they may do everything at the KMS that its key policies let a host do.
struct Pipeline;

#[async_trait]
impl CredentialSource for Pipeline {
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
struct Machine;

impl Clock for Machine {
    fn now(&self) -> UnixMillis {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        UnixMillis(u64::try_from(since.as_millis()).unwrap())
    }
}
