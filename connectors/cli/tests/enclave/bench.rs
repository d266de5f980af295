//! An installation with an enclave: image, measured keys, a policy of three flows, clients that seal.

use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, Instant};

use sealflow_client::{PrivateKey, RsaBits, RsaPublicJwk, Session};
use sealflow_enclave_host::nsm::{Root, certificate_of};
use sealflow_local_kms::KeySpec;
use sealflow_testbed::{Instance, KEY_ARN, Kafka, Message, Pipeline, Scratch, Site, Topics};
use sealflow_testbed::{measured_key_policy, worker_program};

pub(crate) const PARTITIONS: i32 = 4;
pub(crate) const BACKEND_RSA: &str = "00000000-0000-4000-8000-0000000000a1";
pub(crate) const REGULATED: &str = "00000000-0000-4000-8000-0000000000e1";
pub(crate) const ENCLAVE_RSA: &str = "00000000-0000-4000-8000-0000000000e2";
/// What the worker wants in presigned requests.
pub(crate) const SERVER_ID: &str = "enclave.test";

pub(crate) fn arn(id: &str) -> String {
    KEY_ARN.replace("00000000-0000-4000-8000-000000000001", id)
}

/// The binary that Cargo built for these tests.
pub(crate) fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_sealflow"))
}

pub(crate) struct Bench {
    pub(crate) kafka: &'static Kafka,
    pub(crate) topics: Topics,
    pub(crate) site: Site,
    /// Of the development root.
    pub(crate) root: Scratch,
    pub(crate) name: String,
    /// Whoever has it opens dead letters.
    pub(crate) letters: PrivateKey,
    /// PCR0 of the image.
    pub(crate) image: [u8; 48],
    pub(crate) pipeline: PathBuf,
    /// Columns of the policy beside the three.
    more: String,
    /// Lines of the measured configuration beside the usual.
    measured: String,
}

impl Bench {
    pub(crate) fn new(name: &str) -> Option<Self> {
        Self::with_columns(name, "")
    }

    /// The same with further columns in its policy, one a line.
    pub(crate) fn with_columns(name: &str, more: &str) -> Option<Self> {
        Self::with(name, more, "")
    }

    /// The same with further lines in what is measured with the worker.
    pub(crate) fn with_measured(name: &str, measured: &str) -> Option<Self> {
        Self::with(name, "", measured)
    }

    fn with(name: &str, more: &str, measured: &str) -> Option<Self> {
        let kafka = Kafka::shared(&format!("the enclave flow ({name}) on a real broker"))?;
        let topics = kafka.topics();
        for suffix in ["", ".sealed", ".dead"] {
            topics.create(&format!("{name}{suffix}"), PARTITIONS, &[]);
        }
        let root = Scratch::new();
        let since = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap();
        Root::load_or_make(root.path(), u64::try_from(since.as_millis()).unwrap()).unwrap();
        let site = Site::for_enclave(&kafka.brokers(), &certificate_of(root.path()).unwrap());
        let mut bench = Self {
            kafka,
            topics,
            site,
            root,
            name: name.to_owned(),
            letters: PrivateKey::generate(RsaBits::Rsa2048).unwrap(),
            image: [0; 48],
            pipeline: PathBuf::new(),
            more: more.to_owned(),
            measured: measured.to_owned(),
        };
        bench.image = bench.build("worker.img", &bench.config());
        bench.make_keys();
        let yaml = bench.policy(1);
        bench.site.publish("payments", 1, &yaml);
        bench.site.lease(&yaml, Duration::from_secs(3_600));
        bench.pipeline = bench.pipeline_file("worker.img", "");
        Some(bench)
    }

    pub(crate) fn endpoint(&self) -> String {
        self.site.kms().endpoint()
    }

    /// `HOST:PORT` of the KMS.
    pub(crate) fn kms_host(&self) -> String {
        let endpoint = self.endpoint();
        endpoint.trim_start_matches("https://").trim_end_matches('/').to_owned()
    }

