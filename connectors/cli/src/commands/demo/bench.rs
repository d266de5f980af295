//! What the demo runs on: embedded Kafka, development KMS with four principals, a catalogue folder, a signed policy.

use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use rdkafka::mocking::MockCluster;
use sealflow::clock::Clock;
use sealflow::flow::direct::DirectSealer;
use sealflow::keys::{Catalogue, ClientKeyService, DomainKeys, KeyService, OpeningKeys, RsaBits, SealingKeys};
use sealflow::pipeline::{Format, KeysPlacement, OpenTransform, SealTransform};
use sealflow::policy::{FixedPolicies, OwnerKey, TrustedOwners, VerifiedPolicy, signed};
use sealflow::seal::UsageLimits;
use sealflow::secret::SecretString;
use sealflow_kms::{AwsKms, KmsConfig, StaticCredentials};
use sealflow_local_kms::{KeySpec, Principal, RunningServer, Server, ServerConfig};
use sealflow_storage::{CatalogueConfig, Location};

use crate::clock::MachineClock;
use crate::failure::{Exit, Failure, Result};

/// Partitions of each topic. The mock cluster keeps 5 MiB of each, so records are spread and read as they come.
pub(super) const PARTITIONS: i32 = 24;
/// Topics: in clear, sealed, opened again, dead letters; and in clear, on the way into a table.
pub(super) const TOPICS: [&str; 5] = [
    "payments",
    "payments.sealed",
    "payments.opened",
    "payments.dead",
    "payments.lake",
];

const ACCOUNT_ROLE: &str = "arn:aws:iam::111122223333:role/";
const KEY_ID: &str = "00000000-0000-4000-8000-000000000001";
const RSA_ID: &str = "00000000-0000-4000-8000-0000000000a1";

/// Who asks the KMS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    /// Seals and opens.
    Pipeline,
    /// Is in every ACL.
    Auditor,
    /// Is in one ACL.
    Support,
    /// Has credentials, but no rights at the key, and is in no ACL.
    Intern,
}

impl Who {
    const ALL: [Self; 4] = [Self::Pipeline, Self::Auditor, Self::Support, Self::Intern];

    pub(super) fn role(self) -> &'static str {
        match self {
            Self::Pipeline => "pipeline",
            Self::Auditor => "auditor",
            Self::Support => "support",
            Self::Intern => "intern",
        }
    }

    pub(super) fn arn(self) -> String {
        format!("{ACCOUNT_ROLE}{}", self.role())
    }
}

