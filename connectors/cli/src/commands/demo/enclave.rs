//! A column that the backend never sees: a client seals it, a worker in the software tier opens and seals it again, and answers to the
//! reader's own key.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use sealflow::acl::Identity;
use sealflow::audit::AuditError;
use sealflow::clock::{Clock, UnixMillis};
use sealflow::flow::enclave::answer::AnswerClaims;
use sealflow::jose::Thumbprint;
use sealflow::keys::{Catalogue, KEYS_HEADER, OpeningKeys, RsaBits};
use sealflow::pipeline::{Format, KeysPlacement, Reader, Record, Route, SealTransform, apply_all};
use sealflow::policy::{FixedPolicies, OwnerKey, lease};
use sealflow_client::{PrivateKey, RsaPublicJwk, Session};
use sealflow_enclave_host::build::{BuildRequest, BuildTier, build};
use sealflow_enclave_host::launch::{Isolation, Launcher, ProgramCommand};
use sealflow_enclave_host::nsm::{Root, certificate_of};
use sealflow_enclave_host::{
    AttestationVerifier, AuditSink, CredentialSource, SoftwareStarter, Starter, Supervisor, Terms,
};
use sealflow_enclave_protocol::attestation::Trust;
use sealflow_enclave_protocol::measurements::{Measurements, Register};
use sealflow_enclave_protocol::message::{Credentials, Proof, ReadAnswer, ReadJob, What};
use sealflow_kms::{AwsKms, KmsConfig, StaticCredentials};
use sealflow_local_kms::{KeySpec, RunningServer, Server, ServerConfig, TlsConfig};
use zeroize::Zeroizing;

use super::bench::{Bench, Who, principal, signed_policy};
use super::client::{record, shortened, text};
use super::stream::wrong;
use crate::clock::MachineClock;
use crate::failure::{Failure, Result};

const RECORDS: u32 = 1_000;
const AGE: Duration = Duration::from_secs(300);
const PATIENCE: Duration = Duration::from_secs(60);
const REGULATED: &str = "00000000-0000-4000-8000-0000000000e1";
const CLIENTS: &str = "00000000-0000-4000-8000-0000000000e2";
const KEYS: &str = "arn:aws:kms:eu-central-1:111122223333:key/";
/// What the worker wants in presigned requests.
const SERVER_ID: &str = "enclave.demo";
const DATASET: &str = "claims";

/// What it showed.
pub(super) struct Shown {
    pub(super) records: u32,
    /// A record as the client sends it, shortened.
    pub(super) sent: String,
    pub(super) stored: String,
    /// The measurement that keys are released to.
    pub(super) image: String,
    /// How the worker proves what it is.
    pub(super) tier: String,
    /// What it asked of KMS for all of them.
    pub(super) requests: u64,
    /// What the backend reads with all its rights.
    pub(super) by_backend: String,
    /// What the reader's own key opens of the worker's answer.
    pub(super) opened: String,
    /// What becomes of a request into which the backend puts a key of its own.
    pub(super) swapped: String,
    /// What becomes of a worker that trusts somebody else.
    pub(super) other: String,
}

/// Everything that the enclave runs on.
struct Site {
    kms: RunningServer,
    authority: String,
    root: PathBuf,
    owner: OwnerKey,
    catalogue: Arc<dyn Catalogue>,
}

fn mistake(error: impl std::fmt::Display) -> Failure {
    wrong(&error.to_string())
}