    /// What is measured with the worker.
    pub(crate) fn config(&self) -> String {
        let authority = self.site.authority().replace('\n', "\n  ");
        let endpoint = self.endpoint();
        let endpoint = endpoint.trim_end_matches('/');
        format!(
            "owners: [\"payments={}\"]\nkms: {{ keys: [\"{}\"], endpoint: \"{endpoint}\" }}\nkms_root: |\n  {authority}\nsts: {{ server_id: {SERVER_ID}, origins: [\"{endpoint}\"], root: \"{}\" }}\nsandbox: {{ memory_lock: if-available, landlock: if-available, namespaces: if-available }}\npolicy_refresh: 1s\n{}",
            self.site.owner(),
            arn("*"),
            self.site.authority().replace('\n', "\\n"),
            self.measured,
        )
    }

    /// An image of the worker with this configuration; its measurement.
    pub(crate) fn build(&self, file: &str, config: &str) -> [u8; 48] {
        let path = self.site.path().join(format!("{file}.yaml"));
        std::fs::write(&path, config).unwrap();
        let worker = worker_program().to_str().unwrap();
        let built = self.say(&[
            "enclave",
            "build",
            path.to_str().unwrap(),
            "--worker",
            worker,
            "--out",
            file,
        ]);
        let line = built.lines().find(|line| line.starts_with("PCR0")).unwrap();
        let digits = line.split_whitespace().last().unwrap();
        hex::decode(digits).unwrap().try_into().unwrap()
    }

    fn make_keys(&self) {
        let measured = measured_key_policy(&self.image);
        let create = |spec, id: &str, policy: Option<&str>| {
            let made = self.site.kms().create_key_of(spec, Some(id), "tests", policy);
            self.site.block_on(made).unwrap();
        };
        create(KeySpec::Symmetric, REGULATED, Some(&measured));
        create(KeySpec::Rsa(RsaBits::Rsa2048), ENCLAVE_RSA, Some(&measured));
        create(KeySpec::Rsa(RsaBits::Rsa2048), BACKEND_RSA, None);
    }

    pub(crate) fn policy(&self, version: u64) -> String {
        let image = hex::encode(self.image);
        let letters = self.letters.public().unwrap().to_json();
        let (backend, regulated, enclave) = (arn(BACKEND_RSA), arn(REGULATED), arn(ENCLAVE_RSA));
        let more = &self.more;
        format!(
            r#"
dataset: payments
version: {version}
lease: required
keys:
  default: {{ arn: "{KEY_ARN}" }}
  regulated: {{ arn: "{regulated}" }}
client: {{ keys: {{ web: {{ arn: "{backend}" }} }} }}
enclave:
  keys: {{ web: {{ arn: "{enclave}" }} }}
  measurements: {{ v1: {{ image: "{image}" }} }}
acls:
  pii: {{ allow: ["arn:aws:iam::111122223333:role/support", "oidc:https://login.example.com#sub=alice"] }}
  ops: {{ allow: ["arn:aws:iam::111122223333:role/analyst", "arn:aws:iam::111122223333:role/support"] }}
columns:
  - {{ path: card, key: regulated, acl: pii, flow: enclave }}
  - {{ path: amount, key: default, acl: ops, flow: hybrid }}
  - {{ path: email, key: default, acl: ops }}
{more}dead_letters: {{ recipient: {letters} }}
table: {{ key: default, acl: ops }}
"#
        )
    }

    /// `sealflow enclave run` of the image, which has a worker for each connection to that socket.
    pub(crate) fn run_worker(&self) -> (PathBuf, Instance) {
        let socket = self.site.path().join("worker.sock");
        let root = self.root.path().to_str().unwrap();
        let image = self.site.path().join("worker.img");
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
        let command = self.site.command(binary(), "pipeline", &args);
        let program = Instance::start(command, &self.site.path().join("worker.log"));
        let until = Instant::now() + Duration::from_secs(60);
        while !socket.exists() {
            assert!(Instant::now() < until, "{}", program.read_log());
            std::thread::sleep(Duration::from_millis(20));
        }
        (socket, program)
    }

    /// The section of a pipeline that starts a worker of this image.
    pub(crate) fn section(&self, image: &str) -> String {
        let (root, host) = (self.root.path().display(), self.kms_host());
        format!(
            "enclave:\n  image: \"{}\"\n  relay: [\"{host}\"]\n  dev_root: \"{root}\"\n  server_id: {SERVER_ID}\n  audit: enclave-audit.jsonl\n  isolation: if-available\n",
            self.site.path().join(image).display()
        )
    }