/// A temporary folder that is removed at the end.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        // Left behind it would only take room: it holds no plaintext and no key.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// librdkafka's mock cluster, on a thread of its own because it may not move between threads.
struct EmbeddedKafka {
    brokers: String,
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl EmbeddedKafka {
    fn start() -> Result<Self> {
        let (stop, stopped) = mpsc::channel();
        let (started, start) = mpsc::channel();
        let thread = std::thread::spawn(move || match cluster() {
            Ok(cluster) => {
                // Nobody waits any more if this fails, and then `recv` returns at once.
                let _ = started.send(Ok(cluster.bootstrap_servers()));
                let _ = stopped.recv();
            }
            Err(error) => {
                let _ = started.send(Err(error));
            }
        });
        let brokers = start.recv().unwrap_or_else(|error| Err(error.to_string()));
        let brokers = brokers.map_err(broken("the embedded Kafka does not start"))?;
        Ok(Self {
            brokers,
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for EmbeddedKafka {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn cluster() -> Result<MockCluster<'static, rdkafka::producer::DefaultProducerContext>, String> {
    let cluster = MockCluster::new(1).map_err(|error| error.to_string())?;
    for topic in TOPICS {
        cluster
            .create_topic(topic, PARTITIONS, 1)
            .map_err(|error| error.to_string())?;
    }
    Ok(cluster)
}

/// Everything that the demo runs on.
pub(super) struct Bench {
    kafka: EmbeddedKafka,
    kms: RunningServer,
    catalogue: Arc<dyn Catalogue>,
    pub(super) policy: Arc<VerifiedPolicy>,
    pub(super) trusted: Arc<TrustedOwners>,
    pub(super) key_arn: String,
    pub(super) owner: String,
    folder: Folder,
}

fn broken(what: &'static str) -> impl Fn(String) -> Failure {
    move |error| {
        Failure::new(
            Exit::Internal,
            format_args!("{what}: {error}"),
            "the demo needs nothing but this machine: please report it",
        )
    }
}

impl Bench {
    pub(super) async fn start() -> Result<Self> {
        let kafka = EmbeddedKafka::start()?;
        let principals = Who::ALL.map(principal).to_vec();
        let kms = Server::start(ServerConfig::in_memory(principals)).await;
        let kms = kms.map_err(|error| broken("the development KMS does not start")(error.to_string()))?;
        let key_arn = kms.create_key(Some(KEY_ID), "demo", Some(&key_policy()));
        let key_arn = key_arn.map_err(|error| broken("a KMS key cannot be made")(error.to_string()))?;
        let folder = Folder(temporary_folder()?);
        let catalogue = CatalogueConfig::from(Location::Folder(folder.0.join("catalogue")))
            .open()
            .await;
        let catalogue = catalogue.map_err(|error| broken("the catalogue cannot be opened")(error.to_string()))?;
        let owner = OwnerKey::generate().map_err(|error| broken("an owner key cannot be made")(error.to_string()))?;
        let (policy, trusted) = signed_policy(&policy_yaml(&key_arn), &owner)?;
        Ok(Self {
            kafka,
            kms,
            catalogue,
            policy: Arc::new(policy),
            trusted: Arc::new(trusted),
            key_arn,
            owner: owner.thumbprint().to_string(),
            folder,
        })
    }

    pub(super) fn brokers(&self) -> String {
        self.kafka.brokers.clone()
    }

    /// The folder of the table.
    pub(super) fn lake(&self) -> PathBuf {
        self.folder.0.join("lake")
    }

    /// The folder of what belongs to the enclave.
    #[cfg(feature = "dev-software-nsm")]
    pub(super) fn enclave_folder(&self) -> PathBuf {
        self.folder.0.join("enclave")
    }

    pub(super) fn catalogue(&self) -> Arc<dyn Catalogue> {
        Arc::clone(&self.catalogue)
    }

    pub(super) fn endpoint(&self) -> String {
        self.kms.endpoint()
    }

    pub(super) fn data_keys_generated(&self) -> u64 {
        self.kms.requests("GenerateDataKey")
    }

    /// How often the KMS was asked to open something.
    pub(super) fn decrypts(&self) -> u64 {
        self.kms.requests("Decrypt")
    }

    /// An RSA key that clients seal to; its ARN.
    pub(super) async fn client_key(&self) -> Result<String> {
        let (spec, policy) = (KeySpec::Rsa(RsaBits::Rsa2048), client_key_policy());
        let made = self
            .kms
            .create_key_of(spec, Some(RSA_ID), "demo clients", Some(&policy));
        made.await
            .map_err(|error| broken("an RSA key cannot be made")(error.to_string()))
    }

    /// A sealing transform as `who`.
    pub(super) async fn seal_transform(&self, who: Who) -> Result<SealTransform> {
        let sealer = self.sealer(self.service(who).await?);
        let transform = SealTransform::new(Arc::clone(&self.policy), Format::Json, KeysPlacement::Header, sealer);
        transform.map_err(|error| broken("the policy cannot be compiled")(error.to_string()))
    }

    /// An opening transform as `who`.
    pub(super) async fn open_transform(&self, who: Who) -> Result<OpenTransform> {
        let service = self.service(who).await?;
        let (catalogue, clock) = (Arc::clone(&self.catalogue), Arc::new(MachineClock));
        let keys = OpeningKeys::new(
            service.clone(),
            catalogue,
            self.policies(),
            clock,
            Duration::from_secs(300),
            1_000,
        );
        let (policy, sealer) = (Arc::clone(&self.policy), self.sealer(service));
        let transform = OpenTransform::new(policy, Format::Json, KeysPlacement::Header, keys, sealer);
        transform.map_err(|error| broken("the policy cannot be compiled")(error.to_string()))
    }

    pub(super) fn policies(&self) -> Arc<FixedPolicies> {
        Arc::new(FixedPolicies::new(vec![Arc::clone(&self.policy)]))
    }

    pub(super) fn sealer(&self, service: Arc<dyn KeyService>) -> DirectSealer {
        let clock: Arc<dyn Clock> = Arc::new(MachineClock);
        let catalogue = || Arc::clone(&self.catalogue);
        DirectSealer {
            keys: SealingKeys::new(
                Arc::clone(&service),
                catalogue(),
                Arc::clone(&clock),
                UsageLimits::STANDARD,
            ),
            domains: DomainKeys::new(service, catalogue(), self.policies(), clock, Duration::from_secs(300)),
        }
    }

    pub(super) async fn service(&self, who: Who) -> Result<Arc<dyn ClientKeyService>> {
        let config = KmsConfig {
            region: Some("eu-central-1".to_owned()),
            endpoint: Some(self.kms.endpoint()),
            sts_endpoint: Some(self.kms.endpoint()),
            credentials: Some(StaticCredentials {
                access_key_id: principal(who).access_key_id,
                secret_access_key: principal(who).secret_access_key,
                session_token: None,
            }),
            ..KmsConfig::default()
        };
        let service = AwsKms::new(&config).await;
        Ok(Arc::new(service.map_err(|error| {
            broken("the KMS client does not start")(error.to_string())
        })?))
    }
}

/// Credentials that the in-process KMS accepts; they are worth nothing anywhere else.
pub(super) fn principal(who: Who) -> Principal {
    Principal {
        access_key_id: format!("DEMO{}", who.role().to_uppercase()),
        secret_access_key: SecretString::new(format!("demo-only-{}", who.role())),
        session_token: None,
        arn: format!("{ACCOUNT_ROLE}{}", who.role()),
    }
}

/// The pipeline's role may open what clients seal, nobody else anything.
fn client_key_policy() -> String {
    let statement = serde_json::json!({
        "Effect": "Allow",
        "Principal": { "AWS": [Who::Pipeline.arn()] },
        "Action": ["kms:GetPublicKey", "kms:Decrypt", "kms:DescribeKey"],
        "Resource": "*",
    });
    serde_json::json!({ "Version": "2012-10-17", "Statement": [statement] }).to_string()
}

/// The pipeline's role may make keys and open them, readers may open them, others nothing.
fn key_policy() -> String {
    let allow = |who: &[Who], actions: &[&str]| {
        let arns: Vec<String> = who.iter().map(|who| who.arn()).collect();
        serde_json::json!({ "Effect": "Allow", "Principal": { "AWS": arns }, "Action": actions, "Resource": "*" })
    };
    let statements = [
        allow(
            &[Who::Pipeline],
            &["kms:GenerateDataKey", "kms:Decrypt", "kms:DescribeKey"],
        ),
        allow(&[Who::Auditor, Who::Support], &["kms:Decrypt"]),
    ];
    serde_json::json!({ "Version": "2012-10-17", "Statement": statements }).to_string()
}

fn temporary_folder() -> Result<PathBuf> {
    let folder = std::env::temp_dir().join(format!("sealflow-demo-{}", std::process::id()));
    std::fs::create_dir_all(&folder).map_err(|error| Failure::io("cannot make", &folder, &error))?;
    Ok(folder)
}

/// What the sample policy says of tables.
const TABLE: &str = "
table:
  key: default
  acl: support
  extra: { key: default, acl: operators }
";

/// The sample policy under the demo's key, for tables too, with a role that is in every ACL.
pub(super) fn policy_yaml(key_arn: &str) -> String {
    let sample = format!("arn:aws:kms:eu-central-1:111122223333:key/{KEY_ID}");
    let yaml = sealflow_samples::POLICY_YAML.replace(&sample, key_arn);
    let allow = "allow: [";
    let auditor = format!("{allow}\"{}\", ", Who::Auditor.arn());
    yaml.replace(allow, &auditor) + TABLE
}

/// A policy signed by `owner`, and verified as every reader who trusts him does.
pub(super) fn signed_policy(yaml: &str, owner: &OwnerKey) -> Result<(VerifiedPolicy, TrustedOwners)> {
    let refused = |error: String| broken("the sample policy is refused")(error);
    let jws = signed::sign(yaml.as_bytes(), owner).map_err(|error| refused(error.to_string()))?;
    let trusted = TrustedOwners::everywhere(vec![owner.thumbprint()]).map_err(|error| refused(error.to_string()))?;
    let policy = signed::verify(&jws, &trusted).map_err(|error| refused(error.to_string()))?;
    Ok((policy, trusted))
}
