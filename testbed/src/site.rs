//! A whole installation for one test: development KMS, catalogue folder, signed policy, pipeline files.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sealflow::clock::UnixMillis;
use sealflow::jose::{PrivateJwk, Thumbprint, jws};
use sealflow::policy::{TrustedOwners, lease, signed};
use sealflow::secret::SecretString;
use sealflow_local_kms::{Principal, RunningServer, Server, ServerConfig, TlsConfig};
use tokio::runtime::Runtime;

use crate::{Proxy, Scratch};

const ROLE: &str = "arn:aws:iam::111122223333:role/";
const KEY_ID: &str = "00000000-0000-4000-8000-000000000001";
/// The ARN that sample policies name.
pub const KEY_ARN: &str = "arn:aws:kms:eu-central-1:111122223333:key/00000000-0000-4000-8000-000000000001";

/// The certificate by which the KMS proves itself.
const AUTHORITY: &str = "authority.pem";

/// Roles that may use the key.
const TRUSTED: [&str; 6] = ["pipeline", "analyst", "support", "temp", "guest", "fraud"];

/// Everything beside the broker that `sealflow run` needs.
pub struct Site {
    scratch: Scratch,
    has_authority: bool,
    runtime: Runtime,
    kms: RunningServer,
    kms_proxy: Option<Proxy>,
    owner: PrivateJwk,
    brokers: String,
}

/// What a pipeline file says; the rest is the site's.
#[derive(Clone, Debug)]
pub struct Pipeline<'a> {
    /// Its name, and the name of its file.
    pub name: &'a str,
    /// `seal` or `open`.
    pub mode: &'a str,
    /// Dataset.
    pub dataset: &'a str,
    /// Source topic.
    pub from: &'a str,
    /// Target topic.
    pub to: &'a str,
    /// Dead-letter topic.
    pub dead: &'a str,
    /// `header` or `catalogue`.
    pub keys: &'a str,
    /// `compression.codec` of the producer.
    pub codec: &'a str,
    /// Further lines, at the top level.
    pub more: &'a str,
}

impl Site {
    /// A KMS with one key that `role/pipeline` and the readers' roles may use (`analyst`, `support`, `temp`, `guest`,
    /// `fraud`) and `role/intern` may not, an empty catalogue, an owner.
    ///
    /// # Panics
    /// If something of it does not start.
    #[must_use]
    pub fn new(brokers: &str) -> Self {
        Self::with_principals(brokers, Vec::new())
    }

    /// The same, with others whose credentials the KMS accepts.
    ///
    /// # Panics
    /// If something of it does not start.
    #[must_use]
    pub fn with_principals(brokers: &str, others: Vec<Principal>) -> Self {
        Self::make(brokers, others, Scratch::new(), |_| {})
    }

    /// The same with a KMS that speaks TLS and believes evidence under this development root (DER).
    ///
    /// # Panics
    /// If something of it does not start.
    #[must_use]
    pub fn for_enclave(brokers: &str, root: &[u8]) -> Self {
        let scratch = Scratch::new();
        let key = rcgen::KeyPair::generate().expect("random numbers");
        let mut params = rcgen::CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let authority = params.self_signed(&key).expect("a certificate can be made");
        let issuer = rcgen::Issuer::new(params, key);
        let key = rcgen::KeyPair::generate().expect("random numbers");
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let params = rcgen::CertificateParams::new(names).expect("two names");
        let certificate = params.signed_by(&key, &issuer).expect("a certificate can be made");
        let file = |name: &str, text: String| {
            let path = scratch.path().join(name);
            std::fs::write(&path, text).expect("the folder is writable");
            path
        };
        let tls = TlsConfig {
            certificate: file("kms.pem", certificate.pem()),
            key: file("kms.key", key.serialize_pem()),
        };
        let attestation_root = file("dev-root.pem", crate::enclave::pem(root));
        file(AUTHORITY, authority.pem());
        let mut site = Self::make(brokers, Vec::new(), scratch, |config| {
            config.tls = Some(tls);
            config.attestation_root = Some(attestation_root);
        });
        site.has_authority = true;
        site
    }

