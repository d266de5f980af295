//! G1: the leak corpus and canaries through the binary, then every byte that it caused is searched: target and
//! dead-letter topics, the broker's folders, logs, metrics, the catalogue, the work folder.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use sealflow::columns::testing::{CORPUS_CANARY as CANARY, CORPUS_CANARY_NUMBER, contains_canary as contains};
use sealflow::columns::{Found, Locator, splice};
use sealflow_testbed::{Kafka, Message, Site, free_port};

use crate::clean::assert_clean;
use crate::support::{Running, create_topics, pipeline, progress};

const NAME: &str = "leaks";
const POLICY: &str = r#"
dataset: payments
version: 1
keys:
  default: { arn: "arn:aws:kms:eu-central-1:111122223333:key/00000000-0000-4000-8000-000000000001" }
  "tenant-{tenant}": { arn: "arn:aws:kms:eu-central-1:111122223333:key/00000000-0000-4000-8000-000000000001", max_live: 10 }
acls: { pii: {}, ops: {} }
columns:
  - { path: card, key: default, acl: pii }
  - { path: user.email, key: default, acl: pii, bind_row: id }
  - { path: "cards[*].number", key: "tenant-{tenant}", acl: pii }
  - { path: $key, key: default, acl: pii }
  - { path: $header.session, key: default, acl: pii }
dead_letters: { key: default, acl: ops }
"#;

fn message(partition: i32, value: &[u8]) -> Message {
    Message {
        partition,
        key: Some(CANARY.as_bytes().to_vec()),
        headers: vec![("session".into(), Some(CANARY.as_bytes().to_vec()))],
        ..Message::new(partition, value)
    }
}

/// Whether bytes hold what the corpus hides, in any spelling.
fn contains_canary(bytes: &[u8]) -> bool {
    contains(bytes, CANARY) || contains(bytes, CORPUS_CANARY_NUMBER)
}

/// Good records, records that make dead letters for every reason, and the whole leak corpus.
fn messages() -> Vec<Message> {
    let c = CANARY;
    let mut values: Vec<Vec<u8>> = [
        format!(r#"{{"id":1,"tenant":"acme","card":"{c}","user":{{"email":"{c}"}},"cards":[{{"number":"{c}"}},{{"number":["{c}"]}}]}}"#),
        format!(r#"{{"id":2,"tenant":"acme","card":{{"deep":["{c}"]}},"card":"{c}"}}"#),
        format!(r#"{{"id":3,"tenant":"not/a/name","cards":[{{"number":"{c}"}}],"note":"{c}"}}"#),
        format!(r#"{{"cards":[{{"number":"{c}"}}],"note":"{c}"}}"#),
        format!(r#"{{"id":1.5,"user":{{"email":"{c}"}}}}"#),
        format!(r#"{{"user":{{"email":"{c}"}}}}"#),
        format!(r#"{{"id":4,"card":"{c}"}} {c}"#),
        c.to_owned(),
    ]
    .map(String::into_bytes)
    .to_vec();
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/leak-corpus");
    for entry in std::fs::read_dir(corpus).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "json") {
            values.push(std::fs::read(path).unwrap());
        }
    }
    values.retain(|value| is_covered(value));
    assert!(values.len() >= 80, "{} records", values.len());
    values
        .iter()
        .enumerate()
        .map(|(n, value)| message(i32::try_from(n % 6).unwrap(), value))
        .collect()
}

/// Whether the policy covers every canary of a record, or cannot read it: what it covers must be gone. (Which
/// records those are is the corpus's own test in the core; here it only keeps out what no policy looks at.)
fn is_covered(value: &[u8]) -> bool {
    let paths = ["card", "user.email", "cards[*].number"].map(|path| path.parse().unwrap());
    let locator = Locator::new(&paths, &[]).unwrap();
    let mut found = Found::default();
    if locator.locate(value, &mut found).is_err() {
        return true;
    }
    let mut rest = Vec::new();
    splice(value, found.hits.iter().map(|hit| (hit.range(), &b"0"[..])), &mut rest);
    !contains_canary(&rest)
}

#[test]
fn no_plaintext_of_a_sealed_column_is_in_anything_that_the_pipeline_writes() {
    let Some(kafka) = Kafka::shared("no plaintext in any output") else {
        return;
    };
    let topics = kafka.topics();
    create_topics(&topics, NAME);
    let site = Site::new(&kafka.brokers());
    site.publish("payments", 1, POLICY);
    let messages: Vec<Message> = messages();
    topics.produce(NAME, &messages);

    let port = free_port();
    let file = pipeline(
        &site,
        NAME,
        "seal",
        &format!("admin: {{ listen: \"127.0.0.1:{port}\" }}"),
    );
    let mut running = Running::start(&site, "pipeline", &file, &[]);
    let until = Instant::now() + Duration::from_secs(60);
    let count = u64::try_from(messages.len()).unwrap();
    let outcomes = || progress(&topics, &format!("{NAME}.sealed")) + progress(&topics, &format!("{NAME}.dead"));
    // Transaction markers take offsets too, so this may go on early; the drain below finishes the rest.
    while outcomes() < count {
        assert!(
            running.ended().is_none() && Instant::now() < until,
            "{}",
            running.read_log()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    let metrics = ["/metrics", "/readyz", "/livez"].map(|path| get(port, path)).join("\n");
    running.kill();
    crate::support::run_to_end(&site, &file, Duration::from_secs(60));

    let sealed = topics.read_all(&format!("{NAME}.sealed"));
    let dead = topics.read_all(&format!("{NAME}.dead"));
    assert_eq!(
        sealed.len() + dead.len(),
        messages.len(),
        "each record went to one place"
    );
    assert!(
        sealed.len() >= 2 && dead.len() >= 20,
        "{} sealed, {} dead",
        sealed.len(),
        dead.len()
    );
    for message in sealed.iter().chain(&dead) {
        assert!(
            message.key.as_ref().is_none_or(|key| key.starts_with(b"sf1.")),
            "keys are sealed"
        );
        for (name, value) in &message.headers {
            assert!(
                name != "session" || value.as_ref().is_some_and(|value| value.starts_with(b"sf1.")),
                "headers are sealed"
            );
        }
        let value = message.value.as_deref().unwrap();
        assert!(!contains_canary(value), "{}", String::from_utf8_lossy(value));
    }

    assert!(metrics.contains("sealflow_"), "the admin port answers");
    assert!(!contains_canary(metrics.as_bytes()), "metrics");
    assert_clean(&site.path().join(format!("{NAME}-seal.log")), &contains_canary);
    assert_clean(&site.catalogue(), &contains_canary);
    // Everything on the broker's disk (uncompressed) but the source topic itself.
    for entry in std::fs::read_dir(kafka.data_dir()).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if !name.starts_with(&format!("{NAME}-")) {
            assert_clean(&entry.path(), &contains_canary);
        }
    }
}

fn get(port: u16, path: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}
