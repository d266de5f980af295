//! The five minutes of the README on a mock broker: init, validate, run, and what they say when something is missing.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{LocalKms, Place, policy};
use rdkafka::ClientConfig;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer};

const RECORDS: u64 = 300;

/// A broker with topic `payments` of four partitions, filled, and with its targets.
fn broker(records: u64) -> MockCluster<'static, DefaultProducerContext> {
    let cluster = MockCluster::new(1).unwrap();
    for topic in ["payments", "payments.sealed", "payments.dead"] {
        cluster.create_topic(topic, 4, 1).unwrap();
    }
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", cluster.bootstrap_servers())
        .create()
        .unwrap();
    for record in sealflow_samples::generate(3, records) {
        let message = BaseRecord::to("payments")
            .partition(i32::try_from(record.n % 4).unwrap())
            .key(&record.key)
            .payload(&record.value);
        producer.send(message).map_err(|(error, _)| error).unwrap();
        producer.poll(Duration::ZERO);
    }
    producer.flush(Duration::from_secs(30)).unwrap();
    cluster
}

/// The endpoint of a server on a port of its own instead of the configured one.
fn use_endpoint(place: &Place, kms: &LocalKms) {
    place.write(
        "pipeline.yaml",
        place
            .read("pipeline.yaml")
            .replace("http://127.0.0.1:4599", &kms.endpoint)
            .replace("127.0.0.1:9464", "127.0.0.1:0"),
    );
}

fn owner(place: &Place) -> String {
    let pipeline = place.read("pipeline.yaml");
    let start = pipeline.find("owners: [\"").unwrap() + "owners: [\"".len();
    pipeline[start..start + 43].to_owned()
}

/// The same in every run.
fn steady(text: &str, place: &Place, cluster: &MockCluster<'_, DefaultProducerContext>) -> String {
    let policy = place.read("policy.yaml");
    let at = policy.find("arn:aws:kms:").unwrap();
    let arn = policy[at..].split('"').next().unwrap();
    text.replace(&owner(place), "OWNER")
        .replace(arn, "ARN")
        .replace(&cluster.bootstrap_servers(), "BROKERS")
}

#[test]
fn init_validate_and_run_seal_a_topic() {
    let (place, cluster) = (Place::new(), broker(RECORDS));
    let said = place.ok(&["init", "--topic", "payments", "--brokers", &cluster.bootstrap_servers()]);
    insta::assert_snapshot!("init", steady(&said, &place, &cluster));
    insta::assert_snapshot!("init_policy", steady(&place.read("policy.yaml"), &place, &cluster));
    insta::assert_snapshot!("init_pipeline", steady(&place.read("pipeline.yaml"), &place, &cluster));
    for record in sealflow_samples::generate(3, RECORDS) {
        for secret in &record.secrets {
            assert!(
                !said.contains(secret.as_str()) && !place.read("policy.yaml").contains(secret.as_str()),
                "{secret}"
            );
        }
    }
    let again = place.run(&["init", "--topic", "payments", "--brokers", &cluster.bootstrap_servers()]);
    assert_eq!(again.code, 74, "{}", again.err);

    let kms = LocalKms::serve(&place);
    use_endpoint(&place, &kms);
    let validated = place.run(&["validate", "pipeline.yaml"]);
    insta::assert_snapshot!("validate", steady(&validated.out, &place, &cluster));
    assert_eq!(validated.code, 0, "{}{}", validated.out, validated.err);
    let json: serde_json::Value =
        serde_json::from_str(&place.ok(&["validate", "pipeline.yaml", "--output", "json"])).unwrap();
    assert_eq!(json["ok"], true);

    let summary: serde_json::Value =
        serde_json::from_str(&place.ok(&["run", "pipeline.yaml", "--until-end", "--output", "json"])).unwrap();
    assert_eq!(
        (summary["records"].as_u64(), summary["dead_letters"].as_u64()),
        (Some(RECORDS), Some(0))
    );
    let values: usize = sealflow_samples::generate(3, RECORDS)
        .map(|record| record.secrets.len())
        .sum();
    assert_eq!(summary["values"].as_u64(), Some(values as u64));
    assert!(
        place
            .ok(&["keys", "list", "--pipeline", "pipeline.yaml"])
            .contains("payments")
    );
}