    pub(crate) fn pipeline_file(&self, image: &str, more: &str) -> PathBuf {
        let (sealed, dead) = (format!("{}.sealed", self.name), format!("{}.dead", self.name));
        self.site.pipeline(&Pipeline {
            name: &self.name,
            mode: "seal",
            dataset: "payments",
            from: &self.name,
            to: &sealed,
            dead: &dead,
            keys: "header",
            codec: "none",
            more: &format!("{}{more}", self.section(image)),
        })
    }

    /// A pipeline file whose target is a table of this schema at that place. `more` are further keys of `target.table`.
    pub(crate) fn table_file(&self, location: &str, schema: &str, more: &str) -> PathBuf {
        std::fs::write(self.site.path().join("schema.yaml"), schema).unwrap();
        let file = self.pipeline_file("worker.img", "");
        let yaml = std::fs::read_to_string(&file).unwrap();
        let (start, end) = (yaml.find("target:\n").unwrap(), yaml.find("catalogue:").unwrap());
        let target = format!("target:\n  table: {{ location: \"{location}\", schema: schema.yaml{more} }}\n");
        let path = self.site.path().join(format!("{}-table.yaml", self.name));
        std::fs::write(&path, format!("{}{target}{}", &yaml[..start], &yaml[end..])).unwrap();
        path
    }

    pub(crate) fn run(&self, role: &str, args: &[&str]) -> Output {
        self.site.command(binary(), role, args).output().unwrap()
    }

    /// What the command prints, which must succeed.
    pub(crate) fn say(&self, args: &[&str]) -> String {
        let output = self.run("pipeline", args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// `sealflow run` of the pipeline.
    pub(crate) fn start(&self, file: &Path, more: &[&str]) -> Instance {
        let mut args = vec!["run", file.to_str().unwrap()];
        args.extend(more);
        let mut command = self.site.command(binary(), "pipeline", &args);
        command.env("SEALFLOW_LOG", "debug");
        Instance::start(command, &file.with_extension("log"))
    }

    /// Runs the pipeline to the end of its topics, and expects success.
    pub(crate) fn run_to_end(&self) -> String {
        self.run_file(&self.pipeline)
    }

    /// The same of another file.
    pub(crate) fn run_file(&self, file: &Path) -> String {
        let (status, log) = self.start(file, &["--until-end"]).wait(Duration::from_secs(180));
        assert!(status.success(), "{status}:\n{log}");
        log
    }

    /// A session of a client that seals to this key of the KMS.
    pub(crate) fn session(&self, id: &str) -> Session {
        Session::begin(&self.public_key(id), "payments").unwrap()
    }

    pub(crate) fn public_key(&self, id: &str) -> RsaPublicJwk {
        let spki = self.site.kms().public_key(&arn(id)).unwrap();
        RsaPublicJwk::from_spki_der(&spki).unwrap()
    }

    pub(crate) fn backend_session(&self) -> Session {
        self.session(BACKEND_RSA)
    }

    /// Waits until the topic holds so many records.
    pub(crate) fn wait_for(&self, topic: &str, count: u64, running: &mut Instance) {
        let until = Instant::now() + Duration::from_secs(180);
        loop {
            let marks = self.topics.high_watermarks(topic);
            if marks.iter().map(|mark| u64::try_from(*mark).unwrap()).sum::<u64>() >= count {
                return;
            }
            assert!(running.ended().is_none(), "{}", running.read_log());
            assert!(Instant::now() < until, "{}", running.read_log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A record as a client sends it.
pub(crate) fn message(n: u64, card: &str, amount: &str, sessions: &[&str]) -> Message {
    let header = |session: &&str| ("sealflow-session".to_owned(), Some(session.as_bytes().to_vec()));
    Message {
        headers: sessions.iter().map(header).collect(),
        timestamp: Some(1_767_225_600_000 + i64::try_from(n).unwrap()),
        ..Message::new(
            i32::try_from(n % u64::from(PARTITIONS.unsigned_abs())).unwrap(),
            format!(r#"{{"id":{n}, "card":"{card}","amount":"{amount}","email":"user-{n}@example.com"}}"#),
        )
    }
}
