//! The form of `samples/secure-form`, started as its README says, and whoever uses it: a person at Chromium, and others by HTTP.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use sealflow_client::{RowId, RsaPublicJwk, Session};
use sealflow_local_kms::KeySpec;
use sealflow_testbed::{Instance, Kafka, Site, Topics, deps, skip};
use serde_json::{Value, json};

use crate::clients::Browser;

pub(crate) const LABEL: &str = "card.number";
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// The key of the sample's policy that clients seal to.
const RSA_ID: &str = "00000000-0000-4000-8000-0000000000a1";

/// Python with the server's library; `None` after the ledger has the reason.
pub(crate) fn python(test: &str) -> Option<PathBuf> {
    let python = deps().join("secure-form/bin/python");
    let has_it = Command::new(&python).args(["-c", "import confluent_kafka"]).output();
    if has_it.is_ok_and(|output| output.status.success()) {
        return Some(python);
    }
    skip(&format!("{test}: confluent-kafka is not there (.deps/secure-form)"));
    None
}

/// Copies the sample, as a user would.
pub(crate) fn copy_sample(to: &Path) {
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../samples/secure-form");
    for entry in std::fs::read_dir(sample).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
        }
    }
}

/// The sample's server; killed when dropped.
pub(crate) struct Server {
    process: Instance,
    pub(crate) port: u16,
}

impl Server {
    /// `command` is Python, in a folder with the sample.
    pub(crate) fn start(mut command: Command, brokers: &str, sealflow: &str, log: &Path) -> Self {
        command.args(["server.py", "--port", "0", "--brokers", brokers, "--keys", "keys.json"]);
        command.args(["--enclave-keys", "enclave-keys.json"]);
        command.args(["--table", "lake", "--pipeline", "pipeline.yaml", "--sealflow", sealflow]);
        let mut process = Instance::start(command, log);
        let until = Instant::now() + PATIENCE;
        loop {
            let said = process.read_log();
            let address = said.split_once("listening on http://127.0.0.1:");
            if let Some((port, _)) = address.and_then(|(_, rest)| rest.split_once('\n')) {
                let port = port.parse().unwrap();
                return Self { process, port };
            }
            assert!(process.ended().is_none() && Instant::now() < until, "{said}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub(crate) fn log(&self) -> String {
        self.process.read_log()
    }

    /// The status, the head and the body of what is answered.
    pub(crate) fn ask(&self, head: &str, body: &str) -> (u16, String, String) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // One that is refused before it was read is answered, and then reset: maybe before all of it was written.
        let _ = stream.write_all(format!("{head}\r\n\r\n{body}").as_bytes());
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        (status.unwrap_or(0), head.to_owned(), body.to_owned())
    }

    /// Posts JSON.
    pub(crate) fn post(&self, path: &str, body: &str) -> (u16, String) {
        let length = body.len();
        let head =
            format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {length}");
        let (status, _, body) = self.ask(&head, body);
        (status, body)
    }
}

/// The whole installation.
pub(crate) struct Form {
    pub(crate) kafka: &'static Kafka,
    pub(crate) topics: Topics,
    pub(crate) site: Site,
    pub(crate) server: Server,
    pub(crate) landing: Instance,
    /// The backend's current key.
    pub(crate) to: RsaPublicJwk,
}

impl Form {
    pub(crate) fn new(test: &str) -> Option<Self> {
        let python = python(test)?;
        let kafka = Kafka::shared(test)?;
        let topics = kafka.topics();
        for topic in ["orders", "orders.dead"] {
            topics.create(topic, 3, &[]);
        }
        let site = Site::new(&kafka.brokers());
        let trusted = ["pipeline", "support"].map(|role| format!("\"arn:aws:iam::111122223333:role/{role}\""));
        let key_policy = format!(
            r#"{{"Version":"2012-10-17","Statement":[{{"Effect":"Allow","Principal":{{"AWS":[{}]}},"Action":"kms:*","Resource":"*"}}]}}"#,
            trusted.join(",")
        );
        let spec = KeySpec::Rsa(sealflow_client::RsaBits::Rsa2048);
        let made = site
            .kms()
            .create_key_of(spec, Some(RSA_ID), "clients", Some(&key_policy));
        site.block_on(made).unwrap();
        copy_sample(site.path());
        let policy = std::fs::read_to_string(site.path().join("policy.yaml")).unwrap();
        site.publish("orders", 1, &policy);

        // What the README sets in the environment.
        let command = |program: &Path, role: &str, args: &[&str]| {
            let mut command = site.command(program, role, args);
            command.env("KAFKA_BROKERS", kafka.brokers());
            command.env("SEALFLOW_OWNERS", site.owner().to_string());
            command.env("SEALFLOW_KMS_ENDPOINT", site.kms().endpoint());
            command
        };
        let sealflow = env!("CARGO_BIN_EXE_sealflow");
        let args = ["keys", "public", "orders", "--pipeline", "pipeline.yaml"];
        let output = command(sealflow.as_ref(), "pipeline", &args).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let keys: Value = serde_json::from_slice(&output.stdout).unwrap();
        std::fs::write(site.path().join("keys.json"), output.stdout).unwrap();
        let mut run = command(sealflow.as_ref(), "pipeline", &["run", "pipeline.yaml"]);
        run.env("SEALFLOW_LOG", "debug");
        let landing = Instance::start(run, &site.path().join("landing.log"));
        let server = command(&python, "support", &[]);
        let server = Server::start(server, &kafka.brokers(), sealflow, &site.path().join("server.log"));
        let to = RsaPublicJwk::from_json(keys["keys"][0].to_string().as_bytes()).unwrap();
        Some(Self {
            kafka,
            topics,
            site,
            server,
            landing,
            to,
        })
    }