/// Seals as a client, passes a pipeline that carries, reads as somebody whom the worker proves.
pub(super) async fn run(bench: &Bench, worker: &Path) -> Result<Shown> {
    let site = Site::start(bench).await?;
    let folder = bench.enclave_folder();
    let image = site.image(worker, &folder.join("worker.img"), &site.owner)?;
    for (id, spec) in [
        (REGULATED, KeySpec::Symmetric),
        (CLIENTS, KeySpec::Rsa(RsaBits::Rsa2048)),
    ] {
        let policy = key_policy(&image);
        let made = site
            .kms
            .create_key_of(spec, Some(id), "demo enclave", Some(&policy))
            .await;
        made.map_err(mistake)?;
    }
    let letters = PrivateKey::generate(RsaBits::Rsa2048).map_err(mistake)?;
    let yaml = policy(&image, &letters.public().map_err(mistake)?);
    let (policy, _) = signed_policy(&yaml, &site.owner)?;
    site.publish(&policy).await?;
    let policy = Arc::new(policy);

    let supervisor = Supervisor::start(site.starter(&folder.join("worker.img"), &image)?, 4);
    if tokio::time::timeout(PATIENCE, supervisor.ready()).await.is_err() {
        return Err(mistake(
            supervisor
                .why_not()
                .unwrap_or_else(|| "the worker does not start".to_owned()),
        ));
    }
    let known = supervisor.known().map_err(mistake)?;

    // The client: it seals to a key whose private half KMS uses for that image alone.
    let der = site.kms.public_key(&format!("{KEYS}{CLIENTS}")).map_err(mistake)?;
    let to = RsaPublicJwk::from_spki_der(&der).map_err(mistake)?;
    let mut session = Session::begin(&to, DATASET).map_err(mistake)?;
    let records = (0..RECORDS).map(|n| record(n, &mut session, ["diagnosis", "diagnosis"], &format!("\"F32.{n}\"")));
    let records: Vec<Record> = records.collect::<Result<_>>()?;
    let sent = text(&records[0]);

    // The backend carries.
    let sealer = bench.sealer(bench.service(Who::Pipeline).await?);
    let seal = SealTransform::new(Arc::clone(&policy), Format::Json, KeysPlacement::Header, sealer).map_err(mistake)?;
    let seal = seal.with_enclave(Arc::new(supervisor.clone()));
    let outcomes = apply_all(&seal, &records).await?;
    if outcomes.len() != RECORDS as usize || outcomes.iter().any(|outcome| outcome.route != Route::Target) {
        return Err(wrong("a value for the enclave did not pass"));
    }
    let stored: Vec<Record> = outcomes.into_iter().map(|outcome| outcome.record).collect();
    if !stored
        .iter()
        .all(|record| text(record).contains(r#""diagnosis":"sf1."#))
    {
        return Err(wrong("a value is not sealed in a stored record"));
    }
    let requests = ["Decrypt", "GenerateDataKey"].map(|operation| site.kms.requests(operation));

    let by_backend = by_backend(bench, &policy, &stored[0]).await?;
    let (opened, swapped) = site.by_worker(&supervisor, &stored[0]).await?;
    let other = site.other_owner(worker, &folder.join("other.img"), &image).await?;
    Ok(Shown {
        records: RECORDS,
        sent: shortened(&sent),
        stored: text(&stored[0]),
        image,
        tier: known.tier,
        requests: requests.iter().sum(),
        by_backend,
        opened,
        swapped,
        other,
    })
}

/// The backend's own reader, as somebody who is in the ACL.
async fn by_backend(bench: &Bench, policy: &Arc<sealflow::policy::VerifiedPolicy>, stored: &Record) -> Result<String> {
    let policies = Arc::new(FixedPolicies::new(vec![Arc::clone(policy)]));
    let service = bench.service(Who::Auditor).await?;
    let clock: Arc<dyn Clock> = Arc::new(MachineClock);
    let opening = OpeningKeys::new(
        service.clone(),
        bench.catalogue(),
        policies.clone(),
        Arc::clone(&clock),
        AGE,
        100,
    );
    let reader = Reader::new(DATASET, Format::Json, policies, opening, bench.sealer(service).domains);
    let who = Identity::from_arn(&Who::Auditor.arn()).map_err(mistake)?;
    let reading = reader
        .read(vec![stored.clone()], &who, None, clock.now())
        .await
        .map_err(mistake)?;
    let shown = reading.records.into_iter().flatten().next().map(|record| text(&record));
    match shown {
        Some(shown) if shown == r#"{"id":0,"diagnosis":null}"# => Ok(shown),
        _ => Err(wrong("the backend reads a column of the enclave")),
    }
}

impl Site {
    /// A KMS that speaks TLS, since TLS has to end in the worker, and believes evidence of the development root.
    async fn start(bench: &Bench) -> Result<Self> {
        let folder = bench.enclave_folder();
        std::fs::create_dir_all(&folder).map_err(|error| Failure::io("cannot make", &folder, &error))?;
        let root = folder.join("root");
        Root::load_or_make(&root, MachineClock.now().0).map_err(mistake)?;
        let file = |name: &str, text: String| {
            let path = folder.join(name);
            // One of them is a private key, though of nothing that outlives the demo.
            let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
            let written = made.and_then(|mut file| file.write_all(text.as_bytes()));
            written.map_err(|error| Failure::io("cannot write", &path, &error))?;
            Ok::<_, Failure>(path)
        };
        let names = vec!["127.0.0.1".to_owned()];
        let made = rcgen::generate_simple_self_signed(names).map_err(mistake)?;
        let tls = TlsConfig {
            certificate: file("kms.pem", made.cert.pem())?,
            key: file("kms.key", made.signing_key.serialize_pem())?,
        };
        let config = ServerConfig {
            tls: Some(tls),
            attestation_root: Some(file("dev-root.pem", pem(&certificate_of(&root).map_err(mistake)?))?),
            ..ServerConfig::in_memory(vec![principal(Who::Pipeline), principal(Who::Auditor)])
        };
        Ok(Self {
            kms: Server::start(config).await.map_err(mistake)?,
            authority: made.cert.pem(),
            root,
            owner: OwnerKey::generate().map_err(mistake)?,
            catalogue: bench.catalogue(),
        })
    }

    /// An image of the worker that trusts this owner; its measurement.
    fn image(&self, worker: &Path, image: &Path, owner: &OwnerKey) -> Result<String> {
        let endpoint = self.kms.endpoint();
        let (endpoint, owner) = (endpoint.trim_end_matches('/'), owner.thumbprint());
        let authority = self.authority.replace('\n', "\\n");
        let yaml = format!(
            "owners: [\"{DATASET}={owner}\"]\nkms: {{ keys: [\"{KEYS}*\"], endpoint: \"{endpoint}\" }}\nkms_root: \"{authority}\"\n\
             sts: {{ server_id: {SERVER_ID}, origins: [\"{endpoint}\"], root: \"{authority}\" }}\n\
             sandbox: {{ memory_lock: if-available, landlock: if-available, namespaces: if-available }}\n"
        );
        let configuration = image.with_extension("yaml");
        std::fs::write(&configuration, yaml).map_err(|error| Failure::io("cannot write", &configuration, &error))?;
        let request = BuildRequest {
            worker: worker.to_owned(),
            configuration,
            output: image.to_owned(),
            tier: BuildTier::Software,
        };
        let built = build(&request).map_err(mistake)?;
        let measured = serde_json::to_value(&built.measurements).map_err(mistake)?;
        measured["image"]
            .as_str()
            .map(str::to_owned)
            .ok_or_else(|| wrong("an image without measurement"))
    }

    /// Starts workers of that file, and believes the one image.
    fn starter(&self, file: &Path, image: &str) -> Result<Arc<dyn Starter>> {
        let program = std::env::current_exe().map_err(mistake)?;
        let arguments = vec![
            "enclave".into(),
            "nsm".into(),
            "--root-dir".into(),
            self.root.clone().into(),
        ];
        let launcher = Launcher::new(file, ProgramCommand { program, arguments }).map_err(mistake)?;
        let trust = Trust::with_dev_root(&certificate_of(&self.root).map_err(mistake)?).map_err(mistake)?;
        let measurement = image.parse().map_err(|_| wrong("a measurement that is none"))?;
        let measurements = Measurements::new(vec![(Register::Image, measurement)]).map_err(mistake)?;
        let endpoint = self.kms.endpoint();
        let host = endpoint.trim_start_matches("https://").trim_end_matches('/');
        let terms = Terms {
            verifier: Arc::new(AttestationVerifier::new(
                trust,
                vec![measurements],
                Arc::new(MachineClock),
            )),
            catalogue: Arc::clone(&self.catalogue),
            allowed: vec![host.parse().map_err(mistake)?],
            credentials: Arc::new(OfPipeline),
            audit: Arc::new(NotKept),
        };
        let launcher = launcher.with_isolation(Isolation::IfAvailable);
        Ok(Arc::new(SoftwareStarter::new(launcher, terms)))
    }

    async fn publish(&self, policy: &sealflow::policy::VerifiedPolicy) -> Result<()> {
        let now: UnixMillis = MachineClock.now();
        let lease = lease::sign(policy, now, Duration::from_secs(3_600), &self.owner).map_err(mistake)?;
        let ends = now.0 / 1_000 + 3_600;
        let jws = policy.jws().ok_or_else(|| wrong("a policy that nobody signed"))?;
        for (path, document) in [
            (format!("policies/{DATASET}/0000000001.jws"), jws),
            (format!("leases/{DATASET}/0000000001/{ends:012}.jws"), lease.as_str()),
        ] {
            self.catalogue
                .put_if_absent(&path, document.as_bytes())
                .await
                .map_err(mistake)?;
        }
        Ok(())
    }

    /// What the worker answers to a reader, and to a backend that puts its own key into the reader's request.
    async fn by_worker(&self, supervisor: &Supervisor, stored: &Record) -> Result<(String, String)> {
        let (reader, backend) = (
            PrivateKey::generate(RsaBits::Rsa2048).map_err(mistake)?,
            PrivateKey::generate(RsaBits::Rsa2048).map_err(mistake)?,
        );
        let (public, of_backend) = (reader.public().map_err(mistake)?, backend.public().map_err(mistake)?);
        let endpoint = self.kms.endpoint();
        let config = KmsConfig {
            region: Some("eu-central-1".to_owned()),
            endpoint: Some(endpoint.clone()),
            credentials: Some(StaticCredentials {
                access_key_id: principal(Who::Auditor).access_key_id,
                secret_access_key: principal(Who::Auditor).secret_access_key,
                session_token: None,
            }),
            ..KmsConfig::default()
        };
        let client = AwsKms::new(&config).await.map_err(mistake)?;
        let origin = Some(endpoint.trim_end_matches('/'));
        let request = client.presign_identity(origin, SERVER_ID, Some(public.thumbprint()), SystemTime::now());
        let request = request.await.map_err(mistake)?;
        let envelopes = stored.headers.iter().filter(|header| header.name == KEYS_HEADER);
        let envelopes: Vec<&[u8]> = envelopes.filter_map(|header| header.value.as_deref()).collect();
        let (own, other) = (public.to_json(), of_backend.to_json());
        let mut nonce = [0; 32];
        getrandom::fill(&mut nonce).map_err(mistake)?;
        let job = |seal_to| ReadJob {
            dataset: DATASET,
            purpose: None,
            proof: Proof::Sts(request.expose()),
            seal_to,
            nonce: &nonce,
            envelopes: envelopes.clone(),
            what: What::Records(vec![stored.value.as_deref().unwrap_or_default()]),
        };
        let (frame, worker) = supervisor.read(&job(own.as_bytes())).await.map_err(mistake)?;
        let answer = ReadAnswer::read(&frame.body).map_err(mistake)?;
        let signer: Thumbprint = worker.signer().parse().map_err(mistake)?;
        let question = (DATASET, public.thumbprint(), &nonce[..]);
        AnswerClaims::verify(answer.proof, signer, question, &answer.shown).map_err(mistake)?;
        let shown: serde_json::Value = match answer.shown.first() {
            Some(Some(shown)) => serde_json::from_slice(shown).map_err(mistake)?,
            _ => return Err(wrong("the worker shows nothing")),
        };
        let jwe = shown["diagnosis"]
            .as_str()
            .ok_or_else(|| wrong("the worker opens nothing"))?;
        let opened = reader.open(jwe).map_err(mistake)?;
        let opened = String::from_utf8_lossy(opened.expose()).into_owned();
        if opened != "\"F32.0\"" || backend.open(jwe).is_ok() {
            return Err(wrong("the answer opens with another key than the reader's"));
        }
        match supervisor.read(&job(other.as_bytes())).await {
            Ok(_) => Err(wrong("the worker answers to a key that the reader did not prove")),
            Err(error) => Ok((opened, error.to_string())),
        }
    }

    /// A worker that goes by the policies of somebody else.
    async fn other_owner(&self, worker: &Path, file: &Path, image: &str) -> Result<String> {
        let other = OwnerKey::generate().map_err(mistake)?;
        if self.image(worker, file, &other)? == image {
            return Err(wrong("another configuration has the same measurement"));
        }
        match self.starter(file, image)?.start().await {
            Ok(_) => Err(wrong("another image is believed")),
            Err(error) => Ok(error.to_string()),
        }
    }
}

fn policy(image: &str, letters: &RsaPublicJwk) -> String {
    let (letters, auditor) = (letters.to_json(), Who::Auditor.arn());
    format!(
        "dataset: {DATASET}\nversion: 1\nlease: required\nkeys: {{ regulated: {{ arn: \"{KEYS}{REGULATED}\" }} }}\n\
         enclave: {{ keys: {{ web: {{ arn: \"{KEYS}{CLIENTS}\" }} }}, measurements: {{ v1: {{ image: \"{image}\" }} }} }}\n\
         acls: {{ doctors: {{ allow: [\"{auditor}\"] }} }}\n\
         columns: [{{ path: diagnosis, key: regulated, acl: doctors, flow: enclave }}]\n\
         dead_letters: {{ recipient: {letters} }}\n"
    )
}

/// The account may do everything, but nobody gets plaintext without evidence of this image.
fn key_policy(image: &str) -> String {
    let everybody = serde_json::json!({ "AWS": "*" });
    let statements = serde_json::json!([
        { "Effect": "Allow", "Principal": { "AWS": "arn:aws:iam::111122223333:root" }, "Action": "kms:*", "Resource": "*" },
        { "Effect": "Deny", "Principal": everybody, "Resource": "*", "Action": ["kms:CreateGrant", "kms:Encrypt",
          "kms:GenerateDataKeyPairWithoutPlaintext", "kms:GenerateDataKeyWithoutPlaintext", "kms:ReEncrypt*"] },
        { "Effect": "Deny", "Principal": everybody, "Resource": "*", "Action": ["kms:Decrypt", "kms:DeriveSharedSecret",
          "kms:GenerateDataKey", "kms:GenerateDataKeyPair"],
          "Condition": { "StringNotEqualsIgnoreCase": { "kms:RecipientAttestation:ImageSha384": image } } },
    ]);
    serde_json::json!({ "Version": "2012-10-17", "Statement": statements }).to_string()
}

fn pem(certificate: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(certificate);
    format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
}

struct OfPipeline;

#[async_trait]
impl CredentialSource for OfPipeline {
    async fn credentials(&self) -> Option<Credentials> {
        let principal = principal(Who::Pipeline);
        Some(Credentials {
            access_key_id: principal.access_key_id,
            secret_access_key: Zeroizing::new(principal.secret_access_key.expose().to_owned()),
            session_token: None,
            expires_ms: None,
        })
    }
}

/// The demo shows what is decided, and keeps no log of it.
struct NotKept;

impl AuditSink for NotKept {
    fn keep(&self, _: &[u8]) -> std::result::Result<(), AuditError> {
        Ok(())
    }
}