#[test]
fn init_validate_and_run_land_a_topic_in_a_table_that_is_read_and_verified() {
    let (place, cluster) = (Place::new(), broker(RECORDS));
    let brokers = cluster.bootstrap_servers();
    place.ok(&["init", "--topic", "payments", "--brokers", &brokers, "--table", "lake"]);
    insta::assert_snapshot!(
        "init_table_policy",
        steady(&place.read("policy.yaml"), &place, &cluster)
    );
    insta::assert_snapshot!("init_table_schema", place.read("schema.yaml"));
    insta::assert_snapshot!(
        "init_table_pipeline",
        steady(&place.read("pipeline.yaml"), &place, &cluster)
    );
    let kms = LocalKms::serve(&place);
    use_endpoint(&place, &kms);
    place.ok(&["validate", "pipeline.yaml"]);
    let run = ["run", "pipeline.yaml", "--until-end", "--output", "json"];
    let summary: serde_json::Value = serde_json::from_str(&place.ok(&run)).unwrap();
    assert_eq!(
        (summary["records"].as_u64(), summary["dead_letters"].as_u64()),
        (Some(RECORDS), Some(0))
    );

    let read = place.ok(&["read", "lake", "--pipeline", "pipeline.yaml", "--output", "json"]);
    let rows: Vec<serde_json::Value> = read.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len() as u64, RECORDS);
    for record in sealflow_samples::generate(3, RECORDS) {
        let original: serde_json::Value = serde_json::from_slice(&record.value).unwrap();
        let row = rows.iter().find(|row| row["id"] == original["id"]).unwrap();
        assert_eq!(row["client_ip"], original["client_ip"]);
        assert_eq!(row["user"]["email"], original["user"]["email"]);
    }
    place.ok(&["verify", "lake", "--pipeline", "pipeline.yaml"]);

    // A schema that takes a field away is not used.
    let schema = place.read("schema.yaml");
    let less: String = schema
        .lines()
        .filter(|line| !line.contains(r#""name":"tenant_id""#))
        .map(|line| line.replace("version: 1", "version: 2") + "\n")
        .collect();
    assert_ne!(less.lines().count(), schema.lines().count());
    place.write("schema.yaml", less);
    let refused = place.run(&run);
    assert_eq!(refused.code, 78, "{}", refused.err);
    assert!(refused.err.contains("tenant_id is in version 1"), "{}", refused.err);
}

#[test]
fn validate_says_what_is_missing_and_goes_on() {
    let (place, cluster) = (Place::new(), broker(5));
    place.ok(&["init", "--topic", "payments", "--brokers", &cluster.bootstrap_servers()]);
    let kms = LocalKms::serve(&place);
    use_endpoint(&place, &kms);
    let good = place.read("pipeline.yaml");
    let validate = |change: &dyn Fn(&str) -> String| {
        place.write("pipeline.yaml", change(&good));
        let ran = place.run(&["validate", "pipeline.yaml"]);
        place.write("pipeline.yaml", &good);
        (ran.code, steady(&ran.out, &place, &cluster))
    };
    let (code, text) = validate(&|good| good.replace("topics: [\"payments\"]", "topics: [\"paymets\"]"));
    assert_eq!(code, 78, "{text}");
    insta::assert_snapshot!("validate_no_such_topic", text);
    let stranger = place.ok(&["policy", "keygen", "-o", "stranger.key"]).trim().to_owned();
    let (code, text) = validate(&|good| good.replace(&owner(&place), &stranger));
    assert_eq!(code, 78, "{text}");
    assert!(
        text.contains("FAIL policy: ") && text.contains("no pinned owner"),
        "{text}"
    );
    let (code, text) = validate(&|good| good.replace(&cluster.bootstrap_servers(), "127.0.0.1:1"));
    assert_eq!(code, 69, "{text}");
    assert!(
        text.contains("FAIL broker: ") && text.contains("ok   key default"),
        "{text}"
    );
    let (code, text) = validate(&|good| good.replace(&kms.endpoint, "http://127.0.0.1:1"));
    assert_eq!(code, 69, "{text}");
    assert!(
        text.contains("FAIL key default") && text.contains("ok   column user.email"),
        "{text}"
    );
    let (code, text) = validate(&|good| good.replace("source:", "sorce:"));
    assert_eq!(code, 78, "{text}");
    insta::assert_snapshot!("validate_bad_file", text);
    drop(kms);
    assert_eq!(place.run(&["run", "pipeline.yaml", "--dev", "nowhere.yaml"]).code, 74);
}

/// One request to the admin port.
fn get(address: &str, path: &str) -> String {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_running_pipeline_shows_health_and_metrics_and_drains_on_sigterm() {
    use std::io::Read as _;
    let (place, cluster) = (Place::new(), broker(40));
    place.ok(&["init", "--topic", "payments", "--brokers", &cluster.bootstrap_servers()]);
    let kms = LocalKms::serve(&place);
    use_endpoint(&place, &kms);
    let mut command = place.command(&["run", "pipeline.yaml", "--log", "json", "--output", "json"]);
    let mut child = command
        .env("SEALFLOW_LOG", "info")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
    let started = log
        .by_ref()
        .map(|line| line.unwrap())
        .find(|line| line.contains("\"admin\""))
        .unwrap();
    let started: serde_json::Value = serde_json::from_str(&started).unwrap();
    assert_eq!(
        (&started["message"], &started["policy"]),
        (&"starting".into(), &1.into())
    );
    let admin = started["admin"].as_str().unwrap().to_owned();
    let until = std::time::Instant::now() + Duration::from_secs(60);
    while !get(&admin, "/metrics").contains("sealflow_component_sent_events_total{component_id=\"payments-seal\",component_kind=\"sink\",component_type=\"kafka\"} 40") {
        assert!(std::time::Instant::now() < until, "{}", get(&admin, "/metrics"));
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(get(&admin, "/readyz").starts_with("HTTP/1.1 200"));
    let metrics = get(&admin, "/metrics");
    for name in [
        "sealflow_values_sealed_total{flow=\"direct\"}",
        "sealflow_kms_requests_total{operation=\"GenerateDataKey\",outcome=\"ok\"} 2",
        "sealflow_data_key_age_seconds",
    ] {
        assert!(metrics.contains(name), "{name}: {metrics}");
    }
    for secret in sealflow_samples::generate(3, 40).flat_map(|record| record.secrets) {
        assert!(!metrics.contains(&secret), "{secret}");
    }
    assert!(
        Command::new("kill")
            .args(["-TERM", &child.id().to_string()])
            .status()
            .unwrap()
            .success()
    );
    let mut summary = String::new();
    child.stdout.take().unwrap().read_to_string(&mut summary).unwrap();
    assert!(child.wait().unwrap().success());
    let summary: serde_json::Value = serde_json::from_str(&summary).unwrap();
    assert_eq!(summary["records"], 40);
    assert!(log.map(|line| line.unwrap()).any(|line| line.contains("draining")));
}

#[test]
fn init_takes_the_symmetric_key_of_a_local_kms_that_runs() {
    let place = Place::new();
    // Keys of clients wrap no data keys.
    for spec in ["RSA_2048", "HMAC_256"] {
        let arn = place.ok(&["kms", "create-key", "--key-spec", spec]);
        assert!(arn.starts_with("arn:aws:kms:"), "{arn}");
    }
    assert_eq!(place.run(&["kms", "create-key", "--key-spec", "RSA_1024"]).code, 64);
    let kms = LocalKms::start(&place);
    let lines: Vec<u8> = sealflow_samples::generate(1, 30)
        .flat_map(|record| [record.value, b"\n".to_vec()].concat())
        .collect();
    place.write("sample.ndjson", lines);
    place.ok(&["init", "--sample", "sample.ndjson"]);
    assert!(place.read("policy.yaml").contains(&kms.arn));
}

#[test]
fn init_reads_a_file_and_refuses_what_it_cannot_use() {
    let place = Place::new();
    let lines: Vec<u8> = sealflow_samples::generate(1, 30)
        .flat_map(|record| [record.value, b"\n".to_vec()].concat())
        .collect();
    place.write("sample.ndjson", lines);
    let arn = "arn:aws:kms:eu-west-1:444455556666:key/00000000-0000-4000-8000-000000000009";
    place.ok(&[
        "init",
        "--sample",
        "sample.ndjson",
        "--key-arn",
        arn,
        "--topic",
        "orders",
        "--folder",
        "out",
    ]);
    assert!(
        place
            .read("out/policy.yaml")
            .contains("arn:aws:iam::444455556666:role/reader")
    );
    assert!(place.read("out/pipeline.yaml").contains("kms: { region: eu-west-1 }"));
    place.ok(&["policy", "show", "--pipeline", "out/pipeline.yaml"]);
    place.write("plain.ndjson", "{\"a\":1}\n");
    place.write("avro.bin", b"\0\0\0\0\x07\xde\xad");
    for (sample, code) in [("plain.ndjson", 65), ("avro.bin", 65), ("nowhere", 74)] {
        let ran = place.run(&["init", "--sample", sample, "--key-arn", arn, "--folder", "other"]);
        assert_eq!((ran.code, ran.err.lines().count()), (code, 2), "{sample}: {}", ran.err);
    }
    let ran = place.run(&[
        "init",
        "--sample",
        "sample.ndjson",
        "--key-arn",
        "alias/mine",
        "--folder",
        "other",
    ]);
    assert_eq!(ran.code, 64, "{}", ran.err);
    assert!(!place.path("other/policy.yaml").exists());
}

#[test]
fn the_local_kms_speaks_tls_and_says_which_development_root_it_believes() {
    let place = Place::new();
    let enclave = sealflow_testbed::Enclave::new();
    std::fs::copy(enclave.root_file(), place.path("root.pem")).unwrap();
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    place.write("cert.pem", made.cert.pem());
    place.write("key.pem", made.signing_key.serialize_pem());
    let arn = place.ok(&["kms", "create-key"]).trim().to_owned();
    place.write("policy.yaml", policy(&arn));
    let lines: Vec<u8> = sealflow_samples::generate(1, 3)
        .flat_map(|record| [record.value, b"\n".to_vec()].concat())
        .collect();
    place.write("clear.ndjson", lines);

    let serve = ["kms", "serve", "--listen", "127.0.0.1:0"];
    let tls = [
        "--tls-cert",
        "cert.pem",
        "--tls-key",
        "key.pem",
        "--attestation-root",
        "root.pem",
    ];
    let mut server = place.command(&[&serve[..], &tls[..]].concat());
    let mut server = server.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut endpoint = String::new();
    BufReader::new(server.stdout.take().unwrap())
        .read_line(&mut endpoint)
        .unwrap();
    let endpoint = endpoint.trim();
    let seal = |out: &str, root: Option<&str>| {
        let args = [
            "seal",
            "clear.ndjson",
            "-o",
            out,
            "--dev",
            "policy.yaml",
            "--kms-endpoint",
            endpoint,
        ];
        let mut command = place.command(&args);
        if let Some(root) = root {
            command.env("SSL_CERT_FILE", place.path(root));
        }
        command.output().unwrap().status.code()
    };
    let (trusting, others) = (
        seal("sealed.ndjson", Some("cert.pem")),
        seal("other.ndjson", Some("root.pem")),
    );
    server.kill().unwrap();
    let banner = String::from_utf8(server.wait_with_output().unwrap().stderr).unwrap();
    assert!(endpoint.starts_with("https://127.0.0.1:"), "{endpoint}\n{banner}");
    assert_eq!((trusting, others), (Some(0), Some(69)), "{banner}");
    assert!(
        banner.contains("root.pem") && banner.contains("dev-software-nsm, not hardware"),
        "{banner}"
    );

    for (more, code) in [
        (&["--tls-cert", "cert.pem"][..], 64),
        (&["--tls-cert", "key.pem", "--tls-key", "cert.pem"], 78),
        (&["--tls-cert", "none.pem", "--tls-key", "key.pem"], 78),
        (&["--attestation-root", "policy.yaml"], 78),
    ] {
        let ran = place.run(&[&serve[..], more].concat());
        assert_eq!(ran.code, code, "{more:?}: {}", ran.err);
    }
}
