//! A service whose audit log is a topic of a real broker.

use std::time::{Duration, Instant};

use sealflow_testbed::{Kafka, or_skip};
use serde_json::Value;

use crate::bench::{Bench, EMAIL, NOTE};

#[test]
fn a_decision_is_in_the_topic_before_its_answer_and_without_the_broker_nothing_is_shown() {
    let Some(mut kafka) = or_skip("a reading service that audits into a topic", Kafka::start()) else {
        return;
    };
    let topics = kafka.topics();
    topics.create("serve.log", 1, &[]);
    let bench = Bench::new();
    let path = bench.configure(&bench.site.kms().endpoint(), "limits: { request_timeout: 5s }");
    let yaml = std::fs::read_to_string(&path).unwrap();
    let file = yaml.lines().find(|line| line.starts_with("audit:")).unwrap();
    let topic = format!(
        "audit: {{ to: topic, topic: {{ brokers: \"{}\", name: serve.log }}, key: audit.key, checkpoints: audit.checkpoints }}",
        kafka.brokers()
    );
    std::fs::write(&path, yaml.replace(file, &topic)).unwrap();
    let serving = bench.start_file(&path, &[]);
    let alice = bench.issuer.token("alice");
    let ask = || serving.client.open_text(&alice, &bench.records(""));
    for n in 1..=3 {
        let before = topics.high_watermarks("serve.log")[0];
        let answer = ask();
        // Looked at when the answer is there, without waiting for anything.
        let after = topics.high_watermarks("serve.log")[0];
        assert!(answer.status == 200 && answer.body.contains(NOTE), "{answer:?}");
        assert!(after > before, "{before} {after}");
        let lines = topics.read_all("serve.log");
        let lines = lines
            .iter()
            .map(|line| String::from_utf8(line.value.clone().unwrap()).unwrap());
        let lines: Vec<String> = lines.take(usize::try_from(after).unwrap()).collect();
        assert!(
            !lines.iter().any(|line| line.contains(NOTE) || line.contains(EMAIL)),
            "{lines:?}"
        );
        let is_of_note = |line: &&String| {
            let line: Value = serde_json::from_str(line).unwrap_or_default();
            let event = line.get("event").unwrap_or(&line);
            event["label"] == "note"
                && event["principal"]
                    .as_str()
                    .is_some_and(|who| who.ends_with("#sub=alice"))
        };
        assert_eq!(lines.iter().filter(is_of_note).count(), n, "{lines:?}");
    }
    kafka.crash();
    let answer = ask();
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(
        ["audit-unavailable", "took-too-long"].contains(&answer.code().as_str()),
        "{answer:?}"
    );
    assert!(!answer.body.contains(NOTE) && !answer.body.contains(EMAIL));
    assert!(!serving.admin("/readyz").starts_with("ok"));
    kafka.resume().unwrap();
    let until = Instant::now() + Duration::from_secs(90);
    while ask().status != 200 {
        assert!(Instant::now() < until, "{}", serving.instance.read_log());
        std::thread::sleep(Duration::from_millis(500));
    }
    serving.stop();
}