    /// Asks for an order's answer until it has landed.
    pub(crate) fn answer(&self, order: &str, jwk: &str) -> String {
        let until = Instant::now() + PATIENCE;
        loop {
            let (status, said) = self
                .server
                .post(&format!("/orders/{order}/answer"), &format!(r#"{{"jwk":{jwk}}}"#));
            if status == 200 {
                let row: Value = serde_json::from_str(&said).unwrap();
                return row["card"]["number"].as_str().unwrap().to_owned();
            }
            assert!(
                status == 404 && Instant::now() < until,
                "{status} {said}\n{}",
                self.landing.last_lines()
            );
            std::thread::sleep(Duration::from_millis(300));
        }
    }
}

/// What the page would send for whoever has the key `reader`.
pub(crate) fn order(to: &RsaPublicJwk, id: &str, card: &str, reader: &RsaPublicJwk) -> Value {
    let reader = reader.thumbprint().to_string();
    let mut session = Session::begin(to, "orders").unwrap();
    let row = RowId::new(&json!(reader).to_string(), &[]).unwrap();
    let number = session
        .seal_in_row(LABEL, json!(card).to_string().as_bytes(), &row)
        .unwrap();
    json!({
        "record": { "order_id": id, "name": "Mia", "reader": reader, "card": { "number": number } },
        "session": session.token(),
    })
}

/// The page in Chromium, and a person before it.
pub(crate) struct Page(pub(crate) Browser);

impl Page {
    pub(crate) fn open(&mut self, address: &str) {
        self.step("open", &address.into());
    }

    /// Fills the form in, key by key, sends it, and waits for its end.
    pub(crate) fn send(&mut self, id: &str, name: &str, card: &str) {
        self.wait_until_it_is_ready();
        for (at, text) in [("#order-id", id), ("#name", name), ("#card", card)] {
            self.type_into(at, text);
        }
        self.step("press", &"#order button".into());
        self.wait_until_it_is_ready();
    }

    /// Asks for an order's answer, and waits for it.
    pub(crate) fn look_at(&mut self, id: &str) {
        self.wait_until_it_is_ready();
        self.type_into("#look-id", id);
        self.press_show();
    }

    pub(crate) fn press_show(&mut self) {
        self.step("press", &"#look button".into());
        self.wait_until_it_is_ready();
    }

    /// Instead of what is there.
    fn type_into(&mut self, at: &str, text: &str) {
        self.look(&format!("(document.querySelector('{at}').value = '', null)"));
        self.step("type", &json!([at, text]));
    }

    pub(crate) fn wait_until_it_is_ready(&mut self) {
        let until = Instant::now() + PATIENCE;
        while self.look("document.querySelector('#order button').disabled") != json!(false) {
            assert!(
                Instant::now() < until,
                "{} {}",
                self.text("#status"),
                self.text("#error")
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What an element shows, or an input holds.
    pub(crate) fn text(&mut self, at: &str) -> String {
        let expression =
            format!("(document.querySelector('{at}').value ?? document.querySelector('{at}').textContent)");
        self.look(&expression).as_str().unwrap().to_owned()
    }

    /// What an expression comes to in the page.
    pub(crate) fn look(&mut self, expression: &str) -> Value {
        self.step("look", &expression.into())
    }

    pub(crate) fn step(&mut self, name: &str, argument: &Value) -> Value {
        self.0.call(name, argument).unwrap()
    }
}
