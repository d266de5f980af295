//! A reading service with a worker: it carries requests and answers, and can neither open them nor make them up.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use sealflow::jose::PrivateJwk;
use sealflow_client::attested::{DEFAULT_MAX_AGE, Measurement, Measurements, Pinned, Trust};
use sealflow_client::{Answers, EnclaveAnswerError, EnclaveQuestion, Evidence, PrivateKey, RsaBits};
use sealflow_enclave_host::nsm::certificate_of;
use sealflow_testbed::Instance;
use serde_json::{Value, json};

use crate::bench::{Bench, ENCLAVE_RSA, SERVER_ID, binary, message};
use crate::clean::assert_clean;

const CANARY: &str = "canary-service-77ab";
const RECORDS: u64 = 6;

fn card(n: u64) -> String {
    format!("\"{CANARY}-{n}\"")
}

/// Sealed records of the pipeline's target, by their ids, as they are spelled there.
pub(crate) fn sealed_records(bench: &Bench) -> Vec<String> {
    let (mut session, mut hybrid) = (bench.session(ENCLAVE_RSA), bench.backend_session());
    let messages: Vec<_> = (0..RECORDS)
        .map(|n| {
            let sealed = session.seal("card", card(n).as_bytes()).unwrap();
            let amount = hybrid.seal("amount", format!("{n}.25").as_bytes()).unwrap();
            message(n, &sealed, &amount, &[session.token(), hybrid.token()])
        })
        .collect();
    bench.topics.produce(&bench.name, &messages);
    bench.run_to_end();
    let mut records: Vec<(u64, String)> = bench
        .topics
        .read_all(&format!("{}.sealed", bench.name))
        .into_iter()
        .map(|message| {
            let text = String::from_utf8(message.value.unwrap()).unwrap();
            let value: Value = serde_json::from_str(&text).unwrap();
            (value["id"].as_u64().unwrap(), text)
        })
        .collect();
    records.sort_unstable();
    assert_eq!(records.len() as u64, RECORDS);
    records.into_iter().map(|(_, text)| text).collect()
}

/// A service that runs; killed when dropped.
struct Serving {
    listen: SocketAddr,
    admin: SocketAddr,
    instance: Instance,
}