    /// The certificate (PEM) of whoever signs that of the KMS.
    ///
    /// # Panics
    /// Without [`Site::for_enclave`].
    #[must_use]
    pub fn authority(&self) -> String {
        std::fs::read_to_string(self.path().join(AUTHORITY)).expect("the site is one for an enclave")
    }

    fn make(brokers: &str, others: Vec<Principal>, scratch: Scratch, change: impl FnOnce(&mut ServerConfig)) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime starts");
        let ours = TRUSTED.iter().copied().chain(["intern"]).map(principal);
        let principals = ours.chain(others).collect();
        let mut config = ServerConfig::in_memory(principals);
        change(&mut config);
        let kms = runtime.block_on(Server::start(config)).expect("the local KMS starts");
        let trusted: Vec<String> = TRUSTED.iter().map(|role| format!("\"{ROLE}{role}\"")).collect();
        let policy = format!(
            r#"{{"Version":"2012-10-17","Statement":[{{"Effect":"Allow","Principal":{{"AWS":[{}]}},"Action":"kms:*","Resource":"*"}}]}}"#,
            trusted.join(",")
        );
        let arn = kms
            .create_key(Some(KEY_ID), "tests", Some(&policy))
            .expect("a KMS key can be made");
        assert_eq!(arn, KEY_ARN);
        let owner = PrivateJwk::generate().expect("an owner key can be made");
        Self {
            scratch,
            has_authority: false,
            runtime,
            kms,
            kms_proxy: None,
            owner,
            brokers: brokers.to_owned(),
        }
    }

    /// The same with a fault proxy in front of the KMS, for the pipelines written from now on.
    ///
    /// # Panics
    /// If the proxy does not start.
    #[must_use]
    pub fn with_kms_proxy(mut self, seed: u64) -> Self {
        let endpoint = self.kms.endpoint();
        let address = endpoint.trim_start_matches("http://").trim_end_matches('/');
        self.kms_proxy = Some(Proxy::start(address, seed).expect("a proxy can listen"));
        self
    }

    /// The fault proxy in front of the KMS.
    ///
    /// # Panics
    /// Without [`Site::with_kms_proxy`].
    #[must_use]
    pub fn kms_proxy(&self) -> &Proxy {
        self.kms_proxy.as_ref().expect("the site has a proxy before its KMS")
    }

    /// The KMS: its counters, its faults.
    #[must_use]
    pub fn kms(&self) -> &RunningServer {
        &self.kms
    }

    /// A folder for the test's own files; everything of the site is below it.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.scratch.path()
    }

    /// The catalogue's folder.
    #[must_use]
    pub fn catalogue(&self) -> PathBuf {
        self.path().join("catalogue")
    }

    /// Signs a policy and puts it into the catalogue.
    ///
    /// # Panics
    /// If it is refused.
    pub fn publish(&self, dataset: &str, version: u64, yaml: &str) {
        let jws = self.sign(yaml);
        let folder = self.catalogue().join("policies").join(dataset);
        std::fs::create_dir_all(&folder).expect("the catalogue is writable");
        std::fs::write(folder.join(format!("{version:010}.jws")), jws).expect("the catalogue is writable");
    }

    /// Signs a policy with the owner's key.
    ///
    /// # Panics
    /// If it is refused.
    #[must_use]
    pub fn sign(&self, yaml: &str) -> String {
        signed::sign(yaml.as_bytes(), &self.owner).expect("the policy is well-formed")
    }

    /// Signs a policy that our own commands would not sign.
    ///
    /// # Panics
    /// If it is too large for a JWS.
    #[must_use]
    pub fn sign_unchecked(&self, yaml: &str) -> String {
        jws::sign(jws::JwsType::Policy, yaml.as_bytes(), &self.owner).expect("a policy is small")
    }

    /// The owner's key.
    #[must_use]
    pub fn owner_key(&self) -> &PrivateJwk {
        &self.owner
    }

    /// Thumbprint of the owner's key.
    #[must_use]
    pub fn owner(&self) -> Thumbprint {
        self.owner.thumbprint()
    }

    /// Signs a lease for that policy, from now for `span`, and puts it into the catalogue.
    ///
    /// # Panics
    /// If it is refused.
    pub fn lease(&self, yaml: &str, span: Duration) {
        let trusted = TrustedOwners::everywhere(vec![self.owner.thumbprint()]).expect("one owner");
        let jws = self.sign(yaml);
        let policy = signed::verify(&jws, &trusted).expect("its owner signed it");
        let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
        let now = UnixMillis(u64::try_from(since.as_millis()).expect("before the year 500,000,000"));
        let lease = lease::sign(&policy, now, span, &self.owner).expect("the span is one of a lease");
        let (dataset, version) = (&policy.policy().dataset, policy.policy().version);
        let folder = self.catalogue().join(format!("leases/{dataset}/{version:010}"));
        std::fs::create_dir_all(&folder).expect("the catalogue is writable");
        let ends = now.0 / 1_000 + span.as_secs();
        std::fs::write(folder.join(format!("{ends:012}.jws")), lease).expect("the catalogue is writable");
    }

    /// Writes a pipeline file.
    ///
    /// # Panics
    /// If it cannot be written.
    #[must_use]
    pub fn pipeline(&self, pipeline: &Pipeline<'_>) -> PathBuf {
        let Pipeline {
            name,
            mode,
            dataset,
            from,
            to,
            dead,
            keys,
            codec,
            more,
        } = pipeline;
        let (brokers, catalogue, owner) = (&self.brokers, self.catalogue(), self.owner.thumbprint());
        // Pipelines of several tests run side by side: each takes a free port, unless the test names one.
        let admin = if more.contains("admin:") {
            ""
        } else {
            "admin: { listen: \"127.0.0.1:0\" }"
        };
        let endpoint = match &self.kms_proxy {
            Some(proxy) => format!("http://{}", proxy.address()),
            None => self.kms.endpoint(),
        };
        let catalogue = catalogue.display();
        let yaml = format!(
            r#"name: {name}
mode: {mode}
dataset: {dataset}
format: json
keys: {keys}
source:
  kafka:
    brokers: "{brokers}"
    topics: [{from}]
    properties: {{ session.timeout.ms: "6000", heartbeat.interval.ms: "500" }}
target:
  kafka:
    topic: "{to}"
    properties: {{ compression.codec: {codec} }}
catalogue: {{ folder: "{catalogue}" }}
trust: {{ owners: ["{owner}"] }}
kms: {{ region: eu-central-1, endpoint: "{endpoint}", sts_endpoint: "{endpoint}" }}
dead_letters: {{ topic: {dead}, max_ratio: 1.0 }}
threads: 1
{admin}
{more}
"#
        );
        let path = self.path().join(format!("{name}.yaml"));
        std::fs::write(&path, yaml).expect("the folder is writable");
        path
    }

    /// `program ARGS` with the credentials of `role`.
    #[must_use]
    pub fn command(&self, program: &Path, role: &str, args: &[&str]) -> Command {
        let principal = principal(role);
        let mut command = Command::new(program);
        command
            .args(args)
            .current_dir(self.path())
            .env("AWS_ACCESS_KEY_ID", &principal.access_key_id)
            .env("AWS_SECRET_ACCESS_KEY", principal.secret_access_key.expose())
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("NO_COLOR", "1")
            .env("SEALFLOW_STATE", self.path().join("state"))
            .env_remove("AWS_SESSION_TOKEN")
            .env_remove("AWS_PROFILE");
        if self.has_authority {
            command.env("SSL_CERT_FILE", self.path().join(AUTHORITY));
        }
        command
    }

    /// Runs something on the site's runtime.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }
}

/// Credentials that the site's KMS accepts; they are worth nothing anywhere else.
fn principal(role: &str) -> Principal {
    Principal {
        access_key_id: format!("TEST{}", role.to_uppercase()),
        secret_access_key: SecretString::new(format!("tests-only-{role}")),
        session_token: None,
        arn: format!("{ROLE}{role}"),
    }
}