/// Starts a service of that name and server id, whose worker is that image.
fn serve(bench: &Bench, name: &str, server_id: &str, image: &str) -> Serving {
    let auditor = PrivateJwk::generate().unwrap();
    let key = bench.site.path().join("audit.key");
    if !key.exists() {
        std::fs::write(&key, auditor.to_private_json().expose()).unwrap();
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    let section = bench
        .section(image)
        .replace("enclave-audit", &format!("{name}-enclave-audit"));
    let worker: String = section
        .lines()
        .skip(1)
        .filter(|line| !line.contains("server_id"))
        .map(|line| format!("  {line}\n"))
        .collect();
    let (catalogue, owner, endpoint) = (bench.site.catalogue(), bench.site.owner(), bench.endpoint());
    let (catalogue, endpoint) = (catalogue.display(), endpoint.trim_end_matches('/'));
    let yaml = format!(
        r#"name: {name}
listen: 127.0.0.1:0
catalogue: {{ folder: "{catalogue}" }}
trust: {{ owners: ["{owner}"] }}
kms: {{ region: eu-central-1, endpoint: "{endpoint}", sts_endpoint: "{endpoint}" }}
identity:
  server_id: {server_id}
  sts: {{ endpoints: ["{endpoint}"] }}
audit: {{ to: file, path: {name}-audit.log, key: audit.key, checkpoints: {name}.checkpoints }}
admin: {{ listen: "127.0.0.1:0" }}
enclave:
  datasets: [payments]
  worker:
{worker}"#
    );
    let path = bench.site.path().join(format!("{name}.yaml"));
    std::fs::write(&path, yaml).unwrap();
    let command = bench
        .site
        .command(binary(), "pipeline", &["serve", path.to_str().unwrap()]);
    let mut instance = Instance::start(command, &path.with_extension("log"));
    let until = Instant::now() + Duration::from_secs(60);
    let mut address = |key: &str| loop {
        let log = instance.read_log();
        let found = log
            .split(key)
            .nth(1)
            .and_then(|rest| rest.split_once(char::is_whitespace)?.0.parse().ok());
        if let Some(address) = found {
            return address;
        }
        assert!(instance.ended().is_none() && Instant::now() < until, "{log}");
        std::thread::sleep(Duration::from_millis(20));
    };
    Serving {
        listen: address(" listen="),
        admin: address(" admin="),
        instance,
    }
}

/// Status and body.
fn exchange(address: SocketAddr, request: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split_whitespace().nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}

impl Serving {
    fn open(&self, proof: &str, request: &Value) -> (u16, String) {
        self.open_text(proof, &request.to_string())
    }

    fn open_text(&self, proof: &str, body: &str) -> (u16, String) {
        let (address, length) = (self.listen, body.len());
        let request = format!(
            "POST /v1/open HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Type: application/json\r\nAuthorization: {proof}\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        exchange(address, &request)
    }

    fn ready(&self) -> (u16, String) {
        exchange(
            self.admin,
            "GET /readyz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        )
    }

    fn wait_until_ready(&mut self) {
        let until = Instant::now() + Duration::from_secs(60);
        while self.ready().0 != 200 {
            assert!(Instant::now() < until, "{}", self.instance.read_log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// What a client pins: the image, under the development root.
fn pinned(bench: &Bench) -> Pinned {
    Pinned {
        trust: Trust::with_dev_root(&certificate_of(bench.root.path()).unwrap()).unwrap(),
        measurements: vec![Measurements::of_image(Measurement::new(&bench.image).unwrap())],
        nonce: None,
        max_age: DEFAULT_MAX_AGE,
    }
}

/// What proves a role to that server, committed to that key.
pub(crate) fn token(bench: &Bench, role: &str, server_id: &str, key: Option<&PrivateKey>) -> String {
    let endpoint = bench.endpoint();
    let mut args = vec![
        "token",
        "--server-id",
        server_id,
        "--region",
        "eu-central-1",
        "--sts-endpoint",
        endpoint.trim_end_matches('/'),
    ];
    if let Some(key) = key {
        std::fs::write(bench.site.path().join("committed.jwk"), key.public().unwrap().to_json()).unwrap();
        args.extend(["--seal-to", "committed.jwk"]);
    }
    let made = bench.run(role, &args);
    let text = String::from_utf8(made.stdout).unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    text.trim().strip_prefix("Authorization: ").unwrap().to_owned()
}

fn code(answer: &(u16, String)) -> (u16, String) {
    let problem: Value = serde_json::from_str(&answer.1).unwrap();
    (answer.0, problem["code"].as_str().unwrap_or_default().to_owned())
}

/// A request for the columns of the first record, each by its label.
fn request(records: &[String], key: &PrivateKey, nonce: Option<&str>) -> Value {
    let record: Value = serde_json::from_str(&records[0]).unwrap();
    let jwk: Value = serde_json::from_str(&key.public().unwrap().to_json()).unwrap();
    let value = |label: &str| json!({ "label": label, "value": record[label] });
    let mut request = json!({
        "dataset": "payments",
        "values": [value("email"), value("card"), value("amount")],
        "seal_to": jwk,
    });
    if let Some(nonce) = nonce {
        request["nonce"] = nonce.into();
    }
    request
}

fn outcome(body: &Value, label: &str) -> String {
    let decisions = body["decisions"].as_array().unwrap();
    let of_label = decisions.iter().find(|decision| decision["label"] == label);
    of_label.unwrap()["outcome"].as_str().unwrap().to_owned()
}

#[test]
fn what_a_service_opens_for_the_enclave_only_the_callers_key_opens() {
    let Some(bench) = Bench::new("served") else { return };
    let records = sealed_records(&bench);
    let mut service = serve(&bench, "read", SERVER_ID, "worker.img");
    service.wait_until_ready();
    let reader = PrivateKey::generate(RsaBits::Rsa2048).unwrap();
    let support = token(&bench, "support", SERVER_ID, Some(&reader));
    let answers = Answers::new(&reader, "payments");

    // Single values, of the three flows: the enclave's is vouched for by the enclave, and the others are the service's word.
    let question = EnclaveQuestion::new(&reader, "payments").unwrap();
    let asked = request(&records, &reader, Some(&question.nonce()));
    let (status, first) = service.open(&support, &asked);
    assert_eq!(status, 200, "{first}");
    let answer = question.answer(first.as_bytes(), &pinned(&bench)).unwrap();
    let Evidence::Measured { image, tier } = answer.evidence() else {
        panic!("{answer:?}")
    };
    assert_eq!((image, *tier), (&hex::encode(bench.image), "dev-software-nsm"));
    assert_eq!((answer.shown(0), answer.shown(2)), (None, None));
    let jwe: String = serde_json::from_str(answer.shown(1).unwrap()).unwrap();
    assert_eq!(answers.text(&jwe, "card").unwrap().expose(), card(0).as_bytes());
    let body: Value = serde_json::from_str(&first).unwrap();
    for (n, label, plain) in [(0, "email", "\"user-0@example.com\""), (2, "amount", "0.25")] {
        let opened = answers.text(body["values"][n].as_str().unwrap(), label).unwrap();
        assert_eq!(opened.expose(), plain.as_bytes());
    }
    for label in ["card", "email", "amount"] {
        assert_eq!(outcome(&body, label), "opened", "{body}");
    }

    // Whole records, as they are spelled.
    let question = EnclaveQuestion::new(&reader, "payments").unwrap();
    let (jwk, nonce) = (reader.public().unwrap().to_json(), question.nonce());
    let text = format!(
        r#"{{"dataset":"payments","seal_to":{jwk},"nonce":"{nonce}","records":[{},{{"card":"4111"}}]}}"#,
        records.join(",")
    );
    let (status, body) = service.open_text(&support, &text);
    assert_eq!(status, 200, "{body}");
    let answer = question.answer(body.as_bytes(), &pinned(&bench)).unwrap();
    for n in 0..RECORDS {
        let shown = answer.shown(usize::try_from(n).unwrap()).unwrap();
        let (opened, count) = answers.document(shown.as_bytes(), &[]).unwrap();
        let expected = format!(
            r#"{{"id":{n}, "card":{},"amount":{n}.25,"email":"user-{n}@example.com"}}"#,
            card(n)
        );
        assert_eq!((opened.expose(), count), (expected.as_bytes(), 3));
    }
    // Nothing that is no sealed value passes for the enclave's.
    assert_eq!(answer.shown(RECORDS as usize), Some(r#"{"card":null}"#));

    // Whom the ACL does not name: the worker says so, and signs it.
    let analyst = token(&bench, "analyst", SERVER_ID, Some(&reader));
    let question = EnclaveQuestion::new(&reader, "payments").unwrap();
    let (_, body) = service.open(&analyst, &request(&records, &reader, Some(&question.nonce())));
    let answer = question.answer(body.as_bytes(), &pinned(&bench)).unwrap();
    assert_eq!(answer.shown(1), Some("null"));
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(
        (outcome(&body, "card"), outcome(&body, "email")),
        ("refused".into(), "opened".into())
    );

    refusals(&bench, &service, (&records, &reader, &support), &first);
    service.instance.terminate();
    let (status, log) = service.instance.wait(Duration::from_secs(60));
    assert!(status.success() && !log.contains(CANARY), "{log}");
    // Both logs tell who was shown what.
    for file in ["read-audit.log", "read-enclave-audit.jsonl"] {
        let lines = std::fs::read_to_string(bench.site.path().join(file)).unwrap();
        for (role, decision) in [("support", "allowed"), ("analyst", "refused")] {
            let is_it = |line: &&str| {
                line.contains(role)
                    && line.contains("\"label\":\"card\"")
                    && line.contains(&format!("\"decision\":\"{decision}\""))
            };
            assert!(lines.lines().any(|line| is_it(&line)), "{file}, {role}: {lines}");
        }
    }
    let holds = |bytes: &[u8]| bytes.windows(CANARY.len()).any(|window| window == CANARY.as_bytes());
    assert_clean(bench.site.path(), &holds);
}

fn refusals(
    bench: &Bench,
    service: &Serving,
    (records, reader, support): (&[String], &PrivateKey, &str),
    earlier: &str,
) {
    // Without a nonce the enclave is not asked: everything but its column is there.
    let (status, body) = service.open(support, &request(records, reader, None));
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(
        (status, &body["values"][1], body.get("enclave")),
        (200, &Value::Null, None)
    );
    let decisions = body["decisions"].as_array().unwrap();
    assert!(
        decisions.iter().any(|decision| decision["code"] == "enclave-only"),
        "{body}"
    );
    // An answer that was given to another question.
    let question = EnclaveQuestion::new(reader, "payments").unwrap();
    let refused = question.answer(earlier.as_bytes(), &pinned(bench));
    assert_eq!(refused.err(), Some(EnclaveAnswerError::NotItsAnswer));
    // A key that the proof does not commit to, and a proof that commits to none.
    let other = PrivateKey::generate(RsaBits::Rsa2048).unwrap();
    let nonce = EnclaveQuestion::new(&other, "payments").unwrap().nonce();
    let to_other = request(records, &other, Some(&nonce));
    let uncommitted = token(bench, "support", SERVER_ID, None);
    for proof in [support, &uncommitted] {
        let refused = service.open(proof, &to_other);
        assert_eq!(code(&refused), (403, "seal-to-not-committed".to_owned()));
    }
    // A proof for a server that the service believes to be itself, and the worker does not.
    let mut others = serve(bench, "others", "other.test", "worker.img");
    others.wait_until_ready();
    let for_other = token(bench, "support", "other.test", Some(reader));
    let refused = others.open(&for_other, &request(records, reader, Some(&nonce)));
    assert_eq!(code(&refused), (403, "enclave-refused".to_owned()));
    assert!(!refused.1.contains("arn:"), "{refused:?}");
    others.instance.terminate();
    let (_, log) = others.instance.wait(Duration::from_secs(60));
    assert!(log.contains("the enclave worker refuses"), "{log}");
}

#[test]
fn a_service_whose_worker_is_not_believed_is_not_ready_and_opens_nothing_of_the_enclave() {
    let Some(bench) = Bench::new("unready") else { return };
    let records = sealed_records(&bench);
    // Another image: the policy does not name it.
    let config = format!("{}sessions: 77\n", bench.config());
    assert_ne!(bench.build("other.img", &config), bench.image);
    let service = serve(&bench, "unready-read", SERVER_ID, "other.img");
    std::thread::sleep(Duration::from_secs(3));
    let (status, why) = service.ready();
    assert_eq!(status, 503, "{why}");
    let reader = PrivateKey::generate(RsaBits::Rsa2048).unwrap();
    let support = token(&bench, "support", SERVER_ID, Some(&reader));
    let nonce = EnclaveQuestion::new(&reader, "payments").unwrap().nonce();
    let refused = service.open(&support, &request(&records, &reader, Some(&nonce)));
    assert_eq!(code(&refused), (503, "enclave-unavailable".to_owned()));
    // What is not the enclave's is there.
    let mut others = request(&records, &reader, Some(&nonce));
    others["values"].as_array_mut().unwrap().remove(1);
    let (status, body) = service.open(&support, &others);
    assert_eq!(status, 200, "{body}");
}
